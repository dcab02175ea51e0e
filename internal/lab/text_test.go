package lab

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert/internal/overlay"
)

// sampleStatus is the sample lab without a machine.
func sampleStatus(t *testing.T) Status {
	t.Helper()
	top, err := Topology{}.Check()
	if err != nil {
		t.Fatal(err)
	}
	s := Status{Topology: top, Ready: true}
	for _, v := range sampleSpecs(top.Hosts) {
		vni := overlay.VNI(10001)
		bits := "/24"
		if v.Network == "red" {
			vni++
		}
		s.VMs = append(s.VMs, VM{
			Name: v.Name, Tenant: v.Tenant, Network: v.Network, VNI: vni, Host: v.Host, Ready: true, MAC: v.MAC, Declared: true,
			Addresses: []netip.Prefix{netip.MustParsePrefix(v.Addresses[0] + bits)},
		})
	}
	return s
}

func TestUpText(t *testing.T) {
	got := UpResult{Changed: true, Took: 6100 * time.Millisecond, State: sampleStatus(t)}.Text()
	want := `Lab "default": 3 hosts, 1 manager, 2 networks, 6 VMs.            ready in 6.1 s
  h1  blue: vm1 vm2     red: vm3
  h2  blue: vm4         red: vm5
  h3  blue: vm6
Try:  culvert lab ping vm1 vm6      (same network, two hosts)
      culvert lab ping vm1 vm5      (two networks: must not pass)
      culvert lab vm migrate vm1 h3
`
	if got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	top, err := Topology{Name: "two", Hosts: 1}.Check()
	if err != nil {
		t.Fatal(err)
	}
	got = UpResult{State: Status{Topology: top}}.Text()
	want = `Lab "two": 1 host, 1 manager, 0 networks, 0 VMs.            unchanged
Try:  culvert network create blue --subnet 10.20.0.0/24
      culvert lab vm create vm1 --host h1 --network blue --lab two
`
	if got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestSampleMACsShowAddresses(t *testing.T) {
	for _, v := range sampleSpecs(3) {
		if v.Name == "vm1" && (v.MAC != "52:54:00:01:00:0b" || v.Addresses[0] != "10.1.0.11" || v.Host != "h1") {
			t.Errorf("vm1 is %+v", v)
		}
	}
	for _, v := range sampleSpecs(1) {
		if v.Host != "h1" {
			t.Errorf("a lab of one host has %s on %s", v.Name, v.Host)
		}
	}
}

func TestPingText(t *testing.T) {
	s := sampleStatus(t)
	rtt := []time.Duration{310 * time.Microsecond, 90 * time.Microsecond, 88 * time.Microsecond, 95 * time.Microsecond, 90 * time.Microsecond}
	for _, c := range []struct {
		name string
		give PingReport
		want string
		ok   bool
	}{
		{"all", PingReport{s.VMs[0], "vm6", &s.VMs[5], PingResult{Sent: 5, Received: 5, RTT: rtt}},
			"vm1 -> vm6   10.1.0.16 on h3   5 sent, 5 back   first 0.31 ms, then 0.09 ms\n", true},
		{"other network", PingReport{s.VMs[0], "vm5", &s.VMs[4], PingResult{Sent: 5}},
			"vm1 -> vm5   nothing came back, and that is right: blue and red are separate networks (nothing crosses by default).\n", false},
		{"crossed", PingReport{s.VMs[0], "vm5", &s.VMs[4], PingResult{Sent: 5, Received: 2}},
			"vm1 -> vm5   2 of 5 came back, and nothing must: blue and red are separate networks.\n", false},
		{"address", PingReport{s.VMs[0], "10.1.0.99", nil, PingResult{Sent: 2}},
			"vm1 -> 10.1.0.99   2 sent, 0 back\n", false},
		{"twice", PingReport{s.VMs[0], "10.1.0.99", nil, PingResult{Sent: 1, Received: 1, Duplicated: 1, RTT: rtt[:1]}},
			"vm1 -> 10.1.0.99   1 sent, 1 back, 1 twice   first 0.31 ms\n", true},
	} {
		if got := c.give.Text(); got != c.want || c.give.OK() != c.ok {
			t.Errorf("%s: ok %t\n%swant:\n%s", c.name, c.give.OK(), got, c.want)
		}
	}
}

func TestEveryone(t *testing.T) {
	vm := sampleStatus(t).VMs[0]
	for target, want := range map[string]bool{"10.1.0.255": true, "ff02::1": true, "10.1.0.12": false, "vm2": false, "10.2.0.255": false} {
		if got := vm.Everyone(target); got != want {
			t.Errorf("Everyone(%q) = %t", target, got)
		}
	}
}

func TestMigrateText(t *testing.T) {
	r := MigrateResult{
		VM: "vm1", From: "h1", To: "h3", Changed: true, Prepared: 4 * time.Millisecond, Revision: "41",
		Exact: 19 * time.Millisecond, Slowest: "h2", Hosts: 3, Pings: &PingResult{Sent: 2000}, Interval: time.Millisecond,
	}
	want := `vm1: h1 -> h3
  prepared on h3          4 ms
  resumed                 0 ms   (revision 41)
  all 3 hosts exact      19 ms   (slowest h2)
  pings lost              0 of 2000 (1 ms apart)
`
	if got := r.Text(); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	r.Away = []string{"h2"}
	if got := r.Text(); !strings.Contains(got, "  away                    h2\n") {
		t.Errorf("a host that is away is not named:\n%s", got)
	}
	if got := (MigrateResult{VM: "vm1", To: "h3"}).Text(); got != "vm1: on h3 already (unchanged)\n" {
		t.Errorf("unchanged: %q", got)
	}
}

func TestStatusText(t *testing.T) {
	s := sampleStatus(t)
	s.VMs = s.VMs[:3]
	s.VMs[1].Ready = false
	s.VMs[2].Moving = "h2"
	for _, n := range s.Topology.Nodes()[:2] {
		s.Nodes = append(s.Nodes, NodeStatus{Node: n, PID: 7, Daemon: "running"})
	}
	want := `Lab "default": 3 hosts, 1 manager, 2 networks, 3 VMs.
  m1   172.20.0.1       manager  running (process 7)
  h1   172.20.1.1       agent    running (process 7)
  vm1       on h1   blue          52:54:00:01:00:0b  10.1.0.11
  vm2       on h1   blue          52:54:00:01:00:0c  10.1.0.12  half made: culvert lab vm remove vm2
  vm3       on h1   red           52:54:00:02:00:0d  10.2.0.13  half moved: culvert lab vm migrate vm3 h2
`
	if got := s.Text(); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func TestTablesDoNotShowDeviceNumbers(t *testing.T) {
	dump := "bridge cvb42 up\nmember vm-b\nmember cvx42\nmember vm-a\nmaster 42 x\n"
	if got, want := byName(dump), "bridge cvb42 up\nmember cvx42\nmember vm-a\nmember vm-b\nmaster 42 x\n"; got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if got := byName("vtep 172.20.1.1\n"); got != "vtep 172.20.1.1\n" {
		t.Errorf("a dump without members became %q", got)
	}
}
