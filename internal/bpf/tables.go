package bpf

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Change is one row to write or to delete.
type Change struct {
	Row    hoststate.Row
	Delete bool
	Device int32 // ifindex of the network's VXLAN device, for rows of a network
}

// group collects the entries of one map and the numbers of their changes.
type group[K, V any] struct {
	keys   []K
	values []V
	at     []int
}

// halves are what is written of one map and what is deleted.
type halves[K, V any] [2]group[K, V]

func (h *halves[K, V]) add(k K, v V, i int, del bool) {
	g := &h[0]
	if del {
		g = &h[1]
	}
	g.keys, g.values, g.at = append(g.keys, k), append(g.values, v), append(g.at, i)
}

// failed notes the error of an entry.
func (g *group[K, V]) failed(errs []error) func(int, error) {
	return func(i int, err error) { errs[g.at[i]] = err }
}

// write carries out both halves.
func (h *halves[K, V]) write(m *ebpf.Map, errs []error) {
	put(m, h[0].keys, h[0].values, h[0].failed(errs))
	remove(m, h[1].keys, h[1].failed(errs))
}

// Write carries out changes, in any order, and returns the error of each. No
// two may be of one key. Rows of ports and networks that are not registered
// are the caller's mistake and are written all the same.
func (s *Set) Write(changes []Change) []error {
	errs := make([]error, len(changes))
	var ports halves[uint32, portConf]
	var owned halves[ownKey, uint8]
	var relays halves[relayKey, uint8]
	var aliases halves[relayKey, networkVal]
	var routes halves[routeKey, networkVal]
	nets := map[overlay.VNI]*halves[networkKey, networkVal]{}
	for i, c := range changes {
		switch k := c.Row.Key; k.Table {
		case hoststate.TablePort:
			ports.add(uint32(k.Port), portOf(c.Row.Val), i, c.Delete)
		case hoststate.TableOwn:
			owned.add(ownOf(k), ownedAs(c.Row.Val), i, c.Delete)
		case hoststate.TableRelay:
			relays.add(relayKey{Device: uint32(c.Device), MAC: k.MAC}, 0, i, c.Delete)
		case hoststate.TableAlias:
			aliases.add(relayKey{Device: uint32(c.Device), MAC: k.MAC}, networkVal{MAC: c.Row.Val.MAC}, i, c.Delete)
		case hoststate.TableRoute:
			r, n := routeOf(k)
			routes.add(r, networkVal{MAC: c.Row.Val.MAC, N: n}, i, c.Delete)
		default:
			if kindOf(k) == 0 {
				errs[i] = fmt.Errorf("table %s: %w", k.Table, unix.EINVAL)
				continue
			}
			if nets[k.VNI] == nil {
				nets[k.VNI] = &halves[networkKey, networkVal]{}
			}
			nets[k.VNI].add(networkKeyOf(k), networkValOf(c.Row.Val), i, c.Delete)
		}
	}
	s.writePorts(&ports, &owned, errs)
	writeTurning(s, relaying, s.objects.CvRelay, &relays, errs)
	writeTurning(s, aliasing, s.objects.CvAlias, &aliases, errs)
	routes.write(s.objects.CvRoutes, errs)
	for v, h := range nets {
		s.writeNetwork(v, h, errs)
	}
	return errs
}

// Found is what stands under a key.
type Found struct {
	Val     hoststate.Val
	Present bool
	Err     error // then nothing is known
}

// Read reads the rows that changes are of, one by one.
func (s *Set) Read(changes []Change) []Found {
	s.netMu.Lock()
	defer s.netMu.Unlock()
	found := make([]Found, len(changes))
	nets := map[overlay.VNI]*network{}
	for i, c := range changes {
		k := c.Row.Key
		n, ok := nets[k.VNI]
		if !ok && k.VNI != 0 {
			var err error
			if n, err = s.network(k.VNI); err != nil {
				found[i].Err = err
				continue
			}
			nets[k.VNI] = n
		}
		f := &found[i]
		f.Val, f.Present, f.Err = s.row(k, c.Device, n)
		f.Present = f.Present && f.Err == nil
	}
	return found
}

