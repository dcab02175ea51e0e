package overlay

import (
	"cmp"
	"net/netip"
	"slices"
)

// Kind tells records apart, in the store, on the wire and in a log.
type Kind uint8

// The kinds of records. Numbers are wire and store format: never reuse one.
const (
	KindTenant   Kind = 1
	KindNetwork  Kind = 2
	KindPort     Kind = 3
	KindHost     Kind = 4
	KindEndpoint Kind = 5
	KindSession  Kind = 6 // internal: never in a log or the API
	KindFloor    Kind = 7 // internal: never in a log or the API
	KindDomain   Kind = 8
	KindPolicy   Kind = 9
	KindGateway  Kind = 10
)

// String is the kind's noun in the API, in lower case.
func (k Kind) String() string {
	switch k {
	case KindTenant:
		return "tenant"
	case KindNetwork:
		return "network"
	case KindPort:
		return "port"
	case KindHost:
		return "host"
	case KindEndpoint:
		return "endpoint"
	case KindSession:
		return "session"
	case KindFloor:
		return "floor"
	case KindDomain:
		return "domain"
	case KindPolicy:
		return "policy"
	case KindGateway:
		return "gateway"
	}
	return "unknown"
}

// Meta is what every declared record carries.
type Meta struct {
	UID    UID
	Name   string
	Tenant UID // zero for kinds that no tenant owns
	Labels []Label
	// Cause says who made the last change and by what ("operator admin: port
	// create"), so that every kernel entry has a reason (invariant 11).
	Cause string
	// Changed is when, in Unix nanoseconds, for people; it orders nothing.
	Changed int64
}

// Label is one key and value; labels are kept sorted by key.
type Label struct{ Key, Value string }

// Tenant owns networks and ports.
type Tenant struct {
	Meta
	MaxNetworks      uint32 // quota; 0 means the default, DefaultMaxNetworks
	MaxPorts         uint32 // quota over all networks; 0 means DefaultMaxPorts
	MaxPortAddresses uint32 // addresses a port; 0 means DefaultMaxPortAddresses
}

// MaxPre bounds on how many hosts an endpoint is pre-associated at once. A
// migration has one; a second is one that was tried elsewhere and whose end
// has not been noticed yet.
const MaxPre = 4

// Default quotas of a tenant.
const (
	DefaultMaxNetworks      = 1000
	DefaultMaxPorts         = 100_000
	DefaultMaxPortAddresses = 16
)

// Flood says how a network treats broadcast, unknown unicast and multicast.
type Flood uint8

// Flood modes. FloodMulticast is refused by name until its issue builds it.
const (
	FloodHER  Flood = 0 // head-end replication: one copy a VTEP
	FloodNone Flood = 1
)

// Admission says which endpoints a network takes.
type Admission uint8

// Admission modes.
const (
	// AdmitDeclared: declared ports only, with the MAC and addresses they have.
	AdmitDeclared Admission = 0
	// AdmitLearn: also what a device that is no declared port is heard to have.
	AdmitLearn Admission = 1
	// AdmitDHCP: as AdmitLearn, but addresses only from leases.
	AdmitDHCP Admission = 2
)

// String is the mode's word in documents.
func (a Admission) String() string {
	switch a {
	case AdmitDeclared:
		return "declared"
	case AdmitLearn:
		return "learn"
	case AdmitDHCP:
		return "dhcp"
	}
	return "unknown"
}

// DF says what the outer IPv4 header's don't-fragment bit is (ip-link(8)).
type DF uint8

// DF modes.
const (
	DFSet     DF = 0
	DFInherit DF = 1
)

// Subnet is one prefix of a network with its gateway address.
type Subnet struct {
	Prefix  netip.Prefix // masked
	Gateway netip.Addr   // inside Prefix; invalid means none
}

