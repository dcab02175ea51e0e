// Package plan says which rows one endpoint needs in one host's kernel. It is
// the one place where that is decided; everything else adds, removes, compares
// and explains what Rows returned.
//
// The whole of a network's tables is the union over its endpoints (Union). It
// is used to verify, to adopt and to test; a change costs one call of Rows.
package plan

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Flags of planned rows. kernel-facts: static + extern_learn neither ages nor
// moves on a device without learning; a local entry is sticky because a local
// guest moves a merely static one; PERMANENT neighbours are the only form that
// is always answered and never evicted, and carry our protocol number.
const (
	RemoteFlags = hoststate.Static | hoststate.Extern
	LocalFlags  = hoststate.Static | hoststate.Sticky
	NeighFlags  = hoststate.Permanent | hoststate.Ours
	ReplFlags   = hoststate.Permanent
)

// Endpoint is what Rows needs to know of one endpoint on one host.
type Endpoint struct {
	VNI   overlay.VNI
	MAC   overlay.MAC
	Addrs []netip.Addr
	// VTEP is the outer address of the host it is on. Invalid if it is here,
	// or if that host's address is not known yet: then it has no remote rows.
	VTEP netip.Addr
	// Port is the ifindex of its bridge port on this host, 0 if it is not here.
	Port  int32
	Flood overlay.Flood
	// Sources are VTEPs that may send for it besides VTEP: of hosts on which it
	// is expected, and, while a relay lasts, of the one that it left.
	Sources []netip.Addr
	// Relays are VTEPs that may send to it here whatever the source: of the
	// host that it left, which relays.
	Relays []netip.Addr
	// Relay: it left this host, and what still arrives here is sent on to VTEP.
	Relay bool
	// Alias is how other networks' hosts name it, if frames to it may come
	// here; zero: none do so.
	Alias overlay.MAC
	// Routes are prefixes beyond all networks that are reached by way of it.
	Routes []netip.Prefix
	// Demand: its network is told on demand, and it is one that this host knows.
	Demand bool
}

// Rows appends the rows of one endpoint in the order in which they are to be
// added; they are to be removed in the opposite order. Reasons:
//
//   - anywhere: whose frames the underlay's program takes for it, and who may
//     relay to it, before anything that makes such frames come.
//   - where frames of other networks' hosts to it may come, also while it is
//     expected or was here: which name of theirs is its own. It is taken for its
//     own before anything else is looked up, so that a relay sends it on, too.
//   - here: the bridge's entry on its own port, and nothing else. An address
//     of a local guest in the neighbour table would be answered by the proxy
//     beside the guest, also to the guest's own duplicate address detection.
//   - elsewhere: both FDBs, since a MAC that only the VXLAN device knows is
//     flooded to every local guest by the bridge; one place in the list that
//     broadcast is copied along; and a neighbour for each address after that, so
//     that nobody is told a MAC that cannot be sent to.
//   - here or elsewhere: the prefixes behind it, last. What it sends from them
//     to the network's own guests has its MAC, and needs nothing; what it sends
//     to another network has a row of that one's (see CrossingRows). Its port
//     may not check addresses, which are not its own.
//   - where the network is told on demand: that the host knows it, first, since
//     frames from those that it does not know are taken from more hosts. Its
//     place in the list is its host's there, see ListRow.
func Rows(buf []hoststate.Row, e Endpoint) []hoststate.Row {
	if e.Demand {
		buf = append(buf, KnownRow(e.VNI, e.MAC))
	}
	for _, v := range e.Sources {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableSource, VNI: e.VNI, MAC: e.MAC, IP: v}})
	}
	for _, v := range e.Relays {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRelayed, VNI: e.VNI, MAC: e.MAC, IP: v}})
	}
	if !e.Alias.IsZero() {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableAlias, VNI: e.VNI, MAC: e.Alias}, Val: hoststate.Val{MAC: e.MAC}})
	}
	if e.Port != 0 {
		return routeRows(append(buf, hoststate.Row{
			Key: hoststate.Key{Table: hoststate.TableMaster, VNI: e.VNI, MAC: e.MAC},
			Val: hoststate.Val{Port: e.Port, Flags: LocalFlags},
		}), e.VNI, e.MAC, e.Routes)
	}
	if !e.VTEP.IsValid() {
		return buf
	}
	buf = append(buf, hoststate.Row{
		Key: hoststate.Key{Table: hoststate.TableSource, VNI: e.VNI, MAC: e.MAC, IP: e.VTEP},
	}, hoststate.Row{
		Key: hoststate.Key{Table: hoststate.TableFDB, VNI: e.VNI, MAC: e.MAC},
		Val: hoststate.Val{Dst: e.VTEP, Flags: RemoteFlags},
	}, hoststate.Row{
		Key: hoststate.Key{Table: hoststate.TableMaster, VNI: e.VNI, MAC: e.MAC},
		Val: hoststate.Val{Flags: RemoteFlags},
	})
	if e.Flood == overlay.FloodHER && !e.Demand {
		buf = append(buf, hoststate.Row{
			Key: hoststate.Key{Table: hoststate.TableRepl, VNI: e.VNI, IP: e.VTEP},
			Val: hoststate.Val{Flags: ReplFlags},
		})
	}
	for _, a := range e.Addrs {
		buf = append(buf, hoststate.Row{
			Key: hoststate.Key{Table: hoststate.TableNeigh, VNI: e.VNI, IP: a},
			Val: hoststate.Val{MAC: e.MAC, Flags: NeighFlags},
		})
	}
	buf = routeRows(buf, e.VNI, e.MAC, e.Routes)
	if e.Relay {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRelay, VNI: e.VNI, MAC: e.MAC}})
	}
	return buf
}

