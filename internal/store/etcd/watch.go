package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"culvert/internal/store"
)

const (
	// maxQueued is how many bytes of keys and values may wait for a slow
	// reader; beyond it the watch ends, and a snapshot is the shorter way. To
	// stop reading from etcd's client instead would bound nothing: it has a
	// buffer without end of its own.
	maxQueued = 64 << 20
	// askAgain is after how long an unanswered request for progress is
	// repeated: the server drops one that comes while it is catching up.
	askAgain = 100 * time.Millisecond
)

// watch is fed by one goroutine (pump), which alone touches etcd's channel.
type watch struct {
	s      *Store
	cancel context.CancelCauseFunc
	wake   chan struct{} // to the reader; capacity 1
	nudge  chan struct{} // to the pump: a bookmark is wanted; capacity 1

	mu       sync.Mutex
	queue    []store.Batch
	queued   int   // bytes of keys and values in queue
	received int64 // newest revision known to be complete at the pump
	at       int64 // everything up to here is delivered
	wanted   int64 // bookmark owed once at has reached it; 0: none
	err      error // final
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, after int64) (store.Watch, error) {
	if err := errors.Join(context.Cause(s.ctx), ctx.Err()); err != nil {
		return nil, err
	}
	// A read at that revision tells what etcd's watch is silent about: that
	// the store is older than its reader, or is compacted just there.
	_, err := s.client.Get(ctx, store.DeciderKey(s.cluster), clientv3.WithRev(max(after, 1)), clientv3.WithCountOnly())
	switch {
	case errors.Is(err, rpctypes.ErrFutureRev):
		rev, err := s.newest(ctx)
		if err != nil {
			return nil, err
		}
		return nil, &store.NotMonotoneError{Had: after, Got: rev}
	case isCompacted(err):
		return nil, &store.CompactedError{Rev: s.compactedTo(ctx)}
	case err != nil:
		return nil, s.readError(err)
	}
	w := &watch{s: s, at: after, received: after, wake: make(chan struct{}, 1), nudge: make(chan struct{}, 1)}
	ctx, w.cancel = context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { w.cancel(context.Cause(s.ctx)) })
	events := s.client.Watch(ctx, s.Prefix(), clientv3.WithPrefix(), clientv3.WithRev(after+1))
	go func() {
		defer stop()
		defer w.cancel(nil)
		w.end(w.pump(ctx, events))
	}()
	return w, nil
}

// compactedTo asks how far history is gone, by asking for all of it; 0 if the
// store does not say.
func (s *Store) compactedTo(ctx context.Context) int64 {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for resp := range s.client.Watch(ctx, store.DeciderKey(s.cluster), clientv3.WithRev(1)) {
		if resp.CompactRevision > 0 {
			return resp.CompactRevision
		}
	}
	return 0
}

// pump moves etcd's responses into the queue, until the watch ends.
func (w *watch) pump(ctx context.Context, events clientv3.WatchChan) error {
	ask := time.NewTicker(askAgain)
	defer ask.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.nudge:
			w.askProgress(ctx)
		case <-ask.C:
			w.askProgress(ctx)
		case resp, ok := <-events:
			if !ok {
				return w.broken(ctx, errors.New("etcd ended the watch"))
			}
			if err := resp.Err(); err != nil && resp.CompactRevision == 0 {
				return w.broken(ctx, err)
			}
			if err := w.take(resp); err != nil {
				return err
			}
		}
	}
}

// broken is why etcd's channel gives no more: the end of the watch or of the
// store where that is the cause, else err. The store's end is asked for itself,
// since it reaches etcd's client as soon as it reaches ctx.
func (w *watch) broken(ctx context.Context, err error) error {
	for _, c := range []context.Context{ctx, w.s.ctx} {
		if c.Err() != nil {
			return context.Cause(c)
		}
	}
	return err
}

// askProgress asks the server how far it is, where a bookmark is owed beyond
// what has been received. ctx must be that of the watch: etcd's client finds
// the stream by it.
func (w *watch) askProgress(ctx context.Context) {
	w.mu.Lock()
	lags := w.wanted > w.received
	w.mu.Unlock()
	if lags {
		_ = w.s.client.RequestProgress(ctx) // an error ends the watch as well
	}
}

// take cuts a response into revisions. A response holds each of its revisions
// whole, as long as fragments are not asked for.
func (w *watch) take(resp clientv3.WatchResponse) error {
	if resp.CompactRevision > 0 {
		return &store.CompactedError{Rev: resp.CompactRevision}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	defer signal(w.wake)
	if resp.IsProgressNotify() {
		w.received = max(w.received, resp.Header.Revision)
		return nil
	}
	for i, e := range resp.Events {
		rev := e.Kv.ModRevision
		if i == 0 || rev != w.received {
			if rev <= w.received {
				return &store.NotMonotoneError{Had: w.received, Got: rev}
			}
			w.queue = append(w.queue, store.Batch{Rev: rev})
			w.received = rev
		}
		b := &w.queue[len(w.queue)-1]
		w.queued += len(e.Kv.Key) + len(e.Kv.Value)
		if e.Type == clientv3.EventTypeDelete {
			b.Deletes = append(b.Deletes, string(e.Kv.Key))
		} else {
			b.Puts = append(b.Puts, store.KV{Key: string(e.Kv.Key), Value: e.Kv.Value, ModRev: rev, CreateRev: e.Kv.CreateRevision})
		}
	}
	if w.queued > maxQueued {
		w.queue, w.queued = nil, 0
		return &store.CompactedError{Rev: w.received}
	}
	return nil
}

// size is what b counts for in a queue.
func size(b store.Batch) (n int) {
	for _, kv := range b.Puts {
		n += len(kv.Key) + len(kv.Value)
	}
	for _, k := range b.Deletes {
		n += len(k)
	}
	return n
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// end makes err final; the first one stays.
func (w *watch) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	signal(w.wake)
}

// Next implements store.Watch.
func (w *watch) Next(ctx context.Context) (store.Batch, error) {
	for {
		b, ok, err := w.Poll()
		if ok || err != nil {
			return b, err
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return store.Batch{}, ctx.Err()
		}
	}
}

// Poll implements store.Watch.
func (w *watch) Poll() (store.Batch, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return store.Batch{}, false, w.err
	}
	if len(w.queue) > 0 && (w.wanted == 0 || w.wanted > w.at) {
		b := w.queue[0]
		w.queue[0] = store.Batch{}
		w.queue = w.queue[1:]
		w.at = b.Rev
		w.queued -= size(b)
		return b, true, nil
	}
	if len(w.queue) == 0 {
		w.at = max(w.at, w.received)
	}
	if w.wanted != 0 && w.wanted <= w.at {
		w.wanted = 0
		return store.Batch{Rev: w.at, Bookmark: true}, true, nil
	}
	return store.Batch{}, false, nil
}

// Confirm implements store.Watch.
func (w *watch) Confirm(ctx context.Context) error {
	w.mu.Lock()
	had, err := w.received, w.err
	w.mu.Unlock()
	if err != nil {
		return err
	}
	ctx, done := w.s.scope(ctx)
	defer done()
	rev, err := w.s.newest(ctx)
	if err != nil {
		return err
	}
	if rev < had {
		err := &store.NotMonotoneError{Had: had, Got: rev}
		w.end(err)
		w.cancel(err)
		return err
	}
	w.mu.Lock()
	w.wanted = rev
	w.mu.Unlock()
	signal(w.wake)
	signal(w.nudge)
	return nil
}

// Close implements store.Watch.
func (w *watch) Close() {
	w.end(store.ErrClosed)
	w.cancel(store.ErrClosed)
}
