package agentcore

// adopt holds acknowledgements back after a start. What the journal or a first
// pass said is settled only when the kernel was looked at: all links, what a
// deleted network left, the tables of every network that is served, once all is
// known that belongs there, and what had to be written because of it. A token in
// the ledger's first generation stands for all of that.
func (c *Core) adopt() {
	if c.adopted {
		return
	}
	if c.adopting == 0 {
		if !c.tapsKnown() || !c.judged {
			return
		}
		for _, l := range c.links { // order-free: none must be
			if c.orphan(l) {
				return
			}
		}
		for _, n := range c.nets { // order-free: all must be
			if n.open || n.live() && n.serving && (!n.tablesRead || !c.whole(n)) {
				return
			}
		}
		c.adopting = c.work.next()
	}
	if c.work.before(c.adopting) == 1 {
		c.adopted = true
		c.work.done(0)
	}
}

// next is the generation after the newest one.
func (l *ledger) next() uint64 { return l.first + uint64(len(l.gens)) }

// before counts what is left of the generations before gen.
func (l *ledger) before(gen uint64) (left int) {
	for i, g := range l.gens {
		if l.first+uint64(i) < gen {
			left += g.left
		}
	}
	return left
}
