package managercore

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// free takes the MACs and addresses of the ports that a request writes out of
// the indexes, so that an address may move between two ports of one request
// whatever their order.
func (a *admission) free(docs []overlay.Doc) {
	for i := range docs {
		if docs[i].Kind != overlay.KindPort {
			continue
		}
		p, ok := a.exists(&docs[i]).(*overlay.Port)
		if !ok {
			continue
		}
		k := KeyOf(p)
		a.freed = append(a.freed, k)
		unset(a.c.ix.macs, netMAC{p.Network, p.MAC}, k)
		for _, ad := range p.Addresses {
			a.c.ix.freeIP(netIP{p.Network, ad}, k)
		}
		a.c.ix.unshare(p, k)
	}
}

// unfree undoes free after a rollback.
func (a *admission) unfree() {
	for _, k := range a.freed {
		a.hold(k, a.c.rows[k].rec.(*overlay.Port))
	}
}

func (a *admission) hold(k Key, p *overlay.Port) {
	set(a.c.ix.macs, netMAC{p.Network, p.MAC}, k)
	for _, ad := range p.Addresses {
		set(a.c.ix.ips, netIP{p.Network, ad}, k)
	}
	a.c.ix.share(p, k)
}

func (a *admission) putPort(d *overlay.Doc) *api.Refusal {
	t, no := a.tenant(d)
	if no != nil {
		return no
	}
	spec := d.Port
	n, _ := a.find(overlay.KindNetwork, t.UID, spec.Network).(*overlay.Network)
	if n == nil {
		return api.Refuse(api.CodeNotFound, title(d)+" was not written", "network "+t.Name+"/"+spec.Network+" does not exist", "make it first: culvert network create "+spec.Network)
	}
	if n.Blocked {
		return blocked(d, n)
	}
	for _, h := range spec.Hosts {
		if a.find(overlay.KindHost, overlay.UID{}, h) == nil || !n.SelectsHost(h) {
			return api.Refuse(api.CodeNoHost, title(d)+" was not written", "spec.hosts names host "+h+", which has not joined or is not selected by the network", "see the hosts: culvert host list")
		}
	}
	if max := limit(t.MaxPortAddresses, overlay.DefaultMaxPortAddresses); len(spec.Addresses) > max {
		return api.Refuse(api.CodeQuota, title(d)+" was not written", fmt.Sprintf("it asks for %d addresses and tenant %s allows %d a port", len(spec.Addresses), t.Name, max), "ask for fewer")
	}
	old, _ := a.find(d.Kind, t.UID, d.Name).(*overlay.Port)
	if old == nil {
		return a.newPort(d, t, n)
	}
	if old.Network != n.UID {
		return api.Refuse(api.CodeImmutable, title(d)+" was not changed", "a port stays in its network", "delete the port and create it in the other network")
	}
	if no := a.isLeg(d, old, "changed"); no != nil {
		return no
	}
	return a.setPort(d, n, old)
}

func (a *admission) newPort(d *overlay.Doc, t *overlay.Tenant, n *overlay.Network) *api.Refusal {
	if have, max := a.c.ix.tports[t.UID], limit(t.MaxPorts, overlay.DefaultMaxPorts); have >= max {
		return api.Refuse(api.CodeQuota, title(d)+" was not created", fmt.Sprintf("tenant %s has %d ports and its quota is %d", t.Name, have, max), "raise it: culvert tenant set "+t.Name+" --max-ports N")
	}
	p := &overlay.Port{Meta: a.newMeta(d, t.UID), Network: n.UID, WantMAC: d.Port.MAC, WantAddresses: d.Port.Addresses, VM: d.Port.VM, Hosts: d.Port.Hosts, Shared: d.Port.Shared, AddressCheck: d.Port.AddressCheck}
	p.MAC = p.WantMAC
	if p.MAC.IsZero() {
		p.MAC = a.allocateMAC(n, p.UID)
	}
	p.Addresses = p.WantAddresses
	if len(p.Addresses) == 0 {
		var no *api.Refusal
		if p.Addresses, no = a.allocate(d, n); no != nil {
			return no
		}
	}
	if no := a.checkPort(d, n, p); no != nil {
		return no
	}
	a.takeFromLearned(p)
	a.tx.put(p)
	a.did("created", p)
	return nil
}

