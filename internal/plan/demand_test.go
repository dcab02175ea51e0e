package plan

import (
	"net/netip"
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Of a network that is told on demand a host knows what it has rows for, first;
// and no endpoint has a place in a list of its own.
func TestRowsOfAKnownEndpoint(t *testing.T) {
	t.Parallel()
	mac, vtep := overlay.MAC{0x52, 0x54, 0, 0, 0, 1}, netip.MustParseAddr("192.0.2.2")
	for name, c := range map[string]struct {
		e    Endpoint
		want string
	}{
		"elsewhere": {
			Endpoint{VNI: 42, MAC: mac, VTEP: vtep, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Demand: true},
			`known 42 52:54:00:00:00:01
source 42 52:54:00:00:00:01 via 192.0.2.2
fdb 42 52:54:00:00:00:01 dst 192.0.2.2 static,extern_learn
master 42 52:54:00:00:00:01 dev cvx42 static,extern_learn
neigh 42 10.0.0.1 lladdr 52:54:00:00:00:01 permanent,culvert`,
		},
		"here": {
			Endpoint{VNI: 42, MAC: mac, Port: 7, Demand: true},
			`known 42 52:54:00:00:00:01
master 42 52:54:00:00:00:01 dev if7 static,sticky`,
		},
		"on a host that is not known": {Endpoint{VNI: 42, MAC: mac, Demand: true}, "known 42 52:54:00:00:00:01"},
	} {
		var got []string
		for _, r := range Rows(nil, c.e) {
			got = append(got, r.String())
		}
		if s := strings.Join(got, "\n"); s != c.want {
			t.Errorf("%s: rows are\n%s\nwant\n%s", name, s, c.want)
		}
	}
}

func TestRowsOfListsAndStrangers(t *testing.T) {
	t.Parallel()
	vtep := netip.MustParseAddr("192.0.2.2")
	for want, r := range map[string]hoststate.Row{
		"repl 42 ff:ff:ff:ff:ff:ff dst 192.0.2.2": ListRow(42, Groups[0], vtep),
		"source 42 any via 192.0.2.2 strangers":   StrangerRow(42, vtep),
		"routed 42 any via 192.0.2.2 strangers":   RoutedStrangerRow(42, vtep),
	} {
		if r.String() != want {
			t.Errorf("row is %q, want %q", r, want)
		}
	}
}
