package answer

import (
	"encoding/hex"
	"net/netip"
	"testing"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

func TestAdvertise(t *testing.T) {
	r := Router{
		MAC: host, IP: mine6, Seconds: 1800, Managed: true, Other: true, MTU: 1450, Lifetime: 600,
		Prefixes: []Prefix{
			{Prefix: netip.MustParsePrefix("fd00:1::7/64"), OnLink: true, Auto: true, Valid: 7200, Preferred: Forever},
			{Prefix: netip.MustParsePrefix("10.0.0.0/8")},
			{Prefix: netip.MustParsePrefix("fd00:2::/64"), OnLink: true, Valid: 100, Preferred: 50},
		},
		DNS: []netip.Addr{addr("fd00:1::2"), addr("fd00:1::3")}, Search: []string{"a.example"},
	}
	// RFC 4861 section 4.2 and 4.6, RFC 8106 section 5.
	want := "40" + "c0" + "0708" + "00000000" + "00000000" + "0101020000000001" + "05010000000005aa" +
		"030440c0" + "00001c20" + "00001c20" + "00000000" + "fd000001000000000000000000000000" +
		"03044080" + "00000064" + "00000032" + "00000000" + "fd000002000000000000000000000000" +
		"19050000" + "00000258" + "fd000001000000000000000000000002" + "fd000001000000000000000000000003" +
		"1f030000" + "00000258" + "0161076578616d706c65000000000000"
	b := Advertise(r, guest, netip.Addr{})
	if got := hex.EncodeToString(b[14+40+4:]); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	f, d := packet.Parse(packet.ToGuest, b, len(b))
	if d != packet.Taken || f.Kind != packet.RouterAdvert || f.IP != mine6 || f.Seconds != 1800 || f.Dst != (overlay.MAC{0x33, 0x33, 0, 0, 0, 1}) {
		t.Errorf("to all: %v, %+v", d, f)
	}
	b = Advertise(r, guest, link)
	if f, d := packet.Parse(packet.ToGuest, b, len(b)); d != packet.Taken || f.Dst != guest || netip.AddrFrom16([16]byte(b[38:54])) != link {
		t.Errorf("to one: %v, %+v", d, f)
	}
	b = Advertise(Router{MAC: host, IP: mine6, MTU: 1279}, guest, link)
	if got := hex.EncodeToString(b[14+40+4:]); got != "40"+"00"+"0000"+"00000000"+"00000000"+"0101020000000001" {
		t.Errorf("nothing to tell: %s", got)
	}
	if b := Advertise(Router{MAC: host, IP: own}, guest, netip.Addr{}); b != nil {
		t.Errorf("an IPv4 router: % x", b)
	}
}
