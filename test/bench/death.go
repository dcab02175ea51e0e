package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"culvert/internal/api/culvertv1"
)

// withdrawnIn is what a host's death must not exceed, in ms: the default of
// `culvert manager run --host-death`.
const withdrawnIn = 600

// deaths measures, in labs of their own, how long a host that fails stays in
// other hosts' tables. The clock runs from just before its link goes, and its
// last breath is up to a sixth of that time older; it ends when the last
// other host's kernel was heard to drop its last entry.
func deaths(ctx context.Context, o options, out *printer) error {
	sizes := []int{3, 8}
	if o.small {
		sizes = sizes[:1]
	}
	for _, hosts := range sizes {
		fmt.Fprintf(os.Stderr, "building a lab of %d hosts, to let one fail %d times\n", hosts, o.deaths)
		w, err := newWorld(ctx, o, hosts, 0)
		if err == nil {
			err = w.deaths(ctx, o.deaths, out)
		}
		if err = errors.Join(err, w.close(context.WithoutCancel(ctx))); err != nil {
			return fmt.Errorf("deaths, lab of %d hosts: %w", hosts, err)
		}
	}
	return nil
}

func (w *world) deaths(ctx context.Context, times int, out *printer) error {
	if err := w.judged(ctx); err != nil {
		return err
	}
	victim := w.keepers[0] // of h1, the one host without an ear
	var took sample
	for i := range times {
		w.expect(victim, true)
		var start time.Time
		if err := w.lab.FailHosts(ctx, func() { start = time.Now() }, "h1"); err != nil {
			return err
		}
		at, err := gather(w.ears, limit)
		if err != nil {
			return fmt.Errorf("death %d: %w", i, err)
		}
		took = took.addTime(at.Sub(start))
		w.expect(victim, false)
		if _, err := w.lab.RecoverHost(ctx, "h1"); err != nil {
			return err
		}
		if _, err := gather(w.ears, limit); err != nil {
			return fmt.Errorf("return %d: %w", i, err)
		}
		if err := w.settle(ctx); err != nil {
			return err
		}
	}
	st, err := w.api.Status(ctx, &culvertv1.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask for status: %w", err)
	}
	f := newFigure("host death, withdrawn", "ms", w.hosts, 0, took, bound{must: withdrawnIn, p99: withdrawnIn})
	f.Note = fmt.Sprintf("max %.0f, false alarms %d", took.quantile(1), st.GetCounters()["hosts_died"]-uint64(times))
	return out.figure(f)
}

// judged waits until every host was seen to answer echo requests: before that
// its silence says nothing, and it does not die.
func (w *world) judged(ctx context.Context) error {
	path := filepath.Join(filepath.Dir(w.lab.ClientConfig()), "m1.log")
	return await(ctx, func() (bool, error) {
		log, err := os.ReadFile(path)
		if err != nil {
			return false, fmt.Errorf("log of the manager: %w", err)
		}
		return strings.Count(string(log), "host answers echo requests") >= w.hosts, nil
	})
}
