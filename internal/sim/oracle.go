package sim

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// The oracle says what kernels must hold, in its own words: it shares no code
// with the plan or the agent. It knows where devices are plugged in, and what
// is declared.

// nic is a VM's device, as the hypervisor knows it.
type nic struct {
	host   *host
	name   string
	tenant string // of its alias; empty: it has none, and speaks instead
	port   string
	mac    overlay.MAC // that it speaks with
	since  int64       // plugged in
	vm     *vm
	state  hoststate.NICState // as its hypervisor says, if one does
	ran    int64              // when the guest was last known to run behind it; 0: never
	spoke  int64              // when an agent was first shown a frame of it since it was plugged in; older: none was
	forgot int64              // when an agent started that had no entry to know it by
}

// departure is when a VM left a host. Its rows are not at once what they are
// without it.
type departure struct {
	nic *nic
	at  int64
}

// nicAt is the device with that ifindex on a host.
func (w *world) nicAt(h *host, index int32) *nic {
	for _, x := range w.nics {
		if x.host == h {
			if l, ok := h.kernel.Link(x.name); ok && l.Index == index {
				return x
			}
		}
	}
	return nil
}

// portOf is the declared port that a device is, with its network, as long as
// it is plugged into that network's bridge and forwards; nil if it is none.
func (w *world) portOf(x *nic) (*overlay.Network, *overlay.Port) {
	l, ok := x.host.kernel.Link(x.name)
	if !ok || l.Master == 0 || l.State != hoststate.StateForwarding {
		return nil, nil
	}
	b, ok := x.host.kernel.LinkAt(l.Master)
	if !ok || b.VNI == 0 {
		return nil, nil
	}
	uid, ok := x.host.owner(b.VNI)
	n := w.store.network(uid)
	if !ok || n == nil || n.VNI != b.VNI {
		return nil, nil
	}
	for _, p := range w.portsOf(n.UID) {
		named := x.tenant == n.TenantName && x.port == p.Name
		if named || x.tenant == "" && x.mac == p.MAC {
			return n, p
		}
	}
	return nil, nil
}

// portsOf are the live ports of a network.
func (w *world) portsOf(network overlay.UID) []*overlay.Port {
	var out []*overlay.Port
	for _, k := range w.store.declared[network] {
		if v, ok := w.store.values[k]; ok && !v.gone {
			out = append(out, v.rec.(*overlay.Port))
		}
	}
	return out
}

// named is since when it can be known which port a device is: by its alias, by
// what its hypervisor tells, by what the guest behind it says, and after a start
// of the agent by the entry that a former one wrote. ok is false if it cannot.
func (x *nic) named() (since int64, ok bool) {
	switch {
	case x.tenant != "":
		return x.since, true
	case x.vm.managed:
		return max(x.since, x.forgot), true
	}
	return max(x.spoke, x.forgot), x.spoke >= x.since
}

// pins reports whether a kernel's entry for the MAC of a device names it.
func (h *host) pins(x *nic) bool {
	l, _ := h.kernel.Link(x.name)
	b, ok := h.kernel.LinkAt(l.Master)
	row, has := h.kernel.Row(hoststate.Key{Table: hoststate.TableMaster, VNI: b.VNI, MAC: x.mac})
	return ok && has && row.Port == l.Index && row.Flags&hoststate.Sticky != 0
}

// served reports whether a port of the network has been declared, as it is now,
// and plugged into this host for at least age.
func (h *host) served(network overlay.UID, age int64) bool {
	for _, x := range h.w.nics {
		if since, ok := x.named(); ok && x.host == h && since+age <= h.w.now {
			n, p := h.w.portOf(x)
			if p != nil && n.UID == network && h.w.store.values[overlay.KeyOf(p)].at+age <= h.w.now {
				return true
			}
		}
	}
	return h.servesStranger(network, age)
}

// expect is the rows that bindings not newer than revision r call for on a
// host: only those of which there can be no two opinions.
func (w *world) expect(h *host, n *overlay.Network, r uint64) map[hoststate.Key]hoststate.Val {
	out := map[hoststate.Key]hoststate.Val{}
	if w.store.values[overlay.KeyOf(n)].n > r || w.demanded(n.UID) {
		return out // of one that is told on demand see checkGiven
	}
	here := w.devicesHere(h, n)
	owners := map[netip.Addr]int{}
	for _, k := range w.store.bound[n.UID] {
		if v, ok := w.store.values[k]; ok {
			for _, a := range v.rec.(*overlay.Endpoint).Addresses {
				owners[a]++
			}
		}
	}
	for _, k := range w.store.bound[n.UID] {
		v, ok := w.store.values[k]
		if !ok || v.gone || v.n > r {
			continue
		}
		e := v.rec.(*overlay.Endpoint)
		hv, ok := w.store.values[overlay.Key{Kind: overlay.KindHost, UID: e.Host}]
		if !ok || hv.n > r || e.Host == h.uid || here[e.MAC] || h.hears(n.UID, e.MAC) || hv.rec.(*overlay.Host).Dead {
			continue
		}
		var sure []netip.Addr
		for _, a := range e.Addresses {
			if owners[a] == 1 {
				sure = append(sure, a)
			}
		}
		remoteRows(out, n, e.MAC, hv.rec.(*overlay.Host).VTEP, sure)
	}
	return out
}

