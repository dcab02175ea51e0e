package managercore

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

func (a *admission) putPolicy(d *overlay.Doc) *api.Refusal {
	t, no := a.tenant(d)
	if no != nil {
		return no
	}
	dom, no := a.domainNamed(d, t, d.Policy.Domain)
	if no != nil {
		return no
	}
	from, no := a.routable(d, t, dom, d.Policy.From)
	if no != nil {
		return no
	}
	to, no := a.routable(d, t, dom, d.Policy.To)
	if no != nil {
		return no
	}
	old, _ := a.find(d.Kind, t.UID, d.Name).(*overlay.Policy)
	if old == nil {
		if n := len(a.c.ix.policies[dom.UID]); n >= overlay.MaxPolicies {
			return api.Refuse(api.CodeQuota, title(d)+" was not created", fmt.Sprintf("domain %s has %d policies, which is the most", dom.Name, n), "delete some that are not needed: culvert policy list")
		}
		a.putWay("created", &overlay.Policy{Meta: a.newMeta(d, t.UID), Domain: dom.UID, From: from.UID, To: to.UID, Both: d.Policy.Both, Bridged: d.Policy.Bridged})
		return nil
	}
	kept := old.Domain == dom.UID && old.From == from.UID && old.To == to.UID
	same := kept && old.Both == d.Policy.Both && old.Bridged == d.Policy.Bridged && slices.Equal(d.Labels, old.Labels)
	if no := a.sameOrSet(d, same, old); no != nil || same {
		return no
	}
	if !kept {
		return api.Refuse(api.CodeImmutable, title(d)+" was not changed", "a policy stays between its two networks: "+a.policyLine(t.UID, old), "delete the policy and create it anew")
	}
	want := *old
	want.Meta, want.Both, want.Bridged = a.again(old.Meta, d), d.Policy.Both, d.Policy.Bridged
	a.putWay("changed", &want)
	return nil
}

// routable is the network of that name, if a policy of the domain may name it.
func (a *admission) routable(d *overlay.Doc, t *overlay.Tenant, dom *overlay.Domain, name string) (*overlay.Network, *api.Refusal) {
	what := title(d) + " was not written"
	rec, typed := a.refer(overlay.KindNetwork, t, name)
	n, _ := rec.(*overlay.Network)
	in := dom.Name // as it is typed of a network of that tenant
	if strings.Contains(name, "/") {
		in = t.Name + "/" + in
	}
	switch {
	case n == nil:
		return nil, api.Refuse(api.CodeNotFound, what, "network "+typed+" does not exist", "make it first: culvert network create "+typed+" --domain "+in)
	case n.Blocked:
		return nil, blocked(d, n)
	case n.Domain != dom.UID:
		return nil, api.Refuse(api.CodeNotInDomain, what, "network "+typed+" is not in domain "+dom.Name, "put it in first: culvert network set "+typed+" --domain "+in)
	}
	return n, nil
}

// putWay writes a policy, and later what follows from it: see deriveWays.
func (a *admission) putWay(action string, p *overlay.Policy) {
	a.tx.put(p)
	a.did(action, p)
	a.routed[p.From], a.routed[p.To] = p.Cause, p.Cause
}

func (a *admission) deletePolicy(d *overlay.Doc, p *overlay.Policy) *api.Refusal {
	gone := *p
	gone.Meta = a.dying(p.Meta, d)
	a.bury(&gone)
	a.did("deleted", &gone)
	a.routed[p.From], a.routed[p.To] = gone.Cause, gone.Cause
	return a.fitsPolicy(title(d)+" was not deleted", p)
}

// deriveWays writes the networks whose ways the request has changed: at the end,
// so that each is written once. One whose ways are as before is not.
func (a *admission) deriveWays() {
	for _, uid := range sortedUIDs(a.routed) {
		k := Key{Kind: overlay.KindNetwork, UID: uid}
		rec, _ := a.get(k)
		n := *rec.(*overlay.Network)
		w := a.c.ways(uid)
		same := slices.Equal(w.reach, n.Reach) && slices.Equal(w.from, n.From) && slices.Equal(w.bridge, n.Bridge)
		n.Reach, n.From, n.Bridge = w.reach, w.from, w.bridge
		hops := joinHops(a.c.nextHops(&n), a.c.gatewayHops(uid))
		if same && slices.Equal(hops, n.Routes) {
			continue
		}
		n.Routes = hops
		if _, written := a.seen[k]; !written { // else its own change is the better cause
			n.Cause, n.Changed = a.routed[uid], int64(a.c.now)
		}
		a.tx.put(&n)
	}
}

