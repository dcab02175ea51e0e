package kerneltest

import (
	"bytes"
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// setRow writes one row as the kernel does.
func (m *Model) setRow(r hoststate.Row) hoststate.Class {
	k, v := r.Key, r.Val
	switch k.Table {
	case hoststate.TableVTEP:
		if !m.base {
			return hoststate.ClassNotFound
		}
		if !k.IP.IsValid() {
			return hoststate.ClassRefused
		}
		put(m, &m.vteps, k.IP, struct{}{})
		return hoststate.ClassOK
	case hoststate.TableMember:
		if !m.base {
			return hoststate.ClassNotFound
		}
		if l := m.links[k.Port]; l != nil {
			l.isolatedPort = false
		}
		put(m, &m.member, k.Port, struct{}{})
		return hoststate.ClassOK
	case hoststate.TableMark:
		if !m.base {
			return hoststate.ClassNotFound
		}
		if !k.IP.Is6() {
			return hoststate.ClassRefused
		}
		put(m, &m.marks, k.IP, struct{}{})
		return hoststate.ClassOK
	case hoststate.TableMaster:
		return m.setMaster(k, v)
	}
	if programs, _ := ofPrograms(k.Table); programs {
		return m.setProgram(k, v)
	}
	x := m.vxlan(k.VNI)
	if x == nil {
		return hoststate.ClassGone
	}
	t := m.net(k.VNI)
	switch k.Table {
	case hoststate.TableFDB:
		if !k.MAC.IsUnicast() || !v.Dst.IsValid() || v.Dst.Is4() != x.Local.Is4() || v.VNI == k.VNI || v.VNI != 0 && !v.VNI.Valid() {
			return hoststate.ClassRefused
		}
		v = hoststate.Val{Dst: v.Dst, VNI: v.VNI, Flags: v.Flags & (hoststate.Static | hoststate.Extern | hoststate.Permanent | hoststate.Router)}
		if old, ok := t.fdb.m[k.MAC]; !ok || old != v {
			put(m, &t.fdb, k.MAC, v)
			if !ok {
				m.Use(k.VNI, k.MAC)
			}
			m.ring(hoststate.Doorbell{VNI: k.VNI, Row: hoststate.Row{Key: k, Val: v}})
		}
	case hoststate.TableRepl:
		if !k.IP.IsValid() || k.IP.Is4() != x.Local.Is4() || k.MAC.IsUnicast() {
			return hoststate.ClassRefused
		}
		if _, ok := t.repl.m[peerOf(k)]; !ok { // append: one that is there already stays
			v = hoststate.Val{Flags: hoststate.Permanent}
			put(m, &t.repl, peerOf(k), v)
			m.ring(hoststate.Doorbell{VNI: k.VNI, Row: hoststate.Row{Key: k, Val: v}})
		}
	case hoststate.TableNeigh:
		if !k.IP.IsValid() || k.IP.Is6() && !x.IPv6 {
			return hoststate.ClassRefused
		}
		// Neighbour events name their writer, so own ones ring no bell.
		put(m, &t.neigh, k.IP, hoststate.Val{MAC: v.MAC, Flags: v.Flags & (hoststate.Permanent | hoststate.Ours | hoststate.Router)})
	default:
		return hoststate.ClassRefused
	}
	return hoststate.ClassOK
}

func (m *Model) setMaster(k hoststate.Key, v hoststate.Val) hoststate.Class {
	b := m.bridge(k.VNI)
	port := m.links[v.Port]
	if v.Port == 0 {
		port = m.vxlan(k.VNI)
	}
	if b == nil || port == nil || port.Master != b.Index {
		return hoststate.ClassGone
	}
	if !k.MAC.IsUnicast() {
		return hoststate.ClassRefused
	}
	v = hoststate.Val{Port: v.Port, Flags: v.Flags & (hoststate.Static | hoststate.Extern | hoststate.Sticky | hoststate.Permanent)}
	t := m.net(k.VNI)
	if old, ok := t.master.m[k.MAC]; !ok || old != v {
		put(m, &t.master, k.MAC, v)
		m.ring(hoststate.Doorbell{VNI: k.VNI, Row: hoststate.Row{Key: k, Val: v}})
	}
	return hoststate.ClassOK
}

// delRow deletes one row, comparing where the kernel can compare.
func (m *Model) delRow(r hoststate.Row) hoststate.Class {
	k := r.Key
	old, ok, known := m.lookup(k)
	programs, _ := ofPrograms(k.Table)
	if !known {
		if isElement(k) {
			return hoststate.ClassNotFound
		}
		return hoststate.ClassGone
	}
	if !ok && k.Table == hoststate.TableRepl && len(m.net(k.VNI).list(k.MAC)) > 0 {
		return hoststate.ClassOK // deleted with a destination that the list does not have
	}
	if !ok {
		return hoststate.ClassNotFound
	}
	into := r.Val.VNI
	if into == k.VNI { // to the kernel the device's own is none
		into = 0
	}
	if k.Table == hoststate.TableFDB && (old.Dst != r.Val.Dst || old.VNI != into) || k.Table == hoststate.TableMaster && old.Port != r.Val.Port {
		return hoststate.ClassOK
	}
	m.drop(k, old, !programs && !isElement(k))
	return hoststate.ClassOK
}

// isElement reports whether a row is an element of an nftables set, of which
// own writes ring no bell.
func isElement(k hoststate.Key) bool {
	return k.Table == hoststate.TableVTEP || k.Table == hoststate.TableMember || k.Table == hoststate.TableMark
}

// drop removes a row that is there and rings if told to.
func (m *Model) drop(k hoststate.Key, old hoststate.Val, bell bool) {
	m.Writes++
	t := m.nets[k.VNI]
	switch k.Table {
	case hoststate.TableVTEP:
		m.vteps.del(k.IP)
	case hoststate.TableMember:
		m.member.del(k.Port)
		if l := m.links[k.Port]; l != nil && l.Kind == hoststate.LinkOther {
			l.isolatedPort = true
		}
	case hoststate.TableMark:
		m.marks.del(k.IP)
	case hoststate.TableFDB:
		t.fdb.del(k.MAC)
		t.used.del(k.MAC)
	case hoststate.TableMaster:
		t.master.del(k.MAC)
	case hoststate.TableRepl:
		t.repl.del(peerOf(k))
	case hoststate.TableNeigh:
		t.neigh.del(k.IP)
	default:
		m.dropProgram(k)
	}
	if bell {
		m.ring(hoststate.Doorbell{VNI: k.VNI, Row: hoststate.Row{Key: k, Val: old}, Deleted: true})
	}
}

// lookup is what stands under a key. known is false if the table itself is
// not there (no device, no base), which a read-back cannot verify.
func (m *Model) lookup(k hoststate.Key) (v hoststate.Val, ok, known bool) {
	switch k.Table {
	case hoststate.TableVTEP:
		_, ok = m.vteps.m[k.IP]
		return v, ok, m.base
	case hoststate.TableMember:
		_, ok = m.member.m[k.Port]
		return v, ok, m.base
	case hoststate.TableMark:
		_, ok = m.marks.m[k.IP]
		return v, ok, m.base
	}
	if programs, _ := ofPrograms(k.Table); programs {
		return m.lookupProgram(k)
	}
	t := m.nets[k.VNI]
	if k.Table == hoststate.TableMaster {
		known = m.bridge(k.VNI) != nil
	} else {
		known = m.vxlan(k.VNI) != nil
	}
	if t == nil || !known {
		return v, false, known
	}
	switch k.Table {
	case hoststate.TableFDB:
		v, ok = t.fdb.m[k.MAC]
	case hoststate.TableMaster:
		v, ok = t.master.m[k.MAC]
	case hoststate.TableRepl:
		v, ok = t.repl.m[peerOf(k)]
	case hoststate.TableNeigh:
		v, ok = t.neigh.m[k.IP]
	}
	return v, ok, known
}

// put writes and counts, unless the row stands as it should already.
func put[K, V comparable](m *Model, s *shared[K, V], k K, v V) {
	if old, ok := s.m[k]; ok && old == v {
		return
	}
	m.Writes++
	s.put(k, v)
}

// forget deletes the bridge's rows on port l.
func (m *Model) forget(t *tables, b, l *link) {
	port := l.Index
	if l.Kind == hoststate.LinkVXLAN && l.VNI == b.VNI {
		port = 0
	}
	var gone []overlay.MAC
	for mac, v := range t.master.m {
		if v.Port == port {
			gone = append(gone, mac)
		}
	}
	slices.SortFunc(gone, func(a, b overlay.MAC) int { return bytes.Compare(a[:], b[:]) })
	for _, mac := range gone {
		k := hoststate.Key{Table: hoststate.TableMaster, VNI: b.VNI, MAC: mac}
		m.drop(k, t.master.m[mac], true)
	}
}

func (m *Model) wipeNeigh(v overlay.VNI) {
	t := m.nets[v]
	if t == nil {
		return
	}
	ips := make([]netip.Addr, 0, len(t.neigh.m))
	for ip := range t.neigh.m {
		ips = append(ips, ip)
	}
	for _, ip := range overlay.SortAddrs(ips) {
		m.drop(hoststate.Key{Table: hoststate.TableNeigh, VNI: v, IP: ip}, t.neigh.m[ip], true)
	}
}

// delLink deletes a device and what hangs on it.
func (m *Model) delLink(l *link) {
	m.release(l)
	switch l.Kind {
	case hoststate.LinkBridge:
		for _, p := range m.sortedLinks() {
			if p.Master == l.Index {
				m.release(p)
			}
		}
		if t := m.nets[l.VNI]; t != nil {
			t.master = shared[overlay.MAC, hoststate.Val]{}
		}
		delete(m.chains, l.Name)
	case hoststate.LinkVXLAN:
		if t := m.nets[l.VNI]; t != nil {
			for _, r := range m.deviceRows(l.VNI, t) {
				m.drop(r.Key, r.Val, true)
			}
			t.program = shared[hoststate.Key, hoststate.Val]{}
		}
	}
	delete(m.links, l.Index)
	delete(m.names, l.Name)
	for _, a := range l.AltNames {
		delete(m.names, a)
	}
	m.ringLinks()
}

// deviceRows are the rows that live in the VXLAN device, sorted.
func (m *Model) deviceRows(v overlay.VNI, t *tables) []hoststate.Row {
	rows := map[hoststate.Key]hoststate.Val{}
	for mac, val := range t.fdb.m {
		rows[hoststate.Key{Table: hoststate.TableFDB, VNI: v, MAC: mac}] = val
	}
	for p, val := range t.repl.m {
		rows[hoststate.Key{Table: hoststate.TableRepl, VNI: v, MAC: p.mac, IP: p.vtep}] = val
	}
	for ip, val := range t.neigh.m {
		rows[hoststate.Key{Table: hoststate.TableNeigh, VNI: v, IP: ip}] = val
	}
	return hoststate.SortedRows(rows)
}

func (m *Model) sortedLinks() []*link {
	var all []*link
	for _, l := range m.links {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b *link) int { return int(a.Index - b.Index) })
	return all
}
