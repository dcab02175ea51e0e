// Package store says what the manager needs of its durable store, and what its
// answers mean: a fenced transaction, a fence, a snapshot at one revision and a
// watch in whole revisions. There are no reads of single keys and no other
// comparisons, because the decider decides in memory on its own newest state;
// the store keeps the order and the copy.
//
// Two implementations pass the same suite (package storetest): store/mem for
// tests and simulation, store/etcd for a running manager.
package store

import (
	"context"
	"strings"
	"time"
)

// Limits of one transaction. They are below what etcd takes by itself
// (1.5 MiB a request), so that a batch refused here never reached the store.
const (
	// MaxOps is the most operations one Commit takes.
	MaxOps = 1024
	// MaxBatchBytes is the most bytes of keys and values in one Commit.
	MaxBatchBytes = 1 << 20
	// MaxKeyBytes is the longest key.
	MaxKeyBytes = 512
	// PageSize is the most records one page of a snapshot holds.
	PageSize = 1000
)

// KV is one record as the store holds it. A reader must not change Value: the
// same bytes may be shared with other readers.
type KV struct {
	Key       string
	Value     []byte
	ModRev    int64 // revision of the last change
	CreateRev int64 // revision at which the key came into being
}

// Op is one change in a transaction: a put, or a deletion where Value is nil.
// A put of an empty, non-nil Value is a put.
type Op struct {
	Key   string
	Value []byte
}

// Batch is one revision, whole: everything that one transaction changed. Puts
// and Deletes each keep the order of the transaction's operations; no key is in
// both, since a transaction names a key once.
//
// A Bookmark carries no change. It says: the store was asked for its newest
// state after Confirm was called, and everything at or below Rev was delivered
// before this batch.
type Batch struct {
	Rev      int64
	Puts     []KV
	Deletes  []string
	Bookmark bool
}

// Store is the durable store of one cluster. All methods may be called from
// several goroutines.
type Store interface {
	// Prefix is what every key of this cluster begins with:
	// "/culvert/<cluster>/".
	Prefix() string

	// Commit applies ops in one transaction, if and only if the decider's key
	// is still the one that fence was made with; that is its only comparison.
	// It returns the revision at which the changes are visible (that of the
	// last change before, where ops only delete keys that are not there).
	//
	// Errors: ErrFenced, ErrFull, ErrUnknown, a *RefusedError (nothing was
	// sent), ErrClosed. Only after ErrUnknown may the changes have been made.
	Commit(ctx context.Context, fence Fence, ops []Op) (rev int64, err error)

	// Campaign makes id the decider, with a lease of ttl (at least a second),
	// or says who is, in a *HeldError. It does not wait: who wants to know
	// when the place is free watches DeciderKey. A key left by the same id is
	// taken over at once: the former holder of that id, frozen or gone, is
	// fenced from then on. So an id must belong to one manager alone.
	Campaign(ctx context.Context, id string, ttl time.Duration) (Fence, error)

	// Snapshot calls page with every record of the cluster in the order of
	// keys, at most PageSize at a time, all as of the one revision that it
	// returns. The read is linearizable: the revision is not older than the
	// call. An error from page ends it and is returned.
	// Errors: ErrCompacted when the revision is compacted meanwhile.
	Snapshot(ctx context.Context, page func([]KV) error) (rev int64, err error)

	// Watch delivers every revision above after that changed a record of the
	// cluster: in order, whole, once. It ends with ctx. A store whose newest
	// revision is below after has lost its memory: *NotMonotoneError.
	Watch(ctx context.Context, after int64) (Watch, error)

	// Compact forgets the history before rev: a watch must begin after rev or
	// later. Records stay. To compact what is compacted already is no error.
	Compact(ctx context.Context, rev int64) error

	// Close ends all watches and fences of this store with ErrClosed, and
	// resigns nothing.
	Close() error
}

