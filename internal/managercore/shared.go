package managercore

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Shared addresses: several ports declare one, and one endpoint holds it, in
// its Addresses like any other: whichever announced it last. Nothing else says
// who holds one, so that it is nowhere when the holder is.

// maxSharing bounds how many ports declare one address: so many are looked at
// when it moves.
const maxSharing = 64

// share enters a port under the shared addresses that it declares; unshare
// takes it out.
func (x *indexes) share(p *overlay.Port, k Key) {
	for _, a := range p.Shared {
		at := netIP{p.Network, a}
		if x.shared[at] == nil {
			x.shared[at] = map[Key]bool{}
		}
		x.shared[at][k] = true
	}
}

func (x *indexes) unshare(p *overlay.Port, k Key) {
	for _, a := range p.Shared {
		at := netIP{p.Network, a}
		delete(x.shared[at], k)
		if len(x.shared[at]) == 0 {
			delete(x.shared, at)
			x.lowerHints(at)
		}
	}
}

// checkShared refuses what a port may not share: what is another's own, its own
// too, and what others share may be nobody's own.
func (a *admission) checkShared(d *overlay.Doc, n *overlay.Network, p *overlay.Port) *api.Refusal {
	k := KeyOf(p)
	no := func(code api.Code, why, cure string) *api.Refusal {
		return api.Refuse(code, title(d)+" was not written", why, cure)
	}
	for _, ad := range p.Addresses {
		for _, o := range sorted(a.c.ix.shared[netIP{n.UID, ad}]) {
			if o != k {
				return no(api.CodeAddressInUse, fmt.Sprintf("%s is shared by port %s (spec.sharedAddresses)", ad, a.portName(o)), "give another --ip, or share this one, too: --shared-address "+ad.String())
			}
		}
	}
	for _, ad := range p.Shared {
		if subnetOf(n.Subnets, ad) < 0 {
			return no(api.CodeOutside, fmt.Sprintf("%s is no address that a port may have in network %s (%s)", ad, n.Name, subnetList(n)), "give another --shared-address, inside and not the gateway's")
		}
		if slices.Contains(p.Addresses, ad) {
			return no(api.CodeAddressInUse, fmt.Sprintf("%s would be the port's own and shared", ad), "give it once: --ip or --shared-address")
		}
		if o, used := a.c.ix.ips[netIP{n.UID, ad}]; used && o != k && o.Kind == overlay.KindPort {
			return no(api.CodeAddressInUse, fmt.Sprintf("%s is port %s's own", ad, a.portName(o)), "give another --shared-address, or take it from that port first")
		}
		if with := a.c.ix.shared[netIP{n.UID, ad}]; !with[k] && len(with) >= maxSharing {
			return no(api.CodeQuota, fmt.Sprintf("%s is shared by %d ports, which is the most", ad, len(with)), "give another --shared-address")
		}
	}
	return nil
}

// sharing changes or ends the endpoints of a port that changed or went: of what
// it may share no more they hold nothing.
func (a *admission) sharing(p *overlay.Port, cause string, ended bool) {
	for _, k := range sorted(a.c.ix.virtual[p.Network]) {
		rec, ok := a.get(k)
		if !ok || rec.(*overlay.Endpoint).Port != p.UID {
			continue
		}
		ep := *rec.(*overlay.Endpoint)
		ep.Cause, ep.Since = cause, int64(a.c.now)
		if ended || len(p.Shared) == 0 {
			a.bury(&ep)
			continue
		}
		if kept := both(ep.Addresses, p.Shared); len(kept) != len(ep.Addresses) {
			ep.Addresses = kept
			a.tx.put(&ep)
		}
	}
}

// both is what is in a and in b, in the order of a.
func both(a, b []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(a), func(x netip.Addr) bool { return !slices.Contains(b, x) })
}

// withShared is what an endpoint with the port's own MAC has: the port's own
// addresses and shared ones that it holds, sorted.
func withShared(p *overlay.Port, shared []netip.Addr) []netip.Addr {
	if len(shared) == 0 {
		return p.Addresses
	}
	return overlay.SortAddrs(slices.Concat(p.Addresses, shared))
}

// holder is the endpoint that holds a shared address; nil if none does.
func (c *Core) holder(network overlay.UID, a netip.Addr) (Key, *row) {
	has := func(k Key) *row {
		if w := c.rows[k]; w != nil && !w.gone && slices.Contains(w.rec.(*overlay.Endpoint).Addresses, a) {
			return w
		}
		return nil
	}
	for _, pk := range sorted(c.ix.shared[netIP{network, a}]) {
		k := Key{Kind: overlay.KindEndpoint, UID: network, MAC: c.rows[pk].rec.(*overlay.Port).MAC}
		if w := has(k); w != nil {
			return k, w
		}
	}
	for _, k := range sorted(c.ix.virtual[network]) {
		if w := has(k); w != nil {
			return k, w
		}
	}
	return Key{}, nil
}

// contended reports whether a change of who holds one of a claim's shared
// addresses is on its way.
func (c *Core) contended(cl hostClaim) bool {
	if cl.Port.IsZero() || cl.Leave || cl.Pre {
		return false
	}
	for _, a := range cl.Addresses {
		if _, w := c.holder(cl.Network, a); w != nil && w.busy > 0 {
			return true
		}
	}
	return false
}

// sharedOf is which shared addresses an endpoint of a declared port is to have
// and why not the others that it announced: it keeps what it holds, and takes
// what it announced after the agent had heard who held it last.
func (c *Core) sharedOf(cl hostClaim, k Key, p *overlay.Port, b *overlay.Endpoint) (addrs []netip.Addr, from map[Key][]netip.Addr, refused []overlay.AddressRefusal) {
	if b != nil {
		addrs = both(b.Addresses, p.Shared)
	}
	for _, a := range cl.Addresses {
		if slices.Contains(addrs, a) {
			continue
		}
		h, w := c.holder(cl.Network, a)
		switch {
		case !slices.Contains(p.Shared, a):
			refused = append(refused, overlay.AddressRefusal{Address: a, Reason: "port " + p.Name + " does not share it"})
			continue
		case w != nil && cl.Heard.Less(overlay.Rev{Epoch: c.cfg.Epoch, N: w.gained}):
			refused = append(refused, overlay.AddressRefusal{Address: a, Reason: h.MAC.String() + " announced it later"})
			continue
		case w != nil && h != k:
			if from == nil {
				from = map[Key][]netip.Addr{}
			}
			from[h] = append(from[h], a)
			c.stats.SharedMoved++
		}
		addrs = append(addrs, a)
	}
	return addrs, from, refused
}

// giveUp takes shared addresses from who held them: in the change by which
// another has them, so that at every revision one endpoint at most does.
func (t *tx) giveUp(from map[Key][]netip.Addr, cause string) {
	for _, h := range sorted(from) {
		next := *t.c.rows[h].rec.(*overlay.Endpoint)
		next.Addresses = slices.DeleteFunc(slices.Clone(next.Addresses), func(x netip.Addr) bool { return slices.Contains(from[h], x) })
		next.Cause = cause
		t.put(&next)
	}
}
