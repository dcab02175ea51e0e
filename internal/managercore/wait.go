package managercore

import (
	"slices"

	"culvert/internal/overlay"
)

// HostState is what is known of one host's stream, from memory.
type HostState struct {
	Host     overlay.UID
	Name     string
	Session  uint64
	Open     bool
	Acked    overlay.Rev
	AckedAt  Time
	Serves   []overlay.UID // networks it subscribed to, sorted
	Dead     bool
	Gateways []overlay.GatewayState // what it says of those that it is a candidate of
	Health   []string               // what is to be said of its life, each beginning with its code
}

// HostStates is the state of every live host, by name. A host without a
// session since this manager started has a zero Session.
func (c *Core) HostStates() []HostState {
	var out []HostState
	for it := range c.view.List(overlay.KindHost, overlay.UID{}) { // by name; not all rows: this runs with every ack
		out = append(out, c.hostState(it.Rec.(*overlay.Host)))
	}
	return out
}

func (c *Core) hostState(h *overlay.Host) HostState {
	st := HostState{Host: h.UID, Name: h.Name, Dead: h.Dead, Health: slices.Concat(c.health(h), c.brokenWays(h)), Gateways: c.statesOf(h.UID)}
	if s := c.sessions[h.UID]; s != nil {
		st.Session, st.Open, st.Acked, st.AckedAt = s.n, s.open, s.acked, s.ackedAt
		for uid := range s.serves { // order-free: sorted below
			st.Serves = append(st.Serves, uid)
		}
		slices.SortFunc(st.Serves, overlay.UID.Compare)
	}
	return st
}

// Concerned is the state of the hosts that revision rev concerns: for a
// network, all that are told of it; for what stands in a network's log, those that
// serve it or have an endpoint in it. A revision that is not in the view, or
// has been overtaken by later changes of the same records, concerns nobody. No
// revision concerns a host that is dead.
func (c *Core) Concerned(rev overlay.Rev) []HostState {
	var out []HostState
	before := overlay.Rev{Epoch: rev.Epoch, N: rev.N - 1}
	var selected []*overlay.Network
	for it := range c.view.Fleet.After(before) {
		if n, ok := it.Rec.(*overlay.Network); ok && it.Rev == rev {
			selected = append(selected, n)
		}
	}
	candidates := c.candidatesOf(rev)
	var touched []overlay.UID
	c.view.nets.Scan(func(uid string, l *Log) bool {
		for it := range l.After(before) {
			if it.Rev == rev {
				touched = append(touched, overlay.UID([]byte(uid)))
			}
			break
		}
		return true
	})
	for _, st := range c.HostStates() {
		if st.Dead {
			continue // it returns by hearing everything anew
		}
		concerned := slices.ContainsFunc(selected, func(n *overlay.Network) bool { return c.view.Concerns(st.Name, n) })
		for _, net := range touched {
			concerned = concerned || slices.Contains(st.Serves, net) || c.hasEndpoint(st.Host, net)
		}
		if concerned || slices.Contains(candidates, st.Name) {
			out = append(out, st)
		}
	}
	return out
}

func (c *Core) hasEndpoint(host, network overlay.UID) bool {
	for k := range c.ix.byHost[host] { // order-free: any will do
		if k.UID == network {
			return true
		}
	}
	return false
}
