package agentcore

import (
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/plan"
)

// replan brings the rows of one (network, MAC) up to date: what is new or
// different is added first, what is no longer wanted is taken away after.
func (c *Core) replan(n *network, mac overlay.MAC) {
	e := n.eps[mac]
	g := n.guests[mac]
	if e == nil && g == nil {
		return
	}
	if e == nil {
		e = &endpoint{gone: true, unsure: c.unsure(n, mac)} // no binding yet, only the port here
		n.eps[mac] = e
	}
	// The rows are computed again rather than kept: they are the larger part.
	old, rows := plan.Rows(c.was[:0], e.plan), c.will[:0]
	e.plan = plan.Endpoint{}
	if n.live() && n.serving {
		e.plan = c.planned(n, mac, e, g)
		rows = plan.Rows(rows, e.plan)
	}
	c.was, c.will = old, rows
	c.replace(n.rows, old, rows, overlay.Key{Kind: overlay.KindEndpoint, UID: n.uid, MAC: mac}, e.rev)
	c.cross(n, mac, e)
}

// replace puts rows where old ones were asked for by the same.
func (c *Core) replace(s *rowSet, old, rows []hoststate.Row, by overlay.Key, rev overlay.Rev) {
	for _, r := range rows {
		switch i := slices.IndexFunc(old, func(o hoststate.Row) bool { return o.Key == r.Key }); {
		case i < 0:
			c.add(s, r, by, rev)
		case old[i].Val != r.Val || r.Key.Table == hoststate.TableNeigh:
			c.alter(s, r, by, rev)
		}
	}
	for i := len(old) - 1; i >= 0; i-- {
		if !slices.ContainsFunc(rows, func(r hoststate.Row) bool { return r.Key == old[i].Key }) {
			c.remove(s, old[i].Key, by)
		}
	}
}

// alter changes the value or the age of a wish.
func (c *Core) alter(s *rowSet, r hoststate.Row, by overlay.Key, rev overlay.Rev) {
	rs := s.row(r.Key)
	rs.wish(contribution{by, rev, r.Val})
	c.changed(s, rs)
}

// planned is the input of the plan for one (network, MAC).
func (c *Core) planned(n *network, mac overlay.MAC, e *endpoint, g *guest) plan.Endpoint {
	p := c.placed(n, mac, e, g)
	bound := !e.gone && e.rec != nil && (e.rec.Host == c.cfg.Self || slices.Contains(e.rec.Pre, c.cfg.Self))
	if len(n.rec.From) > 0 && (p.Port != 0 || p.Relay || bound) {
		p.Alias = overlay.Alias(n.uid, mac)
	}
	return p
}

// placed is where one (network, MAC) is to this host, and who may send for it
// and to it.
func (c *Core) placed(n *network, mac overlay.MAC, e *endpoint, g *guest) plan.Endpoint {
	p := plan.Endpoint{VNI: n.rec.VNI, MAC: mac, Flood: n.rec.Flood, Routes: n.hops[nextHop{n.uid, mac}],
		Demand: n.demanded && (g != nil || e.rec != nil && !e.gone)}
	if g != nil && g.owns(c.cfg.Self, e) && !g.away(c.cfg.Self, e) {
		p.Port = g.tap.index
		c.relayed(&p, e)
		return p
	}
	if e.gone || e.rec == nil {
		return p
	}
	at := e.rec.Host
	if at == c.cfg.Self {
		// It is not here any more, or was stopped to go: until the manager
		// says where it is, it is where it is expected.
		if len(e.rec.Pre) == 0 {
			return p
		}
		at, p.Relay = e.rec.Pre[len(e.rec.Pre)-1], true
	}
	if p.VTEP = c.vtep(at); p.VTEP.IsValid() {
		p.Addrs = e.rec.Addresses
	}
	c.relayed(&p, e)
	return p
}

func (c *Core) replanAll(n *network) {
	c.ownRows(n)
	for _, mac := range sortedMACs(n.eps) {
		c.replan(n, mac)
	}
	for _, idx := range sortedTaps(n.taps) {
		for _, g := range n.taps[idx].guests() {
			c.replan(n, g.mac)
		}
		c.member(n, n.taps[idx])
	}
	c.join(n)
}
