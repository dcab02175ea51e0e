package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"culvert/internal/store"
)

// testSnapshot: each transaction gives all of 3 keys, far apart in order, the
// same value; a snapshot of several pages taken meanwhile must see them equal.
func testSnapshot(e *env) {
	f := e.campaign("m1")
	var ops []store.Op
	for i := range 2500 {
		ops = append(ops, e.put(fmt.Sprintf("f/%04d", i), "x"))
		if len(ops) == 1000 || i == 2499 {
			e.commit(f, ops...)
			ops = nil
		}
	}
	same := []string{"a", "f/1500+", "z"}
	write := func(n int) (int64, error) {
		var ops []store.Op
		for _, k := range same {
			ops = append(ops, e.put(k, strconv.Itoa(n)))
		}
		return e.s.Commit(e.ctx, f, ops)
	}
	if _, err := write(0); err != nil {
		e.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for n := 1; err == nil; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
				_, err = write(n)
			}
		}
		done <- err
	}()
	changed := map[string]bool{}
	for range 20 {
		got, last, pages := map[string]store.KV{}, "", 0
		rev, err := e.s.Snapshot(e.ctx, func(kvs []store.KV) error {
			pages++
			if len(kvs) == 0 || len(kvs) > store.PageSize {
				e.Errorf("a page of %d", len(kvs))
			}
			for _, kv := range kvs {
				if kv.Key <= last {
					e.Errorf("%q after %q", kv.Key, last)
				}
				last = kv.Key
				got[kv.Key] = kv
			}
			// At least one transaction between two pages.
			_, err := write(-pages)
			return err
		})
		if err != nil {
			e.Fatal(err)
		}
		if pages != 3 || len(got) != 2500+3+1 {
			e.Fatalf("%d pages, %d records", pages, len(got))
		}
		for _, k := range same {
			kv := got[e.key(k)]
			if string(kv.Value) != string(got[e.key("a")].Value) || kv.ModRev > rev {
				e.Fatalf("%s is %s of revision %d, a is %s, snapshot of %d", k, kv.Value, kv.ModRev, got[e.key("a")].Value, rev)
			}
		}
		changed[string(got[e.key("a")].Value)] = true
	}
	close(stop)
	if err := <-done; err != nil {
		e.Fatal(err)
	}
	if len(changed) < 2 {
		e.Fatal("nothing was written meanwhile; the test shows nothing")
	}
	if _, err := e.s.Snapshot(e.ctx, func([]store.KV) error { return errPage }); !errors.Is(err, errPage) {
		e.Fatalf("error of the page: %v", err)
	}
}

var errPage = errors.New("enough")

func testWatchRandom(e *env) {
	const n, seed = 1000, 1
	r := rand.New(rand.NewPCG(seed, seed))
	f := e.campaign("m1")
	_, start := e.all()
	m := &model{kvs: map[string]store.KV{}}
	live := e.watch(start)
	errs := make(chan error, 1)
	var got []store.Batch
	go func() {
		for {
			b, err := live.Next(e.ctx)
			if err != nil || len(b.Puts) == 1 && b.Puts[0].Key == e.key("end") {
				errs <- err
				return
			}
			got = append(got, b)
		}
	}()
	for range n {
		ops := e.randomOps(r)
		m.apply(e.commit(f, ops...), ops)
	}
	e.commit(f, e.put("end", ""))
	if err := <-errs; err != nil {
		e.Fatal(err)
	}
	e.same("batches of a watch that was there", m.batches, got)

	// The same history, by watches that come later and begin anywhere.
	for _, from := range []int{0, 1, len(m.batches) / 2, len(m.batches) - 1} {
		w := e.watch(m.batches[from].Rev - 1)
		for i := from; i < len(m.batches); i++ {
			e.same("batch of a late watch", m.batches[i], e.next(w))
		}
		w.Close()
	}
	kvs, _ := e.all()
	delete(kvs, e.key("end"))
	e.same("content", m.kvs, kvs)
}

