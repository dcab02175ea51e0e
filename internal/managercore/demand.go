package managercore

import (
	"slices"

	"culvert/internal/overlay"
)

// demanded is what a cursor keeps of a network of which it tells on demand.
type demanded struct {
	told  map[Key]*Item // what lives, as it was told and not dropped since
	sum   Sum           // of told
	ports map[overlay.UID]int
	// ports counts, for each port, those of told that are the host's own.

	queue []Key         // to tell if it passes, from the beginning of the pass
	again []Key         // to tell once more: a want of it was dropped, and it stays
	due   []due         // what the host says, in order
	fresh bool          // the log has moved since its end was told
	hosts []overlay.UID // members that were told, sorted
	// hostsAt is the lookup's membersAt when they were; named: they were at all.
	hostsAt overlay.Rev
	named   bool
}

// due is one thing that the host said.
type due struct {
	want overlay.Want
	how  dueHow
}

type dueHow uint8

const (
	dueStanding dueHow = iota // it was said before the network was subscribed to
	dueAsked
	dueHint // another host's guest asks a guest there
	dueDrop
)

// SubscribeOnDemand adds a network of which the host is told what is its own
// and what it wants, or begins anew if it is subscribed already. It is a full
// pass always: what a host is told so is little, and what it had wanted before
// is not known. It reports false as Subscribe does.
//
// Of a network that is told on demand, each look costs what it finds. Of
// another its whole log is read, for each look.
func (c *Cursor) SubscribeOnDemand(v *View, network overlay.UID) bool {
	n := v.Network(network)
	if n == nil || !v.Concerns(c.host, n) || c.uid.IsZero() {
		return false
	}
	var said []due
	if i, ok := c.find(network); ok && c.nets[i].demand != nil {
		said = c.nets[i].demand.due
	}
	c.place(c.begin(v, network, said))
	return true
}

// begin is the position at the beginning of a pass; said is what the host said
// and was not looked at yet.
func (c *Cursor) begin(v *View, network overlay.UID, said []due) position {
	d := &demanded{told: map[Key]*Item{}, ports: map[overlay.UID]int{}}
	for _, w := range c.wants.all(network) {
		d.due = append(d.due, due{w, dueStanding})
	}
	d.due = append(d.due, slices.DeleteFunc(said, func(x due) bool { return x.how == dueStanding })...)
	return position{network: network, sent: v.At, full: true, began: v.At, demand: d}
}

// Demand takes what the host wants to know of a network, or with drop not any
// more, also before it subscribes. What is beyond MaxWants is not entered, and
// never told; Refused counts it.
func (c *Cursor) Demand(w overlay.Want, drop bool) {
	how := dueAsked
	if drop {
		how = dueDrop
	}
	if d := c.onDemand(w.Network); d != nil {
		c.say(d, due{w, how})
		return
	}
	if drop {
		c.wants.remove(w)
		c.wants.dropped = append(c.wants.dropped, w)
		return
	}
	c.wants.enter(w, true)
}

// Hint has the host told of an endpoint as if it wanted it, if the network is
// told on demand: one of its guests will answer there.
func (c *Cursor) Hint(w overlay.Want) {
	if d := c.onDemand(w.Network); d != nil {
		c.say(d, due{w, dueHint})
	}
}

func (c *Cursor) say(d *demanded, x due) {
	if len(d.due) >= MaxWants && x.how != dueDrop {
		c.wants.refused++
		return
	}
	d.due = append(d.due, x)
}

// Refused is how many wants were beyond the bounds since it was asked last.
func (c *Cursor) Refused() (n uint64) {
	n, c.wants.refused = c.wants.refused, 0
	return n
}

// onDemand is what is kept of the network, or nil.
func (c *Cursor) onDemand(network overlay.UID) *demanded {
	if i, ok := c.find(network); ok {
		return c.nets[i].demand
	}
	return nil
}

// give forgets what was wanted of a network of which nothing is told on demand
// any more.
func (c *Cursor) give(network overlay.UID) {
	if d := c.onDemand(network); d != nil {
		for _, x := range d.due {
			if x.how == dueDrop {
				c.wants.dropped = append(c.wants.dropped, x.want)
			}
		}
	}
	c.wants.forget(network)
}

// asked reports whether the host waits for something.
func (p *position) asked() bool { return p.demand != nil && len(p.demand.due) > 0 }

