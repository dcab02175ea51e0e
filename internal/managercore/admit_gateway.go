package managercore

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Gateways: the ways out of a domain. What hosts have to know of one stands in
// its record, with its legs: a port in each network that it serves, which
// follows from the domain's networks in the same transaction. The default route
// of a network's guests stands in the network's Routes.

func (x *indexes) addGateway(g *overlay.Gateway, k Key) {
	set(x.names, nameKey{k.Kind, g.Tenant, g.Name}, k)
	for _, of := range [...]overlay.UID{{}, g.Tenant, g.Domain} {
		addTo(x.gateways, of, k)
	}
	for _, l := range g.Legs {
		set(x.exits, l.Network, k)
	}
}

func (x *indexes) removeGateway(g *overlay.Gateway, k Key) {
	unset(x.names, nameKey{k.Kind, g.Tenant, g.Name}, k)
	for _, of := range [...]overlay.UID{{}, g.Tenant, g.Domain} {
		removeFrom(x.gateways, of, k)
	}
	for _, l := range g.Legs {
		unset(x.exits, l.Network, k)
	}
}

func (a *admission) putGateway(d *overlay.Doc) *api.Refusal {
	t, no := a.tenant(d)
	if no != nil {
		return no
	}
	dom, no := a.domainNamed(d, t, d.Gateway.Domain)
	if no != nil {
		return no
	}
	for _, h := range d.Gateway.Hosts {
		if a.find(overlay.KindHost, overlay.UID{}, h) == nil {
			return api.Refuse(api.CodeNoHost, title(d)+" was not written", "spec.hosts names host "+h+", which has not joined", "see the hosts: culvert host list")
		}
	}
	want, no := a.gatewayOf(d, t, dom)
	if no != nil {
		return no
	}
	old, _ := a.find(d.Kind, t.UID, d.Name).(*overlay.Gateway)
	if old == nil {
		if n := len(a.c.ix.gateways[t.UID]); n >= overlay.MaxGateways {
			return api.Refuse(api.CodeQuota, title(d)+" was not created", fmt.Sprintf("tenant %s has %d gateways, which is the most", t.Name, n), "delete one that is not needed: culvert gateway list")
		}
		want.Meta = a.newMeta(d, t.UID)
		a.tx.put(want)
		a.did("created", want)
		return nil
	}
	same := old.Domain == want.Domain && slices.Equal(old.Hosts, want.Hosts) && old.Uplink == want.Uplink && slices.Equal(old.Addresses, want.Addresses) &&
		slices.Equal(old.NextHops, want.NextHops) && slices.Equal(old.SNAT, want.SNAT) && slices.Equal(old.Floating, want.Floating) &&
		slices.Equal(old.Forwards, want.Forwards) && slices.Equal(old.Networks, want.Networks) && slices.Equal(d.Labels, old.Labels)
	if no := a.sameOrSet(d, same, old); no != nil || same {
		return no
	}
	if old.Domain != want.Domain {
		return api.Refuse(api.CodeImmutable, title(d)+" was not changed", "a gateway stays in its domain", "delete the gateway and create it in the other domain")
	}
	want.Meta, want.Legs, want.Active = a.again(old.Meta, d), old.Legs, old.Active
	a.tx.put(want)
	a.did("changed", want)
	return nil
}

