package api

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Bounds of lists in a document, so that one request cannot grow a core.
const (
	maxSubnets    = 16
	maxNames      = 4096
	maxAddresses  = 256
	maxLabels     = 64
	maxLabelBytes = 63
	maxVMBytes    = 255
)

// Largest quotas that make sense: every VNI, ten million ports, as many
// addresses as a document may have.
const (
	maxQuotaNetworks  = uint32(overlay.MaxVNI)
	maxQuotaPorts     = 10_000_000
	maxQuotaAddresses = maxAddresses
)

// ParseResource checks a resource field by field and gives the document that
// the manager admits. Names are not resolved. An absent tenant is DefaultTenant.
// Status and uid are the server's own words and are not read, so that what was
// shown can be applied again. A revision is the one that the document was read
// at; see overlay.Doc.
//
// Errors are *overlay.FieldError for a value outside what is allowed,
// *LaterError for what a later release brings, and *Refusal for kinds that are
// observed and not written. The first wrong field is reported.
func ParseResource(r *culvertv1.Resource) (overlay.Doc, error) {
	switch body := r.GetBody().(type) {
	case *culvertv1.Resource_Tenant:
		return parseTenant(body.Tenant)
	case *culvertv1.Resource_Network:
		return parseNetwork(body.Network)
	case *culvertv1.Resource_Port:
		return parsePort(body.Port)
	case *culvertv1.Resource_Domain:
		return parseDomain(body.Domain)
	case *culvertv1.Resource_Policy:
		return parsePolicy(body.Policy)
	case *culvertv1.Resource_Gateway:
		return parseGateway(body.Gateway)
	case *culvertv1.Resource_Host:
		return overlay.Doc{}, Refuse(CodeField, "Host "+body.Host.GetMetadata().GetName()+" was not written",
			"a host comes by joining", "Add a host with a token: culvert token create --role agent")
	case *culvertv1.Resource_Endpoint:
		return overlay.Doc{}, Refuse(CodeField, "Endpoint "+body.Endpoint.GetMetadata().GetName()+" was not written",
			"endpoints are observed by agents", "Declare a port instead: culvert port create PORT --network NETWORK")
	}
	return overlay.Doc{}, &overlay.FieldError{Field: "kind", Value: "", Allowed: kindsAllowed}
}

const kindsAllowed = "Tenant, Domain, Network, NetworkPolicy, Gateway or Port"

// head is what documents of every kind begin with.
type head interface {
	GetApiVersion() string
	GetKind() string
	GetMetadata() *culvertv1.Metadata
}

func parseHead(h head, kind overlay.Kind) (overlay.Doc, error) {
	if v := h.GetApiVersion(); v != Version {
		return overlay.Doc{}, &overlay.FieldError{Field: "apiVersion", Value: v, Allowed: Version}
	}
	if k := h.GetKind(); k != KindName(kind) {
		return overlay.Doc{}, &overlay.FieldError{Field: "kind", Value: k, Allowed: KindName(kind)}
	}
	m := h.GetMetadata()
	d := overlay.Doc{Kind: kind, Name: m.GetName(), Tenant: m.GetTenant()}
	if err := overlay.CheckName("metadata.name", d.Name); err != nil {
		return overlay.Doc{}, err
	}
	switch {
	case kind == overlay.KindTenant && d.Tenant != "":
		return overlay.Doc{}, &overlay.FieldError{Field: "metadata.tenant", Value: d.Tenant, Allowed: "nothing: a tenant is owned by none"}
	case kind == overlay.KindTenant:
	case d.Tenant == "":
		d.Tenant = DefaultTenant
	default:
		if err := overlay.CheckName("metadata.tenant", d.Tenant); err != nil {
			return overlay.Doc{}, err
		}
	}
	var err error
	if d.Seen, err = parseSeen(m.GetRevision()); err != nil {
		return overlay.Doc{}, err
	}
	d.Labels, err = parseLabels(m.GetLabels())
	return d, err
}

