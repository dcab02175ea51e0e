// Package storetest is what every store must pass: one suite, run on store/mem
// and store/etcd.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"culvert/internal/store"
)

// Cluster is the cluster id that Harness.Open must use.
const Cluster = "storetest"

// Harness is how the suite reaches an implementation.
type Harness struct {
	// Open gives a new, empty store of Cluster. It closes it at the test's end.
	Open func(t *testing.T) store.Store
	// EndLease ends the decider's lease as time would.
	EndLease func(t *testing.T, s store.Store)
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		run  func(*env)
	}{
		{"commit", testCommit},
		{"refused batches change nothing", testRefused},
		{"fence lost with its lease", testLeaseEnds},
		{"forged fences", testForged},
		{"one of many campaigners", testCampaigners},
		{"own id is taken over at once", testTakeover},
		{"resign", testResign},
		{"campaign refuses", testCampaignRefuses},
		{"snapshot is of one revision", testSnapshot},
		{"watch of random transactions", testWatchRandom},
		{"watch resumes", testWatchResumes},
		{"big transaction is one batch", testBigBatch},
		{"compaction", testCompaction},
		{"bookmarks", testBookmarks},
		{"slow reader gets all", testSlowReader},
		{"store older than its reader", testOlder},
		{"ends", testEnds},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			t.Cleanup(cancel)
			c.run(&env{T: t, h: h, s: h.Open(t), ctx: ctx})
		})
	}
}

// env is one test's store and the calls that must succeed.
type env struct {
	*testing.T
	h   Harness
	s   store.Store
	ctx context.Context
}

func (e *env) key(k string) string { return e.s.Prefix() + k }

func (e *env) put(k, v string) store.Op { return store.Op{Key: e.key(k), Value: []byte(v)} }

func (e *env) del(k string) store.Op { return store.Op{Key: e.key(k)} }

func (e *env) campaign(id string) store.Fence {
	e.Helper()
	f, err := e.s.Campaign(e.ctx, id, 5*time.Second)
	if err != nil {
		e.Fatalf("campaign of %s: %v", id, err)
	}
	return f
}

func (e *env) commit(f store.Fence, ops ...store.Op) int64 {
	e.Helper()
	rev, err := e.s.Commit(e.ctx, f, ops)
	if err != nil {
		e.Fatalf("commit: %v", err)
	}
	return rev
}

func (e *env) refuse(want error, f store.Fence, ops ...store.Op) {
	e.Helper()
	if rev, err := e.s.Commit(e.ctx, f, ops); !errors.Is(err, want) {
		e.Fatalf("commit: revision %d, error %v; want %v", rev, err, want)
	}
}

// all is the whole content, without the decider's key, and its revision.
func (e *env) all() (map[string]store.KV, int64) {
	e.Helper()
	m := map[string]store.KV{}
	rev, err := e.s.Snapshot(e.ctx, func(kvs []store.KV) error {
		for _, kv := range kvs {
			m[kv.Key] = kv
		}
		return nil
	})
	if err != nil {
		e.Fatalf("snapshot: %v", err)
	}
	delete(m, store.DeciderKey(Cluster))
	return m, rev
}

func (e *env) watch(after int64) store.Watch {
	e.Helper()
	w, err := e.s.Watch(e.ctx, after)
	if err != nil {
		e.Fatalf("watch after %d: %v", after, err)
	}
	return w
}

func (e *env) next(w store.Watch) store.Batch {
	e.Helper()
	b, err := w.Next(e.ctx)
	if err != nil {
		e.Fatalf("next: %v", err)
	}
	return b
}

func (e *env) same(what string, want, got any) {
	e.Helper()
	if d := cmp.Diff(want, got); d != "" {
		e.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

func (e *env) lost(f store.Fence) {
	e.Helper()
	select {
	case <-f.Lost():
	case <-e.ctx.Done():
		e.Fatal("the fence is void and was not called lost")
	}
}

func (e *env) notLost(f store.Fence) {
	e.Helper()
	select {
	case <-f.Lost():
		e.Fatal("the fence holds and was called lost")
	default:
	}
}

// forged is a fence that no campaign gave.
type forged int64

func (f forged) Rev() int64                 { return int64(f) }
func (forged) Lost() <-chan struct{}        { return nil }
func (forged) Resign(context.Context) error { return nil }

// model is what a store should hold, and the batches a watch should give.
type model struct {
	kvs     map[string]store.KV
	batches []store.Batch
}

// apply is one transaction that was committed at rev.
func (m *model) apply(rev int64, ops []store.Op) {
	b := store.Batch{Rev: rev}
	for _, op := range ops {
		old, had := m.kvs[op.Key]
		switch {
		case op.Value != nil:
			kv := store.KV{Key: op.Key, Value: op.Value, ModRev: rev, CreateRev: rev}
			if had {
				kv.CreateRev = old.CreateRev
			}
			m.kvs[op.Key] = kv
			b.Puts = append(b.Puts, kv)
		case had:
			delete(m.kvs, op.Key)
			b.Deletes = append(b.Deletes, op.Key)
		}
	}
	if len(b.Puts)+len(b.Deletes) > 0 {
		m.batches = append(m.batches, b)
	}
}

// randomOps is 1 to 8 puts and deletions of 40 keys.
func (e *env) randomOps(r *rand.Rand) []store.Op {
	var ops []store.Op
	for _, k := range r.Perm(40)[:1+r.IntN(8)] {
		if r.IntN(3) == 0 {
			ops = append(ops, e.del(fmt.Sprintf("ep/%02d", k)))
		} else {
			ops = append(ops, e.put(fmt.Sprintf("ep/%02d", k), fmt.Sprint(r.Uint32())))
		}
	}
	return ops
}