// gatewayOf is the record that a document asks for, without what follows from
// it.
func (a *admission) gatewayOf(d *overlay.Doc, t *overlay.Tenant, dom *overlay.Domain) (*overlay.Gateway, *api.Refusal) {
	s := &d.Gateway
	g := &overlay.Gateway{
		TenantName: t.Name, Domain: dom.UID, Hosts: s.Hosts, Uplink: s.Uplink, Addresses: s.Addresses, NextHops: s.NextHops,
		SNAT: s.SNAT, Floating: s.Floating, Forwards: s.Forwards,
	}
	for _, name := range s.Networks {
		n, _ := a.find(overlay.KindNetwork, t.UID, name).(*overlay.Network)
		switch typed := qualified(t.Name, name); {
		case n == nil:
			return nil, api.Refuse(api.CodeNotFound, title(d)+" was not written", "network "+typed+" does not exist", "make it first: culvert network create "+typed+" --domain "+dom.Name)
		case n.Domain != dom.UID:
			return nil, api.Refuse(api.CodeNotInDomain, title(d)+" was not written", "network "+typed+" is not in domain "+dom.Name, "put it in first: culvert network set "+typed+" --domain "+dom.Name)
		}
		g.Networks = append(g.Networks, n.UID)
	}
	slices.SortFunc(g.Networks, overlay.UID.Compare)
	for k := range a.c.ix.gateways[overlay.UID{}] { // order-free: the refusal names no other gateway
		o := a.c.rows[k].rec.(*overlay.Gateway)
		if o.Uplink != g.Uplink || o.Tenant == t.UID && o.Name == d.Name {
			continue
		}
		if both := both(g.Outside(), o.Outside()); len(both) > 0 {
			return nil, api.Refuse(api.CodeAddressInUse, title(d)+" was not written", fmt.Sprintf("another gateway has %s outside, by devices %s", both[0], g.Uplink),
				"give other addresses; see your own gateways: culvert gateway list")
		}
	}
	return g, nil
}

func (a *admission) deleteGateway(d *overlay.Doc, g *overlay.Gateway) {
	gone := *g
	gone.Meta = a.dying(g.Meta, d)
	a.bury(&gone)
	a.did("deleted", &gone)
}

// isLeg refuses to change by hand what follows from a gateway.
func (a *admission) isLeg(d *overlay.Doc, p *overlay.Port, done string) *api.Refusal {
	rec, ok := a.get(Key{Kind: overlay.KindGateway, UID: p.Gateway})
	if !ok {
		return nil
	}
	g := rec.(*overlay.Gateway)
	return api.Refuse(api.CodeImmutable, title(d)+" was not "+done, "it is a leg of gateway "+g.Name+" and follows from it", "change the gateway, or delete it: culvert gateway delete "+qualified(g.TenantName, g.Name))
}

// hasGateways refuses to delete a domain that has gateways.
func (a *admission) hasGateways(d *overlay.Doc, dom *overlay.Domain) *api.Refusal {
	gateways := sorted(a.c.ix.gateways[dom.UID])
	if len(gateways) == 0 {
		return nil
	}
	items := a.listed(gateways, func(rec overlay.Record) string { return "gateway " + rec.(*overlay.Gateway).Name })
	return api.Refuse(api.CodeDomainInUse, title(d)+" was not deleted", "it has "+count(len(gateways), "gateway", "gateways"), "delete what is listed first: culvert gateway delete --help", items...)
}

// deriveGateways writes the legs of the gateways that the request concerns, and
// the gateways with them.
func (a *admission) deriveGateways() *api.Refusal {
	domains := map[overlay.UID]bool{}
	var gone []*overlay.Gateway
	for _, u := range slices.Clone(a.tx.undo) {
		w := a.c.rows[u.key]
		for _, rec := range [...]overlay.Record{u.row.rec, w.rec} {
			switch r := rec.(type) {
			case *overlay.Network:
				domains[r.Domain] = true
			case *overlay.Gateway:
				domains[r.Domain] = true
			}
		}
		if g, ok := w.rec.(*overlay.Gateway); ok && w.gone {
			gone = append(gone, g)
		}
	}
	for _, g := range gone {
		a.buryLegs(g, nil)
	}
	delete(domains, overlay.UID{})
	var uids []overlay.UID
	for uid := range domains { // order-free: sorted below
		uids = append(uids, uid)
	}
	slices.SortFunc(uids, overlay.UID.Compare)
	for _, uid := range uids {
		taken := map[overlay.UID]*overlay.Gateway{}
		for _, k := range sorted(a.c.ix.gateways[uid]) {
			if no := a.deriveLegs(a.c.rows[k].rec.(*overlay.Gateway), taken); no != nil {
				return no
			}
		}
	}
	return nil
}