// Network is one VXLAN segment.
type Network struct {
	Meta
	// TenantName is its tenant's name, which never changes: agents know no
	// tenants, and devices are named after it.
	TenantName string
	WantVNI    VNI // what the user asked for, 0 if allocated
	VNI        VNI // in force
	Subnets    []Subnet
	WantMTU    uint16 // bytes; 0 means derived from the underlay's 1500
	MTU        uint16 // bytes in force, told to guests
	DF         DF
	Flood      Flood
	Hosts      []string // names of hosts that may serve it, sorted; empty means all
	Blocked    bool     // being deleted: its ports pass no traffic any more
	Admission  Admission
	Tell       Tell // what guests are told
	// Foreign are tunnel end points of this network that no agent owns, sorted;
	// at most MaxForeign. They may send frames with any inner source, in this
	// network alone, and have their copy of what it floods.
	Foreign []netip.Addr
	// Domain is whose hosts route for it: they answer for its gateways, and send
	// on what a policy of the domain lets through. Zero if it is in none.
	Domain UID
	// Reach are the networks that its guests may send to by way of the gateway,
	// From those whose guests may send to it so; both sorted, and both follow
	// from the domain's policies.
	Reach, From []UID
	// Bridge are the networks that a policy joins to it by layer 2; sorted. It
	// is in the Bridge of each of them.
	Bridge []UID
	// Routes are prefixes beyond all networks and the endpoint that packets to
	// them go to; sorted by prefix, each once. They follow from the domain's
	// routes and from gateways.
	Routes []NextHop
	// Distribution says how much of the network its hosts know.
	Distribution Distribution
}

// Domain is networks between which hosts route: of its own tenant, and of others
// that it names and whose networks name it.
type Domain struct {
	Meta
	Tenants []UID // others whose networks may be in it; sorted, at most MaxDomainTenants
	// Routes are ways to what is in no network of it, by way of declared ports of
	// its networks; sorted by prefix, each once, at most MaxNextHops.
	Routes []Route
}

// Policy opens the way from one network of a domain to another. What no policy
// opens is closed.
type Policy struct {
	Meta
	Domain   UID
	From, To UID  // networks
	Both     bool // the way back, too
	// Bridged: the two are joined by layer 2 instead of being routed to each
	// other; always with Both.
	Bridged bool
}

// MaxForeign bounds the foreign tunnel end points of a network: each costs a
// copy of every broadcast.
const MaxForeign = 32

// SelectsHost reports whether the host of that name may serve the network.
func (n *Network) SelectsHost(name string) bool {
	if len(n.Hosts) == 0 {
		return true
	}
	_, ok := slices.BinarySearch(n.Hosts, name)
	return ok
}

// Port is a declared attachment: a VM's NIC in a network.
type Port struct {
	Meta
	Network       UID
	WantMAC       MAC // zero if allocated
	MAC           MAC // in force
	WantAddresses []netip.Addr
	Addresses     []netip.Addr // in force, sorted
	VM            string       // name of the VM, for people and the hypervisor's hook
	Hosts         []string     // names of hosts it may appear on, sorted; empty means all
	// Shared are addresses that it may hold besides its own, as other ports may
	// that declare them (VRRP, RFC 9568), sorted; at most MaxShared. Who holds
	// one is decided by who announced it last, and stands in the endpoint.
	Shared []netip.Addr
	// AddressCheck: it may send from Addresses and Shared alone, and from the
	// link-local addresses that follow from its MACs (EUI64LinkLocal).
	AddressCheck bool
	// Gateway is what it is a leg of; zero: it is a guest's.
	Gateway UID
}

// MaxShared bounds the shared addresses of a port.
const MaxShared = 8

// IsVirtual reports whether m is a virtual router's address (RFC 9568 section
// 7.3: 00:00:5e:00:01 for IPv4, :02 for IPv6, then the router's number): of
// nobody's card, and sent from by whichever port holds a shared address.
func (m MAC) IsVirtual() bool {
	return m[0] == 0 && m[1] == 0 && m[2] == 0x5e && m[3] == 0 && (m[4] == 1 || m[4] == 2) && m[5] != 0
}

// Host is a machine with an agent and a VTEP.
type Host struct {
	Meta
	VTEP netip.Addr // outer address; invalid until the agent reported it
	// MachineID is machine-id(5) as told at join: it lets the same machine join
	// again under its name, and nobody else.
	MachineID string
	// Dead: it was found dead, and no entry points to it. What is bound to it
	// stays bound, until it returns or somebody else has it.
	Dead bool
}

