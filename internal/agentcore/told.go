package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// toldWants takes it that all is known of some wants that the manager knows.
func (c *Core) toldWants(told []overlay.Want) {
	for _, x := range told {
		n := c.nets[x.Network]
		if n == nil || !n.wanting() || !n.subscribed && c.session != 0 {
			continue
		}
		w := c.wantOf(n, x)
		if w.gives {
			continue // the answer to what was given up since
		}
		if w.tap && !w.heard {
			n.unheard--
		}
		w.said, w.told, w.heard = true, true, true
		if w.found {
			c.recalled(n, w)
		}
		switch {
		case x.Name != "":
		case c.remote(n, x) == nil:
			c.nobody(n, w)
			c.inVain(n, x.Address)
		default:
			c.answerWaiting(n, x.Address)
		}
		if w.tap {
			c.identifyAll(n) // a port that was forgotten meanwhile, and is none
		}
		if !x.MAC.IsZero() {
			c.bindingKnown(n, x.MAC)
		}
		c.sweepBy(n, c.now)
	}
}

// bindingKnown goes on with what had to wait until it was known who has a MAC.
func (c *Core) bindingKnown(n *network, mac overlay.MAC) {
	if e, g := n.eps[mac], n.guests[mac]; e != nil && e.unsure {
		if e.unsure = false; g != nil {
			c.replan(n, mac)
			c.member(n, g.tap)
		}
	}
	for _, idx := range sortedTaps(n.taps) {
		t := n.taps[idx]
		if g := t.declared; g == nil || g.mac != mac {
			continue
		}
		if t.pending && n.log.complete && t.state == hoststate.StateForwarding {
			c.tapUp(n, t)
		}
		c.weigh(n, t)
	}
}

// dropped takes it that nothing more is told of some wants: what nothing else
// makes the manager tell of is forgotten.
func (c *Core) dropped(gone []overlay.Want) {
	for _, x := range gone {
		n := c.nets[x.Network]
		if n == nil || !n.wanting() {
			continue
		}
		if w := n.wants[x]; w != nil {
			if w.gives = false; !w.said && (!w.queued || c.session == 0) {
				c.unwant(n, w)
			}
		}
		mac, port := n.whoHas(x), n.byMAC[x.MAC]
		if x.Name != "" {
			port = n.byName[x.Name]
		}
		switch e := n.eps[mac]; {
		case e == nil || e.rec == nil:
		case e.gone && n.guests[mac] == nil:
			delete(n.eps, mac) // who has it next is not told
		case !e.gone && !c.passes(n, e.rec):
			c.forget(n, mac)
		}
		if p := n.ports[port]; p != nil && !p.gone && !c.passesPort(n, p.rec) {
			n.forgetPort(port)
		}
	}
}

// standing reports whether a want stands, as far as the manager has answered. A
// journal has no answers: in it each endpoint that is known stands wanted.
func (c *Core) standing(n *network, x overlay.Want) bool {
	x.Network = n.uid
	w := n.wants[x]
	return w != nil && (w.told || w.gives || c.session == 0)
}

// toldOf reports whether the manager has answered a want in this session.
func (n *network) toldOf(x overlay.Want) bool {
	x.Network = n.uid
	w := n.wants[x]
	return w != nil && w.told
}

// concerns reports whether the manager tells this host of an endpoint unasked.
func (c *Core) concerns(r *overlay.Endpoint) bool {
	return r.Host == c.cfg.Self || r.From == c.cfg.Self || slices.Contains(r.Pre, c.cfg.Self)
}

// passes and passesPort report whether the manager goes on to tell of an
// endpoint, or a port.
func (c *Core) passes(n *network, r *overlay.Endpoint) bool {
	return c.concerns(r) || c.standing(n, overlay.Want{MAC: r.MAC}) ||
		slices.ContainsFunc(r.Addresses, func(a netip.Addr) bool { return c.standing(n, overlay.Want{Address: a}) })
}

