package packet

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
)

func anyAnnouncement(t *rapid.T) Announcement {
	var a Announcement
	copy(a.MAC[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
	if rapid.Bool().Draw(t, "six") {
		a.IP = netip.AddrFrom16([16]byte(append([]byte{0xfd}, rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, "v6")...)))
	} else {
		a.IP = netip.AddrFrom4([4]byte(append([]byte{10}, rapid.SliceOfN(rapid.Byte(), 3, 3).Draw(t, "v4")...)))
	}
	return a
}

func TestAnnounceParses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := anyAnnouncement(t)
		f := Announce(a)
		if len(f) < 60 || overlay.MAC(f[6:12]) != a.MAC || f[0]&1 == 0 {
			t.Fatalf("frame % x", f)
		}
		if got, err := ParseAnnouncement(f); err != nil || got != a {
			t.Fatalf("got %v, %v, want %v", got, err, a)
		}
	})
}

// TestDamageIsNoticed: one changed bit of an advertisement's message never
// yields another announcement; ARP has no checksum to notice by.
func TestDamageIsNoticed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := anyAnnouncement(t)
		f := Announce(a)
		if a.IP.Is4() {
			return
		}
		at := rapid.IntRange(14+8, 14+ipv6Len+naLen-1).Draw(t, "at")
		f[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if got, err := ParseAnnouncement(f); err == nil && got != a {
			t.Fatalf("byte %d changed: got %v, want %v or an error", at, got, a)
		}
	})
}

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

func TestRefusals(t *testing.T) {
	v4 := func(change func([]byte)) []byte {
		f := Announce(Announcement{netip.MustParseAddr("10.1.0.9"), overlay.MAC{2, 0, 0, 0, 0, 1}})
		change(f)
		return f
	}
	v6 := func(change func([]byte) []byte) []byte {
		return change(Announce(Announcement{netip.MustParseAddr("fd00::9"), overlay.MAC{2, 0, 0, 0, 0, 1}}))
	}
	tests := []struct {
		name  string
		frame []byte
		want  error
	}{
		{"nothing", nil, ErrShort},
		{"ethernet alone", make([]byte, 14), ErrOther},
		{"IPv4", v4(func(b []byte) { b[12], b[13] = 8, 0 }), ErrOther},
		{"cut ARP", v4(func([]byte) {})[:30], ErrShort},
		{"ARP of another hardware", v4(func(b []byte) { b[15] = 6 }), ErrMalform},
		{"ARP with long addresses", v4(func(b []byte) { b[18] = 8 }), ErrMalform},
		{"ARP that asks for another", v4(func(b []byte) { b[41]++ }), ErrOther},
		{"ARP probe", v4(func(b []byte) { copy(b[28:32], make([]byte, 4)); copy(b[38:42], make([]byte, 4)) }), ErrOther},
		{"cut NA", v6(func(b []byte) []byte { return b[:60] }), ErrShort},
		{"length beyond the frame", v6(func(b []byte) []byte { b[19] = 200; return b }), ErrShort},
		{"routed NA", v6(func(b []byte) []byte { b[21] = 64; return b }), ErrMalform},
		{"code", v6(func(b []byte) []byte { b[55] = 1; return b }), ErrMalform},
		{"UDP", v6(func(b []byte) []byte { b[20] = 17; return b }), ErrOther},
		{"checksum", v6(func(b []byte) []byte { b[56] ^= 1; return b }), ErrChecksum},
		{"option of length 0", v6(func(b []byte) []byte { return patched(b, 14+ipv6Len+25, 0) }), ErrMalform},
		{"option beyond the message", v6(func(b []byte) []byte { return patched(b, 14+ipv6Len+25, 9) }), ErrMalform},
		{"other option alone", v6(func(b []byte) []byte { return patched(b, 14+ipv6Len+24, 14) }), ErrOther},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if a, err := ParseAnnouncement(tt.frame); !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v, want %v", a, err, tt.want)
			}
		})
	}
}

// patched changes one byte of an advertisement and puts the checksum right.
func patched(b []byte, at int, v byte) []byte {
	b[at] = v
	b[56], b[57] = 0, 0
	src, dst := netip.AddrFrom16([16]byte(b[22:38])), netip.AddrFrom16([16]byte(b[38:54]))
	sum := checksum6(src, dst, b[54:54+naLen])
	b[56], b[57] = byte(sum>>8), byte(sum)
	return b
}

// FuzzParseAnnouncement: no bytes make it panic, and what it takes, made
// anew, says the same.
func FuzzParseAnnouncement(f *testing.F) {
	f.Add(Announce(Announcement{netip.MustParseAddr("10.1.0.9"), overlay.MAC{2, 0, 0, 0, 0, 1}}))
	f.Add(Announce(Announcement{netip.MustParseAddr("fd00::9"), overlay.MAC{2, 0, 0, 0, 0, 1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAnnouncement(b)
		if err != nil {
			return
		}
		if a.IP.Is4In6() {
			return // an advertisement of a mapped address has no ARP form
		}
		if again, err := ParseAnnouncement(Announce(a)); err != nil || again != a {
			t.Errorf("took %v, made anew %v, %v", a, again, err)
		}
	})
}
