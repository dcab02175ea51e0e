package survive

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/answer"
	"culvert/internal/hoststate"
	"culvert/internal/lab"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// raw is a packet socket on a VM's card.
type raw struct {
	t  *testing.T
	fd int
}

// socket opens one that hears frames of any type.
func (r *rig) socket(vm string) *raw {
	r.t.Helper()
	ns, err := r.lab.Namespace(vm)
	if err != nil {
		r.t.Fatal(err)
	}
	s := &raw{t: r.t, fd: -1}
	err = lab.InNS(ns, func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20), unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}))
	})
	if err != nil {
		r.t.Fatalf("packet socket in %s: %v", vm, err)
	}
	r.t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

// send sends a frame n times.
func (s *raw) send(n int, frame []byte) {
	s.t.Helper()
	for range n {
		for {
			_, err := unix.Write(s.fd, frame)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) {
				s.t.Fatalf("send: %v", err)
			}
		}
	}
}

// heard takes what has arrived, and counts how much of it are a frame's likes and
// how much another's.
func (s *raw) heard(frame, other []byte) (n, others int) {
	s.t.Helper()
	b := make([]byte, 2048)
	for {
		k, _, err := unix.Recvfrom(s.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return n, others
		}
		switch {
		case err != nil:
			s.t.Fatalf("hear: %v", err)
		case bytes.Equal(b[:k], frame):
			n++
		case bytes.Equal(b[:k], other):
			others++
		}
	}
}

// besieged is a network of two hosts in one mode: evil and near are on h1, far
// on h2.
type besieged struct {
	*rig
	evil, near, far lab.VM
}

func besiege(t *testing.T, mode string) *besieged {
	t.Helper()
	b := &besieged{rig: newRig(t, 2)}
	b.must("domain", "create", "campus")
	b.must("network", "create", "blue", "--vni", "42", "--subnet", "10.1.0.0/16", "--subnet", "2001:db8:1::/64", "--domain", "campus", "--distribution", mode)
	vm := func(name, host, mac, four, six string) lab.VM {
		return b.vm(lab.VMSpec{Name: name, Host: host, Network: "blue", MAC: mac, Addresses: []string{four, six}})
	}
	b.evil = vm("evil", "h1", "52:54:00:00:00:66", "10.1.0.66", "2001:db8:1::66")
	b.near = vm("near", "h1", "52:54:00:00:00:11", "10.1.0.11", "2001:db8:1::11")
	b.far = vm("far", "h2", "52:54:00:00:00:12", "10.1.0.12", "2001:db8:1::12")
	for _, from := range []string{"near", "evil"} { // so that all is known that they ask for
		for _, to := range []string{"10.1.0.12", "2001:db8:1::12", "10.1.0.1", "2001:db8:1::1"} {
			b.await(10*time.Second, from+" reaches "+to, func() error { _, err := b.in(from, "ping", "-q", "-c", "1", "-W", "1", to); return err })
		}
	}
	return b
}

