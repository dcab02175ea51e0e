package gateway

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces (ip-netns(8)), so that `ip
// netns exec` works with a gateway's.
const netnsDir = "/run/netns"

// room is a network namespace with a netlink handle in it.
type room struct {
	*netlink.Handle
	fd    int
	owned bool
}

func (r *room) close() {
	r.Handle.Close()
	if r.owned {
		unix.Close(r.fd)
	}
}

func ownNS() (int, error) {
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("own network namespace: %w", err)
	}
	return fd, nil
}

func hostRoom(fd int) (*room, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &room{Handle: h, fd: fd}, nil
}

// ensureRoom opens the namespace of that name, made if there is none.
func ensureRoom(name string) (*room, error) {
	path := filepath.Join(netnsDir, name)
	if !isRoom(path) {
		if err := makeRoom(path); err != nil {
			return nil, fmt.Errorf("make namespace %s: %w", name, err)
		}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("netlink in %s: %w", name, err)
	}
	return &room{Handle: h, fd: fd, owned: true}, nil
}

// isRoom reports whether a namespace is mounted there; a file without one was
// left by somebody who died between the two steps of making it.
func isRoom(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

func makeRoom(path string) error {
	if err := shareDir(); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
	})
}

// shareDir makes /run/netns what ip-netns(8) makes it: a shared mount, so that
// a namespace that is removed here is gone in every mount namespace. The lock
// on the folder is the one that iproute2 takes.
func shareDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	d, err := os.Open(netnsDir)
	if err != nil {
		return err
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

// removeRoom removes a namespace and its devices. The devices go first: that is
// done when it returns, where the end of a namespace is only begun.
func removeRoom(name string) error {
	path := filepath.Join(netnsDir, name)
	if isRoom(path) {
		r, err := ensureRoom(name)
		if err != nil {
			return err
		}
		err = r.deleteLinks()
		r.close()
		if err := errors.Join(err, unix.Unmount(path, unix.MNT_DETACH)); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (r *room) deleteLinks() error {
	links, err := r.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var all error
	for _, l := range links {
		if l.Attrs().Name == "lo" {
			continue
		}
		if err := r.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			all = errors.Join(all, fmt.Errorf("delete device %s: %w", l.Attrs().Name, err))
		}
	}
	return all
}

// roomNames are the namespaces whose names begin so.
func roomNames(prefix string) (names []string, err error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// onThread runs f on a thread that ends with it. The process's first thread
// cannot be ended and is never taken.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onThread(f) // elsewhere, for this thread is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}

// in runs f in the namespace. Sockets that f opens stay there.
func (r *room) in(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(r.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// sysctls writes values under /proc/sys/net of the namespace that are not there
// yet, in order.
func (r *room) sysctls(kv ...string) error {
	return r.in(func() error {
		for i := 0; i < len(kv); i += 2 {
			path := filepath.Join("/proc/sys/net", kv[i])
			if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == kv[i+1] {
				continue
			}
			if err := os.WriteFile(path, []byte(kv[i+1]), 0); err != nil {
				return fmt.Errorf("sysctl net/%s: %w", kv[i], err)
			}
		}
		return nil
	})
}
