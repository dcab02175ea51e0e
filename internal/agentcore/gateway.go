package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/answer"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
	"culvert/internal/plan"
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

// routerOf is the gateway that tells a guest something of a packet: the one of
// the subnet that it is from. A next hop that sends for a prefix behind it is
// told by the first of that family.
func (n *network) routerOf(f *packet.Forward) netip.Addr {
	a := n.gatewayOf(f.From)
	if !a.IsValid() && slices.ContainsFunc(n.hops[nextHop{n.uid, f.MAC}], func(p netip.Prefix) bool { return p.Contains(f.From) }) {
		for _, s := range n.rec.Subnets {
			if s.Gateway.Is4() == f.From.Is4() {
				return s.Gateway
			}
		}
	}
	return a
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
	} else {
		frame = c.undelivered(n, t, f)
	}
	if frame != nil {
		c.send(t, frame)
	}
}

// undelivered says why a packet was not sent on; nil if there is nothing to say:
// about one to all of a subnet, which is no unicast (RFC 1812 section 4.3.2.7),
// and if the tables have a way meanwhile.
func (c *Core) undelivered(n *network, t *tap, f *packet.Forward) []byte {
	_, linked := linkOf(c.subnets(n, n.rec.Reach), f.To)
	w := waysOf(n.rec)
	link, any := linkOf(c.subnets(n, w.others()), f.To)
	if any && toAll(link, f.To) {
		return nil
	}
	router, why := n.routerOf(f), answer.NoRoute
	mtu, way, route := n.wayTo(f.To, link)
	switch {
	case way && f.Hops <= 1:
		why = answer.TooFar
	case way && mtu != 0 && f.Length > int(mtu):
		return answer.TooBig(*f, mtu, overlay.ServerMAC, router)
	case way:
		return nil
	case linked || route:
		if !c.nobodyHas(n, t, f.To) {
			return nil // it is not known yet whether anybody has it
		}
		why = answer.NoHost
	}
	return answer.Undelivered(*f, why, overlay.ServerMAC, router)
}

// nobodyHas reports whether nobody is known to have an address that the router
// has a link to. In a network that is told on demand it is asked for first.
func (c *Core) nobodyHas(n *network, t *tap, a netip.Addr) bool {
	for _, uid := range n.rec.Reach {
		o := c.nets[uid]
		if o != nil && o.live() && slices.ContainsFunc(o.rec.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Contains(a) }) {
			return c.wayTo(o, t, a)
		}
	}
	return true
}

// wayTo reports whether the tables have a way to an address, which packets of
// that many bytes may take (0: of any number), and whether a prefix leads there
// that is longer than that of the subnet link, its next hop bound or not.
func (n *network) wayTo(a netip.Addr, link netip.Prefix) (mtu uint16, way, route bool) {
	row := func(k hoststate.Key) *rowState {
		if rs := n.rows.get(k); rs != nil && rs.wanted() {
			return rs
		}
		return nil
	}
	if rs := row(hoststate.Key{Table: hoststate.TableReach, VNI: n.rec.VNI, IP: a}); rs != nil {
		return rs.want().MTU, true, false
	}
	for _, r := range n.rec.Routes {
		if r.Prefix.Contains(a) && r.Prefix.Bits() > link.Bits() {
			route = true
			way = way || row(plan.RouteKey(n.rec.VNI, r.Prefix)) != nil
		}
	}
	return 0, way, route
}

// subnets are those of a network and of others.
func (c *Core) subnets(n *network, others []overlay.UID) (out []netip.Prefix) {
	for _, s := range n.rec.Subnets {
		out = append(out, s.Prefix)
	}
	for _, uid := range others {
		if o := c.nets[uid]; o != nil && o.live() {
			for _, s := range o.rec.Subnets {
				out = append(out, s.Prefix)
			}
		}
	}
	return out
}

// linkOf is the first of subnets that an address is in; if it is in none, one
// that is shorter than any.
func linkOf(subnets []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	if i := slices.IndexFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) }); i >= 0 {
		return subnets[i], true
	}
	return netip.Prefix{}, false
}

// within are the subnets of a network, and of those that it has ways to, that
// one of its routes goes around: what is sent there to nobody is not the next
// hop's.
func (c *Core) within(n *network) []netip.Prefix {
	if len(n.rec.Routes) == 0 {
		return nil
	}
	w := waysOf(n.rec)
	return slices.DeleteFunc(c.subnets(n, w.others()), func(p netip.Prefix) bool {
		return !slices.ContainsFunc(n.rec.Routes, func(r overlay.NextHop) bool { return r.Prefix.Bits() < p.Bits() && r.Prefix.Contains(p.Addr()) })
	})
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
