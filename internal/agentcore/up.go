package agentcore

import (
	"culvert/internal/overlay"
)

// Position is how far the agent holds a network's log.
type Position struct {
	Network overlay.UID
	Sent    overlay.Rev
}

// Claim is one claim for the manager, or with Leave a withdrawal.
type Claim struct {
	ID       uint64
	Network  overlay.UID
	MAC      overlay.MAC
	Port     overlay.UID
	Base     overlay.Rev
	Evidence overlay.Evidence
	Leave    bool
}

// Up is what the agent has to tell, in the order of the fields.
type Up struct {
	Add          []Position
	Remove       []overlay.UID
	Claims       []Claim
	InventoryEnd bool
	Ack          overlay.Rev // zero: nothing new
}

// Empty reports whether there is nothing to tell.
func (u *Up) Empty() bool {
	return len(u.Add) == 0 && len(u.Remove) == 0 && len(u.Claims) == 0 && !u.InventoryEnd && u.Ack.IsZero()
}

type claimRef struct {
	net   overlay.UID
	mac   overlay.MAC
	tap   int32
	leave bool
}

// maxClaims bounds one Up.
const maxClaims = 500

// FleetPosition is where the fleet's log is to be resumed.
func (c *Core) FleetPosition() overlay.Rev { return c.fleet.sent }

func (c *Core) connected(e Connected) {
	c.session, c.inventory, c.poor = e.Session, false, false
	c.ackSent = overlay.Rev{}
	c.claims = map[uint64]claimRef{}
	c.fleet.named = nil
	for _, n := range c.nets { // order-free: each by itself
		n.told, n.log.named = false, nil
		n.claiming, n.awaits = 0, overlay.Rev{}
		if n.subscribed {
			c.behind[n.uid] = true
		}
		for _, t := range n.taps { // order-free: each by itself
			t.claim, t.claimed, t.waitFor, t.retryAt = 0, false, overlay.Rev{}, 0
		}
		for _, e := range n.eps { // order-free: each by itself
			e.leaving = false
		}
	}
}

func (c *Core) disconnected() { c.session, c.poor = 0, false }

// subscribe decides whether the network's log is wanted: while a device is a
// port of its bridge, known or not, and as long as its tables stand.
func (c *Core) subscribe(n *network) {
	want := n.live() && (len(n.taps) > 0 || n.serving || n.owes())
	switch {
	case n.subscribed && !want:
		c.clear(n)
		delete(c.behind, n.uid)
	case !n.subscribed && want:
		c.behind[n.uid] = true
	}
	n.subscribed = want
}

// owes reports whether the network's log is needed though no device is there:
// a binding to this host stands, or may come of a claim, and only who hears of
// it can withdraw it.
func (n *network) owes() bool {
	return len(n.mine) > 0 || n.claiming > 0 || n.log.sent.Less(n.awaits)
}

// owesLess looks anew at a network that may be subscribed for nothing.
func (c *Core) owesLess(n *network) {
	if n.subscribed && !n.serving && len(n.taps) == 0 && !n.owes() {
		c.touch(n)
	}
}

// NextUp takes what there is to tell the manager; the driver sends it, or
// loses it with the stream.
func (c *Core) NextUp() Up {
	var u Up
	if c.session == 0 || c.poor {
		return u
	}
	for _, n := range c.sortedNets() {
		switch {
		case n.subscribed && (!n.told || n.anew):
			pos := Position{Network: n.uid, Sent: n.log.sent}
			if n.log.wantFull {
				pos.Sent, n.log.wantFull = overlay.Rev{}, false
			}
			u.Add = append(u.Add, pos)
			n.told, n.anew = true, false
		case !n.subscribed && n.told:
			u.Remove = append(u.Remove, n.uid)
			n.told, n.anew = false, false
		}
	}
	for _, n := range c.sortedNets() {
		if n.live() && n.log.complete && len(u.Claims) < maxClaims {
			c.claimNet(n, &u)
		}
	}
	if !c.inventory && c.tapsKnown() && c.allClaimed() {
		c.inventory, u.InventoryEnd = true, true
	}
	c.adopt()
	if held := c.work.held(); !held.IsZero() && c.held.Less(held) {
		c.held = held
		c.markLater()
	}
	if c.ackSent.Less(c.held) {
		c.ackSent, u.Ack = c.held, c.held
	}
	return u
}

