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
func RouterRows(buf []hoststate.Row, v overlay.VNI, own netip.Addr) []hoststate.Row {
	return append(buf, hoststate.Row{
		Key: hoststate.Key{Table: hoststate.TableFDB, VNI: v, MAC: overlay.ServerMAC},
		Val: hoststate.Val{Dst: own, Flags: RouterFlags},
	}, hoststate.Row{
		Key: hoststate.Key{Table: hoststate.TableMaster, VNI: v, MAC: overlay.ServerMAC},
		Val: hoststate.Val{Flags: RemoteFlags},
	})
}

// Reached is an endpoint of one network that the guests of another may send to
// by way of their gateway.
type Reached struct {
	VNI   overlay.VNI // of the network whose guests may: the rows are of its devices
	Into  overlay.VNI // of its own network
	MAC   overlay.MAC
	Addrs []netip.Addr // that may be sent to
	// VTEP is the outer address of the host it is on, which may be this one.
	// Invalid if it is not known, or nobody may send to it: there are no rows.
	VTEP netip.Addr
}

// ReachedRows appends the rows of an endpoint in a network that is routed to
// its own, in the order in which they are to be added; they are to be removed
// in the opposite order. Reasons:
//
//   - before all else the port programs know what is only to be reached by way
//     of the gateway: neither a frame to its MAC, which the entry below would
//     carry across, nor a question after its address, which the proxy would
//     answer with it, comes from a guest. That the programs let packets to it
//     through a moment before the device can send them on costs those packets.
//   - the VXLAN device's entry leads into the endpoint's own network. On this
//     host that is by this host's own tunnel end point, which the kernel takes
//     without a packet on the wire; a destination of zero would feed it back to
//     the bridge that it came from.
//   - a neighbour for each address, last: the short circuit finds by it whom a
//     packet is for, and must not find a MAC that cannot be sent to.
//   - none of the bridge: no frame with that MAC may come to it.
func ReachedRows(buf []hoststate.Row, e Reached) []hoststate.Row {
	if !e.VTEP.IsValid() {
		return buf
	}
	buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableReach, VNI: e.VNI, MAC: e.MAC}})
	for _, a := range e.Addrs {
		buf = append(buf, hoststate.Row{Key: hoststate.Key{Table: hoststate.TableReach, VNI: e.VNI, IP: a}})
	}
	buf = append(buf, hoststate.Row{
		Key: hoststate.Key{Table: hoststate.TableFDB, VNI: e.VNI, MAC: e.MAC},
		Val: hoststate.Val{Dst: e.VTEP, VNI: e.Into, Flags: RemoteFlags},
	})
	for _, a := range e.Addrs {
		buf = append(buf, hoststate.Row{
			Key: hoststate.Key{Table: hoststate.TableNeigh, VNI: e.VNI, IP: a},
			Val: hoststate.Val{MAC: e.MAC, Flags: NeighFlags},
		})
	}
	return buf
}

// RoutedRow is the row by which a host takes frames that the host at vtep has
// routed into a network: their inner source is the router, whoever sent them.
func RoutedRow(v overlay.VNI, vtep netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableSource, VNI: v, MAC: overlay.ServerMAC, IP: vtep}}
}
