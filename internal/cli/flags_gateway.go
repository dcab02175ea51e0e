package cli

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

type gatewayFlags struct {
	labelFlag
	domain, uplink                               string
	hosts, addresses, nextHops                   []string
	snat, floating, forwards, networks           []string
	noSNAT, noFloating, noForward, allOfNetworks bool
}

func (g *gatewayFlags) define(f *pflag.FlagSet, set bool) {
	g.labelFlag.define(f)
	f.StringArrayVar(&g.hosts, "host", nil, "host that may have it (repeatable, the preferred first)")
	f.StringVar(&g.uplink, "uplink", "", "name of the hosts' device on the outside network")
	f.StringArrayVar(&g.addresses, "address", nil, "the gateway's own address outside, like 203.0.113.10/24 (repeatable)")
	f.StringArrayVar(&g.nextHops, "next-hop", nil, "router outside (repeatable, one a family)")
	f.StringArrayVar(&g.snat, "snat", nil, "IPv4 address outside that guests send from (repeatable; default: the first own one)")
	f.StringArrayVar(&g.floating, "floating", nil, "address outside that is a guest's, like 203.0.113.20=10.20.0.5 (repeatable)")
	f.StringArrayVar(&g.forwards, "forward", nil, "port outside that is a guest's, like tcp/8080=10.20.0.7:80 or tcp/203.0.113.21:80=10.20.0.7:80 (repeatable)")
	f.StringArrayVar(&g.networks, "network", nil, "network of the domain that it serves (repeatable; default: all)")
	if set {
		f.BoolVar(&g.noSNAT, "no-snat", false, "let guests send from the first own address")
		f.BoolVar(&g.noFloating, "no-floating", false, "take all floating addresses away")
		f.BoolVar(&g.noForward, "no-forward", false, "take all port forwards away")
		f.BoolVar(&g.allOfNetworks, "all-networks", false, "serve all networks of the domain")
		return
	}
	f.StringVar(&g.domain, "domain", "", "domain that it leads out of")
}

func (g *gatewayFlags) any(f *pflag.FlagSet) bool {
	return given(f, "label", "host", "uplink", "address", "next-hop", "snat", "floating", "forward", "network", "no-snat", "no-floating", "no-forward", "all-networks")
}

func (g *gatewayFlags) home() (overlay.Kind, string, string) {
	return overlay.KindDomain, "--domain", g.domain
}

func (g *gatewayFlags) apply(f *pflag.FlagSet, r *culvertv1.Resource) error {
	body := r.GetGateway()
	if body.Spec == nil {
		body.Spec = &culvertv1.GatewaySpec{}
	}
	spec := body.Spec
	if spec.Uplink == nil {
		spec.Uplink = &culvertv1.GatewayUplink{}
	}
	if f.Changed("uplink") {
		spec.Uplink.Device = g.uplink
	}
	for _, l := range []struct {
		flag, none string
		list       []string
		off        bool
		into       *[]string
	}{
		{"host", "", g.hosts, false, &spec.Hosts}, {"address", "", g.addresses, false, &spec.Uplink.Addresses}, {"next-hop", "", g.nextHops, false, &spec.Uplink.NextHops},
		{"snat", "no-snat", g.snat, g.noSNAT, &spec.Snat}, {"network", "all-networks", g.networks, g.allOfNetworks, &spec.Networks},
	} {
		if err := either(f, l.flag, l.none, l.off); err != nil {
			return err
		}
		if l.off || f.Changed(l.flag) {
			*l.into = l.list
		}
	}
	return errorsOf(g.floats(f, spec), g.forward(f, spec), g.labelFlag.apply(body.Metadata))
}

// either refuses a flag that takes all away beside one that gives some.
func either(f *pflag.FlagSet, flag, none string, off bool) error {
	if off && f.Changed(flag) {
		return &overlay.FieldError{Field: "--" + none, Value: "true", Allowed: "no --" + flag + " beside it"}
	}
	return nil
}

func (g *gatewayFlags) floats(f *pflag.FlagSet, spec *culvertv1.GatewaySpec) error {
	if err := either(f, "floating", "no-floating", g.noFloating); err != nil {
		return err
	}
	if g.noFloating || f.Changed("floating") {
		spec.Floating = nil
	}
	for _, s := range g.floating {
		out, in, ok := strings.Cut(s, "=")
		if !ok {
			return &overlay.FieldError{Field: "--floating", Value: s, Allowed: "OUTSIDE=INSIDE, like 203.0.113.20=10.20.0.5"}
		}
		spec.Floating = append(spec.Floating, &culvertv1.FloatingAddress{Address: out, To: in})
	}
	return nil
}

func (g *gatewayFlags) forward(f *pflag.FlagSet, spec *culvertv1.GatewaySpec) error {
	if err := either(f, "forward", "no-forward", g.noForward); err != nil {
		return err
	}
	if g.noForward || f.Changed("forward") {
		spec.Forwards = nil
	}
	for _, s := range g.forwards {
		w, ok := parseForward(s)
		if !ok {
			return &overlay.FieldError{Field: "--forward", Value: s, Allowed: "tcp/PORT=ADDRESS:PORT or tcp/ADDRESS:PORT=ADDRESS:PORT, and so with udp; IPv6 in brackets"}
		}
		spec.Forwards = append(spec.Forwards, w)
	}
	return nil
}

func parseForward(s string) (*culvertv1.PortForward, bool) {
	protocol, rest, ok := strings.Cut(s, "/")
	out, in, ok2 := strings.Cut(rest, "=")
	to, err := netip.ParseAddrPort(in)
	if !ok || !ok2 || err != nil {
		return nil, false
	}
	w := &culvertv1.PortForward{Protocol: protocol, To: to.Addr().String(), ToPort: uint32(to.Port())}
	if port, err := strconv.ParseUint(out, 10, 16); err == nil {
		w.Port = uint32(port)
	} else if at, err := netip.ParseAddrPort(out); err == nil {
		w.Address, w.Port = at.Addr().String(), uint32(at.Port())
	} else {
		return nil, false
	}
	if w.ToPort == w.Port {
		w.ToPort = 0
	}
	return w, true
}

// gatewaySummary is what a changing verb says of a gateway.
func gatewaySummary(g *culvertv1.Gateway) string {
	text := strings.Join(g.GetSpec().GetUplink().GetAddresses(), ", ") + " on " + g.GetSpec().GetUplink().GetDevice() + " of " + strings.Join(g.GetSpec().GetHosts(), ", ")
	if n := g.GetStatus().GetNetworks(); len(n) > 0 {
		text += ", for " + strings.Join(n, " ")
	}
	return text
}

func gatewayRow(g *culvertv1.Gateway) []string {
	st := g.GetStatus()
	var hosts []string
	for _, h := range st.GetHosts() {
		hosts = append(hosts, h.GetHost()+":"+strings.ReplaceAll(h.GetState(), " ", "-"))
	}
	return []string{title(g.GetMetadata()), g.GetSpec().GetDomain(), strings.Join(g.GetSpec().GetUplink().GetAddresses(), " "), orDash(strings.Join(st.GetNetworks(), " ")),
		orDash(st.GetActive()), st.GetState(), strings.Join(hosts, " ")}
}
