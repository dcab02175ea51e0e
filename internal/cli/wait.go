package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
)

// maxWaitCall is the longest that one Wait call may ask for.
const maxWaitCall = 60 * time.Second

// waiting is the flags and the outcome of waiting for the hosts' kernels.
type waiting struct {
	atMost time.Duration
	not    bool
}

func (w *waiting) flags(c *cobra.Command) {
	c.Flags().DurationVar(&w.atMost, "wait", 30*time.Second, "wait at most so long for the hosts' kernels")
	c.Flags().BoolVar(&w.not, "no-wait", false, "do not wait: done is when the manager has it")
}

func (w *waiting) check(c *cobra.Command) error {
	if w.not && c.Flags().Changed("wait") {
		return usage(c, "--wait and --no-wait exclude each other")
	}
	return duration("wait", w.atMost, time.Hour)
}

// wait waits until the hosts that revision concerns hold it. nil means that
// nobody waited: there was no change, or --no-wait.
func (w *waiting) wait(ctx context.Context, cl *client.Client, revision string) (*culvertv1.WaitResponse, error) {
	if w.not || revision == "" || revision == "0" {
		return nil, nil
	}
	left := w.atMost
	passed := 0.0 // seconds of former calls, since each counts from its own start
	for {
		step := min(left, maxWaitCall)
		call, cancel := context.WithTimeout(ctx, step+callTimeout)
		reply, err := cl.Wait(call, &culvertv1.WaitRequest{Revision: revision, TimeoutSeconds: step.Seconds()})
		cancel()
		if err != nil {
			return nil, err
		}
		left -= step
		// Hosts that are away do not come back because we wait for them.
		behind := slices.ContainsFunc(reply.GetHosts(), func(h *culvertv1.HostWait) bool { return h.GetState() == "behind" })
		if reply.GetDone() || left <= 0 || !behind {
			for _, h := range reply.GetHosts() {
				h.Seconds += passed
			}
			return reply, nil
		}
		passed += step.Seconds()
	}
}

// verdict is the refusal that says which hosts do not hold the change yet; nil
// if all do or nobody waited.
func (w *waiting) verdict(reply *culvertv1.WaitResponse, revision string) error {
	missing := notExact(reply)
	if len(missing) == 0 {
		return nil
	}
	var items []string
	for _, h := range missing {
		items = append(items, h.GetHost()+"  "+h.GetState()+", at revision "+cmp.Or(h.GetAppliedRevision(), "0"))
	}
	what := fmt.Sprintf("the change is accepted and durable, but not yet on %s", count(len(missing), "host"))
	return api.Refuse(api.CodePending, what, "it is revision "+revision, "", items...)
}

func notExact(reply *culvertv1.WaitResponse) []*culvertv1.HostWait {
	var out []*culvertv1.HostWait
	for _, h := range reply.GetHosts() {
		if h.GetState() != "exact" {
			out = append(out, h)
		}
	}
	return out
}

// slowest is the exact host that took longest; nil if there is none.
func slowest(reply *culvertv1.WaitResponse) *culvertv1.HostWait {
	var last *culvertv1.HostWait
	for _, h := range reply.GetHosts() {
		if h.GetState() == "exact" && (last == nil || h.GetSeconds() > last.GetSeconds()) {
			last = h
		}
	}
	return last
}

// summary is one line on how far the change is; empty if nobody waited or no
// host is concerned.
func summary(reply *culvertv1.WaitResponse) string {
	all := len(reply.GetHosts())
	if all == 0 {
		return ""
	}
	exact := all - len(notExact(reply))
	last := slowest(reply)
	switch {
	case last == nil:
		return fmt.Sprintf("on none of %s yet", count(all, "host"))
	case all == 1:
		return fmt.Sprintf("exact on %s in %s", last.GetHost(), took(last.GetSeconds()))
	case exact == all:
		return fmt.Sprintf("all %d hosts exact in %s (slowest %s)", all, took(last.GetSeconds()), last.GetHost())
	}
	return fmt.Sprintf("%d of %d hosts exact in %s (slowest %s)", exact, all, took(last.GetSeconds()), last.GetHost())
}

// bridgeLine is the summary for a network that was made or changed. The
// slowest host is named when it kept the others waiting.
func bridgeLine(n *culvertv1.Network, reply *culvertv1.WaitResponse) string {
	all := len(reply.GetHosts())
	if all == 0 {
		return ""
	}
	line := fmt.Sprintf("bridge %s on %d/%d hosts", n.GetStatus().GetBridge(), all-len(notExact(reply)), all)
	if last := slowest(reply); last != nil {
		line += " in " + took(last.GetSeconds())
		if last.GetSeconds() >= 1 && all > 1 {
			line += " (slowest " + last.GetHost() + ")"
		}
	}
	return line + "; tables come to a host with its first VM."
}

func printIndented(w io.Writer, line string) error {
	if line == "" {
		return nil
	}
	_, err := fmt.Fprintln(w, "  "+line)
	return err
}
