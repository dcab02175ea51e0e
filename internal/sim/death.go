package sim

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// hostDeath is how long after its last sign of life a dead host is to be in
// nobody's tables. It is ten times the default, because messages are up to a
// second late here.
const hostDeath = 6 * second

// ofLiveness reports whether a message is only about who lives: such are sent
// in a fleet at rest, too.
func ofLiveness(m proto.Message) bool {
	switch m := m.(type) {
	case *culvertv1.Up:
		return m.GetBreath() != nil || m.GetProbeResult() != nil
	case *culvertv1.Down:
		return m.GetProbe() != nil
	}
	return false
}

// lookLater gives the core its Tick when it wants one.
func (m *manager) lookLater() {
	wake := int64(m.core.Wake())
	if wake == 0 || m.lookAt > m.w.now && m.lookAt <= wake {
		return
	}
	at, term := max(wake, m.w.now+1), m.term
	m.lookAt = at
	m.w.at(at, func() {
		if m.up && m.term == term && m.lookAt == at {
			m.lookAt = 0
			m.step(managercore.Tick{})
		}
	})
}

// errands does what the core wants done about hosts, and holds it to its word:
// nobody is declared dead whose kernel answers.
func (m *manager) errands() {
	w := m.w
	for _, e := range m.core.NextErrands() {
		switch e.Kind {
		case managercore.ErrandProbe:
			for _, s := range m.streams {
				if s != nil && s.host.uid == e.Host && s.session == e.Session {
					s.down.send(api.DownPB(api.Down{Probe: &api.Probe{ID: e.Probe.ID, VTEP: e.Probe.VTEP, Within: time.Duration(e.Probe.Within)}}))
				}
			}
		case managercore.ErrandAsk:
			for _, s := range m.streams {
				if s != nil && s.host.uid == e.Host && s.session == e.Session {
					a := e.Ask
					s.down.send(api.DownPB(api.Down{Ask: &api.Ask{ID: a.ID, Network: a.Network, MAC: a.MAC, Address: a.Address, Within: time.Duration(a.Within)}}))
				}
			}
		case managercore.ErrandDied:
			h := w.hosts[slices.IndexFunc(w.hosts, func(h *host) bool { return h.uid == e.Host })]
			w.log("%s is declared dead", h.name)
			if !h.off && h.onAt+hostDeath/4 < w.now {
				w.fail("%s is declared dead, and its kernel answers since %.3f: %s", h.name, float64(h.onAt)/1e9, e.Text)
			}
			for _, s := range m.streams {
				if s != nil && s.host == h && s.session == e.Session {
					s.cut()
				}
			}
		}
	}
}

// breathe says that the host lives, for as long as the stream is its own.
func (h *host) breathe(s *stream, every int64) {
	h.mine(every, func() {
		if h.stream == s {
			s.up.send(api.UpPB(api.Up{Breath: true}))
			h.breathe(s, every)
		}
	})
}

// witness asks after another host.
func (h *host) witness(s *stream, p api.Probe) {
	answer := func(d int64, ok bool) {
		h.mine(d, func() {
			if h.stream == s {
				s.up.send(api.UpPB(api.Up{ProbeResult: &api.ProbeResult{ID: p.ID, Answered: ok}}))
			}
		})
	}
	for _, o := range h.w.hosts {
		if o.off || !slices.Contains(o.vteps, p.VTEP) {
			continue
		}
		answer(h.w.between(100*micro, 20*milli), true)
		return
	}
	answer(int64(p.Within), false)
}

// newKernel is the host's after it was switched on: nothing is in it.
func (h *host) newKernel() {
	h.kernel = kerneltest.New()
	h.kernel.Fail, h.kernel.FailRead, h.kernel.Lose = h.failOp, h.failRead, h.loseBell
	h.kernel.Clock = func() time.Duration { return time.Duration(h.w.now) }
}

// losePower takes agent, kernel and VMs at once; nobody is told. The disk
// stays. It spares a host that has met an older store, for whose protection the
// kernel alone speaks: without both, nothing knows any better than that store.
func (h *host) losePower(again int64) {
	w := h.w
	if h.poor != nil || h.misled > w.now {
		return
	}
	w.log("%s loses its power", h.name)
	if h.up {
		h.check()
	}
	h.up, h.off = false, true
	if s := h.stream; s != nil { // its other end hears nothing of it
		s.dead, s.done[1] = true, true
		h.stream = nil
	}
	h.current = 0
	for _, x := range slices.Clone(w.nics) {
		if x.host == h {
			w.remove(x)
		}
	}
	h.newKernel()
	h.outages++
	this := h.outages
	w.after(again, func() {
		if h.outages == this {
			h.powerOn()
		}
	})
}

