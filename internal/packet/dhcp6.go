package packet

import (
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
)

// Message types of DHCPv6 (RFC 8415 section 7.3).
const (
	Solicit6 uint8 = iota + 1
	Advertise6
	Request6
	Confirm6
	Renew6
	Rebind6
	Reply6
	Release6
	Decline6
	Reconfigure6
	Information6
	RelayForward6
	RelayReply6
)

// Options of DHCPv6 that Culvert reads or writes (RFC 8415 section 21, RFC
// 3646).
const (
	OptClientID6 uint16 = 1
	OptServerID6 uint16 = 2
	OptIANA6     uint16 = 3 // identity association for addresses
	OptIATA6     uint16 = 4 // for temporary addresses
	OptIAAddr6   uint16 = 5
	OptStatus6   uint16 = 13
	OptRapid6    uint16 = 14
	OptDNS6      uint16 = 23
	OptSearch6   uint16 = 24
)

// Bounds of one message.
const (
	MostIAs    = 4
	MostLeases = 16
)

// Lease6 is one address of a DHCPv6 message.
type Lease6 struct {
	IP      netip.Addr
	Seconds uint32 // valid lifetime; all ones: for ever; 0: no more
}

// IA6 is one identity association: of type OptIANA6 or OptIATA6, with its
// addresses Leases[First:First+N] of the message.
type IA6 struct {
	Type     uint16
	ID       uint32
	First, N int
}

// DHCP6 is one DHCPv6 message as far as Culvert uses it. Slices are views of
// the frame.
type DHCP6 struct {
	Type     uint8
	Rapid    bool
	XID      uint32 // 24 bits
	ClientID []byte // DUIDs (RFC 8415 section 11); nil: not given
	ServerID []byte
	IAs      [MostIAs]IA6
	NIA      int
	Leases   [MostLeases]Lease6
	NLease   int
	MAC      overlay.MAC // of the client: the frame's source from a guest, its destination to one
	From     netip.Addr  // IPv6 source of the packet
}

// ReadDHCP6 reads a frame that carries a DHCPv6 message, for those who need
// more of it than Parse tells. Frames of another kind are refused with Other.
func ReadDHCP6(dir Direction, frame []byte, wire int) (DHCP6, Drop) {
	p, d := open(frame, wire)
	if d != Taken {
		return DHCP6{}, d
	}
	if p.typ != TypeIPv6 {
		return DHCP6{}, Other
	}
	if d := p.network(); d != Taken {
		return DHCP6{}, d
	}
	if p.proto != protoUDP {
		return DHCP6{}, Other
	}
	port, d := p.udp()
	switch {
	case d != Taken:
		return DHCP6{}, d
	case port != portServer6 && port != portClient6:
		return DHCP6{}, Other
	}
	var m DHCP6
	if d := m.read(dir, &p, port); d != Taken {
		return DHCP6{}, d
	}
	return m, Taken
}

func (m *DHCP6) read(dir Direction, p *parts, port uint16) Drop {
	b := p.body
	switch {
	case (port == portServer6) != (dir == FromGuest):
		return DHCP6Direction
	case p.cut:
		return Cut
	case len(b) < 4:
		return DHCP6Short
	}
	m.Type, m.XID, m.From = b[0], binary.BigEndian.Uint32(b)&0xffffff, p.from
	if m.MAC = p.src; dir == ToGuest {
		m.MAC = p.dst
	}
	switch m.Type {
	case Solicit6, Request6, Confirm6, Renew6, Rebind6, Release6, Decline6, Information6:
		if port != portServer6 {
			return DHCP6Type
		}
	case Advertise6, Reply6:
		if port != portClient6 {
			return DHCP6Type
		}
	case RelayForward6, RelayReply6:
		return DHCP6Relay
	default: // Reconfigure too: it needs an authentication that is not read here
		return DHCP6Type
	}
	if !unicast(p.from) || !m.MAC.IsUnicast() {
		return DHCP6Address
	}
	return m.options(b[4:])
}

// option6 takes the first option off b.
func option6(b []byte) (code uint16, v, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, nil, nil, false
	}
	size := 4 + int(binary.BigEndian.Uint16(b[2:]))
	if len(b) < size {
		return 0, nil, nil, false
	}
	return binary.BigEndian.Uint16(b), b[4:size], b[size:], true
}

func (m *DHCP6) options(b []byte) Drop {
	for len(b) > 0 {
		code, v, rest, ok := option6(b)
		if !ok {
			return DHCP6Option
		}
		b = rest
		switch code {
		case OptClientID6, OptServerID6:
			id := &m.ClientID
			if code == OptServerID6 {
				id = &m.ServerID
			}
			if len(v) < 3 || len(v) > 130 || *id != nil { // RFC 8415 section 11.1: 2 bytes of type, 1 to 128 more
				return DHCP6Option
			}
			*id = v
		case OptRapid6:
			m.Rapid = true
		case OptIANA6, OptIATA6:
			if d := m.association(code, v); d != Taken {
				return d
			}
		}
	}
	return Taken
}

func (m *DHCP6) association(code uint16, v []byte) Drop {
	head := 12 // IAID, T1, T2
	if code == OptIATA6 {
		head = 4
	}
	if len(v) < head {
		return DHCP6Option
	}
	if m.NIA == MostIAs {
		return DHCP6Many
	}
	ia := &m.IAs[m.NIA]
	m.NIA++
	*ia = IA6{Type: code, ID: binary.BigEndian.Uint32(v), First: m.NLease}
	for b := v[head:]; len(b) > 0; {
		inner, v, rest, ok := option6(b)
		if !ok {
			return DHCP6Option
		}
		b = rest
		if inner != OptIAAddr6 {
			continue
		}
		if len(v) < 24 { // address, preferred, valid (RFC 8415 section 21.6)
			return DHCP6Option
		}
		if m.NLease == MostLeases {
			return DHCP6Many
		}
		l := Lease6{IP: ip6(v[:16]), Seconds: binary.BigEndian.Uint32(v[20:])}
		if l.IP.IsUnspecified() && m.Type != Advertise6 && m.Type != Reply6 { // a client's hint without an address (section 18.2.1)
			continue
		}
		if !unicast(l.IP) {
			return DHCP6Address
		}
		m.Leases[m.NLease] = l
		m.NLease, ia.N = m.NLease+1, ia.N+1
	}
	return Taken
}

var kinds6 = [...]Kind{
	Solicit6: DHCP6Solicit, Advertise6: DHCP6Advertise, Request6: DHCP6Request, Confirm6: DHCP6Confirm,
	Renew6: DHCP6Renew, Rebind6: DHCP6Rebind, Reply6: DHCP6Reply, Release6: DHCP6Release,
	Decline6: DHCP6Decline, Information6: DHCP6Information,
}

func factDHCP6(f *Fact, dir Direction, p *parts, port uint16) Drop {
	var m DHCP6
	if d := m.read(dir, p, port); d != Taken {
		return d
	}
	f.Kind, f.XID, f.MAC = kinds6[m.Type], m.XID, m.MAC
	if m.NLease > 1 {
		f.Flags |= FlagMore
	}
	switch {
	case m.NLease == 0:
	case port == portClient6:
		f.IP, f.Seconds = m.Leases[0].IP, m.Leases[0].Seconds
	default:
		f.Target = m.Leases[0].IP
	}
	return Taken
}
