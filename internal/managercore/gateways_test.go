package managercore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// wayOut is a gateway of domain shop.
func wayOut(name string, hosts ...string) overlay.Doc {
	return overlay.Doc{Kind: overlay.KindGateway, Tenant: DefaultTenant, Name: name, Gateway: overlay.GatewaySpec{
		Domain: "shop", Hosts: hosts, Uplink: "eth1",
		Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.10/24"), netip.MustParsePrefix("2001:db8::10/64")},
		NextHops:  []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")},
	}}
}

func (r *rig) gateway(name string) *overlay.Gateway {
	r.t.Helper()
	it := r.c.View().Named(overlay.KindGateway, overlay.UID{0xd}, name)
	if it == nil {
		r.t.Fatalf("no gateway %s", name)
	}
	return it.Rec.(*overlay.Gateway)
}

// exits are the routes of a network, "0.0.0.0/0 by out-web" each; a MAC that no
// port of the network has is printed as it is.
func (r *rig) exits(name string) string {
	r.t.Helper()
	n := r.net(name)
	var out []string
	for _, h := range n.Routes {
		by := h.MAC.String()
		for it := range r.c.View().List(overlay.KindPort, overlay.UID{}) {
			if p := it.Rec.(*overlay.Port); p.Network == h.Network && p.MAC == h.MAC {
				by = p.Name
			}
		}
		out = append(out, h.Prefix.String()+" by "+by)
	}
	return strings.Join(out, ", ")
}

