package bpf

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

var (
	group4 = overlay.MAC{1, 0, 0x5e, 0, 0, 5}
	group6 = overlay.MAC{0x33, 0x33, 0, 0, 0, 5}
)

// newDemanding is a bench whose port is of an on-demand network that knows other
// and two groups, with these limits.
func newDemanding(t testing.TB, l Limits, flags hoststate.Flags) *bench {
	t.Helper()
	b := newBench(t, l)
	for _, m := range []overlay.MAC{mine, other, group4} {
		b.row(hoststate.Key{Table: hoststate.TableKnown, VNI: 100, MAC: m}, hoststate.Val{})
	}
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: flags | hoststate.Demand})
	return b
}

// TestUnknownIsBounded: frames that would have the kernel ask for more of its
// tables cost a bucket of their own, and no others do.
func TestUnknownIsBounded(t *testing.T) {
	t.Parallel()
	const arpT, v4, v6, vlan = 0x0806, 0x0800, 0x86dd, 0x8100
	many := Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 1000}, Unclaimed: Rate{1, 1000}, Router: Rate{1, 1000}, Unknown: Rate{1, 1}}
	unknown := overlay.MAC{0x52, 0x54, 0, 0, 9, 9}
	costly := map[string][]byte{
		"IPv4":                              eth(unknown, mine, v4, ip4(own4, their4, 6)),
		"IPv6":                              eth(unknown, mine, v6, ip6(own6, their6, 6)),
		"another type":                      eth(unknown, mine, 0x88b5),
		"tagged":                            eth(unknown, mine, vlan, tag(5, v4), ip4(own4, their4, 6)),
		"a MAC that is near one":            eth(overlay.MAC{0x52, 0x54, 0, 0, 0, 6}, mine, 0x88b5),
		"ARP to one that is known":          eth(other, mine, arpT, arp(1, mine, own4, their4)),
		"ARP to the router":                 eth(router, mine, arpT, arp(1, mine, own4, their4)),
		"a solicitation to one":             eth(other, mine, v6, ip6(own6, their6, 58, icmp6(135, their6))),
		"a solicitation behind options":     eth(other, mine, v6, ip6(own6, their6, 0, options(58), icmp6(135, their6))),
		"a solicitation sent to the router": eth(router, mine, v6, ip6(own6, their6, 58, icmp6(135, their6))),
	}
	for what, frame := range costly {
		b := newDemanding(t, many, safe)
		b.verdicts(b.objects.CvFromPort, port, []frameCase{{what, frame, 0}, {what + ", again", frame, hoststate.DropUnknown}})
	}
	r := newDemanding(t, many, routed)
	r.verdicts(r.objects.CvFromPort, port, []frameCase{{"routed", costly["IPv4"], 0}, {"routed, again", costly["IPv4"], hoststate.DropUnknown}})
	b := newDemanding(t, many, safe)
	b.run(b.objects.CvFromPort, costly["IPv4"]) // the bucket is empty from here on
	var free []frameCase
	for range 3 {
		free = append(free,
			frameCase{"to one that is known", eth(other, mine, v4, ip4(own4, their4, 6)), 0},
			frameCase{"an advertisement to one that is known", eth(other, mine, v6, ip6(own6, their6, 58, icmp6(136, own6))), 0},
			frameCase{"to the router", eth(router, mine, v4, ip4(own4, out4, 6)), 0},
			frameCase{"to all", eth(all, mine, arpT, arp(1, mine, own4, their4)), 0},
			frameCase{"to a group", eth(group6, mine, 0x88b5), 0},
			frameCase{"a solicitation to a group", eth(overlay.MAC{0x33, 0x33, 0xff, 0, 0, 2}, mine, v6, ip6(own6, their6, 58, icmp6(135, their6))), 0},
			frameCase{"of a foreign address", eth(unknown, mine, v4, ip4(their4, own4, 6)), hoststate.DropSourceIP},
		)
	}
	b.verdicts(b.objects.CvFromPort, port, free)
	b.row(hoststate.Key{Table: hoststate.TableKnown, VNI: 100, MAC: unknown}, hoststate.Val{})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{{"known now", costly["IPv4"], 0}})
	b.delete(hoststate.Key{Table: hoststate.TableKnown, VNI: 100, MAC: unknown})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{{"known no more", costly["IPv4"], hoststate.DropUnknown}})
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe})
	b.verdicts(b.objects.CvFromPort, port, []frameCase{{"of a network that is pushed", costly["IPv4"], 0}})
}

