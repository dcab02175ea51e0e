// Package manager drives the manager's core: it feeds it the store's events,
// the users' requests and the agents' messages, commits what it decides, and
// serves the views that come out to agents and users.
//
// One goroutine owns the core (loop). One commits (Store.Commit waits for the
// disk), one reads the store's watch, and each stream has one that receives
// and one that sends. They share nothing but channels and the published view.
package manager

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"culvert/internal/api"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
	"culvert/internal/store"
)

// Config is what a manager needs to run.
type Config struct {
	Cluster   string
	ID        string // of this manager, for the decider's key; never another's
	Log       *slog.Logger
	Now       func() time.Time
	Authority Authority
	// Lease is how long the decider's place outlives a manager that stopped.
	Lease time.Duration
	// HostDeath is how long after its last sign of life a dead host is in
	// nobody's tables any more; 0: hosts never die. See managercore.Config.
	HostDeath time.Duration
}

// Manager is a running manager. Its methods may be called from any goroutine.
type Manager struct {
	cfg   Config
	store store.Store
	log   *slog.Logger

	authority Authority

	inbox   chan event
	stopped chan struct{} // closed when Run ends
	feed    *feed
	hosts   *feed // ticks when a host's state changed

	joining sync.Mutex // one use of a token at a time

	mu      sync.Mutex
	waiting map[uint64]chan managercore.Reply
	streams map[overlay.UID]*stream // newest per host
	looks   looks
	reports map[overlay.UID]Report
	tokens  map[string]*token           // by id
	newer   map[overlay.UID]overlay.Rev // hosts that hold what this store never had
	nextID  uint64

	core   *managercore.Core // loop only
	fence  store.Fence       // of the present term; loop only
	states atomic.Pointer[[]managercore.HostState]
	// statesDue: they are older than what the core knows; loop only.
	statesDue bool
	stats     atomic.Pointer[managercore.Stats] // of the present term
	counts    counters
}

// Report is what a host's agent last said of itself, for status.
type Report struct {
	api.Report
	At time.Time
}

// event is one thing for the core, with what runs on the loop after it.
type event struct {
	e     managercore.Event
	after func(c *managercore.Core)
}

// New makes a manager over an open store. Run starts it.
func New(st store.Store, cfg Config) *Manager {
	if cfg.Lease == 0 {
		cfg.Lease = 10 * time.Second
	}
	m := &Manager{
		cfg: cfg, store: st, log: cfg.Log, inbox: make(chan event, 256), stopped: make(chan struct{}), feed: newFeed(), hosts: newFeed(),
		waiting: map[uint64]chan managercore.Reply{}, streams: map[overlay.UID]*stream{}, looks: newLooks(), reports: map[overlay.UID]Report{},
		tokens: map[string]*token{}, newer: map[overlay.UID]overlay.Rev{}, authority: cfg.Authority,
	}
	m.states.Store(&[]managercore.HostState{})
	return m
}

// Run decides and distributes until ctx ends or the store fails for good. It
// goes back to reading the store whenever its place or its certainty is lost.
func (m *Manager) Run(ctx context.Context) error {
	defer m.endStreams()
	defer close(m.stopped)
	for {
		err := m.term(ctx)
		if ctx.Err() != nil {
			return nil
		}
		m.counts.add("terms_lost", 1)
		m.log.Warn("reading the store anew", "err", err)
		if errors.Is(err, store.ErrFailed) || errors.Is(err, store.ErrClosed) {
			return fmt.Errorf("run manager: %w", err)
		}
		if !pause(ctx, 200*time.Millisecond) {
			return nil
		}
	}
}

// pause waits d, or reports false when ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// term is one time of deciding: from winning the place to losing it.
func (m *Manager) term(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	fence, err := m.store.Campaign(ctx, m.cfg.ID, m.cfg.Lease)
	if err != nil {
		return fmt.Errorf("campaign: %w", err)
	}
	defer func() { _ = fence.Resign(context.WithoutCancel(ctx)) }() // lost already is fine
	if err := m.prepare(ctx, fence); err != nil {
		return err
	}
	loaded, epoch, err := m.load(ctx)
	if err != nil {
		return err
	}
	watch, err := m.store.Watch(ctx, int64(loaded.N))
	if err != nil {
		return fmt.Errorf("watch store: %w", err)
	}
	defer watch.Close()

	m.fence = fence
	m.core = managercore.New(managercore.Config{Epoch: epoch, HostDeath: managercore.Time(m.cfg.HostDeath)})
	m.core.Step(m.now(), *loaded)
	m.flush()
	m.log.Info("deciding", "revision", loaded.N, "epoch", epoch, "records", len(loaded.Records))

	batches := make(chan store.Batch)
	watchErr := make(chan error, 1)
	go func() { watchErr <- pump(ctx, watch, batches) }()
	commits := make(chan []store.Op)
	results := make(chan committed, 1)
	go m.commit(ctx, fence, commits, results)
	err = m.loop(ctx, fence, batches, watchErr, commits, results)

	m.core.Step(m.now(), managercore.Lost{})
	m.flush()
	m.endStreams()
	return err
}

