package managercore

import (
	"fmt"
	"maps"
	"strings"

	"culvert/internal/overlay"
)

// Host liveness, all of it in memory. With HostDeath as D a host breathes every
// D/6, is in doubt when nothing was heard of it for D/2 or its stream ended,
// and is dead when after that the witnesses who were asked (see witness.go) got
// no answer from its tunnel end point for D/4. What is left of D is for the
// store and the way to the agents.
//
//	breathing --D/2 of silence, stream lost--> in doubt --no echo--> condemned
//	    ^                                       |   ^                    |
//	    +------------------ breath -------------+   +---- echo ----------+
//
// One that is condemned is declared dead, in one change of its record, unless
// too many are condemned at once: then it is more likely that the judge is cut
// off than that they are dead, and everything stays as it is (the brake). An
// agent that restarts leaves a kernel that answers, and is never condemned.

// Bounds of liveness.
const (
	brakeLeast  = 3 // verdicts stop at this many at once, or above a tenth of the fleet
	brakeWindow = 10 * 1e9
	// loadGrace is how long hosts have to come back to a manager that began.
	loadGrace = 10 * 1e9
	// Echoes are looked at this often while a host is well; one that gave none
	// is asked again sooner, and muteAfter in a row are believed.
	echoEvery = 60 * 1e9
	echoAgain = 2 * 1e9
	muteAfter = 3
	// echoBurst bounds the baseline probes that one look asks for.
	echoBurst = 16
)

// BreathEvery is how often agents are to say that they live; 0: never.
func (cfg Config) BreathEvery() Time { return cfg.HostDeath / 6 }

func (cfg Config) suspicion() Time   { return cfg.HostDeath / 2 }
func (cfg Config) probeWithin() Time { return cfg.HostDeath / 4 }

// Breath says that the agent of a session lives.
type Breath struct {
	Host    overlay.UID
	Session uint64
}

func (Breath) event() {}

// pulse is what is known of one host's life.
type pulse struct {
	quiet     Time // since when nothing was heard of its agent
	cut       bool // its stream has ended
	answered  Time // when a witness got an answer last, since then; 0: none yet
	condemned Time // when witnesses were asked of whom none got an answer; 0: none were
	round     *round
	turns     int      // rounds begun: witnesses take turns
	next      Time     // no round begins before
	asked     []string // names of the witnesses of the last round

	echoAt    Time // when its echo was looked at last, with its agent connected
	echoFails int  // ... and how often in a row there was none
}

// sign is the newest sign of life.
func (p *pulse) sign() Time { return max(p.quiet, p.answered) }

// alive forgets all doubt of a host.
func (c *Core) alive(p *pulse) {
	p.quiet, p.cut, p.answered, p.condemned, p.next = c.now, false, 0, 0, 0
	if p.round != nil && !p.round.base {
		c.endRound(p)
	}
}

// ErrandKind says what is to be done about a host.
type ErrandKind uint8

// Kinds of errands. All but the first are news, too: HostStates has changed.
const (
	ErrandProbe    ErrandKind = 1 // send Probe on the stream
	ErrandDied     ErrandKind = 2 // end the stream: what it says is void
	ErrandBack     ErrandKind = 3
	ErrandBraked   ErrandKind = 4 // verdicts stop
	ErrandReleased ErrandKind = 5 // ... and go on
	ErrandMute     ErrandKind = 6 // it gives no echo, and cannot be judged
	ErrandHeard    ErrandKind = 7 // it does again, or for the first time
	ErrandAsk      ErrandKind = 8 // send Ask on the stream; no news
)

// Errand is something that the driver is to do at once, or to log. An errand
// that is lost does no harm: the core asks again.
type Errand struct {
	Kind    ErrandKind
	Host    overlay.UID // zero with ErrandBraked and ErrandReleased
	Session uint64      // whose stream; 0: none
	Probe   Probe
	Ask     Ask
	Text    string // why, for the log
}

// NextErrands takes all errands.
func (c *Core) NextErrands() []Errand {
	e := c.errands
	c.errands = nil
	return e
}

func (c *Core) errand(kind ErrandKind, host overlay.UID, text string) {
	e := Errand{Kind: kind, Host: host, Text: text}
	if s := c.sessions[host]; s != nil {
		e.Session = s.n
	}
	c.errands = append(c.errands, e)
}

// Wake is when the core wants a Tick; 0: never.
func (c *Core) Wake() Time {
	if c.cfg.HostDeath == 0 || c.lost {
		return 0
	}
	return max(c.nextLook, 1)
}

func (c *Core) breath(e Breath) {
	if c.current(e.Host, e.Session) != nil {
		c.alive(c.pulse(e.Host))
	}
}

// pulse is the host's, made when it is first asked for: whoever has not come
// yet has the time of grace to do so.
func (c *Core) pulse(host overlay.UID) *pulse {
	p := c.pulses[host]
	if p == nil {
		p = &pulse{quiet: c.now + loadGrace}
		c.pulses[host] = p
	}
	return p
}

// late reports whether a host has missed two breaths.
func (c *Core) late(p *pulse) bool {
	return c.now-p.quiet > 2*c.cfg.BreathEvery()+c.cfg.BreathEvery()/4
}

func (c *Core) silent(p *pulse) bool { return p.cut || c.now-p.quiet > c.cfg.suspicion() }

// echoes reports whether the host was seen to answer echo requests while its
// agent was connected: only then does silence say anything.
func (c *Core) echoes(host overlay.UID) bool {
	w := c.rows[Key{Kind: overlay.KindSession, UID: host}]
	return w != nil && w.rec.(*overlay.Session).Echo
}

