package sim

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/agentcore"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// What kernels and the store must hold of undeclared guests, shared addresses
// and foreign tunnel end points, in the oracle's words.

// guise is an endpoint that has no declared port's own MAC: an undeclared
// guest's, or a virtual router's behind a port.
type guise struct {
	net   *overlay.Network
	mac   overlay.MAC
	addrs []netip.Addr
	nic   *nic
	port  overlay.UID // zero: nobody's
}

// isAdmitted reports whether a device's undeclared guest runs there, and may.
func (w *world) isAdmitted(x *nic) (*overlay.Network, bool) {
	n := w.store.network(x.vm.network)
	l, _ := x.host.kernel.Link(x.name)
	b, ok := x.host.kernel.LinkAt(l.Master)
	return n, x.isStranger() && n != nil && ok && b.VNI == n.VNI && l.State == hoststate.StateForwarding &&
		x.vm.runs == x && !n.Blocked && n.Admission != overlay.AdmitDeclared && n.SelectsHost(x.host.name)
}

// guises are all endpoints besides those of placements.
func (w *world) guises(all []placed) (out []guise) {
	for _, x := range w.nics {
		if n, ok := w.isAdmitted(x); ok {
			for _, id := range x.vm.ids {
				out = append(out, guise{net: n, mac: id.mac, addrs: id.addrs, nic: x})
			}
		}
	}
	for _, p := range all {
		for _, a := range p.port.Shared {
			if mac := macOf(p.port, a); mac != p.port.MAC && w.holds(p, a) {
				out = append(out, guise{p.net, mac, []netip.Addr{a}, p.nic, p.port.UID})
			}
		}
	}
	return out
}

// holds reports whether a guest is the holder of an address that its port shares.
func (w *world) holds(p placed, a netip.Addr) bool {
	return w.masters[netAddr{p.net.UID, a}] == p.nic.vm
}

// addresses are all that a port has with its own MAC: its own, and of those that
// it shares what it holds.
func (p placed) addresses(w *world) []netip.Addr {
	out := slices.Clone(p.port.Addresses)
	for _, a := range p.port.Shared {
		if macOf(p.port, a) == p.port.MAC && w.holds(p, a) {
			out = append(out, a)
		}
	}
	return overlay.SortAddrs(out)
}

// openRows adds what a network that a host serves holds besides: undeclared and
// virtual MACs, and foreign tunnel end points.
func (w *world) openRows(h *host, n *overlay.Network, all []placed, rows map[hoststate.Key]hoststate.Val) {
	for _, g := range w.guises(all) {
		l, here := h.kernel.Link(g.nic.name)
		switch {
		case g.net.UID != n.UID:
		case g.nic.host != h:
			remoteRows(rows, n, g.mac, g.nic.host.vtep, g.addrs)
		case here:
			rows[hoststate.Key{Table: hoststate.TableMaster, VNI: n.VNI, MAC: g.mac}] = hoststate.Val{Port: l.Index, Flags: hoststate.Static | hoststate.Sticky}
			passes(rows, l.Index, g, n)
		}
	}
	for _, a := range w.foreign(h, n) {
		rows[hoststate.Key{Table: hoststate.TableSource, VNI: n.VNI, IP: a}] = hoststate.Val{}
		if n.Flood == overlay.FloodHER {
			rows[hoststate.Key{Table: hoststate.TableRepl, VNI: n.VNI, IP: a}] = hoststate.Val{Flags: hoststate.Permanent}
		}
	}
}

