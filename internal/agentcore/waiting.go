package agentcore

import (
	"net/netip"
	"slices"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// A guest that asks for an address is answered by the VXLAN device, from its
// tables. Where the tables of an on-demand network do not have the address yet,
// the guest would ask again a second later; so the agent answers in the name of
// who has it, as soon as the tables do.

const (
	maxWaiting = 256 // addresses of a network that guests wait for
	maxAskers  = 4   // guests that wait for one
	waitTime   = 3 * second
)

// asker is a guest that waits for an address.
type asker struct {
	port  int32
	mac   overlay.MAC
	ip    netip.Addr // where it asked from; invalid if it asks to take the address
	until Time
}

// wait notes that a guest waits for an address, unless its tables have it.
func (c *Core) wait(n *network, t *tap, f packet.Fact) {
	if mac, known := n.has(f.Target); known && (c.at(n, mac) != elsewhere || c.stands(n, mac, f.Target)) {
		return
	}
	x := asker{port: t.index, mac: f.Src, ip: f.IP, until: c.now + waitTime}
	if f.Kind == packet.ARPProbe || f.Kind == packet.NeighborProbe {
		x.ip = netip.Addr{}
	}
	list := slices.DeleteFunc(n.waiting[f.Target], func(o asker) bool { return o.until <= c.now || o.port == x.port && o.mac == x.mac })
	if len(list) >= maxAskers || len(list) == 0 && !n.roomToWait(c.now) {
		return
	}
	n.waiting[f.Target] = append(list, x)
}

// roomToWait makes room for another address that is waited for.
func (n *network) roomToWait(now Time) bool {
	if n.waiting == nil {
		n.waiting = map[netip.Addr][]asker{}
	}
	if len(n.waiting) < maxWaiting {
		return true
	}
	for a, list := range n.waiting { // order-free: each by itself
		if !slices.ContainsFunc(list, func(x asker) bool { return x.until > now }) {
			delete(n.waiting, a)
		}
	}
	return len(n.waiting) < maxWaiting
}

// whereabouts of an endpoint, as its rows say.
type whereabouts uint8

const (
	nowhere whereabouts = iota
	onThisHost
	elsewhere
)

func (c *Core) at(n *network, mac overlay.MAC) whereabouts {
	switch e := n.eps[mac]; {
	case e == nil:
		return nowhere
	case e.plan.Port != 0:
		return onThisHost
	case e.plan.VTEP.IsValid():
		return elsewhere
	}
	return nowhere
}

// stands reports whether the kernel holds all by which guests here reach an
// endpoint elsewhere by its address.
func (c *Core) stands(n *network, mac overlay.MAC, a netip.Addr) bool {
	for _, k := range [...]hoststate.Key{
		{Table: hoststate.TableKnown, VNI: n.rec.VNI, MAC: mac},
		{Table: hoststate.TableFDB, VNI: n.rec.VNI, MAC: mac},
		{Table: hoststate.TableMaster, VNI: n.rec.VNI, MAC: mac},
		{Table: hoststate.TableNeigh, VNI: n.rec.VNI, IP: a},
	} {
		if rs := n.rows.get(k); rs == nil || !rs.wanted() || !rs.settled() {
			return false
		}
	}
	return n.rows.get(hoststate.Key{Table: hoststate.TableNeigh, VNI: n.rec.VNI, IP: a}).want().MAC == mac
}

// answerWaiting answers whoever waits for an address, if the tables have it now.
func (c *Core) answerWaiting(n *network, a netip.Addr) {
	list := n.waiting[a]
	mac, known := n.has(a)
	if len(list) == 0 || !known {
		return
	}
	if c.at(n, mac) == elsewhere && !c.stands(n, mac, a) {
		return
	}
	delete(n.waiting, a)
	if c.at(n, mac) != elsewhere {
		return // a guest here answers itself
	}
	for _, x := range list {
		t := n.taps[x.port]
		switch {
		case t == nil || x.until <= c.now:
		case a.Is6():
			c.send(t, packet.AnswerND(x.mac, mac, a, x.ip, false))
		case x.ip.IsValid():
			c.send(t, packet.AnswerARP(x.mac, mac, a, x.ip))
		default:
			c.send(t, packet.AnswerARP(x.mac, mac, a, netip.IPv4Unspecified()))
		}
	}
}

// rowStands looks who waited for a row.
func (c *Core) rowStands(n *network, k hoststate.Key) {
	if len(n.waiting) == 0 {
		return
	}
	switch k.Table {
	case hoststate.TableNeigh:
		c.answerWaiting(n, k.IP)
	case hoststate.TableKnown, hoststate.TableFDB, hoststate.TableMaster:
		if e := n.eps[k.MAC]; e != nil && e.rec != nil && !e.gone {
			for _, a := range e.rec.Addresses {
				c.answerWaiting(n, a)
			}
		}
	}
}

// inVain ends the waiting for an address that nobody has: it may be that of a
// guest that never spoke.
func (c *Core) inVain(n *network, a netip.Addr) {
	for _, x := range n.waiting[a] {
		if t := n.taps[x.port]; t != nil && x.ip.IsValid() {
			c.seek(n, t, a)
		}
	}
	delete(n.waiting, a)
}
