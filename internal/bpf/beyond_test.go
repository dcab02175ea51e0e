package bpf

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Where network 100 sends what is beyond all networks: near is a guest of its
// own, hop one of another network.
var (
	near, hop    = overlay.MAC{0x52, 0x54, 0, 0, 0, 9}, overlay.MAC{0x52, 0x54, 0, 2, 0, 9}
	out4, out6   = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")
	deep4, deep6 = netip.MustParseAddr("203.0.113.5"), netip.MustParseAddr("2001:db8:2::5")
)

func (b *bench) routes(v overlay.VNI, to map[string]overlay.MAC) {
	b.Helper()
	for s, mac := range to {
		p := netip.MustParsePrefix(s)
		b.row(hoststate.Key{Table: hoststate.TableRoute, VNI: v, IP: p.Addr(), Bits: uint8(p.Bits())}, hoststate.Val{MAC: mac})
	}
}

// TestBeyondAllNetworks: a packet that no network has goes to the next hop of
// the longest prefix, one hop on, and else is handed up.
func TestBeyondAllNetworks(t *testing.T) {
	t.Parallel()
	b := newRouted(t, routed)
	b.reach(100, hop)
	const v4, v6, vlan = 0x0800, 0x86dd, 0x8100
	tcp := make([]byte, 20)
	b.routes(101, map[string]overlay.MAC{"0.0.0.0/0": near, "::/0": near})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"IPv4 without a route, another network's", eth(router, mine, v4, ip4(own4, out4, 6, tcp)), hoststate.DropRouter},
		{"IPv6 without a route, another network's", eth(router, mine, v6, ip6(own6, out6, 6, tcp)), hoststate.DropRouter},
	})
	b.routes(100, map[string]overlay.MAC{"::/0": near})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"IPv4 with a route of IPv6", eth(router, mine, v4, ip4(own4, out4, 6, tcp)), hoststate.DropRouter},
		{"IPv6 to an address of IPv4's", eth(router, mine, v6, ip6(own6, netip.AddrFrom16(far4.As16()), 6, tcp)), hoststate.DropRouter},
	})
	b.routes(100, map[string]overlay.MAC{"0.0.0.0/0": near, "203.0.113.0/24": hop, "2001:db8:2::/48": hop, "203.0.113.9/32": {}, "10.1.0.0/24": {}})
	for _, c := range []struct {
		what     string
		frame    []byte
		dst, src overlay.MAC
	}{
		{"IPv4", eth(router, mine, v4, hops(9, ip4(own4, out4, 6, tcp))), near, mine},
		{"IPv6", eth(router, mine, v6, hops(9, ip6(own6, out6, 6, tcp))), near, mine},
		{"IPv4 from a further MAC", eth(router, spare, v4, hops(9, ip4(own4, out4, 6, tcp))), near, spare},
		{"IPv4, a longer prefix, into another network", eth(router, mine, v4, hops(9, ip4(own4, deep4, 6, tcp))), hop, router},
		{"IPv6, a longer prefix, into another network", eth(router, mine, v6, hops(9, ip6(own6, deep6, 6, tcp))), hop, router},
		{"IPv4 that is reached", eth(router, mine, v4, hops(9, ip4(own4, far4, 6, tcp))), router, mine},
		{"a later fragment", eth(router, mine, v4, fragment(hops(9, ip4(own4, out4, 17, tcp)), 5)), near, mine},
	} {
		verdict, got := b.through(c.frame)
		want := bytes.Clone(c.frame)
		copy(want, c.dst[:])
		copy(want[6:], c.src[:])
		if want[12] == 8 {
			copy(want[14:], hops(8, want[14:]))
		} else {
			want[21]--
		}
		if c.what == "a later fragment" { // whose checksum the maker has not put right
			copy(want[24:26], got[24:26])
		}
		if verdict != next || !bytes.Equal(got, want) {
			t.Errorf("%s: verdict %d, frame\n% x, want\n% x", c.what, int32(verdict), got, want)
		}
	}
	b.verdicts(b.objects.CvFromPort, port, []frameCase{
		{"to nobody", eth(router, mine, v4, ip4(own4, netip.MustParseAddr("203.0.113.9"), 6, tcp)), hoststate.DropRouter},
		{"to its own network", eth(router, mine, v4, ip4(own4, their4, 6, tcp)), hoststate.DropRouter},
		{"the last hop", eth(router, mine, v4, hops(1, ip4(own4, out4, 6, tcp))), hoststate.DropRouter},
		{"the last hop, IPv6", eth(router, mine, v6, hops(1, ip6(own6, out6, 6, tcp))), hoststate.DropRouter},
		{"IPv6 behind a tag, with hops where it seems to have them", eth(router, mine, vlan, tag(0, v6), func() []byte { p := ip6(own6, out6, 6, tcp); p[3] = 64; return p }()), hoststate.DropRouter},
		{"behind a tag", eth(router, mine, vlan, tag(0, v4), ip4(own4, out4, 6, tcp)), hoststate.DropRouter},
		{"from a link-local address", eth(router, mine, v6, ip6(link6, out6, 6, tcp)), hoststate.DropRouter},
		{"a foreign IPv4", eth(router, mine, v4, ip4(their4, out4, 6, tcp)), hoststate.DropSourceIP},
		{"to the next hop itself, of another network", eth(hop, mine, v4, ip4(own4, out4, 6, tcp)), hoststate.DropNetwork},
		{"to the next hop itself, of its own", eth(near, mine, v4, ip4(own4, out4, 6, tcp)), 0},
	})
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe})
	if verdict, got := b.through(eth(router, mine, v4, hops(9, ip4(own4, out4, 6, tcp)))); verdict != next || overlay.MAC(got[:6]) != router {
		t.Errorf("a port that is not routed: verdict %d, frame % x", int32(verdict), got)
	}
}

