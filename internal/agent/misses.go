package agent

import (
	"context"
	"sync"

	"culvert/internal/agentcore"
	"culvert/internal/hoststate"
)

// misses gather what the kernel says that its tables lack, between two rounds of
// the loop. Beyond their bound the newest are lost: whoever asked asks again.
type misses struct {
	mu   sync.Mutex
	list []hoststate.Miss
	wake chan struct{}
	want chan bool // whether there is to be a listener
	on   bool      // what was last said there; loop only
}

const maxMisses = 1024

func newMisses() *misses { return &misses{wake: make(chan struct{}, 1), want: make(chan bool)} }

func (m *misses) add(x hoststate.Miss) {
	m.mu.Lock()
	if len(m.list) < maxMisses {
		m.list = append(m.list, x)
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *misses) take() []hoststate.Miss {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.list
	m.list = nil
	return l
}

// keepMisses listens while the loop says that it is to, until ctx ends. A host
// that serves no network that is told on demand is spared the misses of all.
func (a *Agent) keepMisses(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case on := <-a.misses.want:
			stop()
			if stop = func() {}; !on {
				continue
			}
			c, cancel := context.WithCancel(ctx)
			stop = cancel
			wg.Go(func() {
				if err := a.kernel.Misses(c, a.misses.add); c.Err() == nil {
					a.log.Error("misses are not heard any more", "err", err)
				}
			})
		case <-ctx.Done():
			return
		}
	}
}

// hearMisses begins or ends to listen, as the core wants.
func (a *Agent) hearMisses(ctx context.Context) {
	if on := a.core.WantsMisses(); on != a.misses.on {
		select {
		case a.misses.want <- on:
			a.misses.on = on
		case <-ctx.Done():
		}
	}
}

// missed gives the core what was missed.
func (a *Agent) missed() {
	for _, x := range a.misses.take() {
		a.core.Step(a.now(), agentcore.Missed{Miss: x})
	}
}