// remoteRows are the four kinds of rows of an endpoint on another host.
func remoteRows(out map[hoststate.Key]hoststate.Val, n *overlay.Network, mac overlay.MAC, vtep netip.Addr, addrs []netip.Addr) {
	if !vtep.IsValid() {
		return
	}
	sourceRow(out, n, mac, vtep)
	key := hoststate.Key{Table: hoststate.TableFDB, VNI: n.VNI, MAC: mac}
	out[key] = hoststate.Val{Dst: vtep, Flags: hoststate.Static | hoststate.Extern}
	key.Table = hoststate.TableMaster
	out[key] = hoststate.Val{Flags: hoststate.Static | hoststate.Extern}
	if n.Flood == overlay.FloodHER && !onDemand(n) {
		out[hoststate.Key{Table: hoststate.TableRepl, VNI: n.VNI, IP: vtep}] = hoststate.Val{Flags: hoststate.Permanent}
	}
	for _, a := range addrs {
		out[hoststate.Key{Table: hoststate.TableNeigh, VNI: n.VNI, IP: a}] = hoststate.Val{MAC: mac, Flags: hoststate.Permanent | hoststate.Ours}
	}
}

// sourceRow lets a VTEP send for a MAC.
func sourceRow(out map[hoststate.Key]hoststate.Val, n *overlay.Network, mac overlay.MAC, vtep netip.Addr) {
	out[hoststate.Key{Table: hoststate.TableSource, VNI: n.VNI, MAC: mac, IP: vtep}] = hoststate.Val{}
}

// portRows are what lets a device pass frames: as that port, and none else.
func portRows(out map[hoststate.Key]hoststate.Val, index int32, n *overlay.Network, p *overlay.Port, more hoststate.Flags) {
	out[hoststate.Key{Table: hoststate.TablePort, Port: index}] = hoststate.Val{MAC: p.MAC, Flags: hoststate.Open | hoststate.NoServers | more} // networks here have no servers of their own
	out[hoststate.Key{Table: hoststate.TableMember, Port: index}] = hoststate.Val{}
	for _, a := range p.Addresses {
		out[hoststate.Key{Table: hoststate.TableOwn, Port: index, IP: a}] = hoststate.Val{}
	}
	checkedRows(out, index, p)
	hostsRows(out, index, n)
}

// hostsRows are the addresses of a network that hosts have, and no guest.
func hostsRows(out map[hoststate.Key]hoststate.Val, index int32, n *overlay.Network) {
	own := hoststate.Key{Table: hoststate.TableOwn, Port: index}
	for _, s := range n.Subnets {
		if own.IP = s.Gateway; own.IP.IsValid() {
			out[own] = hoststate.Val{Flags: hoststate.Router}
		}
		if s.Prefix.Addr().Is6() {
			own.IP = linkLocal(overlay.ServerMAC)
			out[own] = hoststate.Val{Flags: hoststate.Router}
		}
	}
}

// placed is one endpoint where it really is.
type placed struct {
	net  *overlay.Network
	port *overlay.Port
	nic  *nic
}

// placements are all endpoints that are somewhere.
func (w *world) placements() []placed {
	var out []placed
	for _, x := range w.nics {
		if n, p := w.portOf(x); p != nil && x.vm.runs == x && !n.Blocked && n.SelectsHost(x.host.name) {
			out = append(out, placed{n, p, x})
		}
	}
	return out
}

// preOf are the hosts on which an endpoint is expected, as the store has it:
// whether a device that stands somewhere is one that will be needed is a
// question of its history, not of its place.
func (w *world) preOf(n *overlay.Network, p *overlay.Port) (out []*host) {
	e, v, ok := w.store.binding(n.UID, p.MAC)
	if !ok || v.gone {
		return nil
	}
	for _, h := range w.hosts {
		if slices.Contains(e.Pre, h.uid) {
			out = append(out, h)
		}
	}
	return out
}

