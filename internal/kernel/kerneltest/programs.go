package kerneltest

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// owned is what belongs to a port besides: a MAC or an address.
type owned struct {
	port int32
	mac  overlay.MAC
	ip   netip.Addr
}

// peer is a MAC and a VTEP in the list of destinations that it has.
type peer struct {
	mac  overlay.MAC
	vtep netip.Addr
}

func ownedBy(k hoststate.Key) owned { return owned{k.Port, k.MAC, k.IP} }

func peerOf(k hoststate.Key) peer { return peer{k.MAC, k.IP} }

// ofPrograms says whether a table is the programs', and whether its rows are
// a port's.
func ofPrograms(t hoststate.Table) (programs, port bool) {
	switch t {
	case hoststate.TablePort, hoststate.TableOwn:
		return true, true
	case hoststate.TableSource, hoststate.TableRelayed, hoststate.TableRelay, hoststate.TableReach,
		hoststate.TableKnown, hoststate.TableRoute, hoststate.TableAlias, hoststate.TableFrom, hoststate.TableRouted:
		return true, false
	}
	return false, false
}

// programKey says whether the programs' tables can hold a key.
func programKey(k hoststate.Key) bool {
	plain := k.IP.IsValid() && !k.IP.Is4In6() && k.IP.Zone() == ""
	zero := k.MAC == overlay.MAC{}
	switch k.Table {
	case hoststate.TablePort:
		return zero && !k.IP.IsValid()
	case hoststate.TableOwn, hoststate.TableReach:
		return plain && zero || !k.IP.IsValid() && k.MAC.IsUnicast()
	case hoststate.TableSource, hoststate.TableRouted:
		return plain && (k.MAC.IsUnicast() || zero)
	case hoststate.TableRelayed:
		return plain && k.MAC.IsUnicast()
	case hoststate.TableFrom:
		return plain && zero
	case hoststate.TableRoute:
		p := netip.PrefixFrom(k.IP, int(k.Bits))
		return plain && zero && p.IsValid() && p == p.Masked()
	case hoststate.TableKnown:
		return !k.IP.IsValid() && !zero
	}
	return !k.IP.IsValid() && k.MAC.IsUnicast() // TableRelay, TableAlias
}

// programVal says whether they can hold a value under a key that they can hold.
func programVal(k hoststate.Key, v hoststate.Val) bool {
	zero := k.MAC == overlay.MAC{}
	switch k.Table {
	case hoststate.TablePort:
		flags := v.Flags & (hoststate.Open | hoststate.CheckIP | hoststate.NoServers | hoststate.Watch | hoststate.CheckLocal | hoststate.Routed | hoststate.Demand)
		return v.MAC.IsUnicast() && v == hoststate.Val{MAC: v.MAC, Flags: flags}
	case hoststate.TableOwn:
		return v == hoststate.Val{} || k.IP.IsValid() && (v == hoststate.Val{Flags: hoststate.Shared} || v == hoststate.Val{Flags: hoststate.Router})
	case hoststate.TableSource:
		return v == hoststate.Val{} || zero && v == hoststate.Val{Flags: hoststate.Strangers}
	case hoststate.TableRouted:
		return zero && v == hoststate.Val{Flags: hoststate.Strangers} || !zero && v == hoststate.Val{}
	case hoststate.TableReach:
		return v == hoststate.Val{} || k.IP.IsValid() && v == hoststate.Val{MTU: v.MTU}
	case hoststate.TableFrom, hoststate.TableAlias:
		return v.MAC.IsUnicast() && v == hoststate.Val{MAC: v.MAC}
	case hoststate.TableRoute:
		return v == hoststate.Val{} || v.MAC.IsUnicast() && v == hoststate.Val{MAC: v.MAC}
	}
	return v == hoststate.Val{}
}

// portAt is a VM's port on a bridge of ours, nil if there is none of that
// index.
func (m *Model) portAt(index int32) *link {
	if l := m.links[index]; l != nil && l.Kind == hoststate.LinkOther && m.bridgeOf(l) != nil {
		return l
	}
	return nil
}

