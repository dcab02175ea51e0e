package kerneltest

import (
	"net/netip"
	"slices"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

var (
	mac3   = overlay.MAC{0x52, 0x54, 0, 0, 0, 3}
	every  = overlay.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	group4 = overlay.MAC{1, 0, 0x5e, 0, 0, 1}
	group6 = overlay.MAC{0x33, 0x33, 0, 0, 0, 1}
)

func listRow(m overlay.MAC, dst netip.Addr) hoststate.Row {
	r := replRow(dst)
	r.Key.MAC = m
	return r
}

// demanding makes devices that want misses, and a guest with mac1 behind vm1.
func (s suite) demanding(misses bool) {
	s.Helper()
	d := testDevice()
	d.Misses = misses
	s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase}, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d},
		hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: d})
	s.up()
	p := s.port("vm1")
	s.set(masterRow(mac1, p, local), portRow(p, mac1, open), memberRow(p), memberRow(s.mustLink(vni.VXLAN()).Index))
	s.eventually("forwarding", func() bool { return s.mustLink("vm1").State == hoststate.StateForwarding })
}

// heard waits until misses are heard at all.
func (s suite) heard() {
	s.Helper()
	n := byte(0)
	s.eventually("misses are heard", func() bool { n++; _, ok := s.since(netip.AddrFrom4([4]byte{10, 8, 0, n})); return ok })
}

// since asks for an address that nobody has, and returns the misses before that one.
func (s suite) since(ip netip.Addr) ([]hoststate.Miss, bool) {
	s.Ask("vm1", ip)
	return s.Missed(hoststate.Miss{VNI: vni, IP: ip})
}

// missed wants just these misses of what f does; n is another one for each call.
func (s suite) missed(n byte, what string, f func(), want ...hoststate.Miss) {
	s.Helper()
	f()
	got, ok := s.since(netip.AddrFrom4([4]byte{10, 9, 0, n}))
	if !ok || !slices.Equal(got, want) {
		s.Errorf("%s: misses %v, want %v (then another: %t)", what, got, want, ok)
	}
}

