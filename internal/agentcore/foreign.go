package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/plan"
)

// Foreign VTEPs: tunnel end points of a network that no agent owns. The host
// takes what they send in that network, whatever stands behind them, and sends
// them what it floods.

// ownRows brings those rows of a network up to date that are no endpoint's: of
// its foreign VTEPs, and of its router. That foreign VTEPs are known to the
// underlay's guard is asked for as long as the network is there: whether it is
// served shows only when the devices were looked at, and by then an agent that
// starts would have shut them out.
func (c *Core) ownRows(n *network) {
	old, rows := n.own, []hoststate.Row(nil)
	if n.live() {
		vteps := c.foreignVTEPs(n)
		for _, a := range vteps {
			rows = append(rows, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableVTEP, IP: a}})
		}
		if n.serving {
			rows = plan.ForeignRows(rows, n.rec.VNI, n.rec.Flood, vteps)
		}
		if n.serving && n.routes() {
			rows = plan.RouterRows(rows, n.rec.VNI, c.cfg.VTEP, c.within(n))
		}
	}
	n.own = rows
	defer c.routedByMembers(n)
	defer c.relist(n)
	by, has := memberBy(n), func(list []hoststate.Row, k hoststate.Key) bool {
		return slices.ContainsFunc(list, func(r hoststate.Row) bool { return r.Key == k })
	}
	for _, r := range rows {
		if !has(old, r.Key) {
			c.add(c.setOf(n, r.Key), r, by, n.rev)
		}
	}
	for _, r := range slices.Backward(old) {
		if !has(rows, r.Key) {
			c.remove(c.setOf(n, r.Key), r.Key, by)
		}
	}
}

// setOf is where a network's own row is kept.
func (c *Core) setOf(n *network, k hoststate.Key) *rowSet {
	if k.Table == hoststate.TableVTEP {
		return c.global
	}
	return n.rows
}

// foreignVTEPs are those that this host can send to, and that are no host's:
// an address that a host has been given meanwhile keeps its checks.
func (c *Core) foreignVTEPs(n *network) (out []netip.Addr) {
	for _, a := range n.rec.Foreign {
		if a != c.cfg.VTEP && a.Is4() == c.cfg.VTEP.Is4() && !c.isHost(a) {
			out = append(out, a)
		}
	}
	return out
}

// isHost reports whether a host has a tunnel end point, alive or dead.
func (c *Core) isHost(a netip.Addr) bool {
	for uid, h := range c.hosts { // order-free: any will do
		if uid != c.cfg.Self && h.declared() == a {
			return true
		}
	}
	return false
}

// declared is the host's tunnel end point, whether it is alive or not; invalid
// if it has none.
func (h *hostEntry) declared() netip.Addr {
	if h.rec == nil || h.gone {
		return netip.Addr{}
	}
	return h.rec.VTEP
}

// foreignOrHost looks anew at the networks that have an address for foreign
// which a host has, or had.
func (c *Core) foreignOrHost(addrs ...netip.Addr) {
	for _, n := range c.sortedNets() {
		if n.live() && slices.ContainsFunc(n.rec.Foreign, func(a netip.Addr) bool { return slices.Contains(addrs, a) }) {
			c.ownRows(n)
		}
	}
}
