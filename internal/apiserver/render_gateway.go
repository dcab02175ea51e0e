package apiserver

import (
	"slices"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

func (r *renderer) gateway(g *overlay.Gateway, rev overlay.Rev) *culvertv1.Gateway {
	names := api.GatewayNames{Tenant: r.tenant(g.Tenant), Domain: r.domain(g.Tenant, g.Domain), Active: r.hostName(g.Active), Networks: r.networkNames(g.Tenant, g.Networks)}
	for _, l := range g.Legs {
		names.Serves = append(names.Serves, r.network(l.Network).Name)
	}
	out := api.RenderGateway(g, names, rev)
	for _, name := range g.Hosts {
		h := r.gatewayHost(g, name)
		if name == names.Active {
			out.Status.State = h.GetState()
		}
		out.Status.Hosts = append(out.Status.Hosts, h)
	}
	if out.Status.State == "" {
		out.Status.State = "waiting"
	}
	return out
}

// States of a gateway on a host.
const (
	stateActive   = "active"
	stateBegins   = "begins" // it is to be active, and has not said that it is
	stateReady    = "ready"
	stateNotReady = "not ready"
)

// gatewayHost is how a gateway is on one of its hosts, by what that said last.
func (r *renderer) gatewayHost(g *overlay.Gateway, name string) *culvertv1.GatewayHost {
	out := &culvertv1.GatewayHost{Host: name, State: StateAway}
	it := r.v.Named(overlay.KindHost, overlay.UID{}, name)
	if it == nil {
		out.Reason = "no host of that name has joined"
		return out
	}
	f := r.hosts[it.Key.UID]
	switch {
	case r.v.Host(it.Key.UID).Dead:
		out.State = StateDead
		return out
	case !f.Connected:
		return out
	}
	i := slices.IndexFunc(f.Gateways, func(s overlay.GatewayState) bool { return s.Gateway == g.UID })
	if i < 0 {
		out.State, out.Reason = stateNotReady, "it has not said how it is there"
		return out
	}
	s := &f.Gateways[i]
	switch here := g.Active == it.Key.UID; {
	case !s.Ready:
		out.State, out.Step, out.Reason = stateNotReady, s.Step, s.Reason
	case here && s.Active:
		out.State = stateActive
	case here:
		out.State = stateBegins
	default:
		out.State = stateReady
	}
	return out
}
