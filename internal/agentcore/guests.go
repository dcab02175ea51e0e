package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// guest is one endpoint behind a device of this host, or what may become one.
// Its states are those of RFC 8394 section 3.1:
//
//	device here, bound elsewhere  --claim Pre-->  pre-associated
//	sign of life, or nobody else has it --claim-> associated
//
// A device alone never moves an endpoint: during a migration it stands at both
// ends, and the guest runs at one.
type guest struct {
	tap  *tap
	mac  overlay.MAC
	port overlay.UID // zero: undeclared
	// addrs of an undeclared one, as heard, sorted.
	addrs    []netip.Addr
	evidence overlay.Evidence

	// arrived: a sign of life was seen at a time when the binding in force was
	// base.
	arrived bool
	base    overlay.Rev
	// back: a sign of life came after its withdrawal was sent. What comes of
	// that withdrawal is older, whatever its revision.
	back bool
	// left: it was here and its binding went elsewhere, or came here by another
	// device. Its own is what a migration leaves behind, not one where it is
	// expected.
	left bool
	// unsure: the number of the first inquiry that says whether it is here though
	// it is bound elsewhere; 0: that is known, see doubt.
	unsure uint64
	// lived: a frame of it came after the newest word of its hypervisor.
	lived bool
	// landed: its binding came to this host while its hypervisor awaited it here.
	landed bool

	claim   uint64 // under way; 0 if none
	claimed bool   // accepted in this session
	// expected: the manager was told in this session that it is expected here.
	expected bool
	waitFor  overlay.Rev // refused: not before the log has reached this
	retryAt  Time
	refusal  string

	refused   []overlay.AddressRefusal // of addrs, by the manager
	recheckAt Time                     // when to ask for them again; 0: none were refused

	shares []*shared // of a declared port

	notes map[netip.Addr]addrNote // of addrs
	due   Time                    // when one of them ends; 0: none does

	// barred: another, who answers, has its MAC elsewhere. Not before barUntil
	// is it claimed again, on a new sign of life.
	barred   bool
	barUntil Time
	wait     Time   // how long it was shut out last
	shown    string // the problem that says so; empty: none

	conflict    string // the problem that the guest reported; empty: none
	conflictEnd Time
}

// place settles which device has the guest with that MAC: where two claim to,
// the one that came last, because a VM that restarts may leave one behind. One
// that is known to be empty, or to be left behind by what is bound here now, has
// none, also when no other is there.
func (c *Core) place(n *network, mac overlay.MAC) {
	var best *guest
	for _, t := range n.taps { // order-free: the greatest of all
		g := t.learned[mac]
		if t.declared != nil && t.declared.mac == mac {
			g = t.declared
		}
		if g != nil && !t.empty && !c.stale(n, g) && (best == nil || (g.port.IsZero() == best.port.IsZero() && t.index > best.tap.index) || (!g.port.IsZero() && best.port.IsZero())) {
			best = g
		}
	}
	old := n.guests[mac]
	if best == old {
		return
	}
	if best == nil {
		delete(n.guests, mac)
	} else {
		n.guests[mac] = best
		if e := n.eps[mac]; e != nil && e.gone && c.unsure(n, mac) {
			e.unsure = true // that it left was told, and perhaps not who had it then
		}
		if e := n.eps[mac]; best.claimed && e != nil && !e.gone && e.rec != nil && e.rec.Host != c.cfg.Self {
			best.left = true
		}
		// What was said of it before another device had the guest is not true
		// any more, and was perhaps withdrawn.
		best.claimed, best.expected, best.waitFor, best.retryAt = false, false, overlay.Rev{}, 0
	}
	c.replan(n, mac)
	for _, g := range []*guest{old, best} {
		if g != nil && n.taps[g.tap.index] == g.tap {
			c.member(n, g.tap)
		}
	}
}

// stale reports whether a device says nothing of the endpoint that is bound to
// this host, because that came here by another one. When that goes the endpoint
// has left, though this one stands: whoever else has it is then found.
func (c *Core) stale(n *network, g *guest) bool {
	e := n.eps[g.mac]
	return g.left && g == g.tap.declared && g.tap.nic.State != hoststate.NICRunning && e != nil && e.rec != nil && !e.gone && e.rec.Host == c.cfg.Self
}

