package agent

import (
	"context"
	"slices"
	"sync"

	"culvert/internal/agentcore"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// ears gather what port programs handed up between two rounds of the loop.
// Beyond their bound the newest are lost and counted: whoever speaks once
// speaks again.
type ears struct {
	mu   sync.Mutex
	list []agentcore.Heard
	lost uint64
	bad  [packet.Drops]uint64 // by reason why nothing was read in a frame
	wake chan struct{}
}

const maxHeard = 4096

func newEars() *ears { return &ears{wake: make(chan struct{}, 1)} }

// hear reads a frame and keeps what it says. It runs on the edge's goroutine,
// so that what a guest makes us parse delays nothing else.
func (e *ears) hear(h hoststate.Heard) {
	dir := packet.FromGuest
	if h.ToGuest {
		dir = packet.ToGuest
	}
	x := agentcore.Heard{Port: h.Port, ToGuest: h.ToGuest, At: agentcore.Time(h.At)}
	var drop packet.Drop
	if x.Fact, drop = packet.Parse(dir, h.Frame, h.Length); drop == packet.Taken {
		readWhole(&x, dir, h)
	}
	if x.Fact.Kind == packet.GroupReport {
		x.Groups = packet.Groups(nil, h.Frame, h.Length)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case drop != packet.Taken:
		e.bad[drop]++
		return
	case len(e.list) >= maxHeard:
		e.lost++
		return
	}
	e.list = append(e.list, x)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// readWhole adds what is read apart of a frame to what it says: a DHCP message,
// or a packet to the router. The frame is the edge's to use again, and they have
// views of it.
func readWhole(x *agentcore.Heard, dir packet.Direction, h hoststate.Heard) {
	switch k := x.Fact.Kind; {
	case k >= packet.DHCPDiscover && k <= packet.DHCPNak:
		if m, drop := packet.ReadDHCP4(dir, slices.Clone(h.Frame), h.Length); drop == packet.Taken {
			x.DHCP4 = &m
		}
	case k >= packet.DHCP6Solicit && k <= packet.DHCP6Reply:
		if m, drop := packet.ReadDHCP6(dir, slices.Clone(h.Frame), h.Length); drop == packet.Taken {
			x.DHCP6 = &m
		}
	case k == packet.ToRouter:
		if f, drop := packet.ReadForward(slices.Clone(h.Frame), h.Length); drop == packet.Taken {
			x.Forward = &f
		}
	}
}

// unread counts the frames of which nothing came, by reason, and those that
// were not handed up at all.
func (e *ears) unread(unheard uint64) (out []overlay.Count) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for reason, n := range e.bad {
		if n > 0 {
			out = append(out, overlay.Count{Reason: packet.Drop(reason).String(), N: n})
		}
	}
	for _, c := range []overlay.Count{{Reason: hoststate.DropPuntLimit.String(), N: unheard}, {Reason: "agent-busy", N: e.lost}} {
		if c.N > 0 {
			out = append(out, c)
		}
	}
	return out
}

func (e *ears) take() []agentcore.Heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.list
	e.list = nil
	return l
}

// Guests takes what a source, a hypervisor, says of the NICs on this host; full: of all
// of them; answer: read after the newest Config.Inquire, and full. It may be called from
// any goroutine while Run works.
func (a *Agent) Guests(ctx context.Context, source string, full, answer bool, nics []hoststate.NIC) {
	a.onLoop(ctx, func() {
		a.log.Debug("told by the hypervisor", "source", source, "full", full, "answer", answer, "nics", len(nics))
		a.core.Step(a.now(), agentcore.Guests{Source: source, Full: full, Answer: answer, NICs: nics})
	})
}
