package agentcore

import (
	"maps"
	"net/netip"
	"slices"

	"culvert/internal/overlay"
	"culvert/internal/packet"
	"culvert/internal/plan"
)

// The lists that frames to groups are copied along in a network that is told on
// demand: they lead to the hosts that have endpoints in it, whoever those are.

// Bounds of the groups that have a list beside those that all have.
const (
	maxSent  = 8  // that one device's guests send to and have not joined
	maxLists = 64 // of a network
)

// lists is which hosts have endpoints in a network, and what is in force of that.
type lists struct {
	members map[overlay.UID]bool
	gather  map[overlay.UID]bool // those told since a pass began, which will be all; nil: none did

	// listed: its groups have lists; demanded: its endpoints are planned as told
	// on demand. When one mode follows another the lists of the new come before
	// those of the old go.
	listed, demanded bool
	demandedAt       Time // since when

	// What rows are asked for: groups with a list, where it leads, groups that
	// are known, and hosts from which strangers' frames are taken.
	groups, known []overlay.MAC
	dsts, sources []netip.Addr
	routers       []netip.Addr // see routedByMembers
}

// membersTold takes changes of who has endpoints in on-demand networks.
func (c *Core) membersTold(changes []overlay.Member) {
	var of []*network
	for _, m := range changes {
		n := c.nets[m.Network]
		if n == nil || !n.live() {
			continue
		}
		if n.members == nil {
			n.members = map[overlay.UID]bool{}
		}
		if delete(n.members, m.Host); !m.Gone {
			n.members[m.Host] = true
		}
		if n.gather != nil {
			n.gather[m.Host] = !m.Gone
		}
		if !slices.Contains(of, n) {
			of = append(of, n)
		}
	}
	for _, n := range of {
		c.relist(n)
	}
}

// allMembers takes it that those told since a pass began are all: another mode
// may have come into force since, and taken them away. Who they are is kept while
// another mode comes into force.
func (c *Core) allMembers(n *network) {
	told := n.gather
	n.gather = nil
	if told == nil || !n.log.partial {
		return
	}
	maps.DeleteFunc(told, func(_ overlay.UID, is bool) bool { return !is })
	n.members = told
	c.relist(n)
}

// memberVTEPs are the tunnel end points of the other hosts that have endpoints
// in a network and are alive, sorted.
func (c *Core) memberVTEPs(n *network) []netip.Addr {
	var out []netip.Addr
	for h := range n.members { // order-free: sorted below
		if v := c.vtep(h); h != c.cfg.Self && v.IsValid() {
			out = append(out, v)
		}
	}
	return overlay.SortAddrs(out)
}

// inUse lists the groups that guests here send to, sorted: those that all do,
// those that they have joined, and those that they were heard to send to.
// Solicitations of a node are the proxy's, and have no list.
func (n *network) inUse() []overlay.MAC {
	all := map[overlay.MAC]bool{}
	for _, g := range plan.Groups {
		all[g] = true
	}
	for _, idx := range sortedTaps(n.taps) {
		t := n.taps[idx]
		var of []overlay.MAC
		for m := range t.groups { // order-free: sorted below
			of = append(of, groupMAC(m.group))
		}
		slices.SortFunc(of, compareMACs)
		for _, g := range append(of, t.sends...) {
			if len(all) < maxLists && !solicited(g) {
				all[g] = true
			}
		}
	}
	return sortedMACs(all)
}

func compareMACs(a, b overlay.MAC) int { return slices.Compare(a[:], b[:]) }

// groupMAC is where Ethernet sends a group (RFC 1112 section 6.4, RFC 2464
// section 7).
func groupMAC(group netip.Addr) overlay.MAC {
	a := group.As16()
	if group.Is4() {
		return overlay.MAC{0x01, 0x00, 0x5e, a[13] & 0x7f, a[14], a[15]}
	}
	return overlay.MAC{0x33, 0x33, a[12], a[13], a[14], a[15]}
}

// solicited reports whether a group is one of those by which a node is asked for
// its MAC (RFC 4291 section 2.7.1).
func solicited(g overlay.MAC) bool { return g[0] == 0x33 && g[1] == 0x33 && g[2] == 0xff }

// sendsTo notes a group that a device's guests send to.
func (c *Core) sendsTo(n *network, t *tap, e Heard) {
	g := e.Fact.Dst
	if e.ToGuest || !n.demanded || g.IsUnicast() || g.IsZero() || solicited(g) || slices.Contains(n.known, g) || slices.Contains(t.sends, g) {
		return
	}
	if e.Fact.Kind == packet.GroupReport { // nobody here asks for them
		return
	}
	if len(t.sends) >= maxSent {
		c.stats.WantsRefused++
		return
	}
	t.sends = append(t.sends, g)
	c.relist(n)
}

