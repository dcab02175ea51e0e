package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// What the program of a VXLAN device looks for, relays and aliases, it looks for
// only while there may be any on the host: cv_turning says so, by a bit each.

// writeTurning carries out changes of one of the two maps.
func writeTurning[V any](s *Set, bit uint32, m *ebpf.Map, h *halves[relayKey, V], errs []error) {
	s.portMu.Lock()
	defer s.portMu.Unlock()
	if len(h[0].keys) != 0 {
		if err := s.turn(bit, true); err != nil {
			for _, i := range h[0].at {
				errs[i] = err
			}
			h[0] = group[relayKey, V]{}
		}
	}
	h.write(m, errs)
	if len(h[1].keys) != 0 {
		_ = s.endTurning(bit, m) // what was to be deleted is
	}
}

// turn sets or clears a bit. Callers hold portMu.
func (s *Set) turn(bit uint32, on bool) error {
	was, _, err := get[uint32, uint32](s.objects.CvTurning, 0)
	is := was &^ bit
	if on {
		is = was | bit
	}
	if err != nil || is == was {
		return err
	}
	return s.objects.CvTurning.Put(uint32(0), is)
}

// endTurning spares the program a look into a map that is empty. Callers hold
// portMu.
func (s *Set) endTurning(bit uint32, m *ebpf.Map) error {
	var k relayKey
	err := m.NextKey(nil, &k)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return s.turn(bit, false)
	}
	return err
}

// dropTurning forgets what there is at a device.
func (s *Set) dropTurning(device int32) error {
	s.portMu.Lock()
	defer s.portMu.Unlock()
	return errors.Join(dropAt[uint8](s, relaying, s.objects.CvRelay, device), dropAt[networkVal](s, aliasing, s.objects.CvAlias, device))
}

// dropAt is dropTurning of one of the two maps.
func dropAt[V any](s *Set, bit uint32, m *ebpf.Map, device int32) error {
	var old []relayKey
	err := each(m, func(r relayKey, _ V) {
		if r.Device == uint32(device) {
			old = append(old, r)
		}
	})
	remove(m, old, func(_ int, e error) { err = errors.Join(err, ignoreAbsent(e)) })
	return errors.Join(err, s.endTurning(bit, m))
}
