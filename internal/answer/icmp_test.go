package answer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// forward reads a frame to the router, of which only so much was kept.
func forward(t testing.TB, frame []byte, kept int) packet.Forward {
	t.Helper()
	f, d := packet.ReadForward(frame[:min(kept, len(frame))], len(frame))
	if d != packet.Taken {
		t.Fatalf("refused: %v", d)
	}
	return f
}

// TestUndeliveredBytes: octet by octet, as RFC 792 and RFC 4443 draw them. The
// quote has no padding of the frame that it was.
func TestUndeliveredBytes(t *testing.T) {
	t.Parallel()
	udp := packet.UDP(overlay.ServerMAC, guest, netip.MustParseAddrPort("10.1.0.5:1"), netip.MustParseAddrPort("10.2.0.7:2"), []byte("hi"))
	four := "45c0003a00000000400165fc" + "0a010001" + "0a010005" + "0b00" + "092a" + "00000000" +
		"4500001e000000004011" + "66c1" + "0a010005" + "0a020007" + "0001" + "0002" + "000a" + "835f"
	got := Undelivered(forward(t, udp, 99), TooFar, overlay.ServerMAC, addr("10.1.0.1"))
	want := hex.EncodeToString(guest[:]) + hex.EncodeToString(overlay.ServerMAC[:]) + "0800" + four + "6869"
	if hex.EncodeToString(got) != want {
		t.Errorf("IPv4: got\n%x, want\n%s", got, want)
	}
	udp = packet.UDP(overlay.ServerMAC, guest, netip.MustParseAddrPort("[fd00:1::5]:1"), netip.MustParseAddrPort("[fd00:2::7]:2"), []byte("hi"))
	quoted := hex.EncodeToString(udp[14 : 14+40+10])
	got = Undelivered(forward(t, udp, 99), NoRoute, overlay.ServerMAC, addr("fd00:1::1"))
	want = hex.EncodeToString(guest[:]) + hex.EncodeToString(overlay.ServerMAC[:]) + "86dd" + "60000000003a3a40" +
		"fd000001000000000000000000000001" + "fd000001000000000000000000000005" + "0100" + "9352" + "00000000" + quoted
	if hex.EncodeToString(got) != want {
		t.Errorf("IPv6: got\n%x, want\n%s", got, want)
	}
}

// TestEveryReasonHasItsCode, of both families.
func TestEveryReasonHasItsCode(t *testing.T) {
	t.Parallel()
	udp4 := forward(t, packet.UDP(overlay.ServerMAC, guest, netip.MustParseAddrPort("10.1.0.5:1"), netip.MustParseAddrPort("10.2.0.7:2"), nil), 99)
	udp6 := forward(t, packet.UDP(overlay.ServerMAC, guest, netip.MustParseAddrPort("[fd00:1::5]:1"), netip.MustParseAddrPort("[fd00:2::7]:2"), nil), 99)
	for why, want := range map[Why][4]byte{NoRoute: {3, 0, 1, 0}, NoHost: {3, 1, 1, 3}, NoPort: {3, 3, 1, 4}, TooFar: {11, 0, 3, 0}} {
		four, six := Undelivered(udp4, why, host, addr("10.1.0.1")), Undelivered(udp6, why, host, addr("fd00:1::1"))
		if got := [4]byte{four[34], four[35], six[54], six[55]}; got != want {
			t.Errorf("%v: %v, want %v", why, got, want)
		}
	}
	for _, c := range []struct {
		frame []byte
		want  []byte // type to MTU
	}{
		{TooBig(udp4, 1400, host, addr("10.1.0.1"))[34:], []byte{3, 4, 0, 0, 0, 0, 5, 0x78}},
		{TooBig(udp6, 1400, host, addr("fd00:1::1"))[54:], []byte{2, 0, 0, 0, 0, 0, 5, 0x78}},
	} {
		if copy(c.frame[2:4], []byte{0, 0}); !bytes.HasPrefix(c.frame, c.want) {
			t.Errorf("too big: % x, want % x", c.frame, c.want)
		}
	}
	if b := Undelivered(udp4, TooFar+1, host, addr("10.1.0.1")); b != nil {
		t.Errorf("a reason that is none: % x", b)
	}
}

