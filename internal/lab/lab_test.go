package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/api"
)

var labNumber atomic.Int32

// newLab names a lab that no other test process uses, in a directory of the
// test, and fails the test if anything of it is left at the end.
func newLab(t *testing.T) *Lab {
	t.Helper()
	needRoot(t)
	l, err := New(fmt.Sprintf("t%xn%d", os.Getpid(), labNumber.Add(1)), standIn(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("LAB_TEST_ROOT", l.cfg.Root)
	t.Cleanup(func() {
		if _, err := l.Down(context.Background()); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if left := l.Leaks(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return l
}

func bare(hosts int) Topology { return Topology{Hosts: hosts, NoDaemons: true} }

func mustUp(t *testing.T, l *Lab, top Topology) UpResult {
	t.Helper()
	r, err := l.Up(t.Context(), top, true)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUpTwiceAndDownTwice(t *testing.T) {
	l := newLab(t)
	if r := mustUp(t, l, bare(2)); !r.Changed || len(r.State.Nodes) != 3 {
		t.Errorf("first up: %+v", r)
	}
	before, _ := inode(NSOfNode(l.name, "h1"))
	if r := mustUp(t, l, bare(2)); r.Changed {
		t.Errorf("second up changed something: %+v", r)
	}
	if after, _ := inode(NSOfNode(l.name, "h1")); after != before {
		t.Errorf("second up replaced h1: %s, %s", before, after)
	}
	_, err := l.Up(t.Context(), bare(3), true)
	if !errors.Is(err, api.Refuse(api.CodeExists, "", "", "")) {
		t.Errorf("up with another topology: %v", err)
	}
	if was, err := l.Down(t.Context()); !was || err != nil {
		t.Errorf("down = %t, %v", was, err)
	}
	if left := l.Leaks(); len(left) > 0 {
		t.Errorf("left behind by down: %v", left)
	}
	if was, err := l.Down(t.Context()); was || err != nil {
		t.Errorf("second down = %t, %v", was, err)
	}
}

func TestVerbsWithoutLab(t *testing.T) {
	l := newLab(t)
	missing := api.Refuse(api.CodeNotFound, "", "", "")
	if _, err := l.Status(); !errors.Is(err, missing) {
		t.Errorf("status: %v", err)
	}
	if _, err := l.Namespace("h1"); !errors.Is(err, missing) {
		t.Errorf("netns: %v", err)
	}
	if err := l.Signal(t.Context(), "h1", unix.SIGKILL); !errors.Is(err, missing) {
		t.Errorf("kill: %v", err)
	}
	mustUp(t, l, bare(1))
	if _, err := l.Namespace("h9"); !errors.Is(err, missing) {
		t.Errorf("netns of no node: %v", err)
	}
	if ns, err := l.Namespace("h1"); err != nil || ns != NSOfNode(l.name, "h1") {
		t.Errorf("netns h1 = %q, %v", ns, err)
	}
	if text, err := l.Tables(t.Context(), "h1", ""); err != nil || text != "" {
		t.Errorf("tables of an empty host = %q, %v", text, err)
	}
}

// Remains of every kind are replaced by up: a half-built lab, a lab of which
// a namespace was deleted, a name that has no namespace behind it.
func TestUpReplacesRemains(t *testing.T) {
	for _, c := range []struct {
		name string
		hurt func(t *testing.T, l *Lab)
	}{
		{"half built", func(t *testing.T, l *Lab) {
			s, err := l.load()
			if err != nil {
				t.Fatal(err)
			}
			s.Ready = false
			if err := l.save(s); err != nil {
				t.Fatal(err)
			}
		}},
		{"namespace deleted", func(t *testing.T, l *Lab) {
			if err := destroy(t.Context(), []string{NSOfNode(l.name, "h1")}); err != nil {
				t.Fatal(err)
			}
		}},
		{"name without namespace", func(t *testing.T, l *Lab) {
			if err := os.WriteFile(nsPath(NSOfVM(l.name, "web")), nil, 0o444); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(l.dir()); err != nil {
				t.Fatal(err)
			}
		}},
		{"state damaged", func(t *testing.T, l *Lab) {
			if err := os.WriteFile(l.statePath(), []byte(`{"topology":`), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			mustUp(t, l, bare(1))
			c.hurt(t, l)
			if r := mustUp(t, l, bare(1)); !r.Changed {
				t.Error("up did nothing")
			}
			if s, err := l.load(); err != nil || !l.whole(s) {
				t.Errorf("the lab is not whole: %v", err)
			}
		})
	}
}

// Two labs have equal addresses and know nothing of each other.
func TestTwoLabsSideBySide(t *testing.T) {
	a, b := newLab(t), newLab(t)
	b.cfg.Root = a.cfg.Root
	mustUp(t, a, bare(2))
	mustUp(t, b, bare(2))
	if names, err := List(a.cfg.Root); err != nil || !contains(names, a.name, b.name) {
		t.Errorf("labs: %v, %v", names, err)
	}
	far := PingOptions{Target: netip.MustParseAddr("172.20.2.1"), Count: 3, Interval: time.Millisecond}
	if r, err := Ping(t.Context(), NSOfNode(a.name, "h1"), far); err != nil || r.Received != 3 {
		t.Errorf("ping in the first lab: %+v, %v", r, err)
	}
	if _, err := a.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := Ping(t.Context(), NSOfNode(b.name, "h1"), far); err != nil || r.Received != 3 {
		t.Errorf("ping in the second lab after the first is gone: %+v, %v", r, err)
	}
}

func contains(have []string, want ...string) bool {
	s := " " + strings.Join(have, " ") + " "
	for _, w := range want {
		if !strings.Contains(s, " "+w+" ") {
			return false
		}
	}
	return true
}

// An `up` that is interrupted while the cluster is being made removes what it
// had built.
func TestInterruptedUpLeavesNothing(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("interrupted")
	done := make(chan error, 1)
	go func() {
		_, err := l.Up(ctx, Topology{Hosts: 1}, true)
		done <- err
	}()
	awaitProcess(t, l)
	cancel(stop)
	select {
	case err := <-done:
		if err == nil {
			t.Error("an interrupted up succeeded")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("an interrupted up does not end")
	}
	if left := l.remains(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// awaitProcess waits until a command runs in the lab's manager namespace.
func awaitProcess(t *testing.T, l *Lab) {
	t.Helper()
	err := poll(t.Context(), 20*time.Second, func() (bool, error) {
		i, ok := inode(NSOfNode(l.name, "m1"))
		return ok && len(processesIn([]string{i})) > 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// When `up` is killed, its guard takes down what it had built, the command
// that it was running included.
func TestKilledUpLeavesNothing(t *testing.T) {
	l := newLab(t)
	cmd := exec.Command("/proc/self/exe", "culvert", "lab", "up", l.name)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitProcess(t, l)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	err := poll(t.Context(), 20*time.Second, func() (bool, error) { return len(l.Leaks()) == 0, nil })
	if err != nil {
		t.Errorf("left behind: %v: %v", l.Leaks(), err)
	}
}

func TestLeaksNamesWhatIsLeft(t *testing.T) {
	l := newLab(t)
	mustUp(t, l, bare(1))
	left := strings.Join(l.Leaks(), "\n")
	for _, want := range []string{NSOfNode(l.name, "rt"), NSOfNode(l.name, "h1"), l.dir(), l.lockPath()} {
		if !strings.Contains(left, want) {
			t.Errorf("leaks lack %s:\n%s", want, left)
		}
	}
}

// A daemon is known by its start time too, so a process that got its number
// is never signalled.
func TestReusedProcessNumberIsNotSignalled(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	_, start, ok := procState(cmd.Process.Pid)
	if !ok {
		t.Fatal("no state of a running process")
	}
	other := Daemon{Node: "h1", PID: cmd.Process.Pid, Start: start - 1}
	if other.State() != "dead" {
		t.Errorf("a daemon with another start time is %s", other.State())
	}
	if err := other.kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	own := Daemon{Node: "h1", PID: cmd.Process.Pid, Start: start}
	if own.State() != "running" {
		t.Fatalf("the process is %s", own.State())
	}
	if err := own.signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := poll(t.Context(), 5*time.Second, func() (bool, error) { return own.State() == "stopped", nil }); err != nil {
		t.Error(err)
	}
	if err := own.kill(t.Context()); err != nil || own.State() != "dead" {
		t.Errorf("after kill: %s, %v", own.State(), err)
	}
}

// A lab that stands tells a moved VM from one that is where it was.
func TestMigrateWithoutDaemons(t *testing.T) {
	l := newLab(t)
	mustUp(t, l, bare(2))
	top := Topology{Name: l.name, Hosts: 2}
	for _, n := range top.HostNodes() {
		handBridge(t, top, n)
	}
	s, err := l.load()
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 2; i++ {
		g := testGuest(top, i)
		plug(t, g, "h1")
		s.put(VM{Name: g.VM, Tenant: "default", Network: "blue", VNI: testVNI, Host: "h1", Ready: true, MAC: g.MAC.String(), Addresses: g.Addresses, MTU: 1450, Announce: true})
	}
	if err := l.save(s); err != nil {
		t.Fatal(err)
	}
	r, err := l.Migrate(t.Context(), "vm2", "h2", MigrateOptions{Pings: 400})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Changed || r.From != "h1" || r.Pings == nil || r.Pings.Sent != 400 || r.Pings.Received+len(r.Pings.Lost) != 400 {
		t.Fatalf("migration: %+v", r)
	}
	t.Logf("prepared %s, resumed %s, lost %d", r.Prepared, r.Resumed, len(r.Pings.Lost))
	if r.Pings.LongestGap() > 200 || len(r.Pings.Lost) == 400 {
		t.Errorf("the move never healed: lost %v", r.Pings.Lost)
	}
	if again, err := l.Migrate(t.Context(), "vm2", "h2", MigrateOptions{}); err != nil || again.Changed {
		t.Errorf("migrated to where it is: %+v, %v", again, err)
	}
	if vm, err := l.VM("vm2"); err != nil || vm.Host != "h2" || vm.Moving != "" {
		t.Errorf("state after the move: %+v, %v", vm, err)
	}
	if r, err := l.RemoveVM(t.Context(), "vm2"); err != nil || !r.Changed {
		t.Errorf("remove: %+v, %v", r, err)
	}
	if r, err := l.RemoveVM(t.Context(), "vm2"); err != nil || r.Changed {
		t.Errorf("removed twice: %+v, %v", r, err)
	}
	node, err := openNS(NSOfNode(l.name, "h2"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if _, err := node.LinkByName(TapName("vm2")); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("the removed VM's device: %v", err)
	}
}
