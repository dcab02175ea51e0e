package managercore

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Bridged networks are one segment: what must be one thing within a network must
// be so across them, too. Two that are bridged with a third are none, but their
// endpoints stand in its tables by their MACs, each of which is one.

// bridgeOf are the networks bridged with one, sorted, as the policies of the
// request say.
func (a *admission) bridgeOf(n *overlay.Network) []overlay.UID {
	if _, changes := a.routed[n.UID]; !changes {
		return n.Bridge
	}
	return a.c.ways(n.UID).bridge
}

// segment refuses two networks that could not be one segment. what begins the
// sentence: "Policy p was not written".
func (a *admission) segment(what string, n, o *overlay.Network) *api.Refusal {
	for _, x := range [...]*overlay.Network{n, o} {
		if x.Admission != overlay.AdmitDeclared {
			return api.Refuse(api.CodeUndeclared, what, fmt.Sprintf("network %s has admission %s, and MACs and addresses of undeclared endpoints are not compared across bridged networks", typed(x), x.Admission),
				"declare the ports, then: culvert network set "+typed(x)+" --admission declared")
		}
	}
	if n.MTU != o.MTU {
		return api.Refuse(api.CodeBridgeMTU, what, fmt.Sprintf("network %s has MTU %d, and network %s, which is bridged with it, %d", typed(n), n.MTU, typed(o), o.MTU),
			"give both the same, in one file if they are bridged already: culvert network set "+typed(n)+" --mtu "+fmt.Sprint(o.MTU))
	}
	if m := a.c.twin(n, o); !m.IsZero() {
		return api.Refuse(api.CodeMACInUse, what, fmt.Sprintf("MAC %s is in network %s and in network %s, which are bridged", m, typed(n), typed(o)),
			"give one of the two another MAC, by deleting and creating the port: culvert port list --network "+typed(o))
	}
	for _, x := range [...][2]*overlay.Network{{n, o}, {o, n}} {
		for _, uid := range a.bridgeOf(x[0]) {
			if uid == x[1].UID {
				continue
			}
			third := a.network(uid)
			if m := a.c.twin(x[1], third); !m.IsZero() {
				return api.Refuse(api.CodeMACInUse, what, fmt.Sprintf("MAC %s is in network %s and in network %s, which are both bridged with network %s", m, typed(x[1]), typed(third), typed(x[0])),
					"give one of the two another MAC, by deleting and creating the port: culvert port list --network "+typed(third))
			}
		}
	}
	if ad := a.c.twinAddress(n, o); ad.IsValid() {
		return api.Refuse(api.CodeAddressInUse, what, fmt.Sprintf("%s is %s in network %s and %s in network %s, which are bridged", ad, a.c.holds(n, ad), typed(n), a.c.holds(o, ad), typed(o)),
			"take it from one of the two: culvert port set PORT --ip ADDRESS")
	}
	return nil
}

// ownInSegment refuses a port whose MAC or addresses are known in a network that
// is bridged with its own.
func (a *admission) ownInSegment(d *overlay.Doc, p *overlay.Port) *api.Refusal {
	rec, _ := a.get(Key{Kind: overlay.KindNetwork, UID: p.Network})
	n := rec.(*overlay.Network)
	for _, uid := range a.bridgeOf(n) {
		o := a.network(uid)
		beside := fmt.Sprintf("in network %s, which is bridged with network %s", typed(o), typed(n))
		if a.c.hasMAC(uid, p.MAC) {
			owner := "a virtual router's"
			if k, declared := a.c.ix.macs[netMAC{uid, p.MAC}]; declared {
				owner = a.c.ownerName(k) + "'s"
			}
			return api.Refuse(api.CodeMACInUse, title(d)+" was not written", fmt.Sprintf("MAC %s is %s %s", p.MAC, owner, beside), "give another --mac, or none to have one allocated")
		}
		for _, third := range a.bridgeOf(o) {
			if third != n.UID && a.c.hasMAC(third, p.MAC) {
				return api.Refuse(api.CodeMACInUse, title(d)+" was not written", fmt.Sprintf("MAC %s is in network %s, which is bridged with network %s as network %s is", p.MAC, typed(a.network(third)), typed(o), typed(n)),
					"give another --mac, or none to have one allocated")
			}
		}
		for _, ad := range slices.Concat(p.Addresses, p.Shared) {
			if owner := a.c.holds(o, ad); owner != "" {
				return api.Refuse(api.CodeAddressInUse, title(d)+" was not written", fmt.Sprintf("%s is %s %s", ad, owner, beside), "give another address, or none to have one allocated")
			}
		}
	}
	return nil
}

