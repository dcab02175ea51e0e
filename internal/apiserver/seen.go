package apiserver

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// seen is what hosts told of guests, by what they are found by.
type seen struct {
	guests map[seenKey]*overlay.Seen
	// macs and addrs are refusals by the MAC of the guest that is refused, and
	// by the address that it is.
	macs  map[netMAC][]hostRefusal
	addrs map[netAddr][]hostRefusal
}

type (
	netMAC struct {
		network overlay.UID
		mac     overlay.MAC
	}
	netAddr struct {
		network overlay.UID
		addr    netip.Addr
	}
	seenKey struct {
		host overlay.UID
		netMAC
	}
	hostRefusal struct {
		host overlay.UID
		*overlay.Refused
	}
)

func (r *renderer) whatWasSeen() *seen {
	if r.seen != nil {
		return r.seen
	}
	s := &seen{guests: map[seenKey]*overlay.Seen{}, macs: map[netMAC][]hostRefusal{}, addrs: map[netAddr][]hostRefusal{}}
	for _, h := range slices.SortedFunc(maps.Keys(r.hosts), overlay.UID.Compare) {
		f := r.hosts[h]
		for i := range f.Seen {
			x := &f.Seen[i]
			s.guests[seenKey{h, netMAC{x.Network, x.MAC}}] = x
		}
		if !f.Connected {
			continue // what it refused may have healed
		}
		for i := range f.Refused {
			x := &f.Refused[i]
			m, a := netMAC{x.Network, x.MAC}, netAddr{x.Network, x.Address}
			s.macs[m], s.addrs[a] = append(s.macs[m], hostRefusal{h, x}), append(s.addrs[a], hostRefusal{h, x})
		}
	}
	r.seen = s
	return s
}

// portSeen adds what its host saw of a port's guest, what that is denied, and
// who else is denied what is the port's.
func (r *renderer) portSeen(p *overlay.Port, st *culvertv1.PortStatus) {
	s := r.whatWasSeen()
	id := netMAC{p.Network, p.MAC}
	if it := r.v.Endpoint(p.Network, p.MAC); it != nil {
		if x := s.guests[seenKey{it.Rec.(*overlay.Endpoint).Host, id}]; x != nil {
			for _, g := range x.Groups {
				st.Groups = append(st.Groups, g.String())
			}
			st.Drops = dropsOf(x.Drops)
		}
	}
	add := func(list []hostRefusal) {
		for _, x := range list {
			st.Refusals = append(st.Refusals, fmt.Sprintf("on %s, device %s: %s", r.hostName(x.host), x.Device, denied(x.Refused)))
		}
	}
	add(s.macs[id])
	for _, a := range p.Addresses {
		add(s.addrs[netAddr{p.Network, a}])
	}
}

// refusals are the lines on what a host's guests are denied.
func (r *renderer) refusals(f *HostFact) (lines []string) {
	if !f.Connected {
		return nil
	}
	for i := range f.Refused {
		x := &f.Refused[i]
		n := r.network(x.Network)
		lines = append(lines, fmt.Sprintf("device %s in %s/%s: %s", x.Device, n.TenantName, n.Name, denied(x)))
	}
	if f.RefusedMore > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", f.RefusedMore))
	}
	return lines
}

// denied says who is denied what, and why: "52:54:00:00:00:13 may not have
// 10.1.0.1: it is the gateway's (CV0132)".
func denied(x *overlay.Refused) string {
	switch {
	case x.Address.IsValid():
		return x.MAC.String() + " may not have " + x.Address.String() + ": " + x.Reason
	case x.MAC.IsZero():
		return x.Reason
	}
	return x.MAC.String() + " is not let in: " + x.Reason
}

func dropsOf(in []overlay.Count) (out []*culvertv1.Drop) {
	for _, c := range in {
		out = append(out, &culvertv1.Drop{Reason: c.Reason, Frames: c.N})
	}
	return out
}
