package kernel

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// aliasOf is by what other networks' hosts name a guest here.
func aliasOf(g *routed) overlay.MAC {
	return overlay.MAC{0x06, 0, byte(g.vni >> 8), byte(g.vni), g.mac[4], g.mac[5]}
}

// reachesBy is reaches by a guest's alias.
func (h *host) reachesBy(v overlay.VNI, g *routed) []hoststate.Row {
	named := *g.guest
	named.mac = aliasOf(g)
	return h.reaches(v, &routed{guest: &named, at: g.at, v4: g.v4, v6: g.v6})
}

// known is what a guest's own host says of its alias.
func (g *routed) known() hoststate.Row {
	return of(g.vni, row(hoststate.TableAlias, aliasOf(g), netip.Addr{}, 0, hoststate.Val{MAC: g.mac}))[0]
}

// TestAliasedFramesArrive: by the short circuit to an alias, on another host and
// on the same one, where no underlay hook sees the frame; also if the two guests
// have one MAC.
func TestAliasedFramesArrive(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h1, h2 := d.hosts[0], d.hosts[1]
		twin := join(h1, vni200, "vm4", 1) // with the MAC of a
		for _, g := range []*routed{d.b, d.c, twin} {
			if g != twin {
				h1.del(h1.reaches(vni100, g)...)
			}
			h1.set(h1.reachesBy(vni100, g)...)
			for _, ip := range []netip.Addr{g.v4, g.v6} {
				d.a.Send(d.a.to(ip, 64))
			}
			if n := g.gets(300*time.Millisecond, d.a); n != 0 {
				t.Errorf("%s got %d packets to its alias, which its host does not know", g.dev, n)
			}
			g.at.set(g.known())
			for _, ip := range []netip.Addr{g.v4, g.v6} {
				d.a.Send(d.a.to(ip, 64))
				f, ok := g.Receive(2*time.Second, netnstest.All(netnstest.In, d.a.datagrams))
				if !ok || overlay.MAC(f.Data[:6]) != g.mac || overlay.MAC(f.Data[6:12]) != overlay.ServerMAC {
					t.Errorf("%s to %s: %t, %v", ip, g.dev, ok, f)
				}
			}
		}
		h1.del(h1.reaches(vni200, d.a)...)
		h1.set(append(h1.reachesBy(vni200, d.a), d.a.known())...)
		h2.del(h2.reaches(vni200, d.a)...)
		h2.set(h2.reachesBy(vni200, d.a)...)
		for _, g := range []*routed{d.b, d.c, twin} {
			for _, ip := range []netip.Addr{g.v4, g.v6} {
				if out, err := d.a.ns.TryExec("ping", "-c", "2", "-i", "0.2", "-W", "2", ip.String()); err != nil {
					t.Errorf("ping %s at %s: %v\n%s", ip, g.dev, err, out)
				}
			}
		}
	})
}

// TestAliasOfAGuestThatMoved: its former host knows its alias still, and sends on.
func TestAliasOfAGuestThatMoved(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h1, before, now := d.hosts[0], d.hosts[2], d.hosts[1]
		h1.del(h1.reaches(vni100, d.b)...)
		for _, r := range h1.reachesBy(vni100, d.b) {
			if r.Key.Table == hoststate.TableFDB {
				r.Val.Dst = before.vtep
			}
			h1.set(r)
		}
		before.set(of(vni200, row(hoststate.TableFDB, d.b.mac, netip.Addr{}, 0, hoststate.Val{Dst: now.vtep, Flags: remoteFlags}),
			row(hoststate.TableRelay, d.b.mac, netip.Addr{}, 0, hoststate.Val{}), d.b.known())...)
		before.set(before.takes(vni200, d.a)...)
		now.set(of(vni200, row(hoststate.TableRelayed, d.b.mac, before.vtep, 0, hoststate.Val{}))...)
		d.a.Send(d.a.to(d.b.v4, 64))
		d.a.Send(d.a.to(d.b.v6, 64))
		if n := d.b.gets(time.Second, d.a); n != 2 {
			t.Errorf("%d of 2 packets came", n)
		}
	})
}

// leads are the rows by which packets of network v to everywhere go to a MAC.
func (h *host) leads(v overlay.VNI, to overlay.MAC) []hoststate.Row {
	return of(v, row(hoststate.TableRoute, overlay.MAC{}, netip.IPv4Unspecified(), 0, hoststate.Val{MAC: to}),
		row(hoststate.TableRoute, overlay.MAC{}, netip.IPv6Unspecified(), 0, hoststate.Val{MAC: to}))
}

