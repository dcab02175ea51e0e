package managercore

import (
	"cmp"
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
// routed to each other. It looks when all documents are in their place, so that
// a file may change what networks have in common in whatever order.
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
			no = a.ownMAC(&docs[i], r)
		}
		if no != nil {
			return no
		}
	}
	return nil
}

// fitsDomain refuses a network that cannot be routed to another of its domain.
func (a *admission) fitsDomain(d *overlay.Doc, n *overlay.Network) *api.Refusal {
	if n.Domain.IsZero() {
		return nil
	}
	members := a.c.ix.members[n.Domain]
	if have := len(members); have > overlay.MaxDomainNetworks {
		return api.Refuse(api.CodeQuota, title(d)+" was not written", fmt.Sprintf("domain %s has %d networks, which is the most", a.domainName(n.Domain), have-1), "put it into another domain")
	}
	var no *api.Refusal
	var with overlay.UID
	for k := range members { // order-free: of several the lowest is told
		if k.UID == n.UID || no != nil && with.Compare(k.UID) < 0 {
			continue
		}
		if x := a.clash(d, n, a.c.rows[k].rec.(*overlay.Network)); x != nil {
			no, with = x, k.UID
		}
	}
	return no
}

// clash refuses a network that has something which is another's of its domain.
func (a *admission) clash(d *overlay.Doc, n, o *overlay.Network) *api.Refusal {
	no := func(code api.Code, why, cure string) *api.Refusal {
		return api.Refuse(code, title(d)+" was not written", why+" network "+o.Name+" of the same domain, "+a.domainName(n.Domain), cure)
	}
	for _, s := range n.Subnets {
		for _, t := range o.Subnets {
			if s.Prefix.Overlaps(t.Prefix) {
				return no(api.CodeOverlap, fmt.Sprintf("its subnet %s overlaps %s of", s.Prefix, t.Prefix),
					"give subnets that share no address with others of the domain: culvert network list")
			}
		}
	}
	if m := a.c.twin(n, o); !m.IsZero() {
		return no(api.CodeMACInUse, fmt.Sprintf("MAC %s is in it and in", m),
			"give one of the two another MAC, by deleting and creating the port: culvert port list --network "+qualified(o.TenantName, o.Name))
	}
	return nil
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

// macBeyond is the network that has a MAC and is in the domain of n; nil if
// there is none.
func (c *Core) macBeyond(n *overlay.Network, m overlay.MAC) *overlay.Network {
	if n.Domain.IsZero() {
		return nil
	}
	var found *overlay.Network
	for k := range c.ix.members[n.Domain] { // order-free: the lowest is taken
		if k.UID != n.UID && c.hasMAC(k.UID, m) && (found == nil || k.UID.Compare(found.UID) < 0) {
			found = c.rows[k].rec.(*overlay.Network)
		}
	}
	return found
}

// ownMAC refuses a port whose MAC is known in the domain of its network.
func (a *admission) ownMAC(d *overlay.Doc, p *overlay.Port) *api.Refusal {
	rec, _ := a.get(Key{Kind: overlay.KindNetwork, UID: p.Network})
	n := rec.(*overlay.Network)
	o := a.c.macBeyond(n, p.MAC)
	if o == nil {
		return nil
	}
	owner := "a virtual router's"
	if k, declared := a.c.ix.macs[netMAC{o.UID, p.MAC}]; declared {
		owner = "port " + a.portName(k) + "'s"
	}
	return api.Refuse(api.CodeMACInUse, title(d)+" was not written",
		fmt.Sprintf("MAC %s is %s in network %s, which is in domain %s as network %s is", p.MAC, owner, o.Name, a.domainName(n.Domain), n.Name),
		"give another --mac, or none to have one allocated")
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
