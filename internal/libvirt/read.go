package libvirt

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"

	"culvert/internal/hoststate"
)

// domain is a guest that runs, or is about to, as it was read last.
type domain struct {
	ref  libvirt.Domain // its ID is another for each run
	last event
	told []hoststate.NIC // as reported
	run  int32           // of which that was told: its ID then
	now  []hoststate.NIC // as read

	asked bool // for its job, in this session
	again bool // reading it did not work
}

// between reports whether the guest is not settled on this host.
func (d *domain) between() bool {
	return len(d.now) > 0 && (d.now[0].State == hoststate.NICIncoming || d.now[0].State == hoststate.NICLeaving)
}

// marked reads what rang.
func (w *work) marked(set markSet) error {
	if set.all {
		if set.lost {
			w.forget()
		}
		return w.list()
	}
	for _, uuid := range sortedUUIDs(set.doms) {
		m := set.doms[uuid]
		d := w.doms[uuid]
		if d == nil || m.event.typ == libvirt.DomainEventStarted {
			if d == nil {
				d = &domain{}
				w.doms[uuid] = d
			}
			d.ref, d.last, d.asked = m.dom, event{}, false // a new run, of which nothing is known
		}
		if m.event.tells() {
			d.last = m.event
		}
		if err := w.look(d); err != nil {
			return err
		}
	}
	for _, uuid := range sortedUUIDs(w.doms) {
		d := w.doms[uuid]
		if slices.ContainsFunc(d.now, func(n hoststate.NIC) bool { return slices.Contains(set.devices, n.Device) }) {
			if err := w.look(d); err != nil {
				return err
			}
		}
	}
	return nil
}

func sortedUUIDs[V any](m map[libvirt.UUID]V) []libvirt.UUID {
	out := make([]libvirt.UUID, 0, len(m))
	for u := range m { // order-free: sorted below
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b libvirt.UUID) int { return strings.Compare(string(a[:]), string(b[:])) })
	return out
}

// forget drops events that may be older than others that were lost. That a
// guest has lived here in this run stays true.
func (w *work) forget() {
	for _, d := range w.doms { // order-free: each by itself
		d.last, d.asked = event{}, false
		if len(d.told) > 0 {
			d.last = before(d.told[0].State)
		}
	}
}

