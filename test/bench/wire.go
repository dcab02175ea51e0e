package main

import (
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// inside runs f on a thread of the namespace behind a file descriptor. The
// thread ends with it: it is never given back.
func inside(ns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the process's first thread cannot end
			done <- inside(ns, f)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// packetSocket opens a packet socket on a device of a namespace. protocol is
// what it hears, an EtherType; 0 hears nothing and only sends.
func packetSocket(ns int, device string, protocol uint16) (fd int, err error) {
	fd = -1
	err = inside(ns, func() error {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: i.Index})
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("packet socket on %s: %w", device, err)
	}
	return fd, nil
}
