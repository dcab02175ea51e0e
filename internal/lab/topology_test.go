package lab

import (
	"errors"
	"strings"
	"testing"
	"time"

	"culvert/internal/overlay"
)

func TestTopologyPlan(t *testing.T) {
	for _, c := range []struct {
		name string
		give Topology
		want string
	}{
		{"routed", Topology{Hosts: 2}, `lab default: 2 hosts, 1 manager, underlay routed ipv4 mtu 1500
m1   ns cv-default-m1  eth0 172.20.0.1/24 via 172.20.0.254
h1   ns cv-default-h1  eth0 172.20.1.1/24 via 172.20.1.254
h2   ns cv-default-h2  eth0 172.20.2.1/24 via 172.20.2.254
`},
		{"flat", Topology{Name: "seg", Hosts: 1, Flat: true, UnderlayMTU: 9000}, `lab seg: 1 hosts, 1 manager, underlay flat ipv4 mtu 9000
m1   ns cv-seg-m1  eth0 172.20.0.1/16
h1   ns cv-seg-h1  eth0 172.20.1.1/16
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			top, err := c.give.Check()
			if err != nil {
				t.Fatal(err)
			}
			if got := top.String(); got != c.want {
				t.Errorf("plan:\n%swant:\n%s", got, c.want)
			}
		})
	}
}

func TestTopologyRefuses(t *testing.T) {
	for _, c := range []struct {
		give  Topology
		field string
	}{
		{Topology{Name: "a-b"}, "lab"},
		{Topology{Name: "1a"}, "lab"},
		{Topology{Name: strings.Repeat("a", 21)}, "lab"},
		{Topology{Hosts: -1}, "hosts"},
		{Topology{Hosts: 100}, "hosts"},
		{Topology{UnderlayMTU: 1349}, "underlay-mtu"},
		{Topology{UnderlayMTU: 9001}, "underlay-mtu"},
	} {
		_, err := c.give.Check()
		var fe *overlay.FieldError
		if !errors.As(err, &fe) || fe.Field != c.field {
			t.Errorf("Check(%+v) = %v, want a refusal of %s", c.give, err, c.field)
		}
	}
}

func TestVMNameIsNoNode(t *testing.T) {
	for _, s := range []string{"h1", "h42", "m1", "rt", "", "Web", "a_b"} {
		if CheckVMName(s) == nil {
			t.Errorf("CheckVMName(%q) accepted it", s)
		}
	}
	for _, s := range []string{"vm1", "h1x", "web", "m2"} {
		if err := CheckVMName(s); err != nil {
			t.Errorf("CheckVMName(%q) = %v", s, err)
		}
	}
}

func TestTapNames(t *testing.T) {
	long1, long2 := "database-primary-1", "database-primary-2"
	for _, s := range []string{"vm1", "twelve-bytes", long1, long2} {
		if n := TapName(s); len(n) > 15 || !strings.HasPrefix(n, "vm-") {
			t.Errorf("TapName(%q) = %q", s, n)
		}
	}
	if TapName(long1) == TapName(long2) {
		t.Errorf("two VMs share the device name %s", TapName(long1))
	}
}

func TestLabOfNS(t *testing.T) {
	for ns, want := range map[string]string{
		NSOfNode("default", "h1"):   "default",
		NSOfNode("a", "rt"):         "a",
		NSOfVM("b2", "web-1"):       "b2",
		nsOfNIC("b2", "web-1"):      "b2",
		"cv-a":                      "",
		"cv-a-other":                "",
		"cv-A-h1":                   "",
		"cv-a-vm-":                  "",
		"qrouter-1":                 "",
		"cv-a-h1-vm-x":              "",
		"cv-default-h100":           "",
		NSOfVM("b2", "h1-looks-so"): "b2",
	} {
		got, ok := labOfNS(ns)
		if got != want || ok != (want != "") {
			t.Errorf("labOfNS(%q) = %q, %t; want %q", ns, got, ok, want)
		}
	}
}

func TestLongestGap(t *testing.T) {
	for _, c := range []struct {
		lost []int
		want int
	}{{nil, 0}, {[]int{5}, 1}, {[]int{1, 3, 4, 5, 9}, 3}} {
		if got := (PingResult{Lost: c.lost}).LongestGap(); got != c.want {
			t.Errorf("gap of %v = %d, want %d", c.lost, got, c.want)
		}
	}
}

func TestChecksum(t *testing.T) {
	// RFC 1071 section 3's example: the sum is ddf2.
	if got := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("checksum = %04x", got)
	}
	if got := checksum([]byte{0xff}); got != 0x00ff {
		t.Errorf("checksum of an odd length = %04x", got)
	}
}

func TestLostOutside(t *testing.T) {
	t.Parallel()
	at := func(ms int) time.Time { return time.UnixMilli(int64(1_000_000 + ms)) }
	r := PingResult{RTT: []time.Duration{time.Millisecond, time.Millisecond}}
	for i := range 100 {
		r.SentAt = append(r.SentAt, at(i))
	}
	r.Lost = []int{10, 39, 40, 50, 59, 60, 61, 99}
	if n := r.LostOutside(at(40), at(60)); n != 3 { // 10, 61 and 99: 39 was under way when it stopped
		t.Errorf("%d lost while the guest ran, want 3", n)
	}
}
