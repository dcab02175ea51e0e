package managercore

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
)

// demandNet is the network of these tests.
var demandNet = overlay.UID{0xa}

// demandCore is a core whose store has the hosts 1 to hosts and demandNet.
func demandCore(hosts int, d overlay.Distribution) *Core {
	c := New(Config{Epoch: 1})
	e := Loaded{N: 10, Records: []StoredRecord{
		{Rec: &overlay.Tenant{Meta: overlay.Meta{UID: overlay.UID{0xd}, Name: DefaultTenant}}, N: 1},
		{Rec: demandRecord(d), N: 2},
	}}
	for h := range hosts {
		e.Records = append(e.Records, StoredRecord{Rec: &overlay.Host{Meta: overlay.Meta{UID: demandHost(h + 1), Name: hostName(h + 1)}}, N: 3})
	}
	c.Step(0, e)
	return c
}

func demandRecord(d overlay.Distribution) *overlay.Network {
	return &overlay.Network{Meta: overlay.Meta{UID: demandNet, Name: "big", Tenant: overlay.UID{0xd}}, VNI: 10001, Distribution: d}
}

func demandHost(n int) overlay.UID { return overlay.UID{0xb, byte(n >> 8), byte(n)} }
func demandMAC(n int) overlay.MAC  { return overlay.MAC{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)} }
func demandPort(n int) overlay.UID { return overlay.UID{0xc, byte(n >> 16), byte(n >> 8), byte(n)} }
func demandAddr(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}
func byMAC(n int) overlay.Want  { return overlay.Want{Network: demandNet, MAC: demandMAC(n)} }
func byAddr(n int) overlay.Want { return overlay.Want{Network: demandNet, Address: demandAddr(n)} }
func byName(n int) overlay.Want { return overlay.Want{Network: demandNet, Name: fmt.Sprintf("p%d", n)} }

// follower is an agent that follows the protocol: what it holds is what it was
// told.
type follower struct {
	t     *rapid.T
	self  overlay.UID
	held  map[Key]*Item
	sum   Sum
	named map[Key]bool // during a full pass
	hosts map[overlay.UID]bool
	also  map[overlay.UID]bool // named since Begins; nil after the end
	wants map[overlay.Want]bool
	told  map[overlay.Want]bool
	over  map[overlay.Want]bool // dropped, and confirmed
	may   map[Key]bool          // has passed at some time since it was dropped last
}

func newFollower(t *rapid.T, self overlay.UID) *follower {
	return &follower{t: t, self: self, held: map[Key]*Item{}, hosts: map[overlay.UID]bool{}, wants: map[overlay.Want]bool{}, told: map[overlay.Want]bool{}, over: map[overlay.Want]bool{}, may: map[Key]bool{}}
}

// passes is the rule, said anew: what is the host's own and what it wants.
func (f *follower) passes(all map[Key]*Item, it *Item) bool {
	for w := range f.wants {
		if matches(it, w) {
			return true
		}
	}
	own := func(e *overlay.Endpoint) bool {
		return e.Host == f.self || e.From == f.self || slices.Contains(e.Pre, f.self)
	}
	switch r := it.Rec.(type) {
	case *overlay.Endpoint:
		return own(r)
	case *overlay.Port:
		for _, x := range all {
			if e, ok := x.Rec.(*overlay.Endpoint); ok && !x.Gone && own(e) && e.Port == r.UID {
				return true
			}
		}
	}
	return false
}

