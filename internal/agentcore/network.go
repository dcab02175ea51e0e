package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/plan"
)

// network is one network as this host knows it.
type network struct {
	uid  overlay.UID
	rec  *overlay.Network // nil until its record came
	rev  overlay.Rev
	gone bool

	ports  map[overlay.UID]*portEntry
	byName map[string]overlay.UID
	byMAC  map[overlay.MAC]overlay.UID // live ports
	eps    map[overlay.MAC]*endpoint
	mine   map[overlay.MAC]bool   // live bindings to this host
	pre    map[overlay.MAC]bool   // ... and those that are pre-associated here
	guests map[overlay.MAC]*guest // by MAC: see place
	// claiming counts claims without answer; awaits is the newest binding that
	// an answer named.
	claiming int
	awaits   overlay.Rev
	owner    map[netip.Addr]overlay.MAC // who had each address last, to notice a change
	shared   map[netip.Addr]int         // how many live ports share each address that any does
	sought   map[netip.Addr]sought      // in vain: see seek
	turn     int                        // of askAll
	log      logState
	own      []hoststate.Row // what was asked for that is no endpoint's: see ownRows

	// Routing and bridging, see join: what is in force of the record's ways, and
	// for which networks here its log is wanted so, sorted by UID.
	ways
	near []*network
	hops map[nextHop][]netip.Prefix // the record's Routes

	subscribed bool // its log is wanted
	told       bool // ... and the manager was told in this session
	anew       bool // ... before what it sent was forgotten
	byWants    bool // ... that it wants it on demand

	// Devices, as read and as wanted.
	bridge, vxlan int32 // ifindex, 0 if not there
	serving       bool  // wants a VXLAN device and rows
	filled        bool  // the VXLAN device is up
	tablesRead    bool
	dirty         bool // device work to look for
	flying        int  // operations on devices under way
	waitLinks     bool // ... have ended, and the links were not read since
	open          bool // counted in the ledger
	gen           uint64
	tries         uint8
	retryAt       Time
	graceEnd      Time
	needRead      bool
	heard         bool // tables were read when it was known which ports there are
	readAgain     Time // after a failure, tables are not read before
	reads         budget
	verifiedAt    Time
	conflict      bool       // a device of ours carries another network's mark
	settled       deviceWish // zero while something is to be done
	looked        bool       // its devices were looked for: what is found from now on has come

	taps map[int32]*tap
	rows *rowSet

	demands
	lists
	waiting map[netip.Addr][]asker // guests, by what they wait for

	doubts   map[hoststate.Key]bool // rang, and the links may explain it: see bell
	doubtDue Time                   // by then, or the tables are read
}

type portEntry struct {
	rec  *overlay.Port
	rev  overlay.Rev
	gone bool
}

// endpoint is a binding and what was planned of it.
type endpoint struct {
	rec  *overlay.Endpoint
	rev  overlay.Rev
	gone bool
	// unsure: nothing was told of it, though somebody may have it: see unsure.
	unsure bool
	at     Time // when it was told that it is there
	used   Time // when a guest here last sent to it, of an on-demand network
	// relayEnd is until when the host that it moved from relays; zero: it does
	// not.
	relayEnd Time
	plan     plan.Endpoint // what its rows stand for; the zero one has none
	// leaving: a withdrawal of this binding was sent in this session.
	leaving bool
	crossed []crossing // what it has in other networks, by their UID
}

func (c *Core) net(uid overlay.UID) *network {
	n := c.nets[uid]
	if n == nil {
		n = &network{
			uid: uid, ports: map[overlay.UID]*portEntry{}, byName: map[string]overlay.UID{}, byMAC: map[overlay.MAC]overlay.UID{},
			eps: map[overlay.MAC]*endpoint{}, mine: map[overlay.MAC]bool{}, pre: map[overlay.MAC]bool{}, guests: map[overlay.MAC]*guest{}, owner: map[netip.Addr]overlay.MAC{}, shared: map[netip.Addr]int{}, taps: map[int32]*tap{}, rows: newRowSet(), doubts: map[hoststate.Key]bool{},
		}
		c.nets[uid], c.order = n, nil
	}
	return n
}

// live reports whether the network exists as far as this host knows.
func (n *network) live() bool { return n.rec != nil && !n.gone }

