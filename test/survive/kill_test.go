package survive

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Daemons are killed on any host, alone and together, also while they start,
// and come back, also without the agent's memory: under 1,000 pings a second
// each way nothing is lost, no device is another, and nothing is written.
func TestKilledDaemonsTouchNothing(t *testing.T) {
	r := newRig(t, 2)
	vm1, vm2 := r.pair()
	r.connected()
	before := r.pictures()
	l1, l2 := r.listen("h1"), r.listen("h2")
	there, back := r.ping("vm1", address(vm2), time.Millisecond), r.ping("vm2", address(vm1), time.Millisecond)
	check := func(when string) {
		t.Helper()
		r.connected()
		r.same(when, before)
		l1.nothing(when)
		l2.nothing(when)
	}

	for _, c := range []struct {
		name  string
		nodes []string
		lost  []string // whose journal is deleted
	}{
		{"agent of h1", []string{"h1"}, nil},
		{"agent of h2", []string{"h2"}, nil},
		{"manager", []string{"m1"}, nil},
		{"agent and manager", []string{"h1", "m1"}, nil},
		{"both agents", []string{"h1", "h2"}, nil},
		{"all", []string{"h1", "h2", "m1"}, nil},
		{"agent with its journal lost", []string{"h1"}, []string{"h1"}},
		{"all with all journals lost", []string{"m1", "h1", "h2"}, []string{"h1", "h2"}},
	} {
		r.signal(unix.SIGKILL, c.nodes...)
		for _, h := range c.lost {
			if err := os.Remove(filepath.Join(r.dir(h), "agent", "journal")); err != nil {
				t.Fatalf("journal of %s: %v", h, err)
			}
		}
		r.same(c.name+" dead", before)
		r.start(c.nodes...)
		check(c.name + " back")
	}

	// While it starts: at 16 moments of its first 160 ms.
	for i := range 16 {
		node := []string{"h1", "m1", "h2"}[i%3]
		r.signal(unix.SIGKILL, node)
		r.start(node)
		r.hold(time.Duration(i) * 10 * time.Millisecond)
	}
	r.signal(unix.SIGKILL, "h1", "h2", "m1")
	r.start("h1", "h2", "m1")
	check("killed while starting")

	// An agent with no manager and no journal knows nothing, and does nothing.
	r.signal(unix.SIGKILL, "m1", "h1")
	if err := os.Remove(filepath.Join(r.dir("h1"), "agent", "journal")); err != nil {
		t.Fatal(err)
	}
	r.start("h1")
	r.hold(2 * time.Second)
	r.same("agent alone, without memory", before)
	l1.nothing("agent alone, without memory")
	r.start("m1")
	check("manager back after all")

	lossless(t, there, back)
}
