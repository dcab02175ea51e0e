package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/answer"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// What a guest asks its network, its own host answers: nothing of it needs the
// manager, another host, or a lease that somebody keeps, since an address
// belongs to the port that it was declared for.

// Bounds of answers: the port program hands up at most 100 frames a second, of
// which half may be worth one.
const (
	answerEvery = 20 * millisecond
	answerBurst = 50
	maxOrders   = 1024 // that wait for the kernel edge
)

// Router advertisements. Their lifetimes are RFC 4861's defaults (section
// 6.2.1), the interval half of the longest that it allows between two.
const (
	advertEvery     = 300 * second
	prefixValid     = 30 * 24 * 3600 // seconds
	prefixPreferred = 7 * 24 * 3600
	listLifetime    = 3 * 300 // of name servers, seconds (RFC 8106 section 5.1)
)

// conflictTime is how long a guest's word that its address is taken counts. It
// asks again ten seconds later (RFC 2131 section 3.1), and says so again.
const conflictTime = 120 * second

// serverIP6 is from where IPv6 answers come (RFC 4861 section 4.2).
var serverIP6 = overlay.EUI64LinkLocal(overlay.ServerMAC)

// tells reports whether hosts tell the network's guests.
func (n *network) tells() bool { return n.rec.Tell.DHCP == overlay.DHCPHost && !n.rec.Blocked }

// advertises reports whether they send router advertisements.
func (n *network) advertises() bool { return n.tells() && n.has6() }

// has6 reports whether the network has IPv6.
func (n *network) has6() bool {
	return slices.ContainsFunc(n.rec.Subnets, func(s overlay.Subnet) bool { return s.Prefix.Addr().Is6() })
}

// serves reports whether an address is one that hosts have towards guests: a
// gateway's, which is the router's and the DHCPv4 server's, or that of IPv6
// answers.
func (n *network) serves(a netip.Addr) bool {
	return a.IsValid() && slices.Contains(n.served(), a)
}

// served are the addresses that serves is true of.
func (n *network) served() (out []netip.Addr) {
	if !n.tells() && !n.routes() {
		return nil
	}
	for _, s := range n.rec.Subnets {
		if s.Gateway.IsValid() {
			out = append(out, s.Gateway)
		}
	}
	if n.has6() {
		out = append(out, serverIP6)
	}
	return out
}

// asked answers a frame of a guest that is here.
func (c *Core) asked(n *network, g *guest, e Heard) {
	f := e.Fact
	if ep := n.eps[g.mac]; !n.log.complete || n.guests[g.mac] != g || !g.tap.isMember || ep != nil && !g.owns(c.cfg.Self, ep) {
		return
	}
	switch f.Kind {
	case packet.ARPRequest, packet.ARPProbe:
		// The kernel's proxy answers for other endpoints.
		if n.serves(f.Target) {
			to := f.IP
			if !to.IsValid() {
				to = netip.IPv4Unspecified()
			}
			c.send(g.tap, packet.AnswerARP(f.Src, overlay.ServerMAC, f.Target, to))
		}
		c.seekFor(n, g, f)
	case packet.NeighborSolicit, packet.NeighborProbe:
		if n.serves(f.Target) {
			c.send(g.tap, packet.AnswerND(f.Src, overlay.ServerMAC, f.Target, f.IP, n.routes()))
		} else if mac, ok := c.holder(n, f.Target); ok && mac != g.mac && f.Kind == packet.NeighborProbe && n.shareOf(g, f.Target) == nil {
			// The proxy's answer to duplicate address detection goes to no
			// address, and some guests take what is another's.
			c.send(g.tap, packet.AnswerND(f.Src, mac, f.Target, netip.Addr{}, false))
		}
		c.seekFor(n, g, f)
	case packet.RouterSolicit:
		if n.advertises() {
			c.send(g.tap, advertisement(n, g.tap, f.Src, f.IP))
		}
	case packet.ToRouter:
		c.routed(n, g.tap, e.Forward)
	}
	if p := n.ports[g.port]; p != nil && !p.gone && p.rec.MAC == g.mac && n.tells() {
		c.leases(n, g, p.rec, e)
	}
}