// TestPacketsBeyondGoToTheNextHop: in the guest's own network and in another,
// on the same host and on another, and back again.
func TestPacketsBeyondGoToTheNextHop(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h1, h2 := d.hosts[0], d.hosts[1]
		near, far := join(h1, vni100, "vm5", 5), join(h2, vni100, "vm6", 6)
		h1.remote(far.mac, h2)
		out := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")}
		h2.set(d.b.known())
		h1.set(h1.reachesBy(vni100, d.b)...)
		h1.set(of(vni100, row(hoststate.TableMaster, aliasOf(d.b), netip.Addr{}, 0, hoststate.Val{Flags: remoteFlags}))...)
		for _, hop := range []struct {
			at       *routed
			to, from overlay.MAC
		}{{near, near.mac, d.a.mac}, {far, far.mac, d.a.mac}, {d.b, aliasOf(d.b), overlay.ServerMAC}} {
			h1.set(h1.leads(vni100, hop.to)...)
			for _, ip := range out {
				d.a.Send(d.a.to(ip, 64))
				f, ok := hop.at.Receive(2*time.Second, netnstest.All(netnstest.In, d.a.datagrams))
				if !ok || overlay.MAC(f.Data[:6]) != hop.at.mac || overlay.MAC(f.Data[6:12]) != hop.from {
					t.Errorf("%s by way of %s: %t, %v", ip, hop.at.dev, ok, f)
				}
			}
		}
		// A guest may not go that way by itself.
		before := h1.drops(d.a.port, hoststate.DropNetwork)
		d.a.Send(netnstest.Ethernet(aliasOf(d.b), d.a.mac, packet.TypeIPv4, udp4(d.a.v4, out[0], 7777)))
		if n := h1.drops(d.a.port, hoststate.DropNetwork) - before; n != 1 {
			t.Errorf("a frame to the next hop itself: %d of 1 dropped", n)
		}
		// What the hop sends from beyond comes in by the prefix, and by the host that it is at.
		d.b.open(hoststate.Routed) // it may send from any address
		beyond := &routed{guest: d.b.guest, at: d.b.at, v4: out[0], v6: out[1]}
		send := func() (n int) {
			for _, ip := range []netip.Addr{d.a.v4, d.a.v6} {
				d.b.Send(beyond.to(ip, 64))
			}
			return d.a.gets(300*time.Millisecond, beyond)
		}
		if n := send(); n != 0 {
			t.Errorf("%d packets came from beyond before their host might send them", n)
		}
		h1.set(of(vni100, row(hoststate.TableRouted, aliasOf(d.b), h2.vtep, 0, hoststate.Val{}))...)
		if n := send(); n != 2 {
			t.Errorf("%d of 2 packets came from beyond", n)
		}
		h1.del(h1.leads(vni100, aliasOf(d.b))...)
		if n := send(); n != 0 {
			t.Errorf("%d packets came from beyond without a prefix", n)
		}
	})
}

// TestTooBigIsHandedUp: a packet that the destination's network cannot carry is,
// and what a guest hands over as one piece to be cut is carried if its pieces fit.
func TestTooBigIsHandedUp(t *testing.T) {
	eachDomain(t, func(t *testing.T, d *domain) {
		h1 := d.hosts[0]
		heard := h1.ears()
		fits := func(g *routed, mtu uint16) {
			for _, ip := range []netip.Addr{g.v4, g.v6} {
				h1.set(of(vni100, row(hoststate.TableReach, overlay.MAC{}, ip, 0, hoststate.Val{MTU: mtu}))...)
			}
		}
		for _, g := range []*routed{d.b, d.c} {
			fits(g, 1400)
			for _, ip := range []netip.Addr{g.v4, g.v6} {
				carries(t, d.a, g, ip)
			}
			fits(g, 1300)
			long6 := append(d.a.to(g.v6, 64), make([]byte, 1300)...)
			long4 := append(d.a.to(g.v4, 64), make([]byte, 1300)...)
			whole4 := bytes.Clone(long4)
			whole4[20] = 0x40
			for _, f := range [][]byte{long6, whole4} {
				d.a.Send(f)
				h1.hearsOf(heard, d.a.port, f)
			}
			d.a.Send(long4) // may be sent on in pieces
			if n := g.gets(300*time.Millisecond, d.a); n != 1 {
				t.Errorf("%s got %d packets, want that which may be cut", g.dev, n)
			}
		}
	})
}

