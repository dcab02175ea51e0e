package hoststate

// Heard is a frame that a port program handed up: ARP, neighbour discovery,
// RARP, DHCP, IGMP and MLD, packets to the router that were not sent on, and the
// first frames of a device that no port claims. It is a copy; the frame itself
// went its way, or was dropped.
type Heard struct {
	Port    int32  // ifindex of the bridge port
	ToGuest bool   // seen on its way to the guest (DHCP answers only)
	Dropped bool   // the program dropped it
	Frame   []byte // from the Ethernet header on, at most MaxHeard bytes
	Length  int    // bytes of the whole frame
	At      int64  // when the program saw it, Unix nanoseconds
}

// MaxHeard bounds what is copied of a frame, in bytes: a DHCP message of the
// size that every client must take (RFC 2131 section 2: 576 with its headers).
const MaxHeard = 590

// DropReason says why a program dropped a frame.
type DropReason uint8

// Reasons, as the port program counts them. The numbers are the program's.
const (
	DropUnclaimed  DropReason = 1  // the port has no row, or is not open
	DropSourceMAC  DropReason = 2  // from the guest: not a MAC of the port's
	DropSourceIP   DropReason = 3  // from the guest: not an address of the port's (IP, ARP, NA)
	DropServer     DropReason = 4  // from the guest: a DHCP answer or a router advertisement
	DropStorm      DropReason = 5  // from the guest: more broadcast and multicast than its bucket holds
	DropShort      DropReason = 6  // cut in a header
	DropOwnAddress DropReason = 7  // to the guest: somebody claims an address of the port's own
	DropNotForPort DropReason = 8  // to the guest: unicast for another MAC
	DropPuntLimit  DropReason = 9  // not a drop of the frame: it was not handed up
	DropVTEP       DropReason = 10 // underlay: from no VTEP of the fleet
	DropVNI        DropReason = 11 // underlay: of a network that is not served here
	DropMalformed  DropReason = 12 // underlay: VXLAN header or inner frame is not one; to the guest: an advertisement to nobody
	DropSource     DropReason = 13 // underlay: the VTEP may not send for that MAC
	DropFragment   DropReason = 14 // underlay: a first fragment without the inner header
	DropRouter     DropReason = 15 // from the guest: a packet to the router that it does not send on; the agent answers
	DropNetwork    DropReason = 16 // from the guest: for a MAC of another network, or about an address there, and not by way of the router
	DropUnknown    DropReason = 17 // from the guest: to MACs that the tables have not, more than its bucket holds
	// DropReasons is how many values there are: counters are arrays of it.
	DropReasons = 18
)

// String is the reason's word in metrics and dumps.
func (d DropReason) String() string {
	names := [DropReasons]string{
		"none", "unclaimed", "source-mac", "source-ip", "server", "storm", "short", "own-address", "not-for-port", "punt-limit",
		"unknown-vtep", "unserved-vni", "malformed", "foreign-source", "fragment", "router", "other-network", "unknown-destination",
	}
	if d < DropReasons {
		return names[d]
	}
	return "unknown"
}

// DropKey is one counter: of a bridge port, or with Port 0 of the underlay.
type DropKey struct {
	Port   int32
	Reason DropReason
}
