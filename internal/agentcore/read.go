package agentcore

import (
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// bell takes a doorbell. One that says what is wanted anyway is the echo of
// our own write, or of somebody who did the same; anything else causes a read.
func (c *Core) bell(b hoststate.Doorbell) {
	if b.Overflow {
		c.stats.Overflows++
		c.wantLinks()
		for _, n := range c.nets { // order-free: each by itself
			c.wantTables(n)
		}
		return
	}
	if b.Links {
		c.wantLinks()
		return
	}
	n := c.byVNI[b.VNI]
	if n == nil {
		return
	}
	rs := n.rows.get(b.Row.Key)
	switch {
	case rs == nil || !rs.wanted():
		if b.Deleted {
			return // nobody wants it, and it is gone
		}
	case !b.Deleted && b.Row.Val == rs.want():
		return
	}
	if rs != nil && rs.busy {
		rs.recheck = true
		return
	}
	if b.Row.Key.Table == hoststate.TableMaster && len(n.doubts) < maxDoubts &&
		(rs == nil && b.Row.Val.Flags == hoststate.Permanent || rs != nil && b.Deleted && rs.want().Port != 0) {
		// A port that comes brings an entry for its own address, one that goes
		// takes its pinned entries along. Neither is worth a read of the whole
		// table; the links tell whether it was that.
		if len(n.doubts) == 0 {
			n.doubtDue = c.now + doubtWait
			c.alarmAt(n.doubtDue)
		}
		n.doubts[b.Row.Key] = true
		c.wantLinks()
		return
	}
	c.wantRead(n.uid)
}

func (c *Core) wantRead(uid overlay.UID) {
	if n := c.nets[uid]; n != nil {
		c.wantTables(n)
	} else {
		c.wantLinks()
	}
}

// wantTables asks for a read of a network's tables, as soon as there is
// something to read.
func (c *Core) wantTables(n *network) {
	n.needRead = true
	if n.readable() {
		c.alarmAt(n.readDue())
	}
}

// readable reports whether there are tables that say something: without a
// VXLAN device only what the bridge learned of devices.
func (n *network) readable() bool {
	return n.rec != nil && (n.vxlan != 0 || n.bridge != 0 && len(n.taps) > 0)
}

func (c *Core) wantLinks() {
	c.needLinks = true
	c.alarmAt(c.linksDue())
}

// linksDue and readDue are when the next read may begin; at once if past.
func (c *Core) linksDue() Time { return max(c.readAgain, c.linkReads.next(), 1) }

func (n *network) readDue() Time { return max(n.readAgain, n.reads.next(), 1) }

// NextRead is what to read next. Reads are single-flight and take at most a
// tenth of the time (see budget).
func (c *Core) NextRead() (hoststate.Scope, bool) {
	if c.needLinks && c.linksDue() <= c.now {
		c.needLinks, c.sightDue = false, 0
		c.looks++
		return hoststate.Scope{Links: true}, true
	}
	for _, n := range c.sortedNets() {
		if n.needRead && n.readDue() <= c.now && n.readable() {
			n.needRead = false
			return hoststate.Scope{VNI: n.rec.VNI}, true
		}
	}
	return hoststate.Scope{}, false
}

func (c *Core) read(e Read) {
	c.stats.Reads++
	if e.Scope.Links {
		c.linkReads.spend(c.now, e.Cost)
		if e.State == nil {
			c.readAgain = c.now + 100*millisecond
			c.wantLinks()
			return
		}
		c.readLinks(e.State)
		return
	}
	n := c.byVNI[e.Scope.VNI]
	if n == nil {
		return
	}
	n.reads.spend(c.now, e.Cost)
	if e.State == nil {
		n.needRead, n.readAgain = true, c.now+100*millisecond
		c.alarmAt(n.readAgain)
		return
	}
	if n.verifiedAt = c.now; n.log.complete && !n.heard {
		n.heard = true
		c.touch(n)
	}
	if c.cfg.Verify > 0 {
		c.alarmAt(c.now + c.cfg.Verify)
	}
	c.recognise(n, e.State.Rows)
	c.recall(n, e.State.Rows)
	c.idle(n, e.State)
	if n.vxlan == 0 { // nothing is ours to be there
		for _, r := range hoststate.SortedRows(e.State.Rows) {
			c.learned(n, r.Key, r.Val)
		}
		return
	}
	c.compare(n.rows, e.State.Rows, c.whole(n), func(k hoststate.Key, v hoststate.Val) bool { return c.learned(n, k, v) })
	if !n.tablesRead {
		n.tablesRead = true
		c.touch(n)
	}
}

// recognise takes what entries say of devices that are not known yet. It comes
// before anything is compared: an endpoint that is expected elsewhere, and of
// which no device is known here, is wanted elsewhere.
func (c *Core) recognise(n *network, have map[hoststate.Key]hoststate.Val) {
	var rows []hoststate.Row
	for k, v := range have { // order-free: sorted below
		if t := n.taps[v.Port]; k.Table == hoststate.TableMaster && t != nil && t.declared == nil {
			rows = append(rows, hoststate.Row{Key: k, Val: v})
		}
	}
	slices.SortFunc(rows, func(a, b hoststate.Row) int { return a.Key.Compare(b.Key) })
	for _, r := range rows {
		c.learned(n, r.Key, r.Val)
	}
}

// learned takes an entry on a device that is not known yet: it may say which
// port it is. What the bridge learned by itself (without flags) is not ours;
// one that was pinned there says what an agent before this one had learned.
func (c *Core) learned(n *network, k hoststate.Key, v hoststate.Val) bool {
	if k.Table != hoststate.TableMaster || !n.log.complete {
		return false
	}
	t := n.taps[v.Port]
	if t == nil || t.declared != nil {
		return t != nil && c.revirtual(n, t, k, v)
	}
	_, declared := n.byMAC[k.MAC]
	if declared {
		t.seen = k.MAC
		c.identify(n, t)
	} else {
		c.suspect(n, t, k.MAC)
	}
	return t.declared != nil || v.Flags == 0 || c.relearn(n, t, k, v)
}

// compare takes what tables were read to hold. A difference in a row that was
// held is somebody else's doing and counts as a repair.
func (c *Core) compare(s *rowSet, have map[hoststate.Key]hoststate.Val, mayDelete bool, skip func(hoststate.Key, hoststate.Val) bool) {
	var differ []*rowState
	for rs := range s.all() { // order-free: sorted below
		v, present := have[rs.key]
		if rs.busy {
			continue // its read-back comes
		}
		held := rs.settled()
		rs.known, rs.present, rs.have = true, present, v
		switch {
		case rs.settled():
			if rs.open {
				differ = append(differ, rs)
			}
		default:
			differ = append(differ, rs)
			if held {
				c.stats.Repairs++
			}
		}
	}
	for _, k := range unknown(s, have, mayDelete) {
		v := have[k]
		ours := !skip(k, v)
		if ours {
			s.row(k)
			c.stats.Repairs++
		}
		if rs := s.get(k); rs != nil && !rs.busy { // skip may have found out that it is wanted
			rs.known, rs.present, rs.have = true, true, v
			differ = append(differ, rs)
		}
	}
	sortRows(differ)
	for _, rs := range differ {
		if s.get(rs.key) == rs { // skip may have had it taken out
			c.changed(s, rs)
		}
	}
}

func sortRows(rows []*rowState) {
	slices.SortFunc(rows, func(a, b *rowState) int { return a.key.Compare(b.key) })
}

// unknown lists the keys that stand and of which a set knows nothing, sorted;
// none while nothing may be deleted.
func unknown(s *rowSet, have map[hoststate.Key]hoststate.Val, mayDelete bool) (keys []hoststate.Key) {
	if !mayDelete {
		return nil
	}
	for k := range have { // order-free: sorted below
		if s.get(k) == nil {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, hoststate.Key.Compare)
	return keys
}

func (c *Core) readLinks(st *hoststate.State) {
	if c.linksRead && c.base && !st.Base {
		c.stats.Repairs++
	}
	c.base, c.baseBusy, c.stats.Strangers = st.Base, false, st.Strangers
	c.drops.take(st.Drops)
	old := c.links
	c.links = make(map[int32]hoststate.Link, len(st.Links))
	for _, l := range st.Links {
		c.links[l.Index] = l
	}
	byName := c.linkNames()
	c.sight(byName)
	for _, n := range c.sortedNets() {
		if n.rec != nil {
			c.netLinks(n, old, byName)
			c.settleDoubts(n)
		}
	}
	if !c.linksRead {
		c.findMark(st)
	}
	c.judged = c.tapsKnown()
	if st.Base {
		c.compare(c.global, st.Rows, c.judged, func(hoststate.Key, hoststate.Val) bool { return false })
	} else {
		c.compare(c.global, nil, false, nil)
	}
	c.linksRead, c.lookOrphans = true, true
}

// Bounds of what waits for settleDoubts: a device that goes loses its entries
// some milliseconds before it is no port any more.
const (
	maxDoubts      = 64
	doubtWait Time = 20 * millisecond
)

// settleDoubts drops what a link's coming or going explains. What is left when
// its time is over has the tables read.
func (c *Core) settleDoubts(n *network) {
	if len(n.doubts) == 0 {
		return
	}
	addresses := map[overlay.MAC]bool{}
	for _, l := range c.links { // order-free: a set
		addresses[l.MAC] = true
	}
	for _, k := range sortedKeys(n.doubts) {
		rs := n.rows.get(k)
		if rs == nil && addresses[k.MAC] || rs != nil && !rs.wanted() {
			delete(n.doubts, k)
		}
		if _, there := c.links[rs.port()]; rs != nil && !rs.wanted() && !rs.busy && !there {
			rs.known, rs.present = true, false // it went with its port
			c.changed(n.rows, rs)
		}
	}
	if len(n.doubts) > 0 && n.doubtDue <= c.now {
		clear(n.doubts)
		c.wantTables(n)
	}
}

func sortedKeys(m map[hoststate.Key]bool) []hoststate.Key {
	keys := make([]hoststate.Key, 0, len(m))
	for k := range m { // order-free: sorted below
		keys = append(keys, k)
	}
	slices.SortFunc(keys, hoststate.Key.Compare)
	return keys
}

func (c *Core) linkNames() map[string]int32 {
	byName := make(map[string]int32, len(c.links))
	for _, l := range c.links { // order-free: names are unique
		byName[l.Name] = l.Index
	}
	return byName
}

// netLinks takes what was read of one network's devices.
func (c *Core) netLinks(n *network, old map[int32]hoststate.Link, byName map[string]int32) {
	bridge, vxlan := byName[n.rec.VNI.Bridge()], byName[n.rec.VNI.VXLAN()]
	if was, is := old[n.vxlan], c.links[vxlan]; n.vxlan != 0 && (vxlan != n.vxlan || was.Up && !is.Up || was.IPv6 != is.IPv6 || was.MAC != is.MAC) {
		// Deleted, made anew, or down for a moment: neighbours are gone. So
		// they are after a change of its MAC, and IPv6 ones without IPv6.
		n.filled = false
		if vxlan != n.vxlan {
			c.stats.Repairs++
			n.tablesRead = false
		}
		n.needRead = true
	}
	if vxlan != 0 && n.vxlan == 0 && !n.tablesRead {
		n.needRead = true
	}
	if n.vxlan != 0 && vxlan != n.vxlan {
		c.remove(c.global, memberKey(n.vxlan), memberBy(n))
		c.forgetHeld(n)
	}
	if n.vxlan != 0 && vxlan == 0 && !n.serving {
		c.drop(n.rows)
	}
	if vxlan != 0 && vxlan != n.vxlan {
		c.add(c.global, hoststate.Row{Key: memberKey(vxlan)}, memberBy(n), overlay.Rev{})
	}
	differs := n.waitLinks && n.flying == 0 || bridge != n.bridge || vxlan != n.vxlan || !sameLink(old[bridge], c.links[bridge]) || !sameLink(old[vxlan], c.links[vxlan])
	n.waitLinks = n.waitLinks && n.flying > 0
	n.bridge, n.vxlan = bridge, vxlan
	for _, idx := range sortedTaps(n.taps) {
		if l, ok := c.links[idx]; !ok || bridge == 0 || l.Master != bridge {
			c.tapWent(n, n.taps[idx])
		} else if t := n.taps[idx]; t.name != l.Name || t.alias != l.Alias || t.state != l.State || t.guarded != l.Guarded || t.tuned != tuned(l) || t.apart != apart(l) {
			if t.tuned && !tuned(l) && t.declared != nil {
				c.stats.Repairs++
			}
			c.tapChanged(n, t, l)
		}
	}
	c.findTaps(n)
	n.looked = true
	if !c.foreign(n) {
		// Before the tables are read: what an agent before this one wrote is
		// then compared with what is wanted, and not taken for remains.
		c.serve(n)
	}
	if differs {
		c.touch(n)
	}
}

func sameLink(a, b hoststate.Link) bool {
	return a.Index == b.Index && a.Up == b.Up && a.MTU == b.MTU && a.Master == b.Master && a.Alias == b.Alias && a.Isolated == b.Isolated &&
		a.Local == b.Local && a.DF == b.DF && a.DOVE == b.DOVE && a.Flood == b.Flood && a.Learns == b.Learns && a.IPv6 == b.IPv6 && a.Guarded == b.Guarded && slices.Equal(a.AltNames, b.AltNames)
}

// forgetHeld marks all rows of a network as unknown: its device is another.
func (c *Core) forgetHeld(n *network) {
	var rows []*rowState
	for rs := range n.rows.all() { // order-free: sorted below
		rs.known, rs.present, rs.busy = false, false, false
		rows = append(rows, rs)
	}
	sortRows(rows)
	for _, rs := range rows {
		c.changed(n.rows, rs)
	}
}