// housed notes which device an endpoint has that was bound to this host just now.
func (c *Core) housed(n *network, mac overlay.MAC) {
	for _, t := range n.taps { // order-free: each by itself
		if g := t.declared; g != nil && g.mac == mac {
			g.left = n.guests[mac] != g
			g.landed = t.nic.State == hoststate.NICIncoming
		}
	}
}

// owns reports whether the endpoint is here: no binding says otherwise, or a
// sign of life came after the binding that does.
func (g *guest) owns(self overlay.UID, e *endpoint) bool {
	if e.unsure {
		return false
	}
	if e.gone || e.rec == nil || e.rec.Host == self {
		return true
	}
	return g.arrived && !g.barred && !g.base.Less(e.rev)
}

// follow carries a sign of life over a change of the record that says nothing
// against it: the place is the same and only who expects it has changed, or the
// change is what came of our own, older withdrawal. was is the record before.
func (g *guest) follow(self overlay.UID, was, e *endpoint) {
	back := g.back
	g.back = false // whatever becomes of a withdrawal that was based on the record before is known with this one
	switch {
	case e.gone:
	case was.rec != nil && !was.gone && was.rec.Host == e.rec.Host:
		if g.arrived && !g.base.Less(was.rev) {
			g.base = e.rev
		}
	case (was.rec == nil || was.gone) && g.arrived && !g.base.Less(was.rev) && g.tap.nic.State == hoststate.NICRunning && e.rec.Evidence < overlay.EvidenceHypervisor:
		// Nobody had it, and a device elsewhere was faster: it says less than
		// the hypervisor here, by whose word the guest runs.
		g.base, g.claimed, g.waitFor, g.retryAt = e.rev, false, overlay.Rev{}, 0
	case back && e.rec.From == self:
		g.arrived, g.base, g.claimed, g.waitFor, g.retryAt = true, e.rev, false, overlay.Rev{}, 0
	}
}

// leaves reports whether the guest was stopped here to go on at a host that
// expects it.
func (g *guest) leaves(e *endpoint) bool {
	return g.tap.nic.State == hoststate.NICLeaving && !g.lived && e.rec != nil && !e.gone && len(e.rec.Pre) > 0
}

// returns reports whether the guest is awaited here though it is bound to this
// host: it went to one that expected it, no manager was there to say so, and it
// is to come back. Until it does it is reached where it went, as before its
// device came: that would hold, and drop, what is for the guest meanwhile. One
// that was awaited when its binding came is on its way here for the first time,
// whoever else expects it.
func (g *guest) returns(self overlay.UID, e *endpoint) bool {
	return g.tap.nic.State == hoststate.NICIncoming && !g.lived && !g.landed && e.rec != nil && !e.gone && e.rec.Host == self && len(e.rec.Pre) > 0
}

// away reports whether the guest is not behind its device, whose it is by its
// binding or by a former sign of life.
func (g *guest) away(self overlay.UID, e *endpoint) bool { return g.leaves(e) || g.returns(self, e) }

// came looks what a device that began to pass frames says of a guest behind
// it: if nobody else has it, that it is here.
func (c *Core) came(n *network, g *guest) {
	e := n.eps[g.mac]
	if e != nil && !e.gone && e.rec != nil && e.rec.Host != c.cfg.Self && g.tap.nic.State != hoststate.NICRunning && !c.bereft(g, e) {
		g.waitFor, g.retryAt = overlay.Rev{}, 0 // it is expected: see mayPre
		return
	}
	c.arrive(n, g)
}

// arrive notes a sign of life at the binding in force now.
func (c *Core) arrive(n *network, g *guest) {
	g.arrived, g.left, g.unsure, g.waitFor, g.retryAt = true, false, 0, overlay.Rev{}, 0
	g.base = overlay.Rev{}
	if e := n.eps[g.mac]; e != nil {
		g.base = e.rev
	}
	c.replan(n, g.mac)
	c.member(n, g.tap)
}

// Heard is what a frame that a port program handed up says.
type Heard struct {
	Port    int32 // ifindex
	ToGuest bool
	Fact    packet.Fact
	Groups  []packet.Membership // of a group report
	DHCP4   *packet.DHCP4       // the whole message, if it is one; else nil
	DHCP6   *packet.DHCP6
	Forward *packet.Forward // the packet, if one was sent to the router
	At      Time            // when the program saw it
}

