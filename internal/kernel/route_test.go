package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

const (
	vni200 overlay.VNI = 200
)

// routed is a VM with addresses, whose gateway is the hosts' router.
type routed struct {
	*guest
	at     *host
	v4, v6 netip.Addr
}

// domain is hosts and two networks that reach each other: a and c are on the
// first host, in one network each, b is in c's network on the second; the third
// has no guest.
type domain struct {
	*rig
	a, b, c *routed
}

func newDomain(t *testing.T, filters bool) *domain {
	t.Helper()
	d := &domain{rig: newRigWith(t, 3, filters)}
	h1, h2 := d.hosts[0], d.hosts[1]
	for _, h := range d.hosts {
		h.serve(vni200)
	}
	d.a, d.b, d.c = join(h1, vni100, "vm1", 1), join(h2, vni200, "vm2", 2), join(h1, vni200, "vm3", 3)
	for _, h := range d.hosts {
		for _, v := range []overlay.VNI{vni100, vni200} {
			h.set(h.router(v)...)
		}
		h.set(h.reaches(vni100, d.b)...)
		h.set(h.reaches(vni100, d.c)...)
		h.set(h.reaches(vni200, d.a)...)
	}
	h2.set(h2.takes(vni200, d.a)...)
	h1.set(h1.takes(vni100, d.b)...)
	return d
}

// router are the rows of a network whose hosts route.
func (h *host) router(v overlay.VNI) []hoststate.Row {
	return of(v,
		row(hoststate.TableFDB, overlay.ServerMAC, netip.Addr{}, 0, hoststate.Val{Dst: h.vtep, Flags: remoteFlags | hoststate.Router}),
		row(hoststate.TableMaster, overlay.ServerMAC, netip.Addr{}, 0, hoststate.Val{Flags: remoteFlags}))
}

// reaches are the rows by which the guests of v reach g.
func (h *host) reaches(v overlay.VNI, g *routed) []hoststate.Row {
	rows := []hoststate.Row{
		row(hoststate.TableReach, g.mac, netip.Addr{}, 0, hoststate.Val{}),
		row(hoststate.TableFDB, g.mac, netip.Addr{}, 0, hoststate.Val{Dst: g.at.vtep, VNI: g.vni, Flags: remoteFlags}),
	}
	for _, ip := range []netip.Addr{g.v4, g.v6} {
		rows = append(rows, row(hoststate.TableNeigh, overlay.MAC{}, ip, 0, hoststate.Val{MAC: g.mac, Flags: neighFlags}),
			row(hoststate.TableReach, overlay.MAC{}, ip, 0, hoststate.Val{}))
	}
	return of(v, rows...)
}

// takes are the rows by which what was routed from a guest's host comes in.
func (h *host) takes(v overlay.VNI, g *routed) []hoststate.Row {
	return of(v, row(hoststate.TableRouted, g.mac, g.at.vtep, 0, hoststate.Val{}),
		row(hoststate.TableFrom, overlay.MAC{}, g.v4, 0, hoststate.Val{MAC: g.mac}), row(hoststate.TableFrom, overlay.MAC{}, g.v6, 0, hoststate.Val{MAC: g.mac}))
}

// join plugs a VM in whose addresses end in n.
func join(h *host, v overlay.VNI, name string, n byte) *routed {
	net := byte(v / 100)
	g := &routed{guest: h.plugInto(v, name, macN(n)), at: h, v4: netip.AddrFrom4([4]byte{10, net, 0, n}),
		v6: netip.AddrFrom16([16]byte{0xfd, 0, 0, net, 15: n})}
	h.claim(g.guest)
	for _, ip := range []netip.Addr{g.v4, g.v6} {
		h.set(row(hoststate.TableOwn, overlay.MAC{}, ip, g.port, hoststate.Val{}))
	}
	g.open(hoststate.CheckIP | hoststate.NoServers | hoststate.Routed)
	g.ns.Sysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
	g.ns.Exec("ip", "link", "set", "eth0", "mtu", "1400")
	g.ns.Addr("eth0", g.v4.String()+"/24")
	g.ns.Addr("eth0", g.v6.String()+"/64")
	for _, gw := range []string{fmt.Sprintf("10.%d.0.254", net), fmt.Sprintf("fd00:%d::fe", net)} {
		g.ns.Exec("ip", "neigh", "replace", gw, "lladdr", overlay.ServerMAC.String(), "dev", "eth0", "nud", "permanent")
		g.ns.Exec("ip", "route", "add", "default", "via", gw)
	}
	return g
}

