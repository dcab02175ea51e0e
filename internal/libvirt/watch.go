package libvirt

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"

	"culvert/internal/hoststate"
)

// Sockets are where a daemon of this host listens, the first that answers is
// taken: the QEMU daemon of newer systems, then the one for everything.
var Sockets = []string{"/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"}

// Times of the watch.
const (
	callTimeout = 10 * time.Second
	leastWait   = 100 * time.Millisecond // before a daemon is looked for again
	mostWait    = 2 * time.Second
	// A guest that is between two hosts is looked at again this often.
	unsettledEvery = time.Second
	// All guests are looked at again this long after the connection, then after
	// twice that, and so on up to mostRest: what libvirt has no event for is
	// found then. A daemon that was restarted finds some of its guests dead
	// while it takes them up again, and says nothing.
	leastRest = time.Second
	mostRest  = time.Minute
)

// Config is what a Source needs.
type Config struct {
	Socket string // path of the daemon's socket; empty: the first of Sockets that answers
	Log    *slog.Logger
}

// Source is the libvirt daemon of this host as a source of facts.
type Source struct {
	cfg   Config
	marks *marks
	doms  map[libvirt.UUID]*domain // Watch only
	last  string                   // what the log was told last; Watch only
	asked bool                     // see Inquire; Watch only
	// patience bounds one call to the daemon.
	patience time.Duration
}

// New makes a source; Watch works it.
func New(cfg Config) *Source {
	return &Source{cfg: cfg, marks: newMarks(), doms: map[libvirt.UUID]*domain{}, patience: callTimeout}
}

// Refresh makes Watch read the domain with that device again, or all of them
// if device is empty. It is for changes that libvirt has no event for, such as
// an interface moved to another bridge, which the kernel reports. It does not
// wait, and a device of no domain is nothing to do.
func (s *Source) Refresh(device string) { s.marks.device(device) }

// Inquire makes Watch read all guests and report them, changed or not, as soon
// as it can: with Answer set, in a report that was begun after the newest
// Inquire. It does not wait.
func (s *Source) Inquire() { s.marks.change(func(m *markSet) { m.asked = true }) }

// Report is what Watch tells of interfaces.
type Report struct {
	Full   bool // of all that there are: every other is gone
	Answer bool // to the newest Inquire; then it is full, too
	NICs   []hoststate.NIC
}

// Watch reports the interfaces of this host's guests until ctx ends: all of
// them after each connect and each Inquire, and each that has changed. A changed
// one that left says so with NICGone. Interfaces that left come first in a
// report, as one of the same MAC may have come in their place.
//
// tell is called by one goroutine and may take its time: changes meanwhile are
// gathered by domain, not queued. A daemon that is missing, has ended or does
// not answer is waited for, and what was reported stays said: guests live on
// without it. Watch works once.
func (s *Source) Watch(ctx context.Context, tell func(Report)) {
	wait := leastWait
	for ctx.Err() == nil {
		if s.connect(ctx, tell) {
			wait = leastWait
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, mostWait)
	}
}

// connect finds a daemon and works with it until it is lost; ok means that it
// came to a full report.
func (s *Source) connect(ctx context.Context, tell func(Report)) (ok bool) {
	sockets := Sockets
	if s.cfg.Socket != "" {
		sockets = []string{s.cfg.Socket}
	}
	var ses *session
	var errs []error
	for _, path := range sockets {
		one, err := open(path, s.patience)
		if err == nil {
			ses = one
			break
		}
		errs = append(errs, err)
	}
	if ses == nil {
		if err := errors.Join(errs...); errors.Is(err, fs.ErrNotExist) {
			s.say(slog.LevelInfo, "no libvirt on this host; waiting for it", nil)
		} else {
			s.say(slog.LevelWarn, "libvirt does not answer; waiting for it", err)
		}
		return false
	}
	stop := context.AfterFunc(ctx, func() { _ = ses.c.Close() })
	defer stop()
	w := work{Source: s, ses: ses, tell: tell}
	err := w.run(ctx)
	_ = ses.c.Close() // it is over, for a reason that err tells
	if ctx.Err() == nil {
		s.say(slog.LevelWarn, "libvirt was lost; waiting for it", err)
	}
	return w.full
}

