package manager

import (
	"net/netip"
	"slices"
	"testing"

	"culvert/internal/agent"
	"culvert/internal/api"
	"culvert/internal/overlay"
)

// asker is a host whose agent tells apart what it was told on demand.
type asker struct {
	t       *testing.T
	st      agent.Stream
	session uint64
	network overlay.UID
	held    map[overlay.Key]overlay.Rev
	hosts   map[overlay.UID]bool
	ids     uint64
	base    overlay.Rev // the newest that it heard of
}

// ask opens a stream, says what is wanted and subscribes; it returns at the end
// of the pass.
func (s *served) ask(network overlay.UID, leaf func() (agent.Stream, uint64), wants ...overlay.Want) *asker {
	s.t.Helper()
	a := &asker{t: s.t, network: network, held: map[overlay.Key]overlay.Rev{}, hosts: map[overlay.UID]bool{}}
	a.st, a.session = leaf()
	var ds []api.Demand
	for _, w := range wants {
		ds = append(ds, api.Demand{Want: w})
	}
	if len(ds) > 0 {
		say(s.t, a.st, api.Up{Demands: ds})
	}
	say(s.t, a.st, api.Up{Interest: &api.Interest{Add: []api.Position{{Network: network, OnDemand: true}}}})
	ended := false
	var told []overlay.Want
	a.until("full pass", func(it *api.Items) bool {
		told = append(told, it.Told...)
		ended = ended || slices.ContainsFunc(it.Ends, func(e api.LogEnd) bool { return e.Network == network && e.Full && e.OnDemand })
		return ended
	})
	if len(told) != len(wants) {
		s.t.Errorf("of %d wants, %d were answered by the end of the pass", len(wants), len(told))
	}
	return a
}

// until takes what comes until want is satisfied.
func (a *asker) until(what string, want func(*api.Items) bool) {
	a.t.Helper()
	until(a.t, a.st, what, func(d api.Down) bool {
		if d.Items == nil {
			return false
		}
		for _, it := range d.Items.Items {
			if a.base.Less(it.Rev) {
				a.base = it.Rev
			}
			if k := overlay.KeyOf(it.Rec); it.Gone {
				delete(a.held, k)
			} else if k.Kind == overlay.KindEndpoint || k.Kind == overlay.KindPort {
				a.held[k] = it.Rev
			}
		}
		for _, m := range d.Items.Members {
			if delete(a.hosts, m.Host); !m.Gone {
				a.hosts[m.Host] = true
			}
		}
		return want(d.Items)
	})
}

// wants says one thing and returns when it is answered.
func (a *asker) wants(d api.Demand) {
	a.t.Helper()
	say(a.t, a.st, api.Up{Demands: []api.Demand{d}})
	a.until("answer", func(it *api.Items) bool {
		if d.Drop {
			return slices.Contains(it.Dropped, d.Want)
		}
		return slices.Contains(it.Told, d.Want)
	})
}

// claims has the port's machine run here.
func (a *asker) claims(p *overlay.Port) {
	a.t.Helper()
	a.ids++
	say(a.t, a.st, api.Up{Claims: &api.Claims{Session: a.session, Claims: []api.Claim{{ID: a.ids, Network: a.network, MAC: p.MAC, Port: p.UID, Base: a.base, Evidence: overlay.EvidenceDevice}}}})
	a.until("the own endpoint", func(*api.Items) bool { return a.has(p) })
}

func (a *asker) has(p *overlay.Port) bool {
	return !a.held[endpointOf(p)].IsZero()
}

func (a *asker) hasPort(p *overlay.Port) bool { return !a.held[overlay.KeyOf(p)].IsZero() }

func endpointOf(p *overlay.Port) overlay.Key {
	return overlay.Key{Kind: overlay.KindEndpoint, UID: p.Network, MAC: p.MAC}
}

