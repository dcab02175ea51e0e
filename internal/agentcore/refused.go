package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

const (
	// maxDenied bounds what is remembered of a device, so that one guest's
	// refusals leave room for those of others.
	maxDenied = 4
	// denialQuiet is how long after it was last tried something is still shown
	// as denied, where only trying shows that it is wanted.
	denialQuiet = 60 * second
	// recheck is how often the manager is asked again for addresses that it
	// refused: what was in the way may be gone, and not all of it is told here
	// (a tenant's quota is not). It answers without writing anything.
	recheck = 5 * second
)

// denial is what this agent itself refused.
type denial struct {
	mac    overlay.MAC
	addr   netip.Addr // invalid: the MAC
	reason string
	at     Time // when it was last tried
}

// deny notes that something was refused. Beyond the bound nothing is noted
// before what stands there has become old.
func (c *Core) deny(t *tap, mac overlay.MAC, addr netip.Addr, reason string) {
	d := denial{mac, addr, reason, c.now}
	i := slices.IndexFunc(t.denied, func(x denial) bool { return x.mac == mac && x.addr == addr || c.now-x.at >= denialQuiet })
	switch {
	case i >= 0:
		t.denied[i] = d
	case len(t.denied) < maxDenied:
		t.denied = append(t.denied, d)
	}
}

// allow takes a denial back.
func (t *tap) allow(mac overlay.MAC, addr netip.Addr) {
	t.denied = slices.DeleteFunc(t.denied, func(x denial) bool { return x.mac == mac && x.addr == addr })
}

// foreignMAC notes that the guest of one port speaks with the MAC of another.
func (c *Core) foreignMAC(n *network, t *tap, src overlay.MAC) {
	other, mine := n.ports[n.byMAC[src]], n.ports[t.declared.port]
	if other == nil || mine == nil || other == mine {
		return
	}
	c.deny(t, src, netip.Addr{}, "it is port "+other.rec.Name+"'s, and the device is port "+mine.rec.Name+"'s (CV0133)")
}

// askAgain has the manager asked once more for what it refused a guest. What
// was not heard for a long time is not asked for any more.
func (c *Core) askAgain(n *network, g *guest) {
	for _, r := range g.refused {
		if c.now-g.notes[r.Address].heard >= addrQuiet {
			c.dropAddress(n, g, r.Address)
		}
	}
}

// lacks reports whether a guest's record is without an address that it was not
// refused: it was taken away since.
func (g *guest) lacks(r *overlay.Endpoint) bool {
	return slices.ContainsFunc(g.addrs, func(a netip.Addr) bool {
		_, has := slices.BinarySearchFunc(r.Addresses, a, netip.Addr.Compare)
		return !has && !slices.ContainsFunc(g.refused, func(x overlay.AddressRefusal) bool { return x.Address == a })
	})
}

// Refused lists what guests here are denied, by network, device and MAC, at
// most max; and how many there are besides. Each stands as long as its cause.
func (c *Core) Refused(max int) (list []overlay.Refused, more int) {
	for _, n := range c.sortedNets() {
		if !n.live() {
			continue
		}
		for _, idx := range sortedTaps(n.taps) {
			for _, r := range c.refusedOn(n, n.taps[idx]) {
				if len(list) == max {
					more++
					continue
				}
				r.Network, r.Device = n.uid, n.taps[idx].name
				list = append(list, r)
			}
		}
	}
	return list, more
}

func (c *Core) refusedOn(n *network, t *tap) (out []overlay.Refused) {
	if t.declared == nil && n.log.complete {
		if mac, why := c.unnamed(n, t); why != "" {
			out = append(out, overlay.Refused{MAC: mac, Reason: why})
		}
	}
	for _, g := range t.guests() {
		switch o := n.guests[g.mac]; {
		case o != nil && o != g && !t.empty:
			out = append(out, overlay.Refused{MAC: g.mac, Reason: "device " + o.tap.name + " has this MAC too, and has it now (CV0133)"})
		case !c.here(n, g):
		case len(g.refused) == 0 && !g.claimed && g.refusal != "":
			out = append(out, overlay.Refused{MAC: g.mac, Reason: g.refusal})
		default:
			for _, r := range g.refused {
				if slices.Contains(g.addrs, r.Address) {
					out = append(out, overlay.Refused{MAC: g.mac, Address: r.Address, Reason: r.Reason})
				}
			}
		}
	}
	for _, d := range t.denied {
		if c.now-d.at < denialQuiet {
			out = append(out, overlay.Refused{MAC: d.mac, Address: d.addr, Reason: d.reason})
		}
	}
	return out
}

// unnamed says why a device that names a port is none; empty if it names none.
func (c *Core) unnamed(n *network, t *tap) (mac overlay.MAC, why string) {
	port, who := overlay.UID{}, ""
	tenant, name, aliased := hoststate.ParsePortAlias(t.alias)
	hypervised, told := n.hypervised(t)
	switch {
	case aliased:
		who = "its alias names port " + tenant + "/" + name
		if tenant == n.rec.TenantName {
			port = n.byName[name]
		}
	case told:
		port, who = hypervised, "the hypervisor names port "+t.nic.Port
	case !t.seen.IsZero():
		port = n.byMAC[t.seen]
	}
	p := n.ports[port]
	switch {
	case p != nil && !p.gone && !mayBeHere(p.rec, c.cfg.Name):
		return p.rec.MAC, "port " + p.rec.Name + " may not be on host " + c.cfg.Name + ", see spec.hosts (CV0027)"
	case who != "" && !t.isMember:
		return t.seen, who + ", which the network has not (CV0110)"
	}
	return overlay.MAC{}, ""
}
