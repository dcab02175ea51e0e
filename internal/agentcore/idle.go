package agentcore

import (
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// idleTime is for how long no guest here has sent to an endpoint of an on-demand
// network before it is wanted no more.
const idleTime = 300 * second

// idle takes for how long the kernel has not used the entries of one network's
// table. It gives up the endpoints that nobody here sends to any more, in
// whatever network they are.
func (c *Core) idle(n *network, st *hoststate.State) {
	if !n.demanded || n.vxlan == 0 {
		return
	}
	c.giveIdle(n, n, st)
	for _, uid := range n.reach {
		if o := c.nets[uid]; o != nil {
			c.giveIdle(o, n, st)
		}
	}
}

// giveIdle takes what one network's table says of the endpoints of another, or
// of its own, and gives up those that were not used for long.
func (c *Core) giveIdle(n, in *network, st *hoststate.State) {
	if !n.log.partial || c.session == 0 {
		return
	}
	for _, mac := range sortedMACs(n.eps) {
		e := n.eps[mac]
		if e.rec == nil || e.gone || e.rec.Host == c.cfg.Self || n.guests[mac] != nil {
			continue
		}
		if d, has := st.Idle[entryOf(n, in, mac, e)]; has {
			e.used = max(e.used, c.now-Time(d))
		}
		if c.unused(n, e) {
			c.giveUp(n, e.rec)
		}
	}
}

// entryOf is the entry that leads to an endpoint from a network.
func entryOf(n, from *network, mac overlay.MAC, e *endpoint) hoststate.Key {
	if x := in(e.crossed, from); n != from {
		mac = x.plan.MAC
	}
	return hoststate.Key{Table: hoststate.TableFDB, VNI: from.rec.VNI, MAC: mac}
}

// unused reports whether no entry of an endpoint was used for long, in any
// network that has one, as of the last look at each.
func (c *Core) unused(n *network, e *endpoint) bool {
	seen, since := c.now, max(e.used, e.at)
	look := func(o *network) bool {
		seen, since = min(seen, o.verifiedAt), max(since, o.demandedAt) // before, nobody counted
		return o.demanded && o.tablesRead
	}
	if n.serving && !look(n) {
		return false
	}
	for i := range e.crossed {
		if !look(e.crossed[i].in) {
			return false
		}
	}
	return since+idleTime <= seen
}

// giveUp wants an endpoint no more, unless a device or a question wants it.
func (c *Core) giveUp(n *network, r *overlay.Endpoint) {
	var all []*want
	for _, x := range append([]overlay.Want{{Network: n.uid, MAC: r.MAC}}, addressWants(n, r)...) {
		w := n.wants[x]
		switch {
		case w == nil:
		case !w.told || w.gives || w.tap || w.found || w.until > c.now:
			return
		default:
			all = append(all, w)
		}
	}
	for _, w := range all {
		if !w.idle {
			w.idle = true
			n.give = append(n.give, w)
		}
	}
}

// addressWants are the wants of the addresses that an endpoint has.
func addressWants(n *network, r *overlay.Endpoint) (out []overlay.Want) {
	for _, a := range r.Addresses {
		if at, _ := n.has(a); at == r.MAC {
			out = append(out, overlay.Want{Network: n.uid, Address: a})
		}
	}
	return out
}
