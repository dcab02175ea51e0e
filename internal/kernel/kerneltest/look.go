package kerneltest

import (
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Row is what stands under a key; ok is false if nothing does.
func (m *Model) Row(k hoststate.Key) (v hoststate.Val, ok bool) {
	v, ok, _ = m.lookup(k)
	return v, ok
}

// Rows are the rows of one network, in the order of their keys.
func (m *Model) Rows(vni overlay.VNI) []hoststate.Row {
	return hoststate.SortedRows(m.state(hoststate.Scope{VNI: vni}).Rows)
}

// LinkAt is a device by ifindex, reported or not.
func (m *Model) LinkAt(index int32) (hoststate.Link, bool) {
	if l := m.links[index]; l != nil {
		return m.export(l), true
	}
	return hoststate.Link{}, false
}

// Links are all devices, reported or not, by ifindex.
func (m *Model) Links() []hoststate.Link {
	var out []hoststate.Link
	for _, l := range m.sortedLinks() {
		out = append(out, m.export(l))
	}
	return out
}

// GlobalRows are the rows of the host's own sets: VTEPs, members, the mark.
func (m *Model) GlobalRows() []hoststate.Row {
	return hoststate.SortedRows(m.state(hoststate.Scope{Links: true}).Rows)
}
