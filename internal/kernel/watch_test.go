package kernel

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
)

// watchAll starts Watch and hands its doorbells out; it has been subscribed
// when watchAll returns.
func watchAll(t *testing.T, k *Kernel) <-chan hoststate.Doorbell {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	bells := make(chan hoststate.Doorbell, 100_000)
	done := make(chan error, 1)
	go func() { done <- k.Watch(ctx, func(d hoststate.Doorbell) { bells <- d }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("watch ended with %v, want the context's error", err)
		}
	})
	waitBell(t, bells, "first overflow", func(d hoststate.Doorbell) bool { return d.Overflow })
	return bells
}

func waitBell(t *testing.T, bells <-chan hoststate.Doorbell, what string, ok func(hoststate.Doorbell) bool) hoststate.Doorbell {
	t.Helper()
	end := time.After(5 * time.Second)
	for {
		select {
		case d := <-bells:
			if ok(d) {
				return d
			}
		case <-end:
			t.Fatalf("no doorbell: %s", what)
		}
	}
}

func links(d hoststate.Doorbell) bool { return d.Links }

func TestWatchSeesVandals(t *testing.T) {
	t.Parallel()
	n := netnstest.New(t)
	k, err := Open(int(n.Handle), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	dev := hoststate.Device{VNI: 7, Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1450, Alias: "a"}
	for _, r := range k.Apply(t.Context(), []hoststate.Op{{Kind: hoststate.OpBase}, {Kind: hoststate.OpMakeBridge, Dev: dev}, {Kind: hoststate.OpMakeVXLAN, Dev: dev}}) {
		if r.Class != hoststate.ClassOK {
			t.Fatal(r.Op, r.Text)
		}
	}
	bells := watchAll(t, k)
	mac := overlay.MAC{0x52, 0x54, 0, 0, 0, 1}
	rowBell := func(table hoststate.Table, deleted bool) func(hoststate.Doorbell) bool {
		return func(d hoststate.Doorbell) bool {
			return d.VNI == 7 && d.Row.Key.Table == table && d.Row.Key.VNI == 7 && d.Deleted == deleted
		}
	}
	n.Exec("bridge", "fdb", "add", mac.String(), "dev", "cvx7", "dst", "192.0.2.9", "self", "static")
	if d := waitBell(t, bells, "fdb add", rowBell(hoststate.TableFDB, false)); d.Row.Val.Dst != netip.MustParseAddr("192.0.2.9") {
		t.Errorf("row %v", d.Row)
	}
	n.Exec("bridge", "fdb", "del", mac.String(), "dev", "cvx7", "self")
	waitBell(t, bells, "fdb del", rowBell(hoststate.TableFDB, true))
	n.Exec("bridge", "fdb", "add", mac.String(), "dev", "cvx7", "master", "static")
	if d := waitBell(t, bells, "master add", rowBell(hoststate.TableMaster, false)); d.Row.Val != (hoststate.Val{Flags: hoststate.Static}) {
		t.Errorf("row %v", d.Row)
	}
	n.Exec("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "cvx7", "dst", "192.0.2.9")
	waitBell(t, bells, "repl add", rowBell(hoststate.TableRepl, false))
	n.Exec("ip", "neigh", "add", "10.0.0.1", "lladdr", mac.String(), "dev", "cvx7", "nud", "permanent")
	waitBell(t, bells, "neigh add", rowBell(hoststate.TableNeigh, false))
	n.Exec("ip", "neigh", "del", "10.0.0.1", "dev", "cvx7")
	waitBell(t, bells, "neigh del", rowBell(hoststate.TableNeigh, true))
	n.Exec("ip", "link", "set", "cvx7", "mtu", "1400")
	waitBell(t, bells, "mtu", links)
	n.Exec("bridge", "link", "set", "dev", "cvx7", "learning", "on")
	waitBell(t, bells, "port flag", links)
	n.Exec("nft", "add", "element", "inet", "culvert", "vtep4", "{ 192.0.2.77 }")
	waitBell(t, bells, "set element", links)
	n.Exec("nft", "delete", "chain", "netdev", "culvert", "cvb7")
	waitBell(t, bells, "isolation", links)
	n.Exec("nft", "flush", "ruleset")
	waitBell(t, bells, "flush ruleset", links)
	n.Exec("ip", "link", "del", "cvx7")
	waitBell(t, bells, "link deleted", links)
	st, err := k.Read(t.Context(), hoststate.Scope{Links: true, VNI: 7})
	if err != nil || st.Base || len(st.Links) != 1 || st.Links[0].Isolated {
		t.Errorf("after the vandal: base %t, %v, %v; want no base and one open bridge", st.Base, st.Links, err)
	}
}

func TestWatchIgnoresForeignAndOwn(t *testing.T) {
	t.Parallel()
	n := netnstest.New(t)
	k, err := Open(int(n.Handle), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	dev := hoststate.Device{VNI: 7, Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1450, Alias: "a"}
	k.Apply(t.Context(), []hoststate.Op{{Kind: hoststate.OpBase}, {Kind: hoststate.OpMakeBridge, Dev: dev}, {Kind: hoststate.OpMakeVXLAN, Dev: dev}})
	n.Exec("ip", "link", "add", "br0", "type", "bridge")
	n.Exec("ip", "link", "add", "vx0", "master", "br0", "type", "vxlan", "id", "9", "dstport", "4790", "local", "192.0.2.1")
	bells := watchAll(t, k)
	n.Exec("bridge", "fdb", "add", "52:54:00:00:00:01", "dev", "vx0", "dst", "192.0.2.9", "self", "static")
	n.Exec("bridge", "fdb", "add", "52:54:00:00:00:01", "dev", "vx0", "master", "static")
	n.Exec("ip", "neigh", "add", "10.0.0.1", "lladdr", "52:54:00:00:00:01", "dev", "vx0", "nud", "permanent")
	n.Exec("nft", "add", "table", "inet", "other")
	row := func(k hoststate.Key, v hoststate.Val) hoststate.Op {
		return hoststate.Op{Kind: hoststate.OpSet, Row: hoststate.Row{Key: k, Val: v}}
	}
	mac := overlay.MAC{0x52, 0x54, 0, 0, 0, 2}
	k.Apply(t.Context(), []hoststate.Op{
		row(hoststate.Key{Table: hoststate.TableNeigh, VNI: 7, IP: netip.MustParseAddr("10.0.0.2")}, hoststate.Val{MAC: mac, Flags: hoststate.Permanent | hoststate.Ours}),
		row(hoststate.Key{Table: hoststate.TableVTEP, IP: netip.MustParseAddr("192.0.2.2")}, hoststate.Val{}),
		row(hoststate.Key{Table: hoststate.TableFDB, VNI: 7, MAC: mac}, hoststate.Val{Dst: netip.MustParseAddr("192.0.2.2"), Flags: hoststate.Static | hoststate.Extern}),
	})
	// The FDB's echo is the first and only thing that may ring.
	d := waitBell(t, bells, "own fdb write", func(hoststate.Doorbell) bool { return true })
	if d.Row.Key.Table != hoststate.TableFDB || d.Row.Key.MAC != mac {
		t.Errorf("rang %+v, want the FDB row alone", d)
	}
}
