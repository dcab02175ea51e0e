package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"culvert/internal/agentcore"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
)

// missingKernel tells of one miss to whoever listens.
type missingKernel struct {
	modelKernel
	listening chan bool
}

func (k *missingKernel) Misses(ctx context.Context, f func(hoststate.Miss)) error {
	k.listening <- true
	f(hoststate.Miss{VNI: 10001, MAC: overlay.MAC{2, 0, 0, 0, 9, 9}})
	<-ctx.Done()
	k.listening <- false
	return ctx.Err()
}

// TestMissesAreHeardWhileTheyAreWanted: while a network is served that is told
// on demand, and not before nor after.
func TestMissesAreHeardWhileTheyAreWanted(t *testing.T) {
	t.Parallel()
	k := &missingKernel{modelKernel: modelKernel{m: kerneltest.New()}, listening: make(chan bool, 4)}
	a := New(k, silentManagers{}, Config{Cluster: "c", Host: self, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	port := &overlay.Port{Meta: overlay.Meta{UID: overlay.UID{5, 1}, Name: "p"}, Network: blue, MAC: overlay.MAC{2, 0, 0, 0, 0, 0xee}}
	tell := func(mode overlay.Distribution, n uint64) {
		for _, it := range passes(10+n, 0) {
			x := itemsOf(it)
			for i := range x.Items {
				if r, ok := x.Items[i].Rec.(*overlay.Network); ok {
					r.Distribution, x.Items[i].Rev = mode, rev(3+n)
				}
			}
			if slices.Equal(x.Begins, []overlay.UID{blue}) {
				x.Items = append(x.Items, agentcore.Item{Rev: rev(8), Rec: port})
				x.Ends[0].Sum.Add(overlay.KeyOf(port), rev(8))
				x.Ends[0].OnDemand = mode == overlay.DistributeOnDemand
			}
			a.core.Step(a.now(), x)
		}
	}
	listens := func() bool {
		t.Helper()
		select {
		case x := <-k.listening:
			return x
		case <-time.After(10 * time.Second):
			t.Fatal("no listener came or went in 10 s")
			return false
		}
	}
	tell(overlay.DistributeOnDemand, 0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() { cancel(); <-done }()
	on := func(f func()) {
		t.Helper()
		ran := make(chan bool)
		if !a.onLoop(ctx, func() { f(); close(ran) }) {
			t.Fatal("the agent has ended")
		}
		<-ran
	}
	eventually := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; {
			ok := false
			if on(func() { ok = is() }); ok {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("not in 10 s: %s", what)
			}
		}
	}
	eventually("the network's bridge stands", func() bool { return a.core.Place(agentcore.Guest{Bridge: "cvb10001"}).Stands })
	select {
	case <-k.listening:
		t.Error("heard before a guest is here")
	default:
	}
	on(func() {
		k.mu.Lock()
		k.m.Plug("tap", 10001, hoststate.PortAlias("default", "p"))
		k.mu.Unlock()
		a.core.Step(a.now(), agentcore.Bell{Doorbell: hoststate.Doorbell{Links: true}})
	})
	if !listens() {
		t.Error("it ended before it began")
	}
	eventually("the miss is heard", func() bool { return a.core.Stats().Misses == 1 })
	on(func() { tell(overlay.DistributePush, 10) })
	if listens() {
		t.Error("it began twice")
	}
}
