// Package agentcore is the thinking of an agent: which devices, rows and
// claims follow from the manager's logs and from what the kernel was read to
// hold, and what is still to be done about it.
//
// It is a state machine without goroutine, clock, lock or I/O. Events go in
// with the time and only change state; the driver pulls work when it has room:
// NextRead, NextOps, NextUp, NextInquiry. It is level-triggered: kernel events are
// doorbells, which at most cause a read; only what a read or an operation's
// read-back showed counts as held.
//
//	logs -----> endpoints --+
//	                        +-> plan.Rows -> wanted rows --+-> NextOps -> kernel
//	links ----> taps -------+                              |
//	tables read ------------------------> held rows -------+-> ack, claims -> NextUp
//
// Nothing is deleted before the pass over the log that would name it has
// ended, beyond all that the kernel is known to hold (see mark), and nothing
// that does not carry our name is ever touched.
package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Time is Unix nanoseconds, from the driver.
type Time int64

// Durations, in nanoseconds.
const (
	millisecond Time = 1e6
	second      Time = 1e9
)

// Config is what does not change while an agent runs.
type Config struct {
	Cluster string
	Self    overlay.UID // of this host
	Name    string      // of this host
	VTEP    netip.Addr  // of this host
	UDPPort uint16
	Grace   Time // how long a network without member ports keeps its VXLAN device
	Verify  Time // how often each network's tables are read on no other reason
}

// Core is the state machine. It has one owner.
type Core struct {
	cfg Config
	now Time

	session   uint64 // 0 while there is no stream
	inventory bool   // InventoryEnd was sent in this session
	upTo      overlay.Rev
	held      overlay.Rev // the kernel was seen to hold all up to here
	ackSent   overlay.Rev
	mark      mark
	saidWaits bool // the manager was told that devices wait for a port
	stirred   bool // devices came, went or became something since
	poor      bool // this stream's manager knows less than the kernel here: see distrust

	hosts    map[overlay.UID]*hostEntry
	gateways map[overlay.UID]*gatewayEntry
	// gatewaysAt counts up whenever Gateways may say something else.
	gatewaysAt uint64
	// fleetHeard: a manager, not the journal, has told of the fleet to an end.
	fleetHeard bool

	nets  map[overlay.UID]*network
	byVNI map[overlay.VNI]*network
	order []*network // c.nets by UID; nil when it must be made anew
	fleet logState
	// behind are the networks whose logs are wanted and were not received to
	// an end since they were asked for.
	behind map[overlay.UID]bool
	said   overlay.Rev // the newest UpTo of this stream

	links     map[int32]hoststate.Link
	linksRead bool // at least once
	base      bool
	baseBusy  bool

	needLinks   bool
	lookOrphans bool
	judged      bool   // the host's own sets were read when it was known what belongs there
	adopted     bool   // see adopt
	adopting    uint64 // 0: not all was looked at
	readAgain   Time   // after a failure, links are not read before
	linkReads   budget
	looks       uint64 // at the links, begun so far
	sightDue    Time   // when the next is due because of what a hypervisor said; 0: it is not

	alarm Time // the earliest time at which something is due

	global   *rowSet // TableVTEP, TableMember
	work     ledger
	delayed  []delayedRow
	nextID   uint64
	inflight flights
	picks    []*rowState    // scratch of takeRows
	orders   []hoststate.Op // attach and detach, from the local API

	tapNet    map[int32]*network // by ifindex of a port
	nics      map[string]sourced // what the hypervisor says, by device
	relays    []relayEnd
	adverts   []advertAt
	claims    map[uint64]claimRef
	asks      Time            // when the next want that guests cause is due: a bucket
	was, will []hoststate.Row // scratch of replan
	problems  map[string]Time // text -> since
	drops     dropCounts
	seeks     []Seek
	questions []question
	findings  []Finding
	inquiry   inquiry
	stats     Stats
}

// Stats counts what an operator wants to see, and what must never happen.
type Stats struct {
	Repairs       uint64 // rows or devices that somebody else had changed
	Written       uint64 // rows set or deleted
	Overflows     uint64 // doorbells lost
	SumWrong      uint64 // a log's sum differed from the manager's: cured by a full pass
	Stale         uint64 // items older than what was known
	Reads         uint64
	OpsRefused    uint64
	Strangers     uint64
	Announced     uint64
	Answers       uint64 // frames sent to guests that asked, and advertisements
	Unanswered    uint64 // ... that were one too many
	SharesDelayed uint64 // changes of shared addresses that waited because a port made too many

	// Of on-demand networks.
	Misses       uint64 // that the kernel told of
	Wants        uint64 // that guests caused, and the manager was asked for
	WantsRefused uint64 // ... that were too many
	Negative     uint64 // questions for what it was known that nobody has
	Dropped      uint64 // wants that were given up
}

