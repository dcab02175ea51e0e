package managercore

import (
	"fmt"
	"slices"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Which host has a gateway. It stays where it is as long as that host lives and
// does not say that the way out is broken there; then it goes to the first in
// the order of preference that has said, in its present session, that it is
// ready. It does not go back by itself.

// GatewaysStated is what a host says of all gateways that it is a candidate of.
type GatewaysStated struct {
	Host    overlay.UID
	Session uint64
	States  []overlay.GatewayState
}

func (GatewaysStated) event() {}

// gatewaysSaid is what a host said of gateways, in which session.
type gatewaysSaid struct {
	session uint64
	states  []overlay.GatewayState
}

// preferWithin is how long a new gateway waits for hosts of higher preference
// to say whether they are ready.
const preferWithin = 10 * 1e9

func (c *Core) gatewaysStated(e GatewaysStated) {
	if c.lost || c.current(e.Host, e.Session) == nil {
		return
	}
	c.gatewayStates[e.Host] = gatewaysSaid{e.Session, e.States}
	c.lead()
}

// lead gives each gateway to the host that is to have it now.
func (c *Core) lead() {
	if c.lost {
		return
	}
	t := c.begin()
	for _, k := range sorted(c.ix.gateways[overlay.UID{}]) {
		g := c.rows[k].rec.(*overlay.Gateway)
		host, why := c.leader(g)
		if host == g.Active {
			continue
		}
		next := *g
		next.Active, next.Cause, next.Changed = host, "manager: "+why, int64(c.now)
		t.put(&next)
	}
	if !t.empty() {
		t.commit(nil, nil)
	}
}

// leader is the host that is to have a gateway, and why another than it is now.
func (c *Core) leader(g *overlay.Gateway) (overlay.UID, string) {
	now := c.host(g.Active)
	candidate := now != nil && slices.Contains(g.Hosts, now.Name)
	why := "the first host that is ready"
	switch s, said := c.saidOf(g, g.Active); {
	case now == nil:
	case !candidate:
		why = now.Name + " is in its hosts no more"
	case now.Dead:
		why = now.Name + " is dead"
	case said && !s.Ready:
		why = now.Name + " is not ready: " + s.Step + ": " + s.Reason
	default:
		return g.Active, ""
	}
	for _, name := range g.Hosts {
		k, ok := c.ix.names[nameKey{kind: overlay.KindHost, name: name}]
		if !ok {
			continue
		}
		h := c.rows[k].rec.(*overlay.Host)
		if h.UID == g.Active || h.Dead {
			continue
		}
		s, said := c.saidOf(g, h.UID)
		if said && s.Ready {
			return h.UID, why
		}
		if open := c.sessions[h.UID]; now == nil && !said && open != nil && open.open && c.now < Time(g.Changed)+preferWithin {
			return g.Active, "" // it will say so soon
		}
	}
	if now != nil && !candidate {
		return overlay.UID{}, why
	}
	return g.Active, ""
}

// saidOf is what a host said of a gateway in its present session, which is open.
func (c *Core) saidOf(g *overlay.Gateway, host overlay.UID) (overlay.GatewayState, bool) {
	states := c.statesOf(host)
	if i := slices.IndexFunc(states, func(s overlay.GatewayState) bool { return s.Gateway == g.UID }); i >= 0 {
		return states[i], true
	}
	return overlay.GatewayState{}, false
}

// statesOf is what a host said of gateways in its present session, which is open.
func (c *Core) statesOf(host overlay.UID) []overlay.GatewayState {
	said := c.gatewayStates[host]
	if c.current(host, said.session) == nil {
		return nil
	}
	return said.states
}

// brokenWays is what is to be said of gateways that a host could not have now.
func (c *Core) brokenWays(h *overlay.Host) (out []string) {
	for _, s := range c.statesOf(h.UID) {
		w := c.rows[Key{Kind: overlay.KindGateway, UID: s.Gateway}]
		if s.Ready || w == nil || w.gone {
			continue
		}
		g := w.rec.(*overlay.Gateway)
		out = append(out, fmt.Sprintf("CV0223 gateway %s/%s is not ready here: %s: %s", g.TenantName, g.Name, s.Step, s.Reason))
	}
	return out
}

// mayNotLead says why a host may not have a gateway's port; empty if it may, or
// if the port is none.
func (c *Core) mayNotLead(p *overlay.Port, cl hostClaim) string {
	w := c.rows[Key{Kind: overlay.KindGateway, UID: p.Gateway}]
	if p.Gateway.IsZero() || w != nil && !w.gone && w.rec.(*overlay.Gateway).Active == cl.host {
		return ""
	}
	return because(api.CodeHostNotYours, "it is a gateway's port, and the gateway is not on this host")
}

// candidatesOf are the hosts that a revision's gateways may be on.
func (c *Core) candidatesOf(rev overlay.Rev) (names []string) {
	for it := range c.view.Fleet.After(overlay.Rev{Epoch: rev.Epoch, N: rev.N - 1}) {
		if g, ok := it.Rec.(*overlay.Gateway); ok && it.Rev == rev {
			names = append(names, g.Hosts...)
		}
	}
	return names
}

// forgetGateways deletes the tombstones of gateways.
func (c *Core) forgetGateways() {
	t := c.begin()
	for it := range c.fleet.Keys() {
		if w := c.rows[it.Key]; it.Key.Kind == overlay.KindGateway && w != nil && w.gone && w.busy == 0 {
			c.purgeFleet(t, it.Key)
		}
	}
	if !t.empty() {
		t.commit(nil, nil)
	}
}
