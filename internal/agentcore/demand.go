package agentcore

import (
	"cmp"
	"slices"
	"strings"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Of a network that is distributed on demand a host is told what is its own, and
// what it wants: the MACs of its guests, the ports that its devices name, what
// guests ask for, and by its MAC each endpoint elsewhere that it was told of. A
// want stands until it is given up, so whatever becomes of what is wanted is
// told, also that somebody has it whom nobody had when it was asked for.

// Bounds of wants that guests cause: a guest can ask for any address, and send
// to any MAC, as fast as it likes.
const (
	maxOpen   = 4096 // of a network, and nobody is known to have what is wanted
	maxOpenOf = 256  // ... of one device, and of misses, which name none
	wantEvery = 10 * millisecond
	wantBurst = 50
	allEvery  = millisecond // of all devices together
	allBurst  = 500
	// maxFor is how many guests are named for one want: they are told of to who
	// is found.
	maxFor = 4
	// maxSuspects bounds the MACs heard on a device that nothing names of which
	// it is asked whether they are a port's.
	maxSuspects = 4
	// What nobody has stays wanted for so long, and for twice as long each time
	// if it was asked for meanwhile.
	nobodyFirst  = 10 * second
	nobodyLatest = 60 * second
)

// want is something that this host wants to know.
type want struct {
	overlay.Want
	tap   bool // a device here names it, it is behind one, or routes go by it
	found bool // the kernel held it before anybody told of it, see recall
	// open: guests caused it, and nobody is known to have it; port is the device,
	// 0 if it is not known.
	open  bool
	port  int32
	until Time // it is kept till then, though nobody has it
	wait  Time
	asked []overlay.MAC // guests who asked, to be named
	named int           // how many of them were

	queued bool // in demands.say
	said   bool // in this session
	told   bool // ... and answered
	heard  bool // it was answered ever, or nothing needs to be
	gives  bool // that it is given up was said, and not confirmed
	idle   bool // to be given up, though somebody has it: nobody here uses it
}

// demands are the wants of one network.
type demands struct {
	wants   map[overlay.Want]*want
	say     []*want // to be said, in this order
	give    []*want // to be given up
	asking  int     // that are open
	openOf  map[int32]int
	sweepAt Time // when some may not be needed any more; 0: all are
	look    bool // devices have changed: see structure
	unheard int  // of devices, and never answered
	unfound int  // that the kernel held, and never answered
	// recalled: all that the kernel held when this agent began was looked at.
	recalled bool
}

// onDemand reports whether the network is to be told on demand.
func (n *network) onDemand() bool {
	return n.live() && n.rec.Distribution == overlay.DistributeOnDemand
}

// wanting reports whether wants count: also while another mode comes into force.
func (n *network) wanting() bool { return n.live() && (n.onDemand() || n.log.partial) }

// unsure reports whether it is not known who has a MAC, since the manager has
// not said so in this session. Without one what it said last counts.
func (c *Core) unsure(n *network, mac overlay.MAC) bool {
	if !n.log.partial && (n.log.complete || !n.onDemand() && !n.byWants) {
		return false
	}
	w := n.wants[overlay.Want{Network: n.uid, MAC: mac}]
	return w == nil || !w.told && (c.session != 0 || !w.heard)
}

func (c *Core) wantOf(n *network, x overlay.Want) *want {
	w := n.wants[x]
	if w == nil {
		if n.wants == nil {
			n.wants, n.openOf = map[overlay.Want]*want{}, map[int32]int{}
		}
		w = &want{Want: x}
		n.wants[x] = w
	}
	return w
}

// sayWant has a want said, if it was not, or has somebody to name.
func (n *network) sayWant(w *want) {
	if (!w.said || len(w.asked) > w.named) && !w.queued {
		w.queued = true
		n.say = append(n.say, w)
	}
}

// sweepBy looks for wants that are not needed any more at t.
func (c *Core) sweepBy(n *network, t Time) {
	if n.sweepAt == 0 || t < n.sweepAt {
		n.sweepAt = t
	}
	c.alarmAt(t)
}

// structure finds what devices here want, when they have changed.
func (c *Core) structure(n *network) {
	if !n.look || !n.wanting() {
		return
	}
	n.look, n.unheard = false, 0
	for _, w := range n.wants { // order-free: each by itself
		w.tap = false
	}
	for _, idx := range sortedTaps(n.taps) {
		for _, x := range c.wantsOf(n, n.taps[idx]) {
			x.Network = n.uid
			w := c.wantOf(n, x)
			c.closed(n, w)
			if w.heard = w.heard || n.resolved(x); !w.tap && !w.heard {
				n.unheard++
			}
			w.tap = true
			n.sayWant(w)
		}
	}
	for _, x := range n.nextHops() {
		w := c.wantOf(n, x)
		c.closed(n, w)
		w.tap = true
		n.sayWant(w)
	}
	c.sweepBy(n, c.now)
}

// nextHops are the endpoints of the network that routes go by, its own and those
// of networks that reach it: nobody asks for them, and packets go there.
func (n *network) nextHops() (out []overlay.Want) {
	for _, m := range append(slices.Clip(n.near), n) {
		if !m.live() {
			continue
		}
		for _, r := range m.rec.Routes {
			if r.Network == n.uid {
				out = append(out, overlay.Want{Network: n.uid, MAC: r.MAC})
			}
		}
	}
	return out
}

// wantsOf lists what one device wants: the port that it names, whoever may be
// behind it, and the addresses that its port shares.
func (c *Core) wantsOf(n *network, t *tap) (out []overlay.Want) {
	if tenant, name, ok := hoststate.ParsePortAlias(t.alias); ok {
		if tenant == n.rec.TenantName {
			out = append(out, overlay.Want{Name: name})
		}
	} else if x := t.nic; x.State != 0 && x.State != hoststate.NICGone {
		switch {
		case x.Port == "" && x.MAC.IsUnicast():
			out = append(out, overlay.Want{MAC: x.MAC})
		case x.Port != "" && (x.Tenant == "" || x.Tenant == n.rec.TenantName):
			out = append(out, overlay.Want{Name: x.Port})
		}
	}
	for _, mac := range append(slices.Clip(t.suspects), t.seen) {
		if mac.IsUnicast() {
			out = append(out, overlay.Want{MAC: mac})
		}
	}
	for _, g := range t.guests() {
		out = append(out, overlay.Want{MAC: g.mac})
	}
	if g := t.declared; g != nil {
		if p := n.portOf(g); p != nil {
			for _, a := range p.Shared {
				out = append(out, overlay.Want{Address: a})
			}
		}
	}
	return out
}

// resolved reports whether what is wanted is known without an answer: of what
// an agent before this one had been told.
func (n *network) resolved(x overlay.Want) bool {
	if x.Name != "" {
		return !n.byName[x.Name].IsZero()
	}
	e := n.eps[x.MAC]
	return !n.byMAC[x.MAC].IsZero() || e != nil && e.rec != nil && !e.gone
}

// suspect asks whether a MAC that was heard on a device that nothing names is a
// port's.
func (c *Core) suspect(n *network, t *tap, mac overlay.MAC) {
	if n.wanting() && mac.IsUnicast() && len(t.suspects) < maxSuspects && !slices.Contains(t.suspects, mac) {
		t.suspects = append(t.suspects, mac)
		n.look = true
	}
}

// holds wants an endpoint elsewhere by its MAC that was told of, so that it is
// known what becomes of it.
func (c *Core) holds(n *network, r *overlay.Endpoint) {
	if !n.wanting() || r.Host == c.cfg.Self {
		return
	}
	w := c.wantOf(n, overlay.Want{Network: n.uid, MAC: r.MAC})
	c.closed(n, w)
	n.sayWant(w)
	for _, a := range r.Addresses {
		if w := n.wants[overlay.Want{Network: n.uid, Address: a}]; w != nil {
			c.closed(n, w)
		}
	}
}

// closed takes a want off those of which nobody is known to have what it wants.
func (c *Core) closed(n *network, w *want) {
	if w.open {
		w.open = false
		n.asking--
		if n.openOf[w.port]--; n.openOf[w.port] == 0 {
			delete(n.openOf, w.port)
		}
	}
}

// demand has something wanted of which nothing is known here. t is the device of
// the guest that caused it, nil if that is not known, and asker the guest's MAC
// if it is to be told of. It reports whether it is known already that nobody has
// it.
func (c *Core) demand(n *network, x overlay.Want, t *tap, asker overlay.MAC) (nobody bool) {
	x.Network = n.uid
	w := n.wants[x]
	switch {
	case w != nil && w.told:
		c.stats.Negative++
		if w.until <= c.now {
			c.nobody(n, w)
		}
		return true
	case w == nil && !c.mayDemand(n, t):
		c.stats.WantsRefused++
		return false
	case w == nil:
		c.stats.Wants++
		w = c.wantOf(n, x)
		w.open = true
		if t != nil {
			w.port = t.index
		}
		n.asking++
		n.openOf[w.port]++
	}
	if w.until = max(w.until, c.now+nobodyFirst); asker.IsUnicast() && len(w.asked) < maxFor && !slices.Contains(w.asked, asker) {
		w.asked = append(w.asked, asker)
	}
	c.sweepBy(n, w.until)
	n.sayWant(w)
	return false
}

// mayDemand keeps the bounds.
func (c *Core) mayDemand(n *network, t *tap) bool {
	port := int32(0)
	if t != nil {
		port = t.index
	}
	if n.asking >= maxOpen || n.openOf[port] >= maxOpenOf || c.asks-c.now > (allBurst-1)*allEvery {
		return false
	}
	if t != nil {
		if t.wants-c.now > (wantBurst-1)*wantEvery {
			return false
		}
		t.wants = max(t.wants, c.now) + wantEvery
	}
	c.asks = max(c.asks, c.now) + allEvery
	return true
}

// nobody keeps a want for a while that nobody has, for longer each time.
func (c *Core) nobody(n *network, w *want) {
	w.wait = min(max(2*w.wait, nobodyFirst), nobodyLatest)
	w.until = c.now + w.wait
	c.sweepBy(n, w.until)
}

// remote is the live endpoint elsewhere that a want is of; nil if there is none.
func (c *Core) remote(n *network, x overlay.Want) *endpoint {
	mac := n.whoHas(x)
	if e := n.eps[mac]; e != nil && e.rec != nil && !e.gone && e.rec.Host != c.cfg.Self {
		return e
	}
	return nil
}

// whoHas is the MAC of the endpoint that a want is of, if it is known; else zero.
func (n *network) whoHas(x overlay.Want) overlay.MAC {
	if !x.Address.IsValid() {
		return x.MAC
	}
	mac, known := n.has(x.Address)
	if !known {
		return overlay.MAC{}
	}
	return mac
}

// needed reports whether a want is to stand.
func (c *Core) needed(n *network, w *want) bool {
	return w.tap || w.found || w.until > c.now || c.remote(n, w.Want) != nil
}

// sweepWants gives up what is not needed any more. What the manager has not
// answered is not given up before it has.
func (c *Core) sweepWants(n *network) {
	n.sweepAt = 0
	for _, w := range n.sortedWants() {
		switch {
		case w.until > c.now && !w.tap && !w.found:
			c.sweepBy(n, w.until)
		case c.needed(n, w):
		case !w.said && !w.gives:
			c.unwant(n, w)
		case w.told && !w.gives:
			n.give = append(n.give, w)
		}
	}
}

func (c *Core) unwant(n *network, w *want) {
	c.closed(n, w)
	delete(n.wants, w.Want)
}

func (n *network) sortedWants() []*want {
	out := make([]*want, 0, len(n.wants))
	for _, w := range n.wants { // order-free: sorted below
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *want) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), slices.Compare(a.MAC[:], b.MAC[:]), a.Address.Compare(b.Address))
	})
	return out
}

