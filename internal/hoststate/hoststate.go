// Package hoststate is a pure picture of what one host's kernel holds of the
// overlay: links, forwarding databases, neighbours, replication lists and the
// nftables sets of our own table. The kernel edge fills it, the plan says what
// it should be, and the agent's core asks for the operations that lie between.
//
// It knows nothing of netlink. Two edges implement it, the Linux one and the
// model kernel of tests, and both must agree with the same contract suite.
package hoststate

import (
	"net/netip"
	"time"

	"culvert/internal/overlay"
)

// Table is one kernel table that Culvert owns rows of.
type Table uint8

// WriteOrder is the order in which rows are written; they are deleted in the
// opposite one. Whose frames are taken comes before what makes such frames
// come, the FDBs before the neighbours, so that the proxy never answers for a
// MAC that cannot be sent to, and a port passes frames when all else stands.
var WriteOrder = [...]Table{
	TableVTEP, TableKnown, TableSource, TableRouted, TableFrom, TableRelayed, TableAlias, TableReach, TableFDB, TableMaster, TableRepl, TableNeigh, TableRoute, TableRelay, TableOwn, TablePort, TableMember, TableMark,
}

// The tables.
const (
	// TableVTEP is the set of outer addresses from which UDP to the VXLAN port
	// is taken (nftables, inet). Key: IP. VNI is 0.
	TableVTEP Table = 1
	// TableFDB is the VXLAN device's own FDB ("self"): MAC -> VTEP.
	TableFDB Table = 2
	// TableMaster is the bridge's FDB ("master"): MAC -> bridge port.
	TableMaster Table = 3
	// TableRepl is the destination list of the all-zero FDB entry, or of the
	// group MAC: key MAC and IP, one row a VTEP.
	TableRepl Table = 4
	// TableNeigh is the VXLAN device's neighbour table: IP -> MAC.
	TableNeigh Table = 5
	// TableMember is the set of bridge ports that may pass frames (nftables,
	// bridge), the VXLAN device among them. Key: Port. A device that joins one
	// of our bridges passes nothing to or from a member until it is in this set.
	TableMember Table = 6
	// TableMark is the set that says how far the logs had come that this host
	// acted upon (nftables, inet). Key: IP, see MarkKey; VNI is 0. It has one
	// element, two while it is moved, and no rule looks at it.
	TableMark Table = 7
	// TablePort is what the port program lets through on a bridge port. Key:
	// Port. Val: MAC, the one source address that it takes (more: TableOwn),
	// and the flags Open, CheckIP, CheckLocal, NoServers, Watch and Routed. A port
	// with the program and without this row passes nothing.
	TablePort Table = 8
	// TableOwn is what belongs to a port besides: a further MAC (Key: Port,
	// MAC) or an address (Key: Port, IP). It may send from these, and nobody
	// may claim them towards it, unless the address has the flag Shared. One with
	// the flag Router is hosts' own towards guests: it may not send from it, and
	// nobody but overlay.ServerMAC may claim it towards it.
	TableOwn Table = 9
	// TableSource is whose frames the underlay's program takes. Key: VNI, the
	// inner source MAC, and in IP the VTEP that may send for it. The zero MAC is
	// any: the VTEP is a foreign one of the network, or with the flag Strangers a
	// host that serves it.
	TableSource Table = 10
	// TableRelayed is for whom else it takes frames. Key: VNI, the inner
	// destination MAC, and in IP the VTEP that relays to it, whatever the
	// source: the host that it moved from.
	TableRelayed Table = 11
	// TableRelay is what the VXLAN device's program sends out again at once:
	// frames that still arrive here for a MAC that has moved. Key: VNI, MAC.
	// The device's FDB says where to.
	TableRelay Table = 12
	// TableReach is what of other networks the guests of this one may reach by
	// way of the gateway, and by no other. Key: VNI and IP, a destination that the
	// port program lets a packet to overlay.ServerMAC have, and that nobody may
	// ask the neighbour of; or VNI and MAC, of an entry of TableFDB that leads
	// into another network, to which no frame may be addressed.
	TableReach Table = 13
	// TableKnown is the MACs that the tables of an on-demand network have an
	// entry for, this host's own and groups among them. Key: VNI, MAC. Frames
	// from such a MAC are taken as TableSource says and no other way; frames of a
	// guest to any other cost its port's bucket.
	TableKnown Table = 14
	// TableRoute is prefixes beyond all networks. Key: VNI, IP and Bits, masked.
	// Val: MAC, to which the port program readdresses a packet to
	// overlay.ServerMAC whose destination TableReach has not, the longest prefix
	// first; if TableReach has that MAC, so that the packet leaves its network,
	// from overlay.ServerMAC and not the guest's. The zero MAC: to nobody, the
	// packet is handed up as one without a prefix is.
	TableRoute Table = 15
	// TableAlias is by what other MAC an endpoint here is sent to from other
	// networks. Key: VNI and the other MAC. Val: MAC, its own.
	TableAlias Table = 16
	// TableFrom is whose address one is that a routed frame has as its inner
	// source. Key: VNI and IP. Val: MAC.
	TableFrom Table = 17
	// TableRouted is by whose hosts frames may come that were routed into a
	// network, which all have overlay.ServerMAC as their source. Key: VNI, IP of
	// the VTEP, and MAC; or the zero MAC, with the flag Strangers. Such a frame is
	// taken from a VTEP if it is an IP packet and its inner source
	//
	//   - has a row of TableFrom, and that one's MAC has a row here; or
	//   - has none, and there is a row of strangers here; or
	//   - has none, and the longest prefix of TableRoute that it is in leads to a
	//     MAC that has a row here.
	//
	// Or else as any frame may be that TableSource has no row for with its MAC: by
	// TableRelayed, or from a foreign VTEP.
	TableRouted Table = 18
)

