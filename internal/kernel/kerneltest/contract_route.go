package kerneltest

import (
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// routeCases are of entries by which a frame leaves its network.
var routeCases = []contractCase{
	{"facts-4/an entry leads into another network", func(s suite) {
		s.devices()
		s.set(crossRow(mac1, vtep2, vni+1), crossRow(mac2, vtep1, vni+1), neighRow(guest4, mac1), neighRow(guest6, mac2))
		s.set(crossRow(mac1, vtep2, vni+2)) // only the network
		s.set(crossRow(mac1, vtep3, vni+2)) // only the host
		s.set(fdbRow(mac1, vtep3))
		s.set(crossRow(mac1, vtep2, overlay.MaxVNI))
		s.del(crossRow(mac1, vtep2, overlay.MaxVNI), crossRow(mac2, vtep1, vni+1))
	}},
	{"facts-4/many such entries are read back like few", func(s suite) {
		s.devices()
		var rows []hoststate.Row
		for i, m := range manyMACs(1000) {
			rows = append(rows, crossRow(m, vtep2, vni+1+overlay.VNI(i%3)))
		}
		s.set(rows...)
		s.del(rows...)
	}},
	{"facts-4/delete with another network deletes nothing", func(s suite) {
		s.devices()
		s.set(crossRow(mac1, vtep2, vni+1), fdbRow(mac2, vtep2))
		for _, r := range s.do(hoststate.ClassOK, Del(crossRow(mac1, vtep2, vni+2), fdbRow(mac1, vtep2), crossRow(mac2, vtep2, vni+1))...) {
			if !r.Verified || !r.Present {
				s.Errorf("%v: verified %t, present %t", r.Op, r.Verified, r.Present)
			}
		}
		s.holds(crossRow(mac1, vtep2, vni+1), fdbRow(mac2, vtep2))
	}},
	{"facts-4/the device's own network is no other one", func(s suite) {
		s.devices()
		s.do(hoststate.ClassRefused, Set(crossRow(mac1, vtep2, vni), crossRow(mac1, vtep2, overlay.MaxVNI+1))...)
		s.lacks(fdbRow(mac1, vtep2))
	}},
	{"facts-4/the router's entry is flagged, in the device alone", func(s suite) {
		s.devices()
		r := overlay.ServerMAC
		s.set(routerRow(r, vtep1), masterRow(r, 0, remote))
		s.set(fdbRow(r, vtep1))
		s.holds(masterRow(r, 0, remote))
		s.set(routerRow(r, vtep1))
		cross := routerRow(r, vtep1)
		cross.Val.VNI = overlay.MaxVNI
		s.set(cross)
		s.set(routerRow(r, vtep1))
		s.holds(masterRow(r, 0, remote))
		s.del(routerRow(r, vtep1), masterRow(r, 0, remote))
	}},
	{"facts-4/what is foreign in such an entry is seen and put right", func(s suite) {
		s.devices()
		r := overlay.ServerMAC
		wants := []hoststate.Row{crossRow(mac1, vtep2, vni+1), routerRow(r, vtep1)}
		s.set(wants...)
		for _, f := range []hoststate.Row{crossRow(mac1, vtep2, vni+2), fdbRow(mac1, vtep2), crossRow(r, vtep1, vni+1)} {
			s.Quiet()
			s.SetRow(f)
			want := wants[0]
			if f.Key.MAC == r {
				want = wants[1]
			}
			if !s.Bell(func(d hoststate.Doorbell) bool { return d.Row.Key == f.Key && d.Row.Val != want.Val && !d.Deleted }) {
				s.Errorf("no doorbell for %v", f)
			}
			if v := s.state().Rows[f.Key]; v == want.Val {
				s.Errorf("after %v was written, %+v is held", f, v)
			}
			s.set(want)
			if !s.Bell(func(d hoststate.Doorbell) bool { return d.Row == want && !d.Deleted }) {
				s.Errorf("no echo of %v", want)
			}
		}
		s.Quiet()
		s.set(wants...) // as they stand
		if b := s.Quiet(); len(b) > 0 {
			s.Errorf("rang %s", describe(b))
		}
		s.DeleteRow(wants[0])
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Deleted && d.Row == wants[0] }) {
			s.Errorf("no doorbell for the deletion")
		}
		s.set(wants[0])
	}},
}
