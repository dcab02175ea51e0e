package managercore

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Next hops: where packets of a network go whose destination is in none. Hosts
// are told of them in the network's record, see overlay.Network.Routes.

// nextHops are a network's: those that its domain has routes by way of, as far
// as they are in the network or in one that it reaches. The record must say by
// now what it reaches.
func (c *Core) nextHops(n *overlay.Network) (hops []overlay.NextHop) {
	if n.Domain.IsZero() {
		return nil
	}
	dom := c.rows[Key{Kind: overlay.KindDomain, UID: n.Domain}].rec.(*overlay.Domain)
	for _, r := range dom.Routes { // sorted by prefix
		if p := c.portWith(n.UID, r.Via); p != nil {
			hops = append(hops, overlay.NextHop{Prefix: r.Prefix, Network: n.UID, MAC: p.MAC})
			continue
		}
		for _, uid := range n.Reach {
			if p := c.portWith(uid, r.Via); p != nil {
				hops = append(hops, overlay.NextHop{Prefix: r.Prefix, Network: uid, MAC: p.MAC})
				break
			}
		}
	}
	return hops
}

// portWith is the port of a network that has an address of its own; nil if none
// has it.
func (c *Core) portWith(network overlay.UID, ad netip.Addr) *overlay.Port {
	if k, used := c.ix.ips[netIP{network, ad}]; used && k.Kind == overlay.KindPort {
		return c.rows[k].rec.(*overlay.Port)
	}
	return nil
}

// rerouted is a domain whose next hops a request may have changed.
type rerouted struct {
	what  string   // was not done, if its routes lead nowhere then
	code  api.Code // of that refusal
	cause string   // of the change of its networks
}

// losing marks the domain of a network that a port's address, or its port, goes
// from, or which itself goes from the domain, if routes go that way. what begins
// the sentence of a refusal.
func (a *admission) losing(what, cause string, n *overlay.Network, gone func(netip.Addr) bool) {
	if n.Domain.IsZero() {
		return
	}
	if slices.ContainsFunc(a.domain(n.Domain).Routes, func(r overlay.Route) bool { return gone(r.Via) }) {
		a.reroute(n.Domain, rerouted{what: what, code: api.CodeHasRoutes, cause: cause})
	}
}

// hasRoutes refuses to delete a network by way of which routes go.
func (a *admission) hasRoutes(what string, n *overlay.Network) *api.Refusal {
	if n.Domain.IsZero() {
		return nil
	}
	dom := a.domain(n.Domain)
	if lost := a.lost(dom, func(r overlay.Route) bool { return a.c.portWith(n.UID, r.Via) == nil }); len(lost) > 0 {
		return a.byWayOfIt(what, dom, lost)
	}
	return nil
}

// lost are the routes of a domain that do not lead anywhere any more.
func (a *admission) lost(dom *overlay.Domain, leads func(overlay.Route) bool) (lost []string) {
	for _, r := range dom.Routes {
		if !leads(r) {
			lost = append(lost, r.Prefix.String()+" via "+r.Via.String())
		}
	}
	return lost
}

func (a *admission) byWayOfIt(what string, dom *overlay.Domain, lost []string) *api.Refusal {
	name := qualified(a.tenantName(dom.Tenant), dom.Name)
	return api.Refuse(api.CodeHasRoutes, what, fmt.Sprintf(count(len(lost), "route of domain %s goes", "routes of domain %s go")+" by way of it", name),
		"give them another way, or take them out, first: culvert domain set "+name+" --no-route", lost[:min(len(lost), maxListed)]...)
}

// reroute marks a domain, unless a change of the domain itself did.
func (a *admission) reroute(domain overlay.UID, r rerouted) {
	if _, marked := a.rerouted[domain]; !marked || r.code == api.CodeNextHop {
		a.rerouted[domain] = r
	}
}

// checkRoutes refuses a request after which a route of a domain would lead
// nowhere, and has the networks of the others derive theirs anew.
func (a *admission) checkRoutes() *api.Refusal {
	for _, uid := range sortedUIDs(a.rerouted) {
		dom, why := a.domain(uid), a.rerouted[uid]
		members := sorted(a.c.ix.members[uid])
		lost := a.lost(dom, func(r overlay.Route) bool {
			return slices.ContainsFunc(members, func(k Key) bool { return !a.network(k.UID).Blocked && a.c.portWith(k.UID, r.Via) != nil })
		})
		switch {
		case len(lost) > 0 && why.code == api.CodeNextHop:
			return api.Refuse(why.code, why.what, "no declared port of a network of the domain has the address by way of which what is listed goes as its own",
				"declare the port first, or put its network in: culvert port create PORT --network NETWORK --ip ADDRESS", lost[:min(len(lost), maxListed)]...)
		case len(lost) > 0:
			return a.byWayOfIt(why.what, dom, lost)
		}
		for _, k := range members {
			if _, marked := a.routed[k.UID]; !marked {
				a.routed[k.UID] = why.cause
			}
		}
	}
	return nil
}

// besides refuses networks of a domain that have what a route of it leads to.
func (a *admission) besides(what string, dom *overlay.Domain, n *overlay.Network) *api.Refusal {
	for _, r := range dom.Routes {
		for _, s := range n.Subnets {
			if r.Prefix.Bits() >= s.Prefix.Bits() && r.Prefix.Overlaps(s.Prefix) {
				return api.Refuse(api.CodeOverlap, what, fmt.Sprintf("subnet %s of network %s holds %s, to which domain %s has a route via %s", s.Prefix, typed(n), r.Prefix, a.domainName(n), r.Via),
					"route to what no network of the domain has, or to a shorter prefix")
			}
		}
	}
	return nil
}