// passes adds what lets a device pass frames of one more MAC. An undeclared
// device's first one, in their order, stands with its flags.
func passes(rows map[hoststate.Key]hoststate.Val, index int32, g guise, n *overlay.Network) {
	door := hoststate.Key{Table: hoststate.TablePort, Port: index}
	own := hoststate.Key{Table: hoststate.TableOwn, Port: index}
	first, has := rows[door]
	switch {
	case !has:
		first = hoststate.Val{MAC: g.mac, Flags: hoststate.Open | hoststate.NoServers}
		if n.Admission == overlay.AdmitDHCP {
			first.Flags |= hoststate.CheckIP
		}
		rows[door] = first
		rows[hoststate.Key{Table: hoststate.TableMember, Port: index}] = hoststate.Val{}
		hostsRows(rows, index, n)
	case g.port.IsZero() && bytes.Compare(g.mac[:], first.MAC[:]) < 0:
		own.MAC = first.MAC
		rows[own] = hoststate.Val{}
		first.MAC = g.mac
		rows[door] = first
	default:
		own.MAC = g.mac
		rows[own] = hoststate.Val{}
	}
	own.MAC = overlay.MAC{}
	if g.port.IsZero() {
		for _, own.IP = range g.addrs {
			rows[own] = hoststate.Val{}
		}
	} else if first.Flags&hoststate.CheckLocal != 0 {
		own.IP = linkLocal(g.mac)
		rows[own] = hoststate.Val{}
	}
}

// checkedRows adds what a port that is checked may send from besides its own
// addresses.
func checkedRows(rows map[hoststate.Key]hoststate.Val, index int32, p *overlay.Port) {
	if !p.AddressCheck {
		return
	}
	own := hoststate.Key{Table: hoststate.TableOwn, Port: index, IP: linkLocal(p.MAC)}
	rows[own] = hoststate.Val{}
	for _, own.IP = range p.Shared {
		rows[own] = hoststate.Val{Flags: hoststate.Shared}
	}
	door := hoststate.Key{Table: hoststate.TablePort, Port: index}
	v := rows[door]
	v.Flags |= hoststate.CheckIP | hoststate.CheckLocal
	rows[door] = v
}

// linkLocal is the link-local address that follows from a MAC (RFC 4291, A).
func linkLocal(m overlay.MAC) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fe80::%02x%02x:%02xff:fe%02x:%02x%02x", m[0]^2, m[1], m[2], m[3], m[4], m[5]))
}

// foreign are a network's tunnel end points without an agent, as a host takes
// them: what a host has is never one.
func (w *world) foreign(h *host, n *overlay.Network) (out []netip.Addr) {
	for _, a := range n.Foreign {
		if !slices.ContainsFunc(w.hosts, func(o *host) bool { return (o == h || o.joined) && o.vtep == a }) {
			out = append(out, a)
		}
	}
	return out
}

// isForeign reports whether an operation is about a tunnel end point that the
// network names, or named once. Whoever else may send with any MAC is a fault.
func (h *host) isForeign(uid overlay.UID, op hoststate.Op) bool {
	k := op.Row.Key
	any := k.Table == hoststate.TableSource && k.MAC.IsZero()
	is := h.w.ever.foreign[netAddr{uid, k.IP}] && k.IP != h.vtep
	if any && !is {
		h.w.fail("%s: %v: the network names no such tunnel end point", h.name, op)
	}
	return any || is && k.Table == hoststate.TableRepl
}

// compareGuises is what differs between the store and what undeclared and
// virtual MACs really are; they are marked as found.
func (w *world) compareGuises(all []placed, bound map[overlay.Key]bool) (diff []string) {
	for _, g := range w.guises(all) {
		k := overlay.Key{Kind: overlay.KindEndpoint, UID: g.net.UID, MAC: g.mac}
		bound[k] = true
		v, ok := w.store.values[k]
		if !ok || v.gone {
			diff = append(diff, fmt.Sprintf("no binding of %v, which is on %s", g.mac, g.nic.host.name))
			continue
		}
		if e := v.rec.(*overlay.Endpoint); e.Host != g.nic.host.uid || e.Port != g.port || !slices.Equal(e.Addresses, g.addrs) || len(e.Pre) > 0 {
			diff = append(diff, fmt.Sprintf("binding of %v on %s, which has %v, is %+v", g.mac, g.nic.host.name, g.addrs, *e))
		}
	}
	return diff
}

// compareStrangers looks at what the devices of undeclared guests must be like.
func (w *world) compareStrangers(h *host) (diff []string) {
	for _, x := range w.nics {
		if _, ok := w.isAdmitted(x); !ok || x.host != h {
			continue
		}
		if l, _ := h.kernel.Link(x.name); l.Flood || l.Learns || l.IPv6 || !l.Guarded {
			diff = append(diff, fmt.Sprintf("device %s has flood %t, learning %t, ipv6 %t, its program %t", l.Name, l.Flood, l.Learns, l.IPv6, l.Guarded))
		}
	}
	return diff
}

