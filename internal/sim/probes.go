package sim

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/managercore"
)

// Probes are made at rest, one thing at a time, where chance would rarely make
// them or something else would cover what went wrong.

// lostEvents lets somebody delete a row while the kernel loses the event and
// says so: it is repaired at once, not only when the slow verify comes round.
func (w *world) lostEvents() {
	for _, p := range w.placements() {
		h, vni := p.nic.host, p.net.VNI
		rows := slices.DeleteFunc(h.kernel.Rows(vni), func(r hoststate.Row) bool { return r.Key.Table == hoststate.TableMaster && r.Val.Flags == 0 })
		if len(rows) == 0 || h.readAt[vni]+verify < w.now+3*second {
			continue
		}
		r := rows[w.pick(len(rows))]
		w.log("probe: %s loses %v, and the event", h.name, r)
		h.touch(func(m *kerneltest.Model) { m.DeleteRow(r.Key); m.Overflow() })
		w.run(w.now + 2*second)
		if v, ok := h.kernel.Row(r.Key); !ok || v != r.Val {
			w.fail("%s lost events and did not look: %v is not repaired after two seconds", h.name, r)
		}
		w.run(w.now + 10*second)
		w.judge("after lost events")
		return
	}
}

// oldInventory lets the end of a former session's inventory arrive when the
// host has a new session that has claimed nothing yet.
func (w *world) oldInventory() {
	for _, p := range w.placements() {
		h := p.nic.host
		if h.stream == nil {
			continue
		}
		old := h.session
		w.log("probe: the inventory of session %d of %s ends late", old, h.name)
		h.stream.cut()
		for range 5000 {
			if w.run(w.now + milli/4); h.session != old {
				break
			}
		}
		w.mgr.step(managercore.InventoryEnded{Host: h.uid, Session: old})
		w.run(w.now + 10*second)
		w.judge("after a late inventory")
		return
	}
}

// cleanMigration moves one guest while nothing else happens, as fast as a
// hypervisor may, and leaves the other device standing: then evidence alone
// says where the guest is. What every kernel must hold then, while the relay
// lasts and after it, there can be no two opinions of.
func (w *world) cleanMigration() {
	for _, p := range w.placements() {
		v := p.nic.vm
		to := w.hostFor(p.net, p.nic.host)
		if to == nil || v.moving || p.nic.tenant == "" || p.nic.state != hoststate.NICRunning || len(w.devicesOf(p.net, p.port)) > 1 {
			continue
		}
		v.moving = true
		from, x, began := p.nic.host, p.nic, w.now
		y := w.plugAt(to, p.net, p.port, true, v)
		if y.tenant == "" { // what speaks behind another device only cannot be known here
			y.tenant = p.net.TenantName
			to.touch(func(m *kerneltest.Model) { m.SetAlias(y.name, hoststate.PortAlias(y.tenant, y.port)) })
		}
		w.log("probe: %s moves from %s to %s, managed %t", p.port.Name, from.name, to.name, v.managed)
		y.says(hoststate.NICIncoming)
		w.run(w.now + w.between(0, 100*milli))
		v.halt()
		x.says(hoststate.NICLeaving)
		w.run(w.now + w.between(0, 30*milli))
		if w.chance(0.3) { // it has failed
			v.start(x, hoststate.NICRunning)
			x, y = y, x
		} else {
			v.start(y, hoststate.NICRunning)
		}
		if !v.managed || w.chance(0.5) {
			v.announce()
		}
		w.run(w.now + second)
		w.checkMoved(p, x, y, began)
		x.says(hoststate.NICGone)
		w.run(w.now + 12*second) // the relay ends
		v.moving = false
		w.run(w.now + 10*second)
		w.judge("after a migration whose other device stays")
		w.remove(x)
		w.run(w.now + 10*second)
		w.judge("after a migration")
		return
	}
}

// checkMoved looks at a guest that runs behind y since a second, and has a
// device x where it does not. A relay lasts only if it moved since then.
func (w *world) checkMoved(p placed, x, y *nic, began int64) {
	e, v, ok := w.store.binding(p.net.UID, p.port.MAC)
	if !ok || v.gone || e.Host != y.host.uid {
		w.fail("a second after %s ran on %s its binding is %+v", p.port.Name, y.host.name, e)
	}
	relays := e.From == x.host.uid && v.moved >= began
	back := slices.Contains(e.Pre, x.host.uid) // who expects it back does not relay
	for _, h := range w.hosts {
		if _, serves := h.kernel.Link(p.net.VNI.VXLAN()); !serves || w.unknown(h, p) && h != y.host && h != x.host {
			continue
		}
		at := func(t hoststate.Table, ip netip.Addr) bool {
			_, ok := h.kernel.Row(hoststate.Key{Table: t, VNI: p.net.VNI, MAC: p.port.MAC, IP: ip})
			return ok
		}
		fdb, remote := h.kernel.Row(hoststate.Key{Table: hoststate.TableFDB, VNI: p.net.VNI, MAC: p.port.MAC})
		switch {
		case h == y.host && remote, h != y.host && fdb.Dst != y.host.vtep:
			w.fail("a second after %s ran on %s, %s sends to %v", p.port.Name, y.host.name, h.name, fdb.Dst)
		case at(hoststate.TableRelay, netip.Addr{}) != (h == x.host && relays) && !back:
			w.fail("a second after %s ran on %s, %s relays %t: %+v", p.port.Name, y.host.name, h.name, at(hoststate.TableRelay, netip.Addr{}), *e)
		case relays && h != x.host && !at(hoststate.TableSource, x.host.vtep):
			w.fail("a second after %s ran on %s, %s takes nothing more from %s", p.port.Name, y.host.name, h.name, x.host.name)
		case relays && h == y.host && !at(hoststate.TableRelayed, x.host.vtep):
			w.fail("a second after %s ran on %s, it takes nothing that %s relays", p.port.Name, y.host.name, x.host.name)
		}
	}
}
