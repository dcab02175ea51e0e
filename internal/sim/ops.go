package sim

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// What users and hypervisors do.

// op is one kind of operation with its weight.
type op struct {
	weight int
	do     func(*world)
}

var operations = []op{
	{3, (*world).putTenant}, {8, (*world).createNetwork}, {2, (*world).setNetwork}, {3, (*world).deleteNetwork},
	{18, (*world).createPort}, {4, (*world).createPorts}, {5, (*world).setPort}, {3, (*world).moveAddress}, {4, (*world).deletePort},
	{28, (*world).plug}, {8, (*world).unplug}, {20, (*world).migrate}, {4, (*world).flap}, {2, (*world).restartHypervisor}, {1, (*world).deleteTenant},
}

// operate does one operation of chance.
func (w *world) operate() {
	total, all := 0, slices.Concat(operations, demandOperations)
	switch {
	case w.routed:
		all = slices.Concat(operations, domainOperations)
	case w.open:
		all = slices.Concat(operations, guestOperations)
	}
	for _, o := range all {
		total += o.weight
	}
	n := w.pick(total)
	for _, o := range all {
		if n -= o.weight; n < 0 {
			o.do(w)
			return
		}
	}
}

// one picks a member; ok is false if there is none.
func one[T any](w *world, of []T) (x T, ok bool) {
	if len(of) == 0 {
		return x, false
	}
	return of[w.pick(len(of))], true
}

func (w *world) ask(a managercore.Asked, what string, args ...any) {
	w.log("user: "+what, args...)
	w.mgr.ask(a, func(r managercore.Reply) {
		if r.Refusal == nil {
			w.log("done at %v: "+what, append([]any{r.Rev}, args...)...)
			w.noteReuse(r)
			return
		}
		w.log("refused, %s: "+what, append([]any{string(r.Refusal.Code())}, args...)...)
		if r.Refusal.Code() == api.CodeVNIWaits {
			w.hits[VNIRefused]++
		}
	})
}

func (w *world) noteReuse(r managercore.Reply) {
	for _, c := range r.Changes {
		if n, ok := c.Rec.(*overlay.Network); ok && c.Action == "created" {
			if old, had := w.vnis[n.VNI]; had && old != n.UID {
				w.hits[VNIReused]++
				for _, h := range w.hosts {
					if h.hasDevices(old) && h.misled <= w.now {
						w.fail("VNI %d is given to %s while %s still has devices of the network that had it", n.VNI, n.Name, h.name)
					}
				}
			}
			w.vnis[n.VNI] = n.UID
		}
	}
}

func (w *world) put(docs ...overlay.Doc) managercore.Asked {
	return managercore.Asked{Put: &managercore.Put{Mode: managercore.ModeApply, Docs: docs}}
}

func (w *world) putTenant() {
	name := fmt.Sprintf("t%d", w.pick(3))
	if w.routed && w.chance(0.8) { // what is to be routed is one tenant's
		name = "t0"
	}
	w.ask(w.put(overlay.Doc{Kind: overlay.KindTenant, Name: name}), "tenant %s", name)
}

// networkSpec is the same for all tenants: equal addresses are the rule.
func (w *world) networkSpec() overlay.NetworkSpec {
	s := overlay.NetworkSpec{Subnets: []overlay.Subnet{
		{Prefix: netip.MustParsePrefix("10.20.0.0/24"), Gateway: netip.MustParseAddr("10.20.0.1")},
	}}
	if w.chance(0.6) {
		s.Subnets = append(s.Subnets, overlay.Subnet{Prefix: netip.MustParsePrefix("fd00:20::/64"), Gateway: netip.MustParseAddr("fd00:20::1")})
	}
	if w.chance(0.2) {
		s.Flood = overlay.FloodNone
	}
	if w.chance(0.2) {
		s.MTU = 1400
	}
	if w.chance(0.1) {
		s.MTU = 8000
	}
	if w.chance(0.2) {
		s.DF = overlay.DFInherit
	}
	switch {
	case w.open:
		w.openSpec(&s)
	case !w.routed && w.chance(0.3):
		s.Distribution = overlay.DistributeOnDemand
	}
	return s
}

func (w *world) createNetwork() {
	t, ok := one(w, w.store.tenants())
	if !ok {
		w.putTenant()
		return
	}
	number := w.pick(3)
	d := overlay.Doc{Kind: overlay.KindNetwork, Tenant: t.Name, Name: fmt.Sprintf("n%d", number), Network: w.networkSpec()}
	if w.chance(0.5) {
		d.Network.VNI = overlay.VNI(20 + w.pick(8))
	}
	if w.chance(0.3) {
		for _, h := range w.hosts {
			if h.joined && w.chance(0.7) {
				d.Network.Hosts = append(d.Network.Hosts, h.name)
			}
		}
		slices.Sort(d.Network.Hosts)
	}
	if w.routed {
		w.intoDomain(&d.Network, number)
	}
	w.ask(w.put(d), "network %s/%s vni %d", t.Name, d.Name, uint32(d.Network.VNI))
}

