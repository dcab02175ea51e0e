package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// neigh is a RTM_NEWNEIGH or RTM_DELNEIGH message (rtnetlink(7)); FDB entries
// are neighbours of family AF_BRIDGE.
type neigh struct {
	family  uint8
	ifindex int32
	state   uint16
	flags   uint8
	mac     overlay.MAC
	hasMAC  bool
	dst     netip.Addr
	master  int32 // NDA_MASTER: the bridge whose entry it is; 0 for a device's own
	proto   uint8
	vni     overlay.VNI   // NDA_VNI: of an FDB entry that leads into another network
	idle    time.Duration // ndm_used of NDA_CACHEINFO: since the device last looked it up
	odd     bool          // a port, interface or next hop of its own: nothing we write
}

// Neighbour states and flags (linux/neighbour.h) that count here.
const (
	nudDead     = unix.NUD_INCOMPLETE | unix.NUD_FAILED
	fdbStatic   = unix.NUD_NOARP
	ndaProtocol = 12                // NDA_PROTOCOL
	ndaNHID     = 13                // NDA_NH_ID
	ntfSticky   = 0x40              // NTF_STICKY
	clockTick   = time.Second / 100 // USER_HZ, as jiffies_to_clock_t counts
	sizeofNdm   = unix.SizeofNdMsg
)

func parseNeigh(b []byte) (neigh, error) {
	var n neigh
	if len(b) < sizeofNdm {
		return n, errTruncated
	}
	n.family, n.ifindex = b[0], int32(native.Uint32(b[4:]))
	n.state, n.flags = native.Uint16(b[8:]), b[10]
	err := eachAttr(b[sizeofNdm:], func(typ uint16, d []byte) {
		switch typ {
		case unix.NDA_LLADDR:
			if len(d) == 6 {
				n.mac, n.hasMAC = overlay.MAC(d), true
			}
		case unix.NDA_DST:
			n.dst = ipAttr(d)
		case unix.NDA_MASTER:
			n.master = int32(u32Attr(d))
		case ndaProtocol:
			n.proto = u8Attr(d)
		case unix.NDA_CACHEINFO: // struct nda_cacheinfo (linux/neighbour.h)
			if len(d) >= 8 {
				n.idle = time.Duration(native.Uint32(d[4:])) * clockTick
			}
		case unix.NDA_VNI:
			// The kernel leaves out the device's own, and shows every other
			// number that it was given.
			n.vni = overlay.VNI(u32Attr(d))
			n.odd = n.odd || !n.vni.Valid()
		case unix.NDA_PORT, unix.NDA_IFINDEX, ndaNHID:
			n.odd = true
		}
	})
	return n, err
}

// row says which row of network v a message speaks of. ok is false for what
// is no row: entries of other devices, of the kernel itself, dead neighbours.
func (n neigh) row(v overlay.VNI, d devices) (r hoststate.Row, ok bool) {
	r.Key.VNI = v
	switch {
	case n.family == unix.AF_BRIDGE && n.master != 0:
		return n.masterRow(r, d)
	case n.ifindex != d.vxlan || d.vxlan == 0:
		return r, false
	case n.family == unix.AF_BRIDGE:
		return n.fdbRow(r)
	case n.family == unix.AF_INET || n.family == unix.AF_INET6:
		// Multicast neighbours are the kernel's own (arp_mc_map, ndisc_mc_map).
		if !n.dst.IsValid() || n.dst.IsMulticast() || n.state == 0 || n.state&nudDead != 0 {
			return r, false
		}
		r.Key.Table, r.Key.IP = hoststate.TableNeigh, n.dst
		r.Val.MAC = n.mac
		if n.state&unix.NUD_PERMANENT != 0 {
			r.Val.Flags |= hoststate.Permanent
		}
		if n.proto == Protocol {
			r.Val.Flags |= hoststate.Ours
		}
		if n.flags&unix.NTF_ROUTER != 0 {
			r.Val.Flags |= hoststate.Router
		}
		return r, true
	}
	return r, false
}

func (n neigh) fdbRow(r hoststate.Row) (hoststate.Row, bool) {
	if !n.hasMAC {
		return r, false
	}
	if !n.mac.IsUnicast() {
		r.Key.Table, r.Key.MAC, r.Key.IP = hoststate.TableRepl, n.mac, n.dst
		r.Val.Flags = n.fdbFlags()
		return r, n.dst.IsValid()
	}
	r.Key.Table, r.Key.MAC = hoststate.TableFDB, n.mac
	r.Val.Flags = n.fdbFlags()
	if !n.odd {
		// An entry with a port or next hop of its own reads as one without a
		// destination, which no plan wants, so that it is written anew.
		r.Val.Dst, r.Val.VNI = n.dst, n.vni
	}
	return r, true
}

