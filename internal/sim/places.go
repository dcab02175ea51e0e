package sim

import (
	"net/netip"
	"slices"

	"culvert/internal/agentcore"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// What must hold of places: where an endpoint is bound, who claims it, who
// relays for it.

// settled reports whether the guest has run behind that device for at least
// age. That a migration has begun changes nothing before it stops.
func (x *nic) settled(age int64) bool {
	v := x.vm
	return v.runs == x && v.since+age <= x.host.w.now && x.since+age <= x.host.w.now
}

// only is the one VM that may have that MAC in a network; nil if there is none,
// or more than one, now or a moment ago.
func (w *world) only(network overlay.UID, port overlay.UID) *vm {
	var v *vm
	for _, x := range w.nics {
		if n, p := w.portOf(x); p != nil && n.UID == network && p.UID == port {
			if v != nil && v != x.vm || slices.ContainsFunc(w.hosts, func(h *host) bool { return h.hadDouble(x, w.now-5*second) }) {
				return nil
			}
			v = x.vm
		}
	}
	return v
}

// isDouble reports whether two devices are of two VMs of one port.
func isDouble(x, y *nic) bool {
	return y.vm != x.vm && y.mac == x.mac && y.port == x.port && (y.tenant == x.tenant || y.tenant == "" || x.tenant == "")
}

// hadDouble reports whether another VM of a device's port has left a host since a
// time.
func (h *host) hadDouble(x *nic, since int64) bool {
	return slices.ContainsFunc(h.left, func(d departure) bool { return isDouble(x, d.nic) && d.at >= since })
}

// hasDouble reports whether another VM of a device's port is on its host.
func (x *nic) hasDouble() bool {
	return slices.ContainsFunc(x.host.w.nics, func(y *nic) bool { return y.host == x.host && isDouble(x, y) })
}

// checkPlace: an endpoint is bound only where its guest has a device, or had
// one a moment ago; and it is not taken from where its guest has run all the
// time, whatever devices stand elsewhere and whoever says what how late.
func (w *world) checkPlace(was, is value) {
	e, ok := is.rec.(*overlay.Endpoint)
	if !ok || is.gone {
		return
	}
	if slices.Contains(e.Pre, e.Host) {
		w.fail("endpoint %s is expected where it is: %+v", e.MAC, *e)
	}
	h := w.hostOf(e.Host)
	old, had := was.rec.(*overlay.Endpoint)
	stays := had && !was.gone && old.Host == e.Host // what else of it changes says nothing of its place
	if !stays && !h.hadDevice(e, 20*second) {
		w.fail("endpoint %s is bound to %s, where its guest has no device: %s; %+v", e.MAC, h.name, e.Cause, *e)
	}
	v := w.only(e.Network, e.Port)
	if !had || was.gone || v == nil || stays || old.Port != e.Port {
		return
	}
	if v.runs != nil && v.runs.host.uid == old.Host && v.runs.settled(10*second) && v.runs.host.troubled < w.now {
		w.fail("endpoint %s is moved to %s, and its guest runs on %s: %s", e.MAC, h.name, v.runs.host.name, e.Cause)
	}
}

func (w *world) hostOf(uid overlay.UID) *host {
	i := slices.IndexFunc(w.hosts, func(h *host) bool { return h.uid == uid })
	return w.hosts[i]
}

// checkClaim: what is bound already is pinned here, and its port is open, before
// anybody is told. Of a guest that went, is sent after and is to come back it
// says that its binding stands.
func (h *host) checkClaim(c agentcore.Claim) {
	w := h.w
	n := w.store.network(c.Network)
	if c.Leave || c.Pre || n == nil || h.troubled > w.now || !w.ever.isBound(netMAC{c.Network, c.MAC}, c.Base.N) {
		return
	}
	row, ok := h.kernel.Row(hoststate.Key{Table: hoststate.TableMaster, VNI: n.VNI, MAC: c.MAC})
	x := w.nicAt(h, row.Port)
	if _, there := h.kernel.Link(n.VNI.VXLAN()); !there || ok && row.Port != 0 && x == nil {
		return // the device went, and the agent has not looked yet
	}
	pass, open := h.kernel.Row(hoststate.Key{Table: hoststate.TablePort, Port: row.Port})
	if ok && row.Port != 0 && row.Flags&hoststate.Sticky != 0 && open && pass.MAC == c.MAC && pass.Flags&hoststate.Open != 0 {
		return
	}
	if _, relays := h.kernel.Row(hoststate.Key{Table: hoststate.TableRelay, VNI: n.VNI, MAC: c.MAC}); relays {
		return
	}
	if slices.ContainsFunc(h.left, func(d departure) bool { return d.nic.speaksAs(c.MAC) && d.at >= h.linksAt }) {
		return // and its entry with it, likewise
	}
	h.checkStrangerClaim(c, n)
	for _, x := range w.nics { // one that came a moment ago explains it
		if on, _ := w.portOf(x); x.host == h && x.mac == c.MAC && x.since+second < w.now && on != nil && on.UID == c.Network {
			w.fail("%s claims %s, and its kernel has %v and %v", h.name, c.MAC, row, pass)
		}
	}
}

// mayHaveLeft reports whether the agent has reason to think that an endpoint
// bound to this host is here no more: its guest was stopped to go where it is
// expected, or has no device here, or had none a moment ago.
func (h *host) mayHaveLeft(e *overlay.Endpoint) bool {
	w := h.w
	v := w.only(e.Network, e.Port)
	return v == nil || v.runs == nil || v.runs.host != h || !v.runs.settled(10*second) || h.troubled > w.now
}

// checkRelay: only a host that the endpoint has left, or is leaving for where
// it is expected, sends on what reaches it, and only to there.
func (h *host) checkRelay(op hoststate.Op) {
	w, k := h.w, op.Row.Key
	uid, ok := h.owner(k.VNI)
	if !ok {
		return
	}
	e, at, ok := w.store.binding(uid, k.MAC)
	if !ok || at.gone || at.n > h.seen.decided[uid] || h.troubled > w.now {
		return // it is told of something newer soon
	}
	to := []overlay.UID{e.Host}
	switch {
	case e.Host == h.uid && h.mayHaveLeft(e):
		to = e.Pre
	case e.Host == h.uid || e.From != h.uid:
		w.fail("%s: %v: it did not leave this host: %+v", h.name, op, *e)
	}
	w.after(second, func() { h.checkCircle(uid, k) })
	dst, _ := h.kernel.Row(hoststate.Key{Table: hoststate.TableFDB, VNI: k.VNI, MAC: k.MAC})
	if !slices.ContainsFunc(to, func(u overlay.UID) bool { return slices.Contains(w.hostOf(u).vteps, dst.Dst) }) {
		w.fail("%s: %v: relays to %v, and it is bound or expected elsewhere: %+v", h.name, op, dst.Dst, *e)
	}
}

// checkCircle: two hosts that relay for one MAC to each other do so only while
// one of them has not been told what the other knows, or has not got round to
// it: a second after, an agent that is told and idle has ended it.
func (h *host) checkCircle(network overlay.UID, k hoststate.Key) {
	w := h.w
	_, at, ok := w.store.binding(network, k.MAC)
	if !ok || at.at+second > w.now {
		return
	}
	to := h.relaysTo(k)
	for _, o := range w.hosts {
		if !to.IsValid() || o.vtep != to || o.relaysTo(k) != h.vtep {
			continue
		}
		for _, x := range []*host{h, o} {
			if !x.up || x.slow || x.troubled > w.now || x.seen.told[network] < at.n || x.started+second > w.now {
				return
			}
		}
		w.fail("%s and %s relay for %s to each other, and both were told of revision %d", h.name, o.name, k.MAC, at.n)
	}
}

// relaysTo is where a host relays to what reaches it for a MAC.
func (h *host) relaysTo(k hoststate.Key) netip.Addr {
	if _, ok := h.kernel.Row(k); !ok {
		return netip.Addr{}
	}
	k.Table = hoststate.TableFDB
	v, _ := h.kernel.Row(k)
	return v.Dst
}
