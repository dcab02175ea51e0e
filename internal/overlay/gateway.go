package overlay

import (
	"net/netip"
	"slices"
)

// Gateway is a domain's way out, on one of its hosts at a time.
type Gateway struct {
	Meta
	TenantName string   // see Network
	Domain     UID      // whose networks it serves
	Hosts      []string // names of those that may have it, in order of preference
	Uplink     string   // name of their device on the outside network
	// Addresses are its own outside, each with its prefix there; sorted.
	Addresses []netip.Prefix
	NextHops  []netip.Addr // outside, at most one a family; sorted
	// SNAT are the addresses outside that guests without a floating one send
	// from, IPv4; sorted. Empty: its own first one.
	SNAT     []netip.Addr
	Floating []Floating // sorted by Outside
	Forwards []Forward  // sorted by Outside, Protocol and Port
	Networks []UID      // that it serves, sorted; empty: all of the domain
	// Legs are its ports, one a network that it serves; sorted by network.
	Legs []Leg
	// Active is the host that has it; zero: none was ready yet.
	Active UID
}

// Floating is an address outside that is one guest's, both ways.
type Floating struct{ Outside, Inside netip.Addr } // of one family

// Forward is a port outside that is one guest's.
type Forward struct {
	Protocol uint8 // IANA's number: 6 or 17
	Outside  netip.Addr
	Port     uint16
	Inside   netip.Addr // of the family of Outside
	ToPort   uint16
}

// Leg is a gateway's port in one network.
type Leg struct {
	Network   UID
	Port      string // its name; its tenant is the network's
	MAC       MAC
	Addresses []netip.Addr // sorted
}

// GatewaySpec is what a user may say of a gateway.
type GatewaySpec struct {
	Domain    string // name within the tenant
	Hosts     []string
	Uplink    string
	Addresses []netip.Prefix
	NextHops  []netip.Addr
	SNAT      []netip.Addr
	Floating  []Floating
	Forwards  []Forward
	Networks  []string // sorted; empty: all of the domain
}

// GatewayState is how far a gateway is on one host.
type GatewayState struct {
	Gateway UID
	Ready   bool   // it may be active here
	Active  bool   // its addresses are up here
	Step    string // that failed; empty: none
	Reason  string // why
}

// Bounds of gateways.
const (
	MaxGateways        = 100 // of a tenant
	MaxGatewayHosts    = 16
	MaxGatewaySNAT     = 64
	MaxGatewayFloating = 256
	MaxGatewayForwards = 256
	MaxGatewayLegs     = 256
)

// Kind is KindGateway.
func (*Gateway) Kind() Kind { return KindGateway }

// Outside are all addresses that the gateway has on the outside network; sorted.
func (g *Gateway) Outside() []netip.Addr {
	var out []netip.Addr
	for _, p := range g.Addresses {
		out = append(out, p.Addr())
	}
	out = append(out, g.SNAT...)
	for _, f := range g.Floating {
		out = append(out, f.Outside)
	}
	for _, f := range g.Forwards {
		out = append(out, f.Outside)
	}
	return SortAddrs(out)
}

// Own is its first address of a family outside; invalid if it has none.
func (g *Gateway) Own(v4 bool) netip.Addr {
	for _, p := range g.Addresses {
		if p.Addr().Is4() == v4 {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// LeadsTo reports whether it has a way out for a family.
func (g *Gateway) LeadsTo(v4 bool) bool {
	return g.Own(v4).IsValid() && slices.ContainsFunc(g.NextHops, func(a netip.Addr) bool { return a.Is4() == v4 })
}