func (w *world) setNetwork() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	w.ask(w.put(w.sameNetwork(n)), "network set %s/%s", n.TenantName, n.Name)
}

func (w *world) deleteNetwork() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	with := w.chance(0.6)
	if with && len(w.portsOf(n.UID)) > 0 {
		w.hits[NetworkWithPorts]++
	}
	w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindNetwork, Tenant: n.TenantName, Name: n.Name, WithPorts: with}},
		"network delete %s/%s with ports %t", n.TenantName, n.Name, with)
}

func (w *world) deleteTenant() {
	if t, ok := one(w, w.store.tenants()); ok {
		w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindTenant, Name: t.Name}}, "tenant delete %s", t.Name)
	}
}

// portDoc is a port of chance. Names, MACs and addresses come from small
// pools, so that they are wanted twice.
func (w *world) portDoc(n *overlay.Network, i int) overlay.Doc {
	d := overlay.Doc{Kind: overlay.KindPort, Tenant: n.TenantName, Name: fmt.Sprintf("%s-p%d", n.Name, i)}
	d.Port.Network = n.Name
	if w.chance(0.7) {
		d.Port.MAC = overlay.MAC{0x52, 0x54, 0, 0, 0, byte(i + 1)}
		if w.routed && w.chance(0.5) { // or it may be that of another network of the domain
			d.Port.MAC[4] = n.Name[1]
		}
	}
	if w.chance(0.6) {
		d.Port.Addresses = w.addresses(n)
	}
	if w.open {
		w.openPort(&d, i)
	}
	return d
}

func (w *world) addresses(n *overlay.Network) []netip.Addr {
	var out []netip.Addr
	for _, s := range n.Subnets {
		for range 1 + w.pick(2) {
			b := s.Prefix.Addr().As16()
			b[15] = byte(10 + w.pick(20))
			a := netip.AddrFrom16(b)
			if s.Prefix.Addr().Is4() {
				a = a.Unmap()
			}
			out = append(out, a)
		}
	}
	return overlay.SortAddrs(out)
}

func (w *world) createPort() {
	if n, ok := one(w, w.store.networks()); ok {
		d := w.portDoc(n, w.pick(12))
		w.ask(w.put(d), "port %s/%s", n.TenantName, d.Name)
	}
}

func (w *world) createPorts() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	var docs []overlay.Doc
	for i := range 2 + w.pick(8) {
		d := w.portDoc(n, i)
		d.Port.Addresses = nil
		docs = append(docs, d)
	}
	w.ask(w.put(docs...), "%d ports of %s/%s", len(docs), n.TenantName, n.Name)
}

func (w *world) setPort() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	if p, ok := one(w, w.portsOf(n.UID)); ok {
		d := overlay.Doc{Kind: overlay.KindPort, Tenant: n.TenantName, Name: p.Name, Port: overlay.PortSpec{Network: n.Name, Addresses: w.addresses(n)}}
		if w.open {
			w.keepShared(&d, p)
		}
		w.ask(w.put(d), "port set %s/%s", n.TenantName, p.Name)
	}
}

// moveAddress gives all addresses of one port to another, in one request.
func (w *world) moveAddress() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	ps := w.portsOf(n.UID)
	if len(ps) < 2 {
		return
	}
	a, b := ps[w.pick(len(ps))], ps[w.pick(len(ps))]
	if a == b {
		return
	}
	doc := func(p *overlay.Port, as []netip.Addr) overlay.Doc {
		return overlay.Doc{Kind: overlay.KindPort, Tenant: n.TenantName, Name: p.Name, Port: overlay.PortSpec{Network: n.Name, Addresses: as}}
	}
	w.hits[AddressMoved]++
	w.ask(w.put(doc(a, b.Addresses), doc(b, a.Addresses)), "addresses of %s and %s change places", a.Name, b.Name)
}

func (w *world) deletePort() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	if p, ok := one(w, w.portsOf(n.UID)); ok {
		w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindPort, Tenant: n.TenantName, Name: p.Name}}, "port delete %s/%s", n.TenantName, p.Name)
	}
}

// hostFor is a host that may serve the network and has its bridge.
func (w *world) hostFor(n *overlay.Network, not *host) *host {
	var can []*host
	for _, h := range w.hosts {
		if h != not && w.mayServe(n, h) {
			can = append(can, h)
		}
	}
	h, _ := one(w, can)
	return h
}

