package kerneltest

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

func knownRow(m overlay.MAC) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableKnown, VNI: vni, MAC: m}}
}

func aliasRow(m, is overlay.MAC) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableAlias, VNI: vni, MAC: m}, Val: hoststate.Val{MAC: is}}
}

func fromRow(a netip.Addr, m overlay.MAC) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableFrom, VNI: vni, IP: a}, Val: hoststate.Val{MAC: m}}
}

func routedRow(m overlay.MAC, a netip.Addr) hoststate.Row {
	r := hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRouted, VNI: vni, MAC: m, IP: a}}
	if m.IsZero() {
		r.Val.Flags = hoststate.Strangers
	}
	return r
}

func strangersRow(a netip.Addr) hoststate.Row {
	r := sourceRow(overlay.MAC{}, a)
	r.Val.Flags = hoststate.Strangers
	return r
}

func mtuRow(a netip.Addr, mtu uint16) hoststate.Row {
	r := reachIPRow(a)
	r.Val.MTU = mtu
	return r
}

func routeRow(prefix string, m overlay.MAC) hoststate.Row {
	p := netip.MustParsePrefix(prefix)
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRoute, VNI: vni, IP: p.Addr(), Bits: uint8(p.Bits())}, Val: hoststate.Val{MAC: m}}
}

// demandRows are of a network that is on demand, or routed to more than others.
func demandRows() []hoststate.Row {
	far4, far6 := netip.MustParseAddr("10.3.0.2"), netip.MustParseAddr("fd00:2::2")
	return []hoststate.Row{
		knownRow(mac1), knownRow(every), knownRow(group4), aliasRow(mac1, mac2), aliasRow(mac2, mac3),
		fromRow(guest4, mac1), fromRow(guest6, mac1), routedRow(mac1, vtep2), routedRow(mac1, vtepV6), routedRow(overlay.MAC{}, vtep2),
		strangersRow(vtep2), strangersRow(vtepV6), mtuRow(far4, 1400), mtuRow(far6, 65535),
		routeRow("0.0.0.0/0", mac1), routeRow("::/0", mac2), routeRow("10.0.0.0/8", mac3), routeRow("10.1.2.3/32", overlay.MAC{}),
		routeRow("2001:db8::/32", mac3), routeRow("2001:db8::1/128", mac1),
	}
}

