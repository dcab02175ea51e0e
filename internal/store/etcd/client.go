package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"culvert/internal/store"
)

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, f store.Fence, ops []store.Op) (int64, error) {
	if err := store.CheckOps(s.cluster, ops); err != nil {
		return 0, err
	}
	if err := errors.Join(context.Cause(s.ctx), ctx.Err()); err != nil {
		return 0, err
	}
	if f.Rev() <= 0 {
		return 0, store.ErrFenced // 0 is etcd's create revision of an absent key
	}
	then := make([]clientv3.Op, len(ops))
	for i, op := range ops {
		if op.Value == nil {
			then[i] = clientv3.OpDelete(op.Key)
		} else {
			then[i] = clientv3.OpPut(op.Key, string(op.Value))
		}
	}
	ctx, done := s.scope(ctx)
	defer done()
	resp, err := s.client.Txn(ctx).If(s.held(f.Rev())).Then(then...).Commit()
	switch {
	case err == nil && resp.Succeeded:
		return resp.Header.Revision, nil
	case err == nil:
		if own, ok := f.(*fence); ok {
			own.lose()
		}
		return 0, store.ErrFenced
	case errors.Is(err, rpctypes.ErrNoSpace):
		return 0, fmt.Errorf("%w: %w", store.ErrFull, err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		// An outer etcd may be set narrower than store's own limits.
		return 0, &store.RefusedError{What: "batch", Value: fmt.Sprintf("%d operations", len(ops)), Allowed: "fewer: " + err.Error(), TooLarge: true}
	default:
		// Whatever else it is, it may have come after the request was logged.
		return 0, fmt.Errorf("%w: %w", store.ErrUnknown, err)
	}
}

// held is the one comparison that guards a commit.
func (s *Store) held(rev int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(store.DeciderKey(s.cluster)), "=", rev)
}

// Snapshot implements store.Store.
func (s *Store) Snapshot(ctx context.Context, page func([]store.KV) error) (int64, error) {
	ctx, done := s.scope(ctx)
	defer done()
	end := clientv3.GetPrefixRangeEnd(s.Prefix())
	from, rev := s.Prefix(), int64(0)
	for {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(rev), clientv3.WithLimit(store.PageSize))
		if err != nil {
			return 0, fmt.Errorf("read snapshot: %w", s.readError(err))
		}
		if rev == 0 {
			rev = resp.Header.Revision // the first page's; the others are read at it
		}
		if len(resp.Kvs) > 0 {
			kvs := make([]store.KV, len(resp.Kvs))
			for i, kv := range resp.Kvs {
				kvs[i] = store.KV{Key: string(kv.Key), Value: kv.Value, ModRev: kv.ModRevision, CreateRev: kv.CreateRevision}
			}
			if err := page(kvs); err != nil {
				return 0, err
			}
			from = kvs[len(kvs)-1].Key + "\x00"
		}
		if !resp.More {
			return rev, nil
		}
	}
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	ctx, done := s.scope(ctx)
	defer done()
	_, err := s.client.Compact(ctx, rev)
	switch {
	case err == nil, isCompacted(err):
		return nil
	case errors.Is(err, rpctypes.ErrFutureRev):
		return &store.RefusedError{What: "compaction", Value: fmt.Sprint(rev), Allowed: "revisions up to the newest"}
	}
	return fmt.Errorf("compact store: %w", s.readError(err))
}

// newest asks for the store's newest revision, linearizably.
func (s *Store) newest(ctx context.Context) (int64, error) {
	resp, err := s.client.Get(ctx, store.DeciderKey(s.cluster), clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("read store position: %w", s.readError(err))
	}
	return resp.Header.Revision, nil
}

func isCompacted(err error) bool { return errors.Is(err, rpctypes.ErrCompacted) }

// readError is the meaning of an error of a request that changes no record.
func (s *Store) readError(err error) error {
	switch {
	case s.ctx.Err() != nil:
		return context.Cause(s.ctx)
	case isCompacted(err):
		return &store.CompactedError{}
	}
	return err
}
