package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces (ip-netns(8)), so that
// `ip netns exec` works with a lab's.
const netnsDir = "/run/netns"

func nsPath(name string) string { return filepath.Join(netnsDir, name) }

// InNS runs f on a thread that is in the named namespace. Sockets that f opens
// and processes that it starts stay there; f must not start goroutines that
// need the namespace. The error is f's own, or says that the namespace could
// not be entered (fs.ErrNotExist if there is none of that name).
func InNS(name string, f func() error) error {
	fd, err := unix.Open(nsPath(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	defer unix.Close(fd)
	return onThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", name, err)
		}
		return f()
	})
}

// onThread runs f on a locked thread and puts the thread back into the
// namespace it came from. A thread that cannot go back is thrown away with its
// goroutine: it would carry foreign work into the wrong namespace.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("own namespace: %w", err)
			return
		}
		defer unix.Close(own)
		err = f()
		if unix.Setns(own, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// prepareNetnsDir makes /run/netns what ip-netns(8) makes it: a shared mount,
// so that a namespace deleted here is gone in every mount namespace. The lock
// on the directory is the one that iproute2 takes.
func prepareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("namespace directory: %w", err)
	}
	d, err := os.Open(netnsDir)
	if err != nil {
		return fmt.Errorf("namespace directory: %w", err)
	}
	defer d.Close()
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsDir, err)
	}
	return nil
}

// makeNS makes a named namespace with loopback up. A name that is taken is
// fs.ErrExist.
func makeNS(name string) error {
	f, err := os.OpenFile(nsPath(name), os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", nsPath(name), "none", unix.MS_BIND, "")
	})
	if err != nil {
		os.Remove(nsPath(name))
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	r, err := openNS(name)
	if err != nil {
		return err
	}
	defer r.Close()
	lo, err := r.LinkByName("lo")
	if err == nil {
		err = r.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("loopback of %s: %w", name, err)
	}
	return nil
}

// room is a namespace with a netlink handle in it.
type room struct {
	*netlink.Handle
	name string
	fd   int
}

func openNS(name string) (*room, error) {
	fd, err := unix.Open(nsPath(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink in %s: %w", name, err)
	}
	return &room{Handle: h, name: name, fd: fd}, nil
}

func (r *room) Close() {
	r.Handle.Close()
	unix.Close(r.fd)
}

// sysctl writes values under /proc/sys/net of the namespace; keys use dots,
// device names with dots are not ours.
func (r *room) sysctl(kv ...string) error {
	return InNS(r.name, func() error {
		for i := 0; i < len(kv); i += 2 {
			path := "/proc/sys/net/" + strings.ReplaceAll(kv[i], ".", "/")
			if err := os.WriteFile(path, []byte(kv[i+1]), 0); err != nil {
				return fmt.Errorf("sysctl in %s: %w", r.name, err)
			}
		}
		return nil
	})
}

// namespaces lists the names under /run/netns that are the lab's, sorted.
func namespaces(lab string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if l, ok := labOfNS(e.Name()); ok && l == lab {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// inode is the identity of a named namespace, as /proc/PID/ns/net shows it.
// A name without a mounted namespace (a crash between the two steps of making
// it) has none: ok is false.
func inode(name string) (link string, ok bool) {
	var st unix.Statfs_t
	if unix.Statfs(nsPath(name), &st) != nil || st.Type != unix.NSFS_MAGIC {
		return "", false
	}
	var s unix.Stat_t
	if unix.Stat(nsPath(name), &s) != nil {
		return "", false
	}
	return fmt.Sprintf("net:[%d]", s.Ino), true
}

// processesIn lists the processes whose main thread is in one of the
// namespaces, given by inode, without this one.
func processesIn(inodes []string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if l, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err == nil && slices.Contains(inodes, l) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// destroy kills what runs in the namespaces, deletes their devices and then
// their names. When it returns nil nothing of them is left: devices are
// deleted by group first, because deleting a namespace only begins the work
// and 200 pairs take seconds more (kernel-facts 5).
func destroy(ctx context.Context, names []string) error {
	var inodes []string
	for _, n := range names {
		if i, ok := inode(n); ok {
			inodes = append(inodes, i)
		}
	}
	err := poll(ctx, 10*time.Second, func() (bool, error) {
		pids := processesIn(inodes)
		for _, p := range pids {
			if err := unix.Kill(p, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return false, fmt.Errorf("kill process %d: %w", p, err)
			}
		}
		return len(pids) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("end processes: %w", err)
	}
	var errs []error
	for _, n := range names {
		if _, ok := inode(n); ok {
			if err := deleteDevices(n); err != nil {
				errs = append(errs, err)
			}
			if err := unix.Unmount(nsPath(n), unix.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmount namespace %s: %w", n, err))
			}
		}
		if err := os.Remove(nsPath(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove namespace %s: %w", n, err))
		}
	}
	return errors.Join(errs...)
}

// doomed is the device group that deleteDevices collects devices in.
const doomed = 0x63766c62

// deleteDevices deletes every device of a namespace but loopback and returns
// when they are gone: RTM_DELLINK with IFLA_GROUP is one transaction.
func deleteDevices(name string) error {
	r, err := openNS(name)
	if err != nil {
		return err
	}
	defer r.Close()
	links, err := r.LinkList()
	if err != nil {
		return fmt.Errorf("list devices of %s: %w", name, err)
	}
	some := false
	for _, l := range links {
		if l.Attrs().Name == "lo" {
			continue
		}
		err := r.LinkSetGroup(l, doomed)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return fmt.Errorf("group of %s in %s: %w", l.Attrs().Name, name, err)
		}
		some = true
	}
	if !some {
		return nil
	}
	err = InNS(name, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomed)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete devices of %s: %w", name, err)
	}
	return nil
}

// errTimeout is the end of a wait whose state never came.
var errTimeout = errors.New("state not reached in time")

// poll asks done every few milliseconds until it says yes or fails, the
// context ends (its cause is returned) or the time is over (errTimeout).
func poll(ctx context.Context, limit time.Duration, done func() (bool, error)) error {
	return pollEvery(ctx, 20*time.Millisecond, limit, done)
}

// pollEvery is poll with a longest pause between two questions, for waits
// whose length is itself shown.
func pollEvery(ctx context.Context, longest, limit time.Duration, done func() (bool, error)) error {
	end := time.NewTimer(limit)
	defer end.Stop()
	wait := time.Millisecond
	tick := time.NewTimer(wait)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		wait = min(wait*2, longest)
		tick.Reset(wait)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-end.C:
			return fmt.Errorf("%w (%s)", errTimeout, limit)
		case <-tick.C:
		}
	}
}
