package managercore

import (
	"fmt"
	"testing"
	"time"

	"culvert/internal/overlay"
)

// BenchmarkCommit is one claim of a new endpoint from its arrival to the view
// that tells it, a thousand in a transaction, with what was claimed before
// still there.
func BenchmarkCommit(b *testing.B) {
	r, host, session, network := ready(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.claimNew(b, host, session, network, i, 1)
	}
}

// TestFigureCommit measures 20,000 endpoints, claimed a thousand at a time.
func TestFigureCommit(t *testing.T) {
	r, host, session, network := ready(t)
	const n, batch = 20_000, 1000
	began := time.Now()
	for i := 0; i < n; i += batch {
		r.claimNew(t, host, session, network, i, batch)
	}
	took := time.Since(began)
	if live := r.c.View().Net(network.UID).Live(); live < n {
		t.Errorf("%d records in the network's log, want %d at least", live, n)
	}
	t.Logf("figure: %d ports and endpoints admitted, claimed and told, %d a transaction: %v, %v each%s", n, batch, took.Round(time.Millisecond), took/n, detector)
}

// ready is a cluster with one host in session and one network without subnets.
func ready(tb testing.TB) (r *rig, host overlay.UID, session uint64, n *overlay.Network) {
	t, ok := tb.(*testing.T)
	if !ok {
		t = &testing.T{}
	}
	r = newRig(t)
	x := r.ask(Asked{AddHost: &AddHost{Name: "h1", MachineID: "m1"}})
	host = x.Changes[0].Rec.(*overlay.Host).UID
	n = r.must(ModeCreate, network("big")).Changes[0].Rec.(*overlay.Network)
	r.c.Step(r.now, Opened{ID: 1 << 40, Host: host, BootID: "b"})
	for _, x := range r.settle() {
		if x.ID == 1<<40 {
			session = x.Session
		}
	}
	if session == 0 {
		tb.Fatal("no session")
	}
	return r, host, session, n
}

// claimNew declares count ports and lets the host claim them.
func (r *rig) claimNew(tb testing.TB, host overlay.UID, session uint64, n *overlay.Network, first, count int) {
	var docs []overlay.Doc
	for i := first; i < first+count; i++ {
		docs = append(docs, overlay.Doc{Kind: overlay.KindPort, Tenant: DefaultTenant, Name: fmt.Sprintf("p%d", i), Port: overlay.PortSpec{Network: n.Name}})
	}
	x := r.must(ModeCreate, docs...)
	e := Claimed{Host: host, Session: session}
	for i, c := range x.Changes {
		p := c.Rec.(*overlay.Port)
		e.Claims = append(e.Claims, Claim{ID: uint64(i + 1), Network: n.UID, MAC: p.MAC, Port: p.UID, Base: x.Rev, Evidence: overlay.EvidenceDevice})
	}
	r.c.Step(r.now, e)
	r.settle()
	if got := len(r.said); got != count || !r.said[count-1].Claim.Accepted {
		tb.Fatalf("%d answers, the last %+v", got, r.said[got-1].Claim)
	}
	r.said = nil
}
