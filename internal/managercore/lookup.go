package managercore

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/tidwall/btree"

	"culvert/internal/overlay"
)

// lookup finds the live items of an on-demand network by what a host may ask
// for. It is as persistent as the log's own trees: a copy costs nothing, and a
// change costs the way down to it.
type lookup struct {
	hosts *btree.BTreeG[atHost] // endpoints that a host is to know unasked, see concerned
	addrs *btree.BTreeG[atAddr] // endpoints
	macs  *btree.BTreeG[*Item]  // ports
	names *btree.BTreeG[*Item]  // ports
	// members counts the endpoints of each host that has any, by its UID's
	// bytes; membersAt is the revision at which it last got or lost a host.
	members   *btree.Map[string, int]
	membersAt overlay.Rev
}

// keyed is an item under one of the things that lead to it.
type keyed[K comparing[K]] struct {
	by K
	it *Item
}

type comparing[K any] interface {
	comparable
	Compare(K) int
}

type (
	atHost = keyed[overlay.UID]
	atAddr = keyed[netip.Addr]
)

func (a keyed[K]) compare(b keyed[K]) int {
	if c := a.by.Compare(b.by); c != 0 {
		return c
	}
	return a.it.Key.Compare(b.it.Key)
}

func newKeyed[K comparing[K]]() *btree.BTreeG[keyed[K]] {
	return btree.NewBTreeGOptions(func(a, b keyed[K]) bool { return a.compare(b) < 0 }, btree.Options{NoLocks: true})
}

// under yields what is under k, by key.
func under[K comparing[K]](t *btree.BTreeG[keyed[K]], k K, yield func(*Item)) {
	t.Ascend(keyed[K]{k, &Item{}}, func(a keyed[K]) bool {
		if a.by == k {
			yield(a.it)
		}
		return a.by == k
	})
}

func newLookup() *lookup {
	opts := btree.Options{NoLocks: true}
	return &lookup{
		hosts: newKeyed[overlay.UID](),
		addrs: newKeyed[netip.Addr](),
		macs: btree.NewBTreeGOptions(func(a, b *Item) bool {
			m, n := a.Rec.(*overlay.Port).MAC, b.Rec.(*overlay.Port).MAC
			if m != n {
				return string(m[:]) < string(n[:])
			}
			return a.Key.Compare(b.Key) < 0
		}, opts),
		names: btree.NewBTreeGOptions(func(a, b *Item) bool {
			if c := strings.Compare(a.Rec.(*overlay.Port).Name, b.Rec.(*overlay.Port).Name); c != 0 {
				return c < 0
			}
			return a.Key.Compare(b.Key) < 0
		}, opts),
		members: &btree.Map[string, int]{},
	}
}

func (x *lookup) copy() *lookup {
	c := *x
	c.hosts, c.addrs, c.macs, c.names, c.members = x.hosts.Copy(), x.addrs.Copy(), x.macs.Copy(), x.names.Copy(), x.members.Copy()
	return &c
}

// concerned yields the hosts that know of an endpoint unasked: where it is,
// where it came from and where it is expected. Some may come twice.
func concerned(e *overlay.Endpoint, yield func(overlay.UID)) {
	yield(e.Host)
	if !e.From.IsZero() {
		yield(e.From)
	}
	for _, h := range e.Pre {
		yield(h)
	}
}

// replace takes old out and enters it; either may be nil or a tombstone.
func (x *lookup) replace(old, it *Item) {
	was, is := memberOf(old), memberOf(it)
	if old != nil && !old.Gone {
		switch r := old.Rec.(type) {
		case *overlay.Endpoint:
			concerned(r, func(h overlay.UID) { x.hosts.Delete(atHost{h, old}) })
			for _, a := range r.Addresses {
				x.addrs.Delete(atAddr{a, old})
			}
		case *overlay.Port:
			x.macs.Delete(old)
			x.names.Delete(old)
		}
	}
	if it != nil && !it.Gone {
		switch r := it.Rec.(type) {
		case *overlay.Endpoint:
			concerned(r, func(h overlay.UID) { x.hosts.Set(atHost{h, it}) })
			for _, a := range r.Addresses {
				x.addrs.Set(atAddr{a, it})
			}
		case *overlay.Port:
			x.macs.Set(it)
			x.names.Set(it)
		}
	}
	if was == is {
		return
	}
	at := x.membersAt
	if it != nil {
		at = it.Rev
	}
	x.count(was, -1, at)
	x.count(is, 1, at)
}

