package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Place is where a port is.
type Place struct {
	Bridge int32 // ifindex
	VNI    overlay.VNI
}

// AddPort registers a port at a place, which must come before its rows. What
// an earlier device of that ifindex, or the same one at another place, has
// left behind goes.
func (s *Set) AddPort(port int32, at Place) error {
	if _, ok, err := get[uint32, portState](s.objects.CvState, uint32(port)); err != nil {
		return fmt.Errorf("read port %d: %w", port, err)
	} else if ok {
		if err := s.DropPort(port); err != nil {
			return err
		}
	}
	if err := s.objects.CvState.Put(uint32(port), portState{Bridge: uint32(at.Bridge), VNI: at.VNI}); err != nil {
		return fmt.Errorf("register port %d: %w", port, err)
	}
	return nil
}

// DropPort forgets a port with its rows and counters, the registration last:
// rows are never without one. What it owns goes after the entry that repeats it.
func (s *Set) DropPort(port int32) error {
	s.portMu.Lock()
	defer s.portMu.Unlock()
	if err := ignoreAbsent(s.objects.CvPorts.Delete(uint32(port))); err != nil {
		return fmt.Errorf("forget port %d: %w", port, err)
	}
	var own []ownKey
	err := each(s.objects.CvOwn, func(o ownKey, _ uint8) {
		if o.Port == uint32(port) {
			own = append(own, o)
		}
	})
	remove(s.objects.CvOwn, own, func(_ int, e error) { err = errors.Join(err, ignoreAbsent(e)) })
	if err == nil {
		err = ignoreAbsent(s.objects.CvState.Delete(uint32(port)))
	}
	if err != nil {
		return fmt.Errorf("forget port %d: %w", port, err)
	}
	return nil
}

// Port is the place that a port was registered at; ok is false if it is not.
func (s *Set) Port(port int32) (at Place, ok bool, err error) {
	st, ok, err := get[uint32, portState](s.objects.CvState, uint32(port))
	return Place{int32(st.Bridge), st.VNI}, ok, err
}

// Ports are the registered ports with their bridges, and what the programs
// dropped.
func (s *Set) Ports() (bridges map[int32]int32, drops map[hoststate.DropKey]uint64, err error) {
	bridges, drops = map[int32]int32{}, map[hoststate.DropKey]uint64{}
	err = each(s.objects.CvState, func(port uint32, st portState) {
		bridges[int32(port)] = int32(st.Bridge)
		for reason, n := range st.Drops {
			if n != 0 {
				drops[hoststate.DropKey{Port: int32(port), Reason: hoststate.DropReason(reason)}] = n
			}
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read ports: %w", err)
	}
	for reason := range s.objects.CvUnderdrops.MaxEntries() {
		var each []uint64
		if err := s.objects.CvUnderdrops.Lookup(reason, &each); err != nil {
			return nil, nil, fmt.Errorf("read counters: %w", err)
		}
		var sum uint64
		for _, n := range each {
			sum += n
		}
		if sum != 0 {
			drops[hoststate.DropKey{Reason: hoststate.DropReason(reason)}] = sum
		}
	}
	return bridges, drops, nil
}

// network is the map of one network's rows.
type network struct {
	*ebpf.Map
	id uint32
}

// Sizes of a network's map: the kernel takes 16 bytes for each entry that it
// may hold, so it begins small and grows.
const (
	networkMin  = 256
	networkMax  = 1 << 22
	networkStep = 4
)

// network opens a network's map; nil if there is none. Callers hold netMu.
func (s *Set) network(v overlay.VNI) (*network, error) {
	id, ok, err := get[uint32, uint32](s.objects.CvNetworks, uint32(v))
	if err != nil {
		return nil, fmt.Errorf("look up network %d: %w", v, err)
	}
	n := s.nets[v]
	if n != nil && (!ok || n.id != id) {
		_ = n.Close()
		delete(s.nets, v)
		n = nil
	}
	if !ok || n != nil {
		return n, nil
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // it went
	}
	if err != nil {
		return nil, fmt.Errorf("open network %d: %w", v, err)
	}
	n = &network{m, id}
	s.nets[v] = n
	return n, nil
}

// makeNetwork gives a network an empty map of a size, in place of what it has.
// Callers hold netMu.
func (s *Set) makeNetwork(v overlay.VNI, size uint32, fill func(*ebpf.Map) error) error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "cv_network", Type: ebpf.Hash, KeySize: 24, ValueSize: 8, MaxEntries: size, Flags: unix.BPF_F_NO_PREALLOC})
	if err != nil {
		return fmt.Errorf("make map of network %d: %w", v, err)
	}
	defer m.Close() // the entry in cv_networks keeps it
	if fill != nil {
		err = fill(m)
	}
	if err == nil {
		err = hurried(func() error { return s.objects.CvNetworks.Put(uint32(v), m) })
	}
	if err != nil {
		return fmt.Errorf("enter network %d: %w", v, err)
	}
	return nil
}

