package answer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

var (
	host  = overlay.MAC{2, 0, 0, 0, 0, 1}
	guest = overlay.MAC{0x52, 0x54, 0, 0, 0, 2}
	own   = addr("10.1.0.9")
	v4    = V4{
		MAC: host, Server: addr("10.1.255.254"), Addr: netip.MustParsePrefix("10.1.0.9/16"), Gateway: addr("10.1.0.1"),
		MTU: 1450, DNS: []netip.Addr{addr("10.1.0.2"), addr("fd00::2"), addr("10.1.0.3")}, Search: []string{"a.example"}, Seconds: 3600,
		Routes: []Route{{netip.MustParsePrefix("10.2.0.0/17"), addr("10.1.0.7")}},
	}
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func ip(s string) []byte { return addr(s).AsSlice() }

// ask4 is a client's frame in udhcpc's shape, read as an agent reads it.
func ask4(t testing.TB, typ uint8, has string, broadcast bool, options ...byte) packet.DHCP4 {
	t.Helper()
	b := make([]byte, packet.DHCPFixed4)
	b[0], b[1], b[2] = 1, 1, 6
	binary.BigEndian.PutUint32(b[4:], 0xabcd1234)
	if broadcast {
		b[10] = 0x80
	}
	if has != "" {
		copy(b[12:], ip(has))
	}
	copy(b[28:], guest[:])
	binary.BigEndian.PutUint32(b[236:], packet.DHCPMagic4)
	b = append(b, 53, 1, typ, 61, 7, 1)
	b = append(b, guest[:]...)
	b = append(append(b, options...), 57, 2, 2, 64, 55, 4, 1, 3, 6, 12, 255)
	f := packet.UDP(packet.Broadcast, guest, netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), b)
	m, d := packet.ReadDHCP4(packet.FromGuest, f, len(f))
	if d != packet.Taken {
		t.Fatal(d)
	}
	return m
}

// options4Of are the options of a reply, in order.
func options4Of(t interface{ Fatal(...any) }, frame []byte) (order []byte, all map[byte][]byte) {
	all = map[byte][]byte{}
	b := frame[14+20+8+packet.DHCPFixed4:]
	for len(b) > 0 && b[0] != 255 {
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		order = append(order, b[0])
		n := 2 + int(b[1])
		all[b[0]] = b[2:n]
		b = b[n:]
	}
	if len(b) == 0 {
		t.Fatal("no end mark")
	}
	return order, all
}

func opt(code byte, v []byte) []byte { return append([]byte{code, byte(len(v))}, v...) }

