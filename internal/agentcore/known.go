package agentcore

import "culvert/internal/overlay"

// Known is what the core has been told, as full passes over each log: fed to a
// new core it gives the same knowledge. Logs whose first pass has not ended
// are left out.
func (c *Core) Known() []Items {
	if !c.fleet.complete {
		return nil
	}
	fleet := Items{Begins: []overlay.UID{{}}, Ends: []End{{Full: true, Sent: c.fleet.sent}}}
	for _, uid := range sortedUIDs(c.hosts) {
		h := c.hosts[uid]
		fleet.Items = append(fleet.Items, Item{h.rev, h.gone, h.rec})
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
		it := Items{Begins: []overlay.UID{n.uid}, Ends: []End{{Network: n.uid, Full: true, Sum: n.log.sum, Sent: n.log.sent}}}
		for _, uid := range sortedUIDs(n.ports) {
			p := n.ports[uid]
			it.Items = append(it.Items, Item{p.rev, p.gone, p.rec})
		}
		for _, mac := range sortedMACs(n.eps) {
			if e := n.eps[mac]; e.rec != nil {
				it.Items = append(it.Items, Item{e.rev, e.gone, e.rec})
			}
		}
		out = append(out, it)
	}
	out[len(out)-1].UpTo = c.upTo
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
