package sim

import (
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
)

// Migrations, as hypervisors make them: the destination's device first, then
// the source stops, the guest runs at the destination, and the source's device
// goes; or any of the ways in which that ends otherwise.

// migration is one that is under way.
type migration struct {
	w       *world
	vm      *vm
	x, y    *nic // source's and destination's device
	n       *overlay.Network
	p       *overlay.Port
	andBack bool
}

// migrate moves a VM to another host.
func (w *world) migrate() {
	x, ok := one(w, w.nics)
	if !ok || x.vm.runs != x || x.vm.moving {
		return
	}
	n, p := w.portOf(x)
	if p == nil {
		return
	}
	if to := w.hostFor(n, x.host); to != nil {
		w.migrateTo(x, n, p, to, w.chance(0.3))
	}
}

func (w *world) migrateTo(x *nic, n *overlay.Network, p *overlay.Port, to *host, andBack bool) {
	v := x.vm
	for _, y := range v.devices() { // the hypervisor makes it anew
		if y.host == to {
			w.remove(y)
		}
	}
	v.moving = true
	m := &migration{w: w, vm: v, x: x, n: n, p: p, andBack: andBack}
	if w.chance(0.15) {
		m.cold(to)
		return
	}
	w.hits[MovedEarly]++
	up := w.chance(0.7)
	m.y = w.plugAt(to, n, p, up, v)
	m.y.says(hoststate.NICIncoming)
	m.trouble()
	if !up {
		w.after(w.between(0, 300*milli), func() { to.touch(func(k *kerneltest.Model) { k.SetUp(m.y.name, true) }) })
	}
	if w.chance(0.3) { // a small guest, or storage that is shared: nothing to copy
		w.after(w.between(100*micro, 10*milli), m.stop)
	} else {
		w.after(w.between(milli, 2*second), m.stop)
	}
}

// cold stops the VM, and starts it elsewhere.
func (m *migration) cold(to *host) {
	w := m.w
	w.hits[MovedLate]++
	m.vm.halt()
	w.remove(m.x)
	m.trouble()
	w.after(w.between(milli, 2*second), func() {
		m.vm.moving = false
		if !m.vm.dead && w.declared(m.p) {
			y := w.plugAt(to, m.n, m.p, true, m.vm)
			m.vm.start(y, hoststate.NICRunning)
			m.vm.announce()
		} else {
			m.vm.dead = true
		}
	})
}

// alive reports whether both ends are there; a VM that was destroyed, or lost
// one of its devices to something else, does not move.
func (m *migration) alive() bool {
	return !m.vm.dead && slices.Contains(m.w.nics, m.x) && slices.Contains(m.w.nics, m.y)
}

// trouble lets an agent or the manager die at this very step.
func (m *migration) trouble() {
	w := m.w
	if w.hit(SourceKilled, 0.08) {
		m.x.host.stopAgent(w.chance(0.3), w.between(milli, 3*second))
	}
	if m.y != nil && w.hit(DestinationKilled, 0.08) {
		m.y.host.stopAgent(w.chance(0.3), w.between(milli, 3*second))
	}
	if w.hit(MigratedUnmanaged, 0.05) {
		w.mgr.stop(true, w.between(milli, 4*second))
	}
}

// stop is the source's end, or the migration's.
func (m *migration) stop() {
	w := m.w
	switch {
	case m.vm.dead:
		return
	case !m.alive():
		m.vm.moving = false
		return
	case w.chance(0.15):
		w.hits[AbortedEarly]++
		w.log("migration of %s is given up before it stopped", m.p.Name)
		m.over()
		m.leave(m.y)
		return
	}
	w.log("migration of %s: stopped at %s", m.p.Name, m.x.host.name)
	m.vm.halt()
	m.x.says(hoststate.NICLeaving)
	m.trouble()
	if w.chance(0.06) {
		w.hits[DestinationFailed]++
		w.remove(m.y)
	}
	w.after(w.between(100*micro, 300*milli), m.run)
}

