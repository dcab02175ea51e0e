// Package agent drives the agent's core: it feeds it the manager's stream, the
// kernel's state and doorbells and the local API, and does what the core asks
// for.
//
// One goroutine owns the core (Run). One works on the kernel, one operation
// batch or read at a time, so that a read never overlaps a write. One listens
// for doorbells, one for what guests say, and one holds the stream to a manager. With all managers gone
// the first two go on from the journal.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Kernel is the one writer of this host's overlay state.
type Kernel interface {
	// Read reads what the scope names; errors mean that nothing was learned.
	Read(ctx context.Context, s hoststate.Scope) (*hoststate.State, error)
	// Apply does the operations in order; one result an operation.
	Apply(ctx context.Context, ops []hoststate.Op) []hoststate.Result
	// Watch calls ring for whatever changes, until ctx ends.
	Watch(ctx context.Context, ring func(hoststate.Doorbell)) error
	// Listen calls hear for each frame that a port program hands up, until
	// ctx ends.
	Listen(ctx context.Context, hear func(hoststate.Heard)) error
	// Misses calls f for what guests' frames did not find in the tables of
	// devices with hoststate.Device.Misses, until ctx ends.
	Misses(ctx context.Context, f func(hoststate.Miss)) error
}

// Prober asks whether other hosts answer.
type Prober interface {
	// Probe sends count echo requests to an address and reports whether one
	// was answered within that time. An error means that nothing was asked.
	Probe(ctx context.Context, from, to netip.Addr, count int, within time.Duration) (bool, error)
}

// Managers is the way to the managers.
type Managers interface {
	// Attach opens a stream; it ends with ctx.
	Attach(ctx context.Context) (Stream, error)
	// Resolve finds a declared port and its network. Of the port, it tells UID,
	// name, MAC and hosts. Errors are *api.Refusal.
	Resolve(ctx context.Context, q PortQuery) (overlay.VNI, *overlay.Port, error)
}

// PortQuery names a port by tenant and name or, if the name is empty, by the
// network's VNI and the port's MAC.
type PortQuery struct {
	Tenant, Name string
	VNI          overlay.VNI
	MAC          overlay.MAC
}

// String names the port for people.
func (q PortQuery) String() string {
	if q.Name == "" {
		return "with MAC " + q.MAC.String()
	}
	return q.Tenant + "/" + q.Name
}

// Stream is one open stream. Send and Receive may be used by one goroutine
// each.
type Stream interface {
	Send(api.Up) error
	Receive() (api.Down, error)
	Close()
}

// Config is what an agent needs to run.
type Config struct {
	Cluster string
	Host    overlay.UID
	Name    string
	VTEP    netip.Addr
	UDPPort uint16
	BootID  string
	Version string
	Journal string // path; empty: none
	Log     *slog.Logger
	Now     func() time.Time
	Grace   time.Duration // see agentcore.Config
	// Changed, if not nil, is called when devices of this host may have
	// changed: a hypervisor may have something to tell that it has no event for.
	// It must not wait.
	Changed func()
	// Inquire, if not nil, is called when what hypervisors have said of their
	// guests is not enough: they are to be asked anew for all, and Guests told,
	// as the answer. It must not wait.
	Inquire func()
	Verify  time.Duration
	Prober  Prober // nil: this host is no witness
	Ways    Ways   // nil: this host can be no gateway
}

// Agent is a running agent.
type Agent struct {
	cfg    Config
	kernel Kernel
	mgrs   Managers
	log    *slog.Logger

	inbox  chan func() // runs on the loop
	bells  bells
	ears   *ears
	misses *misses
	out    outbox
	jr     *journal

	core   *agentcore.Core // loop only
	orders map[uint64]chan hoststate.Result
	nextID uint64

	looked  chan struct{} // closed when the kernel was looked at
	looking chan struct{} // of capacity 1: held while an operator's question is answered

	gatewaysAt uint64 // of the core, when Ways were set last; loop only

	told     api.Report     // the last report; loop only
	seen     []overlay.Seen // what this stream was last told of ports; nil: nothing
	reported time.Time
}

// Bounds of one round.
const (
	maxOps      = 200
	reportEvery = 5 * time.Second
	newsEvery   = 500 * time.Millisecond // a repair or a problem is told this soon
)

// orderBit marks the numbers of local orders, which the core does not give.
const orderBit = 1 << 63

