package cli

import (
	"github.com/spf13/pflag"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// routed sets the domain of a network.
func (n *networkFlags) routed(f *pflag.FlagSet, spec *culvertv1.NetworkSpec) error {
	switch {
	case n.noDomain && f.Changed("domain"):
		return &overlay.FieldError{Field: "--no-domain", Value: "true", Allowed: "no --domain beside it"}
	case n.noDomain:
		spec.Domain = ""
	case f.Changed("domain"):
		if err := api.CheckRef("--domain", n.domain); err != nil {
			return err
		}
		spec.Domain = n.domain
	}
	return nil
}

type domainFlags struct {
	labelFlag
	admit, routes    []string
	noAdmit, noRoute bool
}

func (d *domainFlags) define(f *pflag.FlagSet, set bool) {
	d.labelFlag.define(f)
	f.StringArrayVar(&d.admit, "admit-tenant", nil, "other tenant, whose networks may be in it")
	f.StringArrayVar(&d.routes, "route", nil, "route to what is in none of its networks, by way of a port in one, like 0.0.0.0/0=10.20.0.9 (repeatable)")
	if set {
		f.BoolVar(&d.noRoute, "no-route", false, "have no route")
		f.BoolVar(&d.noAdmit, "no-admit-tenant", false, "let networks of its own tenant in only")
	}
}

func (d *domainFlags) any(f *pflag.FlagSet) bool {
	return given(f, "label", "admit-tenant", "no-admit-tenant", "route", "no-route")
}

func (d *domainFlags) home() (overlay.Kind, string, string) { return 0, "", "" }

func (d *domainFlags) apply(f *pflag.FlagSet, r *culvertv1.Resource) error {
	body := r.GetDomain()
	if body.Spec == nil {
		body.Spec = &culvertv1.DomainSpec{}
	}
	if d.noAdmit && f.Changed("admit-tenant") {
		return &overlay.FieldError{Field: "--no-admit-tenant", Value: "true", Allowed: "no --admit-tenant beside it"}
	}
	for _, t := range d.admit {
		if err := overlay.CheckName("--admit-tenant", t); err != nil {
			return err
		}
	}
	if d.noAdmit || f.Changed("admit-tenant") {
		body.Spec.Tenants = d.admit
	}
	if err := routes(f, d.routes, d.noRoute, &body.Spec.Routes); err != nil {
		return err
	}
	return d.labelFlag.apply(body.Metadata)
}

type policyFlags struct {
	labelFlag
	domain, from, to, direction, mode string
}

func (p *policyFlags) define(f *pflag.FlagSet, set bool) {
	p.labelFlag.define(f)
	if !set {
		f.StringVar(&p.domain, "domain", "", "domain of both networks")
		f.StringVar(&p.from, "from", "", "network whose guests may send")
		f.StringVar(&p.to, "to", "", "network that they may send to")
	}
	f.StringVar(&p.direction, "direction", "", "both, or forward: no way back (default both)")
	f.StringVar(&p.mode, "mode", "", "routed, or bridged: the two are one segment (default routed)")
}

func (p *policyFlags) any(f *pflag.FlagSet) bool { return given(f, "label", "direction", "mode") }

func (p *policyFlags) home() (overlay.Kind, string, string) {
	return overlay.KindDomain, "--domain", p.domain
}

func (p *policyFlags) apply(f *pflag.FlagSet, r *culvertv1.Resource) error {
	body := r.GetPolicy()
	if body.Spec == nil {
		body.Spec = &culvertv1.NetworkPolicySpec{}
	}
	for _, n := range []struct {
		flag, v string
		into    *string
	}{{"from", p.from, &body.Spec.From}, {"to", p.to, &body.Spec.To}} {
		if f.Changed(n.flag) {
			if err := api.CheckRef("--"+n.flag, n.v); err != nil {
				return err
			}
			*n.into = n.v
		}
	}
	if f.Changed("direction") {
		body.Spec.Direction = p.direction
	}
	if f.Changed("mode") {
		body.Spec.Mode = p.mode
	}
	return p.labelFlag.apply(body.Metadata)
}