// parseSeen reads the revision that a document was read at. Nothing is ever at
// revision 0, which stands for "nothing changed" in answers: taken for "any" it
// would overwrite just where somebody asked not to.
func parseSeen(s string) (overlay.Rev, error) {
	const field = "metadata.revision"
	r, err := ParseRev(field, s)
	if err == nil && s != "" && r.N == 0 {
		err = &overlay.FieldError{Field: field, Value: s, Allowed: "a revision as the verb show prints it, like 41 or 2.41, or leave it out"}
	}
	return r, err
}

func parseLabels(m map[string]string) ([]overlay.Label, error) {
	if len(m) > maxLabels {
		return nil, &overlay.FieldError{Field: "metadata.labels", Value: fmt.Sprintf("%d labels", len(m)), Allowed: fmt.Sprintf("at most %d", maxLabels)}
	}
	var labels []overlay.Label
	for k, v := range m { // order-free: sorted below
		labels = append(labels, overlay.Label{Key: k, Value: v})
	}
	overlay.SortLabels(labels) // before the checks: which one is refused must not hang on map order
	for _, l := range labels {
		if !labelText(l.Key) || l.Key == "" {
			return nil, &overlay.FieldError{Field: "metadata.labels", Value: l.Key, Allowed: "keys of 1 to 63 letters, digits and . _ - /"}
		}
		if !labelText(l.Value) {
			return nil, &overlay.FieldError{Field: "metadata.labels." + l.Key, Value: l.Value, Allowed: "at most 63 letters, digits and . _ - /"}
		}
	}
	return labels, nil
}

func labelText(s string) bool {
	if len(s) > maxLabelBytes {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("._-/", c) >= 0:
		default:
			return false
		}
	}
	return true
}

func parseTenant(t *culvertv1.Tenant) (overlay.Doc, error) {
	d, err := parseHead(t, overlay.KindTenant)
	if err != nil {
		return overlay.Doc{}, err
	}
	q := t.GetSpec().GetQuotas()
	for _, f := range []struct {
		field string
		have  uint32
		most  uint32
		into  *uint32
	}{
		{"spec.quotas.networks", q.GetNetworks(), maxQuotaNetworks, &d.Quotas.MaxNetworks},
		{"spec.quotas.ports", q.GetPorts(), maxQuotaPorts, &d.Quotas.MaxPorts},
		{"spec.quotas.addressesPerPort", q.GetAddressesPerPort(), maxQuotaAddresses, &d.Quotas.MaxPortAddresses},
	} {
		if f.have > f.most {
			return overlay.Doc{}, &overlay.FieldError{Field: f.field, Value: fmt.Sprint(f.have), Allowed: fmt.Sprintf("1 to %d, or nothing for the default", f.most)}
		}
		*f.into = f.have
	}
	return d, nil
}

func parseNetwork(n *culvertv1.Network) (overlay.Doc, error) {
	d, err := parseHead(n, overlay.KindNetwork)
	if err != nil {
		return overlay.Doc{}, err
	}
	s := n.GetSpec()
	d.Network.VNI = overlay.VNI(s.GetVni())
	if d.Network.VNI > overlay.MaxVNI {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.vni", Value: fmt.Sprint(s.GetVni()), Allowed: "a VNI from 1 to 16777215"}
	}
	if mtu := s.GetMtu(); mtu != 0 && (mtu < overlay.MinMTU || mtu > overlay.MaxMTU) {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.mtu", Value: fmt.Sprint(mtu), Allowed: fmt.Sprintf("%d to %d bytes", overlay.MinMTU, overlay.MaxMTU)}
	}
	d.Network.MTU = uint16(s.GetMtu())
	if d.Network.Subnets, err = parseSubnets(s.GetSubnets()); err != nil {
		return overlay.Doc{}, err
	}
	if d.Network.Hosts, err = parseNames("spec.hosts", s.GetHosts()); err != nil {
		return overlay.Doc{}, err
	}
	if d.Network.Foreign, err = parseForeign(s.GetForeignVteps()); err != nil {
		return overlay.Doc{}, err
	}
	if s.GetDomain() != "" {
		if d.Network.Domain, err = parseRef("spec.domain", s.GetDomain(), d.Tenant); err != nil {
			return overlay.Doc{}, err
		}
	}
	switch s.GetDf() {
	case "", "set":
	case "inherit":
		d.Network.DF = overlay.DFInherit
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.df", Value: s.GetDf(), Allowed: "set or inherit"}
	}
	switch s.GetFlood() {
	case "", "her":
	case "none":
		d.Network.Flood = overlay.FloodNone
	case "multicast":
		return overlay.Doc{}, &LaterError{Field: "spec.flood", Value: "multicast", Use: "her or none", With: "interoperation with foreign VTEPs"}
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.flood", Value: s.GetFlood(), Allowed: "her or none"}
	}
	switch s.GetDistribution() {
	case "", "push":
	case "on-demand":
		d.Network.Distribution = overlay.DistributeOnDemand
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.distribution", Value: s.GetDistribution(), Allowed: "push or on-demand"}
	}
	switch s.GetAdmission() {
	case "", "declared":
	case "learn":
		d.Network.Admission = overlay.AdmitLearn
	case "dhcp":
		d.Network.Admission = overlay.AdmitDHCP
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.admission", Value: s.GetAdmission(), Allowed: "declared, learn or dhcp"}
	}
	d.Network.Tell, err = parseTell(s, d.Network.Subnets)
	return d, err
}

