package bpf

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
)

// bench runs programs on frames without a network. The kernel lends lo of the
// namespace as the device, so that the port has index 1.
type bench struct {
	testing.TB
	*Set
	ns *netnstest.NS
}

const (
	port   = 1
	shot   = 2 // TC_ACT_SHOT
	next   = 1<<32 - 1
	resend = 7 // TC_ACT_REDIRECT
)

var (
	mine, other, spare = overlay.MAC{0x52, 0x54, 0, 0, 0, 1}, overlay.MAC{0x52, 0x54, 0, 0, 0, 2}, overlay.MAC{0x52, 0x54, 0, 0, 0, 3}
	all                = overlay.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	none4, none6       = netip.IPv4Unspecified(), netip.IPv6Unspecified()
	own4, own6         = netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")
	their4, their6     = netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")
	link6              = netip.MustParseAddr("fe80::1")
	known4, known6     = netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	here4, here6       = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	mapped             = netip.MustParseAddr("192.0.2.3") // another known VTEP
)

const safe = hoststate.Open | hoststate.CheckIP | hoststate.NoServers

// newBench is a set with port 1, which may send from mine, spare, own4 and
// own6, and with network 100.
func newBench(t testing.TB, l Limits) *bench {
	t.Helper()
	b := &bench{TB: t, ns: netnstest.New(t)}
	err := b.ns.Run(func() (err error) {
		b.Set, err = Load(Config{UDPPort: 4789, Limits: l}, []int32{port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if err := errors.Join(b.AddPort(port, Place{9, 100}), b.AddNetwork(100, port), b.SetVTEP(known4, true), b.SetVTEP(known6, true), b.SetVTEP(mapped, true)); err != nil {
		t.Fatal(err)
	}
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe})
	b.row(hoststate.Key{Table: hoststate.TableOwn, Port: port, MAC: spare}, hoststate.Val{})
	b.row(hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: own4}, hoststate.Val{})
	b.row(hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: own6}, hoststate.Val{})
	return b
}

func (b *bench) row(k hoststate.Key, v hoststate.Val) {
	b.Helper()
	if err := b.Write([]Change{{Row: hoststate.Row{Key: k, Val: v}, Device: port}})[0]; err != nil {
		b.Fatal(err)
	}
}

func (b *bench) run(p *ebpf.Program, frame []byte) uint32 {
	b.Helper()
	var verdict uint32
	err := b.ns.Run(func() (err error) {
		verdict, _, err = p.Test(frame)
		return err
	})
	if err != nil {
		b.Fatalf("run %s: %v", p, err)
	}
	return verdict
}

func (b *bench) drops(port int32) map[hoststate.DropReason]uint64 {
	b.Helper()
	_, drops, err := b.Ports()
	if err != nil {
		b.Fatal(err)
	}
	m := map[hoststate.DropReason]uint64{}
	for k, n := range drops {
		if k.Port == port {
			m[k.Reason] = n
		}
	}
	return m
}

// frameCase is a frame and the reason for which it is dropped; 0: it passes.
type frameCase struct {
	name  string
	frame []byte
	want  hoststate.DropReason
}

// verdicts runs frames one by one; each must be dropped and counted for its
// reason, or pass and be counted nowhere.
func (b *bench) verdicts(p *ebpf.Program, port int32, cases []frameCase) {
	b.Helper()
	for _, c := range cases {
		before := b.drops(port)
		verdict := b.run(p, c.frame)
		after := b.drops(port)
		want := uint32(next)
		if c.want != 0 {
			want = shot
			before[c.want]++
		}
		if verdict != want {
			b.Errorf("%s: verdict %d, want %d", c.name, int32(verdict), int32(want))
		}
		for r := range hoststate.DropReason(hoststate.DropReasons) {
			if before[r] != after[r] {
				b.Errorf("%s: %s counted %d, want %d", c.name, r, after[r], before[r])
			}
		}
	}
}

