package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/answer"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// A network's router is the hosts of its guests, each for its own. The kernel
// sends on what can be; what it cannot, the port program hands up and drops, and
// here the guest is told why.

// routerLifetime is for how many seconds an advertisement makes a router the
// default one: three times as long as the longest time that RFC 4861 section
// 6.2.1 has between two by default.
const routerLifetime = 3 * 600

// lifetime is for how long the network's router is a default one of IPv6: not
// at all where it has none. Guests must not send to us what they could send
// elsewhere.
func (n *network) lifetime() uint16 {
	if n.routes() && slices.ContainsFunc(n.rec.Subnets, func(s overlay.Subnet) bool { return s.Gateway.Is6() }) {
		return routerLifetime
	}
	return 0
}

// gatewayOf is the gateway of the subnet that an address is in: invalid if
// there is none.
func (n *network) gatewayOf(a netip.Addr) netip.Addr {
	for _, s := range n.rec.Subnets {
		if s.Prefix.Contains(a) {
			return s.Gateway
		}
	}
	return netip.Addr{}
}

// routed answers for the router what a guest sent to it and was not sent on.
func (c *Core) routed(n *network, t *tap, f *packet.Forward) {
	if f == nil || !n.routes() {
		return
	}
	var frame []byte
	if n.serves(f.To) {
		switch frame = answer.Echo(*f, overlay.ServerMAC); f.Proto {
		case packet.ProtoTCP, packet.ProtoUDP:
			frame = answer.Undelivered(*f, answer.NoPort, overlay.ServerMAC, f.To)
		}
	} else if why, told := c.undelivered(n, f); told {
		frame = answer.Undelivered(*f, why, overlay.ServerMAC, n.gatewayOf(f.From))
	}
	if frame != nil {
		c.send(t, frame)
	}
}

// undelivered is why a packet was not sent on. Nothing is told about one to all
// of a subnet, which is no unicast (RFC 1812 section 4.3.2.7), or to whom the
// tables have a way meanwhile.
func (c *Core) undelivered(n *network, f *packet.Forward) (answer.Why, bool) {
	if row := n.rows.get(hoststate.Key{Table: hoststate.TableReach, VNI: n.rec.VNI, IP: f.To}); row != nil && row.wanted() {
		return answer.TooFar, f.Hops <= 1
	}
	subnet := func(o *network) (overlay.Subnet, bool) {
		i := slices.IndexFunc(o.rec.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Contains(f.To) })
		if i < 0 {
			return overlay.Subnet{}, false
		}
		return o.rec.Subnets[i], true
	}
	if s, ok := subnet(n); ok { // it is on the link, and not the router's to find
		return answer.NoHost, !toAll(s.Prefix, f.To)
	}
	for _, uid := range n.reach {
		if o := c.nets[uid]; o != nil && o.live() {
			if s, ok := subnet(o); ok {
				return answer.NoHost, !toAll(s.Prefix, f.To)
			}
		}
	}
	return answer.NoRoute, true
}

// toAll reports whether an address is not one guest's of a subnet: its first or
// its last (RFC 1812 section 5.3.5).
func toAll(p netip.Prefix, a netip.Addr) bool {
	if a.Is6() || p.Bits() >= 31 {
		return false
	}
	b := a.As4()
	host := (uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])) << p.Bits()
	return host == 0 || host == ^uint32(0)<<p.Bits()
}