// expected is all that a host's kernel must hold at rest: a line a device, and
// the rows.
func (w *world) expected(h *host, all []placed) (lines []string, rows map[hoststate.Key]hoststate.Val) {
	rows = map[hoststate.Key]hoststate.Val{}
	for _, o := range w.hosts {
		if o != h && o.joined {
			rows[hoststate.Key{Table: hoststate.TableVTEP, IP: o.vtep}] = hoststate.Val{}
		}
	}
	rows[hoststate.MarkKey(cluster, overlay.Rev{Epoch: 1, N: w.store.newest()})] = hoststate.Val{}
	for _, n := range w.store.networks() {
		if !n.SelectsHost(h.name) {
			continue
		}
		mtu := max(int(n.MTU), 1500)
		alias := "culvert cluster=" + cluster + " network=" + n.UID.String() + fmt.Sprintf(" rev=1.%d", w.store.values[overlay.KeyOf(n)].n)
		lines = append(lines, fmt.Sprintf("bridge cvb%d up mtu %d isolated alias %s altname %s.%s", n.VNI, mtu, alias, n.TenantName, n.Name))
		for _, a := range w.foreign(h, n) {
			rows[hoststate.Key{Table: hoststate.TableVTEP, IP: a}] = hoststate.Val{}
		}
		if !w.expectedRows(h, n, all, rows) {
			continue
		}
		lines = append(lines, fmt.Sprintf("vxlan cvx%d up mtu %d master cvb%d vni %d local %s port 4789 df %d dove alias %s", n.VNI, mtu, n.VNI, n.VNI, h.vtep, n.DF, alias))
		if l, ok := h.kernel.Link(n.VNI.VXLAN()); ok {
			rows[hoststate.Key{Table: hoststate.TableMember, Port: l.Index}] = hoststate.Val{}
		}
	}
	return lines, rows
}

// expectedRows adds the rows of one network; it reports false, and adds none,
// if no port of it is on the host.
func (w *world) expectedRows(h *host, n *overlay.Network, all []placed, rows map[hoststate.Key]hoststate.Val) bool {
	if !slices.ContainsFunc(w.nics, func(x *nic) bool {
		of, p := w.portOf(x)
		_, admitted := w.isAdmitted(x)
		return x.host == h && (p != nil && of.UID == n.UID || admitted && x.vm.network == n.UID)
	}) {
		return false
	}
	w.expectedLists(h, n, all, rows)
	for _, p := range all {
		if p.net.UID != n.UID || !w.expectedKnown(h, p, rows) {
			continue
		}
		pre := w.preOf(n, p.port)
		for _, o := range pre {
			if o != h && o != p.nic.host {
				sourceRow(rows, n, p.port.MAC, o.vtep)
			}
		}
		if p.nic.host != h {
			remoteRows(rows, n, p.port.MAC, p.nic.host.vtep, p.addresses(w))
			if slices.Contains(pre, h) {
				w.expectedPre(h, p, rows)
			}
			continue
		}
		if l, ok := h.kernel.Link(p.nic.name); ok {
			rows[hoststate.Key{Table: hoststate.TableMaster, VNI: n.VNI, MAC: p.port.MAC}] = hoststate.Val{Port: l.Index, Flags: hoststate.Static | hoststate.Sticky}
			portRows(rows, l.Index, n, p.port, ofRouted(n))
		}
	}
	w.expectedAcross(h, n, all, rows)
	w.openRows(h, n, all, rows)
	return true
}

// expectedPre adds what a host has besides on which an endpoint is expected:
// its device is open and watched, and what the host on which it runs may send
// on one day is taken.
func (w *world) expectedPre(h *host, p placed, rows map[hoststate.Key]hoststate.Val) {
	rows[hoststate.Key{Table: hoststate.TableRelayed, VNI: p.net.VNI, MAC: p.port.MAC, IP: p.nic.host.vtep}] = hoststate.Val{}
	var at []int32
	for _, x := range w.devicesOf(p.net, p.port) {
		if l, ok := h.kernel.Link(x.name); ok && x.host == h {
			at = append(at, l.Index)
		}
	}
	// Of several one is open. Which, depends on what was said of them: one may
	// be known to be empty.
	for i, index := range at {
		if _, open := h.kernel.Row(hoststate.Key{Table: hoststate.TablePort, Port: index}); open || i == len(at)-1 {
			portRows(rows, index, p.net, p.port, hoststate.Watch|ofRouted(p.net))
			break
		}
	}
}

