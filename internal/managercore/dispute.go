package managercore

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Two undeclared endpoints that say that they have one address: the first keeps
// it while it answers for it. Both are asked, each by its own host; if the first
// one does not answer and the second does, the address is taken from the first,
// and the second has it by its next claim. Whoever cannot be asked keeps what it
// has: that an agent is away says nothing of its guests. What is declared is
// never disputed.

// Bounds of disputes.
const (
	maxDisputes  = 1024
	disputeTime  = 1e9     // guests have this long to answer
	disputeAgain = 4 * 1e9 // ... and are not asked anew before
)

// say is what one side said.
type say uint8

const (
	sayNothing say = iota // yet
	sayYes
	sayNo
	sayUnable
)

// dispute is one question to two guests.
type dispute struct {
	first, second     Key
	firstID, secondID uint64 // of the questions
	firstSays         say
	secondSays        say
	again             Time
	last              say // of the first, when they were asked before
}

// disputed says why the endpoint of key k, which is claimed at a host, may not
// have an address that another endpoint has, and has both asked.
func (c *Core) disputed(n *overlay.Network, a netip.Addr, first, k Key, at overlay.UID) string {
	at4 := netIP{n.UID, a}
	name := "it is " + c.ownerName(first) + "'s"
	d := c.disputes[at4]
	if d != nil && d.first == first && d.second == k && c.now < d.again {
		return because(api.CodeAddressInUse, "%s", name+d.words())
	}
	if d == nil && !c.roomToDispute() {
		return because(api.CodeAddressInUse, "%s", name)
	}
	last := sayNothing
	if d != nil {
		if d.first == first {
			last = d.said()
		}
		c.endDispute(at4)
	}
	d = &dispute{first: first, second: k, again: c.now + disputeAgain, last: last}
	c.disputes[at4] = d
	c.stats.Disputes++
	d.firstID, d.firstSays = c.askOne(at4, first, c.rows[first].rec.(*overlay.Endpoint).Host, disputeTime)
	d.secondID, d.secondSays = c.askOne(at4, k, at, disputeTime)
	for _, id := range []uint64{d.firstID, d.secondID} {
		if id != 0 {
			c.questions[id] = at4
		}
	}
	return because(api.CodeAddressInUse, "%s", name+d.words())
}

// said is what is known of the first.
func (d *dispute) said() say {
	if d.firstSays == sayNothing {
		return d.last
	}
	return d.firstSays
}

// words is what a refusal adds.
func (d *dispute) words() string {
	switch d.said() {
	case sayYes:
		return ", who answers for it"
	case sayUnable:
		return ", who cannot be asked"
	}
	return ""
}

// askOne has one side asked by its host.
func (c *Core) askOne(at netIP, k Key, host overlay.UID, within Time) (uint64, say) {
	h, s := c.host(host), c.sessions[host]
	switch {
	case h == nil || h.Dead:
		return 0, sayNo
	case s == nil || !s.open || !s.complete:
		return 0, sayUnable
	}
	c.nextProbe++
	c.errandAsk(host, Ask{ID: c.nextProbe, Network: at.net, MAC: k.MAC, Address: at.ip, Within: within})
	return c.nextProbe, sayNothing
}

// roomToDispute forgets disputes that may begin anew.
func (c *Core) roomToDispute() bool {
	if len(c.disputes) < maxDisputes {
		return true
	}
	for at, d := range c.disputes { // order-free: each by itself
		if d.again <= c.now {
			c.endDispute(at)
		}
	}
	return len(c.disputes) < maxDisputes
}

func (c *Core) endDispute(at netIP) {
	d := c.disputes[at]
	delete(c.questions, d.firstID)
	delete(c.questions, d.secondID)
	delete(c.disputes, at)
}

// disputeSaid takes an answer; false if it is none to a dispute.
func (c *Core) disputeSaid(e ProbeDone) bool {
	at, ok := c.questions[e.ID]
	if !ok {
		return false
	}
	delete(c.questions, e.ID)
	d := c.disputes[at]
	if c.lost || c.current(e.Host, e.Session) == nil {
		return true
	}
	says := sayNo
	switch {
	case e.Answered:
		says = sayYes
	case e.Unable:
		says = sayUnable
	}
	if e.ID == d.firstID {
		d.firstSays = says
	} else {
		d.secondSays = says
	}
	c.settle(at, d)
	return true
}

// settle takes the address from the first, if it is silent and the second is
// not. A first one that has changed meanwhile is asked anew, by the next claim.
func (c *Core) settle(at netIP, d *dispute) {
	w, second := c.rows[d.first], c.rows[d.second]
	if d.firstSays != sayNo || d.secondSays != sayYes || w == nil || w.gone || w.busy > 0 || second == nil || second.gone || c.ix.ips[at] != d.first {
		return
	}
	next := *w.rec.(*overlay.Endpoint)
	next.Addresses = slices.DeleteFunc(slices.Clone(next.Addresses), func(a netip.Addr) bool { return a == at.ip })
	next.Cause = fmt.Sprintf("manager: it does not answer for %s, and %s does", at.ip, c.ownerName(d.second))
	c.endDispute(at)
	c.stats.AddressesTaken++
	t := c.begin()
	t.put(&next)
	t.commit(nil, nil)
}
