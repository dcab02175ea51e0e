package agentcore

import (
	"fmt"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// touch marks a network whose devices are to be looked at.
func (c *Core) touch(n *network) {
	n.dirty, n.look = true, true
	if !n.open {
		n.open, n.gen = true, c.work.open()
	}
}

// settle takes a network whose devices are as they should be off the ledger.
func (c *Core) settle(n *network) {
	n.dirty = false
	if n.open {
		n.open = false
		c.work.done(n.gen)
	}
}

// device is what the network wants of its devices on this host.
func (c *Core) device(n *network) hoststate.Device {
	return hoststate.Device{
		VNI: n.rec.VNI, Local: c.cfg.VTEP, UDPPort: c.cfg.UDPPort, MTU: deviceMTU(n.rec), DF: n.rec.DF,
		Alias: hoststate.DeviceAlias(c.cfg.Cluster, n.uid, n.rev), AltName: n.rec.TenantName + "." + n.rec.Name,
		Misses: n.demanded,
	}
}

// deviceMTU is the MTU of bridge and VXLAN device: not below the guests', so
// that the VXLAN device itself answers "too big" (kernel-facts 6); 1500 at
// least, since guests may have been configured for it.
func deviceMTU(n *overlay.Network) uint32 { return max(uint32(n.MTU), 1500) }

// serve plans the network's rows, or takes them back.
func (c *Core) serve(n *network) {
	if want := c.wantServing(n); want != n.serving {
		n.serving = want
		c.conform(n)
		c.replanAll(n)
		c.crossFrom(n)
		if !want && n.vxlan == 0 { // somebody else took it away, and no look will find that
			c.drop(n.rows)
		}
	}
}

// wantServing decides whether the network wants a VXLAN device: from its first
// port on, and for a while after its last.
func (c *Core) wantServing(n *network) bool {
	if !c.mayServe(n) {
		return false
	}
	if n.occupied() {
		n.graceEnd = 0
		return true
	}
	if !n.serving {
		return false
	}
	if n.graceEnd == 0 {
		n.graceEnd = c.now + c.cfg.Grace
		c.alarmAt(n.graceEnd)
	}
	return n.graceEnd > c.now
}

// occupied reports whether a guest is or may come here: also behind a port's
// device that is empty now. One that is bound here and went where it is expected
// is sent after until the manager says so, however long there is none.
func (n *network) occupied() bool {
	if len(n.guests) > 0 {
		return true
	}
	for mac := range n.mine { // order-free: any will do
		if len(n.eps[mac].rec.Pre) > 0 {
			return true
		}
	}
	for _, t := range n.taps { // order-free: any will do
		if t.declared != nil {
			return true
		}
	}
	return false
}

// NextOps appends at most max operations (a few more of devices) to buf and
// marks them as under way. The driver gives the outcome in Applied, in one
// call or several. Nothing is given before the links were read.
func (c *Core) NextOps(buf []hoststate.Op, max int) []hoststate.Op {
	if !c.linksRead {
		return buf
	}
	if !c.base {
		if !c.baseBusy {
			c.baseBusy = true
			buf = append(buf, hoststate.Op{Kind: hoststate.OpBase, ID: c.fly(flight{base: true, kind: hoststate.OpBase})})
		}
		return buf
	}
	buf = c.takeRows(c.global, overlay.UID{}, c.tapsKnown(), false, max, buf)
	buf = c.orphans(buf)
	for _, n := range c.sortedNets() {
		if n.listed != n.demanded {
			c.conform(n)
		}
		if n.dirty && n.flying == 0 && !n.waitLinks && n.retryAt <= c.now {
			buf = c.deviceOps(n, buf)
		}
		if len(buf) >= max {
			return buf
		}
		if n.vxlan != 0 && n.tablesRead && (n.heard || !n.strangers()) && len(n.rows.queue) > 0 {
			// One that is about to be served wants its rows only then.
			mayDelete := c.whole(n) && (n.serving || !n.occupied())
			buf = c.takeRows(n.rows, n.uid, mayDelete, n.needRead, max-len(buf), buf)
		}
	}
	buf = append(buf, c.orders...)
	c.orders = nil
	return buf
}

// tapsKnown reports whether every device in our bridges could be recognised:
// the fleet's log is complete, and so is that of each network with devices.
// Before, nothing may be taken from a port, and no inventory has an end.
func (c *Core) tapsKnown() bool {
	if !c.fleet.complete || !c.linksRead {
		return false
	}
	for _, n := range c.nets { // order-free: all must be
		if n.live() && len(n.taps) > 0 && (!n.log.complete || !n.heard && n.strangers()) {
			return false
		}
		if c.structure(n); n.log.partial && n.unheard > 0 {
			return false // what devices name is not known
		}
	}
	return true
}

// strangers reports whether a device is there that nothing has named yet: what
// the bridge knows of it must be read before it counts as nobody's, and before
// the endpoint that may be behind it is wanted elsewhere.
func (n *network) strangers() bool {
	for _, t := range n.taps { // order-free: any will do
		if t.declared == nil {
			return true
		}
	}
	return false
}

// orphans appends the deletion of devices with our cluster's mark whose
// network the complete fleet log does not know.
func (c *Core) orphans(buf []hoststate.Op) []hoststate.Op {
	if !c.lookOrphans || !c.fleet.complete {
		return buf
	}
	c.lookOrphans = false
	for _, idx := range sortedLinks(c.links) {
		if c.orphan(c.links[idx]) {
			buf = append(buf, hoststate.Op{Kind: hoststate.OpDelLink, Index: idx, ID: c.fly(flight{kind: hoststate.OpDelLink})})
		}
	}
	return buf
}

// orphan reports whether a link carries our cluster's mark for a network that
// nobody has told of.
func (c *Core) orphan(l hoststate.Link) bool {
	cluster, of, rev, ok := hoststate.ParseDeviceAlias(l.Alias)
	return ok && cluster == c.cfg.Cluster && l.Kind != hoststate.LinkOther && c.nets[of] == nil && !later(c.fleet.sent, c.upTo).Less(rev)
}

// deviceOps appends what is to be done about a network's devices now. What
// follows from it comes after the links were read again.
func (c *Core) deviceOps(n *network, buf []hoststate.Op) []hoststate.Op {
	before := len(buf)
	emit := func(op hoststate.Op) {
		if op.Kind == hoststate.OpTune && slices.ContainsFunc(buf[before:], func(o hoststate.Op) bool { return o.Kind == op.Kind }) {
			return // one is for both devices
		}
		op.ID = c.fly(flight{net: n.uid, kind: op.Kind})
		buf = append(buf, op)
	}
	if c.mayServe(n) {
		c.wantDevices(n, emit)
	} else {
		c.removeDevices(n, emit)
	}
	n.flying = len(buf) - before
	c.countRepairs(n, buf[before:])
	if n.flying == 0 {
		c.settle(n)
		if !n.live() && n.bridge == 0 && n.vxlan == 0 && len(n.taps) == 0 && !n.open && c.fleet.complete {
			c.drop(n.rows)
			delete(c.nets, n.uid)
			c.order = nil
			c.lookOrphans = true
		}
	}
	return buf
}

// countRepairs counts what is done to devices that were as they should be and
// of which nothing else is wanted now: somebody else changed them. That a
// VXLAN device is gone, and a port's settings, are counted where they are read.
func (c *Core) countRepairs(n *network, ops []hoststate.Op) {
	wish := deviceWish{rev: n.rev, serving: n.serving, misses: n.demanded}
	for i := range ops {
		switch ops[i].Kind {
		case hoststate.OpTune, hoststate.OpUp, hoststate.OpMakeBridge:
			if n.settled == wish {
				c.stats.Repairs++
			}
		}
	}
	if n.settled = (deviceWish{}); len(ops) == 0 {
		n.settled = wish
	}
}

// deviceWish names what was wanted of a network's devices when they were last
// as they should be.
type deviceWish struct {
	rev     overlay.Rev
	serving bool
	misses  bool
}

// mayServe reports whether this host may have devices of a network: it is told
// of others, too, with which one that it serves has to do.
func (c *Core) mayServe(n *network) bool { return n.live() && n.rec.SelectsHost(c.cfg.Name) }

// removeDevices takes away what a network left that was deleted, or may be on
// this host no more, if it is ours: the alias says of which network it is.
func (c *Core) removeDevices(n *network, emit func(hoststate.Op)) {
	if !c.fleet.complete || n.rec == nil {
		return
	}
	for _, idx := range []int32{n.vxlan, n.bridge} {
		if l, ok := c.links[idx]; ok && idx != 0 && c.ours(l, n.uid) {
			emit(hoststate.Op{Kind: hoststate.OpDelLink, Index: idx})
		}
	}
}

func (c *Core) ours(l hoststate.Link, uid overlay.UID) bool {
	cluster, of, _, ok := hoststate.ParseDeviceAlias(l.Alias)
	return ok && cluster == c.cfg.Cluster && of == uid
}

// foreign reports whether a device of the network's names is not its own.
func (c *Core) foreign(n *network) bool {
	bl, hasBridge := c.links[n.bridge]
	vl, hasVXLAN := c.links[n.vxlan]
	return hasBridge && !c.ours(bl, n.uid) || hasVXLAN && !c.ours(vl, n.uid)
}

func (c *Core) wantDevices(n *network, emit func(hoststate.Op)) {
	d := c.device(n)
	conflict := fmt.Sprintf("CV0205 device %s or %s is not this network's (%s): delete it, or the network", n.rec.VNI.Bridge(), n.rec.VNI.VXLAN(), d.AltName)
	bl, hasBridge := c.links[n.bridge]
	vl, hasVXLAN := c.links[n.vxlan]
	n.conflict = c.foreign(n)
	if n.conflict {
		c.takeOver(n, bl, vl, hasBridge, hasVXLAN, emit)
		c.problem(conflict)
		return
	}
	c.solved(conflict)
	c.serve(n)
	switch {
	case !hasBridge:
		emit(hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d})
		return
	case c.outdated(bl, n):
	case bl.MTU != d.MTU || !bl.Isolated || bl.IPv6 || bl.Alias != d.Alias || !slices.Contains(bl.AltNames, d.AltName):
		emit(hoststate.Op{Kind: hoststate.OpTune, Dev: d})
	}
	if hasBridge && !bl.Up {
		emit(hoststate.Op{Kind: hoststate.OpUp, Index: n.bridge})
	}
	c.subscribe(n)
	for _, idx := range sortedTaps(n.taps) {
		// A device that is tuned was known to an agent before this one. What
		// it is comes with the log, or with the tables that are read when that
		// is complete: until then it stays so.
		if t := n.taps[idx]; !t.apart || t.tuned != t.known() && (!t.tuned || n.log.complete && n.heard) {
			emit(hoststate.Op{Kind: hoststate.OpPort, Index: idx, Learn: !t.known()})
		}
	}
	c.wantVXLAN(n, d, vl, hasVXLAN, emit)
}