// network is a live network.
func (a *admission) network(uid overlay.UID) *overlay.Network {
	rec, _ := a.get(Key{Kind: overlay.KindNetwork, UID: uid})
	return rec.(*overlay.Network)
}

// twin is a MAC that both networks have; zero if there is none.
func (c *Core) twin(n, o *overlay.Network) overlay.MAC {
	var found overlay.MAC
	see := func(m overlay.MAC, other overlay.UID) {
		if c.hasMAC(other, m) && (found.IsZero() || cmp.Compare(string(m[:]), string(found[:])) < 0) {
			found = m
		}
	}
	few, many := n.UID, o.UID
	if len(c.ix.ports[few]) > len(c.ix.ports[many]) {
		few, many = many, few
	}
	for k := range c.ix.ports[few] { // order-free: the lowest is taken
		see(c.rows[k].rec.(*overlay.Port).MAC, many)
	}
	for _, x := range [...]struct{ of, in overlay.UID }{{n.UID, o.UID}, {o.UID, n.UID}} {
		for k := range c.ix.virtual[x.of] { // order-free: the lowest is taken
			see(k.MAC, x.in)
		}
	}
	return found
}

// hasMAC reports whether a port of a network has a MAC, or a virtual router in
// it.
func (c *Core) hasMAC(network overlay.UID, m overlay.MAC) bool {
	if _, used := c.ix.macs[netMAC{network, m}]; used || !m.IsVirtual() {
		return used
	}
	w := c.rows[Key{Kind: overlay.KindEndpoint, UID: network, MAC: m}]
	return w != nil && !w.gone
}

// macBeyond is the first network bridged with n, or with such a one, that has a
// MAC; nil if none has.
func (c *Core) macBeyond(n *overlay.Network, m overlay.MAC) *overlay.Network {
	at := func(uid overlay.UID) *overlay.Network {
		return c.rows[Key{Kind: overlay.KindNetwork, UID: uid}].rec.(*overlay.Network)
	}
	for _, uid := range n.Bridge {
		if c.hasMAC(uid, m) {
			return at(uid)
		}
		for _, third := range at(uid).Bridge {
			if third != n.UID && c.hasMAC(third, m) {
				return at(third)
			}
		}
	}
	return nil
}

// twinAddress is an address that something in both networks has, or that is a
// gateway of one and something else of the other; invalid if there is none.
func (c *Core) twinAddress(n, o *overlay.Network) netip.Addr {
	var found netip.Addr
	see := func(ad netip.Addr, in *overlay.Network) {
		if c.taken(in, ad) && (!found.IsValid() || ad.Less(found)) {
			found = ad
		}
	}
	for _, x := range [...][2]*overlay.Network{{n, o}, {o, n}} {
		for k := range c.ix.ports[x[0].UID] { // order-free: the lowest is taken
			p := c.rows[k].rec.(*overlay.Port)
			for _, ad := range slices.Concat(p.Addresses, p.Shared) {
				see(ad, x[1])
			}
		}
	}
	return found
}

// holds says who has an address in a network: "port vm1's"; empty for nobody.
func (c *Core) holds(n *overlay.Network, ad netip.Addr) string {
	at := netIP{n.UID, ad}
	k, used := c.ix.ips[at]
	switch {
	case !c.taken(n, ad):
		return ""
	case used:
		return c.ownerName(k) + "'s"
	case len(c.ix.shared[at]) > 0:
		return "shared by ports"
	}
	return "the gateway's"
}

// taken reports whether somebody has an address in a network.
func (c *Core) taken(n *overlay.Network, ad netip.Addr) bool {
	at := netIP{n.UID, ad}
	_, used := c.ix.ips[at]
	return used || len(c.ix.shared[at]) > 0 || slices.ContainsFunc(n.Subnets, func(s overlay.Subnet) bool { return s.Gateway == ad })
}

// takenBeyond reports whether somebody has it in a network bridged with n.
func (c *Core) takenBeyond(n *overlay.Network, ad netip.Addr) bool {
	return slices.ContainsFunc(n.Bridge, func(uid overlay.UID) bool {
		return c.taken(c.rows[Key{Kind: overlay.KindNetwork, UID: uid}].rec.(*overlay.Network), ad)
	})
}
