package agentcore

import (
	"cmp"
	"net/netip"
	"slices"

	"culvert/internal/answer"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// Bounds of what one device may be heard to be: a guest can say anything.
const (
	maxLearned      = 8  // MACs behind a device
	maxLearnedAddrs = 16 // addresses of a MAC
	// addrQuiet is how long an address is not heard before another may have its
	// place. A guest that makes itself a new temporary address a day (RFC 8981)
	// so keeps its newest ones, and one that claims a network's whole range
	// makes the manager no work.
	addrQuiet = 600 * second
)

// learn takes what a frame of a device says that is no declared port, in a
// network that admits such endpoints. The manager decides on each of them.
func (c *Core) learn(n *network, t *tap, e Heard) {
	f := e.Fact
	mac := f.Src
	if e.ToGuest {
		mac = f.MAC
	}
	if _, declared := n.byMAC[mac]; declared || n.rec.Admission == overlay.AdmitDeclared || !n.log.complete || !mac.IsUnicast() {
		return
	}
	if mac == overlay.ServerMAC { // which would be believed to be the gateway
		c.deny(t, mac, netip.Addr{}, "hosts speak to their guests with this MAC")
		return
	}
	g := t.learned[mac]
	if g == nil {
		if e.ToGuest {
			return
		}
		if len(t.learned) >= maxLearned {
			c.deny(t, mac, netip.Addr{}, "as many endpoints as a device may have are behind it")
			return
		}
		t.allow(mac, netip.Addr{})
		g = &guest{tap: t, mac: mac, evidence: overlay.EvidenceFrame}
		if ep := n.eps[mac]; ep != nil && !ep.gone && ep.rec != nil && ep.rec.Port.IsZero() {
			g.addrs = ep.rec.Addresses // it moved here, and has what it had
		}
		if t.learned == nil {
			t.learned = map[overlay.MAC]*guest{}
		}
		t.learned[mac] = g
		c.unlearnElsewhere(n, t, mac)
		c.place(n, mac)
		c.member(n, t)
		c.touch(n)
	}
	if !g.barred || g.barUntil <= c.now {
		c.lives(n, g, e.At)
	}
	if f.MAC == mac {
		c.learnAddresses(n, g, e)
	}
}

// learnAddresses takes the addresses that a frame says its MAC has, as far as
// the network believes it: what a server leases always, the guest's own word
// not where leases alone count. That it gives one back is believed.
func (c *Core) learnAddresses(n *network, g *guest, e Heard) {
	f := e.Fact
	switch f.Kind {
	case packet.DHCPAck:
		if e.ToGuest && f.IP.IsValid() {
			c.leased(n, g, f.IP, f.Seconds, e.At)
		}
	case packet.DHCP6Reply:
		if e.ToGuest && e.DHCP6 != nil {
			for _, l := range e.DHCP6.Leases[:e.DHCP6.NLease] {
				c.leased(n, g, l.IP, l.Seconds, e.At)
			}
		}
	case packet.DHCPRelease, packet.DHCP6Release, packet.DHCPDecline, packet.DHCP6Decline:
		if !e.ToGuest && f.Target.IsValid() {
			c.dropAddress(n, g, f.Target)
		}
	case packet.ARPRequest, packet.ARPReply, packet.ARPAnnouncement, packet.NeighborSolicit, packet.NeighborAdvert:
		if !e.ToGuest && n.rec.Admission == overlay.AdmitLearn && f.IP.IsValid() {
			c.addAddress(n, g, f.IP, overlay.EvidenceARP, 0)
		}
	}
}

// addrNote is what is known of a learned address besides that it is one.
type addrNote struct {
	heard Time // last
	until Time // end of its lease, where leases alone count; 0: none
}

// leased takes a lease that a server gave at a time: of no seconds it ends one.
func (c *Core) leased(n *network, g *guest, a netip.Addr, seconds uint32, at Time) {
	switch {
	case seconds == 0:
		c.dropAddress(n, g, a)
	case n.rec.Admission != overlay.AdmitDHCP || seconds == answer.Forever:
		c.addAddress(n, g, a, overlay.EvidenceDHCP, 0)
	default:
		c.addAddress(n, g, a, overlay.EvidenceDHCP, at+Time(seconds)*second)
	}
}

// addAddress takes an address that was heard. Where there is no room it takes
// that of the one that was not heard for the longest time.
func (c *Core) addAddress(n *network, g *guest, a netip.Addr, ev overlay.Evidence, until Time) {
	i, have := slices.BinarySearchFunc(g.addrs, a, netip.Addr.Compare)
	if !have && len(g.addrs) >= maxLearnedAddrs {
		old := slices.MinFunc(g.addrs, func(a, b netip.Addr) int { return cmp.Compare(g.notes[a].heard, g.notes[b].heard) })
		if c.now-g.notes[old].heard < addrQuiet {
			c.deny(g.tap, g.mac, a, "it has as many addresses as an endpoint may have")
			return
		}
		c.dropAddress(n, g, old)
		i, _ = slices.BinarySearchFunc(g.addrs, a, netip.Addr.Compare)
	}
	g.evidence = max(g.evidence, ev)
	if g.notes == nil {
		g.notes = map[netip.Addr]addrNote{}
	}
	g.notes[a] = addrNote{heard: c.now, until: until}
	c.noteDue(g)
	if have {
		return
	}
	g.tap.allow(g.mac, a)
	g.addrs = slices.Insert(slices.Clone(g.addrs), i, a)
	c.addressesChanged(n, g)
}

func (c *Core) dropAddress(n *network, g *guest, a netip.Addr) {
	i, have := slices.BinarySearchFunc(g.addrs, a, netip.Addr.Compare)
	if !have {
		return
	}
	g.addrs = slices.Delete(slices.Clone(g.addrs), i, i+1)
	delete(g.notes, a)
	c.noteDue(g)
	c.addressesChanged(n, g)
}

// addressesChanged has the manager told.
func (c *Core) addressesChanged(n *network, g *guest) {
	g.claimed, g.waitFor, g.retryAt = false, overlay.Rev{}, 0
	c.member(n, g.tap)
}

// noteDue notes when the next lease ends.
func (c *Core) noteDue(g *guest) {
	g.due = 0
	for _, x := range g.notes { // order-free: the least of all
		if x.until != 0 && (g.due == 0 || x.until < g.due) {
			g.due = x.until
		}
	}
	c.alarmAt(g.due)
}

// expire takes away what was leased for a time that is over.
func (c *Core) expire(n *network, g *guest) {
	for _, a := range g.addrs {
		if x := g.notes[a]; x.until != 0 && x.until <= c.now {
			c.dropAddress(n, g, a)
		}
	}
}

// unlearnElsewhere: a MAC that is heard on another device of this host is
// there now.
func (c *Core) unlearnElsewhere(n *network, t *tap, mac overlay.MAC) {
	for _, idx := range sortedTaps(n.taps) {
		if o := n.taps[idx]; o != t && o.learned[mac] != nil {
			c.unshown(o.learned[mac])
			delete(o.learned, mac)
			c.member(n, o)
		}
	}
}

// relearn takes an entry that was pinned on a device for an endpoint that is
// bound here: an agent before this one had learned it.
func (c *Core) relearn(n *network, t *tap, k hoststate.Key, v hoststate.Val) bool {
	e := n.eps[k.MAC]
	if v.Flags&hoststate.Sticky == 0 || n.rec.Admission == overlay.AdmitDeclared || e == nil || e.gone || e.rec == nil ||
		e.rec.Host != c.cfg.Self || !e.rec.Port.IsZero() || t.learned[k.MAC] != nil || len(t.learned) >= maxLearned {
		return false
	}
	if t.learned == nil {
		t.learned = map[overlay.MAC]*guest{}
	}
	t.learned[k.MAC] = &guest{tap: t, mac: k.MAC, addrs: e.rec.Addresses, evidence: e.rec.Evidence}
	c.place(n, k.MAC)
	c.member(n, t)
	return true
}

// forgetLearned drops what was learned, where it is not admitted any more.
func (c *Core) forgetLearned(n *network) {
	for _, idx := range sortedTaps(n.taps) {
		t := n.taps[idx]
		t.denied = nil
		if c.unlearn(n, t) {
			t.groups = nil
		}
		c.member(n, t)
	}
}

// unlearn drops what was learned behind one device, and reports whether there
// was anything.
func (c *Core) unlearn(n *network, t *tap) (any bool) {
	for _, mac := range sortedMACs(t.learned) {
		if t.learned[mac].port.IsZero() {
			any = true
			c.unshown(t.learned[mac])
			delete(t.learned, mac)
			c.place(n, mac)
		}
	}
	return any
}