type hostEntry struct {
	rec  *overlay.Host
	rev  overlay.Rev
	gone bool
}

// vtep is where entries may point to; invalid while the host is dead.
func (h *hostEntry) vtep() netip.Addr {
	if h.rec == nil || h.gone || h.rec.Dead {
		return netip.Addr{}
	}
	return h.rec.VTEP
}

// logState is how far one log has been received.
type logState struct {
	sent     overlay.Rev
	complete bool // a full pass has ended at some time: deletions may be made
	sum      overlay.Sum
	named    map[overlay.Key]bool // during a full pass; nil otherwise
	wantFull bool
	partial  bool // it holds what this host wanted, as told on demand
}

// New makes a core that knows nothing yet.
func New(cfg Config) *Core {
	c := &Core{
		cfg: cfg, hosts: map[overlay.UID]*hostEntry{}, gateways: map[overlay.UID]*gatewayEntry{}, nets: map[overlay.UID]*network{}, byVNI: map[overlay.VNI]*network{}, behind: map[overlay.UID]bool{},
		links: map[int32]hoststate.Link{}, needLinks: true, global: newRowSet(),
		tapNet: map[int32]*network{}, nics: map[string]sourced{}, claims: map[uint64]claimRef{}, problems: map[string]Time{},
	}
	c.work.open() // until adopt has seen all
	return c
}

// Stats is a copy of the counters.
func (c *Core) Stats() Stats { return c.stats }

// Event is one of Items, Connected, Disconnected, Answered, Read, Applied,
// Bell, Missed, Heard, Guests, Ask, Order and Tick.
type Event interface{ event() }

// Item is one entry of a log.
type Item struct {
	Rev  overlay.Rev
	Gone bool
	Rec  overlay.Record
}

// End says that a pass over a log has reached its end at Sent.
type End struct {
	Network overlay.UID // zero for the fleet log
	Full    bool
	Sum     overlay.Sum
	Sent    overlay.Rev
	// OnDemand: the log is told on demand, and Sum is over what was told and not
	// dropped.
	OnDemand bool
}

// Items is one message of the manager, or of the agent's own journal.
type Items struct {
	// Begins names the logs (zero: the fleet's) of which a full pass begins
	// here, before the items.
	Begins []overlay.UID
	Items  []Item
	// Members are changes of who has endpoints in on-demand networks; with a full
	// pass they are all of them.
	Members []overlay.Member
	Ends    []End
	// Told are wants of which all that is known now was told, in this message or
	// before it; Dropped are those, given up by this host, of which it hears
	// nothing from now on.
	Told, Dropped []overlay.Want
	UpTo          overlay.Rev // zero while something is unsent
}

// Connected says that a stream was opened as session N.
type Connected struct{ Session uint64 }

// Disconnected says that the stream has ended.
type Disconnected struct{}

// Answered is the manager's answer to one claim.
type Answered struct {
	ID       uint64
	Accepted bool
	Binding  overlay.Rev
	Reason   string
	Refused  []overlay.AddressRefusal // addresses that an accepted one may not have
	Disputed bool                     // another, who answers, has the MAC
}

// Read is the outcome of a NextRead. State is nil if it failed.
type Read struct {
	Scope hoststate.Scope
	State *hoststate.State
	Cost  Time // processor time
}

// Applied is the outcome of operations that NextOps gave.
type Applied struct{ Results []hoststate.Result }

// Bell is a doorbell of the kernel.
type Bell struct{ hoststate.Doorbell }

// Missed is a guest's frame of which the kernel says that its tables have no
// entry for it.
type Missed struct{ hoststate.Miss }

// Order is an attach or a detach from the local API. Its result comes back in
// Applied like any other; ID is the caller's.
type Order struct{ Op hoststate.Op }

// Tick only tells the time.
type Tick struct{}

func (Items) event()        {}
func (Connected) event()    {}
func (Disconnected) event() {}
func (Answered) event()     {}
func (Read) event()         {}
func (Applied) event()      {}
func (Bell) event()         {}
func (Missed) event()       {}
func (Heard) event()        {}
func (Guests) event()       {}
func (Order) event()        {}
func (Tick) event()         {}

