package kerneltest

import (
	"context"
	"sync"

	"culvert/internal/hoststate"
)

// Shared is a Model for several goroutines, with the blocking Watch of the
// kernel edge.
type Shared struct {
	mu    sync.Mutex
	model *Model
	rung  chan struct{} // holds one token while doorbells wait
	said  chan struct{} // holds one token while frames wait
}

// NewShared takes ownership of m.
func NewShared(m *Model) *Shared {
	return &Shared{model: m, rung: make(chan struct{}, 1), said: make(chan struct{}, 1)}
}

// Do runs f on the model with nobody else in it.
func (s *Shared) Do(f func(*Model)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.model)
	if len(s.model.bells) > 0 {
		select {
		case s.rung <- struct{}{}:
		default:
		}
	}
	if len(s.model.heard) > 0 {
		select {
		case s.said <- struct{}{}:
		default:
		}
	}
}

// Listen implements the kernel edge.
func (s *Shared) Listen(ctx context.Context, f func(hoststate.Heard)) error {
	for {
		var heard []hoststate.Heard
		s.Do(func(m *Model) { heard = m.Heard() })
		for _, h := range heard {
			f(h)
		}
		if len(heard) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.said:
		}
	}
}

// Read implements the kernel edge.
func (s *Shared) Read(ctx context.Context, sc hoststate.Scope) (st *hoststate.State, err error) {
	s.Do(func(m *Model) { st, err = m.Read(ctx, sc) })
	return st, err
}

// Apply implements the kernel edge.
func (s *Shared) Apply(ctx context.Context, ops []hoststate.Op) (r []hoststate.Result) {
	s.Do(func(m *Model) { r = m.Apply(ctx, ops) })
	return r
}

// Watch implements the kernel edge. What rang before the first call is
// delivered too.
func (s *Shared) Watch(ctx context.Context, f func(hoststate.Doorbell)) error {
	for {
		var bells []hoststate.Doorbell
		s.Do(func(m *Model) { bells = m.Doorbells() })
		for _, b := range bells {
			f(b)
		}
		if len(bells) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.rung:
		}
	}
}
