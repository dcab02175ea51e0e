package apiserver

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// path is the way from a port to another, or to an address, while it is looked
// along. What is found first to be missing decides the verdict.
type path struct {
	v        *managercore.View
	r        *renderer
	from, to end
	viewer   overlay.UID // tenant default
	service  string
	steps    []*culvertv1.PathStep
	why      string // what is missing first; empty while nothing is
	cure     string
}

// end is one end of a path. Of an address that no endpoint has there is only
// the address.
type end struct {
	name string // as people call it
	port *overlay.Port
	net  *overlay.Network // nil of an address beyond all networks
	ep   *overlay.Endpoint
	host *overlay.Host // nil while it is bound nowhere
	addr netip.Addr    // that the path is about; invalid if it has none
}

// alive reports whether the end is on a host that may be asked.
func (e *end) alive() bool { return e.host != nil && !e.host.Dead }

// What a step is about, and how it is.
const (
	aboutPlace, aboutPolicy, aboutPort, aboutTable = "place", "policy", "port", "table"

	stepOK, stepNote, stepFails = "ok", "note", "fails"
)

func (p *path) step(host, about, state, text string) {
	p.steps = append(p.steps, &culvertv1.PathStep{Host: host, About: about, State: state, Text: text})
}

// fails notes a step that ends the way, and what cures it if it is the first.
func (p *path) fails(host, about, text, cure string) {
	p.step(host, about, stepFails, text)
	if p.why != "" {
		return
	}
	if p.why, p.cure = text, cure; host != "" {
		p.why = "on " + host + ", " + text
	}
}

const notExplained = "The path was not explained"

// ExplainPath follows a packet from one port to another, by the records and by
// what the hosts' kernels hold. It changes nothing.
func (s *Server) ExplainPath(ctx context.Context, req *culvertv1.ExplainPathRequest) (*culvertv1.ExplainPathResponse, error) {
	p := &path{v: s.b.View(), service: req.GetService()}
	p.r = s.rendererOf(p.v)
	if t := p.v.Named(overlay.KindTenant, overlay.UID{}, api.DefaultTenant); t != nil {
		p.viewer = t.Key.UID
	}
	if err := checkService(p.service); err != nil {
		return nil, refuseValue(notExplained, err)
	}
	var err error
	if p.from, err = p.find("VM1", req.GetTenant(), req.GetFrom()); err != nil {
		return nil, err
	}
	if a, bad := netip.ParseAddr(req.GetTo()); bad == nil {
		p.to = p.at(a.Unmap())
	} else if p.to, err = p.find("VM2", req.GetTenant(), req.GetTo()); err != nil {
		return nil, err
	}
	if p.from.port == p.to.port {
		return nil, refuseField(notExplained, "VM2", req.GetTo(), "another VM than VM1")
	}
	p.follow(ctx, s.b)
	out := &culvertv1.ExplainPathResponse{Reachable: p.why == "", Steps: p.steps, Cure: p.cure}
	if out.Reachable {
		out.Verdict = p.from.name + " reaches " + p.to.name + ": " + p.way()
	} else {
		out.Verdict = p.from.name + " does not reach " + p.to.name + ": " + p.why
	}
	return out, nil
}

// checkService wants tcp/443, udp/53, icmp or nothing.
func checkService(s string) error {
	proto, port, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if s == "" || s == "icmp" || (proto == "tcp" || proto == "udp") && err == nil && n > 0 {
		return nil
	}
	return &overlay.FieldError{Field: "SERVICE", Value: s, Allowed: "tcp/PORT, udp/PORT or icmp"}
}

// find is the port of that name, or the only port of the VM of that name: of the
// tenant, else of tenant default, else the only match.
func (p *path) find(field, tenant, arg string) (end, error) {
	name := arg
	if t, n, ok := strings.Cut(arg, "/"); ok {
		tenant, name = t, n
	}
	if err := overlay.CheckName(field, name); err != nil {
		return end{}, refuseValue(notExplained, err)
	}
	var byName, byVM []*overlay.Port
	for it := range p.v.List(overlay.KindPort, overlay.UID{}) {
		port := it.Rec.(*overlay.Port)
		if tenant != "" && p.r.tenant(port.Tenant) != tenant {
			continue
		}
		if port.Name == name {
			byName = append(byName, port)
		}
		if port.VM == name {
			byVM = append(byVM, port)
		}
	}
	found := byName
	if len(found) == 0 {
		found = byVM
	}
	if i := slices.IndexFunc(found, func(port *overlay.Port) bool { return p.r.tenant(port.Tenant) == api.DefaultTenant }); i >= 0 && len(byName) > 0 {
		found = found[i : i+1]
	}
	switch len(found) {
	case 0:
		return end{}, api.Refuse(api.CodeNotFound, notExplained, "no port and no VM is called "+arg, "see which there are: culvert port list")
	case 1:
		return p.endOf(found[0]), nil
	}
	var names []string
	for _, port := range found {
		names = append(names, p.r.nameOf(port))
	}
	return end{}, api.Refuse(api.CodeAmbiguous, notExplained, fmt.Sprintf("%s may be %d ports", arg, len(found)), "name one of them: TENANT/PORT", names...)
}

