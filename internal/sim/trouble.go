package sim

import (
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
)

// makeTrouble lets one of the faults happen that come by themselves.
func (w *world) makeTrouble() {
	h := w.hosts[w.pick(len(w.hosts))]
	down := w.between(10*milli, 4*second)
	switch {
	case w.hit(AgentKilledKept, 0.05):
		h.stopAgent(false, down)
	case w.hit(AgentKilledBare, 0.04):
		h.stopAgent(true, down)
	case h.reached().N > w.old.At.N && h.poor == nil && w.hit(StoreWentBack, 0.1):
		h.storeWentBack(down)
	case w.hit(AgentMoved, 0.01):
		h.stopAgent(w.chance(0.5), down)
		w.vteps++
		h.vtep = vtepOf(w.vteps)
	case !h.off && h.joined && w.hit(PowerLost, 0.03):
		h.losePower(w.between(10*milli, 20*second))
	case w.hit(HostCutOff, 0.03):
		h.cutOff(w.between(100*milli, 20*second))
	case w.hit(ManagerKilled, 0.02):
		w.mgr.stop(true, down)
	case w.hit(RowVandalised, 0.05):
		w.vandaliseRow(h)
	case w.hit(DeviceVandalised, 0.02):
		w.vandaliseDevice(h)
	case h.poor == nil && w.hit(RulesVandalised, 0.02): // or it would be three faults at once
		h.trouble(25 * second)
		w.log("vandal on %s: nftables", h.name)
		h.touch(func(m *kerneltest.Model) {
			if vnis := m.VNIs(); len(vnis) > 0 && w.chance(0.5) {
				m.DropIsolation(vnis[w.pick(len(vnis))])
			} else {
				m.FlushRuleset()
			}
		})
	case w.chance(0.2): // one of them is slow for a while, or not any more
		h.slow = !h.slow && w.enabled[AgentSlow]
	}
}

// vandaliseRow changes, deletes or adds one row.
func (w *world) vandaliseRow(h *host) {
	h.trouble(25 * second)
	h.touch(func(m *kerneltest.Model) {
		rows := m.GlobalRows()
		for _, v := range m.VNIs() {
			rows = append(rows, m.Rows(v)...)
		}
		r, ok := one(w, rows)
		if !ok || h.poor != nil && r.Key.Table == hoststate.TableMark { // or it would be three faults at once
			return
		}
		w.log("vandal on %s: %v", h.name, r)
		switch w.pick(3) {
		case 0:
			m.DeleteRow(r.Key)
		case 1:
			if r.Key.Table == hoststate.TableFDB {
				r.Val.Dst = vtepOf(200)
			}
			r.Val.MAC[5] ^= 0x40
			r.Val.Flags ^= hoststate.Static
			m.SetRow(r)
		default:
			if r.Key.Table != hoststate.TableMember && r.Key.Table != hoststate.TableRepl && r.Key.Table != hoststate.TableVTEP && r.Key.Table != hoststate.TableMark {
				r.Key.MAC[5] ^= 0x80
				if r.Key.Table == hoststate.TableNeigh {
					r.Key.MAC = overlay.MAC{}
					r.Key.IP = r.Key.IP.Next()
				}
				m.SetRow(r)
			}
		}
	})
}

// vandaliseDevice deletes one of our devices or sets it down. The hypervisor
// puts VMs back onto a bridge that was made again.
func (w *world) vandaliseDevice(h *host) {
	h.trouble(25 * second)
	h.touch(func(m *kerneltest.Model) {
		var ours []hoststate.Link
		for _, l := range m.Links() {
			if l.Kind != hoststate.LinkOther {
				ours = append(ours, l)
			}
		}
		l, ok := one(w, ours)
		if !ok {
			return
		}
		if w.chance(0.5) {
			w.log("vandal on %s: %s is deleted", h.name, l.Name)
			m.DeleteLink(l.Name)
		} else {
			w.log("vandal on %s: %s is set down", h.name, l.Name)
			m.SetUp(l.Name, false)
		}
	})
	w.after(w.between(300*milli, 3*second), func() { w.rejoin() })
}

// rejoin puts devices that are on no bridge onto their network's.
func (w *world) rejoin() {
	w.rejoinStrangers()
	for _, x := range w.nics {
		l, ok := x.host.kernel.Link(x.name)
		if !ok || l.Master != 0 {
			continue
		}
		for _, n := range w.store.networks() {
			for _, p := range w.portsOf(n.UID) {
				uid, owned := x.host.owner(n.VNI)
				if owned && uid == n.UID && (x.tenant == n.TenantName && x.port == p.Name || x.tenant == "" && x.mac == p.MAC) {
					w.log("hypervisor of %s joins %s to %s", x.host.name, x.name, n.VNI.Bridge())
					x.since = w.now
					if x.vm.runs == x {
						x.vm.since = w.now
					}
					alias := ""
					if x.tenant != "" {
						alias = hoststate.PortAlias(x.tenant, x.port)
					}
					x.host.touch(func(m *kerneltest.Model) { m.SetAlias(x.name, alias); m.Join(x.name, n.VNI.Bridge()) })
				}
			}
		}
	}
}
