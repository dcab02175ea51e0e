package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// upName is the device on the outside network, in each gateway's namespace.
const upName = "up"

func outerName(v overlay.VNI) string { return fmt.Sprintf("cvg%d", v) }
func innerName(v overlay.VNI) string { return fmt.Sprintf("n%d", v) }

// work is on one gateway, once.
type work struct {
	host, room *room
	spec       *Spec
}

// byName is a device; nil if there is none.
func (r *room) byName(name string) (netlink.Link, error) {
	l, err := r.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	return l, nil
}

// isActive reports whether an address of the gateway is up outside: its first
// one, which is the last to come and the first to go.
func (w *work) isActive() bool {
	up, err := w.room.byName(upName)
	if err != nil || up == nil {
		return false
	}
	have, err := addresses(w.room, up)
	return err == nil && slices.Contains(have, w.spec.Addresses[0])
}

// quieten takes from a gateway what only an active one has.
func (w *work) quieten() error {
	var all error
	if up, err := w.room.byName(upName); err != nil {
		all = err
	} else if up != nil {
		have, err := addresses(w.room, up)
		all = errors.Join(all, err)
		for _, p := range have {
			all = errors.Join(all, dropAddress(w.room, up, p))
		}
		if len(have) > 0 { // IPv6's default route does not go with the address
			routes, err := w.room.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: up.Attrs().Index}, netlink.RT_FILTER_OIF)
			all = errors.Join(all, err)
			for _, r := range routes {
				if r.Gw != nil {
					all = errors.Join(all, w.room.RouteDel(&r))
				}
			}
		}
	}
	for _, l := range w.spec.Legs {
		outer, err := w.host.byName(outerName(l.VNI))
		all = errors.Join(all, err)
		if outer != nil && outer.Attrs().MasterIndex != 0 {
			all = errors.Join(all, w.host.LinkSetNoMaster(outer))
		}
	}
	return all
}

// settings are the namespace's: it forwards, and says nothing by itself.
func (w *work) settings() error {
	err := w.room.sysctls(
		"ipv4/ip_forward", "1", "ipv4/conf/all/promote_secondaries", "1", "ipv6/conf/all/forwarding", "1", "ipv6/conf/default/forwarding", "1",
		"ipv6/conf/default/accept_dad", "0", "ipv6/conf/default/dad_transmits", "0", "ipv6/conf/default/accept_ra", "0", "ipv6/conf/default/autoconf", "0",
		"ipv4/conf/all/arp_ignore", "1", "ipv4/conf/default/arp_ignore", "1", "ipv4/conf/all/arp_announce", "2",
		"ipv4/conf/all/send_redirects", "0", "ipv4/conf/default/send_redirects", "0", "ipv4/conf/all/rp_filter", "0", "ipv4/conf/default/rp_filter", "0",
	)
	if err != nil {
		return err
	}
	lo, err := w.room.LinkByName("lo")
	if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		err = w.room.LinkSetUp(lo)
	}
	return err
}

// uplink makes the device outside; fresh if it was not there, or stood on
// another device.
func (w *work) uplink() (fresh bool, err error) {
	parent, err := w.host.byName(w.spec.Uplink)
	if err != nil {
		return false, err
	}
	if parent == nil {
		return false, fmt.Errorf("this host has no device %s", w.spec.Uplink)
	}
	up, err := w.room.byName(upName)
	if err != nil {
		return false, err
	}
	if up != nil && up.Attrs().ParentIndex != parent.Attrs().Index {
		if err := w.room.LinkDel(up); err != nil {
			return false, fmt.Errorf("device on another uplink: %w", err)
		}
		up = nil
	}
	if up == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex, attrs.Namespace = upName, parent.Attrs().Index, netlink.NsFd(w.room.fd)
		if err := w.host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			return false, fmt.Errorf("macvlan on device %s: %w", w.spec.Uplink, err)
		}
		if up, err = w.room.byName(upName); err != nil || up == nil {
			return false, errors.Join(errors.New("macvlan is not there"), err)
		}
		fresh = true
	}
	if up.Attrs().Flags&net.FlagUp == 0 {
		err = w.room.LinkSetUp(up)
	}
	return fresh, err
}

// dropLegs takes away the legs in networks that are served no more.
func (w *work) dropLegs() error {
	links, err := w.room.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if name == "lo" || name == upName || slices.ContainsFunc(w.spec.Legs, func(x Leg) bool { return innerName(x.VNI) == name }) {
			continue
		}
		if err := w.room.LinkDel(l); err != nil {
			return fmt.Errorf("delete device %s: %w", name, err)
		}
	}
	return nil
}

// legs makes the pairs. Attached: they are ports of their bridges.
func (w *work) legs(attached bool) error {
	for i := range w.spec.Legs {
		if err := w.leg(&w.spec.Legs[i], attached); err != nil {
			return fmt.Errorf("%s: %w", w.spec.Legs[i].VNI.Bridge(), err)
		}
	}
	return nil
}

