package answer

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// V6 is what a guest is told by DHCPv6. Server is needed; without Addrs
// addresses are refused with NoAddrsAvail and the rest is told.
type V6 struct {
	MAC    overlay.MAC // Ethernet source of the answers; the server's identity is made of it
	Server netip.Addr  // link-local IPv6 source
	// Addrs are the guest's addresses, each once; at most MostGiven are given.
	Addrs    []netip.Addr
	Prefixes []netip.Prefix // the link's, to answer CONFIRM by
	DNS      []netip.Addr
	Search   []string
	Seconds  uint32 // valid and preferred lifetime; Forever
}

// MostGiven is how many of a guest's addresses it is given. It names them all
// in its renewal, and the answer has besides them what it must give up: both are
// no longer than what is read, packet.MostLeases.
const MostGiven = 8

// Status codes (RFC 8415 section 21.13).
const (
	statusSuccess   = 0
	statusNoAddrs   = 2
	statusNoBinding = 3
	statusNotOnLink = 4
)

// mostDNS6 bounds a list of servers; clients use three.
const mostDNS6 = 16

// most6 is the size of a message that every link takes whole (RFC 8200 section
// 5), without its headers. Associations are never longer; what does not fit
// after them is left out.
const most6 = 1280 - 40 - 8

// ServerID is the identity that the answers carry: a DUID of the link-layer
// address (RFC 8415 section 11.4).
func (c V6) ServerID() []byte { return append([]byte{0, 3, 0, 1}, c.MAC[:]...) }

// DHCP6 answers a guest's message m as RFC 8415 section 18.3 says for
// addresses that are reserved for the guest. The association that names one has
// it. Of those that none names, one goes to each that has none yet and is not
// temporary, and what is left to the first.
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
			if !slices.ContainsFunc(c.Prefixes, func(p netip.Prefix) bool { return p.Contains(l.IP) }) {
				status = statusNotOnLink
			}
		}
		o.status(status)
	case packet.Release6, packet.Decline6:
		o.status(statusSuccess) // section 18.3.7
	}
	if m.Type != packet.Release6 && m.Type != packet.Decline6 && m.Type != packet.Confirm6 {
		if list := addresses(c.DNS, true, mostDNS6); len(list) > 0 && len(o)+4+len(list) <= most6 {
			o.add(packet.OptDNS6, list)
		}
		if list := names(c.Search); len(list) > 0 && len(o)+4+len(list) <= most6 {
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
		if m.Type == packet.Confirm6 && (m.NLease == 0 || len(c.Prefixes) == 0) {
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
	given := c.share(m)
	refusal := uint16(statusNoAddrs)
	room := packet.MostLeases
	for _, g := range given {
		room -= len(g)
	}
	if m.Type == packet.Renew6 || m.Type == packet.Rebind6 {
		refusal = statusNoBinding
	}
	for i, ia := range m.IAs[:m.NIA] {
		v := options6(be32(ia.ID))
		if ia.Type == packet.OptIANA6 {
			t1, t2 := uint32(0), uint32(0)
			if len(given[i]) > 0 {
				t1, t2 = part(c.Seconds, 5), part(c.Seconds, 8) // section 21.4
			}
			v = append(append(v, be32(t1)...), be32(t2)...)
		}
		for _, a := range given[i] {
			v.address(a, c.Seconds)
		}
		if m.Type == packet.Renew6 || m.Type == packet.Rebind6 { // section 18.3.4: what the client must give up
			for _, l := range m.Leases[ia.First : ia.First+ia.N] {
				if room > 0 && !slices.Contains(given[i], l.IP) {
					v.address(l.IP, 0)
					room--
				}
			}
		}
		if len(given[i]) == 0 {
			v.status(refusal)
		}
		o.add(ia.Type, v)
	}
}

// share gives the guest's addresses to the associations of m.
func (c V6) share(m packet.DHCP6) (given [packet.MostIAs][]netip.Addr) {
	first := slices.IndexFunc(m.IAs[:m.NIA], func(ia packet.IA6) bool { return ia.Type == packet.OptIANA6 })
	if first < 0 || c.Seconds == 0 {
		return given
	}
	var unnamed []netip.Addr
	for _, a := range c.Addrs[:min(len(c.Addrs), MostGiven)] {
		i := slices.IndexFunc(m.IAs[:m.NIA], func(ia packet.IA6) bool {
			return ia.Type == packet.OptIANA6 && slices.ContainsFunc(m.Leases[ia.First:ia.First+ia.N], func(l packet.Lease6) bool { return l.IP == a })
		})
		if i < 0 {
			unnamed = append(unnamed, a)
			continue
		}
		given[i] = append(given[i], a)
	}
	for _, a := range unnamed {
		to := first
		for i, ia := range m.IAs[:m.NIA] {
			if ia.Type == packet.OptIANA6 && len(given[i]) == 0 {
				to = i
				break
			}
		}
		given[to] = append(given[to], a)
	}
	return given
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