// TestNobodyIsTheRouter: no guest sends from an address that hosts have towards
// it, or claims one, on a port that is not checked either; towards it only the
// hosts' own MAC does.
func TestNobodyIsTheRouter(t *testing.T) {
	t.Parallel()
	const arpT, v4, v6 = 0x0806, 0x0800, 0x86dd
	b := newBench(t, Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 1000}, Unclaimed: Rate{1, 1000}})
	gate4, gate6 := netip.MustParseAddr("10.0.0.254"), netip.MustParseAddr("fd00::fe")
	for _, a := range []netip.Addr{gate4, gate6} {
		b.row(hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: a}, hoststate.Val{Flags: hoststate.Router})
	}
	router := [6]byte(overlay.ServerMAC)
	for _, flags := range []hoststate.Flags{hoststate.Open, safe} {
		b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: flags})
		b.verdicts(b.objects.CvFromPort, port, []frameCase{
			{"its own", eth(other, mine, v4, ip4(own4, gate4, 6, make([]byte, 20))), 0},
			{"asks for the router", eth(all, mine, arpT, arp(1, mine, own4, gate4)), 0},
			{"ARP answer for the router", eth(other, mine, arpT, arp(2, mine, gate4, their4)), hoststate.DropSourceIP},
			{"announces the router", eth(all, mine, arpT, arp(1, mine, gate4, gate4)), hoststate.DropSourceIP},
			{"IPv4 from the router", eth(other, mine, v4, ip4(gate4, their4, 1, make([]byte, 8))), hoststate.DropSourceIP},
			{"IPv6 from the router", eth(other, mine, v6, ip6(gate6, their6, 58, icmp6(137, their6))), hoststate.DropSourceIP},
			{"advertises the router", eth(other, mine, v6, ip6(own6, their6, 58, icmp6(136, gate6))), hoststate.DropSourceIP},
			{"solicits the router", eth(other, mine, v6, ip6(own6, their6, 58, icmp6(135, gate6))), 0},
		})
		b.verdicts(b.objects.CvToPort, port, []frameCase{
			{"the hosts' answer", eth(mine, router, arpT, arp(2, router, gate4, own4)), 0},
			{"another's answer", eth(mine, other, arpT, arp(2, other, gate4, own4)), hoststate.DropOwnAddress},
			{"another's announcement", eth(all, other, arpT, arp(1, other, gate4, gate4)), hoststate.DropOwnAddress},
			{"the hosts' advertisement", eth(mine, router, v6, ip6(link6, own6, 58, icmp6(136, gate6))), 0},
			{"another's advertisement", eth(mine, other, v6, ip6(link6, own6, 58, icmp6(136, gate6))), hoststate.DropOwnAddress},
		})
	}
}

