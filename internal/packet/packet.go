// Package packet encodes and decodes the few frames that Culvert makes or
// looks at. It is pure, allocates little, never panics on any input, and says
// why it refuses what it refuses.
package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"culvert/internal/overlay"
)

// EtherTypes (IANA).
const (
	TypeIPv4 uint16 = 0x0800
	TypeARP  uint16 = 0x0806
	TypeIPv6 uint16 = 0x86dd
)

// Broadcast is the Ethernet broadcast address.
var Broadcast = overlay.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Reasons why a frame is not what a decoder was asked for.
var (
	ErrShort    = errors.New("frame is cut short")
	ErrOther    = errors.New("frame of another kind")
	ErrChecksum = errors.New("wrong checksum")
	ErrMalform  = errors.New("malformed")
)

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
		return announceARP(a)
	case a.IP.Is6():
		return announceNA(a)
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

const (
	arpLen   = 28
	arpReply = 2
)

func announceARP(a Announcement) []byte {
	ip := a.IP.As4()
	b := ethernet(Broadcast, a.MAC, TypeARP)
	b = binary.BigEndian.AppendUint16(b, 1) // hardware: Ethernet (RFC 826)
	b = binary.BigEndian.AppendUint16(b, TypeIPv4)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, arpReply)
	b = append(b, a.MAC[:]...)
	b = append(b, ip[:]...)
	// The target is the sender again (RFC 5944 section 4.6): with another one
	// Linux does not take a reply for gratuitous, and ignores it for a second
	// after the entry was last written (locktime).
	b = append(b, a.MAC[:]...)
	b = append(b, ip[:]...)
	return pad(b)
}

const (
	ipv6Len     = 40
	naLen       = 32 // header, target, one option of 8 bytes
	naType      = 136
	naOverride  = 0x20
	optTarget   = 2 // target link-layer address (RFC 4861 section 4.6.1)
	protoICMPv6 = 58
	ndHopLimit  = 255 // anything less was routed and is not believed
)

var allNodes = netip.MustParseAddr("ff02::1")

func announceNA(a Announcement) []byte {
	dst := allNodes.As16()
	src := a.IP.As16()
	b := ethernet(overlay.MAC{0x33, 0x33, 0, 0, 0, 1}, a.MAC, TypeIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, naLen)
	b = append(b, protoICMPv6, ndHopLimit)
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	at := len(b)
	b = append(b, naType, 0, 0, 0)
	b = append(b, naOverride, 0, 0, 0)
	b = append(b, src[:]...)
	b = append(b, optTarget, 1)
	b = append(b, a.MAC[:]...)
	binary.BigEndian.PutUint16(b[at+2:], checksum6(a.IP, allNodes, b[at:]))
	return pad(b)
}

// checksum6 is ICMPv6's (RFC 4443 section 2.3) over the pseudo header and the
// message, whose checksum field must be 0 to make one; over a message with a
// right checksum the result is 0.
func checksum6(src, dst netip.Addr, msg []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for ; len(b) >= 2; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	s, d := src.As16(), dst.As16()
	add(s[:])
	add(d[:])
	sum += uint32(len(msg)) + protoICMPv6
	add(msg)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// ParseAnnouncement reads a frame that Announce made, or an equal one of
// somebody else's: a gratuitous ARP (request or reply) or an unsolicited
// neighbour advertisement with its target's address.
func ParseAnnouncement(b []byte) (Announcement, error) {
	if len(b) < 14 {
		return Announcement{}, ErrShort
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case TypeARP:
		return parseARP(b[14:])
	case TypeIPv6:
		return parseNA(b[14:])
	}
	return Announcement{}, ErrOther
}

func parseARP(b []byte) (Announcement, error) {
	if len(b) < arpLen {
		return Announcement{}, ErrShort
	}
	if binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != TypeIPv4 || b[4] != 6 || b[5] != 4 {
		return Announcement{}, ErrMalform
	}
	a := Announcement{IP: netip.AddrFrom4([4]byte(b[14:18])), MAC: overlay.MAC(b[8:14])}
	if [4]byte(b[24:28]) != a.IP.As4() || a.IP.IsUnspecified() {
		return Announcement{}, ErrOther
	}
	return a, nil
}

func parseNA(b []byte) (Announcement, error) {
	if len(b) < ipv6Len+24 {
		return Announcement{}, ErrShort
	}
	if b[0]>>4 != 6 || b[6] != protoICMPv6 || b[ipv6Len] != naType {
		return Announcement{}, ErrOther
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	if n < 24 || len(b) < ipv6Len+n {
		return Announcement{}, ErrShort
	}
	if b[7] != ndHopLimit || b[ipv6Len+1] != 0 {
		return Announcement{}, ErrMalform
	}
	msg := b[ipv6Len : ipv6Len+n]
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	if checksum6(src, dst, msg) != 0 {
		return Announcement{}, ErrChecksum
	}
	a := Announcement{IP: netip.AddrFrom16([16]byte(msg[8:24]))}
	for opt := msg[24:]; len(opt) >= 8; {
		size := int(opt[1]) * 8
		if size == 0 || size > len(opt) {
			return Announcement{}, ErrMalform // RFC 4861 section 4.6: a length of 0 is silently discarded
		}
		if opt[0] == optTarget && size == 8 {
			a.MAC = overlay.MAC(opt[2:8])
			return a, nil
		}
		opt = opt[size:]
	}
	return Announcement{}, ErrOther
}