// heard takes a sign of life. One that is older than the binding in force says
// nothing against it.
func (c *Core) heard(e Heard) {
	n := c.tapNet[e.Port]
	if n == nil || !n.live() {
		return
	}
	t, src := n.taps[e.Port], e.Fact.Src
	if t.empty && !e.ToGuest && e.At > t.emptyAt {
		c.emptied(n, t, false)
	}
	if t.declared == nil && !e.ToGuest {
		if _, ok := n.byMAC[src]; ok || !n.log.complete { // which MACs are declared is not known yet
			t.seen = src
			c.identify(n, t)
		} else {
			c.suspect(n, t, src)
		}
	}
	c.answersFor(n, e)
	switch g := t.declared; {
	case g == nil:
		c.learn(n, t, e)
	case e.ToGuest:
	case g.mac == src:
		c.lives(n, g, e.At)
		c.announces(n, g, e)
	case src.IsVirtual() && n.shares(g):
		c.virtual(n, t, e)
	default:
		c.foreignMAC(n, t, src)
	}
	c.joined(n, t, e)
	c.sendsTo(n, t, e)
	if g := n.guests[src]; g != nil && g.tap == t && !e.ToGuest {
		c.asked(n, g, e)
	}
}

// lives takes a sign of life of a guest, seen at a time.
func (c *Core) lives(n *network, g *guest, at Time) {
	e := n.eps[g.mac]
	if e != nil && at > e.at && c.stale(n, g) {
		g.left, g.back = false, e.leaving
		c.place(n, g.mac)
	}
	switch {
	case !n.log.complete || n.guests[g.mac] != g || e == nil || e.unsure:
	case g.owns(c.cfg.Self, e):
		if g.away(c.cfg.Self, e) && at > g.tap.said {
			g.lived, g.back = true, e.leaving // whatever its hypervisor forgot to say
			c.replan(n, g.mac)
			c.member(n, g.tap)
		}
	case at > e.at:
		c.arrive(n, g)
	}
}

// Guests is what a source, a hypervisor, says of the NICs on this host. Full:
// of all that it has. Answer: read after the newest NextInquiry, and with Full
// set. Where two sources speak of one device, the later does.
type Guests struct {
	Source string
	Full   bool
	Answer bool
	NICs   []hoststate.NIC
}

// sourced is a NIC with the source that spoke of it last, and of which device
// it is said: names are used again.
type sourced struct {
	hoststate.NIC
	source string
	after  uint64 // the look at the links that had begun last when it was said
	device int32  // ifindex of the port of ours of that name when a look saw one last; 0: none did yet
	seen   uint64 // that look
}

