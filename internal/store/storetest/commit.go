package storetest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert/internal/store"
)

func testCommit(e *env) {
	f := e.campaign("m1")
	_, start := e.all()
	if f.Rev() != start {
		e.Fatalf("fence %d, store at %d: the campaign is the newest change", f.Rev(), start)
	}
	r1 := e.commit(f, e.put("a", "1"), e.put("b", ""))
	r2 := e.commit(f, e.put("a", "2"), e.del("b"), e.put("c", "3"))
	if r1 != start+1 || r2 != start+2 {
		e.Fatalf("revisions %d and %d, want %d and %d", r1, r2, start+1, start+2)
	}
	// A deletion of nothing is no change, and no error.
	if r := e.commit(f, e.del("b"), e.del("z")); r != r2 {
		e.Fatalf("a commit that changes nothing is at %d, want %d", r, r2)
	}
	got, rev := e.all()
	e.same("content", map[string]store.KV{
		e.key("a"): {Key: e.key("a"), Value: []byte("2"), ModRev: r2, CreateRev: r1},
		e.key("c"): {Key: e.key("c"), Value: []byte("3"), ModRev: r2, CreateRev: r2},
	}, got)
	if rev != r2 {
		e.Fatalf("snapshot at %d, want %d", rev, r2)
	}
	// The empty value is a value.
	r3 := e.commit(f, store.Op{Key: e.key("b"), Value: []byte{}})
	got, _ = e.all()
	if kv, ok := got[e.key("b")]; !ok || len(kv.Value) != 0 || kv.CreateRev != r3 {
		e.Fatalf("empty value: %v, %v", kv, ok)
	}
}

func testRefused(e *env) {
	f := e.campaign("m1")
	many := make([]store.Op, store.MaxOps+1)
	for i := range many {
		many[i] = e.put(fmt.Sprint(i), "v")
	}
	big := strings.Repeat("x", store.MaxBatchBytes)
	_, before := e.all()
	for _, c := range []struct {
		name string
		ops  []store.Op
		want error
	}{
		{"no operation", nil, store.ErrRefused},
		{"key twice", []store.Op{e.put("a", "1"), e.put("a", "2")}, store.ErrRefused},
		{"put and delete", []store.Op{e.put("a", "1"), e.del("a")}, store.ErrRefused},
		{"other prefix", []store.Op{e.put("a", "1"), {Key: "/culvert/other/a", Value: []byte("1")}}, store.ErrRefused},
		{"prefix alone", []store.Op{{Key: e.s.Prefix(), Value: []byte("1")}}, store.ErrRefused},
		{"decider's key", []store.Op{e.put("decider", "m2")}, store.ErrRefused},
		{"decider's key gone", []store.Op{e.del("decider")}, store.ErrRefused},
		{"too many", many, store.ErrTooLarge},
		{"large value", []store.Op{e.put("a", "1"), e.put("b", big)}, store.ErrTooLarge},
		{"long key", []store.Op{e.put(strings.Repeat("k", store.MaxKeyBytes), "1")}, store.ErrTooLarge},
	} {
		if rev, err := e.s.Commit(e.ctx, f, c.ops); !errors.Is(err, c.want) || errors.Is(err, store.ErrUnknown) {
			e.Errorf("%s: revision %d, error %v; want %v", c.name, rev, err, c.want)
		} else if len(err.Error()) > 300 {
			e.Errorf("%s: the error repeats the batch: %d bytes", c.name, len(err.Error()))
		}
	}
	if got, rev := e.all(); rev != before || len(got) != 0 {
		e.Fatalf("refused batches left %d records, revision %d; want none, %d", len(got), rev, before)
	}
	e.commit(f, many[:store.MaxOps]...)
	e.commit(f, e.put("b", big[:store.MaxBatchBytes-len(e.key("b"))]))
}