// sayDemands takes what is to be said of wants: what is given up before what is
// wanted, since it may be wanted again.
func (c *Core) sayDemands(u *Up) {
	for _, n := range c.sortedNets() {
		if !n.subscribed || !n.onDemand() {
			continue
		}
		if c.structure(n); n.sweepAt != 0 && n.sweepAt <= c.now {
			c.sweepWants(n)
		}
		for _, w := range n.give {
			idle := w.idle && !w.tap && !w.found && w.until <= c.now
			if w.idle = false; n.wants[w.Want] == w && w.told && (idle || !c.needed(n, w)) {
				u.Demands = append(u.Demands, Demand{Want: w.Want, Drop: true})
				w.said, w.told, w.gives, w.asked, w.named = false, false, true, nil, 0
				c.stats.Dropped++
			}
		}
		for _, w := range n.say {
			if w.queued = false; n.wants[w.Want] != w {
				continue
			}
			if !w.said && len(w.asked) == w.named {
				u.Demands = append(u.Demands, Demand{Want: w.Want})
			}
			for _, mac := range w.asked[w.named:] {
				u.Demands = append(u.Demands, Demand{Want: w.Want, For: mac})
			}
			w.said, w.named = true, len(w.asked)
		}
		n.give, n.say = nil, nil
	}
}