func TestDHCP4(t *testing.T) {
	mine := opt(54, v4.Server.AsSlice())
	none := func(*V4) {}
	tests := []struct {
		name      string
		typ       uint8
		has       string
		broadcast bool
		options   []byte
		change    func(*V4)
		silence   Silence
		want      uint8  // message type
		to        string // IPv4 destination
	}{
		{"discover", packet.Discover4, "", false, nil, none, Spoken, packet.Offer4, "10.1.0.9"},
		{"discover of one who takes no unicast", packet.Discover4, "", true, nil, none, Spoken, packet.Offer4, "255.255.255.255"},
		{"discover with another wish", packet.Discover4, "", false, opt(50, ip("10.1.0.77")), none, Spoken, packet.Offer4, "10.1.0.9"},
		{"rapid discover", packet.Discover4, "", false, opt(80, nil), none, Spoken, packet.Ack4, "10.1.0.9"},
		{"selecting", packet.Request4, "", false, append(opt(50, ip("10.1.0.9")), mine...), none, Spoken, packet.Ack4, "10.1.0.9"},
		{"selecting another address", packet.Request4, "", false, append(opt(50, ip("10.1.0.10")), mine...), none, Spoken, packet.Nak4, "255.255.255.255"},
		{"selecting another server", packet.Request4, "", false, append(opt(50, ip("10.1.0.9")), opt(54, ip("10.1.0.66"))...), none, OtherServer, 0, ""},
		{"init-reboot", packet.Request4, "", false, opt(50, ip("10.1.0.9")), none, Spoken, packet.Ack4, "10.1.0.9"},
		{"init-reboot elsewhere", packet.Request4, "", false, opt(50, ip("192.0.2.7")), none, Spoken, packet.Nak4, "255.255.255.255"},
		{"renewing", packet.Request4, "10.1.0.9", false, nil, none, Spoken, packet.Ack4, "10.1.0.9"},
		{"rebinding, broadcast flag", packet.Request4, "10.1.0.9", true, nil, none, Spoken, packet.Ack4, "10.1.0.9"},
		{"renewing another", packet.Request4, "10.1.0.10", false, nil, none, Spoken, packet.Nak4, "255.255.255.255"},
		{"asking for nothing", packet.Request4, "", false, nil, none, Spoken, packet.Nak4, "255.255.255.255"},
		{"inform", packet.Inform4, "10.1.0.200", false, nil, none, Spoken, packet.Ack4, "10.1.0.200"},
		{"inform of one without address", packet.Inform4, "", false, nil, none, Malformed, 0, ""},
		{"decline", packet.Decline4, "", false, opt(50, ip("10.1.0.9")), none, NotAsked, 0, ""},
		{"release", packet.Release4, "10.1.0.9", false, mine, none, NotAsked, 0, ""},
		{"no address for the guest", packet.Discover4, "", false, nil, func(c *V4) { c.Addr = netip.Prefix{} }, NoAddress, 0, ""},
		{"an IPv6 address for the guest", packet.Request4, "", false, nil, func(c *V4) { c.Addr = netip.MustParsePrefix("fd00::1/64") }, NoAddress, 0, ""},
		{"no lease time", packet.Discover4, "", false, nil, func(c *V4) { c.Seconds = 0 }, NoAddress, 0, ""},
		{"no server", packet.Discover4, "", false, nil, func(c *V4) { c.Server = netip.Addr{} }, NoAddress, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := v4
			tt.change(&c)
			b, s := DHCP4(ask4(t, tt.typ, tt.has, tt.broadcast, tt.options...), c)
			if s != tt.silence || (b == nil) != (s != Spoken) {
				t.Fatalf("%v, % x; want %v", s, b, tt.silence)
			}
			if s != Spoken {
				return
			}
			m, d := packet.ReadDHCP4(packet.ToGuest, b, len(b))
			if d != packet.Taken || m.Type != tt.want || m.XID != 0xabcd1234 || m.MAC != guest || m.Server != c.Server || m.Broadcast != tt.broadcast ||
				!bytes.Equal(m.ClientID, append([]byte{1}, guest[:]...)) {
				t.Errorf("%v, %+v", d, m)
			}
			dst := guest
			if tt.to == "255.255.255.255" {
				dst = packet.Broadcast
			}
			if got := netip.AddrFrom4([4]byte(b[30:34])); got != addr(tt.to) || overlay.MAC(b[:6]) != dst || overlay.MAC(b[6:12]) != host {
				t.Errorf("to %v, % x", got, b[:14])
			}
			_, o := options4Of(t, b)
			switch {
			case tt.want == packet.Nak4:
				if m.Yours.IsValid() || m.Has.IsValid() || m.Timed || len(o) != 3 {
					t.Errorf("a refusal that gives: %+v, %v", m, o)
				}
			case tt.typ == packet.Inform4:
				if m.Yours.IsValid() || m.Timed || o[58] != nil || o[1] == nil {
					t.Errorf("parameters alone: %+v, %v", m, o)
				}
			default:
				if m.Yours != own || m.Seconds != 3600 {
					t.Errorf("the lease: %+v", m)
				}
			}
		})
	}
}