func pump(ctx context.Context, w store.Watch, out chan<- store.Batch) error {
	for {
		b, err := w.Next(ctx)
		if err != nil {
			return fmt.Errorf("watch store: %w", err)
		}
		select {
		case out <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type committed struct {
	rev int64
	err error
}

// commit writes one transaction at a time. A batch that the store refuses
// before sending it is a defect of ours and ends the term like a lost fence:
// nothing may be half decided.
func (m *Manager) commit(ctx context.Context, f store.Fence, in <-chan []store.Op, out chan<- committed) {
	for {
		select {
		case ops := <-in:
			rev, err := m.store.Commit(ctx, f, ops)
			out <- committed{rev, err}
			if err != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// loop owns the core for one term.
func (m *Manager) loop(ctx context.Context, f store.Fence, batches <-chan store.Batch, watchErr <-chan error, commits chan<- []store.Op, results <-chan committed) error {
	var writes []managercore.Write
	busy := false
	look := time.NewTimer(0)
	defer look.Stop()
	publish, wait := (<-chan time.Time)(nil), statesEvery
	for {
		if m.statesDue && publish == nil {
			publish = time.After(wait)
		}
		if !busy {
			if writes = m.core.NextTxn(writes[:0], store.MaxOps-24); len(writes) > 0 {
				busy = true
				select {
				case commits <- encode(m.store.Prefix(), writes):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		m.setLook(look)
		select {
		case ev := <-m.inbox:
			m.step(ev)
			m.drain()
		case <-publish:
			publish, wait = nil, m.publishStates()
			continue
		case <-look.C:
			m.drain() // a breath that waits here is heard before it is missed
			m.step(event{e: managercore.Tick{}})
		case b := <-batches:
			e, err := m.decodeBatch(b)
			if err != nil {
				return err
			}
			if e != nil {
				m.core.Step(m.now(), *e)
			}
		case r := <-results:
			busy = false
			if r.err != nil {
				return fmt.Errorf("commit: %w", r.err)
			}
			m.core.Step(m.now(), managercore.TxnDone{N: uint64(r.rev)})
		case err := <-watchErr:
			return err
		case <-f.Lost():
			return fmt.Errorf("hold the decider's place: %w", store.ErrFenced)
		case <-ctx.Done():
			return ctx.Err()
		}
		m.flush()
	}
}

// drain takes what else has come already, so that one transaction serves all.
func (m *Manager) drain() {
	for range 1000 {
		select {
		case ev := <-m.inbox:
			m.step(ev)
		default:
			return
		}
	}
}

func (m *Manager) step(ev event) {
	if ev.e != nil {
		m.core.Step(m.now(), ev.e)
	}
	if ev.after != nil {
		ev.after(m.core)
	}
}

func (m *Manager) now() managercore.Time { return managercore.Time(m.cfg.Now().UnixNano()) }

// flush hands out what the core has to say.
func (m *Manager) flush() {
	if st, old := m.core.Stats(), m.stats.Load(); old == nil || *old != st {
		m.stats.Store(&st)
	}
	if v := m.core.View(); v != m.feed.view() {
		m.feed.publish(v)
	}
	m.runErrands()
	for _, r := range m.core.NextReplies() {
		if r.Claim != nil {
			m.mu.Lock()
			s := m.streams[r.Host]
			m.mu.Unlock()
			if s != nil && s.session == r.Session { // else: of a former session, void
				s.answer(*r.Claim)
			}
			continue
		}
		m.mu.Lock()
		ch := m.waiting[r.ID]
		delete(m.waiting, r.ID)
		m.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
}

// send gives the core an event.
func (m *Manager) send(ctx context.Context, e managercore.Event) error {
	select {
	case m.inbox <- event{e: e}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// inLoop runs f on the loop and waits for it.
func (m *Manager) inLoop(ctx context.Context, f func(c *managercore.Core)) error {
	done := make(chan struct{})
	select {
	case m.inbox <- event{after: func(c *managercore.Core) { f(c); close(done) }}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// request gives the core an event that has an answer, and waits for it. make
// gets the number under which the answer comes.
func (m *Manager) request(ctx context.Context, make func(id uint64) managercore.Event) (managercore.Reply, error) {
	ch := newReplyChan()
	m.mu.Lock()
	m.nextID++
	id := m.nextID
	m.waiting[id] = ch
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
	}()
	if err := m.send(ctx, make(id)); err != nil {
		return managercore.Reply{}, err
	}
	select {
	case r := <-ch:
		if r.Refusal != nil {
			return r, r.Refusal
		}
		return r, nil
	case <-ctx.Done():
		return managercore.Reply{}, api.Refuse(api.CodeUnknown, "The request was not confirmed", "the answer did not come in time", "")
	}
}

func newReplyChan() chan managercore.Reply { return make(chan managercore.Reply, 1) }

func seed() (u overlay.UID) {
	_, _ = rand.Read(u[:]) // never errs (crypto/rand)
	return u
}

// feed publishes views and wakes those who wait for a newer one.
type feed struct {
	mu   sync.Mutex
	cur  *managercore.View
	wake chan struct{}
}

func newFeed() *feed {
	return &feed{cur: managercore.New(managercore.Config{}).View(), wake: make(chan struct{})}
}

func (f *feed) view() *managercore.View {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cur
}

func (f *feed) publish(v *managercore.View) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cur = v
	close(f.wake)
	f.wake = make(chan struct{})
}

// next is the view now and a channel that is closed when another comes.
func (f *feed) next() (*managercore.View, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cur, f.wake
}

// counters are named numbers for status.
type counters struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (c *counters) add(name string, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]uint64{}
	}
	c.n[name] += n
}

func (c *counters) copy() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]uint64, len(c.n))
	for k, v := range c.n {
		out[k] = v
	}
	return out
}
