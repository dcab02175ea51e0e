package packet

import (
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
)

// Message types of DHCPv4 (RFC 2132 section 9.6).
const (
	Discover4 uint8 = iota + 1
	Offer4
	Request4
	Decline4
	Ack4
	Nak4
	Release4
	Inform4
)

// DHCPMagic4 is the cookie before the options, DHCPFixed4 the length up to
// them with it (RFC 2131 sections 2, 3).
const (
	DHCPMagic4 uint32 = 0x63825363
	DHCPFixed4 int    = 240
)

// DHCP4 is one DHCPv4 message as far as Culvert uses it. Addresses that it
// does not give are invalid. Slices are views of the frame.
type DHCP4 struct {
	Type      uint8
	Broadcast bool // the client cannot take unicast before it has its address (RFC 2131 section 4.1)
	Rapid     bool // option 80 (RFC 4039)
	XID       uint32
	MAC       overlay.MAC // chaddr
	Has       netip.Addr  // ciaddr: what the client has
	Yours     netip.Addr  // yiaddr: what the server gives
	Requested netip.Addr  // option 50
	Server    netip.Addr  // option 54
	Seconds   uint32      // option 51
	Timed     bool        // option 51 is there
	MaxSize   uint16      // option 57: of the IP packet that the client takes; 0: not said
	ClientID  []byte      // option 61
	Params    []byte      // option 55
}

// ReadDHCP4 reads a frame that carries a DHCPv4 message, for those who need
// more of it than Parse tells. Frames of another kind are refused with Other.
func ReadDHCP4(dir Direction, frame []byte, wire int) (DHCP4, Drop) {
	p, d := open(frame, wire)
	if d != Taken {
		return DHCP4{}, d
	}
	if p.typ != TypeIPv4 {
		return DHCP4{}, Other
	}
	if d := p.network(); d != Taken {
		return DHCP4{}, d
	}
	if p.proto != protoUDP {
		return DHCP4{}, Other
	}
	port, d := p.udp()
	switch {
	case d != Taken:
		return DHCP4{}, d
	case port != portServer4 && port != portClient4:
		return DHCP4{}, Other
	}
	var m DHCP4
	if d := m.read(dir, &p, port); d != Taken {
		return DHCP4{}, d
	}
	return m, Taken
}

func (m *DHCP4) read(dir Direction, p *parts, port uint16) Drop {
	b := p.body
	switch {
	case (port == portServer4) != (dir == FromGuest):
		return DHCPDirection
	case len(b) < DHCPFixed4:
		return DHCPShort
	case (b[0] == 1) != (port == portServer4) || b[0] == 0 || b[0] > 2:
		return DHCPType
	case b[1] != 1 || b[2] != 6:
		return DHCPHardware
	case binary.BigEndian.Uint32(b[236:]) != DHCPMagic4:
		return DHCPMagic
	}
	m.XID = binary.BigEndian.Uint32(b[4:])
	m.Broadcast = b[10]&0x80 != 0
	m.MAC = overlay.MAC(b[28:34])
	switch {
	case dir == FromGuest && ip4(b[24:28]) != netip.IPv4Unspecified(): // a reply may come through a relay agent and keep its giaddr (RFC 1542 section 4.1.2)
		return DHCPRelay
	case dir == FromGuest && m.MAC != p.src, dir == ToGuest && p.dst[0]&1 == 0 && m.MAC != p.dst, !m.MAC.IsUnicast():
		return DHCPMACMismatch
	case !optional4(&m.Has, b[12:16]), !optional4(&m.Yours, b[16:20]):
		return DHCPAddress
	}
	var seen seen4
	if d := m.options(b[DHCPFixed4:], p.cut, &seen); d != Taken {
		return d
	}
	cut := p.cut && !seen.ended
	if seen.overload&1 != 0 { // RFC 2132 section 9.3: file first
		if d := m.options(b[108:236], false, &seen); d != Taken {
			return d
		}
	}
	if seen.overload&2 != 0 {
		if d := m.options(b[44:108], false, &seen); d != Taken {
			return d
		}
	}
	return m.check(cut, port)
}

