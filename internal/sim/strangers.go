package sim

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/agentcore"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// A world of guests that nobody declared, of addresses that ports share, and of
// tunnel end points without an agent (Options.Guests): what guests do in it.

// guestOperations are added to the others in such a world.
var guestOperations = []op{
	{24, (*world).plugStranger}, {14, (*world).moveStranger}, {3, (*world).plugLiar}, {14, (*world).takeOver}, {6, (*world).askAfter},
}

// identity is a MAC that an undeclared guest speaks with, and what it has.
type identity struct {
	mac   overlay.MAC
	addrs []netip.Addr // sorted
}

// isStranger reports whether a device is one of an undeclared guest.
func (x *nic) isStranger() bool { return len(x.vm.ids) > 0 }

// speaksAs reports whether a device's guest has a MAC.
func (x *nic) speaksAs(mac overlay.MAC) bool {
	return x.mac == mac || slices.ContainsFunc(x.vm.ids, func(id identity) bool { return id.mac == mac })
}

// openSpec lets a network admit what was not declared, and name tunnel end
// points: some that a host may be given later.
func (w *world) openSpec(s *overlay.NetworkSpec) {
	s.Admission = []overlay.Admission{overlay.AdmitDeclared, overlay.AdmitLearn, overlay.AdmitLearn, overlay.AdmitDHCP}[w.pick(4)]
	for range w.pick(3) {
		a := netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + w.pick(3))})
		if w.chance(0.3) {
			a = vtepOf(w.vteps + 1 + w.pick(2))
		}
		s.Foreign = append(s.Foreign, a)
	}
	s.Foreign = overlay.SortAddrs(s.Foreign)
}

// openPort lets the i'th port of a network share addresses with others, and be
// checked.
func (w *world) openPort(d *overlay.Doc, i int) {
	d.Port.AddressCheck = w.chance(0.3)
	for a := range byte(2) {
		if i%3 == 0 || i%3 == 1 && a == 1 {
			d.Port.Shared = append(d.Port.Shared, netip.AddrFrom4([4]byte{10, 20, 0, 200 + a}))
		}
	}
}

// macOf is what a port announces a shared address with: the odd ones with the
// MAC of a virtual router.
func macOf(p *overlay.Port, a netip.Addr) overlay.MAC {
	if last := a.As4()[3]; last%2 == 1 {
		return overlay.MAC{0, 0, 0x5e, 0, 1, last}
	}
	return p.MAC
}

// newStranger is a guest of one to three MACs, each with one or two addresses
// that nobody else has.
func (w *world) newStranger(n *overlay.Network) *vm {
	v := &vm{w: w, network: n.UID, managed: w.chance(0.3), chatty: w.chance(0.6)}
	for range 1 + w.pick(3) {
		w.strangers++
		k := w.freeNumber(v)
		id := identity{mac: overlay.MAC{0x52, 0x54, 1, byte(w.strangers >> 16), byte(w.strangers >> 8), byte(w.strangers)}}
		id.addrs = append(id.addrs, netip.AddrFrom4([4]byte{10, 20, 0, 100 + k}))
		if len(n.Subnets) > 1 && n.Admission == overlay.AdmitLearn && w.chance(0.7) {
			id.addrs = append(id.addrs, netip.AddrFrom16([16]byte{0: 0xfd, 2: 0, 3: 0x20, 14: 1, 15: k}))
		}
		id.addrs = overlay.SortAddrs(id.addrs)
		v.ids = append(v.ids, id)
	}
	return v
}

// freeNumber is the next of 90 numbers, in turn, that no other guest's addresses
// have.
func (w *world) freeNumber(v *vm) byte {
	for range 90 {
		w.number = (w.number + 1) % 90
		a := netip.AddrFrom4([4]byte{10, 20, 0, 100 + w.number})
		has := func(id identity) bool { return slices.Contains(id.addrs, a) }
		if !slices.ContainsFunc(v.ids, has) && !slices.ContainsFunc(w.nics, func(x *nic) bool { return slices.ContainsFunc(x.vm.ids, has) }) {
			break
		}
	}
	return w.number
}

// plugStranger starts an undeclared guest somewhere.
func (w *world) plugStranger() {
	n, ok := one(w, w.store.networks())
	if !ok || n.Blocked {
		return
	}
	if h := w.hostFor(n, nil); h != nil {
		w.bootStranger(h, n, w.newStranger(n))
	}
}

func (w *world) bootStranger(h *host, n *overlay.Network, v *vm) *nic {
	x := w.joinStranger(h, n, v)
	v.start(x, hoststate.NICRunning)
	if v.chatty || w.chance(0.8) {
		v.introduce()
	}
	v.prattle()
	return x
}

