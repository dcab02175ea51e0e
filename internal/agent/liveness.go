package agent

import (
	"context"
	"sync"
	"time"

	"culvert/internal/api"
)

// Bounds of what a host does for others as a witness.
const (
	probeRequests = 3
	maxProbes     = 32 // at once; beyond it the manager is told that it must ask others
)

// witness carries out the probes of one stream.
type witness struct {
	a    *Agent
	slot chan struct{}
	wg   sync.WaitGroup
}

func newWitness(a *Agent) *witness {
	return &witness{a: a, slot: make(chan struct{}, maxProbes)}
}

// take begins a probe. It does not wait for the core, which may be busy with a
// large change: whether another host lives does not depend on it.
func (w *witness) take(ctx context.Context, p api.Probe) {
	r := api.ProbeResult{ID: p.ID, Unable: true}
	if w.a.cfg.Prober == nil {
		w.a.out.probed(r)
		return
	}
	select {
	case w.slot <- struct{}{}:
	default:
		w.a.out.probed(r)
		return
	}
	w.wg.Go(func() {
		defer func() { <-w.slot }()
		ok, err := w.a.cfg.Prober.Probe(ctx, w.a.cfg.VTEP, p.VTEP, probeRequests, p.Within)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			w.a.log.Debug("probe not carried out", "vtep", p.VTEP.String(), "err", err)
		}
		r.Answered, r.Unable = ok, err != nil
		w.a.out.probed(r)
	})
}

// breaths ticks as often as the manager wants to hear that this host lives;
// never for 0.
func breaths(every time.Duration) (c <-chan time.Time, stop func()) {
	if every <= 0 {
		return nil, func() {}
	}
	t := time.NewTicker(every)
	return t.C, t.Stop
}
