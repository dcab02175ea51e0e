package survive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/lab"
)

var errSilent = errors.New("nothing was heard")

// storeOf is where the lab's manager keeps its store.
func (r *rig) storeOf() string { return filepath.Join(r.dir("m1"), "manager", "store") }

// A manager that has lost its store, or was put back to an older copy of it,
// knows less than the agents. It deletes nothing, says so, and once it has its
// store again all is as before.
func TestPoorerManagerDeletesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	r.connected()
	// The older copy knows the hosts, and no network.
	r.signal(unix.SIGKILL, "m1")
	old := filepath.Join(r.dir("m1"), "old-store")
	if err := os.CopyFS(old, os.DirFS(r.storeOf())); err != nil {
		t.Fatal(err)
	}
	r.start("m1")
	r.connected()
	vm1, vm2 := r.pair()
	r.connected()
	before := r.pictures()
	l1, l2 := r.listen("h1"), r.listen("h2")
	there, back := r.ping("vm1", address(vm2), time.Millisecond), r.ping("vm2", address(vm1), time.Millisecond)
	good := filepath.Join(r.dir("m1"), "good-store")

	again := func(h string, n int) func() error {
		return func() error {
			if got := r.refusals(h); got < n {
				return fmt.Errorf("%s was refused %d times, want %d", h, got, n)
			}
			return nil
		}
	}
	for _, c := range []struct{ name, store string }{{"empty manager", ""}, {"older manager", old}} {
		r.signal(unix.SIGKILL, "m1")
		if err := os.Rename(r.storeOf(), good); err != nil {
			t.Fatal(err)
		}
		if c.store != "" {
			if err := os.Rename(c.store, r.storeOf()); err != nil {
				t.Fatal(err)
			}
		}
		r.start("m1")
		// Both agents ask several times, and are refused each time.
		for _, h := range r.hosts {
			r.await(30*time.Second, c.name+" refuses the agent", again(h, r.refusals(h)+3))
		}
		r.same(c.name, before)
		st, err := r.status()
		if err != nil {
			t.Fatal(err)
		}
		if n := st.GetCounters()["streams_refused_"+string(api.CodeOlderStore)]; n < 3 {
			t.Errorf("%s: counters %v", c.name, st.GetCounters())
		}
		// So is an agent that starts under it without memory: the host is
		// remembered.
		r.signal(unix.SIGKILL, "h1")
		if err := os.Remove(filepath.Join(r.dir("h1"), "agent", "journal")); err != nil {
			t.Fatal(err)
		}
		n := r.refusals("h1")
		r.start("h1")
		r.await(30*time.Second, c.name+" refuses an agent without memory", again("h1", n+2))
		r.same(c.name+", agent restarted", before)

		r.signal(unix.SIGKILL, "m1")
		if err := os.RemoveAll(r.storeOf()); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(good, r.storeOf()); err != nil {
			t.Fatal(err)
		}
		r.start("m1")
		r.connected()
		r.same(c.name+" made good", before)
		l1.nothing(c.name)
		l2.nothing(c.name)
	}
	lossless(t, there, back)
}

// A manager that gets a twentieth of the time it needs: changes come late, but
// whole, and nothing is deleted on the way.
func TestSlowManager(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	vm1, vm2 := r.pair()
	r.connected()
	l1, l2 := r.listen("h1"), r.listen("h2")
	there, back := r.ping("vm1", address(vm2), time.Millisecond), r.ping("vm2", address(vm1), time.Millisecond)
	pid := r.pid("m1")
	slow, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			_ = tell(pid, unix.SIGSTOP)
			select {
			case <-time.After(95 * time.Millisecond):
			case <-slow:
				_ = tell(pid, unix.SIGCONT)
				return
			}
			_ = tell(pid, unix.SIGCONT)
			<-time.After(5 * time.Millisecond)
		}
	}()
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			close(slow)
			<-over
		}
	}
	defer stop()
	vm3 := r.vm(lab.VMSpec{Name: "vm3", Host: "h2", Network: "blue", MAC: "52:54:00:00:00:13", Addresses: []string{"10.1.0.13"}})
	r.signal(unix.SIGKILL, "h1")
	r.start("h1")
	r.connected()
	stop()
	res := r.ping("vm1", address(vm3), 10*time.Millisecond)
	r.hold(200 * time.Millisecond)
	lossless(t, res)
	for _, l := range []*listener{l1, l2} {
		if e := l.noDeletion("slow manager"); len(e) == 0 {
			t.Errorf("%s heard nothing of vm3", l.host)
		}
	}
	lossless(t, there, back)
}
