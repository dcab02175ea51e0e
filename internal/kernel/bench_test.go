package kernel

import (
	"net/netip"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
)

// benchDevice opens a namespace with network 100.
func benchDevice(b *testing.B) *Kernel {
	b.Helper()
	n := netnstest.New(b)
	k, err := Open(int(n.Handle), Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = k.Close() })
	dev := hoststate.Device{VNI: vni100, Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1450}
	ops := []hoststate.Op{{Kind: hoststate.OpBase}, {Kind: hoststate.OpMakeBridge, Dev: dev}, {Kind: hoststate.OpMakeVXLAN, Dev: dev}}
	mustApply(b, k, ops)
	mustApply(b, k, []hoststate.Op{{Kind: hoststate.OpUp, Index: int32(n.Index(vni100.VXLAN()))}})
	return k
}

func mustApply(tb testing.TB, k *Kernel, ops []hoststate.Op) {
	tb.Helper()
	for _, r := range k.Apply(tb.Context(), ops) {
		if r.Class != hoststate.ClassOK {
			tb.Fatalf("%v: %v %s", r.Op, r.Class, r.Text)
		}
	}
}

// endpoints are the rows of n remote endpoints with one address each, an
// endpoint's rows together, as the agent pulls them.
func endpoints(n int, vtep netip.Addr) []hoststate.Row {
	var rows []hoststate.Row
	for i := range n {
		mac := overlay.MAC{0x52, 0x54, 2, byte(i >> 16), byte(i >> 8), byte(i)}
		ip := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		rows = append(rows, row(hoststate.TableFDB, mac, netip.Addr{}, 0, hoststate.Val{Dst: vtep, Flags: remoteFlags}),
			row(hoststate.TableMaster, mac, netip.Addr{}, 0, hoststate.Val{Flags: remoteFlags}),
			row(hoststate.TableNeigh, overlay.MAC{}, ip, 0, hoststate.Val{MAC: mac, Flags: neighFlags}))
	}
	return rows
}

// BenchmarkApply writes and reads back 10,000 remote endpoints (30,000 rows,
// 20,000 messages) to one device, in one call, in the calls of 200 operations
// that an agent makes, and as a floor the writes alone.
func BenchmarkApply(b *testing.B) {
	const n = 10_000
	rows := endpoints(n, netip.MustParseAddr("192.0.2.2"))
	set, del := kernelOps(hoststate.OpSet, rows), kernelOps(hoststate.OpDel, rows)
	run := func(name string, write func(*Kernel)) {
		b.Run(name, func(b *testing.B) {
			k := benchDevice(b)
			for b.Loop() {
				write(k)
				b.StopTimer()
				mustApply(b, k, del)
				b.StartTimer()
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "endpoints/s")
		})
	}
	run("floor", func(k *Kernel) {
		res := make([]hoststate.Result, len(set))
		for i, o := range set {
			res[i].Op = o
		}
		_, jobs := k.plan(res, &known{k: k})
		k.send(jobs)
		for _, j := range jobs {
			if j.err != nil {
				b.Fatal(j.err)
			}
		}
	})
	run("whole", func(k *Kernel) { mustApply(b, k, set) })
	run("by200", func(k *Kernel) {
		for i := 0; i < len(set); i += 200 {
			mustApply(b, k, set[i:min(i+200, len(set))])
		}
	})
}

// BenchmarkReadBack compares single reads with a dump, over a table of 10,000
// endpoints, for the number of rows asked for.
func BenchmarkReadBack(b *testing.B) {
	k := benchDevice(b)
	rows := endpoints(10_000, netip.MustParseAddr("192.0.2.2"))
	mustApply(b, k, kernelOps(hoststate.OpSet, rows))
	d, err := k.lookup(k.write, vni100)
	if err != nil {
		b.Fatal(err)
	}
	devs := map[overlay.VNI]devices{vni100: d}
	var fdb []hoststate.Result
	for _, r := range rows {
		if r.Key.Table == hoststate.TableFDB {
			fdb = append(fdb, hoststate.Result{Op: hoststate.Op{Kind: hoststate.OpSet, Row: r}})
		}
	}
	for _, n := range []int{100, 500, 1000, 2000, 5000} {
		is := make([]int, n)
		for i := range is {
			is[i] = i
		}
		b.Run("single-"+strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				k.readSingly(fdb, devs, is)
			}
			if !fdb[n-1].Verified || !fdb[n-1].Present {
				b.Fatal("not read")
			}
		})
	}
	b.Run("dump", func(b *testing.B) {
		for b.Loop() {
			m := map[hoststate.Key]hoststate.Val{}
			err := dumpNeigh(k.write, unix.AF_BRIDGE, d.vxlan, 0, func(n neigh) {
				if r, ok := n.row(vni100, d); ok {
					m[r.Key] = r.Val
				}
			})
			if err != nil || len(m) < 20_000 {
				b.Fatalf("%d rows, %v", len(m), err)
			}
		}
	})
}

// BenchmarkRead reads links and nftables of 100 networks, and the rows of one
// with 10,000 endpoints.
func BenchmarkRead(b *testing.B) {
	k := benchDevice(b)
	for v := range overlay.VNI(99) {
		dev := hoststate.Device{VNI: 200 + v, Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1450}
		mustApply(b, k, []hoststate.Op{{Kind: hoststate.OpMakeBridge, Dev: dev}, {Kind: hoststate.OpMakeVXLAN, Dev: dev}})
	}
	rows := endpoints(10_000, netip.MustParseAddr("192.0.2.2"))
	mustApply(b, k, kernelOps(hoststate.OpSet, rows))
	for name, sc := range map[string]hoststate.Scope{"links": {Links: true}, "rows": {VNI: vni100}, "empty": {VNI: 200}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				st, err := k.Read(b.Context(), sc)
				if err != nil {
					b.Fatal(err)
				}
				if sc.Links && len(st.Links) != 200 || sc.VNI == vni100 && len(st.Rows) != len(rows) {
					b.Fatal(len(st.Links), len(st.Rows))
				}
			}
		})
	}
}
