package kernel

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// link is a device with what hoststate.Link does not carry.
type link struct {
	hoststate.Link
	group   uint32
	kind    string // IFLA_INFO_KIND
	isoPort bool   // IFLA_BRPORT_ISOLATED

	loopback  bool
	peer      int32  // IFLA_LINK of a device whose other end is in this namespace
	slaveKind string // IFLA_INFO_SLAVE_KIND: what kind of master it has
}

// Attributes that golang.org/x/sys lacks or names otherwise.
const (
	rtextFilterSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	devconfDisableIPv6   = 26     // DEVCONF_DISABLE_IPV6, index into IFLA_INET6_CONF
	addrGenModeNone      = 1      // IN6_ADDR_GEN_MODE_NONE
	vxlanDFUnset         = 0      // VXLAN_DF_UNSET, VXLAN_DF_SET, VXLAN_DF_INHERIT
	vxlanDFSet           = 1
	vxlanDFInherit       = 2
)

// dfUnset is what a foreign hand can make of a device and no plan wants.
const dfUnset = overlay.DF(255)

// ifinfo appends a struct ifinfomsg (rtnetlink(7)).
func (m *batch) ifinfo(family uint8, index int32, flags, change uint32) {
	m.raw(family, 0, 0, 0)
	m.b = native.AppendUint32(m.b, uint32(index))
	m.b = native.AppendUint32(m.b, flags)
	m.b = native.AppendUint32(m.b, change)
}

// getLink reads one link by index or, if that is 0, by name. errAbsent if
// there is none.
func getLink(s *sock, index int32, name string) (link, error) {
	var l link
	err := getLinks(s, []linkName{{index, name}}, func(_ int, got link, err error) error {
		l = got
		return err
	})
	return l, err
}

// linkName names a link by index or, if that is 0, by name.
type linkName struct {
	index int32
	name  string
}

// getLinks reads some links with one send; each is handed the number of the
// name and the link, or errAbsent. The first error that each returns, or the
// socket's, is returned.
func getLinks(s *sock, names []linkName, each func(i int, l link, err error) error) error {
	var bad error
	err := s.batch(len(names), 0, func(m *batch, i int, seq uint32) {
		m.begin(unix.RTM_GETLINK, 0, seq)
		m.ifinfo(unix.AF_UNSPEC, names[i].index, 0, 0)
		m.u32(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
		if names[i].index == 0 {
			m.str(unix.IFLA_IFNAME, names[i].name)
		}
		m.end()
	}, func(i int, a answer) {
		var l link
		var err error
		if a.typ == unix.NLMSG_ERROR {
			if err = a.code(); errors.Is(err, unix.ENODEV) {
				err = errAbsent
			}
		} else {
			l, err = parseLink(a.body)
		}
		if err = each(i, l, err); bad == nil {
			bad = err
		}
	})
	return errors.Join(err, bad)
}

// eachLink dumps the links of the namespace, or only the ports of a bridge if
// master is not 0.
func eachLink(s *sock, master int32, f func(link)) error {
	return s.dump(unix.RTM_GETLINK, func(a answer) error {
		if a.typ != unix.RTM_NEWLINK {
			return nil
		}
		l, err := parseLink(a.body)
		if err == nil {
			f(l)
		}
		return err
	}, func(m *batch) {
		m.ifinfo(unix.AF_UNSPEC, 0, 0, 0)
		m.u32(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
		if master != 0 {
			m.u32(unix.IFLA_MASTER, uint32(master))
		}
	})
}

// parseLink reads a RTM_NEWLINK or RTM_DELLINK body.
func parseLink(b []byte) (link, error) {
	var l link
	if len(b) < unix.SizeofIfInfomsg {
		return l, errTruncated
	}
	l.Index = int32(native.Uint32(b[4:]))
	l.Up = native.Uint32(b[8:])&unix.IFF_UP != 0
	l.loopback = native.Uint32(b[8:])&unix.IFF_LOOPBACK != 0
	var nested error
	elsewhere := false
	err := eachAttr(b[unix.SizeofIfInfomsg:], func(typ uint16, d []byte) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = str0(d)
		case unix.IFLA_MASTER:
			l.Master = int32(u32Attr(d))
		case unix.IFLA_MTU:
			l.MTU = u32Attr(d)
		case unix.IFLA_ADDRESS:
			if len(d) == 6 {
				l.MAC = overlay.MAC(d)
			}
		case unix.IFLA_IFALIAS:
			l.Alias = str0(d)
		case unix.IFLA_LINK:
			l.peer = int32(u32Attr(d))
		case unix.IFLA_LINK_NETNSID:
			elsewhere = true
		case unix.IFLA_GROUP:
			l.group = u32Attr(d)
		case unix.IFLA_PROP_LIST:
			nested = errors.Join(nested, eachAttr(d, func(typ uint16, d []byte) {
				if typ == unix.IFLA_ALT_IFNAME {
					l.AltNames = append(l.AltNames, str0(d))
				}
			}))
		case unix.IFLA_AF_SPEC:
			nested = errors.Join(nested, l.parseAFSpec(d))
		case unix.IFLA_LINKINFO:
			nested = errors.Join(nested, l.parseInfo(d))
		}
	})
	if elsewhere || l.kind != "veth" {
		l.peer = 0
	}
	slices.Sort(l.AltNames)
	if v, ok := overlay.VNIOfDevice(l.Name); ok {
		l.VNI = v
	}
	return l, errors.Join(err, nested)
}