// TestUnknownBucket: it holds its burst and no more, and fills again; without its
// network's rows all is unknown.
func TestUnknownBucket(t *testing.T) {
	t.Parallel()
	b := newDemanding(t, Limits{Storm: Rate{1, 1}, Punt: Rate{1, 1}, Unknown: Rate{20, 7}}, safe)
	if err := b.DropNetwork(port); err != nil {
		t.Fatal(err)
	}
	passed := 0
	frame := eth(other, mine, 0x88b5)
	for range 20 {
		if b.run(b.objects.CvFromPort, frame) == next {
			passed++
		}
	}
	if d := b.drops(port); passed < 7 || passed > 12 || d[hoststate.DropUnknown] != uint64(20-passed) {
		t.Errorf("passed %d of 20, counted %v; want 7 and few more", passed, d)
	}
	<-time.After(120 * time.Millisecond) // two frames' time
	if b.run(b.objects.CvFromPort, frame) != next {
		t.Errorf("the bucket did not fill")
	}
	b.verdicts(b.objects.CvFromPort, port, []frameCase{{"to the router", eth(router, mine, 0x0800, ip4(own4, out4, 6)), 0}})
}

// TestUnknownGroupsAreHeard: a frame to a group without a list passes, and is
// handed up, within the bucket.
func TestUnknownGroupsAreHeard(t *testing.T) {
	t.Parallel()
	b := newDemanding(t, Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 6}, Unknown: Rate{1, 1}}, safe|hoststate.Routed)
	ctx, cancel := context.WithCancel(context.Background())
	heard, done := make(chan hoststate.Heard, 100), make(chan error, 1)
	go func() { done <- b.Listen(ctx, func(h hoststate.Heard) { heard <- h }) }()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("listen: %v", err)
		}
	}()
	ask := eth(overlay.MAC{0x33, 0x33, 0xff, 0, 0, 2}, mine, 0x86dd, ip6(own6, their6, 58, icmp6(135, their6)))
	to := eth(group6, mine, 0x86dd, ip6(own6, netip.MustParseAddr("ff02::5"), 89, make([]byte, 40)))
	for _, quiet := range [][]byte{eth(group4, mine, 0x0800, ip4(own4, netip.MustParseAddr("224.0.0.5"), 89)), eth(all, mine, 0x88b5), eth(spare, mine, 0x88b5)} {
		b.verdicts(b.objects.CvFromPort, port, []frameCase{{"not heard", quiet, 0}})
	}
	for _, f := range [][]byte{to, ask, to, to, to, to} { // of which each is heard once
		b.verdicts(b.objects.CvFromPort, port, []frameCase{{"heard", f, 0}})
		select {
		case h := <-heard:
			if h.Port != port || h.Dropped || h.ToGuest || !bytes.Equal(h.Frame, f) {
				t.Errorf("heard %+v, want % x", h, f)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("not heard: % x", f)
		}
	}
	before := b.drops(port)[hoststate.DropPuntLimit]
	if v := b.run(b.objects.CvFromPort, to); v != next || b.drops(port)[hoststate.DropPuntLimit] != before+1 {
		t.Errorf("beyond the bucket: verdict %d, counted %v", int32(v), b.drops(port))
	}
	select {
	case h := <-heard:
		t.Errorf("heard more: %+v", h)
	case <-time.After(50 * time.Millisecond):
	}
}

// TestStrangersComeFromMembers: a host that serves the network may send for MACs
// that this one was not told of, and for no other.
func TestStrangersComeFromMembers(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{})
	const v4 = 0x0800
	out := func(vtep netip.Addr, src overlay.MAC) []byte {
		return eth(mine, other, v4, ip4(vtep, here4, 17, udp(5555, 4789, vxlan(8, 100, eth(mine, src, v4, ip4(their4, own4, 6))))))
	}
	b.row(hoststate.Key{Table: hoststate.TableSource, VNI: 100, IP: known4}, hoststate.Val{Flags: hoststate.Strangers})
	b.row(hoststate.Key{Table: hoststate.TableSource, VNI: 100, MAC: other, IP: mapped}, hoststate.Val{})
	for _, m := range []overlay.MAC{mine, other} { // of which mine is here
		b.row(hoststate.Key{Table: hoststate.TableKnown, VNI: 100, MAC: m}, hoststate.Val{})
	}
	no := hoststate.DropSource
	b.verdicts(b.objects.CvUnderlay, 0, []frameCase{
		{"a stranger", out(known4, spare), 0},
		{"a stranger of a host that serves it not", out(mapped, spare), no},
		{"one that is known, from its host", out(mapped, other), 0},
		{"one that is known, from a host with strangers", out(known4, other), no},
		{"this host's own", out(known4, mine), no},
		{"the router", out(known4, router), no},
		{"a group", out(known4, group4), hoststate.DropMalformed},
	})
	b.row(hoststate.Key{Table: hoststate.TableSource, VNI: 100, IP: known4}, hoststate.Val{})
	b.verdicts(b.objects.CvUnderlay, 0, []frameCase{
		{"a foreign VTEP, with one that is known", out(known4, other), 0},
		{"a foreign VTEP, with any", out(known4, spare), 0},
	})
	b.row(hoststate.Key{Table: hoststate.TableSource, VNI: 100, IP: known4}, hoststate.Val{Flags: hoststate.Strangers})
	b.row(hoststate.Key{Table: hoststate.TableRelayed, VNI: 100, MAC: mine, IP: known4}, hoststate.Val{})
	b.verdicts(b.objects.CvUnderlay, 0, []frameCase{{"one that is known, to one that moved", out(known4, other), 0}})
}
