package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// An address that nobody is known to have may be that of a guest that never
// spoke. Other guests' own questions do not find it: the VXLAN device's proxy
// takes them all, whether it can answer or not, and nothing is let through to a
// device that nobody claims. So the agent of the guest that asks tells the
// manager, and the agents of the network's hosts ask.

// Bounds of searches: a guest can ask for any address, as fast as it likes.
const (
	seekEvery  = 500 * millisecond // of one device
	seekBurst  = 4
	maxSought  = 256 // addresses of a network that were searched and not found
	maxSeeks   = 64  // that wait for the stream
	seekAgain  = 10 * second
	seekLatest = 60 * second
	// maxAsked bounds the devices that one question goes out of.
	maxAsked = 64
)

// Bounds of questions to one guest: whether it has an address.
const (
	maxQuestions = 64
	askEvery     = 300 * millisecond
	// A guest that was shut out may be claimed again after this long, later after
	// twice as long each time.
	refusedAgain  = 5 * second
	refusedLatest = 60 * second
)

// Seek is an address of a network that a guest here asked for in vain.
type Seek struct {
	Network overlay.UID
	Address netip.Addr
}

// Ask is the manager's question after an address: to the guest with that MAC,
// which a Finding answers, or, with ID and MAC zero, to all undeclared ones.
type Ask struct {
	ID      uint64
	Network overlay.UID
	MAC     overlay.MAC
	Address netip.Addr
	Within  Time
}

// Finding answers an Ask that has an ID. Unable: the guest could not be asked.
type Finding struct {
	ID       uint64
	Answered bool
	Unable   bool
}

func (Ask) event() {}

// sought is an address that was searched.
type sought struct {
	until Time // not again before
	wait  Time
}

// question is one that a guest here is asked.
type question struct {
	Ask
	port int32
	end  Time
	next Time // when it is asked again
}

// seek has an address searched that a guest asked for, if nobody has it.
func (c *Core) seek(n *network, t *tap, a netip.Addr) {
	if n.rec.Admission != overlay.AdmitLearn || c.session == 0 || n.serves(a) || !n.mayHave(a) || n.hasHere(a) {
		return
	}
	if _, known := n.has(a); known {
		return // the proxy answers
	}
	was := n.sought[a]
	t.seeks = max(t.seeks, c.now)
	switch {
	case c.now < was.until:
		return
	case len(c.seeks) >= maxSeeks || t.seeks-c.now > (seekBurst-1)*seekEvery || !n.roomToSeek(c.now):
		return
	}
	t.seeks += seekEvery
	was.wait = min(max(2*was.wait, seekAgain), seekLatest)
	was.until = c.now + was.wait
	n.sought[a] = was
	c.seeks = append(c.seeks, Seek{n.uid, a})
}

// seekFor has what a guest asks for searched; not what it asks for to take it,
// and not before it is known that nobody has it.
func (c *Core) seekFor(n *network, g *guest, f packet.Fact) {
	if n.log.partial && !c.asksFor(n, g, f) {
		return
	}
	if f.Kind == packet.ARPRequest || f.Kind == packet.NeighborSolicit {
		c.seek(n, g.tap, f.Target)
	}
}

// mayHave reports whether a guest of the network may have an address at all.
func (n *network) mayHave(a netip.Addr) bool {
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
		return false
	}
	return len(n.rec.Subnets) == 0 || a.Is6() && a.IsLinkLocalUnicast() ||
		slices.ContainsFunc(n.rec.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Contains(a) && s.Gateway != a })
}

// hasHere reports whether a guest here is known to have an address, whatever
// the manager thinks of it.
func (n *network) hasHere(a netip.Addr) bool {
	for _, g := range n.guests { // order-free: any of them
		if _, has := slices.BinarySearchFunc(g.addrs, a, netip.Addr.Compare); has {
			return true
		}
	}
	return false
}

// roomToSeek makes room for another address. What may be searched again already
// is forgotten, with how long it was to wait.
func (n *network) roomToSeek(now Time) bool {
	if n.sought == nil {
		n.sought = map[netip.Addr]sought{}
	}
	if len(n.sought) < maxSought {
		return true
	}
	for a, s := range n.sought { // order-free: each by itself
		if s.until <= now {
			delete(n.sought, a)
		}
	}
	return len(n.sought) < maxSought
}

// askFor carries out a question of the manager's.
func (c *Core) askFor(e Ask) {
	n := c.nets[e.Network]
	switch {
	case e.ID == 0:
		if n != nil && n.live() && n.log.complete && n.rec.Admission == overlay.AdmitLearn {
			c.askAll(n, e.Address)
		}
		return
	case n == nil || !n.live() || !n.log.complete || !c.linksRead || len(c.questions) >= maxQuestions:
		c.findings = append(c.findings, Finding{ID: e.ID, Unable: true})
		return
	}
	g := n.guests[e.MAC]
	if g == nil {
		c.findings = append(c.findings, Finding{ID: e.ID}) // its device is gone
		return
	}
	c.questions = append(c.questions, question{Ask: e, port: g.tap.index, end: c.now + e.Within, next: c.now})
	c.askNow()
}

