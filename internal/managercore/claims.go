package managercore

import (
	"fmt"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// hostClaim is a claim with the session that made it. In deferred it waits for
// a change of the same endpoint to be committed.
type hostClaim struct {
	host    overlay.UID
	session uint64
	Claim
}

func (c *Core) claimed(e Claimed) {
	for _, cl := range e.Claims {
		c.claim(hostClaim{e.Host, e.Session, cl})
	}
}

func (c *Core) answer(cl hostClaim, ok bool, binding uint64, reason string, refused ...overlay.AddressRefusal) {
	var rev overlay.Rev
	if binding != 0 {
		rev = overlay.Rev{Epoch: c.cfg.Epoch, N: binding}
	}
	if ok {
		c.stats.ClaimsAccepted++
	} else {
		c.stats.ClaimsRefused++
	}
	c.reply(Reply{Host: cl.host, Session: cl.session, Claim: &ClaimAnswer{ID: cl.ID, Accepted: ok, Binding: rev, Reason: reason, Refused: refused}})
}

// claim decides on one claim (design 3.1). A claim is never answered while a
// change of the same endpoint is on its way: it waits, and is looked at again.
func (c *Core) claim(cl hostClaim) {
	s := c.current(cl.host, cl.session)
	if s == nil || c.lost {
		c.stats.ClaimsVoid++ // of a former session: void, and nobody to tell
		return
	}
	k := Key{Kind: overlay.KindEndpoint, UID: cl.Network, MAC: cl.MAC}
	w := c.rows[k]
	if w != nil && w.busy > 0 || c.contended(cl) {
		c.deferred = append(c.deferred, cl)
		return
	}
	var at, placed overlay.Rev
	var b *overlay.Endpoint
	if w != nil {
		at, placed = overlay.Rev{Epoch: c.cfg.Epoch, N: w.n}, overlay.Rev{Epoch: c.cfg.Epoch, N: w.placed}
		if !w.gone {
			b = w.rec.(*overlay.Endpoint)
		}
	}
	if at.Less(cl.Base) && !at.IsZero() && c.at.Less(cl.Base) {
		c.stats.Defects++
		c.answer(cl, false, at.N, "based on a binding that this store has never had")
		return
	}
	switch {
	case cl.Leave && cl.Pre:
		delete(s.claimed, k)
		c.unexpect(cl, b, at)
		return
	case cl.Leave:
		c.withdraw(cl, b, at)
		return
	}
	if reason := c.mayNot(cl); reason != "" {
		c.answer(cl, false, at.N, reason)
		return
	}
	if cl.Pre {
		s.claimed[k] = true
		c.expect(cl, b, at, placed)
		return
	}
	mine := b != nil && b.Host == cl.host
	if !mine && cl.Base.Less(placed) {
		reason := "a newer binding stands: it left"
		if b != nil {
			reason = "a newer binding stands: it is on " + c.hostName(b.Host)
		}
		c.answer(cl, false, at.N, reason)
		return
	}
	if b != nil && !mine && c.doubled(cl, k, b, at) {
		return
	}
	s.claimed[k] = true
	c.bind(cl, k, b, at)
}

func (c *Core) hostName(uid overlay.UID) string {
	if h := c.host(uid); h != nil {
		return h.Name
	}
	return "a host that is gone"
}

// mayNot says why this host may not have this endpoint; empty if it may.
func (c *Core) mayNot(cl hostClaim) string {
	h := c.host(cl.host)
	nw := c.rows[Key{Kind: overlay.KindNetwork, UID: cl.Network}]
	if h == nil || nw == nil || nw.gone || !nw.rec.(*overlay.Network).SelectsHost(h.Name) {
		return because(api.CodeHostNotYours, "the network does not exist or does not select this host")
	}
	if nw.rec.(*overlay.Network).Blocked {
		return because(api.CodeBlocked, "the network is being deleted")
	}
	if cl.Port.IsZero() {
		return c.mayNotLearn(cl, nw.rec.(*overlay.Network))
	}
	pw := c.rows[Key{Kind: overlay.KindPort, UID: cl.Port}]
	if pw == nil || pw.gone {
		return because(api.CodeNotFound, "no such port is declared")
	}
	p := pw.rec.(*overlay.Port)
	if reason := c.mayNotLead(p, cl); reason != "" {
		return reason
	}
	if _, declared := c.ix.macs[netMAC{cl.Network, cl.MAC}]; p.Network != cl.Network || p.MAC != cl.MAC && (declared || !cl.MAC.IsVirtual() || len(p.Shared) == 0 || cl.Pre) {
		return fmt.Sprintf("port %s has MAC %s in another form than claimed", p.Name, p.MAC)
	}
	if cl.MAC != p.MAC { // a virtual router's, which may be claimed by who shares something
		if o := c.macBeyond(nw.rec.(*overlay.Network), cl.MAC); o != nil {
			return because(api.CodeMACInUse, "MAC %s is in network %s, which is bridged with this one", cl.MAC, typed(o))
		}
	}
	if len(p.Hosts) > 0 && !slices.Contains(p.Hosts, h.Name) {
		return because(api.CodeHostNotYours, "port %s may not be on host %s, see spec.hosts", p.Name, h.Name)
	}
	return ""
}

func (c *Core) bind(cl hostClaim, k Key, b *overlay.Endpoint, at overlay.Rev) {
	addrs, from, refused := c.addressesOf(cl, k, b)
	for _, a := range addrs {
		delete(c.searches[cl.Network], a) // it was found
	}
	want := &overlay.Endpoint{
		Network: cl.Network, MAC: cl.MAC, Port: cl.Port, Host: cl.host, Addresses: addrs, Evidence: cl.Evidence,
		Cause: "agent of " + c.hostName(cl.host) + ": " + cl.Evidence.String() + " seen", Since: int64(c.now),
	}
	if b != nil && b.Host == want.Host {
		want.Pre, want.From = b.Pre, b.From
		if b.Port == want.Port && b.Evidence >= want.Evidence && slices.Equal(b.Addresses, want.Addresses) {
			c.answer(cl, true, at.N, reasonOf(refused), refused...)
			return
		}
	}
	if b != nil && b.Host != want.Host {
		want.From = b.Host
		want.Cause = "moved from " + c.hostName(b.Host) + ", " + want.Cause
	}
	t := c.begin()
	t.giveUp(from, "announced by "+want.MAC.String()+" on "+c.hostName(want.Host))
	t.put(want)
	t.commit(
		func(rev overlay.Rev) { c.answer(cl, true, rev.N, reasonOf(refused), refused...) },
		func() {},
	)
}

func (c *Core) withdraw(cl hostClaim, b *overlay.Endpoint, at overlay.Rev) {
	if b == nil || b.Host != cl.host || cl.Base.Less(at) {
		c.answer(cl, b == nil || b.Host != cl.host, at.N, "a newer binding stands")
		return
	}
	t := c.begin()
	c.leave(t, b, "agent of "+c.hostName(cl.host)+": left")
	t.commit(
		func(rev overlay.Rev) { c.answer(cl, true, rev.N, "") },
		func() {},
	)
}

// leave ends a binding: it goes where the endpoint is expected, and nowhere if
// that is nowhere. A guest that was stopped at its source is thereby reached at
// its destination before it runs there.
func (c *Core) leave(t *tx, b *overlay.Endpoint, cause string) {
	next := *b
	next.Cause, next.Since = cause, int64(c.now)
	for _, h := range slices.Backward(b.Pre) { // the newest is the likeliest
		if h != b.Host && c.stands(h, KeyOf(b)) {
			next.Host, next.From, next.Pre = h, b.Host, nil
			next.Cause += ", expected at " + c.hostName(h)
			c.stats.HandedOver++
			t.put(&next)
			return
		}
	}
	next.Pre, next.From = nil, overlay.UID{}
	c.stats.Withdrawn++
	t.bury(&next)
}

// stands reports whether a host that expects an endpoint stands ready for it. Of
// one that did not say so in its present session it is not known whether the
// device is there still. One that is condemned has nothing any more, also while
// the brake holds its verdict; if it lives all the same, and the guest with it,
// it finds that nobody has the guest, and claims it.
func (c *Core) stands(host overlay.UID, k Key) bool {
	s, p := c.sessions[host], c.pulses[host]
	return s != nil && s.open && s.claimed[k] && c.host(host) != nil && (p == nil || p.condemned == 0)
}

// expect pre-associates an endpoint with the host that claims so (RFC 8394
// section 3.1): every host of the network is told that frames of it may come
// from there, and nothing else changes.
func (c *Core) expect(cl hostClaim, b *overlay.Endpoint, at, placed overlay.Rev) {
	switch {
	case b == nil:
		c.answer(cl, false, at.N, "nobody has it: claim it")
		return
	case b.Host == cl.host || slices.Contains(b.Pre, cl.host):
		c.answer(cl, true, at.N, "")
		return
	case cl.Base.Less(placed):
		c.answer(cl, false, at.N, "a newer binding stands: it is on "+c.hostName(b.Host))
		return
	case len(b.Pre) >= overlay.MaxPre:
		c.answer(cl, false, at.N, fmt.Sprintf("it is expected on %d hosts already", len(b.Pre)))
		return
	}
	next := *b
	next.Pre = append(slices.Clone(b.Pre), cl.host)
	next.Cause = "agent of " + c.hostName(cl.host) + ": expected there"
	c.change(cl, &next)
}

// unexpect takes a pre-association back.
func (c *Core) unexpect(cl hostClaim, b *overlay.Endpoint, at overlay.Rev) {
	if b == nil || !slices.Contains(b.Pre, cl.host) {
		c.answer(cl, true, at.N, "")
		return
	}
	c.change(cl, unexpected(b, cl.host, "agent of "+c.hostName(cl.host)+": expected there no more"))
}

// unexpected is an endpoint that is not expected on a host any more.
func unexpected(b *overlay.Endpoint, host overlay.UID, cause string) *overlay.Endpoint {
	next := *b
	next.Pre = slices.DeleteFunc(slices.Clone(b.Pre), func(h overlay.UID) bool { return h == host })
	next.Cause = cause
	return &next
}

// change commits the next state of an endpoint and answers with its revision.
func (c *Core) change(cl hostClaim, next *overlay.Endpoint) {
	t := c.begin()
	t.put(next)
	t.commit(
		func(rev overlay.Rev) { c.answer(cl, true, rev.N, "") },
		func() {},
	)
}

func (c *Core) inventoryEnded(e InventoryEnded) {
	s := c.current(e.Host, e.Session)
	if s == nil || c.lost || s.complete {
		return
	}
	s.complete = true
	for _, d := range c.deferred { // claims that wait for a commit were made, too
		if d.host == e.Host && d.session == e.Session && !d.Leave {
			s.claimed[Key{Kind: overlay.KindEndpoint, UID: d.Network, MAC: d.MAC}] = true
		}
	}
	t := c.begin()
	for _, k := range sorted(c.ix.byHost[e.Host]) {
		if s.claimed[k] {
			continue
		}
		c.leave(t, c.rows[k].rec.(*overlay.Endpoint), "agent of "+c.hostName(e.Host)+": not in its inventory")
	}
	for _, k := range sorted(c.ix.preAt[e.Host]) {
		if !s.claimed[k] {
			t.put(unexpected(c.rows[k].rec.(*overlay.Endpoint), e.Host, "agent of "+c.hostName(e.Host)+": not in its inventory"))
		}
	}
	c.revive(t, e.Host)
	if !t.empty() {
		t.commit(nil, nil)
	}
}
