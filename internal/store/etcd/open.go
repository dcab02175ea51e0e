package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"culvert/internal/store"
)

// Options of an embedded store.
type Options struct {
	// Dir holds the store; made with mode 0700 if it is not there.
	Dir string
	// Cluster is the cluster's id. A directory made for another is refused.
	Cluster string
	// QuotaBytes is the size of the database from which on puts are refused
	// with ErrFull. 0: 2 GiB, etcd's own default.
	QuotaBytes int64
	// KeepRevisions is how many revisions of history the automatic compaction
	// leaves; it looks every five minutes. 0: 100,000.
	KeepRevisions int64
	// Logger gets the server's own messages from "warning" up, one level
	// lower than it rates them: what stops it is returned as an error anyway.
	// nil: none.
	Logger *slog.Logger
	// UnsafeNoFsync gives durability away for speed. For tests only: what was
	// acknowledged does not survive a power cut.
	UnsafeNoFsync bool
}

const (
	defaultQuota = 2 << 30
	defaultKeep  = 100_000

	// A single member elects itself after one election time; nobody can be
	// ahead of it, so short times cost nothing and make the start quick.
	tickMs     = 20
	electionMs = 200
)

// Store is an open store. It implements store.Store.
type Store struct {
	cluster string
	client  *clientv3.Client
	ctx     context.Context // ended, with a cause, by Close and by failure
	cancel  context.CancelCauseFunc

	server *embed.Etcd
	lock   *os.File

	closing  sync.Once
	closeErr error
}

var _ store.Store = (*Store)(nil)

// Open starts the server and waits until it can commit, or until ctx ends.
//
// Errors: ErrLocked, *OtherClusterError, ErrCorrupt, *RefusedError. After
// ErrCorrupt the process should end: see the package's comment.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := store.CheckCluster(o.Cluster); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(o.Dir) {
		return nil, &store.RefusedError{What: "data directory", Value: o.Dir, Allowed: "absolute paths"}
	}
	lock, err := claimDir(o.Dir, o.Cluster)
	if err != nil {
		return nil, err
	}
	s := &Store{cluster: o.Cluster, lock: lock}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	if err := s.start(ctx, o); err != nil {
		s.cancel(store.ErrClosed)
		return nil, err
	}
	s.client = v3client.New(s.server.Server)
	return s, nil
}

// start runs the server up to its readiness. Where it does not get there, the
// lock is given back as soon as no server can be running any more.
func (s *Store) start(ctx context.Context, o Options) error {
	started := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				started <- fmt.Errorf("%w: %s: server broke off reading it: %v", store.ErrCorrupt, o.Dir, p)
			}
		}()
		var err error
		s.server, err = embed.StartEtcd(s.config(o))
		started <- err
	}()
	select {
	case err := <-started:
		if errors.Is(err, store.ErrCorrupt) {
			return err
		}
		if err != nil {
			s.lock.Close()
			return fmt.Errorf("%w: %s: %w", store.ErrCorrupt, o.Dir, err)
		}
	case <-s.ctx.Done():
		return fmt.Errorf("%w: %s: %w", store.ErrCorrupt, o.Dir, context.Cause(s.ctx))
	case <-ctx.Done():
		go func() {
			if <-started == nil {
				s.server.Close()
				s.lock.Close()
			}
		}()
		return fmt.Errorf("start store in %s: %w", o.Dir, ctx.Err())
	}
	select {
	case <-s.server.Server.ReadyNotify():
		return nil
	case <-s.ctx.Done():
		return fmt.Errorf("%w: %s: %w", store.ErrCorrupt, o.Dir, context.Cause(s.ctx))
	case <-s.server.Server.StopNotify():
		return fmt.Errorf("%w: %s: server stopped while starting", store.ErrCorrupt, o.Dir)
	case <-ctx.Done():
		s.server.Close()
		s.lock.Close()
		return fmt.Errorf("wait for store in %s: %w", o.Dir, ctx.Err())
	}
}

func (s *Store) config(o Options) *embed.Config {
	c := embed.NewConfig()
	c.Dir = o.Dir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(o.Logger, func(cause string) {
		s.cancel(fmt.Errorf("%w: %s", store.ErrFailed, cause))
	}))

	// A member needs a peer address to be told apart by; this one is no
	// address of anything and nothing listens there.
	peer := url.URL{Scheme: "unix", Host: "sole-member.invalid:0"}
	c.Name = "sole-member"
	c.InitialCluster = c.Name + "=" + peer.String()
	c.InitialClusterToken = o.Cluster
	c.AdvertisePeerUrls, c.ListenPeerUrls = []url.URL{peer}, nil
	c.AdvertiseClientUrls, c.ListenClientUrls = nil, nil
	c.EnableGRPCGateway = false

	c.TickMs, c.ElectionMs = tickMs, electionMs
	c.MaxTxnOps = store.MaxOps
	c.QuotaBackendBytes = defaultQuota
	if o.QuotaBytes > 0 {
		c.QuotaBackendBytes = o.QuotaBytes
	}
	keep := int64(defaultKeep)
	if o.KeepRevisions > 0 {
		keep = o.KeepRevisions
	}
	c.AutoCompactionMode = embed.CompactorModeRevision
	c.AutoCompactionRetention = strconv.FormatInt(keep, 10)
	c.UnsafeNoFsync = o.UnsafeNoFsync
	return c
}

// Close implements store.Store. The leases stay as they are, so the same id can
// go on at once after a restart and no other can before the lease has ended.
func (s *Store) Close() error {
	s.closing.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.cancel(store.ErrClosed) // the first cause stays
	if errors.Is(context.Cause(s.ctx), store.ErrFailed) {
		// The server's goroutines stand where they failed and would be waited
		// for in vain. The lock stays too: the files may not be written by
		// a second server while this one's remains are in the process.
		return context.Cause(s.ctx)
	}
	clientErr := s.client.Close()
	if errors.Is(clientErr, context.Canceled) {
		clientErr = nil // what an in-process client says of its own end
	}
	s.server.Close()
	return errors.Join(clientErr, s.lock.Close())
}

// Prefix implements store.Store.
func (s *Store) Prefix() string { return store.Prefix(s.cluster) }

// Reclaim makes room in a full store, and lets puts in again: it compacts up to
// the newest revision, rewrites the database file without the gaps, and takes
// the alarm back. Requests wait meanwhile. Watches that lag end with
// ErrCompacted. It frees nothing that is still a record: delete first.
func (s *Store) Reclaim(ctx context.Context) error {
	ctx, done := s.scope(ctx)
	defer done()
	rev, err := s.newest(ctx)
	if err != nil {
		return err
	}
	if _, err := s.client.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil && !isCompacted(err) {
		return fmt.Errorf("compact store: %w", s.readError(err))
	}
	// Not by the client: its Defragment dereferences nil in 3.7.3 when the
	// server is in the process.
	if err := s.server.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment store: %w", err)
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return fmt.Errorf("take back alarm: %w", s.readError(err))
	}
	return nil
}

// scope is ctx, ended also by the end of the store.
func (s *Store) scope(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// leaseSeconds rounds up: a lease never ends before the holder's own reckoning.
func leaseSeconds(ttl time.Duration) int64 {
	return int64((ttl + time.Second - 1) / time.Second)
}
