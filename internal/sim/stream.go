package sim

import (
	"google.golang.org/protobuf/proto"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// cluster is the name of the simulated cluster.
const cluster = "sim"

// stream is one agent's connection: two pipes that keep their order, and an
// end that each side sees in its own time.
type stream struct {
	w       *world
	host    *host
	session uint64
	dead    bool // cut: nothing is sent any more
	up      pipe
	down    pipe
	done    [2]bool // manager's, agent's side saw the end

	cursor       *managercore.Cursor
	poor         *managercore.View // if not nil, all that the manager knows
	asked        []api.Up          // interests and demands that were not looked at yet
	hints        []overlay.Want    // guests elsewhere that ask guests here
	answers      []api.Answer
	told         overlay.Rev
	sent         [][]api.StreamItem // all that was sent
	batch        int
	window       int
	waking       bool
	wakeWhenRead bool
	said         []*culvertv1.Up // the last messages up, for replays
}

func (w *world) newStream(h *host) *stream {
	s := &stream{w: w, host: h, batch: 1 + w.pick(40), window: 1 + w.pick(8)}
	if w.chance(0.3) {
		s.batch = 1000
	}
	s.up = pipe{s: s, take: s.takeUp}
	s.down = pipe{s: s, take: s.takeDown}
	return s
}

// wake lets the sender look, soon.
func (s *stream) wake() {
	if s.waking || s.dead {
		return
	}
	s.waking = true
	s.w.after(s.w.between(5*micro, 200*micro), func() {
		s.waking = false
		s.w.mgr.send(s)
	})
}

// cut ends the stream. Each side sees it later, and takes what arrives before.
func (s *stream) cut() {
	if s.dead {
		return
	}
	s.dead = true
	s.w.log("stream of %s, session %d, is cut", s.host.name, s.session)
	s.w.after(s.w.between(100*micro, 300*milli), func() {
		s.done[0] = true
		s.w.mgr.closed(s)
		s.replay(3 * second)
	})
	s.w.after(s.w.between(100*micro, 300*milli), func() {
		s.done[1] = true
		s.host.streamEnded(s)
	})
}

// replay lets the last messages of a stream that has ended arrive once more,
// when the host may have another, at the latest after d.
func (s *stream) replay(d int64) {
	for _, up := range s.said {
		if s.w.hit(ClaimsReplayed, 0.3) {
			s.w.after(s.w.between(10*micro, d), func() {
				u, err := api.UpFromPB(up)
				if err != nil {
					s.w.fail("a message was accepted once and then refused: %v", err)
				}
				s.w.log("replayed of session %d of %s", s.session, s.host.name)
				s.w.mgr.heard(s, u)
			})
		}
	}
}

func (s *stream) takeUp(b []byte, _ []overlay.UID) {
	var pb culvertv1.Up
	if err := proto.Unmarshal(b, &pb); err != nil {
		s.w.fail("a message up cannot be read: %v", err)
	}
	u, err := api.UpFromPB(&pb)
	if err != nil {
		s.w.fail("a message up is refused: %v", err)
	}
	if u.Claims != nil || u.InventoryEnd != nil || u.Ack != nil {
		if s.said = append(s.said, &pb); len(s.said) > 4 {
			s.said = s.said[1:]
		}
	}
	s.w.log("up %s session %d: %d bytes", s.host.name, s.session, len(b))
	s.w.mgr.heard(s, u)
}

func (s *stream) takeDown(b []byte, covers []overlay.UID) {
	var pb culvertv1.Down
	if err := proto.Unmarshal(b, &pb); err != nil {
		s.w.fail("a message down cannot be read: %v", err)
	}
	d, err := api.DownFromPB(&pb)
	if err != nil {
		s.w.fail("a message down is refused: %v", err)
	}
	s.w.log("down %s session %d: %d bytes", s.host.name, s.session, len(b))
	s.host.heard(s, d, frame{b, covers})
	if s.wakeWhenRead && s.down.unread < s.window {
		s.wakeWhenRead = false
		s.wake()
	}
}

// frame is one message with items, and what the sender knows of it: the
// networks that its UpTo covers.
type frame struct {
	bytes  []byte
	covers []overlay.UID
}

// pipe is one direction of a stream.
type pipe struct {
	s      *stream
	take   func([]byte, []overlay.UID)
	last   int64 // when the newest message arrives
	unread int
	doomed bool // a message was lost: nothing arrives after it
}

func (p *pipe) send(m proto.Message, covers ...overlay.UID) {
	s := p.s
	w := s.w
	if s.dead || p.doomed {
		return
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		w.fail("a message cannot be encoded: %v", err)
	}
	w.trace.foldBytes(b)
	if !ofLiveness(m) {
		w.mgr.told++
	}
	if w.hit(MessageLost, 0.004) {
		p.doomed = true
		w.after(w.between(10*milli, second), s.cut)
		return
	}
	d := w.between(50*micro, milli)
	if w.hit(MessageLate, 0.02) {
		d += w.between(10*milli, second)
	}
	side := 0
	if p == &s.down {
		side = 1
		if s.host.slow && w.hit(AgentSlow, 0.5) {
			d += w.between(milli, 300*milli)
		}
	}
	p.last = max(p.last+1, w.now+d)
	p.unread++
	w.at(p.last, func() {
		p.unread--
		if !s.done[side] {
			p.take(b, covers)
		}
	})
	if w.hit(StreamCut, 0.003) {
		w.at(p.last, s.cut)
	}
}