func (m *Model) bridgeOf(l *link) *link {
	if b := m.links[l.Master]; b != nil && b.Kind == hoststate.LinkBridge && b.VNI != 0 {
		return b
	}
	return nil
}

// setProgram writes a row of the programs' tables. A port that has no
// programs gets them first.
func (m *Model) setProgram(k hoststate.Key, v hoststate.Val) hoststate.Class {
	_, port := ofPrograms(k.Table)
	var l *link
	if port {
		l = m.portAt(k.Port)
	} else {
		l = m.vxlan(k.VNI)
	}
	if l == nil {
		return hoststate.ClassGone
	}
	if !programKey(k) || !programVal(k, v) {
		return hoststate.ClassRefused
	}
	if port {
		m.guard(l)
	}
	t := m.net(k.VNI)
	switch k.Table {
	case hoststate.TablePort:
		put(m, &m.ports, k.Port, v)
	case hoststate.TableOwn:
		put(m, &m.owned, ownedBy(k), v)
	default:
		put(m, &t.program, k, v)
	}
	return hoststate.ClassOK
}

// lookupProgram is lookup for the programs' tables.
func (m *Model) lookupProgram(k hoststate.Key) (v hoststate.Val, ok, known bool) {
	_, port := ofPrograms(k.Table)
	if port {
		known = m.portAt(k.Port) != nil
	} else {
		known = m.vxlan(k.VNI) != nil
	}
	if known = known && programKey(k); !known {
		return v, false, false
	}
	t := m.nets[k.VNI]
	switch {
	case k.Table == hoststate.TablePort:
		v, ok = m.ports.m[k.Port]
	case k.Table == hoststate.TableOwn:
		v, ok = m.owned.m[ownedBy(k)]
	case t != nil:
		v, ok = t.program.m[k]
	}
	return v, ok, true
}

// dropProgram removes a row of the programs' tables. Nothing rings.
func (m *Model) dropProgram(k hoststate.Key) {
	switch k.Table {
	case hoststate.TablePort:
		m.ports.del(k.Port)
	case hoststate.TableOwn:
		m.owned.del(ownedBy(k))
	default:
		m.nets[k.VNI].program.del(k)
	}
}

// portRows adds the rows of ports.
func (m *Model) portRows(s *hoststate.State) {
	for i, v := range m.ports.m {
		s.Rows[hoststate.Key{Table: hoststate.TablePort, Port: i}] = v
	}
	for o, v := range m.owned.m {
		s.Rows[hoststate.Key{Table: hoststate.TableOwn, Port: o.port, MAC: o.mac, IP: o.ip}] = v
	}
}

// guard puts the programs on a port, in place of the source check.
func (m *Model) guard(l *link) { l.Guarded, l.checked = true, false }

// unguard takes them off: rows go with the program.
func (m *Model) unguard(l *link) {
	l.Guarded = false
	if l.Kind != hoststate.LinkOther {
		return
	}
	if _, ok := m.ports.m[l.Index]; ok {
		m.ports.del(l.Index)
	}
	for o := range m.owned.m {
		if o.port == l.Index {
			m.owned.del(o)
		}
	}
}

// underlay says whether VXLAN may come in over a device.
func (m *Model) underlay(l *link) bool { return l.Kind == hoststate.LinkOther && l.Master == 0 && l.Up }

// checkUnderlay puts the source check on every underlay device.
func (m *Model) checkUnderlay() {
	for _, l := range m.links {
		if m.underlay(l) {
			l.checked = true
		}
	}
}

// Based says whether nftables and the source check stand.
func (m *Model) Based() bool {
	for _, l := range m.links {
		if m.underlay(l) && !l.checked {
			return false
		}
	}
	return m.base
}

// Strip takes all our programs off a device, as a vandal does. Nothing rings.
func (m *Model) Strip(name string) {
	l := m.links[m.names[name]]
	if l == nil {
		return
	}
	m.unguard(l)
	l.checked = false
}

// Hear is a frame that a program hands up.
func (m *Model) Hear(h hoststate.Heard) { m.heard = append(m.heard, h) }

// Heard hands out the frames heard since the last call, oldest first.
func (m *Model) Heard() []hoststate.Heard {
	h := m.heard
	m.heard = nil
	return h
}
