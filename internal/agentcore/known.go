package agentcore

import "culvert/internal/overlay"

// Known is what the core has been told, as full passes over each log: fed to a
// new core it gives the same knowledge. Logs whose first pass has not ended
// are left out; of one that is being passed over again it says how far that is.
func (c *Core) Known() []Items {
	if !c.fleet.complete {
		return nil
	}
	fleet := Items{Begins: []overlay.UID{{}}, Ends: []End{{Full: true, Sent: c.fleet.sent}}}
	for _, uid := range sortedUIDs(c.hosts) {
		h := c.hosts[uid]
		fleet.Items = append(fleet.Items, Item{h.rev, h.gone, h.rec})
	}
	for _, uid := range sortedUIDs(c.gateways) {
		g := c.gateways[uid]
		fleet.Items = append(fleet.Items, Item{g.rev, g.gone, g.rec})
	}
	for _, n := range c.sortedNets() {
		if n.rec != nil {
			fleet.Items = append(fleet.Items, Item{n.rev, n.gone, n.rec})
		}
	}
	out := []Items{fleet}
	for _, n := range c.sortedNets() {
		if !n.live() || !n.log.complete {
			continue
		}
		it := Items{
			Begins: []overlay.UID{n.uid}, Items: n.entries(nil), Members: n.entriesOf(n.members),
			Ends: []End{{Network: n.uid, Full: true, Sum: n.log.sum, Sent: n.log.sent, OnDemand: n.log.partial}},
		}
		out = append(out, it)
		if n.log.named != nil {
			out = append(out, Items{Begins: []overlay.UID{n.uid}, Items: n.entries(n.log.named), Members: n.entriesOf(n.gather)})
		}
	}
	out[len(out)-1].UpTo = c.upTo
	return out
}

// entries lists what a network's log said; with named only that.
func (n *network) entries(named map[overlay.Key]bool) (out []Item) {
	for _, uid := range sortedUIDs(n.ports) {
		if p := n.ports[uid]; named == nil || named[overlay.Key{Kind: overlay.KindPort, UID: uid}] {
			out = append(out, Item{p.rev, p.gone, p.rec})
		}
	}
	for _, mac := range sortedMACs(n.eps) {
		if e := n.eps[mac]; e.rec != nil && (named == nil || named[overlay.Key{Kind: overlay.KindEndpoint, UID: n.uid, MAC: mac}]) {
			out = append(out, Item{e.rev, e.gone, e.rec})
		}
	}
	return out
}

func (n *network) entriesOf(members map[overlay.UID]bool) (out []overlay.Member) {
	for _, h := range sortedUIDs(members) {
		out = append(out, overlay.Member{Network: n.uid, Host: h, Gone: !members[h]})
	}
	return out
}

// Held is the newest revision up to which the kernel was seen to hold all.
func (c *Core) Held() overlay.Rev { return c.held }

// FindPort is the network of a declared port, as far as this host was told.
func (c *Core) FindPort(tenant, name string) (overlay.VNI, *overlay.Port) {
	for _, n := range c.sortedNets() {
		if !n.live() || n.rec.TenantName != tenant {
			continue
		}
		if p := n.ports[n.byName[name]]; p != nil && !p.gone {
			return n.rec.VNI, p.rec
		}
	}
	return 0, nil
}

// Device is the name of the device that is that port here, or empty.
func (c *Core) Device(port overlay.UID) string {
	for _, n := range c.sortedNets() {
		for _, idx := range sortedTaps(n.taps) {
			if t := n.taps[idx]; t.declared != nil && t.declared.port == port {
				return t.name
			}
		}
	}
	return ""
}

// Networks lists the VNIs whose devices stand here.
func (c *Core) Networks() []overlay.VNI {
	var out []overlay.VNI
	for _, n := range c.sortedNets() {
		if n.rec != nil && n.vxlan != 0 {
			out = append(out, n.rec.VNI)
		}
	}
	return out
}
