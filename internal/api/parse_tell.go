package api

import (
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// parseTell reads what a network's guests are told.
func parseTell(s *culvertv1.NetworkSpec, subnets []overlay.Subnet) (overlay.Tell, error) {
	var t overlay.Tell
	switch s.GetDhcp() {
	case "", "host":
		if s.GetAdmission() == "dhcp" {
			return t, &overlay.FieldError{Field: "spec.dhcp", Value: s.GetDhcp(), Allowed: "own, beside spec.admission dhcp: who is not declared has its lease from a server of the network"}
		}
	case "own":
		t.DHCP = overlay.DHCPOwn
		for _, f := range []struct {
			field string
			given bool
		}{{"spec.dns", len(s.GetDns()) > 0}, {"spec.lease", s.GetLease() != 0}, {"spec.routes", len(s.GetRoutes()) > 0}} {
			if f.given {
				return t, &overlay.FieldError{Field: f.field, Value: "given", Allowed: "nothing beside spec.dhcp own: the network's own servers tell it"}
			}
		}
		return t, nil
	default:
		return t, &overlay.FieldError{Field: "spec.dhcp", Value: s.GetDhcp(), Allowed: "host or own"}
	}
	t.Lease = s.GetLease()
	if t.Lease != 0 && (t.Lease < overlay.MinLease || t.Lease > overlay.MaxLease) {
		return t, &overlay.FieldError{Field: "spec.lease", Value: fmt.Sprint(t.Lease), Allowed: fmt.Sprintf("%d to %d seconds", overlay.MinLease, overlay.MaxLease)}
	}
	if n := len(s.GetDns()); n > overlay.MaxDNS {
		return t, &overlay.FieldError{Field: "spec.dns", Value: fmt.Sprintf("%d addresses", n), Allowed: fmt.Sprintf("at most %d", overlay.MaxDNS)}
	}
	for i, text := range s.GetDns() {
		at := fmt.Sprintf("spec.dns[%d]", i)
		a, err := overlay.ParseAddr(at, text)
		if err != nil {
			return t, err
		}
		if slices.Contains(t.DNS, a) {
			return t, &overlay.FieldError{Field: at, Value: text, Allowed: "each address once"}
		}
		t.DNS = append(t.DNS, a)
	}
	var err error
	t.Routes, err = parseRoutes(s.GetRoutes(), subnets)
	return t, err
}

// ParseLease reads the time of a lease, in seconds. Errors are
// *overlay.FieldError.
func ParseLease(field, s string) (uint32, error) {
	n, err := parseDecimal(s)
	if err != nil || n < overlay.MinLease || n > overlay.MaxLease {
		return 0, &overlay.FieldError{Field: field, Value: s, Allowed: fmt.Sprintf("%d to %d seconds", overlay.MinLease, overlay.MaxLease)}
	}
	return uint32(n), nil
}

func parseRoutes(list []*culvertv1.Route, subnets []overlay.Subnet) ([]overlay.Route, error) {
	if len(list) > overlay.MaxRoutes {
		return nil, &overlay.FieldError{Field: "spec.routes", Value: fmt.Sprintf("%d routes", len(list)), Allowed: fmt.Sprintf("at most %d", overlay.MaxRoutes)}
	}
	var routes []overlay.Route
	for i, r := range list {
		at := fmt.Sprintf("spec.routes[%d]", i)
		p, err := netip.ParsePrefix(r.GetPrefix())
		if err != nil || !p.Addr().Is4() || p != p.Masked() {
			return nil, &overlay.FieldError{Field: at + ".prefix", Value: r.GetPrefix(), Allowed: "an IPv4 prefix without host bits, like 10.30.0.0/16 (IPv6 hosts hear of routes from routers alone)"}
		}
		if slices.ContainsFunc(routes, func(o overlay.Route) bool { return o.Prefix == p }) {
			return nil, &overlay.FieldError{Field: at + ".prefix", Value: r.GetPrefix(), Allowed: "each prefix once"}
		}
		via, err := netip.ParseAddr(r.GetVia())
		if err != nil || !via.Is4() || !slices.ContainsFunc(subnets, func(s overlay.Subnet) bool { return s.Usable(via) && via != s.Gateway }) {
			return nil, &overlay.FieldError{Field: at + ".via", Value: r.GetVia(), Allowed: "an address that a guest may have in a subnet of the network"}
		}
		routes = append(routes, overlay.Route{Prefix: p, Via: via})
	}
	return routes, nil
}
