package plan

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

var (
	mac  = overlay.MAC{0x52, 0x54, 0, 0, 0, 1}
	vtep = netip.MustParseAddr("192.0.2.2")
	ip4  = netip.MustParseAddr("10.0.0.1")
	ip6  = netip.MustParseAddr("fd00::1")
)

func TestRows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		e    Endpoint
		want string
	}{
		"elsewhere, both families: FDBs, list, then neighbours": {
			Endpoint{VNI: 42, MAC: mac, Addrs: []netip.Addr{ip4, ip6}, VTEP: vtep},
			`source 42 52:54:00:00:00:01 via 192.0.2.2
fdb 42 52:54:00:00:00:01 dst 192.0.2.2 static,extern_learn
master 42 52:54:00:00:00:01 dev cvx42 static,extern_learn
repl 42 dst 192.0.2.2
neigh 42 10.0.0.1 lladdr 52:54:00:00:00:01 permanent,culvert
neigh 42 fd00::1 lladdr 52:54:00:00:00:01 permanent,culvert`,
		},
		"elsewhere without flooding: no place in the list": {
			Endpoint{VNI: 42, MAC: mac, Addrs: []netip.Addr{ip4}, VTEP: vtep, Flood: overlay.FloodNone},
			`source 42 52:54:00:00:00:01 via 192.0.2.2
fdb 42 52:54:00:00:00:01 dst 192.0.2.2 static,extern_learn
master 42 52:54:00:00:00:01 dev cvx42 static,extern_learn
neigh 42 10.0.0.1 lladdr 52:54:00:00:00:01 permanent,culvert`,
		},
		"here: its own port, and no address of it": {
			Endpoint{VNI: 42, MAC: mac, Addrs: []netip.Addr{ip4, ip6}, Port: 7},
			`master 42 52:54:00:00:00:01 dev if7 static,sticky`,
		},
		"here, though a binding says elsewhere: here": {
			Endpoint{VNI: 42, MAC: mac, Addrs: []netip.Addr{ip4}, Port: 7, VTEP: vtep},
			`master 42 52:54:00:00:00:01 dev if7 static,sticky`,
		},
		"moved here: what its former host relays and had sent": {
			Endpoint{VNI: 42, MAC: mac, Port: 7, Sources: []netip.Addr{vtep}, Relays: []netip.Addr{vtep}},
			`source 42 52:54:00:00:00:01 via 192.0.2.2
relayed 42 52:54:00:00:00:01 via 192.0.2.2
master 42 52:54:00:00:00:01 dev if7 static,sticky`,
		},
		"sent to by another name here, and a next hop": {
			Endpoint{VNI: 42, MAC: mac, Port: 7, Alias: overlay.MAC{2, 10, 0, 0, 0, 1}, Routes: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}},
			`alias 42 02:0a:00:00:00:01 of 52:54:00:00:00:01
master 42 52:54:00:00:00:01 dev if7 static,sticky
route 42 10.9.0.0/16 via 52:54:00:00:00:01`,
		},
		"a next hop elsewhere": {
			Endpoint{VNI: 42, MAC: mac, VTEP: vtep, Flood: overlay.FloodNone, Routes: []netip.Prefix{netip.MustParsePrefix("::/0")}},
			`source 42 52:54:00:00:00:01 via 192.0.2.2
fdb 42 52:54:00:00:00:01 dst 192.0.2.2 static,extern_learn
master 42 52:54:00:00:00:01 dev cvx42 static,extern_learn
route 42 ::/0 via 52:54:00:00:00:01`,
		},
		"a next hop of which nobody knows where it is: nothing": {
			Endpoint{VNI: 42, MAC: mac, Routes: []netip.Prefix{netip.MustParsePrefix("::/0")}}, ``,
		},
		"moved away from here: relayed, last": {
			Endpoint{VNI: 42, MAC: mac, Addrs: []netip.Addr{ip4}, VTEP: vtep, Flood: overlay.FloodNone, Relay: true},
			`source 42 52:54:00:00:00:01 via 192.0.2.2
fdb 42 52:54:00:00:00:01 dst 192.0.2.2 static,extern_learn
master 42 52:54:00:00:00:01 dev cvx42 static,extern_learn
neigh 42 10.0.0.1 lladdr 52:54:00:00:00:01 permanent,culvert
relay 42 52:54:00:00:00:01`,
		},
		"on a host whose address is not known: nothing": {
			Endpoint{VNI: 42, MAC: mac, Addrs: []netip.Addr{ip4}}, ``,
		},
	} {
		var lines []string
		for _, r := range Rows(nil, c.e) {
			lines = append(lines, r.String())
		}
		if got := strings.Join(lines, "\n"); got != c.want {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, c.want)
		}
	}
}