func testLeaseEnds(e *env) {
	f := e.campaign("m1")
	e.commit(f, e.put("a", "1"))
	e.notLost(f)
	e.h.EndLease(e.T, e.s)
	e.lost(f)
	e.refuse(store.ErrFenced, f, e.put("a", "2"))
	g := e.campaign("m2")
	e.refuse(store.ErrFenced, f, e.put("a", "2"))
	e.commit(g, e.put("a", "3"))
	got, _ := e.all()
	if string(got[e.key("a")].Value) != "3" {
		e.Fatalf("content %v", got)
	}
}

func testForged(e *env) {
	// 0 is the create revision of a key that is not there.
	for _, rev := range []forged{-1, 0, 1, 1 << 40} {
		e.refuse(store.ErrFenced, rev, e.put("a", "1"))
	}
	f := e.campaign("m1")
	for _, rev := range []forged{-1, 0, forged(f.Rev() - 1), forged(f.Rev() + 1)} {
		e.refuse(store.ErrFenced, rev, e.put("a", "1"))
	}
	if got, _ := e.all(); len(got) != 0 {
		e.Fatalf("forged fences wrote %v", got)
	}
}

func testCampaigners(e *env) {
	const n = 8
	var won atomic.Pointer[string]
	var winners atomic.Int32
	var wg sync.WaitGroup
	held := make([]string, n)
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprintf("m%d", i)
			_, err := e.s.Campaign(e.ctx, id, 5*time.Second)
			var h *store.HeldError
			switch {
			case err == nil:
				winners.Add(1)
				won.Store(&id)
			case errors.As(err, &h) && errors.Is(err, store.ErrHeld):
				held[i] = h.By
			default:
				e.Errorf("%s: %v", id, err)
			}
		})
	}
	wg.Wait()
	if winners.Load() != 1 {
		e.Fatalf("%d campaigners won", winners.Load())
	}
	for i, by := range held {
		if id := fmt.Sprintf("m%d", i); id != *won.Load() && by != *won.Load() {
			e.Errorf("%s was told that %q holds the place; it is %s", id, by, *won.Load())
		}
	}
}

func testTakeover(e *env) {
	old := e.campaign("m1")
	e.commit(old, e.put("a", "1"))
	begin := time.Now()
	f := e.campaign("m1")
	if d := time.Since(begin); d > 3*time.Second {
		e.Fatalf("took %v: it waited for its former lease", d)
	}
	if f.Rev() <= old.Rev() {
		e.Fatalf("fence %d after %d", f.Rev(), old.Rev())
	}
	e.refuse(store.ErrFenced, old, e.put("a", "2"))
	e.lost(old)
	e.notLost(f)
	e.commit(f, e.put("a", "3"))
	// The former self gives up a place that is not its own any more.
	if err := old.Resign(e.ctx); err != nil {
		e.Fatal(err)
	}
	e.commit(f, e.put("a", "4"))
	e.notLost(f)
}

func testResign(e *env) {
	f := e.campaign("m1")
	if _, err := e.s.Campaign(e.ctx, "m2", time.Second); !errors.Is(err, store.ErrHeld) {
		e.Fatalf("second campaign: %v", err)
	}
	for range 2 {
		if err := f.Resign(e.ctx); err != nil {
			e.Fatal(err)
		}
	}
	e.lost(f)
	e.refuse(store.ErrFenced, f, e.put("a", "1"))
	e.commit(e.campaign("m2"), e.put("a", "2"))
}

func testCampaignRefuses(e *env) {
	for _, c := range []struct {
		id  string
		ttl time.Duration
	}{
		{"", time.Second},
		{"m 1", time.Second},
		{"m\x001", time.Second},
		{"m\xff", time.Second},
		{strings.Repeat("m", 129), time.Second},
		{"m1", 0},
		{"m1", time.Second - 1},
		{"m1", time.Hour + 1},
	} {
		if _, err := e.s.Campaign(e.ctx, c.id, c.ttl); !errors.Is(err, store.ErrRefused) {
			e.Errorf("id %q, lease %v: %v", c.id, c.ttl, err)
		}
	}
	e.campaign("m1") // the place is free
}
