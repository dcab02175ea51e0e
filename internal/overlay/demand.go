package overlay

import "net/netip"

// Distribution says how much of a network the hosts that serve it know.
type Distribution uint8

// The modes.
const (
	// DistributePush: all of its endpoints and ports.
	DistributePush Distribution = 0
	// DistributeOnDemand: what is theirs and what they ask for, see Want.
	DistributeOnDemand Distribution = 1
)

// String is the mode's word in documents.
func (d Distribution) String() string {
	switch d {
	case DistributePush:
		return "push"
	case DistributeOnDemand:
		return "on-demand"
	}
	return "unknown"
}

// Want is something of an on-demand network that a host wants to know, now and
// whenever it changes, until it wants it no more. Exactly one of Address, MAC
// and Name is set.
type Want struct {
	Network UID
	Address netip.Addr // the endpoint that has it
	MAC     MAC        // the endpoint and the port with it
	Name    string     // the port of that name
}

// Member says that a host has endpoints in an on-demand network, or, with Gone,
// that it has none any more.
type Member struct {
	Network, Host UID
	Gone          bool
}

// NextHop is where packets to a prefix beyond a network go.
type NextHop struct {
	Prefix  netip.Prefix // masked
	Network UID          // of the endpoint: the network itself, or one that it reaches
	MAC     MAC          // of the endpoint
}
