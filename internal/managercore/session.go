package managercore

import (
	"net/netip"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// session is what the manager remembers of one agent's stream.
type session struct {
	n        uint64
	open     bool
	claimed  map[Key]bool // endpoints claimed in this session
	complete bool         // the inventory has ended
	acked    overlay.Rev
	ackedAt  Time
	serves   map[overlay.UID]bool // networks it subscribed to
}

// Subscribed says that a host's stream now carries a network, or not any more.
type Subscribed struct {
	Host    overlay.UID
	Session uint64
	Network overlay.UID
	Off     bool
}

// Opened says that an agent's stream was opened. The answer is a Reply with
// the new session's number, given when it is committed: from then on messages
// of former sessions are void, on every manager.
type Opened struct {
	ID     uint64
	Host   overlay.UID
	VTEP   overlay.Host // only VTEP is read
	BootID string
}

// Closed says that the stream of that session has ended.
type Closed struct {
	Host    overlay.UID
	Session uint64
}

// Acked says that a host's kernel was read back and holds all up to Rev.
type Acked struct {
	Host    overlay.UID
	Session uint64
	Rev     overlay.Rev
}

// Claim is an agent's word that an endpoint is there, or with Leave that it is
// not any more.
type Claim struct {
	ID       uint64 // the agent's own
	Network  overlay.UID
	MAC      overlay.MAC
	Port     overlay.UID
	Base     overlay.Rev // binding that the agent had applied when the evidence came
	Evidence overlay.Evidence
	Leave    bool
	// Pre: the endpoint is expected here (RFC 8394, pre-associate), or with
	// Leave not any more.
	Pre bool
	// Addresses of an undeclared endpoint, sorted; of a declared one, shared
	// addresses that it has announced.
	Addresses []netip.Addr
	// Heard is up to where the agent had the log when the shared addresses were
	// announced.
	Heard overlay.Rev
}

// Claimed carries claims of one session, in the order of the stream.
type Claimed struct {
	Host    overlay.UID
	Session uint64
	Claims  []Claim
}

// InventoryEnded says that every endpoint on the host was claimed in this
// session. Only then are its other bindings withdrawn.
type InventoryEnded struct {
	Host    overlay.UID
	Session uint64
}

// ClaimAnswer is what became of one claim.
type ClaimAnswer struct {
	ID       uint64
	Accepted bool
	Binding  overlay.Rev // in force now; zero if there is none
	Reason   string      // why not
	Refused  []overlay.AddressRefusal
	Disputed bool // another, who answers, has the MAC
}

func (c *Core) host(uid overlay.UID) *overlay.Host {
	w := c.rows[Key{Kind: overlay.KindHost, UID: uid}]
	if w == nil || w.gone {
		return nil
	}
	return w.rec.(*overlay.Host)
}

func (c *Core) open(e Opened) {
	if c.lost {
		c.reply(Reply{ID: e.ID, Refusal: refuseLost()})
		return
	}
	h := c.host(e.Host)
	if h == nil {
		c.reply(Reply{ID: e.ID, Refusal: api.Refuse(api.CodeNotFound, "The session was not opened", "host "+e.Host.String()+" is not known to this cluster", "join the host: culvert token create --role agent")})
		return
	}
	t := c.begin()
	next := &overlay.Session{Host: e.Host, N: 1, BootID: e.BootID}
	if w := c.rows[KeyOf(next)]; w != nil {
		old := w.rec.(*overlay.Session)
		next.N, next.Echo = old.N+1, old.Echo && e.VTEP.VTEP == h.VTEP
	}
	t.put(next)
	p := c.pulse(e.Host)
	c.endRound(p)
	*p = pulse{quiet: c.now, turns: p.turns}
	if e.VTEP.VTEP != h.VTEP {
		moved := *h
		moved.VTEP, moved.Cause, moved.Changed = e.VTEP.VTEP, "agent of "+h.Name+": session", int64(c.now)
		t.put(&moved)
	}
	// The former session is void from now on, whatever becomes of this one.
	c.sessions[e.Host] = &session{n: next.N, open: true, claimed: map[Key]bool{}, ackedAt: c.now, serves: map[overlay.UID]bool{}}
	id := e.ID
	t.commit(
		func(rev overlay.Rev) { c.reply(Reply{ID: id, Rev: rev, Session: next.N}) },
		func() { c.reply(Reply{ID: id, Refusal: unknownOutcome()}) },
	)
	c.unasked(e.Host)
}

// current is the session if it is the host's newest and open, else nil.
func (c *Core) current(host overlay.UID, n uint64) *session {
	if s := c.sessions[host]; s != nil && s.n == n && s.open {
		return s
	}
	return nil
}

func (c *Core) closed(e Closed) {
	if s := c.sessions[e.Host]; s != nil && s.n == e.Session {
		s.open = false
		c.pulse(e.Host).cut = true
		c.unasked(e.Host)
	}
}

func (c *Core) subscribed(e Subscribed) {
	s := c.current(e.Host, e.Session)
	switch {
	case s == nil:
	case e.Off:
		delete(s.serves, e.Network)
	default:
		s.serves[e.Network] = true
	}
}

func (c *Core) acked(e Acked) {
	s := c.current(e.Host, e.Session)
	if s == nil {
		return
	}
	if c.at.Less(e.Rev) { // an agent cannot hold what this store has never had
		c.stats.Defects++
		return
	}
	s.ackedAt = c.now
	if s.acked.Less(e.Rev) {
		s.acked = e.Rev
	}
	c.freeQuarantine()
}

// waitsFor names the live hosts that have not confirmed the absence of a deleted
// network: also those that it did not select may have entries that lead into it,
// from a network that policies once let reach it.
func (c *Core) waitsFor(n *overlay.Network) []string {
	w := c.rows[KeyOf(n)]
	at := overlay.Rev{Epoch: c.cfg.Epoch, N: w.n}
	var names []string
	for k, hw := range c.rows { // order-free: sorted below
		if k.Kind != overlay.KindHost || hw.gone {
			continue
		}
		h := hw.rec.(*overlay.Host)
		if s := c.sessions[h.UID]; s == nil || s.acked.Less(at) || w.n == 0 {
			names = append(names, h.Name)
		}
	}
	slices.Sort(names)
	return names
}

// freeQuarantine purges the tombstones of networks whose absence every host
// concerned has confirmed: their VNI may be used again.
func (c *Core) freeQuarantine() {
	if c.lost || len(c.quaran) == 0 {
		return
	}
	keep := c.quaran[:0]
	for _, uid := range c.quaran {
		k := Key{Kind: overlay.KindNetwork, UID: uid}
		w := c.rows[k]
		if w == nil || !w.gone {
			continue
		}
		if w.busy > 0 || len(c.ix.allPorts[uid])+len(c.ix.byNet[uid]) > 0 || len(c.waitsFor(w.rec.(*overlay.Network))) > 0 {
			keep = append(keep, uid)
			continue
		}
		t := c.begin()
		c.purgeFleet(t, k)
		t.purge(Key{Kind: overlay.KindFloor, UID: uid})
		t.commit(nil, nil)
		c.stats.Released++
	}
	c.quaran = keep
}

// sweepChunk bounds one transaction of sweepOrphans.
const sweepChunk = 500

// sweepOrphans purges what stands in the logs of deleted networks, enters their
// VNIs into quarantine, and deletes tombstones that nobody needs. It is
// idempotent and runs after a load, so a crash in the middle of a deletion is
// made good.
func (c *Core) sweepOrphans() {
	var dead []overlay.UID
	var unread []Key
	for k, w := range c.rows { // order-free: sorted below
		switch {
		case !w.gone || w.busy > 0:
		case k.Kind == overlay.KindNetwork:
			dead = append(dead, k.UID)
		case unreadKind(k.Kind):
			unread = append(unread, k)
		}
	}
	slices.SortFunc(unread, Key.Compare)
	for _, k := range unread {
		c.forget(k)
	}
	c.forgetGateways()
	slices.SortFunc(dead, overlay.UID.Compare)
	for _, uid := range dead {
		c.sweepNetwork(uid)
	}
}

func (c *Core) sweepNetwork(uid overlay.UID) {
	if !slices.Contains(c.quaran, uid) {
		c.quaran = append(c.quaran, uid)
	}
	keys := append(sorted(c.ix.allPorts[uid]), sorted(c.ix.byNet[uid])...)
	for len(keys) > 0 {
		t := c.begin()
		n := min(len(keys), sweepChunk)
		for _, k := range keys[:n] {
			t.purge(k)
		}
		t.commit(nil, nil)
		keys = keys[n:]
	}
	c.freeQuarantine()
}
