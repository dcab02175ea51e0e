package kernel

import (
	"errors"
	"fmt"

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
type sentinel struct{ fd int }

// watchDeletions begins to listen.
func (k *Kernel) watchDeletions() (*sentinel, error) {
	s := &sentinel{fd: -1}
	err := inNS(k.ns, func() (err error) {
		s.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	err = unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(deletionsOnly)), Filter: &deletionsOnly[0]})
	}
	if err == nil {
		err = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NEIGH)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to deletions: %w", err), s.close())
	}
	return s, nil
}

// deletionsOnly passes RTM_DELNEIGH; compare noMisses.
var deletionsOnly = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}, // nlmsg_type
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: networkOrder(unix.RTM_DELNEIGH)},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// disturbed says whether an entry of these devices was deleted since.
// Deletions that overflowed the socket count.
func (s *sentinel) disturbed(d devices) (bool, error) {
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(s.fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case errors.Is(err, unix.ENOBUFS):
			return true, nil
		case err != nil:
			return false, fmt.Errorf("receive deletions: %w", err)
		}
		hit := false
		_, err = eachMessage(buf[:n], func(a answer) (bool, error) {
			e, err := parseNeigh(a.body)
			hit = hit || err == nil && (d.vxlan != 0 && e.ifindex == d.vxlan || d.bridge != 0 && e.master == d.bridge)
			return false, err
		})
		if hit || err != nil {
			return true, nil
		}
	}
}

func (s *sentinel) close() error { return unix.Close(s.fd) }
