package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/plan"
)

// Networks that are routed to each other: the host of the guest that sends does
// it, so its tables of that guest's network hold the endpoints that it may send
// to, wherever they are, and the host of the guest that is sent to takes what
// others have routed. Networks that are bridged: the tables of each hold the
// other's endpoints as if they were its own. All of it follows from the other
// network's log, which is subscribed to for that alone: its devices come with
// ports of its own.

// ways are which networks one is routed to and from, and bridged to; each is
// sorted.
type ways struct{ reach, from, bridged []overlay.UID }

// waysOf are those that a record says.
func waysOf(r *overlay.Network) ways { return ways{r.Reach, r.From, r.Bridge} }

// Kinds of ways.
const (
	wayReach = 1 << iota
	wayFrom
	wayBridge
)

// way is the kinds of ways to a network; zero if there is none.
func (w *ways) way(uid overlay.UID) (kinds int) {
	for i, list := range [...][]overlay.UID{w.reach, w.from, w.bridged} {
		if _, ok := slices.BinarySearchFunc(list, uid, overlay.UID.Compare); ok {
			kinds |= 1 << i
		}
	}
	return kinds
}

// others are all networks that there is a way to.
func (w *ways) others() []overlay.UID {
	all := slices.Concat(w.reach, w.from, w.bridged)
	slices.SortFunc(all, overlay.UID.Compare)
	return slices.Compact(all)
}

func (w *ways) equal(v *ways) bool {
	return slices.Equal(w.reach, v.reach) && slices.Equal(w.from, v.from) && slices.Equal(w.bridged, v.bridged)
}

// nextHop is an endpoint by way of which prefixes are reached.
type nextHop struct {
	network overlay.UID
	mac     overlay.MAC
}

// hopsOf are the prefixes of a network's routes by their next hops; nil if
// there are none.
func hopsOf(routes []overlay.NextHop) map[nextHop][]netip.Prefix {
	if len(routes) == 0 {
		return nil
	}
	hops := map[nextHop][]netip.Prefix{}
	for _, r := range routes {
		h := nextHop{r.Network, r.MAC}
		hops[h] = append(hops[h], r.Prefix)
	}
	return hops
}

// crossing is what an endpoint has in the tables of another network that is
// served here.
type crossing struct {
	in   *network
	plan plan.Crossing // what its rows there stand for; the zero one has none
}

// wantsAlias reports whether it is sent to by its alias, if that is its own.
func (x *crossing) wantsAlias() bool { return x.plan.VTEP.IsValid() && !x.plan.Bridged }

// routes reports whether hosts route for the network.
func (n *network) routes() bool { return n.live() && !n.rec.Domain.IsZero() }

// routedOtherwise reports whether a change of a network's record changes what is
// routed or bridged to, from or in it.
func routedOtherwise(old, now *overlay.Network) bool {
	was, is := waysOf(old), waysOf(now)
	return old.Domain != now.Domain || !was.equal(&is) || !slices.Equal(old.Subnets, now.Subnets) || !slices.Equal(old.Routes, now.Routes) || old.MTU != now.MTU
}

// join puts into force what a network is routed and bridged to, as long as its
// own log is wanted for a device or its tables. The logs that this takes are
// wanted at once: before they were received, what the manager says is not all
// that concerns this host.
func (c *Core) join(n *network) {
	was := n.ways
	n.ways = ways{}
	if n.live() && (n.serving || len(n.taps) > 0) {
		n.ways = waysOf(n.rec)
	}
	if n.ways.equal(&was) {
		return
	}
	all := ways{was.others(), n.others(), nil}
	for _, uid := range all.others() {
		o, way := c.nets[uid], n.way(uid)
		if o == nil || way == was.way(uid) {
			continue
		}
		if i, is := slices.BinarySearchFunc(o.near, n, byUID); is && way == 0 {
			o.near = slices.Delete(o.near, i, i+1)
			c.lookAgain(n, o)
		} else if !is && way != 0 {
			o.near = slices.Insert(o.near, i, n)
		}
		o.look = true
		c.crossAll(o)
		c.subscribe(o)
	}
}