// parseForeign reads tunnel end points: what a socket can be bound to and a
// packet be routed to.
func parseForeign(list []string) ([]netip.Addr, error) {
	const field = "spec.foreignVteps"
	if len(list) > overlay.MaxForeign {
		return nil, &overlay.FieldError{Field: field, Value: fmt.Sprintf("%d addresses", len(list)), Allowed: fmt.Sprintf("at most %d", overlay.MaxForeign)}
	}
	addrs, err := parseAddresses(field, list)
	for i, s := range list {
		if a, _ := netip.ParseAddr(s); err == nil && (a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})) {
			err = &overlay.FieldError{Field: fmt.Sprintf("%s[%d]", field, i), Value: s, Allowed: "an address that hosts have a route to"}
		}
	}
	return addrs, err
}

func parseSubnets(list []*culvertv1.Subnet) ([]overlay.Subnet, error) {
	if len(list) > maxSubnets {
		return nil, &overlay.FieldError{Field: "spec.subnets", Value: fmt.Sprintf("%d subnets", len(list)), Allowed: fmt.Sprintf("at most %d", maxSubnets)}
	}
	var subnets []overlay.Subnet
	for i, s := range list {
		field := fmt.Sprintf("spec.subnets[%d]", i)
		sub, err := overlay.ParseSubnet(field, s.GetPrefix(), s.GetGateway())
		if err != nil {
			return nil, err
		}
		for j, other := range subnets {
			if other.Prefix.Overlaps(sub.Prefix) {
				return nil, &overlay.FieldError{Field: field + ".prefix", Value: s.GetPrefix(),
					Allowed: fmt.Sprintf("a prefix that does not overlap %s, spec.subnets[%d]", other.Prefix, j)}
			}
		}
		subnets = append(subnets, sub)
	}
	return subnets, nil
}

// parseNames reads a list of names; the result is sorted, since it is a set. A name given twice is refused: one of the two was meant to be another.
func parseNames(field string, list []string) ([]string, error) {
	if len(list) > maxNames {
		return nil, &overlay.FieldError{Field: field, Value: fmt.Sprintf("%d names", len(list)), Allowed: fmt.Sprintf("at most %d", maxNames)}
	}
	seen := make(map[string]bool, len(list))
	for i, name := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		if err := overlay.CheckName(at, name); err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, &overlay.FieldError{Field: at, Value: name, Allowed: "each name once"}
		}
		seen[name] = true
	}
	names := slices.Clone(list)
	slices.Sort(names)
	return names, nil
}

