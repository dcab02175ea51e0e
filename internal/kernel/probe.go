package kernel

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Echo request and reply (RFC 792; RFC 4443 section 4).
const (
	echo4, echoReply4 = 8, 0
	echo6, echoReply6 = 128, 129
	echoSize          = 16 // header of 8, then what tells our replies from others
)

// probePoll bounds how long a probe overlooks the end of its context.
const probePoll = 100 * time.Millisecond

// Probe sends ICMP echo requests from one address of this host to another
// host's, count of them spread evenly over the first two thirds of within, and
// reports whether one was answered. It returns at the first answer, at the
// latest after within. An error means that nothing could be asked.
//
// The socket is a raw one: ping sockets are for the groups in
// net.ipv4.ping_group_range, which are none by default, not even root's. The
// kernel of the other host answers, whatever becomes of its agent.
func (k *Kernel) Probe(ctx context.Context, from, to netip.Addr, count int, within time.Duration) (bool, error) {
	fd, err := echoSocket(k.ns, from, to)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	e := echo{fd: fd, v6: to.Is6()}
	_, _ = rand.Read(e.mark[:]) // never errs (crypto/rand)
	start := time.Now()
	gap := within * 2 / 3 / time.Duration(max(count-1, 1))
	for sent := 0; ; {
		if sent < count && time.Since(start) >= time.Duration(sent)*gap {
			e.send(sent)
			sent++
		}
		// What has come is read once more after the end: on a busy machine
		// this thread may have slept while the answer was there.
		left := within - time.Since(start)
		wait := left
		if sent < count {
			wait = min(wait, time.Duration(sent)*gap-time.Since(start))
		}
		if e.answered(min(max(wait, 0), probePoll)) {
			return true, nil
		}
		if left <= 0 && sent == count || ctx.Err() != nil {
			break
		}
	}
	if !e.asked {
		return false, fmt.Errorf("echo request to %s: %w", to, errors.Join(e.err, ctx.Err()))
	}
	return false, nil
}

// echoSocket is a raw ICMP socket of the namespace that hears of one host
// only.
func echoSocket(ns int, from, to netip.Addr) (fd int, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd = -1
	err = inNS(ns, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		return err
	})
	if err == nil && from.IsValid() {
		err = unix.Bind(fd, sockaddr(from))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(to))
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("echo socket to %s: %w", to, err)
	}
	return fd, nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// echo is one probe under way.
type echo struct {
	fd    int
	v6    bool
	mark  [8]byte
	asked bool  // a request left, or the network said that there is nobody
	err   error // why one did not
}

func (e *echo) send(seq int) {
	b := make([]byte, echoSize)
	b[0] = echo4
	if e.v6 {
		b[0] = echo6
	}
	copy(b[4:6], e.mark[:]) // identifier
	binary.BigEndian.PutUint16(b[6:], uint16(seq))
	copy(b[8:], e.mark[:])
	if !e.v6 { // the kernel makes ICMPv6's, which knows the source address
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	switch err := unix.Send(e.fd, b, 0); {
	case err == nil, errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ECONNREFUSED):
		e.asked = true
	default:
		e.err = err
	}
}

// answered waits for an answer to any of the requests, and reads all there is
// even if the time is over.
func (e *echo) answered(wait time.Duration) bool {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}, int((wait+time.Millisecond-1)/time.Millisecond))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false
	}
	buf := make([]byte, 256)
	for {
		n, _, err := unix.Recvfrom(e.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil: // what the network said of a request: nobody there
			e.asked = true
			return false
		}
		if e.mine(buf[:n]) {
			return true
		}
	}
}

// mine reports whether b is an answer to this probe. IPv4's raw sockets get
// the IP header, too (raw(7)).
func (e *echo) mine(b []byte) bool {
	reply := byte(echoReply6)
	if !e.v6 {
		reply = echoReply4
		if len(b) < 20 || len(b) < int(b[0]&15)*4 {
			return false
		}
		b = b[int(b[0]&15)*4:]
	}
	return len(b) >= echoSize && b[0] == reply && [8]byte(b[8:echoSize]) == e.mark
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
