// Package managercore is the thinking of a manager: admission of what users
// ask, decisions on what agents claim, allocation of VNIs, MACs and addresses,
// the logs that agents are told from, sessions, tombstones and quarantine.
//
// It is a state machine without goroutine, clock, lock or I/O. Events go in
// with the time and only change state; the driver pulls work when it has room
// (NextTxn, NextReplies). The same events in the same order give the same
// state, byte for byte. What the core decides stands in its working state at
// once and is told to nobody before the store has committed it: agents and
// readers see only the View, which is built from the store's own events.
//
//	asked, claimed -> admit -> working state -> NextTxn -> store
//	                                                        |
//	senders <- View <- logs <- Step(Stored) <---------------+
package managercore

import (
	"net/netip"

	"github.com/tidwall/btree"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Time is Unix nanoseconds, from the driver.
type Time int64

// Config is what does not change while a manager runs.
type Config struct {
	Epoch    uint32      // of the store; in every revision
	FirstVNI overlay.VNI // where allocation begins; 0 means 10001
	// HostDeath is how long after its last sign of life a dead host is to be
	// in nobody's tables any more; 0: hosts never die.
	HostDeath Time
}

// row is the working state of one record: committed or on its way.
type row struct {
	rec  overlay.Record
	gone bool
	n    uint64 // number of the newest revision seen from the store; 0 if none
	busy int    // changes that touch it and are not released yet
	// placed is the number of the revision since which an endpoint is where it
	// is: what else changed of it since is no news against a claim.
	placed uint64
	// gained is the number of the revision since which it has the addresses that
	// it has, or more: what was announced before takes none from it.
	gained uint64
}

// Core is the state machine. It has one owner.
type Core struct {
	cfg  Config
	now  Time
	at   overlay.Rev
	lost bool // the store must be read anew before anything is decided

	rows map[Key]*row
	ix   indexes

	fleet, tenants *Log // see View
	nets           map[overlay.UID]*Log
	dirty          map[overlay.UID]bool // networks whose log changed since the last view
	frozenNets     *btree.Map[string, *Log]
	names          *btree.BTreeG[named]
	view           *View

	queue    []*change
	inflight []*change
	done     []*change // committed, waiting for the view to reach them
	replies  []Reply
	sessions map[overlay.UID]*session
	quaran   []overlay.UID // tombstones of networks whose VNI is held, in order of deletion
	deferred []hostClaim
	pruning  map[overlay.UID]bool // networks whose tombstones are being thrown away
	floor    overlay.Rev          // of the fleet's log, in the store or on its way there
	stats    Stats

	pulses             map[overlay.UID]*pulse
	asked              map[uint64]overlay.UID // rounds under way: after whom
	nextProbe          uint64
	lookedAt, nextLook Time
	deaths             map[overlay.UID]Time // of late
	brakedAt           Time                 // when there were too many last; 0: the brake is off
	errands            []Errand

	searches  map[overlay.UID]map[netip.Addr]search // by network
	disputes  map[netIP]*dispute
	questions map[uint64]netIP // of disputes, by number
	doubles   map[Key]*double
	doubleIDs map[uint64]Key

	gatewayStates map[overlay.UID]gatewaysSaid // by host
}

// Stats counts what must never happen, or is worth seeing.
type Stats struct {
	Transactions uint64
	ClaimsAccepted, ClaimsRefused, ClaimsVoid,
	Withdrawn, Released uint64
	HandedOver  uint64 // endpoints that left for where they were expected
	SharedMoved uint64 // shared addresses that went from one endpoint to another
	// Defects counts contradictions: a claim based on a binding that this
	// store has never had, a revision that went back.
	Defects uint64

	HostsDied, HostsReturned uint64
	Brakes                   uint64 // times that verdicts were stopped

	// Searches were begun; spared: nobody has the address, as was found a short
	// time before; refused: too many at once.
	Searches, SearchesSpared, SearchesRefused uint64
	// Disputes are questions to two guests of one address.
	Disputes, AddressesTaken uint64
}

// New makes a core that knows nothing; its first event must be Loaded.
func New(cfg Config) *Core {
	if cfg.FirstVNI == 0 {
		cfg.FirstVNI = 10001
	}
	c := &Core{cfg: cfg}
	c.reset()
	return c
}

func (c *Core) reset() {
	c.at, c.lost = overlay.Rev{Epoch: c.cfg.Epoch}, true
	c.rows = map[Key]*row{}
	c.ix = newIndexes()
	c.fleet, c.tenants = newLog(), newLog()
	c.nets = map[overlay.UID]*Log{}
	c.dirty = map[overlay.UID]bool{}
	c.frozenNets = &btree.Map[string, *Log]{}
	c.names = btree.NewBTreeGOptions(named.less, btree.Options{NoLocks: true})
	c.sessions = map[overlay.UID]*session{}
	c.quaran, c.deferred, c.pruning = nil, nil, map[overlay.UID]bool{}
	c.pulses, c.asked, c.deaths, c.errands = map[overlay.UID]*pulse{}, map[uint64]overlay.UID{}, map[overlay.UID]Time{}, nil
	c.lookedAt, c.nextLook, c.brakedAt = 0, 0, 0
	c.searches, c.disputes, c.questions = map[overlay.UID]map[netip.Addr]search{}, map[netIP]*dispute{}, map[uint64]netIP{}
	c.doubles, c.doubleIDs = map[Key]*double{}, map[uint64]Key{}
	c.gatewayStates = map[overlay.UID]gatewaysSaid{}
	c.publish()
}

// View is the newest published view; never nil.
func (c *Core) View() *View { return c.view }

// Stats is a copy of the counters.
func (c *Core) Stats() Stats { return c.stats }

// Event is one of Loaded, Stored, TxnDone, Lost, Asked, Opened, Claimed,
// InventoryEnded, Subscribed, Acked, Closed, Breath, ProbeDone, Seek,
// GatewaysStated and Tick.
type Event interface{ event() }

// Stored record: what the store says of one key.
type StoredRecord struct {
	Rec  overlay.Record
	Gone bool
	N    uint64 // the store's revision of its last change
}

// Loaded is the whole store at revision N. It replaces everything.
type Loaded struct {
	N       uint64
	Records []StoredRecord
}

// Stored is one revision of the store: what it put and which keys it deleted.
type Stored struct {
	N       uint64
	Puts    []StoredRecord
	Deletes []Key
}

// TxnDone says that the transaction of the last NextTxn was committed at N.
type TxnDone struct{ N uint64 }

// Lost says that the fence was lost, or that it is not known what became of
// the transaction: everything in flight is dropped, callers are told to ask
// again, and nothing is decided until the store was Loaded anew.
type Lost struct{}

// Tick tells the time: only with it does the core look who lives.
type Tick struct{}

func (Loaded) event()         {}
func (Stored) event()         {}
func (TxnDone) event()        {}
func (Lost) event()           {}
func (Tick) event()           {}
func (Asked) event()          {}
func (Opened) event()         {}
func (Claimed) event()        {}
func (InventoryEnded) event() {}
func (Acked) event()          {}
func (Subscribed) event()     {}
func (Closed) event()         {}

// Step takes one event and returns the view if it changed, else nil.
func (c *Core) Step(now Time, e Event) *View {
	c.now = now
	before := c.view
	switch e := e.(type) {
	case Loaded:
		c.load(e)
	case Stored:
		c.stored(e)
	case TxnDone:
		c.txnDone(e)
	case Lost:
		c.loseAll()
	case Asked:
		c.ask(e)
	case Opened:
		c.open(e)
	case Claimed:
		c.claimed(e)
	case InventoryEnded:
		c.inventoryEnded(e)
	case Subscribed:
		c.subscribed(e)
	case Acked:
		c.acked(e)
	case Closed:
		c.closed(e)
	case Breath:
		c.breath(e)
	case ProbeDone:
		c.probeDone(e)
	case Seek:
		c.seek(e)
	case GatewaysStated:
		c.gatewaysStated(e)
	case Tick:
		c.look()
	}
	if c.view != before {
		return c.view
	}
	return nil
}

func (c *Core) load(e Loaded) {
	c.loseAll()
	c.reset()
	c.at.N, c.lost = e.N, false
	for _, r := range e.Records {
		c.adopt(r)
	}
	for k, w := range c.rows { // order-free: each row is indexed under keys of its own
		c.ix.add(k, w)
	}
	c.publish()
	c.sweepOrphans()
}

// adopt takes a record of the store into logs and rows, without indexes.
func (c *Core) adopt(r StoredRecord) {
	k := KeyOf(r.Rec)
	w := c.rows[k]
	if w == nil {
		w = &row{}
		c.rows[k] = w
	}
	w.n = r.N
	if w.busy == 0 {
		w.rec, w.gone = r.Rec, r.Gone
	}
	rev := overlay.Rev{Epoch: c.cfg.Epoch, N: r.N}
	switch rec := r.Rec.(type) {
	case *overlay.Tenant:
		c.tenants.put(newItem(rec, rev, r.Gone))
		c.name(overlay.KindTenant, overlay.UID{}, rec.Name, c.tenants.Get(k))
	case *overlay.Domain:
		c.tenants.put(newItem(rec, rev, r.Gone))
		c.name(overlay.KindDomain, rec.Tenant, rec.Name, c.tenants.Get(k))
	case *overlay.Policy:
		c.tenants.put(newItem(rec, rev, r.Gone))
		c.name(overlay.KindPolicy, rec.Tenant, rec.Name, c.tenants.Get(k))
	case *overlay.Host:
		c.fleet.put(newItem(rec, rev, r.Gone))
		c.name(overlay.KindHost, overlay.UID{}, rec.Name, c.fleet.Get(k))
	case *overlay.Gateway:
		c.fleet.put(newItem(rec, rev, r.Gone))
		c.name(overlay.KindGateway, rec.Tenant, rec.Name, c.fleet.Get(k))
	case *overlay.Network:
		c.fleet.put(newItem(rec, rev, r.Gone))
		c.name(overlay.KindNetwork, rec.Tenant, rec.Name, c.fleet.Get(k))
		if c.nets[rec.UID] == nil {
			c.nets[rec.UID] = newLog()
			c.dirty[rec.UID] = true
		}
		if c.nets[rec.UID].lookUp(rec.Distribution == overlay.DistributeOnDemand, rev) {
			c.dirty[rec.UID] = true
		}
	case *overlay.Port:
		l := c.net(rec.Network)
		l.put(newItem(rec, rev, r.Gone))
		c.name(overlay.KindPort, rec.Tenant, rec.Name, l.Get(k))
	case *overlay.Endpoint:
		l := c.net(rec.Network)
		if old := l.Get(k); old == nil || old.Gone || r.Gone || old.Rec.(*overlay.Endpoint).Host != rec.Host {
			w.placed = r.N
		}
		if old := l.Get(k); old == nil || old.Gone || len(both(rec.Addresses, old.Rec.(*overlay.Endpoint).Addresses)) < len(rec.Addresses) {
			w.gained = r.N
		}
		l.put(newItem(rec, rev, r.Gone))
	case *overlay.Floor:
		l := c.fleet
		if !rec.Network.IsZero() {
			l = c.net(rec.Network)
		} else if c.floor.Less(rec.Rev) {
			c.floor = rec.Rev
		}
		if l.Floor.Less(rec.Rev) {
			l.Floor = rec.Rev
		}
	}
}

// net is the log of a network, marked as changed.
func (c *Core) net(uid overlay.UID) *Log {
	l := c.nets[uid]
	if l == nil {
		l = newLog()
		c.nets[uid] = l
	}
	c.dirty[uid] = true
	return l
}

// name keeps the published index of names: a tombstone takes its name away
// only if the name has not been given to another record meanwhile.
func (c *Core) name(kind overlay.Kind, tenant overlay.UID, name string, it *Item) {
	n := named{kind: kind, tenant: tenant, name: name, item: it}
	if !it.Gone {
		c.names.Set(n)
		return
	}
	if old, ok := c.names.Get(n); ok && old.item.Key == it.Key {
		c.names.Delete(n)
	}
}

func (c *Core) stored(e Stored) {
	if e.N <= c.at.N {
		c.stats.Defects++
		return
	}
	for _, r := range e.Puts {
		k := KeyOf(r.Rec)
		if w := c.rows[k]; w != nil && w.busy == 0 {
			c.ix.remove(k, w)
		}
		c.adopt(r)
		if w := c.rows[k]; w.busy == 0 {
			c.ix.add(k, w)
		}
	}
	for _, k := range e.Deletes {
		c.dropped(k)
	}
	c.at.N = e.N
	c.publish()
	c.release()
	for _, r := range e.Puts {
		if r.Gone {
			switch rec := r.Rec.(type) {
			case *overlay.Endpoint:
				c.prune(rec.Network)
			case *overlay.Port:
				c.prune(rec.Network)
			}
		}
	}
}

// dropped removes a key that the store has deleted.
func (c *Core) dropped(k Key) {
	w := c.rows[k]
	if w == nil {
		return
	}
	switch rec := w.rec.(type) {
	case *overlay.Tenant, *overlay.Domain, *overlay.Policy:
		c.tenants.drop(k)
	case *overlay.Host, *overlay.Gateway:
		c.fleet.drop(k)
	case *overlay.Network:
		c.fleet.drop(k)
		delete(c.nets, rec.UID)
		delete(c.searches, rec.UID)
		c.dirty[rec.UID] = true
	case *overlay.Port:
		if l := c.nets[rec.Network]; l != nil {
			if it := l.Get(k); it != nil && !it.Gone {
				gone := *it
				gone.Gone = true
				c.name(overlay.KindPort, rec.Tenant, rec.Name, &gone)
			}
			l.drop(k)
			c.dirty[rec.Network] = true
		}
	case *overlay.Endpoint:
		if l := c.nets[rec.Network]; l != nil {
			l.drop(k)
			c.dirty[rec.Network] = true
		}
	}
	if w.busy == 0 {
		c.ix.remove(k, w)
		delete(c.rows, k)
	}
}

// publish builds the view from the logs. Only what changed is frozen anew.
func (c *Core) publish() {
	for uid := range c.dirty { // order-free: each network's slot is set by itself
		if l := c.nets[uid]; l != nil {
			c.frozenNets.Set(string(uid[:]), l.freeze())
		} else {
			c.frozenNets.Delete(string(uid[:]))
		}
	}
	clear(c.dirty)
	c.view = &View{
		At: c.at, Fleet: c.fleet.freeze(), Tenants: c.tenants.freeze(),
		nets: c.frozenNets.Copy(), names: c.names.Copy(),
	}
}

// refuseLost is the answer while nothing can be decided.
func refuseLost() *api.Refusal {
	return api.Refuse(api.CodeNotDecider, "Nothing was changed", "this manager is reading its store and decides nothing yet", "try again in a second")
}
