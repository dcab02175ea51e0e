package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// prober asks routers outside whether they are there, in a form that changes
// nobody's cache and needs no address: RFC 5227's probe, and the solicitation
// of duplicate address detection.
type prober struct {
	arp, nd int // packet sockets on the device
	mac     overlay.MAC
	index   int
}

func newProber(r *room, dev string) (*prober, error) {
	p := &prober{arp: -1, nd: -1}
	err := r.in(func() (err error) {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		p.index, p.mac = i.Index, overlay.MAC(i.HardwareAddr)
		if p.arp, err = packetSocket(p.index, unix.ETH_P_ARP, nil); err != nil {
			return err
		}
		p.nd, err = packetSocket(p.index, unix.ETH_P_IPV6, adverts)
		return err
	})
	if err != nil {
		p.close()
		return nil, fmt.Errorf("packet sockets on %s: %w", dev, err)
	}
	return p, nil
}

func (p *prober) close() {
	for _, fd := range []int{p.arp, p.nd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Offsets in an Ethernet frame with IPv6 (RFC 8200 section 3) and ICMPv6 without
// extension headers.
const (
	ethLen     = 14
	nextHeader = ethLen + 6
	icmpType   = ethLen + 40
	ndTarget   = icmpType + 8
)

// adverts passes neighbour advertisements alone: of a gateway's traffic, nothing.
var adverts = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: nextHeader},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMPV6, Jf: 3},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: icmpType},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 136, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 256},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

func packetSocket(index int, protocol uint16, filter []unix.SockFilter) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if filter != nil {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: index})
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// ask reports whether a router answers within a time. An error means that
// nothing could be sent.
func (p *prober) ask(ctx context.Context, hop netip.Addr, within time.Duration) (bool, error) {
	fd, frame := p.arp, packet.AskARP(packet.Broadcast, p.mac, netip.IPv4Unspecified(), hop)
	if hop.Is6() {
		fd, frame = p.nd, packet.AskND(packet.Broadcast, p.mac, netip.IPv6Unspecified(), hop)
	}
	buf := make([]byte, 256)
	for p.read(fd, buf) > 0 { // what came before says nothing of now
	}
	if _, err := unix.Write(fd, frame); err != nil {
		return false, fmt.Errorf("no probe can be sent: %w", err)
	}
	for end := time.Now().Add(within); ctx.Err() == nil; {
		left := time.Until(end)
		if left <= 0 {
			return false, nil
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("wait for an answer: %w", err)
		}
		for n := p.read(fd, buf); n > 0; n = p.read(fd, buf) {
			if isAnswer(buf[:n], hop) {
				return true, nil
			}
		}
	}
	return false, nil
}

func (p *prober) read(fd int, buf []byte) int {
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return 0
	}
	return n
}

// isAnswer reports whether a frame says that the router has its address: an ARP
// packet of its own, or its advertisement.
func isAnswer(b []byte, hop netip.Addr) bool {
	if hop.Is4() {
		const sender = ethLen + 14 // RFC 826
		return len(b) >= sender+4 && netip.AddrFrom4([4]byte(b[sender:])) == hop
	}
	return len(b) >= ndTarget+16 && netip.AddrFrom16([16]byte(b[ndTarget:])) == hop
}

// announce tells the outside that the gateway's addresses are here, and each
// network that its leg is.
func announce(r *room, s *Spec) error {
	type where struct {
		dev string
		ips []netip.Addr
	}
	all := []where{{upName, outside(s)}}
	for _, l := range s.Legs {
		w := where{dev: innerName(l.VNI)}
		for _, p := range l.Addresses {
			w.ips = append(w.ips, p.Addr())
		}
		all = append(all, w)
	}
	return r.in(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: it receives nothing
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var errs error
		for _, w := range all {
			i, err := net.InterfaceByName(w.dev)
			if err != nil {
				errs = errors.Join(errs, err)
				continue
			}
			for _, ip := range w.ips {
				frame := packet.Announce(packet.Announcement{IP: ip, MAC: overlay.MAC(i.HardwareAddr)})
				errs = errors.Join(errs, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6}))
			}
		}
		return errs
	})
}
