package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// Addresses that several ports may hold (VRRP). Who holds one is in the logs
// like any endpoint's addresses; here it is heard who takes one. An
// announcement takes it from another, mere use only if nobody has it: who was
// told to be the backup goes on using it for a moment.

// Bounds of what the guests of one port may change: a burst, and then so often.
// Above it what they announce waits, and the last announcement counts.
const (
	shareEvery = 200 * millisecond
	shareBurst = 5
	// doubtTime is how long after an announcement its guest is asked whether
	// it is still true, if another has the address by then. Long enough for
	// a router that becomes the backup to give it up.
	doubtTime = 300 * millisecond
	// askTime is how long its answer is waited for.
	askTime = 500 * millisecond
)

// shared is what is known here of a shared address of a guest's.
type shared struct {
	addr netip.Addr
	// at is when the guest announced it last, and heard up to where the log
	// was then.
	at    Time
	heard overlay.Rev
	// pending: the manager has not answered to it.
	pending bool
	claim   uint64      // that carries it; 0: none yet
	told    overlay.Rev // of the binding in which the manager gave it
	movedAt Time        // when it was last heard that another has it
	doubtAt Time        // when the guest is asked; 0: not
	asked   Time        // when it was asked; 0: it was not
}

// portOf is the declared port behind which a guest is; nil if there is none.
func (n *network) portOf(g *guest) *overlay.Port {
	if p := n.ports[g.port]; p != nil && !p.gone && !g.port.IsZero() {
		return p.rec
	}
	return nil
}

// countShared counts the ports that share each address, by one more or less.
func (n *network) countShared(p *overlay.Port, by int) {
	for _, a := range p.Shared {
		if n.shared[a] += by; n.shared[a] == 0 {
			delete(n.shared, a)
		}
	}
}

// shares reports whether a guest's port shares any address.
func (n *network) shares(g *guest) bool {
	p := n.portOf(g)
	return p != nil && len(p.Shared) > 0
}

// shareOf is the note of a shared address of a guest's; nil if its port does
// not share it.
func (n *network) shareOf(g *guest, a netip.Addr) *shared {
	p := n.portOf(g)
	if p == nil || !slices.Contains(p.Shared, a) {
		return nil
	}
	i := slices.IndexFunc(g.shares, func(s *shared) bool { return s.addr == a })
	if i >= 0 {
		return g.shares[i]
	}
	g.shares = append(g.shares, &shared{addr: a})
	return g.shares[len(g.shares)-1]
}

// announces takes what a frame of a guest's says of a shared address.
func (c *Core) announces(n *network, g *guest, e Heard) {
	switch e.Fact.Kind {
	case packet.ARPRequest, packet.ARPReply, packet.ARPAnnouncement, packet.NeighborSolicit, packet.NeighborAdvert:
	default:
		return
	}
	s := n.shareOf(g, e.Fact.IP)
	if s == nil || !n.log.complete || n.guests[g.mac] != g || e.At <= s.movedAt {
		return
	}
	_, tells := e.Fact.Announcement()
	if answers := s.asked != 0 && e.At <= s.asked+askTime; answers {
		tells, s.asked = true, 0
	} else if tells {
		s.at = c.now
	}
	mac, held := n.has(s.addr)
	knows := n.log.sent
	if held { // a message may have told who has it, and the next one that it was all
		knows = later(knows, n.eps[mac].rev)
	}
	switch {
	case held && mac == g.mac:
		s.heard, s.doubtAt = knows, 0
		return
	case held && !tells, n.log.sent.Less(s.told):
		return
	}
	s.heard, s.doubtAt = knows, 0
	if s.pending {
		return
	}
	s.pending, s.claim = true, 0
	c.spend(g.tap)
	c.alarmAt(g.tap.mayChange())
}

// spend takes a change out of a port's bucket.
func (c *Core) spend(t *tap) {
	t.changes = max(t.changes, c.now) + shareEvery
	if t.mayChange() > c.now {
		c.stats.SharesDelayed++
	}
}

// mayChange is when a port is within its bound; it is past if it is now.
func (t *tap) mayChange() Time { return t.changes - shareBurst*shareEvery }

// toTell lists the shared addresses that the manager is to be told of now, and
// up to where the log was when the first of them was announced.
func (g *guest) toTell(now Time) (addrs []netip.Addr, heard overlay.Rev) {
	if !g.tells(now) {
		return nil, heard
	}
	for _, s := range g.shares {
		if !s.pending || s.claim != 0 {
			continue
		}
		if len(addrs) == 0 || s.heard.Less(heard) {
			heard = s.heard
		}
		addrs = append(addrs, s.addr)
	}
	return overlay.SortAddrs(addrs), heard
}

// tells reports whether there is something to tell now.
func (g *guest) tells(now Time) bool {
	return g.tap.mayChange() <= now && slices.ContainsFunc(g.shares, func(s *shared) bool { return s.pending && s.claim == 0 })
}

// tellShares enters what toTell listed into a claim.
func (c *Core) tellShares(g *guest, cl *Claim) {
	if g.port.IsZero() {
		return
	}
	cl.Addresses, cl.Heard = g.toTell(c.now)
	for _, s := range g.shares {
		if slices.Contains(cl.Addresses, s.addr) {
			s.claim = g.claim
		}
	}
}