func testWatchResumes(e *env) {
	f := e.campaign("m1")
	_, rev := e.all()
	w := e.watch(rev)
	for i := range 10 {
		e.commit(f, e.put("a", fmt.Sprint(i)))
	}
	for i := range 10 {
		b := e.next(w)
		if len(b.Puts) != 1 || string(b.Puts[0].Value) != fmt.Sprint(i) || b.Rev != rev+int64(i)+1 {
			e.Fatalf("batch %d: %+v", i, b)
		}
		if i%3 == 0 {
			w.Close()
			if _, err := w.Next(e.ctx); !errors.Is(err, store.ErrClosed) {
				e.Fatalf("closed watch: %v", err)
			}
			w = e.watch(b.Rev)
		}
	}
	if b, ok, err := w.Poll(); ok || err != nil {
		e.Fatalf("more than was written: %+v, %v", b, err)
	}
	// The decider's own key is a record like others for its readers.
	e.h.EndLease(e.T, e.s)
	b := e.next(w)
	e.same("end of the lease", store.Batch{Rev: rev + 11, Deletes: []string{e.key("decider")}}, b)
	// A context of Next is Next's own.
	short, cancel := context.WithCancel(e.ctx)
	cancel()
	if _, err := w.Next(short); !errors.Is(err, context.Canceled) {
		e.Fatalf("cancelled Next: %v", err)
	}
	e.commit(e.campaign("m1"), e.put("a", "last"))
	if b := e.next(w); len(b.Puts) != 1 || string(b.Puts[0].Value) != "m1" {
		e.Fatalf("after a cancelled Next: %+v", b)
	}
}

func testBigBatch(e *env) {
	f := e.campaign("m1")
	var ops []store.Op
	m := &model{kvs: map[string]store.KV{}}
	for i := range 1000 {
		ops = append(ops, e.put(fmt.Sprintf("ep/%04d", i), fmt.Sprintf("%0200d", i)))
	}
	w := e.watch(f.Rev())
	m.apply(e.commit(f, ops...), ops)
	e.same("batch", m.batches[0], e.next(w))
	for i := range ops {
		ops[i].Value = nil
	}
	m.apply(e.commit(f, ops...), ops)
	e.same("batch", m.batches[1], e.next(w))
}

func testCompaction(e *env) {
	f := e.campaign("m1")
	var revs []int64
	for i := range 10 {
		op := e.put("a", fmt.Sprint(i))
		if i == 5 {
			op = e.del("a")
		}
		revs = append(revs, e.commit(f, op))
	}
	live := e.watch(revs[8])
	for range 2 {
		if err := e.s.Compact(e.ctx, revs[5]); err != nil {
			e.Fatal(err)
		}
	}
	if err := e.s.Compact(e.ctx, revs[9]+1000); !errors.Is(err, store.ErrRefused) {
		e.Fatalf("compaction of the future: %v", err)
	}
	for _, after := range []int64{0, 1, revs[0], revs[4]} {
		w, err := e.s.Watch(e.ctx, after)
		if err == nil {
			_, err = w.Next(e.ctx)
		}
		var c *store.CompactedError
		if !errors.As(err, &c) || c.Rev != revs[5] {
			e.Errorf("watch after %d: %v; want compacted at %d", after, err, revs[5])
		}
	}
	w := e.watch(revs[5])
	for _, want := range revs[6:] {
		if b := e.next(w); b.Rev != want || len(b.Puts) != 1 {
			e.Fatalf("after the compaction: %+v, want revision %d", b, want)
		}
	}
	if b := e.next(live); b.Rev != revs[9] {
		e.Fatalf("a watch beyond the compaction got %+v", b)
	}
	if got, rev := e.all(); len(got) != 1 || rev != revs[9] {
		e.Fatalf("content %v at %d", got, rev)
	}
}

