package managercore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// routing is a domain document with routes, each "PREFIX=VIA".
func routing(d overlay.Doc, routes ...string) overlay.Doc {
	for _, s := range routes {
		p, via, _ := strings.Cut(s, "=")
		d.Domain.Routes = append(d.Domain.Routes, overlay.Route{Prefix: netip.MustParsePrefix(p), Via: netip.MustParseAddr(via)})
	}
	return d
}

// hops is "web: 0.0.0.0/0 in web, 10.9.0.0/16 in db", with the MACs compared.
func (r *rig) hops(name string) string {
	r.t.Helper()
	n := r.net(name)
	var out []string
	for _, h := range n.Routes {
		out = append(out, h.Prefix.String()+" in "+r.c.View().Network(h.Network).Name)
		for it := range r.c.View().List(overlay.KindPort, overlay.UID{}) {
			if p := it.Rec.(*overlay.Port); p.Network == h.Network && p.MAC == h.MAC {
				out[len(out)-1] += " by " + p.Name
			}
		}
	}
	return name + ": " + strings.Join(out, ", ")
}

// TestRoutesOfADomain: they are next hops of each network that has the port by
// way of which they go, or that a policy lets send there, and of no other.
func TestRoutesOfADomain(t *testing.T) {
	t.Parallel()
	r := shop(t)
	r.must(ModeCreate, port("edge", "web", "10.1.0.9", "fd00:1::9"), port("other", "db", "10.2.0.9"), forward(policy("log-web", "log", "web")))
	want := func(lines ...string) {
		t.Helper()
		for _, l := range lines {
			if got := r.hops(strings.Fields(l)[0][:len(strings.Fields(l)[0])-1]); got != l {
				t.Errorf("%s, want %s", got, l)
			}
		}
	}
	all := routing(domain("shop"), "0.0.0.0/0=10.1.0.9", "10.9.0.0/16=10.2.0.9", "::/0=fd00:1::9")
	x := r.must(ModeSet, all)
	want("web: 0.0.0.0/0 in web by edge, ::/0 in web by edge", "db: 10.9.0.0/16 in db by other", "log: 0.0.0.0/0 in web by edge, ::/0 in web by edge", "red: ")
	for _, name := range []string{"web", "db", "log"} {
		if it := r.c.View().Fleet.Get(KeyOf(r.net(name))); it.Rev != x.Rev || !strings.Contains(r.net(name).Cause, "domain set") {
			t.Errorf("network %s is at %v (%s), want it written with the routes at %v", name, it.Rev, r.net(name).Cause, x.Rev)
		}
	}
	if x := r.must(ModeApply, all); x.Changes[0].Action != "unchanged" || !x.Rev.IsZero() {
		t.Errorf("applying it again: %v at %v", x.Changes, x.Rev)
	}
	x = r.must(ModeCreate, policy("web-db", "web", "db"))
	want("web: 0.0.0.0/0 in web by edge, 10.9.0.0/16 in db by other, ::/0 in web by edge", "db: 0.0.0.0/0 in web by edge, 10.9.0.0/16 in db by other, ::/0 in web by edge")
	r.load()
	r.remove(overlay.KindPolicy, "web-db")
	want("web: 0.0.0.0/0 in web by edge, ::/0 in web by edge", "db: 10.9.0.0/16 in db by other")
	// An address that goes to another port takes its routes with it.
	r.must(ModeCreate, port("spare", "web", "10.1.0.8"))
	r.must(ModeSet, port("edge", "web", "10.1.0.7", "fd00:1::9"), port("spare", "web", "10.1.0.9"))
	want("web: 0.0.0.0/0 in web by spare, ::/0 in web by edge", "log: 0.0.0.0/0 in web by spare, ::/0 in web by edge")
	// A network that leaves as the last route by way of it goes has none.
	r.remove(overlay.KindPolicy, "log-web")
	r.must(ModeSet, network("web", "10.1.0.0/24", "fd00:1::/64"), routing(domain("shop"), "10.9.0.0/16=10.2.0.9"))
	want("web: ", "log: ", "db: 10.9.0.0/16 in db by other")
	// All of it in one request, the domain first.
	far := routing(domain("bank"), "0.0.0.0/0=10.20.0.5")
	r.must(ModeCreate, far, within("bank", network("vault", "10.20.0.0/24")), port("guard", "vault", "10.20.0.5"))
	want("vault: 0.0.0.0/0 in vault by guard")
}

