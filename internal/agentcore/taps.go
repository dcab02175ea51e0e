package agentcore

import (
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/plan"
)

// tap is a device that is a port of a network's bridge: a VM's NIC. Which
// endpoints are behind it is another question: see guest.
type tap struct {
	index   int32
	name    string
	alias   string
	peer    string // of one end of a veth pair: the other, which a macvtap may stand on
	state   hoststate.PortState
	tuned   bool // flood, learning and IPv6 are off, and the port program stands
	apart   bool // flood and IPv6 are off: it was made a port of ours, claimed or not
	guarded bool

	seen overlay.MAC // a MAC that was heard on it and is declared, or may be
	// suspects are MACs heard on it that may be declared: see suspect.
	suspects []overlay.MAC
	nic      hoststate.NIC // what the hypervisor says of it; the zero one: nothing

	// came: it began to pass frames while this agent ran. A device that was
	// there already at the first look may be what a migration left behind.
	came bool
	// pending: it came before the network's log was complete. What follows
	// from that waits for the end of the pass.
	pending bool
	said    Time // when it last said something new
	// word: the hypervisor said that the guest runs here, see weigh.
	word bool
	// empty: the hypervisor said, at that time, that its guest is gone. Its
	// next word, a newer frame, or that it comes up again say otherwise.
	empty   bool
	emptyAt Time

	declared *guest                 // the declared port that it is; nil while unclaimed
	learned  map[overlay.MAC]*guest // undeclared endpoints that were heard on it, and virtual MACs of its port

	groups map[member]bool // multicast groups that guests have joined
	sends  []overlay.MAC   // groups that they send to besides: see sendsTo
	denied []denial        // see deny

	answers  Time // when the next answer to its guests is due: a bucket
	advertAt Time // when the next unsolicited advertisement is
	changes  Time // of shared addresses: a bucket
	seeks    Time // when the next search for its guests is: a bucket
	wants    Time // when the next want of theirs is: a bucket

	isMember bool
	guard    []hoststate.Row // what was asked for of its port program
}

func sortedTaps(m map[int32]*tap) []int32 {
	out := make([]int32, 0, len(m))
	for i := range m { // order-free: sorted below
		out = append(out, i)
	}
	slices.Sort(out)
	return out
}

// guests lists what is behind a device, the declared one first.
func (t *tap) guests() []*guest {
	var out []*guest
	if t.declared != nil {
		out = append(out, t.declared)
	}
	for _, mac := range sortedMACs(t.learned) {
		out = append(out, t.learned[mac])
	}
	return out
}

// findTaps looks which links are ports of the network's bridge.
func (c *Core) findTaps(n *network) {
	for _, idx := range sortedLinks(c.links) {
		if l := c.links[idx]; n.bridge != 0 && l.Master == n.bridge && l.Kind == hoststate.LinkOther && n.taps[idx] == nil {
			c.tapCame(n, l)
		}
	}
}

func sortedLinks(m map[int32]hoststate.Link) []int32 {
	out := make([]int32, 0, len(m))
	for i := range m { // order-free: sorted below
		out = append(out, i)
	}
	slices.Sort(out)
	return out
}

func (c *Core) tapCame(n *network, l hoststate.Link) {
	t := &tap{index: l.Index, nic: c.nicOf(l.Name, l.Peer), said: c.now}
	t.word = t.nic.State == hoststate.NICRunning
	n.taps[l.Index] = t
	c.stirred = true
	if n.live() || c.tapNet[l.Index] == nil { // one that was deleted may have had the same VNI
		c.tapNet[l.Index] = n
	}
	c.tapChanged(n, t, l)
}

// tapChanged takes what was read of a device that is a port of our bridge.
func (c *Core) tapChanged(n *network, t *tap, l hoststate.Link) {
	up := l.State == hoststate.StateForwarding && t.state != hoststate.StateForwarding
	t.name, t.alias, t.peer, t.state, t.tuned, t.apart, t.guarded = l.Name, l.Alias, l.Peer, l.State, tuned(l), apart(l), l.Guarded
	c.identify(n, t)
	c.ask(n, t)
	if up && n.looked { // a NIC that begins to pass frames
		t.came = true
		if t.pending = !n.log.complete || t.declared != nil && c.unsure(n, t.declared.mac); !t.pending {
			c.tapUp(n, t)
		}
	}
	c.touch(n)
}

// tapUp looks what it means that a device began to pass frames.
func (c *Core) tapUp(n *network, t *tap) {
	t.pending = false
	if t.empty {
		c.emptied(n, t, false)
	}
	for _, g := range t.guests() {
		g.left = false
		c.came(n, g)
	}
}

// apart reports whether a device was made a port of ours. While no port claims
// it, the bridge goes on learning from it, which may say which port it is; it
// passes nothing, to other such devices neither (OpPort isolates it).
func apart(l hoststate.Link) bool { return !l.Flood && !l.IPv6 && l.Guarded }

