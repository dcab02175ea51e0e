package kerneltest

import (
	"context"
	"slices"

	"culvert/internal/hoststate"
)

// Apply implements the kernel edge.
func (m *Model) Apply(ctx context.Context, ops []hoststate.Op) []hoststate.Result {
	res := make([]hoststate.Result, len(ops))
	for i, o := range ops {
		res[i] = m.apply(ctx, o)
	}
	return res
}

func (m *Model) apply(ctx context.Context, o hoststate.Op) hoststate.Result {
	r := hoststate.Result{Op: o}
	if err := ctx.Err(); err != nil {
		r.Class, r.Text = hoststate.ClassTransient, err.Error()
		return r
	}
	if m.Fail != nil {
		if c := m.Fail(o); c != hoststate.ClassOK {
			r.Class, r.Text = c, "injected"
			return r
		}
	}
	switch o.Kind {
	case hoststate.OpSet:
		r.Class = m.setRow(o.Row)
	case hoststate.OpDel:
		r.Class = m.delRow(o.Row)
	default:
		r.Class = m.applyLink(o)
	}
	if o.Kind == hoststate.OpSet || o.Kind == hoststate.OpDel {
		r.Have, r.Present, r.Verified = m.lookup(o.Row.Key)
		if o.Kind == hoststate.OpDel && r.Class == hoststate.ClassNotFound && r.Present {
			r.Class = hoststate.ClassOK // another value stands there: compared, not deleted
		}
	}
	if r.Class != hoststate.ClassOK {
		r.Text = r.Class.String()
	}
	return r
}

func (m *Model) applyLink(o hoststate.Op) hoststate.Class {
	switch o.Kind {
	case hoststate.OpBase:
		m.base = true
		m.checkUnderlay()
		return hoststate.ClassOK
	case hoststate.OpMakeBridge:
		return m.makeBridge(o.Dev)
	case hoststate.OpMakeVXLAN:
		return m.makeVXLAN(o.Dev)
	case hoststate.OpTune:
		return m.tune(o.Dev)
	case hoststate.OpAttach:
		return m.attach(o)
	case hoststate.OpDetach:
		return m.detach(o.Name)
	case hoststate.OpAnnounce:
		return m.announce(o.Row)
	case hoststate.OpSend:
		return m.send(o)
	}
	if o.Kind != hoststate.OpUp && o.Kind != hoststate.OpPort && o.Kind != hoststate.OpDelLink {
		return hoststate.ClassRefused
	}
	l := m.links[o.Index]
	if l == nil {
		return hoststate.ClassGone
	}
	switch o.Kind {
	case hoststate.OpUp:
		m.setUp(l, true)
	case hoststate.OpPort:
		if l.Master == 0 {
			return hoststate.ClassGone
		}
		if m.portAt(l.Index) != nil {
			m.guard(l)
		}
		_, in := m.member.m[l.Index]
		if !l.Flood && l.Learns == o.Learn && !l.IPv6 && l.isolatedPort == !in {
			return hoststate.ClassOK
		}
		l.Flood, l.Learns, l.IPv6, l.isolatedPort = false, o.Learn, false, !in
		m.ringLinks()
	case hoststate.OpDelLink:
		m.delLink(l)
	}
	return hoststate.ClassOK
}

func (m *Model) makeBridge(d hoststate.Device) hoststate.Class {
	if !d.VNI.Valid() {
		return hoststate.ClassRefused
	}
	if _, ok := m.names[d.VNI.Bridge()]; ok {
		return hoststate.ClassExists
	}
	l := hoststate.Link{Name: d.VNI.Bridge(), Kind: hoststate.LinkBridge, VNI: d.VNI, MTU: d.MTU, MAC: d.BridgeMAC(), Alias: d.Alias}
	if d.AltName != "" {
		if _, ok := m.names[d.AltName]; ok {
			return hoststate.ClassExists
		}
		l.AltNames = []string{d.AltName}
	}
	b := m.addLink(l)
	if d.AltName != "" {
		m.names[d.AltName] = b.Index
	}
	m.chains[b.Name] = true
	b.Up = true
	m.ringLinks()
	return hoststate.ClassOK
}

func (m *Model) makeVXLAN(d hoststate.Device) hoststate.Class {
	if !d.VNI.Valid() || !d.Local.IsValid() {
		return hoststate.ClassRefused
	}
	if _, ok := m.names[d.VNI.VXLAN()]; ok {
		return hoststate.ClassExists
	}
	b := m.bridge(d.VNI)
	if b == nil {
		return hoststate.ClassGone
	}
	m.addLink(hoststate.Link{
		Name: d.VNI.VXLAN(), Kind: hoststate.LinkVXLAN, VNI: d.VNI, VXVNI: d.VNI, Master: b.Index, MTU: d.MTU,
		MAC: d.VXLANMAC(), Alias: d.Alias, IPv6: true, State: hoststate.StateDisabled, Flood: d.Misses,
		Local: d.Local, UDPPort: d.UDPPort, DF: d.DF, DOVE: true, Guarded: true,
	})
	m.ringLinks()
	return hoststate.ClassOK
}

