package managercore

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/tidwall/btree"

	"culvert/internal/overlay"
)

// View is all that a manager knows at one revision. It is frozen once
// published: any number of goroutines read it while the core goes on.
type View struct {
	// At is the revision up to which the view is whole.
	At overlay.Rev
	// Fleet is the log of networks, gateways and hosts.
	Fleet *Log
	// Tenants is the log of what no agent reads: tenants, domains and policies.
	Tenants *Log

	nets  *btree.Map[string, *Log] // by the bytes of the network's UID
	names *btree.BTreeG[named]
}

type named struct {
	kind   overlay.Kind
	tenant overlay.UID
	name   string
	item   *Item
}

func (a named) less(b named) bool {
	return cmp.Or(cmp.Compare(a.kind, b.kind), a.tenant.Compare(b.tenant), strings.Compare(a.name, b.name)) < 0
}

// Net is the log of a network's ports and endpoints, or nil.
func (v *View) Net(network overlay.UID) *Log {
	l, _ := v.nets.Get(string(network[:]))
	return l
}

// Named is the live record of that kind, tenant (zero for tenants and hosts)
// and name, or nil.
func (v *View) Named(kind overlay.Kind, tenant overlay.UID, name string) *Item {
	n, _ := v.names.Get(named{kind: kind, tenant: tenant, name: name})
	return n.item
}

// List yields the live records of a kind that has names, by tenant and name.
// A zero tenant means all tenants.
func (v *View) List(kind overlay.Kind, tenant overlay.UID) iter.Seq[*Item] {
	return func(yield func(*Item) bool) {
		v.names.Ascend(named{kind: kind, tenant: tenant}, func(n named) bool {
			if n.kind != kind || !tenant.IsZero() && n.tenant != tenant {
				return false
			}
			return yield(n.item)
		})
	}
}

// Tenant is the live tenant of that UID, or nil.
func (v *View) Tenant(uid overlay.UID) *overlay.Tenant {
	return live[*overlay.Tenant](v.Tenants, Key{Kind: overlay.KindTenant, UID: uid})
}

// Network is the live network of that UID, or nil.
func (v *View) Network(uid overlay.UID) *overlay.Network {
	return live[*overlay.Network](v.Fleet, Key{Kind: overlay.KindNetwork, UID: uid})
}

// Host is the live host of that UID, or nil.
func (v *View) Host(uid overlay.UID) *overlay.Host {
	return live[*overlay.Host](v.Fleet, Key{Kind: overlay.KindHost, UID: uid})
}

// Port is the live port of that UID in that network, or nil.
func (v *View) Port(network, uid overlay.UID) *overlay.Port {
	return live[*overlay.Port](v.Net(network), Key{Kind: overlay.KindPort, UID: uid})
}

// Endpoint is the item of a live binding, or nil.
func (v *View) Endpoint(network overlay.UID, mac overlay.MAC) *Item {
	l := v.Net(network)
	if l == nil {
		return nil
	}
	if it := l.Get(Key{Kind: overlay.KindEndpoint, UID: network, MAC: mac}); it != nil && !it.Gone {
		return it
	}
	return nil
}

// Endpoints yields the live bindings of a network by MAC.
func (v *View) Endpoints(network overlay.UID) iter.Seq[*Item] {
	return func(yield func(*Item) bool) {
		l := v.Net(network)
		if l == nil {
			return
		}
		l.byKey.Ascend(&Item{Key: Key{Kind: overlay.KindEndpoint}}, func(it *Item) bool {
			if it.Key.Kind != overlay.KindEndpoint {
				return false
			}
			return it.Gone || yield(it)
		})
	}
}

func live[T overlay.Record](l *Log, k Key) T {
	var none T
	if l == nil {
		return none
	}
	it := l.Get(k)
	if it == nil || it.Gone {
		return none
	}
	return it.Rec.(T)
}

// LogEnd says that a cursor has reached the end of one log.
type LogEnd struct {
	Network overlay.UID // zero for the fleet log
	Full    bool        // the pass began at the start: what it did not name is not
	Sum     Sum
	Sent    overlay.Rev
	// OnDemand: the log is told on demand, and Sum is over what was told and not
	// dropped.
	OnDemand bool
}

// Cursor is how far one agent's stream is: all that an agent costs a manager.
// It belongs to one sender.
type Cursor struct {
	host  string // name, for selectors
	uid   overlay.UID
	fleet position
	nets  []position // sorted by network
	wants wants
}

type position struct {
	network overlay.UID
	sent    overlay.Rev
	full    bool        // the pass under way began at the log's start
	began   overlay.Rev // with full: the view's revision when the pass began
	told    bool        // LogEnd was sent for the pass under way
	begun   bool        // with full: the beginning was told
	demand  *demanded   // what was told of a network that is told on demand; else nil
}

// NewCursor starts at what the agent says it holds. A position in another
// epoch, below a log's floor or beyond the view is not one: the pass is full.
func NewCursor(v *View, host string, fleet overlay.Rev) *Cursor {
	c := &Cursor{host: host}
	if it := v.Named(overlay.KindHost, overlay.UID{}, host); it != nil {
		c.uid = it.Key.UID
	}
	c.fleet = startAt(v, v.Fleet, position{sent: fleet})
	return c
}

func startAt(v *View, l *Log, p position) position {
	if p.sent.Epoch != v.At.Epoch || v.At.Less(p.sent) || l != nil && p.sent.Less(l.Floor) || p.sent.IsZero() {
		p.sent, p.full, p.began = overlay.Rev{Epoch: v.At.Epoch}, true, v.At
	}
	return p
}

