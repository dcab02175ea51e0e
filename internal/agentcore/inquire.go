package agentcore

import "culvert/internal/hoststate"

// A hypervisor says once that a guest runs, and that counts against the bindings
// that were known then. Where it turns out that a newer one stood already, only
// what the hypervisor says after that was heard can count against it, so it is
// asked anew.

// inquireEvery is how soon after an answer a hypervisor is asked again.
const inquireEvery = second

// inquiry is the asking anew of this host's hypervisor.
type inquiry struct {
	asked  uint64 // the number of the newest
	flying bool   // that was not answered yet
	next   Time   // none is made before
	wanted bool   // a guest may be unsure
}

// weigh takes the hypervisor's word that a guest runs here for a sign of life,
// as soon as it is known what stands against it: once, because what is told
// after that may be newer.
func (c *Core) weigh(n *network, t *tap) {
	g := t.declared
	if !t.word || g == nil || !n.log.complete || n.guests[g.mac] != g || c.unsure(n, g.mac) {
		return
	}
	t.word = false
	if e := n.eps[g.mac]; e == nil || g.owns(c.cfg.Self, e) {
		g.back = e != nil && e.leaving
		return
	}
	c.arrive(n, g)
}

// doubt notes that a guest may be here all the same, though it is bound
// elsewhere: what its hypervisor says from now on will tell.
func (c *Core) doubt(g *guest) {
	if g == g.tap.declared {
		g.unsure, c.inquiry.wanted = c.inquiry.asked+1, true
	}
}

// NextInquiry reports whether the hypervisor is to be asked anew for all the
// guests that it has. The driver takes what it then reads to Step, as Guests
// with Answer set; until it does no other inquiry is made.
func (c *Core) NextInquiry() bool {
	q := &c.inquiry
	if !q.wanted || q.flying || q.next > c.now {
		return false
	}
	q.wanted = false
	for _, n := range c.nets { // order-free: each by itself
		for _, t := range n.taps { // order-free: each by itself
			g := t.declared
			if g == nil || g.unsure == 0 || t.nic.State != hoststate.NICRunning {
				continue
			}
			switch e := n.eps[g.mac]; {
			case c.behind[n.uid] || n.log.sent.Less(g.waitFor) || c.unsure(n, g.mac): // what stands against it is yet to come
				q.wanted = true
			case e == nil || g.owns(c.cfg.Self, e):
				g.unsure = 0
			default:
				q.wanted, q.flying = true, true
			}
		}
	}
	if q.flying {
		q.asked++
	}
	return q.flying
}

// inquired takes it that the newest inquiry was answered.
func (c *Core) inquired() {
	if !c.inquiry.flying {
		return
	}
	c.inquiry.flying, c.inquiry.next = false, c.now+inquireEvery
	c.alarmAt(c.inquiry.next)
	for _, n := range c.nets { // order-free: each by itself
		for _, t := range n.taps { // order-free: each by itself
			if g := t.declared; g != nil && g.unsure <= c.inquiry.asked {
				g.unsure = 0
			}
		}
	}
}

// confirmed takes it that the newest inquiry's answer says that a guest runs
// behind a device: that is newer than the bindings that were known when it was
// made.
func (c *Core) confirmed(n *network, t *tap) {
	if g := t.declared; c.inquiry.flying && g != nil && g.unsure != 0 && g.unsure <= c.inquiry.asked {
		g.unsure, t.word = 0, true
		c.weigh(n, t)
	}
}
