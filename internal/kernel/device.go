package kernel

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// makeBridge makes the bridge so that it cannot speak before it is isolated:
// created down, without IPv6, with the chain on it, and only then set up. What
// fails on the way takes the bridge along.
func (k *Kernel) makeBridge(d hoststate.Device) error {
	if !d.VNI.Valid() {
		return fmt.Errorf("bridge of VNI %d: %w", d.VNI, unix.EINVAL)
	}
	if err := brNetfilterOff(k.ns); err != nil {
		return fmt.Errorf("switch bridge-nf-call off: %w", err)
	}
	name, mac := d.VNI.Bridge(), d.BridgeMAC()
	err := k.write.one(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nil, func(m *batch) {
		m.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
		m.str(unix.IFLA_IFNAME, name)
		m.attr(unix.IFLA_ADDRESS, mac[:])
		// A bridge takes the least MTU of its ports until one is set by hand,
		// and setting what it has already does not count (dev_set_mtu returns
		// early). So it is made with another one.
		m.u32(unix.IFLA_MTU, d.MTU-1)
		m.u32(unix.IFLA_GROUP, Group)
		m.nest(unix.IFLA_LINKINFO, func() {
			m.str(unix.IFLA_INFO_KIND, "bridge")
			m.nest(unix.IFLA_INFO_DATA, func() {
				// A querier's absence makes snooping drop groups; lists
				// are the plan's, not the bridge's.
				m.u8(unix.IFLA_BR_MCAST_SNOOPING, 0)
			})
		})
	})
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	l, err := getLink(k.write, 0, name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	err = errors.Join(
		k.ipv6(name, false),
		k.change(l.Index, func(m *batch) { m.u32(unix.IFLA_MTU, d.MTU); k.identify(m, d) }),
		k.isolate(name, true),
	)
	if err == nil && d.AltName != "" {
		err = k.altName(unix.RTM_NEWLINKPROP, l.Index, d.AltName)
	}
	if err == nil {
		err = k.setUp(l.Index)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("set up %s: %w", name, err), k.delLink(l.Index))
	}
	return nil
}

// makeVXLAN makes the VXLAN device with what can never be changed on it (all
// four DOVE flags, VNI, port: kernel-facts 0.1) and leaves it down.
func (k *Kernel) makeVXLAN(d hoststate.Device) error {
	if !d.VNI.Valid() || !d.Local.IsValid() {
		return fmt.Errorf("VXLAN device of VNI %d, local %s: %w", d.VNI, d.Local, unix.EINVAL)
	}
	devs, err := k.lookup(k.write, d.VNI)
	if err != nil {
		return err
	}
	if devs.vxlan != 0 {
		return fmt.Errorf("%s: %w", d.VNI.VXLAN(), unix.EEXIST)
	}
	if devs.bridge == 0 {
		return fmt.Errorf("%s: %w", d.VNI.Bridge(), errAbsent)
	}
	name, mac := d.VNI.VXLAN(), d.VXLANMAC()
	err = k.write.one(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nil, func(m *batch) {
		m.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
		m.str(unix.IFLA_IFNAME, name)
		m.attr(unix.IFLA_ADDRESS, mac[:])
		m.u32(unix.IFLA_MTU, d.MTU)
		m.u32(unix.IFLA_GROUP, Group)
		m.nest(unix.IFLA_LINKINFO, func() {
			m.str(unix.IFLA_INFO_KIND, "vxlan")
			m.nest(unix.IFLA_INFO_DATA, func() {
				m.u32(unix.IFLA_VXLAN_ID, uint32(d.VNI))
				m.addr(localAttr(d.Local), d.Local)
				m.be16(unix.IFLA_VXLAN_PORT, d.UDPPort)
				m.u8(unix.IFLA_VXLAN_LEARNING, 0)
				m.u8(unix.IFLA_VXLAN_PROXY, 1)
				m.u8(unix.IFLA_VXLAN_RSC, 1)
				m.u8(unix.IFLA_VXLAN_L2MISS, 1)
				m.u8(unix.IFLA_VXLAN_L3MISS, 1)
				m.u8(unix.IFLA_VXLAN_DF, vxlanDF(d.DF))
			})
		})
	})
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	l, err := getLink(k.write, 0, name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	err = k.ipv6(name, true)
	if err == nil {
		err = k.change(l.Index, func(m *batch) { k.identify(m, d); addrGenNone(m) })
	}
	if err == nil {
		err = k.enslave(l.Index, devs.bridge)
	}
	if err == nil {
		err = k.brport(l.Index, portFlags{flood: d.Misses})
	}
	if err == nil {
		err = k.guardVXLAN(l)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("set up %s: %w", name, err), k.delLink(l.Index))
	}
	return nil
}

// change is a RTM_NEWLINK on an existing device. RTM_SETLINK would do for
// most, but only RTM_NEWLINK reaches a device kind's own attributes.
func (k *Kernel) change(index int32, attrs func(*batch)) error {
	err := k.write.one(unix.RTM_NEWLINK, 0, nil, func(m *batch) {
		m.ifinfo(unix.AF_UNSPEC, index, 0, 0)
		attrs(m)
	})
	if errors.Is(err, unix.ENODEV) {
		return errAbsent
	}
	return err
}

