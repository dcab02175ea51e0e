package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// outsideNode is the network outside the overlay: its router, which is also a
// server to talk to. Each host has device out0 there.
const (
	outsideNode   = "out"
	outsideDevice = "out0"
)

var outsideAddresses = [...]netip.Prefix{netip.MustParsePrefix("203.0.113.1/24"), netip.MustParsePrefix("2001:db8:113::1/64")}

func buildOutside(lab string) error {
	if err := makeNS(NSOfNode(lab, outsideNode)); err != nil {
		return err
	}
	out, err := openNS(NSOfNode(lab, outsideNode))
	if err != nil {
		return err
	}
	defer out.Close()
	if err := makeSegment(out, DefaultUnderlayMTU); err != nil {
		return err
	}
	seg, err := out.LinkByName(segment)
	if err != nil {
		return fmt.Errorf("segment: %w", err)
	}
	for _, p := range outsideAddresses {
		if err := addAddress(out, seg, p); err != nil {
			return err
		}
	}
	return nil
}

// joinOutside gives a host its device there. The host itself says nothing on it.
func joinOutside(lab, host string) error {
	out, err := openNS(NSOfNode(lab, outsideNode))
	if err != nil {
		return err
	}
	defer out.Close()
	node, err := openNS(NSOfNode(lab, host))
	if err != nil {
		return err
	}
	defer node.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: host, MTU: DefaultUnderlayMTU}, PeerName: outsideDevice, PeerMTU: DefaultUnderlayMTU, PeerNamespace: netlink.NsFd(node.fd)}
	if err := out.LinkAdd(veth); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	if err := node.sysctl("ipv6.conf."+outsideDevice+".disable_ipv6", "1"); err != nil {
		return err
	}
	seg, err := out.LinkByName(segment)
	if err == nil {
		err = out.LinkSetMaster(veth, seg)
	}
	if err == nil {
		err = out.LinkSetUp(veth)
	}
	if err != nil {
		return fmt.Errorf("join the segment: %w", err)
	}
	own, err := node.LinkByName(outsideDevice)
	if err == nil {
		err = node.LinkSetUp(own)
	}
	if err != nil {
		return fmt.Errorf("device of the host: %w", err)
	}
	return nil
}