// takeOver removes devices that carry our cluster's mark for a network that is
// gone for certain: the fleet's log is complete and does not name it.
func (c *Core) takeOver(n *network, bl, vl hoststate.Link, hasBridge, hasVXLAN bool, emit func(hoststate.Op)) {
	for _, l := range []hoststate.Link{vl, bl} {
		cluster, of, _, ok := hoststate.ParseDeviceAlias(l.Alias)
		if l.Index == 0 || !ok || cluster != c.cfg.Cluster || of == n.uid || !c.fleet.complete {
			continue
		}
		if o := c.nets[of]; o == nil || !o.live() {
			emit(hoststate.Op{Kind: hoststate.OpDelLink, Index: l.Index})
		}
	}
}

// fillSlack is how many rows may still wait when a VXLAN device is set up: not
// none, or steady change would keep it down for ever.
const fillSlack = 64

func (c *Core) wantVXLAN(n *network, d hoststate.Device, vl hoststate.Link, have bool, emit func(hoststate.Op)) {
	switch {
	case !n.serving && have:
		switch {
		case !c.fleet.complete || n.subscribed && (!n.log.complete || !n.heard && n.strangers()):
		case n.pinned(): // it would be forgotten with the rest, and stay on the bridge
			n.retryAt = c.now + 10*millisecond
			c.alarmAt(n.retryAt)
		default:
			emit(hoststate.Op{Kind: hoststate.OpDelLink, Index: n.vxlan})
		}
		return
	case !n.serving:
		return
	case !have:
		emit(hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: d})
		return
	case vl.VXVNI != d.VNI || !vl.DOVE || vl.UDPPort != d.UDPPort:
		c.problem(fmt.Sprintf("CV0204 device %s had other flags than ours and is made anew", vl.Name))
		emit(hoststate.Op{Kind: hoststate.OpDelLink, Index: n.vxlan})
		return
	case c.outdated(vl, n) && vl.Guarded:
	case vl.MTU != d.MTU || vl.DF != d.DF || vl.Local != d.Local || vl.Flood != d.Misses || vl.Learns || !vl.IPv6 || vl.Master != n.bridge || !vl.Guarded || vl.Alias != d.Alias:
		emit(hoststate.Op{Kind: hoststate.OpTune, Dev: d})
	}
	if !n.tablesRead {
		n.needRead = true
		return
	}
	if !vl.Up && n.log.complete && n.rows.open <= fillSlack { // fill first, then up
		emit(hoststate.Op{Kind: hoststate.OpUp, Index: n.vxlan})
	}
}

