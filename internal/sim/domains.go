package sim

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// A world in which networks are routed to each other (Options.Domains): what
// users do besides.

// domainOperations are added to the others in such a world.
var domainOperations = []op{
	{6, (*world).putDomain}, {14, (*world).putPolicy}, {4, (*world).deletePolicy}, {4, (*world).joinOrLeaveDomain}, {1, (*world).deleteDomain},
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
		d := overlay.Doc{Kind: overlay.KindDomain, Tenant: t.Name, Name: theDomain}
		for _, p := range prefixes {
			if via, ok := w.nextHop(t, p.Addr().Is4()); ok && w.chance(0.4) {
				d.Domain.Routes = append(d.Domain.Routes, overlay.Route{Prefix: p, Via: via})
			}
		}
		w.ask(w.put(d), "domain %s/%s, %d routes", t.Name, theDomain, len(d.Domain.Routes))
	}
}

// prefixes are what domains have routes to, sorted: beyond all networks, and
// around them.
var prefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fd00:99::/32"),
}

// nextHop is an address of some port in a tenant's domain.
func (w *world) nextHop(t *overlay.Tenant, four bool) (netip.Addr, bool) {
	var all []netip.Addr
	for _, n := range w.store.networks() {
		if n.Tenant != t.UID || n.Domain.IsZero() {
			continue
		}
		for _, p := range w.portsOf(n.UID) {
			for _, a := range p.Addresses {
				if a.Is4() == four {
					all = append(all, a)
				}
			}
		}
	}
	return one(w, all)
}

func (w *world) deleteDomain() {
	if t, ok := one(w, w.store.tenants()); ok {
		w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindDomain, Tenant: t.Name, Name: theDomain}}, "domain delete %s/%s", t.Name, theDomain)
	}
}

// putPolicy opens the way between two networks of a tenant, or joins them. A second policy for
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
	if w.chance(0.3) {
		d.Policy.Both, d.Policy.Bridged = true, true
	}
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
