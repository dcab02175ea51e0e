package sim

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// A world in which networks are routed to each other (Options.Domains): what
// users do besides, and what kernels must hold for it, in the oracle's words.

// domainOperations are added to the others in such a world.
var domainOperations = []op{
	{3, (*world).putDomain}, {14, (*world).putPolicy}, {4, (*world).deletePolicy}, {4, (*world).joinOrLeaveDomain}, {1, (*world).deleteDomain},
}

// theDomain is the name of each tenant's only one.
const theDomain = "d0"

// beginDomain is a domain with networks, ports and a policy, to begin with.
func (w *world) beginDomain() {
	docs := []overlay.Doc{{Kind: overlay.KindDomain, Tenant: "t0", Name: theDomain}}
	for i := range 2 + w.pick(2) {
		d := overlay.Doc{Kind: overlay.KindNetwork, Tenant: "t0", Name: fmt.Sprintf("n%d", i), Network: w.networkSpec()}
		w.intoDomain(&d.Network, i)
		docs = append(docs, d)
	}
	w.ask(w.put(docs...), "a domain of %d networks", len(docs)-1)
	w.run(w.now + second)
	for range 2 {
		w.putPolicy()
	}
	for range 6 + w.pick(6) {
		w.createPort()
	}
	w.run(w.now + second)
	for range 6 {
		w.plug()
	}
}

func (w *world) putDomain() {
	if t, ok := one(w, w.store.tenants()); ok {
		w.ask(w.put(overlay.Doc{Kind: overlay.KindDomain, Tenant: t.Name, Name: theDomain}), "domain %s/%s", t.Name, theDomain)
	}
}

func (w *world) deleteDomain() {
	if t, ok := one(w, w.store.tenants()); ok {
		w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindDomain, Tenant: t.Name, Name: theDomain}}, "domain delete %s/%s", t.Name, theDomain)
	}
}

// putPolicy opens the way between two networks of a tenant. A second policy for
// the same two has another name.
func (w *world) putPolicy() {
	a, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	others := slices.DeleteFunc(w.store.networks(), func(n *overlay.Network) bool { return n.Tenant != a.Tenant || n.UID == a.UID })
	b, ok := one(w, others)
	if !ok {
		return
	}
	d := overlay.Doc{Kind: overlay.KindPolicy, Tenant: a.TenantName, Name: fmt.Sprintf("%s-%s-%d", a.Name, b.Name, w.pick(2))}
	d.Policy = overlay.PolicySpec{Domain: theDomain, From: a.Name, To: b.Name, Both: w.chance(0.6)}
	w.ask(w.put(d), "policy %s/%s", a.TenantName, d.Name)
}

func (w *world) deletePolicy() {
	if p, ok := one(w, live[*overlay.Policy](w.store)); ok {
		tenant, _ := w.store.values[overlay.Key{Kind: overlay.KindTenant, UID: p.Tenant}].rec.(*overlay.Tenant)
		w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindPolicy, Tenant: tenant.Name, Name: p.Name}}, "policy delete %s/%s", tenant.Name, p.Name)
	}
}

// joinOrLeaveDomain moves a network into its tenant's domain, or out of it.
func (w *world) joinOrLeaveDomain() {
	n, ok := one(w, w.store.networks())
	if !ok {
		return
	}
	d := w.sameNetwork(n)
	if d.Network.Domain != "" && w.chance(0.3) {
		d.Network.Domain = ""
	} else {
		d.Network.Domain = theDomain
	}
	w.ask(w.put(d), "network set %s/%s domain %q", n.TenantName, n.Name, d.Network.Domain)
}

// sameNetwork is a document of a network with what may not change, and with the
// domain that it is in.
func (w *world) sameNetwork(n *overlay.Network) overlay.Doc {
	d := overlay.Doc{Kind: overlay.KindNetwork, Tenant: n.TenantName, Name: n.Name, Network: w.networkSpec()}
	d.Network.Subnets, d.Network.Hosts = n.Subnets, n.Hosts
	if !n.Domain.IsZero() {
		d.Network.Domain = theDomain
	}
	return d
}

// intoDomain gives a new network, the number'th of its tenant, subnets that no
// other of the domain has, mostly, and hosts of its own.
func (w *world) intoDomain(s *overlay.NetworkSpec, number int) {
	if w.chance(0.1) {
		return // not to be routed; to be refused when it joins
	}
	s.Hosts = nil
	if w.chance(0.5) {
		for _, h := range w.hosts {
			if h.joined && w.chance(0.6) {
				s.Hosts = append(s.Hosts, h.name)
			}
		}
		slices.Sort(s.Hosts)
	}
	for i, sn := range s.Subnets {
		move := func(a netip.Addr) netip.Addr {
			if a.Is4() {
				b := a.As4()
				b[1] += byte(number)
				return netip.AddrFrom4(b)
			}
			b := a.As16()
			b[3] += byte(number)
			return netip.AddrFrom16(b)
		}
		s.Subnets[i] = overlay.Subnet{Prefix: netip.PrefixFrom(move(sn.Prefix.Addr()), sn.Prefix.Bits()), Gateway: move(sn.Gateway)}
	}
	if w.chance(0.8) {
		s.Domain = theDomain
	}
}

