package kerneltest

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

var rowCases = []contractCase{
	{"facts-2/entries are stored and shown with their flags", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.set(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), masterRow(mac2, p, local),
			replRow(vtep2), neighRow(guest4, mac1), neighRow(guest6, mac1))
	}},
	{"facts-2/replace moves an entry", func(s suite) {
		s.devices()
		s.set(fdbRow(mac1, vtep2), neighRow(guest4, mac1))
		s.set(fdbRow(mac1, vtep3), neighRow(guest4, mac2))
	}},
	{"facts-2/writing what stands changes nothing", func(s suite) {
		s.devices()
		rows := []hoststate.Row{fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), replRow(vtep2), neighRow(guest4, mac1)}
		s.set(rows...)
		s.Quiet()
		s.set(rows...)
		if b := s.Quiet(); len(b) > 0 {
			s.Errorf("rang %s", describe(b))
		}
	}},
	{"facts-2/delete of an absent entry is not found", func(s suite) {
		s.devices()
		for _, r := range s.do(hoststate.ClassNotFound, Del(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), replRow(vtep2),
			neighRow(guest4, mac1), neighRow(guest6, mac1), vtepRow(vtep2), memberRow(77))...) {
			if !r.Verified || r.Present {
				s.Errorf("%v: verified %t, present %t", r.Op, r.Verified, r.Present)
			}
		}
	}},
	{"facts-2/delete with another destination deletes nothing", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.set(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), masterRow(mac2, p, local))
		for _, r := range s.do(hoststate.ClassOK, Del(fdbRow(mac1, vtep3), masterRow(mac1, p, local), masterRow(mac2, 0, remote))...) {
			if !r.Verified || !r.Present || r.Have == r.Op.Row.Val {
				s.Errorf("%v: verified %t, present %t, holds %+v; want what stood there", r.Op, r.Verified, r.Present, r.Have)
			}
		}
		s.holds(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), masterRow(mac2, p, local))
		s.del(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), masterRow(mac2, p, local))
	}},
	{"facts-2/outer family must match, and there must be a destination", func(s suite) {
		s.devices()
		noDst := fdbRow(mac1, vtep2)
		noDst.Val.Dst = overlayNoAddr
		s.do(hoststate.ClassRefused, Set(fdbRow(mac1, vtepV6), noDst, replRow(vtepV6), replRow(overlayNoAddr))...)
		s.lacks(fdbRow(mac1, vtep2), replRow(vtepV6))
	}},
	{"facts-2/a group or the zero MAC is no endpoint", func(s suite) {
		s.devices()
		s.do(hoststate.ClassRefused, Set(fdbRow(overlay.MAC{1, 0, 0x5e, 0, 0, 1}, vtep2), fdbRow(overlay.MAC{}, vtep2),
			masterRow(overlay.MAC{}, 0, remote))...)
		s.lacks(replRow(vtep2))
	}},
	{"facts-2/the list is kept member by member", func(s suite) {
		s.devices()
		s.set(replRow(vtep2), replRow(vtep3))
		s.set(replRow(vtep2))
		s.del(replRow(vtep2))
		s.holds(replRow(vtep3))
		// The kernel tells an absent member from a deleted one only when the
		// whole list is absent.
		s.del(replRow(vtep2))
		s.del(replRow(vtep3))
		s.do(hoststate.ClassNotFound, Del(replRow(vtep2))...)
	}},
	{"facts-2/link down loses neighbours and keeps the FDB", func(s suite) {
		s.devices()
		s.set(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), replRow(vtep2), neighRow(guest4, mac1), neighRow(guest6, mac1))
		s.Quiet()
		s.SetUp(vni.VXLAN(), false)
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Deleted && d.Row.Key == neighRow(guest4, mac1).Key }) {
			s.Errorf("no doorbell for the lost neighbour")
		}
		s.lacks(neighRow(guest4, mac1), neighRow(guest6, mac1))
		s.holds(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), replRow(vtep2))
	}},
	{"facts-2/a new MAC loses neighbours and keeps the FDB", func(s suite) {
		s.devices()
		s.set(fdbRow(mac1, vtep2), replRow(vtep2), neighRow(guest4, mac1), neighRow(guest6, mac1))
		s.Quiet()
		s.SetMAC(vni.VXLAN(), mac2)
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Deleted && d.Row.Key == neighRow(guest4, mac1).Key }) {
			s.Errorf("no doorbell for the lost neighbour")
		}
		s.lacks(neighRow(guest4, mac1), neighRow(guest6, mac1))
		s.holds(fdbRow(mac1, vtep2), replRow(vtep2))
	}},
	{"facts-10/one outer family a network", func(s suite) {
		d := testDevice()
		d.Local = netip.MustParseAddr("2001:db8::1")
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d}, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: d})
		if x := s.mustLink(vni.VXLAN()); x.Local != d.Local {
			s.Errorf("local %s", x.Local)
		}
		s.set(fdbRow(mac1, vtepV6), replRow(vtepV6))
		s.do(hoststate.ClassRefused, Set(fdbRow(mac2, vtep2), replRow(vtep2))...)
	}},
	{"facts-2/writes to a device that is down are there after up", func(s suite) {
		d := testDevice()
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase}, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d},
			hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: d})
		rows := []hoststate.Row{fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), replRow(vtep2), neighRow(guest4, mac1), neighRow(guest6, mac1)}
		s.set(rows...)
		s.up()
		s.holds(rows...)
	}},
	{"facts-2/deleting the device deletes its rows", func(s suite) {
		s.devices()
		rows := []hoststate.Row{fdbRow(mac1, vtep2), masterRow(mac1, 0, remote), replRow(vtep2), neighRow(guest4, mac1)}
		s.set(rows...)
		s.Quiet()
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDelLink, Index: s.mustLink(vni.VXLAN()).Index})
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Links }) {
			s.Errorf("no doorbell for the lost device")
		}
		s.lacks(rows...)
		s.do(hoststate.ClassGone, Set(rows...)...)
		s.do(hoststate.ClassGone, Del(fdbRow(mac1, vtep2), replRow(vtep2), neighRow(guest4, mac1))...)
	}},
	{"facts-2/a foreign write rings, and an own one too", func(s suite) {
		s.devices()
		s.Quiet()
		for _, f := range []func(){
			func() { s.SetRow(fdbRow(mac1, vtep2)) },
			func() { s.set(fdbRow(mac1, vtep3)) },
		} {
			f()
			if !s.Bell(func(d hoststate.Doorbell) bool {
				return d.VNI == vni && !d.Deleted && d.Row.Key == fdbRow(mac1, vtep2).Key
			}) {
				s.Errorf("no doorbell")
			}
		}
		s.DeleteRow(fdbRow(mac1, vtep3))
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Deleted && d.Row == fdbRow(mac1, vtep3) }) {
			s.Errorf("no doorbell for the deletion")
		}
	}},
	{"facts-2/own neighbour writes are told from foreign ones", func(s suite) {
		s.devices()
		s.Quiet()
		s.set(neighRow(guest4, mac1))
		if b := s.Quiet(); len(b) > 0 {
			s.Errorf("own write rang %s", describe(b))
		}
		foreign := neighRow(guest6, mac2)
		foreign.Val.Flags = hoststate.Permanent
		s.SetRow(foreign)
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Row == foreign }) {
			s.Errorf("no doorbell for the foreign write")
		}
		s.holds(foreign)
		s.set(neighRow(guest6, mac1))
	}},
	{"facts-2/permanent neighbours are exempt from the limit of 1024", func(s suite) {
		s.devices()
		var rows []hoststate.Row
		for _, a := range manyAddrs(1500) {
			rows = append(rows, neighRow(a, mac1))
		}
		s.set(rows...)
	}},
	{"facts-2/a foreign entry is taken over whole", func(s suite) {
		s.devices()
		foreign := fdbRow(mac1, vtep3)
		foreign.Val.Flags = hoststate.Permanent
		s.SetRow(foreign)
		s.holds(foreign)
		s.set(fdbRow(mac1, vtep2))
	}},
	{"facts-10/self and master go together in any order", func(s suite) {
		s.devices()
		var rows []hoststate.Row
		macs := manyMACs(300)
		for _, m := range macs {
			rows = append(rows, fdbRow(m, vtep2))
		}
		for _, m := range macs {
			rows = append(rows, masterRow(m, 0, remote))
		}
		s.set(rows...)
		s.del(rows...)
	}},
	{"facts-10/self stands though master is refused", func(s suite) {
		s.devices()
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDelLink, Index: s.mustLink(vni.Bridge()).Index})
		res := s.Apply(s.Context(), Set(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote)))
		if res[0].Class != hoststate.ClassOK || res[1].Class != hoststate.ClassGone {
			s.Errorf("self %v, master %v, want ok and gone", res[0].Class, res[1].Class)
		}
		s.holds(fdbRow(mac1, vtep2))
	}},
	{"facts-10/a MAC goes from remote to local and back", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.set(fdbRow(mac1, vtep2), masterRow(mac1, 0, remote))
		s.set(masterRow(mac1, p, local))
		s.del(fdbRow(mac1, vtep2))
		s.set(fdbRow(mac1, vtep3), masterRow(mac1, 0, remote))
	}},
	{"facts-10/a port that goes takes its entries along", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.set(masterRow(mac1, p, local), memberRow(p))
		s.Quiet()
		s.Unplug("vm1")
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Links }) {
			s.Errorf("no doorbell")
		}
		s.lacks(masterRow(mac1, p, local))
		s.holds(memberRow(p))
		s.do(hoststate.ClassGone, Set(masterRow(mac1, p, local))...)
		s.del(memberRow(p))
	}},
	{"facts-10/a vxlan device without IPv6 refuses IPv6 neighbours and loses them", func(s suite) {
		s.devices()
		s.set(neighRow(guest6, mac1), neighRow(guest4, mac1))
		s.SetIPv6(vni.VXLAN(), false)
		s.eventually("IPv6 neighbour lost", func() bool { _, ok := s.state().Rows[neighRow(guest6, mac1).Key]; return !ok })
		s.holds(neighRow(guest4, mac1))
		if l := s.mustLink(vni.VXLAN()); l.IPv6 {
			s.Errorf("IPv6 reads as on")
		}
		s.do(hoststate.ClassRefused, Set(neighRow(guest6, mac1))...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpTune, Dev: testDevice()})
		s.set(neighRow(guest6, mac1))
	}},
	{"facts-3/one refused row stops none of its batch", func(s suite) {
		s.devices()
		var rows []hoststate.Row
		for i, m := range manyMACs(400) {
			r := fdbRow(m, vtep2)
			if i == 50 || i == 399 {
				r.Val.Dst = vtepV6
			}
			rows = append(rows, r)
		}
		for i, r := range s.Apply(s.Context(), Set(rows...)) {
			want := hoststate.ClassOK
			if i == 50 || i == 399 {
				want = hoststate.ClassRefused
			}
			if r.Class != want || r.Verified && r.Present != (want == hoststate.ClassOK) {
				s.Errorf("row %d: %v, present %t, want %v", i, r.Class, r.Present, want)
			}
		}
	}},
	{"facts-3/many rows are read back like few", func(s suite) {
		s.devices()
		var rows []hoststate.Row
		for i, m := range manyMACs(5000) {
			rows = append(rows, fdbRow(m, vtep2), masterRow(m, 0, remote))
			if i%5 == 0 {
				rows = append(rows, neighRow(manyAddrs(5000)[i], m))
			}
		}
		s.set(rows...)
		s.del(rows...)
	}},
}
