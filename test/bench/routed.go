package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// leastRouted is how much of what is bridged is left when it is routed.
const leastRouted = 0.95

var routedMeasures = []measure{
	{"routed, TCP", "Gbit/s", leastRouted, measures[0].take},
	{"routed, round trips", "1/ms", leastRouted, measures[1].take},
}

// The guests of the bench of routes. West and east are of one domain; port and
// starboard are joined by a guest with a leg in each, which forwards.
var routedNetworks = []struct {
	name, domain string
	subnet       string
	hosts        []int // of its guests, whose addresses are .11 and up
}{
	{"west", "bench", "10.80.0", []int{1, 2}},
	{"east", "bench", "10.81.0", []int{2}},
	{"port", "", "10.82.0", []int{1, 1}},
	{"starboard", "", "10.83.0", []int{2, 1}},
}

// routed measures traffic between two hosts that its own host routes to another
// network beside traffic within one network, and beside the usual way between
// two networks: a guest with a leg in each that forwards, here on the sender's
// host.
func routed(ctx context.Context, o options, out *printer) (err error) {
	fmt.Fprintln(os.Stderr, "building a lab of 2 hosts with networks that are routed to each other")
	w, err := emptyWorld(ctx, o, "benchrouted", 2)
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	if err != nil {
		return err
	}
	var guests []*machine // in the order of routedNetworks
	var streams []*stream
	defer func() {
		for _, s := range streams {
			s.close()
		}
		for _, g := range guests {
			err = errors.Join(err, g.close())
		}
	}()
	if guests, err = w.routedGuests(ctx); err != nil {
		return err
	}
	west, west2, east, left, right := guests[0], guests[1], guests[2], guests[3], guests[4]
	for _, pair := range [][2]*machine{{west, east}, {west, west2}, {left, right}} {
		if err := reach(ctx, pair[0], pair[1]); err != nil {
			return err
		}
		s, err := newStream(pair[0], pair[1])
		if err != nil {
			return err
		}
		streams = append(streams, s)
	}
	variants := []variant{{"short circuit", streams[0], nil}, {"bridged", streams[1], nil}, {"by a router guest", streams[2], nil}}
	took, err := rounds(ctx, o.rounds, routedMeasures, variants)
	if err != nil {
		return err
	}
	return printRounds(out, routedMeasures, variants, took, 2)
}

// routedGuests makes networks and guests, the forwarding one in the middle.
func (w *world) routedGuests(ctx context.Context) (guests []*machine, err error) {
	meta := func(name string) *culvertv1.Metadata {
		return &culvertv1.Metadata{Name: name, Tenant: api.DefaultTenant}
	}
	docs := []*culvertv1.Resource{api.Wrap(&culvertv1.Domain{ApiVersion: api.Version, Kind: "Domain", Metadata: meta("bench"), Spec: &culvertv1.DomainSpec{}})}
	for i, n := range routedNetworks {
		docs = append(docs, api.Wrap(&culvertv1.Network{ApiVersion: api.Version, Kind: "Network", Metadata: meta(n.name), Spec: &culvertv1.NetworkSpec{
			Vni: uint32(8000 + i), Subnets: []*culvertv1.Subnet{{Prefix: n.subnet + ".0/24"}}, Domain: n.domain}}))
	}
	docs = append(docs, api.Wrap(&culvertv1.NetworkPolicy{ApiVersion: api.Version, Kind: "NetworkPolicy", Metadata: meta("bench"), Spec: &culvertv1.NetworkPolicySpec{Domain: "bench", From: "west", To: "east"}}))
	var list []endpoint
	for i, n := range routedNetworks {
		for j := range n.hosts {
			e := endpoint{Name: fmt.Sprintf("%s%d", n.name, j+1), MAC: overlay.MAC{0x52, 0x54, 0x45, 0, byte(i), byte(j)}, IPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("%s.%d", n.subnet, 11+j))}}
			list = append(list, e)
			docs = append(docs, api.Wrap(&culvertv1.Port{ApiVersion: api.Version, Kind: "Port", Metadata: meta(e.Name), Spec: &culvertv1.PortSpec{
				Network: n.name, Mac: e.MAC.String(), Addresses: []string{e.IPs[0].String()}}}))
		}
	}
	if _, err := w.api.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: docs}); err != nil {
		return nil, fmt.Errorf("make networks: %w", err)
	}
	var middle *machine
	defer func() {
		if middle != nil {
			guests = append(guests, middle)
		}
	}()
	at := 0
	for i, n := range routedNetworks {
		bridge := overlay.VNI(8000 + i).Bridge()
		for j, h := range n.hosts {
			p, e := w.places[h-1], list[at]
			at++
			if err := await(ctx, func() (bool, error) { return p.has(bridge), nil }); err != nil {
				return guests, fmt.Errorf("bridge on %s: %w", p.node, err)
			}
			var err error
			device, alias := fmt.Sprintf("r%d-%d", i, j), hoststate.PortAlias(api.DefaultTenant, e.Name)
			const mtu = overlay.DefaultMTU // as the network tells its guests
			if leg := n.domain == "" && j == 1; leg && middle != nil {
				err = middle.plug(p, bridge, device, alias, "eth1", e, 24, mtu)
			} else if leg {
				middle, err = newMachine(p, bridge, device, alias, e, 24, mtu)
			} else {
				var g *machine
				if g, err = newMachine(p, bridge, device, alias, e, 24, mtu); err == nil {
					guests = append(guests, g)
					err = g.routeBy(netip.MustParseAddr(n.subnet + map[bool]string{true: ".12", false: ".1"}[n.domain == ""]))
				}
			}
			if err != nil {
				return guests, err
			}
		}
	}
	return guests, middle.forwards()
}

// routeBy gives a guest its default route.
func (m *machine) routeBy(via netip.Addr) error {
	if err := m.RouteReplace(&netlink.Route{Gw: net.IP(via.AsSlice())}); err != nil {
		return fmt.Errorf("default route of a guest by %s: %w", via, err)
	}
	return nil
}

// forwards makes a guest a router.
func (m *machine) forwards() error {
	return inside(m.fd, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
}

// reach waits until a guest's datagram is answered by another.
func reach(ctx context.Context, from, to *machine) error {
	var echo net.PacketConn
	var c net.Conn
	err := inside(to.fd, func() (err error) {
		echo, err = net.ListenPacket("udp", netip.AddrPortFrom(to.addr, 5003).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("listen in a guest: %w", err)
	}
	defer echo.Close()
	go answerEcho(echo)
	return await(ctx, func() (bool, error) {
		err := inside(from.fd, func() (err error) {
			c, err = net.Dial("udp", echo.LocalAddr().String())
			return err
		})
		if err != nil {
			return false, nil // no route yet
		}
		defer c.Close()
		if _, err := c.Write([]byte{1}); err != nil {
			return false, nil
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = c.Read(make([]byte, 8))
		return err == nil, nil
	})
}
