package plan

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// RouterFlags are those of the router's own entry: without Router the VXLAN
// device looks nothing up (kernel-facts 4).
const RouterFlags = RemoteFlags | hoststate.Router

// RouterRows appends the rows of a network's router on a host whose tunnel end
// point is own, in the order in which they are to be added. Reasons:
//
//   - the VXLAN device's entry makes it look the destination of what is sent to
//     the router up among its neighbours. Where there is none the packet follows
//     the entry itself: to this host, and with no other network named, so that
//     it comes back to the device that it left by, and the bridge drops it. An
//     entry without a destination would not be answered for.
//   - the bridge's entry keeps what is sent to the router from every port but
//     the VXLAN device's.
//   - links are subnets of networks that a route to a prefix goes around, as a
//     default one does all: what is sent there to nobody goes to no next hop, and
//     no next hop sends from there.
func RouterRows(buf []hoststate.Row, v overlay.VNI, own netip.Addr, links []netip.Prefix) []hoststate.Row {
	return routeRows(append(buf, hoststate.Row{
		Key: hoststate.Key{Table: hoststate.TableFDB, VNI: v, MAC: overlay.ServerMAC},
		Val: hoststate.Val{Dst: own, Flags: RouterFlags},
	}, hoststate.Row{
		Key: hoststate.Key{Table: hoststate.TableMaster, VNI: v, MAC: overlay.ServerMAC},
		Val: hoststate.Val{Flags: RemoteFlags},
	}), v, overlay.MAC{}, links)
}

// Crossing is what an endpoint of one network is in the tables of another, on a
// host that serves that one. The zero one is nothing.
type Crossing struct {
	VNI  overlay.VNI // of the network whose tables they are
	Into overlay.VNI // of its own network
	// MAC is its overlay.Alias; or its own, if Bridged.
	MAC   overlay.MAC
	Addrs []netip.Addr
	// VTEP is the outer address of the host to which frames to it go, which may
	// be this one. Invalid if none do: nobody may send to it, it is not known
	// where it is, or another endpoint has the same alias.
	VTEP netip.Addr
	// Shadowed: another has it. The name is guarded all the same.
	Shadowed bool
	// MTU is how long a packet to it may be in bytes; 0: as long as any of the
	// network whose tables they are.
	MTU uint16
	// Routes are prefixes beyond all networks that are reached by way of it.
	Routes []netip.Prefix
	// Sends: it may send into the network, from the hosts at Via.
	Sends bool
	Via   []netip.Addr
	// Bridged: the two networks are one to their guests. Known: MACs that the
	// tables have are to be told apart from others (hoststate.TableKnown).
	Bridged, Known bool
}

// CrossingRows appends the rows of an endpoint in another network's tables, in
// the order in which they are to be added; they are to be removed in the
// opposite order.
//
// Where hosts route, the endpoint is named by its alias in every row, so that
// none meets one of the network's own endpoints, or of a third network's, that
// has the same MAC. Reasons:
//
//   - who may send what was routed here: frames have the router's MAC, so it is
//     the inner source address that says whose they are, and the endpoint's
//     hosts that may have sent them. An address that is the endpoint's is so
//     wherever it is: from no other host, and by no wider prefix.
//   - before all that leads there the port programs know what is only to be
//     reached by way of the gateway: neither a frame to its alias, which the
//     entry below would carry across, nor a question after its address, which
//     the proxy would answer with it, comes from a guest. That the programs let
//     packets to it through a moment before the device can send them on costs
//     those packets.
//   - the VXLAN device's entry leads into the endpoint's own network. On this
//     host that is by this host's own tunnel end point, which the kernel takes
//     without a packet on the wire; a destination of zero would feed it back to
//     the bridge that it came from.
//   - none of the bridge, since the short circuit asks the VXLAN device alone;
//     but for a next hop: to it the port program readdresses packets before the
//     bridge, which would drop them without.
//   - a neighbour for each address: the short circuit finds by it whom a packet
//     is for, and must not find a MAC that cannot be sent to.
//   - the prefixes behind a next hop, last. They say whose routed frames are
//     taken, too: what has a source address in one of them, which is nobody's,
//     is the next hop's, and the row that its own frames need serves for it.
//
// Where networks are bridged it is an endpoint like the network's own on
// another host (see Rows), but that frames to it go into its own network, and
// that broadcast has no copy: its host sends none back.
func CrossingRows(buf []hoststate.Row, e Crossing) []hoststate.Row {
	row := func(t hoststate.Table, v hoststate.Val) {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: t, VNI: e.VNI, MAC: e.MAC}, Val: v})
	}
	of := func(t hoststate.Table, a netip.Addr, v hoststate.Val) {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: t, VNI: e.VNI, IP: a}, Val: v})
	}
	if e.Bridged && e.Known {
		row(hoststate.TableKnown, hoststate.Val{})
	}
	senders := hoststate.TableRouted
	if e.Bridged {
		senders = hoststate.TableSource
	}
	for _, v := range e.Via {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: senders, VNI: e.VNI, MAC: e.MAC, IP: v}})
	}
	if e.Sends && !e.Bridged {
		for _, a := range e.Addrs {
			of(hoststate.TableFrom, a, hoststate.Val{MAC: e.MAC})
		}
	}
	if !e.VTEP.IsValid() {
		return buf
	}
	if !e.Bridged {
		row(hoststate.TableReach, hoststate.Val{})
	}
	if e.Shadowed {
		return buf
	}
	if !e.Bridged {
		for _, a := range e.Addrs {
			of(hoststate.TableReach, a, hoststate.Val{MTU: e.MTU})
		}
	}
	row(hoststate.TableFDB, hoststate.Val{Dst: e.VTEP, VNI: e.Into, Flags: RemoteFlags})
	if e.Bridged || len(e.Routes) > 0 {
		row(hoststate.TableMaster, hoststate.Val{Flags: RemoteFlags})
	}
	for _, a := range e.Addrs {
		of(hoststate.TableNeigh, a, hoststate.Val{MAC: e.MAC, Flags: NeighFlags})
	}
	return routeRows(buf, e.VNI, e.MAC, e.Routes)
}

// routeRows appends the rows of prefixes that are reached by way of a MAC.
func routeRows(buf []hoststate.Row, v overlay.VNI, via overlay.MAC, prefixes []netip.Prefix) []hoststate.Row {
	for _, p := range prefixes {
		buf = append(buf, hoststate.Row{Key: RouteKey(v, p), Val: hoststate.Val{MAC: via}})
	}
	return buf
}

// RouteKey is the key of the row of a prefix.
func RouteKey(v overlay.VNI, p netip.Prefix) hoststate.Key {
	return hoststate.Key{Table: hoststate.TableRoute, VNI: v, IP: p.Addr(), Bits: uint8(p.Bits())}
}