// A host is told of its own and of what it asks for, at once, with whoever has
// it told of who asks; what it gives up is forgotten on both sides, and a new
// stream begins with what it wants then.
func TestNetworksAreToldOnDemand(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	l1, l2 := s.agentLeaf("h1"), s.agentLeaf("h2")
	big := networkDoc("big")
	big.Network.Distribution = overlay.DistributeOnDemand
	n := s.put(big)[0].(*overlay.Network)
	docs := []overlay.Doc{portDoc("vm1", "big"), portDoc("vm2", "big"), portDoc("vm3", "big")}
	for i := range docs {
		docs[i].Port.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 10)})}
	}
	var ports []*overlay.Port
	for _, r := range s.put(docs...) {
		ports = append(ports, r.(*overlay.Port))
	}
	vm1, vm2, vm3 := ports[0], ports[1], ports[2]
	addr := func(p *overlay.Port) overlay.Want { return overlay.Want{Network: n.UID, Address: p.Addresses[0]} }
	mac := func(p *overlay.Port) overlay.Want { return overlay.Want{Network: n.UID, MAC: p.MAC} }
	open1 := func() (agent.Stream, uint64) { return s.mustAttach(l1) }
	h1 := s.ask(n.UID, open1, mac(vm1))
	h2 := s.ask(n.UID, func() (agent.Stream, uint64) { return s.mustAttach(l2) }, mac(vm2), overlay.Want{Network: n.UID, Name: "vm3"})
	if !h1.hasPort(vm1) || len(h1.held) != 1 || !h2.hasPort(vm2) || !h2.hasPort(vm3) || len(h2.held) != 2 {
		t.Errorf("h1 holds %v, h2 %v; want vm1, and vm2 and vm3", h1.held, h2.held)
	}
	h1.claims(vm1)
	h2.claims(vm2)
	h2.claims(vm3)
	h1.until("the other member", func(*api.Items) bool { return len(h1.hosts) == 1 })

	if len(h1.held) != 2 {
		t.Errorf("h1 holds %v, want its own alone", h1.held)
	}
	h1.wants(api.Demand{Want: addr(vm2), For: vm1.MAC})
	if !h1.has(vm2) || h1.has(vm3) {
		t.Errorf("h1 holds %v, want what it asked for", h1.held)
	}
	h2.until("who asks", func(*api.Items) bool { return h2.has(vm1) })
	nobody := overlay.Want{Network: n.UID, Address: netip.MustParseAddr("10.1.0.99")}
	h1.wants(api.Demand{Want: nobody})

	h1.wants(api.Demand{Want: addr(vm2), Drop: true})
	delete(h1.held, endpointOf(vm2))
	say(t, h2.st, api.Up{Claims: &api.Claims{Session: h2.session, Claims: []api.Claim{{ID: 90, Network: n.UID, MAC: vm2.MAC, Port: vm2.UID, Base: h2.held[endpointOf(vm2)], Leave: true}}}})
	h2.until("its end", func(*api.Items) bool { return !h2.has(vm2) })
	h2.claims(vm2)
	h1.wants(api.Demand{Want: addr(vm3)}) // what was changed before would have come before
	if h1.has(vm2) || !h1.has(vm3) {
		t.Errorf("h1 holds %v after it gave vm2 up, want vm3 and its own", h1.held)
	}

	again := s.ask(n.UID, open1, mac(vm3))
	if !again.has(vm1) || !again.hasPort(vm1) || !again.has(vm3) || again.has(vm2) || len(again.hosts) != 1 {
		t.Errorf("a new stream gives %v of %v, want its own and vm3 of one other", again.held, again.hosts)
	}
}

// Wants that come faster than a stream sends are counted and come to nothing;
// what is given up is confirmed all the same, and the stream lives.
func TestDemandsThatWaitAreBounded(t *testing.T) {
	t.Parallel()
	s := &stream{m: &Manager{}, wake: make(chan struct{}, 1)}
	part := func(drop bool) (out []api.Demand) {
		for i := range api.MaxStreamDemands {
			out = append(out, api.Demand{Want: overlay.Want{Network: overlay.UID{1}, MAC: overlay.MAC{2, byte(i >> 8), byte(i)}}, Drop: drop})
		}
		return out
	}
	for i := range maxSaid/api.MaxStreamDemands + 2 {
		if err := s.takeInterest(api.Up{Demands: part(false)}); err != nil {
			t.Fatalf("message %d ended the stream: %v", i, err)
		}
	}
	if n := s.m.counts.copy()["demands_refused"]; n != 2*api.MaxStreamDemands || s.load != maxSaid {
		t.Errorf("%d refused, %d queued; want %d, %d", n, s.load, 2*api.MaxStreamDemands, maxSaid)
	}
	if err := s.takeInterest(api.Up{Demands: part(true)}); err != nil || s.load != maxSaid+api.MaxStreamDemands {
		t.Errorf("%d queued (%v), want what is given up with them", s.load, err)
	}
	for range maxSaid / api.MaxStreamDemands {
		_ = s.takeInterest(api.Up{Demands: part(true)})
	}
	if err := s.takeInterest(api.Up{Demands: part(true)}); err == nil {
		t.Error("there is no bound")
	}
}
