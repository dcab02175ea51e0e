package managercore

import (
	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Write is one key of a transaction. A nil Rec deletes the key.
type Write struct {
	Key  Key
	Rec  overlay.Record
	Gone bool
}

// change is one group of writes that is committed whole or not at all.
type change struct {
	writes []Write
	n      uint64 // revision it was committed at
	// then runs when the view holds the change; nil for nothing. It gets the
	// revision of the commit.
	then func(rev overlay.Rev)
	// fail runs instead when it is not known what became of the change.
	fail func()
}

// tx collects one change on the working state and can take it back.
type tx struct {
	c    *Core
	undo []undo
	seen map[Key]int // index in writes
	ch   change
}

type undo struct {
	key  Key
	row  row
	have bool
}

func (c *Core) begin() *tx { return &tx{c: c, seen: map[Key]int{}} }

func (t *tx) put(rec overlay.Record)  { t.write(KeyOf(rec), rec, false) }
func (t *tx) bury(rec overlay.Record) { t.write(KeyOf(rec), rec, true) }
func (t *tx) purge(k Key)             { t.write(k, nil, true) }
func (t *tx) empty() bool             { return len(t.ch.writes) == 0 }
func (t *tx) get(k Key) (overlay.Record, bool) {
	w := t.c.rows[k]
	if w == nil || w.gone {
		return nil, false
	}
	return w.rec, true
}

func (t *tx) write(k Key, rec overlay.Record, gone bool) {
	c := t.c
	w := c.rows[k]
	if _, ok := t.seen[k]; !ok {
		u := undo{key: k, have: w != nil}
		if w != nil {
			u.row = *w
		}
		t.undo = append(t.undo, u)
		t.seen[k] = len(t.ch.writes)
		t.ch.writes = append(t.ch.writes, Write{})
	}
	t.ch.writes[t.seen[k]] = Write{Key: k, Rec: rec, Gone: gone}
	if w == nil {
		w = &row{}
		c.rows[k] = w
	} else {
		c.ix.remove(k, w)
	}
	if rec != nil { // a purged row keeps its record until the store confirms
		w.rec = rec
	}
	w.gone = gone
	if rec != nil {
		c.ix.add(k, w)
	}
}

// rollback takes everything back; the tx must not be used again.
func (t *tx) rollback() {
	for i := len(t.undo) - 1; i >= 0; i-- {
		u := t.undo[i]
		t.c.ix.remove(u.key, t.c.rows[u.key])
		if !u.have {
			delete(t.c.rows, u.key)
			continue
		}
		*t.c.rows[u.key] = u.row
		t.c.ix.add(u.key, t.c.rows[u.key])
	}
}

// commit queues the change. then and fail may be nil.
func (t *tx) commit(then func(overlay.Rev), fail func()) {
	for _, w := range t.ch.writes {
		t.c.rows[w.Key].busy++
	}
	ch := t.ch
	ch.then, ch.fail = then, fail
	t.c.queue = append(t.c.queue, &ch)
}

// NextTxn appends the writes of the next transaction to buf: whole changes, at
// most max records unless a single change is larger, each key once. It returns
// buf unchanged while a transaction is in flight or nothing waits. The driver
// must answer with TxnDone or Lost.
func (c *Core) NextTxn(buf []Write, max int) []Write {
	if len(c.inflight) > 0 || c.lost {
		return buf
	}
	at := map[Key]int{}
	taken := 0
	for _, ch := range c.queue {
		if taken > 0 && len(at)+len(ch.writes) > max {
			break
		}
		for _, w := range ch.writes {
			if i, ok := at[w.Key]; ok {
				buf[i] = w // the later change of the same transaction wins
				continue
			}
			at[w.Key] = len(buf)
			buf = append(buf, w)
		}
		taken++
	}
	c.inflight = append(c.inflight, c.queue[:taken]...)
	c.queue = c.queue[taken:]
	if taken > 0 {
		c.stats.Transactions++
	}
	return buf
}

func (c *Core) txnDone(e TxnDone) {
	for _, ch := range c.inflight {
		ch.n = e.N
	}
	c.done = append(c.done, c.inflight...)
	c.inflight = nil
	c.release()
}

// release answers for the changes that the view has reached, and looks again
// at the claims that waited for them.
func (c *Core) release() {
	i := 0
	var dead []overlay.UID // networks whose deletion is committed
	var unread []Key       // of tombstones that are
	for ; i < len(c.done) && c.done[i].n <= c.at.N; i++ {
		ch := c.done[i]
		for _, w := range ch.writes {
			r := c.rows[w.Key]
			if r == nil {
				continue
			}
			switch {
			case !w.Gone || w.Rec == nil:
			case w.Key.Kind == overlay.KindNetwork:
				dead = append(dead, w.Key.UID)
			case unreadKind(w.Key.Kind):
				unread = append(unread, w.Key)
			}
			if r.busy--; r.busy == 0 && w.Rec == nil {
				delete(c.rows, w.Key)
			}
		}
		if ch.then != nil {
			ch.then(overlay.Rev{Epoch: c.cfg.Epoch, N: ch.n})
		}
	}
	if i == 0 {
		return
	}
	c.done = append([]*change(nil), c.done[i:]...)
	for _, k := range unread {
		c.forget(k)
	}
	for _, uid := range dead {
		c.sweepNetwork(uid)
	}
	again := c.deferred
	c.deferred = nil
	for _, d := range again {
		c.claim(d)
	}
	c.freeQuarantine()
}

// loseAll tells every waiting caller that the outcome is not known.
func (c *Core) loseAll() {
	c.lost = true
	for _, list := range [][]*change{c.done, c.inflight, c.queue} {
		for _, ch := range list {
			if ch.fail != nil {
				ch.fail()
			}
		}
	}
	c.done, c.inflight, c.queue, c.deferred = nil, nil, nil, nil
}

// Reply is the answer to one request. Exactly one of its parts is set, as the
// request was.
type Reply struct {
	ID      uint64
	Refusal *api.Refusal // nil if it was done
	Rev     overlay.Rev  // of the change; zero if nothing changed
	Changes []Changed    // Asked
	Session uint64       // Opened; with Claim: the one that made it
	Claim   *ClaimAnswer // Claimed; void for any other session of Host
	Host    overlay.UID  // with Claim
}

// Changed is what a request did to one object.
type Changed struct {
	Action string // created, changed, unchanged, deleted
	Rec    overlay.Record
}

// NextReplies takes all replies that are ready.
func (c *Core) NextReplies() []Reply {
	r := c.replies
	c.replies = nil
	return r
}

func (c *Core) reply(r Reply) { c.replies = append(c.replies, r) }

func unknownOutcome() *api.Refusal {
	return api.Refuse(api.CodeUnknown, "The request was not confirmed",
		"the manager lost its hold on the store while it was being written, so it may or may not have been done",
		"look with the list or show verb, then ask again: every request may be repeated")
}