// checkHolders: of a network, one endpoint at most has an address at every
// revision, and each has only what it may: what its port declares or shares,
// or, undeclared, what it was heard to have, or was leased.
func (w *world) checkHolders(ws []encoded) {
	for _, x := range ws {
		v := w.store.values[x.key]
		e, ok := v.rec.(*overlay.Endpoint)
		if !ok || v.gone {
			continue
		}
		for _, k := range w.store.bound[e.Network] {
			o, _ := w.store.values[k].rec.(*overlay.Endpoint)
			if o == nil || k == x.key || w.store.values[k].gone {
				continue
			}
			if i := slices.IndexFunc(e.Addresses, func(a netip.Addr) bool { return slices.Contains(o.Addresses, a) }); i >= 0 {
				w.fail("%v and %v both have %v: %s", e.MAC, o.MAC, e.Addresses[i], e.Cause)
			}
		}
		w.checkHolder(e)
	}
}

func (w *world) checkHolder(e *overlay.Endpoint) {
	n := w.store.network(e.Network)
	if n == nil {
		return
	}
	var p *overlay.Port
	if v, ok := w.store.values[overlay.Key{Kind: overlay.KindPort, UID: e.Port}]; ok && !v.gone {
		p = v.rec.(*overlay.Port)
	}
	for _, a := range e.Addresses {
		switch {
		case p != nil && (slices.Contains(p.Addresses, a) && p.MAC == e.MAC || slices.Contains(p.Shared, a)):
		case p == nil && e.Port.IsZero() && w.ever.had(e.Network, a) && within(n, a):
		default:
			w.fail("%v has %v, which it may not have, in %v (%+v): %+v", e.MAC, a, n.Admission, n.Subnets, *e)
		}
	}
}

// hears reports whether a host has an undeclared guest, or virtual router, of
// that MAC, or had one a moment ago: what its own rows are is its to say.
func (h *host) hears(network overlay.UID, mac overlay.MAC) bool {
	is := func(x *nic) bool {
		if x.host != h {
			return false
		}
		if mac.IsVirtual() { // of any port here that may share it
			return true
		}
		return x.isStranger() && x.vm.network == network && x.speaksAs(mac)
	}
	return slices.ContainsFunc(h.w.nics, is) ||
		slices.ContainsFunc(h.left, func(d departure) bool { return is(d.nic) && d.at+5*second > h.w.now })
}

// servesStranger reports whether an undeclared guest of a network runs on a host
// and has been bound to it for an age.
func (h *host) servesStranger(network overlay.UID, age int64) bool {
	for _, x := range h.w.nics {
		if n, ok := h.w.isAdmitted(x); !ok || x.host != h || n.UID != network || !x.settled(age) || h.w.store.values[overlay.KeyOf(n)].at+age > h.w.now {
			continue
		}
		if e, v, ok := h.w.store.binding(network, x.mac); ok && !v.gone && e.Host == h.uid && v.at+age <= h.w.now {
			return true
		}
	}
	return false
}

// checkStrangerClaim: what is bound already is pinned and let through here, on
// one of the devices that its guest has.
func (h *host) checkStrangerClaim(c agentcore.Claim, n *overlay.Network) {
	row, pinned := h.kernel.Row(hoststate.Key{Table: hoststate.TableMaster, VNI: n.VNI, MAC: c.MAC})
	door, open := h.kernel.Row(hoststate.Key{Table: hoststate.TablePort, Port: row.Port})
	_, own := h.kernel.Row(hoststate.Key{Table: hoststate.TableOwn, Port: row.Port, MAC: c.MAC})
	if pinned && row.Port != 0 && row.Flags&hoststate.Sticky != 0 && open && (door.MAC == c.MAC || own) {
		return
	}
	for _, x := range h.w.nics {
		l, ok := h.kernel.Link(x.name)
		if x.isStranger() && x.host == h && x.vm.network == n.UID && x.speaksAs(c.MAC) && x.since+second < h.w.now && ok && l.Master != 0 {
			h.w.fail("%s claims %s, and its kernel has %v and %v", h.name, c.MAC, row, door)
		}
	}
}