// legs are a gateway's, "out-web 10.1.0.2 fd00:1::2" each, by name.
func (r *rig) legs(name string) string {
	r.t.Helper()
	g := r.gateway(name)
	var out []string
	for _, l := range g.Legs {
		p := r.c.View().Named(overlay.KindPort, overlay.UID{0xd}, l.Port)
		if p == nil {
			r.t.Fatalf("leg %s is no port", l.Port)
		}
		if q := p.Rec.(*overlay.Port); q.MAC != l.MAC || q.Network != l.Network || q.Gateway != g.UID || !slices.Equal(q.Addresses, l.Addresses) {
			r.t.Errorf("leg %+v is port %+v", l, q)
		}
		s := l.Port
		for _, a := range l.Addresses {
			s += " " + a.String()
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func shopWithHosts(t *testing.T) *rig {
	r := shop(t)
	for _, h := range []string{"h1", "h2", "h3"} {
		r.ask(Asked{AddHost: &AddHost{Name: h, MachineID: h}})
	}
	return r
}

// A gateway has a leg in each network that it serves, and is their way out; both
// follow the networks, in the same transaction.
func TestLegsFollowTheNetworks(t *testing.T) {
	t.Parallel()
	r := shopWithHosts(t)
	want := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	x := r.must(ModeCreate, wayOut("out", "h1", "h2"))
	want("legs", r.legs("out"), "out-db 10.2.0.2, out-log 10.3.0.2, out-web 10.1.0.2 fd00:1::2")
	want("web", r.exits("web"), "0.0.0.0/0 by out-web, ::/0 by out-web")
	want("db", r.exits("db"), "0.0.0.0/0 by out-db")
	want("red", r.exits("red"), "")
	if it := r.c.View().Fleet.Get(KeyOf(r.net("web"))); it.Rev != x.Rev {
		t.Errorf("network web is at %v, want it written with the gateway at %v", it.Rev, x.Rev)
	}
	if again := r.must(ModeCreate, wayOut("out", "h1", "h2")); !again.Rev.IsZero() || again.Changes[0].Action != "unchanged" {
		t.Errorf("the same again: %+v", again)
	}

	only := wayOut("out", "h1", "h2")
	only.Gateway.Networks = []string{"db"}
	r.must(ModeSet, only)
	want("legs of one", r.legs("out"), "out-db 10.2.0.2")
	want("web left", r.exits("web"), "")
	if p := r.c.View().Named(overlay.KindPort, overlay.UID{0xd}, "out-web"); p != nil {
		t.Error("the port of a leg that went is there still")
	}
	r.must(ModeSet, wayOut("out", "h1", "h2"))

	// A network that comes, one that gets a subnet, one that goes.
	r.must(ModeCreate, within("shop", network("new", "10.9.0.0/24")))
	r.must(ModeSet, within("shop", network("db", "10.2.0.0/24", "fd00:2::/64")))
	r.must(ModeSet, within("", network("log", "10.3.0.0/24")))
	want("legs then", r.legs("out"), "out-db 10.2.0.2 fd00:2::2, out-new 10.9.0.2, out-web 10.1.0.2 fd00:1::2")
	want("db then", r.exits("db"), "0.0.0.0/0 by out-db, ::/0 by out-db")
	want("log then", r.exits("log"), "")
	if no := r.remove(overlay.KindNetwork, "new").Refusal; no != nil {
		t.Errorf("a network that only a gateway uses is not deleted: %v", no)
	}
	want("legs at last", r.legs("out"), "out-db 10.2.0.2 fd00:2::2, out-web 10.1.0.2 fd00:1::2")

	if no := r.remove(overlay.KindGateway, "out").Refusal; no != nil {
		t.Fatal(no)
	}
	want("web at the end", r.exits("web"), "")
	for it := range r.c.View().List(overlay.KindPort, overlay.UID{}) {
		t.Errorf("port %s is left", it.Rec.(*overlay.Port).Name)
	}
}

func TestGatewaysRefuse(t *testing.T) {
	t.Parallel()
	r := shopWithHosts(t)
	r.must(ModeCreate, wayOut("out", "h1", "h2"))
	change := func(f func(*overlay.GatewaySpec)) overlay.Doc {
		d := wayOut("out", "h1", "h2")
		f(&d.Gateway)
		return d
	}
	ip := netip.MustParseAddr
	other := wayOut("two", "h3")
	other.Gateway.Addresses = []netip.Prefix{netip.MustParsePrefix("203.0.113.11/24")}
	leg := port("out-web", "web")
	for name, c := range map[string]struct {
		d    overlay.Doc
		code api.Code
	}{
		"unknown host":      {change(func(s *overlay.GatewaySpec) { s.Hosts = []string{"h9"} }), api.CodeNoHost},
		"unknown network":   {change(func(s *overlay.GatewaySpec) { s.Networks = []string{"none"} }), api.CodeNotFound},
		"network elsewhere": {change(func(s *overlay.GatewaySpec) { s.Networks = []string{"red"} }), api.CodeNotInDomain},
		"floats to nowhere": {change(func(s *overlay.GatewaySpec) {
			s.Floating = []overlay.Floating{{Outside: ip("203.0.113.20"), Inside: ip("10.77.0.1")}}
		}), api.CodeOutside},
		"floats to itself": {change(func(s *overlay.GatewaySpec) {
			s.Floating = []overlay.Floating{{Outside: ip("203.0.113.20"), Inside: ip("10.1.0.2")}}
		}), api.CodeOutside},
		"forwards to nowhere": {change(func(s *overlay.GatewaySpec) {
			s.Forwards = []overlay.Forward{{Protocol: 6, Outside: ip("203.0.113.10"), Port: 80, Inside: ip("10.77.0.1"), ToPort: 80}}
		}), api.CodeOutside},
		"a second way out":    {other, api.CodeExists},
		"addresses of others": {func() overlay.Doc { d := wayOut("two", "h3"); d.Gateway.Networks = []string{"web"}; return d }(), api.CodeAddressInUse},
		"a leg by hand":       {leg, api.CodeImmutable},
	} {
		if x := r.put(ModeApply, c.d); x.Refusal == nil || x.Refusal.Code() != c.code {
			t.Errorf("%s: %v, want %s", name, x.Refusal, c.code)
		}
	}
	for what, no := range map[string]*api.Refusal{"leg": r.remove(overlay.KindPort, "out-web").Refusal, "domain": r.remove(overlay.KindDomain, "shop").Refusal} {
		if no == nil {
			t.Errorf("the %s was deleted", what)
		}
	}
}

// tell has a host say how gateway out is there.
func (f *fleet) tell(i int, ready bool) {
	f.t.Helper()
	g := f.gateway("out")
	s := overlay.GatewayState{Gateway: g.UID, Ready: ready, Active: g.Active == f.hosts[i].uid}
	if !ready {
		s.Step, s.Reason = "next hop", "it does not answer"
	}
	f.c.Step(f.now, GatewaysStated{Host: f.hosts[i].uid, Session: f.hosts[i].session, States: []overlay.GatewayState{s}})
	f.settle()
}

func (f *fleet) active(want int) {
	f.t.Helper()
	g := f.gateway("out")
	name := "none"
	if want >= 0 {
		name = f.hosts[want].name
	}
	got := "none"
	if h := f.c.View().Host(g.Active); h != nil {
		got = h.Name
	}
	if got != name {
		f.t.Fatalf("the gateway is on %s (%s), want %s", got, g.Cause, name)
	}
}

// fleetWithGateway is one of three hosts, of which the second is preferred.
func fleetWithGateway(t *testing.T) *fleet {
	f := newFleet(t, 4)
	for i := range f.hosts {
		f.inventory(f.hosts[i])
	}
	f.must(ModeCreate, domain("shop"), within("shop", network("web", "10.8.0.0/24")))
	f.must(ModeCreate, wayOut("out", "h01", "h02", "h03"))
	return f
}

// The first that is ready has a gateway, and keeps it: one that is preferred and
// comes later does not take it.
func TestGatewayGoesToTheFirstThatIsReady(t *testing.T) {
	t.Parallel()
	f := fleetWithGateway(t)
	f.active(-1)
	f.tell(2, true) // the others will say soon how they are
	f.active(-1)
	f.tell(1, false)
	f.active(2)
	f.tell(3, true)
	f.tell(1, true)
	f.active(2)
	f.run(20 * second)
	f.active(2)

	// One that says nothing is waited for, but not for ever.
	g := fleetWithGateway(t)
	g.tell(3, true)
	g.active(-1)
	g.run(11 * second)
	g.active(3)
}

// It moves when its host says that the way out is broken, and back by no word of
// the former; where nobody is ready it stays.
func TestGatewayLeavesABrokenUplink(t *testing.T) {
	t.Parallel()
	f := fleetWithGateway(t)
	f.tell(1, true)
	f.active(1)
	f.tell(1, false)
	f.active(1)
	if h := f.c.HostStates()[1].Health; !slices.Equal(h, []string{"CV0223 gateway default/out is not ready here: next hop: it does not answer"}) {
		t.Errorf("health of the host: %q", h)
	}
	f.tell(3, true)
	f.active(3)
	f.tell(1, true)
	f.active(3)
	if g := f.gateway("out"); !strings.Contains(g.Cause, "h01 is not ready: next hop: it does not answer") {
		t.Errorf("the cause is %q", g.Cause)
	}
	// A host that restarts its agent has said nothing yet, and keeps it.
	f.killAgent(f.hosts[3])
	f.attach(f.hosts[3])
	f.run(5 * second)
	f.active(3)
	// One that is no candidate any more loses it.
	f.must(ModeSet, wayOut("out", "h01", "h02"))
	f.run(second / 10)
	f.active(1)
}

// A gateway of a host that dies is elsewhere in the same revision in which the
// death is known.
func TestGatewayLeavesADeadHost(t *testing.T) {
	t.Parallel()
	f := fleetWithGateway(t)
	f.tell(1, true)
	f.tell(2, true)
	f.active(1)
	f.hosts[1].powerOff()
	f.run(second)
	f.active(2)
	v := f.c.View()
	if h, g := v.Fleet.Get(Key{Kind: overlay.KindHost, UID: f.hosts[1].uid}), v.Fleet.Get(KeyOf(f.gateway("out"))); h.Rev != g.Rev || !h.Rec.(*overlay.Host).Dead {
		t.Errorf("the host is at %v, the gateway at %v", h.Rev, g.Rev)
	}
	f.attach(f.hosts[1])
	f.inventory(f.hosts[1])
	f.tell(1, true)
	f.run(second)
	f.active(2)
}

// Only the host that has a gateway has its ports, and there is no dispute.
func TestLegsAreWhereTheGatewayIs(t *testing.T) {
	t.Parallel()
	f := fleetWithGateway(t)
	f.tell(1, true)
	leg := f.gateway("out").Legs[0]
	p := f.c.View().Named(overlay.KindPort, overlay.UID{0xd}, leg.Port).Rec.(*overlay.Port)
	claim := func(i int, want bool) {
		t.Helper()
		cl := Claim{ID: 7, Network: p.Network, MAC: p.MAC, Port: p.UID, Evidence: overlay.EvidenceARP, Base: f.c.View().At}
		if x := f.say(f.hosts[i].uid, f.hosts[i].session, cl); x.Accepted != want || x.Disputed {
			t.Errorf("claim of host %d: %+v, want it accepted: %v", i, x, want)
		}
	}
	claim(2, false)
	claim(1, true)
	f.tell(2, true)
	f.tell(1, false)
	f.active(2)
	claim(1, false)
	claim(2, true)
	if ep := f.c.View().Endpoint(p.Network, p.MAC).Rec.(*overlay.Endpoint); ep.Host != f.hosts[2].uid {
		t.Errorf("the leg is at %+v", ep)
	}
}

// A manager that begins knows who has a gateway, and forgets those that are
// gone.
func TestGatewaysOutliveTheManager(t *testing.T) {
	t.Parallel()
	f := fleetWithGateway(t)
	f.tell(1, true)
	f.must(ModeCreate, domain("away"), within("away", network("far", "10.7.0.0/24")))
	gone := wayOut("gone", "h01")
	gone.Gateway.Domain, gone.Gateway.Uplink = "away", "eth2"
	f.must(ModeCreate, gone)
	k := KeyOf(f.gateway("gone"))
	if no := f.remove(overlay.KindGateway, "gone").Refusal; no != nil {
		t.Fatal(no)
	}
	if it := f.c.View().Fleet.Get(k); it == nil || !it.Gone {
		t.Fatalf("no tombstone: %+v", it)
	}
	at := f.c.View().Fleet.Get(k).Rev
	f.load()
	f.active(1)
	if it := f.c.View().Fleet.Get(k); it != nil || f.c.View().Fleet.Floor.Less(at) {
		t.Errorf("tombstone %+v, floor %v", it, f.c.View().Fleet.Floor)
	}
	if got, want := f.exits("web"), "0.0.0.0/0 by out-web"; got != want {
		t.Errorf("routes %q, want %q", got, want)
	}
	// The same document again writes nothing.
	if x := f.must(ModeApply, wayOut("out", "h01", "h02", "h03")); !x.Rev.IsZero() {
		t.Error(fmt.Sprint("written again: ", x.Changes))
	}
}