// look is the slow clock of liveness, on a Tick: every host is looked at.
func (c *Core) look() {
	if c.cfg.HostDeath == 0 || c.lost || c.now < c.nextLook {
		return
	}
	if c.lookedAt != 0 && c.now-c.lookedAt > c.cfg.suspicion() {
		c.pardon()
	}
	c.lookedAt, c.nextLook = c.now, c.now+c.cfg.HostDeath/24
	fleet, bases, late := 0, 0, 0
	var doubtful []*overlay.Host // what is silent and can be judged, by name
	for it := range c.view.List(overlay.KindHost, overlay.UID{}) {
		h := c.host(it.Key.UID)
		if h == nil || !h.VTEP.IsValid() {
			continue
		}
		fleet++
		p := c.pulse(h.UID)
		switch {
		case h.Dead:
			c.endRound(p)
		case !c.silent(p):
			if bases < echoBurst && c.checkEcho(h, p) {
				bases++
			}
			if c.late(p) && c.echoes(h.UID) {
				late++
			}
		case c.echoes(h.UID):
			c.inDoubt(h, p)
			doubtful = append(doubtful, h)
		}
	}
	c.judge(doubtful, late, max(brakeLeast, fleet/10+1))
	c.lead()
}

// pardon: this manager itself has not looked for long. What it did not hear
// meanwhile says nothing.
func (c *Core) pardon() {
	for _, p := range c.pulses { // order-free: each by itself
		c.endRound(p)
		p.condemned, p.next = 0, 0
		p.quiet = max(p.quiet, c.now)
		if p.answered != 0 {
			p.answered = c.now
		}
	}
}

// judge declares dead who is condemned, unless they are limit or more at once:
// those that died lately, those that are condemned, those of whom it is not
// known yet, and those whose breath is late, for what befalls several hosts
// does not do so in the same instant.
func (c *Core) judge(doubtful []*overlay.Host, late, limit int) {
	maps.DeleteFunc(c.deaths, func(_ overlay.UID, at Time) bool { return at+brakeWindow < c.now })
	at := len(c.deaths)
	var condemned []*overlay.Host
	for _, h := range doubtful {
		if c.pulses[h.UID].condemned == 0 {
			continue
		}
		condemned = append(condemned, h)
		if _, again := c.deaths[h.UID]; !again { // one that comes and goes is one
			at++
		}
	}
	if at >= limit {
		if c.brakedAt == 0 {
			c.stats.Brakes++
			c.errand(ErrandBraked, overlay.UID{}, fmt.Sprintf("%d hosts would have died within %d s, the limit is %d", at, int(brakeWindow/1e9), limit))
		}
		c.brakedAt = c.now
	} else if c.brakedAt != 0 && c.brakedAt+brakeWindow < c.now {
		c.brakedAt = 0
		c.errand(ErrandReleased, overlay.UID{}, "")
	}
	if c.brakedAt != 0 {
		return
	}
	for _, h := range condemned {
		p := c.pulses[h.UID]
		if c.now < p.sign()+c.cfg.suspicion()+c.cfg.probeWithin() {
			continue
		}
		if unsure := c.unsure(doubtful, p.condemned); at+unsure+late < limit {
			c.die(h, p)
		}
	}
}

// unsure counts those in doubt of whom it is not known whether they live since
// a time, and has them asked after at once.
func (c *Core) unsure(doubtful []*overlay.Host, since Time) (n int) {
	for _, h := range doubtful {
		if p := c.pulses[h.UID]; p.condemned == 0 && p.answered <= since {
			p.next = 0
			n++
		}
	}
	return n
}

// die declares a host dead: one change of one record. What its last session
// says from now on is void; it returns by another, with a complete inventory.
func (c *Core) die(h *overlay.Host, p *pulse) {
	if c.rows[KeyOf(h)].busy > 0 {
		return // at the next look
	}
	next := *h
	next.Dead, next.Changed = true, int64(c.now)
	next.Cause = fmt.Sprintf("manager: no sign of life for %d ms: no breath of its agent, no echo to %s",
		(c.now-p.sign())/1e6, strings.Join(p.asked, ", "))
	t := c.begin()
	t.put(&next)
	t.commit(nil, nil)
	c.errand(ErrandDied, h.UID, next.Cause)
	if s := c.sessions[h.UID]; s != nil {
		s.open = false
	}
	c.deaths[h.UID] = c.now
	c.stats.HostsDied++
	c.alive(p)
}

// revive ends the death of a host whose inventory is complete: now, and not
// before, entries may point to it.
func (c *Core) revive(t *tx, host overlay.UID) {
	h := c.host(host)
	if h == nil || !h.Dead {
		return
	}
	back := *h
	back.Dead, back.Changed = false, int64(c.now)
	back.Cause = "agent of " + h.Name + ": returned with a complete inventory"
	t.put(&back)
	c.stats.HostsReturned++
	c.errand(ErrandBack, host, "")
}

// health is what is to be said of a host's life, a line each.
func (c *Core) health(h *overlay.Host) (out []string) {
	p := c.pulses[h.UID]
	if p == nil || h.Dead {
		return nil
	}
	if p.echoFails >= muteAfter && !c.echoes(h.UID) {
		out = append(out, "CV0221 its tunnel end point "+h.VTEP.String()+" answers no echo requests (ICMP) of other hosts: if it dies, nobody can tell, and its entries stay; let ICMP echo pass between the hosts")
	}
	if c.brakedAt != 0 && p.condemned != 0 {
		out = append(out, "CV0222 it is silent, and so are too many others at once: no host is declared dead and every entry stays, until they return; look at the network between the hosts and this manager")
	}
	return out
}
