package managercore

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// fleetReader is a host that reads the log of the fleet, as agents do.
type fleetReader struct {
	host string
	c    *Cursor // nil: it begins a new stream each time
	upTo overlay.Rev
	nets map[overlay.UID]*overlay.Network
}

func (f *fleetReader) follow(t *rapid.T, v *View) {
	c := f.c
	if c == nil {
		c = NewCursor(v, f.host, f.upTo)
	}
	for {
		b := c.Next(v, 2)
		for _, uid := range b.Begins {
			if uid.IsZero() {
				f.nets = map[overlay.UID]*overlay.Network{}
			}
		}
		for _, it := range b.Items {
			n, ok := it.Rec.(*overlay.Network)
			switch {
			case !ok:
				if it.Key.Kind != overlay.KindHost {
					t.Fatalf("%s is told of %v", f.host, it.Key)
				}
			case it.Gone:
				delete(f.nets, n.UID)
			default:
				f.nets[n.UID] = n
			}
		}
		if !b.UpTo.IsZero() {
			f.upTo = b.UpTo
			return
		}
	}
}

// TestWhoIsToldOfANetwork: whatever became of hosts, networks and policies, a
// host knows the networks that it may serve and those that policies lead to or
// from one of them, as they are, and no other: whether it reads on, begins a
// stream where it was, or begins anew. Of the same it may read the logs.
func TestWhoIsToldOfANetwork(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		hosts := []string{"h1", "h2", "h3"}
		for _, h := range hosts {
			r.ask(Asked{AddHost: &AddHost{Name: h, MachineID: h}})
		}
		r.must(ModeCreate, domain("shop"))
		var all []*fleetReader
		for _, h := range hosts {
			all = append(all, &fleetReader{host: h, c: NewCursor(r.c.View(), h, overlay.Rev{})}, &fleetReader{host: h})
		}
		nets := []string{"a", "b", "c", "d"}
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			name := rapid.SampledFrom(nets).Draw(rt, "network")
			switch rapid.IntRange(0, 5).Draw(rt, "what") {
			case 0, 1, 2:
				d := within(rapid.SampledFrom([]string{"", "shop", "shop", "shop"}).Draw(rt, "domain"), network(name))
				d.Network.MTU = rapid.SampledFrom([]uint16{1400, 1450}).Draw(rt, "mtu")
				if x := r.c.View().Named(overlay.KindNetwork, overlay.UID{0xd}, name); x != nil {
					d.Network.Hosts = slices.Clone(x.Rec.(*overlay.Network).Hosts)
				}
				switch h := rapid.SampledFrom(hosts).Draw(rt, "host"); {
				case !slices.Contains(d.Network.Hosts, h):
					d.Network.Hosts = append(d.Network.Hosts, h)
					slices.Sort(d.Network.Hosts)
				case len(d.Network.Hosts) > 1:
					d.Network.Hosts = slices.DeleteFunc(d.Network.Hosts, func(x string) bool { return x == h })
				}
				r.put(ModeApply, d)
			case 3, 4:
				to := rapid.SampledFrom(nets).Draw(rt, "to")
				if d := policy(fmt.Sprintf("p-%s-%s", name, to), name, to); name != to {
					d.Policy.Bridged = rapid.IntRange(0, 3).Draw(rt, "bridged") == 0
					d.Policy.Both = d.Policy.Bridged || rapid.Bool().Draw(rt, "both")
					r.put(ModeApply, d)
				}
			case 5:
				if x := r.remove(overlay.KindPolicy, fmt.Sprintf("p-%s-%s", name, rapid.SampledFrom(nets).Draw(rt, "to"))); x.Refusal != nil {
					r.remove(overlay.KindNetwork, name)
				}
			}
			if rapid.Bool().Draw(rt, "nobody reads") {
				continue
			}
			for _, f := range all {
				f.follow(rt, r.c.View())
				r.checkTold(rt, f)
				fresh := &fleetReader{host: f.host}
				fresh.follow(rt, r.c.View())
				r.checkTold(rt, fresh)
			}
		}
	})
}

