package plan

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

func endpoint(t *rapid.T, i int) Endpoint {
	e := Endpoint{VNI: 10, MAC: overlay.MAC{2, 0, 0, 0, 0, byte(i + 1)}, Flood: overlay.Flood(rapid.IntRange(0, 1).Draw(t, "flood"))}
	switch rapid.IntRange(0, 3).Draw(t, "place") {
	case 0:
		e.Port = int32(i + 3)
	case 1: // nowhere that is known
	default:
		e.VTEP = netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(2, 5).Draw(t, "host"))})
	}
	for j := range rapid.IntRange(0, 3).Draw(t, "addresses") {
		if rapid.Bool().Draw(t, "v6") {
			e.Addrs = append(e.Addrs, netip.AddrFrom16([16]byte{0xfd, 15: byte(10*i + j)}))
		} else {
			e.Addrs = append(e.Addrs, netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j + 2)}))
		}
	}
	return e
}

func endpoints(t *rapid.T) []Endpoint {
	var es []Endpoint
	for i := range rapid.IntRange(0, 8).Draw(t, "endpoints") {
		es = append(es, endpoint(t, i))
	}
	return es
}

// Any order of adding endpoints gives the union.
func TestAnyOrderEqualsTheUnion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		es := endpoints(t)
		want := Union(es)
		got := map[hoststate.Key]hoststate.Val{}
		for _, e := range rapid.Permutation(es).Draw(t, "order") {
			for _, r := range Rows(nil, e) {
				got[r.Key] = r.Val
			}
		}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Fatalf("another order gives other rows (-union +order):\n%s", d)
		}
	})
}

// What the rows of one endpoint are, whatever it is.
func TestRowsOfOneEndpoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := endpoint(t, 1)
		rows := Rows(nil, e)
		tables, place := map[hoststate.Table]int{}, map[hoststate.Table]int{}
		for i, t := range hoststate.WriteOrder {
			place[t] = i
		}
		for i, r := range rows {
			tables[r.Key.Table]++
			if r.Key.VNI != e.VNI {
				t.Fatalf("%v is of another network", r)
			}
			if i > 0 && place[rows[i-1].Key.Table] > place[r.Key.Table] {
				t.Fatalf("%v comes before %v", rows[i-1], r)
			}
		}
		want := map[hoststate.Table]int{}
		switch {
		case e.Port != 0:
			want[hoststate.TableMaster] = 1
			if r := rows[0]; r.Val.Port != e.Port || r.Val.Flags&hoststate.Sticky == 0 {
				t.Fatalf("%v of an endpoint that is here", r)
			}
		case e.VTEP.IsValid():
			want[hoststate.TableSource], want[hoststate.TableFDB], want[hoststate.TableMaster] = 1, 1, 1
			if len(e.Addrs) > 0 {
				want[hoststate.TableNeigh] = len(e.Addrs)
			}
			if e.Flood == overlay.FloodHER {
				want[hoststate.TableRepl] = 1
			}
		}
		if d := cmp.Diff(want, tables); d != "" {
			t.Fatalf("rows of %+v by table (-want +got):\n%s", e, d)
		}
	})
}

// Rows makes no garbage when it is given room.
func TestRowsAllocateNothing(t *testing.T) {
	e := Endpoint{VNI: 10, MAC: overlay.MAC{2, 1}, VTEP: netip.MustParseAddr("192.0.2.2"), Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
	buf := make([]hoststate.Row, 0, 8)
	if n := testing.AllocsPerRun(100, func() { buf = Rows(buf[:0], e) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkRows(b *testing.B) {
	e := Endpoint{VNI: 10, MAC: overlay.MAC{2, 1}, VTEP: netip.MustParseAddr("192.0.2.2"), Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	buf := make([]hoststate.Row, 0, 8)
	for b.Loop() {
		buf = Rows(buf[:0], e)
	}
}