// Subscribe adds a network from the position that the agent says it holds, or
// begins anew if it is subscribed already. It reports false, and adds nothing,
// if the network is unknown or does not concern the host.
func (c *Cursor) Subscribe(v *View, network overlay.UID, sent overlay.Rev) bool {
	n := v.Network(network)
	if n == nil || !v.Concerns(c.host, n) {
		return false
	}
	c.give(network)
	c.place(startAt(v, v.Net(network), position{network: network, sent: sent}))
	return true
}

// place makes p the position of its network.
func (c *Cursor) place(p position) {
	i, ok := c.find(p.network)
	if ok {
		c.nets[i] = p
		return
	}
	c.nets = append(c.nets[:i], append([]position{p}, c.nets[i:]...)...)
}

// Unsubscribe removes a network; unknown ones are no error.
func (c *Cursor) Unsubscribe(network overlay.UID) {
	c.give(network)
	if i, ok := c.find(network); ok {
		c.nets = append(c.nets[:i], c.nets[i+1:]...)
	}
}

// Subscribed reports whether the network is.
func (c *Cursor) Subscribed(network overlay.UID) bool { _, ok := c.find(network); return ok }

func (c *Cursor) find(network overlay.UID) (int, bool) {
	lo, hi := 0, len(c.nets)
	for lo < hi {
		if m := (lo + hi) / 2; c.nets[m].network.Compare(network) < 0 {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo, lo < len(c.nets) && c.nets[lo].network == network
}

// Batch is what Next found to send.
type Batch struct {
	// Begins names the logs (zero: the fleet's) of which a full pass begins
	// here, before the items.
	Begins  []overlay.UID
	Items   []*Item
	Members []overlay.Member // with a full pass all of them, before its end
	Ends    []LogEnd
	// Told are wants of which all that is known is in this batch or one before.
	// Dropped are those that were given up; it is alone in its batch.
	Told, Dropped []overlay.Want
	// UpTo is zero while something at or below it is unsent.
	UpTo overlay.Rev
}

// Empty reports whether there is nothing to send but, maybe, UpTo.
func (b *Batch) Empty() bool {
	return len(b.Begins)+len(b.Items)+len(b.Members)+len(b.Ends)+len(b.Told)+len(b.Dropped) == 0
}

// Urgent reports whether the batch says more than which ports are declared, and
// up to where the host was told.
func (b *Batch) Urgent() bool {
	for _, it := range b.Items {
		if _, port := it.Rec.(*overlay.Port); it.Gone || !port {
			return true
		}
	}
	return len(b.Begins)+len(b.Members)+len(b.Told)+len(b.Dropped) > 0 || b.UpTo.IsZero() || slices.ContainsFunc(b.Ends, func(e LogEnd) bool { return e.Full })
}

// Join appends what Next found after b, which must not be Urgent. It reports
// false, and does nothing, if a full pass begins there, or wants were dropped.
func (b *Batch) Join(more Batch) bool {
	if len(more.Begins)+len(more.Dropped) > 0 {
		return false
	}
	b.Items, b.Members, b.Told = append(b.Items, more.Items...), append(b.Members, more.Members...), append(b.Told, more.Told...)
	b.UpTo = more.UpTo
	for _, e := range more.Ends { // a sum is of all that the log says until then
		if i := slices.IndexFunc(b.Ends, func(old LogEnd) bool { return old.Network == e.Network }); i >= 0 {
			b.Ends[i] = e
		} else {
			b.Ends = append(b.Ends, e)
		}
	}
	return true
}

// Next takes at most max items that are unsent, the fleet's first: a host is
// known before the first entry that names it. A revision is never split by
// UpTo, which comes only when every log is at its end. What was asked for comes
// before what is told anyway: a guest waits for it.
func (c *Cursor) Next(v *View, max int) Batch {
	var b Batch
	if b.Dropped = c.drop(max); len(b.Dropped) > 0 {
		return b
	}
	done := c.advance(v, v.Fleet, &c.fleet, max, &b)
	for _, asked := range [...]bool{true, false} {
		for i := range c.nets {
			if !done {
				return b
			}
			p := &c.nets[i]
			switch l := v.Net(p.network); {
			case l == nil || asked && !p.asked():
			case p.demand != nil:
				done = c.demand(v, l, p, max, &b)
			default:
				done = c.advance(v, l, p, max, &b)
			}
		}
	}
	if done {
		b.UpTo = v.At
	}
	return b
}

// advance reports whether the log's end was reached. Items of one revision are
// never split over batches, so a batch may exceed max by one transaction.
func (c *Cursor) advance(v *View, l *Log, p *position, max int, b *Batch) bool {
	if l.Floor.Compare(p.sent) > 0 && !p.full {
		*p = startAt(v, l, position{network: p.network})
	}
	if p.full && !p.begun {
		b.Begins, p.begun = append(b.Begins, p.network), true
	}
	fresh := false
	for it := range l.After(p.sent) {
		if len(b.Items) >= max && it.Rev != p.sent {
			return false
		}
		p.sent, fresh = it.Rev, true
		if n, ok := it.Rec.(*overlay.Network); ok && !v.Concerns(c.host, n) {
			it = withheld(it, n)
		}
		if p.full && it.Gone && it.Rev.Compare(p.began) <= 0 {
			continue // a full pass says by its end what is not; what went meanwhile is said
		}
		b.Items = append(b.Items, it)
	}
	if fresh || !p.told {
		b.Ends = append(b.Ends, LogEnd{Network: p.network, Full: p.full, Sum: l.sum, Sent: v.At})
		p.told, p.full, p.begun = true, false, false
	}
	p.sent = v.At
	return true
}
