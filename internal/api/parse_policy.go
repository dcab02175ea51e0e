package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

func parseDomain(p *culvertv1.Domain) (overlay.Doc, error) {
	d, err := parseHead(p, overlay.KindDomain)
	if err != nil {
		return overlay.Doc{}, err
	}
	const tenants = "spec.tenants"
	if d.Domain.Tenants, err = parseNames(tenants, p.GetSpec().GetTenants()); err != nil {
		return overlay.Doc{}, err
	}
	if i := slices.Index(p.GetSpec().GetTenants(), d.Tenant); i >= 0 {
		return overlay.Doc{}, &overlay.FieldError{Field: fmt.Sprintf("%s[%d]", tenants, i), Value: d.Tenant, Allowed: "another tenant than the domain's own"}
	}
	if n := len(d.Domain.Tenants); n > overlay.MaxDomainTenants {
		return overlay.Doc{}, &overlay.FieldError{Field: tenants, Value: fmt.Sprintf("%d tenants", n), Allowed: fmt.Sprintf("at most %d: a domain is of two tenants at most", overlay.MaxDomainTenants)}
	}
	d.Domain.Routes, err = parseWays(p.GetSpec().GetRoutes())
	return d, err
}

// parseWays reads the routes of a domain.
func parseWays(list []*culvertv1.Route) ([]overlay.Route, error) {
	if len(list) > overlay.MaxNextHops {
		return nil, &overlay.FieldError{Field: "spec.routes", Value: fmt.Sprintf("%d routes", len(list)), Allowed: fmt.Sprintf("at most %d", overlay.MaxNextHops)}
	}
	var routes []overlay.Route
	for i, r := range list {
		at := fmt.Sprintf("spec.routes[%d]", i)
		p, err := netip.ParsePrefix(r.GetPrefix())
		if a := p.Addr(); err != nil || a.Is4In6() || p != p.Masked() || p.Bits() > 0 && (a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast()) {
			return nil, &overlay.FieldError{Field: at + ".prefix", Value: r.GetPrefix(), Allowed: "a prefix without host bits that is routed, like 10.30.0.0/16, fd00:30::/64 or 0.0.0.0/0"}
		}
		if slices.ContainsFunc(routes, func(o overlay.Route) bool { return o.Prefix == p }) {
			return nil, &overlay.FieldError{Field: at + ".prefix", Value: r.GetPrefix(), Allowed: "each prefix once"}
		}
		via, err := overlay.ParseAddr(at+".via", r.GetVia())
		if err != nil {
			return nil, err
		}
		if via.Is4() != p.Addr().Is4() {
			return nil, &overlay.FieldError{Field: at + ".via", Value: r.GetVia(), Allowed: "an address of the prefix's family"}
		}
		routes = append(routes, overlay.Route{Prefix: p, Via: via})
	}
	slices.SortFunc(routes, func(a, b overlay.Route) int { return a.Prefix.Compare(b.Prefix) })
	return routes, nil
}

// CheckRef accepts a name, or TENANT/NAME.
func CheckRef(field, s string) error {
	_, err := parseRef(field, s, "")
	return err
}

// parseRef reads a name, or TENANT/NAME, where a document of that tenant says
// it: what is of the same tenant is a name alone.
func parseRef(field, s, tenant string) (string, error) {
	owner, name, ok := strings.Cut(s, "/")
	if !ok {
		return s, overlay.CheckName(field, s)
	}
	for _, part := range [...]string{owner, name} {
		if overlay.CheckName(field, part) != nil {
			return "", &overlay.FieldError{Field: field, Value: s, Allowed: "a name, or TENANT/NAME, each 1 to 40 of a-z, 0-9 and inner hyphens"}
		}
	}
	if owner == tenant {
		return name, nil
	}
	return s, nil
}

func parsePolicy(p *culvertv1.NetworkPolicy) (overlay.Doc, error) {
	d, err := parseHead(p, overlay.KindPolicy)
	if err != nil {
		return overlay.Doc{}, err
	}
	s := p.GetSpec()
	d.Policy = overlay.PolicySpec{Domain: s.GetDomain(), Both: true}
	if err := overlay.CheckName("spec.domain", d.Policy.Domain); err != nil {
		return overlay.Doc{}, err
	}
	for _, f := range []struct {
		field, ref string
		into       *string
	}{{"spec.from", s.GetFrom(), &d.Policy.From}, {"spec.to", s.GetTo(), &d.Policy.To}} {
		if *f.into, err = parseRef(f.field, f.ref, d.Tenant); err != nil {
			return overlay.Doc{}, err
		}
	}
	if d.Policy.From == d.Policy.To {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.to", Value: s.GetTo(), Allowed: "another network than spec.from: within a network nothing has to be opened"}
	}
	switch s.GetDirection() {
	case "", "both":
	case "forward":
		d.Policy.Both = false
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.direction", Value: s.GetDirection(), Allowed: "both or forward"}
	}
	switch s.GetMode() {
	case "", "routed":
	case "bridged":
		d.Policy.Bridged = true
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.mode", Value: s.GetMode(), Allowed: "routed or bridged"}
	}
	if d.Policy.Bridged && !d.Policy.Both {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.direction", Value: s.GetDirection(), Allowed: "both, or nothing, beside spec.mode bridged: what is one segment has no direction"}
	}
	switch s.GetCast() {
	case "", "unicast":
	case "multicast":
		return overlay.Doc{}, &LaterError{Field: "spec.cast", Value: "multicast", Use: "unicast", With: "multicast between networks"}
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.cast", Value: s.GetCast(), Allowed: "unicast"}
	}
	return d, nil
}
