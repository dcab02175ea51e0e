package agentcore

import (
	"maps"
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// What guests were seen to do, and what programs counted, for whoever looks.
// Nothing is decided on it.

// maxGroups bounds the groups of a port: more than any guest needs, and a guest
// can say anything.
const maxGroups = 64

// member is one guest's membership of a multicast group.
type member struct {
	mac   overlay.MAC
	group netip.Addr
}

// joined takes what a report joins and leaves. A membership lasts until the
// guest leaves or its port goes. It does not age: RFC 3376 section 8.4 (and
// RFC 3810 section 9.4) lets it end 260 s after its last report because a
// querier asks every 125 s, and nobody asks here, so that a guest says it once.
// A guest that ends without leaving stays a member as long as its port is
// there, which costs others nothing.
//
// Reports count from devices that nothing names yet, too: a guest says them
// when it comes up, and does not say them again.
func (c *Core) joined(n *network, t *tap, e Heard) {
	mac := e.Fact.Src
	if e.Fact.Kind != packet.GroupReport || e.ToGuest || t.declared != nil && t.declared.mac != mac {
		return
	}
	changed := false
	for _, m := range e.Groups {
		k := member{mac, m.Group}
		switch {
		case m.Join == t.groups[k]:
			continue
		case !m.Join:
			delete(t.groups, k)
		case len(t.groups) >= maxGroups:
			c.deny(t, mac, m.Group, "its port has as many groups as are remembered")
		default:
			if t.groups == nil {
				t.groups = map[member]bool{}
			}
			t.groups[k] = true
		}
		changed = true
	}
	if changed && n.listed {
		c.relist(n)
	}
}

// keepGroups forgets what others than that MAC have joined.
func (t *tap) keepGroups(mac overlay.MAC) {
	maps.DeleteFunc(t.groups, func(m member, _ bool) bool { return m.mac != mac })
}

// groupsOf lists what that MAC has joined, sorted.
func (t *tap) groupsOf(mac overlay.MAC) []netip.Addr {
	var out []netip.Addr
	for m := range t.groups { // order-free: sorted below
		if m.mac == mac {
			out = append(out, m.group)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// dropCounts are the programs' counters, as they were read with the links.
type dropCounts struct {
	last map[hoststate.DropKey]uint64
	// past is what ports had counted that are gone, and programs that were
	// loaded anew: the sum over the host never falls.
	past [hoststate.DropReasons]uint64
}

func (d *dropCounts) take(now map[hoststate.DropKey]uint64) {
	for k, n := range d.last { // order-free: what is summed up
		if now[k] < n && k.Reason < hoststate.DropReasons {
			d.past[k.Reason] += n
		}
	}
	d.last = maps.Clone(now)
}

// Dropped is what this host's programs have dropped, by reason, and how many
// frames were worth handing up and were not, because there were too many. It is
// as old as the last look at the links.
func (c *Core) Dropped() (drops []overlay.Count, unheard uint64) {
	sums := c.drops.past
	for k, n := range c.drops.last { // order-free: what is summed up
		if k.Reason < hoststate.DropReasons {
			sums[k.Reason] += n
		}
	}
	for r, n := range sums {
		if reason := hoststate.DropReason(r); n > 0 && reason != hoststate.DropPuntLimit {
			drops = append(drops, overlay.Count{Reason: reason.String(), N: n})
		}
	}
	return drops, sums[hoststate.DropPuntLimit]
}

func (c *Core) droppedAt(port int32) (out []overlay.Count) {
	for r := range hoststate.DropReason(hoststate.DropReasons) {
		if n := c.drops.last[hoststate.DropKey{Port: port, Reason: r}]; n > 0 && r != hoststate.DropPuntLimit {
			out = append(out, overlay.Count{Reason: r.String(), N: n})
		}
	}
	return out
}

// Seen lists the guests here of which there is something to say, by network,
// device and MAC. Drops are the declared port's; what is dropped of several
// guests behind one device is in the host's sum alone. Never nil.
func (c *Core) Seen() []overlay.Seen {
	out := []overlay.Seen{}
	for _, n := range c.sortedNets() {
		for _, idx := range sortedTaps(n.taps) {
			t := n.taps[idx]
			for _, g := range t.guests() {
				if !c.here(n, g) {
					continue
				}
				s := overlay.Seen{Network: n.uid, MAC: g.mac, Groups: t.groupsOf(g.mac)}
				if g == t.declared {
					s.Drops = c.droppedAt(idx)
				}
				if len(s.Groups)+len(s.Drops) > 0 {
					out = append(out, s)
				}
			}
		}
	}
	return out
}

// here reports whether a guest is behind its device, and nowhere else.
func (c *Core) here(n *network, g *guest) bool {
	e := n.eps[g.mac]
	return n.live() && n.guests[g.mac] == g && (e == nil || g.owns(c.cfg.Self, e))
}
