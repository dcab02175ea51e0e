package plan

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

func text(rows []hoststate.Row) string {
	var lines []string
	for _, r := range rows {
		lines = append(lines, r.String())
	}
	return strings.Join(lines, "\n")
}

func TestRoutedRows(t *testing.T) {
	t.Parallel()
	own, alias := netip.MustParseAddr("192.0.2.1"), overlay.MAC{2, 10, 0, 0, 0, 1}
	prefixes := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("fd00:9::/32")}
	for name, c := range map[string]struct {
		rows []hoststate.Row
		want string
	}{
		"the router: looked up, and nowhere else to go": {
			RouterRows(nil, 42, own, nil),
			`fdb 42 02:63:75:6c:76:74 dst 192.0.2.1 static,extern_learn,router
master 42 02:63:75:6c:76:74 dev cvx42 static,extern_learn`,
		},
		"subnets that a route goes around": {
			RouterRows(nil, 42, own, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")})[2:], `route 42 10.1.0.0/24 via 00:00:00:00:00:00`,
		},
		"reached: guarded, then sent to, then found": {
			CrossingRows(nil, Crossing{VNI: 42, Into: 43, MAC: alias, Addrs: []netip.Addr{ip4, ip6}, VTEP: vtep}),
			`reach 42 02:0a:00:00:00:01
reach 42 10.0.0.1
reach 42 fd00::1
fdb 42 02:0a:00:00:00:01 dst 192.0.2.2 vni 43 static,extern_learn
neigh 42 10.0.0.1 lladdr 02:0a:00:00:00:01 permanent,culvert
neigh 42 fd00::1 lladdr 02:0a:00:00:00:01 permanent,culvert`,
		},
		"reached, and takes less; whose alias is another's": {
			append(CrossingRows(nil, Crossing{VNI: 42, Into: 43, MAC: alias, Addrs: []netip.Addr{ip4}, VTEP: vtep, MTU: 1400})[1:2],
				CrossingRows(nil, Crossing{VNI: 42, Into: 43, MAC: alias, Addrs: []netip.Addr{ip4}, VTEP: vtep, Shadowed: true, Routes: prefixes})...),
			`reach 42 10.0.0.1 mtu 1400
reach 42 02:0a:00:00:00:01`,
		},
		"a next hop: the bridge carries what is readdressed to it": {
			CrossingRows(nil, Crossing{VNI: 42, Into: 43, MAC: alias, VTEP: vtep, Routes: prefixes}),
			`reach 42 02:0a:00:00:00:01
fdb 42 02:0a:00:00:00:01 dst 192.0.2.2 vni 43 static,extern_learn
master 42 02:0a:00:00:00:01 dev cvx42 static,extern_learn
route 42 0.0.0.0/0 via 02:0a:00:00:00:01
route 42 fd00:9::/32 via 02:0a:00:00:00:01`,
		},
		"sends: from its own hosts, and its addresses from no other": {
			CrossingRows(nil, Crossing{VNI: 42, Into: 43, MAC: alias, Addrs: []netip.Addr{ip4, ip6}, Sends: true, Via: []netip.Addr{vtep}}),
			`routed 42 02:0a:00:00:00:01 via 192.0.2.2
from 42 10.0.0.1 of 02:0a:00:00:00:01
from 42 fd00::1 of 02:0a:00:00:00:01`,
		},
		"bridged: as its own, but into the other network": {
			CrossingRows(nil, Crossing{VNI: 42, Into: 43, MAC: mac, Addrs: []netip.Addr{ip4}, VTEP: vtep, Bridged: true, Via: []netip.Addr{vtep}}),
			`source 42 52:54:00:00:00:01 via 192.0.2.2
fdb 42 52:54:00:00:00:01 dst 192.0.2.2 vni 43 static,extern_learn
master 42 52:54:00:00:00:01 dev cvx42 static,extern_learn
neigh 42 10.0.0.1 lladdr 52:54:00:00:00:01 permanent,culvert`,
		},
		"bridged, where not all MACs are known": {
			CrossingRows(nil, Crossing{VNI: 42, Into: 43, MAC: mac, VTEP: vtep, Bridged: true, Known: true})[:1],
			`known 42 52:54:00:00:00:01`,
		},
		"on a host whose address is not known, and sends nothing: nothing": {
			CrossingRows(nil, Crossing{VNI: 42, Into: 43, MAC: alias, Addrs: []netip.Addr{ip4}, Routes: prefixes}), ``,
		},
	} {
		if got := text(c.rows); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, c.want)
		}
	}
}

