package agentcore

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// A set finds, makes and removes rows as a map of whole keys does.
func TestRowSetIsAMap(t *testing.T) {
	addrs := []netip.Addr{{}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::1")}
	key := rapid.Custom(func(t *rapid.T) hoststate.Key {
		return hoststate.Key{
			Table: rapid.SampledFrom(hoststate.WriteOrder[:]).Draw(t, "table"),
			MAC:   overlay.MAC{5: byte(rapid.IntRange(0, 2).Draw(t, "mac"))},
			IP:    rapid.SampledFrom(addrs).Draw(t, "ip"),
			Port:  int32(rapid.IntRange(0, 2).Draw(t, "port")),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		s, want := newRowSet(), map[hoststate.Key]*rowState{}
		t.Repeat(map[string]func(*rapid.T){
			"row": func(t *rapid.T) {
				k := key.Draw(t, "key")
				if rs := s.row(k); want[k] != nil && rs != want[k] || rs.key != k {
					t.Fatalf("row of %v is another, of %v", k, rs.key)
				} else {
					want[k] = rs
				}
			},
			"remove": func(t *rapid.T) {
				k := key.Draw(t, "key")
				if rs := want[k]; rs != nil {
					s.remove(rs)
					delete(want, k)
				}
			},
			"get": func(t *rapid.T) {
				if k := key.Draw(t, "key"); s.get(k) != want[k] {
					t.Fatalf("get %v: %p, want %p", k, s.get(k), want[k])
				}
			},
			"": func(t *rapid.T) {
				n := 0
				for rs := range s.all() {
					if n++; want[rs.key] != rs {
						t.Fatalf("a row of %v that is not wanted", rs.key)
					}
				}
				if n != len(want) || s.n != n {
					t.Fatalf("%d rows, %d by its own count, want %d", n, s.n, len(want))
				}
			},
		})
	})
}