// joinStranger plugs an undeclared guest's device in.
func (w *world) joinStranger(h *host, n *overlay.Network, v *vm) *nic {
	w.names++
	x := &nic{host: h, name: fmt.Sprintf("v%d", w.names), mac: v.ids[0].mac, since: w.now, vm: v}
	if h.off {
		return x
	}
	w.nics = append(w.nics, x)
	w.log("hypervisor of %s plugs %s of nobody, %d MACs from %v on", h.name, x.name, len(v.ids), x.mac)
	h.touch(func(m *kerneltest.Model) { m.Plug(x.name, n.VNI, "") })
	return x
}

// plugLiar starts a guest that says to have what it may not have: the gateway's
// address, one of another guest, one of no subnet, or none that it was leased.
func (w *world) plugLiar() {
	n, ok := one(w, w.store.networks())
	if !ok || n.Blocked {
		return
	}
	h := w.hostFor(n, nil)
	if h == nil {
		return
	}
	v := w.newStranger(n)
	v.liar, v.chatty = true, true
	for i := range v.ids {
		a := []netip.Addr{n.Subnets[0].Gateway, netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.20.0.200"), {}}[w.pick(4)]
		if !a.IsValid() {
			a = netip.AddrFrom4([4]byte{10, 20, 0, byte(10 + w.pick(20))})
		}
		if x, ok := one(w, w.nics); ok && x.isStranger() && w.chance(0.4) {
			a = x.vm.ids[0].addrs[0]
		}
		v.ids[i].addrs = []netip.Addr{a}
	}
	w.bootStranger(h, n, v)
}

// introduce says all that a guest is, as one that boots, moves or renews does.
func (v *vm) introduce() {
	for _, d := range []int64{0, 60, 250} {
		v.w.after(d*milli+v.w.between(0, 10*milli), v.tellAll)
	}
}

func (v *vm) prattle() {
	if v.dead {
		return
	}
	if v.chatty {
		v.tellAll()
	}
	v.w.after(v.w.between(500*milli, 6*second), v.prattle)
}

// tellAll announces each address of a guest. Where leases alone count it asks
// for them, too, and the server's answer comes to it: a liar's does not.
func (v *vm) tellAll() {
	n := v.w.store.network(v.network)
	if n == nil {
		return
	}
	for _, id := range v.ids {
		for _, a := range id.addrs {
			v.says(id.mac, a)
			if n.Admission == overlay.AdmitDHCP && !v.liar {
				v.w.ever.addrs[netAddr{v.network, a}] = true
				mac, x := id.mac, v.runs
				v.w.after(5*milli, func() {
					if v.runs == x && x != nil {
						v.hands(x, agentcore.Heard{ToGuest: true, Fact: packet.Fact{Kind: packet.DHCPAck, Src: overlay.ServerMAC, MAC: mac, IP: a, Seconds: 1 << 20}})
					}
				})
			}
		}
	}
}

// says announces one address.
func (v *vm) says(mac overlay.MAC, a netip.Addr) {
	x, n := v.runs, v.w.store.network(v.network)
	if x == nil || v.dead || n == nil {
		return
	}
	v.w.ever.macs[netMAC{v.network, mac}] = true
	v.w.ever.said[netAddr{v.network, a}] = true
	v.hands(x, agentcore.Heard{Fact: announcement(mac, a)})
}

// within reports whether a guest of a network may have an address at all.
func within(n *overlay.Network, a netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Contains(a) && s.Gateway != a })
}

// fits reports whether the network still has subnets for all that a guest has.
func (v *vm) fits(n *overlay.Network) bool {
	return !slices.ContainsFunc(v.ids, func(id identity) bool {
		return slices.ContainsFunc(id.addrs, func(a netip.Addr) bool { return !within(n, a) })
	})
}

// announcement is a gratuitous ARP or an unsolicited advertisement.
func announcement(mac overlay.MAC, a netip.Addr) packet.Fact {
	f := packet.Fact{Kind: packet.ARPAnnouncement, Src: mac, MAC: mac, IP: a}
	if a.Is6() {
		f.Kind, f.Flags = packet.NeighborAdvert, packet.FlagLinkAddr
	}
	return f
}

// hands brings what is said on a device to the program on it, and so to the agent.
func (v *vm) hands(x *nic, e agentcore.Heard) {
	l, ok := x.host.kernel.Link(x.name)
	if _, bridged := x.host.kernel.LinkAt(l.Master); !ok || !bridged || l.State != hoststate.StateForwarding || !l.Guarded {
		return
	}
	x.ran = v.w.now
	e.Port, e.At = l.Index, agentcore.Time(v.w.now)
	x.host.shown(x, e)
}

