package kerneltest

import (
	"maps"
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Plug makes a VM's device, up, and joins it to the bridge of vni if that is
// not 0 and there. It returns the ifindex; 0 if the name is taken.
func (m *Model) Plug(name string, vni overlay.VNI, alias string) int32 {
	if _, ok := m.names[name]; ok {
		return 0
	}
	l := m.addLink(hoststate.Link{Name: name, MTU: 1500, Up: true, IPv6: true, Alias: alias})
	if b := m.bridge(vni); b != nil {
		m.enslave(l, b)
	}
	m.ringLinks()
	return l.Index
}

// Pair makes a device the end of a pair whose other end is of that name; false
// if there is none.
func (m *Model) Pair(name, peer string) bool {
	l := m.links[m.names[name]]
	if l == nil {
		return false
	}
	l.Peer = peer
	m.ringLinks()
	return true
}

// Unplug deletes a device by name, as a stopping VM does; false if there is
// none.
func (m *Model) Unplug(name string) bool {
	l := m.links[m.names[name]]
	if l == nil {
		return false
	}
	m.delLink(l)
	return true
}

// Link is a device by name, reported or not.
func (m *Model) Link(name string) (hoststate.Link, bool) {
	if l := m.links[m.names[name]]; l != nil {
		return m.export(l), true
	}
	return hoststate.Link{}, false
}

// SetAlias is `ip link set NAME alias ALIAS`.
func (m *Model) SetAlias(name, alias string) {
	if l := m.links[m.names[name]]; l != nil {
		l.Alias = alias
		m.ringLinks()
	}
}

// SetUp is `ip link set NAME up` or `down`.
func (m *Model) SetUp(name string, up bool) {
	if l := m.links[m.names[name]]; l != nil {
		m.setUp(l, up)
	}
}

// SetIPv6 writes disable_ipv6 of a device; switching off loses its IPv6
// neighbours (kernel-facts 10).
func (m *Model) SetIPv6(name string, on bool) {
	l := m.links[m.names[name]]
	if l == nil || l.IPv6 == on {
		return
	}
	l.IPv6 = on
	if t := m.nets[l.VNI]; l.Kind == hoststate.LinkVXLAN && t != nil && !on {
		for _, r := range m.deviceRows(l.VNI, t) {
			if r.Key.Table == hoststate.TableNeigh && r.Key.IP.Is6() {
				m.drop(r.Key, r.Val, true)
			}
		}
	}
	m.ringLinks()
}

// SetMAC changes a device's address; a VXLAN device loses all neighbours over
// it (kernel-facts 2).
func (m *Model) SetMAC(name string, mac overlay.MAC) {
	l := m.links[m.names[name]]
	if l == nil || l.MAC == mac {
		return
	}
	l.MAC = mac
	if l.Kind == hoststate.LinkVXLAN {
		m.wipeNeigh(l.VNI)
	}
	m.ringLinks()
}

// SetPortState holds a port in an STP state, until it next goes up or down.
func (m *Model) SetPortState(name string, s hoststate.PortState) {
	if l := m.links[m.names[name]]; l != nil {
		l.State = s
		m.ringLinks()
	}
}

// SetPortFlags changes flood and learning of a bridge port.
func (m *Model) SetPortFlags(name string, flood, learns bool) {
	if l := m.links[m.names[name]]; l != nil {
		l.Flood, l.Learns = flood, learns
		m.ringLinks()
	}
}

// SetRow writes a row as a foreign program would; the class is the kernel's.
func (m *Model) SetRow(r hoststate.Row) hoststate.Class {
	before, had, _ := m.lookup(r.Key)
	c := m.setRow(r)
	after, has, _ := m.lookup(r.Key)
	if c == hoststate.ClassOK && (had != has || before != after) {
		switch {
		case isElement(r.Key):
			m.ringLinks()
		case r.Key.Table == hoststate.TableNeigh:
			m.ring(hoststate.Doorbell{VNI: r.Key.VNI, Row: hoststate.Row{Key: r.Key, Val: after}})
		}
	}
	return c
}

// DeleteRow deletes whatever stands under a key; false if nothing does.
func (m *Model) DeleteRow(k hoststate.Key) bool {
	old, ok, _ := m.lookup(k)
	if !ok {
		return false
	}
	if programs, _ := ofPrograms(k.Table); programs {
		m.drop(k, old, false)
		return true
	}
	if isElement(k) {
		m.drop(k, old, false)
		m.ringLinks()
		return true
	}
	m.drop(k, old, true)
	return true
}

// DeleteLink deletes a device by name; false if there is none.
func (m *Model) DeleteLink(name string) bool { return m.Unplug(name) }

// FlushRuleset is `nft flush ruleset`: base, sets and isolation are gone.
func (m *Model) FlushRuleset() {
	m.base = false
	m.vteps, m.member, m.marks = shared[netip.Addr, struct{}]{}, shared[int32, struct{}]{}, shared[netip.Addr, struct{}]{}
	clear(m.chains)
	m.ringLinks()
}

// DropIsolation deletes the isolation chain of one bridge.
func (m *Model) DropIsolation(vni overlay.VNI) {
	delete(m.chains, vni.Bridge())
	m.ringLinks()
}

// VNIs are the networks that have rows or had them, sorted.
func (m *Model) VNIs() []overlay.VNI { return slices.Sorted(maps.Keys(m.nets)) }

// Passes reports whether a frame from one port may reach another: both
// forward, on one bridge, and the nftables base lets them. Without base
// everything passes, as in the kernel.
func (m *Model) Passes(from, to int32) bool {
	a, b := m.links[from], m.links[to]
	if a == nil || b == nil || a.Master == 0 || a.Master != b.Master ||
		a.State != hoststate.StateForwarding || b.State != hoststate.StateForwarding {
		return false
	}
	if a.isolatedPort && b.isolatedPort {
		return false
	}
	_, ma := m.member.m[from]
	_, mb := m.member.m[to]
	return !m.base || ma == mb
}

// Join makes a device a port of a bridge, as a hypervisor does.
func (m *Model) Join(name, bridge string) {
	l, b := m.links[m.names[name]], m.device(bridge, hoststate.LinkBridge)
	if l == nil || b == nil || l.Master == b.Index {
		return
	}
	m.enslave(l, b)
	m.ringLinks()
}