func (f *follower) take(v *View, b Batch) {
	fleet := func(u overlay.UID) bool { return u.IsZero() }
	b.Begins = slices.DeleteFunc(b.Begins, fleet)
	b.Ends = slices.DeleteFunc(b.Ends, func(e LogEnd) bool { return fleet(e.Network) })
	b.Items = slices.DeleteFunc(b.Items, func(it *Item) bool { return it.Key.Kind != overlay.KindPort && it.Key.Kind != overlay.KindEndpoint })
	if len(b.Dropped) > 0 && len(b.Items)+len(b.Ends)+len(b.Told)+len(b.Begins)+len(b.Members) > 0 {
		f.t.Fatalf("wants were dropped together with other things: %+v", b)
	}
	for range b.Begins {
		f.named, f.also = map[Key]bool{}, map[overlay.UID]bool{}
	}
	for _, it := range b.Items {
		if old := f.held[it.Key]; old != nil && !old.Rev.Less(it.Rev) {
			if old.Rev != it.Rev {
				f.t.Fatalf("%v was told at %v after %v", it.Key, it.Rev, old.Rev)
			}
		} else {
			f.set(it.Key, it)
		}
		if !it.Gone && !f.may[it.Key] {
			f.t.Fatalf("%v is neither the host's nor wanted, and was told", it.Key)
		}
		if f.named != nil {
			f.named[it.Key] = true
		}
	}
	for _, m := range b.Members {
		if m.Gone == !f.hosts[m.Host] && f.also == nil {
			f.t.Fatalf("%+v is no news", m)
		}
		if m.Gone {
			delete(f.hosts, m.Host)
		} else {
			f.hosts[m.Host] = true
		}
		if f.also != nil {
			f.also[m.Host] = !m.Gone
		}
	}
	for _, e := range b.Ends {
		if e.Full {
			for k := range f.held {
				if !f.named[k] {
					f.set(k, nil)
				}
			}
			maps.DeleteFunc(f.hosts, func(h overlay.UID, _ bool) bool { return !f.also[h] })
			f.named, f.also = nil, nil
		}
		if e.Sum != f.sum || !e.OnDemand {
			f.t.Fatalf("end %+v, want the sum %v of %d", e, f.sum, len(f.held))
		}
	}
	for _, w := range b.Told {
		f.told[w] = true
		for it := range v.Net(demandNet).Keys() {
			if held := f.held[it.Key]; !it.Gone && matches(it, w) && (held == nil || held.Rev != it.Rev) {
				f.t.Fatalf("all of %+v was told, and %v at %v was not", w, it.Key, it.Rev)
			}
		}
	}
	for _, w := range b.Dropped {
		f.over[w] = true
		for k, it := range f.held {
			if matches(it, w) && !f.passes(f.held, it) {
				f.set(k, nil)
				delete(f.may, k)
			}
		}
	}
}

func (f *follower) set(k Key, it *Item) {
	if old := f.held[k]; old != nil {
		f.sum.Sub(k, old.Rev)
	}
	if delete(f.held, k); it != nil && !it.Gone {
		f.held[k] = it
		f.sum.Add(k, it.Rev)
	}
}

// demandWorld is a log that changes at random, and one host's cursor.
type demandWorld struct {
	t    *rapid.T
	c    *Core
	cur  *Cursor
	f    *follower
	n    uint64
	all  map[Key]*Item // what lives, and tombstones
	mode overlay.Distribution

	ports map[int]overlay.UID
	made  int
}

// port is the live port of that number, or a new one: no UID is used twice.
func (w *demandWorld) port(n, mac int) *overlay.Port {
	uid := w.ports[n]
	if it := w.all[Key{Kind: overlay.KindPort, UID: uid}]; it == nil || it.Gone {
		w.made++
		uid = demandPort(w.made)
		w.ports[n] = uid
	}
	return &overlay.Port{Meta: overlay.Meta{UID: uid, Name: fmt.Sprintf("p%d", n), Tenant: overlay.UID{0xd}}, Network: demandNet, MAC: demandMAC(mac)}
}

