package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Sight is what an agent wants of its kernel for one endpoint, for people who
// ask why it is reached or not.
type Sight struct {
	VNI     overlay.VNI // 0: the network is not known here
	Served  bool        // its tables stand here
	Device  string      // that the endpoint is behind; empty: it is not here
	Passes  bool        // ... which passes its frames
	Refused string      // why not, if it was refused
	// Rows are the wanted ones that are about the endpoint, in order; MACs what
	// it is named by in them, sorted.
	Rows []hoststate.Row
	MACs []overlay.MAC
}

// Sight looks at the tables of a network: at what they should have about a MAC
// and an address, which may be the zero ones.
func (c *Core) Sight(network overlay.UID, mac overlay.MAC, addr netip.Addr) Sight {
	n := c.nets[network]
	if n == nil || !n.live() {
		return Sight{}
	}
	s := Sight{VNI: n.rec.VNI, Served: n.serving}
	if !mac.IsZero() {
		s.MACs = append(s.MACs, mac)
	}
	if row := n.rows.get(hoststate.Key{Table: hoststate.TableNeigh, VNI: n.rec.VNI, IP: addr}); row != nil && row.wanted() {
		s.MACs = append(s.MACs, row.want().MAC) // in another network it has another name
	}
	slices.SortFunc(s.MACs, func(a, b overlay.MAC) int { return slices.Compare(a[:], b[:]) })
	s.MACs = slices.Compact(s.MACs)
	port := int32(0)
	if g := n.guests[mac]; g != nil {
		port, s.Device, s.Passes, s.Refused = g.tap.index, g.tap.name, g.tap.isMember && !g.barred, g.refusal
	}
	for _, set := range []*rowSet{n.rows, c.global} {
		for rs := range set.all() { // order-free: sorted below
			r := hoststate.Row{Key: rs.key, Val: hoststate.Val{}}
			if !rs.wanted() {
				continue
			}
			if r.Val = rs.want(); r.About(s.MACs, addr) || port != 0 && r.Key.Port == port {
				s.Rows = append(s.Rows, r)
			}
		}
	}
	slices.SortFunc(s.Rows, func(a, b hoststate.Row) int { return a.Key.Compare(b.Key) })
	return s
}

// Knows reports whether frames of another host's tunnel end point are to be
// taken here at all.
func (c *Core) Knows(vtep netip.Addr) bool {
	row := c.global.get(hoststate.Key{Table: hoststate.TableVTEP, IP: vtep})
	return row != nil && row.wanted()
}