// grow moves a network's rows into a larger map with room for more, which
// takes the old one's place at once. Callers hold netMu.
func (s *Set) grow(v overlay.VNI, n *network, more int) error {
	size := max(n.MaxEntries()*networkStep, n.MaxEntries()+uint32(more))
	if size > networkMax {
		return unix.ENOSPC
	}
	return s.makeNetwork(v, size, func(m *ebpf.Map) error {
		var keys []networkKey
		var vals []networkVal
		err := each(n.Map, func(k networkKey, v networkVal) { keys, vals = append(keys, k), append(vals, v) })
		put(m, keys, vals, func(_ int, e error) { err = errors.Join(err, e) })
		return err
	})
}

// writeNetwork writes rows of one network, in a larger map if they need it.
func (s *Set) writeNetwork(v overlay.VNI, h *halves[networkKey, networkVal], errs []error) {
	s.netMu.Lock()
	defer s.netMu.Unlock()
	all := func(err error) {
		for _, g := range h {
			for _, i := range g.at {
				errs[i] = err
			}
		}
	}
	for again := false; ; {
		n, err := s.network(v)
		if err == nil && n == nil {
			err = unix.ENODEV
		}
		if err != nil {
			all(err)
			return
		}
		if again { // what was deleted is, and what was refused may pass now
			h[1] = group[networkKey, networkVal]{}
		}
		all(nil)
		h.write(n.Map, errs)
		full := false
		for _, i := range h[0].at {
			full = full || errors.Is(errs[i], unix.E2BIG)
		}
		if !full || s.grow(v, n, len(h[0].keys)) != nil {
			return
		}
		again = true
	}
}

// AddNetwork registers a VXLAN device, which must come before its network's
// rows. A device that is registered already keeps them; another one of the
// same network, or another network's, begins without any.
func (s *Set) AddNetwork(v overlay.VNI, device int32) error {
	s.netMu.Lock()
	defer s.netMu.Unlock()
	was, ok, err := get[uint32, uint32](s.objects.CvDevices, uint32(device))
	if err != nil {
		return fmt.Errorf("read device %d: %w", device, err)
	}
	if ok && was == uint32(v) {
		n, err := s.network(v)
		if err != nil || n != nil {
			return err
		}
		return s.makeNetwork(v, networkMin, nil)
	}
	var old []uint32
	err = each(s.objects.CvDevices, func(d, vni uint32) {
		if d == uint32(device) || vni == uint32(v) {
			old = append(old, d)
		}
	})
	for _, d := range old {
		err = errors.Join(err, s.dropDevice(int32(d)))
	}
	if err == nil {
		err = errors.Join(s.dropTurning(device), s.dropRoutes(v))
	}
	if err == nil {
		err = s.makeNetwork(v, networkMin, nil)
	}
	if err == nil {
		err = s.objects.CvDevices.Put(uint32(device), uint32(v))
	}
	if err != nil {
		return fmt.Errorf("register device %d: %w", device, err)
	}
	return nil
}

// DropNetwork forgets a VXLAN device and the rows of its network.
func (s *Set) DropNetwork(device int32) error {
	s.netMu.Lock()
	defer s.netMu.Unlock()
	if err := s.dropDevice(device); err != nil {
		return fmt.Errorf("forget device %d: %w", device, err)
	}
	return nil
}

// dropDevice is DropNetwork for callers that hold netMu.
func (s *Set) dropDevice(device int32) error {
	v, ok, err := get[uint32, uint32](s.objects.CvDevices, uint32(device))
	if err != nil || !ok {
		return err
	}
	err = errors.Join(s.dropTurning(device), s.dropRoutes(overlay.VNI(v)))
	err = errors.Join(err, ignoreAbsent(hurried(func() error { return s.objects.CvNetworks.Delete(v) })))
	if n := s.nets[overlay.VNI(v)]; n != nil {
		err = errors.Join(err, n.Close())
		delete(s.nets, overlay.VNI(v))
	}
	if err != nil {
		return err
	}
	return ignoreAbsent(s.objects.CvDevices.Delete(uint32(device)))
}

// dropRoutes forgets a network's routes.
func (s *Set) dropRoutes(v overlay.VNI) error {
	var old []routeKey
	err := each(s.objects.CvRoutes, func(r routeKey, _ networkVal) {
		if r.vni() == v {
			old = append(old, r)
		}
	})
	remove(s.objects.CvRoutes, old, func(_ int, e error) { err = errors.Join(err, ignoreAbsent(e)) })
	return err
}

// Network is the network that a device was registered for.
func (s *Set) Network(device int32) (v overlay.VNI, ok bool, err error) {
	n, ok, err := get[uint32, uint32](s.objects.CvDevices, uint32(device))
	return overlay.VNI(n), ok, err
}

// Networks are the registered devices with their networks.
func (s *Set) Networks() (map[int32]overlay.VNI, error) {
	all := map[int32]overlay.VNI{}
	err := each(s.objects.CvDevices, func(d, v uint32) { all[int32(d)] = overlay.VNI(v) })
	return all, err
}
