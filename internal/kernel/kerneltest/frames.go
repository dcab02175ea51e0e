package kerneltest

import (
	"net/netip"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// What the VXLAN device does with what a guest sends (kernel-facts 1 and 4).
// Frames are not modelled, only where they go and what they leave behind: the
// time of last use, and misses.

// Misses hands out the misses since the last call, oldest first.
func (m *Model) Misses() []hoststate.Miss {
	all := m.misses
	m.misses = nil
	return all
}

// miss is noted once while nobody has taken it, as package kernel hands it on.
func (m *Model) miss(x hoststate.Miss) {
	for _, y := range m.misses {
		if x == y {
			return
		}
	}
	m.misses = append(m.misses, x)
}

// Use says that the VXLAN device has looked an entry up just now.
func (m *Model) Use(v overlay.VNI, mac overlay.MAC) {
	t := m.nets[v]
	if t == nil || m.Clock == nil {
		return
	}
	if _, ok := t.fdb.m[mac]; ok {
		t.used.put(mac, m.Clock())
	}
}

// idle adds for how long entries were not looked up.
func (m *Model) idle(s *hoststate.State, v overlay.VNI, t *tables) {
	if x := m.vxlan(v); x == nil || !x.Flood {
		return
	}
	if s.Idle == nil {
		s.Idle = map[hoststate.Key]time.Duration{}
	}
	for mac := range t.fdb.m {
		var since time.Duration
		if m.Clock != nil {
			since = m.Clock() - t.used.m[mac]
		}
		s.Idle[hoststate.Key{Table: hoststate.TableFDB, VNI: v, MAC: mac}] = since
	}
}

// overlayOf is the network of a guest's port if its frames come as far as the
// VXLAN device; 0 if not.
func (m *Model) overlayOf(port int32) overlay.VNI {
	p := m.portAt(port)
	if p == nil || m.ports.m[port].Flags&hoststate.Open == 0 {
		return 0
	}
	v := m.bridgeOf(p).VNI
	if x := m.vxlan(v); x == nil || !x.Up || !m.Passes(port, x.Index) {
		return 0
	}
	return v
}

// Ask is a guest that asks for a neighbour, by an ARP request or a neighbour
// solicitation, to all or to one. answer is the MAC that the device's proxy
// tells it; it passes on no such frame.
func (m *Model) Ask(port int32, ip netip.Addr) (answer overlay.MAC, ok bool) {
	v := m.overlayOf(port)
	if v == 0 || !ip.IsValid() {
		return answer, false
	}
	t := m.net(v)
	n, known := t.neigh.m[ip]
	if !known {
		m.missed(v, hoststate.Miss{VNI: v, IP: ip})
		return answer, false
	}
	m.Use(v, n.MAC)
	if n.Flags&hoststate.Permanent == 0 || t.fdb.m[n.MAC].Dst.IsValid() && t.fdb.m[n.MAC].Dst.IsUnspecified() {
		return answer, false
	}
	return n.MAC, true
}

// missed notes a miss that is handed on: of a network that wants them.
func (m *Model) missed(v overlay.VNI, x hoststate.Miss) {
	if m.vxlan(v).Flood {
		m.miss(x)
	}
}

// Way is where a frame leaves a VXLAN device for: a VTEP, and into which network.
type Way struct {
	VTEP netip.Addr
	Into overlay.VNI
}

// Frame is a guest that sends a frame to a MAC that is not its own; packet is
// the destination of the IP packet in it, invalid if there is none. The result
// is where the VXLAN device sends it.
func (m *Model) Frame(port int32, to overlay.MAC, packet netip.Addr) []Way {
	v := m.overlayOf(port)
	if v == 0 || !m.floods(v, to) {
		return nil
	}
	t := m.net(v)
	if m.Use(v, to); t.fdb.m[to].Flags&hoststate.Router != 0 && packet.IsValid() {
		if n, ok := t.neigh.m[packet]; ok {
			to = n.MAC
			m.Use(v, to)
		} else {
			m.missed(v, hoststate.Miss{VNI: v, IP: packet})
		}
	}
	if e, ok := t.fdb.m[to]; ok {
		if e.VNI != 0 {
			return []Way{{e.Dst, e.VNI}}
		}
		return []Way{{e.Dst, v}}
	}
	list := t.list(to)
	if len(list) == 0 {
		list = t.list(overlay.MAC{})
	}
	if len(list) == 0 && to.IsUnicast() {
		m.missed(v, hoststate.Miss{VNI: v, MAC: to})
	}
	var ways []Way
	for _, vtep := range list {
		ways = append(ways, Way{vtep, v})
	}
	return ways
}

// floods says whether the bridge hands a guest's frame to the VXLAN device.
func (m *Model) floods(v overlay.VNI, to overlay.MAC) bool {
	if !to.IsUnicast() {
		return true
	}
	if e, ok := m.net(v).master.m[to]; ok {
		return e.Port == 0
	}
	return m.vxlan(v).Flood
}

// list is a replication list; a unicast MAC has none.
func (t *tables) list(mac overlay.MAC) (vteps []netip.Addr) {
	for p := range t.repl.m {
		if p.mac == mac {
			vteps = append(vteps, p.vtep)
		}
	}
	return overlay.SortAddrs(vteps)
}
