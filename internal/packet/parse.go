package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"culvert/internal/overlay"
)

const (
	ethLen   = 14
	ipv4Len  = 20
	ipv6Len  = 40
	udpLen   = 8
	typeRARP = 0x8035

	protoICMP   = 1
	protoIGMP   = 2
	protoUDP    = ProtoUDP
	protoICMPv6 = 58

	portServer4, portClient4 = 67, 68   // RFC 2131 section 4.1
	portServer6, portClient6 = 547, 546 // RFC 8415 section 7.2
)

// Parse reads one Ethernet frame that was seen on a guest's port. The frame
// may be cut: wire is its length on the wire, and less than that may be here
// (a wire below len(frame) counts as len(frame)). Checksums are checked where
// what they cover is whole. The result is a fact or a reason why not, never
// both; it takes time linear in the frame, allocates nothing, and no bytes
// make it panic.
//
// A frame of a protocol that is not read here is a Frame: only its Ethernet
// source is used.
func Parse(dir Direction, frame []byte, wire int) (Fact, Drop) {
	var f Fact
	p, drop := open(frame, wire)
	if drop != Taken {
		return Fact{}, drop
	}
	f.Kind, f.Src, f.Dst = Frame, p.src, p.dst
	switch p.typ {
	case TypeARP:
		drop = parseARP(&f, p.body)
	case typeRARP:
		drop = parseRARP(&f, p.body)
	case TypeIPv4, TypeIPv6:
		whole := p
		if drop = parseIP(&f, dir, &p); toRouter(&f, dir, drop) {
			drop = factForward(&f, &whole)
		}
	}
	if drop != Taken {
		return Fact{}, drop
	}
	return f, Taken
}

// parts are a frame taken apart down to its upper protocol.
type parts struct {
	dst, src overlay.MAC
	typ      uint16
	full     int // bytes of body on the wire

	// Filled by network alone. proto is 0 when nothing above IP is looked at.
	from, to netip.Addr
	proto    uint8
	hops     uint8
	alert    bool // a router alert for MLD
	cut      bool // body is not whole

	body []byte
}

func open(frame []byte, wire int) (parts, Drop) {
	if len(frame) < ethLen {
		return parts{}, EthShort
	}
	p := parts{
		dst: overlay.MAC(frame[:6]), src: overlay.MAC(frame[6:12]), typ: binary.BigEndian.Uint16(frame[12:]),
		full: max(wire, len(frame)) - ethLen, body: frame[ethLen:],
	}
	if !p.src.IsUnicast() {
		return parts{}, EthSource
	}
	switch p.typ {
	case 0x8100, 0x88a8, 0x9100, 0x9200: // IEEE 802.1Q, 802.1ad, and what came before it
		return parts{}, VLANTagged
	}
	return p, Taken
}

// network takes the IP headers off. The body that it leaves has no padding.
func (p *parts) network() Drop {
	if p.typ == TypeIPv4 {
		return p.ipv4()
	}
	return p.ipv6()
}

func (p *parts) ipv4() Drop {
	b := p.body
	if len(b) < ipv4Len {
		return IPv4Short
	}
	switch b[9] {
	case protoIGMP, protoUDP:
	default:
		return Taken
	}
	size, total, d := p.header4()
	switch {
	case d != Taken:
		return d
	case binary.BigEndian.Uint16(b[6:])&0x3fff != 0: // more fragments, or an offset
		return IPv4Fragment
	}
	p.from, p.to, p.proto, p.hops = ip4(b[12:16]), ip4(b[16:20]), b[9], b[8]
	p.shorten(size, total)
	return Taken
}

// header4 checks an IPv4 header, options included (RFC 791 section 3.1), and
// returns its length and that of the packet, in bytes.
func (p *parts) header4() (size, total int, d Drop) {
	b := p.body
	if len(b) < ipv4Len {
		return 0, 0, IPv4Short
	}
	size, total = int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case b[0]>>4 != 4 || size < ipv4Len || total < size:
		d = IPv4Header
	case total > p.full || size > len(b):
		d = IPv4Short
	case ^fold(sum(0, b[:size])) != 0:
		d = IPv4Checksum
	}
	return size, total, d
}

// shorten leaves the bytes of the body from size up to total, as far as they
// are here.
func (p *parts) shorten(size, total int) {
	p.cut = total > len(p.body)
	p.full = total - size
	p.body = p.body[size:min(total, len(p.body))]
}

// mostHeaders bounds the extension headers of one packet; RFC 8200 section 4.1
// lists 7, one of them twice.
const mostHeaders = 8

