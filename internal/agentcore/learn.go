package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// Bounds of what one device may be heard to be: a guest can say anything.
const (
	maxLearned      = 8  // MACs behind a device
	maxLearnedAddrs = 16 // addresses of a MAC
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
	g := t.learned[mac]
	if g == nil {
		if e.ToGuest || len(t.learned) >= maxLearned {
			return
		}
		g = &guest{tap: t, mac: mac, evidence: overlay.EvidenceFrame}
		if t.learned == nil {
			t.learned = map[overlay.MAC]*guest{}
		}
		t.learned[mac] = g
		c.unlearnElsewhere(n, t, mac)
		c.place(n, mac)
		c.member(n, t)
		c.touch(n)
	}
	c.lives(n, g, e.At)
	if a, ev := heardAddress(e, n.rec.Admission); a.IsValid() && f.MAC == mac {
		c.addAddress(n, g, a, ev)
	}
}

// unlearnElsewhere: a MAC that is heard on another device of this host is
// there now.
func (c *Core) unlearnElsewhere(n *network, t *tap, mac overlay.MAC) {
	for _, idx := range sortedTaps(n.taps) {
		if o := n.taps[idx]; o != t && o.learned[mac] != nil {
			delete(o.learned, mac)
			c.member(n, o)
		}
	}
}

// heardAddress is the address that a frame says its MAC has, as far as the
// network believes it: a server's acknowledgement always, the guest's own word
// not where leases alone count.
func heardAddress(e Heard, adm overlay.Admission) (netip.Addr, overlay.Evidence) {
	f := e.Fact
	switch f.Kind {
	case packet.DHCPAck, packet.DHCP6Reply:
		if e.ToGuest && f.Seconds > 0 {
			return f.IP, overlay.EvidenceDHCP
		}
	case packet.ARPRequest, packet.ARPReply, packet.ARPAnnouncement, packet.NeighborSolicit, packet.NeighborAdvert:
		if !e.ToGuest && adm == overlay.AdmitLearn {
			return f.IP, overlay.EvidenceARP
		}
	}
	return netip.Addr{}, overlay.EvidenceNone
}

func (c *Core) addAddress(n *network, g *guest, a netip.Addr, ev overlay.Evidence) {
	g.evidence = max(g.evidence, ev)
	i, have := slices.BinarySearchFunc(g.addrs, a, netip.Addr.Compare)
	if have || len(g.addrs) >= maxLearnedAddrs {
		return
	}
	g.addrs = slices.Insert(slices.Clone(g.addrs), i, a)
	g.claimed, g.waitFor, g.retryAt = false, overlay.Rev{}, 0
	c.member(n, g.tap)
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
		macs := sortedMACs(t.learned)
		t.learned = nil
		for _, mac := range macs {
			c.place(n, mac)
		}
		c.member(n, t)
	}
}
