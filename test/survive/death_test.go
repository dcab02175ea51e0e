package survive

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/lab"
)

// vtepOfHost is where the lab's underlay has a host.
func vtepOfHost(n int) string { return fmt.Sprintf("172.20.%d.1", n) }

// fail lets hosts fail at once and returns the moment just before.
func (r *rig) fail(hosts ...string) (at time.Time) {
	r.t.Helper()
	if err := r.lab.FailHosts(r.ctx, func() { at = time.Now() }, hosts...); err != nil {
		r.t.Fatalf("fail %v: %v", hosts, err)
	}
	return at
}

func (r *rig) recover(hosts ...string) {
	r.t.Helper()
	r.expectNew(hosts...)
	for _, h := range hosts {
		if _, err := r.lab.RecoverHost(r.ctx, h); err != nil {
			r.t.Fatalf("recover %s: %v", h, err)
		}
	}
}

// pointsTo lists the lines of a host's tables with that address.
func (r *rig) pointsTo(host, address string) (out []string) {
	r.t.Helper()
	for line := range strings.Lines(r.picture(host)) {
		if slices.Contains(strings.Fields(line), address) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// judged waits until every host is known to answer echo requests: before that
// its silence says nothing.
func (r *rig) judged(hosts ...string) {
	r.t.Helper()
	r.await(20*time.Second, "echoes known", func() error {
		log := r.log("m1")
		for _, h := range hosts {
			if !strings.Contains(log, "host answers echo requests\" host="+h) {
				return errors.New("none known of " + h)
			}
		}
		return nil
	})
}

// A host that fails is gone from every other host's tables, by itself and
// once; an agent that is killed takes nothing with it; many that fail at once
// are believed to be cut off, and nothing goes; who returns is back whole.
func TestDeadHostIsWithdrawn(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4)
	r.pair()
	r.vm(lab.VMSpec{Name: "vm3", Host: "h3", Network: "blue", MAC: "52:54:00:00:00:13", Addresses: []string{"10.1.0.13"}})
	r.connected()
	r.judged(r.hosts...)
	before := r.pictures()

	r.signal(unix.SIGKILL, "h3")
	r.hold(5 * time.Second)
	r.same("agent of h3 dead for 5 s", before)
	r.start("h3")
	r.connected()
	r.same("agent of h3 back", before)

	at := r.fail("h3")
	r.await(5*time.Second, "h3 withdrawn from h1 and h2", func() error {
		for _, h := range []string{"h1", "h2"} {
			if left := r.pointsTo(h, vtepOfHost(3)); len(left) > 0 {
				return fmt.Errorf("%s has %v", h, left)
			}
		}
		return nil
	})
	t.Logf("withdrawn from every table within %v of the failure", time.Since(at).Round(time.Millisecond))
	for _, h := range []string{"h1", "h2"} {
		if s := r.picture(h); strings.Contains(s, "52:54:00:00:00:13") || strings.Contains(s, "10.1.0.13") {
			t.Errorf("%s still has entries of vm3:\n%s", h, s)
		}
	}
	if s := r.must("port", "list"); !strings.Contains(s, "host dead") {
		t.Errorf("port list says\n%s\nwant vm3 shown with its host dead", s)
	}
	r.recover("h3")
	r.connected()
	r.await(10*time.Second, "tables as before", func() error {
		for h, want := range before {
			if got := r.picture(h); got != want {
				return fmt.Errorf("%s differs:\n%s", h, difference(want, got))
			}
		}
		return nil
	})
	if s := r.must("port", "list"); strings.Contains(s, "host dead") {
		t.Errorf("port list says\n%s\nafter the return of h3", s)
	}
	if n := strings.Count(r.log("m1"), "host is dead"); n != 1 {
		t.Errorf("the manager declared %d hosts dead, want one", n)
	}

	r.fail("h2", "h3", "h4")
	r.await(10*time.Second, "alarm", func() error {
		if out, _ := r.run("status"); !strings.Contains(out, "CV0222") {
			return errors.New("status says\n" + out)
		}
		return nil
	})
	r.hold(5 * time.Second)
	r.same("three of four hosts failed at once", map[string]string{"h1": before["h1"]})
	r.recover("h2", "h3", "h4")
	r.connected()
	r.same("all back", before)
	if n := strings.Count(r.log("m1"), "host is dead"); n != 1 {
		t.Errorf("after three failed at once the manager had declared %d hosts dead, want none of them", n-1)
	}
}
