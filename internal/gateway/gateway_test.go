package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"culvert/internal/netnstest"
	"culvert/internal/overlay"
)

// site is hosts on one network outside, where a router and a server are.
type site struct {
	t       *testing.T
	outside *netnstest.NS // 203.0.113.1 and 2001:db8::1, the router; routes to what is inside are given by tests
	hosts   []*testHost
}

type testHost struct {
	*netnstest.NS
	gws *Gateways

	mu     sync.Mutex
	states []overlay.GatewayState
}

func newSite(t *testing.T, hosts int) *site {
	s := &site{t: t, outside: netnstest.New(t)}
	links := s.outside.Links()
	la := netlink.NewLinkAttrs()
	la.Name = "seg"
	if err := links.LinkAdd(&netlink.Bridge{LinkAttrs: la}); err != nil {
		t.Fatal(err)
	}
	s.outside.Up("seg")
	s.outside.Addr("seg", "203.0.113.1/24")
	s.outside.Addr("seg", "2001:db8::1/64")
	for i := range hosts {
		h := &testHost{NS: netnstest.New(t)}
		dev := fmt.Sprintf("h%d", i)
		netnstest.Veth(h.NS, "out0", s.outside, dev)
		l, err := links.LinkByName(dev)
		if err == nil {
			var seg netlink.Link
			if seg, err = links.LinkByName("seg"); err == nil {
				err = links.LinkSetMaster(l, seg)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		prefix := fmt.Sprintf("cvgtest-%d-%s-%d-", os.Getpid(), strings.ToLower(t.Name()), i)
		h.gws = New(Config{NS: int(h.Handle), Prefix: prefix, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Told: func(st []overlay.GatewayState) {
			h.mu.Lock()
			h.states = st
			h.mu.Unlock()
		}})
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan struct{})
		go func() { defer close(done); _ = h.gws.Run(ctx) }()
		t.Cleanup(func() {
			h.gws.Set(nil, true)
			s.await("the end of all gateways", func() bool { n, _ := roomNames(prefix); return len(n) == 0 })
			cancel()
			<-done
		})
		s.hosts = append(s.hosts, h)
	}
	return s
}

func (s *site) await(what string, done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(15 * time.Second); !done(); {
		if time.Now().After(end) {
			for i, h := range s.hosts {
				s.t.Logf("host %d says %+v", i, h.said())
			}
			s.t.Fatalf("%s did not come", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func (h *testHost) said() []overlay.GatewayState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.states)
}

func (h *testHost) state(uid overlay.UID) (s overlay.GatewayState) {
	for _, x := range h.said() {
		if x.Gateway == uid {
			s = x
		}
	}
	return s
}

// bridge makes a network's bridge on a host; others stretch to it by no means.
func (h *testHost) bridge(t *testing.T, v overlay.VNI) {
	la := netlink.NewLinkAttrs()
	la.Name = v.Bridge()
	if err := h.Links().LinkAdd(&netlink.Bridge{LinkAttrs: la}); err != nil {
		t.Fatal(err)
	}
	h.Up(v.Bridge())
}

// guest is a machine on a host's bridge.
func (s *site) guest(h *testHost, v overlay.VNI, dev string, addrs []string, gateways ...string) *netnstest.NS {
	g := netnstest.New(s.t)
	netnstest.Veth(h.NS, dev, g, "eth0")
	links := h.Links()
	l, err := links.LinkByName(dev)
	if err == nil {
		var br netlink.Link
		if br, err = links.LinkByName(v.Bridge()); err == nil {
			err = links.LinkSetMaster(l, br)
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range addrs {
		g.Addr("eth0", a)
	}
	for _, gw := range gateways {
		r := &netlink.Route{LinkIndex: g.Index("eth0"), Gw: net.ParseIP(gw)}
		if err := g.Links().RouteAdd(r); err != nil {
			s.t.Fatal(err)
		}
	}
	return g
}

func pfx(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func spec(n byte, v overlay.VNI) Spec {
	return Spec{
		UID: overlay.UID{0xfe, n}, Name: fmt.Sprintf("default/out%d", n), Uplink: "out0", Mode: Active,
		Addresses: pfx(fmt.Sprintf("203.0.113.%d/24", 10*int(n)), fmt.Sprintf("2001:db8::%d/64", 10*int(n))), NextHops: []netip.Addr{ip("203.0.113.1"), ip("2001:db8::1")},
		Legs: []Leg{{VNI: v, Alias: "culvert port=default/out-blue", MAC: overlay.MAC{0x52, 0x54, 0, 0xfe, 0, n},
			Addresses: pfx("10.1.0.2/24", "fd00:1::2/64"), Inside: pfx("10.1.0.0/24", "fd00:1::/64"), MTU: 1450}},
	}
}

// serve answers each connection with the address that it came from.
func serve(t *testing.T, n *netnstest.NS, network, addr string) {
	t.Helper()
	var l net.Listener
	if err := n.Run(func() (err error) { l, err = net.Listen(network, addr); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().String())
			c.Close()
		}
	}()
}

// seenAs connects, and tells as whom; empty if there was no connection.
func seenAs(n *netnstest.NS, addr string) string {
	var out []byte
	_ = n.Run(func() error {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		out, err = io.ReadAll(c)
		return err
	})
	return string(out)
}

func (s *site) reach(from *netnstest.NS, addr, as string) {
	s.t.Helper()
	s.await("a connection to "+addr+" as "+as, func() bool { return seenAs(from, addr) == as })
}

func (s *site) noReach(from *netnstest.NS, addr string) {
	s.t.Helper()
	if as := seenAs(from, addr); as != "" {
		s.t.Errorf("%s is reached, as %s", addr, as)
	}
}

// Guests without an address of their own outside send from the gateway's, by
// IPv6 from their own; from outside comes only what an address was declared for.
func TestWaysOutAndIn(t *testing.T) {
	s := newSite(t, 1)
	h := s.hosts[0]
	h.bridge(t, 10001)
	g := s.guest(h, 10001, "tap0", []string{"10.1.0.5/24", "fd00:1::5/64"}, "10.1.0.2", "fd00:1::2")
	f := s.guest(h, 10001, "tap1", []string{"10.1.0.6/24", "fd00:1::6/64"}, "10.1.0.2", "fd00:1::2")
	for _, n := range []*netnstest.NS{s.outside, g, f} {
		serve(t, n, "tcp4", ":80")
		serve(t, n, "tcp6", ":80")
	}
	sp := spec(1, 10001)
	sp.Floating = []overlay.Floating{{Outside: ip("203.0.113.66"), Inside: ip("10.1.0.6")}}
	sp.Forwards = []overlay.Forward{{Protocol: 6, Outside: ip("203.0.113.10"), Port: 8080, Inside: ip("10.1.0.5"), ToPort: 80}}
	h.gws.Set([]Spec{sp}, true)
	s.await("the gateway", func() bool { st := h.state(sp.UID); return st.Ready && st.Active })

	s.reach(g, "203.0.113.1:80", "203.0.113.10")
	s.reach(f, "203.0.113.1:80", "203.0.113.66")
	s.reach(s.outside, "203.0.113.66:80", "203.0.113.1")
	s.reach(s.outside, "203.0.113.10:8080", "203.0.113.1")
	s.noReach(s.outside, "203.0.113.10:80")

	// A router outside that sends to addresses inside is not let in, but for
	// answers: IPv6 has no other way to be answered.
	s.route("10.1.0.0/24", "203.0.113.10")
	s.route("fd00:1::/64", "2001:db8::10")
	s.noReach(s.outside, "10.1.0.5:80")
	s.noReach(s.outside, "[fd00:1::5]:80")
	s.reach(g, "[2001:db8::1]:80", "fd00:1::5")

	// A guest that sends as somebody else is not sent on.
	g.Addr("eth0", "10.7.7.7/32")
	if out, err := g.TryExec("ip", "route", "replace", "default", "via", "10.1.0.2", "src", "10.7.7.7"); err != nil {
		t.Fatal(err, out)
	}
	wire := netnstest.OpenPort(t, s.outside, "h0")
	s.noReach(g, "203.0.113.1:80")
	if f, ok := wire.Receive(100*time.Millisecond, func(f netnstest.Frame) bool { return bytes.Contains(f.Data, []byte{10, 7, 7, 7}) }); ok {
		t.Errorf("it is outside: %x", f.Data)
	}

	// Somebody deletes the rules: they come back.
	room, err := ensureRoom(h.gws.room(sp.UID))
	if err != nil {
		t.Fatal(err)
	}
	defer room.close()
	if _, err := ensureRules(room, &Spec{Addresses: sp.Addresses}, ""); err != nil {
		t.Fatal(err)
	}
	s.noReach(f, "203.0.113.1:80")
	s.reach(f, "203.0.113.1:80", "203.0.113.66")

	// What a gateway loses is gone at once.
	sp.Floating = nil
	h.gws.Set([]Spec{sp}, true)
	s.await("the floating address gone", func() bool { return seenAs(s.outside, "203.0.113.66:80") == "" })
	s.reach(f, "203.0.113.1:80", "203.0.113.10")
}

func (s *site) route(to, via string) {
	s.t.Helper()
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.outside.Links().RouteReplace(&netlink.Route{Dst: dst, Gw: net.ParseIP(via), LinkIndex: s.outside.Index("seg")}); err != nil {
		s.t.Fatal(err)
	}
}

// Many guests share a pool, each always with the same address of it.
func TestPoolOfAddresses(t *testing.T) {
	s := newSite(t, 1)
	h := s.hosts[0]
	h.bridge(t, 10001)
	g := s.guest(h, 10001, "tap0", []string{"10.1.0.5/24"}, "10.1.0.2")
	serve(t, s.outside, "tcp4", ":80")
	sp := spec(1, 10001)
	sp.SNAT = []netip.Addr{ip("203.0.113.40"), ip("203.0.113.41"), ip("203.0.113.42")}
	h.gws.Set([]Spec{sp}, true)
	s.await("the gateway", func() bool { st := h.state(sp.UID); return st.Ready && st.Active })
	used := map[string]bool{}
	for i := range 20 {
		addr := fmt.Sprintf("10.1.0.%d", 100+i)
		g.Addr("eth0", addr+"/24")
		if out, err := g.TryExec("ip", "route", "replace", "default", "via", "10.1.0.2", "src", addr); err != nil {
			t.Fatal(err, out)
		}
		as := seenAs(g, "203.0.113.1:80")
		if a, err := netip.ParseAddr(as); err != nil || !slices.Contains(sp.SNAT, a) || seenAs(g, "203.0.113.1:80") != as {
			t.Fatalf("%s is seen as %q, and then otherwise", addr, as)
		}
		used[as] = true
	}
	if len(used) != len(sp.SNAT) {
		t.Errorf("of %v only %v are used", sp.SNAT, used)
	}
}

// Two gateways of one host whose guests have the same addresses do not meet.
func TestEqualAddressesInside(t *testing.T) {
	s := newSite(t, 1)
	h := s.hosts[0]
	h.bridge(t, 10001)
	h.bridge(t, 10002)
	a := s.guest(h, 10001, "tap0", []string{"10.1.0.5/24"}, "10.1.0.2")
	b := s.guest(h, 10002, "tap1", []string{"10.1.0.5/24"}, "10.1.0.2")
	serve(t, s.outside, "tcp4", ":80")
	one, two := spec(1, 10001), spec(2, 10002)
	h.gws.Set([]Spec{one, two}, true)
	s.await("both gateways", func() bool { return h.state(one.UID).Active && h.state(two.UID).Active })
	s.reach(a, "203.0.113.1:80", "203.0.113.10")
	s.reach(b, "203.0.113.1:80", "203.0.113.20")
}

// A gateway goes from one host to another, with what is outside following it; a
// host that is not active says nothing outside with the gateway's addresses.
func TestTakesOver(t *testing.T) {
	s := newSite(t, 2)
	serve(t, s.outside, "tcp4", ":80")
	var guests []*netnstest.NS
	for _, h := range s.hosts {
		h.bridge(t, 10001)
		guests = append(guests, s.guest(h, 10001, "tap0", []string{"10.1.0.5/24"}, "10.1.0.2"))
	}
	sp := spec(1, 10001)
	set := func(modes ...Mode) {
		for i, m := range modes {
			sp.Mode = m
			s.hosts[i].gws.Set([]Spec{sp}, true)
		}
	}
	set(Active, Standby)
	s.await("one active and one ready", func() bool {
		a, b := s.hosts[0].state(sp.UID), s.hosts[1].state(sp.UID)
		return a.Ready && a.Active && b.Ready && !b.Active
	})
	s.reach(guests[0], "203.0.113.1:80", "203.0.113.10")
	s.noReach(guests[1], "203.0.113.1:80")
	set(Standby, Active)
	s.await("the other one active", func() bool {
		a, b := s.hosts[0].state(sp.UID), s.hosts[1].state(sp.UID)
		return a.Ready && !a.Active && b.Ready && b.Active
	})
	s.reach(guests[1], "203.0.113.1:80", "203.0.113.10")
	s.noReach(guests[0], "203.0.113.1:80")
	// An agent that begins keeps what its kernel has.
	set(Keep, Keep)
	s.reach(guests[1], "203.0.113.1:80", "203.0.113.10")
	s.noReach(guests[0], "203.0.113.1:80")
}

// What is not ready says which step failed, and is well again by itself.
func TestSaysWhichStepFailed(t *testing.T) {
	s := newSite(t, 1)
	h := s.hosts[0]
	h.bridge(t, 10001)
	sp := spec(1, 10001)
	sp.Mode = Standby
	failed := func(step, reason string) {
		t.Helper()
		s.await("the failure of "+step, func() bool {
			st := h.state(sp.UID)
			return !st.Ready && st.Step == step && strings.Contains(st.Reason, reason)
		})
	}
	sp.Uplink = "none0"
	h.gws.Set([]Spec{sp}, true)
	failed("uplink device", "this host has no device none0")
	sp.Uplink, sp.NextHops = "out0", []netip.Addr{ip("203.0.113.99")}
	h.gws.Set([]Spec{sp}, true)
	failed("next hop", "203.0.113.99 does not answer on device out0")
	s.outside.Addr("seg", "203.0.113.99/24")
	s.await("readiness", func() bool { return h.state(sp.UID).Ready })
	s.outside.Down("h0")
	failed("carrier", "device out0 has none")
	s.outside.Up("h0")
	s.await("readiness", func() bool { return h.state(sp.UID).Ready })
	sp.Mode = Active
	h.gws.Set([]Spec{sp}, true)
	s.await("activity", func() bool { st := h.state(sp.UID); return st.Ready && st.Active })
	sp.Legs[0].VNI = 10009
	h.gws.Set([]Spec{sp}, true)
	failed("leg", "the bridge is not there yet")
	if out, err := h.TryExec("ip", "link", "show", outerName(10001)); err == nil {
		t.Errorf("the leg that was served is there still: %s", out)
	}
	h.bridge(t, 10009)
	s.await("activity", func() bool { st := h.state(sp.UID); return st.Ready && st.Active })
}