// run lets the guest go on, at the destination if all is well.
func (m *migration) run() {
	w, v := m.w, m.vm
	switch {
	case v.dead:
		return
	case !slices.Contains(w.nics, m.x):
		if m.alive(); slices.Contains(w.nics, m.y) {
			v.start(m.y, hoststate.NICRunning)
		} else {
			v.dead = true
		}
		v.moving = false
		return
	case !m.alive() || w.chance(0.12):
		w.hits[AbortedLate]++
		w.log("migration of %s has failed: it runs on at %s", m.p.Name, m.x.host.name)
		v.start(m.x, hoststate.NICRunning)
		if v.chatty {
			v.frame(true)
		}
		m.over()
		m.leave(m.y)
		return
	case w.chance(0.08):
		w.hits[Suspended]++
		w.log("migration of %s: stands still at %s", m.p.Name, m.y.host.name)
		v.start(m.y, hoststate.NICPaused)
		w.remove(m.x)
		w.after(w.between(milli, 20*second), func() {
			if v.runs == m.y && m.y.state == hoststate.NICPaused {
				m.y.says(hoststate.NICRunning)
			}
		})
		m.over()
		return
	}
	w.log("migration of %s: runs at %s", m.p.Name, m.y.host.name)
	v.start(m.y, hoststate.NICRunning)
	if v.managed || w.chance(0.5) {
		v.announce()
	} else if v.chatty {
		v.frame(true)
	}
	m.trouble()
	m.over()
	m.leave(m.x)
}

// over ends a migration; the next may begin.
func (m *migration) over() { m.vm.moving = false }

// leave takes away the device behind which the guest does not run, soon or
// much later, and with it what the hypervisor said of it.
func (m *migration) leave(x *nic) {
	w, v := m.w, m.vm
	if !slices.Contains(w.nics, x) {
		return
	}
	d := w.between(0, 2*second)
	if w.chance(0.2) {
		d = 0
	} else if (v.managed || v.chatty) && x.tenant != "" && w.chance(0.2) {
		w.hits[DeviceLeft]++
		if d = w.between(second, 40*second); w.chance(0.5) {
			d = -1 // until somebody cleans up
		}
		w.after(w.between(0, 100*milli), func() {
			if v.runs != x && slices.Contains(w.nics, x) {
				x.says(hoststate.NICGone)
			}
		})
	}
	gone := func() {
		if v.runs != x {
			w.remove(x)
		}
	}
	switch {
	case d == 0:
		gone()
	case d > 0:
		w.after(d, gone)
	}
	if !m.andBack || v.runs != m.y {
		return
	}
	w.after(w.between(0, second), func() {
		if v.runs != m.y || v.moving || v.dead {
			return
		}
		if n, p := w.portOf(m.y); p != nil && p.UID == m.p.UID && w.mayServe(n, m.x.host) {
			w.hits[MovedBack]++
			w.migrateTo(m.y, n, p, m.x.host, false)
		}
	})
}

// migrations is a world in which little else happens: what a port's states
// make of the same events in every order.
func (w *world) migrations() {
	w.ask(w.put(overlay.Doc{Kind: overlay.KindNetwork, Tenant: "t0", Name: "n0", Network: w.networkSpec()}), "network t0/n0")
	w.run(w.now + second)
	n, ok := one(w, w.store.networks())
	if !ok {
		w.fail("the network was refused")
	}
	for i := range 1 + w.pick(3) {
		w.ask(w.put(w.portDoc(n, i)), "port %d", i)
	}
	w.run(w.now + second)
	for _, p := range w.portsOf(n.UID) {
		if h := w.hostFor(n, nil); h != nil {
			w.boot(h, n, p)
		}
	}
	w.run(w.now + second)
	w.calm = false
	w.chooseFaults()
	for range 20 + w.pick(40) {
		switch w.pick(10) {
		case 0:
			w.flap()
		case 1:
			w.restartHypervisor()
		case 2:
			w.plug()
		default:
			w.migrate()
		}
		if w.chance(0.2) {
			w.makeTrouble()
		}
		w.run(w.now + w.between(milli/10, second))
		if w.chance(0.04) { // some guests have been where they are for long
			w.run(w.now + 12*second)
		}
	}
	w.log("rest begins")
	w.calm = true
	for _, h := range w.hosts {
		h.slow = false
	}
	w.run(w.now + 8*second)
	w.finish()
	w.run(w.now + settling)
	w.judge("at rest")
	w.cleanMigration()
	w.thereAndBack()
}
