package sim

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// What a host's tables of one network hold of others, in the oracle's words.

// Flags of rows, in the oracle's words, too.
const (
	entry     = hoststate.Static | hoststate.Extern
	neighbour = hoststate.Permanent | hoststate.Ours
)

// routerRows are the router of a network on a host that serves it, and the
// subnets that its routes go around.
func (w *world) routerRows(out map[hoststate.Key]hoststate.Val, h *host, n *overlay.Network) {
	if n.Domain.IsZero() {
		return
	}
	k := hoststate.Key{Table: hoststate.TableFDB, VNI: n.VNI, MAC: overlay.ServerMAC}
	out[k] = hoststate.Val{Dst: h.vtep, Flags: entry | hoststate.Router}
	k.Table = hoststate.TableMaster
	out[k] = hoststate.Val{Flags: entry}
	for _, uid := range append(across(n), n.UID) {
		o := w.store.network(uid)
		if o == nil {
			continue
		}
		for _, s := range o.Subnets {
			if slices.ContainsFunc(n.Routes, func(r overlay.NextHop) bool { return r.Prefix.Bits() < s.Prefix.Bits() && r.Prefix.Overlaps(s.Prefix) }) {
				out[routeKey(n, s.Prefix)] = hoststate.Val{}
			}
		}
	}
}

func routeKey(n *overlay.Network, p netip.Prefix) hoststate.Key {
	return hoststate.Key{Table: hoststate.TableRoute, VNI: n.VNI, IP: p.Addr(), Bits: uint8(p.Bits())}
}

// hopRows are the prefixes that network n sends to an endpoint of network o, by
// the name that it has in n; it reports whether there are any.
func hopRows(out map[hoststate.Key]hoststate.Val, n, o *overlay.Network, mac, name overlay.MAC) bool {
	found := false
	for _, r := range n.Routes {
		if r.Network == o.UID && r.MAC == mac {
			found = true
			out[routeKey(n, r.Prefix)] = hoststate.Val{MAC: name}
		}
	}
	return found
}

// aliasRow is by what name an endpoint is sent to here, if others may.
func aliasRow(out map[hoststate.Key]hoststate.Val, n *overlay.Network, mac overlay.MAC) {
	if len(n.From) > 0 {
		out[hoststate.Key{Table: hoststate.TableAlias, VNI: n.VNI, MAC: overlay.Alias(n.UID, mac)}] = hoststate.Val{MAC: mac}
	}
}

// acrossRows are what an endpoint of network o has in network n: it is sent to
// at vtep, by way of the gateway alone.
func acrossRows(out map[hoststate.Key]hoststate.Val, n, o *overlay.Network, mac overlay.MAC, vtep netip.Addr, addrs []netip.Addr) {
	name, mtu := overlay.Alias(o.UID, mac), min(n.MTU, o.MTU)
	out[hoststate.Key{Table: hoststate.TableReach, VNI: n.VNI, MAC: name}] = hoststate.Val{}
	out[hoststate.Key{Table: hoststate.TableFDB, VNI: n.VNI, MAC: name}] = hoststate.Val{Dst: vtep, VNI: o.VNI, Flags: entry}
	for _, a := range addrs {
		out[hoststate.Key{Table: hoststate.TableReach, VNI: n.VNI, IP: a}] = hoststate.Val{MTU: mtu}
		out[hoststate.Key{Table: hoststate.TableNeigh, VNI: n.VNI, IP: a}] = hoststate.Val{MAC: name, Flags: neighbour}
	}
	if hopRows(out, n, o, mac, name) {
		out[hoststate.Key{Table: hoststate.TableMaster, VNI: n.VNI, MAC: name}] = hoststate.Val{Flags: entry}
	}
}

// fromRows are whose address one is in network n that an endpoint of network o
// has, and the hosts that may send for it.
func fromRows(out map[hoststate.Key]hoststate.Val, n, o *overlay.Network, mac overlay.MAC, addrs []netip.Addr, vteps ...netip.Addr) {
	name := overlay.Alias(o.UID, mac)
	for _, a := range addrs {
		out[hoststate.Key{Table: hoststate.TableFrom, VNI: n.VNI, IP: a}] = hoststate.Val{MAC: name}
	}
	for _, v := range vteps {
		out[hoststate.Key{Table: hoststate.TableRouted, VNI: n.VNI, MAC: name, IP: v}] = hoststate.Val{}
	}
}

// bridgedRows are what an endpoint of network o has in network n if the two are
// one to their guests.
func bridgedRows(out map[hoststate.Key]hoststate.Val, n, o *overlay.Network, mac overlay.MAC, vtep netip.Addr, addrs []netip.Addr) {
	out[hoststate.Key{Table: hoststate.TableFDB, VNI: n.VNI, MAC: mac}] = hoststate.Val{Dst: vtep, VNI: o.VNI, Flags: entry}
	out[hoststate.Key{Table: hoststate.TableMaster, VNI: n.VNI, MAC: mac}] = hoststate.Val{Flags: entry}
	for _, a := range addrs {
		out[hoststate.Key{Table: hoststate.TableNeigh, VNI: n.VNI, IP: a}] = hoststate.Val{MAC: mac, Flags: neighbour}
	}
}

