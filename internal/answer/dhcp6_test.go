package answer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/packet"
)

var (
	own6  = addr("fd00:1::9")
	link  = addr("fe80::5054:ff:fe00:2")
	mine6 = addr("fe80::ff:fe00:1")
	duid  = []byte{0, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	v6    = V6{
		MAC: host, Server: mine6, Addrs: []netip.Addr{own6}, Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64")},
		DNS: []netip.Addr{addr("fd00:1::2"), addr("10.1.0.2")}, Search: []string{"a.example"}, Seconds: 3600,
	}
)

func opt6(code uint16, v []byte) []byte {
	var o options6
	o.add(code, v)
	return o
}

func ia(typ uint16, id uint32, addrs ...string) []byte {
	v := options6(be32(id))
	if typ == packet.OptIANA6 {
		v = append(v, make([]byte, 8)...)
	}
	for _, a := range addrs {
		v.address(addr(a), 0)
	}
	return opt6(typ, v)
}

// ask6 is a client's frame, read as an agent reads it.
func ask6(t testing.TB, typ uint8, options ...[]byte) packet.DHCP6 {
	t.Helper()
	b := append([]byte{typ, 0xab, 0xcd, 0xef}, bytes.Join(options, nil)...)
	f := packet.UDP(host, guest, netip.AddrPortFrom(link, 546), netip.MustParseAddrPort("[ff02::1:2]:547"), b)
	m, d := packet.ReadDHCP6(packet.FromGuest, f, len(f))
	if d != packet.Taken {
		t.Fatal(d)
	}
	return m
}

// statuses are the status codes of a reply: of the message, and of each of
// its associations (-1: none).
func statuses(t *testing.T, frame []byte) (message int, each []int) {
	t.Helper()
	var walk func(b []byte, top bool) int
	walk = func(b []byte, top bool) int {
		status := -1
		for len(b) >= 4 {
			code, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
			v := b[4 : 4+n]
			b = b[4+n:]
			switch code {
			case packet.OptStatus6:
				status = int(binary.BigEndian.Uint16(v))
			case packet.OptIANA6:
				each = append(each, walk(v[12:], false))
			case packet.OptIATA6:
				each = append(each, walk(v[4:], false))
			}
		}
		return status
	}
	return walk(frame[14+40+8+4:], true), each
}

func TestDHCP6(t *testing.T) {
	client, server := opt6(packet.OptClientID6, duid), opt6(packet.OptServerID6, v6.ServerID())
	other := opt6(packet.OptServerID6, []byte{0, 3, 0, 1, 9, 9, 9, 9, 9, 9})
	na := packet.OptIANA6
	given := packet.Lease6{IP: own6, Seconds: 3600}
	type leases = []packet.Lease6
	tests := []struct {
		name    string
		typ     uint8
		options [][]byte
		silence Silence
		want    uint8
		leases  leases
		message int
		each    []int
	}{
		{"solicit", packet.Solicit6, [][]byte{client, ia(na, 7)}, Spoken, packet.Advertise6, leases{given}, -1, []int{-1}},
		{"rapid solicit", packet.Solicit6, [][]byte{client, opt6(packet.OptRapid6, nil), ia(na, 7)}, Spoken, packet.Reply6, leases{given}, -1, []int{-1}},
		{"solicit with a wish", packet.Solicit6, [][]byte{client, ia(na, 7, "fd00:1::77")}, Spoken, packet.Advertise6, leases{given}, -1, []int{-1}},
		{"solicit of two", packet.Solicit6, [][]byte{client, ia(na, 7), ia(na, 8)}, Spoken, packet.Advertise6, leases{given}, -1, []int{-1, 2}},
		{"the one that has it", packet.Request6, [][]byte{client, server, ia(na, 7), ia(na, 8, "fd00:1::9")}, Spoken, packet.Reply6, leases{given}, -1, []int{2, -1}},
		{"temporary", packet.Solicit6, [][]byte{client, ia(packet.OptIATA6, 7), ia(na, 8)}, Spoken, packet.Advertise6, leases{given}, -1, []int{2, -1}},
		{"solicit without identity", packet.Solicit6, [][]byte{ia(na, 7)}, Malformed, 0, nil, 0, nil},
		{"solicit of a server", packet.Solicit6, [][]byte{client, server, ia(na, 7)}, Malformed, 0, nil, 0, nil},
		{"request", packet.Request6, [][]byte{client, server, ia(na, 7, "fd00:1::9")}, Spoken, packet.Reply6, leases{given}, -1, []int{-1}},
		{"request without server", packet.Request6, [][]byte{client, ia(na, 7)}, Malformed, 0, nil, 0, nil},
		{"request of another server", packet.Request6, [][]byte{client, other, ia(na, 7)}, OtherServer, 0, nil, 0, nil},
		{"renew", packet.Renew6, [][]byte{client, server, ia(na, 7, "fd00:1::9")}, Spoken, packet.Reply6, leases{given}, -1, []int{-1}},
		{"renew of another address", packet.Renew6, [][]byte{client, server, ia(na, 7, "fd00:1::77")}, Spoken, packet.Reply6, leases{given, {IP: addr("fd00:1::77")}}, -1, []int{-1}},
		{"rebind", packet.Rebind6, [][]byte{client, ia(na, 7, "fd00:1::9"), ia(na, 8, "fd00:1::10")}, Spoken, packet.Reply6, leases{given, {IP: addr("fd00:1::10")}}, -1, []int{-1, 3}},
		{"rebind of a server", packet.Rebind6, [][]byte{client, server, ia(na, 7)}, Malformed, 0, nil, 0, nil},
		{"confirm", packet.Confirm6, [][]byte{client, ia(na, 7, "fd00:1::9")}, Spoken, packet.Reply6, nil, 0, nil},
		{"confirm elsewhere", packet.Confirm6, [][]byte{client, ia(na, 7, "fd00:2::9")}, Spoken, packet.Reply6, nil, 4, nil},
		{"confirm of nothing", packet.Confirm6, [][]byte{client, ia(na, 7)}, NoAddress, 0, nil, 0, nil},
		{"release", packet.Release6, [][]byte{client, server, ia(na, 7, "fd00:1::9")}, Spoken, packet.Reply6, nil, 0, nil},
		{"decline", packet.Decline6, [][]byte{client, server, ia(na, 7, "fd00:1::9")}, Spoken, packet.Reply6, nil, 0, nil},
		{"information", packet.Information6, nil, Spoken, packet.Reply6, nil, -1, nil},
		{"information of another server", packet.Information6, [][]byte{other}, OtherServer, 0, nil, 0, nil},
		{"information with an association", packet.Information6, [][]byte{client, ia(na, 7)}, Malformed, 0, nil, 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := ask6(t, tt.typ, tt.options...)
			b, s := DHCP6(q, v6)
			if s != tt.silence || (b == nil) != (s != Spoken) {
				t.Fatalf("%v, % x; want %v", s, b, tt.silence)
			}
			if s != Spoken {
				return
			}
			m, d := packet.ReadDHCP6(packet.ToGuest, b, len(b))
			if d != packet.Taken || m.Type != tt.want || m.XID != 0xabcdef || m.MAC != guest || m.From != mine6 || !bytes.Equal(m.ServerID, v6.ServerID()) ||
				!bytes.Equal(m.ClientID, q.ClientID) || m.Rapid != (q.Rapid && tt.typ == packet.Solicit6) {
				t.Errorf("%v, %+v", d, m)
			}
			if got := netip.AddrFrom16([16]byte(b[38:54])); got != link {
				t.Errorf("to %v", got)
			}
			if got := m.Leases[:m.NLease]; len(got) != len(tt.leases) || !equal(got, tt.leases) {
				t.Errorf("leases %v, want %v", got, tt.leases)
			}
			message, each := statuses(t, b)
			if message != tt.message || len(each) != len(tt.each) || !equal(each, tt.each) {
				t.Errorf("status %d, %v; want %d, %v", message, each, tt.message, tt.each)
			}
			dns := addr("fd00:1::2").As16()
			parameters := tt.typ != packet.Confirm6 && tt.typ != packet.Release6 && tt.typ != packet.Decline6
			if bytes.Contains(b, append([]byte{0, 23, 0, 16}, dns[:]...)) != parameters || bytes.Contains(b, []byte("\x07example\x00")) != parameters {
				t.Errorf("parameters in % x", b)
			}
			for i, a := range m.IAs[:m.NIA] {
				if a.Type != q.IAs[i].Type || a.ID != q.IAs[i].ID {
					t.Errorf("association %d: %+v, asked %+v", i, a, q.IAs[i])
				}
			}
		})
	}
}