// open writes the port's row, with these flags besides.
func (g *routed) open(f hoststate.Flags) {
	g.at.t.Helper()
	g.at.set(row(hoststate.TablePort, overlay.MAC{}, netip.Addr{}, g.port, hoststate.Val{MAC: g.mac, Flags: hoststate.Open | f}))
}

// ears is what the host's ports hand up, until the test ends.
func (h *host) ears() <-chan hoststate.Heard {
	ctx, cancel := context.WithCancel(context.Background())
	heard, done := make(chan hoststate.Heard, 4096), make(chan error, 1)
	go func() { done <- h.Listen(ctx, func(x hoststate.Heard) { heard <- x }) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			h.t.Errorf("listen: %v", err)
		}
	})
	return heard
}

// hears waits until a frame is heard.
func (h *host) hears(heard <-chan hoststate.Heard, port int32, frame []byte) {
	h.t.Helper()
	for end := time.After(5 * time.Second); ; {
		select {
		case x := <-heard:
			if x.Port == port && bytes.Equal(x.Frame, frame) {
				if !x.Dropped || x.ToGuest || x.Length != len(frame) {
					h.t.Errorf("heard %+v", x)
				}
				return
			}
		case <-end:
			h.t.Errorf("not heard: % x", frame)
			return
		}
	}
}

// to is a datagram to the router for an address, with n hops left.
func (g *routed) to(ip netip.Addr, n byte) []byte {
	if ip.Is6() {
		p := udp6(g.v6, ip, 7777)
		p[7] = n
		return netnstest.Ethernet(overlay.ServerMAC, g.mac, packet.TypeIPv6, p)
	}
	p := udp4(g.v4, ip, 7777)
	p[8], p[10], p[11] = n, 0, 0
	s := inetSum(p[:20])
	p[10], p[11] = byte(s>>8), byte(s)
	return netnstest.Ethernet(overlay.ServerMAC, g.mac, packet.TypeIPv4, p)
}

// datagrams matches what to made, sent by g, wherever it is seen.
func (g *routed) datagrams(f netnstest.Frame) bool {
	if netnstest.EtherType(packet.TypeIPv4)(f) {
		return len(f.Data) >= 42 && f.Data[23] == 17 && bytes.Equal(f.Data[26:30], g.v4.AsSlice()) && bytes.Equal(f.Data[36:38], []byte{7777 >> 8, 7777 & 0xff})
	}
	return netnstest.EtherType(packet.TypeIPv6)(f) && len(f.Data) >= 62 && f.Data[20] == 17 && bytes.Equal(f.Data[22:38], g.v6.AsSlice()) &&
		bytes.Equal(f.Data[56:58], []byte{7777 >> 8, 7777 & 0xff})
}

func (g *routed) gets(d time.Duration, from *routed) int {
	return g.Count(d, netnstest.All(netnstest.In, from.datagrams))
}

// eachDomain runs f on a kernel with tcx and as on one without.
func eachDomain(t *testing.T, f func(*testing.T, *domain)) {
	t.Parallel()
	for _, filters := range []bool{false, true} {
		t.Run(fmt.Sprintf("filters=%t", filters), func(t *testing.T) { f(t, newDomain(t, filters)) })
	}
}

// TestRoutedPacketsArrive: to another host and to another network of the same
// one, there and back, with one hop less, from the router.
func TestRoutedPacketsArrive(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		for _, g := range []*routed{d.b, d.c} {
			for _, ip := range []netip.Addr{g.v4, g.v6} {
				if out, err := d.a.ns.TryExec("ping", "-c", "3", "-i", "0.2", "-W", "2", ip.String()); err != nil || !strings.Contains(out, " 3 received") {
					t.Errorf("ping %s at %s: %v\n%s", ip, g.dev, err, out)
				}
				for _, n := range []byte{64, 2} {
					sent := d.a.to(ip, n)
					d.a.Send(sent)
					f, ok := g.Receive(2*time.Second, netnstest.All(netnstest.In, d.a.datagrams))
					want := bytes.Clone(sent)
					copy(want, g.mac[:])
					copy(want[6:], overlay.ServerMAC[:])
					if at := 14 + 8; ip.Is4() {
						want[at]--
						want[at+2], want[at+3] = 0, 0
						s := inetSum(want[14:34])
						want[at+2], want[at+3] = byte(s>>8), byte(s)
					} else {
						want[14+7]--
					}
					if !ok || !bytes.Equal(f.Data, want) {
						t.Errorf("%s to %s: got\n% x, want\n% x", ip, g.dev, f.Data, want)
					}
				}
				carries(t, d.a, g, ip)
			}
		}
		if n := d.a.at.drops(d.a.port, hoststate.DropRouter) + d.a.at.drops(d.a.port, hoststate.DropNetwork); n != 0 {
			t.Errorf("%d frames counted as dropped", n)
		}
	})
}