// has is who has an address: the live endpoint, wherever it is.
func (n *network) has(a netip.Addr) (overlay.MAC, bool) {
	mac, known := n.owner[a]
	e := n.eps[mac]
	return mac, known && e != nil && !e.gone && e.rec != nil && slices.Contains(e.rec.Addresses, a)
}

// holder is who has an address on the network's link: of its own endpoints, or
// of those of a network that is bridged to it.
func (c *Core) holder(n *network, a netip.Addr) (overlay.MAC, bool) {
	mac, ok := n.has(a)
	for _, uid := range n.bridged {
		if o := c.nets[uid]; !ok && o != nil && o.live() {
			mac, ok = o.has(a)
		}
	}
	return mac, ok
}

// leases answers DHCP for a declared port.
func (c *Core) leases(n *network, g *guest, p *overlay.Port, e Heard) {
	switch {
	case e.DHCP4 != nil && e.DHCP4.Type == packet.Decline4:
		c.declined(n, g, p, e.Fact.Target)
	case e.DHCP6 != nil && e.DHCP6.Type == packet.Decline6:
		for _, l := range e.DHCP6.Leases[:e.DHCP6.NLease] {
			c.declined(n, g, p, l.IP)
		}
	}
	switch {
	case e.DHCP4 != nil:
		if frame, silent := answer.DHCP4(*e.DHCP4, told4(n.rec, p, e.DHCP4)); silent == answer.Spoken {
			c.send(g.tap, frame)
		}
	case e.DHCP6 != nil:
		if frame, silent := answer.DHCP6(*e.DHCP6, told6(n.rec, p)); silent == answer.Spoken {
			c.send(g.tap, frame)
		}
	}
}

// lease4 picks the IPv4 address of a port that a message is about: one that it
// names, else the first that is in a subnet; a guest has one by DHCPv4. Without
// one it is the first subnet, whose other parameters are told to a guest that
// asks for those alone.
func lease4(n *overlay.Network, p *overlay.Port, m *packet.DHCP4) (netip.Addr, overlay.Subnet) {
	var addr netip.Addr
	var in overlay.Subnet
	for _, s := range n.Subnets {
		if s.Prefix.Addr().Is6() {
			continue
		}
		if !in.Prefix.IsValid() {
			in = s
		}
		for _, a := range p.Addresses {
			named := a == m.Requested || a == m.Has
			if s.Prefix.Contains(a) && (!addr.IsValid() || named) {
				addr, in = a, s
			}
			if addr == a && named {
				return addr, in
			}
		}
	}
	return addr, in
}

// told4 names a router if the network has one among its guests, which goes
// first, or if hosts route for it: guests must not send to us what they could
// send elsewhere.
func told4(n *overlay.Network, p *overlay.Port, m *packet.DHCP4) answer.V4 {
	a, s := lease4(n, p, m)
	v := answer.V4{MAC: overlay.ServerMAC, Server: s.Gateway, MTU: n.MTU, DNS: n.Tell.DNS, Seconds: n.Tell.Seconds()}
	if a.IsValid() {
		v.Addr = netip.PrefixFrom(a, s.Prefix.Bits())
	}
	for _, r := range n.Tell.Routes {
		v.Routes = append(v.Routes, answer.Route{To: r.Prefix, Via: r.Via})
		if r.Prefix.Bits() == 0 {
			v.Gateway = r.Via // for clients that do not know the option of routes
		}
	}
	if !v.Gateway.IsValid() && !n.Domain.IsZero() {
		v.Gateway = s.Gateway
	}
	return v
}

// told6 has all IPv6 addresses of the port that are in subnets of its network,
// which share one link.
func told6(n *overlay.Network, p *overlay.Port) answer.V6 {
	v := answer.V6{MAC: overlay.ServerMAC, Server: serverIP6, DNS: n.Tell.DNS, Seconds: n.Tell.Seconds()}
	for _, s := range n.Subnets {
		if s.Prefix.Addr().Is6() {
			v.Prefixes = append(v.Prefixes, s.Prefix)
		}
	}
	for _, a := range p.Addresses {
		if slices.ContainsFunc(v.Prefixes, func(s netip.Prefix) bool { return s.Contains(a) }) {
			v.Addrs = append(v.Addrs, a)
		}
	}
	return v
}