// change puts some records in one revision.
func (w *demandWorld) change() {
	w.n++
	e := Stored{N: w.n}
	seen := map[Key]bool{}
	for range rapid.IntRange(1, 4).Draw(w.t, "records") {
		var r StoredRecord
		i := rapid.IntRange(0, 11).Draw(w.t, "which")
		switch rapid.IntRange(0, 3).Draw(w.t, "change") {
		case 0:
			r.Rec = w.port(i, rapid.SampledFrom([]int{i, i, i + 100}).Draw(w.t, "mac"))
			r.Gone = rapid.IntRange(0, 5).Draw(w.t, "port gone") == 0
		default:
			host := func(label string) overlay.UID { return demandHost(rapid.IntRange(1, 4).Draw(w.t, label)) }
			e := &overlay.Endpoint{Network: demandNet, MAC: demandMAC(i), Host: host("host")}
			if it := w.all[Key{Kind: overlay.KindPort, UID: w.ports[i]}]; it != nil && !it.Gone {
				e.Port = w.ports[i]
			}
			if rapid.IntRange(0, 3).Draw(w.t, "moved") == 0 {
				e.From = host("from")
			}
			if rapid.IntRange(0, 3).Draw(w.t, "expected") == 0 {
				e.Pre = []overlay.UID{host("pre")}
			}
			for range rapid.IntRange(0, 2).Draw(w.t, "addresses") {
				e.Addresses = append(e.Addresses, demandAddr(rapid.IntRange(0, 8).Draw(w.t, "address")))
			}
			overlay.SortAddrs(e.Addresses)
			r.Rec, r.Gone = e, rapid.IntRange(0, 3).Draw(w.t, "gone") == 0
		}
		if r.N = w.n; !seen[KeyOf(r.Rec)] {
			seen[KeyOf(r.Rec)] = true
			e.Puts = append(e.Puts, r)
		}
	}
	w.step(e)
}

// prune throws all tombstones away and raises the floor.
func (w *demandWorld) prune() {
	w.n++
	e := Stored{N: w.n, Puts: []StoredRecord{{Rec: &overlay.Floor{Network: demandNet, Rev: overlay.Rev{Epoch: 1, N: w.n - 1}}, N: w.n}}}
	for _, k := range slices.SortedFunc(maps.Keys(w.all), Key.Compare) {
		if w.all[k].Gone {
			e.Deletes = append(e.Deletes, k)
			delete(w.all, k)
		}
	}
	w.step(e)
}

func (w *demandWorld) step(e Stored) {
	w.c.Step(0, e)
	for _, r := range e.Puts {
		if k := KeyOf(r.Rec); k.Kind == overlay.KindEndpoint || k.Kind == overlay.KindPort {
			w.all[k] = &Item{Key: k, Rev: overlay.Rev{Epoch: 1, N: e.N}, Gone: r.Gone, Rec: r.Rec}
		}
	}
	w.note()
}

// note remembers what may be told from now on.
func (w *demandWorld) note() {
	for k, it := range w.all {
		if !it.Gone && w.f.passes(w.all, it) {
			w.f.may[k] = true
		}
	}
}

func (w *demandWorld) want() overlay.Want {
	i := rapid.IntRange(0, 11).Draw(w.t, "wanted")
	switch rapid.IntRange(0, 4).Draw(w.t, "by") {
	case 0, 1:
		return byAddr(i % 9)
	case 2:
		return byName(i)
	case 3:
		return byMAC(i + 100)
	}
	return byMAC(i)
}

// ask wants something, or not any more.
func (w *demandWorld) ask() {
	x := w.want()
	drop := rapid.IntRange(0, 2).Draw(w.t, "drop") == 0
	if len(w.f.wants) > 0 && drop && rapid.Bool().Draw(w.t, "one that stands") {
		all := slices.SortedFunc(maps.Keys(w.f.wants), func(a, b overlay.Want) int { return slices.Compare([]byte(fmt.Sprint(a)), []byte(fmt.Sprint(b))) })
		x = rapid.SampledFrom(all).Draw(w.t, "want")
	}
	w.cur.Demand(x, drop)
	if drop {
		w.settle(x) // an agent wants nothing of that kind again before it is confirmed
		return
	}
	w.f.wants[x], w.f.told[x], w.f.over[x] = true, false, false
	w.note()
}

// settle drops a want and reads up to its confirmation.
func (w *demandWorld) settle(x overlay.Want) {
	w.f.over[x] = false
	for i := 0; !w.f.over[x]; i++ {
		b := w.cur.Next(w.c.View(), rapid.IntRange(1, 9).Draw(w.t, "chunk"))
		if len(b.Dropped) > 0 {
			delete(w.f.wants, x)
		}
		w.f.take(w.c.View(), b)
		if i > 1000 {
			w.t.Fatalf("%+v is not confirmed", x)
		}
	}
	w.note()
}

// read takes some batches.
func (w *demandWorld) read() {
	for range rapid.IntRange(1, 4).Draw(w.t, "batches") {
		w.f.take(w.c.View(), w.cur.Next(w.c.View(), rapid.IntRange(1, 9).Draw(w.t, "chunk")))
	}
}

