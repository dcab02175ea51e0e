package hoststate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert/internal/overlay"
)

// Compare orders keys for dumps: by network, table, then address.
func (k Key) Compare(l Key) int {
	return cmp.Or(
		cmp.Compare(k.VNI, l.VNI),
		cmp.Compare(k.Table, l.Table),
		cmp.Compare(string(k.MAC[:]), string(l.MAC[:])),
		k.IP.Compare(l.IP),
		cmp.Compare(k.Port, l.Port),
		cmp.Compare(k.Bits, l.Bits),
	)
}

var flagNames = [...]string{"static", "extern_learn", "sticky", "permanent", "culvert", "router", "open", "check_ip", "no_servers", "watch", "half", "check_local", "shared", "routed", "strangers", "demand"}

// String lists the flags' words, joined by commas.
func (f Flags) String() string {
	var s []string
	for i, n := range flagNames {
		if f&(1<<i) != 0 {
			s = append(s, n)
		}
	}
	return strings.Join(s, ",")
}

// String is the row with interfaces by index; State.String has their names.
func (r Row) String() string {
	return r.text(func(i int32) string { return fmt.Sprintf("if%d", i) })
}

// Named is the row with interfaces by their names; name may answer for any index.
func (r Row) Named(name func(int32) string) string { return r.text(name) }

func (r Row) text(name func(int32) string) string {
	k, v := r.Key, r.Val
	switch k.Table {
	case TableVTEP:
		return fmt.Sprintf("vtep %s", k.IP)
	case TableMember:
		return fmt.Sprintf("member %s", name(k.Port))
	case TableMark:
		return "mark " + k.rev().String()
	case TableFDB:
		if v.VNI != 0 {
			return fmt.Sprintf("fdb %d %s dst %s vni %d %s", k.VNI, k.MAC, v.Dst, v.VNI, v.Flags)
		}
		return fmt.Sprintf("fdb %d %s dst %s %s", k.VNI, k.MAC, v.Dst, v.Flags)
	case TableReach:
		switch {
		case v.MTU != 0:
			return fmt.Sprintf("reach %d %s mtu %d", k.VNI, k.IP, v.MTU)
		case k.IP.IsValid():
			return fmt.Sprintf("reach %d %s", k.VNI, k.IP)
		}
		return fmt.Sprintf("reach %d %s", k.VNI, k.MAC)
	case TableKnown:
		return fmt.Sprintf("known %d %s", k.VNI, k.MAC)
	case TableRoute:
		return fmt.Sprintf("route %d %s/%d via %s", k.VNI, k.IP, k.Bits, v.MAC)
	case TableAlias:
		return fmt.Sprintf("alias %d %s of %s", k.VNI, k.MAC, v.MAC)
	case TableFrom:
		return fmt.Sprintf("from %d %s of %s", k.VNI, k.IP, v.MAC)
	case TableMaster:
		port := k.VNI.VXLAN()
		if v.Port != 0 {
			port = name(v.Port)
		}
		return fmt.Sprintf("master %d %s dev %s %s", k.VNI, k.MAC, port, v.Flags)
	case TableRepl:
		if k.MAC != (overlay.MAC{}) {
			return fmt.Sprintf("repl %d %s dst %s", k.VNI, k.MAC, k.IP)
		}
		return fmt.Sprintf("repl %d dst %s", k.VNI, k.IP)
	case TableNeigh:
		return fmt.Sprintf("neigh %d %s lladdr %s %s", k.VNI, k.IP, v.MAC, v.Flags)
	case TablePort:
		return fmt.Sprintf("port %s mac %s %s", name(k.Port), v.MAC, v.Flags)
	case TableOwn:
		if k.IP.IsValid() {
			return strings.TrimSuffix(fmt.Sprintf("own %s %s %s", name(k.Port), k.IP, v.Flags), " ")
		}
		return fmt.Sprintf("own %s %s", name(k.Port), k.MAC)
	case TableSource, TableRouted:
		if k.MAC == (overlay.MAC{}) {
			return strings.TrimSuffix(fmt.Sprintf("%s %d any via %s %s", k.Table, k.VNI, k.IP, v.Flags), " ")
		}
		return strings.TrimSuffix(fmt.Sprintf("%s %d %s via %s %s", k.Table, k.VNI, k.MAC, k.IP, v.Flags), " ")
	case TableRelayed:
		return fmt.Sprintf("relayed %d %s via %s", k.VNI, k.MAC, k.IP)
	case TableRelay:
		return fmt.Sprintf("relay %d %s", k.VNI, k.MAC)
	}
	return "unknown row"
}

// SortedRows is m as rows in the order of Key.Compare.
func SortedRows(m map[Key]Val) []Row {
	rows := make([]Row, 0, len(m))
	for k, v := range m {
		rows = append(rows, Row{k, v})
	}
	slices.SortFunc(rows, func(a, b Row) int { return a.Key.Compare(b.Key) })
	return rows
}

// String dumps links and rows, a line each, sorted, without anything that
// differs from run to run (no ifindex, no MAC of our own devices, no mark).
func (s *State) String() string {
	var b strings.Builder
	names := map[int32]string{}
	for _, l := range s.Links {
		names[l.Index] = l.Name
	}
	links := slices.Clone(s.Links)
	slices.SortFunc(links, func(a, b Link) int { return cmp.Or(cmp.Compare(a.VNI, b.VNI), strings.Compare(a.Name, b.Name)) })
	for _, l := range links {
		b.WriteString(l.text(names) + "\n")
	}
	for _, r := range SortedRows(s.Rows) {
		if r.Key.Table == TableMark {
			continue
		}
		b.WriteString(r.text(func(i int32) string {
			if n, ok := names[i]; ok {
				return n
			}
			return "gone"
		}) + "\n")
	}
	return b.String()
}

func (l Link) text(names map[int32]string) string {
	up := "down"
	if l.Up {
		up = "up"
	}
	switch l.Kind {
	case LinkBridge:
		iso := "open"
		if l.Isolated {
			iso = "isolated"
		}
		return fmt.Sprintf("bridge %s %s mtu %d %s altnames %s", l.Name, up, l.MTU, iso, strings.Join(l.AltNames, ","))
	case LinkVXLAN:
		df := "set"
		if l.DF != 0 {
			df = "inherit"
		}
		return fmt.Sprintf("vxlan %s vni %d %s mtu %d master %s local %s port %d df %s dove %t flood %t learning %t",
			l.Name, l.VXVNI, up, l.MTU, names[l.Master], l.Local, l.UDPPort, df, l.DOVE, l.Flood, l.Learns)
	}
	state := "blocked"
	if l.State == StateForwarding {
		state = "forwarding"
	}
	return fmt.Sprintf("port %s %s master %s %s flood %t learning %t alias %q", l.Name, up, names[l.Master], state, l.Flood, l.Learns, l.Alias)
}

// About reports whether a row of a network is about an endpoint that is named by
// one of macs or has the address, which may be the zero one.
func (r Row) About(macs []overlay.MAC, addr netip.Addr) bool {
	switch r.Key.Table {
	case TableVTEP, TableMark, TableMember, TablePort, TableOwn:
		return false // of the host, or of a port
	}
	if r.Key.IP.IsValid() && r.Key.MAC.IsZero() {
		return r.Key.IP == addr || r.Key.Table == TableNeigh && slices.Contains(macs, r.Val.MAC)
	}
	return slices.Contains(macs, r.Key.MAC)
}