// drop takes at most max wants away, all of one network, and forgets what was
// told for them alone. In a full pass none goes: until its end the host holds
// what the pass has not come to, and would forget otherwise.
func (c *Cursor) drop(max int) []overlay.Want {
	if n := min(len(c.wants.dropped), max); n > 0 {
		out := c.wants.dropped[:n]
		c.wants.dropped = c.wants.dropped[n:]
		return out
	}
	for i := range c.nets {
		d := c.nets[i].demand
		if d == nil || c.nets[i].full || len(d.due) == 0 || d.due[0].how != dueDrop {
			continue
		}
		var out []overlay.Want
		gone := newWantSet()
		for len(out) < max && len(d.due) > 0 && d.due[0].how == dueDrop {
			w := d.due[0].want
			d.due = d.due[1:]
			c.wants.remove(w)
			gone.enter(w, true)
			out = append(out, w)
		}
		d.again = append(d.again, c.forget(d, gone)...)
		return out
	}
	return nil
}

// forget forgets what was told and is named by gone, but what passes all the
// same: that it returns, sorted.
func (c *Cursor) forget(d *demanded, gone *wantSet) (stays []Key) {
	for k, it := range d.told { // order-free: what stays is sorted below, and a sum has no order
		switch {
		case !gone.has(it):
		case c.passes(d, it):
			stays = append(stays, k)
		default:
			d.sum.Sub(k, it.Rev)
			delete(d.told, k)
		}
	}
	slices.SortFunc(stays, Key.Compare)
	return stays
}

// passes reports whether the host is to be told of a live item for what it is
// now, told before or not.
func (c *Cursor) passes(d *demanded, it *Item) bool {
	switch r := it.Rec.(type) {
	case *overlay.Endpoint:
		return concerns(r, c.uid) || c.wants.of[r.Network].has(it)
	case *overlay.Port:
		return d.ports[r.UID] > 0 || c.wants.of[r.Network].has(it)
	}
	return false
}

// tell adds what is new of it, and before an endpoint of the host its port.
func (c *Cursor) tell(l *Log, d *demanded, it *Item, b *Batch) {
	old := d.told[it.Key]
	if old != nil {
		if old.Rev == it.Rev {
			return
		}
		d.sum.Sub(old.Key, old.Rev)
	}
	was, is := c.ownPort(old), c.ownPort(it)
	if !was.IsZero() {
		if d.ports[was]--; d.ports[was] == 0 {
			delete(d.ports, was)
		}
	}
	if !is.IsZero() {
		d.ports[is]++
		if p := l.Get(Key{Kind: overlay.KindPort, UID: is}); p != nil && !p.Gone {
			c.tell(l, d, p, b)
		}
	}
	if it.Gone {
		delete(d.told, it.Key)
	} else {
		d.told[it.Key] = it
		d.sum.Add(it.Key, it.Rev)
	}
	b.Items = append(b.Items, it)
}

// ownPort is the port of a live endpoint that is the host's own; else zero.
func (c *Cursor) ownPort(it *Item) overlay.UID {
	if it != nil && !it.Gone {
		if e, ok := it.Rec.(*overlay.Endpoint); ok && concerns(e, c.uid) {
			return e.Port
		}
	}
	return overlay.UID{}
}

// demand is advance for a network that is told on demand. It ends before a want
// that is dropped, too.
func (c *Cursor) demand(v *View, l *Log, p *position, max int, b *Batch) bool {
	if l.Floor.Compare(p.sent) > 0 {
		*p = c.begin(v, p.network, p.demand.due)
	}
	d := p.demand
	if p.full && !p.begun {
		b.Begins, p.begun = append(b.Begins, p.network), true
		d.queue = c.first(l, d)
	}
	if !c.tellMembers(l, p, b) || !c.tellQueued(l, d, max, b) {
		return false
	}
	for it := range l.After(p.sent) {
		if len(b.Items) >= max && it.Rev != p.sent {
			return false
		}
		p.sent, d.fresh = it.Rev, true
		if d.told[it.Key] != nil || !it.Gone && c.passes(d, it) {
			c.tell(l, d, it, b)
		}
	}
	if !c.answer(l, d, max, b) {
		return false
	}
	if d.fresh || !p.told {
		b.Ends = append(b.Ends, LogEnd{Network: p.network, Full: p.full, Sum: d.sum, Sent: v.At, OnDemand: true})
		p.told, p.full, p.begun, d.fresh = true, false, false, false
	}
	p.sent = v.At
	return len(d.due) == 0
}