// relist brings the rows up to date that are of a network's groups and members.
func (c *Core) relist(n *network) {
	var now lists
	if n.live() && n.serving && n.rec.Flood == overlay.FloodHER && n.listed {
		now.groups, now.dsts = n.inUse(), c.memberVTEPs(n)
		if len(n.rec.Foreign) > 0 {
			now.dsts = slices.Compact(overlay.SortAddrs(append(now.dsts, c.foreignVTEPs(n)...)))
		}
	}
	if n.live() && n.serving && n.demanded {
		now.known, now.sources = append(n.inUse(), overlay.ServerMAC), c.memberVTEPs(n)
		slices.SortFunc(now.known, compareMACs)
	}
	was := n.lists
	n.groups, n.known, n.dsts, n.sources = now.groups, now.known, now.dsts, now.sources
	vni, by := n.vni(), memberBy(n)
	for _, g := range lacking(now.known, was.known, compareMACs) {
		c.add(n.rows, plan.KnownRow(vni, g), by, overlay.Rev{})
	}
	for _, v := range lacking(now.sources, was.sources, netip.Addr.Compare) {
		c.add(n.rows, plan.StrangerRow(vni, v), by, overlay.Rev{})
	}
	c.listRows(n, now, was, func(g overlay.MAC, v netip.Addr) { c.add(n.rows, plan.ListRow(vni, g, v), by, overlay.Rev{}) })
	c.listRows(n, was, now, func(g overlay.MAC, v netip.Addr) { c.remove(n.rows, plan.ListRow(vni, g, v).Key, by) })
	for _, v := range lacking(was.sources, now.sources, netip.Addr.Compare) {
		c.remove(n.rows, plan.StrangerRow(vni, v).Key, by)
	}
	for _, g := range lacking(was.known, now.known, compareMACs) {
		c.remove(n.rows, plan.KnownRow(vni, g).Key, by)
	}
	for _, o := range n.near {
		c.routedByMembers(o)
	}
}

// routedByMembers brings the rows up to date by which a network takes what the
// members of those that are routed to it, and told on demand, have routed: also
// for guests of which this host was not told.
func (c *Core) routedByMembers(n *network) {
	var now []netip.Addr
	if n.live() && n.serving {
		for _, uid := range n.rec.From {
			if o := c.nets[uid]; o != nil && o.demanded {
				now = append(now, c.memberVTEPs(o)...)
			}
		}
	}
	now = slices.Compact(overlay.SortAddrs(now))
	was, by := n.routers, memberBy(n)
	n.routers = now
	for _, v := range lacking(now, was, netip.Addr.Compare) {
		c.add(n.rows, plan.RoutedStrangerRow(n.vni(), v), by, overlay.Rev{})
	}
	for _, v := range lacking(was, now, netip.Addr.Compare) {
		c.remove(n.rows, plan.RoutedStrangerRow(n.vni(), v).Key, by)
	}
}

// listRows does with each place that one state of the lists has and another has
// not.
func (c *Core) listRows(n *network, a, b lists, do func(overlay.MAC, netip.Addr)) {
	fresh := lacking(a.dsts, b.dsts, netip.Addr.Compare)
	for _, g := range a.groups {
		list := fresh
		if _, had := slices.BinarySearchFunc(b.groups, g, compareMACs); !had {
			list = a.dsts
		}
		for _, v := range list {
			do(g, v)
		}
	}
}

// lacking lists what is in a and not in b; both are sorted.
func lacking[T any](a, b []T, compare func(T, T) int) (out []T) {
	for _, x := range a {
		if _, has := slices.BinarySearchFunc(b, x, compare); !has {
			out = append(out, x)
		}
	}
	return out
}

// vni is the network's, also after it was deleted.
func (n *network) vni() overlay.VNI {
	if n.rec == nil {
		return 0
	}
	return n.rec.VNI
}

// conform brings a network's tables into the mode in which its log was received,
// or, before it was, into that of its record. Lists of the new mode come first,
// and those of the old go when all else stands.
func (c *Core) conform(n *network) {
	to := n.onDemand()
	if n.log.complete {
		to = n.log.partial
	}
	if n.listed == to && n.demanded == to {
		return
	}
	still := !n.serving || n.vxlan == 0
	if to && !n.listed {
		n.listed = true
		c.relist(n)
	}
	if n.demanded != to && (!to || still || n.rows.open == 0) {
		n.demanded, n.demandedAt = to, c.now
		c.replanAll(n)
		c.crossFrom(n)
		c.touch(n)
	}
	if !to && n.listed && !n.demanded && (still || n.rows.open == 0) {
		n.listed, n.members = false, nil
		c.relist(n)
	}
}
