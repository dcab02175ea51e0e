package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"culvert/internal/lab"
	"culvert/internal/overlay"
)

// The devices of a network that Culvert has no part in.
const (
	bareBridge = "bare0"
	bareVXLAN  = "barevx0"
	bareVNI    = 7777
)

// makeBare makes a bridge with a VXLAN device on a host, as one makes them by
// hand. With a group the device floods to it and learns from what it gets;
// without, its table is written by hand. Beside an agent port must be another
// than its own, which it guards.
func makeBare(p *place, local netip.Addr, port, mtu int, group netip.Addr) error {
	snooping := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bareBridge, MTU: mtu}, MulticastSnooping: &snooping}
	vx := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: bareVXLAN, MTU: mtu}, VxlanId: bareVNI, Port: port, SrcAddr: local.AsSlice(), Learning: group.IsValid(),
	}
	if group.IsValid() {
		vx.Group, vx.VtepDevIndex = group.AsSlice(), p.index("eth0")
	}
	for _, step := range []func() error{
		func() error { return p.LinkAdd(br) },
		func() error { return p.LinkAdd(vx) },
		func() error { return p.LinkSetMaster(vx, br) },
		func() error { return p.noIPv6(bareBridge) },
		func() error { return p.noIPv6(bareVXLAN) },
		func() error { return p.LinkSetUp(vx) },
		func() error { return p.LinkSetUp(br) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("bare network on %s: %w", p.node, err)
		}
	}
	return nil
}

// point writes that a MAC, or the zero one for all that no entry is of, is at
// another host.
func (p *place) point(mac overlay.MAC, at netip.Addr) error {
	err := p.NeighAppend(&netlink.Neigh{
		LinkIndex: p.index(bareVXLAN), Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: at.AsSlice(), HardwareAddr: hardware(mac),
	})
	if err != nil {
		return fmt.Errorf("bare network's table on %s: %w", p.node, err)
	}
	return nil
}

func (p *place) noIPv6(device string) error {
	return lab.InNS(p.ns, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/disable_ipv6", []byte("1"), 0)
	})
}

// machine is a guest that is a namespace of its own, nameless, so that it goes
// with this process. Its interface is eth0.
type machine struct {
	*netlink.Handle
	fd   int
	addr netip.Addr
	mac  overlay.MAC
}

// newMachine makes a guest and plugs it into a bridge of a host by a device of
// that name and alias.
func newMachine(p *place, bridge, device, alias string, e endpoint, bits, mtu int) (m *machine, err error) {
	m = &machine{addr: e.IPs[0], mac: e.MAC}
	if m.fd, err = guestNamespace(); err == nil {
		m.Handle, err = netlink.NewHandleAt(netns.NsHandle(m.fd), unix.NETLINK_ROUTE)
	}
	if err == nil {
		err = m.plug(p, bridge, device, alias, "eth0", e, bits, mtu)
	}
	if err != nil {
		err = errors.Join(err, m.close())
	}
	return m, err
}

// plug gives a guest an interface, which is a bridge's port on a host by a device
// of that name and alias.
func (m *machine) plug(p *place, bridge, device, alias, inner string, e endpoint, bits, mtu int) error {
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: device, MTU: mtu}, PeerName: inner, PeerHardwareAddr: hardware(e.MAC), PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(m.fd),
	}
	var eth netlink.Link
	for _, step := range []func() error{
		func() error { return p.LinkAdd(veth) },
		func() error { return p.noIPv6(device) },
		func() error {
			if alias == "" {
				return nil
			}
			return p.LinkSetAlias(veth, alias)
		},
		func() (err error) { eth, err = m.LinkByName(inner); return err },
		func() error {
			return m.AddrReplace(eth, &netlink.Addr{IPNet: &net.IPNet{IP: e.IPs[0].AsSlice(), Mask: net.CIDRMask(bits, 32)}})
		},
		func() error { return m.LinkSetUp(eth) },
		func() error { return p.LinkSetMasterByIndex(veth, p.index(bridge)) },
		func() error { return p.LinkSetUp(veth) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("guest behind %s on %s: %w", device, p.node, err)
		}
	}
	return nil
}

// close lets go of the namespace, and with it of the guest's devices.
func (m *machine) close() error {
	if m.Handle != nil {
		m.Handle.Close()
	}
	if m.fd == 0 {
		return nil
	}
	return unix.Close(m.fd)
}