func TestFromPort(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 1000}, Unclaimed: Rate{1, 1000}})
	const arpT, v4, v6, vlan = 0x0806, 0x0800, 0x86dd, 0x8100
	deep := make([]byte, 0, 80)
	for range 9 {
		deep = append(deep, options(60)...)
	}
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"IPv4 from its own", eth(other, mine, v4, ip4(own4, their4, 6, make([]byte, 20))), 0},
		{"IPv4 from a further MAC", eth(other, spare, v4, ip4(own4, their4, 6, make([]byte, 20))), 0},
		{"IPv6 from its own", eth(other, mine, v6, ip6(own6, their6, 6, make([]byte, 20))), 0},
		{"IPv6 from a link-local address", eth(other, mine, v6, ip6(link6, their6, 6, make([]byte, 20))), 0},
		{"another type", eth(other, mine, 0x88b5), 0},
		{"a foreign MAC", eth(mine, other, v4, ip4(own4, their4, 6)), hoststate.DropSourceMAC},
		{"a foreign MAC, tagged", eth(mine, other, vlan, tag(5, v4), ip4(own4, their4, 6)), hoststate.DropSourceMAC},
		{"a foreign IPv4", eth(other, mine, v4, ip4(their4, own4, 6)), hoststate.DropSourceIP},
		{"a foreign IPv4 behind a tag", eth(other, mine, vlan, tag(0, v4), ip4(their4, own4, 6)), hoststate.DropSourceIP},
		{"a foreign IPv4 behind two tags", eth(other, mine, vlan, tag(0, vlan), tag(0, v4), ip4(their4, own4, 6)), hoststate.DropSourceIP},
		{"a foreign IPv4 behind more tags than are looked through", eth(other, mine, vlan, tag(0, vlan), tag(0, vlan), tag(0, v4), ip4(their4, own4, 6)), hoststate.DropSourceIP},
		{"a foreign IPv4 in a later fragment", eth(other, mine, v4, fragment(ip4(their4, own4, 17), 5)), hoststate.DropSourceIP},
		{"a foreign IPv6", eth(other, mine, v6, ip6(their6, own6, 6)), hoststate.DropSourceIP},
		{"no IPv4, asking for one", eth(all, mine, v4, ip4(none4, netip.MustParseAddr("255.255.255.255"), 17, udp(68, 67))), 0},
		{"no IPv4, otherwise", eth(other, mine, v4, ip4(none4, their4, 17, udp(1000, 67))), hoststate.DropSourceIP},
		{"no IPv6", eth(other, mine, v6, ip6(none6, their6, 58, icmp6(135, own6))), 0},
		{"no IPv6, joining a group", eth(other, mine, v6, ip6(none6, their6, 0, options(58), icmp6(143, netip.Addr{}))), 0},
		{"no IPv6, otherwise", eth(other, mine, v6, ip6(none6, their6, 6, make([]byte, 20))), hoststate.DropSourceIP},
		{"ARP of its own", eth(all, mine, arpT, arp(1, mine, own4, their4)), 0},
		{"ARP probe", eth(all, mine, arpT, arp(1, mine, none4, own4)), 0},
		{"ARP of another's", eth(all, mine, arpT, arp(2, mine, their4, own4)), hoststate.DropSourceIP},
		{"ARP of another's behind a tag", eth(all, mine, vlan, tag(0, arpT), arp(2, mine, their4, own4)), hoststate.DropSourceIP},
		{"neighbour advertisement of its own", eth(other, mine, v6, ip6(own6, their6, 58, icmp6(136, own6))), 0},
		{"neighbour advertisement of another's", eth(other, mine, v6, ip6(own6, own6, 58, icmp6(136, their6))), hoststate.DropSourceIP},
		{"the same behind options", eth(other, mine, v6, ip6(own6, own6, 0, options(60), options(58), icmp6(136, their6))), hoststate.DropSourceIP},
		{"DHCP answer", eth(all, mine, v4, ip4(own4, their4, 17, udp(67, 68))), hoststate.DropServer},
		{"DHCP answer with IPv4 options", eth(all, mine, v4, withOptions(ip4(own4, their4, 17, udp(67, 68)))), hoststate.DropServer},
		{"DHCP request to a server", eth(all, mine, v4, ip4(own4, their4, 17, udp(68, 67))), 0},
		{"DHCPv6 answer", eth(other, mine, v6, ip6(link6, their6, 17, udp(547, 546))), hoststate.DropServer},
		{"router advertisement", eth(other, mine, v6, ip6(link6, their6, 58, icmp6(134, netip.Addr{}))), hoststate.DropServer},
		{"router advertisement behind headers", eth(other, mine, v6, ip6(link6, their6, 60, options(44), []byte{58, 0, 0, 0, 0, 0, 0, 1}, icmp6(134, netip.Addr{}))), hoststate.DropServer},
		{"behind more headers than anybody needs", eth(other, mine, v6, ip6(link6, their6, 60, deep, icmp6(134, netip.Addr{}))), hoststate.DropServer},
		{"IPv6 later fragment", eth(other, mine, v6, ip6(own6, their6, 44, []byte{58, 0, 0, 9, 0, 0, 0, 1})), 0},
		{"cut ARP", cutTo(20, eth(all, mine, arpT, arp(1, mine, own4, their4))), hoststate.DropShort},
		{"cut IPv4", cutTo(34, eth(other, mine, vlan, tag(0, v4), ip4(own4, their4, 6))), hoststate.DropShort},
		{"cut UDP", cutTo(36, eth(other, mine, v4, ip4(own4, their4, 17, udp(67, 68)))), hoststate.DropShort},
		{"cut IPv6", cutTo(44, eth(other, mine, vlan, tag(0, v6), ip6(own6, their6, 58, icmp6(134, netip.Addr{})))), hoststate.DropShort},
		{"IPv4 that is none", eth(other, mine, v4, ip6(own6, their6, 6)), hoststate.DropShort},
		{"IPv4 with a header too short", eth(other, mine, v4, cat([]byte{0x44}, ip4(own4, their4, 6)[1:])), hoststate.DropShort},
	})
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: hoststate.Open})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"unchecked, a foreign IPv4", eth(other, mine, v4, ip4(their4, own4, 6)), 0},
		{"unchecked, a router advertisement", eth(other, mine, v6, ip6(link6, their6, 58, icmp6(134, netip.Addr{}))), 0},
		{"unchecked, a foreign MAC", eth(mine, other, v4, ip4(own4, their4, 6)), hoststate.DropSourceMAC},
	})
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe &^ hoststate.Open})
	closed := []frameCase{{"closed", eth(other, mine, v4, ip4(own4, their4, 6)), hoststate.DropUnclaimed}}
	b.verdicts(b.objects.CvFromPort, port, closed)
	b.verdicts(b.objects.CvToPort, port, closed)
	if err := b.Write([]Change{{Row: hoststate.Row{Key: hoststate.Key{Table: hoststate.TablePort, Port: port}}, Delete: true}})[0]; err != nil {
		t.Fatal(err)
	}
	b.verdicts(b.objects.CvFromPort, port, closed)
	b.verdicts(b.objects.CvToPort, port, closed)
	if err := b.DropPort(port); err != nil {
		t.Fatal(err)
	}
	if a, c := b.run(b.objects.CvFromPort, closed[0].frame), b.run(b.objects.CvToPort, closed[0].frame); a != shot || c != shot {
		t.Errorf("a port that is not registered: verdicts %d and %d", a, c)
	}
}

