package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"culvert/internal/api/culvertv1"
)

// withdrawnIn is what a host's death must not exceed, in ms: the default of
// `culvert manager run --host-death`.
const withdrawnIn = 600

// deaths measures, in labs of their own, how long a host that fails stays in
// other hosts' tables, and in the largest one whether a busy machine kills any. The clock runs from just before its link goes, and its
// last breath is up to a sixth of that time older; it ends when the last
// other host's kernel was heard to drop its last entry.
func deaths(ctx context.Context, o options, out *printer) error {
	sizes := o.sizes(3, 8, 20)
	for i, hosts := range sizes {
		fmt.Fprintf(os.Stderr, "building a lab of %d hosts, to let one fail %d times\n", hosts, o.deaths)
		w, err := newWorld(ctx, o, hosts, 0)
		if err == nil {
			err = w.deaths(ctx, o.deaths, out)
		}
		if err == nil && i == len(sizes)-1 {
			err = w.calm(ctx, o.calm, out)
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

// calm lets the lab stand for a time while every processor is as busy with
// something else as two processes can make it, and counts the hosts that were
// declared dead: all of them live.
func (w *world) calm(ctx context.Context, d time.Duration, out *printer) error {
	if d == 0 {
		return nil
	}
	fmt.Fprintf(os.Stderr, "a lab of %d hosts under load, for %s\n", w.hosts, d)
	died := func() (uint64, error) {
		st, err := w.api.Status(ctx, &culvertv1.StatusRequest{})
		if err != nil {
			return 0, fmt.Errorf("ask for status: %w", err)
		}
		return st.GetCounters()["hosts_died"], nil
	}
	before, err := died()
	if err != nil {
		return err
	}
	for range 2 * runtime.NumCPU() {
		end, err := burn()
		if err != nil {
			return err
		}
		defer end()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
	}
	after, err := died()
	if err != nil {
		return err
	}
	s := sample{float64(after - before)}
	f := untouched(newFigure("false alarms under load", "1", w.hosts, 0, s, bound{}), s)
	f.Note = "in " + d.String()
	return out.figure(f)
}

// burnVerb makes this program keep a processor busy until its standard input
// ends, which it does with the process that started it.
const burnVerb = "burn"

func burn() (end func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, burnVerb)
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	return func() {
		_ = in.Close() // it ends by that
		_ = cmd.Wait()
	}, nil
}

func runBurn() {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for x := uint32(1); ; x = x*1664525 + 1013904223 { // some arithmetic; never over
		if x == 0 {
			runtime.Gosched()
		}
	}
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
