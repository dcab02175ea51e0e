package answer

import (
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// V4 is what a guest is told by DHCPv4. Server is needed; without Addr only
// DHCPINFORM is answered; what else is zero is not told.
type V4 struct {
	MAC     overlay.MAC  // Ethernet source of the answers
	Server  netip.Addr   // server identifier and IPv4 source
	Addr    netip.Prefix // the guest's address, with the length of its subnet
	Gateway netip.Addr
	MTU     uint16 // told from 68 on (RFC 2132 section 5.1)
	DNS     []netip.Addr
	Search  []string // domains; the first is the guest's own
	Seconds uint32   // of the lease; Forever
	Routes  []Route
}

// Route is a way to a prefix (RFC 3442). A Via of 0.0.0.0 means: on the link.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Options of DHCPv4 (RFC 2132, 3397, 3442, 4039).
const (
	optMask      = 1
	optRouter    = 3
	optDNS       = 6
	optDomain    = 15
	optMTU       = 26
	optLease     = 51
	optType      = 53
	optServer    = 54
	optRenew     = 58
	optRebind    = 59
	optClientID  = 61
	optRapid     = 80
	optSearch    = 119
	optClassless = 121
	optEnd       = 255

	leastMTU   = 68
	leastTaken = 576 // what every client takes (RFC 2131 section 2)
	bootpLen   = 300 // what old relays and clients expect at least (RFC 1542 section 2.1)
)

var all4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// DHCP4 answers a guest's message m as RFC 2131 section 4.3 says for an address
// that is reserved for the guest: OFFER, ACK, or NAK for a wrong address. The
// destination is that of section 4.1. Options that do not fit into what the
// client takes are left out whole, the least needed ones first.
func DHCP4(m packet.DHCP4, c V4) ([]byte, Silence) {
	if !c.Server.Is4() {
		return nil, NoAddress
	}
	own := c.Addr.Addr()
	known := own.Is4() && c.Seconds > 0
	switch m.Type {
	case packet.Inform4:
		if !m.Has.IsValid() {
			return nil, Malformed
		}
		return c.reply(m, packet.Ack4, netip.Addr{}), Spoken
	case packet.Discover4, packet.Request4:
		if !known {
			return nil, NoAddress
		}
	default:
		return nil, NotAsked
	}
	if m.Type == packet.Discover4 {
		if m.Rapid {
			return c.reply(m, packet.Ack4, own), Spoken
		}
		return c.reply(m, packet.Offer4, own), Spoken
	}
	wants := m.Requested // SELECTING and INIT-REBOOT
	if !wants.IsValid() {
		wants = m.Has // RENEWING and REBINDING
	}
	switch {
	case m.Server.IsValid() && m.Server != c.Server:
		return nil, OtherServer
	case wants != own:
		return c.reply(m, packet.Nak4, netip.Addr{}), Spoken
	}
	return c.reply(m, packet.Ack4, own), Spoken
}

func (c V4) reply(m packet.DHCP4, typ uint8, yours netip.Addr) []byte {
	b := make([]byte, packet.DHCPFixed4, leastTaken)
	b[0], b[1], b[2] = 2, 1, 6 // reply, Ethernet
	binary.BigEndian.PutUint32(b[4:], m.XID)
	if m.Broadcast {
		b[10] = 0x80
	}
	if typ == packet.Ack4 && m.Has.IsValid() {
		copy(b[12:], m.Has.AsSlice())
	}
	if yours.IsValid() {
		copy(b[16:], yours.AsSlice())
	}
	copy(b[28:], m.MAC[:])
	binary.BigEndian.PutUint32(b[236:], packet.DHCPMagic4)

	o := options4{b: b, most: c.most(m)}
	o.add(optType, []byte{typ})
	o.add(optServer, c.Server.AsSlice())
	if len(m.ClientID) > 0 {
		o.add(optClientID, m.ClientID) // RFC 6842 section 3
	}
	if typ != packet.Nak4 {
		c.tell(&o, m, yours.IsValid())
	}
	b = append(o.b, optEnd)
	for len(b) < bootpLen {
		b = append(b, 0)
	}
	to, dst := all4, packet.Broadcast
	switch {
	case typ == packet.Nak4:
	case m.Has.IsValid():
		to, dst = m.Has, m.MAC
	case !m.Broadcast:
		to, dst = yours, m.MAC
	}
	return packet.UDP(dst, c.MAC, netip.AddrPortFrom(c.Server, 67), netip.AddrPortFrom(to, 68), b)
}

// tell adds the options of an OFFER or ACK, the most needed first; the mask
// stands before the router (RFC 2132 section 3.3).
func (c V4) tell(o *options4, m packet.DHCP4, lease bool) {
	if lease {
		o.add(optLease, be32(c.Seconds))
		if c.Seconds != Forever {
			o.add(optRenew, be32(c.Seconds/2)) // RFC 2131 section 4.4.5
			o.add(optRebind, be32(uint32(uint64(c.Seconds)*7/8)))
		}
		if m.Type == packet.Discover4 && m.Rapid {
			o.add(optRapid, nil)
		}
	}
	if c.Addr.IsValid() && c.Addr.Addr().Is4() {
		o.add(optMask, be32(uint32(uint64(0xffffffff)<<(32-c.Addr.Bits()))))
	}
	if c.Gateway.Is4() {
		o.add(optRouter, c.Gateway.AsSlice())
	}
	if c.MTU >= leastMTU {
		o.add(optMTU, []byte{byte(c.MTU >> 8), byte(c.MTU)})
	}
	if list := addresses(c.DNS, false, 255/4); len(list) > 0 {
		o.add(optDNS, list)
	}
	if list := c.routes(); len(list) > 0 {
		o.add(optClassless, list)
	}
	if list := names(c.Search); len(list) > 0 {
		if len(names(c.Search[:1])) > 0 {
			o.add(optDomain, []byte(c.Search[0]))
		}
		o.add(optSearch, list)
	}
}

// most is the size of the DHCP message that client and network take.
func (c V4) most(m packet.DHCP4) int {
	most := max(leastTaken, int(m.MaxSize))
	return min(most, max(leastTaken, int(c.MTU)), 1500) - 20 - 8
}

// routes encodes the routes of RFC 3442. A client that takes them ignores the
// router option, so the gateway is among them.
func (c V4) routes() []byte {
	var b []byte
	byDefault := false
	for _, r := range c.Routes {
		if !r.To.IsValid() || !r.To.Addr().Is4() || !r.Via.Is4() {
			continue
		}
		b = appendRoute(b, r)
		byDefault = byDefault || r.To.Bits() == 0
	}
	if len(b) > 0 && !byDefault && c.Gateway.Is4() {
		b = appendRoute(b, Route{netip.PrefixFrom(netip.IPv4Unspecified(), 0), c.Gateway})
	}
	return b
}

func appendRoute(b []byte, r Route) []byte {
	to := r.To.Masked().Addr().As4()
	b = append(b, byte(r.To.Bits()))
	b = append(b, to[:(r.To.Bits()+7)/8]...)
	return append(b, r.Via.AsSlice()...)
}

// options4 is a message that grows option by option.
type options4 struct {
	b    []byte
	most int // of the message with its end mark
}

func (o *options4) add(code byte, v []byte) {
	if len(v) > 255 || len(o.b)+2+len(v)+1 > o.most {
		return
	}
	o.b = append(append(o.b, code, byte(len(v))), v...)
}
