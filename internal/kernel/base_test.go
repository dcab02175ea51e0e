package kernel

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
)

// TestVandalisedBaseIsSeenAndRepaired: each line of nft makes Read say so, and
// the repair puts it right, keeping the elements that are left.
func TestVandalisedBaseIsSeenAndRepaired(t *testing.T) {
	dev := hoststate.Device{VNI: vni100, Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1450}
	keep := row(hoststate.TableVTEP, overlay.MAC{}, netip.MustParseAddr("192.0.2.2"), 0, hoststate.Val{})
	tests := []struct {
		nft          string
		base         bool // still stands
		isolated     bool
		keepsElement bool
	}{
		{"flush chain inet culvert underlay", false, true, true},
		{"insert rule inet culvert underlay accept", false, true, true},
		{"insert rule bridge culvert forward accept", false, true, true},
		{"flush chain bridge culvert forward", false, true, true},
		{"add chain bridge culvert forward { policy drop ; }", false, true, true},
		{"add table inet culvert { flags dormant ; }", false, true, true},
		{"delete table inet culvert", false, true, false},
		{"delete table bridge culvert", false, true, true},
		{"delete table netdev culvert", false, false, true},
		{"add chain netdev culvert cvb100 { policy accept ; }", true, false, true},
		{"add rule netdev culvert cvb100 accept", true, false, true},
		{"delete chain netdev culvert cvb100", true, false, true},
		{"flush ruleset", false, false, false},
		{"add table inet foreign", true, true, true},
		{"add rule inet culvert underlay counter", false, true, true},
		{"add table netdev culvert { flags dormant ; }", false, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.nft, func(t *testing.T) {
			t.Parallel()
			n := netnstest.New(t)
			k, err := Open(int(n.Handle), Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			mustApply(t, k, append([]hoststate.Op{{Kind: hoststate.OpBase}, {Kind: hoststate.OpMakeBridge, Dev: dev}}, kernelOps(hoststate.OpSet, []hoststate.Row{keep})...))
			check := func(when string, base, isolated, element bool) {
				t.Helper()
				st, err := k.Read(t.Context(), hoststate.Scope{Links: true})
				if err != nil {
					t.Fatal(err)
				}
				_, ok := st.Rows[keep.Key]
				if st.Base != base || st.Links[0].Isolated != isolated || ok != element {
					t.Errorf("%s: base %t, isolated %t, element %t; want %t, %t, %t", when, st.Base, st.Links[0].Isolated, ok, base, isolated, element)
				}
			}
			check("before", true, true, true)
			n.Exec("nft", strings.Fields(tt.nft)...)
			check("vandalised", tt.base, tt.isolated, tt.keepsElement)
			mustApply(t, k, []hoststate.Op{{Kind: hoststate.OpBase}, {Kind: hoststate.OpTune, Dev: dev}})
			check("repaired", true, true, tt.keepsElement)
		})
	}
}

// TestGuardedPortIsConfigured: the rules name the port of Config.
func TestGuardedPortIsConfigured(t *testing.T) {
	n := netnstest.New(t)
	for port, other := range map[uint16]string{4790: "4789", 4789: "4790"} {
		k, err := Open(int(n.Handle), Config{UDPPort: port})
		if err != nil {
			t.Fatal(err)
		}
		mustApply(t, k, []hoststate.Op{{Kind: hoststate.OpBase}})
		if out := n.Exec("nft", "list", "chain", "inet", "culvert", "underlay"); strings.Contains(out, other) {
			t.Errorf("port %d:\n%s", port, out)
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestBridgeNetfilterIsOff (facts-6): host tables see no guest's frame, from
// the first bridge on.
func TestBridgeNetfilterIsOff(t *testing.T) {
	n := netnstest.New(t)
	k, err := Open(int(n.Handle), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	read := func() string {
		var b []byte
		err := n.Run(func() (err error) {
			b, err = os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
			return err
		})
		if os.IsNotExist(err) {
			t.Skip("this kernel has no br_netfilter: no /proc/sys/net/bridge/bridge-nf-call-iptables")
		}
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	if v := read(); v != "1" {
		t.Logf("already %s in a new namespace", v)
	}
	mustApply(t, k, []hoststate.Op{{Kind: hoststate.OpMakeBridge, Dev: hoststate.Device{VNI: 5, Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1450}}})
	if v := read(); v != "0" {
		t.Errorf("bridge-nf-call-iptables is %s after the first bridge", v)
	}
}

// TestOpenTakesTheThreadsNamespace: CurrentNS is where the caller is, and
// the edge stays there.
func TestOpenTakesTheThreadsNamespace(t *testing.T) {
	n := netnstest.New(t)
	var k *Kernel
	err := n.Run(func() (err error) { k, err = Open(CurrentNS, Config{}); return err })
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, k, []hoststate.Op{{Kind: hoststate.OpMakeBridge, Dev: hoststate.Device{VNI: 5, Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1450}}})
	if out := n.Exec("ip", "-o", "link", "show", "cvb5"); !strings.Contains(out, "cvb5") {
		t.Errorf("no bridge in the namespace: %s", out)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	for _, r := range k.Apply(t.Context(), []hoststate.Op{{Kind: hoststate.OpUp, Index: 1}}) {
		if r.Class == hoststate.ClassOK {
			t.Errorf("a closed edge still works")
		}
	}
	if _, err := Open(1<<20, Config{}); err == nil {
		t.Errorf("opened a descriptor that is none")
	}
}