// TestDHCP4Bytes: an offer, octet by octet, as RFC 2131 and 2132 draw it.
func TestDHCP4Bytes(t *testing.T) {
	b, _ := DHCP4(ask4(t, packet.Discover4, "", false), v4)
	zero := func(n int) string { return strings.Repeat("00", n) }
	want := "525400000002" + "020000000001" + "0800" +
		"450001720000000040110000" + "0a01fffe" + "0a010009" + "00430044015e0000" +
		"02010600" + "abcd1234" + "00000000" + "00000000" + "0a010009" + "00000000" + "00000000" + "525400000002" + zero(10+64+128) + "63825363" +
		"350102" + "36040a01fffe" + "3d0701525400000002" + "330400000e10" + "3a0400000708" + "3b0400000c4e" + "0104ffff0000" + "03040a010001" + "1a0205aa" +
		"06080a0100020a010003" + "790d" + "110a0200" + "0a010007" + "00" + "0a010001" +
		"0f09612e6578616d706c65" + "770b" + "0161076578616d706c6500" + "ff"
	got := hex.EncodeToString(b)
	i, j := 24*2, 40*2 // the checksums are read back by the parser
	if got[:i] != want[:i] || got[i+4:j] != want[i+4:j] || got[j+4:] != want[j+4:] {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
}

// TestDHCP4Fits: what does not fit is left out whole, what the guest needs to
// run is there, and a message is never short of what old clients expect.
func TestDHCP4Fits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := v4
		c.MTU = rapid.Uint16().Draw(rt, "mtu")
		c.Seconds = rapid.Uint32Min(1).Draw(rt, "seconds")
		c.DNS, c.Routes, c.Search = nil, nil, nil
		for range rapid.IntRange(0, 80).Draw(rt, "dns") {
			c.DNS = append(c.DNS, own)
		}
		for range rapid.IntRange(0, 40).Draw(rt, "routes") {
			c.Routes = append(c.Routes, Route{netip.PrefixFrom(own, rapid.IntRange(0, 32).Draw(rt, "bits")), c.Gateway})
		}
		for range rapid.IntRange(0, 6).Draw(rt, "search") {
			c.Search = append(c.Search, rapid.StringMatching(`[a-z.]{0,70}`).Draw(rt, "name"))
		}
		m := ask4(t, packet.Discover4, "", rapid.Bool().Draw(rt, "broadcast"))
		m.MaxSize = rapid.Uint16().Draw(rt, "max")
		b, s := DHCP4(m, c)
		limit := min(max(576, int(m.MaxSize)), max(576, int(c.MTU)), 1500)
		if s != Spoken || len(b) < 14+28+300 || len(b) > 14+limit {
			rt.Fatalf("%v, %d bytes, at most %d", s, len(b), 14+limit)
		}
		f, d := packet.Parse(packet.ToGuest, b, len(b))
		if d != packet.Taken || f.Kind != packet.DHCPOffer || f.IP != own || f.Seconds != c.Seconds || f.Server != c.Server || f.MAC != guest {
			rt.Fatalf("%v, %+v", d, f)
		}
		order, o := options4Of(rt, b)
		if o[1] == nil || o[3] == nil || (o[26] != nil) != (c.MTU >= 68) || slices.Index(order, 1) > slices.Index(order, 3) {
			rt.Fatalf("options %v", order)
		}
		if (o[58] != nil) != (c.Seconds != Forever) {
			rt.Fatalf("seconds %d: renewal %v", c.Seconds, o[58])
		}
		if o[58] != nil {
			t1, t2 := binary.BigEndian.Uint32(o[58]), binary.BigEndian.Uint32(o[59])
			if t1 > t2 || t2 > c.Seconds || t1 != c.Seconds/2 {
				rt.Fatalf("T1 %d, T2 %d of %d", t1, t2, c.Seconds)
			}
		}
		if r := o[121]; r != nil && !bytes.Equal(r, c.routes()) {
			rt.Fatalf("half a list of routes: % x", r)
		}
	})
}

func TestRoutes4(t *testing.T) {
	c := V4{Gateway: addr("10.0.0.1"), Routes: []Route{
		{netip.MustParsePrefix("10.17.5.0/24"), addr("10.0.0.2")},   // RFC 3442's first example of a /24
		{netip.MustParsePrefix("10.229.0.128/25"), addr("0.0.0.0")}, // on the link
		{netip.MustParsePrefix("fd00::/64"), addr("10.0.0.2")},
	}}
	if got, want := hex.EncodeToString(c.routes()), "180a1105"+"0a000002"+"190ae50080"+"00000000"+"00"+"0a000001"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	c.Routes = append(c.Routes, Route{netip.MustParsePrefix("0.0.0.0/0"), addr("10.0.0.9")})
	if got, want := hex.EncodeToString(c.routes()), "180a1105"+"0a000002"+"190ae50080"+"00000000"+"00"+"0a000009"; got != want {
		t.Errorf("a default of its own: got %s, want %s", got, want)
	}
	if got := (V4{Gateway: c.Gateway}).routes(); got != nil {
		t.Errorf("no routes: % x", got)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"eng.example":                   "03656e67076578616d706c6500",
		"eng.example.":                  "03656e67076578616d706c6500",
		"":                              "",
		"a..b":                          "",
		strings.Repeat("a", 64):         "",
		strings.Repeat("aaaaaaa.", 32):  "",
		strings.Repeat("a.", 126) + "a": strings.Repeat("0161", 127) + "00",
	} {
		if got := hex.EncodeToString(names([]string{name})); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func TestSilences(t *testing.T) {
	for i, want := range []string{"spoken", "not-asked", "other-server", "no-address", "malformed", "unknown"} {
		if got := Silence(i).String(); got != want {
			t.Errorf("%d: %q, want %q", i, got, want)
		}
	}
}