// unsettled looks at guests that libvirt may say nothing more about.
func (w *work) unsettled() error {
	if !w.full || w.asked {
		return w.list()
	}
	for _, uuid := range sortedUUIDs(w.doms) {
		if d := w.doms[uuid]; d.between() || d.again {
			if err := w.look(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// list reads every guest. The first time that all can be read in a session, or
// since an Inquire, makes a full report; until then, and before it if there was
// one in this session, what has changed is told: a full report with a gap would
// say that a guest is gone, and one of which nothing is said is not.
func (w *work) list() error {
	w.listed = time.Now()
	if !w.full {
		w.forget()
	}
	var refs []libvirt.Domain
	err := w.ses.call(func() (err error) {
		refs, _, err = w.ses.rpc.ConnectListAllDomains(1, libvirt.ConnectListDomainsActive)
		return err
	})
	if err != nil {
		return fmt.Errorf("list domains: %w", err)
	}
	active := map[libvirt.UUID]bool{}
	whole := true
	for _, ref := range refs {
		active[ref.UUID] = true
		d := w.doms[ref.UUID]
		if d == nil {
			d = &domain{ref: ref}
			w.doms[ref.UUID] = d
		}
		if d.ref.ID != ref.ID {
			d.ref, d.last = ref, event{}
		}
		if err := w.read(d); err != nil {
			return err
		}
		whole = whole && !d.again
	}
	for _, uuid := range sortedUUIDs(w.doms) {
		if d := w.doms[uuid]; !active[uuid] {
			d.now, d.again = nil, false
		}
	}
	if w.full || !whole {
		for _, uuid := range sortedUUIDs(w.doms) {
			w.report(w.doms[uuid])
		}
	}
	if whole && (!w.full || w.asked) {
		w.reportAll()
	}
	return nil
}

func (w *work) reportAll() {
	var all []*domain
	var nics []hoststate.NIC
	for _, uuid := range sortedUUIDs(w.doms) {
		if d := w.doms[uuid]; len(d.now) > 0 {
			all = append(all, d)
		} else if !d.again {
			delete(w.doms, uuid)
		}
	}
	slices.SortStableFunc(all, func(a, b *domain) int { return cmp.Compare(a.ref.Name, b.ref.Name) })
	for _, d := range all {
		nics = append(nics, d.now...)
		d.told, d.run = d.now, d.ref.ID
	}
	w.full = true
	w.say(slog.LevelInfo, "libvirt is watched", nil)
	w.tell(Report{Full: true, Answer: w.asked, NICs: nics})
	w.asked = false
}

// report tells what has changed of a guest, and all of a new run: its devices
// are others, though they may have the names of the former.
func (w *work) report(d *domain) {
	if c := changes(d.told, d.now, d.run != d.ref.ID); len(c) > 0 {
		w.tell(Report{NICs: c})
	}
	d.run = d.ref.ID
	if d.told = d.now; len(d.now) == 0 && !d.again {
		delete(w.doms, d.ref.UUID)
	}
}

// changes says what differs in now from what was told, or with all set all of
// now: what is gone first. An interface is another one if its device is.
func changes(told, now []hoststate.NIC, all bool) []hoststate.NIC {
	var out []hoststate.NIC
	same := func(a hoststate.NIC) func(hoststate.NIC) bool {
		return func(b hoststate.NIC) bool { return a.MAC == b.MAC && a.Device == b.Device }
	}
	for _, t := range told {
		if !slices.ContainsFunc(now, same(t)) {
			t.State = hoststate.NICGone
			out = append(out, t)
		}
	}
	for _, n := range now {
		if i := slices.IndexFunc(told, same(n)); i < 0 || all || told[i] != n {
			out = append(out, n)
		}
	}
	return out
}

// look reads a guest and tells what has changed. If its interfaces are known
// and only its life has changed, that is told before its description, which
// takes libvirt longer, is read: others wait for it.
func (w *work) look(d *domain) error {
	if len(d.told) > 0 && d.last.typ != libvirt.DomainEventStarted {
		st, err := w.state(d)
		if err != nil || d.again {
			return err
		}
		d.now = nil
		if st != hoststate.NICGone {
			d.now = withState(d.told, st)
		}
		w.report(d)
		if st == hoststate.NICGone {
			return nil
		}
	}
	if err := w.read(d); err != nil {
		return err
	}
	w.report(d)
	return nil
}

func withState(nics []hoststate.NIC, st hoststate.NICState) []hoststate.NIC {
	out := slices.Clone(nics)
	for i := range out {
		out[i].State = st
	}
	return out
}

// read reads a guest's interfaces, and then its state, so that the state is
// never older than what it is said of. Errors are of the session; a guest that
// cannot be read stays as it was and is read again.
func (w *work) read(d *domain) error {
	var desc string
	err := w.ses.call(func() (err error) {
		desc, err = w.ses.rpc.DomainGetXMLDesc(d.ref, 0)
		return err
	})
	if err != nil {
		if !libvirt.IsNotFound(err) {
			return w.unreadable(d, err)
		}
		d.now, d.again = nil, false
		return nil
	}
	st, err := w.state(d)
	if err != nil || d.again {
		return err
	}
	if st == hoststate.NICGone {
		d.now = nil
		return nil
	}
	dom, err := ReadDomain(strings.NewReader(desc))
	if err != nil {
		d.now = withState(d.told, st)
		return w.unreadable(d, err)
	}
	d.now = withState(dom.NICs, st)
	return nil
}

func (w *work) unreadable(d *domain, err error) error {
	if !w.ses.alive() {
		return err
	}
	if !d.again {
		w.cfg.Log.Warn("a guest cannot be read", "vm", text(d.ref.Name), "err", err)
	}
	d.again = true
	return nil
}

// state reads the guest's state. d.again is set if it could not be read.
func (w *work) state(d *domain) (hoststate.NICState, error) {
	var st, reason int32
	err := w.ses.call(func() (err error) {
		st, reason, err = w.ses.rpc.DomainGetState(d.ref, 0)
		return err
	})
	switch {
	case err != nil && libvirt.IsNotFound(err):
		d.again = false
		return hoststate.NICGone, nil
	case err != nil:
		return 0, w.unreadable(d, err)
	}
	d.again = false
	if libvirt.DomainState(st) == libvirt.DomainPaused && libvirt.DomainPausedReason(reason) == libvirt.DomainPausedMigration && !d.last.tells() && w.migratesOut(d) {
		d.last = lived
	}
	return state(libvirt.DomainState(st), reason, d.last), nil
}

// Of a job's statistics (libvirt/libvirt-domain.h): the name of the operation,
// and its number for a migration from here.
const (
	jobOperation = "operation"
	jobOut       = int32(libvirt.DomainJobOperationStrMigrationOut)
)

// jobWait bounds the question for a job. libvirt may hold it back until the
// job's next step.
const jobWait = time.Second

// migratesOut asks which way a migration goes that began before this session.
// The destination has no statistics and says so.
func (w *work) migratesOut(d *domain) bool {
	if d.asked {
		return false
	}
	d.asked = true
	answer := make(chan bool, 1)
	go func() { // ends with the session at the latest
		_, params, err := w.ses.rpc.DomainGetJobStats(d.ref, 0)
		answer <- err == nil && slices.ContainsFunc(params, func(p libvirt.TypedParam) bool { return p.Field == jobOperation && p.Value.I == any(jobOut) })
	}()
	select {
	case out := <-answer:
		return out
	case <-time.After(jobWait):
	case <-w.ses.c.gone:
	}
	return false
}