// Watch is a stream of revisions, for one reader.
type Watch interface {
	// Next waits for the next batch. An error is final, and every later call
	// returns it: a *CompactedError (take a snapshot again), a
	// *NotMonotoneError, ErrClosed, ErrFailed, or that of the context of
	// Watch. An error of Next's own ctx is not final.
	Next(ctx context.Context) (Batch, error)

	// Poll is Next without waiting; ok is false when there is nothing now.
	Poll() (b Batch, ok bool, err error)

	// Confirm asks the store for its newest revision, linearizably, and makes
	// a Bookmark at or above it follow in the stream. The clock is the
	// caller's: no bookmark comes unasked. It may be called from a goroutine
	// other than the reader's. A bookmark that was owed and not yet read is
	// replaced, so asking often costs a slow reader nothing.
	Confirm(ctx context.Context) error

	// Close ends the stream with ErrClosed.
	Close()
}

// Fence is the right to commit, until another campaign succeeds or the lease
// ends. Losing it is noticed late, never wrongly: it is Commit's comparison
// that protects the records, Lost only saves work.
type Fence interface {
	// Rev is the create revision of the decider's key; greater than zero.
	Rev() int64
	// Lost is closed once this fence is known to be void: key deleted or
	// replaced, lease ended or not renewed in its time, resigned, store closed.
	Lost() <-chan struct{}
	// Resign gives the place up. A fence already lost resigns without error.
	Resign(ctx context.Context) error
}

// Prefix is what all keys of cluster begin with.
func Prefix(cluster string) string { return "/culvert/" + cluster + "/" }

// DeciderKey is the key whose create revision is the fence and whose value is
// the id of the decider. Commit refuses to touch it.
func DeciderKey(cluster string) string { return Prefix(cluster) + "decider" }

// CheckCluster refuses a cluster id that would not be one element of a key:
// 1 to 63 of a-z, 0-9 and '-'.
func CheckCluster(cluster string) error {
	if cluster == "" || len(cluster) > 63 {
		return &RefusedError{What: "cluster id", Value: cluster, Allowed: "1 to 63 characters"}
	}
	if strings.Trim(cluster, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return &RefusedError{What: "cluster id", Value: cluster, Allowed: "a-z, 0-9 and '-'"}
	}
	return nil
}

// CheckCampaign refuses an id or lease that no store takes: an id has 1 to 128
// printable ASCII characters, a lease lasts 1 s to 1 h.
func CheckCampaign(id string, ttl time.Duration) error {
	if id == "" || len(id) > 128 {
		return &RefusedError{What: "decider id", Value: id, Allowed: "1 to 128 characters"}
	}
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return &RefusedError{What: "decider id", Value: id, Allowed: "printable ASCII without spaces"}
		}
	}
	if ttl < time.Second || ttl > time.Hour {
		return &RefusedError{What: "lease", Value: ttl.String(), Allowed: "1s to 1h"}
	}
	return nil
}

// CheckOps refuses a batch that a store of cluster does not take. Every
// implementation calls it first, so that all refuse alike and a refused batch
// has changed nothing.
func CheckOps(cluster string, ops []Op) error {
	if len(ops) == 0 {
		return &RefusedError{What: "batch", Value: "no operation", Allowed: "1 or more"}
	}
	if len(ops) > MaxOps {
		return &RefusedError{What: "batch", Value: count(len(ops), "operations"), Allowed: count(MaxOps, "operations"), TooLarge: true}
	}
	prefix, decider := Prefix(cluster), DeciderKey(cluster)
	seen := make(map[string]struct{}, len(ops))
	bytes := 0
	for _, op := range ops {
		switch {
		case len(op.Key) > MaxKeyBytes:
			return &RefusedError{What: "key", Value: count(len(op.Key), "bytes"), Allowed: count(MaxKeyBytes, "bytes"), TooLarge: true}
		case !strings.HasPrefix(op.Key, prefix) || op.Key == prefix:
			return &RefusedError{What: "key", Value: op.Key, Allowed: "keys below " + prefix}
		case op.Key == decider:
			return &RefusedError{What: "key", Value: op.Key, Allowed: "any but the decider's own"}
		}
		if _, twice := seen[op.Key]; twice {
			return &RefusedError{What: "key", Value: op.Key, Allowed: "each key once in a batch"}
		}
		seen[op.Key] = struct{}{}
		bytes += len(op.Key) + len(op.Value)
	}
	if bytes > MaxBatchBytes {
		return &RefusedError{What: "batch", Value: count(bytes, "bytes"), Allowed: count(MaxBatchBytes, "bytes"), TooLarge: true}
	}
	return nil
}