// net and domain are names as somebody types them: with the tenant, if that is
// not the default one.
func (p *path) net(n *overlay.Network) string    { return p.r.networkName(p.viewer, n.UID) }
func (p *path) domain(n *overlay.Network) string { return p.r.domain(p.viewer, n.Domain) }

func (p *path) endOf(port *overlay.Port) end {
	e := end{name: port.Name, port: port, net: p.r.network(port.Network)}
	if it := p.v.Endpoint(port.Network, port.MAC); it != nil {
		p.bind(&e, it.Rec.(*overlay.Endpoint))
	}
	return e
}

func (p *path) bind(e *end, ep *overlay.Endpoint) { e.ep, e.host = ep, p.v.Host(ep.Host) }

// at is who has an address: in the network of the path's beginning, else in one
// that it reaches, else in another of its domain.
func (p *path) at(a netip.Addr) end {
	n := p.from.net
	for _, uid := range slices.Concat([]overlay.UID{n.UID}, n.Reach, n.Bridge, p.domainOf(n)) {
		for it := range p.v.Endpoints(uid) {
			ep := it.Rec.(*overlay.Endpoint)
			if !slices.Contains(ep.Addresses, a) {
				continue
			}
			e := end{name: a.String(), net: p.r.network(uid), addr: a}
			if e.port = p.v.Port(uid, ep.Port); e.port != nil {
				e.name = e.port.Name + " (" + a.String() + ")"
			}
			p.bind(&e, ep)
			return e
		}
	}
	return end{name: a.String(), addr: a}
}

// domainOf are the other networks of a network's domain.
func (p *path) domainOf(n *overlay.Network) (out []overlay.UID) {
	if n.Domain.IsZero() {
		return nil
	}
	for it := range p.v.List(overlay.KindNetwork, overlay.UID{}) {
		if o := it.Rec.(*overlay.Network); o.Domain == n.Domain && o.UID != n.UID {
			out = append(out, o.UID)
		}
	}
	return out
}

// follow looks along the way, from its beginning.
func (p *path) follow(ctx context.Context, b Backend) {
	p.place(&p.from)
	if p.to.net == nil {
		p.beyond()
	} else {
		p.place(&p.to)
		p.pair()
		p.policy()
	}
	p.kernels(ctx, b)
}

// place says where an end is.
func (p *path) place(e *end) {
	switch {
	case e.ep == nil:
		p.fails("", aboutPlace, e.name+" is on no host: nobody has claimed it", "start its VM, or on its host: culvert attach "+e.name+" --dev DEVICE")
	case e.host == nil:
		p.fails("", aboutPlace, e.name+" is bound to a host that does not exist any more", "start its VM on another host")
	case e.host.Dead:
		p.fails("", aboutPlace, fmt.Sprintf("%s is on %s, which is dead", e.name, e.host.Name), "culvert status host "+e.host.Name)
	default:
		p.step(e.host.Name, aboutPlace, stepOK, fmt.Sprintf("%s is here (%s): MAC %s, network %s, known by its %s", e.name, e.host.VTEP, e.ep.MAC, p.net(e.net), e.ep.Evidence))
	}
}

// pair picks an address of each end, of one family.
func (p *path) pair() {
	if p.from.ep == nil || p.to.ep == nil {
		return
	}
	theirs := p.to.ep.Addresses
	if p.to.addr.IsValid() {
		theirs = []netip.Addr{p.to.addr}
	}
	for _, t := range theirs {
		for _, a := range p.from.ep.Addresses {
			if a.Is4() == t.Is4() {
				p.from.addr, p.to.addr = a, t
				return
			}
		}
	}
	const none = "the two have no known addresses of one family"
	if p.from.net.UID == p.to.net.UID {
		p.step("", aboutPlace, stepNote, none+": this is about frames to the MAC")
		return
	}
	p.fails("", aboutPlace, none+", and between networks only packets are routed", "culvert port show "+p.from.name)
}

