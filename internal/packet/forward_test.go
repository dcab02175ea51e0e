package packet

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"

	"culvert/internal/overlay"
)

// forwardCase is a frame of a guest to its router, and what is read of it.
type forwardCase struct {
	name  string
	frame []byte
	cut   int // bytes at its end that were not kept
	hops  uint8
	proto uint8
	mute  bool
	echo  bool
}

// behind puts bytes between an IPv6 header, whose next header becomes next, and
// what follows it.
func behind(frame []byte, next byte, v ...byte) []byte {
	b := slices.Insert(slices.Clone(frame), ethLen+ipv6Len, v...)
	b[20] = next
	size := len(b) - ethLen - ipv6Len
	b[18], b[19] = byte(size>>8), byte(size)
	return b
}

// fragment makes an IPv4 frame one: the flags and the offset.
func fragment(frame []byte, v uint16) []byte {
	b := slices.Clone(frame)
	b[20], b[21] = byte(v>>8), byte(v)
	return seal(b)
}

func forwards() []forwardCase {
	r := overlay.ServerMAC
	a, b, x, y := addr("10.1.0.5"), addr("10.2.0.7"), addr("fd00:1::5"), addr("fd00:2::7")
	icmp4 := func(v ...byte) []byte {
		return ICMPv4(r, guest, a, b, 0x10, append(v, bytes.Repeat([]byte{7}, 40)...))
	}
	icmp6 := func(v ...byte) []byte {
		return ICMPv6(r, guest, x, y, 64, append(v, bytes.Repeat([]byte{7}, 40)...))
	}
	udp4 := UDP(r, guest, netip.AddrPortFrom(a, 4000), netip.AddrPortFrom(b, 33434), make([]byte, 30))
	udp6 := UDP(r, guest, netip.AddrPortFrom(x, 4000), netip.AddrPortFrom(y, 33434), make([]byte, 30))
	echo4, echo6 := icmp4(8, 0, 0, 0, 1, 2, 3, 4), icmp6(128, 0, 0, 0, 1, 2, 3, 4)
	wrong4, wrong6 := slices.Clone(echo4), slices.Clone(echo6)
	wrong4[len(wrong4)-1]++
	wrong6[len(wrong6)-1]++
	last := slices.Clone(udp4)
	last[atIP+8] = 1
	return []forwardCase{
		{"echo request", echo4, 0, 64, protoICMP, false, true},
		{"echo request over IPv6", echo6, 0, 64, protoICMPv6, false, true},
		{"echo request that is not whole", echo4, 5, 64, protoICMP, false, false},
		{"echo request over IPv6 that is not whole", echo6, 5, 64, protoICMPv6, false, false},
		{"echo request with a wrong checksum", wrong4, 0, 64, protoICMP, false, false},
		{"echo request over IPv6 with a wrong checksum", wrong6, 0, 64, protoICMPv6, false, false},
		{"echo request of another code", icmp4(8, 1, 0, 0, 1, 2, 3, 4), 0, 64, protoICMP, false, false},
		{"echo reply", icmp4(0, 0, 0, 0, 1, 2, 3, 4), 0, 64, protoICMP, false, false},
		{"echo reply over IPv6", icmp6(129, 0, 0, 0, 1, 2, 3, 4), 0, 64, protoICMPv6, false, false},
		{"unreachable", icmp4(3, 3, 0, 0, 0, 0, 0, 0), 0, 64, protoICMP, true, false},
		{"time exceeded", icmp4(11, 0, 0, 0, 0, 0, 0, 0), 0, 64, protoICMP, true, false},
		{"redirect", icmp4(5, 1, 0, 0, 0, 0, 0, 0), 0, 64, protoICMP, true, false},
		{"unknown message", icmp4(99, 1, 0, 0, 0, 0, 0, 0), 0, 64, protoICMP, true, false},
		{"too big over IPv6", icmp6(2, 0, 0, 0, 0, 0, 5, 0), 0, 64, protoICMPv6, true, false},
		{"redirect over IPv6", icmp6(137, 0, 0, 0, 0, 0, 0, 0), 0, 64, protoICMPv6, true, false},
		{"message that is cut off", echo4, len(echo4) - ethLen - ipv4Len, 64, protoICMP, true, false},
		{"UDP, last hop", seal(last), 0, 1, protoUDP, false, false},
		{"UDP over IPv6", udp6, 0, 64, protoUDP, false, false},
		{"first fragment", fragment(udp4, 0x2000), 0, 64, protoUDP, false, false},
		{"later fragment", fragment(udp4, 0x2005), 0, 64, protoUDP, true, false},
		{"last fragment", fragment(udp4, 5), 0, 64, protoUDP, true, false},
		{"first fragment of an echo request", fragment(echo4, 0x2000), 0, 64, protoICMP, false, false},
		{"first fragment over IPv6", behind(udp6, 44, protoUDP, 0, 0, 1, 0, 0, 0, 9), 0, 64, protoUDP, false, false},
		{"later fragment over IPv6", behind(udp6, 44, protoUDP, 0, 0, 9, 0, 0, 0, 9), 0, 64, 0, true, false},
		{"unreachable behind options", behind(icmp6(1, 0, 0, 0, 0, 0, 0, 0), 60, protoICMPv6, 0, 1, 4, 0, 0, 0, 0), 0, 64, protoICMPv6, true, false},
		{"echo request behind options", behind(echo6, 60, protoICMPv6, 0, 1, 4, 0, 0, 0, 0), 0, 64, protoICMPv6, false, true},
		{"no next header", behind(udp6, 59), 0, 64, 59, false, false},
		{"fragment whose options go on beyond", behind(udp6, 44, 60, 0, 0, 1, 0, 0, 0, 9, protoICMPv6, 200, 0, 0, 0, 0, 0, 0), 0, 64, protoICMPv6, true, false},
		{"fragment of a fragment's beginning", behind(udp6[:ethLen+ipv6Len+4], 44, 60, 0, 0, 1, 0, 0, 0, 9), 0, 64, 0, true, false},
	}
}

