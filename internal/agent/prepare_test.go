package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/rpcerr"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
)

// modelKernel is a model kernel that a running agent may use. Nothing rings:
// the agent reads by itself what it has written.
type modelKernel struct {
	mu sync.Mutex
	m  *kerneltest.Model
}

func (k *modelKernel) Read(ctx context.Context, s hoststate.Scope) (*hoststate.State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.m.Read(ctx, s)
}

func (k *modelKernel) Apply(ctx context.Context, ops []hoststate.Op) []hoststate.Result {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.m.Apply(ctx, ops)
}

func (k *modelKernel) Watch(ctx context.Context, ring func(hoststate.Doorbell)) error {
	ring(hoststate.Doorbell{Overflow: true})
	<-ctx.Done()
	return nil
}

func (k *modelKernel) Listen(ctx context.Context, _ func(hoststate.Heard)) error {
	<-ctx.Done()
	return nil
}

func (k *modelKernel) Misses(ctx context.Context, _ func(hoststate.Miss)) error {
	<-ctx.Done()
	return ctx.Err()
}

// silentManagers have no stream; they know ports if they answer at all.
type silentManagers struct {
	ports map[string]*overlay.Port // by what PortQuery prints
	down  bool
}

func (m silentManagers) Attach(context.Context) (Stream, error) { return nil, errors.New("no stream") }

func (m silentManagers) Resolve(_ context.Context, q PortQuery) (overlay.VNI, *overlay.Port, error) {
	if m.down {
		return 0, nil, api.Refuse(api.CodeUnreachable, "x", "no manager answers", "")
	}
	if p := m.ports[q.String()]; p != nil {
		return 10001, p, nil
	}
	return 0, nil, api.Refuse(api.CodeNotFound, "x", "there is none", "")
}

// TestPrepare: a guest is let in just when its port is declared, is its
// interface's, and this host is ready for it.
func TestPrepare(t *testing.T) {
	port := func(name string, mac byte, hosts ...string) *overlay.Port {
		return &overlay.Port{Meta: overlay.Meta{UID: overlay.UID{5, mac}, Name: name}, Network: blue, MAC: overlay.MAC{2, 0, 0, 0, 0, mac}, Hosts: hosts}
	}
	told, elsewhere := port("told", 1), port("elsewhere", 2, "h9")
	known := silentManagers{ports: map[string]*overlay.Port{"with MAC 02:00:00:00:00:03": port("new", 3), "default/new": port("new", 3), "default/far": port("far", 4, "h9")}}
	tests := []struct {
		name string
		m    silentManagers
		req  *culvertv1.PrepareRequest
		want string // port, "none of ours", or code and part of the reason
	}{
		{"told", silentManagers{down: true}, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:01", Bridge: "cvb10001"}, "told"},
		{"told, by name", silentManagers{down: true}, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:01", Tenant: "default", Port: "told"}, "told"},
		{"another's bridge", silentManagers{down: true}, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:01", Bridge: "br0"}, "none of ours"},
		{"wrong MAC", silentManagers{down: true}, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:09", Bridge: "cvb10001", Port: "told"}, "CV0032 has MAC 02:00:00:00:00:09, and port default/told has 02:00:00:00:00:01"},
		{"declared for another host", silentManagers{down: true}, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:02", Bridge: "cvb10001"}, "CV0027 port default/elsewhere is declared for other hosts than h1"},
		{"not told, no manager", silentManagers{down: true}, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:03", Bridge: "cvb10001"}, "CV0010 no manager answers"},
		{"not told, the manager knows it by MAC", known, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:03", Bridge: "cvb10001"}, "new"},
		{"not told, the manager knows it by name", known, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:03", Port: "new"}, "new"},
		{"not told, the manager has it for another host", known, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:04", Port: "far"}, "CV0027 port default/far"},
		{"not declared", known, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:08", Bridge: "cvb10001"}, "CV0110 port with MAC 02:00:00:00:00:08: there is none"},
		{"in another network", known, &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:03", Bridge: "cvb10002", Port: "new", Tenant: "default"}, "CV0032 port default/new is in the network of bridge cvb10001, and the interface in cvb10002"},
		{"no MAC", known, &culvertv1.PrepareRequest{Mac: "x"}, "CV0101"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := New(&modelKernel{m: kerneltest.New()}, tt.m, Config{Cluster: "c", Host: self, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, Log: slog.New(slog.DiscardHandler), Now: time.Now})
			for _, it := range passes(10, 0) {
				for i, p := range []*overlay.Port{told, elsewhere} {
					if len(it.Begins) == 1 && it.Begins[0] == blue {
						it.Items = append(it.Items, api.StreamItem{Rev: rev(uint64(8 + i)), Rec: p})
						it.Ends[0].Sum.Add(overlay.KeyOf(p), rev(uint64(8+i)))
					}
				}
				a.core.Step(a.now(), itemsOf(it))
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- a.Run(ctx) }()
			defer func() { cancel(); <-done }()
			l := local{a}
			for stands := false; !stands; { // as soon as the network's bridge was made
				p, ok := l.place(ctx, agentcore.Guest{Bridge: "cvb10001"})
				if !ok {
					t.Fatal("the agent has ended")
				}
				stands = p.Stands
			}
			r, err := l.Prepare(ctx, tt.req)
			got := r.GetPort()
			if no := rpcerr.Refusal(err); no != nil {
				got = string(no.Code()) + " " + no.Error()
			} else if err == nil && !r.GetOurs() {
				got = "none of ours"
			}
			code, reason, _ := strings.Cut(tt.want, " ")
			if fine := got == tt.want || strings.HasPrefix(code, "CV") && strings.HasPrefix(got, code+" ") && strings.Contains(got, reason); !fine {
				t.Errorf("%q (%v), want %q", got, err, tt.want)
			}
		})
	}
}

// TestPrepareBeforeTheBridge: a guest waits for what its host has not made yet.
func TestPrepareBeforeTheBridge(t *testing.T) {
	a := New(nil, silentManagers{ports: map[string]*overlay.Port{"with MAC 02:00:00:00:00:03": {Meta: overlay.Meta{Name: "new"}, MAC: overlay.MAC{2, 0, 0, 0, 0, 3}}}},
		Config{Name: "h1", Log: slog.New(slog.DiscardHandler), Now: time.Now})
	go func() {
		for f := range a.inbox {
			f()
		}
	}()
	defer close(a.inbox)
	_, err := local{a}.Prepare(t.Context(), &culvertv1.PrepareRequest{Mac: "02:00:00:00:00:03", Bridge: "cvb10001"})
	if no := rpcerr.Refusal(err); no == nil || no.Code() != api.CodeNotReady || !strings.Contains(no.Error(), "bridge cvb10001 of port new does not stand") {
		t.Errorf("%v", err)
	}
}