// deriveLegs writes a port in each network that a gateway serves. taken are the
// networks that gateways looked at before serve.
func (a *admission) deriveLegs(g *overlay.Gateway, taken map[overlay.UID]*overlay.Gateway) *api.Refusal {
	d := &overlay.Doc{Kind: overlay.KindGateway, Tenant: g.TenantName, Name: g.Name}
	what := title(d)
	var legs []overlay.Leg
	for _, k := range sorted(a.c.ix.members[g.Domain]) {
		n := a.c.rows[k].rec.(*overlay.Network)
		if len(n.Subnets) == 0 || len(g.Networks) > 0 && !slices.Contains(g.Networks, n.UID) {
			continue
		}
		if o := taken[n.UID]; o != nil {
			return api.Refuse(api.CodeExists, what+" cannot serve network "+n.Name, "gateway "+o.Name+" does", "name the networks of each of the two: culvert gateway set "+qualified(g.TenantName, g.Name)+" --network NETWORK")
		}
		taken[n.UID] = g
		for _, h := range g.Hosts {
			if !n.SelectsHost(h) {
				return api.Refuse(api.CodeNoHost, what+" cannot serve network "+n.Name, "host "+h+" is in its spec.hosts and not in the network's", "give the network that host, or the gateway others: culvert network show "+qualified(n.TenantName, n.Name))
			}
		}
		leg, no := a.leg(d, g, n)
		if no != nil {
			return no
		}
		legs = append(legs, leg)
	}
	if n := len(legs); n > overlay.MaxGatewayLegs {
		return api.Refuse(api.CodeQuota, what+" was not written", fmt.Sprintf("it would serve %d networks, and %d are the most", n, overlay.MaxGatewayLegs), "name those that it is to serve: --network")
	}
	if no := a.insideOf(d, g, legs); no != nil {
		return no
	}
	a.buryLegs(g, legs)
	if _, written := a.seen[KeyOf(g)]; written || !slices.EqualFunc(legs, g.Legs, sameLeg) {
		next := *g
		next.Legs = legs
		if !written {
			next.Cause, next.Changed = a.req.Actor+": its domain's networks", int64(a.c.now)
		}
		a.tx.put(&next)
		for i := range a.changes {
			if a.changes[i].Rec == overlay.Record(g) {
				a.changes[i].Rec = &next
			}
		}
		for _, l := range legs {
			a.routed[l.Network] = next.Cause
		}
	}
	return nil
}

func sameLeg(a, b overlay.Leg) bool {
	return a.Network == b.Network && a.Port == b.Port && a.MAC == b.MAC && slices.Equal(a.Addresses, b.Addresses)
}

// insideOf refuses addresses inside that no guest of a served network can have.
func (a *admission) insideOf(d *overlay.Doc, g *overlay.Gateway, legs []overlay.Leg) *api.Refusal {
	inside := func(ad netip.Addr) bool {
		return slices.ContainsFunc(legs, func(l overlay.Leg) bool {
			return subnetOf(a.c.rows[Key{Kind: overlay.KindNetwork, UID: l.Network}].rec.(*overlay.Network).Subnets, ad) >= 0 && !slices.Contains(l.Addresses, ad)
		})
	}
	refuse := func(field string, ad netip.Addr) *api.Refusal {
		return api.Refuse(api.CodeOutside, title(d)+" was not written", fmt.Sprintf("%s leads to %s, and no guest of a network that it serves can have that", field, ad), "see the subnets of the domain: culvert network list")
	}
	if _, asked := a.seen[KeyOf(g)]; !asked {
		return nil // a network has left: what leads there leads nowhere
	}
	for _, f := range g.Floating {
		if !inside(f.Inside) {
			return refuse("spec.floating", f.Inside)
		}
	}
	for _, f := range g.Forwards {
		if !inside(f.Inside) {
			return refuse("spec.forwards", f.Inside)
		}
	}
	return nil
}

