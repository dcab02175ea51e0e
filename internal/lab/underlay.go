package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// segment is the bridge that joins the hosts of a flat lab.
const segment = "segment"

// buildUnderlay makes the namespaces of router, manager and hosts and wires
// them. Names that exist are fs.ErrExist: the caller destroys remains first.
func buildUnderlay(t Topology) error {
	if err := prepareNetnsDir(); err != nil {
		return err
	}
	rt := NSOfNode(t.Name, "rt")
	if err := makeNS(rt); err != nil {
		return err
	}
	router, err := openNS(rt)
	if err != nil {
		return err
	}
	defer router.Close()
	// The router speaks IPv4 alone: its own neighbour discovery would be
	// noise in captures of the underlay.
	err = router.sysctl("ipv6.conf.all.disable_ipv6", "1", "ipv6.conf.default.disable_ipv6", "1",
		"ipv4.conf.all.rp_filter", "0", "ipv4.conf.default.rp_filter", "0", "ipv4.ip_forward", "1")
	if err != nil {
		return err
	}
	if t.Flat {
		if err := makeSegment(router, t.UnderlayMTU); err != nil {
			return err
		}
	}
	if t.Outside {
		if err := buildOutside(t.Name); err != nil {
			return fmt.Errorf("outside: %w", err)
		}
	}
	for _, n := range t.Nodes() {
		if err := buildNode(t, n, router); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		if t.Outside && n.Number > 0 {
			if err := joinOutside(t.Name, n.Name); err != nil {
				return fmt.Errorf("outside of %s: %w", n.Name, err)
			}
		}
	}
	return nil
}

func makeSegment(router *room, mtu int) error {
	off := false
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: segment, MTU: mtu}, MulticastSnooping: &off}
	if err := router.LinkAdd(br); err != nil {
		return fmt.Errorf("underlay segment: %w", err)
	}
	// A bridge's frames meet the router's IP rules where br_netfilter is
	// built in (kernel-facts 6); a segment must pass them as they are.
	if err := InNS(router.name, bridgeNetfilterOff); err != nil {
		return err
	}
	if err := router.LinkSetUp(br); err != nil {
		return fmt.Errorf("underlay segment: %w", err)
	}
	return nil
}

func buildNode(t Topology, n Node, router *room) error {
	if err := makeNS(NSOfNode(t.Name, n.Name)); err != nil {
		return err
	}
	node, err := openNS(NSOfNode(t.Name, n.Name))
	if err != nil {
		return err
	}
	defer node.Close()
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: n.Name, MTU: t.UnderlayMTU},
		PeerName:      "eth0",
		PeerMTU:       uint32(t.UnderlayMTU),
		PeerNamespace: netlink.NsFd(node.fd),
	}
	if err := router.LinkAdd(veth); err != nil {
		return fmt.Errorf("underlay link: %w", err)
	}
	eth0, err := node.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("underlay link: %w", err)
	}
	if err := addAddress(node, eth0, n.Address); err != nil {
		return err
	}
	if t.Flat {
		seg, err := router.LinkByName(segment)
		if err == nil {
			err = router.LinkSetMaster(veth, seg)
		}
		if err != nil {
			return fmt.Errorf("join underlay segment: %w", err)
		}
	} else if err := addAddress(router, veth, netip.PrefixFrom(n.Gateway, n.Address.Bits())); err != nil {
		return err
	}
	if err := router.LinkSetUp(veth); err != nil {
		return fmt.Errorf("underlay link up: %w", err)
	}
	if err := node.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("underlay link up: %w", err)
	}
	if t.Flat {
		return nil
	}
	route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: n.Gateway.AsSlice()}
	if err := node.RouteAdd(route); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return nil
}

// addAddress gives a link an address; an IPv6 one without duplicate address
// detection, which would speak.
func addAddress(r *room, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := r.AddrReplace(l, a); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

func bridgeNetfilterOff() error {
	for _, k := range []string{"arptables", "iptables", "ip6tables"} {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+k, []byte("0"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("bridge netfilter: %w", err)
		}
	}
	return nil
}
