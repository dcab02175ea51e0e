package api

import (
	"net/netip"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// The Render functions show a record as a resource. Names that a record refers
// to by UID are passed in. Spec has what the user set and nothing that was
// allocated or is the default; status has what the record itself tells, and
// the caller adds what it has observed.

func renderMeta(m *overlay.Meta, tenant string, rev overlay.Rev) *culvertv1.Metadata {
	md := &culvertv1.Metadata{Name: m.Name, Tenant: tenant, Uid: m.UID.String(), Revision: rev.String()}
	if len(m.Labels) > 0 {
		md.Labels = make(map[string]string, len(m.Labels))
		for _, l := range m.Labels {
			md.Labels[l.Key] = l.Value
		}
	}
	return md
}

// RenderTenant shows a tenant; its usage is the caller's to add.
func RenderTenant(t *overlay.Tenant, rev overlay.Rev) *culvertv1.Tenant {
	r := &culvertv1.Tenant{ApiVersion: Version, Kind: "Tenant", Metadata: renderMeta(&t.Meta, "", rev),
		Spec: &culvertv1.TenantSpec{}, Status: &culvertv1.TenantStatus{}}
	if t.MaxNetworks != 0 || t.MaxPorts != 0 || t.MaxPortAddresses != 0 {
		r.Spec.Quotas = &culvertv1.TenantQuotas{Networks: t.MaxNetworks, Ports: t.MaxPorts, AddressesPerPort: t.MaxPortAddresses}
	}
	return r
}

// RenderNetwork shows a network of the tenant of that name, in the domain of
// that name (TENANT/NAME if it is another's) or, if it is empty, in none. Status has VNI, bridge, MTU, gateways
// and domain; counts, hosts and other networks are the caller's to add.
func RenderNetwork(n *overlay.Network, tenant, domain string, rev overlay.Rev) *culvertv1.Network {
	spec := &culvertv1.NetworkSpec{Vni: uint32(n.WantVNI), Mtu: uint32(n.WantMTU), Hosts: n.Hosts, ForeignVteps: addrStrings(n.Foreign), Domain: domain}
	status := &culvertv1.NetworkStatus{Vni: uint32(n.VNI), Bridge: n.VNI.Bridge(), Mtu: uint32(n.MTU), Domain: domain}
	for _, s := range n.Subnets {
		sub := &culvertv1.Subnet{Prefix: s.Prefix.String()}
		if s.Gateway.IsValid() && s.Gateway != s.Prefix.Addr().Next() {
			sub.Gateway = s.Gateway.String()
		}
		spec.Subnets = append(spec.Subnets, sub)
		if s.Gateway.IsValid() {
			status.Gateways = append(status.Gateways, s.Gateway.String())
		}
	}
	if n.DF == overlay.DFInherit {
		spec.Df = "inherit"
	}
	if n.Flood == overlay.FloodNone {
		spec.Flood = "none"
	}
	if n.Admission != overlay.AdmitDeclared {
		spec.Admission = n.Admission.String()
	}
	if n.Distribution != overlay.DistributePush {
		spec.Distribution = n.Distribution.String()
	}
	renderTell(spec, status, &n.Tell)
	return &culvertv1.Network{ApiVersion: Version, Kind: "Network", Metadata: renderMeta(&n.Meta, tenant, rev), Spec: spec, Status: status}
}

func renderTell(spec *culvertv1.NetworkSpec, status *culvertv1.NetworkStatus, t *overlay.Tell) {
	spec.Dns, spec.Lease = addrStrings(t.DNS), t.Lease
	spec.Routes = renderRoutes(t.Routes)
	status.Dhcp = t.DHCP.String()
	if t.DHCP == overlay.DHCPOwn {
		spec.Dhcp = "own"
		return
	}
	status.Lease = t.Seconds()
}

func renderRoutes(routes []overlay.Route) (out []*culvertv1.Route) {
	for _, r := range routes {
		out = append(out, &culvertv1.Route{Prefix: r.Prefix.String(), Via: r.Via.String()})
	}
	return out
}

// RenderPort shows a port. Status has MAC and addresses in force and the state
// "declared"; where it is, is the caller's to add.
func RenderPort(p *overlay.Port, tenant, network string, rev overlay.Rev) *culvertv1.Port {
	spec := &culvertv1.PortSpec{Network: network, Addresses: addrStrings(p.WantAddresses), Vm: p.VM, Hosts: p.Hosts, SharedAddresses: addrStrings(p.Shared), AddressCheck: p.AddressCheck}
	if !p.WantMAC.IsZero() {
		spec.Mac = p.WantMAC.String()
	}
	return &culvertv1.Port{ApiVersion: Version, Kind: "Port", Metadata: renderMeta(&p.Meta, tenant, rev), Spec: spec,
		Status: &culvertv1.PortStatus{Mac: p.MAC.String(), Addresses: addrStrings(p.Addresses), State: "declared"}}
}

// RenderDomain shows a domain that lets networks of the tenants of those names
// in; its networks and policies are the caller's to add.
func RenderDomain(d *overlay.Domain, tenant string, tenants []string, rev overlay.Rev) *culvertv1.Domain {
	return &culvertv1.Domain{ApiVersion: Version, Kind: "Domain", Metadata: renderMeta(&d.Meta, tenant, rev),
		Spec: &culvertv1.DomainSpec{Tenants: tenants, Routes: renderRoutes(d.Routes)}, Status: &culvertv1.DomainStatus{}}
}

// PolicyNames are the names behind the UIDs of a policy, From and To with the
// tenant in front if it is another.
type PolicyNames struct{ Tenant, Domain, From, To string }

// RenderPolicy shows a policy.
func RenderPolicy(p *overlay.Policy, names PolicyNames, rev overlay.Rev) *culvertv1.NetworkPolicy {
	r := &culvertv1.NetworkPolicy{ApiVersion: Version, Kind: "NetworkPolicy", Metadata: renderMeta(&p.Meta, names.Tenant, rev),
		Spec:   &culvertv1.NetworkPolicySpec{Domain: names.Domain, From: names.From, To: names.To},
		Status: &culvertv1.NetworkPolicyStatus{Direction: "both"}}
	if !p.Both {
		r.Spec.Direction, r.Status.Direction = "forward", "forward"
	}
	if p.Bridged {
		r.Spec.Mode = "bridged"
	}
	return r
}

// RenderHost shows a host; state, evidence and health are the caller's to add.
func RenderHost(h *overlay.Host, rev overlay.Rev) *culvertv1.Host {
	r := &culvertv1.Host{ApiVersion: Version, Kind: "Host", Metadata: renderMeta(&h.Meta, "", rev),
		Spec: &culvertv1.HostSpec{}, Status: &culvertv1.HostStatus{}}
	if h.VTEP.IsValid() {
		r.Status.Vtep = h.VTEP.String()
	}
	return r
}

// EndpointNames are the names behind the UIDs of an endpoint.
type EndpointNames struct {
	Tenant, Network, Port, Host string
	Expected                    []string // hosts of Pre
	From                        string
}

// RenderEndpoint shows an endpoint. Its name is that of its port, or its MAC if
// it is undeclared, or a virtual router's, which its port has beside its own.
// since is RFC 3339 in UTC, made by the caller, who may know a clock.
func RenderEndpoint(e *overlay.Endpoint, names EndpointNames, rev overlay.Rev, since string) *culvertv1.Endpoint {
	name := names.Port
	if name == "" || e.MAC.IsVirtual() {
		name = e.MAC.String()
	}
	return &culvertv1.Endpoint{ApiVersion: Version, Kind: "Endpoint",
		Metadata: &culvertv1.Metadata{Name: name, Tenant: names.Tenant, Revision: rev.String()},
		Status: &culvertv1.EndpointStatus{Network: names.Network, Mac: e.MAC.String(), Addresses: addrStrings(e.Addresses),
			Port: names.Port, Host: names.Host, Evidence: e.Evidence.String(), Cause: e.Cause, Since: since,
			ExpectedAt: names.Expected, MovedFrom: names.From}}
}

func addrStrings(as []netip.Addr) []string {
	var s []string
	for _, a := range as {
		s = append(s, a.String())
	}
	return s
}

// Wrap puts a resource of one kind into the message that carries any; it is nil
// for a type that is no resource.
func Wrap(m any) *culvertv1.Resource {
	switch m := m.(type) {
	case *culvertv1.Tenant:
		return &culvertv1.Resource{Body: &culvertv1.Resource_Tenant{Tenant: m}}
	case *culvertv1.Network:
		return &culvertv1.Resource{Body: &culvertv1.Resource_Network{Network: m}}
	case *culvertv1.Port:
		return &culvertv1.Resource{Body: &culvertv1.Resource_Port{Port: m}}
	case *culvertv1.Host:
		return &culvertv1.Resource{Body: &culvertv1.Resource_Host{Host: m}}
	case *culvertv1.Domain:
		return &culvertv1.Resource{Body: &culvertv1.Resource_Domain{Domain: m}}
	case *culvertv1.Gateway:
		return &culvertv1.Resource{Body: &culvertv1.Resource_Gateway{Gateway: m}}
	case *culvertv1.NetworkPolicy:
		return &culvertv1.Resource{Body: &culvertv1.Resource_Policy{Policy: m}}
	case *culvertv1.Endpoint:
		return &culvertv1.Resource{Body: &culvertv1.Resource_Endpoint{Endpoint: m}}
	}
	return nil
}

// MetadataOf is the metadata of whatever resource r holds; nil if it has none.
func MetadataOf(r *culvertv1.Resource) *culvertv1.Metadata {
	switch body := r.GetBody().(type) {
	case *culvertv1.Resource_Tenant:
		return body.Tenant.GetMetadata()
	case *culvertv1.Resource_Network:
		return body.Network.GetMetadata()
	case *culvertv1.Resource_Port:
		return body.Port.GetMetadata()
	case *culvertv1.Resource_Host:
		return body.Host.GetMetadata()
	case *culvertv1.Resource_Endpoint:
		return body.Endpoint.GetMetadata()
	case *culvertv1.Resource_Domain:
		return body.Domain.GetMetadata()
	case *culvertv1.Resource_Policy:
		return body.Policy.GetMetadata()
	case *culvertv1.Resource_Gateway:
		return body.Gateway.GetMetadata()
	}
	return nil
}

// KindOf is the kind of what r holds, 0 if it holds nothing.
func KindOf(r *culvertv1.Resource) overlay.Kind {
	switch r.GetBody().(type) {
	case *culvertv1.Resource_Tenant:
		return overlay.KindTenant
	case *culvertv1.Resource_Network:
		return overlay.KindNetwork
	case *culvertv1.Resource_Port:
		return overlay.KindPort
	case *culvertv1.Resource_Host:
		return overlay.KindHost
	case *culvertv1.Resource_Endpoint:
		return overlay.KindEndpoint
	case *culvertv1.Resource_Domain:
		return overlay.KindDomain
	case *culvertv1.Resource_Policy:
		return overlay.KindPolicy
	case *culvertv1.Resource_Gateway:
		return overlay.KindGateway
	}
	return 0
}