// leg is a gateway's port in a network, written if it is not as it should be.
func (a *admission) leg(d *overlay.Doc, g *overlay.Gateway, n *overlay.Network) (overlay.Leg, *api.Refusal) {
	hosts := slices.Clone(g.Hosts)
	slices.Sort(hosts)
	var old *overlay.Port
	for k := range a.c.ix.legs[g.UID] { // order-free: there is one in the network
		if p := a.c.rows[k].rec.(*overlay.Port); p.Network == n.UID {
			old = p
		}
	}
	p := overlay.Port{Network: n.UID, Hosts: hosts, Gateway: g.UID}
	if old != nil {
		p = *old
		p.Hosts = hosts
	} else {
		a.made++
		p.Meta = overlay.Meta{UID: derive(a.req.Seed, a.made, "leg/"+g.Name), Tenant: n.Tenant}
		p.Name = a.legName(g, n, p.UID)
		p.MAC = a.allocateMAC(n, p.UID)
	}
	if !n.Blocked {
		p.Addresses = nil
		for _, s := range n.Subnets {
			one := overlay.Network{Meta: n.Meta, Subnets: []overlay.Subnet{s}}
			i := -1
			if old != nil {
				i = slices.IndexFunc(old.Addresses, func(ad netip.Addr) bool { return subnetOf(one.Subnets, ad) == 0 })
			}
			if i >= 0 {
				p.Addresses = append(p.Addresses, old.Addresses[i])
				continue
			}
			ads, no := a.allocate(d, &one)
			if no != nil {
				return overlay.Leg{}, no
			}
			p.Addresses = append(p.Addresses, ads...)
		}
		p.Addresses = overlay.SortAddrs(p.Addresses)
	}
	if old == nil || !slices.Equal(p.Hosts, old.Hosts) || !slices.Equal(p.Addresses, old.Addresses) {
		p.Cause, p.Changed = a.req.Actor+": leg of gateway "+g.Name, int64(a.c.now)
		a.takeFromLearned(&p)
		a.tx.put(&p)
	}
	return overlay.Leg{Network: n.UID, Port: p.Name, MAC: p.MAC, Addresses: p.Addresses}, nil
}

// legName is "GATEWAY-NETWORK", or if that is taken or too long a name that
// nobody has.
func (a *admission) legName(g *overlay.Gateway, n *overlay.Network, uid overlay.UID) string {
	name := g.Name + "-" + n.Name
	if len(name) > overlay.MaxName || a.find(overlay.KindPort, n.Tenant, name) != nil {
		name = "gateway-" + uid.String()[:16]
	}
	return name
}

// buryLegs deletes the ports of a gateway that are none of legs. Those of a
// network that is gone go with it.
func (a *admission) buryLegs(g *overlay.Gateway, legs []overlay.Leg) {
	for _, k := range sorted(a.c.ix.legs[g.UID]) {
		p := a.c.rows[k].rec.(*overlay.Port)
		if nw := a.c.rows[Key{Kind: overlay.KindNetwork, UID: p.Network}]; nw == nil || nw.gone || slices.ContainsFunc(legs, func(l overlay.Leg) bool { return l.Network == p.Network }) {
			continue
		}
		gone := *p
		gone.Cause, gone.Changed = a.req.Actor+": gateway "+g.Name+" leads out of the network no more", int64(a.c.now)
		a.bury(&gone)
		a.routed[p.Network] = gone.Cause
		if rec, ok := a.get(Key{Kind: overlay.KindEndpoint, UID: p.Network, MAC: p.MAC}); ok {
			ep := *rec.(*overlay.Endpoint)
			ep.Cause, ep.Since = gone.Cause, int64(a.c.now)
			a.bury(&ep)
		}
	}
}

// gatewayHops are the default routes of a network by the gateway that serves it.
func (c *Core) gatewayHops(network overlay.UID) (out []overlay.NextHop) {
	k, ok := c.ix.exits[network]
	if !ok {
		return nil
	}
	g := c.rows[k].rec.(*overlay.Gateway)
	leg := g.Legs[slices.IndexFunc(g.Legs, func(l overlay.Leg) bool { return l.Network == network })]
	for _, all := range [...]netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
		v4 := all.Addr().Is4()
		if g.LeadsTo(v4) && slices.ContainsFunc(leg.Addresses, func(ad netip.Addr) bool { return ad.Is4() == v4 }) {
			out = append(out, overlay.NextHop{Prefix: all, Network: network, MAC: leg.MAC})
		}
	}
	return out
}

// joinHops are the routes that were declared, and of the gateway's those to
// other prefixes; sorted by prefix.
func joinHops(declared, gateway []overlay.NextHop) []overlay.NextHop {
	out := slices.Clone(declared)
	for _, h := range gateway {
		if !slices.ContainsFunc(declared, func(o overlay.NextHop) bool { return o.Prefix == h.Prefix }) {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b overlay.NextHop) int { return a.Prefix.Compare(b.Prefix) })
	return out
}
