package kernel

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// answerTimeout bounds the wait for an answer. The kernel answers within the
// send, so that only a lost answer (a full buffer) is ever waited for.
const answerTimeout = 2 * time.Second

// rcvBuf holds the answers of the largest batch: 128 answers to single reads
// of at most 4 KiB accounted.
const rcvBuf = 4 << 20

// sock is one netlink socket for requests. A socket on which an answer was
// lost is closed and opened anew before the next request, because what is
// still in it would be taken for the answer of another.
type sock struct {
	ns, proto int

	mu  sync.Mutex // guards all below; held for a whole request with its answers
	fd  int        // -1 when closed
	seq uint32
	buf []byte
	pid uint32 // port id, the "writer" in events
	off bool   // closed for good
}

func newSock(ns, proto int) *sock {
	return &sock{ns: ns, proto: proto, fd: -1, buf: make([]byte, 256<<10)}
}

// open makes the socket if there is none. Callers hold mu.
func (s *sock) open() error {
	if s.off {
		return fmt.Errorf("netlink socket: %w", unix.EBADF)
	}
	if s.fd >= 0 {
		return nil
	}
	return inNS(s.ns, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, s.proto)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		if err := s.setup(fd); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		s.fd = fd
		return nil
	})
}

func (s *sock) setup(fd int) error {
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("netlink port id: %w", err)
	}
	if nl, ok := sa.(*unix.SockaddrNetlink); ok {
		s.pid = nl.Pid
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvBuf); err != nil {
		return fmt.Errorf("netlink receive buffer: %w", err)
	}
	tv := unix.NsecToTimeval(int64(answerTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("netlink receive timeout: %w", err)
	}
	// Strict checking makes dump filters count (kernel-facts 3); the others
	// keep answers small and bring the kernel's words.
	opts := []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK}
	if s.proto == unix.NETLINK_ROUTE {
		opts = append(opts, unix.NETLINK_GET_STRICT_CHK)
	}
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, o, 1); err != nil {
			return fmt.Errorf("netlink option %d: %w", o, err)
		}
	}
	return nil
}

func (s *sock) reset() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

func (s *sock) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset()
	s.off = true
}

// portID is the socket's address in events; 0 before the first request.
func (s *sock) portID() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid
}

// answer is one message from the kernel.
type answer struct {
	typ, flags uint16
	seq        uint32
	pid        uint32 // of events: who wrote
	body       []byte // valid until the next answer
}

// send sends b whole. Callers hold mu.
func (s *sock) send(b []byte) error {
	for {
		err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive hands answers to f until f is done. Any error of the socket itself
// leaves it unusable; the caller resets it.
func (s *sock) receive(f func(answer) (done bool, err error)) error {
	for {
		n, err := unix.Read(s.fd, s.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			return errNoAnswer
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case n == len(s.buf):
			return errTruncated // the kernel's largest is 32 KiB (netlink_dump)
		}
		done, err := eachMessage(s.buf[:n], f)
		if done || err != nil {
			return err
		}
	}
}

// eachMessage walks one datagram.
func eachMessage(b []byte, f func(answer) (bool, error)) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(native.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return false, errTruncated
		}
		a := answer{typ: native.Uint16(b[4:]), flags: native.Uint16(b[6:]), seq: native.Uint32(b[8:]), pid: native.Uint32(b[12:]), body: b[unix.NLMSG_HDRLEN:n]}
		if d, err := f(a); err != nil {
			return false, err
		} else if d {
			done = true
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return done, nil
}

// code is the error of an NLMSG_ERROR or NLMSG_DONE message, nil if 0.
func (a answer) code() error {
	if len(a.body) < 4 {
		return nil // NLMSG_DONE may come bare
	}
	no := int32(native.Uint32(a.body))
	if no == 0 {
		return nil
	}
	e := &errno{no: unix.Errno(-no)}
	const nlmsgFlagTLVs = 0x200 // NLM_F_ACK_TLVS: attributes follow
	at := 4 + unix.NLMSG_HDRLEN
	if a.typ == unix.NLMSG_DONE {
		at = 4
	}
	if a.flags&nlmsgFlagTLVs != 0 && len(a.body) >= at {
		const attrMsg = 1 // NLMSGERR_ATTR_MSG
		_ = eachAttr(a.body[at:], func(typ uint16, d []byte) {
			if typ == attrMsg {
				e.text = str0(d)
			}
		})
	}
	return e
}

// one sends a request and waits for its acknowledgement; each, if not nil,
// gets the messages that come before it. body builds what follows the header.
func (s *sock) one(typ, flags uint16, each func(answer), body func(*batch)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	s.seq++
	var m batch
	m.begin(typ, flags|unix.NLM_F_ACK, s.seq)
	body(&m)
	m.end()
	if err := s.send(m.b); err != nil {
		s.reset()
		return fmt.Errorf("send: %w", err)
	}
	var result error
	err := s.receive(func(a answer) (bool, error) {
		switch {
		case a.seq != s.seq:
			return false, nil
		case a.typ == unix.NLMSG_ERROR:
			result = a.code()
			return true, nil
		case each != nil:
			each(a)
		}
		return false, nil
	})
	if err != nil {
		s.reset()
		return err
	}
	return result
}

// dump sends a dump request and hands each message to each. A dump that was
// interrupted is an error after it has been read to its end.
func (s *sock) dump(typ uint16, each func(answer) error, body func(*batch)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	s.seq++
	var m batch
	m.begin(typ, unix.NLM_F_DUMP, s.seq)
	body(&m)
	m.end()
	if err := s.send(m.b); err != nil {
		s.reset()
		return fmt.Errorf("send: %w", err)
	}
	var result error
	interrupted := false
	err := s.receive(func(a answer) (bool, error) {
		if a.seq != s.seq {
			return false, nil
		}
		interrupted = interrupted || a.flags&unix.NLM_F_DUMP_INTR != 0
		switch a.typ {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			if err := a.code(); err != nil && result == nil {
				result = err
			}
			return true, nil
		}
		if result == nil {
			result = each(a)
		}
		return false, nil
	})
	if err != nil {
		s.reset()
		return err
	}
	if interrupted {
		return errInterrupted
	}
	return result
}
