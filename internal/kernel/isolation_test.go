package kernel

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

func contains(s, sub string) bool { return strings.Contains(s, sub) }

// addressed gives a guest addresses and routes to its host's underlay ones.
func addressed(g *guest) {
	g.ns.Sysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
	g.ns.Addr("eth0", "10.1.0.2/24")
	g.ns.Addr("eth0", "fd00:1::2/64")
	g.ns.Exec("ip", "route", "add", "192.0.2.0/24", "dev", "eth0")
	g.ns.Exec("ip", "route", "add", "2001:db8::/64", "dev", "eth0")
}

// arpReplies matches ARP replies coming in.
func arpReplies(f netnstest.Frame) bool {
	return !f.Outgoing && netnstest.EtherType(packet.TypeARP)(f) && binary.BigEndian.Uint16(f.Data[20:]) == 2
}

// TestGuestReachesNothingOfItsHost: no ARP or ND answer, no ping, v4 and v6.
func TestGuestReachesNothingOfItsHost(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	h := r.hosts[0]
	g := h.vm("vm1", macN(1))
	addressed(g)
	g.Drain()
	if out, err := g.ns.TryExec("ping", "-c", "2", "-i", "0.2", "-W", "1", "192.0.2.1"); err == nil {
		t.Errorf("the host answers: %s", out)
	}
	if out, err := g.ns.TryExec("ping", "-6", "-c", "2", "-i", "0.2", "-W", "1", "2001:db8::1"); err == nil {
		t.Errorf("the host answers: %s", out)
	}
	_, _ = g.ns.TryExec("ping", "-6", "-c", "2", "-i", "0.2", "-W", "1", "ff02::1%eth0") // answered by itself
	if f, ok := g.Receive(100*time.Millisecond, netnstest.In); ok {
		t.Errorf("the host said something: %v", f)
	}

	// Without the chain the host does answer ARP, so that the probe is known
	// to see.
	h.ns.Exec("nft", "delete", "chain", "netdev", "culvert", vni100.Bridge())
	g.ns.Exec("ip", "neigh", "flush", "dev", "eth0")
	_, _ = g.ns.TryExec("ping", "-c", "1", "-W", "1", "192.0.2.1")
	if _, ok := g.Receive(100*time.Millisecond, arpReplies); !ok {
		t.Errorf("without isolation the host does not answer either")
	}
}

// TestGuestIsNotForwarded: with forwarding on, nothing that a guest sends to
// the bridge's own address comes out on the underlay.
func TestGuestIsNotForwarded(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	h := r.hosts[0]
	other := r.underlay(9)
	g := h.vm("vm1", macN(1))
	h.ns.Sysctl("net/ipv4/ip_forward", "1")
	h.ns.Sysctl("net/ipv6/conf/all/forwarding", "1")
	under := netnstest.OpenPort(t, other.ns, "eth0")
	other.ns.Exec("ping", "-c", "1", "-W", "2", "192.0.2.1") // neighbours on both sides
	other.ns.Exec("ping", "-6", "-c", "1", "-W", "2", "2001:db8::1")
	h.ns.Exec("ip", "route", "add", "10.1.0.0/24", "dev", vni100.Bridge()) // no reverse path filter hides a leak
	under.Drain()

	src4, src6 := netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")
	bridge := hoststate.Device{VNI: vni100, Local: h.vtep}.BridgeMAC()
	send := func() {
		for _, dst := range []overlay.MAC{bridge, packet.Broadcast} {
			g.Send(netnstest.Ethernet(dst, g.mac, packet.TypeIPv4, udp4(src4, netip.MustParseAddr("192.0.2.9"), 4789)))
			g.Send(netnstest.Ethernet(dst, g.mac, packet.TypeIPv6, udp6(src6, netip.MustParseAddr("2001:db8::9"), 4789)))
		}
	}
	fromGuest := func(f netnstest.Frame) bool {
		a4, a6 := src4.As4(), src6.As16()
		return bytes.Contains(f.Data, a4[:]) && netnstest.EtherType(packet.TypeIPv4)(f) || bytes.Contains(f.Data, a6[:])
	}
	send()
	if f, ok := under.Receive(300*time.Millisecond, fromGuest); ok {
		t.Errorf("on the underlay: %v", f)
	}

	h.ns.Exec("nft", "delete", "chain", "netdev", "culvert", vni100.Bridge())
	send()
	if _, ok := under.Receive(time.Second, fromGuest); !ok {
		t.Errorf("without isolation nothing is forwarded either")
	}
}

// udp4 is an IPv4 packet with an empty datagram; the UDP checksum is left out
// (RFC 768).
func udp4(src, dst netip.Addr, port uint16) []byte {
	b := []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], inetSum(b))
	b = binary.BigEndian.AppendUint16(b, 5555)
	b = binary.BigEndian.AppendUint16(b, port)
	return append(b, 0, 8, 0, 0)
}

// udp6 is an IPv6 packet with a datagram whose checksum nobody on the way
// looks at.
func udp6(src, dst netip.Addr, port uint16) []byte {
	b := []byte{0x60, 0, 0, 0, 0, 8, 17, 64}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, 5555)
	b = binary.BigEndian.AppendUint16(b, port)
	return append(b, 0, 8, 0xff, 0xff)
}

func inetSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// TestStrangersAreDroppedAndCounted: UDP to the VXLAN port from an address
// outside the set never reaches a guest; from one inside it does.
func TestStrangersAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	h := r.hosts[0]
	stranger := r.underlay(66)
	g := h.vm("vm1", macN(1))
	// RFC 7348 section 5: flags with the I bit, VNI 100, then the frame.
	frame := append([]byte{8, 0, 0, 0, 0, 0, byte(vni100), 0}, netnstest.Ethernet(g.mac, macN(7), testEthertype, nil)...)
	send := func(to string, n int) {
		t.Helper()
		err := stranger.ns.Run(func() error {
			c, err := net.Dial("udp", net.JoinHostPort(to, "4789"))
			if err != nil {
				return err
			}
			defer c.Close()
			for range n {
				if _, err := c.Write(frame); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	send("192.0.2.1", 5)
	send("2001:db8::1", 3)
	if n := g.got(); n != 0 {
		t.Errorf("a guest got %d frames of a stranger", n)
	}
	if n := h.state().Strangers; n != 8 {
		t.Errorf("counted %d, want 8", n)
	}

	h.trust(macN(7), stranger)
	known := row(hoststate.TableVTEP, overlay.MAC{}, stranger.vtep, 0, hoststate.Val{})
	h.set(known)
	send("192.0.2.1", 5)
	if n := g.got(); n != 5 {
		t.Errorf("from a known VTEP %d of 5 arrived", n)
	}
	h.del(known)
	send("192.0.2.1", 2)
	if n := h.state().Strangers; n != 10 {
		t.Errorf("counted %d after the VTEP went, want 10", n)
	}
	h.strip("eth0") // the rule alone does as well
	send("192.0.2.1", 1)
	send("2001:db8::1", 1)
	if n := g.got(); n != 0 {
		t.Errorf("without the source check a guest got %d frames of a stranger", n)
	}
	if n := h.state().Strangers; n != 12 {
		t.Errorf("counted %d without the source check, want 12", n)
	}
	h.ns.Exec("nft", "flush", "chain", "inet", "culvert", "underlay")
	h.apply(hoststate.Op{Kind: hoststate.OpBase})
	if st := h.state(); st.Strangers != 12 || !st.Base {
		t.Errorf("after the repair: counted %d, base %t; want 12 and true", st.Strangers, st.Base)
	}
}
