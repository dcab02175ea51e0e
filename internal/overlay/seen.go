package overlay

import "net/netip"

// Count is a number of frames and the reason why they were dropped, or not
// read: a stable name in lower case.
type Count struct {
	Reason string
	N      uint64
}

// Seen is what a guest was seen to do at the port of its host: it is shown,
// and nothing is decided on it.
type Seen struct {
	Network UID
	MAC     MAC
	Groups  []netip.Addr // multicast addresses that it listens to, sorted
	Drops   []Count      // frames from and to it that were dropped, by reason; sorted
}

// Refused is something that a guest is denied on its host.
type Refused struct {
	Network UID
	MAC     MAC
	Address netip.Addr // invalid: it is denied to be here at all
	Device  string
	Reason  string
}

// AddressRefusal is an address that an admitted endpoint may not have.
type AddressRefusal struct {
	Address netip.Addr
	Reason  string
}
