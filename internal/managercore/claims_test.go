package managercore

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/overlay"
)

// say makes one claim and gives its answer.
func (r *rig) say(host overlay.UID, session uint64, cl Claim) ClaimAnswer {
	r.said = nil
	r.c.Step(r.now, Claimed{Host: host, Session: session, Claims: []Claim{cl}})
	r.settle()
	if len(r.said) != 1 {
		r.t.Fatalf("claim got %d answers, want 1", len(r.said))
	}
	return *r.said[0].Claim
}

func (r *rig) endpoint(network overlay.UID, mac overlay.MAC) *overlay.Endpoint {
	it := r.c.View().Endpoint(network, mac)
	if it == nil {
		return nil
	}
	return it.Rec.(*overlay.Endpoint)
}

// TestAMigrationsStates walks through RFC 8394's states: expected, moved by
// the source's stop, and taken back.
func TestAMigrationsStates(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue")), 1)
	h1, s1 := r.attach("h1")
	h2, s2 := r.attach("h2")
	cl := func(base overlay.Rev) Claim {
		return Claim{ID: 1, Network: p.Network, MAC: p.MAC, Port: p.UID, Base: base, Evidence: overlay.EvidenceDevice}
	}
	expect := cl(overlay.Rev{})
	expect.Pre = true
	if a := r.say(h2, s2, expect); a.Accepted || !strings.Contains(a.Reason, "nobody has it") {
		t.Errorf("expected before anybody has it: %+v, want refused", a)
	}
	first := r.say(h1, s1, cl(overlay.Rev{}))
	expect.Base = first.Binding
	pre := r.say(h2, s2, expect)
	ep := r.endpoint(p.Network, p.MAC)
	if !pre.Accepted || ep.Host != h1 || !slices.Equal(ep.Pre, []overlay.UID{h2}) {
		t.Fatalf("expected at h2: %+v, endpoint %+v", pre, ep)
	}
	if again := r.say(h2, s2, expect); !again.Accepted || again.Binding != pre.Binding {
		t.Errorf("expected again: %+v, want accepted and nothing written", again)
	}
	// The device at h2 goes: given up.
	back := cl(pre.Binding)
	back.Pre, back.Leave = true, true
	if a := r.say(h2, s2, back); !a.Accepted || len(r.endpoint(p.Network, p.MAC).Pre) != 0 {
		t.Errorf("no more expected: %+v, endpoint %+v", a, r.endpoint(p.Network, p.MAC))
	}
	expect.Base = r.rev(p)
	pre = r.say(h2, s2, expect)
	leave := cl(pre.Binding)
	leave.Leave = true
	if a := r.say(h1, s1, leave); !a.Accepted {
		t.Fatalf("the source leaves: %+v", a)
	}
	ep = r.endpoint(p.Network, p.MAC)
	if ep == nil || ep.Host != h2 || ep.From != h1 || len(ep.Pre) != 0 {
		t.Fatalf("after the source left the endpoint is %+v, want it on h2, from h1", ep)
	}
	// Its own claim changes nothing but the evidence.
	if a := r.say(h2, s2, cl(pre.Binding)); !a.Accepted || r.endpoint(p.Network, p.MAC).From != h1 {
		t.Errorf("the destination claims: %+v", a)
	}
	// It is expected nowhere now: the next departure is a withdrawal.
	leave.Base = r.rev(p)
	if a := r.say(h2, s2, leave); !a.Accepted || r.endpoint(p.Network, p.MAC) != nil {
		t.Errorf("it leaves for good: %+v, endpoint %+v", a, r.endpoint(p.Network, p.MAC))
	}
}

// rev is the revision of a port's binding.
func (r *rig) rev(p *overlay.Port) overlay.Rev {
	return r.c.View().Endpoint(p.Network, p.MAC).Rev
}

func TestNoHandoverToAHostThatIsAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue")), 1)
	h1, s1 := r.attach("h1")
	h2, s2 := r.attach("h2")
	cl := Claim{ID: 1, Network: p.Network, MAC: p.MAC, Port: p.UID, Evidence: overlay.EvidenceDevice}
	cl.Base = r.say(h1, s1, cl).Binding
	cl.Pre = true
	cl.Base = r.say(h2, s2, cl).Binding
	r.c.Step(r.now, Closed{Host: h2, Session: s2})
	cl.Pre, cl.Leave = false, true
	if a := r.say(h1, s1, cl); !a.Accepted || r.endpoint(p.Network, p.MAC) != nil {
		t.Errorf("left: %+v, endpoint %+v, want withdrawn", a, r.endpoint(p.Network, p.MAC))
	}
}

func TestUndeclaredEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	blue := network("blue", "10.1.0.0/24")
	blue.Network.Admission = overlay.AdmitLearn
	x := r.must(ModeCreate, blue, port("a", "blue", "10.1.0.5"), network("red", "10.1.0.0/24"))
	p, red := r.portOf(x, 1), x.Changes[2].Rec.(*overlay.Network)
	h1, s1 := r.attach("h1")
	h2, s2 := r.attach("h2")
	heard := func(mac byte, ips ...string) Claim {
		c := Claim{ID: 1, Network: p.Network, MAC: overlay.MAC{2, 0, 0, 0, 0, mac}, Evidence: overlay.EvidenceARP}
		for _, ip := range ips {
			c.Addresses = append(c.Addresses, netip.MustParseAddr(ip))
		}
		return c
	}
	one := heard(1, "10.1.0.1", "10.1.0.5", "10.1.0.9", "10.2.0.1", "fe80::1")
	a := r.say(h1, s1, one)
	ep := r.endpoint(p.Network, one.MAC)
	if !a.Accepted || len(ep.Addresses) != 2 || ep.Addresses[0].String() != "10.1.0.9" || ep.Addresses[1].String() != "fe80::1" {
		t.Fatalf("%+v, endpoint %+v: want what it may have, and no more", a, ep)
	}
	for _, why := range []string{"10.1.0.1: it is the gateway's", "10.1.0.5: it is port a's", "10.2.0.1: it is in no subnet"} {
		if !strings.Contains(a.Reason, why) {
			t.Errorf("refused are %q, want %q among them", a.Reason, why)
		}
	}
	if len(a.Refused) != 3 || a.Refused[0].Address != one.Addresses[0] || a.Refused[0].Reason != "it is the gateway's (CV0132)" || a.Refused[2].Reason != "it is in no subnet of the network (CV0131)" {
		t.Errorf("refused are %v, want each by itself with the code of its rule", a.Refused)
	}
	// The first owner keeps it, and is named.
	two := heard(2, "10.1.0.9")
	if a := r.say(h2, s2, two); !a.Accepted || !strings.Contains(a.Reason, "10.1.0.9: it is 02:00:00:00:00:01 on h1's") || len(r.endpoint(p.Network, two.MAC).Addresses) != 0 {
		t.Errorf("a second owner: %+v, endpoint %+v", a, r.endpoint(p.Network, two.MAC))
	}
	one.Leave, one.Base = true, a.Binding
	r.say(h1, s1, one)
	two.Base = r.c.View().Endpoint(p.Network, two.MAC).Rev
	if a := r.say(h2, s2, two); !a.Accepted || a.Reason != "" || len(r.endpoint(p.Network, two.MAC).Addresses) != 1 {
		t.Errorf("after the first left: %+v, want the address to be the second's", a)
	}
	// What is declared wins.
	r.must(ModeCreate, port("b", "blue", "10.1.0.9"))
	if ep := r.endpoint(p.Network, two.MAC); len(ep.Addresses) != 0 {
		t.Errorf("the address was declared for a port, and the undeclared endpoint has %v still", ep.Addresses)
	}
	for name, c := range map[string]Claim{
		"a declared port's MAC":                     {ID: 1, Network: p.Network, MAC: p.MAC},
		"a network that admits declared ports only": {ID: 1, Network: red.UID, MAC: overlay.MAC{2, 1}},
		"expected": {ID: 1, Network: p.Network, MAC: overlay.MAC{2, 2}, Pre: true},
	} {
		if a := r.say(h1, s1, c); a.Accepted || a.Reason == "" {
			t.Errorf("%s: %+v, want refused with a reason", name, a)
		}
	}
}
