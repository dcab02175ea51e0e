package sim

import (
	"net/netip"
	"slices"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// Networks that are told on demand: guests that ask for each other, what the
// manager does with what agents want, and what kernels must hold for it, in the
// oracle's words.

// demandOperations are added to the others.
var demandOperations = []op{
	{24, (*world).talkToOne}, {2, (*world).scan}, {3, (*world).redistribute},
}

func onDemand(n *overlay.Network) bool { return n.Distribution == overlay.DistributeOnDemand }

// acquaintance is an endpoint that a host may know, or must.
type acquaintance struct {
	host *host
	netMAC
}

// question is a guest's of a host, for an address.
type question struct {
	host *host
	netAddr
}

// talks is who has asked for whom.
type talks struct {
	may    map[acquaintance]bool
	must   map[acquaintance]bool  // see converse
	used   map[acquaintance]int64 // when a guest there last sent to it
	asked  map[netMAC][]netip.Addr
	from   map[question]bool
	bound  map[netAddr]map[overlay.UID]bool // hosts to which endpoints with that address were ever bound
	demand map[overlay.UID]bool             // networks that were ever told on demand
	pushed map[overlay.UID]bool             // ... and whole
}

func newTalks() talks {
	return talks{
		may: map[acquaintance]bool{}, must: map[acquaintance]bool{}, used: map[acquaintance]int64{}, asked: map[netMAC][]netip.Addr{}, from: map[question]bool{},
		bound: map[netAddr]map[overlay.UID]bool{}, demand: map[overlay.UID]bool{}, pushed: map[overlay.UID]bool{},
	}
}

// note takes what the store says.
func (t *talks) note(w *world, v value) {
	switch r := v.rec.(type) {
	case *overlay.Network:
		if onDemand(r) {
			t.demand[r.UID] = true
		} else {
			t.pushed[r.UID] = true
		}
	case *overlay.Endpoint:
		for _, uid := range append([]overlay.UID{r.Host, r.From}, r.Pre...) {
			if !uid.IsZero() {
				t.may[acquaintance{w.hostOf(uid), netMAC{r.Network, r.MAC}}] = true
			}
		}
		for _, a := range r.Addresses {
			k := netAddr{r.Network, a}
			if t.bound[k] == nil {
				t.bound[k] = map[overlay.UID]bool{}
			}
			t.bound[k][r.Host] = true
		}
	}
}

// demanded reports whether a network was ever told on demand.
func (w *world) demanded(uid overlay.UID) bool { return w.talks.demand[uid] }

// interest looks at what agents want and subscribe to, in the order in which
// they said so.
func (m *manager) interest(s *stream, v *managercore.View) {
	for _, up := range s.asked {
		for _, d := range up.Demands {
			s.cursor.Demand(d.Want, d.Drop)
			if d.For.IsZero() || d.Drop {
				continue
			}
			for _, uid := range v.Holders(d.Want) {
				for _, o := range m.streams {
					if o != nil && o.host.uid == uid && o != s {
						o.hints = append(o.hints, overlay.Want{Network: d.Network, MAC: d.For})
						o.wake()
					}
				}
			}
		}
		if up.Interest != nil {
			m.subscribe(s, v, up.Interest)
		}
	}
	for _, w := range s.hints {
		s.cursor.Hint(w)
	}
	s.asked, s.hints = nil, nil
}

func (m *manager) subscribe(s *stream, v *managercore.View, in *api.Interest) {
	for _, n := range in.Remove {
		s.cursor.Unsubscribe(n)
		m.step(managercore.Subscribed{Host: s.host.uid, Session: s.session, Network: n, Off: true})
	}
	for _, p := range in.Add {
		s.sent = nil // what came before a pass began anew never comes in it
		ok := false
		if p.OnDemand {
			ok = s.cursor.SubscribeOnDemand(v, p.Network)
		} else {
			ok = s.cursor.Subscribe(v, p.Network, p.Sent)
		}
		if ok {
			m.step(managercore.Subscribed{Host: s.host.uid, Session: s.session, Network: p.Network})
		}
	}
}

// tellDemands sends what the agent wants.
func (h *host) tellDemands(s *stream, ds []agentcore.Demand) {
	for part := range slices.Chunk(ds, api.MaxStreamDemands) {
		up := api.Up{}
		for _, d := range part {
			up.Demands = append(up.Demands, api.Demand(d))
		}
		s.up.send(api.UpPB(up))
	}
}

// miss delivers the kernel's misses.
func (h *host) miss() {
	w := h.w
	for _, x := range h.kernel.Misses() {
		if !h.up || w.hit(MissLost, 0.3) {
			continue
		}
		d := h.lag(20*micro, milli)
		tell := func() {
			w.log("%s misses %v %v in %d", h.name, x.MAC, x.IP, uint32(x.VNI))
			h.step(agentcore.Missed{Miss: x})
		}
		h.mine(d, tell)
		if w.hit(MissDoubled, 0.1) {
			h.mine(d+w.between(0, second), tell)
		}
	}
}

// talksTo lets a guest ask for an address of its network, as often as guests do, and
// send to who has it. Then who was asked does the same.
func (v *vm) talksTo(a netip.Addr, left int, back bool) {
	w, x := v.w, v.runs
	if x == nil || v.dead || x.state == hoststate.NICPaused {
		return
	}
	h := x.host
	l, ok := h.kernel.Link(x.name)
	n, p := w.portOf(x)
	if !ok || p == nil || p.MAC != x.mac {
		return
	}
	row, has := h.kernel.Row(hoststate.Key{Table: hoststate.TablePort, Port: l.Index})
	if !has || row.Flags&hoststate.Open == 0 || !l.Guarded {
		if left > 0 {
			w.after(second, func() { v.talksTo(a, left-1, back) })
		}
		return
	}
	x.ran = w.now
	w.noteAsk(h, n, p, a)
	var to overlay.MAC
	h.touch(func(m *kerneltest.Model) { to, ok = m.Ask(l.Index, a) })
	h.shown(x, agentcore.Heard{Port: l.Index, Fact: questionOf(p, a), At: agentcore.Time(w.now)})
	if !ok {
		if left > 0 {
			w.after(second, func() { v.talksTo(a, left-1, back) })
		}
		return
	}
	h.touch(func(m *kerneltest.Model) { m.Frame(l.Index, to, a) })
	w.talks.used[acquaintance{h, netMAC{n.UID, to}}] = w.now
	if !back {
		return
	}
	own := ownOf(p, a)
	for _, y := range slices.Clone(w.nics) {
		if on, q := w.portOf(y); q != nil && on.UID == n.UID && q.MAC == to && y.vm.runs == y && own.IsValid() {
			y.vm.talksTo(own, left, false)
		}
	}
}

// ownOf is an address of a port of the family of another; invalid if it has none.
func ownOf(p *overlay.Port, a netip.Addr) netip.Addr {
	for _, own := range p.Addresses {
		if own.Is4() == a.Is4() {
			return own
		}
	}
	return netip.Addr{}
}

// questionOf is what a port program hands up of a guest that asks for an address.
func questionOf(p *overlay.Port, a netip.Addr) packet.Fact {
	f := packet.Fact{Kind: packet.ARPRequest, Src: p.MAC, Dst: packet.Broadcast, MAC: p.MAC, IP: ownOf(p, a), Target: a}
	if a.Is6() {
		f.Kind, f.Dst = packet.NeighborSolicit, overlay.MAC{0x33, 0x33, 0xff, 0, 0, 1}
	}
	return f
}

// noteAsk notes whom a host may know from now on: who has the address, and the
// asker where that is.
func (w *world) noteAsk(h *host, n *overlay.Network, p *overlay.Port, a netip.Addr) {
	for _, q := range w.portsOf(n.UID) {
		if slices.Contains(q.Addresses, a) {
			w.talks.may[acquaintance{h, netMAC{n.UID, q.MAC}}] = true
		}
	}
	w.talks.from[question{h, netAddr{n.UID, a}}] = true
	if k := (netMAC{n.UID, p.MAC}); !slices.Contains(w.talks.asked[k], a) {
		w.talks.asked[k] = append(w.talks.asked[k], a)
	}
}

// mayKnow reports whether a host has a reason to know an endpoint: a guest here
// asked for it or had it for its own, or it asked for a guest that was here.
func (w *world) mayKnow(h *host, p placed) bool {
	k := netMAC{p.net.UID, p.port.MAC}
	if w.talks.pushed[p.net.UID] || w.talks.may[acquaintance{h, k}] || w.routed {
		return true // where networks are routed, an agent without a disk asks for all addresses in its tables
	}
	if slices.ContainsFunc(w.talks.asked[k], func(a netip.Addr) bool { return w.talks.bound[netAddr{p.net.UID, a}][h.uid] }) {
		return true
	}
	// A question for an address that another had before, or nobody.
	return w.hadDeviceOf(h, p) || slices.ContainsFunc(p.port.Addresses, func(a netip.Addr) bool { return w.talks.from[question{h, netAddr{p.net.UID, a}}] })
}

func (w *world) hadDeviceOf(h *host, p placed) bool {
	return slices.ContainsFunc(w.devicesOf(p.net, p.port), func(x *nic) bool { return x.host == h }) ||
		slices.ContainsFunc(h.left, func(d departure) bool { return d.nic.mac == p.port.MAC || d.nic.port == p.port.Name })
}

// knows reports whether a host is to have what an endpoint has in the tables of a
// network there: always, or, of one that is told on demand, where the host knows
// it, and has a reason to.
func (w *world) knows(h *host, in *overlay.Network, p placed) bool {
	if !onDemand(p.net) || p.nic.host == h || w.talks.must[acquaintance{h, netMAC{p.net.UID, p.port.MAC}}] {
		return true
	}
	if in.UID == p.net.UID && slices.ContainsFunc(w.devicesOf(p.net, p.port), func(x *nic) bool {
		n, q := w.portOf(x)
		return x.host == h && q != nil && n.UID == in.UID
	}) {
		return true
	}
	_, held := h.kernel.Row(hoststate.Key{Table: hoststate.TableFDB, VNI: in.VNI, MAC: p.port.MAC})
	return held && w.mayKnow(h, p)
}

// unknown reports whether a host does not know an endpoint of a network that is
// told on demand: it would ask when a guest did.
func (w *world) unknown(h *host, p placed) bool {
	if _, known := h.kernel.Row(hoststate.Key{Table: hoststate.TableMaster, VNI: p.net.VNI, MAC: p.port.MAC}); known {
		return false
	}
	return w.demanded(p.net.UID)
}

// expectedKnown adds that a host knows an endpoint, and reports whether it is to
// have its rows.
func (w *world) expectedKnown(h *host, p placed, rows map[hoststate.Key]hoststate.Val) bool {
	if !w.knows(h, p.net, p) {
		return false
	}
	if onDemand(p.net) {
		rows[hoststate.Key{Table: hoststate.TableKnown, VNI: p.net.VNI, MAC: p.port.MAC}] = hoststate.Val{}
	}
	return true
}

// groupsInUse are those that all guests send to.
var groupsInUse = []overlay.MAC{
	{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 1}, {0x33, 0x33, 0, 0, 0, 2},
}

// expectedLists adds the lists of a network that is told on demand: each group in
// use leads to every host that has endpoints, and from those the frames of who
// is not known are taken.
func (w *world) expectedLists(h *host, n *overlay.Network, all []placed, rows map[hoststate.Key]hoststate.Val) {
	if !onDemand(n) {
		return
	}
	for _, g := range append([]overlay.MAC{overlay.ServerMAC}, groupsInUse...) {
		rows[hoststate.Key{Table: hoststate.TableKnown, VNI: n.VNI, MAC: g}] = hoststate.Val{}
	}
	for _, p := range all {
		if p.net.UID != n.UID || p.nic.host == h {
			continue
		}
		rows[hoststate.Key{Table: hoststate.TableSource, VNI: n.VNI, IP: p.nic.host.vtep}] = hoststate.Val{Flags: hoststate.Strangers}
		for _, g := range groupsInUse {
			if n.Flood == overlay.FloodHER {
				rows[hoststate.Key{Table: hoststate.TableRepl, VNI: n.VNI, MAC: g, IP: p.nic.host.vtep}] = hoststate.Val{Flags: hoststate.Permanent}
			}
		}
	}
}

// wantsMisses reports whether the VXLAN device under a VNI is to tell of misses.
func (h *host) wantsMisses(vni overlay.VNI) bool {
	uid, ok := h.owner(vni)
	n := h.w.store.network(uid)
	return ok && n != nil && onDemand(n)
}

// checkDemand judges rows that only networks have that are told on demand. It
// reports whether it is one.
func (h *host) checkDemand(uid overlay.UID, op hoststate.Op) bool {
	w, k := h.w, op.Row.Key
	list := k.Table == hoststate.TableRepl && k.MAC != overlay.MAC{}
	strangers := (k.Table == hoststate.TableSource || k.Table == hoststate.TableRouted) && k.MAC == overlay.MAC{}
	if k.Table != hoststate.TableKnown && !list && !strangers {
		return false
	}
	switch {
	case k.Table != hoststate.TableRouted && !w.demanded(uid):
		w.fail("%s: %v: the network was never told on demand", h.name, op)
	case k.Table == hoststate.TableKnown && k.MAC.IsUnicast() && k.MAC != overlay.ServerMAC && !w.ever.macs[netMAC{uid, k.MAC}]:
		w.fail("%s: %v: the MAC was never a port's in that network", h.name, op)
	case k.Table != hoststate.TableKnown && (k.IP == h.vtep || !w.ever.vteps[k.IP]):
		w.fail("%s: %v: the address is this host's own, or no host's", h.name, op)
	}
	return true
}

// checkGiven: what a guest here has sent to in the last minutes, and is where
// the tables say, is not taken away from them, in whatever mode the network is
// told, and whatever becomes of agents and managers.
func (h *host) checkGiven(uid overlay.UID, op hoststate.Op) {
	w, k := h.w, op.Row.Key
	if k.Table != hoststate.TableFDB || op.Row.Val.VNI != 0 || !w.demanded(uid) || h.misled > w.now {
		return
	}
	at, used := w.talks.used[acquaintance{h, netMAC{uid, k.MAC}}]
	n := w.store.network(uid)
	if !used || at+200*second < w.now || n == nil {
		return
	}
	have, stands := h.kernel.Row(k)
	e, v, ok := w.store.binding(uid, k.MAC)
	if !stands || !ok || v.gone || v.n > h.seen.decidedEver[uid] || e.Host == h.uid || w.devicesHere(h, n)[k.MAC] {
		return
	}
	hv, ok := w.store.values[overlay.Key{Kind: overlay.KindHost, UID: e.Host}]
	if !ok || hv.rec.(*overlay.Host).Dead || hv.rec.(*overlay.Host).VTEP != have.Dst || h.started+20*second > w.now {
		return
	}
	w.fail("%s: %v: a guest here has used it %d ms ago, and it is right", h.name, op, (w.now-at)/milli)
}

// talkToOne lets a guest ask for an address of its network, which perhaps
// nobody has.
func (w *world) talkToOne() {
	g, ok := one(w, w.placements())
	if !ok {
		return
	}
	p, ok := one(w, w.portsOf(g.net.UID))
	if !ok || len(p.Addresses) == 0 || p.UID == g.port.UID {
		return
	}
	g.nic.vm.talksTo(p.Addresses[w.pick(len(p.Addresses))], 3, true)
}

// scan lets a guest ask for many addresses.
func (w *world) scan() {
	g, ok := one(w, w.placements())
	if !ok || len(g.net.Subnets) == 0 {
		return
	}
	for i := range 20 {
		b := g.net.Subnets[0].Prefix.Addr().As16()
		b[15] = byte(10 + i)
		w.after(w.between(0, 50*milli), func() { g.nic.vm.talksTo(netip.AddrFrom16(b).Unmap(), 0, false) })
	}
}

// redistribute changes how a network is told.
func (w *world) redistribute() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	d := overlay.Doc{Kind: overlay.KindNetwork, Tenant: n.TenantName, Name: n.Name, Network: overlay.NetworkSpec{
		Subnets: n.Subnets, Hosts: n.Hosts, Flood: n.Flood, MTU: n.MTU, DF: n.DF, Distribution: overlay.DistributeOnDemand - n.Distribution,
	}}
	if !n.Domain.IsZero() {
		d.Network.Domain = theDomain
	}
	w.ask(w.put(d), "network set %s/%s distribution %v", n.TenantName, n.Name, d.Network.Distribution)
}

