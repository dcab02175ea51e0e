package agentcore

import (
	"iter"
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// rowSet is the rows of one network, or the host's global ones.
//
// A row is found by the port of its key, or its MAC, or its address: the first
// of them that it has, and of a group's list the address. Those that share it
// are few (a MAC has its two entries and its sources) and are chained. One map with whole keys costs a look into
// memory for each row of an endpoint instead of one for all, and three times
// the room.
type rowSet struct {
	byPort map[int32]*rowState
	byMAC  map[overlay.MAC]*rowState
	byIP   map[netip.Addr]*rowState // those without any of the three, too
	last   *rowState                // beginning of the MAC's chain that was looked at last
	n      int
	queue  []*rowState
	open   int        // rows that are in the ledger
	term   int        // counts up when all rows are forgotten
	fresh  []rowState // where new rows come from, many at a time
}

func newRowSet() *rowSet {
	s := &rowSet{}
	s.forget()
	return s
}

// forget takes all rows out of the set.
func (s *rowSet) forget() {
	s.byPort, s.byMAC, s.byIP = map[int32]*rowState{}, map[overlay.MAC]*rowState{}, map[netip.Addr]*rowState{}
	s.last, s.n, s.queue, s.open = nil, 0, nil, 0
}

// first is the beginning of the chain in which a key's row is, if there is one.
func (s *rowSet) first(k *hoststate.Key) *rowState {
	switch {
	case k.Port != 0:
		return s.byPort[k.Port]
	case k.MAC != overlay.MAC{} && k.Table != hoststate.TableRepl:
		if s.last == nil || s.last.key.MAC != k.MAC {
			s.last = s.byMAC[k.MAC]
		}
		return s.last
	default:
		return s.byIP[k.IP]
	}
}

// begin makes rs the beginning of the chain of key k; nil ends the chain.
func (s *rowSet) begin(k *hoststate.Key, rs *rowState) {
	switch {
	case k.Port != 0:
		begin(s.byPort, k.Port, rs)
	case k.MAC != overlay.MAC{} && k.Table != hoststate.TableRepl:
		begin(s.byMAC, k.MAC, rs)
		s.last = rs
	default:
		begin(s.byIP, k.IP, rs)
	}
}

func begin[K comparable](m map[K]*rowState, k K, rs *rowState) {
	if rs == nil {
		delete(m, k)
		return
	}
	m[k] = rs
}

// get is the row of a key; nil if the set has none.
func (s *rowSet) get(k hoststate.Key) *rowState { return chained(s.first(&k), &k) }

func chained(rs *rowState, k *hoststate.Key) *rowState {
	for ; rs != nil; rs = rs.next {
		// The table first: a chain has mostly one row of each.
		if rs.key.Table == k.Table && rs.key == *k {
			return rs
		}
	}
	return nil
}

// row is the row of a key, made if the set has none.
func (s *rowSet) row(k hoststate.Key) *rowState {
	first := s.first(&k)
	if rs := chained(first, &k); rs != nil {
		return rs
	}
	if len(s.fresh) == 0 {
		s.fresh = make([]rowState, min(max(s.n, 8), 256))
	}
	rs := &s.fresh[0]
	s.fresh = s.fresh[1:]
	rs.key = k
	if s.n++; first == nil {
		s.begin(&k, rs)
	} else { // second in the chain: its beginning stays
		rs.next, first.next = first.next, rs
	}
	return rs
}

// remove takes a row out of the set.
func (s *rowSet) remove(rs *rowState) {
	first := s.first(&rs.key)
	if first == rs {
		s.begin(&rs.key, rs.next)
	} else {
		for first.next != rs {
			first = first.next
		}
		first.next = rs.next
	}
	rs.next = nil
	s.n--
}

// all goes through the rows in no order: who uses it sorts, or does with each
// row what has nothing to do with the others.
func (s *rowSet) all() iter.Seq[*rowState] {
	return func(yield func(*rowState) bool) {
		for _, rs := range s.byPort { // order-free: see all
			if !each(rs, yield) {
				return
			}
		}
		for _, rs := range s.byMAC { // order-free: see all
			if !each(rs, yield) {
				return
			}
		}
		for _, rs := range s.byIP { // order-free: see all
			if !each(rs, yield) {
				return
			}
		}
	}
}

func each(rs *rowState, yield func(*rowState) bool) bool {
	for ; rs != nil; rs = rs.next {
		if !yield(rs) {
			return false
		}
	}
	return true
}

// enqueue puts a row that is not as it should be where NextOps finds it.
func (s *rowSet) enqueue(rs *rowState) {
	if !rs.queued && !rs.busy {
		rs.queued = true
		s.queue = append(s.queue, rs)
	}
}
