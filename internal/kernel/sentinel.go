package kernel

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// sentinel notices deletions during a dump. The kernel dumps FDB and neighbour
// tables by position and in pieces; an entry deleted between two pieces shifts
// the rest, so that one entry that never went is left out, and no
// NLM_F_DUMP_INTR says so (measured: TestReadIsWholeOrNothing). Entries added
// meanwhile at worst come twice.
//
// What it cannot notice is that the neighbour hash, which all namespaces
// share, grows during the dump; the cost is an entry that is written again as
// it stands.
//
// The socket is kept, its membership is not: a listener halves the rate of
// writes in the namespace (kernel-facts 3).
type sentinel struct {
	ns int

	mu sync.Mutex // guards fd, and is held during a dump: one at a time
	fd int        // -1 when closed
}

// during runs dump and adds errInterrupted to its error if an entry of these
// devices was deleted meanwhile.
func (s *sentinel) during(d devices, dump func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NEIGH); err != nil {
		return errors.Join(fmt.Errorf("listen to deletions: %w", err), s.drop())
	}
	err := dump()
	errLeave := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_DROP_MEMBERSHIP, unix.RTNLGRP_NEIGH)
	disturbed, errRead := s.disturbed(d)
	if err := errors.Join(errLeave, errRead); err != nil {
		return errors.Join(err, s.drop())
	}
	if disturbed {
		return errors.Join(errInterrupted, err)
	}
	return err
}

// open makes the socket if there is none. Callers hold mu.
func (s *sentinel) open() error {
	if s.fd >= 0 {
		return nil
	}
	return inNS(s.ns, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == nil {
			err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
				&unix.SockFprog{Len: uint16(len(deletionsOnly)), Filter: &deletionsOnly[0]})
		}
		if err != nil {
			return errors.Join(fmt.Errorf("socket for deletions: %w", err), unix.Close(fd))
		}
		s.fd = fd
		return nil
	})
}

// drop closes the socket. Callers hold mu.
func (s *sentinel) drop() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}

func (s *sentinel) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop()
}

// deletionsOnly passes RTM_DELNEIGH; compare noMisses.
var deletionsOnly = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}, // nlmsg_type
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: networkOrder(unix.RTM_DELNEIGH)},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// disturbed reads what was heard, all of it, and says whether an entry of
// these devices was deleted. Deletions that overflowed the socket count.
func (s *sentinel) disturbed(d devices) (hit bool, err error) {
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(s.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return hit, nil
		case errors.Is(err, unix.ENOBUFS):
			hit = true
			continue
		case err != nil:
			return false, fmt.Errorf("receive deletions: %w", err)
		}
		_, err = eachMessage(buf[:n], func(a answer) (bool, error) {
			e, err := parseNeigh(a.body)
			hit = hit || err == nil && (d.vxlan != 0 && e.ifindex == d.vxlan || d.bridge != 0 && e.master == d.bridge)
			return false, err
		})
		hit = hit || err != nil
	}
}
