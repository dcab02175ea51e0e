package packet

import (
	"net/netip"

	"culvert/internal/overlay"
)

// Direction says who sent a frame that was seen on a guest's port.
type Direction uint8

// The two directions.
const (
	FromGuest Direction = iota
	ToGuest
)

// Kind is what a frame says.
type Kind uint8

// The kinds of facts. Which fields of a Fact one fills is said behind it; Src
// and Dst are always filled. A field that is not named is zero.
const (
	NoFact           Kind = iota
	Frame                 // nothing that is read here: its Src is alive
	ARPRequest            // IP is at MAC and asks for Target
	ARPReply              // IP is at MAC, as was asked by Target
	ARPProbe              // MAC asks whether Target is taken (RFC 5227 section 2.1.1)
	ARPAnnouncement       // IP is at MAC, by gratuitous request or reply (RFC 5227 sections 2.3, 3)
	RARPAnnouncement      // MAC is here: a hypervisor speaks for its guest (RFC 903's request reverse)
	NeighborSolicit       // IP (if valid) is at MAC and asks for Target
	NeighborProbe         // MAC asks whether Target is taken: duplicate address detection (RFC 4862)
	NeighborAdvert        // IP is at MAC; FlagRouter, FlagSolicited, FlagOverride, FlagLinkAddr
	RouterSolicit         // IP (if valid) looks for routers
	RouterAdvert          // IP says it routes for Seconds (0: not by default)
	GroupReport           // Groups lists what MAC joins and leaves; IP if valid
	GroupQuery            // IP asks for group members
	ToRouter              // IP sends to Target by way of the router: to overlay.ServerMAC
	DHCPDiscover          // MAC looks for a server; would like Target (if valid)
	DHCPRequest           // MAC asks for Target, from Server (if valid)
	DHCPDecline           // MAC found Target taken
	DHCPRelease           // MAC gives Target back
	DHCPInform            // MAC has Target and asks for parameters
	DHCPOffer             // Server offers IP to MAC for Seconds
	DHCPAck               // Server leases IP to MAC for Seconds; no IP: parameters alone
	DHCPNak               // Server refuses MAC
	DHCP6Solicit          // MAC looks for a server; would like Target (if valid)
	DHCP6Request          // MAC asks for Target (as for the three below)
	DHCP6Confirm
	DHCP6Renew
	DHCP6Rebind
	DHCP6Release     // MAC gives Target back
	DHCP6Decline     // MAC found Target taken
	DHCP6Information // MAC asks for parameters
	DHCP6Advertise   // an offer of IP to MAC for Seconds
	DHCP6Reply       // IP (if valid) is leased to MAC for Seconds; 0 ends the lease

	kinds = int(DHCP6Reply) + 1
)

var kindNames = [kinds]string{
	"none", "frame", "arp-request", "arp-reply", "arp-probe", "arp-announcement", "rarp-announcement",
	"neighbor-solicit", "neighbor-probe", "neighbor-advert", "router-solicit", "router-advert",
	"group-report", "group-query", "to-router",
	"dhcp-discover", "dhcp-request", "dhcp-decline", "dhcp-release", "dhcp-inform", "dhcp-offer", "dhcp-ack", "dhcp-nak",
	"dhcp6-solicit", "dhcp6-request", "dhcp6-confirm", "dhcp6-renew", "dhcp6-rebind", "dhcp6-release", "dhcp6-decline",
	"dhcp6-information", "dhcp6-advertise", "dhcp6-reply",
}

// String is the name for counters and logs: lower case and hyphens.
func (k Kind) String() string {
	if int(k) < kinds {
		return kindNames[k]
	}
	return "unknown"
}

// Flags of a fact.
type Flags uint8

// The first three are the bits of a neighbour advertisement (RFC 4861 section
// 4.4). FlagLinkAddr: it named its link-layer address. FlagMore: the frame
// lists more than the fact tells: addresses beside IP (ReadDHCP6), or groups
// behind the last one that is read.
const (
	FlagRouter Flags = 1 << iota
	FlagSolicited
	FlagOverride
	FlagLinkAddr
	FlagMore
)

// Fact is what one frame says. It is a comparable value and holds nothing of
// the frame. Addresses are invalid or unicast addresses that an interface can
// have; MAC is zero or unicast.
//
// A fact is a claim. Only DHCPAck and DHCP6Reply seen ToGuest come from a
// server, and only if no guest can send to another's port as one.
type Fact struct {
	Kind    Kind
	Flags   Flags
	Src     overlay.MAC // Ethernet source
	Dst     overlay.MAC // Ethernet destination
	MAC     overlay.MAC // whom it is about
	IP      netip.Addr  // the address that it says MAC has
	Target  netip.Addr  // the address that it asks about
	Server  netip.Addr  // DHCPv4 server identifier
	Seconds uint32      // lease or valid lifetime (all ones: for ever) or a router's
	XID     uint32      // DHCP transaction
}

// Announcement is what f tells to all unasked, if it does: a gratuitous ARP or
// an unsolicited neighbour advertisement that names its link-layer address.
func (f Fact) Announcement() (Announcement, bool) {
	tells := f.Kind == ARPAnnouncement ||
		f.Kind == NeighborAdvert && f.Flags&FlagLinkAddr != 0 && f.Flags&FlagSolicited == 0
	if !tells {
		return Announcement{}, false
	}
	return Announcement{IP: f.IP, MAC: f.MAC}, true
}

// unicast reports whether ip may be the address of one interface on a link.
func unicast(ip netip.Addr) bool {
	if ip.Is4() {
		b := ip.As4()
		return b[0] != 0 && b[0] != 127 && b[0] < 224 // 0/8 and 127/8: RFC 1122 section 3.2.1.3; 224 and above: groups and reserved
	}
	return ip.Is6() && !ip.Is4In6() && !ip.IsMulticast() && !ip.IsUnspecified() && !ip.IsLoopback()
}

func ip4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
func ip6(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }
