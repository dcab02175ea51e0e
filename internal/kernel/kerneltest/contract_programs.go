package kerneltest

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

func portRow(port int32, m overlay.MAC, f hoststate.Flags) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TablePort, Port: port}, Val: hoststate.Val{MAC: m, Flags: f}}
}

func ownIPRow(port int32, a netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: a}}
}

func sharedIPRow(port int32, a netip.Addr) hoststate.Row {
	r := ownIPRow(port, a)
	r.Val.Flags = hoststate.Shared
	return r
}

func ownMACRow(port int32, m overlay.MAC) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableOwn, Port: port, MAC: m}}
}

func sourceRow(m overlay.MAC, a netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableSource, VNI: vni, MAC: m, IP: a}}
}

func relayedRow(m overlay.MAC, a netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRelayed, VNI: vni, MAC: m, IP: a}}
}

func relayRow(m overlay.MAC) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRelay, VNI: vni, MAC: m}}
}

func reachIPRow(a netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableReach, VNI: vni, IP: a}}
}

func reachMACRow(m overlay.MAC) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableReach, VNI: vni, MAC: m}}
}

const (
	open     = hoststate.Open
	openSafe = hoststate.Open | hoststate.CheckIP | hoststate.CheckLocal | hoststate.NoServers | hoststate.Routed | hoststate.Demand
)

func allPortRows(p int32) []hoststate.Row {
	return []hoststate.Row{portRow(p, mac1, openSafe), ownMACRow(p, mac2), ownIPRow(p, guest4), sharedIPRow(p, guest6)}
}

func allNetworkRows() []hoststate.Row {
	return append([]hoststate.Row{sourceRow(mac1, vtep2), sourceRow(mac1, vtepV6), sourceRow(overlay.MAC{}, vtep3), relayedRow(mac1, vtep2), relayedRow(mac2, vtep3), relayRow(mac2),
		reachIPRow(guest4), reachIPRow(guest6), reachMACRow(mac1), reachMACRow(mac2)}, demandRows()...)
}

// again writes rows twice, deletes them, and deletes them once more.
func (s suite) again(rows ...hoststate.Row) {
	s.Helper()
	s.set(rows...)
	s.set(rows...)
	s.del(rows...)
	s.do(hoststate.ClassNotFound, Del(rows...)...)
}

func (s suite) guarded(name string, want bool) {
	s.Helper()
	if l := s.mustLink(name); l.Guarded != want {
		s.Errorf("%s guarded %t, want %t", name, l.Guarded, want)
	}
}

func (s suite) base(want bool) {
	s.Helper()
	if st := s.state(); st.Base != want {
		s.Errorf("base %t, want %t", st.Base, want)
	}
}

