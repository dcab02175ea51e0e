package survive

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Time-outs that a freeze must outlast: the manager gives up a silent agent
// after 40 s (10 s until it asks, 30 s for the answer), an agent a silent
// manager after 15 s, and the decider's place is lost after 10 s.
const (
	pastAgent   = 42 * time.Second
	pastManager = 31 * time.Second
)

// An agent that is frozen until the manager has given it up, and thawed.
func TestFrozenAgentTouchesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	vm1, vm2 := r.pair()
	r.connected()
	before := r.pictures()
	l1, l2 := r.listen("h1"), r.listen("h2")
	there, back := r.ping("vm1", address(vm2), time.Millisecond), r.ping("vm2", address(vm1), time.Millisecond)

	r.expectNew("h1")
	r.signal(unix.SIGSTOP, "h1")
	r.hold(pastAgent)
	hosts, err := r.hostStatus()
	if err != nil {
		t.Fatal(err)
	}
	if s := hosts["h1"].GetState(); s == "connected" {
		t.Errorf("h1 is %s after a freeze of %s: the freeze outlasted nothing", s, pastAgent)
	}
	if s := hosts["h2"].GetState(); s != "connected" {
		t.Errorf("h2 is %s, want connected", s)
	}
	r.same("agent frozen", before)
	r.signal(unix.SIGCONT, "h1")
	r.connected()
	r.same("agent thawed", before)
	l1.nothing("agent frozen and thawed")
	// Its neighbour ran on, converged, with traffic and a host that left: it
	// wrote nothing either.
	l2.nothing("the other agent, for " + pastAgent.String())
	lossless(t, there, back)
}

// Agent and manager frozen together, beyond what the other agent and the store
// wait for, and thawed.
func TestFrozenManagerTouchesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	vm1, vm2 := r.pair()
	r.connected()
	before := r.pictures()
	l1, l2 := r.listen("h1"), r.listen("h2")
	there, back := r.ping("vm1", address(vm2), time.Millisecond), r.ping("vm2", address(vm1), time.Millisecond)

	r.expectNew("h2")
	r.signal(unix.SIGSTOP, "m1", "h1")
	r.hold(pastManager)
	r.same("manager and agent frozen", before)
	r.signal(unix.SIGCONT, "m1", "h1")
	r.connected()
	r.same("manager and agent thawed", before)
	l1.nothing("frozen and thawed")
	l2.nothing("its manager frozen and thawed")
	lossless(t, there, back)
}

// Three hosts at rest, with traffic: nobody writes anything for 30 seconds.
func TestConvergedFleetWritesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 3)
	vm1, vm2 := r.pair()
	r.connected()
	var ls []*listener
	for _, h := range r.hosts {
		ls = append(ls, r.listen(h))
	}
	p, q := r.ping("vm1", address(vm2), 100*time.Millisecond), r.ping("vm2", address(vm1), 100*time.Millisecond)
	r.marked()
	for _, l := range ls {
		l.fence(r)
	}
	r.hold(30 * time.Second)
	for _, l := range ls {
		l.nothing("30 s at rest")
		if n := l.marked(); n > 0 {
			t.Errorf("30 s at rest: the mark of %s was written %d times", l.host, n)
		}
	}
	lossless(t, p, q)
	// The listener hears: without this, silence would prove nothing.
	r.mustIn("h1", "bridge", "fdb", "add", "52:54:00:00:00:77", "dev", "cvx42", "dst", "172.20.2.1", "self", "static")
	r.await(2*time.Second, "the listener hears a write", func() error {
		if len(ls[0].take()) == 0 {
			return errSilent
		}
		return nil
	})
}