func (c *Core) passesPort(n *network, r *overlay.Port) bool {
	if c.standing(n, overlay.Want{MAC: r.MAC}) || c.standing(n, overlay.Want{Name: r.Name}) {
		return true
	}
	of := func(e *endpoint) bool {
		return e != nil && e.rec != nil && !e.gone && e.rec.Port == r.UID && c.concerns(e.rec)
	}
	if len(r.Shared) == 0 {
		return of(n.eps[r.MAC])
	}
	for _, e := range n.eps { // order-free: any will do, of those with virtual MACs too
		if of(e) {
			return true
		}
	}
	return false
}

// identifyAll looks anew which ports devices are.
func (c *Core) identifyAll(n *network) {
	for _, idx := range sortedTaps(n.taps) {
		c.identify(n, n.taps[idx])
	}
}

// forgetPort takes a port out of what is known. A device that is one stays it
// until the manager has answered for it.
func (n *network) forgetPort(uid overlay.UID) {
	p := n.ports[uid]
	n.log.sum.Sub(overlay.Key{Kind: overlay.KindPort, UID: uid}, p.rev)
	n.unlist(uid, p.rec)
	delete(n.ports, uid)
}

// forget takes an endpoint out of what is known. That it is there is not denied:
// what is told of it next counts, however old.
func (c *Core) forget(n *network, mac overlay.MAC) {
	e := n.eps[mac]
	n.log.sum.Sub(overlay.Key{Kind: overlay.KindEndpoint, UID: n.uid, MAC: mac}, e.rev)
	for _, a := range e.rec.Addresses {
		if n.owner[a] == mac {
			delete(n.owner, a)
		}
	}
	delete(n.mine, mac)
	delete(n.pre, mac)
	e.rec, e.rev, e.gone, e.unsure, e.relayEnd, e.used = nil, overlay.Rev{}, true, true, 0, 0
	c.replan(n, mac)
	if n.guests[mac] == nil {
		delete(n.eps, mac)
	}
}

// recall wants what the kernel holds and nobody has told of: an agent before
// this one was told, and lost its disk. Until it is known who has it nothing is
// taken away.
func (c *Core) recall(n *network, have map[hoststate.Key]hoststate.Val) {
	if n.recalled || !n.log.complete {
		return
	}
	n.recalled = true
	for _, uid := range n.rec.Reach {
		if o := c.nets[uid]; o == nil || o.live() && !o.log.complete {
			n.recalled = false // more will be known
		}
	}
	var keys []hoststate.Key
	for k, v := range have { // order-free: sorted below
		if k.Table == hoststate.TableFDB && k.MAC != overlay.ServerMAC && v.VNI == 0 || k.Table == hoststate.TableNeigh {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, hoststate.Key.Compare)
	for _, k := range keys {
		if k.Table == hoststate.TableFDB {
			c.foundWant(n, overlay.Want{MAC: k.MAC})
			continue
		}
		for _, uid := range n.reach {
			if o := c.nets[uid]; o != nil && o.lacks(k.IP) {
				c.foundWant(o, overlay.Want{Address: k.IP})
			}
		}
	}
}

func (c *Core) foundWant(n *network, x overlay.Want) {
	if !n.log.partial || n.guests[x.MAC] != nil || c.remote(n, x) != nil {
		return
	}
	x.Network = n.uid
	if w := c.wantOf(n, x); !w.found && !w.told {
		w.found = true
		n.unfound++
		n.sayWant(w)
	}
}

// recalled takes it that it is known who has something that the kernel held.
func (c *Core) recalled(n *network, w *want) {
	w.found = false
	if n.unfound--; n.unfound > 0 {
		return
	}
	n.needRead = n.needRead || n.tablesRead
	for _, o := range n.near {
		o.needRead = o.needRead || o.tablesRead
	}
}