// ofRouted are the flags of ports whose guests have a router, and of those in
// networks that are told on demand.
func ofRouted(n *overlay.Network) (f hoststate.Flags) {
	if !n.Domain.IsZero() {
		f |= hoststate.Routed
	}
	if onDemand(n) {
		f |= hoststate.Demand
	}
	return f
}

// expectedAcross adds what other networks have in one that a host serves: where
// their VMs really are.
func (w *world) expectedAcross(h *host, n *overlay.Network, all []placed, rows map[hoststate.Key]hoststate.Val) {
	w.routerRows(rows, h, n)
	for _, p := range all {
		mac, addrs, pre := p.port.MAC, p.port.Addresses, w.preOf(p.net, p.port)
		if p.net.UID == n.UID {
			hopRows(rows, n, n, mac, mac)
			if p.nic.host == h || slices.Contains(pre, h) {
				aliasRow(rows, n, mac)
			}
			continue
		}
		var vteps []netip.Addr
		for _, o := range append(pre, p.nic.host) {
			if o != h {
				vteps = append(vteps, o.vtep)
			}
		}
		if slices.Contains(n.Bridge, p.net.UID) {
			bridgedRows(rows, n, p.net, mac, p.nic.host.vtep, addrs)
			for _, v := range vteps {
				sourceRow(rows, n, mac, v)
			}
		}
		if slices.Contains(n.Reach, p.net.UID) {
			acrossRows(rows, n, p.net, mac, p.nic.host.vtep, addrs)
		}
		if slices.Contains(n.From, p.net.UID) {
			fromRows(rows, n, p.net, mac, addrs, vteps...)
		}
	}
}

// expectAcross adds what bindings of network o that are not newer than revision
// r call for in network n: only that of which there can be no two opinions.
func (w *world) expectAcross(out map[hoststate.Key]hoststate.Val, h *host, n, o *overlay.Network, r uint64) {
	if w.store.values[overlay.KeyOf(n)].n > r || w.store.values[overlay.KeyOf(o)].n > r {
		return
	}
	owners := map[netip.Addr]int{}
	for _, k := range w.store.bound[o.UID] {
		for _, a := range w.store.values[k].rec.(*overlay.Endpoint).Addresses {
			owners[a]++
		}
	}
	here := w.devicesHere(h, o)
	for _, k := range w.store.bound[o.UID] {
		v := w.store.values[k]
		e := v.rec.(*overlay.Endpoint)
		hv, ok := w.store.values[overlay.Key{Kind: overlay.KindHost, UID: e.Host}]
		if v.gone || v.n > r || !ok || hv.n > r || hv.rec.(*overlay.Host).Dead || here[e.MAC] || e.Host == h.uid && len(e.Pre) > 0 {
			continue
		}
		vtep := hv.rec.(*overlay.Host).VTEP
		if !vtep.IsValid() {
			continue
		}
		sure := slices.DeleteFunc(slices.Clone(e.Addresses), func(a netip.Addr) bool { return owners[a] > 1 })
		var vteps []netip.Addr
		if e.Host != h.uid {
			vteps = append(vteps, vtep)
		}
		if slices.Contains(n.From, o.UID) {
			fromRows(out, n, o, e.MAC, sure, vteps...)
		}
		if slices.Contains(n.Reach, o.UID) {
			acrossRows(out, n, o, e.MAC, vtep, sure)
		}
		if slices.Contains(n.Bridge, o.UID) && !w.ever.macs[netMAC{n.UID, e.MAC}] {
			bridgedRows(out, n, o, e.MAC, vtep, slices.DeleteFunc(sure, func(a netip.Addr) bool { return w.ever.addrs[netAddr{n.UID, a}] }))
			for _, v := range vteps {
				sourceRow(out, n, e.MAC, v)
			}
		}
	}
}

// devicesHere are the MACs of a network's ports that have a device on a host, or
// had one until now.
func (w *world) devicesHere(h *host, n *overlay.Network) map[overlay.MAC]bool {
	here := map[overlay.MAC]bool{}
	for _, p := range w.portsOf(n.UID) {
		for _, x := range w.devicesOf(n, p) {
			if x.host == h {
				here[x.mac], here[p.MAC] = true, true
			}
		}
	}
	for _, d := range h.left {
		if d.at+5*second > w.now {
			here[d.nic.mac] = true
		}
	}
	return here
}

// across are the networks that one is routed to or from, or bridged to.
func across(n *overlay.Network) []overlay.UID { return slices.Concat(n.Reach, n.From, n.Bridge) }

// isAcross reports whether a row of a network's tables is not of its own
// endpoints: its router's, or another network's.
func (h *host) isAcross(uid overlay.UID, r hoststate.Row) bool {
	k, own := r.Key, h.w.ever.macs
	switch k.Table {
	case hoststate.TableReach, hoststate.TableFrom, hoststate.TableRouted, hoststate.TableRoute, hoststate.TableAlias:
		return true
	case hoststate.TableNeigh:
		return !own[netMAC{uid, r.Val.MAC}] || !h.w.ever.addrs[netAddr{uid, k.IP}]
	case hoststate.TableSource, hoststate.TableMaster, hoststate.TableFDB:
		return k.MAC == overlay.ServerMAC || r.Val.VNI != 0 || !own[netMAC{uid, k.MAC}]
	}
	return false
}

