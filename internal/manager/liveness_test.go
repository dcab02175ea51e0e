package manager

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"culvert/internal/agent"
	"culvert/internal/api"
	"culvert/internal/overlay"
)

// underlay says which tunnel end points answer.
type underlay struct {
	mu    sync.Mutex
	quiet map[netip.Addr]bool
}

func (u *underlay) answers(a netip.Addr) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.quiet[a]
}

func (u *underlay) silence(a netip.Addr) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.quiet[a] = true
}

// lives keeps a stream alive as an agent does, until it ends or stop is
// closed, and then leaves it open and silent.
func lives(st agent.Stream, w *api.Welcome, u *underlay, stop <-chan struct{}) (ended <-chan error) {
	done := make(chan error, 1)
	probes := make(chan api.Probe, 16)
	go func() {
		for {
			d, err := st.Receive()
			if err != nil {
				done <- err
				return
			}
			if d.Probe != nil {
				probes <- *d.Probe
			}
		}
	}()
	go func() {
		t := time.NewTicker(w.Breath)
		defer t.Stop()
		for {
			var up api.Up
			select {
			case <-stop:
				return
			case <-t.C:
				up.Breath = true
			case p := <-probes:
				up.ProbeResult = &api.ProbeResult{ID: p.ID, Answered: u.answers(p.VTEP)}
			}
			if st.Send(up) != nil {
				return
			}
		}
	}()
	return done
}

// dead lists the hosts whose record says so.
func (s *served) dead() (out []string) {
	for it := range s.m.View().List(overlay.KindHost, overlay.UID{}) {
		if h := it.Rec.(*overlay.Host); h.Dead {
			out = append(out, h.Name)
		}
	}
	return out
}

func TestSilentHostIsDeclaredDeadAndReturns(t *testing.T) {
	t.Parallel()
	s := serveManager(t, func(c *Config) { c.HostDeath = 600 * time.Millisecond })
	u := &underlay{quiet: map[netip.Addr]bool{}}
	vtep := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }
	stop, end := make(chan struct{}), make(chan struct{})
	defer close(end)
	var ended <-chan error
	h3 := s.agentLeaf("h3")
	for i, name := range []string{"h1", "h2", "h3"} {
		leaf, until := h3, stop
		if i < 2 {
			leaf, until = s.agentLeaf(name), end
		}
		h := hello
		h.VTEP = vtep(i + 1)
		st, w, err := s.attach(leaf, h)
		if err != nil {
			t.Fatal(err)
		}
		if w.Breath != 100*time.Millisecond {
			t.Errorf("asked to breathe every %v, want 100ms", w.Breath)
		}
		ended = lives(st, w, u, until)
	}
	s.logged("host answers echo requests", "host=h3")
	close(stop) // its agent is silent, its kernel answers
	silent := time.NewTimer(2 * time.Second)
	<-silent.C
	if d := s.dead(); d != nil {
		t.Fatalf("%v declared dead while its tunnel end point answered", d)
	}
	u.silence(vtep(3))
	at := time.Now()
	s.eventually("verdict", func() error {
		if d := s.dead(); !slices.Equal(d, []string{"h3"}) {
			return fmt.Errorf("dead are %v, want h3", d)
		}
		return nil
	})
	t.Logf("declared dead %v after its last sign of life", time.Since(at))
	if err := <-ended; err == nil {
		t.Error("the stream of a dead host did not end")
	}
	s.logged("host is dead", "host=h3")
	h := hello
	h.VTEP = vtep(3)
	st, w, err := s.attach(h3, h)
	if err != nil {
		t.Fatal(err)
	}
	say(t, st, api.Up{InventoryEnd: &api.InventoryEnd{Session: w.Session}})
	s.eventually("return", func() error {
		if d := s.dead(); d != nil {
			return fmt.Errorf("dead are %v, want none", d)
		}
		return nil
	})
}
