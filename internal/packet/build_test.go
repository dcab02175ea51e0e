package packet

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
)

var (
	anyMAC = rapid.Custom(func(t *rapid.T) overlay.MAC {
		m := overlay.MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
		m[0] = m[0]&^1 | 2
		return m
	})
	any4 = rapid.Custom(func(t *rapid.T) netip.Addr {
		return ip4(append([]byte{10}, rapid.SliceOfN(rapid.Byte(), 3, 3).Draw(t, "v4")...))
	})
	any6 = rapid.Custom(func(t *rapid.T) netip.Addr {
		return ip6(append([]byte{0xfd}, rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, "v6")...))
	})
)

// TestAnnounceBytes: the two frames, octet by octet, as the RFCs draw them.
func TestAnnounceBytes(t *testing.T) {
	mac := overlay.MAC{0x52, 0x54, 0, 0, 0, 9}
	arp := "ffffffffffff" + "525400000009" + "0806" +
		"0001" + "0800" + "06" + "04" + "0002" + "525400000009" + "0a010009" + "525400000009" + "0a010009" +
		"000000000000000000000000000000000000"
	na := "333300000001" + "525400000009" + "86dd" +
		"60000000" + "0020" + "3a" + "ff" + "fd000001000000000000000000000009" + "ff020000000000000000000000000001" +
		"88" + "00" + "0a2d" + "20000000" + "fd000001000000000000000000000009" + "0201" + "525400000009"
	for ip, want := range map[string]string{"10.1.0.9": arp, "fd00:1::9": na} {
		if got := hex.EncodeToString(Announce(Announcement{netip.MustParseAddr(ip), mac})); got != want {
			t.Errorf("%s:\n%s, want\n%s", ip, got, want)
		}
	}
	if f := Announce(Announcement{MAC: mac}); f != nil {
		t.Errorf("no address: % x, want nil", f)
	}
}

// TestRARPBytes: as QEMU's net/announce.c writes it, with zeros up to the least
// frame.
func TestRARPBytes(t *testing.T) {
	want := "ffffffffffff" + "525400000002" + "8035" + "0001" + "0800" + "0604" + "0003" +
		"525400000002" + "00000000" + "525400000002" + "00000000" + "000000000000000000000000000000000000"
	if got := hex.EncodeToString(RARP(guest)); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// TestBuildersSayWhatLinuxSays: where a builder makes what Linux makes, the
// frames are the same to the byte (before padding).
func TestBuildersSayWhatLinuxSays(t *testing.T) {
	me, you := addr("fe80::5054:ff:fe00:2"), addr("fe80::5054:ff:fe00:1")
	for name, got := range map[string][]byte{
		"linux ARP request":               AskARP(Broadcast, guest, addr("192.0.2.54"), addr("192.0.2.1")),
		"linux ARP reply":                 AnswerARP(guest, host, addr("192.0.2.1"), addr("192.0.2.54")),
		"linux unicast solicitation":      AskND(host, guest, me, you),
		"linux solicited advertisement":   AnswerND(host, guest, me, you, false),
		"linux unsolicited advertisement": Announce(Announcement{me, guest}),
	} {
		if want := spoken(t, name); !bytes.HasPrefix(got, want) {
			t.Errorf("%s:\n% x, want\n% x", name, got, want)
		}
	}
}

// TestBuildersParse: what is built is read back as what was meant.
func TestBuildersParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src, dst := anyMAC.Draw(t, "src"), anyMAC.Draw(t, "dst")
		a, b := any4.Draw(t, "a"), any4.Draw(t, "b")
		x, y := any6.Draw(t, "x"), any6.Draw(t, "y")
		if a == b || x == y {
			return
		}
		router := rapid.Bool().Draw(t, "router")
		flags := FlagOverride | FlagLinkAddr
		if router {
			flags |= FlagRouter
		}
		zero4, zero6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
		sol := solicited.Addr().As16()
		y16 := y.As16()
		copy(sol[13:], y16[13:])
		node := groupMAC(ip6(sol[:]))
		all := groupMAC(allNodes)
		for _, c := range []struct {
			name  string
			frame []byte
			want  Fact
		}{
			{"poll", AskARP(dst, src, a, b), Fact{Kind: ARPRequest, Src: src, Dst: dst, MAC: src, IP: a, Target: b}},
			{"question", AskARP(Broadcast, src, a, b), Fact{Kind: ARPRequest, Src: src, Dst: Broadcast, MAC: src, IP: a, Target: b}},
			{"probe", AskARP(dst, src, zero4, b), Fact{Kind: ARPProbe, Src: src, Dst: dst, MAC: src, Target: b}},
			{"announcement", AskARP(Broadcast, src, a, a), Fact{Kind: ARPAnnouncement, Src: src, Dst: Broadcast, MAC: src, IP: a}},
			{"answer", AnswerARP(dst, src, a, b), Fact{Kind: ARPReply, Src: src, Dst: dst, MAC: src, IP: a, Target: b}},
			{"answer to a probe", AnswerARP(dst, src, a, zero4), Fact{Kind: ARPReply, Src: src, Dst: dst, MAC: src, IP: a}},
			{"RARP", RARP(src), Fact{Kind: RARPAnnouncement, Src: src, Dst: Broadcast, MAC: src}},
			{"announce 4", Announce(Announcement{a, src}), Fact{Kind: ARPAnnouncement, Src: src, Dst: Broadcast, MAC: src, IP: a}},
			{"announce 6", Announce(Announcement{x, src}), Fact{Kind: NeighborAdvert, Flags: FlagOverride | FlagLinkAddr, Src: src, Dst: all, MAC: src, IP: x}},
			{"ND poll", AskND(dst, src, x, y), Fact{Kind: NeighborSolicit, Src: src, Dst: dst, MAC: src, IP: x, Target: y}},
			{"ND question", AskND(Broadcast, src, x, y), Fact{Kind: NeighborSolicit, Src: src, Dst: node, MAC: src, IP: x, Target: y}},
			{"ND probe", AskND(dst, src, zero6, y), Fact{Kind: NeighborProbe, Src: src, Dst: dst, MAC: src, Target: y}},
			{"ND probe to all", AskND(Broadcast, src, zero6, y), Fact{Kind: NeighborProbe, Src: src, Dst: node, MAC: src, Target: y}},
			{"ND answer", AnswerND(dst, src, x, y, router), Fact{Kind: NeighborAdvert, Flags: flags | FlagSolicited, Src: src, Dst: dst, MAC: src, IP: x}},
			{"ND answer to a probe", AnswerND(dst, src, x, zero6, router), Fact{Kind: NeighborAdvert, Flags: flags, Src: src, Dst: all, MAC: src, IP: x}},
		} {
			got, d := Parse(FromGuest, c.frame, len(c.frame))
			if d != Taken || got != c.want || len(c.frame) < minFrame {
				t.Errorf("%s: %v\ngot  %+v\nwant %+v", c.name, d, got, c.want)
			}
			if told, ok := got.Announcement(); ok != (got.Kind == ARPAnnouncement || got.Kind == NeighborAdvert && got.Flags&FlagSolicited == 0) || ok && told != (Announcement{got.IP, src}) {
				t.Errorf("%s announces %v, %v", c.name, told, ok)
			}
		}
	})
}

