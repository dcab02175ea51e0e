package netnstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Frame is one captured Ethernet frame.
type Frame struct {
	Data     []byte
	Outgoing bool // sent by the host itself, seen on its way out
}

// Port is a packet socket on a device of a namespace.
type Port struct {
	t   testing.TB
	fd  int
	dev string
}

// Match selects frames.
type Match func(Frame) bool

// OpenPort opens a packet socket on dev, which sees every frame of the device
// in both directions from here on. Its buffer holds about 20,000 small frames.
func OpenPort(t testing.TB, n *NS, dev string) *Port {
	t.Helper()
	p := &Port{t: t, fd: -1, dev: dev}
	err := n.Run(func() error {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		p.fd = fd
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: i.Index})
	})
	if p.fd >= 0 {
		t.Cleanup(func() { unix.Close(p.fd) })
	}
	if err != nil {
		t.Fatalf("open packet socket on %s: %v", dev, err)
	}
	return p
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// Send puts one frame on the wire.
func (p *Port) Send(frame []byte) {
	p.t.Helper()
	for {
		_, err := unix.Write(p.fd, frame)
		if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			p.t.Fatalf("send on %s: %v", p.dev, err)
		}
		return
	}
}

// Receive hands out the next frame that matches, waiting at most d.
func (p *Port) Receive(d time.Duration, m Match) (Frame, bool) {
	p.t.Helper()
	var found Frame
	n := p.scan(d, func(f Frame) bool {
		if m(f) {
			found = f
			return true
		}
		return false
	})
	return found, n
}

// Count counts the frames that match until quiet passes without any frame
// that matches, for at most a minute.
func (p *Port) Count(quiet time.Duration, m Match) int {
	p.t.Helper()
	n := 0
	for end := time.Now().Add(time.Minute); time.Now().Before(end); n++ {
		if _, ok := p.Receive(quiet, m); !ok {
			break
		}
	}
	return n
}

// Drain throws away what was captured so far.
func (p *Port) Drain() {
	p.t.Helper()
	p.scan(0, func(Frame) bool { return false })
}

// scan reads frames until f is satisfied (true) or d is over (false).
func (p *Port) scan(d time.Duration, f func(Frame) bool) bool {
	buf := make([]byte, 1<<17)
	for end := time.Now().Add(d); ; {
		n, from, err := unix.Recvfrom(p.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			left := time.Until(end)
			if left <= 0 {
				return false
			}
			fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, int(left/time.Millisecond)+1); err != nil && !errors.Is(err, unix.EINTR) {
				p.t.Fatalf("poll %s: %v", p.dev, err)
			}
		case errors.Is(err, unix.ENETDOWN):
			return false
		case err != nil:
			p.t.Fatalf("receive on %s: %v", p.dev, err)
		default:
			fr := Frame{Data: append([]byte(nil), buf[:n]...)}
			if sa, ok := from.(*unix.SockaddrLinklayer); ok {
				fr.Outgoing = sa.Pkttype == unix.PACKET_OUTGOING
			}
			if f(fr) {
				return true
			}
		}
	}
}

// All matches a frame that all of ms match.
func All(ms ...Match) Match {
	return func(f Frame) bool {
		for _, m := range ms {
			if !m(f) {
				return false
			}
		}
		return true
	}
}

// In matches frames that came in, not the device's own.
func In(f Frame) bool { return !f.Outgoing }

// EtherType matches the type of an untagged frame.
func EtherType(et uint16) Match {
	return func(f Frame) bool { return len(f.Data) >= 14 && binary.BigEndian.Uint16(f.Data[12:]) == et }
}

// To matches the destination address.
func To(mac [6]byte) Match {
	return func(f Frame) bool { return len(f.Data) >= 14 && [6]byte(f.Data[:6]) == mac }
}

// From matches the source address.
func From(mac [6]byte) Match {
	return func(f Frame) bool { return len(f.Data) >= 14 && [6]byte(f.Data[6:12]) == mac }
}

// Ethernet makes a frame of at least 60 bytes.
func Ethernet(dst, src [6]byte, et uint16, payload []byte) []byte {
	b := make([]byte, 0, 60)
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	b = binary.BigEndian.AppendUint16(b, et)
	b = append(b, payload...)
	for len(b) < 60 {
		b = append(b, 0)
	}
	return b
}

// String is a frame in short, for failures.
func (f Frame) String() string {
	if len(f.Data) < 14 {
		return fmt.Sprintf("runt of %d bytes", len(f.Data))
	}
	return fmt.Sprintf("%x > %x type %x, %d bytes", f.Data[6:12], f.Data[:6], f.Data[12:14], len(f.Data))
}
