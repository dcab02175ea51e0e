package managercore

import (
	"testing"

	"culvert/internal/overlay"
)

// A withdrawal says what was true at the binding it is based on. One that is
// older than the binding in force came before the news, even from the host
// that has the endpoint.
func TestAWithdrawalOlderThanTheBindingIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue", "10.1.0.5")), 1)
	h1, s1 := r.attach("h1")
	first := r.claim(h1, s1, p, overlay.Rev{}, false)
	r.must(ModeSet, port("a", "blue", "10.1.0.6")) // rewrites the binding, too
	if a := r.claim(h1, s1, p, first.Binding, true); a.Accepted || !first.Binding.Less(a.Binding) || r.where(p) != "h1" {
		t.Errorf("answer %+v, endpoint %s; want refused with a newer binding than %v, and still on h1", a, r.where(p), first.Binding)
	}
}

// The answer to a claim names the session that made it: the host may have
// opened another meanwhile, in which the number means another claim.
func TestAnAnswerNamesItsSession(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue")), 1)
	h1, old := r.attach("h1")
	r.c.Step(r.now, Claimed{Host: h1, Session: old, Claims: []Claim{{ID: 7, Network: p.Network, MAC: p.MAC, Port: p.UID, Evidence: overlay.EvidenceDevice}}})
	r.c.Step(r.now, Opened{ID: 99, Host: h1})
	r.settle()
	if len(r.said) != 1 || r.said[0].Session != old || r.said[0].Host != h1 || r.said[0].Claim.ID != 7 {
		t.Errorf("answers %+v, want one to claim 7 of session %d", r.said, old)
	}
}

// What stood in a deleted network's log is swept, and its VNI freed, without
// the manager starting anew.
func TestADeletedNetworkIsSweptAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	x := r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue"))
	n, p := x.Changes[0].Rec.(*overlay.Network), r.portOf(x, 1)
	h1, s1 := r.attach("h1")
	r.claim(h1, s1, p, overlay.Rev{}, false)
	gone := r.ask(Asked{Delete: &Delete{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "blue", WithPorts: true}})
	if gone.Refusal != nil {
		t.Fatal(gone.Refusal)
	}
	if _, have := r.recs[KeyOf(n)]; !have {
		t.Fatal("the tombstone went before the host had confirmed")
	}
	r.c.Step(r.now, Acked{Host: h1, Session: s1, Rev: gone.Rev})
	r.settle()
	for k := range r.recs {
		if k.Kind == overlay.KindNetwork || k.Kind == overlay.KindPort || k.Kind == overlay.KindEndpoint {
			t.Errorf("the store still holds %v", k)
		}
	}
}
