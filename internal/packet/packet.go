// Package packet encodes and decodes the few frames that Culvert makes or
// looks at: what guests and servers say on a port becomes a Fact or a named
// Drop. It is pure, never panics on any input, and its parsers allocate
// nothing.
package packet

import (
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
)

// EtherTypes (IANA).
const (
	TypeIPv4 uint16 = 0x0800
	TypeARP  uint16 = 0x0806
	TypeIPv6 uint16 = 0x86dd
)

// Protocols above IP (IANA).
const (
	ProtoTCP uint8 = 6
	ProtoUDP uint8 = 17
)

// Broadcast is the Ethernet broadcast address.
var Broadcast = overlay.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Announcement says that IP is at MAC.
type Announcement struct {
	IP  netip.Addr
	MAC overlay.MAC
}

// minFrame is the least Ethernet frame without its check sequence (IEEE 802.3).
const minFrame = 60

// Announce is the frame that tells a segment of a, in the form that receivers
// believe at once: for IPv4 an ARP reply to all, its sender and its target
// protocol address both a.IP (RFC 5227 section 3, RFC 2002 section 4.6); for
// IPv6 an unsolicited neighbour advertisement with the override flag to all
// nodes (RFC 4861 section 7.2.6). The frame's source is a.MAC itself. Nil if
// a.IP is invalid.
func Announce(a Announcement) []byte {
	switch {
	case a.IP.Is4():
		// The target is the sender again (RFC 5944 section 4.6): with another one
		// Linux does not take a reply for gratuitous, and ignores it for a second
		// after the entry was last written (locktime).
		return arpFrame(Broadcast, a.MAC, TypeARP, arpReply, a.IP, a.IP, a.MAC)
	case a.IP.Is6():
		return advert(groupMAC(allNodes), a.MAC, a.IP, allNodes, a.IP, FlagOverride)
	}
	return nil
}

func ethernet(dst, src overlay.MAC, typ uint16) []byte {
	b := make([]byte, 0, 96)
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	return binary.BigEndian.AppendUint16(b, typ)
}

func pad(b []byte) []byte {
	for len(b) < minFrame {
		b = append(b, 0)
	}
	return b
}

// groupMAC is where Ethernet sends an IPv6 group (RFC 2464 section 7).
func groupMAC(group netip.Addr) overlay.MAC {
	a := group.As16()
	return overlay.MAC{0x33, 0x33, a[12], a[13], a[14], a[15]}
}

// ICMPv6 is the frame of one ICMPv6 message whose checksum field is 0; it is
// filled in. A group as to goes to the group's MAC, whatever dst is. Nil if an
// address is not IPv6 or the message too long.
func ICMPv6(dst, src overlay.MAC, from, to netip.Addr, hops uint8, msg []byte) []byte {
	b := ipv6Frame(dst, src, from, to, protoICMPv6, hops, len(msg))
	if b == nil || len(msg) < 4 {
		return nil
	}
	at := len(b)
	b = append(b, msg...)
	binary.BigEndian.PutUint16(b[at+2:], ^fold(sum(pseudo(from, to, protoICMPv6, len(msg)), msg)))
	return pad(b)
}

func ipv6Frame(dst, src overlay.MAC, from, to netip.Addr, proto, hops uint8, size int) []byte {
	if !from.Is6() || !to.Is6() || size > 0xffff {
		return nil
	}
	if to.IsMulticast() {
		dst = groupMAC(to)
	}
	s, d := from.As16(), to.As16()
	b := ethernet(dst, src, TypeIPv6)
	b = append(b, 0x60, 0, 0, 0, byte(size>>8), byte(size), proto, hops)
	b = append(b, s[:]...)
	return append(b, d[:]...)
}

// ICMPv4 is the frame of one ICMP message (RFC 792) whose checksum field is 0;
// it is filled in. class is the type of service, the TTL 64. Nil if an address
// is not IPv4 or the message has no such length.
func ICMPv4(dst, src overlay.MAC, from, to netip.Addr, class uint8, msg []byte) []byte {
	if !from.Is4() || !to.Is4() || len(msg) < 4 || len(msg) > 0xffff-ipv4Len {
		return nil
	}
	b := ipv4Frame(dst, src, from, to, protoICMP, class, len(msg))
	at := len(b)
	b = append(b, msg...)
	binary.BigEndian.PutUint16(b[at+2:], ^fold(sum(0, msg)))
	return pad(b)
}

// ipv4Frame is a frame up to the end of its IPv4 header, which size bytes
// follow.
func ipv4Frame(dst, src overlay.MAC, from, to netip.Addr, proto, class uint8, size int) []byte {
	s, d := from.As4(), to.As4()
	total := ipv4Len + size
	h := []byte{0x45, class, byte(total >> 8), byte(total), 0, 0, 0, 0, 64, proto, 0, 0}
	h = append(h, s[:]...)
	h = append(h, d[:]...)
	binary.BigEndian.PutUint16(h[10:], ^fold(sum(0, h)))
	return append(ethernet(dst, src, TypeIPv4), h...)
}

// UDP is the frame of one UDP datagram over IPv4 or IPv6, both checksums
// right, TTL 64. An IPv6 group as to goes to the group's MAC. Nil if the
// addresses are not of one family or the payload is too long.
func UDP(dst, src overlay.MAC, from, to netip.AddrPort, payload []byte) []byte {
	size := udpLen + len(payload)
	var b []byte
	switch f, t := from.Addr(), to.Addr(); {
	case size > 0xffff-ipv4Len:
		return nil
	case f.Is4() && t.Is4():
		b = ipv4Frame(dst, src, f, t, protoUDP, 0, size)
	case f.Is6() && t.Is6():
		b = ipv6Frame(dst, src, f, t, protoUDP, 64, size)
	default:
		return nil
	}
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, 0, 0)
	b = append(b, payload...)
	c := ^fold(sum(pseudo(from.Addr(), to.Addr(), protoUDP, size), b[at:]))
	if c == 0 {
		c = 0xffff // 0 means that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(b[at+6:], c)
	return pad(b)
}