// items takes entries of logs. What is older than what is known changes
// nothing, however late or often it comes.
func (c *Core) items(e Items) {
	if c.poor {
		return
	}
	for _, uid := range e.Begins {
		if l := c.log(uid); l != nil {
			l.named = map[overlay.Key]bool{}
		}
		if n := c.nets[uid]; n != nil {
			n.gather = map[overlay.UID]bool{}
			for _, w := range n.wants { // order-free: each by itself
				w.told = false // a pass answers all, and what came before it may be of another
			}
		}
	}
	for _, it := range e.Items {
		c.item(it)
	}
	c.membersTold(e.Members)
	c.toldWants(e.Told)
	c.dropped(e.Dropped)
	for _, end := range e.Ends {
		c.logEnd(end)
	}
	c.said = later(c.said, e.UpTo)
	c.heardAll()
}

// heardAll takes it that all that concerns this host was heard, up to where the
// stream said so. Before that stream has heard of all our networks, or has
// reached the end of their logs, it is not so; nor is anything more to come when
// the last of those logs is wanted no more.
func (c *Core) heardAll() {
	if c.upTo.Less(c.said) && len(c.behind) == 0 && !c.poor {
		c.upTo = c.said
		c.work.end(c.said)
	}
}

// log is the state of a network's log, or of the fleet's for the zero UID; nil
// for a network that is not known, or is gone.
func (c *Core) log(network overlay.UID) *logState {
	if network.IsZero() {
		return &c.fleet
	}
	if n := c.nets[network]; n != nil && n.live() {
		return &n.log
	}
	return nil
}

func (c *Core) item(it Item) {
	var network overlay.UID
	switch r := it.Rec.(type) {
	case *overlay.Port:
		network = r.Network
	case *overlay.Endpoint:
		network = r.Network
	}
	l := c.log(network)
	if l == nil {
		return // of a network that was deleted, or that never selected us
	}
	if l.named == nil && (!l.complete || !l.partial && it.Rev.Compare(l.sent) <= 0) {
		c.stats.Stale++ // of what the log is past, or of a subscription that was given up
		return
	}
	if l.named != nil && !it.Gone {
		l.named[overlay.KeyOf(it.Rec)] = true
	}
	switch r := it.Rec.(type) {
	case *overlay.Host:
		c.hostItem(r, it)
	case *overlay.Gateway:
		c.gatewayItem(r, it)
	case *overlay.Network:
		c.networkItem(r, it)
	case *overlay.Port:
		c.portItem(c.nets[network], r, it)
	case *overlay.Endpoint:
		c.endpointItem(c.nets[network], r, it)
	}
}

// newer reports whether it changes what is known at rev, and counts if not.
func (c *Core) newer(it Item, rev overlay.Rev) bool {
	if rev.Less(it.Rev) {
		return true
	}
	if it.Rev.Less(rev) {
		c.stats.Stale++
	}
	return false
}

func (c *Core) hostItem(r *overlay.Host, it Item) {
	h := c.hosts[r.UID]
	if h == nil {
		h = &hostEntry{}
		c.hosts[r.UID] = h
	}
	if !c.newer(it, h.rev) {
		return
	}
	old, was := h.vtep(), h.declared()
	h.rec, h.rev, h.gone = r, it.Rev, it.Gone
	now := h.vtep()
	if is := h.declared(); is != was {
		defer c.foreignOrHost(was, is) // when it is known who else asks for them
	}
	if now == old {
		return
	}
	by := overlay.Key{Kind: overlay.KindHost, UID: r.UID}
	if now.IsValid() && r.UID != c.cfg.Self {
		c.add(c.global, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableVTEP, IP: now}}, by, it.Rev)
	}
	c.vtepChanged(r.UID) // every entry of it is replaced before the old address is shut out
	if old.IsValid() && r.UID != c.cfg.Self {
		c.remove(c.global, hoststate.Key{Table: hoststate.TableVTEP, IP: old}, by)
	}
	if r.Dead && !it.Gone {
		c.hostDied(r.UID)
	}
}

func (c *Core) vtepChanged(host overlay.UID) {
	for _, n := range c.sortedNets() {
		for _, mac := range sortedMACs(n.eps) {
			// Also where frames may come from: before it comes, and after it left.
			if r := n.eps[mac].rec; r != nil && (r.Host == host || r.From == host || slices.Contains(r.Pre, host)) {
				c.replan(n, mac)
			}
		}
		if n.members[host] {
			c.relist(n)
		}
	}
}