// askAll asks for an address out of the devices that may have it and are no
// declared port's: first where nobody is known to have one of its family. Where
// they are more than one question may cost, another begins with the next.
func (c *Core) askAll(n *network, a netip.Addr) {
	var silent, others []int32
	for _, idx := range sortedTaps(n.taps) {
		t := n.taps[idx]
		switch {
		case t.declared != nil || t.empty || !t.apart || t.state != hoststate.StateForwarding:
		case t.addressed(a.Is4()):
			others = append(others, idx)
		default:
			silent = append(silent, idx)
		}
	}
	left := maxAsked
	for _, list := range [][]int32{silent, others} {
		for i := range min(left, len(list)) {
			c.askOut(list[(n.turn+i)%len(list)], packet.Broadcast, a)
			left--
		}
	}
	n.turn += maxAsked
}

// addressed reports whether a guest behind a device is known to have an address
// of a family.
func (t *tap) addressed(four bool) bool {
	return slices.ContainsFunc(t.guests(), func(g *guest) bool {
		return slices.ContainsFunc(g.addrs, func(x netip.Addr) bool { return x.Is4() == four && !x.IsLinkLocalUnicast() })
	})
}

// askOut sends a question that changes nothing at the guest: an ARP probe (RFC
// 5227 section 2.1.1); and a solicitation from the address of IPv6 answers, for
// one from no address (RFC 4862 section 5.4.2) ends the duplicate address
// detection of a guest that is just about to take the address.
func (c *Core) askOut(port int32, to overlay.MAC, a netip.Addr) {
	frame := packet.AskARP(to, overlay.ServerMAC, netip.IPv4Unspecified(), a)
	if a.Is6() {
		frame = packet.AskND(to, overlay.ServerMAC, serverIP6, a)
	}
	if frame != nil && len(c.orders) < maxOrders {
		c.orders = append(c.orders, hoststate.Op{Kind: hoststate.OpSend, Index: port, Frame: string(frame), Past: true})
	}
}

// askNow asks what is due, and ends what got no answer in time.
func (c *Core) askNow() {
	keep := c.questions[:0]
	for _, q := range c.questions {
		if q.end <= c.now {
			c.findings = append(c.findings, Finding{ID: q.ID})
			continue
		}
		if q.next <= c.now {
			c.askOut(q.port, q.MAC, q.Address)
			q.next = c.now + askEvery
		}
		c.alarmAt(min(q.next, q.end))
		keep = append(keep, q)
	}
	c.questions = keep
}

// answersFor takes a frame for the answer to a question.
func (c *Core) answersFor(n *network, e Heard) {
	if len(c.questions) == 0 || e.ToGuest || e.Fact.MAC != e.Fact.Src || !e.Fact.IP.IsValid() {
		return
	}
	c.questions = slices.DeleteFunc(c.questions, func(q question) bool {
		yes := q.Network == n.uid && q.port == e.Port && q.MAC == e.Fact.MAC && q.Address == e.Fact.IP
		if yes {
			c.findings = append(c.findings, Finding{ID: q.ID, Answered: true})
		}
		return yes
	})
}

// saySearches takes what is to be said of searches.
func (c *Core) saySearches(u *Up) {
	u.Seeks, u.Findings = c.seeks, c.findings
	c.seeks, c.findings = nil, nil
}

// forgetSearches: what was to be said is of no use in another session.
func (c *Core) forgetSearches() { c.seeks, c.findings, c.questions = nil, nil, nil }

// bar shuts a guest out whose MAC is another's, for a while.
func (c *Core) bar(n *network, g *guest, reason string) {
	c.unshown(g)
	g.wait = min(max(2*g.wait, refusedAgain), refusedLatest)
	g.barred, g.barUntil, g.arrived, g.refusal = true, c.now+g.wait, false, reason
	g.shown = "CV0209 " + g.mac.String() + " in " + n.rec.TenantName + "/" + n.rec.Name + " on " + g.tap.name + " passes nothing: " + reason
	c.problem(g.shown)
	c.replan(n, g.mac)
	c.member(n, g.tap)
}

// unbar ends that.
func (c *Core) unbar(g *guest) {
	if g.barred {
		c.unshown(g)
		g.barred, g.barUntil, g.wait = false, 0, 0
	}
}

// unshown takes back what was shown of a guest that is shut out.
func (c *Core) unshown(g *guest) {
	if g.shown != "" {
		c.solved(g.shown)
		g.shown = ""
	}
}

// freed looks whose refused addresses a record has given up: they need not
// wait.
func (c *Core) freed(n *network, was, e *endpoint) {
	if was.rec == nil || was.gone {
		return
	}
	lost := slices.Clone(was.rec.Addresses)
	if !e.gone {
		lost = slices.DeleteFunc(lost, func(a netip.Addr) bool { return slices.Contains(e.rec.Addresses, a) })
	}
	if len(lost) == 0 {
		return
	}
	for _, g := range n.guests { // order-free: each by itself
		if g.recheckAt != 0 && slices.ContainsFunc(lost, func(a netip.Addr) bool { return slices.Contains(g.addrs, a) }) {
			g.recheckAt = c.now
			c.alarmAt(c.now)
		}
	}
}

// allowed is what a guest may use of its addresses, and whether that is less
// than it has.
func (g *guest) allowed(self overlay.UID, e *endpoint) ([]netip.Addr, bool) {
	if len(g.refused) == 0 || e == nil || e.gone || e.rec == nil || e.rec.Host != self {
		return g.addrs, false
	}
	return e.rec.Addresses, len(e.rec.Addresses) < len(g.addrs)
}