func (h *host) powerOn() {
	if !h.off {
		return
	}
	h.w.log("%s has its power back", h.name)
	h.off, h.onAt = false, h.w.now
	h.startAgent()
}

// cutOff takes a host's way to the managers for a while.
func (h *host) cutOff(d int64) {
	h.w.log("%s is cut off from the managers", h.name)
	h.cutUntil = h.w.now + d
	if h.stream != nil {
		h.stream.cut()
	}
}

// dead reports whether the store says that a host is dead.
func (w *world) dead(h *host) bool {
	v, ok := w.store.values[overlay.Key{Kind: overlay.KindHost, UID: h.uid}]
	return ok && v.rec.(*overlay.Host).Dead
}

// echoes reports whether a host is known to answer echo requests.
func (w *world) echoes(h *host) bool {
	v, ok := w.store.values[overlay.Key{Kind: overlay.KindSession, UID: h.uid}]
	return ok && v.rec.(*overlay.Session).Echo
}

// pointing are a host's rows that point to an address.
func (h *host) pointing(to *host) (out []hoststate.Row) {
	rows := h.kernel.GlobalRows()
	for _, v := range h.kernel.VNIs() {
		rows = append(rows, h.kernel.Rows(v)...)
	}
	for _, r := range rows {
		if r.Val.Dst == to.vtep || r.Key.IP == to.vtep {
			out = append(out, r)
		}
	}
	return out
}

// hostDies lets one host lose its power in a fleet at rest: it is in nobody's
// tables within the time, its bindings stay, and it returns.
func (w *world) hostDies() {
	h := w.hosts[w.pick(len(w.hosts))]
	if len(w.hosts) < 2 || !w.echoes(h) {
		return
	}
	w.log("probe: %s dies", h.name)
	bound := map[overlay.Key]bool{}
	for _, k := range w.store.keys() {
		if v := w.store.values[k]; k.Kind == overlay.KindEndpoint && !v.gone && v.rec.(*overlay.Endpoint).Host == h.uid {
			bound[k] = true
		}
	}
	h.losePower(600 * second)
	w.run(w.now + hostDeath + 2*second) // two for the store and slow kernels
	if !w.dead(h) {
		w.fail("%s died, and nobody noticed", h.name)
	}
	for _, o := range w.hosts {
		if rows := o.pointing(h); o != h && len(rows) > 0 {
			w.fail("%s is dead, and %s still has %v", h.name, o.name, rows)
		}
	}
	for k := range bound { // order-free: any will do
		if w.store.values[k].gone {
			w.fail("the death of %s withdrew the binding of %v: its record is to stay", h.name, k.MAC)
		}
	}
	h.powerOn()
	w.run(w.now + 30*second)
	w.finish() // what a migration left of its VMs
	w.run(w.now + 30*second)
	w.judge("after a death")
}

// manyDie lets so many hosts lose their power at once that it is more likely
// that the manager is cut off: nothing goes.
func (w *world) manyDie() {
	many := max(3, len(w.hosts)/10+1)
	if len(w.hosts) <= many {
		return
	}
	w.log("probe: %d hosts die at once", many)
	w.useAll()
	lost, left := w.hosts[:many], w.hosts[many:]
	before := map[*host]int{}
	for _, o := range left {
		for _, h := range lost {
			before[o] += len(o.pointing(h))
		}
	}
	for _, h := range lost {
		h.losePower(600 * second)
	}
	w.run(w.now + 25*second)
	for _, o := range left {
		n := 0
		for _, h := range lost {
			n += len(o.pointing(h))
			if w.dead(h) {
				w.fail("%s was declared dead, and %d died at once", h.name, many)
			}
		}
		if n != before[o] {
			w.fail("%d hosts died at once, and %s has %d entries that point to them, of %d", many, o.name, n, before[o])
		}
	}
	for _, h := range lost {
		h.powerOn()
	}
	w.run(w.now + 40*second)
	w.finish()
	w.run(w.now + 30*second)
	w.judge("after many died")
}
