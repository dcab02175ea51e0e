package cli

import (
	"strings"

	"github.com/spf13/pflag"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// tell writes what a network's guests are told.
func (n *networkFlags) tell(f *pflag.FlagSet, spec *culvertv1.NetworkSpec) error {
	if f.Changed("dhcp") && n.dhcp == "own" {
		spec.Dns, spec.Lease, spec.Routes = nil, 0, nil // the network's own servers tell it
	}
	if f.Changed("lease") {
		v, err := api.ParseLease("--lease", n.lease)
		if err != nil {
			return err
		}
		spec.Lease = v
	}
	if n.noDNS && f.Changed("dns") {
		return &overlay.FieldError{Field: "--no-dns", Value: "true", Allowed: "no --dns beside it"}
	}
	if n.noDNS {
		spec.Dns = nil
	}
	if f.Changed("dns") {
		spec.Dns = n.dns
	}
	return routes(f, n.routes, n.noRoute, &spec.Routes)
}

// routes reads --route PREFIX=ADDRESS and --no-route.
func routes(f *pflag.FlagSet, list []string, none bool, into *[]*culvertv1.Route) error {
	if none && f.Changed("route") {
		return &overlay.FieldError{Field: "--no-route", Value: "true", Allowed: "no --route beside it"}
	}
	if none || f.Changed("route") {
		*into = nil
	}
	for _, r := range list {
		prefix, via, ok := strings.Cut(r, "=")
		if !ok {
			return &overlay.FieldError{Field: "--route", Value: r, Allowed: "PREFIX=ADDRESS like 10.30.0.0/16=10.20.0.9"}
		}
		*into = append(*into, &culvertv1.Route{Prefix: prefix, Via: via})
	}
	return nil
}
