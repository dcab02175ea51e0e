package managercore

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"culvert/internal/overlay"
)

// An on-demand network of many hosts, each of which talks to a few others.
const (
	manyEndpoints = 1_000_000
	manyHosts     = 500
	manyWants     = 200
)

// BenchmarkDemandMany is a network of 1,000,000 endpoints on 500 hosts that want
// 200 others each: what its lookup takes, the first pass of all hosts, a change
// as it goes to all of them, and an answer; times are of the processor.
func BenchmarkDemandMany(b *testing.B) {
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	figures := map[string]float64{}
	spent := func() time.Duration { // the machine may have other work
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	began := heap()
	c := demandCore(manyHosts, overlay.DistributePush)
	l := c.net(demandNet)
	for i := range manyEndpoints {
		l.put(newItem(&overlay.Endpoint{Network: demandNet, MAC: demandMAC(i), Port: demandPort(i), Host: demandHost(i%manyHosts + 1), Addresses: addrsOf(i)}, overlay.Rev{Epoch: 1, N: 4}, false))
	}
	c.publish()
	log := heap()
	figures["MB-log"] = log - began

	at := spent()
	c.Step(0, Stored{N: 11, Puts: []StoredRecord{{Rec: demandRecord(overlay.DistributeOnDemand), N: 11}}})
	figures["ms-lookup"] = float64((spent() - at).Milliseconds())
	lookup := heap()
	figures["MB-lookup"] = lookup - log

	v := c.View()
	cursors := make([]*Cursor, manyHosts)
	items := 0
	at = spent()
	for h := range cursors {
		cur := NewCursor(v, hostName(h+1), v.At)
		for i := range manyWants {
			cur.Demand(byMAC((h*7919+i*104729)%manyEndpoints), false)
		}
		cur.SubscribeOnDemand(v, demandNet)
		for done := false; !done; {
			n := cur.Next(v, 1000)
			items, done = items+len(n.Items), !n.UpTo.IsZero()
		}
		cursors[h] = cur
	}
	figures["ms-passes"] = float64((spent() - at).Milliseconds())
	figures["items-passes"] = float64(items)
	figures["MB-cursors"] = heap() - lookup

	n, change, answer := uint64(11), time.Duration(0), time.Duration(0)
	for i := 0; b.Loop(); i++ {
		n++
		c.Step(0, Stored{N: n, Puts: []StoredRecord{{Rec: &overlay.Endpoint{Network: demandNet, MAC: demandMAC(i), Port: demandPort(i), Host: demandHost(i%7 + 1), Addresses: addrsOf(i)}, N: n}}})
		v = c.View()
		at = spent()
		for _, cur := range cursors {
			if got := cur.Next(v, 1000); got.UpTo != v.At {
				b.Fatal("there is more to send")
			}
		}
		change += (spent() - at)
		at = spent()
		cursors[i%manyHosts].Demand(overlay.Want{Network: demandNet, Address: demandAddr(i * 31 % manyEndpoints)}, false)
		if got := cursors[i%manyHosts].Next(v, 1000); len(got.Told) != 1 {
			b.Fatal("it was not answered")
		}
		answer += (spent() - at)
	}
	for unit, n := range figures {
		b.ReportMetric(n, unit)
	}
	b.ReportMetric(float64(change.Microseconds())/float64(b.N), "us-change-500")
	b.ReportMetric(float64(answer.Microseconds())/float64(b.N), "us-answer")
}