// TestSharedAndLinkLocal: an address that others may have, too, is sent from and
// claimed by both; and a port may be kept to link-local addresses of its own.
func TestSharedAndLinkLocal(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 1000}, Unclaimed: Rate{1, 1000}})
	const arpT, v4, v6 = 0x0806, 0x0800, 0x86dd
	share4, share6, local := netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd00:1::9"), overlay.EUI64LinkLocal(mine)
	for _, a := range []netip.Addr{share4, share6} {
		b.row(hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: a}, hoststate.Val{Flags: hoststate.Shared})
	}
	b.row(hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: local}, hoststate.Val{})
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe | hoststate.CheckLocal})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"IPv4 from a shared address", eth(other, mine, v4, ip4(share4, their4, 6)), 0},
		{"IPv6 from a shared address", eth(other, mine, v6, ip6(share6, their6, 6)), 0},
		{"announcing a shared address", eth(all, mine, arpT, arp(2, mine, share4, share4)), 0},
		{"advertising a shared address", eth(all, mine, v6, ip6(local, their6, 58, icmp6(136, share6))), 0},
		{"from its own link-local address", eth(other, mine, v6, ip6(local, their6, 6)), 0},
		{"advertising its own link-local address", eth(other, mine, v6, ip6(own6, their6, 58, icmp6(136, local))), 0},
		{"from another's link-local address", eth(other, mine, v6, ip6(link6, their6, 6)), hoststate.DropSourceIP},
		{"advertising another's link-local address", eth(other, mine, v6, ip6(own6, their6, 58, icmp6(136, link6))), hoststate.DropSourceIP},
		{"asking whether another has its link-local address", eth(all, mine, v6, ip6(none6, their6, 58, icmp6(135, local))), 0},
		{"from another's address", eth(other, mine, v6, ip6(their6, own6, 6)), hoststate.DropSourceIP},
	})
	b.verdicts(b.objects.CvToPort, port, []frameCase{
		{"another announces a shared address", eth(all, other, arpT, arp(2, other, share4, share4)), 0},
		{"another advertises a shared address", eth(mine, other, v6, ip6(their6, own6, 58, icmp6(136, share6))), 0},
		{"another announces its own address", eth(all, other, arpT, arp(2, other, own4, own4)), hoststate.DropOwnAddress},
		{"another advertises its link-local address", eth(mine, other, v6, ip6(their6, own6, 58, icmp6(136, local))), hoststate.DropOwnAddress},
	})
	// What was shared becomes its own by one write.
	b.row(hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: share4}, hoststate.Val{})
	b.verdicts(b.objects.CvToPort, port, []frameCase{{"shared no more", eth(all, other, arpT, arp(2, other, share4, share4)), hoststate.DropOwnAddress}})
}

// withOptions puts 8 bytes of options into an IPv4 packet.
func withOptions(p []byte) []byte {
	return cat([]byte{0x47}, p[1:20], []byte{1, 1, 1, 1, 1, 1, 1, 0}, p[20:])
}

func cutTo(n int, b []byte) []byte { return b[:n] }

