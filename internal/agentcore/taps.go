package agentcore

import (
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// tap is a device that is a port of a network's bridge: a VM's NIC, as soon as
// it is known which declared port it is.
type tap struct {
	index int32
	name  string
	alias string
	state hoststate.PortState
	tuned bool // flood, learning and IPv6 are off
	apart bool // flood and IPv6 are off: it was made a port of ours, claimed or not

	port     overlay.UID // zero while unclaimed
	mac      overlay.MAC // the port's
	seen     overlay.MAC // a declared MAC that the bridge learned on it
	evidence overlay.Evidence

	// arrived: it was seen to come while this agent ran, at a time when the
	// binding in force was base. A device that was there already at the first
	// look is no evidence against a binding elsewhere: it may be what a
	// migration left behind.
	arrived bool
	base    overlay.Rev
	// pending: it came to life before the network's log was complete. It
	// arrives at the end of that pass, if it is still there.
	pending bool

	claim    uint64      // under way; 0 if none
	claimed  bool        // accepted in this session
	waitFor  overlay.Rev // refused: not before the log has reached this
	retryAt  Time
	refusal  string
	isMember bool
}

func sortedTaps(m map[int32]*tap) []int32 {
	out := make([]int32, 0, len(m))
	for i := range m { // order-free: sorted below
		out = append(out, i)
	}
	slices.Sort(out)
	return out
}

// tapOf is the device that is the port with that MAC, or nil. Where two claim
// to be, the one that came last is: a VM that restarts may leave one behind.
func (n *network) tapOf(mac overlay.MAC) *tap {
	if mac.IsZero() {
		return nil
	}
	var best *tap
	for _, t := range n.taps { // order-free: the greatest of all
		if t.mac == mac && (best == nil || t.index > best.index) {
			best = t
		}
	}
	return best
}

// owns reports whether the endpoint is here: no binding says otherwise, or the
// device came after the binding that does.
func (t *tap) owns(self overlay.UID, e *endpoint) bool {
	if e.gone || e.rec == nil || e.rec.Host == self {
		return true
	}
	return t.arrived && !t.base.Less(e.rev)
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
	t := &tap{index: l.Index}
	n.taps[l.Index] = t
	c.tapChanged(n, t, l)
}

// tapChanged takes what was read of a device that is a port of our bridge.
func (c *Core) tapChanged(n *network, t *tap, l hoststate.Link) {
	up := l.State == hoststate.StateForwarding && t.state != hoststate.StateForwarding
	t.name, t.alias, t.state, t.tuned, t.apart = l.Name, l.Alias, l.State, tuned(l), apart(l)
	c.identify(n, t)
	c.ask(n, t)
	if up && n.looked { // a NIC that begins to pass frames is a sign of life
		if t.pending = !n.log.complete; !t.pending {
			c.arrive(n, t)
		}
	}
	c.touch(n)
}

// apart reports whether a device was made a port of ours. While no port claims
// it, the bridge goes on learning from it, which may say which port it is; it
// passes nothing, to other such devices neither (OpPort isolates it).
func apart(l hoststate.Link) bool { return !l.Flood && !l.IPv6 }

// known reports whether nothing is to be learned about a device any more. One
// that only a frame has named keeps learning until its endpoint is here: an
// agent that starts after this one has nothing else to know it by.
func (t *tap) known() bool {
	return !t.port.IsZero() && (t.isMember || t.evidence >= overlay.EvidenceDevice)
}

// tuned reports whether a device is as a VM port must be.
func tuned(l hoststate.Link) bool { return !l.Flood && !l.Learns && !l.IPv6 }

// arrive notes that the device came to life at the binding in force now.
func (c *Core) arrive(n *network, t *tap) {
	t.arrived, t.pending, t.waitFor, t.retryAt = true, false, overlay.Rev{}, 0
	t.base = overlay.Rev{}
	if e := n.eps[t.mac]; e != nil {
		t.base = e.rev
	}
	if !t.mac.IsZero() {
		c.replan(n, t.mac)
		c.member(n, t)
	}
}

// identify decides which declared port a device is: by its alias, which
// `culvert attach` writes too, else by a declared MAC seen on it.
func (c *Core) identify(n *network, t *tap) {
	port, ev := overlay.UID{}, overlay.EvidenceNone
	if n.live() {
		if tenant, name, ok := hoststate.ParsePortAlias(t.alias); ok {
			if tenant == n.rec.TenantName {
				port, ev = n.byName[name], overlay.EvidenceDevice
			}
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
	if port == t.port && mac == t.mac {
		return
	}
	was := t.mac
	t.port, t.mac, t.evidence = port, mac, ev
	t.claim, t.claimed, t.waitFor, t.retryAt, t.refusal = 0, false, overlay.Rev{}, 0, ""
	c.ask(n, t)
	if !was.IsZero() {
		c.replan(n, was)
	}
	if t.arrived {
		c.arrive(n, t)
	} else if !mac.IsZero() {
		c.replan(n, mac)
	}
	c.member(n, t)
	c.touch(n)
}

// mayBeHere reports whether a port is declared for this host at all. One that
// is not stays unclaimed, and so passes nothing, here either.
func mayBeHere(p *overlay.Port, host string) bool {
	return len(p.Hosts) == 0 || slices.Contains(p.Hosts, host)
}

// ask has the tables read for a device that nothing names, if they were not
// since it is known which ports there are.
func (c *Core) ask(n *network, t *tap) {
	if t.port.IsZero() && !n.heard {
		c.wantTables(n)
	}
}

// tapWent forgets a device that is no longer a port of the bridge.
func (c *Core) tapWent(n *network, t *tap) {
	delete(n.taps, t.index)
	if t.isMember {
		t.isMember = false
		c.remove(c.global, memberKey(t.index), memberBy(n))
	}
	if !t.mac.IsZero() {
		c.replan(n, t.mac)
	}
	c.touch(n)
}

func memberKey(index int32) hoststate.Key {
	return hoststate.Key{Table: hoststate.TableMember, Port: index}
}

func memberBy(n *network) overlay.Key { return overlay.Key{Kind: overlay.KindNetwork, UID: n.uid} }

// member lets a device pass frames exactly while it is a port whose endpoint
// is here and whose network is not being deleted.
func (c *Core) member(n *network, t *tap) {
	want := n.live() && !n.rec.Blocked && !t.mac.IsZero() && n.tapOf(t.mac) == t
	if want {
		if e := n.eps[t.mac]; e != nil {
			want = t.owns(c.cfg.Self, e)
		}
	}
	if want == t.isMember {
		return
	}
	t.isMember = want
	if t.tuned != t.known() {
		c.touch(n)
	}
	if want {
		c.add(c.global, hoststate.Row{Key: memberKey(t.index)}, memberBy(n), overlay.Rev{})
	} else {
		c.remove(c.global, memberKey(t.index), memberBy(n))
	}
}

// bindingChanged looks at a local port whose binding has changed.
func (c *Core) bindingChanged(n *network, t *tap, e *endpoint) {
	if e.gone && t.base.Less(e.rev) {
		// Nobody has it, and it is here: that is evidence enough, and new.
		t.base, t.claimed, t.retryAt = e.rev, false, 0
	}
	if !e.gone && e.rec.Host != c.cfg.Self {
		t.claimed = false
	}
	c.member(n, t)
}

// ready reports whether the kernel holds what a port needs before anybody is
// told of it: its pinned entry and its place among the members.
func (c *Core) ready(n *network, t *tap) bool {
	if !t.tuned {
		return false
	}
	m := c.global.rows[memberKey(t.index)]
	p := n.rows.rows[hoststate.Key{Table: hoststate.TableMaster, VNI: n.rec.VNI, MAC: t.mac}]
	return m != nil && m.settled() && p != nil && p.settled() && p.want().Port == t.index
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
			p := Port{Device: t.name, Claimed: t.claimed, Refusal: t.refusal}
			if n.rec != nil {
				p.Network = n.rec.TenantName + "/" + n.rec.Name
			}
			if e := n.ports[t.port]; e != nil {
				p.Port = e.rec.Name
			}
			out = append(out, p)
		}
	}
	return out
}

// Unclaimed lists the devices that no port claims: they pass nothing.
func (c *Core) Unclaimed() []string {
	var out []string
	for _, p := range c.Ports() {
		if p.Port == "" {
			out = append(out, p.Device+" in "+p.Network)
		}
	}
	return out
}