// row is what stands under a key, n being its network's map or nil.
func (s *Set) row(k hoststate.Key, device int32, n *network) (v hoststate.Val, ok bool, err error) {
	switch k.Table {
	case hoststate.TablePort:
		c, ok, err := get[uint32, portConf](s.objects.CvPorts, uint32(k.Port))
		return c.val(), ok, err
	case hoststate.TableOwn:
		as, ok, err := get[ownKey, uint8](s.objects.CvOwn, ownOf(k))
		return ownedVal(as), ok, err
	case hoststate.TableRelay:
		_, ok, err = get[relayKey, uint8](s.objects.CvRelay, relayKey{Device: uint32(device), MAC: k.MAC})
	case hoststate.TableAlias:
		is, ok, err := get[relayKey, networkVal](s.objects.CvAlias, relayKey{Device: uint32(device), MAC: k.MAC})
		return hoststate.Val{MAC: is.MAC}, ok, err
	case hoststate.TableRoute:
		r, bits := routeOf(k)
		hop, ok, err := get[routeKey, networkVal](s.objects.CvRoutes, r)
		if hop.N != bits {
			return v, false, err
		}
		return hoststate.Val{MAC: hop.MAC}, ok, err
	default:
		if n != nil {
			key := networkKeyOf(k)
			nv, ok, err := get[networkKey, networkVal](n.Map, key)
			return nv.val(key), ok, err
		}
	}
	return v, ok, err
}

// PortRows hands out all rows of TablePort and TableOwn.
func (s *Set) PortRows(f func(hoststate.Row)) error {
	err := each(s.objects.CvPorts, func(port uint32, c portConf) {
		f(hoststate.Row{Key: hoststate.Key{Table: hoststate.TablePort, Port: int32(port)}, Val: c.val()})
	})
	return errors.Join(err, each(s.objects.CvOwn, func(o ownKey, as uint8) { f(hoststate.Row{Key: o.key(), Val: ownedVal(as)}) }))
}

// NetworkRows hands out the rows of a network: those of its map, those at its
// VXLAN device, and its routes.
func (s *Set) NetworkRows(v overlay.VNI, device int32, f func(hoststate.Row)) error {
	s.netMu.Lock()
	n, err := s.network(v)
	if n != nil {
		err = each(n.Map, func(k networkKey, nv networkVal) { f(hoststate.Row{Key: k.key(v), Val: nv.val(k)}) })
	}
	s.netMu.Unlock()
	if err != nil {
		return err
	}
	err = each(s.objects.CvRelay, func(r relayKey, _ uint8) {
		if r.Device == uint32(device) {
			f(hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRelay, VNI: v, MAC: r.MAC}})
		}
	})
	err = errors.Join(err, each(s.objects.CvAlias, func(r relayKey, is networkVal) {
		if r.Device == uint32(device) {
			f(hoststate.Row{Key: hoststate.Key{Table: hoststate.TableAlias, VNI: v, MAC: r.MAC}, Val: hoststate.Val{MAC: is.MAC}})
		}
	}))
	return errors.Join(err, each(s.objects.CvRoutes, func(r routeKey, hop networkVal) {
		if r.vni() == v {
			f(r.row(hop))
		}
	}))
}

// SetVTEP writes whether frames of an outer address are taken at all. Deleting
// what is not there is no error.
func (s *Set) SetVTEP(a netip.Addr, in bool) error {
	if in {
		return s.objects.CvVteps.Put(a.As16(), uint8(0))
	}
	return ignoreAbsent(s.objects.CvVteps.Delete(a.As16()))
}

// HasVTEP says what SetVTEP wrote.
func (s *Set) HasVTEP(a netip.Addr) (bool, error) {
	_, ok, err := get[[16]byte, uint8](s.objects.CvVteps, a.As16())
	return ok, err
}

// VTEPs are all of them.
func (s *Set) VTEPs() (map[netip.Addr]bool, error) {
	all := map[netip.Addr]bool{}
	err := each(s.objects.CvVteps, func(b [16]byte, _ uint8) { all[addr(b)] = true })
	return all, err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Configure writes the configuration, if it is not as it should be.
func (s *Set) Configure() error {
	if ok, err := s.Configured(); ok || err != nil {
		return err
	}
	if err := s.objects.CvConfig.Put(uint32(0), s.config); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// Configured says whether the configuration is as it should be.
func (s *Set) Configured() (bool, error) {
	c, _, err := get[uint32, config](s.objects.CvConfig, 0)
	if err != nil {
		return false, fmt.Errorf("read configuration: %w", err)
	}
	return c == s.config, nil
}
