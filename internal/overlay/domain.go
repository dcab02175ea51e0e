package overlay

// Bounds of domains. What a host has to know for a network grows with the
// networks that policies open to it.
const (
	MaxDomains        = 100  // of a tenant
	MaxDomainNetworks = 1000 // of a domain
	MaxDomainTenants  = 1    // besides its own, whose networks may be in a domain
	MaxPolicies       = 1000 // of a domain, and so of the networks in Network.Reach and From
	MaxNextHops       = 256  // of a network, see Network.Routes
)