// first are the keys of what the host is to be told unasked.
func (c *Cursor) first(l *Log, d *demanded) (out []Key) {
	if l.found == nil {
		return c.readWhole(l, d)
	}
	l.found.ofHost(c.uid, func(it *Item) { out = append(out, it.Key) })
	return out
}

// readWhole are the keys of what passes and was not told.
func (c *Cursor) readWhole(l *Log, d *demanded) (out []Key) {
	for it := range l.Keys() {
		if !it.Gone && d.told[it.Key] == nil && c.passes(d, it) {
			out = append(out, it.Key)
		}
	}
	return out
}

// tellQueued reports whether nothing is left of what was queued.
func (c *Cursor) tellQueued(l *Log, d *demanded, max int, b *Batch) bool {
	for ; len(d.queue) > 0; d.queue = d.queue[1:] {
		if len(b.Items) >= max {
			return false
		}
		if it := l.Get(d.queue[0]); it != nil && !it.Gone && c.passes(d, it) {
			c.tell(l, d, it, b)
		}
	}
	d.queue = nil // with what it stood in
	for ; len(d.again) > 0; d.again = d.again[1:] {
		if len(b.Items) >= max {
			return false
		}
		if it := d.told[d.again[0]]; it != nil {
			b.Items = append(b.Items, it)
		}
	}
	d.again = nil
	return true
}

// answer looks at what the host said, up to the first that it drops, and
// reports whether that is done.
func (c *Cursor) answer(l *Log, d *demanded, max int, b *Batch) bool {
	if l.found == nil && !c.answered(l, d) {
		return false
	}
	for ; len(d.due) > 0 && d.due[0].how != dueDrop; d.due = d.due[1:] {
		if len(b.Items) >= max || len(b.Told) >= max {
			return false
		}
		x := d.due[0]
		if !c.wants.enter(x.want, x.how != dueHint) {
			continue
		}
		if l.found != nil {
			l.meets(x.want, func(it *Item) { c.tell(l, d, it, b) })
		}
		if x.how != dueHint {
			b.Told = append(b.Told, x.want)
		}
	}
	if len(d.due) == 0 {
		d.due = nil
	}
	return true
}

// answered reports whether all was told of what the host said, up to the first
// that it drops; if not, it is queued. It is one look at the whole log for all:
// such a network is told otherwise now, which the host has not heard yet.
func (c *Cursor) answered(l *Log, d *demanded) bool {
	asks := false
	for _, x := range d.due {
		if x.how == dueDrop {
			break
		}
		asks = true
		c.wants.enter(x.want, x.how != dueHint)
	}
	if asks {
		d.queue = c.readWhole(l, d)
	}
	return len(d.queue) == 0
}

// maxMembers bounds the members of a batch, but for those of one network.
const maxMembers = 4000

// tellMembers says which other hosts have endpoints in the network since it
// last did. It reports false if they are too many for the batch. While the
// network is not told on demand it says so once.
func (c *Cursor) tellMembers(l *Log, p *position, b *Batch) bool {
	d := p.demand
	if d.named && (l.found == nil || d.hostsAt == l.found.membersAt) {
		return true
	}
	now := slices.DeleteFunc(l.members(), func(h overlay.UID) bool { return h == c.uid })
	var changes []overlay.Member
	for i, j := 0, 0; i < len(d.hosts) || j < len(now); {
		switch {
		case j == len(now) || i < len(d.hosts) && d.hosts[i].Compare(now[j]) < 0:
			changes = append(changes, overlay.Member{Network: p.network, Host: d.hosts[i], Gone: true})
			i++
		case i == len(d.hosts) || now[j].Compare(d.hosts[i]) < 0:
			changes = append(changes, overlay.Member{Network: p.network, Host: now[j]})
			j++
		default:
			i, j = i+1, j+1
		}
	}
	if len(b.Members) > 0 && len(b.Members)+len(changes) > maxMembers {
		return false
	}
	b.Members = append(b.Members, changes...)
	d.hosts, d.named = now, true
	if l.found != nil {
		d.hostsAt = l.found.membersAt
	}
	return true
}