func (c *Core) claimNet(n *network, u *Up) {
	for _, idx := range sortedTaps(n.taps) {
		t := n.taps[idx]
		if c.mayClaim(n, t) {
			c.nextID++
			t.claim = c.nextID
			c.claims[t.claim] = claimRef{net: n.uid, mac: t.mac, tap: idx}
			n.claiming++
			base, e := t.base, n.eps[t.mac]
			switch {
			case e.rec != nil && !e.gone && e.rec.Host == c.cfg.Self:
				base = e.rev
			case e.gone && base.Less(n.log.sent):
				// Nobody has it, as far as the log goes: a full pass does
				// not name the tombstone on which the claim is based.
				base = n.log.sent
			}
			u.Claims = append(u.Claims, Claim{ID: t.claim, Network: n.uid, MAC: t.mac, Port: t.port, Base: base, Evidence: t.evidence})
		}
	}
	for _, mac := range c.departed(n) {
		e := n.eps[mac]
		e.leaving = true
		c.nextID++
		c.claims[c.nextID] = claimRef{net: n.uid, mac: mac, leave: true}
		u.Claims = append(u.Claims, Claim{ID: c.nextID, Network: n.uid, MAC: mac, Port: e.rec.Port, Base: e.rev, Leave: true})
	}
}

// mayClaim decides whether a port is to be claimed now: it is here, the kernel
// is ready for it, and the manager was not told in this session or has
// forgotten. A NIC that passes no frames is no news, but one that is ours
// already stays so.
func (c *Core) mayClaim(n *network, t *tap) bool {
	if t.mac.IsZero() || t.claim != 0 || t.claimed || n.tapOf(t.mac) != t || t.retryAt > c.now || n.conflict {
		return false
	}
	e := n.eps[t.mac]
	if e == nil || !t.owns(c.cfg.Self, e) || e.rev.Less(t.waitFor) && n.log.sent.Less(t.waitFor) {
		return false
	}
	mine := e.rec != nil && !e.gone && e.rec.Host == c.cfg.Self
	return c.ready(n, t) && (mine || t.state == 3)
}

// departed lists the bindings to this host whose port is here no more.
func (c *Core) departed(n *network) []overlay.MAC {
	if !c.linksRead || !c.inventory {
		return nil // the inventory says it, whole
	}
	var out []overlay.MAC
	for _, mac := range sortedMACs(n.mine) {
		if e := n.eps[mac]; !e.leaving && n.tapOf(mac) == nil {
			out = append(out, mac)
		}
	}
	return out
}

// allClaimed reports whether every port that is here and ours to have was
// claimed in this session.
func (c *Core) allClaimed() bool {
	for _, n := range c.nets { // order-free: all must be
		if !n.live() {
			continue
		}
		for _, t := range n.taps { // order-free: all must be
			if t.mac.IsZero() || t.claim != 0 || t.claimed || n.tapOf(t.mac) != t || !t.waitFor.IsZero() || t.refusal != "" {
				continue
			}
			e := n.eps[t.mac]
			if e != nil && e.rec != nil && !e.gone && e.rec.Host == c.cfg.Self {
				return false // ours, and not said yet
			}
		}
	}
	return true
}

func (c *Core) answered(e Answered) {
	ref, ok := c.claims[e.ID]
	if !ok {
		return // of a former session
	}
	delete(c.claims, e.ID)
	n := c.nets[ref.net]
	if n == nil || ref.leave {
		return
	}
	n.claiming--
	if e.Accepted && n.awaits.Less(e.Binding) {
		n.awaits = e.Binding
	}
	c.owesLess(n)
	t := n.taps[ref.tap]
	if t == nil || t.claim != e.ID {
		return
	}
	t.claim = 0
	if e.Accepted {
		t.claimed, t.refusal = true, ""
		if t.base.Less(e.Binding) {
			t.base = e.Binding
		}
		return
	}
	t.refusal, t.waitFor = e.Reason, e.Binding
	if !e.Binding.IsZero() && e.Binding.Compare(t.base) <= 0 {
		return // newer evidence came while the claim was under way
	}
	t.retryAt = c.now + second
	c.alarmAt(t.retryAt)
}