// sharesAnswered takes the manager's answer to a claim that carried some. What
// it refused may be a race that was lost though the guest has the address: it is
// asked, a little later.
func (c *Core) sharesAnswered(g *guest, e Answered) {
	for _, s := range g.shares {
		if s.claim != e.ID {
			continue
		}
		s.claim = 0
		if !e.Accepted {
			continue // the claim is made again
		}
		s.pending, s.told = false, e.Binding
		if e.Reason != "" {
			s.doubtAt = c.now + doubtTime
			c.alarmAt(s.doubtAt)
		}
	}
}

// sharesMoved notes that an address went to another MAC at a revision: what was
// announced here before that counts no more. If that was only just, it may have
// been the later announcement nevertheless, and the guest is asked.
func (c *Core) sharesMoved(n *network, a netip.Addr, to overlay.MAC, rev overlay.Rev) {
	for _, idx := range sortedTaps(n.taps) {
		for _, g := range n.taps[idx].guests() {
			s := n.shareOf(g, a)
			if s == nil || g.mac == to {
				continue
			}
			recent := s.at != 0 && c.now-s.at < doubtTime
			s.movedAt, s.asked = c.now, 0
			if s.pending && s.heard.Less(rev) {
				s.pending, s.claim, recent = false, 0, true
			}
			if recent {
				s.doubtAt = c.now + doubtTime
				c.alarmAt(s.doubtAt)
			}
			s.at = 0 // one doubt an announcement
		}
	}
}

// dueShares asks a guest for an address that another has, where that is in
// doubt. The question is a probe, which changes nobody's cache.
func (c *Core) dueShares(n *network, g *guest) {
	for _, s := range g.shares {
		if s.doubtAt != 0 && s.doubtAt <= c.now {
			s.doubtAt = 0
			if mac, held := n.has(s.addr); (!held || mac != g.mac) && !s.pending && g.tap.isMember {
				s.asked = c.now
				c.send(g.tap, askFor(g.mac, s.addr))
			}
		}
		c.alarmAt(s.doubtAt)
		if s.pending {
			c.alarmAt(g.tap.mayChange())
		}
	}
}

// askFor asks a guest whether it has an address.
func askFor(mac overlay.MAC, a netip.Addr) []byte {
	if a.Is4() {
		return packet.AskARP(mac, overlay.ServerMAC, netip.IPv4Unspecified(), a)
	}
	return packet.AskND(mac, overlay.ServerMAC, serverIP6, a)
}

// virtual takes a frame from a virtual router's MAC: behind a port that shares
// addresses it is an endpoint like the port's own, and where its newest frame
// came from.
func (c *Core) virtual(n *network, t *tap, e Heard) {
	mac, d := e.Fact.Src, t.declared
	p := n.portOf(d)
	if _, declared := n.byMAC[mac]; declared || p == nil || len(p.Shared) == 0 || !n.log.complete || n.guests[d.mac] != d {
		return
	}
	if own := n.eps[d.mac]; own != nil && !d.owns(c.cfg.Self, own) {
		return
	}
	g := t.learned[mac]
	if g == nil && (len(t.learned) >= maxLearned || t.mayChange() > c.now) {
		return
	}
	if g == nil {
		g = &guest{tap: t, mac: mac, port: d.port, evidence: overlay.EvidenceARP}
		if t.learned == nil {
			t.learned = map[overlay.MAC]*guest{}
		}
		c.spend(t)
		t.learned[mac] = g
		c.unlearnElsewhere(n, t, mac)
		c.place(n, mac)
		c.member(n, t)
		c.touch(n)
	}
	if ep := n.eps[mac]; ep != nil && !g.owns(c.cfg.Self, ep) && e.At > ep.at {
		if t.mayChange() > c.now {
			return
		}
		c.spend(t)
	}
	c.lives(n, g, e.At)
	c.announces(n, g, e)
}

// unshare drops what is known of shared addresses on a device that its port
// does not share any more, and with the last of them the virtual MACs.
func (c *Core) unshare(n *network, t *tap) {
	var still []netip.Addr
	port := overlay.UID{}
	if g := t.declared; g != nil {
		if p := n.portOf(g); p != nil {
			still, port = p.Shared, g.port
		}
	}
	for _, g := range t.guests() {
		g.shares = slices.DeleteFunc(g.shares, func(s *shared) bool { return !slices.Contains(still, s.addr) })
	}
	for _, mac := range sortedMACs(t.learned) {
		if p := t.learned[mac].port; !p.IsZero() && (p != port || len(still) == 0) {
			delete(t.learned, mac)
			c.place(n, mac)
		}
	}
}

// revirtual takes an entry that was pinned on a port's device for a virtual MAC
// that is bound here, as relearn does of undeclared endpoints.
func (c *Core) revirtual(n *network, t *tap, k hoststate.Key, v hoststate.Val) bool {
	e, p := n.eps[k.MAC], n.portOf(t.declared)
	if !k.MAC.IsVirtual() || v.Flags&hoststate.Sticky == 0 || p == nil || len(p.Shared) == 0 || e == nil || e.gone || e.rec == nil ||
		e.rec.Host != c.cfg.Self || e.rec.Port != p.UID || t.learned[k.MAC] != nil || len(t.learned) >= maxLearned {
		return false
	}
	if t.learned == nil {
		t.learned = map[overlay.MAC]*guest{}
	}
	t.learned[k.MAC] = &guest{tap: t, mac: k.MAC, port: p.UID, evidence: e.rec.Evidence}
	c.place(n, k.MAC)
	c.member(n, t)
	return true
}
