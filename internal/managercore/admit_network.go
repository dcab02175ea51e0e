package managercore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

func limit(v, def uint32) int {
	if v == 0 {
		return int(def)
	}
	return int(v)
}

func (a *admission) putNetwork(d *overlay.Doc) *api.Refusal {
	t, no := a.tenant(d)
	if no != nil {
		return no
	}
	spec := d.Network
	for _, h := range spec.Hosts {
		if a.find(overlay.KindHost, overlay.UID{}, h) == nil {
			return api.Refuse(api.CodeNoHost, title(d)+" was not written", "spec.hosts names host "+h+", which has not joined", "see the hosts: culvert host list")
		}
	}
	if no := overlaps(d); no != nil {
		return no
	}
	if no := a.foreignVTEPs(d); no != nil {
		return no
	}
	domain, no := a.domainOf(d, t)
	if no != nil {
		return no
	}
	old, _ := a.find(d.Kind, t.UID, d.Name).(*overlay.Network)
	if old == nil {
		return a.newNetwork(d, t, domain)
	}
	if old.Blocked {
		return blocked(d, old)
	}
	want := *old
	want.Subnets, want.WantMTU, want.MTU, want.DF, want.Flood, want.Hosts = spec.Subnets, spec.MTU, mtu(spec.MTU), spec.DF, spec.Flood, spec.Hosts
	want.Admission, want.Tell, want.Foreign, want.Domain, want.Distribution = spec.Admission, spec.Tell, spec.Foreign, domain, spec.Distribution
	same := (spec.VNI == 0 || spec.VNI == old.VNI) && slices.Equal(want.Subnets, old.Subnets) && want.WantMTU == old.WantMTU &&
		want.Domain == old.Domain && want.Distribution == old.Distribution && want.DF == old.DF && want.Flood == old.Flood && want.Admission == old.Admission && want.Tell.Equal(&old.Tell) && slices.Equal(want.Foreign, old.Foreign) && slices.Equal(want.Hosts, old.Hosts) && slices.Equal(d.Labels, old.Labels)
	if no := a.sameOrSet(d, same, old); no != nil || same {
		return no
	}
	if spec.VNI != 0 && spec.VNI != old.VNI {
		return api.Refuse(api.CodeImmutable, title(d)+" was not changed", fmt.Sprintf("its VNI is %d and cannot become %d: the devices are made with it", old.VNI, spec.VNI),
			"delete the network and create it anew")
	}
	if no := a.narrows(d, old); no != nil {
		return no
	}
	if no := a.keepsPolicies(d, old, &want); no != nil {
		return no
	}
	want.Meta = a.again(old.Meta, d)
	a.tx.put(&want)
	a.confine(old.UID, want.Subnets)
	a.did("changed", &want)
	if want.Domain != old.Domain {
		a.routed[want.UID] = want.Cause
	}
	if !slices.Equal(want.Hosts, old.Hosts) {
		a.wider[want.UID] = true
	}
	return nil
}

func mtu(want uint16) uint16 {
	if want == 0 {
		return overlay.DefaultMTU
	}
	return want
}

func overlaps(d *overlay.Doc) *api.Refusal {
	for i, s := range d.Network.Subnets {
		for _, o := range d.Network.Subnets[:i] {
			if s.Prefix.Overlaps(o.Prefix) {
				return api.Refuse(api.CodeOverlap, title(d)+" was not written", fmt.Sprintf("its subnets %s and %s overlap", o.Prefix, s.Prefix), "give subnets that share no address")
			}
		}
	}
	return nil
}

// foreignVTEPs refuses a foreign tunnel end point that is a host's, which would
// take the check of its frames off it, and one that no host can send to. Hosts
// that have not said where they are yet say nothing against it.
func (a *admission) foreignVTEPs(d *overlay.Doc) *api.Refusal {
	if len(d.Network.Foreign) == 0 {
		return nil
	}
	some, families := false, map[bool]bool{}
	for _, name := range a.hostNames() {
		h, _ := a.find(overlay.KindHost, overlay.UID{}, name).(*overlay.Host)
		if h == nil || !h.VTEP.IsValid() {
			continue
		}
		if slices.Contains(d.Network.Foreign, h.VTEP) {
			return api.Refuse(api.CodeAddressInUse, title(d)+" was not written", fmt.Sprintf("spec.foreignVteps has %s, which is host %s's", h.VTEP, name),
				"leave it out: hosts of the cluster know each other")
		}
		some, families[h.VTEP.Is4()] = true, true
	}
	for _, f := range d.Network.Foreign {
		if some && !families[f.Is4()] {
			return api.Refuse(api.CodeOutside, title(d)+" was not written", fmt.Sprintf("spec.foreignVteps has %s, and no host's tunnel end point is of that family", f),
				"give an address of the underlay's family; see the hosts: culvert host list")
		}
	}
	return nil
}

