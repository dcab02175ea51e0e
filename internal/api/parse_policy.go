package api

import (
	"fmt"
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
	return d, nil
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
