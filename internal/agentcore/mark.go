package agentcore

import (
	"fmt"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// The mark is how far the logs had come that this host acted upon, kept where
// they were acted upon: in the kernel. An agent that has lost its journal finds
// it there, and so knows a manager whose store is an older copy. To such a
// manager it does not listen: the end of a pass that stays below the mark
// completes no log, and what is not complete takes nothing away (see tapsKnown,
// logEnd). A restore on purpose raises the epoch, and with it all revisions.
type mark struct {
	floor overlay.Rev // what the kernel was found to hold at the first look
	set   overlay.Rev // what the kernel is to say; zero: nothing yet
	due   Time        // when it is moved; 0 if nothing has risen
}

// markDelay bounds how often the mark moves, and how far it may lag behind.
const markDelay = second

// olderStore begins the problem text; its code is explained in the api's table.
const olderStore = "CV0208 the manager's store is older than what this host's kernel holds: "

// Reached is the newest revision that this host is known to have acted upon:
// by what was acknowledged, and by what the kernel remembers. Looked reports
// whether the kernel was asked already.
func (c *Core) Reached() overlay.Rev { return later(c.held, c.mark.floor) }

// Looked reports whether the links were read, and with them the mark.
func (c *Core) Looked() bool { return c.linksRead }

func later(a, b overlay.Rev) overlay.Rev {
	if a.Less(b) {
		return b
	}
	return a
}

// findMark takes the mark, and the aliases of devices, at the first look.
// What a journal said is not believed either if it stays below them.
func (c *Core) findMark(st *hoststate.State) {
	for k := range st.Rows { // order-free: the newest of all
		if rev, ok := k.Mark(c.cfg.Cluster); ok {
			c.mark.set = later(c.mark.set, rev)
		}
	}
	c.mark.floor = c.mark.set
	for _, l := range st.Links {
		if cluster, _, rev, ok := hoststate.ParseDeviceAlias(l.Alias); ok && cluster == c.cfg.Cluster {
			c.mark.floor = later(c.mark.floor, rev)
		}
	}
	if !c.mark.set.IsZero() {
		c.add(c.global, hoststate.Row{Key: hoststate.MarkKey(c.cfg.Cluster, c.mark.set)}, overlay.Key{}, overlay.Rev{})
	}
	if at := later(c.fleet.sent, c.upTo); c.fleet.complete && at.Less(c.mark.floor) {
		c.distrust(at)
	}
}

// distrust forgets what a log said that stays below the mark, and listens to
// no more of this stream: revisions of an older copy would catch up with the
// mark and prove nothing. The next stream begins all logs anew.
func (c *Core) distrust(at overlay.Rev) {
	c.poor = c.session != 0
	c.fleet = logState{}
	for _, uid := range sortedUIDs(c.hosts) {
		c.hosts[uid].rev = overlay.Rev{}
	}
	for _, n := range c.sortedNets() {
		c.clear(n)
		n.rev = overlay.Rev{}
	}
	c.solvedPrefix(olderStore)
	c.problem(fmt.Sprintf(olderStore+"it is at revision %s, and %s was acted upon here. Nothing is taken away or changed: put the newer store back", at, c.mark.floor))
}

// outdated reports whether a device was made or tuned by a newer record of its
// network than the one that is known, while that may be of an older store.
func (c *Core) outdated(l hoststate.Link, n *network) bool {
	_, _, rev, ok := hoststate.ParseDeviceAlias(l.Alias)
	return ok && n.rev.Less(rev) && !c.fleet.complete
}

// markLater asks for the mark to be moved, since held has risen.
func (c *Core) markLater() {
	if c.mark.due == 0 {
		c.mark.due = c.now + markDelay
	}
	c.alarmAt(c.mark.due)
}

// moveMark lets the kernel say what is held now.
func (c *Core) moveMark() {
	c.mark.due = 0
	if !c.mark.set.Less(c.held) {
		return
	}
	old := c.mark.set
	c.mark.set = c.held
	c.add(c.global, hoststate.Row{Key: hoststate.MarkKey(c.cfg.Cluster, c.held)}, overlay.Key{}, overlay.Rev{})
	if !old.IsZero() {
		c.remove(c.global, hoststate.MarkKey(c.cfg.Cluster, old), overlay.Key{})
	}
}
