package sim

import (
	"maps"
	"net/netip"
	"slices"

	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// history is what the store has ever held, for questions like "was this MAC
// ever a port's in that network".
type history struct {
	networks []overlay.UID
	macs     map[netMAC]bool
	addrs    map[netAddr]bool
	vteps    map[netip.Addr]bool
	goneAt   map[overlay.UID]uint64      // networks
	bound    map[netMAC][]written        // endpoints, oldest first
	ways     map[way]bool                // that policies opened
	foreign  map[netAddr]bool            // tunnel end points without an agent
	learns   map[overlay.UID]bool        // networks that took a guest's own word
	said     map[netAddr]bool            // what guests said to have
	gates    map[netAddr]bool            // gateways
	aliases  map[overlay.MAC]overlay.UID // of ports, and their networks
}

// written is one change of a record.
type written struct {
	n    uint64
	gone bool
}

// isBound reports whether an endpoint was bound to a host as of a revision.
func (x *history) isBound(k netMAC, n uint64) bool {
	for _, w := range slices.Backward(x.bound[k]) {
		if w.n <= n {
			return !w.gone
		}
	}
	return false
}

type netMAC struct {
	network overlay.UID
	mac     overlay.MAC
}

type netAddr struct {
	network overlay.UID
	addr    netip.Addr
}

// had reports whether an address was ever a port's in a network, or leased, or
// said by a guest to be its own where that counts.
func (x *history) had(network overlay.UID, a netip.Addr) bool {
	at := netAddr{network, a}
	return x.addrs[at] || x.learns[network] && x.said[at] && !x.gates[at]
}

func (x *history) note(v value) {
	switch r := v.rec.(type) {
	case *overlay.Network:
		if v.gone {
			x.goneAt[r.UID] = v.n
		} else if !slices.Contains(x.networks, r.UID) {
			x.networks = append(x.networks, r.UID)
		}
		for _, kind := range []wayKind{byReach, byFrom, byBridge} {
			for _, to := range kind.of(r) {
				x.ways[way{r.UID, to, kind}] = true
			}
		}
		if r.Admission == overlay.AdmitLearn {
			x.learns[r.UID] = true
		}
		for _, s := range r.Subnets {
			x.gates[netAddr{r.UID, s.Gateway}] = true
		}
		for _, a := range r.Foreign {
			x.foreign[netAddr{r.UID, a}], x.foreign[netAddr{addr: a}] = true, true
		}
	case *overlay.Port:
		x.macs[netMAC{r.Network, r.MAC}] = true
		x.aliases[overlay.Alias(r.Network, r.MAC)] = r.Network
		for _, a := range r.Addresses {
			x.addrs[netAddr{r.Network, a}] = true
		}
	case *overlay.Endpoint:
		k := netMAC{r.Network, r.MAC}
		x.bound[k] = append(x.bound[k], written{v.n, v.gone})
	case *overlay.Host:
		if r.VTEP.IsValid() {
			x.vteps[r.VTEP] = true
		}
	}
}

// knowledge is what an agent was told and shown, kept beside it.
type knowledge struct {
	fleet    bool                 // a full pass over the fleet's log has ended
	complete map[overlay.UID]bool // ... over that network's
	// told: everything of the network up to there. since: from which UpTo on,
	// without a break.
	told, since map[overlay.UID]uint64
	toldEver    map[overlay.UID]uint64 // to any incarnation
	// decided and decidedEver are told and toldEver when the operations under
	// way were given.
	decided, decidedEver map[overlay.UID]uint64
	upToAt               map[uint64]int64 // when that UpTo came
	looked               bool             // links were read
	standing             map[int32]bool   // devices that forwarded at the first look and ever since
}

func (k *knowledge) restart() {
	if k.toldEver == nil {
		k.toldEver = map[overlay.UID]uint64{}
	}
	*k = knowledge{
		complete: map[overlay.UID]bool{}, told: map[overlay.UID]uint64{}, since: map[overlay.UID]uint64{}, toldEver: k.toldEver,
		upToAt: map[uint64]int64{}, standing: map[int32]bool{},
	}
}

func (k *knowledge) decide() { k.decided, k.decidedEver = maps.Clone(k.told), maps.Clone(k.toldEver) }

func (k *knowledge) items(h *host, it *api.Items, covers []overlay.UID) {
	for _, e := range it.Ends {
		switch {
		case !e.Full:
		case e.Network.IsZero():
			k.fleet = true
		default:
			k.complete[e.Network] = true
		}
	}
	if it.UpTo.IsZero() {
		return
	}
	n := it.UpTo.N
	if _, ok := k.upToAt[n]; !ok {
		k.upToAt[n] = h.w.now
	}
	for _, uid := range h.w.ever.networks {
		if !slices.Contains(covers, uid) {
			delete(k.since, uid)
			continue
		}
		if _, ok := k.since[uid]; !ok {
			k.since[uid] = n
		}
		k.told[uid] = max(k.told[uid], n)
		k.toldEver[uid] = max(k.toldEver[uid], n)
	}
}

func (k *knowledge) links(h *host, st *hoststate.State) {
	forwarding := map[int32]bool{}
	for _, l := range st.Links {
		forwarding[l.Index] = l.Kind == hoststate.LinkOther && l.State == hoststate.StateForwarding
	}
	if !k.looked {
		k.looked = true
		k.standing = forwarding
		return
	}
	for i := range k.standing {
		if !forwarding[i] {
			delete(k.standing, i)
		}
	}
}

// checkBatch: what is new is written before what is old is taken away, FDB
// before neighbour, and the other way round.
func (h *host) checkBatch(ops []hoststate.Op) {
	type stage struct {
		kind  hoststate.OpKind
		table hoststate.Table
	}
	last := map[overlay.VNI]stage{}
	for _, op := range ops {
		if op.Kind != hoststate.OpSet && op.Kind != hoststate.OpDel {
			continue
		}
		k := op.Row.Key
		was, ok := last[k.VNI]
		last[k.VNI] = stage{op.Kind, k.Table}
		switch {
		case !ok || was.kind == hoststate.OpSet && op.Kind == hoststate.OpDel:
		case was.kind != op.Kind:
			h.w.fail("%s: %v comes after a deletion in the same network", h.name, op)
		case op.Kind == hoststate.OpSet && stageOf(was.table) > stageOf(k.Table), op.Kind == hoststate.OpDel && stageOf(was.table) < stageOf(k.Table):
			h.w.fail("%s: %v comes after %v of table %v", h.name, op, was.kind, was.table)
		}
	}
}

// stageOf is when a table is written, in the oracle's words: whose frames are
// taken, where to send, whom to tell of it, what lets frames through, and last
// what says that all of it stands.
func stageOf(t hoststate.Table) int {
	return slices.Index([]hoststate.Table{
		hoststate.TableVTEP, hoststate.TableKnown, hoststate.TableSource, hoststate.TableRouted, hoststate.TableFrom, hoststate.TableRelayed, hoststate.TableAlias, hoststate.TableReach,
		hoststate.TableFDB, hoststate.TableMaster, hoststate.TableRepl, hoststate.TableNeigh, hoststate.TableRoute, hoststate.TableRelay, hoststate.TableOwn, hoststate.TablePort, hoststate.TableMember, hoststate.TableMark,
	}, t)
}

// owner is the network whose devices stand on this host under a VNI.
func (h *host) owner(vni overlay.VNI) (overlay.UID, bool) {
	for _, name := range []string{vni.Bridge(), vni.VXLAN()} {
		if l, ok := h.kernel.Link(name); ok {
			if _, uid, _, ok := hoststate.ParseDeviceAlias(l.Alias); ok {
				return uid, true
			}
		}
	}
	return overlay.UID{}, false
}

// checkOp judges one operation at the moment at which it reaches the kernel.
func (h *host) checkOp(op hoststate.Op) {
	h.checkPoor(op)
	switch op.Kind {
	case hoststate.OpSet:
		h.checkSet(op)
	case hoststate.OpDel:
		h.checkDel(op)
	case hoststate.OpDelLink:
		h.checkDelLink(op)
	}
}

func (h *host) checkSet(op hoststate.Op) {
	w, k, v := h.w, op.Row.Key, op.Row.Val
	switch k.Table {
	case hoststate.TableVTEP:
		if k.IP == h.vtep || !w.ever.vteps[k.IP] && !w.ever.foreign[netAddr{addr: k.IP}] {
			w.fail("%s: %v is no VTEP of another host, nor one that a network names", h.name, op)
		}
		return
	case hoststate.TablePort, hoststate.TableMember:
		h.checkMember(op)
		return
	case hoststate.TableOwn:
		return
	case hoststate.TableRelay:
		h.checkRelay(op)
	}
	uid, ok := h.owner(k.VNI)
	if !ok {
		return // the devices went meanwhile: the kernel refuses
	}
	if !h.w.open && h.checkDemand(uid, op) {
		return
	}
	if !h.w.open && h.isAcross(uid, op.Row) {
		h.checkAcross(uid, op)
		return
	}
	if h.isForeign(uid, op) {
		return
	}
	mac := k.MAC
	if k.Table == hoststate.TableNeigh {
		mac = v.MAC
		if !w.ever.had(uid, k.IP) {
			w.fail("%s: %v: the address was never a port's in that network", h.name, op)
		}
	}
	if k.Table != hoststate.TableRepl && !w.ever.macs[netMAC{uid, mac}] {
		w.fail("%s: %v: the MAC was never a port's in that network", h.name, op)
	}
	for _, a := range []netip.Addr{k.IP, v.Dst} {
		if a == h.vtep || k.Table != hoststate.TableNeigh && a.IsValid() && !w.ever.vteps[a] {
			w.fail("%s: %v: the address is this host's own, or no host's", h.name, op)
		}
	}
	remote := k.Table == hoststate.TableFDB || k.Table == hoststate.TableNeigh || k.Table == hoststate.TableMaster && v.Port == 0
	if e, at, ok := w.store.binding(uid, mac); remote && ok && !at.gone && e.Host == h.uid && at.n <= h.seen.decided[uid] && !h.mayHaveLeft(e) {
		w.fail("%s: %v: the endpoint is here since revision %d, and the agent was told", h.name, op, at.n)
	}
	if k.Table == hoststate.TableNeigh && h.troubled < w.now {
		if _, fdb := h.kernel.Row(hoststate.Key{Table: hoststate.TableFDB, VNI: k.VNI, MAC: mac}); !fdb {
			w.fail("%s: %v: guests are told a MAC that cannot be sent to", h.name, op)
		}
	}
}

// checkMember: a device that stood there at the agent's first look is no
// evidence against a binding elsewhere that the agent was told of.
func (h *host) checkMember(op hoststate.Op) {
	w := h.w
	nic := w.nicAt(h, op.Row.Key.Port)
	if nic == nil || !h.seen.standing[op.Row.Key.Port] || nic.vm.runs == nic || nic.ran >= h.started {
		return
	}
	n, p := w.portOf(nic)
	if p == nil {
		return
	}
	if e, at, ok := w.store.binding(n.UID, p.MAC); ok && !at.gone && e.Host != h.uid && !slices.Contains(e.Pre, h.uid) && at.n <= h.seen.decided[n.UID] {
		w.fail("%s: %v: device %s may pass frames, and port %s is elsewhere since revision %d", h.name, op, nic.name, p.Name, at.n)
	}
}

// checkMemberGone: a VM that is here by all accounts is not cut off.
func (h *host) checkMemberGone(op hoststate.Op) {
	w := h.w
	x := w.nicAt(h, op.Row.Key.Port)
	if op.Row.Key.Table == hoststate.TableOwn || x == nil || !x.settled(10*second) || h.troubled > w.now {
		return
	}
	n, p := w.portOf(x)
	if p == nil || n.Blocked || w.store.values[overlay.KeyOf(p)].at+10*second > w.now || h.hadDouble(x, w.now-second) || slices.ContainsFunc(w.devicesOf(n, p), func(y *nic) bool { return y.host == h && y.vm != x.vm }) {
		return // or another VM says to be that port: the newest device of a host has it
	}
	if e, at, ok := w.store.binding(n.UID, p.MAC); ok && !at.gone && at.at+10*second <= w.now && e.Host == h.uid {
		w.fail("%s: %v cuts off device %s, which is port %s and has been here", h.name, op, x.name, p.Name)
	}
}

// checkDel: nothing is deleted before the pass that could name it has ended,
// and no row that is right.
func (h *host) checkDel(op hoststate.Op) {
	w, k := h.w, op.Row.Key
	if rev, ok := k.Mark(cluster); ok && h.troubled < w.now && !rev.Less(h.reached()) {
		w.fail("%s: %v and no newer one stands", h.name, op)
	}
	if k.Table == hoststate.TableVTEP || k.Table == hoststate.TableMember || k.Table == hoststate.TablePort || k.Table == hoststate.TableOwn {
		if !h.seen.fleet {
			w.fail("%s: %v before a full pass over the fleet's log has ended", h.name, op)
		}
		h.checkMemberGone(op)
		return
	}
	uid, ok := h.owner(k.VNI)
	if !ok {
		return
	}
	_, gone := w.ever.goneAt[uid]
	if !h.seen.complete[uid] && !gone {
		w.fail("%s: %v before a full pass over the network's log has ended", h.name, op)
	}
	if !h.w.open && h.isAcross(uid, op.Row) {
		h.checkAcrossDel(w.store.network(uid), op)
	}
	if h.troubled > w.now || gone || !h.served(uid, 20*second) {
		return
	}
	h.checkGiven(uid, op)
	have, present := h.kernel.Row(k)
	if n := w.store.network(uid); n != nil && present && have == op.Row.Val {
		want := w.expect(h, n, h.seen.decidedEver[uid])
		for _, o := range across(n) {
			if o := w.store.network(o); o != nil {
				w.expectAcross(want, h, n, o, min(h.seen.decidedEver[uid], h.seen.decidedEver[o.UID]))
			}
		}
		if v, ok := want[k]; ok && v == have {
			w.fail("%s: %v deletes a row that is right, and the agent was told all of it", h.name, op)
		}
	}
	if k.Table == hoststate.TableFDB {
		for _, r := range h.kernel.Rows(k.VNI) {
			if r.Key.Table == hoststate.TableNeigh && r.Val.MAC == k.MAC {
				w.fail("%s: %v while %v still points there", h.name, op, r)
			}
		}
	}
}

func (h *host) checkDelLink(op hoststate.Op) {
	w := h.w
	l, ok := h.kernel.LinkAt(op.Index)
	if !ok {
		return
	}
	_, uid, _, _ := hoststate.ParseDeviceAlias(l.Alias)
	if !h.seen.fleet {
		w.fail("%s: %v (%s) before a full pass over the fleet's log has ended", h.name, op, l.Name)
	}
	if _, gone := w.ever.goneAt[uid]; !gone && h.troubled < w.now && h.served(uid, 20*second) && w.store.network(uid) != nil {
		w.fail("%s: %v deletes %s, which a VM needs", h.name, op, l.Name)
	}
}

// checkAck: who acknowledges a revision holds everything up to it.
func (h *host) checkAck(rev overlay.Rev) {
	w, r := h.w, rev.N
	w.log("%s acknowledges %d", h.name, r)
	if r > w.store.rev {
		w.fail("%s acknowledges revision %d, the store is at %d", h.name, r, w.store.rev)
	}
	if h.troubled > w.now || h.misled > w.now { // a NIC may have come to life meanwhile, and not have spoken since
		return
	}
	for _, uid := range w.ever.networks {
		at, gone := w.ever.goneAt[uid]
		if gone && at <= r && h.hasDevices(uid) {
			w.fail("%s acknowledges revision %d and has devices of a network that was deleted at %d", h.name, r, at)
		}
		since, ok := h.seen.since[uid]
		if gone || !ok || since > r || !h.served(uid, w.now-h.seen.upToAt[r]+5*second) {
			continue
		}
		h.checkHeld(uid, r)
	}
}

func (h *host) hasDevices(uid overlay.UID) bool {
	for _, l := range h.kernel.Links() {
		if _, of, _, ok := hoststate.ParseDeviceAlias(l.Alias); ok && of == uid && l.Kind != hoststate.LinkOther {
			return true
		}
	}
	return false
}

// checkWithdrawal: a binding is not withdrawn from a host on which the VM has
// been all the time, whatever became of agents and managers: absence of
// evidence is none. If another VM of that port is there, or was since the binding
// came, it may have been the other one's. A virtual router's is its guest's next
// announcement away: an agent that was killed before it was told that it has it
// leaves nothing by which the next one would know.
func (w *world) checkWithdrawal(was, is value, with []encoded) {
	e, ok := was.rec.(*overlay.Endpoint)
	if !ok || was.gone || !is.gone || e.MAC.IsVirtual() {
		return
	}
	for _, x := range with { // the port or its network goes in the same transaction
		if x.key.Kind == overlay.KindPort || x.key.Kind == overlay.KindNetwork {
			return
		}
	}
	for _, x := range w.nics {
		if x.host.uid != e.Host || !x.settled(10*second) || x.host.troubled > w.now || x.hasDouble() || x.host.hadDouble(x, was.moved) {
			continue
		}
		if n, p := w.portOf(x); p != nil && n.UID == e.Network && p.UID == e.Port && !n.Blocked && w.store.values[overlay.KeyOf(p)].at+10*second <= w.now {
			w.fail("the binding of port %s on %s is withdrawn, and it is there: %s", p.Name, x.host.name, is.rec.(*overlay.Endpoint).Cause)
		}
	}
}

// checkHeld: the kernel has every row that bindings up to r call for.
func (h *host) checkHeld(uid overlay.UID, r uint64) {
	w := h.w
	n := w.store.network(uid)
	if n == nil {
		return
	}
	have := map[hoststate.Key]hoststate.Val{}
	for _, row := range h.kernel.Rows(n.VNI) {
		have[row.Key] = row.Val
	}
	want := w.expect(h, n, r)
	for _, o := range across(n) {
		if since, ok := h.seen.since[o]; ok && since <= r && w.store.network(o) != nil {
			w.expectAcross(want, h, n, w.store.network(o), r)
		}
	}
	for _, row := range hoststate.SortedRows(want) {
		if v, ok := have[row.Key]; !ok || v != row.Val {
			w.fail("%s acknowledges revision %d and lacks %v (has %v)", h.name, r, row, v)
		}
	}
}