// check tells whether the message is one that its sender may send.
func (m *DHCP4) check(cut bool, port uint16) Drop {
	fromServer := m.Type == Offer4 || m.Type == Ack4 || m.Type == Nak4
	switch {
	case m.Type == 0 && cut:
		return Cut
	case m.Type == 0, m.Type > Inform4, fromServer != (port == portClient4):
		return DHCPType
	case (m.Type == Offer4 || m.Type == Ack4) && m.Yours.IsValid() && (!m.Timed || !m.Server.IsValid()):
		if cut {
			return Cut
		}
		return DHCPNoLease
	}
	return Taken
}

// optional4 sets a to an address that may be 0.0.0.0: not given.
func optional4(a *netip.Addr, b []byte) bool {
	ip := ip4(b)
	if ip.IsUnspecified() {
		return true
	}
	*a = ip
	return unicast(ip)
}

// seen4 is what the walks over the up to three fields of options share.
type seen4 struct {
	codes    [4]uint64 // of the options that are read here
	overload uint8
	ended    bool // the field of the message itself came to its end mark
}

// options walks one field of options. An option that is read here may be
// there once: RFC 3396 would join two to one, and of those read here no joined
// one has a valid length.
func (m *DHCP4) options(b []byte, cut bool, seen *seen4) Drop {
	for len(b) > 0 {
		code := b[0]
		if code == 0 {
			b = b[1:]
			continue
		}
		if code == 255 {
			seen.ended = true
			return Taken
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			if cut {
				return Taken
			}
			return DHCPOption
		}
		v := b[2 : 2+int(b[1])]
		b = b[2+len(v):]
		switch code {
		case 50, 51, 52, 53, 54, 55, 57, 61, 80:
		default:
			continue
		}
		if seen.codes[code>>6]&(1<<(code&63)) != 0 {
			return DHCPOption
		}
		seen.codes[code>>6] |= 1 << (code & 63)
		if d := m.option(code, v, seen); d != Taken {
			return d
		}
	}
	return Taken
}

// width4 is the fixed length of options that have one.
var width4 = [...]int{50: 4, 51: 4, 52: 1, 53: 1, 54: 4, 57: 2}

func (m *DHCP4) option(code byte, v []byte, seen *seen4) Drop {
	if int(code) < len(width4) && width4[code] != 0 && len(v) != width4[code] {
		return DHCPOption
	}
	switch code {
	case 50:
		if !optional4(&m.Requested, v) {
			return DHCPAddress
		}
	case 51:
		m.Seconds, m.Timed = binary.BigEndian.Uint32(v), true
	case 52:
		seen.overload = v[0]
	case 53:
		m.Type = v[0]
	case 54:
		if !optional4(&m.Server, v) {
			return DHCPAddress
		}
	case 55:
		m.Params = v
	case 57:
		m.MaxSize = binary.BigEndian.Uint16(v)
	case 61:
		m.ClientID = v
	case 80:
		m.Rapid = true
	}
	return Taken
}

var kinds4 = [...]Kind{
	Discover4: DHCPDiscover, Offer4: DHCPOffer, Request4: DHCPRequest, Decline4: DHCPDecline,
	Ack4: DHCPAck, Nak4: DHCPNak, Release4: DHCPRelease, Inform4: DHCPInform,
}

func factDHCP4(f *Fact, dir Direction, p *parts, port uint16) Drop {
	var m DHCP4
	if d := m.read(dir, p, port); d != Taken {
		return d
	}
	f.Kind, f.MAC, f.XID, f.Server = kinds4[m.Type], m.MAC, m.XID, m.Server
	switch {
	case m.Type == Nak4:
	case port == portClient4:
		if f.IP = m.Yours; f.IP.IsValid() {
			f.Seconds = m.Seconds
		}
	default:
		if f.Target = m.Requested; !f.Target.IsValid() {
			f.Target = m.Has
		}
	}
	return Taken
}