// takeFromLearned takes a declared port's addresses, shared ones too, from undeclared endpoints
// that were heard to use them: what is declared wins.
func (a *admission) takeFromLearned(p *overlay.Port) {
	for _, ad := range slices.Concat(p.Addresses, p.Shared) {
		rec, ok := a.get(a.c.ix.ips[netIP{p.Network, ad}])
		ep, learned := rec.(*overlay.Endpoint)
		if !ok || !learned || ep.MAC == p.MAC {
			continue
		}
		next := *ep
		next.Addresses = slices.DeleteFunc(slices.Clone(ep.Addresses), func(x netip.Addr) bool { return x == ad })
		next.Cause = fmt.Sprintf("address %s was declared for port %s", ad, p.Name)
		a.tx.put(&next)
	}
}

func (a *admission) setPort(d *overlay.Doc, n *overlay.Network, old *overlay.Port) *api.Refusal {
	k, spec := KeyOf(old), d.Port
	want := *old
	want.WantAddresses, want.VM, want.Hosts, want.Shared, want.AddressCheck = spec.Addresses, spec.VM, spec.Hosts, spec.Shared, spec.AddressCheck
	if !spec.MAC.IsZero() && spec.MAC != old.MAC {
		return api.Refuse(api.CodeImmutable, title(d)+" was not changed", fmt.Sprintf("its MAC is %s and cannot become %s", old.MAC, spec.MAC), "delete the port and create it anew")
	}
	if len(spec.Addresses) > 0 {
		want.Addresses = spec.Addresses
	}
	if no := a.checkPort(d, n, &want); no != nil {
		return no
	}
	// Leaving out what was given, or writing down what was allocated, is no
	// change of the port: it keeps what it has.
	want.WantMAC = old.WantMAC
	if len(spec.Addresses) == 0 || slices.Equal(spec.Addresses, old.Addresses) {
		want.WantAddresses = old.WantAddresses
	}
	same := slices.Equal(want.Addresses, old.Addresses) && want.VM == old.VM && slices.Equal(want.Hosts, old.Hosts) && slices.Equal(want.Shared, old.Shared) && want.AddressCheck == old.AddressCheck && slices.Equal(d.Labels, old.Labels)
	if no := a.sameOrSet(d, same, old); no != nil {
		return no
	}
	if same {
		a.hold(k, old)
		return nil
	}
	want.Meta = a.again(old.Meta, d)
	a.takeFromLearned(&want)
	a.tx.put(&want)
	a.did("changed", &want)
	if !slices.Equal(want.Addresses, old.Addresses) {
		a.losing(title(d)+" was not changed", want.Cause, n, func(ad netip.Addr) bool { return slices.Contains(old.Addresses, ad) })
	}
	if rec, ok := a.get(Key{Kind: overlay.KindEndpoint, UID: n.UID, MAC: old.MAC}); ok {
		ep := *rec.(*overlay.Endpoint)
		ep.Addresses, ep.Cause, ep.Since = withShared(&want, both(ep.Addresses, want.Shared)), want.Cause, int64(a.c.now)
		if !slices.Equal(ep.Addresses, rec.(*overlay.Endpoint).Addresses) {
			a.tx.put(&ep)
		}
	}
	a.sharing(&want, want.Cause, false)
	return nil
}

