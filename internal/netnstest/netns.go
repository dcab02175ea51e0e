// Package netnstest gives tests private network namespaces, veth pairs between
// them, and packet sockets on their devices.
//
// Namespaces are anonymous: a file descriptor is all that holds one, so that
// a killed test leaves nothing behind. Names under /run/netns would leak.
// Threads that entered a namespace are thrown away, never given back.
package netnstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace of one test, gone when the test ends.
type NS struct {
	// Handle is the namespace's file descriptor, open until the test ends.
	Handle netns.NsHandle

	t     testing.TB
	inode string // "net:[4026532345]"
}

// RequireRoot fails the test if it may not make namespaces. With
// CULVERT_NOROOT=1 in the environment it skips instead, by the test's name,
// after a probe has shown that the kernel really refuses.
func RequireRoot(t testing.TB) {
	t.Helper()
	err := inThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	switch {
	case err == nil:
	case os.Getenv("CULVERT_NOROOT") == "1":
		t.Skipf("%s needs root (unshare: %v) and CULVERT_NOROOT=1 allows to go without", t.Name(), err)
	default:
		t.Fatalf("unshare network namespace: %v: run this test as root, or set CULVERT_NOROOT=1 to skip it", err)
	}
}

// New makes a namespace with lo up. The test fails at its end if anything
// still lives in the namespace.
func New(t testing.TB) *NS {
	t.Helper()
	RequireRoot(t)
	n := &NS{Handle: -1, t: t}
	err := inThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		h, err := netns.Get()
		n.Handle = h
		return err
	})
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	if n.inode, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", int(n.Handle))); err != nil {
		t.Fatalf("read namespace's identity: %v", err)
	}
	t.Cleanup(n.close)
	n.Up("lo")
	return n
}

// close lets go of the namespace and reports what still holds it.
func (n *NS) close() {
	if err := n.Handle.Close(); err != nil {
		n.t.Errorf("close namespace: %v", err)
	}
	var left []string
	for end := time.Now().Add(5 * time.Second); ; {
		if left = holders(n.inode); len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
		wait(10 * time.Millisecond)
	}
	n.t.Errorf("namespace %s still held by %s", n.inode, strings.Join(left, ", "))
}

// holders lists processes in the namespace, threads of this one, and file
// descriptors of this one that refer to it. Threads of other processes are
// where their process is: it was started there, by Exec.
func holders(inode string) []string {
	var found, paths []string
	var err error
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		p, errGlob := filepath.Glob(pattern)
		paths, err = append(paths, p...), errors.Join(err, errGlob)
	}
	if err != nil {
		return []string{err.Error()}
	}
	for _, p := range paths {
		if l, err := os.Readlink(p); err == nil && l == inode {
			found = append(found, p)
		}
	}
	return found
}

// wait lets d pass without a timer that outlives it.
func wait(d time.Duration) { <-time.After(d) }

// inThread runs f on an operating system thread of its own that ends with it.
// The process's first thread cannot be ended and would stay where f left it, so
// it is never taken.
func inThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := inThread(f) // elsewhere, for this thread is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}

// Run calls f on a thread that is in the namespace. f must not call
// t.FailNow; its error comes back.
func (n *NS) Run(f func() error) error {
	return inThread(func() error {
		if err := unix.Setns(int(n.Handle), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// Exec runs a program in the namespace for at most a minute and returns what
// it printed. Anything but exit code 0 fails the test.
func (n *NS) Exec(name string, args ...string) string {
	n.t.Helper()
	out, err := n.TryExec(name, args...)
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// TryExec is Exec that hands the error out.
func (n *NS) TryExec(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	err := n.Run(func() error {
		// A child is forked from this thread and so is in its namespace.
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd.Run()
	})
	return out.String(), err
}

// Sysctl writes one value under /proc/sys of the namespace.
func (n *NS) Sysctl(path, value string) {
	n.t.Helper()
	err := n.Run(func() error { return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0) })
	if err != nil {
		n.t.Fatalf("sysctl %s=%s: %v", path, value, err)
	}
}

// Links is a netlink handle in the namespace, closed when the test ends.
func (n *NS) Links() *netlink.Handle {
	n.t.Helper()
	h, err := netlink.NewHandleAt(n.Handle, unix.NETLINK_ROUTE)
	if err != nil {
		n.t.Fatalf("open netlink in namespace: %v", err)
	}
	n.t.Cleanup(h.Close)
	return h
}

// Up sets a link up.
func (n *NS) Up(dev string) {
	n.t.Helper()
	n.link(dev, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetUp(l) })
}

// Down sets a link down.
func (n *NS) Down(dev string) {
	n.t.Helper()
	n.link(dev, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetDown(l) })
}

// Addr gives a link an address in CIDR form, usable at once (no DAD).
func (n *NS) Addr(dev, cidr string) {
	n.t.Helper()
	n.link(dev, func(h *netlink.Handle, l netlink.Link) error {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		return h.AddrReplace(l, a)
	})
}

// Index is a link's ifindex; the test fails if there is none of that name.
func (n *NS) Index(dev string) int {
	n.t.Helper()
	var i int
	n.link(dev, func(_ *netlink.Handle, l netlink.Link) error { i = l.Attrs().Index; return nil })
	return i
}

func (n *NS) link(dev string, f func(*netlink.Handle, netlink.Link) error) {
	n.t.Helper()
	h, err := netlink.NewHandleAt(n.Handle, unix.NETLINK_ROUTE)
	if err != nil {
		n.t.Fatalf("open netlink in namespace: %v", err)
	}
	defer h.Close()
	l, err := h.LinkByName(dev)
	if err == nil {
		err = f(h, l)
	}
	if err != nil {
		n.t.Fatalf("link %s: %v", dev, err)
	}
}

// Veth makes a pair, aDev in a and bDev in b, both up. Names are at most 15
// bytes. A zero MAC is left to the kernel.
func Veth(a *NS, aDev string, b *NS, bDev string) {
	a.t.Helper()
	h, err := netlink.NewHandleAt(a.Handle, unix.NETLINK_ROUTE)
	if err != nil {
		a.t.Fatalf("open netlink in namespace: %v", err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aDev
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bDev, PeerNamespace: netlink.NsFd(int(b.Handle))}); err != nil {
		a.t.Fatalf("make veth %s-%s: %v", aDev, bDev, err)
	}
	a.Up(aDev)
	b.Up(bDev)
}
