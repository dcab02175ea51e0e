package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/overlay"
	"culvert/internal/plan"
)

// Networks that are routed to each other: the host of the guest that sends does
// it, so its tables of that guest's network hold the endpoints that it may send
// to, wherever they are, and the host of the guest that is sent to takes what
// others have routed. Both follow from the other network's log, which is
// subscribed to for that alone: its devices come with ports of its own.

// crossing is what an endpoint has in the tables of another network that is
// served here.
type crossing struct {
	in     *network
	reach  plan.Reached // what its rows there stand for; the zero one has none
	at     netip.Addr   // of the other host that routes what it sends; invalid if there is none
	others []netip.Addr // that may do so besides, while it moves
}

// via appends the tunnel end points of the hosts that route for the endpoint.
func (x *crossing) via(buf []netip.Addr) []netip.Addr {
	if x.at.IsValid() {
		buf = append(buf, x.at)
	}
	return append(buf, x.others...)
}

func (x *crossing) empty() bool { return x.reach.VNI == 0 && !x.at.IsValid() && len(x.others) == 0 }

// routes reports whether hosts route for the network.
func (n *network) routes() bool { return n.live() && !n.rec.Domain.IsZero() }

// routedOtherwise reports whether a change of a network's record changes what is
// routed to, from or in it.
func routedOtherwise(old, now *overlay.Network) bool {
	return old.Domain != now.Domain || !slices.Equal(old.Reach, now.Reach) || !slices.Equal(old.From, now.From) || !slices.Equal(old.Subnets, now.Subnets)
}

func contains(sorted []overlay.UID, uid overlay.UID) bool {
	_, ok := slices.BinarySearchFunc(sorted, uid, overlay.UID.Compare)
	return ok
}

// join puts into force what a network is routed to and from, as long as its own
// log is wanted for a device or its tables. The logs that this takes are wanted
// at once: before they were received, what the manager says is not all that
// concerns this host.
func (c *Core) join(n *network) {
	reach, from := n.reach, n.from
	n.reach, n.from = nil, nil
	if n.live() && (n.serving || len(n.taps) > 0) {
		n.reach, n.from = n.rec.Reach, n.rec.From
	}
	if slices.Equal(reach, n.reach) && slices.Equal(from, n.from) {
		return
	}
	for _, uid := range merged(reach, from, n.reach, n.from) {
		o := c.nets[uid]
		if o == nil || contains(reach, uid) == contains(n.reach, uid) && contains(from, uid) == contains(n.from, uid) {
			continue
		}
		near := contains(n.reach, uid) || contains(n.from, uid)
		if i, is := slices.BinarySearchFunc(o.near, n, byUID); is && !near {
			o.near = slices.Delete(o.near, i, i+1)
			c.lookAgain(n, o)
		} else if !is && near {
			o.near = slices.Insert(o.near, i, n)
		}
		c.crossAll(o)
		c.subscribe(o)
	}
}

func merged(lists ...[]overlay.UID) []overlay.UID {
	all := slices.Concat(lists...)
	slices.SortFunc(all, overlay.UID.Compare)
	return slices.Compact(all)
}

// crossFrom brings the rows of other networks' endpoints up to date in one that
// is served from now on, or not any more.
func (c *Core) crossFrom(n *network) {
	for _, uid := range merged(n.reach, n.from) {
		if o := c.nets[uid]; o != nil {
			c.crossAll(o)
		}
	}
}

// crossAll brings up to date what all endpoints of a network have in others.
func (c *Core) crossAll(n *network) {
	for _, mac := range sortedMACs(n.eps) {
		c.cross(n, mac, n.eps[mac])
	}
}

func byUID(a, b *network) int { return a.uid.Compare(b.uid) }

// wanted subscribes to a network whose record came or changed, if one that is
// served here is routed to or from it. fresh: it was not known before.
func (c *Core) wanted(n *network, fresh bool) {
	if fresh {
		for _, o := range c.sortedNets() {
			if contains(o.reach, n.uid) || contains(o.from, n.uid) {
				n.near = append(n.near, o)
			}
		}
	}
	switch {
	case len(n.near) == 0:
	case n.live():
		c.subscribe(n)
	default:
		for _, o := range n.near {
			c.lookAgain(o, n)
		}
	}
}

