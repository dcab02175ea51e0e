package overlay

import "net/netip"

// Doc is one document that a user wrote, parsed and checked field by field,
// with names not yet resolved. At most one of the specs is set, as Kind says.
type Doc struct {
	Kind   Kind
	Tenant string // empty for KindTenant
	Name   string
	Labels []Label // sorted by key
	// Seen is the revision that the writer read the record at: it is written
	// only if the record still is at that one. Zero: whatever it is at.
	Seen    Rev
	Quotas  TenantSpec
	Network NetworkSpec
	Domain  DomainSpec
	Port    PortSpec
	Policy  PolicySpec
	Gateway GatewaySpec
}

// TenantSpec is what a user may say of a tenant; 0 means the default.
type TenantSpec struct {
	MaxNetworks, MaxPorts, MaxPortAddresses uint32
}

// NetworkSpec is what a user may say of a network.
type NetworkSpec struct {
	VNI     VNI // 0: allocate
	Subnets []Subnet
	MTU     uint16 // 0: derive
	DF      DF
	Flood   Flood
	Hosts   []string // sorted; empty: all

	Admission Admission
	Tell      Tell
	Foreign   []netip.Addr // sorted; see Network
	Domain    string       // name within the tenant, or TENANT/NAME; empty: none

	Distribution Distribution
}

// PortSpec is what a user may say of a port.
type PortSpec struct {
	Network   string       // name within the tenant
	MAC       MAC          // zero: allocate
	Addresses []netip.Addr // sorted; empty: allocate one a subnet
	VM        string
	Hosts     []string     // sorted; empty: all that the network selects
	Shared    []netip.Addr // sorted; see Port

	AddressCheck bool // see Port
}

// DomainSpec is what a user may say of a domain.
type DomainSpec struct {
	Tenants []string // names of others whose networks may be in it, sorted
	Routes  []Route  // sorted by prefix; see Domain
}

// PolicySpec is what a user may say of a policy.
type PolicySpec struct {
	Domain   string // name within the tenant
	From, To string // names of networks of the domain, or TENANT/NAME
	Both     bool
	Bridged  bool // see Policy; with Both
}