// TestRoutesAreRefused: a route leads to what is in no network, by way of a port
// that stays; what is refused changes nothing.
func TestRoutesAreRefused(t *testing.T) {
	t.Parallel()
	r := shop(t)
	r.must(ModeCreate, port("edge", "web", "10.1.0.9"), sharing(port("s", "web", "10.1.0.8"), "10.1.0.99"), port("out", "red", "10.1.7.7"))
	set := func(routes ...string) Reply { return r.put(ModeSet, routing(domain("shop"), routes...)) }
	r.refusedFor(api.CodeNextHop, "10.9.0.0/16 via 10.1.0.77", set("10.9.0.0/16=10.1.0.77", "10.10.0.0/16=10.1.0.9"))
	r.refused(api.CodeNextHop, set("10.9.0.0/16=10.1.0.99"))
	r.refused(api.CodeNextHop, set("10.9.0.0/16=10.1.0.1"))
	r.refused(api.CodeNextHop, set("10.9.0.0/16=10.1.7.7"))
	r.refused(api.CodeNextHop, r.put(ModeCreate, routing(domain("bank"), "10.9.0.0/16=10.1.0.9")))
	for _, p := range []string{"10.2.0.0/24", "10.2.0.128/25", "10.1.0.5/32"} {
		r.refusedFor(api.CodeOverlap, "holds "+p, set(p+"=10.1.0.9"))
	}
	r.must(ModeSet, routing(domain("shop"), "10.2.0.0/23=10.1.0.9", "10.9.0.0/16=10.1.0.9"))
	at := r.n
	r.refusedFor(api.CodeOverlap, "subnet 10.8.0.0/15 of network x holds 10.9.0.0/16, to which domain shop has a route via 10.1.0.9", r.put(ModeCreate, within("shop", network("x", "10.8.0.0/15"))))
	r.refused(api.CodeOverlap, r.put(ModeSet, within("shop", network("log", "10.9.0.0/16"))))
	r.refusedFor(api.CodeHasRoutes, "Port edge was not deleted: 2 routes of domain shop go by way of it", r.remove(overlay.KindPort, "edge"))
	r.refusedFor(api.CodeHasRoutes, "10.9.0.0/16 via 10.1.0.9", r.put(ModeSet, port("edge", "web", "10.1.0.10")))
	r.refusedFor(api.CodeHasRoutes, "culvert domain set shop --no-route", r.put(ModeSet, network("web", "10.1.0.0/24", "fd00:1::/64")))
	r.refused(api.CodeHasRoutes, r.ask(Asked{Delete: &Delete{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "web", WithPorts: true}}))
	if r.n != at || r.net("web").Blocked {
		t.Error("something was written")
	}
	r.must(ModeSet, port("edge", "web", "10.1.0.10", "10.1.0.9"))
	r.must(ModeSet, domain("shop"))
	if x := r.remove(overlay.KindPort, "edge"); x.Refusal != nil || len(r.net("web").Routes) != 0 {
		t.Errorf("%v: %s", x.Refusal, r.hops("web"))
	}
	// Nothing is routed by way of a network that goes.
	r.c.Step(r.now, Asked{ID: 999, Delete: &Delete{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "web", WithPorts: true}})
	id := r.begin(ModeSet, routing(domain("shop"), "10.9.0.0/16=10.1.0.8"))
	for _, x := range r.settle() {
		switch {
		case x.ID == id && (x.Refusal == nil || x.Refusal.Code() != api.CodeNextHop):
			t.Errorf("a route by way of a network that goes: %v", x.Refusal)
		case x.ID == 999 && x.Refusal != nil:
			t.Errorf("the network's deletion: %v", x.Refusal)
		}
	}
}

// TestAPortOutlivesItsNetwork: by the moment until what is in a deleted network's
// log is purged, in which it may be deleted itself.
func TestAPortOutlivesItsNetwork(t *testing.T) {
	t.Parallel()
	r := shop(t)
	r.must(ModeCreate, port("a", "web"))
	r.c.Step(r.now, Asked{ID: 999, Delete: &Delete{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "web", WithPorts: true}})
	r.commit() // the first half; the second is asked for with it
	if x := r.remove(overlay.KindPort, "a"); x.Refusal != nil {
		t.Errorf("the port's deletion: %v", x.Refusal)
	}
	if it := r.c.View().Named(overlay.KindPort, overlay.UID{0xd}, "a"); it != nil {
		t.Errorf("the port is still there: %+v", it.Rec)
	}
}

