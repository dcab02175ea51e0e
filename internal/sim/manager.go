package sim

import (
	"slices"
	"time"

	"culvert/internal/api"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// manager drives a manager's core as package manager does, without threads.
type manager struct {
	w       *world
	up      bool
	term    int
	core    *managercore.Core
	fence   uint64
	busy    bool  // a transaction is on its way
	watched int64 // when the store's last event arrives
	streams []*stream
	opening []*stream // not answered yet
	waiting map[uint64]func(managercore.Reply)
	nextID  uint64
	told    int   // messages sent, ever
	lookAt  int64 // when the core is given a Tick
}

func (m *manager) start() {
	w := m.w
	m.up = true
	m.term++
	m.fence, m.busy = w.store.campaign(), false
	m.waiting = map[uint64]func(managercore.Reply){}
	if m.core == nil || w.chance(0.5) { // a new process, or one that reads its store anew
		m.core = managercore.New(managercore.Config{Epoch: 1, HostDeath: managercore.Time(hostDeath)})
	}
	w.log("manager term %d at revision %d", m.term, w.store.rev)
	term := m.term
	w.store.tell = func(e managercore.Stored) {
		d := w.between(50*micro, 2*milli)
		m.watched = max(m.watched+1, w.now+d)
		w.at(m.watched, func() {
			if m.up && m.term == term {
				m.step(e)
			}
		})
	}
	m.step(w.store.load())
}

// stop is the end of a term. A manager that knows it has lost says so to its
// core; one that is killed does not.
func (m *manager) stop(killed bool, again int64) {
	w := m.w
	if !m.up {
		return
	}
	w.log("manager term %d ends, killed %t", m.term, killed)
	m.up = false
	w.store.tell = func(managercore.Stored) {}
	if killed {
		m.check()
		m.core = nil
	} else {
		m.core.Step(managercore.Time(w.now), managercore.Lost{})
		m.replies()
	}
	for _, s := range append(m.opening, m.streams...) {
		if s != nil {
			s.cut()
		}
	}
	m.opening = nil
	term := m.term
	w.after(again, func() {
		if m.term == term {
			m.start()
		}
	})
}

// check looks at what must never have happened.
func (m *manager) check() {
	if st := m.core.Stats(); st.Defects != 0 {
		m.w.fail("the manager counted %d defects", st.Defects)
	}
}

func (m *manager) step(e managercore.Event) {
	if m.core == nil {
		return
	}
	before := m.core.View().At
	v := m.core.Step(managercore.Time(m.w.now), e)
	if v != nil && v.At.Less(before) && !isLoad(e) {
		m.w.fail("the view went back from %v to %v", before, v.At)
	}
	m.pump()
	if v != nil {
		for _, s := range m.streams {
			if s != nil {
				s.wake()
			}
		}
	}
}

func isLoad(e managercore.Event) bool { _, ok := e.(managercore.Loaded); return ok }

// pump hands out what the core has to say.
func (m *manager) pump() {
	m.replies()
	m.errands()
	m.lookLater()
	if m.busy || !m.up {
		return
	}
	if writes := m.core.NextTxn(nil, 1000); len(writes) > 0 {
		m.busy = true
		m.commit(encodeWrites(writes))
	}
}

func (m *manager) replies() {
	for _, r := range m.core.NextReplies() {
		if r.Claim == nil {
			if f := m.waiting[r.ID]; f != nil {
				delete(m.waiting, r.ID)
				f(r)
			}
			continue
		}
		for _, s := range m.streams {
			if s != nil && s.host.uid == r.Host && s.session == r.Session {
				s.answers = append(s.answers, api.Answer(*r.Claim))
				s.wake()
			}
		}
	}
}

// commit sends one transaction to the store and brings back what it answers.
func (m *manager) commit(ws []encoded) {
	w, term, fence := m.w, m.term, m.fence
	d := w.between(100*micro, 3*milli)
	if w.hit(StoreSlow, 0.05) {
		d += w.between(50*milli, 2*second)
	}
	if w.hit(FenceLost, 0.01) {
		w.after(d/2, func() { w.store.campaign() })
	}
	lostBefore, lostAfter := w.hit(OutcomeNotWritten, 0.008), w.hit(OutcomeWritten, 0.008)
	w.after(d, func() {
		alive := m.up && m.term == term
		if lostBefore {
			if alive {
				m.stop(false, 200*milli)
			}
			return
		}
		rev, ok := w.store.commit(fence, ws) // also when the manager has died meanwhile: it was sent
		w.log("store: %d writes, revision %d, accepted %t", len(ws), rev, ok)
		if !alive {
			return
		}
		if !ok || lostAfter {
			m.stop(false, 200*milli)
			return
		}
		back := w.between(20*micro, 2*milli)
		if w.hit(WatchBeforeAnswer, 0.2) {
			back = max(back, m.watched-w.now+100*micro)
		}
		w.after(back, func() {
			if m.up && m.term == term {
				m.busy = false
				m.step(managercore.TxnDone{N: rev})
			}
		})
	})
}

// ask is one request of a user. then gets the reply, unless the manager is
// killed before.
func (m *manager) ask(a managercore.Asked, then func(managercore.Reply)) {
	if !m.up {
		return
	}
	m.nextID++
	a.ID, a.Seed, a.Actor = m.nextID, m.w.uid(), "operator admin"
	rev := m.w.store.rev
	m.waiting[a.ID] = func(r managercore.Reply) {
		if r.Refusal == nil && r.Rev.N > m.w.store.rev {
			m.w.fail("a request was acknowledged at revision %v, the store is at %d", r.Rev, m.w.store.rev)
		}
		if r.Refusal == nil && r.Rev.N != 0 && r.Rev.N <= rev {
			m.w.fail("a change was acknowledged at revision %v, before it was asked for at %d", r.Rev, rev)
		}
		then(r)
	}
	m.step(a)
}

// hello opens a session for a stream.
func (m *manager) hello(s *stream, h *api.Hello) {
	m.nextID++
	m.opening = append(m.opening, s)
	m.waiting[m.nextID] = func(r managercore.Reply) { m.opened(s, h, r) }
	m.step(managercore.Opened{ID: m.nextID, Host: s.host.uid, VTEP: overlay.Host{VTEP: h.VTEP}, BootID: h.BootID})
}

func (m *manager) opened(s *stream, h *api.Hello, r managercore.Reply) {
	w := m.w
	m.opening = slices.DeleteFunc(m.opening, func(x *stream) bool { return x == s })
	if s.dead || r.Refusal != nil {
		s.cut()
		return
	}
	if r.Session <= s.host.session {
		w.fail("host %s got session %d after session %d", s.host.name, r.Session, s.host.session)
	}
	s.host.session, s.session = r.Session, r.Session
	v := m.core.View()
	if v.At.Less(r.Rev) {
		w.fail("session at %v was answered before the view held it (%v)", r.Rev, v.At)
	}
	for i, old := range m.streams {
		if old != nil && old.host == s.host {
			old.cut()
			m.streams[i] = nil
		}
	}
	m.streams = append(compact(m.streams), s)
	var fleet overlay.Rev
	for _, p := range h.Logs {
		if p.Network.IsZero() {
			fleet = p.Sent
		}
	}
	if s.poor = s.host.poor; s.poor != nil {
		v = s.poor
	}
	s.cursor = managercore.NewCursor(v, s.host.name, fleet)
	s.down.send(api.DownPB(api.Down{Welcome: &api.Welcome{Protocol: 1, Session: r.Session, Epoch: 1, Cluster: cluster, Breath: time.Duration(hostDeath / 6)}}))
	s.wake()
	if old := s.host.former; old != nil {
		old.replay(3 * milli) // while the new session has claimed nothing yet
	}
	s.host.former = s
}

func compact(in []*stream) (out []*stream) {
	for _, s := range in {
		if s != nil {
			out = append(out, s)
		}
	}
	return out
}

// heard is one message of an agent.
func (m *manager) heard(s *stream, up api.Up) {
	if !m.up {
		s.cut() // nobody listens
		return
	}
	switch {
	case up.Hello != nil:
		m.hello(s, up.Hello)
	case up.Interest != nil || up.Demands != nil:
		s.asked = append(s.asked, up)
		s.wake()
	case up.Claims != nil:
		e := managercore.Claimed{Host: s.host.uid, Session: up.Claims.Session}
		for _, c := range up.Claims.Claims {
			e.Claims = append(e.Claims, managercore.Claim(c))
		}
		m.step(e)
	case up.InventoryEnd != nil:
		m.step(managercore.InventoryEnded{Host: s.host.uid, Session: up.InventoryEnd.Session})
	case up.Ack != nil:
		m.step(managercore.Acked{Host: s.host.uid, Session: s.session, Rev: up.Ack.Rev})
	case up.Breath:
		m.step(managercore.Breath{Host: s.host.uid, Session: s.session})
	case up.Seek != nil:
		m.step(managercore.Seek{Host: s.host.uid, Session: s.session, Network: up.Seek.Network, Address: up.Seek.Address})
	case up.ProbeResult != nil:
		r := up.ProbeResult
		m.step(managercore.ProbeDone{Host: s.host.uid, Session: s.session, ID: r.ID, Answered: r.Answered, Unable: r.Unable})
	}
}

// closed is the end of a stream as the manager sees it.
func (m *manager) closed(s *stream) {
	for i, x := range m.streams {
		if x == s {
			m.streams[i] = nil
		}
	}
	m.streams = compact(m.streams)
	if m.up {
		m.step(managercore.Closed{Host: s.host.uid, Session: s.session})
	}
}

// send is one round of a stream's sender.
func (m *manager) send(s *stream) {
	if s.dead || s.cursor == nil || !m.up {
		return
	}
	if len(s.answers) > 0 {
		as := s.answers
		s.answers = nil
		s.down.send(api.DownPB(api.Down{Answers: as}))
		if m.w.hit(AnswersDoubled, 0.05) {
			s.down.send(api.DownPB(api.Down{Answers: as}))
		}
	}
	v := m.core.View()
	if s.poor != nil {
		v = s.poor
	}
	m.interest(s, v)
	for s.down.unread < s.window {
		b := s.cursor.Next(v, s.batch)
		if !b.Empty() || s.told.Less(b.UpTo) {
			m.tell(s, b)
		}
		if !b.UpTo.IsZero() {
			s.told = b.UpTo
			return
		}
	}
	s.wakeWhenRead = true
}

func (m *manager) tell(s *stream, b managercore.Batch) {
	out := &api.Items{Begins: b.Begins, Members: b.Members, Told: b.Told, Dropped: b.Dropped, UpTo: b.UpTo}
	if len(b.Dropped) > 0 {
		s.sent = nil // what came before it was given up never comes after
	}
	for _, it := range b.Items {
		out.Items = append(out.Items, api.StreamItem{Wire: it.Wire})
	}
	for _, e := range b.Ends {
		out.Ends = append(out.Ends, api.LogEnd(e))
	}
	var covers []overlay.UID
	if !b.UpTo.IsZero() {
		for _, n := range m.w.ever.networks {
			if s.cursor.Subscribed(n) {
				covers = append(covers, n)
			}
		}
	}
	s.down.send(api.DownPB(api.Down{Items: out}), covers...)
	if len(out.Items) == 0 {
		return
	}
	if s.sent = append(s.sent, out.Items); m.w.hit(ItemsDoubled, 0.05) { // the same, or older ones
		s.down.send(api.DownPB(api.Down{Items: &api.Items{Items: s.sent[m.w.pick(len(s.sent))]}}))
	}
}
