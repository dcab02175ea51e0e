package api

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// GatewayStates are of all gateways that the host is a candidate of.
type GatewayStates struct{ States []overlay.GatewayState }

func gatewayStatesPB(g *GatewayStates) *culvertv1.Up {
	out := &culvertv1.GatewayStates{}
	for i := range g.States {
		s := &g.States[i]
		out.Gateways = append(out.Gateways, &culvertv1.GatewayState{Gateway: uidBytes(s.Gateway), Ready: s.Ready, Active: s.Active, Step: text(s.Step), Reason: text(s.Reason)})
	}
	return &culvertv1.Up{Body: &culvertv1.Up_GatewayStates{GatewayStates: out}}
}

func (d *streamDecoder) gatewayStates(pb *culvertv1.GatewayStates) *GatewayStates {
	out := &GatewayStates{}
	if !d.most(len(pb.GetGateways()), MaxStreamClaims, "gateways") {
		return out
	}
	for _, s := range pb.GetGateways() {
		out.States = append(out.States, overlay.GatewayState{
			Gateway: d.uid(s.GetGateway(), "gateway", true), Ready: s.GetReady(), Active: s.GetActive(),
			Step: d.text(s.GetStep(), "step of a gateway"), Reason: d.text(s.GetReason(), "reason of a gateway"),
		})
	}
	return out
}

func gatewayPB(g *overlay.Gateway) *culvertv1.GatewayRecord {
	pb := &culvertv1.GatewayRecord{
		Meta: metaPB(&g.Meta), TenantName: g.TenantName, Domain: uidBytes(g.Domain), Hosts: g.Hosts, Uplink: g.Uplink,
		NextHops: addrsBytes(g.NextHops), Snat: addrsBytes(g.SNAT), Networks: uidsBytes(g.Networks), Active: uidBytes(g.Active),
	}
	for _, p := range g.Addresses {
		pb.Addresses = append(pb.Addresses, &culvertv1.PrefixRecord{Address: p.Addr().AsSlice(), Bits: uint32(p.Bits())})
	}
	for _, f := range g.Floating {
		pb.Floating = append(pb.Floating, &culvertv1.FloatingRecord{Outside: addrBytes(f.Outside), Inside: addrBytes(f.Inside)})
	}
	for _, f := range g.Forwards {
		pb.Forwards = append(pb.Forwards, &culvertv1.ForwardRecord{
			Protocol: uint32(f.Protocol), Outside: addrBytes(f.Outside), Port: uint32(f.Port), Inside: addrBytes(f.Inside), ToPort: uint32(f.ToPort),
		})
	}
	for _, l := range g.Legs {
		pb.Legs = append(pb.Legs, &culvertv1.LegRecord{Network: uidBytes(l.Network), Port: l.Port, Mac: macBytes(l.MAC), Addresses: addrsBytes(l.Addresses)})
	}
	return pb
}

