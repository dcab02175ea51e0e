package mem_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"culvert/internal/store"
	"culvert/internal/store/mem"
	"culvert/internal/store/storetest"
)

func open(t *testing.T) *mem.Store {
	t.Helper()
	s, err := mem.New(storetest.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:     func(t *testing.T) store.Store { return open(t) },
		EndLease: func(_ *testing.T, s store.Store) { s.(*mem.Store).EndLease() },
	})
}

func TestNewRefusesClusters(t *testing.T) {
	for _, c := range []string{"", "a/b", "A", "..", "a b", string(make([]byte, 64))} {
		if _, err := mem.New(c); !errors.Is(err, store.ErrRefused) {
			t.Errorf("cluster %q: %v", c, err)
		}
	}
}

func TestFaults(t *testing.T) {
	ctx := context.Background()
	s := open(t)
	f, err := s.Campaign(ctx, "m1", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ops := []store.Op{{Key: s.Prefix() + "a", Value: []byte("1")}}
	for _, c := range []struct {
		fault   mem.Fault
		want    error
		applied int64
	}{
		{mem.Full, store.ErrFull, 0},
		{mem.NotSent, store.ErrUnknown, 0},
		{mem.NoAnswer, store.ErrUnknown, 1},
		{mem.None, nil, 1},
	} {
		s.SetFault(func([]store.Op) mem.Fault { return c.fault })
		before := s.Rev()
		if _, err := s.Commit(ctx, f, ops); !errors.Is(err, c.want) {
			t.Errorf("fault %d: %v, want %v", c.fault, err, c.want)
		}
		if got := s.Rev() - before; got != c.applied {
			t.Errorf("fault %d: %d revisions, want %d", c.fault, got, c.applied)
		}
	}
	// A lost fence is told before any fault.
	s.EndLease()
	s.SetFault(func([]store.Op) mem.Fault { return mem.Full })
	if _, err := s.Commit(ctx, f, ops); !errors.Is(err, store.ErrFenced) {
		t.Errorf("fault without a fence: %v", err)
	}
}

// A reader that lags behind a compaction is told, and loses nothing silently.
func TestLaggingReader(t *testing.T) {
	ctx := context.Background()
	s := open(t)
	f, err := s.Campaign(ctx, "m1", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Watch(ctx, f.Rev())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := s.Commit(ctx, f, []store.Op{{Key: s.Prefix() + "a", Value: []byte("1")}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Compact(ctx, s.Rev()-1); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := w.Poll(); !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("lagging reader: %v", err)
		}
	}
}
