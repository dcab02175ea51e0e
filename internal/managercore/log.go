package managercore

import (
	"iter"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Key is a record's identity within a log.
type Key = overlay.Key

// Sum is the sum over a log's live items.
type Sum = overlay.Sum

// KeyOf is the identity of rec; the zero Key for nil.
func KeyOf(rec overlay.Record) Key { return overlay.KeyOf(rec) }

// Item is one entry of a log: immutable, encoded once, shared by all streams.
type Item struct {
	Key  Key
	Rev  overlay.Rev
	Gone bool
	Rec  overlay.Record
	Wire []byte // a culvertv1.Item
}

func newItem(rec overlay.Record, rev overlay.Rev, gone bool) *Item {
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(&culvertv1.Item{Rev: api.RevPB(rev), Record: api.RecordPB(rec, gone)})
	if err != nil { // only invalid UTF-8 can do that, and names were checked at the edge
		panic("marshal of a checked item: " + err.Error())
	}
	return &Item{Key: KeyOf(rec), Rev: rev, Gone: gone, Rec: rec, Wire: wire}
}

// Log is one network's records (or the fleet's) ordered by last change, each
// key once, tombstones included. A Log that was handed out by Freeze never
// changes any more and may be read from any goroutine.
type Log struct {
	byRev *btree.BTreeG[*Item]
	byKey *btree.BTreeG[*Item]
	sum   Sum
	live  int
	found *lookup // nil unless the network is told on demand
	// Floor is the newest revision whose tombstone was thrown away. A cursor
	// below it needs a full pass.
	Floor overlay.Rev
}

func newLog() *Log {
	opts := btree.Options{NoLocks: true}
	return &Log{
		byRev: btree.NewBTreeGOptions(func(a, b *Item) bool {
			if c := a.Rev.Compare(b.Rev); c != 0 {
				return c < 0
			}
			return a.Key.Compare(b.Key) < 0
		}, opts),
		byKey: btree.NewBTreeGOptions(func(a, b *Item) bool { return a.Key.Compare(b.Key) < 0 }, opts),
	}
}

// put moves it's key to the end of the log.
func (l *Log) put(it *Item) {
	old, ok := l.byKey.Set(it)
	if ok {
		l.byRev.Delete(old)
		l.forget(old)
	}
	if l.found != nil {
		l.found.replace(old, it)
	}
	l.byRev.Set(it)
	if !it.Gone {
		l.sum.Add(it.Key, it.Rev)
		l.live++
	}
}

// drop removes a tombstone for good and raises the floor.
func (l *Log) drop(k Key) {
	old, ok := l.byKey.Delete(&Item{Key: k})
	if !ok {
		return
	}
	l.byRev.Delete(old)
	l.forget(old)
	if l.found != nil {
		l.found.replace(old, nil)
	}
	if l.Floor.Less(old.Rev) {
		l.Floor = old.Rev
	}
}

func (l *Log) forget(old *Item) {
	if !old.Gone {
		l.sum.Sub(old.Key, old.Rev)
		l.live--
	}
}

// freeze is the log as it is now, for ever.
func (l *Log) freeze() *Log {
	f := *l
	f.byRev, f.byKey = l.byRev.Copy(), l.byKey.Copy()
	if l.found != nil {
		f.found = l.found.copy()
	}
	return &f
}

// Get is the item under k, tombstones included, or nil.
func (l *Log) Get(k Key) *Item {
	it, _ := l.byKey.Get(&Item{Key: k})
	return it
}

// After yields the items newer than rev, oldest change first: a snapshot
// (rev zero), a difference and a resumption are this one path.
func (l *Log) After(rev overlay.Rev) iter.Seq[*Item] {
	return func(yield func(*Item) bool) {
		l.byRev.Ascend(&Item{Rev: overlay.Rev{Epoch: rev.Epoch, N: rev.N + 1}}, yield)
	}
}

// Keys yields all items in the order of their keys, tombstones included.
func (l *Log) Keys() iter.Seq[*Item] {
	return func(yield func(*Item) bool) { l.byKey.Scan(yield) }
}

// Sum is the sum over the live items.
func (l *Log) Sum() Sum { return l.sum }

// Live is the number of items that are not tombstones; Len counts both.
func (l *Log) Live() int { return l.live }

// Len is the number of items, tombstones included.
func (l *Log) Len() int { return l.byRev.Len() }
