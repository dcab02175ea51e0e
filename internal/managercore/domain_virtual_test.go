package managercore

import (
	"strings"
	"testing"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// TestVirtualMACsOfADomain: a virtual router's MAC, which nobody declares, is in
// one network of a domain alone: the one that had it first.
func TestVirtualMACsOfADomain(t *testing.T) {
	t.Parallel()
	r := shop(t)
	x := r.must(ModeCreate, sharing(port("w", "web"), "10.1.0.99"), sharing(port("d", "db"), "10.2.0.99"), sharing(port("f", "red"), "10.1.0.99"))
	w, d, f := r.portOf(x, 0), r.portOf(x, 1), r.portOf(x, 2)
	host, session := r.attach("h1")
	virtual := overlay.MAC{0, 0, 0x5e, 0, 1, 7}
	say := func(p *overlay.Port) ClaimAnswer {
		t.Helper()
		c := claimOf(p, r.c.View().At, "10.1.0.99")
		c.MAC = virtual
		r.said = nil
		r.c.Step(r.now, Claimed{Host: host, Session: session, Claims: []Claim{c}})
		r.settle()
		if len(r.said) != 1 {
			t.Fatalf("claim got %d answers, want 1", len(r.said))
		}
		return *r.said[0].Claim
	}
	if a := say(w); !a.Accepted {
		t.Fatalf("the first: %+v", a)
	}
	if a := say(d); a.Accepted || !strings.Contains(a.Reason, "in network web of the same domain") || !strings.Contains(a.Reason, string(api.CodeMACInUse)) {
		t.Errorf("the same MAC in another network of the domain: %+v", a)
	}
	if a := say(f); !a.Accepted {
		t.Errorf("the same MAC out of the domain: %+v", a)
	}
	r.must(ModeCreate, domain("bank"), within("bank", network("far", "10.8.0.0/16")))
	r.remove(overlay.KindPort, "f")
	r.must(ModeCreate, sharing(port("f", "far"), "10.8.0.99"))
	f = r.c.View().Named(overlay.KindPort, overlay.UID{0xd}, "f").Rec.(*overlay.Port)
	if a := say(f); !a.Accepted {
		t.Errorf("the same MAC in another domain: %+v", a)
	}
	if x := r.put(ModeSet, within("shop", network("far", "10.8.0.0/16"))); x.Refusal == nil || x.Refusal.Code() != api.CodeMACInUse || !strings.Contains(x.Refusal.Text(), virtual.String()) {
		t.Errorf("a network that enters with it: %v", x.Refusal)
	}
	declared := port("v", "log")
	declared.Port.MAC = virtual
	if x := r.put(ModeCreate, declared); x.Refusal == nil || x.Refusal.Code() != api.CodeMACInUse || !strings.Contains(x.Refusal.Text(), "a virtual router's in network web") {
		t.Errorf("a port that declares it: %v", x.Refusal)
	}
}
