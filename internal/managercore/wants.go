package managercore

import (
	"net/netip"
	"slices"
	"strings"

	"culvert/internal/overlay"
)

// Bounds of what one host wants of all on-demand networks. What is beyond them
// is not entered.
const (
	MaxWants = 200_000
	maxHints = 10_000 // of them, that it did not say itself
)

// wants is what one host wants to know.
type wants struct {
	of       map[overlay.UID]*wantSet // by network; none is empty
	n, hints int
	refused  uint64
	dropped  []overlay.Want // to confirm, of networks of which nothing is told on demand
}

// wantSet is what a host wants to know of one network; true is what it said
// itself. The nil set is empty.
type wantSet struct {
	addrs map[netip.Addr]bool
	macs  map[overlay.MAC]bool
	names map[string]bool
}

func newWantSet() *wantSet {
	return &wantSet{addrs: map[netip.Addr]bool{}, macs: map[overlay.MAC]bool{}, names: map[string]bool{}}
}

// has reports whether it is what one of the wants names.
func (s *wantSet) has(it *Item) bool {
	if s == nil {
		return false
	}
	switch r := it.Rec.(type) {
	case *overlay.Endpoint:
		if _, ok := s.macs[r.MAC]; ok {
			return true
		}
		return slices.ContainsFunc(r.Addresses, func(a netip.Addr) bool { _, ok := s.addrs[a]; return ok })
	case *overlay.Port:
		_, mac := s.macs[r.MAC]
		_, name := s.names[r.Name]
		return mac || name
	}
	return false
}

// get is whether the host said w itself, and whether w stands.
func (s *wantSet) get(w overlay.Want) (said, ok bool) {
	switch {
	case s == nil:
	case w.Address.IsValid():
		said, ok = s.addrs[w.Address]
	case w.Name != "":
		said, ok = s.names[w.Name]
	default:
		said, ok = s.macs[w.MAC]
	}
	return said, ok
}

func (s *wantSet) enter(w overlay.Want, said bool) {
	switch {
	case w.Address.IsValid():
		s.addrs[w.Address] = said
	case w.Name != "":
		s.names[w.Name] = said
	default:
		s.macs[w.MAC] = said
	}
}

func (s *wantSet) remove(w overlay.Want) {
	switch {
	case w.Address.IsValid():
		delete(s.addrs, w.Address)
	case w.Name != "":
		delete(s.names, w.Name)
	default:
		delete(s.macs, w.MAC)
	}
}

func (s *wantSet) len() int { return len(s.addrs) + len(s.macs) + len(s.names) }

// enter makes w stand, and reports false if it is beyond the bounds.
func (x *wants) enter(w overlay.Want, said bool) bool {
	s := x.of[w.Network]
	before, ok := s.get(w)
	switch {
	case !ok && (x.n >= MaxWants || !said && x.hints >= maxHints):
		x.refused++
		return false
	case ok && (before || !said):
		return true
	case ok:
		x.hints--
	default:
		if s == nil {
			s = newWantSet()
			if x.of == nil {
				x.of = map[overlay.UID]*wantSet{}
			}
			x.of[w.Network] = s
		}
		x.n++
		if !said {
			x.hints++
		}
	}
	s.enter(w, said)
	return true
}

// remove ends w, if it stands.
func (x *wants) remove(w overlay.Want) {
	s := x.of[w.Network]
	said, ok := s.get(w)
	if !ok {
		return
	}
	x.n--
	if !said {
		x.hints--
	}
	if s.remove(w); s.len() == 0 {
		delete(x.of, w.Network)
	}
}

// forget ends all that is wanted of the network.
func (x *wants) forget(network overlay.UID) {
	for _, w := range x.all(network) {
		x.remove(w)
	}
}

// all is what is wanted of the network: addresses, MACs and names, each sorted.
func (x *wants) all(network overlay.UID) []overlay.Want {
	s := x.of[network]
	if s == nil {
		return nil
	}
	var addrs, macs, names []overlay.Want
	for a := range s.addrs { // order-free: sorted below
		addrs = append(addrs, overlay.Want{Network: network, Address: a})
	}
	for m := range s.macs { // order-free: sorted below
		macs = append(macs, overlay.Want{Network: network, MAC: m})
	}
	for n := range s.names { // order-free: sorted below
		names = append(names, overlay.Want{Network: network, Name: n})
	}
	slices.SortFunc(addrs, func(a, b overlay.Want) int { return a.Address.Compare(b.Address) })
	slices.SortFunc(macs, func(a, b overlay.Want) int { return slices.Compare(a.MAC[:], b.MAC[:]) })
	slices.SortFunc(names, func(a, b overlay.Want) int { return strings.Compare(a.Name, b.Name) })
	return slices.Concat(addrs, macs, names)
}
