package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// What network 100 reaches of another one, and what network 101 does.
var (
	far            = overlay.MAC{0x52, 0x54, 0, 2, 0, 2}
	far4, far6     = netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("fd00:2::2")
	else4, else6   = netip.MustParseAddr("10.3.0.2"), netip.MustParseAddr("fd00:3::2")
	elseMAC        = overlay.MAC{0x52, 0x54, 0, 3, 0, 2}
	routeLimits    = Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 1000}, Unclaimed: Rate{1, 1000}, Router: Rate{1, 1000}}
	router, routed = overlay.ServerMAC, safe | hoststate.Routed
)

// newRouted is a bench whose port has the flag, and reaches far.
func newRouted(t testing.TB, flags hoststate.Flags) *bench {
	t.Helper()
	b := newBench(t, routeLimits)
	if err := b.AddNetwork(101, port+1); err != nil {
		t.Fatal(err)
	}
	b.reach(100, far, far4, far6)
	b.reach(101, elseMAC, else4, else6)
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: flags})
	return b
}

func (b *bench) reach(v overlay.VNI, mac overlay.MAC, ips ...netip.Addr) {
	b.Helper()
	b.row(hoststate.Key{Table: hoststate.TableReach, VNI: v, MAC: mac}, hoststate.Val{})
	for _, ip := range ips {
		b.row(hoststate.Key{Table: hoststate.TableReach, VNI: v, IP: ip}, hoststate.Val{})
	}
}

// hops sets the TTL of an IPv4 packet, with its checksum, or the hop limit of an
// IPv6 packet.
func hops(n byte, p []byte) []byte {
	if p[0]>>4 == 6 {
		p[7] = n
		return p
	}
	p[8] = n
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], ^sum(p[:int(p[0]&15)*4]))
	return p
}

