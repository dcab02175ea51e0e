package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// needRoot ends the test where namespaces cannot be made. Without root that
// is a failure, unless the caller has said that it knows.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CULVERT_NOROOT") == "1" {
		t.Skip("skipped by CULVERT_NOROOT=1: makes namespaces, needs root")
	}
	t.Fatal("makes namespaces: run as root, or set CULVERT_NOROOT=1 to skip it")
}

// buildHosts makes an underlay without daemons under a name of its own and
// fails the test if anything of it is left at the end.
func buildHosts(t *testing.T, hosts int, flat bool) Topology {
	t.Helper()
	needRoot(t)
	top, err := Topology{Name: fmt.Sprintf("t%x", os.Getpid()) + fmt.Sprintf("n%x", time.Now().UnixNano()&0xffff), Hosts: hosts, Flat: flat}.Check()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		names, err := namespaces(top.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := destroy(context.Background(), names); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if left, err := namespaces(top.Name); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	})
	if err := buildUnderlay(top); err != nil {
		t.Fatal(err)
	}
	return top
}

const testVNI = overlay.VNI(42)

// handBridge makes by hand what an agent would: a bridge and a VXLAN device
// that learns, with every other host in its list.
func handBridge(t *testing.T, top Topology, host Node) {
	t.Helper()
	r, err := openNS(NSOfNode(top.Name, host.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	off := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: testVNI.Bridge()}, MulticastSnooping: &off}
	must(r.LinkAdd(br))
	vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: testVNI.VXLAN(), MTU: 1450}, VxlanId: int(testVNI), Port: 4789, Learning: true, SrcAddr: host.Address.Addr().AsSlice()}
	must(r.LinkAdd(vx))
	must(r.LinkSetMaster(vx, br))
	must(InNS(r.name, bridgeNetfilterOff))
	for _, n := range top.HostNodes() {
		if n.Name != host.Name {
			must(r.NeighAppend(&netlink.Neigh{
				LinkIndex: vx.Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
				IP: n.Address.Addr().AsSlice(), HardwareAddr: make(net.HardwareAddr, 6),
			}))
		}
	}
	must(r.LinkSetUp(vx))
	must(r.LinkSetUp(br))
}

func testGuest(top Topology, n int) Guest {
	return Guest{
		Lab: top.Name, VM: fmt.Sprintf("vm%d", n), MAC: overlay.MAC{0x52, 0x54, 0, 1, 0, byte(n)},
		Addresses: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(n)}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd00:1::%d/64", n)),
		},
		MTU: 1450, Bridge: testVNI.Bridge(), Alias: fmt.Sprintf("culvert port=default/vm%d", n),
	}
}

func plug(t *testing.T, g Guest, host string) {
	t.Helper()
	if err := g.Make(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Prepare(host); err != nil {
		t.Fatal(err)
	}
	if err := g.Resume(host); err != nil {
		t.Fatal(err)
	}
	if err := g.AwaitForwarding(t.Context(), host, 5*time.Second); err != nil {
		t.Fatal(err)
	}
}

func mustPing(t *testing.T, from Guest, o PingOptions) PingResult {
	t.Helper()
	r, err := Ping(t.Context(), NSOfVM(from.Lab, from.VM), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPingAcrossHosts(t *testing.T) {
	for _, flat := range []bool{false, true} {
		t.Run(fmt.Sprintf("flat=%t", flat), func(t *testing.T) {
			top := buildHosts(t, 2, flat)
			for _, n := range top.HostNodes() {
				handBridge(t, top, n)
			}
			a, b := testGuest(top, 1), testGuest(top, 2)
			plug(t, a, "h1")
			plug(t, b, "h2")
			for _, p := range b.Addresses {
				r := mustPing(t, a, PingOptions{Target: p.Addr(), Count: 20, Interval: time.Millisecond})
				if r.Received != 20 || r.Duplicated != 0 {
					t.Errorf("ping %s: %+v", p.Addr(), r)
				}
			}
			// Fragmented outside: the whole way is there for big packets too.
			if r := mustPing(t, a, PingOptions{Target: b.Addresses[0].Addr(), Count: 3, Interval: time.Millisecond, Size: 1450}); r.Received != 3 {
				t.Errorf("ping of 1450 bytes: %+v", r)
			}
			if r := mustPing(t, a, PingOptions{Target: netip.MustParseAddr("10.1.0.99"), Count: 1, Wait: 50 * time.Millisecond}); r.Received != 0 || len(r.Lost) != 1 {
				t.Errorf("ping of nobody: %+v", r)
			}
		})
	}
}
