package agentcore

import (
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// A host that is dead has no tunnel end point: what is bound to it has no rows
// anywhere, and stays bound. Its guests may be started again elsewhere, and
// there a device that came up is evidence enough, as if nobody had them.

// dead reports whether a host is known to be dead.
func (c *Core) dead(host overlay.UID) bool {
	h := c.hosts[host]
	return h != nil && h.rec != nil && !h.gone && h.rec.Dead
}

// bereft reports whether a guest's binding is to a host that is dead, and
// nothing says that it only waits here for a migration that will not come.
func (c *Core) bereft(g *guest, e *endpoint) bool {
	waits := g.tap.nic.State == hoststate.NICIncoming || g.tap.nic.State == hoststate.NICPaused
	return !waits && e.rec != nil && !e.gone && c.dead(e.rec.Host)
}

// hostDied looks which guests of a host that died came up here before that was
// known.
func (c *Core) hostDied(host overlay.UID) {
	for _, n := range c.sortedNets() {
		for _, mac := range sortedMACs(n.guests) {
			if e := n.eps[mac]; e != nil && e.rec != nil && e.rec.Host == host {
				c.adoptGuest(n, n.guests[mac], e)
			}
		}
	}
}

// adoptGuest takes a guest whose host is dead, if its device came up here while
// this agent watched. A device that a migration left behind says nothing, and
// neither does one that stood here before.
func (c *Core) adoptGuest(n *network, g *guest, e *endpoint) {
	if g.tap.came && !g.tap.pending && !g.left && !g.owns(c.cfg.Self, e) && c.bereft(g, e) {
		c.arrive(n, g)
	}
}