// TestRowsAreOneEndpointsAlone: whatever the endpoint, its rows are of its own
// network and MAC, no key comes twice, a neighbour never comes before the FDB
// entry that it needs, and nothing local has an address.
func TestRowsAreOneEndpointsAlone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		e := Endpoint{
			VNI: overlay.VNI(rapid.Uint32Range(1, uint32(overlay.MaxVNI)).Draw(t, "vni")), MAC: mac,
			Port: rapid.Int32Range(0, 2).Draw(t, "port"), Flood: overlay.Flood(rapid.Uint8Range(0, 1).Draw(t, "flood")),
		}
		if rapid.Bool().Draw(t, "placed") {
			e.VTEP = vtep
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "addresses") {
			e.Addrs = append(e.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		}
		seen, fdb := map[hoststate.Key]bool{}, false
		for _, r := range Rows(nil, e) {
			k := r.Key
			if seen[k] {
				t.Fatalf("%v comes twice", r)
			}
			seen[k] = true
			if k.VNI != e.VNI || !k.MAC.IsZero() && k.MAC != e.MAC {
				t.Fatalf("%v is not of this endpoint", r)
			}
			fdb = fdb || k.Table == hoststate.TableFDB
			if k.Table == hoststate.TableNeigh && (!fdb || r.Val.MAC != e.MAC || e.Port != 0) {
				t.Fatalf("%v without its FDB entry, with another MAC, or of a local endpoint", r)
			}
		}
		union := Union([]Endpoint{e, e})
		if len(union) != len(seen) {
			t.Fatalf("union with itself has %d rows, want %d", len(union), len(seen))
		}
	})
}

// TestForeignRows: what they send is taken, and they have their copy where
// there are any.
func TestForeignRows(t *testing.T) {
	t.Parallel()
	for flood, want := range map[overlay.Flood]string{
		overlay.FloodHER: "source 10 any via 192.0.2.9; repl 10 dst 192.0.2.9", overlay.FloodNone: "source 10 any via 192.0.2.9",
	} {
		var lines []string
		for _, r := range ForeignRows(nil, 10, flood, []netip.Addr{netip.MustParseAddr("192.0.2.9")}) {
			lines = append(lines, r.String())
		}
		if got := strings.Join(lines, "; "); got != want {
			t.Errorf("rows are %q, want %q", got, want)
		}
	}
}

// TestPortRows: a device passes frames only when all else that is asked of its
// program stands.
func TestPortRows(t *testing.T) {
	t.Parallel()
	rows := PortRows(nil, Guard{Port: 7, MACs: []overlay.MAC{mac, {2, 1}}, Addrs: []netip.Addr{ip4, ip6}, Share: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Flags: hoststate.Open})
	var lines []string
	for _, r := range rows {
		lines = append(lines, r.String())
	}
	want := `own if7 02:01:00:00:00:00
own if7 10.0.0.1
own if7 fd00::1
own if7 10.0.0.9 shared
port if7 mac 52:54:00:00:00:01 open
member if7`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("rows are\n%s\nwant\n%s", got, want)
	}
}
