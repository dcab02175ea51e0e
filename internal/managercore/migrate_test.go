package managercore

import (
	"slices"
	"testing"

	"culvert/internal/overlay"
)

// expects lets a host say that it expects an endpoint, or with leave that it
// does not any more.
func (r *rig) expects(host overlay.UID, session uint64, p *overlay.Port, base overlay.Rev, leave bool) ClaimAnswer {
	r.t.Helper()
	r.said = nil
	r.c.Step(r.now, Claimed{Host: host, Session: session, Claims: []Claim{{ID: 1, Network: p.Network, MAC: p.MAC, Port: p.UID, Base: base, Evidence: overlay.EvidenceDevice, Leave: leave, Pre: true}}})
	r.settle()
	if len(r.said) != 1 {
		r.t.Fatalf("claim got %d answers, want 1", len(r.said))
	}
	return *r.said[0].Claim
}

// moving is a port that is bound to h1.
func moving(t *testing.T) (r *rig, p *overlay.Port, h1 overlay.UID, s1 uint64, first overlay.Rev) {
	t.Helper()
	r = newRig(t)
	p = r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue", "10.1.0.5")), 1)
	h1, s1 = r.attach("h1")
	return r, p, h1, s1, r.claim(h1, s1, p, overlay.Rev{}, false).Binding
}

func TestAWithdrawalGoesToTheNewestHostThatExpectsIt(t *testing.T) {
	t.Parallel()
	r, p, h1, s1, first := moving(t)
	h2, s2 := r.attach("h2")
	h3, s3 := r.attach("h3")
	a := r.expects(h2, s2, p, first, false)
	b := r.expects(h3, s3, p, a.Binding, false)
	if e := r.endpoint(p.Network, p.MAC); !b.Accepted || e.Host != h1 || !slices.Equal(e.Pre, []overlay.UID{h2, h3}) {
		t.Fatalf("answer %+v, endpoint %+v; want it on h1, expected on h2 and then h3", b, *e)
	}
	if x := r.claim(h1, s1, p, b.Binding, true); !x.Accepted {
		t.Fatalf("withdrawal: %+v", x)
	}
	if e := r.endpoint(p.Network, p.MAC); e.Host != h3 || e.From != h1 || len(e.Pre) != 0 || r.c.Stats().HandedOver != 1 {
		t.Errorf("endpoint %+v, %d handed over; want it on h3, from h1", *e, r.c.Stats().HandedOver)
	}
}

func TestAHostThatDidNotSaySoInItsSessionIsExpectedNoMore(t *testing.T) {
	t.Parallel()
	for _, says := range []bool{false, true} {
		r, p, h1, s1, first := moving(t)
		h2, s2 := r.attach("h2")
		a := r.expects(h2, s2, p, first, false)
		h2, s2 = r.attach("h2") // its agent starts anew
		if says {
			r.expects(h2, s2, p, a.Binding, false)
		}
		r.c.Step(r.now, InventoryEnded{Host: h2, Session: s2})
		r.settle()
		if e := r.endpoint(p.Network, p.MAC); len(e.Pre) == 1 != says {
			t.Errorf("said %t: endpoint %+v", says, *e)
		}
		// The same while it is not known yet what the host has.
		h2, s2 = r.attach("h2")
		if says {
			r.expects(h2, s2, p, a.Binding, false)
		}
		r.claim(h1, s1, p, r.c.View().Endpoint(p.Network, p.MAC).Rev, true)
		if want := map[bool]string{true: "h2", false: "nowhere"}[says]; r.where(p) != want {
			t.Errorf("said %t: endpoint %s after the withdrawal, want %s", says, r.where(p), want)
		}
	}
}

// What changed of an endpoint besides its place is no news against a claim:
// the host that runs it may not have been told of its own pre-association yet.
func TestAClaimNeedsTheNewestPlaceOnly(t *testing.T) {
	t.Parallel()
	r, p, _, _, first := moving(t)
	h2, s2 := r.attach("h2")
	h3, s3 := r.attach("h3")
	r.expects(h2, s2, p, first, false)
	r.expects(h3, s3, p, first, false)
	if a := r.claim(h2, s2, p, first, false); !a.Accepted || r.where(p) != "h2" {
		t.Errorf("claim: %+v, endpoint %s; want accepted on h2", a, r.where(p))
	}
	if a := r.claim(h3, s3, p, first, false); a.Accepted || r.where(p) != "h2" {
		t.Errorf("claim based on the place before: %+v, endpoint %s; want refused", a, r.where(p))
	}
}

func TestAnEndpointThatIsExpectedNoMoreStays(t *testing.T) {
	t.Parallel()
	r, p, h1, _, first := moving(t)
	h2, s2 := r.attach("h2")
	a := r.expects(h2, s2, p, first, false)
	if b := r.expects(h2, s2, p, a.Binding, true); !b.Accepted {
		t.Fatalf("answer %+v", b)
	}
	if e := r.endpoint(p.Network, p.MAC); e.Host != h1 || len(e.Pre) != 0 || e.From != (overlay.UID{}) {
		t.Errorf("endpoint %+v, want it on h1 and expected nowhere", *e)
	}
}

// A host that has died does not stand ready, also while so many others are
// silent that nobody is declared dead. One whose agent alone is away does, and
// so does one that is heard of again.
func TestAWithdrawalPassesByAHostThatGivesNoEcho(t *testing.T) {
	t.Parallel()
	for want, gone := range map[string]func(f *fleet){
		"nowhere": (*fleet).loseThree,
		"h01":     func(f *fleet) { f.hosts[1].agent = false },
		"h02":     func(f *fleet) { f.loseThree(); f.hosts[2].agent = true },
	} {
		f := newFleet(t, 5)
		p := f.portOf(f.must(ModeCreate, port("a", "blue", "10.1.0.5")), 0)
		from := f.hosts[0]
		at := f.claim(from.uid, from.session, p, overlay.Rev{}, false)
		for _, m := range f.hosts[1:3] {
			at = f.expects(m.uid, m.session, p, at.Binding, false)
		}
		if want == "h01" {
			at = f.expects(f.hosts[2].uid, f.hosts[2].session, p, at.Binding, true)
		}
		gone(f)
		f.run(5 * second)
		f.wantDead(want)
		if a := f.claim(from.uid, from.session, p, at.Binding, true); !a.Accepted || f.where(p) != want {
			t.Errorf("withdrawal: %+v, endpoint %s; want %s", a, f.where(p), want)
		}
	}
}

// loseThree takes the power of all hosts but the first and the last.
func (f *fleet) loseThree() {
	for _, m := range f.hosts[1:4] {
		m.powerOff()
	}
	f.run(5 * second)
}