func TestEcho(t *testing.T) {
	t.Parallel()
	ask := packet.ICMPv4(overlay.ServerMAC, guest, addr("10.1.0.5"), addr("10.1.0.1"), 0x10, []byte{8, 0, 0, 0, 0, 1, 0, 2, 'h', 'i'})
	want := packet.ICMPv4(guest, host, addr("10.1.0.1"), addr("10.1.0.5"), 0x10, []byte{0, 0, 0, 0, 0, 1, 0, 2, 'h', 'i'})
	if got := Echo(forward(t, ask, 99), host); !bytes.Equal(got, want) || !sound(got) {
		t.Errorf("IPv4: % x, want % x", got, want)
	}
	ask = packet.ICMPv6(overlay.ServerMAC, guest, addr("fd00:1::5"), addr("fd00:1::1"), 64, []byte{128, 0, 0, 0, 0, 1, 0, 2, 'h', 'i'})
	before := slices.Clone(ask)
	want = packet.ICMPv6(guest, host, addr("fd00:1::1"), addr("fd00:1::5"), 64, []byte{129, 0, 0, 0, 0, 1, 0, 2, 'h', 'i'})
	if got := Echo(forward(t, ask, 99), host); !bytes.Equal(got, want) || !sound(got) || !bytes.Equal(ask, before) {
		t.Errorf("IPv6: % x, want % x", got, want)
	}
	udp := packet.UDP(overlay.ServerMAC, guest, netip.MustParseAddrPort("10.1.0.5:1"), netip.MustParseAddrPort("10.1.0.1:2"), nil)
	if b := Echo(forward(t, udp, 99), host); b != nil {
		t.Errorf("UDP is echoed: % x", b)
	}
}

// sound reports whether the checksums of an ICMP frame are right, and its
// lengths those of its bytes. It shares nothing with the builders.
func sound(b []byte) bool {
	ones := func(s uint32, b []byte) uint32 {
		for i, v := range b {
			s += uint32(v) << (8 * (1 - i%2))
			s = s&0xffff + s>>16
		}
		return s
	}
	ip := b[14:]
	if binary.BigEndian.Uint16(b[12:]) == 0x0800 {
		total := int(binary.BigEndian.Uint16(ip[2:]))
		return ip[0] == 0x45 && total <= len(ip) && max(total, 46) == len(ip) && ones(0, ip[:20]) == 0xffff && ones(0, ip[20:total]) == 0xffff
	}
	size := int(binary.BigEndian.Uint16(ip[4:]))
	return ip[6] == 58 && max(40+size, 46) == len(ip) && ones(ones(uint32(size)+58, ip[8:40]), ip[40:40+size]) == 0xffff
}

// TestUndeliveredQuotes: whatever was sent, and however little of it was kept,
// the error is sound, within its limit, from the router, to who sent it, and
// quotes the beginning; and there is none about an error or a later fragment.
func TestUndeliveredQuotes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		from, to, router := netip.MustParseAddrPort("10.1.0.5:1"), netip.MustParseAddrPort("10.2.0.7:2"), addr("10.1.0.1")
		head, limit := 20, 576
		if rapid.Bool().Draw(t, "six") {
			from, to, router = netip.MustParseAddrPort("[fd00:1::5]:1"), netip.MustParseAddrPort("[fd00:2::7]:2"), addr("fd00:1::1")
			head, limit = 40, 1280
		}
		frame := packet.UDP(overlay.ServerMAC, guest, from, to, rapid.SliceOfN(rapid.Byte(), 0, 1400).Draw(t, "payload"))
		mute := rapid.Bool().Draw(t, "error")
		if mute {
			msg := append([]byte{3, 0, 0, 0, 0, 0, 0, 0}, rapid.SliceOfN(rapid.Byte(), 0, 1400).Draw(t, "quote")...)
			if frame = packet.ICMPv4(overlay.ServerMAC, guest, from.Addr(), to.Addr(), 0, msg); head == 40 {
				frame = packet.ICMPv6(overlay.ServerMAC, guest, from.Addr(), to.Addr(), 64, msg)
			}
		}
		kept := frame[:rapid.IntRange(14+head+8, len(frame)).Draw(t, "kept")]
		f, d := packet.ReadForward(kept, len(frame))
		if d != packet.Taken {
			t.Fatalf("refused: %v", d)
		}
		b := Undelivered(f, Why(rapid.IntRange(0, int(TooFar)).Draw(t, "why")), host, router)
		if rapid.Bool().Draw(t, "big") {
			b = TooBig(f, rapid.Uint16().Draw(t, "mtu"), host, router)
		}
		if mute {
			if b != nil {
				t.Fatalf("an error about an error: % x", b)
			}
			return
		}
		quote := b[14+head+8:]
		switch {
		case !sound(b) || len(b)-14 > limit:
			t.Fatalf("% x is not sound, or too long", b)
		case overlay.MAC(b[:6]) != guest || overlay.MAC(b[6:12]) != host:
			t.Fatalf("% x is not from the router to the guest", b)
		case len(quote) < min(len(f.Packet), limit-head-8) || !bytes.HasPrefix(kept[14:], quote[:min(len(f.Packet), len(quote))]):
			t.Fatalf("% x quotes % x", kept, quote)
		}
		if other := addr("10.1.0.1"); head == 40 && Undelivered(f, NoRoute, host, other) != nil || Undelivered(f, NoRoute, host, netip.Addr{}) != nil {
			t.Fatal("from an address of another family, or none")
		}
	})
}