// compare is what differs between a host's kernel and the oracle; empty at
// rest.
func (w *world) compare(h *host, all []placed) []string {
	lines, rows := w.expected(h, all)
	var diff []string
	got := h.deviceLines()
	for _, l := range lines {
		if !slices.Contains(got, l) {
			diff = append(diff, "lacks "+l)
		}
	}
	for _, l := range got {
		if !slices.Contains(lines, l) {
			diff = append(diff, "has "+l)
		}
	}
	have := map[hoststate.Key]hoststate.Val{}
	for _, r := range h.kernel.GlobalRows() {
		have[r.Key] = r.Val
	}
	for _, v := range h.kernel.VNIs() {
		_, served := h.kernel.Link(v.VXLAN())
		for _, r := range h.kernel.Rows(v) {
			if !served && r.Key.Table == hoststate.TableMaster {
				continue // somebody's entry in a bridge that leads nowhere
			}
			if r.Key.Table == hoststate.TableMaster && r.Val.Flags == 0 {
				continue // the bridge's own learning, of a device that is nobody's port
			}
			have[r.Key] = r.Val
		}
	}
	for _, r := range hoststate.SortedRows(rows) {
		if v, ok := have[r.Key]; !ok {
			diff = append(diff, "lacks "+r.String())
		} else if v != r.Val {
			diff = append(diff, "lacks "+r.String()+", has "+hoststate.Row{Key: r.Key, Val: v}.String())
		}
	}
	for _, r := range hoststate.SortedRows(have) {
		if _, ok := rows[r.Key]; !ok {
			diff = append(diff, "has "+r.String())
		}
	}
	return append(append(diff, w.comparePorts(h, all)...), w.compareStrangers(h)...)
}

// comparePorts looks at what every VM's own device must be like.
func (w *world) comparePorts(h *host, all []placed) (diff []string) {
	for _, p := range all {
		if p.nic.host != h {
			continue
		}
		l, _ := h.kernel.Link(p.nic.name)
		if l.Flood || l.Learns || l.IPv6 || !l.Guarded {
			diff = append(diff, fmt.Sprintf("port %s has flood %t, learning %t, ipv6 %t, its program %t", l.Name, l.Flood, l.Learns, l.IPv6, l.Guarded))
		}
	}
	return diff
}

// deviceLines are our devices in the oracle's words.
func (h *host) deviceLines() (out []string) {
	for _, l := range h.kernel.Links() {
		up, iso, dove := "down", "open", "plain"
		if l.Up {
			up = "up"
		}
		if l.Isolated {
			iso = "isolated"
		}
		if l.DOVE && l.Flood == h.wantsMisses(l.VNI) && !l.Learns && l.IPv6 && l.Guarded {
			dove = "dove"
		}
		master := ""
		if b, ok := h.kernel.LinkAt(l.Master); ok {
			master = b.Name
		}
		switch l.Kind {
		case hoststate.LinkBridge:
			out = append(out, fmt.Sprintf("bridge %s %s mtu %d %s alias %s altname %s", l.Name, up, l.MTU, iso, l.Alias, strings.Join(l.AltNames, ",")))
		case hoststate.LinkVXLAN:
			out = append(out, fmt.Sprintf("vxlan %s %s mtu %d master %s vni %d local %s port %d df %d %s alias %s", l.Name, up, l.MTU, master, l.VXVNI, l.Local, l.UDPPort, l.DF, dove, l.Alias))
		}
	}
	return out
}

// compareStore is what differs between the bindings in the store and where the
// VMs really are.
func (w *world) compareStore(all []placed) (diff []string) {
	bound := map[overlay.Key]bool{}
	for _, p := range all {
		k := overlay.Key{Kind: overlay.KindEndpoint, UID: p.net.UID, MAC: p.port.MAC}
		bound[k] = true
		v, ok := w.store.values[k]
		if !ok || v.gone {
			diff = append(diff, fmt.Sprintf("no binding of port %s, which is on %s", p.port.Name, p.nic.host.name))
			continue
		}
		e := v.rec.(*overlay.Endpoint)
		if e.Host != p.nic.host.uid || e.Port != p.port.UID || !slices.Equal(e.Addresses, p.addresses(w)) {
			diff = append(diff, fmt.Sprintf("binding of port %s on %s is %+v", p.port.Name, p.nic.host.name, *e))
		}
		for _, h := range w.preOf(p.net, p.port) {
			if !slices.ContainsFunc(w.devicesOf(p.net, p.port), func(x *nic) bool { return x.host == h && h != p.nic.host }) {
				diff = append(diff, fmt.Sprintf("port %s, which is on %s, is expected on %s, where it has no device", p.port.Name, p.nic.host.name, h.name))
			}
		}
	}
	diff = append(diff, w.compareGuises(all, bound)...)
	for _, k := range w.store.keys() {
		if v := w.store.values[k]; k.Kind == overlay.KindEndpoint && !v.gone && !bound[k] {
			diff = append(diff, fmt.Sprintf("binding of %s in %s, which is nowhere", k.MAC, k.UID))
		}
	}
	slices.SortFunc(diff, cmp.Compare[string])
	return diff
}