// narrows refuses what would take something away from ports that use it.
func (a *admission) narrows(d *overlay.Doc, old *overlay.Network) *api.Refusal {
	spec := d.Network
	if in := a.stillOn(old, spec.Hosts); len(in) > 0 {
		return api.Refuse(api.CodeHostInUse, title(d)+" was not changed", count(len(in), "endpoint of it is", "endpoints of it are")+" on hosts that spec.hosts would not select any more",
			"move them to other hosts, or stop them, first: culvert endpoint list --network "+typed(old), in[:min(len(in), maxListed)]...)
	}
	for _, k := range a.sortedPorts(old.UID) {
		rec, _ := a.get(k)
		p := rec.(*overlay.Port)
		if !p.Gateway.IsZero() {
			continue // its addresses follow the subnets
		}
		for _, ad := range slices.Concat(p.Addresses, p.Shared) {
			if subnetOf(spec.Subnets, ad) < 0 {
				return api.Refuse(api.CodeOutside, title(d)+" was not changed", fmt.Sprintf("port %s has %s, which no wanted subnet holds as a port's address", p.Name, ad),
					"change the port first: culvert port set "+p.Name+" --ip ADDRESS", p.Name+"  "+ad.String())
			}
		}
	}
	return nil
}

// stillOn lists the endpoints of a network that are on hosts that it is not to
// select any more, or are expected there.
func (a *admission) stillOn(n *overlay.Network, hosts []string) (in []string) {
	if len(hosts) == 0 {
		return nil // all
	}
	for _, k := range sorted(a.c.ix.byNet[n.UID]) {
		rec, ok := a.get(k)
		if !ok {
			continue
		}
		e := rec.(*overlay.Endpoint)
		for _, uid := range append([]overlay.UID{e.Host}, e.Pre...) {
			if h := a.c.host(uid); h != nil && n.SelectsHost(h.Name) && !slices.Contains(hosts, h.Name) {
				in = append(in, e.MAC.String()+" on "+h.Name)
			}
		}
	}
	return in
}

// subnetOf is the index of the subnet in which a port may have ad, or -1.
func subnetOf(subnets []overlay.Subnet, ad netip.Addr) int {
	for i, s := range subnets {
		if s.Usable(ad) && ad != s.Gateway {
			return i
		}
	}
	return -1
}

func (a *admission) hostNames() []string {
	var names []string
	for nk := range a.c.ix.names { // order-free: sorted below
		if nk.kind == overlay.KindHost {
			names = append(names, nk.name)
		}
	}
	slices.Sort(names)
	return names
}

func (a *admission) sortedPorts(network overlay.UID) []Key {
	return sorted(a.c.ix.ports[network])
}

func sorted[V any](set map[Key]V) []Key {
	keys := make([]Key, 0, len(set))
	for k := range set { // order-free: sorted below
		keys = append(keys, k)
	}
	slices.SortFunc(keys, Key.Compare)
	return keys
}