func TestToPort(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 1000}, Unclaimed: Rate{1, 1000}})
	const arpT, v4, v6 = 0x0806, 0x0800, 0x86dd
	b.verdicts(b.objects.CvToPort, port, []frameCase{
		{"for it", eth(mine, other, v4, ip4(their4, own4, 6)), 0},
		{"for its further MAC", eth(spare, other, v4, ip4(their4, own4, 6)), 0},
		{"for all", eth(all, other, arpT, arp(1, other, their4, own4)), 0},
		{"for another", eth(other, mine, v4, ip4(their4, own4, 6)), hoststate.DropNotForPort},
		{"ARP reply with its address", eth(mine, other, arpT, arp(2, other, own4, own4)), hoststate.DropOwnAddress},
		{"gratuitous ARP with its address", eth(all, other, arpT, arp(1, other, own4, own4)), hoststate.DropOwnAddress},
		{"its own announcement", eth(all, mine, arpT, arp(2, mine, own4, own4)), 0},
		{"its own announcement with a further MAC", eth(all, spare, arpT, arp(2, spare, own4, own4)), 0},
		{"ARP probe for its address", eth(all, other, arpT, arp(1, other, none4, own4)), 0},
		{"advertisement to nobody", eth(mine, other, v6, ip6(their6, none6, 58, icmp6(136, their6))), hoststate.DropMalformed},
		{"advertisement of its address", eth(mine, other, v6, ip6(their6, own6, 58, icmp6(136, own6))), hoststate.DropOwnAddress},
		{"the same behind options", eth(mine, other, v6, ip6(their6, own6, 0, options(58), icmp6(136, own6))), hoststate.DropOwnAddress},
		{"its own advertisement", eth(all, mine, v6, ip6(own6, their6, 58, icmp6(136, own6))), 0},
		{"solicitation for its address", eth(mine, other, v6, ip6(their6, own6, 58, icmp6(135, own6))), 0},
		{"duplicate detection of its address", eth(mine, other, v6, ip6(none6, own6, 58, icmp6(135, own6))), hoststate.DropOwnAddress},
		{"advertisement of another's", eth(mine, other, v6, ip6(their6, own6, 58, icmp6(136, their6))), 0},
		{"DHCP answer", eth(mine, other, v4, ip4(their4, own4, 17, udp(67, 68))), 0},
		{"cut", cutTo(20, eth(all, other, arpT, arp(2, other, own4, own4))), 0},
	})
}

