// Package mem is a store in memory, for tests and simulation. It gives the same
// revisions as store/etcd for the same calls, has no clock, no goroutine and no
// randomness of its own, and may be used from one goroutine (Watch.Poll, never
// waiting) or from many.
//
// Nothing ends a lease by itself: a test ends it by EndLease.
package mem

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"culvert/internal/store"
)

// Fault is what happens to one Commit, for tests of the caller.
type Fault int

// The faults a store can show its user.
const (
	None     Fault = iota // the commit is carried out
	Full                  // ErrFull, nothing applied
	NotSent               // ErrUnknown, nothing applied
	NoAnswer              // ErrUnknown, applied nevertheless
)

// Store is one cluster's records and their history. The zero value is not
// usable; call New.
type Store struct {
	cluster string

	mu        sync.Mutex
	records   *btree.Map[string, store.KV] // never changed while a snapshot shares it
	history   []store.Batch                // ascending; all revisions above compacted
	rev       int64
	compacted int64
	holder    *fence // nil: nobody
	watches   []*watch
	fault     func(ops []store.Op) Fault
	closed    bool
}

var _ store.Store = (*Store)(nil)

// New makes an empty store, at revision 1 as a new etcd is.
func New(cluster string) (*Store, error) {
	if err := store.CheckCluster(cluster); err != nil {
		return nil, err
	}
	return &Store{cluster: cluster, rev: 1, records: new(btree.Map[string, store.KV])}, nil
}

// SetFault makes f decide about each later Commit that would succeed; nil
// restores. f is called with the store locked and must not call it.
func (s *Store) SetFault(f func(ops []store.Op) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// EndLease is what the end of the decider's lease does: the key goes, in a
// revision of its own, and the fence is lost. Without a decider it does nothing.
func (s *Store) EndLease() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropHolder()
}

// Rev is the newest revision.
func (s *Store) Rev() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}

// Prefix implements store.Store.
func (s *Store) Prefix() string { return store.Prefix(s.cluster) }

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, f store.Fence, ops []store.Op) (int64, error) {
	if err := store.CheckOps(s.cluster, ops); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	if s.holder == nil || s.holder.rev != f.Rev() {
		return 0, store.ErrFenced
	}
	outcome := None
	if s.fault != nil {
		outcome = s.fault(ops)
	}
	switch outcome {
	case Full:
		return 0, store.ErrFull
	case NotSent:
		return 0, fmt.Errorf("%w: request lost", store.ErrUnknown)
	}
	s.apply(ops)
	if outcome == NoAnswer {
		return 0, fmt.Errorf("%w: answer lost", store.ErrUnknown)
	}
	return s.rev, nil
}

// apply makes one revision of ops, or none where nothing changes. Caller holds mu.
func (s *Store) apply(ops []store.Op) {
	b := store.Batch{Rev: s.rev + 1}
	for _, op := range ops {
		old, had := s.records.Get(op.Key)
		if op.Value == nil {
			if had {
				s.records.Delete(op.Key)
				b.Deletes = append(b.Deletes, op.Key)
			}
			continue
		}
		kv := store.KV{Key: op.Key, Value: slices.Clone(op.Value), ModRev: b.Rev, CreateRev: b.Rev}
		if had {
			kv.CreateRev = old.CreateRev
		}
		s.records.Set(op.Key, kv)
		b.Puts = append(b.Puts, kv)
	}
	if len(b.Puts)+len(b.Deletes) == 0 {
		return
	}
	s.rev = b.Rev
	s.history = append(s.history, b)
	for _, w := range s.watches {
		w.signal()
	}
}

// Campaign implements store.Store. The lease never ends by itself.
func (s *Store) Campaign(ctx context.Context, id string, ttl time.Duration) (store.Fence, error) {
	if err := store.CheckCampaign(id, ttl); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	if s.holder != nil {
		if s.holder.id != id {
			return nil, &store.HeldError{By: s.holder.id}
		}
		s.dropHolder()
	}
	s.apply([]store.Op{{Key: store.DeciderKey(s.cluster), Value: []byte(id)}})
	s.holder = &fence{s: s, id: id, rev: s.rev, lost: make(chan struct{})}
	return s.holder, nil
}

// dropHolder removes the decider's key and voids its fence. Caller holds mu.
func (s *Store) dropHolder() {
	if s.holder == nil {
		return
	}
	close(s.holder.lost)
	s.holder = nil
	s.apply([]store.Op{{Key: store.DeciderKey(s.cluster)}})
}

// Snapshot implements store.Store. page may call the store.
func (s *Store) Snapshot(ctx context.Context, page func([]store.KV) error) (int64, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, store.ErrClosed
	}
	records, rev := s.records.Copy(), s.rev // copy on write: O(1)
	s.mu.Unlock()
	var kvs []store.KV
	var err error
	flush := func() bool {
		if err = ctx.Err(); err == nil && len(kvs) > 0 {
			err = page(kvs)
		}
		kvs = nil
		return err == nil
	}
	records.Scan(func(_ string, kv store.KV) bool {
		kvs = append(kvs, kv)
		return len(kvs) < store.PageSize || flush()
	})
	if err == nil && !flush() || err != nil {
		return 0, err
	}
	return rev, nil
}

// Compact implements store.Store.
func (s *Store) Compact(_ context.Context, rev int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	if rev > s.rev {
		return &store.RefusedError{What: "compaction", Value: fmt.Sprint(rev), Allowed: fmt.Sprintf("revisions up to %d", s.rev)}
	}
	if rev > s.compacted {
		s.compacted = rev
		s.history = slices.Clone(s.history[s.after(rev):])
	}
	return nil
}

// after is the index in history of the first revision above rev. Caller holds mu.
func (s *Store) after(rev int64) int {
	return sort.Search(len(s.history), func(i int) bool { return s.history[i].Rev > rev })
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.holder != nil {
		close(s.holder.lost)
		s.holder = nil
	}
	for _, w := range s.watches {
		w.signal()
	}
	return nil
}

type fence struct {
	s    *Store
	id   string
	rev  int64
	lost chan struct{}
}

func (f *fence) Rev() int64            { return f.rev }
func (f *fence) Lost() <-chan struct{} { return f.lost }

func (f *fence) Resign(context.Context) error {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.holder == f {
		f.s.dropHolder()
	}
	return nil
}