// New makes an agent; Run starts it.
func New(k Kernel, m Managers, cfg Config) *Agent {
	if cfg.Grace == 0 {
		cfg.Grace = 30 * time.Second
	}
	if cfg.Verify == 0 {
		cfg.Verify = 60 * time.Second
	}
	return &Agent{
		cfg: cfg, kernel: k, mgrs: m, log: cfg.Log, inbox: make(chan func(), 64), bells: newBells(), ears: newEars(), misses: newMisses(), out: newOutbox(),
		orders: map[uint64]chan hoststate.Result{}, looked: make(chan struct{}), looking: make(chan struct{}, 1),
		core: agentcore.New(agentcore.Config{
			Cluster: cfg.Cluster, Self: cfg.Host, Name: cfg.Name, VTEP: cfg.VTEP, UDPPort: cfg.UDPPort,
			Grace: agentcore.Time(cfg.Grace), Verify: agentcore.Time(cfg.Verify),
		}),
	}
}

// Run works until ctx ends. It leaves the kernel as it is.
func (a *Agent) Run(ctx context.Context) error {
	if a.cfg.Journal != "" {
		jr, err := openJournal(a.cfg.Journal, func(it agentcore.Items) { a.core.Step(a.now(), it) })
		if err != nil {
			return fmt.Errorf("open journal: %w", err)
		}
		a.jr = jr
		defer jr.close()
	}
	ctx, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	work, done := make(chan job), make(chan func(), 1)
	watchErr := make(chan error, 2)
	wg.Go(func() { a.workKernel(ctx, work, done) })
	wg.Go(func() { watchErr <- a.kernel.Watch(ctx, a.bells.ring) })
	wg.Go(func() { watchErr <- a.kernel.Listen(ctx, a.ears.hear) })
	wg.Go(func() { a.keepMisses(ctx) })
	wg.Go(func() { a.keepStream(ctx) })
	return a.loop(ctx, work, done, watchErr)
}

func (a *Agent) now() agentcore.Time { return agentcore.Time(a.cfg.Now().UnixNano()) }

// loop owns the core.
func (a *Agent) loop(ctx context.Context, work chan<- job, done <-chan func(), watchErr <-chan error) error {
	// Nothing is read before doorbells are heard: they begin with "anything may
	// have changed", which would have everything read a second time.
	busy, hears := false, false
	timer := time.NewTimer(0)
	defer timer.Stop()
	a.core.Step(a.now(), agentcore.Tick{})
	report := time.NewTicker(newsEvery)
	defer report.Stop()
	for {
		if !busy && hears {
			if j, ok := a.nextJob(); ok {
				busy = true
				select {
				case work <- j:
				case <-ctx.Done():
					return nil
				}
			}
		}
		if a.core.NextInquiry() && a.cfg.Inquire != nil {
			a.cfg.Inquire()
		}
		a.tell()
		a.hearMisses(ctx)
		a.setWays()
		a.setTimer(timer, a.core.Step(a.now(), agentcore.Tick{})) // after pulling, which may set alarms too
		select {
		case f := <-done:
			busy = false
			f()
		case f := <-a.inbox:
			f()
		case <-a.bells.wake:
			hears = true
			a.rang(a.bells.take())
		case <-a.ears.wake:
			for _, h := range a.ears.take() {
				a.core.Step(a.now(), h)
			}
		case <-a.misses.wake:
			a.missed()
		case <-timer.C:
		case <-report.C:
			if a.cfg.Now().Sub(a.reported) >= reportEvery || a.news() {
				a.report()
			}
		case err := <-watchErr:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch kernel: %w", err)
		case <-ctx.Done():
			return nil
		}
	}
}

// rang takes doorbells.
func (a *Agent) rang(bells []hoststate.Doorbell) {
	changed := false
	for _, b := range bells {
		changed = changed || b.Links || b.Overflow
		a.core.Step(a.now(), agentcore.Bell{Doorbell: b})
	}
	if changed && a.cfg.Changed != nil {
		a.cfg.Changed()
	}
}

func (a *Agent) setTimer(t *time.Timer, wake agentcore.Time) {
	if wake == 0 {
		t.Reset(time.Hour)
		return
	}
	t.Reset(max(0, time.Duration(wake-a.now())))
}

// job is one piece of work on the kernel: a read or a batch of operations.
type job struct {
	scope hoststate.Scope
	ops   []hoststate.Op
}

func (a *Agent) nextJob() (job, bool) {
	if s, ok := a.core.NextRead(); ok {
		return job{scope: s}, true
	}
	if ops := a.core.NextOps(nil, maxOps); len(ops) > 0 {
		return job{ops: ops}, true
	}
	return job{}, false
}

