package managercore

import (
	"slices"

	"culvert/internal/overlay"
)

// Two undeclared endpoints of one MAC, on two hosts, look like one that moves.
// So the claim of the second is held until the host of the first has asked the
// first: if it answers, the second is refused, and its port with it; else it has
// moved. One that cannot be asked has moved, too: then newer evidence counts, as
// for what is declared, whose moves are known by other signs (see expect).

// doubleTime is how long the first has to answer: as long the second waits.
const doubleTime = 5e8

// double is one such question.
type double struct {
	id    uint64
	first overlay.UID // its host
	says  say
	held  hostClaim // until first says something
	again Time
}

// doubled reports whether a claim is held, or refused, because the MAC may be
// another's.
func (c *Core) doubled(cl hostClaim, k Key, b *overlay.Endpoint, at overlay.Rev) bool {
	if !cl.Port.IsZero() || !b.Port.IsZero() || len(b.Addresses) == 0 {
		return false
	}
	d := c.doubles[k]
	if d != nil && (d.first != b.Host || c.now >= d.again && d.says != sayNothing) {
		c.endDouble(k)
		d = nil
	}
	switch {
	case d == nil && c.roomToDouble():
	case d == nil || d.held.host != cl.host, d.says == sayYes:
		c.refuseDouble(cl, at)
		return true
	case d.says == sayNothing:
		d.held = cl
		return true
	default:
		c.endDouble(k)
		return false
	}
	id, says := c.askOne(netIP{b.Network, b.Addresses[0]}, k, b.Host, doubleTime)
	if says != sayNothing {
		return false
	}
	c.doubles[k] = &double{id: id, first: b.Host, held: cl, again: c.now + disputeAgain}
	c.doubleIDs[id] = k
	c.stats.Disputes++
	return true
}

func (c *Core) refuseDouble(cl hostClaim, at overlay.Rev) {
	reason := "another endpoint has this MAC"
	if b, ok := c.rows[Key{Kind: overlay.KindEndpoint, UID: cl.Network, MAC: cl.MAC}].rec.(*overlay.Endpoint); ok {
		reason = "it is on " + c.hostName(b.Host) + ", and answers there"
	}
	c.stats.ClaimsRefused++
	c.reply(Reply{Host: cl.host, Session: cl.session, Claim: &ClaimAnswer{ID: cl.ID, Binding: at, Reason: reason, Disputed: true}})
}

// doubleSaid takes an answer; false if it is none to such a question.
func (c *Core) doubleSaid(e ProbeDone) bool {
	k, ok := c.doubleIDs[e.ID]
	if !ok {
		return false
	}
	if c.lost || c.current(e.Host, e.Session) == nil {
		return true
	}
	if e.Answered {
		c.settleDouble(k, sayYes)
	} else {
		c.settleDouble(k, sayNo)
	}
	return true
}

// settleDouble decides on the claim that was held.
func (c *Core) settleDouble(k Key, says say) {
	d := c.doubles[k]
	if d.says != sayNothing {
		return
	}
	d.says = says
	delete(c.doubleIDs, d.id)
	c.claim(d.held)
}

// unasked ends the questions to a host whose session is over.
func (c *Core) unasked(host overlay.UID) {
	var keys []Key
	for k, d := range c.doubles { // order-free: sorted below
		if d.first == host && d.says == sayNothing {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, Key.Compare)
	for _, k := range keys {
		c.settleDouble(k, sayUnable)
	}
}

func (c *Core) endDouble(k Key) {
	delete(c.doubleIDs, c.doubles[k].id)
	delete(c.doubles, k)
}

// roomToDouble forgets what is decided.
func (c *Core) roomToDouble() bool {
	if len(c.doubles) < maxDisputes {
		return true
	}
	for k, d := range c.doubles { // order-free: each by itself
		if d.says != sayNothing {
			c.endDouble(k)
		}
	}
	return len(c.doubles) < maxDisputes
}