// identify appends alias and group.
func (k *Kernel) identify(m *batch, d hoststate.Device) {
	m.attr(unix.IFLA_IFALIAS, []byte(d.Alias))
	m.u32(unix.IFLA_GROUP, Group)
}

// addrGenNone keeps a device that must have IPv6 on from giving itself an
// address (kernel-facts 10).
func addrGenNone(m *batch) {
	m.nest(unix.IFLA_AF_SPEC, func() {
		m.nest(unix.AF_INET6, func() { m.u8(unix.IFLA_INET6_ADDR_GEN_MODE, addrGenModeNone) })
	})
}

// ipv6 writes disable_ipv6. Before it is switched on, address generation is
// off; so the order of callers is irrelevant while the device is down.
func (k *Kernel) ipv6(dev string, on bool) error {
	v := "1"
	if on {
		v = "0"
	}
	return sysctl(k.ns, map[string]string{"ipv6/conf/" + dev + "/disable_ipv6": v})
}

// altName adds (RTM_NEWLINKPROP) or deletes (RTM_DELLINKPROP) a name.
func (k *Kernel) altName(typ uint16, index int32, name string) error {
	flags := uint16(0)
	if typ == unix.RTM_NEWLINKPROP {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL | unix.NLM_F_APPEND
	}
	return k.write.one(typ, flags, nil, func(m *batch) {
		m.ifinfo(unix.AF_UNSPEC, index, 0, 0)
		m.nest(unix.IFLA_PROP_LIST, func() { m.str(unix.IFLA_ALT_IFNAME, name) })
	})
}

func (k *Kernel) enslave(index, master int32) error {
	return k.change(index, func(m *batch) { m.u32(unix.IFLA_MASTER, uint32(master)) })
}

// portFlags are a bridge port's flags that we set; false is what every port
// of ours wants but the VXLAN device's of a network with Misses.
type portFlags struct{ flood, learning, isolated bool }

// brport writes the flags of a bridge port. errAbsent if it is none.
func (k *Kernel) brport(index int32, f portFlags) error {
	bit := func(b bool) uint8 {
		if b {
			return 1
		}
		return 0
	}
	err := k.write.one(unix.RTM_SETLINK, 0, nil, func(m *batch) {
		m.ifinfo(unix.AF_BRIDGE, index, 0, 0)
		m.nest(unix.IFLA_PROTINFO, func() {
			m.u8(unix.IFLA_BRPORT_UNICAST_FLOOD, bit(f.flood))
			m.u8(unix.IFLA_BRPORT_LEARNING, bit(f.learning))
			m.u8(unix.IFLA_BRPORT_ISOLATED, bit(f.isolated))
		})
	})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("bridge port %d: %w", index, errAbsent)
	}
	return err
}

func (k *Kernel) setUp(index int32) error {
	err := k.write.one(unix.RTM_NEWLINK, 0, nil, func(m *batch) {
		m.ifinfo(unix.AF_UNSPEC, index, unix.IFF_UP, unix.IFF_UP)
	})
	if errors.Is(err, unix.ENODEV) {
		return errAbsent
	}
	return err
}

// setPort makes a VM's port as it must be. A port that is not in the set of
// members is isolated besides (IFLA_BRPORT_ISOLATED): the rules of the
// bridge table stop everything between a member and a stranger, but two
// strangers of one bridge they cannot tell from two ports of a bridge that is
// not ours (kernel-facts 9: no meta ibrname).
func (k *Kernel) setPort(index int32, learn bool) error {
	l, err := getLink(k.write, index, "")
	if err != nil {
		return err
	}
	if l.Master == 0 {
		return fmt.Errorf("%s is no bridge port: %w", l.Name, errAbsent)
	}
	members, err := readMembers(k.nfw)
	if err != nil && !gone(err) {
		return fmt.Errorf("read members: %w", err)
	}
	if err := k.brport(index, portFlags{learning: learn, isolated: !slices.Contains(members, index)}); err != nil {
		return err
	}
	if l.IPv6 {
		if err := k.ipv6(l.Name, false); err != nil {
			return err
		}
	}
	return k.guardOne(index)
}

// delLink deletes a device, and a bridge's isolation chain after it.
func (k *Kernel) delLink(index int32) error {
	l, err := getLink(k.write, index, "")
	if err != nil {
		return err
	}
	err = k.write.one(unix.RTM_DELLINK, 0, nil, func(m *batch) { m.ifinfo(unix.AF_UNSPEC, index, 0, 0) })
	if errors.Is(err, unix.ENODEV) {
		return errAbsent
	}
	if err != nil {
		return err
	}
	if l.Kind == hoststate.LinkBridge && l.VNI != 0 {
		err = k.unisolate(l.Name)
	}
	return errors.Join(err, k.forget(l))
}

