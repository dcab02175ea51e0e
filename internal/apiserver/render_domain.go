package apiserver

import (
	"slices"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// members is what is in a domain; policies by name, in order.
type members struct {
	networks []overlay.UID
	policies []string
}

// membersOf is what is in a domain.
func (r *renderer) membersOf(domain overlay.UID) *members {
	if r.members == nil {
		r.members = map[overlay.UID]*members{}
		for it := range r.v.List(overlay.KindNetwork, overlay.UID{}) {
			n := it.Rec.(*overlay.Network)
			m := r.in(n.Domain)
			m.networks = append(m.networks, n.UID)
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
	var tenants []string
	for _, t := range d.Tenants {
		tenants = append(tenants, r.tenant(t))
	}
	slices.Sort(tenants)
	out := api.RenderDomain(d, r.tenant(d.Tenant), tenants, rev)
	m := r.membersOf(d.UID)
	out.Status.Networks, out.Status.Policies = r.networkNames(d.Tenant, m.networks), m.policies
	return out
}

func (r *renderer) policy(p *overlay.Policy, rev overlay.Rev) *culvertv1.NetworkPolicy {
	return api.RenderPolicy(p, api.PolicyNames{Tenant: r.tenant(p.Tenant), Domain: r.domain(p.Tenant, p.Domain),
		From: r.networkName(p.Tenant, p.From), To: r.networkName(p.Tenant, p.To)}, rev)
}

// domain is the name of a domain as documents of tenant viewer have it; empty
// for none.
func (r *renderer) domain(viewer, uid overlay.UID) string {
	if it := r.v.Tenants.Get(managercore.Key{Kind: overlay.KindDomain, UID: uid}); it != nil {
		d := it.Rec.(*overlay.Domain)
		return r.named(viewer, d.Tenant, d.Name)
	}
	return ""
}

// named is a name with the tenant in front if that is not viewer.
func (r *renderer) named(viewer, tenant overlay.UID, name string) string {
	if viewer == tenant {
		return name
	}
	return r.tenant(tenant) + "/" + name
}

func (r *renderer) networkName(viewer, uid overlay.UID) string {
	n := r.network(uid)
	return r.named(viewer, n.Tenant, n.Name)
}

// networkNames are the names of networks as tenant viewer writes them, in order.
func (r *renderer) networkNames(viewer overlay.UID, uids []overlay.UID) (names []string) {
	for _, u := range uids {
		names = append(names, r.networkName(viewer, u))
	}
	slices.Sort(names)
	return names
}
