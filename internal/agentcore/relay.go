package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/overlay"
	"culvert/internal/plan"
)

// relayTime is how long the host that an endpoint has left sends on what still
// reaches it, and how long its frames and those that it sends on are taken.
// Long enough for every agent that has a manager to have been told, and short
// enough that nobody relies on it.
const relayTime = 10 * second

// relayEnd is when one relay ends.
type relayEnd struct {
	at  Time
	net overlay.UID
	mac overlay.MAC
}

// vtep is a host's address on the underlay; invalid if it is not known, or the
// host is dead.
func (c *Core) vtep(host overlay.UID) netip.Addr {
	if h := c.hosts[host]; h != nil {
		return h.vtep()
	}
	return netip.Addr{}
}

// moves notes that an endpoint moved while this agent watched. What it finds
// in its journal or in a first pass is history, and relays nothing.
func (c *Core) moves(n *network, e *endpoint, r *overlay.Endpoint, it Item) {
	if it.Gone || e.rec != nil && !e.gone && e.rec.Host == r.Host && e.rec.From == r.From {
		return // the same place
	}
	e.relayEnd = 0
	if r.From.IsZero() || !c.linksRead || !n.log.complete {
		return
	}
	e.relayEnd = c.now + relayTime
	c.relays = append(c.relays, relayEnd{e.relayEnd, n.uid, r.MAC})
	c.alarmAt(e.relayEnd)
}

// endRelays ends what has lasted long enough.
func (c *Core) endRelays() {
	over := 0
	for ; over < len(c.relays) && c.relays[over].at <= c.now; over++ {
		r := c.relays[over]
		n := c.nets[r.net]
		if n == nil || n.eps[r.mac] == nil || n.eps[r.mac].relayEnd != r.at {
			continue // it has moved again
		}
		n.eps[r.mac].relayEnd = 0
		c.replan(n, r.mac)
	}
	c.relays = c.relays[over:]
	if len(c.relays) > 0 {
		c.alarmAt(c.relays[0].at)
	}
}

// relayed fills in whose frames are taken for an endpoint besides those of the
// host that it is on, and who relays.
func (c *Core) relayed(p *plan.Endpoint, e *endpoint) {
	if e.rec == nil || e.gone {
		return
	}
	moving := e.relayEnd > c.now && !e.rec.From.IsZero()
	var others []overlay.UID
	switch {
	case p.Port != 0 && e.rec.Host == c.cfg.Self:
		if moving { // what it sent before it left may be under way, too
			p.Relays, others = append(p.Relays, c.vtep(e.rec.From)), append(others, e.rec.From)
		}
		others = append(others, e.rec.Pre...) // its first frames there may reach guests here
	case p.Port != 0: // claimed, and the manager has not said so yet
		p.Relays, others = append(p.Relays, c.vtep(e.rec.Host)), append(others, e.rec.Host)
	default:
		if slices.Contains(e.rec.Pre, c.cfg.Self) {
			p.Relays = append(p.Relays, c.vtep(e.rec.Host))
		}
		others = append(others, e.rec.Host)
		others = append(others, e.rec.Pre...)
		if moving && e.rec.From == c.cfg.Self {
			// Where it is expected back nothing is relayed: the host that it
			// is on may send it here already, and it would turn in a circle.
			p.Relay = !slices.Contains(e.rec.Pre, c.cfg.Self)
		} else if moving {
			others = append(others, e.rec.From)
		}
	}
	for _, h := range others {
		if v := c.vtep(h); h != c.cfg.Self && v.IsValid() && v != p.VTEP && !slices.Contains(p.Sources, v) {
			p.Sources = append(p.Sources, v)
		}
	}
	p.Relays = slices.DeleteFunc(p.Relays, func(a netip.Addr) bool { return !a.IsValid() })
}