// carries sends 4 MB over a TCP connection.
func carries(t *testing.T, from, to *routed, ip netip.Addr) {
	t.Helper()
	const size = 4 << 20
	at := netip.AddrPortFrom(ip, 5001).String()
	var l net.Listener
	err := to.ns.Run(func() (err error) { l, err = net.Listen("tcp", at); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	err = from.ns.Run(func() error {
		c, err := net.DialTimeout("tcp", at, 5*time.Second)
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Write(make([]byte, size))
		return errors.Join(err, c.Close())
	})
	if err != nil {
		t.Errorf("TCP to %s: %v", at, err)
		return
	}
	if n := <-got; n != size {
		t.Errorf("TCP to %s: %d of %d bytes came", at, n, size)
	}
}

// TestWhatTheRouterDoesNotSendOn is dropped, counted and handed up, and leaves
// its host in no form.
func TestWhatTheRouterDoesNotSendOn(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h1 := d.hosts[0]
		heard := h1.ears()
		under := netnstest.OpenPort(t, d.hosts[1].ns, "eth0")
		frames := [][]byte{
			d.a.to(d.b.v4, 1), d.a.to(d.b.v6, 1), d.a.to(d.c.v4, 1), d.a.to(d.c.v6, 0),
			d.a.to(netip.MustParseAddr("10.2.0.99"), 64), d.a.to(netip.MustParseAddr("10.9.0.1"), 64),
			d.a.to(netip.MustParseAddr("fd00:2::99"), 64), d.a.to(netip.MustParseAddr("2001:db8::9"), 64),
		}
		for _, f := range frames {
			d.a.Send(f)
			h1.hears(heard, d.a.port, f)
		}
		if n := h1.drops(d.a.port, hoststate.DropRouter); n != uint64(len(frames)) {
			t.Errorf("counted %d, want %d", n, len(frames))
		}
		// Tunnelled, a datagram stands 50 bytes behind; over IPv4 at least.
		tunnelled := func(f netnstest.Frame) bool {
			return len(f.Data) > 50 && d.a.datagrams(netnstest.Frame{Data: f.Data[50:]})
		}
		if n := under.Count(300*time.Millisecond, tunnelled); n != 0 {
			t.Errorf("%d packets left the host", n)
		}
		for _, g := range []*routed{d.b, d.c} {
			if n := g.gets(100*time.Millisecond, d.a); n != 0 {
				t.Errorf("%s got %d packets", g.dev, n)
			}
		}
		d.a.Send(d.a.to(d.b.v4, 64)) // so that the probe is known to see
		if n := under.Count(300*time.Millisecond, tunnelled); n != 1 {
			t.Errorf("of one packet that is sent on %d left the host", n)
		}
	})
}

// TestLayerTwoEndsAtTheNetwork: no frame reaches another network's guest but by
// the router, and nobody is told its neighbour's MAC.
func TestLayerTwoEndsAtTheNetwork(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h1, h2 := d.hosts[0], d.hosts[1]
		// What else stands in the way: the bridge floods no unknown MAC, and the
		// other host takes none of that source.
		h1.ns.Exec("bridge", "link", "set", "dev", vni100.VXLAN(), "flood", "on")
		h2.set(of(vni200, row(hoststate.TableSource, d.a.mac, h1.vtep, 0, hoststate.Val{}))...)
		asks := func(g *routed) [][]byte {
			group := overlay.MAC{0x33, 0x33, 0xff}
			return [][]byte{packet.AskARP(packet.Broadcast, d.a.mac, d.a.v4, g.v4), packet.AskARP(g.mac, d.a.mac, d.a.v4, g.v4),
				packet.AskND(group, d.a.mac, d.a.v6, g.v6)}
		}
		answered := func(g *routed) func(netnstest.Frame) bool {
			return func(f netnstest.Frame) bool {
				fact, _ := packet.Parse(packet.ToGuest, f.Data, len(f.Data))
				return !f.Outgoing && (fact.IP == g.v4 || fact.IP == g.v6)
			}
		}
		for _, g := range []*routed{d.b, d.c} {
			before := h1.drops(d.a.port, hoststate.DropNetwork)
			d.a.stream(1000, g.mac, d.a.mac)
			if n := g.got(); n != 0 {
				t.Errorf("%s got %d of 1000 frames", g.dev, n)
			}
			for _, ask := range asks(g) {
				d.a.Send(ask)
			}
			if f, ok := d.a.Receive(300*time.Millisecond, answered(g)); ok {
				t.Errorf("asked for %s: %v", g.dev, f)
			}
			if n := h1.drops(d.a.port, hoststate.DropNetwork) - before; n != 1003 {
				t.Errorf("%s: counted %d, want 1003", g.dev, n)
			}
			d.a.open(hoststate.CheckIP) // so that the probes are known to see
			d.a.stream(1000, g.mac, d.a.mac)
			if n := g.got(); n != 1000 {
				t.Errorf("without the flag %s got %d of 1000 frames", g.dev, n)
			}
			for i, ask := range asks(g) {
				d.a.Send(ask)
				if _, ok := d.a.Receive(time.Second, answered(g)); !ok {
					t.Errorf("without the flag nobody answers question %d for %s", i, g.dev)
				}
			}
			d.a.open(hoststate.CheckIP | hoststate.Routed)
		}
	})
}