// checkAcross: no row leads from one network into another, or lets frames in
// from there, unless a policy once opened that way, and none does after the
// agent was told that it is closed.
func (h *host) checkAcross(uid overlay.UID, op hoststate.Op) {
	w, k, v := h.w, op.Row.Key, op.Row.Val
	n := w.store.network(uid)
	told := n != nil && w.store.values[overlay.KeyOf(n)].n <= h.seen.decided[uid]
	switch {
	case k.MAC == overlay.ServerMAC:
		if told && n.Domain.IsZero() {
			w.fail("%s: %v: the network is in no domain", h.name, op)
		}
		if k.Table != hoststate.TableMaster && (k.Table != hoststate.TableFDB || v.Dst != h.vtep) {
			w.fail("%s: %v: nothing comes from the router, or goes to it elsewhere", h.name, op)
		}
		return
	case k.Table == hoststate.TableAlias:
		if !w.ever.macs[netMAC{uid, v.MAC}] || k.MAC != overlay.Alias(uid, v.MAC) || told && len(n.From) == 0 {
			w.fail("%s: %v: it is not the alias of a MAC of the network's, or nobody sends to it", h.name, op)
		}
		return
	case k.Table == hoststate.TableRoute:
		h.checkRoute(uid, op, told)
		return
	case k.Table == hoststate.TableRouted || k.Table == hoststate.TableSource:
		if k.IP == h.vtep || !w.ever.vteps[k.IP] {
			w.fail("%s: %v: it is no VTEP of another host", h.name, op)
		}
	}
	name := k.MAC
	if name.IsZero() {
		name = v.MAC // zero of an address alone
	}
	for way := range w.ever.ways {
		if way.from != uid || told && !contains(way.kind.of(n), way.to) {
			continue
		}
		o, opens := w.store.network(way.to), way.kind != byFrom
		if k.Table == hoststate.TableFrom || k.Table == hoststate.TableRouted {
			opens = way.kind == byFrom
		}
		if k.Table == hoststate.TableReach {
			opens = way.kind == byReach
		}
		was := !k.IP.IsValid() || k.Table == hoststate.TableRouted || k.Table == hoststate.TableSource || w.ever.addrs[netAddr{way.to, k.IP}]
		if opens && was && (name.IsZero() || w.named(way, name)) && (v.VNI == 0 || o == nil || v.VNI == o.VNI) {
			return
		}
	}
	w.fail("%s: %v: no policy opens that way", h.name, op)
}

func contains(list []overlay.UID, uid overlay.UID) bool { return slices.Contains(list, uid) }

// named reports whether a port of the network at the end of a way was ever
// known by a name at its beginning.
func (w *world) named(y way, name overlay.MAC) bool {
	if y.kind == byBridge {
		return w.ever.macs[netMAC{y.to, name}]
	}
	return w.ever.aliases[name] == y.to
}

// checkRoute: packets to a prefix go to nobody if it is a subnet, and else to a
// next hop of the network's, by its name there.
func (h *host) checkRoute(uid overlay.UID, op hoststate.Op, told bool) {
	w, k, v := h.w, op.Row.Key, op.Row.Val
	if !told || v.MAC.IsZero() {
		return
	}
	n := w.store.network(uid)
	if !slices.ContainsFunc(n.Routes, func(r overlay.NextHop) bool {
		own := r.Network == uid && r.MAC == v.MAC
		return routeKey(n, r.Prefix) == k && (own || overlay.Alias(r.Network, r.MAC) == v.MAC && contains(n.Reach, r.Network))
	}) {
		w.fail("%s: %v: no route says so", h.name, op)
	}
}

// way is from one network to another, as the record of the first says.
type way struct {
	from, to overlay.UID
	kind     wayKind
}

type wayKind uint8

const (
	byReach wayKind = iota
	byFrom
	byBridge
)

// of are the ways of a kind that a record says.
func (k wayKind) of(n *overlay.Network) []overlay.UID {
	return [...][]overlay.UID{byReach: n.Reach, byFrom: n.From, byBridge: n.Bridge}[k]
}

// checkAcrossDel: what is of other networks is not taken away before the passes
// over all their logs have ended.
func (h *host) checkAcrossDel(n *overlay.Network, op hoststate.Op) {
	if n == nil || h.misled > h.w.now {
		return
	}
	if v := h.w.store.values[overlay.KeyOf(n)]; v.n > h.seen.decided[n.UID] && !(h.seen.fleet && v.at < h.started) {
		return // what it knows of the network may be older
	}
	for _, uid := range across(n) {
		if h.w.store.network(uid) != nil && !h.seen.complete[uid] && h.served(n.UID, 20*second) {
			h.w.fail("%s: %v before a full pass over the log of a network that is routed to or from it", h.name, op)
		}
	}
}