// known reports whether nothing is to be learned about a device any more. One
// that only a frame has named keeps learning until its endpoint is here: an
// agent that starts after this one has nothing else to know it by.
func (t *tap) known() bool {
	if t.declared == nil {
		return t.isMember // of undeclared endpoints, which the port program hears
	}
	return t.isMember || t.declared.evidence >= overlay.EvidenceDevice
}

// tuned reports whether a device is as a VM port must be.
func tuned(l hoststate.Link) bool { return !l.Flood && !l.Learns && !l.IPv6 && l.Guarded }

// identify decides which declared port a device is: by its alias, which
// `culvert attach` writes too, by what the hypervisor says, else by a declared
// MAC heard on it.
func (c *Core) identify(n *network, t *tap) {
	port, ev := overlay.UID{}, overlay.EvidenceNone
	if n.live() {
		if tenant, name, ok := hoststate.ParsePortAlias(t.alias); ok {
			if tenant == n.rec.TenantName {
				port, ev = n.byName[name], overlay.EvidenceDevice
			}
		} else if p, ok := n.hypervised(t); ok {
			port, ev = p, overlay.EvidenceHypervisor
		} else if !t.seen.IsZero() {
			port, ev = n.byMAC[t.seen], overlay.EvidenceFrame
		}
	}
	var mac overlay.MAC
	if p := n.ports[port]; p != nil && !p.gone && mayBeHere(p.rec, c.cfg.Name) {
		mac = p.rec.MAC
	} else {
		port = overlay.UID{}
	}
	if g := t.declared; g == nil && port.IsZero() || g != nil && g.port == port && g.mac == mac {
		if g != nil && g.evidence < ev {
			g.evidence = ev
		}
		return
	}
	c.stirred = true
	if g := t.declared; g != nil {
		t.declared = nil
		c.endConflict(g)
		c.place(n, g.mac)
	}
	c.ask(n, t)
	t.keepGroups(mac)
	t.denied = nil
	if !port.IsZero() {
		c.unlearn(n, t) // a port is what it declares
		t.declared = &guest{tap: t, mac: mac, port: port, evidence: ev}
		c.place(n, mac)
		if t.came && !t.pending {
			if t.pending = c.unsure(n, mac); !t.pending {
				c.came(n, t.declared)
			}
		}
		c.weigh(n, t)
	}
	c.unshare(n, t)
	c.member(n, t)
	c.touch(n)
}

// hypervised is the port that the hypervisor names for a device: by name, or
// by the MAC of its NIC.
func (n *network) hypervised(t *tap) (overlay.UID, bool) {
	switch {
	case t.nic.State == 0 || t.nic.State == hoststate.NICGone:
		return overlay.UID{}, false
	case t.nic.Port != "":
		if t.nic.Tenant != "" && t.nic.Tenant != n.rec.TenantName {
			return overlay.UID{}, true
		}
		return n.byName[t.nic.Port], true
	}
	port, ok := n.byMAC[t.nic.MAC]
	return port, ok
}

// mayBeHere reports whether a port is declared for this host at all. One that
// is not stays unclaimed, and so passes nothing, here either.
func mayBeHere(p *overlay.Port, host string) bool {
	return len(p.Hosts) == 0 || slices.Contains(p.Hosts, host)
}

// ask has the tables read for a device that nothing names, if they were not
// since it is known which ports there are.
func (c *Core) ask(n *network, t *tap) {
	if t.declared == nil && !n.heard {
		c.wantTables(n)
	}
}

// tapWent forgets a device that is no longer a port of the bridge.
func (c *Core) tapWent(n *network, t *tap) {
	delete(n.taps, t.index)
	c.stirred = true
	if c.tapNet[t.index] == n {
		delete(c.tapNet, t.index)
	}
	gone := t.guests()
	t.declared, t.learned = nil, nil
	if len(t.groups)+len(t.sends) > 0 {
		c.relist(n)
	}
	c.guard(n, t, nil)
	for _, g := range gone {
		c.endConflict(g)
		c.unshown(g)
		c.place(n, g.mac)
	}
	c.touch(n)
}

func memberKey(index int32) hoststate.Key {
	return hoststate.Key{Table: hoststate.TableMember, Port: index}
}

func memberBy(n *network) overlay.Key { return overlay.Key{Kind: overlay.KindNetwork, UID: n.uid} }

// member lets a device pass frames exactly while an endpoint behind it is here
// or is expected here, and its network is not being deleted.
func (c *Core) member(n *network, t *tap) {
	var rows []hoststate.Row
	if n.live() && !n.rec.Blocked {
		rows = c.portRows(n, t)
	}
	c.guard(n, t, rows)
}