// hearsOf waits until the beginning of a long frame is heard.
func (h *host) hearsOf(heard <-chan hoststate.Heard, port int32, frame []byte) {
	h.t.Helper()
	for end := time.After(5 * time.Second); ; {
		select {
		case x := <-heard:
			if x.Port == port && x.Dropped && x.Length == len(frame) && bytes.Equal(x.Frame, frame[:hoststate.MaxHeard]) {
				return
			}
		case <-end:
			h.t.Errorf("not heard: % x", frame[:64])
			return
		}
	}
}

// TestScanIsBounded: a guest of an on-demand network that sends to everybody
// there might be makes so many misses, and another one's go on as ever.
func TestScanIsBounded(t *testing.T) {
	t.Parallel()
	h := newRig(t, 2).hosts[0]
	h.del(row(hoststate.TableRepl, overlay.MAC{}, h.rig.hosts[1].vtep, 0, hoststate.Val{Flags: hoststate.Permanent}))
	h.apply(hoststate.Op{Kind: hoststate.OpTune, Dev: hoststate.Device{VNI: vni100, Local: h.vtep, UDPPort: 4789, MTU: 1450, Alias: "test", Misses: true}})
	scans, calm := h.vm("vm1", macN(1)), h.vm("vm2", macN(2))
	for _, g := range []*guest{scans, calm} {
		h.set(row(hoststate.TablePort, overlay.MAC{}, netip.Addr{}, g.port, hoststate.Val{MAC: g.mac, Flags: hoststate.Open | hoststate.Demand}),
			row(hoststate.TableKnown, g.mac, netip.Addr{}, 0, hoststate.Val{}))
	}
	misses := missListener(t, h)
	start := time.Now()
	for i := range 20_000 {
		scans.stream(1, overlay.MAC{0x52, 0x54, 1, 0, byte(i >> 8), byte(i)}, scans.mac)
	}
	ask := packet.AskARP(calm.mac, scans.mac, netip.IPv4Unspecified(), netip.MustParseAddr("10.2.0.0"))
	for i := range 20_000 { // to one that is known, past the bucket of a storm
		ask[40], ask[41] = byte(i>>8), byte(i)
		scans.Send(ask)
	}
	took := time.Since(start)
	calm.stream(1, macN(99), calm.mac)
	scans.stream(10, calm.mac, scans.mac) // known: past the bucket
	if n := calm.got(); n != 10 {
		t.Errorf("%d of 10 frames to one that is known came", n)
	}
	if most, n := 64+200*(took.Seconds()+1), misses(); n < 64 || float64(n) > most {
		t.Errorf("%d misses in %s, want 64 to %.0f", n, took, most)
	}
	if n := h.drops(scans.port, hoststate.DropUnknown); n < 30_000 {
		t.Errorf("%d frames counted as dropped", n)
	}
	if n := h.drops(calm.port, hoststate.DropUnknown); n != 0 {
		t.Errorf("%d frames of another guest dropped", n)
	}
}

// TestStrangersCome: guests that a host was not told of send to it from a host
// that serves their network, until it is told of them.
func TestStrangersCome(t *testing.T) {
	t.Parallel()
	for _, filters := range []bool{false, true} {
		t.Run(fmt.Sprintf("filters=%t", filters), func(t *testing.T) {
			r := newRigWith(t, 2, filters)
			h1, h2 := r.hosts[0], r.hosts[1]
			vm1, vm2 := h1.vm("vm1", macN(1)), h2.vm("vm2", macN(2))
			h2.remote(vm1.mac, h1)
			from := row(hoststate.TableSource, vm2.mac, h2.vtep, 0, hoststate.Val{})
			h1.del(from)
			seen := func() int { vm2.stream(10, vm1.mac, vm2.mac); return vm1.got() }
			if n := seen(); n != 0 {
				t.Errorf("%d frames of nobody came", n)
			}
			h1.set(row(hoststate.TableSource, overlay.MAC{}, h2.vtep, 0, hoststate.Val{Flags: hoststate.Strangers}))
			if n := seen(); n != 10 {
				t.Errorf("%d of 10 frames of a stranger came", n)
			}
			h1.set(row(hoststate.TableKnown, vm2.mac, netip.Addr{}, 0, hoststate.Val{}))
			if n := seen(); n != 0 {
				t.Errorf("%d frames came with the MAC of one that is elsewhere", n)
			}
			h1.set(from)
			if n := seen(); n != 10 {
				t.Errorf("%d of 10 frames came once it was told where", n)
			}
		})
	}
}