// TestNextHopsAreWhatRoutesSay: after any sequence of changes, each route of a
// domain leads to a port, and each network has those that it may use.
func TestNextHopsAreWhatRoutesSay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		r.must(ModeCreate, domain("shop"), domain("bank"))
		nets := []string{"a", "b", "c"}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			i := rapid.IntRange(0, 2).Draw(rt, "network")
			ip := func(what string) string {
				return fmt.Sprintf("10.%d.0.%d", rapid.IntRange(0, 2).Draw(rt, "net of "+what), rapid.IntRange(5, 6).Draw(rt, what))
			}
			dom := rapid.SampledFrom([]string{"shop", "shop", "bank"}).Draw(rt, "domain")
			var docs []overlay.Doc
			for range rapid.IntRange(1, 2).Draw(rt, "documents") {
				switch rapid.IntRange(0, 3).Draw(rt, "what") {
				case 0:
					docs = append(docs, within(rapid.SampledFrom([]string{"", "shop", "shop", "bank"}).Draw(rt, "in"), network(nets[i], fmt.Sprintf("10.%d.0.0/24", i))))
				case 1:
					docs = append(docs, port(fmt.Sprintf("p%d-%d", i, rapid.IntRange(0, 1).Draw(rt, "port")), nets[i], fmt.Sprintf("10.%d.0.%d", i, rapid.IntRange(5, 6).Draw(rt, "address"))))
				case 2:
					d := routing(domain(dom), "0.0.0.0/0="+ip("default"))
					if rapid.Bool().Draw(rt, "two") {
						d = routing(d, "10.9.0.0/16="+ip("second"))
					}
					if rapid.IntRange(0, 3).Draw(rt, "none") == 0 {
						d.Domain.Routes = nil
					}
					docs = append(docs, d)
				case 3:
					d := policy(fmt.Sprintf("w%d", i), nets[i], nets[(i+1)%3])
					d.Policy.Domain, d.Policy.Both = dom, rapid.Bool().Draw(rt, "both")
					docs = append(docs, d)
				}
			}
			switch rapid.IntRange(0, 8).Draw(rt, "or else") {
			case 0:
				r.remove(overlay.KindPolicy, fmt.Sprintf("w%d", i))
			case 1:
				r.remove(overlay.KindPort, fmt.Sprintf("p%d-%d", i, rapid.IntRange(0, 1).Draw(rt, "port")))
			case 2:
				r.ask(Asked{Delete: &Delete{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: nets[i], WithPorts: true}})
			case 3:
				r.load()
			default:
				r.put(ModeApply, docs...)
			}
			r.checkHops(rt)
		}
	})
}

func (r *rig) checkHops(rt *rapid.T) {
	var nets []*overlay.Network
	var ports []*overlay.Port
	for _, s := range r.recs {
		switch x := s.Rec.(type) {
		case *overlay.Network:
			if !s.Gone {
				nets = append(nets, x)
			}
		case *overlay.Port:
			if !s.Gone {
				ports = append(ports, x)
			}
		}
	}
	with := func(domain overlay.UID, via netip.Addr) (found *overlay.Port) {
		for _, n := range nets {
			for _, p := range ports {
				if n.Domain == domain && p.Network == n.UID && slices.Contains(p.Addresses, via) {
					found = p
				}
			}
		}
		return found
	}
	for _, s := range r.recs {
		d, ok := s.Rec.(*overlay.Domain)
		if !ok || s.Gone {
			continue
		}
		for _, way := range d.Routes {
			if with(d.UID, way.Via) == nil {
				rt.Fatalf("the route %v of domain %s leads nowhere", way, d.Name)
			}
		}
		for _, n := range nets {
			if n.Domain != d.UID {
				continue
			}
			var want []overlay.NextHop
			for _, way := range d.Routes {
				if p := with(d.UID, way.Via); p.Network == n.UID || slices.Contains(n.Reach, p.Network) {
					want = append(want, overlay.NextHop{Prefix: way.Prefix, Network: p.Network, MAC: p.MAC})
				}
			}
			if !slices.Equal(n.Routes, want) {
				rt.Fatalf("network %s has next hops %v, want %v", n.Name, n.Routes, want)
			}
		}
	}
	for _, n := range nets {
		if n.Domain.IsZero() && len(n.Routes) > 0 {
			rt.Fatalf("network %s is in no domain and has next hops %v", n.Name, n.Routes)
		}
	}
}