// skBuff is struct __sk_buff (linux/bpf.h) as far as a test sets it.
type skBuff struct {
	_       [41]uint32
	GSOSegs uint32
	_       [2]uint32
	GSOSize uint32
	_       [3]uint32
}

// TestTooBig: what a destination's network cannot carry is handed up, but IPv4
// that may be sent on in pieces; what is to be cut counts by the pieces.
func TestTooBig(t *testing.T) {
	t.Parallel()
	b := newRouted(t, routed)
	const v4, v6, df = 0x0800, 0x86dd, 0x4000
	b.row(hoststate.Key{Table: hoststate.TableReach, VNI: 100, IP: far4}, hoststate.Val{MTU: 1400})
	b.row(hoststate.Key{Table: hoststate.TableReach, VNI: 100, IP: far6}, hoststate.Val{MTU: 1400})
	tcp := func(options, data int) []byte {
		p := make([]byte, 20+options+data)
		p[12] = byte(20+options) / 4 << 4
		return p
	}
	of4 := func(field uint16, proto byte, p []byte) []byte {
		return eth(router, mine, v4, fragment(ip4(own4, far4, proto, p), field))
	}
	of6 := func(parts ...[]byte) []byte { return eth(router, mine, v6, ip6(own6, far6, 6, parts...)) }
	headed := eth(router, mine, v6, ip6(own6, far6, 0, options(6), tcp(12, 3000)))
	for _, c := range []struct {
		what  string
		frame []byte
		gso   uint32
		pass  bool
	}{
		{"IPv4 that fits", of4(df, 6, tcp(0, 1360)), 0, true},
		{"IPv4 that is a byte too long", of4(df, 6, tcp(0, 1361)), 0, false},
		{"IPv4 that may be sent in pieces", of4(0, 6, tcp(0, 1361)), 0, true},
		{"IPv4 that is a piece", of4(0x2000, 6, tcp(0, 1361)), 0, true},
		{"IPv6 that fits", of6(tcp(0, 1340)), 0, true},
		{"IPv6 that is a byte too long", of6(tcp(0, 1341)), 0, false},
		{"IPv4 that says that it is short", func() []byte { f := of4(df, 6, tcp(0, 1361)); f[16], f[17] = 0, 40; return f }(), 0, false},
		{"IPv4 of TCP to be cut, that fits", of4(df, 6, tcp(12, 3000)), 1348, true},
		{"IPv4 of TCP to be cut, a byte too long", of4(df, 6, tcp(12, 3000)), 1349, false},
		{"IPv4 of TCP to be cut, that may be sent in pieces", of4(0, 6, tcp(12, 3000)), 1349, true},
		{"IPv6 of TCP to be cut, that fits", of6(tcp(12, 3000)), 1328, true},
		{"IPv6 of TCP to be cut, a byte too long", of6(tcp(12, 3000)), 1329, false},
		{"the same behind options, that fits", headed, 1320, true},
		{"the same behind options, a byte too long", headed, 1321, false},
		{"IPv4 of UDP to be cut, that fits", of4(df, 17, udp(5555, 5555, make([]byte, 3000))), 1372, true},
		{"IPv4 of UDP to be cut, a byte too long", of4(df, 17, udp(5555, 5555, make([]byte, 3000))), 1373, false},
		{"another protocol to be cut", of4(df, 132, make([]byte, 3000)), 1000, false},
	} {
		opts := &ebpf.RunOptions{Data: c.frame, DataOut: make([]byte, len(c.frame)+256)}
		if c.gso != 0 {
			opts.Context = &skBuff{GSOSegs: 4, GSOSize: c.gso}
		}
		before := b.drops(port)[hoststate.DropRouter]
		var verdict uint32
		err := b.ns.Run(func() (err error) { verdict, err = b.objects.CvFromPort.Run(opts); return err })
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		dropped := b.drops(port)[hoststate.DropRouter] - before
		if c.pass != (verdict == next) || c.pass != (dropped == 0) {
			t.Errorf("%s: verdict %d, %d counted, want it to pass: %t", c.what, int32(verdict), dropped, c.pass)
		}
		if same := bytes.Equal(opts.DataOut, c.frame); same == c.pass {
			t.Errorf("%s: the frame is as it was: %t", c.what, same)
		}
	}
	b.row(hoststate.Key{Table: hoststate.TableReach, VNI: 100, IP: far4}, hoststate.Val{})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{{"any length", of4(df, 6, tcp(0, 1361)), 0}})
}