func equal[T comparable](a, b []T) bool {
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return false
		}
	}
	return len(a) == len(b)
}

// TestDHCP6Addresses: a guest that has several is given each once, where it
// says it has it, else where there is none yet.
func TestDHCP6Addresses(t *testing.T) {
	client, server := opt6(packet.OptClientID6, duid), opt6(packet.OptServerID6, v6.ServerID())
	na := packet.OptIANA6
	for _, c := range []struct {
		name    string
		typ     uint8
		addrs   string
		options [][]byte
		want    string // by association: ID, addresses with their seconds, status
	}{
		{"one association", packet.Solicit6, "9 a b", [][]byte{client, ia(na, 7)}, "7 9/3600 a/3600 b/3600"},
		{"what was advertised", packet.Request6, "9 a b", [][]byte{client, server, ia(na, 7, "fd00:1::9", "fd00:1::a", "fd00:1::b")}, "7 9/3600 a/3600 b/3600"},
		{"two associations", packet.Solicit6, "9 a b", [][]byte{client, ia(na, 7), ia(na, 8)}, "7 9/3600 b/3600; 8 a/3600"},
		{"more associations than addresses", packet.Solicit6, "9 a", [][]byte{client, ia(na, 7), ia(na, 8), ia(na, 6)}, "7 9/3600; 8 a/3600; 6 status 2"},
		{"each as it has them", packet.Renew6, "9 a", [][]byte{client, server, ia(na, 7, "fd00:1::a"), ia(na, 8, "fd00:1::9")}, "7 a/3600; 8 9/3600"},
		{"one is new", packet.Renew6, "9 a", [][]byte{client, server, ia(na, 7, "fd00:1::a")}, "7 a/3600 9/3600"},
		{"one is gone", packet.Rebind6, "9 a", [][]byte{client, ia(na, 7, "fd00:1::9", "fd00:1::b", "fd00:1::a")}, "7 9/3600 a/3600 b/0"},
		{"one is named twice", packet.Renew6, "9 a", [][]byte{client, server, ia(na, 7, "fd00:1::9"), ia(na, 8, "fd00:1::9")}, "7 9/3600; 8 a/3600 9/0"},
		{"temporary only", packet.Solicit6, "9 a", [][]byte{client, ia(packet.OptIATA6, 7)}, "7 status 2"},
		{"all others", packet.Rebind6, "1 2 3 4 5 6 7 8", [][]byte{client, ia(na, 7, "fd00:1::a1", "fd00:1::a2", "fd00:1::a3", "fd00:1::a4", "fd00:1::a5", "fd00:1::a6", "fd00:1::a7", "fd00:1::a8", "fd00:1::a9")},
			"7 1/3600 2/3600 3/3600 4/3600 5/3600 6/3600 7/3600 8/3600 a1/0 a2/0 a3/0 a4/0 a5/0 a6/0 a7/0 a8/0"},
		{"more than are given", packet.Solicit6, "1 2 3 4 5 6 7 8 9", [][]byte{client, ia(na, 7)}, "7 1/3600 2/3600 3/3600 4/3600 5/3600 6/3600 7/3600 8/3600"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := v6
			cfg.Addrs = nil
			for _, a := range strings.Fields(c.addrs) {
				cfg.Addrs = append(cfg.Addrs, addr("fd00:1::"+a))
			}
			b, s := DHCP6(ask6(t, c.typ, c.options...), cfg)
			if s != Spoken {
				t.Fatal(s)
			}
			m, d := packet.ReadDHCP6(packet.ToGuest, b, len(b))
			if d != packet.Taken {
				t.Fatal(d)
			}
			_, each := statuses(t, b)
			var got []string
			for i, ia := range m.IAs[:m.NIA] {
				w := fmt.Sprint(ia.ID)
				for _, l := range m.Leases[ia.First : ia.First+ia.N] {
					w += fmt.Sprintf(" %s/%d", strings.TrimPrefix(l.IP.String(), "fd00:1::"), l.Seconds)
				}
				if each[i] >= 0 {
					w += fmt.Sprintf(" status %d", each[i])
				}
				got = append(got, w)
			}
			if g := strings.Join(got, "; "); g != c.want {
				t.Errorf("given %q, want %q", g, c.want)
			}
		})
	}

	c := v6
	c.Prefixes = append(c.Prefixes, netip.MustParsePrefix("fd00:2::/64"))
	b, _ := DHCP6(ask6(t, packet.Confirm6, client, ia(na, 7, "fd00:1::9", "fd00:2::9")), c)
	if message, _ := statuses(t, b); message != statusSuccess {
		t.Errorf("addresses of two subnets of the link are confirmed with status %d", message)
	}
	// A list that does not fit beside the rest is left out whole.
	for i := range 40 {
		c.Search = append(c.Search, fmt.Sprintf("%d.a-domain-with-a-long-name.example", i))
	}
	b, s := DHCP6(ask6(t, packet.Information6), c)
	if s != Spoken || len(b) > 1280+14 || bytes.Contains(b, []byte("\x07example\x00")) || !bytes.Contains(b, []byte{0, 23, 0, 16}) {
		t.Errorf("%v, %d bytes: % x", s, len(b), b)
	}
}

