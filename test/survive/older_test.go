package survive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/lab"
)

// Two faults at once: the manager's store is lost, or an older copy of it is
// put back, and no agent has a journal by which to tell. The kernels remember:
// nothing is deleted, and once the store is there again all is as before.
func TestOlderStoreAndLostJournals(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	r.connected()
	r.judged(r.hosts...) // now: a manager that is killed between writing an echo down and saying so never says it
	copies := map[string]string{"empty store": "", "store before the first network": filepath.Join(r.dir("m1"), "first"), "store before a machine": filepath.Join(r.dir("m1"), "second")}
	keep := func(name string) {
		t.Helper()
		r.signal(unix.SIGKILL, "m1")
		if err := os.CopyFS(copies[name], os.DirFS(r.storeOf())); err != nil {
			t.Fatal(err)
		}
		r.start("m1")
		r.connected()
	}
	keep("store before the first network")
	vm1, vm2 := r.pair()
	keep("store before a machine")
	vm3 := r.vm(lab.VMSpec{Name: "vm3", Host: "h2", Network: "blue", MAC: "52:54:00:00:00:13", Addresses: []string{"10.1.0.13"}})
	for i := range 10 { // a few revisions, so that the copy does not catch up by being started
		r.must("network", "create", fmt.Sprintf("later%d", i))
	}
	r.connected()
	r.marked()
	before := r.pictures()
	l1, l2 := r.listen("h1"), r.listen("h2")
	pings := []*pinging{
		r.ping("vm1", address(vm2), time.Millisecond), r.ping("vm2", address(vm1), time.Millisecond), r.ping("vm1", address(vm3), time.Millisecond),
	}
	good := filepath.Join(r.dir("m1"), "good-store")
	for _, name := range []string{"empty store", "store before the first network", "store before a machine"} {
		r.signal(unix.SIGKILL, "m1", "h1", "h2")
		if err := os.Rename(r.storeOf(), good); err != nil {
			t.Fatal(err)
		}
		if copies[name] != "" {
			if err := os.Rename(copies[name], r.storeOf()); err != nil {
				t.Fatal(err)
			}
		}
		refused := map[string]int{}
		for _, h := range r.hosts {
			refused[h] = r.refusals(h)
			if err := os.Remove(filepath.Join(r.dir(h), "agent", "journal")); err != nil {
				t.Fatal(err)
			}
		}
		r.start("m1", "h1", "h2")
		for _, h := range r.hosts {
			r.await(30*time.Second, name+": the agent without memory is refused", func() error {
				if got := r.refusals(h); got < refused[h]+3 {
					return fmt.Errorf("%s was refused %d times, want %d", h, got, refused[h]+3)
				}
				return nil
			})
		}
		r.same(name, before)
		r.signal(unix.SIGKILL, "m1")
		if err := os.RemoveAll(r.storeOf()); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(good, r.storeOf()); err != nil {
			t.Fatal(err)
		}
		r.start("m1")
		r.connected()
		r.same(name+" made good", before)
		l1.nothing(name)
		l2.nothing(name)
	}
	lossless(t, pings...)
}

// refusals is how often an agent has logged that the manager knows less than
// its host.
func (r *rig) refusals(h string) int {
	return strings.Count(r.log(h), "code="+string(api.CodeOlderStore))
}

// marked waits until the fleet is at rest: the manager has written down of each
// host that it answers echo requests, which it asks of every new host, and each
// kernel is marked with the fleet's newest revision.
func (r *rig) marked() {
	r.t.Helper()
	r.judged(r.hosts...)
	r.await(20*time.Second, "all kernels marked", func() error {
		st, err := r.status()
		if err != nil {
			return err
		}
		for _, h := range r.hosts {
			s, err := r.tables(h)
			if err != nil {
				return err
			}
			var marks []string
			for k := range s.Rows {
				if k.Table == hoststate.TableMark {
					marks = append(marks, hoststate.Row{Key: k}.String())
				}
			}
			if want := "mark " + st.GetRevision(); len(marks) != 1 || marks[0] != want {
				return fmt.Errorf("%s has %q, want %q", h, marks, want)
			}
		}
		return nil
	})
}
