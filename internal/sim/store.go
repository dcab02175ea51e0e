package sim

import (
	"slices"

	"culvert/internal/api"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// store is a durable store: bytes by key, a revision that rises, a fence. What
// it hands out went through the record encoder.
type store struct {
	w       *world
	rev     uint64
	changed uint64 // of the newest change of a record
	fence   uint64 // revision of the present decider's place
	values  map[overlay.Key]value
	// bound are the endpoints that each network ever had.
	bound map[overlay.UID][]overlay.Key
	// declared are the ports that each network ever had.
	declared map[overlay.UID][]overlay.Key
	// tell gets each revision, in order.
	tell func(managercore.Stored)
}

type value struct {
	bytes []byte
	rec   overlay.Record // decoded from bytes
	gone  bool
	n     uint64
	at    int64 // when it was written
	moved int64 // endpoints: when it came to its host from another one
}

// campaign makes the caller the decider; whoever was is fenced.
func (s *store) campaign() uint64 {
	s.rev++
	s.fence = s.rev
	return s.fence
}

// encoded is one write on its way.
type encoded struct {
	key   overlay.Key
	bytes []byte // nil: delete
}

func encodeWrites(ws []managercore.Write) []encoded {
	out := make([]encoded, 0, len(ws))
	for _, w := range ws {
		e := encoded{key: w.Key}
		if w.Rec != nil {
			e.bytes = api.MarshalStore(w.Rec, w.Gone)
		}
		out = append(out, e)
	}
	return out
}

// commit writes all or, under a lost fence, nothing.
func (s *store) commit(fence uint64, ws []encoded) (rev uint64, ok bool) {
	if fence != s.fence {
		return 0, false
	}
	seen := map[overlay.Key]bool{}
	e := managercore.Stored{N: s.rev + 1}
	for _, w := range ws {
		if seen[w.key] {
			s.w.fail("a transaction writes %v twice", w.key)
		}
		seen[w.key] = true
		if w.bytes == nil {
			if _, had := s.values[w.key]; had {
				delete(s.values, w.key)
				e.Deletes = append(e.Deletes, w.key)
			}
			continue
		}
		v := s.decode(w.bytes)
		v.n, v.at = e.N, s.w.now
		v.moved = movedAt(s.values[w.key], v)
		if overlay.KeyOf(v.rec) != w.key {
			s.w.fail("a record of %v is written under %v", overlay.KeyOf(v.rec), w.key)
		}
		s.index(w.key, v.rec)
		s.w.checkWithdrawal(s.values[w.key], v, ws)
		s.w.checkPlace(s.values[w.key], v)
		s.values[w.key] = v
		s.w.ever.note(v)
		s.w.talks.note(s.w, v)
		e.Puts = append(e.Puts, managercore.StoredRecord{Rec: v.rec, Gone: v.gone, N: v.n})
	}
	s.w.checkHolders(ws)
	if len(e.Puts)+len(e.Deletes) == 0 {
		return s.rev, true
	}
	s.rev++
	s.changed = s.rev
	s.tell(e)
	return s.rev, true
}

// movedAt is when an endpoint came to where it is now.
func movedAt(was, is value) int64 {
	e, ok := is.rec.(*overlay.Endpoint)
	if old, had := was.rec.(*overlay.Endpoint); ok && had && !was.gone && old.Host == e.Host {
		return was.moved
	}
	return is.at
}

func (s *store) index(k overlay.Key, rec overlay.Record) {
	at, network := s.bound, k.UID
	switch r := rec.(type) {
	case *overlay.Endpoint:
	case *overlay.Port:
		at, network = s.declared, r.Network
	default:
		return
	}
	if !slices.Contains(at[network], k) {
		at[network] = append(at[network], k)
	}
}

func (s *store) decode(b []byte) value {
	rec, gone, err := api.UnmarshalStore(b)
	if err != nil {
		s.w.fail("the store holds what cannot be read: %v", err)
	}
	return value{bytes: b, rec: rec, gone: gone}
}

// load is everything, in the order of keys.
func (s *store) load() managercore.Loaded {
	out := managercore.Loaded{N: s.rev}
	for _, k := range s.keys() {
		v := s.decode(s.values[k].bytes)
		out.Records = append(out.Records, managercore.StoredRecord{Rec: v.rec, Gone: v.gone, N: s.values[k].n})
	}
	return out
}

// newest is the revision of the newest change that is still there to be told.
func (s *store) newest() uint64 { return s.changed }

func (s *store) keys() []overlay.Key {
	keys := make([]overlay.Key, 0, len(s.values))
	for k := range s.values {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, overlay.Key.Compare)
	return keys
}

// networks and tenants are the live records, by key.
func (s *store) networks() []*overlay.Network { return live[*overlay.Network](s) }
func (s *store) tenants() []*overlay.Tenant   { return live[*overlay.Tenant](s) }

func live[T overlay.Record](s *store) []T {
	var out []T
	for _, k := range s.keys() {
		if v := s.values[k]; !v.gone {
			if rec, ok := v.rec.(T); ok {
				out = append(out, rec)
			}
		}
	}
	return out
}

func (s *store) network(uid overlay.UID) *overlay.Network {
	v, ok := s.values[overlay.Key{Kind: overlay.KindNetwork, UID: uid}]
	if !ok || v.gone {
		return nil
	}
	return v.rec.(*overlay.Network)
}

// binding is the endpoint's value, tombstone or not; ok is false if there is
// none.
func (s *store) binding(network overlay.UID, mac overlay.MAC) (e *overlay.Endpoint, v value, ok bool) {
	v, ok = s.values[overlay.Key{Kind: overlay.KindEndpoint, UID: network, MAC: mac}]
	if !ok {
		return nil, v, false
	}
	return v.rec.(*overlay.Endpoint), v, true
}