// sayAgain has all wants of a network said to a stream that knows none.
func (c *Core) sayAgain(n *network) {
	n.say, n.give, n.look = nil, nil, true
	if !n.wanting() {
		return
	}
	c.structure(n)
	for _, w := range n.sortedWants() {
		if w.told {
			w.asked = nil // who has it was told of them, or nobody has it
		}
		w.queued, w.said, w.told, w.gives, w.named = false, false, false, false, 0
		if !c.needed(n, w) {
			c.unwant(n, w)
			continue
		}
		n.say = append(n.say, w)
		w.queued = true
	}
}

// forgetWants ends all wants of a network: it is gone, not wanted here any more,
// or told whole. The manager forgets them of itself.
func (n *network) forgetWants() {
	n.demands = demands{look: true}
	clear(n.waiting)
}

// distribute takes another mode of distribution: the log is wanted anew in it,
// and all that is known is wanted, if not all is told any more. What was wanted
// before the manager may have forgotten.
func (c *Core) distribute(n *network) {
	n.log.wantFull = true
	if n.onDemand() {
		for _, mac := range sortedMACs(n.eps) {
			if e := n.eps[mac]; e.rec != nil && !e.gone {
				c.holds(n, e.rec)
			}
		}
		c.sayAgain(n)
	}
	if n.subscribed {
		n.anew, c.behind[n.uid] = true, true
	}
}
