package etcd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"culvert/internal/store"
	"culvert/internal/store/storetest"
)

func timeout(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	if o.Cluster == "" {
		o.Cluster = storetest.Cluster
	}
	s, err := Open(timeout(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustCampaign(t testing.TB, s *Store) store.Fence {
	t.Helper()
	f, err := s.Campaign(timeout(t), "m1", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func content(t testing.TB, s *Store) (m map[string]string, rev int64) {
	t.Helper()
	m = map[string]string{}
	rev, err := s.Snapshot(timeout(t), func(kvs []store.KV) error {
		for _, kv := range kvs {
			m[strings.TrimPrefix(kv.Key, s.Prefix())] = string(kv.Value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, rev
}

func TestConformance(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open: func(t *testing.T) store.Store {
			return mustOpen(t, Options{Dir: t.TempDir(), UnsafeNoFsync: true})
		},
		EndLease: func(t *testing.T, s store.Store) {
			c := s.(*Store).client
			resp, err := c.Get(timeout(t), store.DeciderKey(storetest.Cluster))
			if err != nil || len(resp.Kvs) != 1 {
				t.Fatalf("decider's key: %v, %v", resp, err)
			}
			if _, err := c.Revoke(timeout(t), clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// The lease of a live holder is renewed beyond its time; nobody else gets in.
func TestLeaseIsRenewed(t *testing.T) {
	s := mustOpen(t, Options{Dir: t.TempDir(), UnsafeNoFsync: true})
	f, err := s.Campaign(timeout(t), "m1", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-f.Lost():
		t.Fatal("lost while the holder lives")
	case <-time.After(4 * time.Second): // four times the lease: what is waited for is that nothing happens
	}
	if _, err := s.Campaign(timeout(t), "m2", time.Second); !errors.Is(err, store.ErrHeld) {
		t.Fatalf("another campaign: %v", err)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Options{Dir: dir})
	f := mustCampaign(t, s)
	ctx := timeout(t)
	for i := range 50 {
		if _, err := s.Commit(ctx, f, []store.Op{{Key: fmt.Sprintf("%sk%02d", s.Prefix(), i), Value: []byte("v")}}); err != nil {
			t.Fatal(err)
		}
	}
	want, rev := content(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	s = mustOpen(t, Options{Dir: dir})
	t.Logf("opened again in %v", time.Since(begin))
	got, rev2 := content(t, s)
	if len(got) != 51 || rev2 != rev {
		t.Fatalf("%d records at %d, want %d at %d", len(got), rev2, len(want), rev)
	}
	// The same id goes on at once, another has to wait for the lease.
	if _, err := s.Campaign(ctx, "m2", time.Second); !errors.Is(err, store.ErrHeld) {
		t.Fatalf("another id: %v", err)
	}
	g := mustCampaign(t, s)
	if _, err := s.Commit(ctx, f, []store.Op{{Key: s.Prefix() + "x", Value: []byte("v")}}); !errors.Is(err, store.ErrFenced) {
		t.Fatalf("the fence of the life before: %v", err)
	}
	w, err := s.Watch(ctx, rev)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{g.Rev() - 1, g.Rev()} { // deleted, made again
		if b, err := w.Next(ctx); err != nil || b.Rev != want {
			t.Fatalf("watch over the restart: %+v, %v; want revision %d", b, err, want)
		}
	}
}

const childDir = "CULVERT_STORE_TEST_DIR"

// TestChild is not a test but the process that TestKilled kills.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	s := mustOpen(t, Options{Dir: dir})
	f := mustCampaign(t, s)
	for i := 0; ; i++ {
		ops := []store.Op{
			{Key: s.Prefix() + fmt.Sprintf("a%06d", i), Value: []byte("v")},
			{Key: s.Prefix() + fmt.Sprintf("b%06d", i), Value: []byte("v")},
		}
		if _, err := s.Commit(context.Background(), f, ops); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(fmt.Sprintf("acknowledged %d\n", i))
	}
}

// What was acknowledged before kill -9 is there after it, and nothing by half.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	acknowledged := 0
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "acknowledged ") {
				n++
			}
			if n == 100+37*round {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		if n < 100+37*round {
			t.Fatalf("the child ended after %d", n)
		}
		acknowledged = max(acknowledged, n)

		s := mustOpen(t, Options{Dir: dir})
		got, _ := content(t, s)
		for i := range acknowledged {
			if _, ok := got[fmt.Sprintf("a%06d", i)]; !ok {
				t.Fatalf("round %d: acknowledged record %d is gone", round, i)
			}
		}
		for k := range got {
			if k[0] == 'a' {
				if _, ok := got["b"+k[1:]]; !ok {
					t.Fatalf("round %d: half a transaction: %s without its other", round, k)
				}
			}
		}
		mustCampaign(t, s) // the killed self's place
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Run("locked", func(t *testing.T) {
		dir := t.TempDir()
		mustOpen(t, Options{Dir: dir})
		begin := time.Now()
		if _, err := Open(timeout(t), Options{Dir: dir, Cluster: storetest.Cluster}); !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), dir) {
			t.Fatalf("second open: %v", err)
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Fatalf("told after %v", d)
		}
	})
	t.Run("other cluster", func(t *testing.T) {
		dir := t.TempDir()
		mustOpen(t, Options{Dir: dir}).Close()
		_, err := Open(timeout(t), Options{Dir: dir, Cluster: "other"})
		var oc *store.OtherClusterError
		if !errors.As(err, &oc) || oc.Have != storetest.Cluster || oc.Want != "other" {
			t.Fatalf("open for another: %v", err)
		}
		mustOpen(t, Options{Dir: dir}) // and it left the lock
	})
	t.Run("values", func(t *testing.T) {
		for _, o := range []Options{{Dir: "relative", Cluster: "c"}, {Dir: t.TempDir()}, {Dir: t.TempDir(), Cluster: "a/b"}} {
			if _, err := Open(timeout(t), o); !errors.Is(err, store.ErrRefused) {
				t.Errorf("%+v: %v", o, err)
			}
		}
	})
}

// The database is derived from the log: as long as the log is whole, it is made
// again.
func TestDatabaseMissing(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, Options{Dir: dir})
	if _, err := s.Commit(timeout(t), mustCampaign(t, s), []store.Op{{Key: s.Prefix() + "a", Value: []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	_, rev := content(t, s)
	s.Close()
	if err := os.Remove(filepath.Join(dir, "member/snap/db")); err != nil {
		t.Fatal(err)
	}
	got, rev2 := content(t, mustOpen(t, Options{Dir: dir}))
	if got["a"] != "1" || rev2 != rev {
		t.Fatalf("%v at %d, want a at %d", got, rev2, rev)
	}
}

// Damage is an error of Open, never the end of the process.
func TestOpenDamaged(t *testing.T) {
	overwrite := func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		for off := int64(0); off < 16<<10; off += 64 {
			if _, err := f.WriteAt([]byte("damaged damaged damaged "), off); err != nil {
				return err
			}
		}
		return nil
	}
	wal := func(dir string) string {
		m, _ := filepath.Glob(filepath.Join(dir, "member/wal/*.wal"))
		return m[len(m)-1]
	}
	for name, damage := range map[string]func(dir string) error{
		"database overwritten": func(dir string) error { return overwrite(filepath.Join(dir, "member/snap/db")) },
		"log overwritten":      func(dir string) error { return overwrite(wal(dir)) },
		"log empty":            func(dir string) error { return os.Truncate(wal(dir), 0) },
		"marker missing":       func(dir string) error { return os.Remove(filepath.Join(dir, "cluster")) },
		"marker overwritten":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "cluster"), []byte("?\n"), 0o600) },
		"newer format": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "cluster"), []byte("culvert store 2\ncluster storetest\n"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpen(t, Options{Dir: dir})
			f := mustCampaign(t, s)
			if _, err := s.Commit(timeout(t), f, []store.Op{{Key: s.Prefix() + "a", Value: []byte("1")}}); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			s, err := Open(timeout(t), Options{Dir: dir, Cluster: storetest.Cluster})
			if err == nil {
				s.Close()
			}
			if !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("open: %v", err)
			}
			t.Log(err)
		})
	}
}

// Where the server would end the process while it runs, the store ends instead.
func TestServerFails(t *testing.T) {
	s := mustOpen(t, Options{Dir: t.TempDir(), UnsafeNoFsync: true})
	ctx := timeout(t)
	f := mustCampaign(t, s)
	w, err := s.Watch(ctx, f.Rev())
	if err != nil {
		t.Fatal(err)
	}
	past := make(chan struct{})
	go func() { // what etcd does when its log cannot be written
		s.server.GetLogger().Fatal("cannot save raft state")
		close(past)
	}()
	_, err = w.Next(ctx)
	if !errors.Is(err, store.ErrFailed) || !strings.Contains(err.Error(), "cannot save raft state") {
		t.Fatalf("watch: %v", err)
	}
	<-f.Lost()
	if _, err := s.Commit(ctx, f, []store.Op{{Key: s.Prefix() + "a", Value: []byte("1")}}); !errors.Is(err, store.ErrFailed) {
		t.Fatalf("commit: %v", err)
	}
	if err := s.Close(); !errors.Is(err, store.ErrFailed) {
		t.Fatalf("close: %v", err)
	}
	select {
	case <-past:
		t.Fatal("the server went on after its failure")
	default:
	}
	s.server.Close() // nothing had really failed: end it, for the tests after this one
	s.lock.Close()
}

// Nobody can reach the server but through this process.
func TestListensNowhere(t *testing.T) {
	before := sockets(t)
	mustOpen(t, Options{Dir: t.TempDir(), UnsafeNoFsync: true})
	for s := range sockets(t) {
		if !before[s] {
			t.Errorf("an open store has %s", s)
		}
	}
}

func sockets(t *testing.T) map[string]bool {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]bool{}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			m[to] = true
		}
	}
	return m
}

func TestFull(t *testing.T) {
	s := mustOpen(t, Options{Dir: t.TempDir(), QuotaBytes: 16 << 20, UnsafeNoFsync: true})
	ctx := timeout(t)
	f := mustCampaign(t, s)
	big := []store.Op{{Key: s.Prefix() + "big", Value: make([]byte, 1<<19)}}
	var err error
	n := 0
	for ; err == nil && n < 200; n++ {
		_, err = s.Commit(ctx, f, big)
	}
	if !errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrUnknown) {
		t.Fatalf("after %d puts: %v", n, err)
	}
	got, rev := content(t, s)
	if len(got) != 2 {
		t.Fatalf("%d records", len(got))
	}
	if _, err := s.Commit(ctx, f, []store.Op{{Key: s.Prefix() + "a", Value: []byte("1")}}); !errors.Is(err, store.ErrFull) {
		t.Fatalf("a small put: %v", err)
	}
	if r, err := s.Commit(ctx, f, []store.Op{{Key: s.Prefix() + "big"}}); err != nil || r != rev+1 {
		t.Fatalf("a deletion: %d, %v", r, err)
	}
	if err := s.Reclaim(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, f, big); err != nil {
		t.Fatalf("a put after the room was made: %v", err)
	}
}