// advertisement is a network's router advertisement to one guest, or to all
// behind a device. Who is declared has its address by DHCPv6; where others are
// admitted they form their own.
func advertisement(n *network, t *tap, dst overlay.MAC, to netip.Addr) []byte {
	r := answer.Router{
		MAC: overlay.ServerMAC, IP: serverIP6, Seconds: n.lifetime(), MTU: uint32(n.rec.MTU),
		Other: slices.ContainsFunc(n.rec.Tell.DNS, netip.Addr.Is6), DNS: n.rec.Tell.DNS, Lifetime: listLifetime,
	}
	for _, s := range n.rec.Subnets {
		if !s.Prefix.Addr().Is6() {
			continue
		}
		r.Prefixes = append(r.Prefixes, answer.Prefix{
			Prefix: s.Prefix, OnLink: true, Auto: t.declared == nil && n.rec.Admission == overlay.AdmitLearn && s.Prefix.Bits() == 64,
			Valid: prefixValid, Preferred: prefixPreferred,
		})
	}
	if t.declared != nil {
		if p := n.ports[t.declared.port]; p != nil && !p.gone {
			r.Managed = slices.ContainsFunc(p.rec.Addresses, netip.Addr.Is6)
		}
	}
	return answer.Advertise(r, dst, to)
}

// send orders a frame to the guests behind a device. Beyond its rate there is
// none: who asks that often asks again.
func (c *Core) send(t *tap, frame []byte) {
	t.answers = max(t.answers, c.now)
	if frame == nil || len(c.orders) >= maxOrders || t.answers-c.now > (answerBurst-1)*answerEvery {
		c.stats.Unanswered++
		return
	}
	t.answers += answerEvery
	c.orders = append(c.orders, hoststate.Op{Kind: hoststate.OpSend, Index: t.index, Frame: string(frame)})
	c.stats.Answers++
}

// advertAt is when a device's next unsolicited advertisement is due.
type advertAt struct {
	at    Time
	index int32
}

// advertise sends an unsolicited advertisement to a device that passes frames,
// and sees that others follow.
func (c *Core) advertise(n *network, t *tap) {
	if !t.isMember || !n.live() || !n.advertises() {
		return
	}
	c.send(t, advertisement(n, t, packet.Broadcast, netip.Addr{}))
	if t.advertAt <= c.now {
		t.advertAt = c.now + advertEvery
		c.adverts = append(c.adverts, advertAt{t.advertAt, t.index})
		c.alarmAt(c.adverts[0].at)
	}
}

// advertsDue sends the advertisements whose time has come.
func (c *Core) advertsDue() {
	over := 0
	for ; over < len(c.adverts) && c.adverts[over].at <= c.now; over++ {
		a := c.adverts[over]
		if n := c.tapNet[a.index]; n != nil && n.taps[a.index].advertAt == a.at {
			c.advertise(n, n.taps[a.index])
		}
	}
	c.adverts = c.adverts[over:]
	if len(c.adverts) > 0 {
		c.alarmAt(c.adverts[0].at)
	}
}

// toldOtherwise passes on to the guests what changed of their network.
func (c *Core) toldOtherwise(n *network) {
	for _, idx := range sortedTaps(n.taps) {
		c.member(n, n.taps[idx])
		c.advertise(n, n.taps[idx])
	}
}

// declined notes a guest's word that its address is in use by another.
func (c *Core) declined(n *network, g *guest, p *overlay.Port, a netip.Addr) {
	if !slices.Contains(p.Addresses, a) {
		return
	}
	c.endConflict(g)
	g.conflict = "CV0207 the guest of port " + n.rec.TenantName + "/" + p.Name + " says that another uses its address " + a.String()
	g.conflictEnd = c.now + conflictTime
	c.problem(g.conflict)
	c.alarmAt(g.conflictEnd)
}

func (c *Core) endConflict(g *guest) {
	if g.conflict != "" {
		c.solved(g.conflict)
		g.conflict, g.conflictEnd = "", 0
	}
}