// memberOf is the host of a live endpoint; else zero.
func memberOf(it *Item) overlay.UID {
	if it != nil && !it.Gone {
		if e, ok := it.Rec.(*overlay.Endpoint); ok {
			return e.Host
		}
	}
	return overlay.UID{}
}

func (x *lookup) count(host overlay.UID, by int, at overlay.Rev) {
	if host.IsZero() {
		return
	}
	k := string(host[:])
	n, _ := x.members.Get(k)
	if n+by == 0 {
		x.members.Delete(k)
	} else {
		x.members.Set(k, n+by)
	}
	if n == 0 || n+by == 0 {
		x.membersAt = at
	}
}

// concerns reports whether the host is to know of the endpoint unasked.
func concerns(e *overlay.Endpoint, host overlay.UID) bool {
	return e.Host == host || e.From == host || slices.Contains(e.Pre, host)
}

// lookUp keeps what is needed to tell the log on demand, or keeps it no more.
// It reports whether that is a change, which came with revision at. Of a log
// with n items it takes the time of some n insertions.
func (l *Log) lookUp(on bool, at overlay.Rev) bool {
	if on == (l.found != nil) {
		return false
	}
	l.found = nil
	if on {
		l.found = newLookup()
		l.found.fill(l, at)
	}
	return true
}

// fill enters all that lives. Sorted first it takes a third of the time.
func (x *lookup) fill(l *Log, at overlay.Rev) {
	var hosts []atHost
	var addrs []atAddr
	for it := range l.Keys() {
		switch r := it.Rec.(type) {
		case *overlay.Endpoint:
			if it.Gone {
				continue
			}
			concerned(r, func(h overlay.UID) { hosts = append(hosts, atHost{h, it}) })
			for _, a := range r.Addresses {
				addrs = append(addrs, atAddr{a, it})
			}
			x.count(r.Host, 1, at)
		case *overlay.Port:
			x.replace(nil, it)
		}
	}
	slices.SortFunc(hosts, atHost.compare)
	for _, e := range hosts {
		x.hosts.Load(e)
	}
	slices.SortFunc(addrs, atAddr.compare)
	for _, e := range addrs {
		x.addrs.Load(e)
	}
	x.membersAt = at
}

// ofHost yields the endpoints that a host is to know unasked, by MAC.
func (x *lookup) ofHost(host overlay.UID, yield func(*Item)) {
	under(x.hosts, host, yield)
}

// meets yields what w names of the log.
func (l *Log) meets(w overlay.Want, yield func(*Item)) {
	port := func(it *Item) bool {
		is := matches(it, w)
		if is {
			yield(it)
		}
		return is
	}
	switch {
	case w.Address.IsValid():
		under(l.found.addrs, w.Address, yield)
	case w.Name != "":
		l.found.names.Ascend(&Item{Rec: &overlay.Port{Meta: overlay.Meta{Name: w.Name}}}, port)
	default:
		l.found.macs.Ascend(&Item{Rec: &overlay.Port{MAC: w.MAC}}, port)
		if it := l.Get(Key{Kind: overlay.KindEndpoint, UID: w.Network, MAC: w.MAC}); it != nil && !it.Gone {
			yield(it)
		}
	}
}

// matches reports whether it is what w names.
func matches(it *Item, w overlay.Want) bool {
	switch r := it.Rec.(type) {
	case *overlay.Endpoint:
		if w.Address.IsValid() {
			return slices.Contains(r.Addresses, w.Address)
		}
		return w.Name == "" && r.MAC == w.MAC
	case *overlay.Port:
		if w.Name != "" {
			return r.Name == w.Name
		}
		return !w.Address.IsValid() && r.MAC == w.MAC
	}
	return false
}

// members are the hosts that have endpoints in the network, by UID. A log that
// is not told on demand is read whole for it.
func (l *Log) members() []overlay.UID {
	var out []overlay.UID
	if l.found != nil {
		l.found.members.Scan(func(host string, _ int) bool {
			out = append(out, overlay.UID([]byte(host)))
			return true
		})
		return out
	}
	for it := range l.Keys() {
		if h := memberOf(it); !h.IsZero() {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, overlay.UID.Compare)
	return slices.Compact(out)
}

// Holders are the hosts of the endpoints that are what w names, sorted; none
// while the network is not told on demand.
func (v *View) Holders(w overlay.Want) []overlay.UID {
	var out []overlay.UID
	if l := v.Net(w.Network); l != nil && l.found != nil {
		l.meets(w, func(it *Item) {
			if h := memberOf(it); !h.IsZero() {
				out = append(out, h)
			}
		})
	}
	slices.SortFunc(out, overlay.UID.Compare)
	return slices.Compact(out)
}
