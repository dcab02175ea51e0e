package agentcore

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// entries are n endpoints of one network on 200 other hosts, from revision
// first on.
func entries(network overlay.UID, n int, first uint64) []Item {
	items := make([]Item, n)
	for i := range items {
		var mac overlay.MAC
		mac[0] = 2
		binary.BigEndian.PutUint32(mac[2:], uint32(i+1))
		var host overlay.UID
		host[0], host[1] = 0xaa, byte(i%200)
		v6 := [16]byte{0xfd}
		binary.BigEndian.PutUint32(v6[12:], uint32(i+10))
		items[i] = Item{Rev: overlay.Rev{Epoch: 1, N: first + uint64(i)}, Rec: &overlay.Endpoint{
			Network: network, MAC: mac, Port: overlay.UID{1}, Host: host,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), netip.AddrFrom16(v6)},
		}}
	}
	return items
}

// settle does what the core asks, at once and as asked.
func settle(c *Core, now Time, ops []hoststate.Op, res []hoststate.Result) ([]hoststate.Op, []hoststate.Result, int) {
	done := 0
	for {
		ops = c.NextOps(ops[:0], 1000)
		if len(ops) == 0 {
			return ops, res, done
		}
		res = res[:0]
		for _, op := range ops {
			r := hoststate.Result{Op: op}
			if op.Kind == hoststate.OpSet || op.Kind == hoststate.OpDel {
				r.Verified, r.Present, r.Have = true, op.Kind == hoststate.OpSet, op.Row.Val
			}
			res = append(res, r)
		}
		done += len(ops)
		c.Step(now, Applied{Results: res})
	}
}

// served is a core that serves one network, with a member port, and knows the
// hosts of entries.
func served(tb testing.TB) (*Core, overlay.UID) {
	tb.Helper()
	r := newRig(tb)
	r.fleet("n1 10")
	items := Items{}
	for i := range 200 {
		var uid overlay.UID
		uid[0], uid[1] = 0xaa, byte(i)
		items.Items = append(items.Items, Item{Rev: overlay.Rev{Epoch: 1, N: uint64(100 + i)}, Rec: &overlay.Host{
			Meta: overlay.Meta{UID: uid, Name: "o"}, VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}),
		}})
	}
	r.c.Step(r.now, items)
	r.settle()
	r.plug("n1", "p1")
	r.log("n1", "port p1 02:00:00:00:99:01")
	return r.c, netUID("n1")
}

// onThread is the processor time that this thread has used: what else runs on
// the machine is not in it.
func onThread(tb testing.TB) time.Duration {
	tb.Helper()
	const rusageThread = 1 // RUSAGE_THREAD, getrusage(2)
	var u syscall.Rusage
	if err := syscall.Getrusage(rusageThread, &u); err != nil {
		tb.Fatalf("read processor time: %v", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestFigures measures what is promised: 100,000 entries of tables, a thousand
// at a time, within 100 ms of processor time, and one endpoint within 5 us when
// those are known. The first pass of a process pays for its heap, too: the
// kernel hands out each page when it is first touched, which costs more in some
// virtual machines than all else. It fails if work is done twice or not at all,
// never for its time: tests run on machines of all kinds.
func TestFigures(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const passes = 5
	var all, one []time.Duration
	rows := 0
	for range passes {
		var a, o time.Duration
		rows, a, o = figures(t)
		all, one = append(all, a), append(one, o)
	}
	first := all[0]
	slices.Sort(all)
	slices.Sort(one)
	t.Logf("figure: %d rows of tables, 1000 at a time: %v, the first pass %v (goal 100ms); one endpoint moved when all are known: %v (goal 5us); medians of %d%s",
		rows, all[passes/2].Round(time.Millisecond), first.Round(time.Millisecond), one[passes/2], passes, detector)
}

// figures is the processor time of all rows, and that of one endpoint after.
func figures(t *testing.T) (rows int, all, one time.Duration) {
	c, network := served(t)
	const n, batch = 20_000, 200 // endpoints; each has five rows
	items := entries(network, n, 1000)
	var ops []hoststate.Op
	var res []hoststate.Result
	done := 0
	began := onThread(t)
	for i := 0; i < n; i += batch {
		c.Step(1, Items{Items: items[i : i+batch], UpTo: items[i+batch-1].Rev})
		ops, res, done = settle(c, 1, ops, res)
		rows += done
	}
	all = onThread(t) - began
	if want := n*5 + 200; rows != want {
		t.Errorf("%d operations, want %d: a source, two FDB entries and two neighbours each, and 200 places in the list", rows, want)
	}
	moved := entries(network, n, 1000+n)
	for i := range moved { // each to the next host
		e := moved[i].Rec.(*overlay.Endpoint)
		e.Host[1] = byte((int(e.Host[1]) + 1) % 200)
	}
	began = onThread(t)
	for i := range moved {
		c.Step(1, Items{Items: moved[i : i+1], UpTo: moved[i].Rev})
		ops, res, _ = settle(c, 1, ops, res)
	}
	return rows, all, (onThread(t) - began) / n
}

// BenchmarkEntries is 100,000 endpoints in batches of 1,000, through read-back.
func BenchmarkEntries(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		c, network := served(b)
		items := entries(network, 100_000, 1000)
		var ops []hoststate.Op
		var res []hoststate.Result
		b.StartTimer()
		for i := 0; i < len(items); i += 1000 {
			c.Step(1, Items{Items: items[i : i+1000], UpTo: items[i+999].Rev})
			ops, res, _ = settle(c, 1, ops, res)
		}
	}
}
