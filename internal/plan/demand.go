package plan

import (
	"net/netip"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Groups are those that guests send to without being asked: all of the network
// (a gateway's announcements), all nodes of IPv4 and of IPv6, and all routers,
// whom a guest solicits when it comes up.
var Groups = [...]overlay.MAC{
	{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	{0x01, 0x00, 0x5e, 0x00, 0x00, 0x01},
	{0x33, 0x33, 0x00, 0x00, 0x00, 0x01},
	{0x33, 0x33, 0x00, 0x00, 0x00, 0x02},
}

// KnownRow says that a host that is told of a network on demand knows a MAC of
// it: one of an endpoint, of the router or of a group.
func KnownRow(v overlay.VNI, mac overlay.MAC) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableKnown, VNI: v, MAC: mac}}
}

// ListRow is one place in the list that frames to a group are copied along. In a
// network that is told on demand each group in use has its own: the list of all
// zeros would take the frames to MACs that nobody knows, too, and the kernel
// would not tell of them (kernel-facts 1).
func ListRow(v overlay.VNI, group overlay.MAC, vtep netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRepl, VNI: v, MAC: group, IP: vtep}, Val: hoststate.Val{Flags: ReplFlags}}
}

// RoutedStrangerRow says that what the host at vtep has routed into a network is
// taken, from addresses that this host does not know: it has endpoints in one
// that is routed to it, and told on demand.
func RoutedStrangerRow(v overlay.VNI, vtep netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRouted, VNI: v, IP: vtep}, Val: hoststate.Val{Flags: hoststate.Strangers}}
}

// StrangerRow says that frames from MACs that this host does not know are taken
// from the host at vtep, which has endpoints in the network.
func StrangerRow(v overlay.VNI, vtep netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableSource, VNI: v, IP: vtep}, Val: hoststate.Val{Flags: hoststate.Strangers}}
}