// sum is the sum in ones' complement of 16-bit words (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// through runs the guest's program on a frame and returns the frame as it goes on.
func (b *bench) through(frame []byte) (verdict uint32, out []byte) {
	b.Helper()
	err := b.ns.Run(func() (err error) {
		verdict, out, err = b.objects.CvFromPort.Test(frame)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return verdict, out
}

// TestRouterTakesOneHop: a packet to the router goes on as it was, but for one
// hop less and a checksum that is right.
func TestRouterTakesOneHop(t *testing.T) {
	t.Parallel()
	b := newRouted(t, routed)
	const v4, v6 = 0x0800, 0x86dd
	for n := range 256 {
		ttl, payload := byte(n), []byte{byte(n * 7), 1, 2, 3, 4, 5, 6, byte(n)}
		p4 := ip4(own4, far4, 6, payload)
		binary.BigEndian.PutUint16(p4[4:], uint16(n*257)) // so that all carries come up
		for what, f := range map[string]struct {
			frame []byte
			hops  int // offset
			ip    int // length of what the checksum covers
		}{
			"IPv4":              {eth(router, mine, v4, hops(ttl, p4)), 22, 20},
			"IPv4 with options": {eth(router, mine, v4, hops(ttl, withOptions(ip4(own4, far4, 6, payload)))), 22, 28},
			"IPv6":              {eth(router, mine, v6, hops(ttl, ip6(own6, far6, 6, payload))), 21, 0},
		} {
			verdict, out := b.through(f.frame)
			if n < 2 {
				if verdict != shot {
					t.Errorf("%s, %d hops left: verdict %d", what, n, int32(verdict))
				}
				continue
			}
			want := bytes.Clone(f.frame)
			want[f.hops]--
			if f.ip != 0 {
				copy(want[14:], hops(want[f.hops], want[14:]))
				if s := sum(out[14 : 14+f.ip]); s != 0xffff {
					t.Errorf("%s, %d hops left: header sums up to %#x", what, n, s)
				}
			}
			if verdict != next || !bytes.Equal(out, want) {
				t.Errorf("%s, %d hops left: verdict %d, frame\n% x, want\n% x", what, n, int32(verdict), out, want)
			}
		}
	}
}

// TestOutOfTheNetwork: by the router only, and only to what may be reached.
func TestOutOfTheNetwork(t *testing.T) {
	t.Parallel()
	b := newRouted(t, routed)
	const arpT, v4, v6, vlan = 0x0806, 0x0800, 0x86dd, 0x8100
	tcp := make([]byte, 20)
	group6 := overlay.MAC{0x33, 0x33, 0xff, 0, 0, 2}
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"IPv4", eth(router, mine, v4, ip4(own4, far4, 6, tcp)), 0},
		{"IPv4 from a further MAC", eth(router, spare, v4, ip4(own4, far4, 6, tcp)), 0},
		{"a later fragment", eth(router, mine, v4, fragment(ip4(own4, far4, 17), 5)), 0},
		{"IPv6", eth(router, mine, v6, ip6(own6, far6, 6, tcp)), 0},
		{"IPv6 later fragment", eth(router, mine, v6, ip6(own6, far6, 44, []byte{58, 0, 0, 9, 0, 0, 0, 1})), 0},
		{"IPv4 that nobody opened", eth(router, mine, v4, ip4(own4, else4, 6, tcp)), hoststate.DropRouter},
		{"IPv6 that nobody opened", eth(router, mine, v6, ip6(own6, else6, 6, tcp)), hoststate.DropRouter},
		{"to its own network", eth(router, mine, v4, ip4(own4, their4, 6, tcp)), hoststate.DropRouter},
		{"IPv4, the last hop", eth(router, mine, v4, hops(1, ip4(own4, far4, 6, tcp))), hoststate.DropRouter},
		{"IPv6, the last hop", eth(router, mine, v6, hops(1, ip6(own6, far6, 6, tcp))), hoststate.DropRouter},
		{"from a link-local address", eth(router, mine, v6, ip6(link6, far6, 6, tcp)), hoststate.DropRouter},
		{"IPv4 behind a tag", eth(router, mine, vlan, tag(0, v4), ip4(own4, far4, 6, tcp)), hoststate.DropRouter},
		{"IPv6 behind a tag", eth(router, mine, vlan, tag(0, v6), ip6(own6, far6, 6, tcp)), hoststate.DropRouter},
		{"a foreign IPv4", eth(router, mine, v4, ip4(their4, far4, 6, tcp)), hoststate.DropSourceIP},
		{"a foreign IPv6", eth(router, mine, v6, ip6(their6, far6, 6, tcp)), hoststate.DropSourceIP},
		{"a foreign MAC", eth(router, other, v4, ip4(own4, far4, 6, tcp)), hoststate.DropSourceMAC},
		{"a DHCP answer", eth(router, mine, v4, ip4(own4, far4, 17, udp(67, 68))), hoststate.DropServer},
		{"cut IPv4", cutTo(34, eth(router, mine, vlan, tag(0, v4), ip4(own4, far4, 6, tcp))), hoststate.DropShort},
		{"another type", eth(router, mine, 0x88b5), 0},
		{"ARP to the router", eth(router, mine, arpT, arp(1, mine, own4, their4)), 0},

		{"to a MAC of another network, IPv4", eth(far, mine, v4, ip4(own4, far4, 6, tcp)), hoststate.DropNetwork},
		{"to a MAC of another network, IPv6", eth(far, mine, v6, ip6(own6, far6, 6, tcp)), hoststate.DropNetwork},
		{"to a MAC of another network, tagged", eth(far, mine, vlan, tag(5, v4), ip4(own4, far4, 6, tcp)), hoststate.DropNetwork},
		{"to a MAC of another network, another type", eth(far, mine, 0x88b5), hoststate.DropNetwork},
		{"to a MAC that is reached from elsewhere", eth(elseMAC, mine, 0x88b5), 0},
		{"the destination's address to a neighbour", eth(other, mine, v4, ip4(own4, far4, 6, tcp)), 0},

		{"ARP request", eth(all, mine, arpT, arp(1, mine, own4, far4)), hoststate.DropNetwork},
		{"ARP request behind a tag", eth(all, mine, vlan, tag(0, arpT), arp(1, mine, own4, far4)), hoststate.DropNetwork},
		{"ARP request to one", eth(other, mine, arpT, arp(1, mine, own4, far4)), hoststate.DropNetwork},
		{"ARP request to the router", eth(router, mine, arpT, arp(1, mine, own4, far4)), hoststate.DropNetwork},
		{"ARP probe", eth(all, mine, arpT, arp(1, mine, none4, far4)), hoststate.DropNetwork},
		{"ARP request for one that is reached from elsewhere", eth(all, mine, arpT, arp(1, mine, own4, else4)), 0},
		{"ARP request for a neighbour", eth(all, mine, arpT, arp(1, mine, own4, their4)), 0},
		{"solicitation", eth(group6, mine, v6, ip6(own6, far6, 58, icmp6(135, far6))), hoststate.DropNetwork},
		{"solicitation to one", eth(other, mine, v6, ip6(own6, far6, 58, icmp6(135, far6))), hoststate.DropNetwork},
		{"solicitation behind options", eth(group6, mine, v6, ip6(own6, far6, 0, options(58), icmp6(135, far6))), hoststate.DropNetwork},
		{"duplicate detection", eth(group6, mine, v6, ip6(none6, far6, 58, icmp6(135, far6))), hoststate.DropNetwork},
		{"solicitation for one that is reached from elsewhere", eth(group6, mine, v6, ip6(own6, else6, 58, icmp6(135, else6))), 0},
		{"solicitation for a neighbour", eth(group6, mine, v6, ip6(own6, their6, 58, icmp6(135, their6))), 0},
		{"solicitation for the router, to the router", eth(router, mine, v6, ip6(own6, their6, 58, icmp6(135, their6))), hoststate.DropRouter},
	})
	for i := range router {
		near := router
		near[i] ^= 4
		b.verdicts(b.objects.CvFromPort, port, []frameCase{{"a MAC like the router's", eth(near, mine, v4, ip4(own4, else4, 6, tcp)), 0}})
	}
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: hoststate.Open | hoststate.Routed})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"gratuitous ARP", eth(all, mine, arpT, arp(1, mine, far4, far4)), hoststate.DropNetwork},
		{"advertisement", eth(all, mine, v6, ip6(far6, own6, 58, icmp6(136, far6))), hoststate.DropNetwork},
		{"advertisement of its own", eth(all, mine, v6, ip6(own6, far6, 58, icmp6(136, own6))), 0},
	})
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"not routed, to the router", eth(router, mine, v4, hops(1, ip4(own4, else4, 6, tcp))), 0},
		{"not routed, to a MAC of another network", eth(far, mine, 0x88b5), 0},
		{"not routed, ARP request", eth(all, mine, arpT, arp(1, mine, own4, far4)), 0},
	})
	if _, out := b.through(eth(router, mine, v4, hops(9, ip4(own4, far4, 6, tcp)))); out[22] != 9 {
		t.Errorf("a port that is not routed has %d hops left of 9", out[22])
	}
}