func (p *parts) ipv6() Drop {
	b := p.body
	if len(b) < ipv6Len {
		return IPv6Short
	}
	if b[0]>>4 != 6 {
		return IPv6Header
	}
	next, at := b[6], ipv6Len
	alert := false
	for i := 0; ; i++ {
		switch next {
		case protoUDP, protoICMPv6:
			total := ipv6Len + int(binary.BigEndian.Uint16(b[4:]))
			if total < at || total > p.full {
				return IPv6Short
			}
			p.from, p.to, p.proto, p.hops, p.alert = ip6(b[8:24]), ip6(b[24:40]), next, b[7], alert
			p.shorten(at, total)
			return Taken
		case 44:
			if len(b) <= at || slices.Contains([]byte{protoUDP, protoICMPv6, 0, 43, 60}, b[at]) {
				return IPv6Fragment
			}
			return Taken
		case 0, 43, 60: // hop-by-hop, routing, destination options
		default:
			return Taken
		}
		switch {
		case i == mostHeaders, next == 0 && i > 0:
			return IPv6Header
		case len(b) < at+2 || len(b) < at+8+int(b[at+1])*8:
			if p.full > len(b) {
				return Cut
			}
			return IPv6Short
		}
		size := 8 + int(b[at+1])*8
		if next == 0 {
			var ok bool
			if alert, ok = routerAlert(b[at+2 : at+size]); !ok {
				return IPv6Header
			}
		}
		next, at = b[at], at+size
	}
}

// routerAlert looks for the option of RFC 2711 with the value 0 (MLD) in the
// options of a hop-by-hop header.
func routerAlert(b []byte) (found, ok bool) {
	for len(b) > 0 {
		if b[0] == 0 { // Pad1
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return false, false
		}
		size := 2 + int(b[1])
		if b[0] == 5 && size == 4 && b[2] == 0 && b[3] == 0 {
			found = true
		}
		b = b[size:]
	}
	return found, true
}

func parseIP(f *Fact, dir Direction, p *parts) Drop {
	if d := p.network(); d != Taken {
		return d
	}
	switch p.proto {
	case protoIGMP:
		return parseIGMP(f, p)
	case protoICMPv6:
		if p.typ == TypeIPv6 {
			return parseICMPv6(f, p)
		}
	case protoUDP:
		to, d := p.udp()
		if d != Taken {
			return d
		}
		switch {
		case p.typ == TypeIPv4 && (to == portServer4 || to == portClient4):
			return factDHCP4(f, dir, p, to)
		case p.typ == TypeIPv6 && (to == portServer6 || to == portClient6):
			return factDHCP6(f, dir, p, to)
		}
	}
	return Taken
}

// udp takes the UDP header off if the port is one of DHCP's, and returns the
// port. The checksum is right if it is 0 (IPv4 only), if it is the one of RFC
// 768, or if it is the sum of the pseudo header alone: so a sender leaves it
// whose card is to finish it, and a virtual card has nothing to finish on the
// way to its own host.
func (p *parts) udp() (port uint16, d Drop) {
	b := p.body
	if len(b) < udpLen {
		return 0, UDPLength
	}
	switch port = binary.BigEndian.Uint16(b[2:]); port {
	case portServer4, portClient4, portServer6, portClient6:
	default:
		return 0, Taken
	}
	size := int(binary.BigEndian.Uint16(b[4:]))
	if size < udpLen || size > p.full {
		return 0, UDPLength
	}
	p.cut = size > len(b)
	b = b[:min(size, len(b))]
	p.body, p.full = b[udpLen:], size-udpLen
	if p.cut {
		return port, Taken
	}
	given := binary.BigEndian.Uint16(b[6:])
	pseudo := p.pseudo(protoUDP, size)
	switch {
	case given == 0 && p.typ == TypeIPv4:
	case given == 0:
		return 0, UDPChecksum
	case ^fold(sum(pseudo, b)) == 0, given == fold(pseudo):
	default:
		return 0, UDPChecksum
	}
	return port, Taken
}

// pseudo is the sum of the pseudo header (RFC 768, RFC 8200 section 8.1).
func (p *parts) pseudo(proto uint8, size int) uint32 {
	return pseudo(p.from, p.to, proto, size)
}

func pseudo(from, to netip.Addr, proto uint8, size int) uint32 {
	s := uint32(proto) + uint32(size)
	if from.Is4() {
		a, b := from.As4(), to.As4()
		return sum(sum(s, a[:]), b[:])
	}
	a, b := from.As16(), to.As16()
	return sum(sum(s, a[:]), b[:])
}

// sum adds b to s as big-endian words (RFC 1071); a frame's at most 64 KiB do
// not overflow it.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