// workKernel does one job at a time and hands its outcome to the loop.
func (a *Agent) workKernel(ctx context.Context, in <-chan job, out chan<- func()) {
	for {
		var j job
		select {
		case j = <-in:
		case <-ctx.Done():
			return
		}
		start := a.cfg.Now()
		if len(j.ops) > 0 {
			res := a.kernel.Apply(ctx, j.ops)
			a.log.Debug("kernel written", "ops", len(res), "first", j.ops[0].String(), "took", a.cfg.Now().Sub(start))
			out <- func() { a.applied(res) }
			continue
		}
		st, err := a.kernel.Read(ctx, j.scope)
		took := a.cfg.Now().Sub(start)
		cost := took
		if err == nil && st.Cost > 0 {
			cost = st.Cost
		}
		a.log.Debug("kernel read", "links", j.scope.Links, "vni", uint32(j.scope.VNI), "took", took, "cost", cost)
		out <- func() {
			if err != nil {
				a.log.Warn("reading the kernel", "err", err)
				st = nil
			}
			before := a.core.Looked()
			a.core.Step(a.now(), agentcore.Read{Scope: j.scope, State: st, Cost: agentcore.Time(cost)})
			if !before && a.core.Looked() {
				close(a.looked)
			}
		}
	}
}

func (a *Agent) applied(res []hoststate.Result) {
	for _, r := range res {
		if r.Class != hoststate.ClassOK && r.Class != hoststate.ClassNotFound && r.Class != hoststate.ClassGone && r.Class != hoststate.ClassExists {
			a.log.Warn("kernel refused", "op", r.Op.String(), "class", r.Class.String(), "text", r.Text)
		}
		if ch := a.orders[r.Op.ID]; ch != nil {
			delete(a.orders, r.Op.ID)
			ch <- r
		}
	}
	a.core.Step(a.now(), agentcore.Applied{Results: res})
}

// onLoop runs f on the loop; it returns false if ctx ends first.
func (a *Agent) onLoop(ctx context.Context, f func()) bool {
	select {
	case a.inbox <- f:
		return true
	case <-ctx.Done():
		return false
	}
}

// order gives the core an operation of the local API and waits for its result.
func (a *Agent) order(ctx context.Context, op hoststate.Op) (hoststate.Result, error) {
	ch := make(chan hoststate.Result, 1)
	ok := a.onLoop(ctx, func() {
		a.nextID++
		op.ID = orderBit | a.nextID
		a.orders[op.ID] = ch
		a.core.Step(a.now(), agentcore.Order{Op: op})
	})
	if !ok {
		return hoststate.Result{}, ctx.Err()
	}
	select {
	case r := <-ch:
		return r, nil
	case <-ctx.Done():
		return hoststate.Result{}, ctx.Err()
	}
}

// tell hands what the core has to say to the stream.
func (a *Agent) tell() {
	u := a.core.NextUp()
	if u.Empty() {
		return
	}
	a.log.Debug("telling the manager", "claims", len(u.Claims), "networks", len(u.Add)-len(u.Remove), "holds", u.Ack.String())
	a.out.put(u)
}

// news says whether something happened that an operator waits for.
func (a *Agent) news() bool {
	refused, more := a.core.Refused(api.MaxRefused)
	return a.core.Stats().Repairs != a.told.Repairs || !slices.Equal(a.core.Problems(), a.told.Problems) ||
		uint32(more) != a.told.RefusedMore || !slices.Equal(refused, a.told.Refused)
}

func (a *Agent) report() {
	st := a.core.Stats()
	refused, more := a.core.Refused(api.MaxRefused)
	drops, unheard := a.core.Dropped()
	a.told = api.Report{
		Problems: a.core.Problems(), Unclaimed: a.core.Unclaimed(), Repairs: st.Repairs, Strangers: st.Strangers,
		Drops: drops, Unread: a.ears.unread(unheard), Refused: refused, RefusedMore: uint32(more),
	}
	a.reported = a.cfg.Now()
	r := a.told
	// Of a thousand ports it is a hundred kilobytes, and as good as never new.
	if seen := a.core.Seen(); a.seen == nil || !slices.EqualFunc(seen, a.seen, sameSeen) {
		a.seen, r.Seen = seen, seen
	}
	a.out.report(&r)
}

func sameSeen(a, b overlay.Seen) bool {
	return a.Network == b.Network && a.MAC == b.MAC && slices.Equal(a.Groups, b.Groups) && slices.Equal(a.Drops, b.Drops)
}

// bells gathers doorbells between two rounds of the loop. Beyond its bound
// they become one "anything may have changed".
type bells struct {
	mu   *sync.Mutex
	list *[]hoststate.Doorbell
	wake chan struct{}
}

const maxBells = 20_000

func newBells() bells {
	return bells{mu: new(sync.Mutex), list: new([]hoststate.Doorbell), wake: make(chan struct{}, 1)}
}

func (b bells) ring(d hoststate.Doorbell) {
	b.mu.Lock()
	if len(*b.list) >= maxBells {
		*b.list = append((*b.list)[:0], hoststate.Doorbell{Overflow: true})
	}
	*b.list = append(*b.list, d)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b bells) take() []hoststate.Doorbell {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := *b.list
	*b.list = nil
	return l
}