func TestUnderlay(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{})
	const v4, v6 = 0x0800, 0x86dd
	peer := func(table hoststate.Table, m overlay.MAC, a netip.Addr) {
		b.row(hoststate.Key{Table: table, VNI: 100, MAC: m, IP: a}, hoststate.Val{})
	}
	peer(hoststate.TableSource, other, known4)
	peer(hoststate.TableSource, other, known6)
	peer(hoststate.TableRelayed, mine, mapped)
	inner := eth(mine, other, v4, ip4(their4, own4, 6))
	foreign := eth(spare, mine, v4, ip4(their4, own4, 6))
	out4 := func(src netip.Addr, p ...[]byte) []byte { return eth(mine, other, v4, ip4(src, here4, 17, p...)) }
	out6 := func(src netip.Addr, next byte, p ...[]byte) []byte {
		return eth(mine, other, v6, ip6(src, here6, next, p...))
	}
	good := udp(5555, 4789, vxlan(8, 100, inner))
	first := func(p []byte) []byte { return eth(mine, other, v4, fragment(ip4(known4, here4, 17, p), 0x2000)) }
	deep := make([]byte, 0, 80)
	for range 9 {
		deep = append(deep, options(60)...)
	}
	b.verdicts(b.objects.CvUnderlay, 0, []frameCase{
		{"good, IPv4", out4(known4, good), 0},
		{"good, IPv6", out6(known6, 17, good), 0},
		{"good, with IPv4 options", eth(mine, other, v4, withOptions(ip4(known4, here4, 17, good))), 0},
		{"good, behind IPv6 options", out6(known6, 60, options(17), good), 0},
		{"another port", out4(their4, udp(5555, 4790, vxlan(0, 100, foreign))), 0},
		{"TCP", eth(mine, other, v4, ip4(their4, here4, 6, good)), 0},
		{"ARP", eth(all, other, 0x0806, arp(1, other, their4, here4)), 0},
		{"a later fragment", eth(mine, other, v4, fragment(ip4(known4, here4, 17, good), 4)), 0},
		{"a first fragment with all headers", first(good[:64]), 0},
		{"a first fragment without", first(good[:24]), hoststate.DropFragment},
		{"a first IPv6 fragment without", out6(known6, 44, []byte{17, 0, 0, 1, 0, 0, 0, 1}, good[:24]), hoststate.DropFragment},
		{"a first IPv6 fragment that hides what it is", cutTo(62, out6(known6, 44, []byte{60, 0, 0, 1, 0, 0, 0, 1}, options(17))), hoststate.DropFragment},
		{"behind more headers than anybody needs", out6(known6, 60, deep, good), hoststate.DropFragment},
		{"unknown VTEP, IPv4", out4(their4, good), hoststate.DropVTEP},
		{"unknown VTEP, IPv6", out6(their6, 17, good), hoststate.DropVTEP},
		{"unknown VTEP behind options", out6(their6, 0, options(17), good), hoststate.DropVTEP},
		{"unserved network", out4(known4, udp(5555, 4789, vxlan(8, 101, inner))), hoststate.DropVNI},
		{"unserved network of 24 bits", out4(known4, udp(5555, 4789, vxlan(8, 0x640064, inner))), hoststate.DropVNI},
		{"no VNI flag", out4(known4, udp(5555, 4789, vxlan(0, 100, inner))), hoststate.DropMalformed},
		{"no inner frame", out4(known4, udp(5555, 4789, vxlan(8, 100, nil))), hoststate.DropMalformed},
		{"an inner frame of 13 bytes", out4(known4, udp(5555, 4789, vxlan(8, 100, inner[:13]))), hoststate.DropMalformed},
		{"an inner source that is a group", out4(known4, udp(5555, 4789, vxlan(8, 100, eth(mine, all, v4)))), hoststate.DropMalformed},
		{"an inner source of zeros", out4(known4, udp(5555, 4789, vxlan(8, 100, eth(mine, overlay.MAC{}, v4)))), hoststate.DropMalformed},
		{"a foreign inner source", out4(known4, udp(5555, 4789, vxlan(8, 100, foreign))), hoststate.DropSource},
		{"a good source from another VTEP", out4(mapped, udp(5555, 4789, vxlan(8, 100, eth(spare, other, v4)))), hoststate.DropSource},
		{"relayed to one that moved", out4(mapped, good), 0},
	})
	// A foreign VTEP of one network may send what it will there, and nothing in another.
	if err := b.AddNetwork(101, port+1); err != nil {
		t.Fatal(err)
	}
	foreign4, foreign6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")
	if err := errors.Join(b.SetVTEP(foreign4, true), b.SetVTEP(foreign6, true)); err != nil {
		t.Fatal(err)
	}
	b.verdicts(b.objects.CvUnderlay, 0, []frameCase{{"known, and of no network yet", out4(foreign4, good), hoststate.DropSource}})
	peer(hoststate.TableSource, overlay.MAC{}, foreign4)
	peer(hoststate.TableSource, overlay.MAC{}, foreign6)
	b.verdicts(b.objects.CvUnderlay, 0, []frameCase{
		{"foreign, its own MAC", out4(foreign4, udp(5555, 4789, vxlan(8, 100, foreign))), 0},
		{"foreign, another host's MAC", out4(foreign4, good), 0},
		{"foreign, IPv6", out6(foreign6, 17, udp(5555, 4789, vxlan(8, 100, foreign))), 0},
		{"foreign, another network", out4(foreign4, udp(5555, 4789, vxlan(8, 101, foreign))), hoststate.DropSource},
		{"foreign, an unserved network", out4(foreign4, udp(5555, 4789, vxlan(8, 102, foreign))), hoststate.DropVNI},
		{"foreign, an inner source of zeros", out4(foreign4, udp(5555, 4789, vxlan(8, 100, eth(mine, overlay.MAC{}, v4)))), hoststate.DropMalformed},
		{"a host, with a foreign inner source", out4(known4, udp(5555, 4789, vxlan(8, 100, foreign))), hoststate.DropSource},
		{"one that is neither", out4(their4, udp(5555, 4789, vxlan(8, 100, foreign))), hoststate.DropVTEP},
	})
}