// checkPort refuses a MAC or an address that is not this port's to have.
func (a *admission) checkPort(d *overlay.Doc, n *overlay.Network, p *overlay.Port) *api.Refusal {
	k := KeyOf(p)
	if p.MAC == overlay.ServerMAC {
		return api.Refuse(api.CodeMACInUse, title(d)+" was not written", fmt.Sprintf("hosts speak to their guests as %s", p.MAC), "give another --mac, or none to have one allocated")
	}
	if o, used := a.c.ix.macs[netMAC{n.UID, p.MAC}]; used && o != k {
		return api.Refuse(api.CodeMACInUse, title(d)+" was not written", fmt.Sprintf("MAC %s is port %s's in network %s", p.MAC, a.portName(o), n.Name), "give another --mac, or none to have one allocated")
	}
	for _, ad := range p.Addresses {
		if subnetOf(n.Subnets, ad) < 0 {
			for _, s := range n.Subnets {
				if s.Gateway == ad {
					return api.Refuse(api.CodeAddressInUse, title(d)+" was not written", fmt.Sprintf("%s is the gateway of %s", ad, s.Prefix), "give another --ip")
				}
			}
			return api.Refuse(api.CodeOutside, title(d)+" was not written", fmt.Sprintf("%s is no address that a port may have in network %s (%s)", ad, n.Name, subnetList(n)), "give an address inside, or none to have one allocated")
		}
		if o, used := a.c.ix.ips[netIP{n.UID, ad}]; used && o != k && o.Kind == overlay.KindPort {
			return api.Refuse(api.CodeAddressInUse, title(d)+" was not written", fmt.Sprintf("%s is port %s's", ad, a.portName(o)), "give another --ip, or take it from that port first")
		}
	}
	return a.checkShared(d, n, p)
}

func (a *admission) portName(k Key) string {
	if rec, ok := a.get(k); ok {
		return rec.(*overlay.Port).Name
	}
	return k.UID.String()
}

func subnetList(n *overlay.Network) string {
	if len(n.Subnets) == 0 {
		return "it has no subnets"
	}
	s := ""
	for i, sn := range n.Subnets {
		if i > 0 {
			s += ", "
		}
		s += sn.Prefix.String()
	}
	return s
}

// allocateMAC derives a locally known QEMU prefix address from the port's UID
// and steps on until it is free in the network and in those bridged with it.
func (a *admission) allocateMAC(n *overlay.Network, uid overlay.UID) overlay.MAC {
	m := overlay.MAC{0x52, 0x54, 0x00, uid[0], uid[1], uid[2]}
	for {
		if _, used := a.c.ix.macs[netMAC{n.UID, m}]; !used && a.c.macBeyond(n, m) == nil {
			return m
		}
		for i := 5; i >= 2; i-- {
			if m[i]++; m[i] != 0 {
				break
			}
		}
	}
}

// allocate takes the lowest free address of each subnet.
func (a *admission) allocate(d *overlay.Doc, n *overlay.Network) ([]netip.Addr, *api.Refusal) {
	var out []netip.Addr
	for _, s := range n.Subnets {
		ad, ok := a.c.lowestFree(n, s)
		if !ok {
			return nil, api.Refuse(api.CodeSubnetFull, title(d)+" was not created", fmt.Sprintf("every address of %s in network %s is taken", s.Prefix, n.Name), "add a subnet, or delete ports that are not needed")
		}
		out = append(out, ad)
	}
	return overlay.SortAddrs(out), nil
}

// maxSearch bounds how far allocation looks, so that a large full subnet costs
// a bounded time and is reported as full.
const maxSearch = 1 << 20

func (c *Core) lowestFree(n *overlay.Network, s overlay.Subnet) (netip.Addr, bool) {
	hk, hinted := netIP{n.UID, s.Prefix.Addr()}, false
	ad := c.ix.hints[hk]
	if !ad.IsValid() || !s.Prefix.Contains(ad) {
		ad = s.Prefix.Addr().Next()
	}
	for range maxSearch {
		if !s.Usable(ad) {
			return netip.Addr{}, false
		}
		if !c.taken(n, ad) {
			if !hinted {
				c.ix.hints[hk], hinted = ad, true // everything below is taken; unset lowers it again
			}
			if !c.takenBeyond(n, ad) {
				return ad, true
			}
		}
		ad = ad.Next()
	}
	return netip.Addr{}, false
}
