package kerneltest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// overlayNoAddr is the invalid address.
var overlayNoAddr netip.Addr

var deviceCases = []contractCase{
	{"facts-0/devices are made with what cannot be changed", func(s suite) {
		s.devices()
		d := testDevice()
		b, x := s.mustLink(vni.Bridge()), s.mustLink(vni.VXLAN())
		if b.Kind != hoststate.LinkBridge || !b.Up || !b.Isolated || b.IPv6 || b.MTU != d.MTU || b.Alias != d.Alias ||
			!slices.Equal(b.AltNames, []string{d.AltName}) || b.MAC != d.BridgeMAC() || b.VNI != vni {
			s.Errorf("bridge %+v", b)
		}
		if x.Kind != hoststate.LinkVXLAN || x.VXVNI != vni || x.VNI != vni || !x.DOVE || !x.IPv6 || x.MTU != d.MTU || x.Alias != d.Alias ||
			x.Local != d.Local || x.UDPPort != d.UDPPort || x.DF != d.DF || x.MAC != d.VXLANMAC() || x.Master != b.Index ||
			x.Flood || x.Learns || !x.Up || x.State != hoststate.StateForwarding {
			s.Errorf("vxlan %+v", x)
		}
	}},
	{"facts-7/a second device of the name exists", func(s suite) {
		s.devices()
		before := s.state().String()
		d := testDevice()
		d.Local = vtep2
		s.do(hoststate.ClassExists, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d}, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: d})
		if after := s.state().String(); after != before {
			s.Errorf("changed to\n%s", after)
		}
	}},
	{"facts-7/an altname names one device", func(s suite) {
		s.devices()
		d := testDevice()
		d.VNI++
		s.do(hoststate.ClassExists, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d})
		if _, ok := s.link(d.VNI.Bridge()); ok {
			s.Errorf("half a bridge stayed behind")
		}
	}},
	{"facts-7/a vxlan device waits for its bridge", func(s suite) {
		s.do(hoststate.ClassGone, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: testDevice()}, hoststate.Op{Kind: hoststate.OpTune, Dev: testDevice()})
	}},
	{"facts-7/values that are none are refused", func(s suite) {
		d := testDevice()
		d.VNI = 0
		s.do(hoststate.ClassRefused, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d}, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: d})
		d = testDevice()
		d.Local = overlayNoAddr
		s.do(hoststate.ClassRefused, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: d})
		s.do(hoststate.ClassRefused, hoststate.Op{Kind: 99, Index: 1})
	}},
	{"facts-7/tune changes a live device and keeps it", func(s suite) {
		s.devices()
		s.set(fdbRow(mac1, vtep2), neighRow(guest4, mac1), neighRow(guest6, mac1))
		b, x := s.mustLink(vni.Bridge()), s.mustLink(vni.VXLAN())
		d := testDevice()
		d.MTU, d.DF, d.Local, d.Alias, d.AltName = 1400, overlay.DFInherit, vtep3, "other", "acme.green"
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpTune, Dev: d})
		b2, x2 := s.mustLink(vni.Bridge()), s.mustLink(vni.VXLAN())
		if b2.Index != b.Index || b2.MTU != 1400 || b2.Alias != "other" || !slices.Equal(b2.AltNames, []string{"acme.green"}) {
			s.Errorf("bridge %+v", b2)
		}
		if x2.Index != x.Index || x2.MTU != 1400 || x2.DF != overlay.DFInherit || x2.Local != vtep3 || x2.Alias != "other" ||
			x2.MAC != x.MAC || !x2.DOVE || !x2.Up || x2.UDPPort != x.UDPPort {
			s.Errorf("vxlan %+v", x2)
		}
		s.holds(fdbRow(mac1, vtep2), neighRow(guest4, mac1), neighRow(guest6, mac1))
	}},
	{"facts-6/a bridge keeps its MTU when ports come", func(s suite) {
		for _, mtu := range []uint32{1400, 1500, 9000} {
			d := testDevice()
			d.MTU = mtu
			s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d})
			name := fmt.Sprintf("vm%d", mtu)
			s.port(name) // of MTU 1500
			b := s.mustLink(vni.Bridge())
			if b.MTU != mtu {
				s.Errorf("bridge MTU %d, want %d", b.MTU, mtu)
			}
			s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDetach, Name: name}, hoststate.Op{Kind: hoststate.OpDelLink, Index: b.Index})
		}
	}},
	{"facts-7/deleting what is not there is gone", func(s suite) {
		s.do(hoststate.ClassGone, hoststate.Op{Kind: hoststate.OpDelLink, Index: 4242}, hoststate.Op{Kind: hoststate.OpUp, Index: 4242},
			hoststate.Op{Kind: hoststate.OpPort, Index: 4242}, hoststate.Op{Kind: hoststate.OpDetach, Name: "none"},
			hoststate.Op{Kind: hoststate.OpAttach, Name: "none", Dev: testDevice()})
	}},
	{"facts-7/a device made again has its MAC again", func(s suite) {
		s.devices()
		x := s.mustLink(vni.VXLAN())
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDelLink, Index: x.Index}, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: testDevice()})
		if y := s.mustLink(vni.VXLAN()); y.MAC != x.MAC || y.Index == x.Index || y.Up {
			s.Errorf("made again %+v, before %+v", y, x)
		}
	}},
	{"facts-7/a bridge made again is isolated again", func(s suite) {
		s.devices()
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDelLink, Index: s.mustLink(vni.Bridge()).Index},
			hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: testDevice()})
		if b := s.mustLink(vni.Bridge()); !b.Isolated {
			s.Errorf("not isolated")
		}
		if x := s.mustLink(vni.VXLAN()); x.Master != 0 {
			s.Errorf("vxlan device still has a master")
		}
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpTune, Dev: testDevice()})
		if x := s.mustLink(vni.VXLAN()); x.Master != s.mustLink(vni.Bridge()).Index || x.Flood || x.Learns {
			s.Errorf("after tune: vxlan device %+v", x)
		}
	}},
	{"facts-10/a port forwards some time after it joined", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.eventually("forwarding", func() bool { return s.mustLink("vm1").State == hoststate.StateForwarding })
		l := s.mustLink("vm1")
		if l.Index != p || l.Master != s.mustLink(vni.Bridge()).Index || l.Flood || l.Learns || l.IPv6 || l.Kind != hoststate.LinkOther ||
			l.Alias != hoststate.PortAlias("acme", "vm1") || !l.Up {
			s.Errorf("port %+v", l)
		}
		s.SetUp("vm1", false)
		s.eventually("no longer forwarding", func() bool { return s.mustLink("vm1").State != hoststate.StateForwarding })
	}},
	{"facts-10/a port that joined by itself floods and learns until told", func(s suite) {
		s.devices()
		p := s.Plug("vm1")
		if _, ok := s.link("vm1"); ok {
			s.Errorf("a device on no bridge of ours is reported")
		}
		s.Quiet()
		s.Join("vm1", vni.Bridge())
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Links }) {
			s.Errorf("no doorbell for the new port")
		}
		if l := s.mustLink("vm1"); !l.Flood || !l.Learns {
			s.Errorf("port %+v", l)
		}
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpPort, Index: p})
		if l := s.mustLink("vm1"); l.Flood || l.Learns || l.IPv6 {
			s.Errorf("port %+v", l)
		}
	}},
	{"facts-7/detach takes a port off and clears its alias", func(s suite) {
		s.devices()
		p := s.port("vm1")
		s.set(masterRow(mac1, p, local))
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDetach, Name: "vm1"})
		if _, ok := s.link("vm1"); ok {
			s.Errorf("still a port")
		}
		s.lacks(masterRow(mac1, p, local))
		s.do(hoststate.ClassGone, hoststate.Op{Kind: hoststate.OpPort, Index: p})
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpDetach, Name: "vm1"})
	}},
	{"facts-10/announcing needs a bridge and an address", func(s suite) {
		s.do(hoststate.ClassGone, hoststate.Op{Kind: hoststate.OpAnnounce, Row: neighRow(guest4, mac1)})
		s.devices()
		s.do(hoststate.ClassRefused, hoststate.Op{Kind: hoststate.OpAnnounce, Row: neighRow(overlayNoAddr, mac1)},
			hoststate.Op{Kind: hoststate.OpAnnounce, Row: neighRow(guest4, overlay.MAC{})})
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpAnnounce, Row: neighRow(guest4, mac1)},
			hoststate.Op{Kind: hoststate.OpAnnounce, Row: neighRow(guest6, mac1)})
	}},
	{"facts-10/sending needs a bridge's port and a frame", func(s suite) {
		frame := string(packet.Announce(packet.Announcement{IP: guest4, MAC: mac1}))
		send := func(port int32, frame string) hoststate.Op {
			return hoststate.Op{Kind: hoststate.OpSend, Index: port, Frame: frame}
		}
		s.devices()
		loose, p := s.Plug("vm1"), s.port("vm2")
		s.do(hoststate.ClassGone, send(4242, frame), send(loose, frame), send(s.mustLink(vni.Bridge()).Index, frame), send(s.mustLink(vni.VXLAN()).Index, frame))
		s.do(hoststate.ClassRefused, send(p, ""), send(p, frame[:13]), send(p, frame+strings.Repeat("x", 1515-len(frame))))
		before := s.state().String()
		s.do(hoststate.ClassOK, send(p, frame), send(p, frame+strings.Repeat("x", 1514-len(frame))))
		if after := s.state().String(); after != before {
			s.Errorf("changed to\n%s", after)
		}
		s.SetUp("vm2", false)
		s.do(hoststate.ClassOK, send(p, frame))
		s.Unplug("vm2")
		s.do(hoststate.ClassGone, send(p, frame))
	}},
}