func (d *decoder) gateway(g *culvertv1.GatewayRecord) *overlay.Gateway {
	out := &overlay.Gateway{
		Meta: d.meta(g.GetMeta()), TenantName: g.GetTenantName(), Domain: d.uid(g.GetDomain(), "gateway's domain", true),
		Hosts: g.GetHosts(), Uplink: g.GetUplink(), NextHops: d.addrs(g.GetNextHops(), "gateway's next hops"), SNAT: d.addrs(g.GetSnat(), "gateway's addresses"),
		Active: d.uid(g.GetActive(), "gateway's host", false),
	}
	if len(g.GetNetworks()) > overlay.MaxGatewayLegs || len(g.GetLegs()) > overlay.MaxGatewayLegs || len(g.GetFloating()) > overlay.MaxGatewayFloating ||
		len(g.GetForwards()) > overlay.MaxGatewayForwards || len(g.GetAddresses()) > maxRecordAddresses || len(out.Hosts) > overlay.MaxGatewayHosts {
		d.refuse("lists of a gateway")
		return out
	}
	if overlay.CheckName("tenant", out.TenantName) != nil || CheckDevice("uplink", out.Uplink) != nil {
		d.refuse("gateway's tenant or uplink")
	}
	for _, h := range out.Hosts {
		if overlay.CheckName("host", h) != nil {
			d.refuse("gateway's hosts")
		}
	}
	for _, p := range g.GetAddresses() {
		a := d.addr(p.GetAddress(), "gateway's address", true)
		if int(p.GetBits()) > a.BitLen() {
			d.refuse("gateway's address")
		}
		out.Addresses = append(out.Addresses, netip.PrefixFrom(a, int(p.GetBits())))
	}
	for i, b := range g.GetNetworks() {
		out.Networks = append(out.Networks, d.uid(b, "gateway's network", true))
		if i > 0 && bytes.Compare(g.GetNetworks()[i-1], b) >= 0 {
			d.refuse("gateway's networks")
		}
	}
	for _, f := range g.GetFloating() {
		out.Floating = append(out.Floating, overlay.Floating{Outside: d.addr(f.GetOutside(), "floating address", true), Inside: d.addr(f.GetInside(), "floating address", true)})
	}
	for _, f := range g.GetForwards() {
		if f.GetProtocol() > 255 || f.GetPort() > 65535 || f.GetToPort() > 65535 {
			d.refuse("port forward")
		}
		out.Forwards = append(out.Forwards, overlay.Forward{
			Protocol: uint8(f.GetProtocol()), Outside: d.addr(f.GetOutside(), "port forward", true), Port: uint16(f.GetPort()),
			Inside: d.addr(f.GetInside(), "port forward", true), ToPort: uint16(f.GetToPort()),
		})
	}
	for i, l := range g.GetLegs() {
		out.Legs = append(out.Legs, overlay.Leg{Network: d.uid(l.GetNetwork(), "leg's network", true), Port: l.GetPort(), MAC: d.mac(l.GetMac(), "leg's MAC", true), Addresses: d.addrs(l.GetAddresses(), "leg's addresses")})
		if overlay.CheckName("port", l.GetPort()) != nil || i > 0 && out.Legs[i-1].Network.Compare(out.Legs[i].Network) >= 0 {
			d.refuse("gateway's legs")
		}
	}
	return out
}

// CheckDevice accepts a name that a network device may have (dev_valid_name in
// net/core/dev.c).
func CheckDevice(field, s string) error {
	ok := len(s) >= 1 && len(s) <= 15 && s != "." && s != ".."
	for i := 0; ok && i < len(s); i++ {
		ok = s[i] > ' ' && s[i] < 0x7f && s[i] != '/' && s[i] != ':'
	}
	if !ok {
		return &overlay.FieldError{Field: field, Value: s, Allowed: "the name of a network device, like eth1"}
	}
	return nil
}

func parseGateway(g *culvertv1.Gateway) (overlay.Doc, error) {
	d, err := parseHead(g, overlay.KindGateway)
	if err != nil {
		return overlay.Doc{}, err
	}
	s := g.GetSpec()
	spec := &d.Gateway
	spec.Domain, spec.Uplink = s.GetDomain(), s.GetUplink().GetDevice()
	if err := overlay.CheckName("spec.domain", spec.Domain); err != nil {
		return overlay.Doc{}, err
	}
	if n := len(s.GetHosts()); n < 1 || n > overlay.MaxGatewayHosts {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.hosts", Value: fmt.Sprintf("%d hosts", n), Allowed: fmt.Sprintf("1 to %d hosts", overlay.MaxGatewayHosts)}
	}
	if _, err := parseNames("spec.hosts", s.GetHosts()); err != nil { // their order says something
		return overlay.Doc{}, err
	}
	spec.Hosts = slices.Clone(s.GetHosts())
	if err := CheckDevice("spec.uplink.device", spec.Uplink); err != nil {
		return overlay.Doc{}, err
	}
	if err := parseUplink(spec, s.GetUplink()); err != nil {
		return overlay.Doc{}, err
	}
	if spec.SNAT, err = parseAddresses("spec.snat", s.GetSnat()); err != nil {
		return overlay.Doc{}, err
	}
	if i := slices.IndexFunc(spec.SNAT, netip.Addr.Is6); i >= 0 || len(spec.SNAT) > overlay.MaxGatewaySNAT {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.snat", Value: fmt.Sprint(spec.SNAT), Allowed: fmt.Sprintf("at most %d IPv4 addresses: IPv6 is routed as it is", overlay.MaxGatewaySNAT)}
	}
	if err := parseFloating(spec, s.GetFloating()); err != nil {
		return overlay.Doc{}, err
	}
	if err := parseForwards(spec, s.GetForwards()); err != nil {
		return overlay.Doc{}, err
	}
	spec.Networks, err = parseNames("spec.networks", s.GetNetworks())
	return d, err
}