func (m *Model) tune(d hoststate.Device) hoststate.Class {
	b, x := m.bridge(d.VNI), m.vxlan(d.VNI)
	if b == nil && x == nil {
		return hoststate.ClassGone
	}
	class := hoststate.ClassOK
	if b != nil {
		b.MTU, b.Alias, b.IPv6 = d.MTU, d.Alias, false
		m.chains[b.Name] = true
		class = m.rename(b, d.AltName)
	}
	if x != nil {
		x.MTU, x.Alias, x.DF, x.Local, x.IPv6 = d.MTU, d.Alias, d.DF, d.Local, true
		if b != nil && x.Master != b.Index {
			m.enslave(x, b)
		}
		x.Flood, x.Learns, x.Guarded = d.Misses, false, true
	}
	m.ringLinks()
	return class
}

// rename gives a bridge its altname instead of those it has.
func (m *Model) rename(b *link, name string) hoststate.Class {
	if name == "" || slices.Contains(b.AltNames, name) {
		return hoststate.ClassOK
	}
	if _, ok := m.names[name]; ok {
		return hoststate.ClassExists
	}
	for _, a := range b.AltNames {
		delete(m.names, a)
	}
	b.AltNames = []string{name}
	m.names[name] = b.Index
	return hoststate.ClassOK
}

func (m *Model) attach(o hoststate.Op) hoststate.Class {
	b := m.bridge(o.Dev.VNI)
	l := m.links[m.names[o.Name]]
	if b == nil || l == nil {
		return hoststate.ClassGone
	}
	if l.Kind == hoststate.LinkBridge {
		return hoststate.ClassRefused // ELOOP: a bridge cannot be a bridge's port
	}
	l.Alias = o.Alias
	if l.Master != b.Index {
		m.enslave(l, b)
		l.Flood, l.Learns, l.isolatedPort = false, false, true
	}
	m.ringLinks()
	return hoststate.ClassOK
}

func (m *Model) detach(name string) hoststate.Class {
	l := m.links[m.names[name]]
	if l == nil {
		return hoststate.ClassGone
	}
	l.Alias = ""
	m.release(l)
	m.ringLinks()
	return hoststate.ClassOK
}

func (m *Model) announce(r hoststate.Row) hoststate.Class {
	if m.bridge(r.Key.VNI) == nil {
		return hoststate.ClassGone
	}
	if !r.Key.IP.IsValid() || !r.Val.MAC.IsUnicast() {
		return hoststate.ClassRefused
	}
	m.Announced = append(m.Announced, r)
	return hoststate.ClassOK
}

func (m *Model) send(o hoststate.Op) hoststate.Class {
	l := m.links[o.Index]
	switch {
	case len(o.Frame) < minSent || len(o.Frame) > maxSent:
		return hoststate.ClassRefused
	case l == nil || l.Kind != hoststate.LinkOther || m.links[l.Master] == nil:
		return hoststate.ClassGone
	case l.Up:
		m.Sent = append(m.Sent, o)
	}
	return hoststate.ClassOK
}

// Bounds of a frame that OpSend takes, in bytes: an Ethernet header, and an
// untagged frame of the usual MTU.
const (
	minSent = 14
	maxSent = 1514
)

// enslave gives a port the properties that a bridge's new port has.
func (m *Model) enslave(l, b *link) {
	m.release(l)
	l.Master, l.Flood, l.Learns, l.isolatedPort = b.Index, true, true, false
	m.portState(l)
}

// release takes a port off its bridge; the bridge forgets what it knew on it.
func (m *Model) release(l *link) {
	if b := m.links[l.Master]; b != nil {
		if t := m.nets[b.VNI]; t != nil {
			m.forget(t, b, l)
		}
	}
	if l.Kind == hoststate.LinkOther {
		m.unguard(l)
	}
	l.Master, l.State, l.Flood, l.Learns, l.isolatedPort = 0, hoststate.StateDisabled, false, false, false
}

func (m *Model) portState(l *link) {
	l.State = hoststate.StateDisabled
	if b := m.links[l.Master]; b != nil && b.Up && l.Up {
		l.State = hoststate.StateForwarding
	}
}

func (m *Model) setUp(l *link, up bool) {
	if l.Up == up {
		return
	}
	l.Up = up
	if l.Master != 0 {
		m.portState(l)
	}
	if l.Kind == hoststate.LinkBridge {
		for _, p := range m.sortedLinks() {
			if p.Master == l.Index {
				m.portState(p)
			}
		}
	}
	if l.Kind == hoststate.LinkVXLAN && !up {
		m.wipeNeigh(l.VNI)
	}
	m.ringLinks()
}
