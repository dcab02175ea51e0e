package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

func upTo(n int) (s sample) {
	for i := n; i > 0; i-- {
		s = s.addTime(time.Duration(i) * time.Millisecond)
	}
	return s
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct{ q, want float64 }{{0.25, 50}, {0.5, 100}, {0.75, 150}, {0.99, 198}, {1, 200}} {
		if got := upTo(200).quantile(c.q); got != c.want {
			t.Errorf("quantile %g of 1..200 is %g, want %g", c.q, got, c.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	s := upTo(200)
	for _, c := range []struct {
		q, must float64
		want    string
	}{
		{0.5, 120, "met"}, {0.5, 80, "missed"}, {0.5, 99, "too noisy"}, {0.5, 101, "too noisy"},
		{0.99, 198, "met"}, {0.99, 197, "too noisy"}, {0.99, 190, "missed"},
	} {
		if got := s.verdict(c.q, c.must); got != c.want {
			t.Errorf("quantile %g of 1..200 against %g: %s, want %s", c.q, c.must, got, c.want)
		}
	}
}

func TestVerdictLeast(t *testing.T) {
	s := upTo(200)
	for _, c := range []struct {
		must float64
		want string
	}{{80, "met"}, {120, "missed"}, {99, "too noisy"}, {101, "too noisy"}} {
		if got := s.verdictLeast(0.5, c.must); got != c.want {
			t.Errorf("median of 1..200 against at least %g: %s, want %s", c.must, got, c.want)
		}
	}
}

func TestPrinterGivesLinesAndTable(t *testing.T) {
	var out bytes.Buffer
	p := &printer{w: &out}
	if err := p.figure(newFigure("appears by API", "ms", 2, 10_000, upTo(200), bound{must: 10, goal: 3, p99: 30})); err != nil {
		t.Fatal(err)
	}
	var f figure
	if err := json.Unmarshal(out.Bytes(), &f); err != nil {
		t.Fatal(err)
	}
	if f.Median != 100 || f.Samples != 200 || f.Verdict != "missed" || f.VerdictP99 != "missed" {
		t.Errorf("line %+v", f)
	}
	out.Reset()
	p.table()
	if got := out.String(); !strings.Contains(got, "appears by API") || !strings.Contains(got, "100.00") || strings.Count(got, "missed") != 2 {
		t.Errorf("table %q", got)
	}
}

func TestEntryOf(t *testing.T) {
	const bridge, vxlan = 5, 6
	mac := overlay.MAC{0x52, 0x54, 0, 0, 0, 1}
	hw := net.HardwareAddr(mac[:])
	vtep := net.IPv4(172, 20, 1, 1)
	for _, c := range []struct {
		name string
		n    netlink.Neigh
		k    key
		v    value
		ok   bool
	}{
		{"self", netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: vxlan, HardwareAddr: hw, IP: vtep}, key{table: self, mac: mac}, value{dst: netip.MustParseAddr("172.20.1.1")}, true},
		{"master", netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: vxlan, MasterIndex: bridge, HardwareAddr: hw}, key{table: master, mac: mac}, value{port: vxlan}, true},
		{"neighbour", netlink.Neigh{Family: unix.AF_INET6, LinkIndex: vxlan, State: netlink.NUD_PERMANENT, HardwareAddr: hw, IP: net.ParseIP("fd00::1")}, key{table: neigh, ip: netip.MustParseAddr("fd00::1")}, value{mac: mac}, true},
		{"place in the list", netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: vxlan, HardwareAddr: make(net.HardwareAddr, 6), IP: vtep}, key{}, value{}, false},
		{"port's own address", netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: 9, MasterIndex: bridge, State: netlink.NUD_PERMANENT, HardwareAddr: hw}, key{}, value{}, false},
		{"other network", netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: 8, MasterIndex: 7, HardwareAddr: hw}, key{}, value{}, false},
		{"neighbour that is no plan's", netlink.Neigh{Family: unix.AF_INET, LinkIndex: vxlan, State: netlink.NUD_STALE, HardwareAddr: hw, IP: vtep}, key{}, value{}, false},
	} {
		k, v, ok := entryOf(&c.n, bridge, vxlan)
		if ok != c.ok || ok && (k != c.k || v != c.v) {
			t.Errorf("%s: %v %v %v, want %v %v %v", c.name, k, v, ok, c.k, c.v, c.ok)
		}
	}
}
