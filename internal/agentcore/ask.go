package agentcore

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// What guests ask for, and what the kernel says that it misses, in networks of
// which not all is known here.

// asksFor takes a guest's question after an address in an on-demand network. It
// reports whether it is known that nobody has the address.
func (c *Core) asksFor(n *network, g *guest, f packet.Fact) (nobody bool) {
	a := f.Target
	if n.serves(a) || !n.mayHave(a) || n.hasHere(a) || n.declares(g, a) {
		return false
	}
	if _, known := n.has(a); known {
		c.wait(n, g.tap, f)
		return false
	}
	if c.demand(n, overlay.Want{Address: a}, g.tap, g.mac) {
		return true
	}
	c.wait(n, g.tap, f)
	return false
}

// declares reports whether an address is one of the guest's own port: the guest
// asks whether it may have it.
func (n *network) declares(g *guest, a netip.Addr) bool {
	p := n.portOf(g)
	if p == nil {
		return false
	}
	for _, own := range p.Addresses {
		if own == a {
			return true
		}
	}
	return a == overlay.EUI64LinkLocal(g.mac)
}

// WantsMisses reports whether the kernel is to tell of misses: while a network
// is served here that is told on demand.
func (c *Core) WantsMisses() bool {
	for _, n := range c.nets { // order-free: any will do
		if n.demanded && n.serving && n.vxlan != 0 {
			return true
		}
	}
	return false
}

// missed takes a miss. It says that somebody here asked for an address or sent
// to a MAC, not that the kernel ought to have it.
func (c *Core) missed(m hoststate.Miss) {
	c.stats.Misses++
	n := c.byVNI[m.VNI]
	if n == nil || !n.live() || !n.serving || !n.log.complete {
		return
	}
	switch e := n.eps[m.MAC]; {
	case m.IP.IsValid():
		c.missedAddress(n, m.IP)
	case !n.log.partial || !m.MAC.IsUnicast() || m.MAC == overlay.ServerMAC || n.guests[m.MAC] != nil:
	case e == nil || e.rec == nil || e.gone:
		c.demand(n, overlay.Want{MAC: m.MAC}, nil, overlay.MAC{})
	}
}

// missedAddress takes a miss of an address: of the network, or, of a packet that
// was to be routed, of one that it reaches.
func (c *Core) missedAddress(n *network, a netip.Addr) {
	if !n.serves(a) && n.mayHave(a) && !n.hasHere(a) {
		if _, known := n.has(a); n.log.partial && !known {
			c.demand(n, overlay.Want{Address: a}, nil, overlay.MAC{})
		}
		return
	}
	for _, uid := range n.reach {
		if o := c.nets[uid]; o != nil && o.lacks(a) {
			c.demand(o, overlay.Want{Address: a}, nil, overlay.MAC{})
		}
	}
}

// lacks reports whether an address is in a subnet of the network, which is told
// on demand, and nobody is known to have it.
func (n *network) lacks(a netip.Addr) bool {
	if !n.live() || !n.log.complete || !n.log.partial || len(n.rec.Subnets) == 0 || a.Is6() && a.IsLinkLocalUnicast() || !n.mayHave(a) {
		return false
	}
	_, known := n.has(a)
	return !known
}

// wayTo has an address of a network wanted that a guest sent a packet to by way
// of its router. It reports whether nobody has it, as far as that is known.
func (c *Core) wayTo(o *network, t *tap, a netip.Addr) (nobody bool) {
	return !o.lacks(a) || c.demand(o, overlay.Want{Address: a}, t, overlay.MAC{})
}