// checkTold compares what a host knows with the networks and policies of the
// store.
func (r *rig) checkTold(t *rapid.T, f *fleetReader) {
	nets := map[overlay.UID]*overlay.Network{}
	for _, s := range r.recs {
		if n, ok := s.Rec.(*overlay.Network); ok && !s.Gone {
			nets[n.UID] = n
		}
	}
	concerns := map[overlay.UID]bool{}
	for _, n := range nets {
		if slices.Contains(n.Hosts, f.host) {
			concerns[n.UID] = true
		}
	}
	for _, s := range r.recs {
		if p, ok := s.Rec.(*overlay.Policy); ok && !s.Gone {
			for _, w := range [...][2]overlay.UID{{p.From, p.To}, {p.To, p.From}} {
				if slices.Contains(nets[w[0]].Hosts, f.host) {
					concerns[w[1]] = true
				}
			}
		}
	}
	v := r.c.View()
	for uid, n := range nets {
		if known := f.nets[uid]; (known != nil) != concerns[uid] || known != nil && known != v.Network(uid) {
			t.Fatalf("%s knows %s as %+v, want that to be: %v", f.host, n.Name, known, concerns[uid])
		}
		if c := NewCursor(v, f.host, overlay.Rev{}); c.Subscribe(v, uid, overlay.Rev{}) != concerns[uid] {
			t.Fatalf("%s may read the log of %s: %v", f.host, n.Name, !concerns[uid])
		}
	}
	for uid := range f.nets {
		if nets[uid] == nil {
			t.Fatalf("%s knows a network that is not: %v", f.host, f.nets[uid].Name)
		}
	}
}

// TestAVNIWaitsForWhomItNeverConcerned: a host that the deleted network did not
// select may hold entries that lead into it.
func TestAVNIWaitsForWhomItNeverConcerned(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.attach("h1")
	h2, s2 := r.attach("h2")
	on := func(name, host string) overlay.Doc {
		d := within("shop", network(name))
		d.Network.Hosts = []string{host}
		return d
	}
	r.must(ModeCreate, domain("shop"), on("a", "h2"), on("b", "h1"), policy("a-b", "a", "b"))
	n := r.net("b")
	r.remove(overlay.KindPolicy, "a-b")
	r.remove(overlay.KindNetwork, "b")
	if waits := r.c.waitsFor(n); !slices.Contains(waits, "h2") {
		t.Errorf("the VNI waits for %v, want it to wait for h2, too", waits)
	}
	r.c.Step(r.now, Acked{Host: h2, Session: s2, Rev: r.c.View().At})
	if waits := r.c.waitsFor(n); !slices.Equal(waits, []string{"h1"}) {
		t.Errorf("the VNI waits for %v, want h1 alone", waits)
	}
}

// TestAChangeIsAwaitedOfWhoIsToldOfIt: also of hosts that the network does not
// select and that have guests who may reach it.
func TestAChangeIsAwaitedOfWhoIsToldOfIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, h := range []string{"h1", "h2", "h3"} {
		r.attach(h)
	}
	on := func(name string, mtu uint16, host string) overlay.Doc {
		d := within("shop", network(name))
		d.Network.Hosts, d.Network.MTU = []string{host}, mtu
		return d
	}
	r.must(ModeCreate, domain("shop"), on("a", 1400, "h1"), on("b", 1400, "h2"), forward(policy("a-b", "a", "b")))
	x := r.must(ModeSet, on("b", 1300, "h2"))
	var names []string
	for _, st := range r.c.Concerned(x.Rev) {
		names = append(names, st.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"h1", "h2"}) {
		t.Errorf("the change is awaited of %v, want h1 and h2", names)
	}
}

// TestAHostIsTakenOffANetwork: not while it has endpoints of it, or expects one.
func TestAHostIsTakenOffANetwork(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h1, s1 := r.attach("h1")
	h2, s2 := r.attach("h2")
	on := func(hosts ...string) overlay.Doc {
		d := network("blue", "10.0.0.0/24")
		d.Network.Hosts = hosts
		return d
	}
	p := r.portOf(r.must(ModeCreate, on("h1", "h2"), port("p1", "blue", "10.0.0.5")), 1)
	r.claim(h2, s2, p, overlay.Rev{}, false)
	if x := r.put(ModeSet, on("h1")); x.Refusal == nil || x.Refusal.Code() != api.CodeHostInUse || !slices.Equal(x.Refusal.PB().GetItems(), []string{p.MAC.String() + " on h2"}) {
		t.Errorf("a host with an endpoint: %v", x.Refusal)
	}
	r.claim(h1, s1, p, r.rev(p), false)
	r.expects(h2, s2, p, r.rev(p), false)
	r.refused(api.CodeHostInUse, r.put(ModeSet, on("h1")))
	r.expects(h2, s2, p, r.rev(p), true)
	r.must(ModeSet, on("h1"))
	if got := r.net("blue").Hosts; !slices.Equal(got, []string{"h1"}) {
		t.Errorf("it selects %v", got)
	}
}