func testBookmarks(e *env) {
	f := e.campaign("m1")
	rev := e.commit(f, e.put("a", "1"))
	w := e.watch(rev)
	confirm := func() {
		e.Helper()
		if err := w.Confirm(e.ctx); err != nil {
			e.Fatal(err)
		}
	}
	confirm()
	e.same("bookmark of a store at rest", store.Batch{Rev: rev, Bookmark: true}, e.next(w))
	if b, ok, err := w.Poll(); ok || err != nil {
		e.Fatalf("a second bookmark for one asking: %+v, %v", b, err)
	}
	// It never overtakes changes.
	var want []int64
	for i := range 20 {
		want = append(want, e.commit(f, e.put("a", fmt.Sprint(i))))
	}
	confirm()
	for _, r := range want {
		if b := e.next(w); b.Rev != r || b.Bookmark {
			e.Fatalf("got %+v before revision %d", b, r)
		}
	}
	e.same("bookmark", store.Batch{Rev: want[19], Bookmark: true}, e.next(w))
	// It speaks of what was delivered, not of what waits.
	confirm()
	next, other := e.commit(f, e.put("a", "x")), e.watch(want[19])
	e.next(other) // so the change is on its way to w as well
	e.same("bookmark before a change", store.Batch{Rev: want[19], Bookmark: true}, e.next(w))
	if b := e.next(w); b.Rev != next || b.Bookmark {
		e.Fatalf("after the bookmark: %+v", b)
	}
	w.Close()
	if err := w.Confirm(e.ctx); !errors.Is(err, store.ErrClosed) {
		e.Fatalf("confirm of a closed watch: %v", err)
	}
}

func testSlowReader(e *env) {
	f := e.campaign("m1")
	w := e.watch(f.Rev())
	const n = 2000
	for i := range n {
		e.commit(f, e.put("a", fmt.Sprint(i)))
	}
	if err := w.Confirm(e.ctx); err != nil {
		e.Fatal(err)
	}
	for i := range n {
		if b := e.next(w); b.Rev != f.Rev()+int64(i)+1 || b.Bookmark {
			e.Fatalf("batch %d: %+v", i, b)
		}
	}
	e.same("bookmark", store.Batch{Rev: f.Rev() + n, Bookmark: true}, e.next(w))
}

func testOlder(e *env) {
	f := e.campaign("m1")
	_, err := e.s.Watch(e.ctx, f.Rev()+100)
	var n *store.NotMonotoneError
	if !errors.As(err, &n) || n.Had != f.Rev()+100 || n.Got != f.Rev() {
		e.Fatalf("a watch from the future: %v", err)
	}
}

func testEnds(e *env) {
	f := e.campaign("m1")
	w := e.watch(f.Rev())
	own, cancel := context.WithCancel(e.ctx)
	x, err := e.s.Watch(own, f.Rev())
	if err != nil {
		e.Fatal(err)
	}
	cancel()
	if _, err := x.Next(e.ctx); !errors.Is(err, context.Canceled) {
		e.Fatalf("watch whose context ended: %v", err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := w.Next(e.ctx)
		waiting <- err
	}()
	for range 2 {
		if err := e.s.Close(); err != nil {
			e.Fatal(err)
		}
	}
	if err := <-waiting; !errors.Is(err, store.ErrClosed) {
		e.Fatalf("watch of a closed store: %v", err)
	}
	e.lost(f)
	e.refuse(store.ErrClosed, f, e.put("a", "1"))
	if _, err := e.s.Campaign(e.ctx, "m1", time.Second); !errors.Is(err, store.ErrClosed) {
		e.Fatalf("campaign: %v", err)
	}
	if _, err := e.s.Watch(e.ctx, 1); !errors.Is(err, store.ErrClosed) {
		e.Fatalf("watch: %v", err)
	}
	if _, err := e.s.Snapshot(e.ctx, func([]store.KV) error { return nil }); !errors.Is(err, store.ErrClosed) {
		e.Fatalf("snapshot: %v", err)
	}
	if err := e.s.Compact(e.ctx, 1); !errors.Is(err, store.ErrClosed) {
		e.Fatalf("compact: %v", err)
	}
}