func macOf(t *testing.T, vm lab.VM) overlay.MAC {
	t.Helper()
	m, err := overlay.ParseMAC(vm.MAC)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestNobodyPassesForTheRouter: of a thousand frames of each kind by which a guest
// would have others on its host take it for their router, none arrives, and they
// go on to know the one they have.
func TestNobodyPassesForTheRouter(t *testing.T) {
	t.Parallel()
	b := besiege(t, "push")
	evil, near := macOf(t, b.evil), macOf(t, b.near)
	gate4, gate6 := netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("2001:db8:1::1")
	near4, near6 := netip.MustParseAddr("10.1.0.11"), netip.MustParseAddr("2001:db8:1::11")
	link6 := overlay.EUI64LinkLocal(overlay.ServerMAC)
	from, victim := b.socket("evil"), b.socket("near")
	b.mustIn("near", "ping", "-q", "-c", "1", gate4.String())
	b.mustIn("near", "ping", "-q", "-c", "1", gate6.String())
	const each = 1000
	for _, c := range []struct {
		what  string
		frame []byte
	}{
		{"an ARP answer", packet.AnswerARP(near, evil, gate4, near4)},
		{"an ARP announcement to all", packet.AskARP(packet.Broadcast, evil, gate4, gate4)},
		{"a neighbour advertisement", packet.AnswerND(near, evil, gate6, near6, true)},
		{"one of the router's link-local address", packet.AnswerND(near, evil, link6, near6, true)},
		{"a router advertisement", answer.Advertise(answer.Router{MAC: evil, IP: overlay.EUI64LinkLocal(evil), Seconds: 1800}, near, netip.Addr{})},
		{"a packet from the gateway", packet.UDP(near, evil, netip.AddrPortFrom(gate4, 9), netip.AddrPortFrom(near4, 9), make([]byte, 32))},
		{"an IPv6 packet from it", packet.UDP(near, evil, netip.AddrPortFrom(gate6, 9), netip.AddrPortFrom(near6, 9), make([]byte, 32))},
		{"a frame from its MAC", packet.UDP(near, overlay.ServerMAC, netip.AddrPortFrom(near4, 9), netip.AddrPortFrom(near4, 9), make([]byte, 32))},
	} {
		last := packet.UDP(near, evil, netip.MustParseAddrPort("10.1.0.66:9"), netip.AddrPortFrom(near4, 9), fmt.Append(nil, c.what)) // which is allowed
		from.send(each, c.frame)
		from.send(1, last)
		got := 0
		b.await(5*time.Second, "the last frame arrives", func() error {
			n, end := victim.heard(c.frame, last)
			if got += n; end == 0 {
				return errors.New("it did not")
			}
			return nil
		})
		if n, _ := victim.heard(c.frame, last); got+n != 0 {
			t.Errorf("%s: %d of %d arrived", c.what, got+n, each)
		}
	}
	for _, a := range []netip.Addr{gate4, gate6} {
		if out := b.mustIn("near", "ip", "neigh", "show", a.String()); !strings.Contains(out, overlay.ServerMAC.String()) {
			t.Errorf("the neighbour of %s: %s", a, out)
		}
	}
}

// TestFloodsHarmNoOthers: a guest that asks for every address, and one that sends
// to every MAC, as fast as it can, for two seconds: others on its host and
// elsewhere lose next to nothing, no table is another afterwards, and it is
// counted at its port.
func TestFloodsHarmNoOthers(t *testing.T) {
	for _, mode := range []string{"push", "on-demand"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			b := besiege(t, mode)
			evil := macOf(t, b.evil)
			own4, own6 := netip.MustParseAddr("10.1.0.66"), netip.MustParseAddr("2001:db8:1::66")
			before := b.pictures()
			p4, p6 := b.ping("near", netip.MustParseAddr("10.1.0.12"), 5*time.Millisecond), b.ping("near", netip.MustParseAddr("2001:db8:1::12"), 5*time.Millisecond)
			from, rnd := b.socket("evil"), rand.New(rand.NewPCG(1, 2))
			ctx, stop := context.WithTimeout(b.ctx, 2*time.Second)
			defer stop()
			sent := 0
			for ; ctx.Err() == nil; sent++ {
				x := rnd.Uint32()
				six := netip.MustParsePrefix("2001:db8:1::/64").Addr().As16()
				binary.BigEndian.PutUint32(six[12:], x)
				switch sent % 3 {
				case 0:
					from.send(1, packet.AskARP(packet.Broadcast, evil, own4, netip.AddrFrom4([4]byte{10, 1, byte(x >> 8), byte(x)})))
				case 1:
					from.send(1, packet.AskND(overlay.MAC{0x33, 0x33, 0xff, byte(x >> 16), byte(x >> 8), byte(x)}, evil, own6, netip.AddrFrom16(six)))
				case 2:
					from.send(1, packet.UDP(overlay.MAC{2, 9, byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)}, evil, netip.AddrPortFrom(own4, 9), netip.MustParseAddrPort("10.1.9.9:9"), nil))
				}
			}
			for _, p := range []*pinging{p4, p6} {
				res := p.end(t)
				t.Logf("%d frames; ping to %s: %d sent, %d lost", sent, p.to, res.Sent, len(res.Lost))
				if res.Sent < 100 || len(res.Lost) > res.Sent/50 {
					t.Errorf("ping to %s beside %d frames: %d of %d lost", p.to, sent, len(res.Lost), res.Sent)
				}
			}
			b.await(20*time.Second, "all hosts are exact", func() error { _, err := b.run("status"); return err })
			b.same("after the flood", before)
			st, err := b.tables("h1")
			if err != nil {
				t.Fatal(err)
			}
			counted := map[hoststate.DropReason]uint64{}
			for k, n := range st.Drops {
				counted[k.Reason] += n
			}
			if counted[hoststate.DropStorm] == 0 || (counted[hoststate.DropUnknown] == 0) != (mode == "push") {
				t.Errorf("counted at the ports of h1: %v", counted)
			}
		})
	}
}