func (n neigh) fdbFlags() hoststate.Flags {
	var f hoststate.Flags
	switch {
	case n.state&unix.NUD_PERMANENT != 0:
		f |= hoststate.Permanent
	case n.state&fdbStatic != 0:
		f |= hoststate.Static
	}
	if n.flags&unix.NTF_EXT_LEARNED != 0 {
		f |= hoststate.Extern
	}
	if n.flags&unix.NTF_ROUTER != 0 {
		f |= hoststate.Router
	}
	return f
}

// masterRow reads the bridge's table. An extern_learn entry there has no state
// of its own when it is new and never ages (net/bridge/br_fdb.c), and the
// flag is never cleared again when the entry becomes a local one. So Extern
// counts, and means static, on the VXLAN device's port only.
func (n neigh) masterRow(r hoststate.Row, d devices) (hoststate.Row, bool) {
	if n.master != d.bridge || !n.hasMAC {
		return r, false
	}
	r.Key.Table, r.Key.MAC = hoststate.TableMaster, n.mac
	r.Val.Port = n.ifindex
	ext := n.flags&unix.NTF_EXT_LEARNED != 0
	switch {
	case n.state&unix.NUD_PERMANENT != 0:
		r.Val.Flags |= hoststate.Permanent
	case n.state&fdbStatic != 0, ext:
		r.Val.Flags |= hoststate.Static
	}
	if n.ifindex == d.vxlan {
		r.Val.Port = 0
		if ext {
			r.Val.Flags |= hoststate.Extern
		}
	}
	if n.flags&ntfSticky != 0 {
		r.Val.Flags |= hoststate.Sticky
	}
	return r, true
}

// ndmsg appends a struct ndmsg.
func (m *batch) ndmsg(family uint8, ifindex int32, state uint16, flags uint8) {
	m.raw(family, 0, 0, 0)
	m.b = native.AppendUint32(m.b, uint32(ifindex))
	m.b = native.AppendUint16(m.b, state)
	m.raw(flags, 0)
}

// errNoPort is a master row for a port that no bridge of the network has.
var errNoPort = fmt.Errorf("no such bridge port: %w", errAbsent)

// checkRow refuses what the kernel would take in another sense than the row
// says, and what cannot be addressed.
func checkRow(r hoststate.Row, d devices, del bool) error {
	k := r.Key
	switch k.Table {
	case hoststate.TableMaster:
		if d.bridge == 0 || r.Val.Port == 0 && (d.vxlan == 0 || d.vxlanMaster != d.bridge) {
			return errNoPort
		}
		if !k.MAC.IsUnicast() {
			return fmt.Errorf("MAC %s: %w", k.MAC, unix.EINVAL)
		}
		return nil
	case hoststate.TableFDB:
		// The lists of the all-zero MAC and of groups are TableRepl's.
		if !k.MAC.IsUnicast() {
			return fmt.Errorf("MAC %s: %w", k.MAC, unix.EINVAL)
		}
	case hoststate.TableRepl, hoststate.TableNeigh:
		if !k.IP.IsValid() {
			return fmt.Errorf("address: %w", unix.EINVAL)
		}
		if k.Table == hoststate.TableRepl && k.MAC.IsUnicast() {
			return fmt.Errorf("list of MAC %s: %w", k.MAC, unix.EINVAL)
		}
	}
	if d.vxlan == 0 {
		return errAbsent
	}
	if v := r.Val.VNI; !del && v != 0 && (v == k.VNI || !v.Valid()) {
		return fmt.Errorf("into VNI %d from the device of %d: %w", v, k.VNI, unix.EINVAL)
	}
	return nil
}

// flagBits are the kernel's state and flags of FDB flags.
func flagBits(f hoststate.Flags) (state uint16, flags uint8) {
	if f&hoststate.Permanent != 0 {
		state |= unix.NUD_PERMANENT
	}
	if f&(hoststate.Static|hoststate.Permanent) != 0 {
		state |= fdbStatic
	}
	if f&hoststate.Permanent == 0 {
		// vxlan_fdb_add wants one of permanent and reachable, static or not.
		state |= unix.NUD_REACHABLE
	}
	if f&hoststate.Extern != 0 {
		flags |= unix.NTF_EXT_LEARNED
	}
	if f&hoststate.Sticky != 0 {
		flags |= ntfSticky
	}
	if f&hoststate.Router != 0 {
		flags |= unix.NTF_ROUTER
	}
	return state, flags
}

