package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Position is how far the agent holds a network's log.
type Position struct {
	Network overlay.UID
	Sent    overlay.Rev
	// OnDemand: of the network's log only what is this host's, and what it wants.
	OnDemand bool
}

// Demand is something that the host wants to know, or with Drop not any more.
// For is the MAC of the guest here that asked, if one did: who has what is
// wanted is told of it, since it will answer.
type Demand struct {
	overlay.Want
	For  overlay.MAC
	Drop bool
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
	// Pre: the endpoint is expected here (RFC 8394, pre-associate), or with
	// Leave not any more.
	Pre bool
	// Addresses of an undeclared endpoint, sorted; of a declared one, shared
	// addresses that it has announced.
	Addresses []netip.Addr
	// Heard is up to where the agent had the log when the shared addresses were
	// announced.
	Heard overlay.Rev
}

// Up is what the agent has to tell, in the order of the fields.
type Up struct {
	Waits        *bool // whether devices wait for a port to be declared; nil: as said before, at first none
	Demands      []Demand
	Add          []Position
	Remove       []overlay.UID
	Claims       []Claim
	InventoryEnd bool
	Ack          overlay.Rev // zero: nothing new
	Seeks        []Seek
	Findings     []Finding
}

// Empty reports whether there is nothing to tell.
func (u *Up) Empty() bool {
	return u.Waits == nil && len(u.Demands) == 0 && len(u.Add) == 0 && len(u.Remove) == 0 && len(u.Claims) == 0 && !u.InventoryEnd && u.Ack.IsZero() && len(u.Seeks)+len(u.Findings) == 0
}

type claimRef struct {
	net   overlay.UID
	mac   overlay.MAC
	guest *guest // nil with leave
	addrs []netip.Addr
	leave bool
	pre   bool
}

// maxClaims bounds one Up.
const maxClaims = 500

// FleetPosition is where the fleet's log is to be resumed.
func (c *Core) FleetPosition() overlay.Rev { return c.fleet.sent }

func (c *Core) connected(e Connected) {
	c.session, c.inventory, c.poor = e.Session, false, false
	c.forgetSearches()
	c.saidWaits, c.stirred = false, true
	c.ackSent, c.said = overlay.Rev{}, overlay.Rev{}
	c.claims = map[uint64]claimRef{}
	c.fleet.named = nil
	for _, n := range c.nets { // order-free: each by itself
		n.told, n.log.named, n.gather = false, nil, nil
		c.sayAgain(n)
		n.claiming, n.awaits = 0, overlay.Rev{}
		if n.subscribed {
			c.behind[n.uid] = true
		}
		for _, t := range n.taps { // order-free: each by itself
			for _, g := range t.guests() { // also one that another device has taken the place of
				g.claim, g.claimed, g.expected, g.waitFor, g.retryAt = 0, false, false, overlay.Rev{}, 0
				for _, s := range g.shares {
					s.claim = 0
				}
			}
		}
		for _, e := range n.eps { // order-free: each by itself
			e.leaving = false
		}
	}
}

func (c *Core) disconnected() { c.session, c.poor = 0, false }

// subscribe decides whether the network's log is wanted: while a device is a
// port of its bridge, known or not, as long as its tables stand, and while a
// network with a device or tables here is routed to or from it.
func (c *Core) subscribe(n *network) {
	want := n.live() && (len(n.taps) > 0 || n.serving || len(n.near) > 0 || n.owes())
	switch {
	case n.subscribed && !want:
		c.clear(n)
		n.forgetWants()
		delete(c.behind, n.uid)
		c.heardAll()
	case !n.subscribed && want:
		c.behind[n.uid] = true
		c.sayAgain(n)
	}
	n.subscribed = want
	c.join(n)
}

// owes reports whether the network's log is needed though no device is there:
// a binding to this host stands, or may come of a claim, and only who hears of
// it can withdraw it.
func (n *network) owes() bool {
	return len(n.mine) > 0 || len(n.pre) > 0 || n.claiming > 0 || n.log.sent.Less(n.awaits)
}

