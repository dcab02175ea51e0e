package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
)

// TestInquire: an agent that hears after a start that a guest is bound
// elsewhere asks the hypervisor, which had said that it runs here, and takes
// its answer.
func TestInquire(t *testing.T) {
	k := &modelKernel{m: kerneltest.New()}
	asked := make(chan struct{}, 1)
	a := New(k, silentManagers{}, Config{
		Cluster: "c", Host: self, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, Log: slog.New(slog.DiscardHandler), Now: time.Now,
		Inquire: func() { asked <- struct{}{} },
	})
	works := func() {
		for range 100 {
			if j, ok := a.nextJob(); ok && len(j.ops) > 0 {
				a.applied(k.m.Apply(t.Context(), j.ops))
			} else if ok {
				st, _ := k.m.Read(t.Context(), j.scope)
				a.core.Step(a.now(), agentcore.Read{Scope: j.scope, State: st})
			}
			for _, b := range k.m.Doorbells() {
				a.core.Step(a.now(), agentcore.Bell{Doorbell: b})
			}
		}
	}
	port := &overlay.Port{Meta: overlay.Meta{UID: overlay.UID{5}, Name: "p"}, Network: blue, MAC: overlay.MAC{2, 0, 0, 0, 0, 1}}
	sum := func(recs ...overlay.Record) (s overlay.Sum) {
		for i, r := range recs {
			s.Add(overlay.KeyOf(r), rev(uint64(10+i)))
		}
		return s
	}
	its := passes(10, 0)
	its[1].Items, its[1].Ends[0].Sum = []api.StreamItem{{Rev: rev(10), Rec: port}}, sum(port)
	for _, it := range its {
		a.core.Step(a.now(), itemsOf(it))
	}
	works()
	k.m.Plug("vnet1", 10001, hoststate.PortAlias("default", "p"))
	works()
	nic := hoststate.NIC{Device: "vnet1", MAC: port.MAC, State: hoststate.NICRunning}
	a.core.Step(a.now(), agentcore.Guests{Source: "libvirt", Full: true, NICs: []hoststate.NIC{nic}})
	a.core.Step(a.now(), agentcore.Connected{Session: 1})
	at := &overlay.Endpoint{Network: blue, MAC: port.MAC, Port: port.UID, Host: peer, Evidence: overlay.EvidenceHypervisor}
	a.core.Step(a.now(), agentcore.Items{Items: []agentcore.Item{{Rev: rev(11), Rec: at}}, Ends: []agentcore.End{{Network: blue, Sum: sum(port, at), Sent: rev(11)}}, UpTo: rev(11)})
	if s, _ := a.core.GuestState("vnet1"); s != "elsewhere" {
		t.Fatalf("the guest is %s", s)
	}

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() { cancel(); <-done }()
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Fatal("the hypervisor is not asked")
	}
	a.Guests(ctx, "libvirt", true, true, []hoststate.NIC{nic})
	if r, err := (local{a}).guestState(ctx, "vnet1"); err != nil || r.GetState() != "arriving" {
		t.Errorf("the guest is %s (%v)", r.GetState(), err)
	}
}