// TestRoutedFramesAreTakenFromWhomTheyMay: a host that nobody told of guests
// there drops routed frames of another host.
func TestRoutedFramesAreTakenFromWhomTheyMay(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h2 := d.hosts[1]
		h2.del(h2.takes(vni200, d.a)...)
		for range 10 {
			d.a.Send(d.a.to(d.b.v4, 64))
			d.a.Send(d.a.to(d.b.v6, 64))
		}
		if n := d.b.gets(300*time.Millisecond, d.a); n != 0 {
			t.Errorf("%d packets came", n)
		}
		if n := h2.drops(0, hoststate.DropSource); n != 20 {
			t.Errorf("counted %d, want 20", n)
		}
		h2.set(h2.takes(vni200, d.a)...)
		d.a.Send(d.a.to(d.b.v4, 64))
		if n := d.b.gets(300*time.Millisecond, d.a); n != 1 {
			t.Errorf("%d of 1 packet came", n)
		}
	})
}

// TestRouterWithoutNeighbour: what the program lets through and the device knows
// no neighbour for goes nowhere, and not round.
func TestRouterWithoutNeighbour(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h1 := d.hosts[0]
		for _, r := range h1.reaches(vni100, d.b) {
			if r.Key.Table == hoststate.TableNeigh {
				h1.del(r)
			}
		}
		under := netnstest.OpenPort(t, d.hosts[1].ns, "eth0")
		device := netnstest.OpenPort(t, h1.ns, vni100.VXLAN())
		for range 100 {
			d.a.Send(d.a.to(d.b.v4, 64))
		}
		in, out := 0, 0
		device.Count(300*time.Millisecond, func(f netnstest.Frame) bool {
			if !d.a.datagrams(f) {
				return false
			}
			if f.Outgoing {
				out++
			} else {
				in++
			}
			return true
		})
		if out != 100 || in > 100 {
			t.Errorf("the device sent %d and got %d of 100 packets", out, in)
		}
		if n := under.Count(100*time.Millisecond, func(f netnstest.Frame) bool { return bytes.Contains(f.Data, d.b.v4.AsSlice()) }); n != 0 {
			t.Errorf("%d packets left the host", n)
		}
		for _, g := range []*routed{d.b, d.c} {
			if n := g.gets(100*time.Millisecond, d.a); n != 0 {
				t.Errorf("%s got %d packets", g.dev, n)
			}
		}
	})
}

// TestRoutedPacketsFollowAGuestThatMoved: its former host sends on what comes
// from the router, too.
func TestRoutedPacketsFollowAGuestThatMoved(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h1, before, now := d.hosts[0], d.hosts[2], d.hosts[1] // b is on the second, and h1 believes it on the third
		for _, r := range h1.reaches(vni100, d.b) {
			if r.Key.Table == hoststate.TableFDB {
				r.Val.Dst = before.vtep
				h1.set(r)
			}
		}
		before.set(of(vni200, row(hoststate.TableFDB, d.b.mac, netip.Addr{}, 0, hoststate.Val{Dst: now.vtep, Flags: remoteFlags}),
			row(hoststate.TableRelay, d.b.mac, netip.Addr{}, 0, hoststate.Val{}))...)
		before.set(before.takes(vni200, d.a)...)
		relayed := of(vni200, row(hoststate.TableRelayed, d.b.mac, before.vtep, 0, hoststate.Val{}))[0]
		for _, step := range []struct {
			do   func()
			want int
		}{{func() {}, 0}, {func() { now.set(relayed) }, 2}, {func() { before.del(before.takes(vni200, d.a)...) }, 0}} {
			step.do()
			d.a.Send(d.a.to(d.b.v4, 64))
			d.a.Send(d.a.to(d.b.v6, 64))
			if n := d.b.gets(300*time.Millisecond, d.a); n != step.want {
				t.Errorf("%d packets came, want %d", n, step.want)
			}
		}
	})
}