// moveStranger moves an undeclared guest, live or cold, or tries to.
func (w *world) moveStranger() {
	x, ok := one(w, w.nics)
	if !ok || !x.isStranger() || x.vm.runs != x || x.vm.moving {
		return
	}
	v, n := x.vm, w.store.network(x.vm.network)
	if n == nil {
		return
	}
	to := w.hostFor(n, x.host)
	if to == nil {
		return
	}
	v.moving = true
	if w.chance(0.3) {
		v.halt()
		w.remove(x)
		w.after(w.between(milli, 2*second), func() {
			if v.moving = false; !v.dead && !to.off {
				v.start(w.joinStranger(to, n, v), hoststate.NICRunning)
				v.introduce()
			}
		})
		return
	}
	y := w.joinStranger(to, n, v)
	y.says(hoststate.NICIncoming)
	w.after(w.between(milli, 2*second), func() {
		v.halt()
		x.says(hoststate.NICLeaving)
		w.after(w.between(milli, 300*milli), func() {
			v.moving = false
			if v.dead {
				return
			}
			if !slices.Contains(w.nics, y) || w.chance(0.15) && slices.Contains(w.nics, x) {
				x, y = y, x // it has failed
			}
			if slices.Contains(w.nics, y) {
				v.start(y, hoststate.NICRunning)
				v.introduce()
			}
			w.after(w.between(0, 3*second), func() {
				if v.runs != x {
					w.remove(x)
				}
			})
		})
	})
}

// askAfter lets a guest ask for an address that somebody has, or nobody.
func (w *world) askAfter() {
	x, ok := one(w, w.nics)
	y, _ := one(w, w.nics)
	if !ok || x.vm.runs != x || !x.isStranger() || x.vm.liar {
		return
	}
	target := netip.AddrFrom4([4]byte{10, 20, 0, byte(100 + w.pick(100))})
	if y.isStranger() {
		target = y.vm.ids[0].addrs[0]
	}
	x.vm.asks(x, target)
}

// asks is an undeclared guest's question for an address.
func (v *vm) asks(x *nic, target netip.Addr) {
	id := v.ids[0]
	if i := slices.IndexFunc(id.addrs, netip.Addr.Is4); i >= 0 && target.Is4() {
		v.says(id.mac, id.addrs[i])
		v.hands(x, agentcore.Heard{Fact: packet.Fact{Kind: packet.ARPRequest, Src: id.mac, MAC: id.mac, IP: id.addrs[i], Target: target}})
	}
}

// takeOver makes a port the holder of an address that it shares.
func (w *world) takeOver() {
	can := slices.DeleteFunc(w.placements(), func(p placed) bool { return len(p.port.Shared) == 0 })
	if p, ok := one(w, can); ok {
		a, _ := one(w, p.port.Shared)
		w.takes(p, a)
	}
}

func (w *world) takes(p placed, a netip.Addr) {
	w.log("port %s takes %v", p.port.Name, a)
	w.masters[netAddr{p.net.UID, a}] = p.nic.vm
	p.nic.vm.master(p.net, a)
}

// master announces a shared address for as long as the guest is its holder.
func (v *vm) master(n *overlay.Network, a netip.Addr) {
	for _, d := range []int64{0, 50, 200, 900} {
		v.w.after(d*milli, func() {
			x := v.runs
			if x == nil || v.dead || v.w.masters[netAddr{n.UID, a}] != v {
				return
			}
			if on, p := v.w.portOf(x); p != nil && on.UID == n.UID {
				mac := macOf(p, a)
				v.w.ever.macs[netMAC{n.UID, mac}], v.w.ever.addrs[netAddr{n.UID, a}] = true, true
				v.hands(x, agentcore.Heard{Fact: announcement(mac, a)})
			}
		})
	}
}

// masterAll announces what a guest holds, as one that was moved does.
func (v *vm) masterAll() {
	if v.runs == nil {
		return
	}
	n, p := v.w.portOf(v.runs)
	if p == nil {
		return
	}
	for _, a := range p.Shared {
		if v.w.masters[netAddr{n.UID, a}] == v {
			v.master(n, a)
		}
	}
}

// asked lets the guest behind a device answer a question of its host.
func (h *host) asked(index int32, frame string) {
	x := h.w.nicAt(h, index)
	f, drop := packet.Parse(packet.ToGuest, []byte(frame), len(frame))
	if x == nil || x.vm.runs != x || x.state == hoststate.NICPaused || drop != packet.Taken || !f.Target.IsValid() {
		return
	}
	answer := func(mac overlay.MAC) {
		e := agentcore.Heard{Fact: packet.Fact{Kind: packet.ARPReply, Src: mac, Dst: f.Src, MAC: mac, IP: f.Target, Target: f.IP}}
		if f.Target.Is6() {
			e.Fact.Kind, e.Fact.Flags = packet.NeighborAdvert, packet.FlagLinkAddr|packet.FlagSolicited|packet.FlagOverride
		}
		h.w.after(h.w.between(100*micro, 5*milli), func() {
			if x.vm.runs == x {
				x.vm.hands(x, e)
			}
		})
	}
	for _, id := range x.vm.ids {
		if slices.Contains(id.addrs, f.Target) {
			if n := h.w.store.network(x.vm.network); n != nil {
				h.w.ever.macs[netMAC{n.UID, id.mac}], h.w.ever.said[netAddr{n.UID, f.Target}] = true, true
			}
			answer(id.mac)
		}
	}
	if n, p := h.w.portOf(x); p != nil && h.w.masters[netAddr{n.UID, f.Target}] == x.vm {
		answer(macOf(p, f.Target))
	}
}