// TestAlias: a frame to an alias is given to whom it is before a relay is looked
// for, and at its own device only.
func TestAlias(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{})
	alias := overlay.MAC{0x06, 0x43, 0, 0, 0, 1}
	if err := b.AddNetwork(101, port+1); err != nil {
		t.Fatal(err)
	}
	elsewhere := Change{Row: hoststate.Row{Key: hoststate.Key{Table: hoststate.TableAlias, VNI: 101, MAC: alias}, Val: hoststate.Val{MAC: spare}}, Device: port + 1}
	check := func(when string, to, want overlay.MAC, verdict uint32) {
		t.Helper()
		frame := eth(to, router, 0x0800, ip4(far4, own4, 6))
		var got uint32
		var out []byte
		if err := b.ns.Run(func() (err error) { got, out, err = b.objects.CvFromOverlay.Test(frame); return err }); err != nil {
			t.Fatal(err)
		}
		if got != verdict || overlay.MAC(out[:6]) != want || !bytes.Equal(out[6:], frame[6:]) {
			t.Errorf("%s: verdict %d, to %s, want %d, %s", when, int32(got), overlay.MAC(out[:6]), int32(verdict), want)
		}
	}
	check("none", alias, alias, next)
	if err := b.Write([]Change{elsewhere})[0]; err != nil {
		t.Fatal(err)
	}
	check("another network's", alias, alias, next)
	b.row(hoststate.Key{Table: hoststate.TableAlias, VNI: 100, MAC: alias}, hoststate.Val{MAC: mine})
	check("its own", alias, mine, next)
	check("another MAC", other, other, next)
	check("a group", all, all, next)
	b.row(hoststate.Key{Table: hoststate.TableRelay, VNI: 100, MAC: mine}, hoststate.Val{})
	check("of one that moved", alias, mine, resend)
	check("one that moved", mine, mine, resend)
	b.row(hoststate.Key{Table: hoststate.TableAlias, VNI: 100, MAC: alias}, hoststate.Val{MAC: other})
	check("another one's now", alias, other, next)
	b.delete(hoststate.Key{Table: hoststate.TableAlias, VNI: 100, MAC: alias})
	check("none any more", alias, alias, next)
	check("one that moved, without aliases", mine, mine, resend)
	elsewhere.Delete = true
	if err := b.Write([]Change{elsewhere})[0]; err != nil {
		t.Fatal(err)
	}
	if bits, _, err := get[uint32, uint32](b.objects.CvTurning, 0); bits != relaying || err != nil {
		t.Errorf("looked for: %b, %v, want relays alone", bits, err)
	}
	b.row(hoststate.Key{Table: hoststate.TableAlias, VNI: 100, MAC: alias}, hoststate.Val{MAC: mine})
	if err := b.DropNetwork(port); err != nil {
		t.Fatal(err)
	}
	check("no network", alias, alias, next)
	if bits, _, err := get[uint32, uint32](b.objects.CvTurning, 0); bits != 0 || err != nil {
		t.Errorf("looked for: %b, %v, want nothing", bits, err)
	}
}