func sortedUIDs[V any](set map[overlay.UID]V) []overlay.UID {
	uids := make([]overlay.UID, 0, len(set))
	for uid := range set { // order-free: sorted below
		uids = append(uids, uid)
	}
	slices.SortFunc(uids, overlay.UID.Compare)
	return uids
}

// ways are what policies make of a network, see overlay.Network.
type ways struct{ reach, from, bridge []overlay.UID }

func (c *Core) ways(network overlay.UID) (w ways) {
	for k := range c.ix.policies[network] { // order-free: sorted below
		p := c.rows[k].rec.(*overlay.Policy)
		other := p.To
		if p.To == network {
			other = p.From
		}
		if p.Bridged {
			w.bridge = append(w.bridge, other)
			continue
		}
		if p.From == network || p.Both {
			w.reach = append(w.reach, other)
		}
		if p.To == network || p.Both {
			w.from = append(w.from, other)
		}
	}
	for _, list := range [...]*[]overlay.UID{&w.reach, &w.from, &w.bridge} {
		slices.SortFunc(*list, overlay.UID.Compare)
		*list = slices.Compact(*list)
	}
	return w
}

// keepsPolicies refuses to take a network out of the domain of its policies.
func (a *admission) keepsPolicies(d *overlay.Doc, old, want *overlay.Network) *api.Refusal {
	if want.Domain == old.Domain {
		return nil
	}
	if no := a.hasPolicies(d, old, "changed"); no != nil {
		return no
	}
	a.losing(title(d)+" was not changed", a.cause("set", d), old, func(ad netip.Addr) bool {
		// By the subnets, since ports of the same request are out of the indexes.
		return slices.ContainsFunc(old.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Contains(ad) })
	})
	return nil
}

// hasPolicies refuses what takes a network out of its domain while policies name
// it.
func (a *admission) hasPolicies(d *overlay.Doc, n *overlay.Network, done string) *api.Refusal {
	policies := a.policiesOf(n.UID)
	if len(policies) == 0 {
		return nil
	}
	first := a.c.rows[policies[0]].rec.(*overlay.Policy)
	return api.Refuse(api.CodeHasPolicies, title(d)+" was not "+done, count(len(policies), "policy names it", "policies name it"),
		"delete what is listed first: culvert policy delete "+qualified(a.tenantName(first.Tenant), first.Name), a.listed(policies, a.policyItem(n.Tenant))...)
}

// policiesOf are the policies of a domain, or those that name a network, by name.
func (a *admission) policiesOf(uid overlay.UID) []Key {
	name := func(k Key) string { return a.c.rows[k].rec.(*overlay.Policy).Name }
	keys := sorted(a.c.ix.policies[uid])
	slices.SortFunc(keys, func(k, l Key) int { return cmp.Compare(name(k), name(l)) })
	return keys
}

func (a *admission) policyItem(viewer overlay.UID) func(overlay.Record) string {
	return func(rec overlay.Record) string { return a.policyLine(viewer, rec.(*overlay.Policy)) }
}

// policyLine is a policy with its way: "web-db  web <-> db", with the tenant in
// front of what is not of tenant viewer.
func (a *admission) policyLine(viewer overlay.UID, p *overlay.Policy) string {
	way := " -> "
	if p.Both {
		way = " <-> "
	}
	line := a.named(viewer, p.Tenant, p.Name) + "  " + a.networkName(viewer, p.From) + way + a.networkName(viewer, p.To)
	if p.Bridged {
		line += " (bridged)"
	}
	return line
}

func (a *admission) networkName(viewer, uid overlay.UID) string {
	n := a.network(uid)
	return a.named(viewer, n.Tenant, n.Name)
}