// etcd's client may hear of the store's end before the watch does; the reader
// must be told that end all the same, and never nothing.
func TestWatchBrokenOff(t *testing.T) {
	s := &Store{}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	w := &watch{s: s, wake: make(chan struct{}, 1), nudge: make(chan struct{}, 1)}
	closed := make(chan clientv3.WatchResponse)
	close(closed)
	if err := w.pump(context.Background(), closed); err == nil {
		t.Error("a watch that etcd ended has no error")
	}
	s.cancel(store.ErrClosed)
	if err := w.pump(context.Background(), closed); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a watch of a closed store: %v", err)
	}
}

// What waits for a reader that does not read is bounded.
func TestReaderFarBehind(t *testing.T) {
	w := &watch{s: &Store{ctx: context.Background()}, wake: make(chan struct{}, 1), nudge: make(chan struct{}, 1)}
	value := make([]byte, 1<<20)
	events := make(chan clientv3.WatchResponse)
	ended := make(chan error, 1)
	go func() { ended <- w.pump(context.Background(), events) }()
	send := func(rev int64) {
		kv := &mvccpb.KeyValue{Key: []byte("k"), Value: value, ModRevision: rev}
		select {
		case events <- clientv3.WatchResponse{Events: []*clientv3.Event{{Kv: kv}}}:
		case err := <-ended:
			t.Fatalf("ended before revision %d: %v", rev, err)
		}
	}
	// A reader that keeps up may read without end.
	rev := int64(1)
	for ; rev <= 3*maxQueued>>20; rev++ {
		send(rev)
		if b, err := w.Next(timeout(t)); err != nil || b.Rev != rev {
			t.Fatalf("reader that keeps up: %+v, %v", b, err)
		}
	}
	for range maxQueued >> 20 { // with the keys: just above the bound
		send(rev)
		rev++
	}
	var c *store.CompactedError
	if err := <-ended; !errors.As(err, &c) || c.Rev != rev-1 {
		t.Fatalf("reader far behind: %v, want all up to %d given up", err, rev-1)
	}
}

// The server's warnings come as debug, quietly, under one constant message.
func TestLog(t *testing.T) {
	var out strings.Builder
	z := newZap(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), nil)
	z.Info("not worth a line")
	z.Warn("slow")
	z.Error("bad")
	got := out.String()
	if strings.Contains(got, "not worth") || strings.Count(got, `msg="store server said"`) != 2 ||
		!strings.Contains(got, "level=DEBUG") || !strings.Contains(got, "level=WARN") {
		t.Fatal(got)
	}
}