// TestRoutedPortWithoutNetwork: without the rows of its network nothing of a
// port's is sent on, and its neighbours are reached as ever.
func TestRoutedPortWithoutNetwork(t *testing.T) {
	t.Parallel()
	b := newRouted(t, routed)
	if err := b.DropNetwork(port); err != nil {
		t.Fatal(err)
	}
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"to the router", eth(router, mine, 0x0800, ip4(own4, far4, 6)), hoststate.DropRouter},
		{"to a neighbour", eth(other, mine, 0x0800, ip4(own4, their4, 6)), 0},
		{"ARP", eth(all, mine, 0x0806, arp(1, mine, own4, their4)), 0},
	})
}

// TestRoutedFramesReachTheGuest: what another network's guest sent comes from the
// router.
func TestRoutedFramesReachTheGuest(t *testing.T) {
	t.Parallel()
	b := newRouted(t, routed)
	b.verdicts(b.objects.CvToPort, port, []frameCase{
		{"IPv4", eth(mine, router, 0x0800, ip4(far4, own4, 6)), 0},
		{"IPv6", eth(mine, router, 0x86dd, ip6(far6, own6, 6)), 0},
		{"ARP of the router", eth(mine, router, 0x0806, arp(2, router, their4, own4)), 0},
		{"for another", eth(other, router, 0x0800, ip4(far4, their4, 6)), hoststate.DropNotForPort},
	})
}

