package packet

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"culvert/internal/overlay"
)

// Forward is a packet that a guest sent to its router, as far as the router's
// answers need it.
type Forward struct {
	MAC      overlay.MAC // the guest's
	From, To netip.Addr  // of one family, and unicast
	Hops     uint8       // time to live, or hop limit
	Class    uint8       // type of service; 0 for IPv6
	Proto    uint8       // above IP and the extension headers that are walked; 0 if it is not seen
	// Packet is from the IP header on, without padding and as far as it was
	// kept: a view of the frame. Length is that of all of it, in bytes.
	Packet []byte
	Length int
	// Mute: no error is sent about it (RFC 1122 section 3.2.2, RFC 4443 section
	// 2.4): it is an error itself, or a redirect, or may be one, or is a fragment
	// that is not the first.
	Mute bool
	// Echo is the whole message if it is an echo request with a right checksum,
	// from its type on; else nil.
	Echo []byte
}

// toRouter reports whether a frame that says nothing else is for a router to
// send on: fragments of what else would be read are such, too.
func toRouter(f *Fact, dir Direction, d Drop) bool {
	return dir == FromGuest && f.Dst == overlay.ServerMAC && (d == Taken && f.Kind == Frame || d == IPv4Fragment || d == IPv6Fragment)
}

// ReadForward reads a frame whose kind is ToRouter, for those who answer it.
// Frames of another kind are refused with Other.
func ReadForward(frame []byte, wire int) (Forward, Drop) {
	f, d := Parse(FromGuest, frame, wire)
	if d != Taken {
		return Forward{}, d
	}
	if f.Kind != ToRouter {
		return Forward{}, Other
	}
	p, _ := open(frame, wire)
	return p.forward()
}

func factForward(f *Fact, p *parts) Drop {
	w, d := p.forward()
	if d != Taken {
		return d
	}
	f.Kind, f.MAC, f.IP, f.Target = ToRouter, f.Src, w.From, w.To
	return Taken
}

func (p *parts) forward() (f Forward, d Drop) {
	f.MAC = p.src
	if p.typ == TypeIPv4 {
		d = f.ipv4(p)
	} else {
		d = f.ipv6(p)
	}
	switch {
	case d != Taken:
		return Forward{}, d
	case !unicast(f.From) || !unicast(f.To):
		return Forward{}, RouteAddress
	}
	return f, Taken
}

func (f *Forward) ipv4(p *parts) Drop {
	b := p.body
	size, total, d := p.header4()
	if d != Taken {
		return d
	}
	f.From, f.To, f.Hops, f.Class, f.Proto = ip4(b[12:16]), ip4(b[16:20]), b[8], b[1], b[9]
	f.Packet, f.Length = b[:min(total, len(b))], total
	fragment := binary.BigEndian.Uint16(b[6:]) & 0x3fff // more of them, and the offset
	if f.Mute = fragment&0x1fff != 0; !f.Mute && f.Proto == protoICMP {
		f.icmp(size, fragment == 0 && total <= len(b))
	}
	return Taken
}

// ipv6 walks the extension headers up to what they carry. Behind one that is
// cut, or more of them than any packet needs, there may be an error.
func (f *Forward) ipv6(p *parts) Drop {
	b := p.body
	if len(b) < ipv6Len {
		return IPv6Short
	}
	total := ipv6Len + int(binary.BigEndian.Uint16(b[4:]))
	switch {
	case b[0]>>4 != 6:
		return IPv6Header
	case total > p.full:
		return IPv6Short
	}
	f.From, f.To, f.Hops = ip6(b[8:24]), ip6(b[24:40]), b[7]
	f.Packet, f.Length = b[:min(total, len(b))], total
	next, at, whole := b[6], ipv6Len, total <= len(b)
	for range mostHeaders {
		switch next {
		case 0, 43, 60, 44: // hop-by-hop, routing, destination options, fragment
		default:
			if f.Proto = next; next == protoICMPv6 {
				f.icmp(at, whole)
			}
			return Taken
		}
		if len(f.Packet) < at+8 {
			break
		}
		size := 8
		if next != 44 {
			size += int(f.Packet[at+1]) * 8
		} else {
			whole = false
			if binary.BigEndian.Uint16(f.Packet[at+2:])&^7 != 0 {
				break
			}
		}
		next, at = f.Packet[at], at+size
	}
	f.Mute = true
	return Taken
}

// ICMP messages that are asked or answered, which errors may be sent about:
// echo, timestamp, information and address mask (RFC 792, RFC 950), extended
// echo (RFC 8335). All other types are errors, or were never in use.
var queries4 = []byte{icmpEcho, 0, 13, 14, 15, 16, 17, 18, 42, 43}

// icmp looks at the ICMP message that begins at at. whole: all of it is here.
func (f *Forward) icmp(at int, whole bool) {
	four := f.From.Is4()
	switch {
	case len(f.Packet) <= at:
		f.Mute = true
		return
	case four:
		f.Mute = !slices.Contains(queries4, f.Packet[at])
	default: // errors are below 128 (RFC 4443 section 2.1)
		f.Mute = f.Packet[at] < 128 || f.Packet[at] == icmpRedirect6
	}
	m := f.Packet[at:]
	if !whole || len(m) < 8 || m[1] != 0 {
		return
	}
	switch {
	case four && m[0] == icmpEcho && ^fold(sum(0, m)) == 0,
		!four && m[0] == icmpEcho6 && ^fold(sum(pseudo(f.From, f.To, protoICMPv6, len(m)), m)) == 0:
		f.Echo = m
	}
}