func (a *admission) newNetwork(d *overlay.Doc, t *overlay.Tenant, domain overlay.UID) *api.Refusal {
	if n, max := a.c.ix.networks[t.UID], limit(t.MaxNetworks, overlay.DefaultMaxNetworks); n >= max {
		return api.Refuse(api.CodeQuota, title(d)+" was not created", fmt.Sprintf("tenant %s has %d networks and its quota is %d", t.Name, n, max),
			fmt.Sprintf("raise it: culvert tenant set %s --max-networks %d", t.Name, max+1))
	}
	spec := d.Network
	vni := spec.VNI
	if vni == 0 {
		for vni = a.c.cfg.FirstVNI; ; vni++ {
			if _, used := a.c.ix.vnis[vni]; !used {
				break
			}
		}
		if !vni.Valid() {
			return api.Refuse(api.CodeVNIInUse, title(d)+" was not created", "every VNI from the first to be allocated is in use", "give a free one: --vni N")
		}
	} else if uid, used := a.c.ix.vnis[vni]; used {
		return a.vniTaken(d, vni, uid)
	}
	n := &overlay.Network{
		Meta: a.newMeta(d, t.UID), TenantName: t.Name, WantVNI: spec.VNI, VNI: vni, Subnets: spec.Subnets, WantMTU: spec.MTU, MTU: mtu(spec.MTU),
		DF: spec.DF, Flood: spec.Flood, Hosts: spec.Hosts, Admission: spec.Admission, Tell: spec.Tell, Foreign: spec.Foreign, Domain: domain,
		Distribution: spec.Distribution,
	}
	a.tx.put(n)
	a.did("created", n)
	return nil
}

func (a *admission) vniTaken(d *overlay.Doc, vni overlay.VNI, uid overlay.UID) *api.Refusal {
	w := a.c.rows[Key{Kind: overlay.KindNetwork, UID: uid}]
	n := w.rec.(*overlay.Network)
	if !w.gone {
		return api.Refuse(api.CodeVNIInUse, title(d)+" was not created", fmt.Sprintf("VNI %d is network %s's", vni, n.Name),
			"give another --vni, or none to have one allocated")
	}
	why := fmt.Sprintf("VNI %d was network %s's, deleted just now, and not every host has confirmed that it is gone", vni, n.Name)
	waits := a.c.waitsFor(n)
	if len(waits) > 0 {
		why = fmt.Sprintf("VNI %d was network %s's, and these hosts have not confirmed that it is gone: %s", vni, n.Name, strings.Join(waits, ", "))
	}
	return api.Refuse(api.CodeVNIWaits, title(d)+" was not created", why, "bring those hosts back, or give another --vni", waits...)
}

func blocked(d *overlay.Doc, n *overlay.Network) *api.Refusal {
	return api.Refuse(api.CodeBlocked, title(d)+" was not written", "network "+n.Name+" is being deleted", "finish it: culvert network delete "+n.Name+" --with-ports")
}

// DefaultTenant is the tenant of names that are written without one.
const DefaultTenant = "default"

// maxListed bounds the dependants that a refusal lists.
const maxListed = 20

func (a *admission) delete(q Delete) *api.Refusal {
	d := &overlay.Doc{Kind: q.Kind, Tenant: q.Tenant, Name: q.Name}
	rec := a.exists(d)
	switch r := rec.(type) {
	case *overlay.Tenant:
		if r.Name == DefaultTenant {
			return api.Refuse(api.CodeImmutable, title(d)+" was not deleted", "names without tenant are its", "")
		}
		if n := a.c.ix.networks[r.UID]; n > 0 {
			return api.Refuse(api.CodeHasNetworks, title(d)+" was not deleted", fmt.Sprintf("%d networks are its own", n), "delete them first: culvert network list --tenant "+r.Name)
		}
		if n := a.c.ix.domains[r.UID]; n > 0 {
			return api.Refuse(api.CodeHasNetworks, title(d)+" was not deleted", fmt.Sprintf("%d domains are its own", n), "delete them first: culvert domain list --tenant "+r.Name)
		}
		if keys := sorted(a.c.ix.admits[r.UID]); len(keys) > 0 {
			dom := a.domain(keys[0].UID)
			name := qualified(a.tenantName(dom.Tenant), dom.Name)
			return api.Refuse(api.CodeHasNetworks, title(d)+" was not deleted", "domain "+name+" lets its networks in", "take that back first: culvert domain set "+name+" --no-admit-tenant")
		}
		gone := *r
		gone.Meta = a.dying(r.Meta, d)
		a.bury(&gone)
		a.did("deleted", &gone)
		return nil
	case *overlay.Network:
		return a.deleteNetwork(d, r, q.WithPorts)
	case *overlay.Port:
		if no := a.isLeg(d, r, "deleted"); no != nil {
			return no
		}
		a.deletePort(d, r)
		if rec, live := a.get(Key{Kind: overlay.KindNetwork, UID: r.Network}); live {
			a.losing(title(d)+" was not deleted", a.cause("delete", d), rec.(*overlay.Network), func(ad netip.Addr) bool { return slices.Contains(r.Addresses, ad) })
		}
		return nil
	case *overlay.Gateway:
		a.deleteGateway(d, r)
		return nil
	case *overlay.Domain:
		return a.deleteDomain(d, r)
	case *overlay.Policy:
		return a.deletePolicy(d, r)
	}
	return notFound(title(d), q.Kind)
}

