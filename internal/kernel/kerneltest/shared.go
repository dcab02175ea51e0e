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
	asked chan struct{} // holds one token while misses wait
}

// NewShared takes ownership of m.
func NewShared(m *Model) *Shared {
	return &Shared{model: m, rung: make(chan struct{}, 1), said: make(chan struct{}, 1), asked: make(chan struct{}, 1)}
}

// Do runs f on the model with nobody else in it.
func (s *Shared) Do(f func(*Model)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.model)
	wake(s.rung, len(s.model.bells))
	wake(s.said, len(s.model.heard))
	wake(s.asked, len(s.model.misses))
}

// wake leaves a token if something waits.
func wake(c chan struct{}, waiting int) {
	if waiting == 0 {
		return
	}
	select {
	case c <- struct{}{}:
	default:
	}
}

// hand hands what comes to f, until ctx ends; then it returns ctx.Err().
func hand[T any](ctx context.Context, s *Shared, take func(*Model) []T, token chan struct{}, f func(T)) error {
	for {
		var all []T
		s.Do(func(m *Model) { all = take(m) })
		for _, one := range all {
			f(one)
		}
		if len(all) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-token:
		}
	}
}

// Listen implements the kernel edge.
func (s *Shared) Listen(ctx context.Context, f func(hoststate.Heard)) error {
	return hand(ctx, s, (*Model).Heard, s.said, f)
}

// Misses implements the kernel edge.
func (s *Shared) Misses(ctx context.Context, f func(hoststate.Miss)) error {
	return hand(ctx, s, (*Model).Misses, s.asked, f)
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
	return hand(ctx, s, (*Model).Doorbells, s.rung, f)
}