func parsePort(p *culvertv1.Port) (overlay.Doc, error) {
	d, err := parseHead(p, overlay.KindPort)
	if err != nil {
		return overlay.Doc{}, err
	}
	s := p.GetSpec()
	d.Port.Network = s.GetNetwork()
	if err := overlay.CheckName("spec.network", d.Port.Network); err != nil {
		return overlay.Doc{}, err
	}
	if s.GetMac() != "" {
		if d.Port.MAC, err = ParseMAC("spec.mac", s.GetMac()); err != nil {
			return overlay.Doc{}, err
		}
	}
	if d.Port.Addresses, err = parseAddresses("spec.addresses", s.GetAddresses()); err != nil {
		return overlay.Doc{}, err
	}
	if d.Port.Shared, err = parseAddresses("spec.sharedAddresses", s.GetSharedAddresses()); err != nil {
		return overlay.Doc{}, err
	}
	if have := len(d.Port.Shared); have > overlay.MaxShared {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.sharedAddresses", Value: fmt.Sprintf("%d addresses", have), Allowed: fmt.Sprintf("at most %d", overlay.MaxShared)}
	}
	if !vmText(s.GetVm()) {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.vm", Value: s.GetVm(), Allowed: fmt.Sprintf("at most %d bytes of printable text", maxVMBytes)}
	}
	d.Port.VM, d.Port.AddressCheck = s.GetVm(), s.GetAddressCheck()
	d.Port.Hosts, err = parseNames("spec.hosts", s.GetHosts())
	return d, err
}

// ParseMAC reads the MAC of one interface. Errors are *overlay.FieldError.
func ParseMAC(field, s string) (overlay.MAC, error) {
	m, err := overlay.ParseMAC(s)
	if err != nil {
		return overlay.MAC{}, &overlay.FieldError{Field: field, Value: s, Allowed: "six octets like 52:54:00:12:34:56"}
	}
	if !m.IsUnicast() {
		return overlay.MAC{}, &overlay.FieldError{Field: field, Value: s, Allowed: "the address of one interface, not a group or zero"}
	}
	return m, nil
}

// ParseMTU reads the MTU of guests, in bytes. Errors are *overlay.FieldError.
func ParseMTU(field, s string) (uint16, error) {
	n, err := parseDecimal(s)
	if err != nil || n < overlay.MinMTU || n > overlay.MaxMTU {
		return 0, &overlay.FieldError{Field: field, Value: s, Allowed: fmt.Sprintf("%d to %d bytes", overlay.MinMTU, overlay.MaxMTU)}
	}
	return uint16(n), nil
}

func parseAddresses(field string, list []string) ([]netip.Addr, error) {
	if len(list) > maxAddresses {
		return nil, &overlay.FieldError{Field: field, Value: fmt.Sprintf("%d addresses", len(list)), Allowed: fmt.Sprintf("at most %d", maxAddresses)}
	}
	var addrs []netip.Addr
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		a, err := overlay.ParseAddr(at, s)
		if err != nil {
			return nil, err
		}
		if slices.Contains(addrs, a) {
			return nil, &overlay.FieldError{Field: at, Value: s, Allowed: "each address once"}
		}
		addrs = append(addrs, a)
	}
	return overlay.SortAddrs(addrs), nil
}

func vmText(s string) bool {
	if len(s) > maxVMBytes || !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// ParseRev reads a revision as Rev.String prints it: "7", or "2.7" in the
// second epoch. The empty string is the zero revision.
func ParseRev(field, s string) (overlay.Rev, error) {
	if s == "" || s == "0" {
		return overlay.Rev{}, nil
	}
	bad := &overlay.FieldError{Field: field, Value: s, Allowed: "a revision like 41 or 2.41"}
	r := overlay.Rev{Epoch: 1}
	number := s
	if epoch, rest, ok := strings.Cut(s, "."); ok {
		e, err := parseDecimal(epoch)
		if err != nil || e < 2 || e > 1<<32-1 {
			return overlay.Rev{}, bad
		}
		r.Epoch, number = uint32(e), rest
	}
	n, err := parseDecimal(number)
	if err != nil {
		return overlay.Rev{}, bad
	}
	r.N = n
	return r, nil
}

var errNotDecimal = errors.New("not a decimal without sign, leading zero or separator")

// parseDecimal reads the one form of an unsigned number in which no reader can
// find another value: 010 is 8 to many, 1_0 is 10 to some, 1e3 is text to others.
func parseDecimal(s string) (uint64, error) {
	if s == "" || len(s) > 20 || (len(s) > 1 && s[0] == '0') {
		return 0, errNotDecimal
	}
	var n uint64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, errNotDecimal
		}
		d := uint64(c - '0')
		if n > (1<<64-1-d)/10 {
			return 0, errNotDecimal
		}
		n = n*10 + d
	}
	return n, nil
}
