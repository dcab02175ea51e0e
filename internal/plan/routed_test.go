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
	own := netip.MustParseAddr("192.0.2.1")
	for name, c := range map[string]struct {
		rows []hoststate.Row
		want string
	}{
		"the router: looked up, and nowhere else to go": {
			RouterRows(nil, 42, own),
			`fdb 42 02:63:75:6c:76:74 dst 192.0.2.1 static,extern_learn,router
master 42 02:63:75:6c:76:74 dev cvx42 static,extern_learn`,
		},
		"elsewhere: guarded, then sent to, then found": {
			ReachedRows(nil, Reached{VNI: 42, Into: 43, MAC: mac, Addrs: []netip.Addr{ip4, ip6}, VTEP: vtep}),
			`reach 42 52:54:00:00:00:01
reach 42 10.0.0.1
reach 42 fd00::1
fdb 42 52:54:00:00:00:01 dst 192.0.2.2 vni 43 static,extern_learn
neigh 42 10.0.0.1 lladdr 52:54:00:00:00:01 permanent,culvert
neigh 42 fd00::1 lladdr 52:54:00:00:00:01 permanent,culvert`,
		},
		"on a host whose address is not known: nothing": {
			ReachedRows(nil, Reached{VNI: 42, Into: 43, MAC: mac, Addrs: []netip.Addr{ip4}}), ``,
		},
		"what another host routes here": {
			[]hoststate.Row{RoutedRow(43, vtep)}, `source 43 02:63:75:6c:76:74 via 192.0.2.2`,
		},
	} {
		if got := text(c.rows); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, c.want)
		}
	}
}

// TestReachedRowsOfOneEndpoint: whatever it is, its rows are of the network that
// reaches it, none is the bridge's, no key comes twice, they come in the order
// in which rows are written, and whatever is found or sent to is guarded.
func TestReachedRowsOfOneEndpoint(t *testing.T) {
	t.Parallel()
	place := map[hoststate.Table]int{}
	for i, table := range hoststate.WriteOrder {
		place[table] = i + 1
	}
	rapid.Check(t, func(t *rapid.T) {
		e := Reached{VNI: 42, Into: overlay.VNI(rapid.Uint32Range(1, uint32(overlay.MaxVNI)).Draw(t, "into")), MAC: mac}
		if rapid.Bool().Draw(t, "placed") {
			e.VTEP = vtep
		}
		for i := range rapid.IntRange(0, 5).Draw(t, "addresses") {
			e.Addrs = append(e.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
		}
		rows := ReachedRows(nil, e)
		if (len(rows) > 0) != e.VTEP.IsValid() {
			t.Fatalf("%d rows of an endpoint at %v", len(rows), e.VTEP)
		}
		seen, last := map[hoststate.Key]bool{}, 0
		for _, r := range rows {
			k := r.Key
			at := place[k.Table]
			switch {
			case seen[k] || k.VNI != 42 || k.Table == hoststate.TableMaster || !k.MAC.IsZero() && k.MAC != e.MAC:
				t.Fatalf("%v comes twice, or is of another network, endpoint or table", r)
			case at == 0 || at < last:
				t.Fatalf("%v comes out of order", r)
			case k.Table == hoststate.TableFDB && (r.Val.VNI != e.Into || r.Val.Dst != e.VTEP):
				t.Fatalf("%v does not lead to the endpoint", r)
			case k.Table != hoststate.TableReach && !seen[hoststate.Key{Table: hoststate.TableReach, VNI: 42, MAC: k.MAC, IP: k.IP}]:
				t.Fatalf("%v is not guarded", r)
			}
			seen[k], last = true, at
		}
	})
}

// Rows of routed endpoints make no garbage when they are given room.
func TestReachedRowsAllocateNothing(t *testing.T) {
	e := Reached{VNI: 42, Into: 43, MAC: mac, VTEP: vtep, Addrs: []netip.Addr{ip4, ip6}}
	buf := make([]hoststate.Row, 0, 8)
	if n := testing.AllocsPerRun(100, func() { buf = ReachedRows(buf[:0], e) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
