package cli

import (
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// flagSet is the flags that write the spec and labels of one kind. A flag that
// was not given leaves its field as it is.
type flagSet interface {
	define(f *pflag.FlagSet, set bool)
	apply(f *pflag.FlagSet, r *culvertv1.Resource) error
	any(f *pflag.FlagSet) bool
	// home is what a thing is in when it is made, and whose tenant it has: the
	// kind, the flag that names it and what it names; 0 for kinds that are in
	// nothing but a tenant.
	home() (kind overlay.Kind, flag, name string)
}

func specFlags(kind overlay.Kind) flagSet {
	switch kind {
	case overlay.KindTenant:
		return &tenantFlags{}
	case overlay.KindNetwork:
		return &networkFlags{}
	case overlay.KindDomain:
		return &domainFlags{}
	case overlay.KindPolicy:
		return &policyFlags{}
	case overlay.KindGateway:
		return &gatewayFlags{}
	}
	return &portFlags{}
}

// given reports whether any of the flags was given.
func given(f *pflag.FlagSet, names ...string) bool {
	for _, n := range names {
		if f.Changed(n) {
			return true
		}
	}
	return false
}

// positive refuses a zero that was typed: in a document it would mean "the
// default", and a flag left out says that better.
func positive(f *pflag.FlagSet, name string, v uint32, allowed string) error {
	if f.Changed(name) && v == 0 {
		return &overlay.FieldError{Field: "--" + name, Value: "0", Allowed: allowed}
	}
	return nil
}

type labelFlag struct{ labels []string }

func (l *labelFlag) define(f *pflag.FlagSet) {
	f.StringArrayVar(&l.labels, "label", nil, "label KEY=VALUE; KEY- removes it (repeatable)")
}

func (l *labelFlag) apply(m *culvertv1.Metadata) error {
	for _, s := range l.labels {
		k, v, ok := strings.Cut(s, "=")
		switch {
		case ok && k != "":
			if m.Labels == nil {
				m.Labels = map[string]string{}
			}
			m.Labels[k] = v
		case !ok && len(s) > 1 && strings.HasSuffix(s, "-"):
			delete(m.Labels, strings.TrimSuffix(s, "-"))
		default:
			return &overlay.FieldError{Field: "--label", Value: s, Allowed: "KEY=VALUE, or KEY- to remove it"}
		}
	}
	return nil
}

type tenantFlags struct {
	labelFlag
	networks, ports, addresses uint32
}

func (t *tenantFlags) define(f *pflag.FlagSet, _ bool) {
	t.labelFlag.define(f)
	f.Uint32Var(&t.networks, "max-networks", 0, "quota of networks")
	f.Uint32Var(&t.ports, "max-ports", 0, "quota of ports")
	f.Uint32Var(&t.addresses, "max-addresses", 0, "quota of addresses a port")
}

func (t *tenantFlags) any(f *pflag.FlagSet) bool {
	return given(f, "label", "max-networks", "max-ports", "max-addresses")
}

func (t *tenantFlags) home() (overlay.Kind, string, string) { return 0, "", "" }

func (t *tenantFlags) apply(f *pflag.FlagSet, r *culvertv1.Resource) error {
	body := r.GetTenant()
	if body.Spec == nil {
		body.Spec = &culvertv1.TenantSpec{}
	}
	if given(f, "max-networks", "max-ports", "max-addresses") && body.Spec.Quotas == nil {
		body.Spec.Quotas = &culvertv1.TenantQuotas{}
	}
	for _, q := range []struct {
		flag string
		v    uint32
		into func(uint32)
	}{
		{"max-networks", t.networks, func(v uint32) { body.Spec.Quotas.Networks = v }},
		{"max-ports", t.ports, func(v uint32) { body.Spec.Quotas.Ports = v }},
		{"max-addresses", t.addresses, func(v uint32) { body.Spec.Quotas.AddressesPerPort = v }},
	} {
		if err := positive(f, q.flag, q.v, "1 or more; left out: the default"); err != nil {
			return err
		}
		if f.Changed(q.flag) {
			q.into(q.v)
		}
	}
	return t.labelFlag.apply(body.Metadata)
}

type networkFlags struct {
	labelFlag
	vni, mtu                           string
	subnets, gateways, hosts           []string
	df, flood, distribution, admission string
	dhcp, lease                        string
	dns, routes, foreign               []string
	anyHost, noDNS, noRoute, noForeign bool
	domain                             string
	noDomain                           bool
}

func (n *networkFlags) define(f *pflag.FlagSet, set bool) {
	n.labelFlag.define(f)
	f.StringVar(&n.vni, "vni", "", "VNI, 1 to 16777215 (default: allocated)")
	f.StringArrayVar(&n.subnets, "subnet", nil, "subnet like 10.20.0.0/24 (repeatable)")
	f.StringArrayVar(&n.gateways, "gateway", nil, "gateway of the subnet that holds it (default: its first address)")
	f.StringVar(&n.mtu, "mtu", "", "MTU of the guests in bytes (default: what the underlay allows)")
	f.StringArrayVar(&n.hosts, "host", nil, "host that may serve it (repeatable; default: all)")
	f.StringVar(&n.df, "df", "", "outer don't-fragment bit: set or inherit (default set)")
	f.StringVar(&n.flood, "flood", "", "broadcast: her or none (default her)")
	f.StringVar(&n.distribution, "distribution", "", "what hosts know of it: push: all, or on-demand: what their guests ask for (default push)")
	f.StringVar(&n.admission, "admission", "", "who may be in it: declared, learn or dhcp (default declared)")
	f.StringVar(&n.dhcp, "dhcp", "", "who tells guests their addresses: host, or own: servers among them (default host)")
	f.StringVar(&n.lease, "lease", "", "of addresses, in seconds (default 3600)")
	f.StringArrayVar(&n.dns, "dns", nil, "name server that guests are told (repeatable, the best first)")
	f.StringArrayVar(&n.routes, "route", nil, "route that guests are told, like 10.30.0.0/16=10.20.0.9 (repeatable)")
	f.StringArrayVar(&n.foreign, "foreign-vtep", nil, "tunnel end point that no agent owns (repeatable)")
	f.StringVar(&n.domain, "domain", "", "domain whose hosts route for it, or TENANT/DOMAIN of one that lets it in (default: none)")
	if set {
		f.BoolVar(&n.noDomain, "no-domain", false, "take it out of its domain")
		f.BoolVar(&n.anyHost, "any-host", false, "let all hosts serve it")
		f.BoolVar(&n.noDNS, "no-dns", false, "tell guests no name server")
		f.BoolVar(&n.noRoute, "no-route", false, "tell guests no route")
		f.BoolVar(&n.noForeign, "no-foreign-vtep", false, "let tunnel end points of hosts send only")
	}
}

func (n *networkFlags) any(f *pflag.FlagSet) bool {
	return given(f, "label", "vni", "subnet", "gateway", "mtu", "host", "df", "flood", "distribution", "admission", "dhcp", "lease", "dns", "route", "any-host", "no-dns", "no-route", "foreign-vtep", "no-foreign-vtep", "domain", "no-domain")
}

func (n *networkFlags) home() (overlay.Kind, string, string) { return 0, "", "" }

func (n *networkFlags) apply(f *pflag.FlagSet, r *culvertv1.Resource) error {
	body := r.GetNetwork()
	if body.Spec == nil {
		body.Spec = &culvertv1.NetworkSpec{}
	}
	spec := body.Spec
	if f.Changed("vni") {
		vni, err := overlay.ParseVNI("--vni", n.vni)
		if err != nil {
			return err
		}
		spec.Vni = uint32(vni)
	}
	if f.Changed("mtu") {
		mtu, err := api.ParseMTU("--mtu", n.mtu)
		if err != nil {
			return err
		}
		spec.Mtu = uint32(mtu)
	}
	if f.Changed("subnet") {
		spec.Subnets = nil
		for _, p := range n.subnets {
			spec.Subnets = append(spec.Subnets, &culvertv1.Subnet{Prefix: p})
		}
	}
	for _, g := range n.gateways {
		if err := setGateway(spec.Subnets, g); err != nil {
			return err
		}
	}
	for _, w := range []struct {
		flag, v string
		into    *string
	}{{"df", n.df, &spec.Df}, {"flood", n.flood, &spec.Flood}, {"distribution", n.distribution, &spec.Distribution}, {"admission", n.admission, &spec.Admission}, {"dhcp", n.dhcp, &spec.Dhcp}} {
		if f.Changed(w.flag) {
			*w.into = w.v
		}
	}
	return errorsOf(n.tell(f, spec), n.abroad(f, spec), n.routed(f, spec), hosts(f, n.hosts, n.anyHost, &spec.Hosts), n.labelFlag.apply(body.Metadata))
}

// abroad sets the foreign tunnel end points.
func (n *networkFlags) abroad(f *pflag.FlagSet, spec *culvertv1.NetworkSpec) error {
	if n.noForeign && f.Changed("foreign-vtep") {
		return &overlay.FieldError{Field: "--no-foreign-vtep", Value: "true", Allowed: "no --foreign-vtep beside it"}
	}
	for _, a := range n.foreign {
		if _, err := overlay.ParseAddr("--foreign-vtep", a); err != nil {
			return err
		}
	}
	if n.noForeign || f.Changed("foreign-vtep") {
		spec.ForeignVteps = n.foreign
	}
	return nil
}

// setGateway gives the gateway to the subnet that holds it.
func setGateway(subnets []*culvertv1.Subnet, gateway string) error {
	a, err := netip.ParseAddr(gateway)
	if err != nil {
		return &overlay.FieldError{Field: "--gateway", Value: gateway, Allowed: "an address in one of the subnets"}
	}
	for _, s := range subnets {
		if p, err := netip.ParsePrefix(s.GetPrefix()); err == nil && p.Contains(a) {
			s.Gateway = gateway
			return nil
		}
	}
	return &overlay.FieldError{Field: "--gateway", Value: gateway, Allowed: "an address in one of the subnets"}
}

func hosts(f *pflag.FlagSet, list []string, all bool, into *[]string) error {
	if all && f.Changed("host") {
		return &overlay.FieldError{Field: "--any-host", Value: "true", Allowed: "no --host beside it"}
	}
	if all {
		*into = nil
	}
	if f.Changed("host") {
		*into = list
	}
	return nil
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

type portFlags struct {
	labelFlag
	net, mac, vm string
	ips, hosts   []string
	shared       []string
	anyHost      bool
	noShared     bool
	check        bool
	noCheck      bool
}

func (p *portFlags) define(f *pflag.FlagSet, set bool) {
	p.labelFlag.define(f)
	if !set {
		f.StringVar(&p.net, "network", "", "network that it is in")
	}
	f.StringVar(&p.mac, "mac", "", "MAC of the VM's card (default: allocated)")
	f.StringArrayVar(&p.ips, "ip", nil, "address of the VM (repeatable; default: one a subnet is allocated)")
	f.StringArrayVar(&p.shared, "shared-address", nil, "address that it may hold besides its own, as other ports may (repeatable)")
	f.BoolVar(&p.check, "address-check", false, "let it send from its own and its shared addresses only")
	f.StringVar(&p.vm, "vm", "", "name of the VM, for people and the hypervisor")
	f.StringArrayVar(&p.hosts, "host", nil, "host that it may appear on (repeatable; default: all of the network)")
	if set {
		f.BoolVar(&p.anyHost, "any-host", false, "let it appear on any host of the network")
		f.BoolVar(&p.noShared, "no-shared-address", false, "let it hold its own addresses only")
		f.BoolVar(&p.noCheck, "no-address-check", false, "let it send from any address")
	}
}

func (p *portFlags) any(f *pflag.FlagSet) bool {
	return given(f, "label", "mac", "ip", "vm", "host", "any-host", "shared-address", "no-shared-address", "address-check", "no-address-check")
}

func (p *portFlags) home() (overlay.Kind, string, string) {
	return overlay.KindNetwork, "--network", p.net
}

func (p *portFlags) apply(f *pflag.FlagSet, r *culvertv1.Resource) error {
	body := r.GetPort()
	if body.Spec == nil {
		body.Spec = &culvertv1.PortSpec{}
	}
	if f.Changed("mac") {
		if _, err := api.ParseMAC("--mac", p.mac); err != nil {
			return err
		}
		body.Spec.Mac = p.mac
	}
	if f.Changed("ip") {
		for _, a := range p.ips {
			if _, err := overlay.ParseAddr("--ip", a); err != nil {
				return err
			}
		}
		body.Spec.Addresses = p.ips
	}
	if p.noShared && f.Changed("shared-address") {
		return &overlay.FieldError{Field: "--no-shared-address", Value: "true", Allowed: "no --shared-address beside it"}
	}
	if p.noShared {
		body.Spec.SharedAddresses = nil
	}
	if f.Changed("shared-address") {
		for _, a := range p.shared {
			if _, err := overlay.ParseAddr("--shared-address", a); err != nil {
				return err
			}
		}
		body.Spec.SharedAddresses = p.shared
	}
	if p.noCheck && f.Changed("address-check") {
		return &overlay.FieldError{Field: "--no-address-check", Value: "true", Allowed: "no --address-check beside it"}
	}
	if p.noCheck || f.Changed("address-check") {
		body.Spec.AddressCheck = p.check
	}
	if f.Changed("vm") {
		body.Spec.Vm = p.vm
	}
	return errorsOf(hosts(f, p.hosts, p.anyHost, &body.Spec.Hosts), p.labelFlag.apply(body.Metadata))
}