func (w *work) leg(l *Leg, attached bool) error {
	outer, err := w.host.byName(outerName(l.VNI))
	if err != nil {
		return err
	}
	inner, err := w.room.byName(innerName(l.VNI))
	if err != nil {
		return err
	}
	switch {
	case inner != nil && (outer == nil || inner.Attrs().ParentIndex != outer.Attrs().Index):
		if err := w.room.LinkDel(inner); err != nil {
			return fmt.Errorf("delete device %s: %w", innerName(l.VNI), err)
		}
		return errors.New("its device was somewhere else")
	case inner == nil && outer != nil:
		return fmt.Errorf("device %s is another's", outerName(l.VNI))
	case inner == nil:
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = outerName(l.VNI), int(l.MTU)
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: innerName(l.VNI), PeerMTU: l.MTU, PeerHardwareAddr: l.MAC[:], PeerNamespace: netlink.NsFd(w.room.fd)}
		if err := w.host.LinkAdd(pair); err != nil {
			return fmt.Errorf("make pair: %w", err)
		}
		if outer, err = w.host.byName(outerName(l.VNI)); err == nil {
			inner, err = w.room.byName(innerName(l.VNI))
		}
		if err != nil || outer == nil || inner == nil {
			return errors.Join(errors.New("pair is not there"), err)
		}
	}
	if err := w.tuneLeg(l, outer, inner); err != nil {
		return err
	}
	return w.attach(l, outer, attached)
}

// tuneLeg gives both ends what they have apart from being attached.
func (w *work) tuneLeg(l *Leg, outer, inner netlink.Link) error {
	if outer.Attrs().Alias != l.Alias {
		if err := w.host.LinkSetAlias(outer, l.Alias); err != nil {
			return fmt.Errorf("alias: %w", err)
		}
	}
	if !bytes.Equal(inner.Attrs().HardwareAddr, l.MAC[:]) {
		if err := w.room.LinkSetHardwareAddr(inner, l.MAC[:]); err != nil {
			return fmt.Errorf("MAC: %w", err)
		}
	}
	for _, end := range []struct {
		r *room
		l netlink.Link
	}{{w.room, inner}, {w.host, outer}} {
		if a := end.l.Attrs(); a.MTU != int(l.MTU) {
			if err := end.r.LinkSetMTU(end.l, int(l.MTU)); err != nil {
				return fmt.Errorf("MTU: %w", err)
			}
		}
	}
	if err := w.host.sysctls("ipv6/conf/"+outerName(l.VNI)+"/disable_ipv6", "1"); err != nil {
		return err
	}
	for _, end := range []struct {
		r *room
		l netlink.Link
	}{{w.room, inner}, {w.host, outer}} {
		if end.l.Attrs().Flags&net.FlagUp == 0 {
			if err := end.r.LinkSetUp(end.l); err != nil {
				return fmt.Errorf("device up: %w", err)
			}
		}
	}
	return setAddresses(w.room, inner, l.Addresses)
}

func (w *work) attach(l *Leg, outer netlink.Link, attached bool) error {
	if !attached {
		if outer.Attrs().MasterIndex == 0 {
			return nil
		}
		return w.host.LinkSetNoMaster(outer)
	}
	bridge, err := w.host.byName(l.VNI.Bridge())
	if err != nil {
		return err
	}
	switch {
	case bridge == nil:
		return errors.New("the bridge is not there yet")
	case outer.Attrs().MasterIndex == bridge.Attrs().Index:
		return nil
	}
	return w.host.LinkSetMaster(outer, bridge)
}

// speak gives the gateway its addresses outside, and the ways out.
func (w *work) speak() error {
	up, err := w.room.byName(upName)
	if err != nil || up == nil {
		return errors.Join(errors.New("no device outside"), err)
	}
	own := w.spec.Addresses
	want := slices.Clone(own[1:])
	for _, a := range outside(w.spec) {
		if !slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr() == a }) {
			want = append(want, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	if err := setAddresses(w.room, up, append(want, own[0])); err != nil { // see isActive
		return err
	}
	for _, hop := range w.spec.NextHops {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if hop.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		r := &netlink.Route{LinkIndex: up.Attrs().Index, Dst: ipNet(all), Gw: hop.AsSlice()}
		if err := w.room.RouteReplace(r); err != nil {
			return fmt.Errorf("default route by %s: %w", hop, err)
		}
	}
	return nil
}

// outside are all addresses that a gateway has there.
func outside(s *Spec) []netip.Addr {
	g := overlay.Gateway{Addresses: s.Addresses, SNAT: s.SNAT, Floating: s.Floating, Forwards: s.Forwards}
	return g.Outside()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addresses are a device's, without link-local ones.
func addresses(r *room, l netlink.Link) (out []netip.Prefix, err error) {
	list, err := r.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if ip = ip.Unmap(); ok && !ip.IsLinkLocalUnicast() {
			out = append(out, netip.PrefixFrom(ip, ones))
		}
	}
	return out, nil
}

// setAddresses gives a device these addresses, in order, and no others.
func setAddresses(r *room, l netlink.Link, want []netip.Prefix) error {
	have, err := addresses(r, l)
	if err != nil {
		return err
	}
	for _, p := range have {
		if !slices.Contains(want, p) {
			if err := dropAddress(r, l, p); err != nil {
				return err
			}
		}
	}
	for _, p := range want {
		if slices.Contains(have, p) {
			continue
		}
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := r.AddrReplace(l, a); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return nil
}

func dropAddress(r *room, l netlink.Link, p netip.Prefix) error {
	err := r.AddrDel(l, &netlink.Addr{IPNet: ipNet(p)})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("drop address %s: %w", p, err)
	}
	return nil
}
