package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"culvert/internal/store"
)

// fence is a held place: a key bound to a lease, renewed by one goroutine.
type fence struct {
	s     *Store
	id    string
	rev   int64
	lease clientv3.LeaseID
	ttl   time.Duration

	once sync.Once
	lost chan struct{}
}

// Campaign implements store.Store.
//
// A key left by the same id goes in a transaction of its own before the new one
// is made: etcd takes no transaction that names a key twice. Between the two
// another id may come first; then it holds the place, and nothing is broken.
func (s *Store) Campaign(ctx context.Context, id string, ttl time.Duration) (store.Fence, error) {
	if err := store.CheckCampaign(id, ttl); err != nil {
		return nil, err
	}
	if err := errors.Join(context.Cause(s.ctx), ctx.Err()); err != nil {
		return nil, err
	}
	ctx, done := s.scope(ctx)
	defer done()
	sent := time.Now()
	grant, err := s.client.Grant(ctx, leaseSeconds(ttl))
	if err != nil {
		return nil, fmt.Errorf("ask for lease: %w", s.campaignError(err))
	}
	rev, err := s.claimKey(ctx, id, grant.ID)
	if err != nil {
		s.revoke(grant.ID)
		return nil, err
	}
	f := &fence{s: s, id: id, rev: rev, lease: grant.ID, ttl: ttl, lost: make(chan struct{})}
	go f.keep(sent)
	return f, nil
}

// claimKey creates the decider's key, and returns its create revision.
func (s *Store) claimKey(ctx context.Context, id string, lease clientv3.LeaseID) (int64, error) {
	key := store.DeciderKey(s.cluster)
	for {
		resp, err := s.client.Txn(ctx).If(s.held(0)).
			Then(clientv3.OpPut(key, id, clientv3.WithLease(lease))).
			Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			return 0, fmt.Errorf("claim decider's key: %w", s.campaignError(err))
		}
		if resp.Succeeded {
			return resp.Header.Revision, nil
		}
		kv := resp.Responses[0].GetResponseRange().Kvs[0]
		if string(kv.Value) != id {
			return 0, &store.HeldError{By: string(kv.Value)}
		}
		if _, err := s.client.Txn(ctx).If(s.held(kv.CreateRevision)).Then(clientv3.OpDelete(key)).Commit(); err != nil {
			return 0, fmt.Errorf("take over own key: %w", s.campaignError(err))
		}
		s.revoke(clientv3.LeaseID(kv.Lease))
	}
}

// campaignError is the meaning of an error of a campaign's requests.
func (s *Store) campaignError(err error) error {
	if errors.Is(err, rpctypes.ErrNoSpace) {
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return s.readError(err)
}

// revoke ends a lease that is of no use any more. It is an attempt only: the
// lease ends by itself.
func (s *Store) revoke(id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(s.ctx, time.Second)
	defer cancel()
	_, _ = s.client.Revoke(ctx, id)
}

// Rev implements store.Fence.
func (f *fence) Rev() int64 { return f.rev }

// Lost implements store.Fence.
func (f *fence) Lost() <-chan struct{} { return f.lost }

func (f *fence) lose() { f.once.Do(func() { close(f.lost) }) }

// keep renews the lease three times in its life, and watches the key, until the
// fence is lost. sent is when the lease was last asked for: the lease lives at
// least ttl from then.
func (f *fence) keep(sent time.Time) {
	defer f.lose()
	ctx, cancel := f.s.scope(context.Background())
	defer cancel()
	stop := context.AfterFunc(ctx, f.lose)
	defer stop()
	key := store.DeciderKey(f.s.cluster)
	events := f.s.client.Watch(ctx, key, clientv3.WithRev(f.rev+1))
	tick := time.NewTicker(f.ttl / 3)
	defer tick.Stop()
	for {
		select {
		case <-f.lost:
			return
		case resp, ok := <-events:
			if ok && len(resp.Events) > 0 {
				return // deleted, by whatever: nothing else touches it
			}
			if !ok || resp.Canceled {
				events = nil // the renewals go on, and notice too
			}
		case <-tick.C:
			at := time.Now()
			err := f.renew(ctx)
			if err == nil {
				sent = at
			}
			if errors.Is(err, rpctypes.ErrLeaseNotFound) || err != nil && time.Since(sent) >= f.ttl {
				return
			}
		}
	}
}

func (f *fence) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, f.ttl/3)
	defer cancel()
	_, err := f.s.client.KeepAliveOnce(ctx, f.lease)
	return err
}

// Resign implements store.Fence.
func (f *fence) Resign(ctx context.Context) error {
	select {
	case <-f.lost:
		return nil
	default:
	}
	ctx, done := f.s.scope(ctx)
	defer done()
	_, err := f.s.client.Txn(ctx).If(f.s.held(f.rev)).Then(clientv3.OpDelete(store.DeciderKey(f.s.cluster))).Commit()
	if err != nil {
		return fmt.Errorf("resign: %w", f.s.readError(err))
	}
	f.lose()
	f.s.revoke(f.lease)
	return nil
}