// set appends the message that writes r. both adds the bridge's entry for the
// same MAC to an FDB row's message (NTF_SELF and NTF_MASTER).
func (m *batch) set(r hoststate.Row, d devices, both bool, seq uint32) {
	k, v := r.Key, r.Val
	const replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	state, flags := flagBits(v.Flags)
	switch k.Table {
	case hoststate.TableFDB:
		m.begin(unix.RTM_NEWNEIGH, replace, seq)
		flags |= unix.NTF_SELF
		if both {
			flags |= unix.NTF_MASTER
		}
		m.ndmsg(unix.AF_BRIDGE, d.vxlan, state, flags)
		m.attr(unix.NDA_LLADDR, k.MAC[:])
		m.addr(unix.NDA_DST, v.Dst)
		if v.VNI != 0 {
			m.u32(unix.NDA_VNI, uint32(v.VNI))
		}
	case hoststate.TableMaster:
		m.begin(unix.RTM_NEWNEIGH, replace, seq)
		m.ndmsg(unix.AF_BRIDGE, d.port(v), state, flags|unix.NTF_MASTER)
		m.attr(unix.NDA_LLADDR, k.MAC[:])
	case hoststate.TableRepl:
		// Append: a replace of the list is refused (kernel-facts 2).
		m.begin(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_APPEND, seq)
		m.ndmsg(unix.AF_BRIDGE, d.vxlan, fdbStatic|unix.NUD_PERMANENT, unix.NTF_SELF)
		m.attr(unix.NDA_LLADDR, k.MAC[:])
		m.addr(unix.NDA_DST, k.IP)
	case hoststate.TableNeigh:
		m.begin(unix.RTM_NEWNEIGH, replace, seq)
		m.ndmsg(family(k.IP), d.vxlan, unix.NUD_PERMANENT, flags&unix.NTF_ROUTER)
		m.addr(unix.NDA_DST, k.IP)
		m.attr(unix.NDA_LLADDR, v.MAC[:])
		if v.Flags&hoststate.Ours != 0 {
			m.u8(ndaProtocol, Protocol)
		}
	}
	m.end()
}

// del appends the message that deletes r. The kernel compares destination and VNI
// of an FDB row and the port of a master row, and deletes nothing if another
// stands there (kernel-facts 2).
func (m *batch) del(r hoststate.Row, d devices, seq uint32) {
	k, v := r.Key, r.Val
	m.begin(unix.RTM_DELNEIGH, 0, seq)
	switch k.Table {
	case hoststate.TableFDB:
		m.ndmsg(unix.AF_BRIDGE, d.vxlan, 0, unix.NTF_SELF)
		m.attr(unix.NDA_LLADDR, k.MAC[:])
		if v.Dst.IsValid() {
			m.addr(unix.NDA_DST, v.Dst)
		}
		if v.VNI != 0 {
			m.u32(unix.NDA_VNI, uint32(v.VNI))
		}
	case hoststate.TableMaster:
		m.ndmsg(unix.AF_BRIDGE, d.port(v), 0, unix.NTF_MASTER)
		m.attr(unix.NDA_LLADDR, k.MAC[:])
	case hoststate.TableRepl:
		m.ndmsg(unix.AF_BRIDGE, d.vxlan, 0, unix.NTF_SELF)
		m.attr(unix.NDA_LLADDR, k.MAC[:])
		m.addr(unix.NDA_DST, k.IP)
	case hoststate.TableNeigh:
		m.ndmsg(family(k.IP), d.vxlan, 0, 0)
		m.addr(unix.NDA_DST, k.IP)
	}
	m.end()
}

// get appends the message that asks for the row under k; a list cannot be
// asked for member by member.
func (m *batch) get(k hoststate.Key, d devices, seq uint32) {
	m.begin(unix.RTM_GETNEIGH, 0, seq)
	switch k.Table {
	case hoststate.TableFDB:
		m.ndmsg(unix.AF_BRIDGE, d.vxlan, 0, unix.NTF_SELF)
		m.attr(unix.NDA_LLADDR, k.MAC[:])
	case hoststate.TableMaster:
		// By bridge, not by port: whatever port the MAC is on is the answer.
		m.ndmsg(unix.AF_BRIDGE, 0, 0, unix.NTF_MASTER)
		m.attr(unix.NDA_LLADDR, k.MAC[:])
		m.u32(unix.NDA_MASTER, uint32(d.bridge))
	case hoststate.TableNeigh:
		m.ndmsg(family(k.IP), d.vxlan, 0, 0)
		m.addr(unix.NDA_DST, k.IP)
	}
	m.end()
}

// port is the ifindex behind a master row's port.
func (d devices) port(v hoststate.Val) int32 {
	if v.Port == 0 {
		return d.vxlan
	}
	return v.Port
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// dumpNeigh dumps neighbours: a device's own (family AF_UNSPEC) or FDB entries
// (AF_BRIDGE) by port or, if bridge is not 0, of all ports of a bridge.
func dumpNeigh(s *sock, fam uint8, ifindex, bridge int32, f func(neigh)) error {
	return s.dump(unix.RTM_GETNEIGH, func(a answer) error {
		if a.typ != unix.RTM_NEWNEIGH {
			return nil
		}
		n, err := parseNeigh(a.body)
		if err == nil {
			f(n)
		}
		return err
	}, func(m *batch) {
		switch {
		case fam != unix.AF_BRIDGE:
			m.ndmsg(fam, 0, 0, 0)
			m.u32(unix.NDA_IFINDEX, uint32(ifindex))
		case bridge != 0:
			m.ndmsg(fam, 0, 0, 0)
			m.u32(unix.NDA_MASTER, uint32(bridge))
		default:
			m.ndmsg(fam, ifindex, 0, 0)
		}
	})
}

// gone reports an error that means that there is nothing to read.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, errAbsent)
}