var demandCases = []contractCase{
	{"programs/rows of one MAC in several tables are apart", func(s suite) {
		s.devices()
		rows := []hoststate.Row{sourceRow(mac1, vtep2), routedRow(mac1, vtep2), relayedRow(mac1, vtep2), knownRow(mac1), reachMACRow(mac1), aliasRow(mac1, mac2), relayRow(mac1),
			reachIPRow(guest4), fromRow(guest4, mac1), routeRow(guest4.String()+"/32", mac1)}
		s.set(rows...)
		for i, r := range rows {
			s.del(r)
			s.holds(rows[i+1:]...)
		}
	}},
	{"programs/what a row says is changed in place", func(s suite) {
		s.devices()
		for _, rows := range [][2]hoststate.Row{
			{fromRow(guest4, mac1), fromRow(guest4, mac2)}, {aliasRow(mac1, mac2), aliasRow(mac1, mac3)}, {routeRow("0.0.0.0/0", mac1), routeRow("0.0.0.0/0", overlay.MAC{})},
			{reachIPRow(guest6), mtuRow(guest6, 1280)}, {mtuRow(guest4, 1280), mtuRow(guest4, 1500)}, {sourceRow(overlay.MAC{}, vtep2), strangersRow(vtep2)},
		} {
			s.set(rows[0])
			s.set(rows[1])
			s.set(rows[0])
			s.del(rows[1])
		}
	}},
	{"programs/each prefix is its own", func(s suite) {
		s.devices()
		short, long := routeRow("10.0.0.0/8", mac1), routeRow("10.0.0.0/24", mac2)
		all6, all4 := routeRow("::/0", mac3), routeRow("0.0.0.0/0", mac2)
		s.set(short, all6)
		// What a look for the longest prefix would find is another row.
		s.do(hoststate.ClassNotFound, Del(long, all4, routeRow("10.0.0.0/7", mac1), routeRow("10.0.0.0/32", mac1))...)
		s.lacks(long, all4)
		s.set(long, all4)
		s.del(short)
		s.holds(long, all6, all4)
		s.do(hoststate.ClassNotFound, Del(short)...)
		other := testDevice()
		other.VNI, other.AltName = vni+1, "acme.other"
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: other}, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: other})
		theirs := all4
		theirs.Key.VNI, theirs.Val.MAC = other.VNI, mac1
		s.do(hoststate.ClassOK, Set(theirs)...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDelLink, Index: s.mustLink(vni.VXLAN()).Index})
		s.lacks(long, all6, all4)
		st, err := s.Read(s.Context(), hoststate.Scope{VNI: other.VNI})
		if err != nil || len(st.Rows) != 1 || st.Rows[theirs.Key] != theirs.Val {
			s.Errorf("the other network holds %v, %v", st, err)
		}
	}},
	{"programs/rows of on-demand and routed networks that are none are refused", func(s suite) {
		s.devices()
		mapped, zone := netip.MustParseAddr("::ffff:10.1.0.2"), netip.MustParseAddr("fe80::1%eth0")
		with := func(r hoststate.Row, f func(*hoststate.Row)) hoststate.Row { f(&r); return r }
		strangers := func(r *hoststate.Row) { r.Val.Flags = hoststate.Strangers }
		s.do(hoststate.ClassRefused, Set(
			knownRow(overlay.MAC{}), with(knownRow(mac1), func(r *hoststate.Row) { r.Key.IP = guest4 }), with(knownRow(mac1), strangers),
			aliasRow(group4, mac1), aliasRow(overlay.MAC{}, mac1), aliasRow(mac1, group4), aliasRow(mac1, overlay.MAC{}), with(aliasRow(mac1, mac2), strangers),
			fromRow(mapped, mac1), fromRow(zone, mac1), fromRow(overlayNoAddr, mac1), fromRow(guest4, group4), fromRow(guest4, overlay.MAC{}),
			with(fromRow(guest4, mac1), func(r *hoststate.Row) { r.Key.MAC = mac1 }),
			routedRow(group4, vtep2), routedRow(mac1, mapped), routedRow(mac1, overlayNoAddr), with(routedRow(mac1, vtep2), strangers),
			with(routedRow(overlay.MAC{}, vtep2), func(r *hoststate.Row) { r.Val.Flags = 0 }),
			with(sourceRow(mac1, vtep2), strangers), with(relayedRow(mac1, vtep2), strangers),
			with(reachMACRow(mac1), func(r *hoststate.Row) { r.Val.MTU = 1400 }), with(mtuRow(guest4, 1400), strangers),
			with(routeRow("10.0.0.0/8", mac1), func(r *hoststate.Row) { r.Key.IP = guest4 }), with(routeRow("10.0.0.0/8", mac1), func(r *hoststate.Row) { r.Key.Bits = 33 }),
			with(routeRow("::/0", mac1), func(r *hoststate.Row) { r.Key.Bits = 129 }), with(routeRow("::/0", mac1), func(r *hoststate.Row) { r.Key.IP = mapped }),
			with(routeRow("::/0", mac1), func(r *hoststate.Row) { r.Key.IP = overlayNoAddr }), routeRow("::/0", group4), with(routeRow("::/0", mac1), strangers),
		)...)
		if rows := s.state().Rows; len(rows) != 0 {
			s.Errorf("rows came to be: %v", rows)
		}
	}},
	{"programs/many rows keep what they say", func(s suite) {
		s.devices()
		var rows []hoststate.Row
		for i, a := range manyAddrs(3000) {
			m := manyMACs(3000)[i]
			rows = append(rows, fromRow(a, m), mtuRow(a, uint16(1280+i)), routedRow(m, vtep2), knownRow(m), aliasRow(m, mac2), routeRow(a.String()+"/32", m))
		}
		s.set(demandRows()...)
		s.set(rows...)
		s.holds(demandRows()...)
		s.del(rows...)
		s.holds(demandRows()...)
	}},
}
