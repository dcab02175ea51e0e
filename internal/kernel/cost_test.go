package kernel

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// BenchmarkPrograms measures what the programs cost two guests of two hosts:
// TCP throughput and the round trip of a small datagram, with the programs on
// every device and with none, in turns. The ratios are 1 if they cost nothing.
func BenchmarkPrograms(b *testing.B) {
	r := newRig(b, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	g1, g2 := h1.vm("vm1", macN(1)), h2.vm("vm2", macN(2))
	h1.remote(g2.mac, h2)
	h2.remote(g1.mac, h1)
	g1.ns.Addr("eth0", "10.1.0.1/24")
	g2.ns.Addr("eth0", "10.1.0.2/24")
	h1.set(row(hoststate.TableNeigh, overlay.MAC{}, netip.MustParseAddr("10.1.0.2"), 0, hoststate.Val{MAC: g2.mac, Flags: neighFlags}))
	h2.set(row(hoststate.TableNeigh, overlay.MAC{}, netip.MustParseAddr("10.1.0.1"), 0, hoststate.Val{MAC: g1.mac, Flags: neighFlags}))
	guard := func() {
		for _, x := range []struct {
			h *host
			g *guest
			a string
		}{{h1, g1, "10.1.0.1"}, {h2, g2, "10.1.0.2"}} {
			dev := hoststate.Device{VNI: vni100, Local: x.h.vtep, UDPPort: 4789, MTU: 1450, Alias: "test"}
			x.h.apply(hoststate.Op{Kind: hoststate.OpTune, Dev: dev}, hoststate.Op{Kind: hoststate.OpBase})
			v := hoststate.Val{MAC: x.g.mac, Flags: hoststate.Open | hoststate.CheckIP | hoststate.NoServers}
			x.h.set(row(hoststate.TablePort, overlay.MAC{}, netip.Addr{}, x.g.port, v),
				row(hoststate.TableOwn, overlay.MAC{}, netip.MustParseAddr(x.a), x.g.port, hoststate.Val{}))
		}
	}
	bare := func() {
		for _, d := range []string{"eth0", vni100.VXLAN()} {
			h1.strip(d)
			h2.strip(d)
		}
		h1.strip("vm1")
		h2.strip("vm2")
	}
	p := newPath(b, g1, g2)
	var guarded, without [2][]float64
	for range max(b.N, 5) {
		guard()
		rate, rtt := p.measure(b)
		guarded[0], guarded[1] = append(guarded[0], rate), append(guarded[1], rtt)
		bare()
		rate, rtt = p.measure(b)
		without[0], without[1] = append(without[0], rate), append(without[1], rtt)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(guarded[0])/1e9*8, "Gbit/s")
	b.ReportMetric(median(guarded[0])/median(without[0]), "throughput-ratio")
	b.ReportMetric(median(guarded[1])/1e3, "us-rtt")
	b.ReportMetric(median(without[1])/median(guarded[1]), "rtt-ratio")
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// path is a TCP connection and a UDP echo between two guests.
type path struct {
	tcp      net.Conn // of the sender
	received chan int64
	udp      net.Conn
}

func newPath(b *testing.B, from, to *guest) *path {
	b.Helper()
	p := &path{received: make(chan int64, 1<<16)}
	var l net.Listener
	var echo net.PacketConn
	err := to.ns.Run(func() (err error) {
		if l, err = net.Listen("tcp", "10.1.0.2:5001"); err != nil {
			return err
		}
		echo, err = net.ListenPacket("udp", "10.1.0.2:5002")
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		buf := make([]byte, 64)
		for {
			n, peer, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(buf[:n], peer)
		}
	}()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 1<<20)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			p.received <- int64(n)
		}
	}()
	err = from.ns.Run(func() (err error) {
		if p.tcp, err = net.DialTimeout("tcp", "10.1.0.2:5001", 5*time.Second); err != nil {
			return err
		}
		p.udp, err = net.Dial("udp", "10.1.0.2:5002")
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		for _, c := range []io.Closer{p.tcp, p.udp, l, echo} {
			_ = c.Close()
		}
	})
	return p
}

// measure is bytes a second of a second's stream, and nanoseconds of a round
// trip, the median of 500.
func (p *path) measure(b *testing.B) (rate, rtt float64) {
	b.Helper()
	buf := make([]byte, 1<<20)
	begin := time.Now()
	sent, got := int64(0), int64(0)
	for time.Since(begin) < time.Second {
		n, err := p.tcp.Write(buf)
		if err != nil {
			b.Fatal(err)
		}
		sent += int64(n)
	}
	for got < sent {
		got += <-p.received
	}
	rate = float64(got) / time.Since(begin).Seconds()
	var trips []float64
	for range 500 {
		begin := time.Now()
		if _, err := p.udp.Write(buf[:32]); err != nil {
			b.Fatal(err)
		}
		_ = p.udp.SetReadDeadline(begin.Add(time.Second))
		if _, err := p.udp.Read(buf[:64]); err != nil {
			b.Fatal(err)
		}
		trips = append(trips, float64(time.Since(begin)))
	}
	return rate, median(trips)
}

// BenchmarkProgramRows writes and reads back 10,000 rows of a network, deletes
// them again, and says what a read of links costs
// with 200 ports and 200 more devices.
func BenchmarkProgramRows(b *testing.B) {
	const n, ports = 10_000, 200
	r := newRig(b, 1)
	h := r.hosts[0]
	var rows []hoststate.Row
	for i := range n {
		mac := overlay.MAC{0x52, 0x54, 2, byte(i >> 16), byte(i >> 8), byte(i)}
		rows = append(rows, row(hoststate.TableSource, mac, netip.MustParseAddr("192.0.2.2"), 0, hoststate.Val{}))
	}
	set, del := kernelOps(hoststate.OpSet, rows), kernelOps(hoststate.OpDel, rows)
	b.Run("set-and-delete", func(b *testing.B) {
		for b.Loop() {
			mustApply(b, h.Kernel, set)
			mustApply(b, h.Kernel, del)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(2*n), "ns/row")
	})
	for i := range ports {
		h.ns.Exec("ip", "link", "add", "p"+strconv.Itoa(i), "type", "veth", "peer", "name", "q"+strconv.Itoa(i))
		h.ns.Exec("ip", "link", "set", "p"+strconv.Itoa(i), "master", vni100.Bridge())
		h.apply(hoststate.Op{Kind: hoststate.OpPort, Index: int32(h.ns.Index("p" + strconv.Itoa(i)))})
	}
	h.apply(hoststate.Op{Kind: hoststate.OpBase})
	b.Run("read-links-of-200-ports", func(b *testing.B) {
		for b.Loop() {
			if _, err := h.Read(b.Context(), hoststate.Scope{Links: true}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