// Session is the small record of one agent's stream. It has a key of its own,
// so that an agent's restart is no news for the other hosts.
type Session struct {
	Host   UID
	N      uint64 // counts up for ever; messages of a lower number are void
	BootID string
	// Echo: the host's tunnel end point was seen to answer echo requests while
	// its agent was connected. Only of such a host does silence say anything.
	Echo bool
}

// Floor says how far the tombstones of a network's log have been thrown away:
// a reader that is below it needs a full pass.
type Floor struct {
	Network UID // zero for the fleet log
	Rev     Rev
}

// Evidence says what made an agent claim an endpoint. Higher ranks win a
// dispute (design 3.1).
type Evidence uint8

// Ranks of evidence.
const (
	EvidenceNone       Evidence = 0
	EvidenceFrame      Evidence = 10 // a bare frame
	EvidenceARP        Evidence = 20 // ARP, neighbour discovery or RARP
	EvidenceDHCP       Evidence = 30 // a lease that a server confirmed
	EvidenceDevice     Evidence = 50 // a device that names its port, forwarding in the bridge
	EvidenceHypervisor Evidence = 60 // the hypervisor says that the guest runs here
)

// String is the evidence's word in the API.
func (e Evidence) String() string {
	switch e {
	case EvidenceFrame:
		return "frame"
	case EvidenceARP:
		return "arp"
	case EvidenceDHCP:
		return "dhcp"
	case EvidenceDevice:
		return "device"
	case EvidenceHypervisor:
		return "hypervisor"
	}
	return "none"
}

// Endpoint is where a (network, MAC) is now. Its address on the underlay is
// the host's VTEP: records refer, they do not repeat.
type Endpoint struct {
	Network UID
	MAC     MAC
	Port    UID // declared port; zero if it is undeclared
	Host    UID
	// Pre are the hosts on which it is pre-associated (RFC 8394 section 3.1):
	// its device is there and it may come, but it runs on Host still. The newest
	// is the last; at most MaxPre.
	Pre []UID
	// From is the host that it moved from with this binding, which relays
	// what still reaches it; zero if it did not move.
	From      UID
	Addresses []netip.Addr // sorted
	Evidence  Evidence
	Cause     string
	Since     int64 // Unix nanoseconds, for people
}

// SortAddrs sorts and de-duplicates a in place and returns it.
func SortAddrs(a []netip.Addr) []netip.Addr {
	slices.SortFunc(a, netip.Addr.Compare)
	return slices.Compact(a)
}

// SortLabels sorts l by key in place and returns it.
func SortLabels(l []Label) []Label {
	slices.SortFunc(l, func(a, b Label) int { return cmp.Compare(a.Key, b.Key) })
	return l
}

// DefaultMTU is what guests get over an underlay of 1500 bytes with an outer
// IPv4 header: 1500 - 20 (IP) - 8 (UDP) - 8 (VXLAN) - 14 (inner Ethernet).
const DefaultMTU = 1450

// Limits of a network's MTU in bytes: IPv6 needs 1280 inside (RFC 8200
// section 5); a VXLAN device takes at most 65535 - 50.
const (
	MinMTU = 1280
	MaxMTU = 65485
)

// Record is any of *Tenant, *Network, *Port, *Host, *Endpoint, *Session,
// *Floor, *Domain, *Policy and *Gateway. A record that has been published is never
// changed; a change is a new record.
type Record interface {
	// Kind tells which of them it is.
	Kind() Kind
}

// Kind is KindTenant.
func (*Tenant) Kind() Kind { return KindTenant }

// Kind is KindNetwork.
func (*Network) Kind() Kind { return KindNetwork }

// Kind is KindPort.
func (*Port) Kind() Kind { return KindPort }

// Kind is KindHost.
func (*Host) Kind() Kind { return KindHost }

// Kind is KindEndpoint.
func (*Endpoint) Kind() Kind { return KindEndpoint }

// Kind is KindSession.
func (*Session) Kind() Kind { return KindSession }

// Kind is KindFloor.
func (*Floor) Kind() Kind { return KindFloor }

// Kind is KindDomain.
func (*Domain) Kind() Kind { return KindDomain }

// Kind is KindPolicy.
func (*Policy) Kind() Kind { return KindPolicy }