// policy says whether the records let the one send to the other.
func (p *path) policy() {
	n, m := p.from.net, p.to.net
	switch {
	case n.UID == m.UID:
		p.step("", aboutPolicy, stepOK, "both are in network "+p.net(n)+", within which everything is open")
	case contains(n.Bridge, m.UID):
		p.step("", aboutPolicy, stepOK, fmt.Sprintf("networks %s and %s are joined by layer 2%s", p.net(n), p.net(m), p.policies(n, m)))
	case contains(n.Reach, m.UID):
		p.step("", aboutPolicy, stepOK, fmt.Sprintf("network %s reaches network %s by way of its gateway%s", p.net(n), p.net(m), p.policies(n, m)))
		if !contains(m.Reach, n.UID) {
			p.oneWay(n, m)
		}
	case n.Domain.IsZero() || n.Domain != m.Domain:
		p.fails("", aboutPolicy, fmt.Sprintf("networks %s and %s are in no domain together", p.net(n), p.net(m)),
			fmt.Sprintf("culvert network set %s --domain DOMAIN, the same for %s, and then a policy: culvert policy create --help", p.net(n), p.net(m)))
	default:
		domain := p.domain(n)
		p.fails("", aboutPolicy, fmt.Sprintf("no policy of domain %s opens the way from network %s to network %s", domain, p.net(n), p.net(m)),
			fmt.Sprintf("culvert policy create %s-%s --domain %s --from %s --to %s", n.Name, m.Name, domain, p.net(n), p.net(m)))
	}
}

// oneWay says what a policy of one direction means for the service.
func (p *path) oneWay(n, m *overlay.Network) {
	text := fmt.Sprintf("nothing opens the way back from network %s to network %s, so that no answer arrives", p.net(m), p.net(n))
	if strings.HasPrefix(p.service, "udp/") {
		p.step("", aboutPolicy, stepNote, text)
		return
	}
	p.fails("", aboutPolicy, text, "culvert policy set POLICY --direction both"+p.policies(n, m))
}

// policies lists those that open the way from one network to another.
func (p *path) policies(n, m *overlay.Network) string {
	var names []string
	for it := range p.v.List(overlay.KindPolicy, overlay.UID{}) {
		w := it.Rec.(*overlay.Policy)
		if w.From == n.UID && w.To == m.UID || w.Both && w.From == m.UID && w.To == n.UID {
			names = append(names, w.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " (policy " + strings.Join(names, ", ") + ")"
}

func contains(sorted []overlay.UID, uid overlay.UID) bool {
	_, ok := slices.BinarySearchFunc(sorted, uid, overlay.UID.Compare)
	return ok
}

// beyond says what becomes of packets to an address that no endpoint has.
func (p *path) beyond() {
	n, a := p.from.net, p.to.addr
	for _, s := range n.Subnets {
		switch {
		case s.Gateway == a && !n.Domain.IsZero():
			p.step("", aboutPolicy, stepOK, fmt.Sprintf("%s is network %s's gateway, which each host is for its own guests", a, p.net(n)))
			return
		case s.Prefix.Contains(a):
			p.fails("", aboutPlace, fmt.Sprintf("nobody in network %s has %s", p.net(n), a), "see who is there: culvert endpoint list --network "+p.net(n))
			return
		}
	}
	var best overlay.NextHop
	for _, h := range n.Routes {
		if h.Prefix.Contains(a) && (!best.Prefix.IsValid() || h.Prefix.Bits() > best.Prefix.Bits()) {
			best = h
		}
	}
	if n.Domain.IsZero() {
		p.fails("", aboutPolicy, "network "+p.net(n)+" is in no domain, so that nothing is routed out of it", "culvert network set "+p.net(n)+" --domain DOMAIN")
		return
	}
	if !best.Prefix.IsValid() {
		p.fails("", aboutPolicy, fmt.Sprintf("%s is nobody's that network %s reaches, and no route of domain %s leads there", a, p.net(n), p.domain(n)), "culvert domain set "+p.domain(n)+" --route PREFIX=VIA")
		return
	}
	it := p.v.Endpoint(best.Network, best.MAC)
	if it == nil {
		p.fails("", aboutPlace, fmt.Sprintf("the route to %s leads to MAC %s, which is on no host", best.Prefix, best.MAC), "start the VM of the next hop")
		return
	}
	p.to.net = p.r.network(best.Network)
	p.bind(&p.to, it.Rec.(*overlay.Endpoint))
	next := "MAC " + best.MAC.String()
	if port := p.v.Port(best.Network, p.to.ep.Port); port != nil {
		next = "port " + port.Name
	}
	p.step("", aboutPolicy, stepOK, fmt.Sprintf("the route to %s leads to %s on %s, which sends it on", best.Prefix, next, p.r.hostName(p.to.ep.Host)))
}

// way is the verdict on a path that is whole.
func (p *path) way() string {
	switch {
	case p.to.host == nil:
		return "its own host answers"
	case p.from.host.UID == p.to.host.UID:
		return "both are on " + p.from.host.Name + ", nothing crosses the underlay"
	}
	return fmt.Sprintf("in one hop over the underlay, from %s (%s) to %s (%s), VNI %d", p.from.host.Name, p.from.host.VTEP, p.to.host.Name, p.to.host.VTEP, p.to.net.VNI)
}