// owesLess looks anew at a network that may be subscribed or served for nothing.
func (c *Core) owesLess(n *network) {
	if n.subscribed && len(n.taps)+len(n.near) == 0 && (n.serving && n.graceEnd == 0 || !n.serving && !n.owes()) {
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
	c.sayWaits(&u)
	c.sayDemands(&u)
	for _, n := range c.sortedNets() {
		switch {
		case n.subscribed && (!n.told || n.anew):
			pos := Position{Network: n.uid, Sent: n.log.sent, OnDemand: n.onDemand()}
			if n.log.wantFull || n.log.partial != pos.OnDemand {
				pos.Sent, n.log.wantFull = overlay.Rev{}, false
			}
			n.gather = map[overlay.UID]bool{}
			u.Add = append(u.Add, pos)
			n.told, n.anew, n.byWants = true, false, pos.OnDemand
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
	if !c.inventory && c.tapsKnown() && c.tapsTold() && c.allClaimed() {
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
	c.saySearches(&u)
	return u
}

// sayWaits says whether devices wait for a port to be declared, if that changed.
func (c *Core) sayWaits(u *Up) {
	if !c.stirred {
		return
	}
	c.stirred = false
	if waits := len(c.Unclaimed()) > 0; waits != c.saidWaits {
		c.saidWaits, u.Waits = waits, &waits
	}
}

// claimNet makes the claims of one network. Each of a network's MACs has at
// most one under way.
func (c *Core) claimNet(n *network, u *Up) {
	for _, mac := range sortedMACs(n.guests) {
		g := n.guests[mac]
		switch {
		case c.mayClaim(n, g):
			base, e := g.base, n.eps[mac]
			switch {
			case e.rec != nil && !e.gone && e.rec.Host == c.cfg.Self:
				base = e.rev
			case e.gone && base.Less(n.log.sent):
				// Nobody has it, as far as the log goes: a full pass does
				// not name the tombstone on which the claim is based.
				base = n.log.sent
			}
			c.claim(n, g, u, Claim{Base: base, Evidence: g.evidence, Addresses: g.addrs})
		case c.mayExpect(n, g):
			c.claim(n, g, u, Claim{Base: n.eps[mac].rev, Evidence: g.evidence, Pre: true})
		}
	}
	for _, mac := range c.departed(n) {
		e := n.eps[mac]
		e.leaving = true
		c.nextID++
		c.claims[c.nextID] = claimRef{net: n.uid, mac: mac, leave: true}
		u.Claims = append(u.Claims, Claim{ID: c.nextID, Network: n.uid, MAC: mac, Port: e.rec.Port, Base: e.rev, Leave: true, Pre: !n.mine[mac]})
	}
}

func (c *Core) claim(n *network, g *guest, u *Up, cl Claim) {
	c.nextID++
	g.claim = c.nextID
	c.claims[g.claim] = claimRef{net: n.uid, mac: g.mac, guest: g, addrs: cl.Addresses, pre: cl.Pre}
	n.claiming++
	cl.ID, cl.Network, cl.MAC, cl.Port = g.claim, n.uid, g.mac, g.port
	if !cl.Pre {
		c.tellShares(g, &cl)
	}
	u.Claims = append(u.Claims, cl)
}

// waits reports whether a guest is not to be claimed in any way now: it is
// under way, or was refused and nothing is new since.
func (c *Core) waits(n *network, g *guest, e *endpoint) bool {
	return g.claim != 0 || g.retryAt > c.now || n.conflict || e == nil || c.unsure(n, g.mac) || e.rev.Less(g.waitFor) && n.log.sent.Less(g.waitFor)
}

// mayClaim decides whether a guest is to be claimed now: it is here, the kernel
// is ready for it, and the manager was not told in this session or has
// forgotten. A NIC that passes no frames is no news, but one that is ours
// already stays so. A declared guest that is bound nowhere is claimed while its
// port is still made ready: no frame goes elsewhere for it that could be lost
// here, and the others hear of it meanwhile.
func (c *Core) mayClaim(n *network, g *guest) bool {
	e := n.eps[g.mac]
	if g.barred && !g.claimed && !c.waits(n, g, e) && !g.owns(c.cfg.Self, e) {
		return g.arrived && !g.base.Less(e.rev) && g.tap.state == hoststate.StateForwarding // its port stays shut
	}
	if g.claimed && !g.tells(c.now) && (g.recheckAt == 0 || g.recheckAt > c.now) || c.waits(n, g, e) || !g.owns(c.cfg.Self, e) || g.leaves(e) {
		return false
	}
	bound := e.rec != nil && !e.gone
	mine := bound && e.rec.Host == c.cfg.Self
	free := !bound && n.subscribed && !c.behind[n.uid] // not as far as an old log goes
	return (c.ready(n, g) || free && !g.port.IsZero()) && (mine || g.tap.state == hoststate.StateForwarding)
}

// mayExpect decides whether the manager is to be told that a guest is expected
// here: its device is there and named, and it runs elsewhere still. Where it was
// stopped to go elsewhere it is not, though its device comes up again.
func (c *Core) mayExpect(n *network, g *guest) bool {
	e := n.eps[g.mac]
	if c.waits(n, g, e) || e.gone || e.rec == nil || g.owns(c.cfg.Self, e) {
		return false
	}
	if n.pre[g.mac] {
		return !g.expected // each session begins by saying all that is here
	}
	if g.evidence < overlay.EvidenceDevice || g.tap.nic.State == hoststate.NICLeaving {
		return false
	}
	incoming := g.tap.nic.State == hoststate.NICIncoming || g.tap.nic.State == hoststate.NICPaused
	return g.tap.tuned && g.tap.state == hoststate.StateForwarding && (incoming || g.tap.came && !g.left)
}

// departed lists the bindings to this host whose guest is here no more, or was
// stopped here to go where it is expected; and what is expected here no more.
func (c *Core) departed(n *network) []overlay.MAC {
	if !c.linksRead || !c.inventory {
		return nil // the inventory says it, whole
	}
	var out []overlay.MAC
	for _, mac := range sortedMACs(n.mine) {
		if e, g := n.eps[mac], n.guests[mac]; !e.leaving && (g == nil || g.leaves(e)) {
			out = append(out, mac)
		}
	}
	for _, mac := range sortedMACs(n.pre) {
		if e := n.eps[mac]; !e.leaving && n.guests[mac] == nil {
			out = append(out, mac)
		}
	}
	return out
}

// tapsTold reports whether all that devices here want of on-demand networks was
// told in this session.
func (c *Core) tapsTold() bool {
	for _, n := range c.nets { // order-free: all must be
		for _, w := range n.wants { // order-free: all must be
			if w.tap && !w.told {
				return false
			}
		}
	}
	return true
}

// allClaimed reports whether every guest that is here and ours to have was
// claimed in this session.
func (c *Core) allClaimed() bool {
	for _, n := range c.nets { // order-free: all must be
		if !n.live() {
			continue
		}
		for _, g := range n.guests { // order-free: all must be
			if g.claim != 0 || g.claimed || !g.waitFor.IsZero() || g.refusal != "" {
				continue
			}
			if e := n.eps[g.mac]; e != nil && e.rec != nil && !e.gone && e.rec.Host == c.cfg.Self && !g.leaves(e) {
				return false // ours, and not said yet
			}
			if n.pre[g.mac] && !g.expected {
				return false
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
	g := ref.guest
	if g.claim != e.ID {
		return
	}
	g.claim, g.refused, g.recheckAt = 0, nil, 0
	c.sharesAnswered(g, e)
	switch {
	case e.Accepted && ref.pre:
		g.expected = true
		g.waitFor, g.refusal = e.Binding, "" // the log says so, too
		return
	case e.Accepted:
		c.unbar(g)
		g.claimed, g.back, g.unsure, g.refusal = true, false, 0, e.Reason // some of its addresses may have been refused
		if g.port.IsZero() && !slices.Equal(ref.addrs, g.addrs) {
			g.claimed = false // others were heard meanwhile
		}
		if g.refused = e.Refused; len(g.refused) > 0 {
			g.recheckAt = c.now + recheck
			c.alarmAt(g.recheckAt)
		}
		if g.base.Less(e.Binding) {
			g.base = e.Binding
		}
		c.member(n, g.tap) // refused addresses are none that it may use
		return
	}
	if e.Disputed {
		c.bar(n, g, e.Reason)
		return
	}
	g.claimed, g.refusal, g.waitFor = false, e.Reason, e.Binding
	if !e.Binding.IsZero() && e.Binding.Compare(g.base) <= 0 {
		return // newer evidence came while the claim was under way
	}
	if !ref.pre && !e.Binding.IsZero() && g.unsure == 0 {
		c.doubt(g)
	}
	g.retryAt = c.now + second
	c.alarmAt(g.retryAt)
}

// bindingChanged looks at a guest here whose binding has changed.
func (c *Core) bindingChanged(n *network, g *guest, e *endpoint) {
	if e.gone || e.rec.Host == c.cfg.Self {
		c.unbar(g)
		g.unsure = 0
	} else if g.unsure != 0 || c.behind[n.uid] {
		c.doubt(g)
	}
	if e.gone && g.base.Less(e.rev) {
		// Nobody has it, and it is here: that is evidence enough, and new.
		g.arrived, g.base, g.claimed, g.retryAt = true, e.rev, false, 0
	}
	if !e.gone && e.rec.Host != c.cfg.Self {
		g.left = g.left || g.claimed
		g.claimed = false
		c.adoptGuest(n, g, e)
	}
	if !e.gone && e.rec.Host == c.cfg.Self && g.port.IsZero() && g.claimed && g.recheckAt == 0 && g.lacks(e.rec) {
		g.recheckAt = c.now // somebody was declared to have it: why, the manager says
	}
	c.member(n, g.tap)
}

// ready reports whether the kernel holds what a guest needs before anybody is
// told of it: its pinned entry and what its port program lets through. One that
// is to come back has no such entry yet: that it is bound here says all the same
// that it is to stay so until another host claims it.
func (c *Core) ready(n *network, g *guest) bool {
	if !g.tap.tuned || !c.guardStands(g.tap) {
		return false
	}
	p := n.rows.get(hoststate.Key{Table: hoststate.TableMaster, VNI: n.rec.VNI, MAC: g.mac})
	return g.returns(c.cfg.Self, n.eps[g.mac]) || p != nil && p.settled() && p.want().Port == g.tap.index
}