func (c *Core) hypervisor(e Guests) {
	now := map[string]bool{}
	for _, x := range e.NICs {
		if x.Device == "" {
			continue
		}
		now[x.Device] = true
		if x.State == hoststate.NICGone {
			delete(c.nics, x.Device)
		} else {
			was := c.nics[x.Device]
			c.nics[x.Device] = sourced{x, e.Source, c.looks, was.device, was.seen}
			c.wantSight()
		}
		c.nicChanged(x, e.Answer)
	}
	if !e.Full {
		return
	}
	var gone []string
	for name, x := range c.nics { // order-free: sorted below
		if x.source == e.Source && !now[name] {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	for _, name := range gone {
		x := hoststate.NIC{Device: name, Over: c.nics[name].Over}
		delete(c.nics, name)
		c.nicChanged(x, false)
	}
	if e.Answer {
		c.inquired()
	}
}

// wordWait is how soon after a word a look sees of which device it is said, if
// none does on another reason.
const wordWait = second

func (c *Core) wantSight() {
	if c.sightDue == 0 {
		c.sightDue = c.now + wordWait
		c.alarmAt(c.sightDue)
	}
}

// sight takes what a look at the links shows of the devices that words are
// about. A word that is older than the last look at a device goes with it,
// though nobody has said that its guest is gone: the next of that name is
// another. A younger word may be about the next one already, because a
// hypervisor may be faster than a look. A device that is no port of ours for a
// while is still itself.
func (c *Core) sight(byName map[string]int32) {
	under := map[string]int32{} // by the device that a macvtap may stand on
	for _, l := range c.links { // order-free: names are unique
		if l.Peer != "" {
			under[l.Peer] = l.Index
		}
	}
	for name, x := range c.nics { // order-free: each by itself
		at := byName[name]
		if at == 0 {
			at = under[x.Over]
		}
		switch {
		case at == 0:
		case x.device != at && x.after < x.seen:
			delete(c.nics, name)
		default:
			x.device, x.seen = at, c.looks
			c.nics[name] = x
		}
	}
}

// nicOf is what the hypervisor says of a device: of itself, or of the macvtap
// on the other end of its pair, unless several stand there.
func (c *Core) nicOf(device, peer string) hoststate.NIC {
	if x, ok := c.nics[device]; ok || peer == "" {
		return x.NIC
	}
	var only hoststate.NIC
	for _, x := range c.nics { // order-free: if there are two, neither counts
		if x.Over != peer {
			continue
		}
		if only.State != 0 {
			return hoststate.NIC{}
		}
		only = x.NIC
	}
	return only
}

// overNone reports whether no macvtap of a hypervisor stands on a device.
func (c *Core) overNone(device string) bool {
	for _, x := range c.nics { // order-free: one is enough
		if x.Over == device {
			return false
		}
	}
	return true
}

// nicChanged takes what the hypervisor now says of one device, in answer to an
// inquiry or by itself.
func (c *Core) nicChanged(said hoststate.NIC, answer bool) {
	for _, n := range c.sortedNets() {
		for _, idx := range sortedTaps(n.taps) {
			t := n.taps[idx]
			if t.name != said.Device && (said.Over == "" || t.peer != said.Over) {
				continue
			}
			x := c.nicOf(t.name, t.peer)
			if x.State == 0 && said.State == hoststate.NICGone && (t.peer == "" || c.overNone(t.peer)) {
				x = said
			}
			if answer && t.nic.State == x.State && x.State == hoststate.NICRunning {
				c.confirmed(n, t)
			}
			if t.nic == x {
				continue
			}
			was := t.nic.State
			t.nic, n.look = x, true
			if was != x.State {
				t.said = c.now
				for _, g := range t.guests() {
					g.lived, g.landed = false, false
				}
			}
			t.word = x.State == hoststate.NICRunning && (t.word || was != x.State)
			c.identify(n, t)
			if x.State != 0 && (x.State == hoststate.NICGone) != t.empty {
				c.emptied(n, t, !t.empty)
			}
			if g := t.declared; g != nil && was != x.State {
				c.nicState(n, g, x.State)
			}
		}
	}
}

// emptied takes it that no guest is behind a device, or that one is again.
func (c *Core) emptied(n *network, t *tap, empty bool) {
	t.empty, t.emptyAt = empty, c.now
	for _, g := range t.guests() {
		c.place(n, g.mac)
	}
	c.touch(n)
}

// nicState acts on a new state of the guest behind a device.
func (c *Core) nicState(n *network, g *guest, s hoststate.NICState) {
	switch s {
	case hoststate.NICIncoming:
		g.left = false
		c.place(n, g.mac)
	case hoststate.NICRunning:
		g.evidence, g.left = max(g.evidence, overlay.EvidenceHypervisor), false
		c.place(n, g.mac)
		c.weigh(n, g.tap)
	default:
		g.evidence, g.back = min(g.evidence, overlay.EvidenceDevice), false // it stands, no more
	}
	c.replan(n, g.mac) // one that leaves is reached where it is expected
	c.member(n, g.tap)
}

// GuestState says of a device what became of the guest behind it: unknown (no
// port of ours), unclaimed, elsewhere, expected (pre-associated: it may come),
// arriving (here, and the manager has not agreed yet) or here; with the
// manager's last word against it.
func (c *Core) GuestState(device string) (state, refusal string) {
	for _, n := range c.sortedNets() {
		for _, t := range n.taps { // order-free: names are unique
			if t.name != device {
				continue
			}
			g := t.declared
			if g == nil {
				return "unclaimed", ""
			}
			e := n.eps[g.mac]
			switch {
			case e != nil && g.returns(c.cfg.Self, e):
				if c.guardStands(t) {
					return "expected", ""
				}
			case e != nil && g.owns(c.cfg.Self, e) && g.claimed:
				return "here", g.refusal
			case e != nil && g.owns(c.cfg.Self, e):
				return "arriving", g.refusal
			case n.pre[g.mac] && c.guardStands(t):
				return "expected", ""
			}
			return "elsewhere", g.refusal
		}
	}
	return "unknown", ""
}