// String is the table's name in dumps.
func (t Table) String() string {
	switch t {
	case TableVTEP:
		return "vtep"
	case TableFDB:
		return "fdb"
	case TableMaster:
		return "master"
	case TableRepl:
		return "repl"
	case TableNeigh:
		return "neigh"
	case TableMember:
		return "member"
	case TableMark:
		return "mark"
	case TablePort:
		return "port"
	case TableOwn:
		return "own"
	case TableSource:
		return "source"
	case TableRelayed:
		return "relayed"
	case TableRelay:
		return "relay"
	case TableReach:
		return "reach"
	case TableKnown:
		return "known"
	case TableRoute:
		return "route"
	case TableAlias:
		return "alias"
	case TableFrom:
		return "from"
	case TableRouted:
		return "routed"
	}
	return "unknown"
}

// Key is a row's identity in the kernel.
type Key struct {
	Table Table
	Bits  uint8 // TableRoute: length of the prefix
	VNI   overlay.VNI
	MAC   overlay.MAC // TableFDB, TableMaster, TableRepl, TableOwn, TableSource, TableRelayed, TableRelay, TableReach, TableKnown, TableAlias, TableRouted
	IP    netip.Addr  // TableNeigh, TableRepl, TableVTEP, TableOwn, TableSource, TableRelayed, TableReach, TableRoute, TableFrom, TableRouted; TableMark: see MarkKey
	Port  int32       // TableMember, TablePort, TableOwn: ifindex
}

// Flags are the kernel's properties of a row that must be as planned.
type Flags uint16

// Row flags. The bridge keeps NTF_EXT_LEARNED for ever once it was set and
// gives such an entry no state; so in TableMaster Extern is read, together with
// Static, on the VXLAN device's port only.
const (
	// Static: NUD_NOARP, never ages (FDB).
	Static Flags = 1 << iota
	// Extern: NTF_EXT_LEARNED (FDB).
	Extern
	// Sticky: NTF_STICKY, does not move when seen on another port (master).
	Sticky
	// Permanent: NUD_PERMANENT (neighbour, all-zero FDB entry).
	Permanent
	// Ours: the neighbour carries our protocol number (NDA_PROTOCOL).
	Ours
	// Router: NTF_ROUTER. In TableFDB it makes the VXLAN device look the
	// destination address of a packet up among its neighbours, and send it to
	// that MAC instead (route short circuit). In TableOwn: the address is the
	// router's.
	Router
	// Open: the port passes traffic (TablePort).
	Open
	// CheckIP: it may send only from addresses of its own (TablePort).
	CheckIP
	// NoServers: it may not answer DHCP or send router advertisements
	// (TablePort).
	NoServers
	// Watch: any frame that the guest sends is handed up, not only those that
	// name addresses: it is awaited (TablePort).
	Watch
	// Half: the set has a row of TableVTEP and the program's map has not. It is
	// read to notice, never planned.
	Half
	// CheckLocal: with CheckIP, a link-local address must be its own as any
	// other must (TablePort). Without, it may send from any: a guest is free to
	// choose one (RFC 7217).
	CheckLocal
	// Shared: others may claim the address towards the port, too (TableOwn).
	Shared
	// Routed: what it sends to overlay.ServerMAC is sent on if TableReach has its
	// destination, with one hop less to go, and handed up else. To MACs and
	// neighbours that TableReach names it sends nothing (TablePort).
	Routed
	// Strangers: of a row of TableSource with the zero MAC: only from MACs that
	// TableKnown has not, overlay.ServerMAC not among them. Of a row of TableRouted:
	// only from addresses that TableFrom has not.
	Strangers
	// Demand: what it sends to MACs that TableKnown has not, and asks of one MAC
	// about neighbours, costs a bucket, and frames to a group that it has not are
	// handed up (TablePort).
	Demand
)

