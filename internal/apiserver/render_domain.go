package apiserver

import (
	"slices"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// members are the names of what is in a domain, in order.
type members struct{ networks, policies []string }

// membersOf is what is in a domain.
func (r *renderer) membersOf(domain overlay.UID) *members {
	if r.members == nil {
		r.members = map[overlay.UID]*members{}
		for it := range r.v.List(overlay.KindNetwork, overlay.UID{}) {
			n := it.Rec.(*overlay.Network)
			m := r.in(n.Domain)
			m.networks = append(m.networks, n.Name)
		}
		for it := range r.v.List(overlay.KindPolicy, overlay.UID{}) {
			p := it.Rec.(*overlay.Policy)
			m := r.in(p.Domain)
			m.policies = append(m.policies, p.Name)
		}
	}
	return r.in(domain)
}

func (r *renderer) in(domain overlay.UID) *members {
	m := r.members[domain]
	if m == nil {
		m = &members{}
		r.members[domain] = m
	}
	return m
}

func (r *renderer) domainOf(d *overlay.Domain, rev overlay.Rev) *culvertv1.Domain {
	out := api.RenderDomain(d, r.tenant(d.Tenant), rev)
	m := r.membersOf(d.UID)
	out.Status.Networks, out.Status.Policies = m.networks, m.policies
	return out
}

func (r *renderer) policy(p *overlay.Policy, rev overlay.Rev) *culvertv1.NetworkPolicy {
	return api.RenderPolicy(p, api.PolicyNames{Tenant: r.tenant(p.Tenant), Domain: r.domain(p.Domain),
		From: r.network(p.From).Name, To: r.network(p.To).Name}, rev)
}

// networkNames are the names of networks of one tenant, in order.
func (r *renderer) networkNames(uids []overlay.UID) (names []string) {
	for _, u := range uids {
		names = append(names, r.network(u).Name)
	}
	slices.Sort(names)
	return names
}
