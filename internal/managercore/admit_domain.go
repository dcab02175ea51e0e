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
	old, _ := a.find(d.Kind, t.UID, d.Name).(*overlay.Domain)
	if old == nil {
		if n := a.c.ix.domains[t.UID]; n >= overlay.MaxDomains {
			return api.Refuse(api.CodeQuota, title(d)+" was not created", fmt.Sprintf("tenant %s has %d domains, which is the most", t.Name, n), "delete one that is not needed: culvert domain list")
		}
		dom := &overlay.Domain{Meta: a.newMeta(d, t.UID)}
		a.tx.put(dom)
		a.did("created", dom)
		return nil
	}
	same := slices.Equal(d.Labels, old.Labels)
	if no := a.sameOrSet(d, same, old); no != nil || same {
		return no
	}
	want := &overlay.Domain{Meta: a.again(old.Meta, d)}
	a.tx.put(want)
	a.did("changed", want)
	return nil
}

// domainNamed is the domain of that name of a tenant.
func (a *admission) domainNamed(d *overlay.Doc, t *overlay.Tenant, name string) (*overlay.Domain, *api.Refusal) {
	dom, _ := a.find(overlay.KindDomain, t.UID, name).(*overlay.Domain)
	if dom == nil {
		name = qualified(t.Name, name)
		return nil, api.Refuse(api.CodeNotFound, title(d)+" was not written", "domain "+name+" does not exist", "make it first: culvert domain create "+name)
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

func (a *admission) domainName(uid overlay.UID) string {
	rec, ok := a.get(Key{Kind: overlay.KindDomain, UID: uid})
	if !ok {
		return uid.String()
	}
	return rec.(*overlay.Domain).Name
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
		return api.Refuse(api.CodeQuota, what, fmt.Sprintf("domain %s has %d networks, which is the most", a.domainName(n.Domain), have-1), "put it into another domain")
	}
	const apart = "give subnets that share no address with others of the domain, or bridge the two in one file with their networks: culvert network list"
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
				return api.Refuse(api.CodeOverlap, what, fmt.Sprintf("subnet %s of network %s overlaps %s of network %s of the same domain, %s", s.Prefix, typed(n), t.Prefix, typed(o), a.domainName(n.Domain)), cure)
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
		return api.Refuse(api.CodeTwoModes, what, "the two networks have a policy of the other mode: "+a.policyLine(other),
			"delete that one first: culvert policy delete "+qualified(a.tenantName(other.Tenant), other.Name))
	}
	return a.clash(what, "give one of the two other subnets first: culvert network set "+typed(to)+" --subnet PREFIX", from, to, bridged)
}

func (a *admission) deleteDomain(d *overlay.Doc, dom *overlay.Domain) *api.Refusal {
	networks, policies := sorted(a.c.ix.members[dom.UID]), a.policiesOf(dom.UID)
	if len(networks) > 0 {
		items := a.listed(networks, func(rec overlay.Record) string { return "network " + rec.(*overlay.Network).Name })
		items = append(items, a.listed(policies, func(rec overlay.Record) string { return "policy " + a.policyItem(rec) })...)
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