// Val is what a row says. Which fields count depends on the table.
type Val struct {
	Dst   netip.Addr  // TableFDB: outer address; invalid elsewhere
	MAC   overlay.MAC // TableNeigh, TablePort, TableRoute, TableAlias, TableFrom
	Port  int32       // TableMaster: ifindex of the bridge port; 0 means the network's VXLAN device
	MTU   uint16      // TableReach with an IP: bytes that a packet to it may have; 0: any
	VNI   overlay.VNI // TableFDB: the network that the frame is sent into; 0, and no other number: the device's own
	Flags Flags
}

// Row is a key with its value.
type Row struct {
	Key Key
	Val Val
}

// LinkKind tells the links that matter here apart.
type LinkKind uint8

// Kinds of links.
const (
	LinkOther  LinkKind = 0 // a VM's tap or veth, or anything else
	LinkBridge LinkKind = 1
	LinkVXLAN  LinkKind = 2
)

// PortState is a bridge port's STP state (include/uapi/linux/if_bridge.h).
type PortState uint8

// Port states; only StateForwarding passes frames.
const (
	StateDisabled   PortState = 0
	StateListening  PortState = 1
	StateLearning   PortState = 2
	StateForwarding PortState = 3
	StateBlocking   PortState = 4
)

// Link is one network device as read from the kernel. Links that are neither
// ours nor a port of one of our bridges are not reported.
type Link struct {
	Index    int32
	Name     string
	Kind     LinkKind
	VNI      overlay.VNI // of the name, for our bridge and VXLAN devices; 0 otherwise
	Master   int32       // ifindex of the bridge it is a port of; 0 if none
	MTU      uint32
	MAC      overlay.MAC
	Up       bool
	IPv6     bool     // disable_ipv6 is 0: wanted on VXLAN devices (kernel-facts 10), unwanted elsewhere
	Alias    string   // IFLA_IFALIAS
	AltNames []string // sorted

	// Bridge ports.
	Peer          string // of one end of a veth pair: the other's name, if it is in this namespace
	State         PortState
	Flood, Learns bool // IFLA_BRPORT_UNICAST_FLOOD, IFLA_BRPORT_LEARNING
	// Guarded: our programs of this version stand on it, at ingress and
	// egress of a VM port, at ingress of a VXLAN device.
	Guarded bool

	// Bridges.
	Isolated bool // our nftables netdev chain with policy drop stands on it

	// VXLAN devices.
	VXVNI   overlay.VNI // the device's VNI, which must equal VNI
	Local   netip.Addr
	UDPPort uint16
	DF      overlay.DF
	DOVE    bool // proxy, l2miss, l3miss, rsc all set and learning off
}

// Device is what a network needs on a host.
type Device struct {
	VNI     overlay.VNI
	Local   netip.Addr // our VTEP
	UDPPort uint16     // 4789 (RFC 7348 section 5)
	MTU     uint32     // of bridge and VXLAN device, bytes
	DF      overlay.DF
	Alias   string // see DeviceAlias
	AltName string // "<tenant>.<network>", on the bridge
	// Misses: frames to MACs that the bridge does not know reach the VXLAN
	// device, so that the kernel tells of them (Miss): flood is on at its port.
	Misses bool
}

// State is all that was read. Rows covers only the scopes that were read.
type State struct {
	Links []Link // sorted by Index
	Rows  map[Key]Val
	// Base reports that our nftables tables, chains and rules stand as
	// OpBase makes them, and the source check on every underlay device.
	Base bool
	// Strangers counts datagrams to the VXLAN port from no known VTEP,
	// dropped by TableVTEP's rule; valid when links were read.
	Strangers uint64
	// Drops counts what the programs dropped since they were loaded; valid
	// when links were read.
	Drops map[DropKey]uint64
	// Idle is for how long the VXLAN device has not looked an entry up, of the
	// rows of TableFDB; of networks whose device has Misses alone.
	Idle map[Key]time.Duration
	// Cost is the processor time that the reading took; 0 if not known. On a
	// busy machine it is a small part of the time that passed.
	Cost time.Duration
}

// Scope says what to read. The zero Scope reads nothing.
type Scope struct {
	Links bool        // all links that matter, Base, TableVTEP, TableMember, TableMark, TablePort, TableOwn
	VNI   overlay.VNI // the other tables of this network's devices
}

// Doorbell says that something changed. It is a reason to look, never the
// truth itself; Row lets the core recognise the echo of its own writes to both
// FDBs and the replication list. Own writes to other tables do not ring.
type Doorbell struct {
	Overflow bool        // events were lost: anything may have changed
	Links    bool        // a link or an nftables object of ours changed
	VNI      overlay.VNI // with Row: the network whose table changed
	Row      Row         // what the event said
	Deleted  bool        // the event was a deletion of Row
}

// Miss says that a guest's frame met an entry that is not there: a unicast MAC
// (L2MISS) or an address (L3MISS), the other of the two is zero. It may be lost,
// doubled or late, and it does not say who sent the frame.
type Miss struct {
	VNI overlay.VNI
	MAC overlay.MAC
	IP  netip.Addr
}