// TestBuildersRefuse: an address of the wrong family makes no frame.
func TestBuildersRefuse(t *testing.T) {
	a, x := addr("192.0.2.1"), addr("2001:db8::1")
	p4, p6 := netip.AddrPortFrom(a, 67), netip.AddrPortFrom(x, 547)
	for i, f := range [][]byte{
		AskARP(host, guest, a, x), AnswerARP(host, guest, x, a), AskND(host, guest, a, x), AskND(host, guest, x, a),
		AnswerND(host, guest, a, x, false), AnswerND(host, guest, netip.Addr{}, x, false), AnswerND(host, guest, x, a, false),
		ICMPv4(host, guest, a, x, 0, make([]byte, 8)), ICMPv4(host, guest, a, a, 0, nil), ICMPv4(host, guest, a, a, 0, make([]byte, 65516)),
		ICMPv6(host, guest, a, x, 255, make([]byte, 8)), ICMPv6(host, guest, x, x, 255, nil), ICMPv6(host, guest, x, x, 255, make([]byte, 65536)),
		UDP(host, guest, p4, p6, nil), UDP(host, guest, netip.AddrPort{}, p4, nil), UDP(host, guest, p4, p4, make([]byte, 65508)),
	} {
		if f != nil {
			t.Errorf("row %d: % x", i, f)
		}
	}
}

// TestUDPChecksumIsNeverMissing: a sum of 0 is written as all ones, since 0
// says that there is none.
func TestUDPChecksumIsNeverMissing(t *testing.T) {
	for _, p := range []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:68"), netip.MustParseAddrPort("[2001:db8::1]:546")} {
		hit := false
		for v := range 0x10000 {
			b := UDP(guest, host, p, p, []byte{byte(v >> 8), byte(v)})
			at := len(b) - 4
			if p.Addr().Is4() {
				at = ethLen + ipv4Len + 6
			}
			if b[at] == 0 && b[at+1] == 0 {
				t.Fatalf("%v, payload %04x: no checksum", p, v)
			}
			hit = hit || b[at] == 0xff && b[at+1] == 0xff
		}
		if !hit {
			t.Errorf("%v: no payload had the sum 0", p)
		}
	}
}
