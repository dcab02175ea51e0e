package agentcore

import (
	"cmp"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/plan"
)

// contribution is one endpoint's (or host's, or port's) wish for a row.
type contribution struct {
	by  overlay.Key
	rev overlay.Rev
	val hoststate.Val
}

// rowState is one kernel row: what is wanted of it and what it was seen to be.
type rowState struct {
	// One address may belong to two endpoints for a moment; the newest wins.
	// Rows of the replication list have one contributor an endpoint, which
	// makes them many: they all want the same, so they are only counted.
	by    []contribution
	count int

	have    hoststate.Val
	present bool
	known   bool // present and have were read
	busy    bool // in an operation
	queued  bool
	recheck bool // a doorbell rang while it was busy
	open    bool // counted in the ledger
	gen     uint64
	tries   uint8
}

func (r *rowState) wanted() bool { return r.count > 0 || len(r.by) > 0 }

func (r *rowState) want() hoststate.Val {
	if len(r.by) == 0 {
		return hoststate.Val{Flags: plan.ReplFlags}
	}
	best := r.by[0]
	for _, c := range r.by[1:] {
		if d := c.rev.Compare(best.rev); d > 0 || d == 0 && c.by.Compare(best.by) > 0 {
			best = c
		}
	}
	return best.val
}

func (r *rowState) settled() bool {
	if r.busy || !r.known {
		return false
	}
	if !r.wanted() {
		return !r.present
	}
	return r.present && r.have == r.want()
}

// rowSet is the rows of one network, or the host's global ones.
type rowSet struct {
	rows  map[hoststate.Key]*rowState
	queue []hoststate.Key
	open  int // rows that are in the ledger
}

func newRowSet() *rowSet { return &rowSet{rows: map[hoststate.Key]*rowState{}} }

func (s *rowSet) row(k hoststate.Key) *rowState {
	rs := s.rows[k]
	if rs == nil {
		rs = &rowState{}
		s.rows[k] = rs
	}
	return rs
}

// enqueue puts a row that is not as it should be where NextOps finds it.
func (s *rowSet) enqueue(k hoststate.Key, rs *rowState) {
	if !rs.queued && !rs.busy {
		rs.queued = true
		s.queue = append(s.queue, k)
	}
}

// add enters a wish for row r; remove takes it back.
func (c *Core) add(s *rowSet, r hoststate.Row, by overlay.Key, rev overlay.Rev) {
	rs := s.row(r.Key)
	if r.Key.Table == hoststate.TableRepl {
		rs.count++
	} else {
		rs.by = append(rs.by, contribution{by, rev, r.Val})
	}
	c.changed(s, r.Key, rs)
}

func (c *Core) remove(s *rowSet, k hoststate.Key, by overlay.Key) {
	rs := s.rows[k]
	if rs == nil {
		return
	}
	if k.Table == hoststate.TableRepl {
		rs.count--
	} else {
		rs.by = slices.DeleteFunc(rs.by, func(x contribution) bool { return x.by == by })
	}
	c.changed(s, k, rs)
}

// changed looks anew at a row whose wish or state has changed.
func (c *Core) changed(s *rowSet, k hoststate.Key, rs *rowState) {
	switch {
	case rs.settled():
		c.close(s, k, rs)
	default:
		if !rs.open {
			rs.open, rs.gen = true, c.work.open()
			s.open++
		}
		s.enqueue(k, rs)
	}
}

// close takes a settled row off the ledger, and out of memory if it is gone.
func (c *Core) close(s *rowSet, k hoststate.Key, rs *rowState) {
	if rs.open {
		s.open--
		rs.open, rs.tries = false, 0
		c.work.done(rs.gen)
	}
	if !rs.wanted() && !rs.present && !rs.queued {
		delete(s.rows, k)
	}
}

// drop forgets all rows of a set: its devices are gone, and the rows with them.
func (c *Core) drop(s *rowSet) {
	for _, rs := range s.rows { // order-free: only counts down
		if rs.open {
			rs.open = false
			c.work.done(rs.gen)
		}
	}
	s.rows, s.queue, s.open = map[hoststate.Key]*rowState{}, nil, 0
}

// flight is what an operation under way is about.
type flight struct {
	set  *rowSet // nil for operations on devices
	key  hoststate.Key
	net  overlay.UID
	base bool
	kind hoststate.OpKind
}

type delayedRow struct {
	at  Time
	set *rowSet
	key hoststate.Key
}