// lookAgain has the tables of a network read again when another, which it was
// not whole without, stands in its way no more: what was left alone until now
// may be looked at.
func (c *Core) lookAgain(n, other *network) {
	if !other.log.complete || other.gone {
		n.needRead = n.needRead || n.tablesRead
	}
}

// whole reports whether all is known that has rows in a network's tables, so
// that what nobody wants there may be taken away: its own log to an end, and
// those of the networks that it is routed to and from.
func (c *Core) whole(n *network) bool {
	if !n.log.complete {
		return false
	}
	if !n.serving && !n.occupied() {
		return true
	}
	for _, list := range [][]overlay.UID{n.rec.Reach, n.rec.From} {
		for _, uid := range list {
			if o := c.nets[uid]; o == nil && !c.fleet.complete || o != nil && o.live() && !o.log.complete {
				return false
			}
		}
	}
	return true
}

// giveWay looks anew at the endpoints of other networks whose MAC a network has
// itself now, or not any more: one that its own guests send to is no other's.
func (c *Core) giveWay(n *network, mac overlay.MAC) {
	for _, uid := range n.reach {
		if o := c.nets[uid]; o != nil && o.eps[mac] != nil {
			c.cross(o, mac, o.eps[mac])
		}
	}
}

// cross brings up to date what an endpoint has in the tables of other networks.
func (c *Core) cross(n *network, mac overlay.MAC, e *endpoint) {
	old := e.crossed
	if len(old)+len(n.near) == 0 {
		return
	}
	e.crossed = c.crossings(n, mac, e)
	by := overlay.Key{Kind: overlay.KindEndpoint, UID: n.uid, MAC: mac}
	for _, now := range e.crossed {
		c.crossed(by, e.rev, in(old, now.in), now)
	}
	for _, was := range old {
		if now := in(e.crossed, was.in); now.empty() {
			c.crossed(by, e.rev, was, now)
		}
	}
}

// in is the crossing of a list that is in a network; an empty one if none is.
func in(list []crossing, n *network) crossing {
	for _, x := range list {
		if x.in == n {
			return x
		}
	}
	return crossing{in: n}
}

// crossings is what an endpoint is to have in the networks that are routed to
// its own: it is reached where its own network's guests reach it, on this host
// also before it is known which device it is behind.
func (c *Core) crossings(n *network, mac overlay.MAC, e *endpoint) (out []crossing) {
	if !n.live() || e.gone || e.rec == nil {
		return nil
	}
	p := c.planned(n, mac, e, n.guests[mac])
	at, addrs := p.VTEP, n.routable(e.rec.Addresses)
	if p.Port != 0 || !at.IsValid() && e.rec.Host == c.cfg.Self {
		at = c.cfg.VTEP
	}
	for _, o := range n.near {
		if !o.serving {
			continue
		}
		x := crossing{in: o}
		if mine := o.eps[mac]; at.IsValid() && contains(o.reach, n.uid) && (mine == nil || !mine.own) {
			x.reach = plan.Reached{VNI: o.rec.VNI, Into: n.rec.VNI, MAC: mac, Addrs: addrs, VTEP: at}
		}
		if contains(o.from, n.uid) {
			x.at, x.others = p.VTEP, p.Sources
		}
		if !x.empty() {
			out = append(out, x)
		}
	}
	return out
}

// routable is those of an endpoint's addresses that are in a subnet of its
// network: no other network's guest can mean another.
func (n *network) routable(addrs []netip.Addr) []netip.Addr {
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(n.rec.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Contains(a) })
	}
	if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !inside(a) }) {
		return addrs
	}
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !inside(a) })
}

// crossed replaces what an endpoint has in one other network.
func (c *Core) crossed(by overlay.Key, rev overlay.Rev, was, now crossing) {
	n := now.in
	c.was, c.will = plan.ReachedRows(c.was[:0], was.reach), plan.ReachedRows(c.will[:0], now.reach)
	c.replace(n.rows, c.was, c.will, by, rev)
	var room [8]netip.Addr
	for _, v := range now.via(room[:0]) {
		if n.routedBy[v]++; n.routedBy[v] == 1 {
			c.add(n.rows, plan.RoutedRow(n.rec.VNI, v), memberBy(n), overlay.Rev{})
		}
	}
	for _, v := range was.via(room[:0]) {
		if n.routedBy[v]--; n.routedBy[v] == 0 {
			delete(n.routedBy, v)
			c.remove(n.rows, plan.RoutedRow(n.rec.VNI, v).Key, memberBy(n))
		}
	}
}