// connect begins a new stream, or in the one that is there a new pass.
func (w *demandWorld) connect() {
	if anew := rapid.Bool().Draw(w.t, "new stream"); anew || w.cur == nil {
		w.cur = NewCursor(w.c.View(), "h1", w.c.View().At)
		for x := range w.f.wants {
			w.cur.Demand(x, false)
			w.f.told[x] = false
		}
	}
	if !w.cur.SubscribeOnDemand(w.c.View(), demandNet) {
		w.t.Fatal("the subscription was refused")
	}
	w.f.may = map[Key]bool{}
	for k := range w.f.held {
		w.f.may[k] = true // what is on its way
	}
	w.note()
}

// turn switches the network's mode behind the host's back.
func (w *demandWorld) turn() {
	w.mode = overlay.DistributeOnDemand - w.mode
	w.n++
	w.c.Step(0, Stored{N: w.n, Puts: []StoredRecord{{Rec: demandRecord(w.mode), N: w.n}}})
}

// check reads to the end and compares with the rule.
func (w *demandWorld) check() {
	v := w.c.View()
	for i := 0; ; i++ {
		b := w.cur.Next(v, rapid.IntRange(1, 9).Draw(w.t, "chunk"))
		w.f.take(w.c.View(), b)
		if b.UpTo == v.At {
			break
		}
		if i > 1000 {
			w.t.Fatal("there is no end")
		}
	}
	for x := range w.f.wants {
		if !w.f.told[x] {
			w.t.Errorf("%+v was not answered", x)
		}
	}
	for k, it := range w.all {
		held := w.f.held[k]
		switch {
		case it.Gone && held != nil:
			w.t.Errorf("%v is gone and held", k)
		case it.Gone:
		case w.f.passes(w.all, it) && held == nil:
			w.t.Errorf("%v is the host's or wanted, and not held", k)
		case held != nil && held.Rev != it.Rev:
			w.t.Errorf("%v is held at %v, want %v", k, held.Rev, it.Rev)
		case held != nil && !w.f.may[k]:
			w.t.Errorf("%v is held, and was never the host's or wanted since it was dropped", k)
		}
	}
	for k := range w.f.held {
		if w.all[k] == nil {
			w.t.Errorf("%v is held and was purged", k)
		}
	}
	if w.mode != overlay.DistributeOnDemand {
		return // members are told once
	}
	members := map[overlay.UID]bool{}
	for _, it := range w.all {
		if e, ok := it.Rec.(*overlay.Endpoint); ok && !it.Gone && e.Host != w.f.self {
			members[e.Host] = true
		}
	}
	if !maps.Equal(members, w.f.hosts) {
		w.t.Errorf("members %v, want %v", w.f.hosts, members)
	}
}

// Whatever changes, is asked for and given up, in whatever chunks it is told: a
// host holds what is its own, what it wants and what it was told before, as it
// is now, and its sum is the manager's.
func TestAHostHoldsWhatItWants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := &demandWorld{t: t, c: demandCore(4, overlay.DistributeOnDemand), n: 10, all: map[Key]*Item{}, f: newFollower(t, demandHost(1)), mode: overlay.DistributeOnDemand, ports: map[int]overlay.UID{}}
		for range rapid.IntRange(0, 12).Draw(t, "there before") {
			w.change()
		}
		for range rapid.IntRange(0, 3).Draw(t, "wanted before") {
			w.f.wants[w.want()] = true
		}
		w.connect()
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 15).Draw(t, "step") {
			case 0, 1, 2, 3, 4, 5:
				w.change()
			case 6, 7, 8:
				w.ask()
			case 9, 10, 11:
				w.read()
			case 12:
				w.connect()
			case 13:
				w.prune()
			case 14:
				w.turn()
			default:
				w.check()
			}
		}
		w.check()
	})
}

func addrsOf(n ...int) (out []netip.Addr) {
	for _, i := range n {
		out = append(out, demandAddr(i))
	}
	return out
}

func hostName(n int) string { return fmt.Sprintf("h%d", n) }