// TestDHCP6WithoutAddress: a guest without an address learns that, and the
// rest.
func TestDHCP6WithoutAddress(t *testing.T) {
	c := v6
	c.Addrs = nil
	b, s := DHCP6(ask6(t, packet.Solicit6, opt6(packet.OptClientID6, duid), ia(packet.OptIANA6, 7)), c)
	if s != Spoken {
		t.Fatal(s)
	}
	if message, each := statuses(t, b); message != -1 || !equal(each, []int{statusNoAddrs}) {
		t.Errorf("status %d, %v", message, each)
	}
	c.Server = netip.Addr{}
	if b, s := DHCP6(ask6(t, packet.Information6), c); b != nil || s != NoAddress {
		t.Errorf("without a server: %v, % x", s, b)
	}
	c = v6
	c.Prefixes = nil
	if _, s := DHCP6(ask6(t, packet.Confirm6, opt6(packet.OptClientID6, duid), ia(packet.OptIANA6, 7, "fd00:1::9")), c); s != NoAddress {
		t.Errorf("a link without prefix confirms: %v", s)
	}
}

// TestDHCP6Bytes: an advertisement, octet by octet, as RFC 8415 draws it.
func TestDHCP6Bytes(t *testing.T) {
	b, _ := DHCP6(ask6(t, packet.Solicit6, opt6(packet.OptClientID6, duid), ia(packet.OptIANA6, 7)), v6)
	want := "02abcdef" + "00010012" + hex.EncodeToString(duid) + "0002000a" + "00030001" + "020000000001" +
		"00030028" + "00000007" + "00000708" + "00000b40" + "00050018" + "fd000001000000000000000000000009" + "00000e10" + "00000e10" +
		"00170010" + "fd000001000000000000000000000002" + "0018000b" + "0161076578616d706c6500"
	if got := hex.EncodeToString(b[14+40+8:]); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// FuzzAnswer: whatever a guest asks, an answer is a sound frame to that guest
// that gives it no address but its own, and each of these once.
func FuzzAnswer(f *testing.F) {
	f.Add(false, uint8(1), packet.Discover4, []byte{50, 4, 10, 1, 0, 9, 255})
	f.Add(false, uint8(1), packet.Request4, []byte{50, 4, 10, 1, 0, 9, 54, 4, 10, 1, 255, 254, 61, 2, 1, 2, 255})
	f.Add(true, uint8(2), packet.Solicit6, append(opt6(packet.OptClientID6, duid), ia(packet.OptIANA6, 7, "fd00:1::77")...))
	f.Add(true, uint8(9), packet.Renew6, append(append(opt6(packet.OptClientID6, duid), opt6(packet.OptServerID6, v6.ServerID())...), ia(packet.OptIANA6, 7, "fd00:1::9")...))
	f.Fuzz(func(t *testing.T, six bool, addrs, typ uint8, options []byte) {
		if len(options) > 1200 {
			return
		}
		var b []byte
		c6, many := v6, int(addrs%12)
		c6.Addrs = nil
		for i := range many {
			c6.Addrs = append(c6.Addrs, addr(fmt.Sprintf("fd00:1::%x", 9+i)))
		}
		if six {
			q := packet.UDP(host, guest, netip.AddrPortFrom(link, 546), netip.MustParseAddrPort("[ff02::1:2]:547"), append([]byte{typ, 1, 2, 3}, options...))
			m, d := packet.ReadDHCP6(packet.FromGuest, q, len(q))
			if d != packet.Taken {
				return
			}
			var s Silence
			if b, s = DHCP6(m, c6); (s == Spoken) != (b != nil) {
				t.Fatalf("%v, % x", s, b)
			}
		} else {
			h := make([]byte, packet.DHCPFixed4)
			h[0], h[1], h[2] = 1, 1, 6
			copy(h[28:], guest[:])
			binary.BigEndian.PutUint32(h[236:], packet.DHCPMagic4)
			q := packet.UDP(packet.Broadcast, guest, netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"),
				append(append(h, 53, 1, typ), options...))
			m, d := packet.ReadDHCP4(packet.FromGuest, q, len(q))
			if d != packet.Taken {
				return
			}
			var s Silence
			if b, s = DHCP4(m, v4); (s == Spoken) != (b != nil) {
				t.Fatalf("%v, % x", s, b)
			}
		}
		if b == nil {
			return
		}
		got, d := packet.Parse(packet.ToGuest, b, len(b))
		switch {
		case d != packet.Taken || got.MAC != guest || got.Src != host || len(b) > 1514:
			t.Fatalf("%v, %+v, %d bytes", d, got, len(b))
		case !six && got.IP.IsValid() && got.IP != own:
			t.Fatalf("another's address: %+v", got)
		}
		if !six {
			return
		}
		m, d := packet.ReadDHCP6(packet.ToGuest, b, len(b))
		if d != packet.Taken {
			t.Fatal(d)
		}
		given := map[netip.Addr]bool{}
		for _, l := range m.Leases[:m.NLease] {
			if l.Seconds == 0 {
				continue
			}
			if given[l.IP] || !slices.Contains(c6.Addrs, l.IP) {
				t.Fatalf("%v is given of %v, after %v", l.IP, c6.Addrs, given)
			}
			given[l.IP] = true
		}
		if want := min(many, MostGiven); len(given) > 0 && len(given) != want {
			t.Fatalf("%d addresses are given, want %d", len(given), want)
		}
	})
}
