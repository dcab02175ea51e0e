package api

// Code is the stable name of one reason to refuse, as printed in brackets
// after an error. A code is never reused for another reason.
type Code string

// The codes of the manager's rules. What each means, its exit code and its
// cure stand in the table Codes.
const (
	CodeField        Code = "CV0101" // a field's value is not allowed
	CodeLater        Code = "CV0102" // known word of a later release
	CodeNotFound     Code = "CV0110" // no such object
	CodeExists       Code = "CV0111" // exists with other content
	CodeImmutable    Code = "CV0112" // this field cannot be changed
	CodeQuota        Code = "CV0113" // the tenant's quota is used up
	CodeStale        Code = "CV0114" // it has changed since the document was read
	CodeVNIInUse     Code = "CV0120" // the VNI is another network's
	CodeVNIWaits     Code = "CV0121" // the VNI is in quarantine
	CodeOverlap      Code = "CV0130" // subnets of a network, or of a domain, overlap
	CodeOutside      Code = "CV0131" // the address is in no subnet of the network
	CodeAddressInUse Code = "CV0132" // the address is another port's, the gateway, a host's, or taken in a bridged network
	CodeMACInUse     Code = "CV0133" // the MAC is another port's in this network, or in one that is bridged with it
	CodeSubnetFull   Code = "CV0134" // no free address
	CodeUndeclared   Code = "CV0136" // a bridged network takes undeclared endpoints
	CodeBridgeMTU    Code = "CV0137" // bridged networks have different MTUs
	CodeTwoModes     Code = "CV0138" // two networks are routed to each other and bridged
	CodeConsent      Code = "CV0139" // the domain does not let networks of the tenant in
	CodeNextHop      Code = "CV0140" // no port has the address by way of which a route goes
	CodeHasPorts     Code = "CV0142" // a network with ports is not deleted
	CodeHasNetworks  Code = "CV0143" // a tenant that owns something is not deleted
	CodeNoHost       Code = "CV0144" // a host that is named does not exist
	CodeBlocked      Code = "CV0145" // the network is being deleted
	CodeNotInDomain  Code = "CV0146" // a policy names a network that is not in its domain
	CodeHasPolicies  Code = "CV0147" // policies name the network
	CodeDomainInUse  Code = "CV0148" // a domain with networks or policies is not deleted
	CodeHasRoutes    Code = "CV0149" // routes go by way of the port
	CodeUnknown      Code = "CV0150" // whether it was done is not known: ask again
	CodeNotDecider   Code = "CV0151" // no manager decides just now
	CodeHostInUse    Code = "CV0152" // a network has endpoints on a host that it is not to select any more
	CodeNotAllowed   Code = "CV0160" // the caller may not
)
