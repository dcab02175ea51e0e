package answer

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// V6 is what a guest is told by DHCPv6. Server is needed; without Addr an
// address is refused with NoAddrsAvail and the rest is told.
type V6 struct {
	MAC     overlay.MAC  // Ethernet source of the answers; the server's identity is made of it
	Server  netip.Addr   // link-local IPv6 source
	Addr    netip.Addr   // the guest's address
	Prefix  netip.Prefix // the link's, to answer CONFIRM by
	DNS     []netip.Addr
	Search  []string
	Seconds uint32 // valid and preferred lifetime; Forever
}

// Status codes (RFC 8415 section 21.13).
const (
	statusSuccess   = 0
	statusNoAddrs   = 2
	statusNoBinding = 3
	statusNotOnLink = 4
)

// mostDNS6 bounds a list of servers; clients use three.
const mostDNS6 = 16

// ServerID is the identity that the answers carry: a DUID of the link-layer
// address (RFC 8415 section 11.4).
func (c V6) ServerID() []byte { return append([]byte{0, 3, 0, 1}, c.MAC[:]...) }

// DHCP6 answers a guest's message m as RFC 8415 section 18.3 says for an
// address that is reserved for the guest. One association gets it: the one
// that names it already, else the first that is not temporary.
func DHCP6(m packet.DHCP6, c V6) ([]byte, Silence) {
	if !c.Server.Is6() || !m.From.Is6() {
		return nil, NoAddress
	}
	if s := c.wants(m); s != Spoken {
		return nil, s
	}
	o := options6{packet.Reply6, byte(m.XID >> 16), byte(m.XID >> 8), byte(m.XID)}
	if m.ClientID != nil {
		o.add(packet.OptClientID6, m.ClientID)
	}
	o.add(packet.OptServerID6, c.ServerID())
	switch m.Type {
	case packet.Solicit6:
		if m.Rapid {
			o.add(packet.OptRapid6, nil)
		} else {
			o[0] = packet.Advertise6
		}
		c.associations(&o, m)
	case packet.Request6, packet.Renew6, packet.Rebind6:
		c.associations(&o, m)
	case packet.Confirm6:
		status := uint16(statusSuccess)
		for _, l := range m.Leases[:m.NLease] {
			if !c.Prefix.Contains(l.IP) {
				status = statusNotOnLink
			}
		}
		o.status(status)
	case packet.Release6, packet.Decline6:
		o.status(statusSuccess) // section 18.3.7
	}
	if m.Type != packet.Release6 && m.Type != packet.Decline6 && m.Type != packet.Confirm6 {
		if list := addresses(c.DNS, true, mostDNS6); len(list) > 0 {
			o.add(packet.OptDNS6, list)
		}
		if list := names(c.Search); len(list) > 0 && len(list) < 512 {
			o.add(packet.OptSearch6, list)
		}
	}
	return packet.UDP(m.MAC, c.MAC, netip.AddrPortFrom(c.Server, 547), netip.AddrPortFrom(m.From, 546), o), Spoken
}

// wants tells whether m is to be answered: the discards of RFC 8415 section 16.
func (c V6) wants(m packet.DHCP6) Silence {
	mine := bytes.Equal(m.ServerID, c.ServerID())
	switch m.Type {
	case packet.Solicit6, packet.Rebind6, packet.Confirm6:
		if m.ClientID == nil || m.ServerID != nil {
			return Malformed
		}
		if m.Type == packet.Confirm6 && (m.NLease == 0 || !c.Prefix.IsValid()) {
			return NoAddress // section 18.3.3: without an address, or if it cannot tell, a server is silent
		}
	case packet.Request6, packet.Renew6, packet.Release6, packet.Decline6:
		if m.ClientID == nil || m.ServerID == nil {
			return Malformed
		}
		if !mine {
			return OtherServer
		}
	case packet.Information6:
		if m.NIA > 0 {
			return Malformed
		}
		if m.ServerID != nil && !mine {
			return OtherServer
		}
	default:
		return NotAsked
	}
	return Spoken
}

// associations answers each association of m.
func (c V6) associations(o *options6, m packet.DHCP6) {
	chosen := c.choose(m)
	refusal := uint16(statusNoAddrs)
	if m.Type == packet.Renew6 || m.Type == packet.Rebind6 {
		refusal = statusNoBinding
	}
	for i, ia := range m.IAs[:m.NIA] {
		v := options6(be32(ia.ID))
		given := i == chosen
		if ia.Type == packet.OptIANA6 {
			t1, t2 := uint32(0), uint32(0)
			if given {
				t1, t2 = part(c.Seconds, 5), part(c.Seconds, 8) // section 21.4
			}
			v = append(append(v, be32(t1)...), be32(t2)...)
		}
		if given {
			v.address(c.Addr, c.Seconds)
		}
		if m.Type == packet.Renew6 || m.Type == packet.Rebind6 { // section 18.3.4: what the client must give up
			for _, l := range m.Leases[ia.First : ia.First+ia.N] {
				if l.IP != c.Addr || !given {
					v.address(l.IP, 0)
				}
			}
		}
		if !given {
			v.status(refusal)
		}
		o.add(ia.Type, v)
	}
}

// choose returns the index of the association that gets the address, -1: none.
func (c V6) choose(m packet.DHCP6) int {
	first := -1
	if !c.Addr.Is6() || c.Seconds == 0 {
		return first
	}
	for i, ia := range m.IAs[:m.NIA] {
		if ia.Type != packet.OptIANA6 {
			continue
		}
		for _, l := range m.Leases[ia.First : ia.First+ia.N] {
			if l.IP == c.Addr {
				return i
			}
		}
		if first < 0 {
			first = i
		}
	}
	return first
}

// options6 is a message, or an option's inside, that grows option by option.
type options6 []byte

func (o *options6) add(code uint16, v []byte) {
	b := binary.BigEndian.AppendUint16(*o, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
	*o = append(b, v...)
}

func (o *options6) status(code uint16) {
	o.add(packet.OptStatus6, []byte{byte(code >> 8), byte(code)})
}

func (o *options6) address(ip netip.Addr, seconds uint32) {
	v := append(ip.AsSlice(), be32(seconds)...)
	o.add(packet.OptIAAddr6, append(v, be32(seconds)...))
}