// converse lets guests talk at rest. Who has talked to whom must be in the tables
// of both sides from then on.
func (w *world) converse() {
	clear(w.talks.must)
	all := w.placements()
	for range 20 {
		g, ok := one(w, all)
		if !ok {
			break
		}
		p, _ := one(w, all)
		if g.net.UID != p.net.UID || g.nic.host == p.nic.host || !onDemand(g.net) || len(p.port.Addresses) == 0 ||
			!g.speaks() || !p.speaks() {
			continue
		}
		a := p.port.Addresses[w.pick(len(p.port.Addresses))]
		g.nic.vm.talksTo(a, 4, true)
		w.talks.must[acquaintance{g.nic.host, netMAC{g.net.UID, p.port.MAC}}] = true
		if ownOf(g.port, a).IsValid() {
			w.talks.must[acquaintance{p.nic.host, netMAC{g.net.UID, g.port.MAC}}] = true
		}
	}
	w.useAll()
	w.run(w.now + 70*second) // until what nobody has is wanted no more
}

// speaks reports whether the guest of a port can ask: it runs, and has the MAC
// that its port has now.
func (p *placed) speaks() bool { return p.nic.state != hoststate.NICPaused && p.nic.mac == p.port.MAC }

// useAll lets guests send to all that their hosts know: it stays.
func (w *world) useAll() {
	for _, h := range w.hosts {
		for _, n := range w.store.networks() {
			for _, r := range h.kernel.Rows(n.VNI) {
				if r.Key.Table == hoststate.TableFDB {
					h.kernel.Use(n.VNI, r.Key.MAC)
				}
			}
		}
	}
}
