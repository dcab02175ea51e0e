package agentcore

import (
	"slices"

	"culvert/internal/overlay"
)

// Gateways that this host is a candidate of. Their namespaces are not the
// core's business: it says what the records say, and their ports are ports.

type gatewayEntry struct {
	rec  *overlay.Gateway
	rev  overlay.Rev
	gone bool
}

func (c *Core) gatewayItem(r *overlay.Gateway, it Item) {
	g := c.gateways[r.UID]
	if g == nil {
		g = &gatewayEntry{}
		c.gateways[r.UID] = g
	}
	if c.newer(it, g.rev) {
		g.rec, g.rev, g.gone = r, it.Rev, it.Gone
		c.gatewaysAt++
	}
}

// sweepGateways ends those that a full pass has not named.
func (c *Core) sweepGateways(l *logState, at overlay.Rev) {
	for _, uid := range sortedUIDs(c.gateways) {
		g := c.gateways[uid]
		if !g.gone && !l.named[overlay.Key{Kind: overlay.KindGateway, UID: uid}] && g.rev.Compare(at) <= 0 {
			c.gatewayItem(g.rec, Item{Rev: at, Gone: true})
		}
	}
}

// Gateway is one that this host may have.
type Gateway struct {
	*overlay.Gateway
	Here     bool               // it is to be active on this host
	Networks []*overlay.Network // of its legs, in their order; nil for one that is not known
}

// Gateways are those that this host is a candidate of, by UID. heard: a manager
// has said so since the agent began; before, that one is or is not active here
// may be long past. whole: there are no others. at is another whenever anything
// of this may be.
func (c *Core) Gateways() (list []Gateway, heard, whole bool, at uint64) {
	for _, uid := range sortedUIDs(c.gateways) {
		e := c.gateways[uid]
		if e.gone || !slices.Contains(e.rec.Hosts, c.cfg.Name) {
			continue
		}
		g := Gateway{Gateway: e.rec, Here: e.rec.Active == c.cfg.Self}
		for _, l := range e.rec.Legs {
			var rec *overlay.Network
			if n := c.nets[l.Network]; n != nil && n.live() {
				rec = n.rec
			}
			g.Networks = append(g.Networks, rec)
		}
		list = append(list, g)
	}
	return list, c.fleetHeard, c.fleet.complete, c.gatewaysAt
}
