package agentcore

import (
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

// before reports whether what a wants counts and what b wants does not: the
// newer, but of two with one alias the one whose name it is (see outshone).
func (r *rowState) before(a, b *contribution) bool {
	d := a.rev.Compare(b.rev)
	if r.key.Table == hoststate.TableAlias {
		d = 0
		a, b = b, a
	}
	return d > 0 || d == 0 && a.by.Compare(b.by) > 0
}

// rowState is one kernel row: what is wanted of it and what it was seen to be.
type rowState struct {
	key  hoststate.Key
	next *rowState // in the chain of its set

	// One address may belong to two endpoints for a moment; the newest wins.
	// Rows of the replication list have one contributor an endpoint, which
	// makes them many: they all want the same, so they are only counted.
	// The first wish stands in the row itself: nearly all have one.
	first contribution
	more  []contribution
	have  hoststate.Val
	gen   uint64
	count int32
	has   bool

	present bool
	known   bool // present and have were read
	busy    bool // in an operation
	queued  bool
	recheck bool // a doorbell rang while it was busy
	open    bool // counted in the ledger
	tries   uint8
}

func (r *rowState) wanted() bool { return r.count > 0 || r.has }

func (r *rowState) want() hoststate.Val {
	if !r.has {
		return hoststate.Val{Flags: plan.ReplFlags}
	}
	best := &r.first
	for i := range r.more {
		if c := &r.more[i]; r.before(c, best) {
			best = c
		}
	}
	return best.val
}

// wish enters a wish, or changes the one that the same has already.
func (r *rowState) wish(w contribution) {
	if !r.has || r.first.by == w.by {
		r.first, r.has = w, true
		return
	}
	if i := slices.IndexFunc(r.more, func(x contribution) bool { return x.by == w.by }); i >= 0 {
		r.more[i] = w
		return
	}
	r.more = append(r.more, w)
}

// unwish takes a wish back.
func (r *rowState) unwish(by overlay.Key) {
	if !r.has || r.first.by != by {
		r.more = slices.DeleteFunc(r.more, func(x contribution) bool { return x.by == by })
		return
	}
	if r.has = len(r.more) > 0; r.has {
		r.first, r.more = r.more[0], r.more[1:]
	}
}

// port is the bridge port that the row was last seen on; 0 for a nil row, or
// if it was none of a VM's.
func (r *rowState) port() int32 {
	if r == nil {
		return 0
	}
	return r.have.Port
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

// add enters a wish for row r; remove takes it back.
func (c *Core) add(s *rowSet, r hoststate.Row, by overlay.Key, rev overlay.Rev) {
	rs := s.row(r.Key)
	if r.Key.Table == hoststate.TableRepl {
		rs.count++
	} else {
		rs.wish(contribution{by, rev, r.Val})
	}
	c.changed(s, rs)
}

func (c *Core) remove(s *rowSet, k hoststate.Key, by overlay.Key) {
	rs := s.get(k)
	if rs == nil {
		return
	}
	if k.Table == hoststate.TableRepl {
		rs.count--
	} else {
		rs.unwish(by)
	}
	c.changed(s, rs)
}

// changed looks anew at a row whose wish or state has changed.
func (c *Core) changed(s *rowSet, rs *rowState) {
	switch {
	case rs.settled():
		c.close(s, rs)
	default:
		if !rs.open {
			rs.open, rs.gen = true, c.work.open()
			s.open++
		}
		s.enqueue(rs)
	}
}

// close takes a settled row off the ledger, and out of memory if it is gone.
func (c *Core) close(s *rowSet, rs *rowState) {
	if rs.open {
		s.open--
		rs.open, rs.tries = false, 0
		c.work.done(rs.gen)
	}
	if !rs.wanted() && !rs.present && !rs.queued {
		s.remove(rs)
	}
}

// drop forgets all rows of a set: its devices are gone, and the rows with them.
func (c *Core) drop(s *rowSet) {
	for rs := range s.all() { // order-free: only counts down
		if rs.open {
			rs.open = false
			c.work.done(rs.gen)
		}
	}
	s.forget()
	s.term++
}

// flight is what an operation under way is about.
type flight struct {
	set  *rowSet // nil for operations on devices
	row  *rowState
	term int // of the set
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
// opposite order. While the tables are to be read, what nobody has looked at
// is not deleted: what hangs on it may stand there, too, and goes first.
func (c *Core) takeRows(s *rowSet, net overlay.UID, mayDelete, unread bool, max int, buf []hoststate.Op) []hoststate.Op {
	n := 0
	var later []*rowState
	picks := c.picks[:0]
	for ; n < len(s.queue) && len(picks) < max; n++ {
		rs := s.queue[n]
		rs.queued = false
		if rs.settled() {
			c.close(s, rs)
			continue
		}
		if !rs.wanted() && (!mayDelete || unread && !rs.known) {
			rs.queued = true
			later = append(later, rs)
			continue
		}
		rs.busy = true
		picks = append(picks, rs)
	}
	if n == len(s.queue) && len(later) == 0 {
		s.queue = s.queue[:0] // its room is used again
	} else if s.queue = s.queue[n:]; len(later) > 0 {
		s.queue = append(later, s.queue...)
	}
	c.picks = picks
	return c.delOps(s, net, picks, c.setOps(s, net, picks, buf))
}

// setOps appends what is to be written of the rows that were picked, in order:
// a pass a table moves less than sorting would.
func (c *Core) setOps(s *rowSet, net overlay.UID, picks []*rowState, buf []hoststate.Op) []hoststate.Op {
	for _, t := range hoststate.WriteOrder {
		for _, rs := range picks {
			if rs.key.Table == t && rs.wanted() {
				buf = append(buf, hoststate.Op{
					ID: c.fly(flight{set: s, row: rs, term: s.term, net: net, kind: hoststate.OpSet}), Kind: hoststate.OpSet,
					Row: hoststate.Row{Key: rs.key, Val: rs.want()},
				})
			}
		}
	}
	return buf
}

// delOps appends what is to be deleted of the rows that were picked.
func (c *Core) delOps(s *rowSet, net overlay.UID, picks []*rowState, buf []hoststate.Op) []hoststate.Op {
	for _, t := range slices.Backward(hoststate.WriteOrder[:]) {
		for _, rs := range picks {
			if rs.key.Table == t && !rs.wanted() {
				buf = append(buf, hoststate.Op{
					ID: c.fly(flight{set: s, row: rs, term: s.term, net: net, kind: hoststate.OpDel}), Kind: hoststate.OpDel,
					Row: hoststate.Row{Key: rs.key, Val: rs.have},
				})
			}
		}
	}
	return buf
}

// flights are the operations under way, by number: they are given and come
// back in nearly the same order.
type flights struct {
	list  []flight
	start []flight // where list began, to use its room again
	gone  uint64   // how many are no longer in list
}

func (c *Core) fly(f flight) uint64 {
	fl := &c.inflight
	if len(fl.list) == 0 {
		fl.list = fl.start[:0]
	}
	fl.list = append(fl.list, f)
	if cap(fl.list) > cap(fl.start) {
		fl.start = fl.list
	}
	return fl.gone + uint64(len(fl.list))
}

// land takes an operation off the list; ok is false for numbers that are not
// under way.
func (fl *flights) land(id uint64) (f flight, ok bool) {
	i := id - fl.gone - 1
	if id <= fl.gone || i >= uint64(len(fl.list)) || fl.list[i].kind == 0 {
		return flight{}, false
	}
	f = fl.list[i]
	fl.list[i] = flight{}
	n := 0
	for n < len(fl.list) && fl.list[n].kind == 0 {
		n++
	}
	fl.list, fl.gone = fl.list[n:], fl.gone+uint64(n)
	return f, true
}

// applied takes the outcome of operations.
func (c *Core) applied(e Applied) {
	for i := range e.Results {
		r := &e.Results[i]
		f, ok := c.inflight.land(r.Op.ID)
		if !ok {
			continue // an order of the local API; its driver answers
		}
		if f.set != nil {
			c.rowDone(f, r)
		} else {
			c.deviceDone(f, r)
		}
	}
}

func (c *Core) rowDone(f flight, r *hoststate.Result) {
	if f.term != f.set.term {
		return // its devices went meanwhile
	}
	rs := f.row
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
		c.close(f.set, rs)
		c.rowHeld(f)
		return
	}
	if rs.known && rs.present == (f.kind == hoststate.OpSet) && (!rs.present || rs.have == r.Op.Row.Val) {
		// Done as asked, and what is wanted changed meanwhile. Not a failure:
		// a wait would let rows pass that must come after this one.
		f.set.enqueue(rs)
		return
	}
	if r.Class == hoststate.ClassFull || r.Class == hoststate.ClassRefused {
		c.stats.OpsRefused++
		c.wantLinks() // a setting of the device may be why: IPv6 switched off rings no bell
		c.problem("CV0206 the kernel refuses a " + rs.key.Table.String() + " entry: " + r.Text)
	}
	wait := 10 * millisecond << min(rs.tries, 9)
	rs.tries = min(rs.tries+1, 20)
	at := c.now + wait
	c.delayed = append(c.delayed, delayedRow{at, f.set, rs.key})
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