var missCases = []contractCase{
	{"facts-1/who asks for an address that is not among the neighbours misses it", func(s suite) {
		s.demanding(true)
		s.heard()
		s.set(fdbRow(mac2, vtep2), masterRow(mac2, 0, remote), neighRow(guest4, mac2), neighRow(guest6, mac2))
		none4, none6 := netip.MustParseAddr("10.1.0.77"), netip.MustParseAddr("fd00:1::77")
		s.missed(1, "neighbours", func() { s.Ask("vm1", guest4); s.Ask("vm1", guest6) })
		s.missed(2, "nobody", func() { s.Ask("vm1", none4); s.Ask("vm1", none6) }, hoststate.Miss{VNI: vni, IP: none4}, hoststate.Miss{VNI: vni, IP: none6})
		s.del(neighRow(guest4, mac2), neighRow(guest6, mac2))
		s.set(replRow(vtep2))
		s.missed(3, "neighbours that went, with a list for all", func() { s.Ask("vm1", guest4); s.Ask("vm1", guest6) },
			hoststate.Miss{VNI: vni, IP: guest4}, hoststate.Miss{VNI: vni, IP: guest6})
	}},
	{"facts-1/a frame to a MAC that is not in the table misses it, unless there is a list for all", func(s suite) {
		s.demanding(true)
		s.heard()
		no := netip.Addr{}
		macs := manyMACs(4)
		s.missed(1, "unknown", func() { s.Frame("vm1", macs[0], no) }, hoststate.Miss{VNI: vni, MAC: macs[0]})
		s.set(fdbRow(mac2, vtep2), masterRow(mac2, 0, remote), fdbRow(mac3, vtep2))
		s.missed(2, "known, also without an entry of the bridge", func() { s.Frame("vm1", mac2, no); s.Frame("vm1", mac3, no) })
		s.set(listRow(every, vtep2), listRow(group4, vtep2))
		s.missed(3, "groups, with and without a list", func() {
			for _, m := range []overlay.MAC{every, group4, group6} {
				s.Frame("vm1", m, no)
			}
		})
		s.missed(4, "unknown, with lists of groups", func() { s.Frame("vm1", macs[1], no) }, hoststate.Miss{VNI: vni, MAC: macs[1]})
		s.set(replRow(vtep2))
		s.missed(5, "unknown, with a list for all", func() { s.Frame("vm1", macs[2], no) })
		s.del(replRow(vtep2))
		s.missed(6, "unknown, that list gone", func() { s.Frame("vm1", macs[3], no) }, hoststate.Miss{VNI: vni, MAC: macs[3]})
		s.set(masterRow(macs[0], s.port("vm2"), local))
		s.missed(7, "a guest of the same host", func() { s.Frame("vm1", macs[0], no) })
	}},
	{"facts-4/a packet to the router whose destination is no neighbour misses it", func(s suite) {
		s.demanding(true)
		s.heard()
		r := overlay.ServerMAC
		s.set(routerRow(r, vtep1), masterRow(r, 0, remote), neighRow(guest4, mac2), neighRow(guest6, mac3), crossRow(mac2, vtep2, vni+1))
		none4, none6 := netip.MustParseAddr("10.2.0.77"), netip.MustParseAddr("fd00:2::77")
		s.missed(1, "a neighbour", func() { s.Frame("vm1", r, guest4) })
		s.missed(2, "nobody", func() { s.Frame("vm1", r, none4); s.Frame("vm1", r, none6) }, hoststate.Miss{VNI: vni, IP: none4}, hoststate.Miss{VNI: vni, IP: none6})
		s.missed(3, "a neighbour whose MAC is not in the table", func() { s.Frame("vm1", r, guest6) }, hoststate.Miss{VNI: vni, MAC: mac3})
	}},
	{"facts-1/a network that wants none has none, and may change its mind", func(s suite) {
		s.demanding(false)
		if s.mustLink(vni.VXLAN()).Flood {
			s.Errorf("floods, without Misses")
		}
		s.Ask("vm1", guest4)
		s.Frame("vm1", mac2, netip.Addr{})
		if got, _ := s.Missed(hoststate.Miss{}); len(got) > 0 { // for as long as one waits for a miss
			s.Errorf("missed %v", got)
		}
		d := testDevice()
		d.Misses = true
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpTune, Dev: d})
		if x := s.mustLink(vni.VXLAN()); !x.Flood || x.Learns {
			s.Errorf("with Misses: %+v", x)
		}
		s.heard()
		s.missed(1, "unknown", func() { s.Frame("vm1", mac2, netip.Addr{}) }, hoststate.Miss{VNI: vni, MAC: mac2})
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpTune, Dev: testDevice()})
		if s.mustLink(vni.VXLAN()).Flood {
			s.Errorf("floods, without Misses again")
		}
	}},
	{"facts-2/groups have lists of their own, kept member by member", func(s suite) {
		s.devices()
		lists := []overlay.MAC{every, group4, group6, {}}
		for _, m := range lists {
			s.set(listRow(m, vtep2), listRow(m, vtep3))
			s.set(listRow(m, vtep2))
		}
		s.Quiet()
		for _, m := range lists {
			s.set(listRow(m, vtep2))
		}
		if b := s.Quiet(); len(b) > 0 {
			s.Errorf("rang %s", describe(b))
		}
		s.del(listRow(group4, vtep2))
		s.holds(listRow(group4, vtep3), listRow(every, vtep2), listRow(group6, vtep2), listRow(overlay.MAC{}, vtep2))
		s.del(listRow(group4, vtep2), listRow(group4, vtep3)) // the list stood
		s.do(hoststate.ClassNotFound, Del(listRow(group4, vtep2))...)
		s.do(hoststate.ClassRefused, Set(listRow(mac1, vtep2), listRow(group4, vtepV6), listRow(group4, overlayNoAddr))...)
		s.Quiet()
		s.SetRow(listRow(group4, vtep2))
		if !s.Bell(func(d hoststate.Doorbell) bool { return !d.Deleted && d.Row == listRow(group4, vtep2) }) {
			s.Errorf("no doorbell for a foreign member")
		}
		s.DeleteRow(listRow(every, vtep3))
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Deleted && d.Row == listRow(every, vtep3) }) {
			s.Errorf("no doorbell for a member that went")
		}
		s.lacks(listRow(every, vtep3))
		s.del(listRow(every, vtep2), listRow(group4, vtep2), listRow(group6, vtep2), listRow(group6, vtep3))
		s.holds(listRow(overlay.MAC{}, vtep2), listRow(overlay.MAC{}, vtep3))
	}},
	{"facts-1/an entry that is looked up is not idle", func(s suite) {
		s.demanding(true)
		row2, row3 := fdbRow(mac2, vtep2), fdbRow(mac3, vtep2)
		s.set(row2, row3, masterRow(mac2, 0, remote), masterRow(mac3, 0, remote), neighRow(guest4, mac3), neighRow(guest6, mac3))
		idle := func(r hoststate.Row) time.Duration {
			d, ok := s.state().Idle[r.Key]
			if !ok {
				s.Fatalf("not told of %v", r)
			}
			return d
		}
		for n, use := range []func(){
			func() { s.Frame("vm1", mac3, netip.Addr{}) },
			func() { s.Ask("vm1", guest4) },
			func() { s.Ask("vm1", guest6) },
		} {
			s.eventually("idle", func() bool { return idle(row3) >= 300*time.Millisecond })
			use()
			s.eventually("used", func() bool { return idle(row3) < 250*time.Millisecond })
			if a, b := idle(row2), idle(row3); a <= b {
				s.Errorf("use %d: the other is idle for %s, and this for %s", n, a, b)
			}
		}
		// Reading and writing what stands is no use.
		s.set(row2)
		if d := idle(row2); d < 300*time.Millisecond {
			s.Errorf("idle for %s after it was written as it stands", d)
		}
		for k := range s.state().Idle {
			if k.Table != hoststate.TableFDB || k.VNI != vni {
				s.Errorf("told of %v", k)
			}
		}
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpTune, Dev: testDevice()})
		if n := len(s.state().Idle); n != 0 {
			s.Errorf("told of %d entries of a network without misses", n)
		}
	}},
}