// TestCrossingRowsOfOneEndpoint: whatever it is, its rows are of the network
// whose tables they are, no key comes twice, they come in the order in which
// rows are written; whatever is found or sent to where hosts route is guarded,
// and the bridge carries frames to it only where it is to.
func TestCrossingRowsOfOneEndpoint(t *testing.T) {
	t.Parallel()
	place := map[hoststate.Table]int{}
	for i, table := range hoststate.WriteOrder {
		place[table] = i + 1
	}
	rapid.Check(t, func(t *rapid.T) {
		e := Crossing{VNI: 42, Into: overlay.VNI(rapid.Uint32Range(1, uint32(overlay.MaxVNI)).Draw(t, "into")), MAC: mac}
		e.Bridged, e.Known, e.Sends = rapid.Bool().Draw(t, "bridged"), rapid.Bool().Draw(t, "known"), rapid.Bool().Draw(t, "sends")
		if rapid.Bool().Draw(t, "placed") {
			e.VTEP, e.Shadowed = vtep, !e.Bridged && rapid.Bool().Draw(t, "shadowed")
		}
		if e.Sends || e.Bridged {
			e.Via = []netip.Addr{vtep}
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "addresses") {
			e.Addrs = append(e.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		}
		if !e.Bridged && rapid.Bool().Draw(t, "hop") {
			e.Routes = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("10.9.0.0/24")}
		}
		seen, last := map[hoststate.Key]bool{}, 0
		has := func(table hoststate.Table, k hoststate.Key) bool {
			return seen[hoststate.Key{Table: table, VNI: 42, MAC: k.MAC, IP: k.IP}]
		}
		for _, r := range CrossingRows(nil, e) {
			k := r.Key
			at := place[k.Table]
			sends := k.Table == hoststate.TableFDB || k.Table == hoststate.TableNeigh
			switch {
			case seen[k] || k.VNI != 42 || !k.MAC.IsZero() && k.MAC != e.MAC:
				t.Fatalf("%v comes twice, or is of another network or endpoint", r)
			case at == 0 || at < last:
				t.Fatalf("%v comes out of order", r)
			case sends && e.Shadowed:
				t.Fatalf("%v is another's", r)
			case k.Table == hoststate.TableFDB && (r.Val.VNI != e.Into || r.Val.Dst != e.VTEP):
				t.Fatalf("%v does not lead to the endpoint", r)
			case sends && has(hoststate.TableReach, k) == e.Bridged:
				t.Fatalf("%v is not guarded, or its guests are kept from a bridged endpoint", r)
			case (k.Table == hoststate.TableSource || k.Table == hoststate.TableKnown) && !e.Bridged:
				t.Fatalf("%v lets routed frames be taken for the network's own", r)
			case k.Table == hoststate.TableMaster && !e.Bridged && len(e.Routes) == 0:
				t.Fatalf("%v: guests' frames may be addressed to it", r)
			}
			seen[k], last = true, at
		}
		sent := has(hoststate.TableFDB, hoststate.Key{MAC: e.MAC})
		if sent != (e.VTEP.IsValid() && !e.Shadowed) {
			t.Fatalf("it is sent to: %v, at %v", sent, e.VTEP)
		}
		for _, p := range e.Routes {
			if seen[RouteKey(42, p)] != sent {
				t.Fatalf("%v is reached: %v; its next hop: %v", p, !sent, sent)
			}
		}
	})
}

// Rows of routed endpoints make no garbage when they are given room.
func TestCrossingRowsAllocateNothing(t *testing.T) {
	e := Crossing{VNI: 42, Into: 43, MAC: mac, VTEP: vtep, Addrs: []netip.Addr{ip4, ip6}, Sends: true, Via: []netip.Addr{vtep}}
	buf := make([]hoststate.Row, 0, 16)
	if n := testing.AllocsPerRun(100, func() { buf = CrossingRows(buf[:0], e) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