// routerRows are the router of a network on a host that serves it.
func routerRows(out map[hoststate.Key]hoststate.Val, h *host, n *overlay.Network) {
	if n.Domain.IsZero() {
		return
	}
	k := hoststate.Key{Table: hoststate.TableFDB, VNI: n.VNI, MAC: overlay.ServerMAC}
	out[k] = hoststate.Val{Dst: h.vtep, Flags: hoststate.Static | hoststate.Extern | hoststate.Router}
	k.Table = hoststate.TableMaster
	out[k] = hoststate.Val{Flags: hoststate.Static | hoststate.Extern}
}

// acrossRows are what an endpoint of network o has in network n: it is sent to
// at vtep, by way of the gateway alone.
func acrossRows(out map[hoststate.Key]hoststate.Val, n, o *overlay.Network, mac overlay.MAC, vtep netip.Addr, addrs []netip.Addr) {
	out[hoststate.Key{Table: hoststate.TableReach, VNI: n.VNI, MAC: mac}] = hoststate.Val{}
	out[hoststate.Key{Table: hoststate.TableFDB, VNI: n.VNI, MAC: mac}] = hoststate.Val{Dst: vtep, VNI: o.VNI, Flags: hoststate.Static | hoststate.Extern}
	for _, a := range addrs {
		out[hoststate.Key{Table: hoststate.TableReach, VNI: n.VNI, IP: a}] = hoststate.Val{}
		out[hoststate.Key{Table: hoststate.TableNeigh, VNI: n.VNI, IP: a}] = hoststate.Val{MAC: mac, Flags: hoststate.Permanent | hoststate.Ours}
	}
}

// ofRouted is the flag of ports whose guests have a router.
func ofRouted(n *overlay.Network) hoststate.Flags {
	if n.Domain.IsZero() {
		return 0
	}
	return hoststate.Routed
}

// expectedAcross adds what other networks have in one that a host serves: where
// their VMs really are.
func (w *world) expectedAcross(h *host, n *overlay.Network, all []placed, rows map[hoststate.Key]hoststate.Val) {
	routerRows(rows, h, n)
	for _, p := range all {
		if slices.Contains(n.Reach, p.net.UID) {
			acrossRows(rows, n, p.net, p.port.MAC, p.nic.host.vtep, p.port.Addresses)
		}
		if slices.Contains(n.From, p.net.UID) {
			for _, o := range append(w.preOf(p.net, p.port), p.nic.host) {
				if o != h {
					sourceRow(rows, n, overlay.ServerMAC, o.vtep)
				}
			}
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
		if v.gone || v.n > r || !ok || hv.n > r || hv.rec.(*overlay.Host).Dead || here[e.MAC] || e.Host == h.uid && len(e.Pre) > 0 || w.ever.macs[netMAC{n.UID, e.MAC}] {
			continue
		}
		vtep := hv.rec.(*overlay.Host).VTEP
		if slices.Contains(n.From, o.UID) && e.Host != h.uid && vtep.IsValid() {
			sourceRow(out, n, overlay.ServerMAC, vtep)
		}
		if slices.Contains(n.Reach, o.UID) && vtep.IsValid() {
			acrossRows(out, n, o, e.MAC, vtep, slices.DeleteFunc(slices.Clone(e.Addresses), func(a netip.Addr) bool { return owners[a] > 1 }))
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

// across are the networks that one is routed to or from.
func across(n *overlay.Network) []overlay.UID { return slices.Concat(n.Reach, n.From) }

// isAcross reports whether a row of a network's tables is not of its own
// endpoints: its router's, or another network's.
func (h *host) isAcross(uid overlay.UID, r hoststate.Row) bool {
	k := r.Key
	return k.MAC == overlay.ServerMAC || k.Table == hoststate.TableReach || k.Table == hoststate.TableFDB && r.Val.VNI != 0 ||
		k.Table == hoststate.TableNeigh && !(h.w.ever.macs[netMAC{uid, r.Val.MAC}] && h.w.ever.addrs[netAddr{uid, k.IP}])
}

// checkAcross: no row leads from one network into another unless a policy once
// opened that way, and none does after the agent was told that it is closed.
func (h *host) checkAcross(uid overlay.UID, op hoststate.Op) {
	w, k, v := h.w, op.Row.Key, op.Row.Val
	n := w.store.network(uid)
	told := n != nil && w.store.values[overlay.KeyOf(n)].n <= h.seen.decided[uid]
	if k.MAC == overlay.ServerMAC {
		switch {
		case told && n.Domain.IsZero():
			w.fail("%s: %v: the network is in no domain", h.name, op)
		case k.Table == hoststate.TableFDB && v.Dst != h.vtep, k.Table == hoststate.TableSource && (k.IP == h.vtep || !w.ever.vteps[k.IP]):
			w.fail("%s: %v: routed from or to a place that is none", h.name, op)
		}
		return
	}
	mac := k.MAC
	if k.Table == hoststate.TableNeigh {
		mac = v.MAC
	}
	for way := range w.ever.ways {
		was := !k.IP.IsValid() || w.ever.addrs[netAddr{way.to, k.IP}]
		was = was && (mac.IsZero() || w.ever.macs[netMAC{way.to, mac}])
		if o := w.store.network(way.to); way.from == uid && was && (v.VNI == 0 || o == nil || v.VNI == o.VNI) && (!told || slices.Contains(n.Reach, way.to)) {
			return
		}
	}
	w.fail("%s: %v: no policy opens that way", h.name, op)
}

// way is from one network to another.
type way struct{ from, to overlay.UID }

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
