package mem

import (
	"context"
	"slices"

	"culvert/internal/store"
)

// watch is a position in the history; it holds no batches of its own, so a slow
// reader costs nothing and is told when its place was compacted.
type watch struct {
	s    *Store
	ctx  context.Context
	wake chan struct{} // capacity 1

	// Guarded by s.mu.
	at       int64 // all revisions up to here are delivered
	bookmark int64 // owed to the reader once at has reached it; 0: none
	err      error
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, after int64) (store.Watch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	if after > s.rev {
		return nil, &store.NotMonotoneError{Had: after, Got: s.rev}
	}
	if after < s.compacted {
		return nil, &store.CompactedError{Rev: s.compacted}
	}
	w := &watch{s: s, ctx: ctx, wake: make(chan struct{}, 1), at: after}
	s.watches = append(s.watches, w)
	return w, nil
}

func (w *watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

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
		case <-w.ctx.Done():
		}
	}
}

func (w *watch) Poll() (store.Batch, bool, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.err == nil {
		w.err = w.ended()
	}
	if w.err != nil {
		w.forget()
		return store.Batch{}, false, w.err
	}
	// Owed before newer changes: it may not wait behind writers for ever.
	if w.bookmark != 0 && w.bookmark <= w.at {
		w.bookmark = 0
		return store.Batch{Rev: w.at, Bookmark: true}, true, nil
	}
	if i := w.s.after(w.at); i < len(w.s.history) {
		b := w.s.history[i]
		w.at = b.Rev
		b.Puts, b.Deletes = slices.Clone(b.Puts), slices.Clone(b.Deletes)
		return b, true, nil
	}
	w.at = max(w.at, w.bookmark) // revisions without a change of ours
	if w.bookmark != 0 {
		w.bookmark = 0
		return store.Batch{Rev: w.at, Bookmark: true}, true, nil
	}
	return store.Batch{}, false, nil
}

// ended says why this watch delivers no more, or nil. Caller holds s.mu.
func (w *watch) ended() error {
	switch {
	case w.s.closed:
		return store.ErrClosed
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	case w.at < w.s.compacted:
		return &store.CompactedError{Rev: w.s.compacted}
	}
	return nil
}

func (w *watch) Confirm(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if err := w.ended(); err != nil {
		return err
	}
	w.bookmark = w.s.rev
	w.signal()
	return nil
}

func (w *watch) Close() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.err == nil {
		w.err = store.ErrClosed
	}
	w.forget()
	w.signal()
}

// forget takes the watch out of the store's list. Caller holds s.mu.
func (w *watch) forget() {
	w.s.watches = slices.DeleteFunc(w.s.watches, func(o *watch) bool { return o == w })
}