// crossFrom brings the rows of other networks' endpoints up to date in one that
// is served from now on, or not any more.
func (c *Core) crossFrom(n *network) {
	for _, uid := range n.others() {
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
// served here has a way to it. fresh: it was not known before.
func (c *Core) wanted(n *network, fresh bool) {
	if fresh {
		for _, o := range c.sortedNets() {
			if o.way(n.uid) != 0 {
				n.near = append(n.near, o)
			}
		}
	}
	for _, o := range n.near {
		c.ownRows(o) // its subnets are among them
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
// those of the networks that it has a way to.
func (c *Core) whole(n *network) bool {
	if !n.log.complete || n.unfound > 0 {
		return false
	}
	if !n.serving && !n.occupied() {
		return true
	}
	w := waysOf(n.rec)
	for _, uid := range w.others() {
		if o := c.nets[uid]; o == nil && !c.fleet.complete || o != nil && o.live() && (!o.log.complete || o.unfound > 0) {
			return false
		}
	}
	return true
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
		if !slices.ContainsFunc(e.crossed, func(x crossing) bool { return x.in == was.in }) {
			c.crossed(by, e.rev, was, crossing{in: was.in})
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

// crossings is what an endpoint is to have in the networks that have a way to
// its own: it is sent to where its own network's guests send to it, on this host
// also before it is known which device it is behind.
func (c *Core) crossings(n *network, mac overlay.MAC, e *endpoint) (out []crossing) {
	if !n.live() || e.gone || e.rec == nil {
		return nil
	}
	p := c.planned(n, mac, e, n.guests[mac])
	at, via, alias := p.VTEP, p.Sources, overlay.Alias(n.uid, mac)
	if at.IsValid() {
		via = append(slices.Clip(via), at)
	}
	if p.Port != 0 || !at.IsValid() && e.rec.Host == c.cfg.Self {
		at = c.cfg.VTEP
	}
	for _, o := range n.near {
		way := o.way(n.uid)
		if !o.serving || way == 0 {
			continue
		}
		x := plan.Crossing{VNI: o.rec.VNI, Into: n.rec.VNI, MAC: alias, Addrs: n.routable(e.rec.Addresses)}
		switch {
		case way&wayBridge != 0: // then nothing is routed between them
			x.MAC, x.Addrs, x.VTEP, x.Via = mac, e.rec.Addresses, at, via
			x.Bridged, x.Known = true, o.demanded
		case way&wayReach != 0:
			x.VTEP, x.Routes = at, o.hops[nextHop{n.uid, mac}]
			x.Shadowed = o.outshone(alias, overlay.Key{Kind: overlay.KindEndpoint, UID: n.uid, MAC: mac})
			x.MTU = min(n.rec.MTU, o.rec.MTU)
		}
		if way&(wayFrom|wayBridge) == wayFrom {
			x.Sends, x.Via = true, via
		}
		if x.VTEP.IsValid() || x.Sends || len(x.Via) > 0 {
			out = append(out, crossing{o, x})
		}
	}
	return out
}

// Two endpoints that a network reaches may have one alias, since it is 46 bits of
// a hash. It is that of the first of them, by network and MAC: who is older
// cannot be told, for a binding is new whenever its guest moves. The other is
// not reached; both want the row that guards the alias, and are known by that.

// outshone reports whether an alias is another's in a network.
func (n *network) outshone(alias overlay.MAC, by overlay.Key) bool {
	return slices.ContainsFunc(n.namesakes(alias, by), func(o overlay.Key) bool { return o.Compare(by) < 0 })
}

// namesakes are the others that want an alias to be theirs in a network.
func (n *network) namesakes(alias overlay.MAC, by overlay.Key) (others []overlay.Key) {
	rs := n.rows.get(hoststate.Key{Table: hoststate.TableReach, VNI: n.rec.VNI, MAC: alias})
	if rs == nil || !rs.has {
		return nil
	}
	if rs.first.by != by {
		others = append(others, rs.first.by)
	}
	for _, w := range rs.more {
		if w.by != by {
			others = append(others, w.by)
		}
	}
	return others
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

// crossed replaces what an endpoint has in one other network, and looks anew at
// those whose alias is the same when it begins or ceases to want it.
func (c *Core) crossed(by overlay.Key, rev overlay.Rev, was, now crossing) {
	n := now.in
	c.was, c.will = plan.CrossingRows(c.was[:0], was.plan), plan.CrossingRows(c.will[:0], now.plan)
	c.replace(n.rows, c.was, c.will, by, rev)
	alias := now.plan.MAC
	switch had, has := was.wantsAlias(), now.wantsAlias(); {
	case had == has:
		return
	case had:
		alias = was.plan.MAC
	}
	for _, k := range n.namesakes(alias, by) {
		c.cross(c.nets[k.UID], k.MAC, c.nets[k.UID].eps[k.MAC])
	}
}