// takeRows appends at most max operations from the set's queue: first what is
// to be written in the order of tables, then what is to be deleted in the
// opposite order.
func (c *Core) takeRows(s *rowSet, net overlay.UID, mayDelete bool, max int, buf []hoststate.Op) []hoststate.Op {
	n := 0
	first := len(buf)
	var later []hoststate.Key
	for ; n < len(s.queue) && len(buf)-first < max; n++ {
		k := s.queue[n]
		rs := s.rows[k]
		if rs == nil || !rs.queued {
			continue
		}
		rs.queued = false
		if rs.settled() {
			c.close(s, k, rs)
			continue
		}
		op := hoststate.Op{Kind: hoststate.OpSet, Row: hoststate.Row{Key: k}}
		if rs.wanted() {
			op.Row.Val = rs.want()
		} else if !mayDelete {
			rs.queued = true
			later = append(later, k)
			continue
		} else {
			op.Kind, op.Row.Val = hoststate.OpDel, rs.have
		}
		rs.busy = true
		op.ID = c.fly(flight{set: s, key: k, net: net, kind: op.Kind})
		buf = append(buf, op)
	}
	s.queue = append(later, s.queue[n:]...)
	slices.SortStableFunc(buf[first:], func(a, b hoststate.Op) int {
		if a.Kind != b.Kind {
			return cmp.Compare(a.Kind, b.Kind)
		}
		if a.Kind == hoststate.OpDel {
			return cmp.Compare(b.Row.Key.Table, a.Row.Key.Table)
		}
		return cmp.Compare(a.Row.Key.Table, b.Row.Key.Table)
	})
	return buf
}

func (c *Core) fly(f flight) uint64 {
	c.nextID++
	c.inflight[c.nextID] = f
	return c.nextID
}

// applied takes the outcome of operations.
func (c *Core) applied(e Applied) {
	for i := range e.Results {
		r := &e.Results[i]
		f, ok := c.inflight[r.Op.ID]
		if !ok {
			continue // an order of the local API; its driver answers
		}
		delete(c.inflight, r.Op.ID)
		if f.set != nil {
			c.rowDone(f, r)
		} else {
			c.deviceDone(f, r)
		}
	}
}

func (c *Core) rowDone(f flight, r *hoststate.Result) {
	rs := f.set.rows[f.key]
	if rs == nil {
		return // its devices went meanwhile
	}
	rs.busy = false
	c.stats.Written++
	switch {
	case r.Verified:
		rs.known, rs.present, rs.have = true, r.Present, r.Have
	case r.Class == hoststate.ClassNotFound && f.kind == hoststate.OpDel:
		rs.known, rs.present = true, false
	case r.Class == hoststate.ClassOK:
		rs.known, rs.present, rs.have = true, f.kind == hoststate.OpSet, r.Op.Row.Val
	case r.Class == hoststate.ClassGone:
		c.wantLinks()
	}
	if rs.recheck {
		rs.recheck = false
		c.wantRead(f.net)
	}
	if rs.settled() {
		c.close(f.set, f.key, rs)
		c.rowHeld(f)
		return
	}
	if r.Class == hoststate.ClassOK && rs.tries == 0 { // what is wanted changed meanwhile
		rs.tries++
		f.set.enqueue(f.key, rs)
		return
	}
	if r.Class == hoststate.ClassFull || r.Class == hoststate.ClassRefused {
		c.stats.OpsRefused++
		c.wantLinks() // a setting of the device may be why: IPv6 switched off rings no bell
		c.problem("CV0206 the kernel refuses a " + f.key.Table.String() + " entry: " + r.Text)
	}
	wait := 10 * millisecond << min(rs.tries, 9)
	rs.tries = min(rs.tries+1, 20)
	at := c.now + wait
	c.delayed = append(c.delayed, delayedRow{at, f.set, f.key})
	c.alarmAt(at)
}

// ledger counts what is to be done, by the generation in which it became so.
// A generation ends with each UpTo of the manager; its revision is held when
// nothing of it or of earlier ones is left.
type ledger struct {
	first uint64 // generation of gens[0]
	gens  []generation
}

type generation struct {
	left  int
	ended bool
	rev   overlay.Rev
}

func (l *ledger) open() uint64 {
	if len(l.gens) == 0 || l.gens[len(l.gens)-1].ended {
		l.gens = append(l.gens, generation{})
	}
	i := len(l.gens) - 1
	l.gens[i].left++
	return l.first + uint64(i)
}

func (l *ledger) done(gen uint64) { l.gens[gen-l.first].left-- }

// end closes the current generation at rev.
func (l *ledger) end(rev overlay.Rev) {
	if len(l.gens) == 0 || l.gens[len(l.gens)-1].ended {
		l.gens = append(l.gens, generation{})
	}
	g := &l.gens[len(l.gens)-1]
	g.ended, g.rev = true, rev
}

// held takes off the generations that are finished and returns the newest
// revision among them, or zero.
func (l *ledger) held() (rev overlay.Rev) {
	n := 0
	for n < len(l.gens) && l.gens[n].ended && l.gens[n].left == 0 {
		rev = l.gens[n].rev
		n++
	}
	l.gens = append(l.gens[:0], l.gens[n:]...)
	l.first += uint64(n)
	return rev
}
