package overlay

import (
	"net/netip"
	"slices"
)

// DHCP says who tells a network's guests their addresses.
type DHCP uint8

// The modes.
const (
	// DHCPHost: each host tells its own guests, and no guest may.
	DHCPHost DHCP = 0
	// DHCPOwn: the network has servers and routers of its own among its
	// guests; hosts tell nothing.
	DHCPOwn DHCP = 1
)

// String is the mode's word in documents.
func (d DHCP) String() string {
	switch d {
	case DHCPHost:
		return "host"
	case DHCPOwn:
		return "own"
	}
	return "unknown"
}

// Tell is what the hosts of a network tell its guests besides their addresses
// and the MTU.
type Tell struct {
	DHCP   DHCP
	DNS    []netip.Addr // servers in order of preference, of both families
	Lease  uint32       // what the user asked for, in seconds; 0 means DefaultLease
	Routes []Route
}

// Route is a way to a prefix by way of a guest. Those that guests are told are of
// IPv4 (RFC 3442): a router advertisement names only ways through who sends it
// (RFC 4191 section 2.3).
type Route struct {
	Prefix netip.Prefix // masked
	Via    netip.Addr   // of the same family, in a subnet of the network, or of one of the domain
}

// DefaultLease is the time of a lease in seconds. A guest asks again after half
// of it, so that a change of the network has reached every guest within that
// time; its address never goes to another port meanwhile, however long it is.
const DefaultLease = 3600

// Limits of a lease in seconds. Below, guests would do little else than renew;
// above, nobody would live to see a change arrive.
const (
	MinLease = 60
	MaxLease = 365 * 24 * 3600
)

// Bounds of the lists of a Tell: a DHCP message that every client takes has
// room for about as much.
const (
	MaxDNS    = 8
	MaxRoutes = 16
)

// Seconds is the time of a lease in force.
func (t *Tell) Seconds() uint32 {
	if t.Lease == 0 {
		return DefaultLease
	}
	return t.Lease
}

// Equal reports whether guests are told the same.
func (t *Tell) Equal(u *Tell) bool {
	return t.DHCP == u.DHCP && t.Lease == u.Lease && slices.Equal(t.DNS, u.DNS) && slices.Equal(t.Routes, u.Routes)
}

// ServerMAC is whose name hosts speak in to their own guests: the same on every
// host and in every network, so that a guest which moves goes on with the one
// it knows. It is the gateways' in the networks of a domain, too, and so the
// inner source of what was routed; else it never leaves a host. No guest may
// have it.
var ServerMAC = MAC{0x02, 'c', 'u', 'l', 'v', 't'}