// parseAFSpec takes disable_ipv6 from the IPv6 part. A device without that
// part (MTU below 1280) speaks no IPv6.
func (l *link) parseAFSpec(b []byte) error {
	var nested error
	err := eachAttr(b, func(typ uint16, d []byte) {
		if typ != unix.AF_INET6 {
			return
		}
		nested = eachAttr(d, func(typ uint16, d []byte) {
			if typ == unix.IFLA_INET6_CONF && len(d) >= 4*(devconfDisableIPv6+1) {
				l.IPv6 = native.Uint32(d[4*devconfDisableIPv6:]) == 0
			}
		})
	})
	return errors.Join(err, nested)
}

func (l *link) parseInfo(b []byte) error {
	var data, slave []byte
	err := eachAttr(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			l.kind = str0(d)
		case unix.IFLA_INFO_DATA:
			data = d
		case unix.IFLA_INFO_SLAVE_KIND:
			l.slaveKind = str0(d)
		case unix.IFLA_INFO_SLAVE_DATA:
			slave = d
		}
	})
	switch l.kind {
	case "bridge":
		l.Kind = hoststate.LinkBridge
	case "vxlan":
		l.Kind = hoststate.LinkVXLAN
		err = errors.Join(err, l.parseVXLAN(data))
	}
	if l.slaveKind == "bridge" {
		err = errors.Join(err, eachAttr(slave, func(typ uint16, d []byte) {
			switch typ {
			case unix.IFLA_BRPORT_STATE:
				l.State = hoststate.PortState(u8Attr(d))
			case unix.IFLA_BRPORT_UNICAST_FLOOD:
				l.Flood = u8Attr(d) != 0
			case unix.IFLA_BRPORT_LEARNING:
				l.Learns = u8Attr(d) != 0
			case unix.IFLA_BRPORT_ISOLATED:
				l.isoPort = u8Attr(d) != 0
			}
		}))
	}
	return err
}

func (l *link) parseVXLAN(b []byte) error {
	var learning, proxy, rsc, l2, l3 bool
	err := eachAttr(b, func(typ uint16, d []byte) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			l.VXVNI = overlay.VNI(u32Attr(d))
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			l.Local = ipAttr(d)
		case unix.IFLA_VXLAN_PORT:
			if len(d) == 2 {
				l.UDPPort = uint16(d[0])<<8 | uint16(d[1])
			}
		case unix.IFLA_VXLAN_DF:
			switch u8Attr(d) {
			case vxlanDFSet:
				l.DF = overlay.DFSet
			case vxlanDFInherit:
				l.DF = overlay.DFInherit
			default:
				l.DF = dfUnset
			}
		case unix.IFLA_VXLAN_LEARNING:
			learning = u8Attr(d) != 0
		case unix.IFLA_VXLAN_PROXY:
			proxy = u8Attr(d) != 0
		case unix.IFLA_VXLAN_RSC:
			rsc = u8Attr(d) != 0
		case unix.IFLA_VXLAN_L2MISS:
			l2 = u8Attr(d) != 0
		case unix.IFLA_VXLAN_L3MISS:
			l3 = u8Attr(d) != 0
		}
	})
	l.DOVE = proxy && rsc && l2 && l3 && !learning
	return err
}

// vxlanDF is the kernel's number of a mode.
func vxlanDF(d overlay.DF) uint8 {
	switch d {
	case overlay.DFSet:
		return vxlanDFSet
	case overlay.DFInherit:
		return vxlanDFInherit
	}
	return vxlanDFUnset
}

// localAttr is the attribute of a VXLAN device's own outer address.
func localAttr(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.IFLA_VXLAN_LOCAL
	}
	return unix.IFLA_VXLAN_LOCAL6
}