// Step takes one event and returns when the core wants a Tick at the latest;
// zero means never.
func (c *Core) Step(now Time, e Event) (wake Time) {
	c.now = now
	switch e := e.(type) {
	case Items:
		c.items(e)
	case Connected:
		c.connected(e)
	case Disconnected:
		c.disconnected()
	case Answered:
		c.answered(e)
	case Read:
		c.read(e)
	case Applied:
		c.applied(e)
	case Bell:
		c.bell(e.Doorbell)
	case Missed:
		c.missed(e.Miss)
	case Heard:
		c.heard(e)
	case Guests:
		c.hypervisor(e)
	case Ask:
		c.askFor(e)
	case Order:
		c.orders = append(c.orders, e.Op)
	case Tick:
	}
	if !c.judged && !c.needLinks && c.tapsKnown() {
		c.wantLinks()
	}
	c.due()
	return c.alarm
}

// alarmAt asks to be woken at t. What is due already needs no waking: it is
// pulled as soon as the driver has room.
func (c *Core) alarmAt(t Time) {
	if t > c.now && (c.alarm == 0 || t < c.alarm) {
		c.alarm = t
	}
}

// due moves what has waited long enough back to where it is pulled from. It
// costs nothing before the earliest alarm.
func (c *Core) due() {
	if c.alarm == 0 || c.now < c.alarm {
		return
	}
	c.alarm = 0
	keep := c.delayed[:0]
	for _, d := range c.delayed {
		if d.at > c.now {
			keep = append(keep, d)
			c.alarmAt(d.at)
			continue
		}
		if rs := d.set.get(d.key); rs != nil && !rs.settled() {
			d.set.enqueue(rs)
		}
	}
	c.delayed = keep
	c.endRelays()
	c.advertsDue()
	c.askNow()
	for _, n := range c.sortedNets() {
		c.dueNet(n)
	}
	if c.sightDue != 0 && c.sightDue <= c.now {
		c.wantLinks()
	}
	c.alarmAt(c.sightDue)
	if c.inquiry.wanted {
		c.alarmAt(c.inquiry.next)
	}
	if c.needLinks {
		c.alarmAt(c.linksDue())
	}
	if c.mark.due != 0 && c.mark.due <= c.now {
		c.moveMark()
	}
	c.alarmAt(c.mark.due)
}

func (c *Core) dueNet(n *network) {
	switch { // an end that has passed stays: without it another grace would begin
	case n.graceEnd > c.now:
		c.alarmAt(n.graceEnd)
	case n.graceEnd != 0 && n.serving:
		c.touch(n)
	}
	if n.retryAt != 0 && n.retryAt <= c.now {
		n.retryAt = 0
		c.touch(n)
	}
	c.alarmAt(n.retryAt)
	if n.serving && n.tablesRead && c.cfg.Verify > 0 {
		if n.verifiedAt+c.cfg.Verify <= c.now {
			n.needRead = true
			c.wantLinks()
		} else {
			c.alarmAt(n.verifiedAt + c.cfg.Verify)
		}
	}
	if n.needRead && n.readable() {
		c.alarmAt(n.readDue())
	}
	if len(n.doubts) > 0 {
		if n.doubtDue <= c.now {
			c.wantLinks()
		} else {
			c.alarmAt(n.doubtDue)
		}
	}
	c.alarmAt(n.sweepAt) // NextUp sweeps
	for _, mac := range sortedMACs(n.guests) {
		c.dueGuest(n, n.guests[mac])
	}
}

func (c *Core) dueGuest(n *network, g *guest) {
	if g.conflictEnd != 0 && g.conflictEnd <= c.now {
		c.endConflict(g)
	}
	if g.due != 0 && g.due <= c.now {
		c.expire(n, g)
	}
	c.dueShares(n, g)
	if g.recheckAt != 0 && g.recheckAt <= c.now {
		c.askAgain(n, g)
	}
	for _, at := range []Time{g.retryAt, g.conflictEnd, g.due, g.recheckAt} {
		c.alarmAt(at)
	}
}

// sortedNets is all networks by UID. The slice is shared: a caller that makes
// or forgets networks goes on with the old one.
func (c *Core) sortedNets() []*network {
	if c.order != nil {
		return c.order
	}
	c.order = make([]*network, 0, len(c.nets))
	for _, n := range c.nets { // order-free: sorted below
		c.order = append(c.order, n)
	}
	slices.SortFunc(c.order, func(a, b *network) int { return a.uid.Compare(b.uid) })
	return c.order
}

// problem keeps a text that status shows until it is solved.
func (c *Core) problem(text string) {
	if _, ok := c.problems[text]; !ok && len(c.problems) < 64 {
		c.problems[text] = c.now
	}
}

func (c *Core) solved(text string) { delete(c.problems, text) }

// Problems lists what is wrong now, sorted.
func (c *Core) Problems() []string {
	var out []string
	for p := range c.problems { // order-free: sorted below
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}