var programCases = []contractCase{
	{"programs/rows of a port", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.again(allPortRows(p)...)
		s.set(portRow(p, mac1, open))
		s.set(portRow(p, mac2, openSafe))
		s.set(portRow(p, mac2, 0))
		q := s.port("vm2")
		s.set(portRow(q, mac1, open), ownIPRow(q, guest4), ownIPRow(p, guest4))
		s.del(ownIPRow(q, guest4))
		s.holds(portRow(p, mac2, 0), portRow(q, mac1, open), ownIPRow(p, guest4))
		s.set(sharedIPRow(p, guest4))
		s.holds(sharedIPRow(p, guest4))
		s.set(ownIPRow(p, guest4))
		s.holds(ownIPRow(p, guest4))
	}},
	{"programs/rows of a network", func(s suite) {
		s.devices()
		s.again(allNetworkRows()...)
	}},
	{"facts-4/what may be reached of other networks is each network's own", func(s suite) {
		s.devices()
		other := testDevice()
		other.VNI, other.AltName = vni+1, "acme.other"
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: other}, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: other})
		mine := []hoststate.Row{reachIPRow(guest4), reachIPRow(guest6), reachMACRow(mac1)}
		theirs := []hoststate.Row{reachIPRow(guest4), reachMACRow(mac1)}
		for i := range theirs {
			theirs[i].Key.VNI = other.VNI
		}
		s.do(hoststate.ClassOK, Set(append(mine, theirs...)...)...)
		s.holds(mine...)
		// A MAC is no address, though its bytes be the same.
		s.do(hoststate.ClassNotFound, Del(reachMACRow(mac2), reachIPRow(netip.MustParseAddr("10.1.0.3")), reachIPRow(netip.MustParseAddr("::ffff:0:0:1")))...)
		s.do(hoststate.ClassOK, Del(theirs...)...)
		s.holds(mine...)
		st, err := s.Read(s.Context(), hoststate.Scope{VNI: other.VNI})
		if err != nil || len(st.Rows) != 0 {
			s.Errorf("the other network holds %v, %v", st, err)
		}
		s.del(mine...)
	}},
	{"programs/no device, no row", func(s suite) {
		s.do(hoststate.ClassGone, Set(allNetworkRows()...)...)
		s.do(hoststate.ClassGone, Del(allNetworkRows()...)...)
		s.devices()
		loose := s.Plug("vm1") // on no bridge
		for _, p := range []int32{9999, loose, s.mustLink(vni.VXLAN()).Index, s.mustLink(vni.Bridge()).Index} {
			s.do(hoststate.ClassGone, Set(allPortRows(p)...)...)
			s.do(hoststate.ClassGone, Del(allPortRows(p)...)...)
		}
		if st := s.state(); len(st.Rows) != 0 {
			s.Errorf("rows came to be:\n%s", st)
		}
	}},
	{"programs/rows that are none are refused", func(s suite) {
		s.devices()
		p := s.port("vm1")
		group := overlay.MAC{1, 0, 0x5e, 0, 0, 1}
		both := ownIPRow(p, guest4)
		both.Key.MAC = mac1
		valued := sourceRow(mac1, vtep2)
		valued.Val.MAC = mac2
		reachBoth, reachValued := reachIPRow(guest4), reachMACRow(mac1)
		reachBoth.Key.MAC, reachValued.Val.Flags = mac1, hoststate.Router
		open1, shared2, shared3 := ownIPRow(p, guest4), ownMACRow(p, mac2), sourceRow(mac1, vtep2)
		open1.Val.Flags, shared2.Val.Flags, shared3.Val.Flags = hoststate.Shared|open, hoststate.Shared, hoststate.Shared
		s.do(hoststate.ClassRefused, Set(portRow(p, group, open), portRow(p, overlay.MAC{}, open), portRow(p, mac1, open|hoststate.Sticky),
			both, ownMACRow(p, group), ownMACRow(p, overlay.MAC{}), sourceRow(group, vtep2), sourceRow(mac1, overlayNoAddr),
			relayedRow(mac1, netip.MustParseAddr("::ffff:192.0.2.2")), relayedRow(overlay.MAC{}, vtep2), relayRow(group), relayRow(overlay.MAC{}), valued, open1, shared2, shared3,
			reachIPRow(netip.MustParseAddr("::ffff:10.1.0.2")), reachIPRow(netip.MustParseAddr("fe80::1%eth0")), reachMACRow(overlay.MAC{}), reachMACRow(group),
			reachBoth, reachValued)...)
		s.lacks(portRow(p, mac1, open), both, sourceRow(mac1, vtep2))
	}},
	{"programs/a port is guarded when it is made one, or by its first row", func(s suite) {
		s.devices()
		s.guarded(vni.VXLAN(), true)
		p := s.Plug("vm1")
		s.Join("vm1", vni.Bridge())
		s.guarded("vm1", false)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpPort, Index: p})
		s.guarded("vm1", true)
		q := s.Plug("vm2")
		s.Join("vm2", vni.Bridge())
		s.do(hoststate.ClassNotFound, Del(ownIPRow(q, guest4))...)
		s.guarded("vm2", false)
		s.set(ownIPRow(q, guest4))
		s.guarded("vm2", true)
	}},
	{"programs/a port's rows go with its programs", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.set(allPortRows(p)...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpPort, Index: p})
		s.holds(allPortRows(p)...)
		s.Strip("vm1")
		s.guarded("vm1", false)
		s.lacks(allPortRows(p)...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpPort, Index: p})
		s.guarded("vm1", true)
		s.lacks(allPortRows(p)...)
		s.set(allPortRows(p)...)
	}},
	{"programs/a port that leaves takes its rows along", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.set(allPortRows(p)...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDetach, Name: "vm1"})
		s.lacks(allPortRows(p)...)
		s.do(hoststate.ClassGone, Set(allPortRows(p)...)...)
		s.Join("vm1", vni.Bridge())
		s.guarded("vm1", false)
		s.lacks(allPortRows(p)...)

		other := testDevice()
		other.VNI, other.AltName = vni+1, "acme.other"
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: other})
		s.set(allPortRows(p)...)
		s.Join("vm1", other.VNI.Bridge()) // another network's: nothing is inherited
		s.guarded("vm1", false)
		s.lacks(allPortRows(p)...)
		s.set(allPortRows(p)...)
		s.guarded("vm1", true)
		s.Unplug("vm1")
		s.lacks(allPortRows(p)...)
		s.do(hoststate.ClassGone, Del(allPortRows(p)...)...)
	}},
	{"programs/a bridge that goes takes its ports' rows along", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.set(allPortRows(p)...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDelLink, Index: s.mustLink(vni.Bridge()).Index})
		s.lacks(allPortRows(p)...)
	}},
	{"programs/a vxlan device that goes takes its rows along", func(s suite) {
		s.devices()
		s.set(allNetworkRows()...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDelLink, Index: s.mustLink(vni.VXLAN()).Index})
		s.lacks(allNetworkRows()...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: testDevice()})
		s.guarded(vni.VXLAN(), true)
		s.lacks(allNetworkRows()...)
		s.set(allNetworkRows()...)
		s.Unplug(vni.VXLAN()) // by a foreign hand
		s.lacks(allNetworkRows()...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: testDevice()})
		s.lacks(allNetworkRows()...)
	}},
	{"programs/a vxlan device without its program keeps its rows", func(s suite) {
		s.devices()
		s.set(allNetworkRows()...)
		s.Strip(vni.VXLAN())
		s.guarded(vni.VXLAN(), false)
		s.holds(allNetworkRows()...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpTune, Dev: testDevice()})
		s.guarded(vni.VXLAN(), true)
		s.holds(allNetworkRows()...)
	}},
	{"programs/an entry that somebody deleted is missed and written again", func(s suite) {
		s.devices()
		p := s.port("vm1")
		rows := append(allPortRows(p), allNetworkRows()...)
		s.set(rows...)
		for _, r := range rows {
			s.DeleteRow(r)
			s.lacks(r)
			s.set(r)
		}
		s.holds(rows...)
		s.SetRow(portRow(p, mac2, 0))
		s.holds(portRow(p, mac2, 0))
		s.set(portRow(p, mac1, open))
	}},
	{"programs/every device of the underlay that is up is checked", func(s suite) {
		s.base(false)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase})
		s.base(true)
		s.devices()
		s.base(true)
		s.Quiet()
		p := s.Plug("vm1")
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Links }) {
			s.Errorf("no doorbell for a device that came")
		}
		s.base(false)
		s.SetUp("vm1", false)
		s.base(true) // nothing comes in
		s.Quiet()
		s.SetUp("vm1", true)
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Links }) {
			s.Errorf("no doorbell for a device that came up")
		}
		s.base(false)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase})
		s.base(true)
		s.SetUp("vm1", false)
		s.base(true)
		s.SetUp("vm1", true)
		s.base(true) // it was left where it stood
		s.Strip("vm1")
		s.base(false)
		s.Join("vm1", vni.Bridge())
		s.base(true)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpPort, Index: p})
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDetach, Name: "vm1"})
		s.base(false)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase})
		s.base(true)
	}},
	{"programs/many rows", func(s suite) {
		s.devices()
		p := s.port("vm1")
		var rows []hoststate.Row
		for i, m := range manyMACs(5000) {
			rows = append(rows, sourceRow(m, vtep2), relayedRow(m, vtep3), reachMACRow(m), reachIPRow(manyAddrs(5000)[i]))
			if i%5 == 0 {
				rows = append(rows, relayRow(m), ownMACRow(p, m), ownIPRow(p, manyAddrs(5000)[i]))
			}
		}
		s.set(rows...)
		s.del(rows...)
	}},
	{"programs/one refused row stops none of its batch", func(s suite) {
		s.devices()
		p := s.port("vm1")
		res := s.Apply(s.Context(), Set(sourceRow(mac1, vtep2), sourceRow(mac1, overlayNoAddr), ownIPRow(9999, guest4), ownIPRow(p, guest4)))
		for i, want := range []hoststate.Class{hoststate.ClassOK, hoststate.ClassRefused, hoststate.ClassGone, hoststate.ClassOK} {
			if res[i].Class != want {
				s.Errorf("%v: %v, want %v", res[i].Op, res[i].Class, want)
			}
		}
		s.holds(sourceRow(mac1, vtep2), ownIPRow(p, guest4))
	}},
}
