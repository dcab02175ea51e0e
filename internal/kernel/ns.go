package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNS runs f in the namespace: here, if this thread is in it, which the
// threads of an agent always are; else on a thread that is moved there and
// thrown away after, since one that could not be moved back must never run
// other goroutines. The process's first thread cannot be thrown away and is
// never taken.
func inNS(ns int, f func() error) error {
	if here(ns) {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := inNS(ns, f) // elsewhere, for this thread is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// Never unlocked from here on: the thread ends with the goroutine.
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// here reports whether the calling goroutine runs in the namespace. One that
// is not bound to its thread may change threads after; all that it can change
// to are in the same namespace, the process's.
func here(ns int) bool {
	var there, own unix.Stat_t
	return unix.Fstat(ns, &there) == nil && unix.Stat("/proc/thread-self/ns/net", &own) == nil && there.Ino == own.Ino && there.Dev == own.Dev
}

// sysctl writes values under /proc/sys/net of the namespace; the kernel shows
// a thread those of its own namespace (net/sysctl_net.c).
func sysctl(ns int, values map[string]string) error {
	return inNS(ns, func() error {
		for path, v := range values {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(v), 0); err != nil {
				return fmt.Errorf("sysctl net/%s: %w", path, err)
			}
		}
		return nil
	})
}

// brNetfilterOff keeps the host's ip, ip6 and arp tables away from guests'
// frames (kernel-facts 6: on by default in each new namespace). Where
// br_netfilter is not there, neither are the files.
func brNetfilterOff(ns int) error {
	return inNS(ns, func() error {
		var all error
		for _, f := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
			err := os.WriteFile("/proc/sys/net/bridge/"+f, []byte("0"), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				all = errors.Join(all, err)
			}
		}
		return all
	})
}