// TestWhatTheRouterHears: packets that it does not send on, those of a guest
// that asks for another network's MAC, and nothing that it sends on.
func TestWhatTheRouterHears(t *testing.T) {
	t.Parallel()
	b := newRouted(t, routed)
	ctx, cancel := context.WithCancel(context.Background())
	heard, done := make(chan hoststate.Heard, 100), make(chan error, 1)
	go func() { done <- b.Listen(ctx, func(h hoststate.Heard) { heard <- h }) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("listen: %v", err)
		}
	}()
	const arpT, v4, v6 = 0x0806, 0x0800, 0x86dd
	quiet := [][]byte{
		eth(router, mine, v4, ip4(own4, far4, 1, make([]byte, 40))),
		eth(far, mine, v4, ip4(own4, far4, 6, make([]byte, 20))),
		eth(router, mine, v4, ip4(their4, else4, 1, make([]byte, 40))), // of another's address
	}
	for _, f := range quiet {
		b.run(b.objects.CvFromPort, f)
	}
	for _, f := range [][]byte{
		eth(router, mine, v4, ip4(own4, else4, 1, make([]byte, 1000))),
		eth(router, mine, v4, hops(1, ip4(own4, far4, 1, make([]byte, 40)))),
		eth(router, mine, v6, hops(1, ip6(own6, far6, 17, udp(33434, 33434)))),
		eth(router, mine, v6, ip6(own6, their6, 58, icmp6(128, netip.Addr{}))),
		eth(router, mine, v6, ip6(own6, their6, 58, icmp6(135, their6))), // once
		eth(router, mine, v4, ip4(own4, their4, 17, udp(68, 67))),
		eth(all, mine, arpT, arp(1, mine, own4, far4)),
	} {
		if verdict, out := b.through(f); verdict != shot || !bytes.Equal(out, f) {
			t.Errorf("verdict %d, frame % x, was % x", int32(verdict), out, f)
		}
		select {
		case h := <-heard:
			if n := min(len(f), hoststate.MaxHeard); h.Port != port || !h.Dropped || h.ToGuest || h.Length != len(f) || !bytes.Equal(h.Frame, f[:n]) {
				t.Errorf("heard %+v, want % x", h, f)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("not heard: % x", f)
		}
	}
	select {
	case h := <-heard:
		t.Errorf("heard more: %+v", h)
	case <-time.After(50 * time.Millisecond):
	}
}

// TestRouterIsBounded: so many packets to the router are handed up, and no
// fewer of anything else.
func TestRouterIsBounded(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 4}, Unclaimed: Rate{1, 3}, Router: Rate{1, 5}})
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: routed})
	for range 20 {
		b.run(b.objects.CvFromPort, eth(router, mine, 0x0800, ip4(own4, else4, 1)))
	}
	if d := b.drops(port); d[hoststate.DropRouter] != 20 || d[hoststate.DropPuntLimit] != 15 {
		t.Errorf("counted %v, want 20 dropped and 15 not handed up", d)
	}
	for range 4 {
		b.run(b.objects.CvFromPort, eth(all, mine, 0x0806, arp(1, mine, own4, their4)))
	}
	if d := b.drops(port); d[hoststate.DropPuntLimit] != 15 {
		t.Errorf("after four ARP requests %d frames were not handed up, want 15", d[hoststate.DropPuntLimit])
	}
}