// mayServe reports whether the network's bridge stands on a host.
func (w *world) mayServe(n *overlay.Network, h *host) bool {
	uid, ok := h.owner(n.VNI)
	_, bridge := h.kernel.Link(n.VNI.Bridge())
	return ok && uid == n.UID && bridge
}

// devicesOf is the devices that a port has now.
func (w *world) devicesOf(n *overlay.Network, p *overlay.Port) (out []*nic) {
	for _, x := range w.nics {
		if x.tenant == n.TenantName && x.port == p.Name || x.tenant == "" && x.mac == p.MAC {
			out = append(out, x)
		}
	}
	return out
}

// plug starts a VM on some host.
func (w *world) plug() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	p, ok := one(w, w.portsOf(n.UID))
	if !ok || len(w.devicesOf(n, p)) > 0 {
		return
	}
	if h := w.hostFor(n, nil); h != nil {
		w.boot(h, n, p)
	}
}

// boot starts a new VM.
func (w *world) boot(h *host, n *overlay.Network, p *overlay.Port) {
	v := w.newVM()
	x := w.plugAt(h, n, p, true, v)
	v.start(x, hoststate.NICRunning)
	v.announce()
	v.talk()
}

// plugAt plugs a port's device in, in one of the ways that hypervisors and
// operators have.
func (w *world) plugAt(h *host, n *overlay.Network, p *overlay.Port, up bool, v *vm) *nic {
	w.names++
	x := &nic{host: h, name: fmt.Sprintf("v%d", w.names), tenant: n.TenantName, port: p.Name, mac: p.MAC, since: w.now, vm: v}
	if h.off {
		return x // nobody is there to start it
	}
	w.nics = append(w.nics, x)
	alias := hoststate.PortAlias(n.TenantName, p.Name)
	way := w.pick(10)
	if way == 0 && !v.managed && !v.chatty {
		way = 9 // nothing would ever say which port it is
	}
	w.log("hypervisor of %s plugs %s as %s, way %d, up %t", h.name, x.name, alias, way, up)
	switch {
	case way == 0: // it has no alias, and speaks
		x.tenant = ""
		h.touch(func(m *kerneltest.Model) { m.Plug(x.name, n.VNI, "") })
	case way == 1 && h.up: // culvert attach
		h.touch(func(m *kerneltest.Model) { m.Plug(x.name, 0, "") })
		h.step(agentcore.Order{Op: hoststate.Op{ID: 1 << 63, Kind: hoststate.OpAttach, Name: x.name, Dev: hoststate.Device{VNI: n.VNI}, Alias: alias}})
	case way == 2: // the alias comes later
		h.touch(func(m *kerneltest.Model) { m.Plug(x.name, n.VNI, "") })
		w.after(w.between(milli, 100*milli), func() { h.touch(func(m *kerneltest.Model) { m.SetAlias(x.name, alias) }) })
	default:
		h.touch(func(m *kerneltest.Model) { m.Plug(x.name, n.VNI, alias) })
	}
	if !up {
		h.touch(func(m *kerneltest.Model) { m.SetUp(x.name, false) })
	}
	return x
}

// remove stops a VM, or what a migration left of it.
func (w *world) remove(x *nic) {
	i := slices.Index(w.nics, x)
	if i < 0 {
		return
	}
	w.log("hypervisor of %s unplugs %s", x.host.name, x.name)
	if x.vm.runs == x {
		x.vm.halt()
	}
	w.nics = slices.Delete(w.nics, i, i+1)
	x.host.left = append(x.host.left, departure{x, w.now})
	x.host.touch(func(m *kerneltest.Model) { m.Unplug(x.name) })
	if w.chance(0.5) {
		x.says(hoststate.NICGone)
	} else {
		w.after(w.between(0, 30*milli), func() { x.says(hoststate.NICGone) })
	}
}

// unplug destroys a VM.
func (w *world) unplug() {
	if x, ok := one(w, w.nics); ok {
		w.destroy(x.vm)
	}
}

func (w *world) destroy(v *vm) {
	v.dead = true
	for _, x := range v.devices() {
		w.remove(x)
	}
}

func (w *world) declared(p *overlay.Port) bool {
	v, ok := w.store.values[overlay.KeyOf(p)]
	return ok && !v.gone
}

func (w *world) flap() {
	x, ok := one(w, w.nics)
	if !ok {
		return
	}
	w.hits[NICFlapped]++
	for i := range int64(1 + w.pick(3)) {
		w.after(i*50*milli, func() { x.host.touch(func(m *kerneltest.Model) { m.SetUp(x.name, false) }) })
		w.after(i*50*milli+w.between(milli, 40*milli), func() { x.host.touch(func(m *kerneltest.Model) { m.SetUp(x.name, true) }) })
	}
}
