package sim

import (
	"slices"

	"culvert/internal/agentcore"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// vm is a guest with one NIC. It runs behind one of its devices, or behind
// none while a migration has stopped it.
type vm struct {
	w       *world
	runs    *nic
	since   int64 // ... from then on
	moving  bool  // a migration is under way
	managed bool  // a hypervisor tells of it
	chatty  bool  // it speaks by itself, not only when it is moved
	dead    bool

	// Of a guest that nobody declared: what it speaks with in which network, and
	// whether it says what is not true. Of others ids is empty.
	network overlay.UID
	ids     []identity
	liar    bool
}

func (w *world) newVM() *vm {
	return &vm{w: w, managed: w.chance(0.6), chatty: w.chance(0.6)}
}

// devices of a VM, in the order in which they were plugged in.
func (v *vm) devices() (out []*nic) {
	for _, x := range v.w.nics {
		if x.vm == v {
			out = append(out, x)
		}
	}
	return out
}

// hadDevice reports whether an endpoint has a device there that may be its
// port, or had one within the last age.
func (h *host) hadDevice(e *overlay.Endpoint, age int64) bool {
	p := &overlay.Port{}
	if v, ok := h.w.store.values[overlay.Key{Kind: overlay.KindPort, UID: e.Port}]; ok {
		p = v.rec.(*overlay.Port)
	}
	is := func(x *nic) bool {
		nobodys := e.MAC.IsVirtual() && e.Port.IsZero() // a virtual router's, behind a device that is no port
		ofPort := p.Name != "" && (x.port == p.Name || x.mac == p.MAC)
		return x.host == h && (x.speaksAs(e.MAC) || ofPort || nobodys)
	}
	return slices.ContainsFunc(h.w.nics, is) ||
		slices.ContainsFunc(h.left, func(d departure) bool { return is(d.nic) && d.at+age >= h.w.now })
}

// start lets the guest run behind a device, or stand still there.
func (v *vm) start(x *nic, s hoststate.NICState) {
	v.halt()
	v.runs, v.since = x, v.w.now
	x.ran = v.w.now
	x.says(s)
	v.w.after(v.w.between(0, second), v.masterAll) // as it does every second (RFC 9568)
}

// halt stops it where it runs.
func (v *vm) halt() {
	if v.runs != nil {
		v.runs.ran = v.w.now
	}
	v.runs = nil
}

// announce is what a hypervisor sends on behalf of a guest that was moved, and
// a guest that boots or resumes by itself (docs of QEMU, announce parameters:
// five rounds within 800 ms).
func (v *vm) announce() {
	for _, d := range []int64{0, 50, 200, 450, 800} {
		v.w.after(d*milli+v.w.between(0, 10*milli), func() { v.frame(true) })
	}
}

// talk lets a chatty guest speak for ever.
func (v *vm) talk() {
	if v.dead {
		return
	}
	if v.chatty {
		v.frame(v.w.chance(0.5))
	}
	v.w.after(v.w.between(300*milli, 4*second), v.talk)
}

// frame sends one frame of the guest. The port program hands up what names an
// address, and what it has no row for or watches; the bridge learns of what
// passes, if it may.
func (v *vm) frame(named bool) {
	x := v.runs
	if x == nil || v.dead || x.state == hoststate.NICPaused {
		return
	}
	x.ran = v.w.now
	h := x.host
	l, ok := h.kernel.Link(x.name)
	b, bridged := h.kernel.LinkAt(l.Master)
	if !ok || !bridged || l.State != hoststate.StateForwarding {
		return
	}
	row, has := h.kernel.Row(hoststate.Key{Table: hoststate.TablePort, Port: l.Index})
	if l.Guarded && (named || !has || row.Flags&hoststate.Watch != 0) {
		f := packet.Fact{Src: x.mac}
		if named {
			f.Kind, f.MAC = packet.RARPAnnouncement, x.mac
		}
		h.shown(x, agentcore.Heard{Port: l.Index, Fact: f, At: agentcore.Time(v.w.now)})
	}
	if !l.Learns || l.Guarded && row.Flags&hoststate.Open == 0 {
		return
	}
	h.touch(func(m *kerneltest.Model) {
		k := hoststate.Key{Table: hoststate.TableMaster, VNI: b.VNI, MAC: x.mac}
		if r, have := m.Row(k); !have || r.Flags == 0 { // an entry that was pinned does not move
			m.SetRow(hoststate.Row{Key: k, Val: hoststate.Val{Port: l.Index}})
		}
	})
}

// shown hands a frame of a device up to the agent, unless it dies before it looks.
func (h *host) shown(x *nic, e agentcore.Heard) {
	w := h.w
	if !h.up || w.hit(HeardLost, 0.2) {
		return
	}
	d := h.lag(20*micro, milli)
	if w.hit(HeardLate, 0.2) {
		d += w.between(milli, 2*second)
	}
	if x.isStranger() { // also to a host that has not heard that the network is no more
		w.ever.macs[netMAC{x.vm.network, e.Fact.Src}] = true
		w.ever.said[netAddr{x.vm.network, e.Fact.IP}] = true
	}
	show := func() {
		w.log("%s is shown a frame of %v on if%d, sent at %d", h.name, e.Fact.Src, e.Port, int64(e.At))
		if x.spoke < x.since && h.core.Looked() {
			x.spoke = w.now
		}
		h.step(e)
	}
	h.mine(d, show)
	if w.hit(HeardDoubled, 0.1) {
		h.mine(d+w.between(0, second), show)
	}
}

// says is a hypervisor's word on the guest behind a device.
func (x *nic) says(s hoststate.NICState) {
	if x.state = s; x.vm.managed {
		x.host.told(hoststate.NIC{Device: x.name, MAC: x.mac, VM: x.port, State: s})
	}
}

// told brings a hypervisor's event to the agent. Where one is lost or
// overtaken the hypervisor's connection was, and all is listed after it.
func (h *host) told(x hoststate.NIC) {
	w := h.w
	if !h.up || h.deaf > w.now {
		return
	}
	if w.hit(GuestsLost, 0.1) {
		h.list(w.between(10*milli, 3*second))
		return
	}
	d := h.lag(100*micro, 10*milli)
	if w.hit(GuestsLate, 0.1) {
		d += w.between(milli, second)
	}
	if w.hit(GuestsReordered, 0.05) {
		h.list(d + w.between(10*milli, 3*second))
	} else {
		h.words = max(h.words+1, w.now+d)
		d = h.words - w.now
	}
	say := func() {
		w.log("%s is told that %s is %v", h.name, x.Device, x.State)
		h.step(agentcore.Guests{Source: "libvirt", NICs: []hoststate.NIC{x}})
	}
	h.mine(d, say)
	if w.hit(GuestsDoubled, 0.1) {
		h.mine(d, say)
	}
}

// list lets the hypervisor name all guests that it has, after d.
func (h *host) list(d int64) { h.lists(d, false) }

// lists is list by itself, or in answer to the agent. What is asked while the
// hypervisor restarts is asked again.
func (h *host) lists(d int64, answer bool) {
	h.mine(d, func() {
		if answer && h.deaf > h.w.now {
			h.lists(h.deaf-h.w.now, true)
			return
		}
		e := agentcore.Guests{Source: "libvirt", Full: true, Answer: answer}
		for _, x := range h.w.nics {
			if x.host == h && x.vm.managed && x.state != hoststate.NICGone {
				e.NICs = append(e.NICs, hoststate.NIC{Device: x.name, MAC: x.mac, VM: x.port, State: x.state})
			}
		}
		h.words = max(h.words+1, h.w.now+h.lag(100*micro, 10*milli))
		h.mine(h.words-h.w.now, func() {
			h.w.log("%s is told of all %d guests, in answer %t", h.name, len(e.NICs), answer)
			h.step(e)
		})
	})
}

// restartHypervisor loses a hypervisor's events for a while; its guests run on.
func (w *world) restartHypervisor() {
	h := w.hosts[w.pick(len(w.hosts))]
	w.hits[HypervisorRestarted]++
	w.log("hypervisor of %s restarts", h.name)
	d := w.between(10*milli, 2*second)
	h.deaf = max(h.deaf, w.now+d)
	w.at(h.deaf, func() {
		if h.up {
			h.list(0)
		}
	})
}