var nftCases = []contractCase{
	{"nft/elements need the base", func(s suite) {
		s.do(hoststate.ClassNotFound, Set(vtepRow(vtep2), memberRow(5))...)
	}},
	{"nft/base keeps elements and writes nothing twice", func(s suite) {
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase})
		s.set(vtepRow(vtep2), vtepRow(vtepV6), memberRow(5))
		s.Quiet()
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase})
		s.set(vtepRow(vtep2))
		if b := s.Quiet(); len(b) > 0 {
			s.Errorf("rang %s", describe(b))
		}
		s.holds(vtepRow(vtep2), vtepRow(vtepV6), memberRow(5))
		if !s.state().Base {
			s.Errorf("no base")
		}
		s.del(vtepRow(vtepV6), memberRow(5))
	}},
	{"nft/an element written as it stands hides nothing", func(s suite) {
		s.devices()
		s.set(markRow(5), vtepRow(vtep2))
		s.DropIsolation(vni)
		s.do(hoststate.ClassOK, Set(markRow(5), vtepRow(vtep2))...)
		if s.mustLink(vni.Bridge()).Isolated {
			s.Errorf("the bridge reads as isolated, though its chain went")
		}
	}},
	{"nft/the mark is moved in one transaction, in silence", func(s suite) {
		s.do(hoststate.ClassNotFound, Set(markRow(5))...)
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase})
		s.do(hoststate.ClassNotFound, Del(markRow(5))...)
		s.set(markRow(5))
		s.Quiet()
		s.do(hoststate.ClassOK, append(Set(markRow(1<<40)), Del(markRow(5))...)...)
		s.set(markRow(1 << 40))
		if b := s.Quiet(); len(b) > 0 {
			s.Errorf("own write rang %s", describe(b))
		}
		s.lacks(markRow(5))
		noMark := markRow(5)
		noMark.Key.IP = vtep2
		s.do(hoststate.ClassRefused, Set(noMark)...)
		for _, f := range []func(){func() { s.SetRow(markRow(6)) }, func() { s.DeleteRow(markRow(6)) }, s.FlushRuleset} {
			s.Quiet()
			f()
			if !s.Bell(func(d hoststate.Doorbell) bool { return d.Links }) {
				s.Errorf("no doorbell")
			}
		}
		s.lacks(markRow(1 << 40))
	}},
	{"nft/one absent element stops no other", func(s suite) {
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase})
		s.set(vtepRow(vtep2))
		all := append(append(Set(vtepRow(vtep3)), Del(vtepRow(vtepV6))...), Del(vtepRow(vtep2))...)
		res := s.Apply(s.Context(), all)
		if res[0].Class != hoststate.ClassOK || res[1].Class != hoststate.ClassNotFound || res[2].Class != hoststate.ClassOK {
			s.Errorf("%v, %v, %v, want ok, not-found, ok", res[0].Class, res[1].Class, res[2].Class)
		}
		s.holds(vtepRow(vtep3))
		s.lacks(vtepRow(vtep2))
	}},
	{"nft/a flushed ruleset is seen and made again", func(s suite) {
		s.devices()
		s.set(vtepRow(vtep2), memberRow(5))
		s.Quiet()
		s.FlushRuleset()
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Links }) {
			s.Errorf("no doorbell")
		}
		if st := s.state(); st.Base || s.mustLink(vni.Bridge()).Isolated {
			s.Errorf("base %t, %v", st.Base, st)
		}
		s.lacks(vtepRow(vtep2), memberRow(5))
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase}, hoststate.Op{Kind: hoststate.OpTune, Dev: testDevice()})
		if st := s.state(); !st.Base || !s.mustLink(vni.Bridge()).Isolated {
			s.Errorf("base %t, %v", st.Base, st)
		}
	}},
	{"nft/an isolation chain that went is seen and made again", func(s suite) {
		s.devices()
		s.Quiet()
		s.DropIsolation(vni)
		if !s.Bell(func(d hoststate.Doorbell) bool { return d.Links }) {
			s.Errorf("no doorbell")
		}
		if s.mustLink(vni.Bridge()).Isolated {
			s.Errorf("reads as isolated")
		}
		s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpTune, Dev: testDevice()})
		if !s.mustLink(vni.Bridge()).Isolated {
			s.Errorf("reads as open")
		}
	}},
}
