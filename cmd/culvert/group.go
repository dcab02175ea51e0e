package main

import (
	"context"
	"errors"
	"sync"
)

// group runs the parts of a daemon: when one ends, all end.
type group struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	errs   []error
}

func newGroup(ctx context.Context) *group {
	g := &group{}
	g.ctx, g.cancel = context.WithCancel(ctx)
	return g
}

func (g *group) add(f func(context.Context) error) {
	g.wg.Go(func() {
		defer g.cancel()
		if err := f(g.ctx); err != nil && !errors.Is(err, context.Canceled) {
			g.mu.Lock()
			g.errs = append(g.errs, err)
			g.mu.Unlock()
		}
	})
}

// wait waits until all have ended.
func (g *group) wait() error {
	g.wg.Wait()
	g.cancel()
	return errors.Join(g.errs...)
}

func (g *group) end() error {
	g.cancel()
	return g.wait()
}