func sortedMACs[V any](m map[overlay.MAC]V) []overlay.MAC {
	out := make([]overlay.MAC, 0, len(m))
	for mac := range m { // order-free: sorted below
		out = append(out, mac)
	}
	slices.SortFunc(out, func(a, b overlay.MAC) int { return slices.Compare(a[:], b[:]) })
	return out
}

func (c *Core) networkItem(r *overlay.Network, it Item) {
	n := c.net(r.UID)
	if !c.newer(it, n.rev) {
		return
	}
	old := n.rec
	n.rec, n.rev, n.gone, n.hops = r, it.Rev, it.Gone, hopsOf(r.Routes)
	if it.Gone {
		if c.byVNI[r.VNI] == n {
			delete(c.byVNI, r.VNI)
		}
		n.subscribed = false
		delete(c.behind, n.uid)
		c.clear(n)
		n.forgetWants()
	} else {
		c.byVNI[r.VNI] = n
		if old == nil && c.linksRead {
			// An agent without a journal hears of its networks after the
			// first look: what stands of them is adopted before anything
			// is made, and before an inventory can end without it.
			c.netLinks(n, c.links, c.linkNames())
		}
		c.findTaps(n)
	}
	if it.Gone || r.Admission == overlay.AdmitDeclared {
		c.forgetLearned(n)
	}
	if old == nil || old.Flood != r.Flood || old.Blocked != r.Blocked || !slices.Equal(old.Foreign, r.Foreign) || it.Gone || routedOtherwise(old, r) {
		c.replanAll(n)
	}
	if old != nil && (old.MTU != r.MTU || old.Distribution != r.Distribution || !slices.Equal(old.Routes, r.Routes)) {
		c.crossFrom(n)
	}
	if !it.Gone && old != nil && (!old.Tell.Equal(&r.Tell) || old.MTU != r.MTU || old.Admission != r.Admission || !slices.Equal(old.Subnets, r.Subnets) || old.Domain != r.Domain) {
		c.toldOtherwise(n)
	}
	if !it.Gone && old != nil && old.Distribution != r.Distribution {
		c.distribute(n)
	}
	c.conform(n)
	n.look = true // routes may go by others
	for _, uid := range r.Reach {
		if o := c.nets[uid]; o != nil {
			o.look = true
		}
	}
	c.wanted(n, old == nil)
	c.touch(n)
	c.gatewaysAt++ // a leg's network may be told only now, or otherwise
}

// clear forgets what the log of a network said: it was deleted, is no longer
// served, or not to be believed. Ports go first: what a device is decides which
// rows an endpoint has.
func (c *Core) clear(n *network) {
	n.ports, n.byName, n.byMAC = map[overlay.UID]*portEntry{}, map[string]overlay.UID{}, map[overlay.MAC]overlay.UID{}
	n.shared, n.members, n.gather = map[netip.Addr]int{}, nil, nil
	for _, idx := range sortedTaps(n.taps) {
		c.identify(n, n.taps[idx])
	}
	for _, mac := range sortedMACs(n.eps) {
		n.eps[mac].gone = true
		c.replan(n, mac)
	}
	n.eps, n.mine, n.pre, n.owner = map[overlay.MAC]*endpoint{}, map[overlay.MAC]bool{}, map[overlay.MAC]bool{}, map[netip.Addr]overlay.MAC{}
	n.log, n.anew, n.awaits = logState{}, true, overlay.Rev{}
	c.relist(n)
}