// pinned reports whether an entry on a VM's device stands that nobody wants.
func (n *network) pinned() bool {
	for rs := range n.rows.all() { // order-free: any will do
		if rs.key.Table == hoststate.TableMaster && !rs.wanted() && rs.present && rs.have.Port != 0 {
			return true
		}
	}
	return false
}

// deviceDone takes the outcome of an operation on devices: whatever it was,
// the links are read again, and what is still missing is asked for again.
func (c *Core) deviceDone(f flight, r *hoststate.Result) {
	c.wantLinks()
	bad := r.Class != hoststate.ClassOK && r.Class != hoststate.ClassExists && r.Class != hoststate.ClassGone
	if f.base { // baseBusy until the links were read: they say whether it stands
		if bad {
			c.problem("CV0203 the nftables rules were not accepted: " + r.Text)
			c.readAgain = c.now + second
			c.alarmAt(c.readAgain)
		}
		return
	}
	n := c.nets[f.net]
	if n == nil {
		return
	}
	if n.flying--; n.flying == 0 {
		n.waitLinks = true
	}
	text := fmt.Sprintf("CV0202 %s for network %s/%s: ", f.kind, n.rec.TenantName, n.rec.Name)
	if bad {
		c.stats.OpsRefused++
		c.problem(text + r.Text)
		n.tries = min(n.tries+1, 10)
		n.retryAt = c.now + 10*millisecond<<n.tries
		c.alarmAt(n.retryAt)
		return
	}
	n.tries = 0
	if t := n.taps[r.Op.Index]; f.kind == hoststate.OpPort && r.Class == hoststate.ClassOK && t != nil {
		t.tuned, t.apart = !r.Op.Learn, true // the read that follows may say otherwise; a claim need not wait for it
	}
	if f.kind == hoststate.OpMakeVXLAN && r.Class == hoststate.ClassOK {
		n.tablesRead = true // we made it: it is empty
		n.verifiedAt = c.now
	}
	c.solvedPrefix(text)
}

func (c *Core) solvedPrefix(prefix string) {
	for p := range c.problems { // order-free: each by itself
		if len(p) >= len(prefix) && p[:len(prefix)] == prefix {
			delete(c.problems, p)
		}
	}
}

// rowHeld runs when a row was seen to be as wanted.
func (c *Core) rowHeld(f flight) {
	n := c.nets[f.net]
	if n == nil {
		return
	}
	c.rowStands(n, f.row.key)
	if !n.filled && n.vxlan != 0 {
		if l := c.links[n.vxlan]; l.Up {
			n.filled = true
		} else {
			c.touch(n)
		}
	}
}
