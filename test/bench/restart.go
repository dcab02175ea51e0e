package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// restart kills the agent of h2 with SIGKILL and starts it, while more
// endpoints appear elsewhere. The clock runs from the start of the process
// until both the manager holds its acknowledgement of all of them (verified)
// and the kernel was heard to have them (caught up). What stood before may not
// be touched: every event on it is counted.
func restart(ctx context.Context, o options, w *world, out *printer) error {
	h2, ear := w.places[1], w.ears[0]
	good := entries{}
	for _, e := range w.many[:w.endpoints] {
		e.entries(good, crowdVTEP, ear.vxlan)
	}
	more := w.many[w.endpoints:]
	var verified, caught, cpu, touched sample
	for i := range o.restarts {
		if err := w.settle(ctx); err != nil {
			return err
		}
		if err := w.lab.Signal(ctx, "h2", unix.SIGKILL); err != nil {
			return err
		}
		ear.guard(good)
		want := entries{}
		for _, e := range more {
			e.entries(want, crowdVTEP, ear.vxlan)
		}
		ear.expect(want, false)
		start := time.Now()
		if err := w.crowd.tell(order{Network: w.network, List: more}); err != nil {
			return err
		}
		if _, err := w.lab.Start(ctx, "h2"); err != nil {
			return err
		}
		rev, err := w.crowd.hear()
		if err != nil {
			return err
		}
		acked, err := w.awaitAck(ctx, "h2", rev)
		if err != nil {
			return fmt.Errorf("restart %d: %w", i, err)
		}
		used, err := w.cpu("h2")
		if err != nil {
			return err
		}
		heard, err := gather(w.ears[:1], limit)
		if err != nil {
			return fmt.Errorf("restart %d: %w", i, err)
		}
		have, err := h2.dump(ear.bridge, ear.vxlan)
		if err != nil {
			return err
		}
		if n := differ(good, have, ear.vxlan) + differ(allOf(more, ear.vxlan), have, ear.vxlan); n > 0 {
			return fmt.Errorf("restart %d: acknowledged, and %d entries are not in the kernel", i, n)
		}
		n, lost := ear.counts()
		if lost {
			return fmt.Errorf("restart %d: events were lost", i)
		}
		verified, caught, touched = verified.addTime(acked.Sub(start)), caught.addTime(heard.Sub(start)), append(touched, float64(n))
		cpu = cpu.addTime(used)
		ear.guard(nil)
		ear.expect(allOf(more, ear.vxlan), true)
		if _, err := w.crowd.leave(w.network, more); err != nil {
			return err
		}
		if _, err := gather(w.ears[:1], limit); err != nil {
			return fmt.Errorf("restart %d: leave: %w", i, err)
		}
	}
	note := fmt.Sprintf("while %d more appear", len(more))
	for _, f := range []figure{
		newFigure("restart, verified", "ms", w.hosts, w.endpoints, verified, bound{goal: 300}),
		newFigure("restart, caught up", "ms", w.hosts, w.endpoints, caught, bound{goal: 300}),
		newFigure("restart, CPU used", "ms", w.hosts, w.endpoints, cpu, bound{}),
		untouched(newFigure("restart, touched", "1", w.hosts, w.endpoints, touched, bound{}), touched),
	} {
		f.Note = strings.TrimPrefix(f.Note+", "+note, ", ")
		if err := out.figure(f); err != nil {
			return err
		}
	}
	return nil
}

// untouched: not one event, in any restart.
func untouched(f figure, s sample) figure {
	f.Verdict = "met"
	if s.quantile(1) > 0 {
		f.Verdict = "missed"
	}
	return f
}

func allOf(list []endpoint, vxlan int) entries {
	all := entries{}
	for _, e := range list {
		e.entries(all, crowdVTEP, vxlan)
	}
	return all
}

// awaitAck asks the manager until it holds a host's acknowledgement of rev.
func (w *world) awaitAck(ctx context.Context, host string, rev overlay.Rev) (at time.Time, err error) {
	err = await(ctx, func() (bool, error) {
		st, err := w.api.Status(ctx, &culvertv1.StatusRequest{})
		if err != nil {
			return false, err
		}
		at = time.Now()
		for _, h := range st.GetHosts() {
			if h.GetMetadata().GetName() == host && h.GetStatus().GetState() == "connected" {
				has, err := api.ParseRev("applied", h.GetStatus().GetAppliedRevision())
				return err == nil && rev.Compare(has) <= 0, nil
			}
		}
		return false, nil
	})
	return at, err
}

// cpu is the time that a node's daemon has computed since it started, to a
// clock tick of 10 ms (proc_pid_stat(5), fields 14 and 15). Where a machine is
// busy it says more than the clock on the wall.
func (w *world) cpu(node string) (time.Duration, error) {
	st, err := w.lab.Status()
	if err != nil {
		return 0, err
	}
	for _, n := range st.Nodes {
		if n.Name != node {
			continue
		}
		b, err := os.ReadFile("/proc/" + strconv.Itoa(n.PID) + "/stat")
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		user, err1 := strconv.ParseUint(f[11], 10, 64)
		system, err2 := strconv.ParseUint(f[12], 10, 64)
		return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
	}
	return 0, fmt.Errorf("no node %s", node)
}

// memory says what the daemons weigh.
func memory(w *world, out *printer) error {
	st, err := w.lab.Status()
	if err != nil {
		return err
	}
	for _, n := range st.Nodes {
		if n.Name != "m1" && n.Name != "h2" {
			continue
		}
		kb, err := rss(n.PID)
		if err != nil {
			return err
		}
		what := map[string]string{"m1": "memory of manager", "h2": "memory of agent"}[n.Name]
		if err := out.figure(newFigure(what, "MB", w.hosts, w.endpoints, sample{kb / 1024}, bound{})); err != nil {
			return err
		}
	}
	return nil
}

// rss is a process's resident memory in KiB (proc_pid_status(5)).
func rss(pid int) (float64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("process %d says no VmRSS", pid)
}
