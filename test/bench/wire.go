package main

import (
	"fmt"
	"net"
	"runtime"
	"unsafe"

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

// arrived is how many frames came to a packet socket since it was asked last,
// whether there was room in it or not (packet(7), PACKET_STATISTICS).
func arrived(sock int) (uint64, error) {
	st, err := unix.GetsockoptTpacketStats(sock, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("count frames: %w", err)
	}
	return uint64(st.Packets), nil
}

// burstSize is the most equal frames that go out by one system call.
const burstSize = 64

// burst sends the same frame many times (sendmmsg(2)).
type burst struct {
	sock  int
	frame []byte
	iov   unix.Iovec
	msgs  [burstSize]struct {
		hdr unix.Msghdr
		len uint32
		_   uint32
	}
}

func newBurst(sock int, frame []byte) *burst {
	b := &burst{sock: sock, frame: frame}
	b.iov.Base = &b.frame[0]
	b.iov.SetLen(len(frame))
	for i := range b.msgs {
		b.msgs[i].hdr.Iov = &b.iov
		b.msgs[i].hdr.Iovlen = 1
	}
	return b
}

// send sends the frame up to n times, at most burstSize, and says how often.
func (b *burst) send(n int) (int, error) {
	for {
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(b.sock), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(min(n, burstSize)), 0, 0, 0)
		switch errno {
		case 0:
			return int(sent), nil
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS:
		default:
			return 0, fmt.Errorf("send frames: %w", errno)
		}
	}
}