func (a *admission) dying(m overlay.Meta, d *overlay.Doc) overlay.Meta {
	m.Cause, m.Changed = a.cause("delete", d), int64(a.c.now)
	return m
}

func (a *admission) deletePort(d *overlay.Doc, p *overlay.Port) {
	gone := *p
	gone.Meta = a.dying(p.Meta, d)
	a.bury(&gone)
	a.did("deleted", &gone)
	if rec, ok := a.get(Key{Kind: overlay.KindEndpoint, UID: p.Network, MAC: p.MAC}); ok {
		ep := *rec.(*overlay.Endpoint)
		ep.Cause, ep.Since = gone.Cause, int64(a.c.now)
		a.bury(&ep)
	}
	a.sharing(&gone, gone.Cause, true)
}

func (a *admission) deleteNetwork(d *overlay.Doc, n *overlay.Network, withPorts bool) *api.Refusal {
	if no := a.hasPolicies(d, n, "deleted"); no != nil {
		return no
	}
	if no := a.hasRoutes(title(d)+" was not deleted", n); no != nil {
		return no
	}
	ports := a.sortedPorts(n.UID)
	users := slices.DeleteFunc(slices.Clone(ports), func(k Key) bool { return !a.c.rows[k].rec.(*overlay.Port).Gateway.IsZero() })
	if len(users) > 0 && !withPorts {
		items := a.listed(users, func(rec overlay.Record) string { return a.portLine(rec.(*overlay.Port)) })
		return api.Refuse(api.CodeHasPorts, title(d)+" was not deleted", count(len(users), "port uses it", "ports use it"),
			"stop or move the VMs, or delete the ports too: culvert network delete "+n.Name+" --with-ports", items...)
	}
	if len(ports) > 0 && !n.Blocked {
		b := *n
		b.Blocked = true
		b.Meta = a.dying(n.Meta, d)
		a.tx.put(&b) // first half: the ports pass nothing any more
		return nil
	}
	gone := *n
	gone.Meta = a.dying(n.Meta, d)
	for _, k := range ports {
		rec, _ := a.get(k)
		a.did("deleted", rec)
	}
	a.did("deleted", &gone)
	a.bury(&gone) // what stands in its log goes with it: see sweepOrphans
	return nil
}

// listed says of each dependant a line, of maxListed at most.
func (a *admission) listed(keys []Key, line func(overlay.Record) string) []string {
	var items []string
	for _, k := range keys[:min(len(keys), maxListed)] {
		rec, _ := a.get(k)
		items = append(items, line(rec))
	}
	slices.Sort(items)
	if more := len(keys) - maxListed; more > 0 {
		items = append(items, fmt.Sprintf("and %d more", more))
	}
	return items
}

func (a *admission) portLine(p *overlay.Port) string {
	line := p.Name
	for _, ad := range p.Addresses {
		line += "  " + ad.String()
	}
	if rec, ok := a.get(Key{Kind: overlay.KindEndpoint, UID: p.Network, MAC: p.MAC}); ok {
		if h, ok := a.get(Key{Kind: overlay.KindHost, UID: rec.(*overlay.Endpoint).Host}); ok {
			line += "  up on " + h.(*overlay.Host).Name
		}
	}
	return line
}

// blocking commits the first half of a network's deletion, if that is what the
// request came to, and asks for the second half when the first is committed.
func (a *admission) blocking() bool {
	if len(a.tx.ch.writes) != 1 {
		return false
	}
	n, ok := a.tx.ch.writes[0].Rec.(*overlay.Network)
	if !ok || !n.Blocked || a.tx.ch.writes[0].Gone {
		return false
	}
	c, req := a.c, a.req
	a.commit(
		func(overlay.Rev) { c.ask(req) },
		func() { c.reply(Reply{ID: req.ID, Refusal: unknownOutcome()}) },
	)
	return true
}
