package kernel

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// TestFacts are rows of the kernel facts that only a kernel can show.
func TestFacts(t *testing.T) {
	t.Run("facts-2/static and extern_learn entries do not age", func(t *testing.T) {
		t.Parallel()
		h := newRig(t, 1).hosts[0]
		g := h.vm("vm1", macN(1))
		h.remote(macN(2), &host{vtep: netip.MustParseAddr("192.0.2.9")})
		h.ns.Exec("ip", "link", "set", "cvx100", "type", "vxlan", "ageing", "1")
		h.ns.Exec("ip", "link", "set", "cvb100", "type", "bridge", "ageing_time", "100")
		h.ns.Exec("bridge", "fdb", "add", macN(8).String(), "dev", "cvx100", "dst", "192.0.2.9", "self", "dynamic")
		h.ns.Exec("bridge", "fdb", "add", macN(8).String(), "dev", "vm1", "master", "dynamic")
		control := []hoststate.Key{row(hoststate.TableFDB, macN(8), netip.Addr{}, 0, hoststate.Val{}).Key, row(hoststate.TableMaster, macN(8), netip.Addr{}, 0, hoststate.Val{}).Key}
		poll(t, 60*time.Second, "dynamic entries age", func() bool {
			rows := h.state().Rows
			_, a := rows[control[0]]
			_, b := rows[control[1]]
			return !a && !b
		})
		for _, r := range []hoststate.Row{
			row(hoststate.TableFDB, macN(2), netip.Addr{}, 0, hoststate.Val{Dst: netip.MustParseAddr("192.0.2.9"), Flags: remoteFlags}),
			row(hoststate.TableMaster, macN(2), netip.Addr{}, 0, hoststate.Val{Flags: remoteFlags}),
			row(hoststate.TableMaster, macN(1), netip.Addr{}, 0, hoststate.Val{Port: g.port, Flags: localFlags}),
		} {
			if v, ok := h.state().Rows[r.Key]; !ok || v != r.Val {
				t.Errorf("%v aged: %+v, %t", r, v, ok)
			}
		}
	})
	t.Run("facts-2/an operator's flush spares permanent neighbours", func(t *testing.T) {
		t.Parallel()
		h := newRig(t, 1).hosts[0]
		ours := row(hoststate.TableNeigh, overlay.MAC{}, netip.MustParseAddr("10.1.0.2"), 0, hoststate.Val{MAC: macN(2), Flags: neighFlags})
		h.set(ours)
		h.ns.Exec("ip", "neigh", "add", "10.1.0.3", "lladdr", macN(3).String(), "dev", "cvx100", "nud", "reachable")
		h.ns.Exec("ip", "neigh", "flush", "dev", "cvx100")
		rows := h.state().Rows
		if v := rows[ours.Key]; v != ours.Val {
			t.Errorf("holds %+v", v)
		}
		if n := len(neighbours(rows)); n != 1 {
			t.Errorf("%d neighbours left, want ours alone", n)
		}
	})
	t.Run("facts-2/bridge down, underlay down and a new MTU lose nothing", func(t *testing.T) {
		t.Parallel()
		h := newRig(t, 1).hosts[0]
		h.set(endpoints(20, netip.MustParseAddr("192.0.2.9"))...)
		before := len(h.state().Rows)
		for _, cmd := range []string{"cvb100 down", "cvb100 up", "eth0 down", "eth0 up", "cvx100 mtu 1400"} {
			h.ns.Exec("ip", append([]string{"link", "set"}, strings.Fields(cmd)...)...)
			if n := len(h.state().Rows); n != before {
				t.Errorf("after %s: %d rows, want %d", cmd, n, before)
			}
		}
	})
	t.Run("facts-5/devices are of our group", func(t *testing.T) {
		t.Parallel()
		h := newRig(t, 1).hosts[0]
		h.ns.Exec("ip", "link", "del", "group", "199")
		if l := h.state().Links; len(l) != 0 {
			t.Errorf("left after deletion by group: %v", l)
		}
	})
	t.Run("the other end of a pair is named if it is in this namespace", func(t *testing.T) {
		t.Parallel()
		h := newRig(t, 1).hosts[0]
		// vm1 is of another namespace, whose device may have the index of one here.
		h.vm("vm1", macN(1))
		h.ns.Exec("ip", "link", "add", "m0", "type", "veth", "peer", "name", "p0")
		h.ns.Exec("ip", "link", "add", "link", "m0", "name", "g0", "type", "macvtap", "mode", "private")
		h.ns.Exec("ip", "link", "set", "p0", "master", "cvb100")
		got := map[string]string{}
		for _, l := range h.state().Links {
			got[l.Name] = l.Peer
		}
		if got["p0"] != "m0" || len(got) != 4 || got["vm1"]+got["cvb100"]+got["cvx100"] != "" {
			t.Errorf("peers are %q, want m0 of p0 alone", got)
		}
	})
	t.Run("facts-7/another classic device on the port does not hinder ours, another kind does", func(t *testing.T) {
		t.Parallel()
		h := newRig(t, 1).hosts[0]
		h.ns.Exec("ip", "link", "add", "foreign", "type", "vxlan", "id", "555", "dstport", "4791", "gbp", "local", "192.0.2.1")
		h.ns.Exec("ip", "link", "set", "foreign", "up")
		dev := hoststate.Device{VNI: 200, Local: h.vtep, UDPPort: 4791, MTU: 1450}
		h.apply(hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: dev}, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: dev})
		// EADDRINUSE comes at up, not at creation.
		r := h.Apply(t.Context(), []hoststate.Op{{Kind: hoststate.OpUp, Index: int32(h.ns.Index("cvx200"))}})[0]
		if r.Class != hoststate.ClassRefused || r.Text == "" {
			t.Errorf("up: %v %q, want refused", r.Class, r.Text)
		}
	})
	t.Run("facts-10/an entry with a VNI of its own is not the plan's", func(t *testing.T) {
		t.Parallel()
		h := newRig(t, 1).hosts[0]
		want := row(hoststate.TableFDB, macN(2), netip.Addr{}, 0, hoststate.Val{Dst: netip.MustParseAddr("192.0.2.9"), Flags: remoteFlags})
		h.ns.Exec("bridge", "fdb", "add", macN(2).String(), "dev", "cvx100", "dst", "192.0.2.9", "vni", "101", "self", "static", "extern_learn")
		if v := h.state().Rows[want.Key]; v == want.Val {
			t.Errorf("an entry of network 101 reads as ours")
		}
		h.set(want)
		if out := h.ns.Exec("bridge", "fdb", "get", macN(2).String(), "dev", "cvx100", "self"); strings.Contains(out, "vni") {
			t.Errorf("still %s", out)
		}
	})
	t.Run("facts-2/a permanent entry for a guest in the bridge is seen", func(t *testing.T) {
		t.Parallel()
		h := newRig(t, 1).hosts[0]
		h.vm("vm1", macN(1))
		h.ns.Exec("bridge", "fdb", "replace", macN(1).String(), "dev", "vm1", "master", "permanent") // frames would go up to the host
		k := row(hoststate.TableMaster, macN(1), netip.Addr{}, 0, hoststate.Val{}).Key
		if v := h.state().Rows[k]; v.Flags&hoststate.Permanent == 0 {
			t.Errorf("holds %+v, want it permanent", v)
		}
		for key := range h.state().Rows {
			if key.Table == hoststate.TableMaster && key.MAC != macN(1) {
				t.Errorf("the kernel's own entry %v is reported", key)
			}
		}
	})
}

func neighbours(rows map[hoststate.Key]hoststate.Val) (n []hoststate.Key) {
	for k := range rows {
		if k.Table == hoststate.TableNeigh {
			n = append(n, k)
		}
	}
	return n
}

// poll waits until ok, or fails.
func poll(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %s: %s", d, what)
		}
	}
}
