package managercore

import (
	"fmt"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Domains: networks between which hosts route, as policies say. Agents are told
// neither: what follows from both stands in each network's Reach and From, in
// the same transaction.

func (a *admission) putDomain(d *overlay.Doc) *api.Refusal {
	t, no := a.tenant(d)
	if no != nil {
		return no
	}
	want := overlay.Domain{Routes: d.Domain.Routes}
	if want.Tenants, no = a.admitted(d); no != nil {
		return no
	}
	old, _ := a.find(d.Kind, t.UID, d.Name).(*overlay.Domain)
	if old == nil {
		if n := a.c.ix.domains[t.UID]; n >= overlay.MaxDomains {
			return api.Refuse(api.CodeQuota, title(d)+" was not created", fmt.Sprintf("tenant %s has %d domains, which is the most", t.Name, n), "delete one that is not needed: culvert domain list")
		}
		want.Meta = a.newMeta(d, t.UID)
		if len(want.Routes) > 0 {
			a.reroute(want.UID, rerouted{what: title(d) + " was not created", code: api.CodeNextHop, cause: want.Cause})
		}
		a.tx.put(&want)
		a.did("created", &want)
		return nil
	}
	sameRoutes := slices.Equal(want.Routes, old.Routes)
	same := sameRoutes && slices.Equal(d.Labels, old.Labels) && slices.Equal(want.Tenants, old.Tenants)
	if no := a.sameOrSet(d, same, old); no != nil || same {
		return no
	}
	want.Meta = a.again(old.Meta, d)
	if !sameRoutes {
		a.reroute(want.UID, rerouted{what: title(d) + " was not changed", code: api.CodeNextHop, cause: want.Cause})
	}
	a.tx.put(&want)
	a.did("changed", &want)
	return nil
}

// admitted are the tenants whose networks a document of a domain lets in.
func (a *admission) admitted(d *overlay.Doc) (uids []overlay.UID, no *api.Refusal) {
	for _, name := range d.Domain.Tenants {
		t, _ := a.find(overlay.KindTenant, overlay.UID{}, name).(*overlay.Tenant)
		if t == nil {
			return nil, api.Refuse(api.CodeNotFound, title(d)+" was not written", "spec.tenants names tenant "+name+", which does not exist", "make it first: culvert tenant create "+name)
		}
		uids = append(uids, t.UID)
	}
	slices.SortFunc(uids, overlay.UID.Compare)
	return uids, nil
}

// domainNamed is the domain that a document of a tenant means by NAME or
// TENANT/NAME.
func (a *admission) domainNamed(d *overlay.Doc, t *overlay.Tenant, ref string) (*overlay.Domain, *api.Refusal) {
	rec, asTyped := a.refer(overlay.KindDomain, t, ref)
	dom, _ := rec.(*overlay.Domain)
	if dom == nil {
		return nil, api.Refuse(api.CodeNotFound, title(d)+" was not written", "domain "+asTyped+" does not exist", "make it first: culvert domain create "+asTyped)
	}
	return dom, nil
}

// domainOf is the domain that a network is to be in; zero for none.
func (a *admission) domainOf(d *overlay.Doc, t *overlay.Tenant) (overlay.UID, *api.Refusal) {
	if d.Network.Domain == "" {
		return overlay.UID{}, nil
	}
	dom, no := a.domainNamed(d, t, d.Network.Domain)
	if no != nil {
		return overlay.UID{}, no
	}
	return dom.UID, nil
}

// domain is a live domain.
func (a *admission) domain(uid overlay.UID) *overlay.Domain {
	rec, _ := a.get(Key{Kind: overlay.KindDomain, UID: uid})
	return rec.(*overlay.Domain)
}

// domainName is the name of a network's domain, as the network's tenant writes it.
func (a *admission) domainName(n *overlay.Network) string {
	dom := a.domain(n.Domain)
	return a.named(n.Tenant, dom.Tenant, dom.Name)
}

// fitsNetworks refuses a domain that takes back what lets networks in that are
// in it, or has routes to what is theirs.
func (a *admission) fitsNetworks(d *overlay.Doc, dom *overlay.Domain) *api.Refusal {
	var items []string
	var first *overlay.Network
	for _, k := range sorted(a.c.ix.members[dom.UID]) {
		n := a.network(k.UID)
		if no := a.besides(title(d)+" was not written", dom, n); no != nil {
			return no
		}
		if n.Tenant != dom.Tenant && !slices.Contains(dom.Tenants, n.Tenant) {
			if first = n; len(items) < maxListed {
				items = append(items, "network "+typed(n))
			}
		}
	}
	if first == nil {
		return nil
	}
	slices.Sort(items)
	return api.Refuse(api.CodeDomainInUse, title(d)+" was not written", "it has networks of tenant "+first.TenantName,
		"take them out first: culvert network set "+typed(first)+" --no-domain", items...)
}

// checkDomains refuses a request after which networks of a domain could not be
// routed to each other, or bridged ones not be one segment. It looks when all
// documents are in their place, so that a file may change what networks have in
// common in whatever order.
func (a *admission) checkDomains(docs []overlay.Doc) *api.Refusal {
	for i := range docs {
		rec := a.exists(&docs[i])
		if _, written := a.seen[KeyOf(rec)]; !written {
			continue
		}
		var no *api.Refusal
		switch r := rec.(type) {
		case *overlay.Network:
			no = a.fitsDomain(&docs[i], r)
		case *overlay.Domain:
			no = a.fitsNetworks(&docs[i], r)
		case *overlay.Port:
			no = a.ownInSegment(&docs[i], r)
		case *overlay.Policy:
			no = a.fitsPolicy(title(&docs[i])+" was not written", r)
		}
		if no != nil {
			return no
		}
	}
	return nil
}

// fitsDomain refuses a network that cannot be in one domain with another.
func (a *admission) fitsDomain(d *overlay.Doc, n *overlay.Network) *api.Refusal {
	if n.Domain.IsZero() {
		return nil
	}
	what, members := title(d)+" was not written", a.c.ix.members[n.Domain]
	if have := len(members); have > overlay.MaxDomainNetworks {
		return api.Refuse(api.CodeQuota, what, fmt.Sprintf("domain %s has %d networks, which is the most", a.domainName(n), have-1), "put it into another domain")
	}
	const apart = "give subnets that share no address with others of the domain, or bridge the two in one file with their networks: culvert network list"
	dom := a.domain(n.Domain)
	if dom.Tenant != n.Tenant && !slices.Contains(dom.Tenants, n.Tenant) {
		return api.Refuse(api.CodeConsent, what, fmt.Sprintf("domain %s does not let networks of tenant %s in", a.domainName(n), n.TenantName),
			"let them in first: culvert domain set "+a.domainName(n)+" --admit-tenant "+n.TenantName)
	}
	if no := a.besides(what, dom, n); no != nil {
		return no
	}
	bridge := a.bridgeOf(n)
	var no *api.Refusal
	var with overlay.UID
	for k := range members { // order-free: of several the lowest is told
		if k.UID == n.UID || no != nil && with.Compare(k.UID) < 0 {
			continue
		}
		if x := a.clash(what, apart, n, a.c.rows[k].rec.(*overlay.Network), contains(bridge, k.UID)); x != nil {
			no, with = x, k.UID
		}
	}
	return no
}

// clash refuses two networks of a domain of which one has something that is the
// other's; cure is what to do about subnets.
func (a *admission) clash(what, cure string, n, o *overlay.Network, bridged bool) *api.Refusal {
	if bridged {
		return a.segment(what, n, o)
	}
	for _, s := range n.Subnets {
		for _, t := range o.Subnets {
			if s.Prefix.Overlaps(t.Prefix) {
				return api.Refuse(api.CodeOverlap, what, fmt.Sprintf("subnet %s of network %s overlaps %s of network %s of the same domain, %s", s.Prefix, typed(n), t.Prefix, typed(o), a.domainName(n)), cure)
			}
		}
	}
	return nil
}

func contains(sorted []overlay.UID, uid overlay.UID) bool {
	_, ok := slices.BinarySearchFunc(sorted, uid, overlay.UID.Compare)
	return ok
}

// fitsPolicy refuses what a policy that was written or deleted leaves between
// its two networks.
func (a *admission) fitsPolicy(what string, p *overlay.Policy) *api.Refusal {
	few := a.c.ix.policies[p.From]
	if many := a.c.ix.policies[p.To]; len(many) < len(few) {
		few = many
	}
	var other *overlay.Policy
	bridged := false
	for k := range few { // order-free: of several the lowest is told
		q := a.c.rows[k].rec.(*overlay.Policy)
		if q.From != p.From && q.From != p.To || q.To != p.From && q.To != p.To {
			continue
		}
		bridged = bridged || q.Bridged
		if q.Bridged != p.Bridged && (other == nil || q.UID.Compare(other.UID) < 0) {
			other = q
		}
	}
	from, to := a.network(p.From), a.network(p.To)
	if _, live := a.get(KeyOf(p)); live && other != nil {
		return api.Refuse(api.CodeTwoModes, what, "the two networks have a policy of the other mode: "+a.policyLine(p.Tenant, other),
			"delete that one first: culvert policy delete "+qualified(a.tenantName(other.Tenant), other.Name))
	}
	return a.clash(what, "give one of the two other subnets first: culvert network set "+typed(to)+" --subnet PREFIX", from, to, bridged)
}

func (a *admission) deleteDomain(d *overlay.Doc, dom *overlay.Domain) *api.Refusal {
	if no := a.hasGateways(d, dom); no != nil {
		return no
	}
	networks, policies := sorted(a.c.ix.members[dom.UID]), a.policiesOf(dom.UID)
	if len(networks) > 0 {
		items := a.listed(networks, func(rec overlay.Record) string {
			return "network " + a.networkName(dom.Tenant, rec.(*overlay.Network).UID)
		})
		items = append(items, a.listed(policies, func(rec overlay.Record) string { return "policy " + a.policyLine(dom.Tenant, rec.(*overlay.Policy)) })...)
		return api.Refuse(api.CodeDomainInUse, title(d)+" was not deleted", fmt.Sprintf("it has %s and %s", count(len(networks), "network", "networks"), count(len(policies), "policy", "policies")),
			"delete its policies, then take each network out: culvert network set NETWORK --no-domain", items...)
	}
	gone := &overlay.Domain{Meta: a.dying(dom.Meta, d)}
	a.bury(gone)
	a.did("deleted", gone)
	return nil
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