// ForeignRows appends the rows of a network's foreign VTEPs, in the order of
// Rows: what they send is taken, whatever stands behind them, and they have
// their place in the list that broadcast is copied along. What MACs there are
// is nobody's to know: frames to them go along that list, too.
func ForeignRows(buf []hoststate.Row, v overlay.VNI, flood overlay.Flood, vteps []netip.Addr) []hoststate.Row {
	for _, a := range vteps {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableSource, VNI: v, IP: a}})
		if flood == overlay.FloodHER {
			buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRepl, VNI: v, IP: a}, Val: hoststate.Val{Flags: ReplFlags}})
		}
	}
	return buf
}

// Guard is what the port program of one device is to let through.
type Guard struct {
	Port  int32         // ifindex
	MACs  []overlay.MAC // at least one
	Addrs []netip.Addr  // its own: nobody else may claim them towards it
	Share []netip.Addr  // that it may use and others may claim towards it
	Hosts []netip.Addr  // that hosts have towards it, none of the former
	Flags hoststate.Flags
}

// PortRows appends the rows of one device in the order in which they are to be
// added: it passes frames when all else stands.
func PortRows(buf []hoststate.Row, g Guard) []hoststate.Row {
	for _, m := range g.MACs[1:] {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableOwn, Port: g.Port, MAC: m}})
	}
	for _, a := range g.Addrs {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableOwn, Port: g.Port, IP: a}})
	}
	for _, a := range g.Share {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableOwn, Port: g.Port, IP: a}, Val: hoststate.Val{Flags: hoststate.Shared}})
	}
	for _, a := range g.Hosts {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableOwn, Port: g.Port, IP: a}, Val: hoststate.Val{Flags: hoststate.Router}})
	}
	return append(buf,
		hoststate.Row{Key: hoststate.Key{Table: hoststate.TablePort, Port: g.Port}, Val: hoststate.Val{MAC: g.MACs[0], Flags: g.Flags}},
		hoststate.Row{Key: hoststate.Key{Table: hoststate.TableMember, Port: g.Port}},
	)
}

// Union is the rows of all endpoints of a host. Where two endpoints have the
// same address the later in the slice wins: order them by revision.
func Union(endpoints []Endpoint) map[hoststate.Key]hoststate.Val {
	out := map[hoststate.Key]hoststate.Val{}
	var buf []hoststate.Row
	for _, e := range endpoints {
		buf = Rows(buf[:0], e)
		for _, r := range buf {
			out[r.Key] = r.Val
		}
	}
	return out
}