func parseUplink(spec *overlay.GatewaySpec, u *culvertv1.GatewayUplink) error {
	const field = "spec.uplink.addresses"
	if n := len(u.GetAddresses()); n < 1 || n > overlay.MaxGatewaySNAT {
		return &overlay.FieldError{Field: field, Value: fmt.Sprintf("%d addresses", n), Allowed: fmt.Sprintf("1 to %d addresses like 203.0.113.10/24", overlay.MaxGatewaySNAT)}
	}
	for i, s := range u.GetAddresses() {
		at := fmt.Sprintf("%s[%d]", field, i)
		p, err := netip.ParsePrefix(s)
		if err == nil {
			_, err = overlay.ParseAddr(at, p.Addr().String())
		}
		sub := overlay.Subnet{Prefix: p.Masked()}
		if err != nil || p.Bits() < 8 || p.Bits() < p.Addr().BitLen()-2 && !sub.Usable(p.Addr()) || p.Addr().IsLinkLocalUnicast() {
			return &overlay.FieldError{Field: at, Value: s, Allowed: "an address with the length of its prefix, like 203.0.113.10/24 or 2001:db8::10/64"}
		}
		if slices.ContainsFunc(spec.Addresses, func(q netip.Prefix) bool { return q.Addr() == p.Addr() }) {
			return &overlay.FieldError{Field: at, Value: s, Allowed: "each address once"}
		}
		spec.Addresses = append(spec.Addresses, p)
	}
	slices.SortFunc(spec.Addresses, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	var err error
	if spec.NextHops, err = parseAddresses("spec.uplink.nextHops", u.GetNextHops()); err != nil {
		return err
	}
	for i, n := range spec.NextHops {
		on := func(p netip.Prefix) bool { return p.Contains(n) && p.Addr() != n }
		if i > 0 && spec.NextHops[i-1].Is4() == n.Is4() || !slices.ContainsFunc(spec.Addresses, on) {
			return &overlay.FieldError{Field: "spec.uplink.nextHops", Value: n.String(), Allowed: "at most one router a family, in the prefix of one of spec.uplink.addresses"}
		}
	}
	if len(spec.NextHops) == 0 {
		return &overlay.FieldError{Field: "spec.uplink.nextHops", Value: "", Allowed: "the router outside, like 203.0.113.1"}
	}
	return nil
}

func parseFloating(spec *overlay.GatewaySpec, list []*culvertv1.FloatingAddress) error {
	if len(list) > overlay.MaxGatewayFloating {
		return &overlay.FieldError{Field: "spec.floating", Value: fmt.Sprintf("%d addresses", len(list)), Allowed: fmt.Sprintf("at most %d", overlay.MaxGatewayFloating)}
	}
	for i, f := range list {
		at := fmt.Sprintf("spec.floating[%d]", i)
		out, err := overlay.ParseAddr(at+".address", f.GetAddress())
		if err != nil {
			return err
		}
		in, err := overlay.ParseAddr(at+".to", f.GetTo())
		if err != nil {
			return err
		}
		taken := func(g overlay.Floating) bool { return g.Outside == out || g.Inside == in }
		if out.Is4() != in.Is4() || slices.ContainsFunc(spec.Floating, taken) || slices.ContainsFunc(spec.Addresses, func(p netip.Prefix) bool { return p.Addr() == out }) || slices.Contains(spec.SNAT, out) {
			return &overlay.FieldError{Field: at, Value: f.GetAddress() + " to " + f.GetTo(), Allowed: "two addresses of one family, each in one entry alone, and not the gateway's own"}
		}
		spec.Floating = append(spec.Floating, overlay.Floating{Outside: out, Inside: in})
	}
	slices.SortFunc(spec.Floating, func(a, b overlay.Floating) int { return a.Outside.Compare(b.Outside) })
	return nil
}

func parseForwards(spec *overlay.GatewaySpec, list []*culvertv1.PortForward) error {
	if len(list) > overlay.MaxGatewayForwards {
		return &overlay.FieldError{Field: "spec.forwards", Value: fmt.Sprintf("%d forwards", len(list)), Allowed: fmt.Sprintf("at most %d", overlay.MaxGatewayForwards)}
	}
	for i, f := range list {
		at := fmt.Sprintf("spec.forwards[%d]", i)
		w := overlay.Forward{Port: uint16(f.GetPort()), ToPort: uint16(cmp.Or(f.GetToPort(), f.GetPort()))}
		switch f.GetProtocol() {
		case "tcp":
			w.Protocol = 6
		case "udp":
			w.Protocol = 17
		default:
			return &overlay.FieldError{Field: at + ".protocol", Value: f.GetProtocol(), Allowed: "tcp or udp"}
		}
		var err error
		if w.Inside, err = overlay.ParseAddr(at+".to", f.GetTo()); err != nil {
			return err
		}
		g := overlay.Gateway{Addresses: spec.Addresses}
		if w.Outside = g.Own(w.Inside.Is4()); f.GetAddress() != "" || !w.Outside.IsValid() {
			if w.Outside, err = overlay.ParseAddr(at+".address", f.GetAddress()); err != nil {
				return err
			}
		}
		same := func(o overlay.Forward) bool {
			return o.Outside == w.Outside && o.Protocol == w.Protocol && o.Port == w.Port
		}
		floats := func(o overlay.Floating) bool { return o.Outside == w.Outside }
		if f.GetPort() < 1 || f.GetPort() > 65535 || f.GetToPort() > 65535 || w.Outside.Is4() != w.Inside.Is4() ||
			slices.ContainsFunc(spec.Forwards, same) || slices.ContainsFunc(spec.Floating, floats) {
			return &overlay.FieldError{Field: at, Value: fmt.Sprintf("%s port %d to %s port %d", w.Outside, f.GetPort(), w.Inside, f.GetToPort()),
				Allowed: "ports of 1 to 65535 and addresses of one family, the one outside with its port in one entry alone, and not a floating one"}
		}
		spec.Forwards = append(spec.Forwards, w)
	}
	slices.SortFunc(spec.Forwards, func(a, b overlay.Forward) int {
		return cmp.Or(a.Outside.Compare(b.Outside), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return nil
}

// GatewayNames are the names behind the UIDs of a gateway.
type GatewayNames struct {
	Tenant, Domain, Active string
	Networks               []string // of those that it names, sorted
	Serves                 []string // networks of its legs, in their order
}

// RenderGateway shows a gateway; what is known of its hosts is the caller's to
// add.
func RenderGateway(g *overlay.Gateway, names GatewayNames, rev overlay.Rev) *culvertv1.Gateway {
	spec := &culvertv1.GatewaySpec{Domain: names.Domain, Hosts: g.Hosts, Snat: addrStrings(g.SNAT), Networks: names.Networks,
		Uplink: &culvertv1.GatewayUplink{Device: g.Uplink, NextHops: addrStrings(g.NextHops)}}
	for _, p := range g.Addresses {
		spec.Uplink.Addresses = append(spec.Uplink.Addresses, p.String())
	}
	for _, f := range g.Floating {
		spec.Floating = append(spec.Floating, &culvertv1.FloatingAddress{Address: f.Outside.String(), To: f.Inside.String()})
	}
	for _, f := range g.Forwards {
		w := &culvertv1.PortForward{Protocol: ProtocolName(f.Protocol), Port: uint32(f.Port), To: f.Inside.String()}
		if f.Outside != g.Own(f.Outside.Is4()) {
			w.Address = f.Outside.String()
		}
		if f.ToPort != f.Port {
			w.ToPort = uint32(f.ToPort)
		}
		spec.Forwards = append(spec.Forwards, w)
	}
	status := &culvertv1.GatewayStatus{Active: names.Active, Networks: names.Serves}
	for _, l := range g.Legs {
		status.Ports = append(status.Ports, l.Port)
	}
	return &culvertv1.Gateway{ApiVersion: Version, Kind: "Gateway", Metadata: renderMeta(&g.Meta, names.Tenant, rev), Spec: spec, Status: status}
}

// ProtocolName is the word for a forward's protocol.
func ProtocolName(p uint8) string {
	if p == 17 {
		return "udp"
	}
	return "tcp"
}