func TestFromOverlay(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{})
	b.row(hoststate.Key{Table: hoststate.TableRelay, VNI: 100, MAC: other}, hoststate.Val{})
	for _, c := range []struct {
		to   overlay.MAC
		want uint32
	}{{other, resend}, {mine, next}, {all, next}, {overlay.MAC{0x53, 0x54, 0, 0, 0, 2}, next}} {
		if got := b.run(b.objects.CvFromOverlay, eth(c.to, spare, 0x0800)); got != c.want {
			t.Errorf("to %s: verdict %d, want %d", c.to, int32(got), int32(c.want))
		}
	}
}

// TestBuckets: a bucket holds its burst and no more, and fills again.
func TestBuckets(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{Storm: Rate{20, 7}, Punt: Rate{1, 5}, Unclaimed: Rate{1, 3}})
	storm := eth(all, mine, 0x88b5)
	passed := 0
	for range 20 {
		if b.run(b.objects.CvFromPort, storm) == next {
			passed++
		}
	}
	if d := b.drops(port); passed < 7 || passed > 12 || d[hoststate.DropStorm] != uint64(20-passed) {
		t.Errorf("passed %d of 20, counted %v; want 7 and few more", passed, d)
	}
	<-time.After(120 * time.Millisecond) // two frames' time
	if b.run(b.objects.CvFromPort, storm) != next {
		t.Errorf("the bucket did not fill")
	}
	unicast := eth(other, mine, 0x0806, arp(1, mine, own4, their4))
	for range 20 {
		if b.run(b.objects.CvFromPort, unicast) != next {
			t.Errorf("a frame that was not handed up did not pass")
		}
	}
	if n := b.drops(port)[hoststate.DropPuntLimit]; n != 15 {
		t.Errorf("not handed up: %d of 20, want 15", n)
	}
	for range 10 {
		b.run(b.objects.CvFromPort, eth(mine, other, 0x88b5))
	}
	if n := b.drops(port)[hoststate.DropPuntLimit]; n != 15+7 {
		t.Errorf("not handed up: %d, want 22", n)
	}
}

// TestHeard: what is handed up, and that the rest is not.
func TestHeard(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 1000}, Unclaimed: Rate{1, 1000}})
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
	from, to := b.objects.CvFromPort, b.objects.CvToPort
	for _, c := range []struct {
		name    string
		prog    *ebpf.Program
		frame   []byte
		heard   bool
		dropped bool
	}{
		{"ARP", from, eth(all, mine, arpT, arp(1, mine, own4, their4)), true, false},
		{"RARP", from, eth(all, mine, 0x8035), true, false},
		{"ARP of another's", from, eth(all, mine, arpT, arp(1, mine, their4, own4)), true, true},
		{"solicitation", from, eth(other, mine, v6, ip6(own6, their6, 58, icmp6(135, their6))), true, false},
		{"echo", from, eth(other, mine, v6, ip6(own6, their6, 58, icmp6(128, netip.Addr{}))), false, false},
		{"MLD report behind options", from, eth(other, mine, v6, ip6(link6, their6, 0, options(58), icmp6(143, netip.Addr{}))), true, false},
		{"IGMP", from, eth(other, mine, v4, ip4(own4, their4, 2, make([]byte, 8))), true, false},
		{"DHCP request", from, eth(all, mine, v4, ip4(none4, their4, 17, udp(68, 67))), true, false},
		{"DHCPv6 request", from, eth(other, mine, v6, ip6(link6, their6, 17, udp(546, 547))), true, false},
		{"TCP", from, eth(other, mine, v4, ip4(own4, their4, 6, make([]byte, 20))), false, false},
		{"a foreign MAC", from, eth(other, other, v4, ip4(own4, their4, 6)), true, true},
		{"a DHCP answer to the guest", to, eth(mine, other, v4, ip4(their4, own4, 17, udp(67, 68), make([]byte, 900))), true, false},
		{"ARP to the guest", to, eth(mine, other, arpT, arp(2, other, their4, own4)), false, false},
	} {
		b.run(c.prog, c.frame)
		if !c.heard {
			continue // the next one that is heard would not be the expected one
		}
		select {
		case h := <-heard:
			n := min(len(c.frame), hoststate.MaxHeard)
			if h.Port != port || h.Dropped != c.dropped || h.ToGuest != (c.prog == to) || h.Length != len(c.frame) || string(h.Frame) != string(c.frame[:n]) {
				t.Errorf("%s: heard %+v", c.name, h)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: not heard", c.name)
		}
	}
	select {
	case h := <-heard:
		t.Errorf("heard more: %+v", h)
	case <-time.After(50 * time.Millisecond):
	}
}
