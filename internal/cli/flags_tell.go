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
	for _, x := range []struct {
		list, none string
		not        bool
	}{{"dns", "no-dns", n.noDNS}, {"route", "no-route", n.noRoute}} {
		if x.not && f.Changed(x.list) {
			return &overlay.FieldError{Field: "--" + x.none, Value: "true", Allowed: "no --" + x.list + " beside it"}
		}
	}
	if n.noDNS {
		spec.Dns = nil
	}
	if f.Changed("dns") {
		spec.Dns = n.dns
	}
	if n.noRoute || f.Changed("route") {
		spec.Routes = nil
	}
	for _, r := range n.routes {
		prefix, via, ok := strings.Cut(r, "=")
		if !ok {
			return &overlay.FieldError{Field: "--route", Value: r, Allowed: "PREFIX=ADDRESS like 10.30.0.0/16=10.20.0.9"}
		}
		spec.Routes = append(spec.Routes, &culvertv1.Route{Prefix: prefix, Via: via})
	}
	return nil
}