// say logs a change of the way to the daemon, each only once in a row.
func (s *Source) say(level slog.Level, what string, err error) {
	if s.last == what {
		return
	}
	s.last = what
	if err != nil {
		s.cfg.Log.Log(context.Background(), level, "libvirt", "state", what, "err", err)
	} else {
		s.cfg.Log.Log(context.Background(), level, "libvirt", "state", what)
	}
}

// work is one session's.
type work struct {
	*Source
	ses  *session
	tell func(Report)
	full bool // the full report was made
	// listed is when all were read last. Refresh has them read at most once in
	// leastRest: a kernel rings far more often than there is something to find.
	listed time.Time
}

// run subscribes, lists, and then reads what rings.
func (w *work) run(ctx context.Context) error {
	w.asked = w.marks.take().asked || w.asked // the rest is of another session
	var drained sync.WaitGroup
	defer drained.Wait()
	events, end := context.WithCancel(context.Background())
	defer end()
	defer w.ses.c.Close() // first, so that the library does not ask the daemon to unsubscribe
	if err := w.subscribe(events, &drained); err != nil {
		return err
	}
	if err := w.list(); err != nil {
		return err
	}
	rest := leastRest
	settle, all := time.NewTicker(unsettledEvery), time.NewTimer(rest)
	defer settle.Stop()
	defer all.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-w.ses.c.gone:
			return errors.New("connection ended")
		case <-w.marks.wake:
			set := w.marks.take()
			if set.all && !set.lost {
				set.all = false
				all.Reset(max(0, leastRest-time.Since(w.listed)))
			}
			w.asked = w.asked || set.asked
			if err = w.marked(set); err == nil && set.asked && w.asked {
				err = w.list()
			}
		case <-settle.C:
			err = w.unsettled()
		case <-all.C:
			err = w.list()
			rest = min(2*rest, mostRest)
			all.Reset(rest)
		}
		if err != nil {
			return err
		}
	}
}

// subscribe asks for events and has them mark domains. Each channel of the
// library must be emptied without delay, or it keeps events without bound.
func (w *work) subscribe(ctx context.Context, drained *sync.WaitGroup) error {
	for _, id := range []libvirt.DomainEventID{
		libvirt.DomainEventIDLifecycle, libvirt.DomainEventIDDeviceAdded, libvirt.DomainEventIDDeviceRemoved, libvirt.DomainEventIDMetadataChange,
	} {
		var ch <-chan any
		err := w.ses.call(func() (err error) {
			ch, err = w.ses.rpc.SubscribeEvents(ctx, id, libvirt.OptDomain{}) // takes no notice of a domain
			return err
		})
		switch {
		case err == nil:
		case id == libvirt.DomainEventIDLifecycle || !w.ses.alive():
			return err
		default: // an older daemon: what it has no event for is found by looking
			w.cfg.Log.Info("libvirt has no such event", "event", int(id), "err", err)
			continue
		}
		drained.Go(func() {
			for e := range ch {
				w.event(e)
			}
		})
	}
	return nil
}

func (w *work) event(e any) {
	switch m := e.(type) {
	case *libvirt.DomainEventCallbackLifecycleMsg:
		w.cfg.Log.Debug("libvirt event", "vm", text(m.Msg.Dom.Name), "type", int(m.Msg.Event), "detail", int(m.Msg.Detail))
		w.marks.domain(m.Msg.Dom, event{libvirt.DomainEventType(m.Msg.Event), m.Msg.Detail})
	case *libvirt.DomainEventCallbackDeviceAddedMsg:
		w.marks.domain(m.Dom, event{})
	case *libvirt.DomainEventCallbackDeviceRemovedMsg:
		w.marks.domain(m.Msg.Dom, event{})
	case *libvirt.DomainEventCallbackMetadataChangeMsg:
		w.marks.domain(m.Dom, event{})
	}
}