// portRows is what the port program and the set of members are to hold for a
// device: nothing if it is to pass nothing.
func (c *Core) portRows(n *network, t *tap) []hoststate.Row {
	p := plan.Guard{Port: t.index, Flags: hoststate.Open}
	if n.rec.Tell.DHCP == overlay.DHCPHost {
		p.Flags |= hoststate.NoServers
	}
	if n.routes() {
		p.Flags |= hoststate.Routed
	}
	if n.demanded {
		p.Flags |= hoststate.Demand
	}
	if n.rec.Admission == overlay.AdmitDHCP && t.declared == nil {
		p.Flags |= hoststate.CheckIP // it has what it was leased, and nothing else
	}
	for _, g := range t.guests() {
		virtual := g != t.declared && !g.port.IsZero()
		if n.guests[g.mac] != g || virtual && len(p.MACs) == 0 {
			continue
		}
		e := n.eps[g.mac]
		switch {
		case e == nil:
		case e.unsure:
			continue
		case g.owns(c.cfg.Self, e):
			if g.away(c.cfg.Self, e) {
				p.Flags |= hoststate.Watch
			}
		case slices.Contains(e.rec.Pre, c.cfg.Self):
			p.Flags |= hoststate.Watch
		default:
			continue
		}
		p.MACs = append(p.MACs, g.mac)
		if d := n.portOf(g); d == nil {
			addrs, fewer := g.allowed(c.cfg.Self, e)
			p.Addrs = append(p.Addrs, addrs...)
			if fewer {
				p.Flags |= hoststate.CheckIP // of what it was refused others are told nothing
			}
		} else if !virtual {
			p.Addrs = append(p.Addrs, d.Addresses...) // and none that it shares: others may claim them towards it
		}
	}
	if len(p.MACs) == 0 {
		return nil
	}
	if t.declared != nil {
		checkAddresses(n.portOf(t.declared), &p)
	}
	for _, a := range n.served() {
		if !slices.Contains(p.Addrs, a) && !slices.Contains(p.Share, a) {
			p.Hosts = append(p.Hosts, a)
		}
	}
	return plan.PortRows(nil, p)
}

// checkAddresses lets the device of a port that asks for it send only from what
// it has, and from what it may share, whoever has that now: the port that takes
// it over says so with it.
func checkAddresses(d *overlay.Port, p *plan.Guard) {
	if d == nil || !d.AddressCheck {
		return
	}
	p.Flags |= hoststate.CheckIP | hoststate.CheckLocal
	for _, m := range p.MACs {
		p.Addrs = append(p.Addrs, overlay.EUI64LinkLocal(m))
	}
	for _, a := range d.Shared {
		if !slices.Contains(p.Addrs, a) {
			p.Share = append(p.Share, a)
		}
	}
}

// guard brings the rows of a device's port program up to date.
func (c *Core) guard(n *network, t *tap, rows []hoststate.Row) {
	by := memberBy(n)
	old := t.guard
	t.guard = rows
	for _, r := range rows {
		switch i := slices.IndexFunc(old, func(o hoststate.Row) bool { return o.Key == r.Key }); {
		case i < 0:
			c.add(c.global, r, by, overlay.Rev{})
		case old[i].Val != r.Val:
			c.alter(c.global, r, by, overlay.Rev{})
		}
	}
	for i := len(old) - 1; i >= 0; i-- {
		if !slices.ContainsFunc(rows, func(r hoststate.Row) bool { return r.Key == old[i].Key }) {
			c.remove(c.global, old[i].Key, by)
		}
	}
	if is := len(rows) > 0; is != t.isMember {
		t.isMember, c.stirred = is, true
		c.advertise(n, t)
		if t.tuned != t.known() {
			c.touch(n)
		}
	}
}

// guardStands reports whether the kernel holds all that guard asked for.
func (c *Core) guardStands(t *tap) bool {
	for _, r := range t.guard {
		if rs := c.global.get(r.Key); rs == nil || !rs.settled() {
			return false
		}
	}
	return t.isMember
}

// Port is one device in one of our bridges, for status.
type Port struct {
	Device  string
	Network string // tenant/name
	Port    string // name, empty while unclaimed
	Claimed bool
	Refusal string // the manager's last word against it
}

// Ports lists the devices in our bridges by network and name.
func (c *Core) Ports() []Port {
	var out []Port
	for _, n := range c.sortedNets() {
		for _, idx := range sortedTaps(n.taps) {
			t := n.taps[idx]
			p := Port{Device: t.name}
			if n.rec != nil {
				p.Network = n.rec.TenantName + "/" + n.rec.Name
			}
			if g := t.declared; g != nil {
				p.Claimed, p.Refusal = g.claimed, g.refusal
				if d := n.ports[g.port]; d != nil {
					p.Port = d.rec.Name
				}
			}
			out = append(out, p)
		}
	}
	return out
}

// Unclaimed lists the devices that no port claims and behind which no endpoint
// was admitted: they pass nothing.
func (c *Core) Unclaimed() []string {
	var out []string
	for _, n := range c.sortedNets() {
		for _, idx := range sortedTaps(n.taps) {
			if t := n.taps[idx]; t.declared == nil && !t.isMember && n.rec != nil {
				out = append(out, t.name+" in "+n.rec.TenantName+"/"+n.rec.Name)
			}
		}
	}
	return out
}