// stream is a TCP connection and a UDP echo between two guests, and raw frames.
type stream struct {
	tcp      net.Conn
	received chan int64
	udp      net.Conn
	ends     []interface{ Close() error }
	raw, ear int // packet sockets of sender and receiver
	frame    []byte
}

func newStream(from, to *machine) (s *stream, err error) {
	s = &stream{received: make(chan int64, 1<<16), raw: -1, ear: -1}
	var l net.Listener
	var echo net.PacketConn
	err = inside(to.fd, func() (err error) {
		if l, err = net.Listen("tcp", netip.AddrPortFrom(to.addr, 5001).String()); err != nil {
			return err
		}
		s.ends = append(s.ends, l)
		if echo, err = net.ListenPacket("udp", netip.AddrPortFrom(to.addr, 5002).String()); err == nil {
			s.ends = append(s.ends, echo)
		}
		return err
	})
	if err != nil {
		return s, fmt.Errorf("listen in a guest: %w", err)
	}
	go answerEcho(echo)
	go s.swallow(l)
	err = inside(from.fd, func() (err error) {
		if s.tcp, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second); err != nil {
			return err
		}
		s.ends = append(s.ends, s.tcp)
		if s.udp, err = net.Dial("udp", echo.LocalAddr().String()); err == nil {
			s.ends = append(s.ends, s.udp)
		}
		return err
	})
	if err != nil {
		return s, fmt.Errorf("connect two guests: %w", err)
	}
	if s.raw, err = packetSocket(from.fd, "eth0", 0); err != nil {
		return s, err
	}
	if s.ear, err = packetSocket(to.fd, "eth0", testType); err != nil {
		return s, err
	}
	s.frame = append(append(append(s.frame, to.mac[:]...), from.mac[:]...), testType>>8, testType&0xff)
	s.frame = append(s.frame, make([]byte, 60-len(s.frame))...)
	return s, nil
}

func answerEcho(c net.PacketConn) {
	buf := make([]byte, 64)
	for {
		n, peer, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:n], peer) // who asked waits in vain, and says so
	}
}

func (s *stream) swallow(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		s.received <- int64(n)
	}
}

func (s *stream) close() {
	for _, e := range s.ends {
		_ = e.Close() // nothing is lost that was not counted
	}
	unix.Close(s.raw)
	unix.Close(s.ear)
}

// bytes is how many bytes a second TCP carries, in 100 ms.
func (s *stream) bytes() (float64, error) {
	buf := make([]byte, 1<<20)
	start := time.Now()
	if err := s.tcp.SetWriteDeadline(start.Add(10 * time.Second)); err != nil {
		return 0, fmt.Errorf("stream: %w", err)
	}
	sent, got := int64(0), int64(0)
	for time.Since(start) < 100*time.Millisecond {
		n, err := s.tcp.Write(buf)
		if err != nil {
			return 0, fmt.Errorf("stream: %w", err)
		}
		sent += int64(n)
	}
	late := time.After(10 * time.Second)
	for got < sent {
		select {
		case n := <-s.received:
			got += n
		case <-late:
			return 0, fmt.Errorf("stream: %d of %d bytes arrived", got, sent)
		}
	}
	return float64(got) / time.Since(start).Seconds(), nil
}

// trip is the median of 200 round trips of a small datagram, in microseconds.
func (s *stream) trip() (float64, error) {
	var trips sample
	buf := make([]byte, 64)
	for range 200 {
		start := time.Now()
		if _, err := s.udp.Write(buf[:32]); err != nil {
			return 0, fmt.Errorf("echo: %w", err)
		}
		if err := s.udp.SetReadDeadline(start.Add(time.Second)); err != nil {
			return 0, fmt.Errorf("echo: %w", err)
		}
		if _, err := s.udp.Read(buf); err != nil {
			return 0, fmt.Errorf("echo: %w", err)
		}
		trips = append(trips, float64(time.Since(start))/float64(time.Microsecond))
	}
	return trips.quantile(0.5), nil
}

// frames is how many least frames a second go through, of a burst of 20,000.
func (s *stream) frames() (float64, error) {
	const count = 20_000
	if _, err := arrived(s.ear); err != nil {
		return 0, err
	}
	b := newBurst(s.raw, s.frame)
	start := time.Now()
	for left := count; left > 0; {
		n, err := b.send(left)
		if err != nil {
			return 0, err
		}
		left -= n
	}
	took := time.Since(start)
	n, err := arrived(s.ear)
	if err == nil && n < count*9/10 {
		err = fmt.Errorf("of %d frames %d arrived", count, n)
	}
	return float64(n) / took.Seconds(), err
}
