package sim

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
)

// thereAndBack moves one guest to a host that all know to expect it, and back,
// while no manager is there to say so. It is reached wherever it runs, whatever
// device stands where, from every host that serves its network.
func (w *world) thereAndBack() {
	for _, p := range w.placements() {
		v, x := p.nic.vm, p.nic
		from, to := x.host, w.hostFor(p.net, x.host)
		if to == nil || v.moving || !v.managed || x.state != hoststate.NICRunning || len(w.devicesOf(p.net, p.port)) > 1 {
			continue
		}
		w.hits[BackUnmanaged]++
		v.moving = true
		w.log("probe: %s moves from %s to %s and back without a manager", p.port.Name, from.name, to.name)
		y := w.awaited(to, p)
		w.run(w.now + 2*second)
		w.mgr.stop(true, 1000*second)
		w.handOver(x, y)
		w.checkReached(p, y, "it went there")
		w.run(w.now + w.between(0, 15*second)) // longer than a relay, or a network without a port
		w.checkReached(p, y, "it has been there")
		x = w.awaited(from, p)
		w.run(w.now + w.between(200*milli, 3*second))
		w.checkReached(p, y, "it is awaited back")
		w.handOver(y, x)
		w.checkReached(p, x, "it came back")
		w.run(w.now + w.between(0, 15*second))
		w.checkReached(p, x, "it has been back")
		w.mgr.start()
		v.moving = false
		w.run(w.now + 20*second)
		w.judge("after a migration there and back")
		return
	}
}

// awaited plugs in a device behind which a hypervisor expects a guest.
func (w *world) awaited(h *host, p placed) *nic {
	y := w.plugAt(h, p.net, p.port, true, p.nic.vm)
	if y.tenant == "" { // what speaks behind another device only cannot be known here
		y.tenant = p.net.TenantName
		h.touch(func(m *kerneltest.Model) { m.SetAlias(y.name, hoststate.PortAlias(y.tenant, y.port)) })
	}
	y.says(hoststate.NICIncoming)
	return y
}

// handOver lets a guest go on behind another device, and takes its old one away.
func (w *world) handOver(x, y *nic) {
	v := x.vm
	v.halt()
	x.says(hoststate.NICLeaving)
	w.run(w.now + w.between(0, 30*milli))
	v.start(y, hoststate.NICRunning)
	w.run(w.now + w.between(0, 30*milli))
	w.remove(x)
	w.run(w.now + 200*milli)
}

// checkReached: a frame for a guest comes to it from every host with devices of
// its network, and what it answers is taken there.
func (w *world) checkReached(p placed, x *nic, when string) {
	for _, h := range w.hosts {
		if _, serves := h.kernel.Link(p.net.VNI.VXLAN()); !serves || w.unknown(h, p) {
			continue
		}
		if why := w.astray(h, p, x); why != "" {
			w.fail("%s: %s, which runs on %s, is not reached from %s: %s", when, p.port.Name, x.host.name, h.name, why)
		}
	}
}

// astray follows a frame for an endpoint from a host through the tables, and says
// why it does not come to a device, or the answer not back; empty if both do.
func (w *world) astray(from *host, p placed, x *nic) string {
	row := func(h *host, t hoststate.Table, ip netip.Addr) (hoststate.Val, bool) {
		return h.kernel.Row(hoststate.Key{Table: t, VNI: p.net.VNI, MAC: p.port.MAC, IP: ip})
	}
	at := from
	for hops := range 4 {
		_, relays := row(at, hoststate.TableRelay, netip.Addr{})
		way, known := row(at, hoststate.TableMaster, netip.Addr{})
		switch relays = relays && hops > 0; {
		case !relays && !known:
			return at.name + " does not know it"
		case !relays && way.Port != 0:
			return w.arrives(from, at, way.Port, p, x)
		case !relays && hops > 0:
			return at.name + " sends nothing back into the overlay"
		}
		fdb, ok := row(at, hoststate.TableFDB, netip.Addr{})
		next := w.hostAt(fdb.Dst)
		if !ok || next == nil {
			return at.name + " knows no host for it"
		}
		if _, taken := row(next, hoststate.TableRelayed, at.vtep); relays && !taken {
			return next.name + " does not take what " + at.name + " relays"
		}
		if _, serves := next.kernel.Link(p.net.VNI.VXLAN()); !serves {
			return next.name + " does not serve its network"
		}
		at = next
	}
	return "it goes in a circle"
}

// arrives is the end of the way: the device is the guest's and open, and the
// host that asked takes its frames from here.
func (w *world) arrives(from, at *host, port int32, p placed, x *nic) string {
	pass, _ := at.kernel.Row(hoststate.Key{Table: hoststate.TablePort, Port: port})
	_, taken := from.kernel.Row(hoststate.Key{Table: hoststate.TableSource, VNI: p.net.VNI, MAC: p.port.MAC, IP: at.vtep})
	switch {
	case w.nicAt(at, port) != x:
		return at.name + " gives it to another device"
	case pass.MAC != p.port.MAC || pass.Flags&hoststate.Open == 0:
		return "its device is shut"
	case from != at && !taken:
		return from.name + " takes nothing of it from " + at.name
	}
	return ""
}

// hostAt is the host with that VTEP; nil if none has it.
func (w *world) hostAt(vtep netip.Addr) *host {
	for _, h := range w.hosts {
		if h.vtep == vtep {
			return h
		}
	}
	return nil
}
