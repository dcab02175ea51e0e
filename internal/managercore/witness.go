package managercore

import (
	"net/netip"
	"slices"

	"culvert/internal/overlay"
)

// maxWitnesses is how many hosts are asked after one; in a smaller fleet all
// others are.
const maxWitnesses = 3

// Probe is what a witness is asked: whether a tunnel end point answers echo
// requests. Its answer is a ProbeDone with the same ID.
type Probe struct {
	ID     uint64
	VTEP   netip.Addr
	Within Time // the answer is due after that
}

// ProbeDone is the answer of a witness. Unable: it could not ask.
type ProbeDone struct {
	Host     overlay.UID // the witness
	Session  uint64
	ID       uint64
	Answered bool
	Unable   bool
}

func (ProbeDone) event() {}

// round is one question to several witnesses.
type round struct {
	id      uint64
	began   Time
	end     Time // without their answers
	base    bool // the host's agent is connected: does it give an echo at all?
	pending []overlay.UID
	yes, no int
}

// ask begins a round; it reports false if no witness can be asked.
func (c *Core) askAfter(h *overlay.Host, p *pulse, most int, within Time, base bool) bool {
	ws := c.witnesses(h.UID, most, p.turns)
	if len(ws) == 0 {
		return false
	}
	p.turns++
	c.nextProbe++
	p.round = &round{id: c.nextProbe, began: c.now, end: c.now + within + c.cfg.HostDeath/8, base: base, pending: ws}
	c.asked[c.nextProbe] = h.UID
	p.asked = p.asked[:0]
	for _, w := range ws {
		p.asked = append(p.asked, c.hostName(w))
		c.errand(ErrandProbe, w, "")
		c.errands[len(c.errands)-1].Probe = Probe{ID: c.nextProbe, VTEP: h.VTEP, Within: within}
	}
	return true
}

// endRound forgets the round under way, if there is one: answers to it that
// come later are void.
func (c *Core) endRound(p *pulse) {
	if p.round != nil {
		delete(c.asked, p.round.id)
		p.round = nil
	}
}

// inDoubt asks after a host that is silent.
func (c *Core) inDoubt(h *overlay.Host, p *pulse) {
	if r := p.round; r != nil {
		r.pending = slices.DeleteFunc(r.pending, func(w overlay.UID) bool { return !c.fresh(w) })
		switch {
		case r.base || c.now >= r.end:
			c.endRound(p) // ask others
		case len(r.pending) == 0:
			c.roundOver(p)
		}
	}
	if p.round == nil && c.now >= p.next {
		c.askAfter(h, p, maxWitnesses, c.cfg.probeWithin(), false)
	}
}

// roundOver takes the outcome of a round after a host that is silent.
func (c *Core) roundOver(p *pulse) {
	r := p.round
	c.endRound(p)
	switch {
	case r.yes > 0:
		p.answered, p.condemned, p.next = c.now, 0, c.now+c.cfg.suspicion()
	case r.no > 0:
		p.condemned, p.next = r.began, c.now+c.cfg.HostDeath // again, while the brake holds
	}
}

// probeDone takes the word of a witness. It counts only from a session that is
// heard of itself.
func (c *Core) probeDone(e ProbeDone) {
	if c.disputeSaid(e) || c.doubleSaid(e) {
		return
	}
	target, ok := c.asked[e.ID]
	if !ok || c.lost || c.current(e.Host, e.Session) == nil {
		return
	}
	p := c.pulses[target]
	if p == nil || p.round == nil || p.round.id != e.ID || !slices.Contains(p.round.pending, e.Host) {
		return
	}
	r := p.round
	r.pending = slices.DeleteFunc(r.pending, func(w overlay.UID) bool { return w == e.Host })
	switch {
	case e.Answered:
		r.yes++
	case !e.Unable && c.fresh(e.Host):
		r.no++
	}
	if len(r.pending) > 0 && r.yes == 0 {
		return
	}
	if r.base {
		c.echoOver(target, p)
	} else {
		c.roundOver(p)
	}
}

// fresh reports whether a host was heard of just now, and so may be a witness.
func (c *Core) fresh(host overlay.UID) bool {
	s, p := c.sessions[host], c.pulses[host]
	return s != nil && s.open && p != nil && !p.cut && !c.late(p)
}

// witnesses picks who is asked after a host: those that share a network with
// it first, because they are whom its death concerns. turn moves the choice
// on, so that one that is wrong is not asked for ever.
func (c *Core) witnesses(target overlay.UID, most, turn int) []overlay.UID {
	nets := map[overlay.UID]bool{}
	for k := range c.ix.byHost[target] { // order-free: a set
		nets[k.UID] = true
	}
	if s := c.sessions[target]; s != nil {
		for n := range s.serves { // order-free: a set
			nets[n] = true
		}
	}
	var near, far []overlay.UID
	for it := range c.view.List(overlay.KindHost, overlay.UID{}) {
		w := it.Key.UID
		if h := c.host(w); w == target || h == nil || h.Dead || !c.fresh(w) {
			continue
		}
		if c.serves(w, nets) {
			near = append(near, w)
		} else {
			far = append(far, w)
		}
	}
	return append(turned(near, turn*most), turned(far, turn*most)...)[:min(most, len(near)+len(far))]
}

func (c *Core) serves(host overlay.UID, nets map[overlay.UID]bool) bool {
	for n := range c.sessions[host].serves { // order-free: any will do
		if nets[n] {
			return true
		}
	}
	return false
}

// turned is a list that begins at another place.
func turned(in []overlay.UID, by int) []overlay.UID {
	if len(in) == 0 {
		return nil
	}
	by %= len(in)
	return append(slices.Clone(in[by:]), in[:by]...)
}

// checkEcho sees to it that it is known whether a host that is well answers
// echo requests; it reports whether it asked.
func (c *Core) checkEcho(h *overlay.Host, p *pulse) bool {
	if r := p.round; r != nil {
		if c.now >= r.end {
			c.endRound(p)
		}
		return false
	}
	s := c.sessions[h.UID]
	if s == nil || !s.open {
		return false
	}
	every := Time(echoAgain)
	if c.echoes(h.UID) && p.echoFails == 0 || p.echoFails >= muteAfter {
		every = echoEvery
	}
	if p.echoAt != 0 && c.now < p.echoAt+every {
		return false
	}
	if !c.askAfter(h, p, 1, c.cfg.HostDeath, true) {
		return false
	}
	p.echoAt = c.now
	return true
}

// echoOver takes the outcome of such a question, and writes down what is new:
// a later manager must know it of a host that it never met.
func (c *Core) echoOver(host overlay.UID, p *pulse) {
	r := p.round
	c.endRound(p)
	was := c.echoes(host)
	switch {
	case r.yes > 0:
		p.echoFails = 0
	case r.no > 0:
		p.echoFails++
	}
	switch {
	case r.yes > 0 && !was:
		c.noteEcho(host, true, ErrandHeard)
	case p.echoFails == muteAfter && was:
		c.noteEcho(host, false, ErrandMute)
	case p.echoFails == muteAfter:
		c.errand(ErrandMute, host, "")
	}
}

// noteEcho writes down whether a host answers, and says so once it stands.
func (c *Core) noteEcho(host overlay.UID, echo bool, say ErrandKind) {
	w := c.rows[Key{Kind: overlay.KindSession, UID: host}]
	if w == nil || w.gone {
		return
	}
	next := *w.rec.(*overlay.Session)
	next.Echo = echo
	t := c.begin()
	t.put(&next)
	t.commit(func(overlay.Rev) { c.errand(say, host, "") }, nil)
}