func (c *Core) portItem(n *network, r *overlay.Port, it Item) {
	p := n.ports[r.UID]
	if p == nil {
		p = &portEntry{}
		n.ports[r.UID] = p
	}
	if !c.newer(it, p.rev) {
		return
	}
	key := overlay.Key{Kind: overlay.KindPort, UID: r.UID}
	if p.rec != nil && !p.gone {
		n.log.sum.Sub(key, p.rev)
		n.unlist(r.UID, p.rec)
	}
	p.rec, p.rev, p.gone = r, it.Rev, it.Gone
	if !it.Gone {
		n.log.sum.Add(key, it.Rev)
		n.countShared(r, 1)
		n.byName[r.Name], n.byMAC[r.MAC] = r.UID, r.UID
	}
	for _, idx := range sortedTaps(n.taps) {
		t := n.taps[idx]
		switch g := t.declared; {
		case g == nil:
			if !it.Gone && (t.learned[r.MAC] != nil || slices.Contains(t.suspects, r.MAC)) {
				t.seen = r.MAC
			}
			c.identify(n, t)
			if t.declared == nil && !it.Gone { // it may have spoken with this MAC
				c.wantTables(n)
			}
		case g.port == r.UID:
			c.identify(n, t)
			c.unshare(n, t)
			c.member(n, t) // its addresses may be others
			n.look = true
		}
	}
}

// unlist takes a port out of what ports are found by.
func (n *network) unlist(uid overlay.UID, p *overlay.Port) {
	n.countShared(p, -1)
	if n.byName[p.Name] == uid {
		delete(n.byName, p.Name)
	}
	if n.byMAC[p.MAC] == uid {
		delete(n.byMAC, p.MAC)
	}
}

func (c *Core) endpointItem(n *network, r *overlay.Endpoint, it Item) {
	e := n.eps[r.MAC]
	if e == nil {
		e = &endpoint{}
		n.eps[r.MAC] = e
	}
	if !c.newer(it, e.rev) {
		return
	}
	key := overlay.Key{Kind: overlay.KindEndpoint, UID: n.uid, MAC: r.MAC}
	if e.rec != nil && !e.gone {
		n.log.sum.Sub(key, e.rev)
	}
	c.moves(n, e, r, it)
	was := *e
	e.rec, e.rev, e.gone, e.leaving, e.unsure = r, it.Rev, it.Gone, false, false
	if was.rec == nil || was.gone || it.Gone || was.rec.Host != r.Host {
		e.at = c.now
	}
	if g := n.guests[r.MAC]; g != nil {
		g.follow(c.cfg.Self, &was, e)
	}
	if !it.Gone {
		n.log.sum.Add(key, it.Rev)
	}
	if !it.Gone && r.Host == c.cfg.Self {
		n.mine[r.MAC] = true
	} else {
		delete(n.mine, r.MAC)
	}
	if !it.Gone && slices.Contains(r.Pre, c.cfg.Self) {
		n.pre[r.MAC] = true
	} else {
		delete(n.pre, r.MAC)
	}
	c.owesLess(n)
	c.freed(n, &was, e)
	switch here := was.rec != nil && !was.gone && was.rec.Host == c.cfg.Self; {
	case here && n.guests[r.MAC] == nil:
		c.place(n, r.MAC) // a device that was left behind may be one where it is
	case !here && n.mine[r.MAC] && n.log.complete:
		c.housed(n, r.MAC)
	}
	c.replan(n, r.MAC)
	if !it.Gone {
		c.owned(n, r, it.Rev)
		c.holds(n, r)
	}
	if n.log.partial {
		c.sweepBy(n, c.now) // what had an address may have it no more
	}
	if g := n.guests[r.MAC]; g != nil {
		c.bindingChanged(n, g, e)
	}
}

// owned notices that an address has another MAC than before and tells the
// guests here, because the proxy lets no gratuitous ARP across.
func (c *Core) owned(n *network, r *overlay.Endpoint, rev overlay.Rev) {
	for _, a := range r.Addresses {
		old, known := n.owner[a]
		if known && old == r.MAC {
			continue
		}
		n.owner[a] = r.MAC
		if n.shared[a] > 0 {
			c.sharesMoved(n, a, r.MAC, rev)
		}
		if !known || !n.log.complete {
			continue
		}
		if n.serving {
			c.announce(n, a, r.MAC)
		}
		for _, o := range n.near {
			if o.serving && o.way(n.uid)&wayBridge != 0 {
				c.announce(o, a, r.MAC)
			}
		}
	}
}

func (c *Core) announce(n *network, a netip.Addr, mac overlay.MAC) {
	c.orders = append(c.orders, hoststate.Op{
		Kind: hoststate.OpAnnounce,
		Row:  hoststate.Row{Key: hoststate.Key{Table: hoststate.TableNeigh, VNI: n.rec.VNI, IP: a}, Val: hoststate.Val{MAC: mac}},
	})
	c.stats.Announced++
}
