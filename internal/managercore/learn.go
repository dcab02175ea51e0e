package managercore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Undeclared endpoints: what agents hear on devices that are no declared port,
// in networks that admit it (spec.admission learn or dhcp).

// mayNotLearn says why a host may not have an undeclared endpoint; empty if it
// may.
func (c *Core) mayNotLearn(cl hostClaim, n *overlay.Network) string {
	switch {
	case n.Admission == overlay.AdmitDeclared:
		return "no port with this MAC is declared, and the network admits declared ports only (spec.admission)"
	case cl.MAC == overlay.ServerMAC:
		return "hosts speak to their guests with this MAC"
	case cl.Pre:
		return "an undeclared endpoint is not expected anywhere"
	}
	if k, declared := c.ix.macs[netMAC{n.UID, cl.MAC}]; declared {
		return because(api.CodeMACInUse, "the MAC is port %s's", c.rows[k].rec.(*overlay.Port).Name)
	}
	k := Key{Kind: overlay.KindEndpoint, UID: n.UID, MAC: cl.MAC}
	if max := limit(c.tenantOf(n).MaxPorts, overlay.DefaultMaxPorts); !c.ix.learned[n.UID][k] && c.ix.tports[n.Tenant]+len(c.ix.learned[n.UID]) >= max {
		return because(api.CodeQuota, "the tenant's quota of %d ports is used up", max)
	}
	return ""
}

// because is a reason with the code of the rule behind it, as refusals end.
func because(code api.Code, format string, args ...any) string {
	return fmt.Sprintf(format, args...) + " (" + string(code) + ")"
}

// reasonOf is what is said to people of refused addresses.
func reasonOf(refused []overlay.AddressRefusal) string {
	var no []string
	for _, r := range refused {
		no = append(no, r.Address.String()+": "+r.Reason)
	}
	return strings.Join(no, "; ")
}

// tenantOf is the tenant of a live network.
func (c *Core) tenantOf(n *overlay.Network) *overlay.Tenant {
	return c.rows[Key{Kind: overlay.KindTenant, UID: n.Tenant}].rec.(*overlay.Tenant)
}

// addressesOf is what an endpoint may have of what it is claimed to have, which
// of it others have to give up, and why not the rest: each address is refused
// by itself. b is its present binding; nil if there is none.
func (c *Core) addressesOf(cl hostClaim, k Key, b *overlay.Endpoint) (addrs []netip.Addr, from map[Key][]netip.Addr, refused []overlay.AddressRefusal) {
	if !cl.Port.IsZero() {
		p := c.rows[Key{Kind: overlay.KindPort, UID: cl.Port}].rec.(*overlay.Port)
		addrs, from, refused = c.sharedOf(cl, k, p, b)
		if cl.MAC != p.MAC {
			return overlay.SortAddrs(addrs), from, refused
		}
		return withShared(p, addrs), from, refused
	}
	n := c.rows[Key{Kind: overlay.KindNetwork, UID: cl.Network}].rec.(*overlay.Network)
	max := limit(c.tenantOf(n).MaxPortAddresses, overlay.DefaultMaxPortAddresses)
	for _, a := range cl.Addresses {
		why := c.addressRefused(n, a, k)
		if o, used := c.ix.ips[netIP{n.UID, a}]; used && o != k && o.Kind == overlay.KindEndpoint && c.rows[o].rec.(*overlay.Endpoint).Port.IsZero() {
			why = c.disputed(n, a, o, k, cl.host)
		}
		if why == "" && len(addrs) >= max {
			why = because(api.CodeQuota, "the tenant allows %d addresses a port", max)
		}
		if why != "" {
			refused = append(refused, overlay.AddressRefusal{Address: a, Reason: why})
			continue
		}
		addrs = append(addrs, a)
	}
	return addrs, nil, refused
}

// addressRefused says why the endpoint of key k may not have an address; empty
// if it may.
func (c *Core) addressRefused(n *overlay.Network, a netip.Addr, k Key) string {
	if o, used := c.ix.ips[netIP{n.UID, a}]; used && o != k {
		return because(api.CodeAddressInUse, "it is %s's", c.ownerName(o))
	}
	if c.ix.shared[netIP{n.UID, a}] != nil {
		return "declared ports share it"
	}
	return misplaced(n.Subnets, a)
}

// misplaced says why subnets keep an address from an undeclared endpoint; empty if
// they do not.
func misplaced(subnets []overlay.Subnet, a netip.Addr) string {
	if slices.ContainsFunc(subnets, func(s overlay.Subnet) bool { return s.Gateway == a }) {
		return because(api.CodeAddressInUse, "it is the gateway's")
	}
	if len(subnets) > 0 && !a.IsLinkLocalUnicast() && subnetOf(subnets, a) < 0 {
		return because(api.CodeOutside, "it is in no subnet of the network")
	}
	return ""
}

// confine takes from a network's undeclared endpoints what its new subnets keep
// from them.
func (a *admission) confine(network overlay.UID, subnets []overlay.Subnet) {
	for _, k := range sorted(a.c.ix.learned[network]) {
		rec, _ := a.get(k)
		ep := *rec.(*overlay.Endpoint)
		kept := slices.DeleteFunc(slices.Clone(ep.Addresses), func(ad netip.Addr) bool { return misplaced(subnets, ad) != "" })
		if len(kept) != len(ep.Addresses) {
			ep.Addresses, ep.Cause = kept, "manager: the subnets of the network changed"
			a.tx.put(&ep)
		}
	}
}

// ownerName names who has an address.
func (c *Core) ownerName(k Key) string {
	switch r := c.rows[k].rec.(type) {
	case *overlay.Port:
		return "port " + r.Name
	case *overlay.Endpoint:
		return r.MAC.String() + " on " + c.hostName(r.Host)
	}
	return "another"
}