// TestReadForward: what a router has to know of a packet, and about which it may
// not complain.
func TestReadForward(t *testing.T) {
	t.Parallel()
	for _, c := range forwards() {
		b := c.frame[:len(c.frame)-c.cut]
		f, d := ReadForward(b, len(c.frame))
		if d != Taken || f.Hops != c.hops || f.Proto != c.proto || f.Mute != c.mute || (f.Echo != nil) != c.echo {
			t.Errorf("%s: %v, hops %d, protocol %d, mute %v, echo % x", c.name, d, f.Hops, f.Proto, f.Mute, f.Echo)
		}
		fact, d := Parse(FromGuest, b, len(c.frame))
		if want := (Fact{Kind: ToRouter, Src: guest, Dst: overlay.ServerMAC, MAC: guest, IP: f.From, Target: f.To}); d != Taken || fact != want {
			t.Errorf("%s: %v, %+v, want %+v", c.name, d, fact, want)
		}
		if !bytes.HasPrefix(b[ethLen:], f.Packet) {
			t.Errorf("%s: the packet is % x of % x", c.name, f.Packet, b)
		}
		if f.Length != len(c.frame)-ethLen {
			t.Errorf("%s: a packet of %d bytes, want %d", c.name, f.Length, len(c.frame)-ethLen)
		}
		if fact, d := Parse(ToGuest, b, len(c.frame)); d == Taken && fact.Kind == ToRouter {
			t.Errorf("%s towards a guest is for the router", c.name)
		}
	}
	short := UDP(overlay.ServerMAC, guest, netip.MustParseAddrPort("10.1.0.5:1"), netip.MustParseAddrPort("10.2.0.7:2"), nil)
	if f, d := ReadForward(short, len(short)); d != Taken || len(f.Packet) != ipv4Len+udpLen || f.Length != ipv4Len+udpLen {
		t.Errorf("%v: a packet of %d bytes, want no padding", d, len(f.Packet))
	}
	for _, name := range []string{"ping", "linux ARP request", "udhcpc discover", "linux unicast solicitation"} {
		if _, d := ReadForward(spoken(t, name), 0); d != Other {
			t.Errorf("%s is %v to ReadForward", name, d)
		}
	}
	renewal := spoken(t, "udhcpc discover")
	copy(renewal, overlay.ServerMAC[:])
	if f, d := Parse(FromGuest, renewal, len(renewal)); d != Taken || f.Kind != DHCPDiscover {
		t.Errorf("DHCP to the server's MAC: %v, %v", d, f.Kind)
	}
}

// TestICMPv4Bytes: octet by octet, as RFC 792 draws it.
func TestICMPv4Bytes(t *testing.T) {
	t.Parallel()
	want := hex.EncodeToString(guest[:]) + hex.EncodeToString(host[:]) + "0800" +
		"45c0001e0000000040" + "01" + "6618" + "0a010001" + "0a010005" + "0000" + "9793" + "00010002" + "6869" + "00000000000000000000000000000000"
	if got := hex.EncodeToString(ICMPv4(guest, host, addr("10.1.0.1"), addr("10.1.0.5"), 0xc0, []byte{0, 0, 0, 0, 0, 1, 0, 2, 'h', 'i'})); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}