// TestRoutedComeFromTheirHosts: a frame of the router's is taken by whose inner
// source address it has.
func TestRoutedComeFromTheirHosts(t *testing.T) {
	t.Parallel()
	b := newRouted(t, routed)
	const arpT, v4, v6, vlan = 0x0806, 0x0800, 0x86dd, 0x8100
	by := func(m overlay.MAC, a netip.Addr) {
		b.row(hoststate.Key{Table: hoststate.TableRouted, VNI: 100, MAC: m, IP: a}, hoststate.Val{})
	}
	from := func(a netip.Addr, m overlay.MAC) {
		b.row(hoststate.Key{Table: hoststate.TableFrom, VNI: 100, IP: a}, hoststate.Val{MAC: m})
	}
	out := func(vtep netip.Addr, inner []byte) []byte {
		if vtep.Is6() {
			return eth(mine, other, v6, ip6(vtep, here6, 17, udp(5555, 4789, vxlan(8, 100, inner))))
		}
		return eth(mine, other, v4, ip4(vtep, here4, 17, udp(5555, 4789, vxlan(8, 100, inner))))
	}
	of4 := func(src netip.Addr) []byte { return eth(mine, router, v4, ip4(src, own4, 6)) }
	of6 := func(src netip.Addr) []byte { return eth(mine, router, v6, ip6(src, own6, 6)) }
	no := hoststate.DropSource
	check := func(cases ...frameCase) { t.Helper(); b.verdicts(b.objects.CvUnderlay, 0, cases) }
	check(frameCase{"nobody", out(known4, of4(far4)), no})
	// A row of the MAC alone is of what guests send, and no guest has that MAC.
	b.row(hoststate.Key{Table: hoststate.TableSource, VNI: 100, MAC: router, IP: known4}, hoststate.Val{})
	check(frameCase{"as a guest's", out(known4, of4(far4)), no})
	from(far4, far)
	from(far6, far)
	check(frameCase{"an address without a host", out(known4, of4(far4)), no})
	by(far, known4)
	by(far, known6)
	check(
		frameCase{"IPv4", out(known4, of4(far4)), 0},
		frameCase{"IPv6", out(known4, of6(far6)), 0},
		frameCase{"IPv4 over IPv6", out(known6, of4(far4)), 0},
		frameCase{"IPv6 over IPv6", out(known6, of6(far6)), 0},
		frameCase{"from another host", out(mapped, of4(far4)), no},
		frameCase{"another address", out(known4, of4(else4)), no},
		frameCase{"another address, IPv6", out(known4, of6(else6)), no},
		frameCase{"an address of this network", out(known4, of4(their4)), no},
		frameCase{"IPv6 with an address of IPv4's", out(known4, of6(netip.AddrFrom16(far4.As16()))), no},
		frameCase{"no IP", out(known4, eth(mine, router, arpT, arp(2, router, far4, own4))), no},
		frameCase{"another type", out(known4, eth(mine, router, 0x88b5)), no},
		frameCase{"behind a tag", out(known4, eth(mine, router, vlan, tag(0, v4), ip4(far4, own4, 6))), no},
		frameCase{"cut", out(known4, of4(far4)[:29]), no},
		frameCase{"cut, IPv6", out(known4, of6(far6)[:37]), no},
		frameCase{"from its own MAC", out(known4, eth(mine, far, v4, ip4(far4, own4, 6))), no},
		frameCase{"another network", eth(mine, other, v4, ip4(known4, here4, 17, udp(5555, 4789, vxlan(8, 101, of4(far4))))), no},
	)
	// Of those that this host was not told of.
	b.row(hoststate.Key{Table: hoststate.TableRouted, VNI: 100, IP: mapped}, hoststate.Val{Flags: hoststate.Strangers})
	check(
		frameCase{"a stranger", out(mapped, of4(else4)), 0},
		frameCase{"a stranger, IPv6", out(mapped, of6(else6)), 0},
		frameCase{"a stranger with the address of one that is known", out(mapped, of4(far4)), no},
		frameCase{"a stranger of another host", out(known4, of4(else4)), no},
		frameCase{"a stranger that is no IP", out(mapped, eth(mine, router, 0x88b5)), no},
		frameCase{"a stranger's own MAC", out(mapped, eth(mine, far, v4, ip4(else4, own4, 6))), no},
	)
	// Of what is beyond all networks.
	by(hop, known4)
	b.routes(100, map[string]overlay.MAC{"0.0.0.0/0": hop, "203.0.113.0/24": {}})
	check(
		frameCase{"beyond", out(known4, of4(out4)), 0},
		frameCase{"beyond, by a stranger's host", out(mapped, of4(out4)), 0},
		frameCase{"beyond, by another host", out(known6, of4(out4)), no},
		frameCase{"beyond, where nothing is", out(known4, of4(deep4)), no},
		frameCase{"beyond, IPv6", out(known4, of6(out6)), no},
		frameCase{"beyond, with the address of one that is known, of another host", out(known4, func() []byte { from(else4, spare); return of4(else4) }()), no},
	)
	// A moved guest's old host sends on what comes for it, from whomever.
	b.row(hoststate.Key{Table: hoststate.TableRelayed, VNI: 100, MAC: mine, IP: known6}, hoststate.Val{})
	check(frameCase{"relayed", out(known6, of4(out4)), 0}, frameCase{"relayed, from another", out(mapped, of4(far4)), no})
	// A host that serves the network has no say in what the router sends.
	b.row(hoststate.Key{Table: hoststate.TableSource, VNI: 100, IP: mapped}, hoststate.Val{Flags: hoststate.Strangers})
	check(frameCase{"of a host with strangers of this network", out(mapped, of4(far4)), no})
}