// tune brings what may be changed on live devices to what d says. Only what
// differs is written, so that nothing rings that is as it should be.
func (k *Kernel) tune(d hoststate.Device) error {
	b, errB := getLink(k.write, 0, d.VNI.Bridge())
	x, errX := getLink(k.write, 0, d.VNI.VXLAN())
	if errors.Is(errB, errAbsent) && errors.Is(errX, errAbsent) {
		return fmt.Errorf("devices of VNI %d: %w", d.VNI, errAbsent)
	}
	var err error
	if errB == nil {
		err = k.tuneBridge(b, d)
	}
	if errX == nil {
		err = errors.Join(err, k.tuneVXLAN(x, b, d))
	}
	return err
}

func (k *Kernel) tuneBridge(b link, d hoststate.Device) error {
	if b.Kind != hoststate.LinkBridge {
		return fmt.Errorf("%s is a %s: %w", b.Name, b.kind, unix.EINVAL)
	}
	err := k.isolate(b.Name, false)
	if b.IPv6 {
		err = errors.Join(err, k.ipv6(b.Name, false))
	}
	if b.MTU != d.MTU || b.Alias != d.Alias || b.group != Group {
		err = errors.Join(err, k.change(b.Index, func(m *batch) { m.u32(unix.IFLA_MTU, d.MTU); k.identify(m, d) }))
	}
	if d.AltName == "" || slices.Contains(b.AltNames, d.AltName) {
		return err
	}
	if err := errors.Join(err, k.altName(unix.RTM_NEWLINKPROP, b.Index, d.AltName)); err != nil {
		return err
	}
	for _, a := range b.AltNames {
		err = errors.Join(err, k.altName(unix.RTM_DELLINKPROP, b.Index, a))
	}
	return err
}

func (k *Kernel) tuneVXLAN(x, b link, d hoststate.Device) error {
	if x.Kind != hoststate.LinkVXLAN {
		return fmt.Errorf("%s is a %s: %w", x.Name, x.kind, unix.EINVAL)
	}
	var err error
	if !x.IPv6 {
		err = errors.Join(k.change(x.Index, addrGenNone), k.ipv6(x.Name, true))
	}
	if x.MTU != d.MTU || x.Alias != d.Alias || x.group != Group {
		err = errors.Join(err, k.change(x.Index, func(m *batch) { m.u32(unix.IFLA_MTU, d.MTU); k.identify(m, d) }))
	}
	if x.DF != d.DF || x.Local != d.Local {
		err = errors.Join(err, k.change(x.Index, func(m *batch) {
			m.nest(unix.IFLA_LINKINFO, func() {
				m.str(unix.IFLA_INFO_KIND, "vxlan")
				m.nest(unix.IFLA_INFO_DATA, func() {
					m.u8(unix.IFLA_VXLAN_DF, vxlanDF(d.DF))
					m.addr(localAttr(d.Local), d.Local)
				})
			})
		}))
	}
	if b.Kind == hoststate.LinkBridge && x.Master != b.Index {
		err = errors.Join(err, k.enslave(x.Index, b.Index))
		x.Learns = true
	}
	if b.Kind == hoststate.LinkBridge && (x.Flood != d.Misses || x.Learns || x.isoPort) {
		err = errors.Join(err, k.brport(x.Index, portFlags{flood: d.Misses}))
	}
	return errors.Join(err, k.guardVXLAN(x))
}

// attach makes a device a port of the network's bridge. It is isolated at
// once; OpPort and its row in TableMember follow when it is known whose it is.
func (k *Kernel) attach(o hoststate.Op) error {
	l, err := getLink(k.write, 0, o.Name)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Name, err)
	}
	devs, err := k.lookup(k.write, o.Dev.VNI)
	if err != nil {
		return err
	}
	if devs.bridge == 0 {
		return fmt.Errorf("%s: %w", o.Dev.VNI.Bridge(), errAbsent)
	}
	if l.Alias != o.Alias {
		if err := k.setAlias(l.Index, o.Alias); err != nil {
			return err
		}
	}
	if l.Master == devs.bridge {
		return nil
	}
	if err := k.enslave(l.Index, devs.bridge); err != nil {
		return err
	}
	if err := k.forget(l); err != nil { // what it was elsewhere
		return err
	}
	return k.brport(l.Index, portFlags{isolated: true})
}

func (k *Kernel) detach(name string) error {
	l, err := getLink(k.write, 0, name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if l.Master != 0 {
		if err := k.enslave(l.Index, 0); err != nil {
			return err
		}
	}
	if err := k.release(l.Index); err != nil {
		return err
	}
	if l.Alias == "" {
		return nil
	}
	return k.setAlias(l.Index, "")
}

// setAlias writes an alias; an empty attribute clears it.
func (k *Kernel) setAlias(index int32, alias string) error {
	return k.change(index, func(m *batch) { m.attr(unix.IFLA_IFALIAS, []byte(alias)) })
}

// vniOf is the VNI of a device of ours by its kind and name.
func vniOf(l link) (overlay.VNI, bool) {
	v, ok := overlay.VNIOfDevice(l.Name)
	switch {
	case !ok:
	case l.Kind == hoststate.LinkBridge && l.Name == v.Bridge(), l.Kind == hoststate.LinkVXLAN && l.Name == v.VXLAN():
		return v, true
	}
	return 0, false
}
