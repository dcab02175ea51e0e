package sim

import (
	"net/netip"
	"slices"

	"culvert/internal/agentcore"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// How a world of undeclared guests begins, and comes to rest; and what is tried
// there, one thing at a time.

// beginGuests is a network with ports that share addresses, and some guests.
func (w *world) beginGuests() {
	d := overlay.Doc{Kind: overlay.KindNetwork, Tenant: "t0", Name: "n0", Network: w.networkSpec()}
	w.ask(w.put(d), "network t0/n0")
	w.run(w.now + second)
	n, ok := one(w, w.store.networks())
	if !ok {
		w.fail("the network was refused")
	}
	for i := range 7 {
		w.ask(w.put(w.portDoc(n, i)), "port %d", i)
	}
	w.run(w.now + second)
	for range 6 {
		w.plug()
		w.plugStranger()
	}
}

// finishGuests does what is needed so that it is known what is where: liars and
// guests of networks that went are gone, the others say what they are, and who
// is the holder of a shared address says so.
func (w *world) finishGuests() {
	if !w.open {
		return
	}
	for _, x := range slices.Clone(w.nics) {
		if x.vm.moving || x.vm.dead {
			continue
		}
		if !x.isStranger() {
			if _, p := w.portOf(x); p == nil { // it is undeclared now, too
				w.destroy(x.vm)
			}
			continue
		}
		n := w.store.network(x.vm.network)
		if n == nil || n.Blocked || x.vm.liar || x.vm.runs == nil || !x.vm.fits(n) {
			w.destroy(x.vm)
		} else if x.vm.runs == x {
			x.vm.introduce()
		}
	}
	all := w.placements()
	for _, n := range w.store.networks() {
		for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 20, 0, 200}), netip.AddrFrom4([4]byte{10, 20, 0, 201})} {
			var can []*vm
			for _, p := range all {
				if p.net.UID == n.UID && slices.Contains(p.port.Shared, a) {
					can = append(can, p.nic.vm)
				}
			}
			at := netAddr{n.UID, a}
			if len(can) > 0 && !slices.Contains(can, w.masters[at]) {
				w.masters[at] = can[w.pick(len(can))]
			}
			if len(can) > 0 {
				w.masters[at].master(n, a)
			}
		}
	}
}

// rejoinStrangers puts undeclared guests back onto their network's bridge.
func (w *world) rejoinStrangers() {
	for _, x := range w.nics {
		l, ok := x.host.kernel.Link(x.name)
		if n := w.store.network(x.vm.network); ok && l.Master == 0 && x.isStranger() && n != nil && w.mayServe(n, x.host) {
			w.log("hypervisor of %s joins %s to %s", x.host.name, x.name, n.VNI.Bridge())
			x.since = w.now
			if x.vm.runs == x {
				x.vm.since = w.now
			}
			x.host.touch(func(m *kerneltest.Model) { m.Join(x.name, n.VNI.Bridge()) })
		}
	}
}

// keepShared is the document of a port that goes on sharing what it shares, or
// shares nothing any more.
func (w *world) keepShared(d *overlay.Doc, p *overlay.Port) {
	d.Port.Shared, d.Port.AddressCheck = p.Shared, p.AddressCheck
	if w.chance(0.2) {
		d.Port.Shared = nil
	}
	if w.chance(0.3) {
		d.Port.AddressCheck = !p.AddressCheck
	}
}

// addressesMove lets each shared address go to another port, and back.
func (w *world) addressesMove() {
	all := w.placements()
	for _, p := range all {
		for _, a := range p.port.Shared {
			i := slices.IndexFunc(all, func(o placed) bool { return o.net.UID == p.net.UID && w.holds(o, a) })
			if i < 0 || all[i].nic == p.nic {
				continue
			}
			w.log("probe: %v goes from %s to %s", a, all[i].port.Name, p.port.Name)
			w.takes(p, a)
			w.run(w.now + second)
			mac := macOf(p.port, a)
			if e, v, ok := w.store.binding(p.net.UID, mac); !ok || v.gone || e.Host != p.nic.host.uid || !slices.Contains(e.Addresses, a) {
				w.fail("a second after %s took %v, %v is %+v", p.port.Name, a, mac, e)
			}
			w.run(w.now + 10*second)
			w.judge("after an address moved")
			return
		}
	}
}

// leaseEnds gives a guest an address for a while.
func (w *world) leaseEnds() {
	for _, x := range w.nics {
		n, ok := w.isAdmitted(x)
		if !ok || n.Admission != overlay.AdmitDHCP {
			continue
		}
		a, mac := netip.AddrFrom4([4]byte{10, 20, 0, 195}), x.mac
		w.log("probe: %v has %v for three seconds", mac, a)
		w.ever.addrs[netAddr{n.UID, a}] = true
		x.vm.hands(x, agentcore.Heard{ToGuest: true, Fact: packet.Fact{Kind: packet.DHCPAck, Src: overlay.ServerMAC, MAC: mac, IP: a, Seconds: 3}})
		for _, had := range []bool{true, false} {
			w.run(w.now + 2*second + second/2)
			if e, v, ok := w.store.binding(n.UID, mac); !ok || v.gone || slices.Contains(e.Addresses, a) != had {
				w.fail("%v was leased %v for three seconds: it is to have it %t, and is %+v", mac, a, had, e)
			}
		}
		w.run(w.now + 5*second)
		w.judge("after a lease")
		return
	}
}

// silentIsFound lets a guest ask for one that never spoke.
func (w *world) silentIsFound() {
	for _, x := range w.nics {
		n, ok := w.isAdmitted(x)
		if !ok || n.Admission != overlay.AdmitLearn {
			continue
		}
		h := w.hostFor(n, x.host)
		if h == nil {
			continue
		}
		v := w.newStranger(n)
		v.chatty = false
		y := w.joinStranger(h, n, v)
		v.start(y, hoststate.NICRunning)
		at := slices.IndexFunc(v.ids[0].addrs, netip.Addr.Is4)
		a := v.ids[0].addrs[at]
		w.log("probe: a guest of %s asks for %v, which is silent on %s", x.host.name, a, h.name)
		w.run(w.now + second)
		for range 2 {
			x.vm.asks(x, a)
			w.run(w.now + 3*second/2)
		}
		if e, b, ok := w.store.binding(n.UID, y.mac); !ok || b.gone || e.Host != h.uid || !slices.Contains(e.Addresses, a) {
			w.fail("%v was asked for and not found: %+v", a, e)
		}
		v.introduce()
		w.run(w.now + 10*second)
		w.judge("after a search")
		return
	}
}
