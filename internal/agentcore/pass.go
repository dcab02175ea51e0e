package agentcore

import (
	"maps"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// logEnd ends a pass. Only a full pass makes deletions possible, and what it
// did not name is not; one that ends below what the kernel holds is of an older
// store and makes nothing possible.
func (c *Core) logEnd(e End) {
	l, n := &c.fleet, (*network)(nil)
	if !e.Network.IsZero() {
		n = c.nets[e.Network]
		if n == nil || !n.live() {
			return
		}
		l = &n.log
	}
	if l.named == nil && (e.Full || !l.complete) {
		return // of a subscription that was given up: its beginning was forgotten
	}
	if e.Sent.Less(c.mark.floor) {
		c.distrust(e.Sent)
		return
	}
	was := l.partial
	if e.Full {
		if n == nil {
			c.solvedPrefix(olderStore)
			c.sweepFleet(l, e.Sent)
		} else {
			c.sweepNet(n, e.Sent, e.OnDemand)
		}
		if n != nil {
			for _, o := range n.near {
				c.lookAgain(o, n)
			}
			if e.OnDemand {
				n.purge()
			}
		}
		l.named, l.complete, l.partial = nil, true, e.OnDemand
	}
	if l.sent.Less(e.Sent) {
		l.sent = e.Sent
	}
	if n == nil || l.partial == n.onDemand() { // else it is wanted anew in the other mode
		delete(c.behind, e.Network)
	}
	if n == nil {
		c.fleetEnded(e.Full)
	} else {
		c.netEnded(n, e, was)
	}
}

// fleetEnded goes on after a pass over the fleet's log.
func (c *Core) fleetEnded(full bool) {
	c.fleetHeard = c.fleetHeard || c.session != 0
	c.gatewaysAt++
	if full {
		for _, n := range c.sortedNets() {
			c.touch(n)
		}
		c.wantLinks()
	}
}

// netEnded goes on after a pass over a network's log. was: it was told on demand
// before. A journal says not what was asked for and given up, and so the sums of
// what was told on demand mean nothing in it: each session tells that whole.
func (c *Core) netEnded(n *network, e End, was bool) {
	l := &n.log
	c.owesLess(n)
	if e.Full {
		c.allMembers(n)
	}
	c.ended(n, was)
	if l.sum != e.Sum && (c.session != 0 || !e.OnDemand) {
		c.stats.SumWrong++
		l.wantFull, l.named = true, nil
		n.told = false
		c.behind[n.uid] = true
		return
	}
	if e.Full { // what was left alone until now may be looked at
		n.needRead, n.heard = n.tablesRead || len(n.taps) > 0, false
		for _, idx := range sortedTaps(n.taps) {
			if t := n.taps[idx]; t.pending && t.state == hoststate.StateForwarding {
				c.tapUp(n, t)
			}
			c.weigh(n, n.taps[idx])
		}
		c.touch(n)
	}
}

func (c *Core) sweepFleet(l *logState, at overlay.Rev) {
	for _, uid := range sortedUIDs(c.hosts) {
		h := c.hosts[uid]
		if !h.gone && !l.named[overlay.Key{Kind: overlay.KindHost, UID: uid}] && h.rev.Compare(at) <= 0 {
			c.hostItem(h.rec, Item{Rev: at, Gone: true})
		}
	}
	c.sweepGateways(l, at)
	for _, n := range c.sortedNets() {
		if n.live() && !l.named[overlay.Key{Kind: overlay.KindNetwork, UID: n.uid}] && n.rev.Compare(at) <= 0 {
			c.networkItem(n.rec, Item{Rev: at, Gone: true})
		}
	}
}

func (c *Core) sweepNet(n *network, at overlay.Rev, onDemand bool) {
	for _, uid := range sortedUIDs(n.ports) {
		p := n.ports[uid]
		switch {
		case p.gone || n.log.named[overlay.Key{Kind: overlay.KindPort, UID: uid}]:
		case onDemand && !n.toldOf(overlay.Want{MAC: p.rec.MAC}) && !n.toldOf(overlay.Want{Name: p.rec.Name}):
			n.forgetPort(uid) // it was not asked for
		default:
			c.portItem(n, p.rec, Item{Rev: at, Gone: true})
		}
	}
	for _, mac := range sortedMACs(n.eps) {
		e := n.eps[mac]
		switch {
		case e.gone || n.log.named[overlay.Key{Kind: overlay.KindEndpoint, UID: n.uid, MAC: mac}]:
		case onDemand && !n.toldOf(overlay.Want{MAC: mac}):
			c.forget(n, mac) // it was not asked for
		default:
			c.endpointItem(n, e.rec, Item{Rev: at, Gone: true})
		}
	}
}

func sortedUIDs[V any](m map[overlay.UID]V) []overlay.UID {
	out := make([]overlay.UID, 0, len(m))
	for u := range m { // order-free: sorted below
		out = append(out, u)
	}
	slices.SortFunc(out, overlay.UID.Compare)
	return out
}

// ended goes on with what waited for the end of a pass. was: the log was told on
// demand before it.
func (c *Core) ended(n *network, was bool) {
	if !n.wanting() {
		n.forgetWants()
	}
	c.conform(n)
	if !n.log.complete {
		return
	}
	if !n.log.partial {
		c.identifyAll(n)
	}
	for _, mac := range sortedMACs(n.guests) {
		if e := n.eps[mac]; !n.log.partial {
			c.bindingKnown(n, mac)
		} else if !was && e.rec == nil && !e.unsure && c.unsure(n, mac) {
			e.unsure = true // it was taken for known while the log was told whole
			c.replan(n, mac)
			c.member(n, n.guests[mac].tap)
		}
	}
}

// purge forgets what is not there any more of a network of which not all is
// known: its tombstones say nothing.
func (n *network) purge() {
	maps.DeleteFunc(n.ports, func(_ overlay.UID, p *portEntry) bool { return p.gone })
	maps.DeleteFunc(n.eps, func(mac overlay.MAC, e *endpoint) bool { return e.gone && n.guests[mac] == nil })
}
