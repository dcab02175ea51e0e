package agent

import (
	"net/netip"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/gateway"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Ways keeps the host's side of gateways.
type Ways interface {
	// Set says what is wanted. whole: what is not in specs is not any more.
	Set(specs []gateway.Spec, whole bool)
}

// setWays tells what the core knows of gateways, if that may have changed.
func (a *Agent) setWays() {
	if a.cfg.Ways == nil {
		return
	}
	list, heard, whole, at := a.core.Gateways()
	if at == a.gatewaysAt {
		return
	}
	a.gatewaysAt = at
	var specs []gateway.Spec
	for i := range list {
		specs = append(specs, waySpec(&list[i], heard))
	}
	a.cfg.Ways.Set(specs, whole)
}

func waySpec(g *agentcore.Gateway, heard bool) gateway.Spec {
	s := gateway.Spec{
		UID: g.UID, Name: g.TenantName + "/" + g.Name, Uplink: g.Uplink, Addresses: g.Addresses, NextHops: g.NextHops,
		SNAT: g.SNAT, Floating: g.Floating, Forwards: g.Forwards,
	}
	switch {
	case !heard:
		s.Mode = gateway.Keep
	case g.Here:
		s.Mode = gateway.Active
	default:
		s.Mode = gateway.Standby
	}
	for i, l := range g.Legs {
		n := g.Networks[i]
		if n == nil {
			continue // it is told soon, or has gone
		}
		leg := gateway.Leg{VNI: n.VNI, Alias: hoststate.PortAlias(n.TenantName, l.Port), MAC: l.MAC, MTU: uint32(n.MTU)}
		for _, sub := range n.Subnets {
			leg.Inside = append(leg.Inside, sub.Prefix)
			for _, ad := range l.Addresses {
				if sub.Prefix.Contains(ad) {
					leg.Addresses = append(leg.Addresses, netip.PrefixFrom(ad, sub.Prefix.Bits()))
				}
			}
		}
		s.Legs = append(s.Legs, leg)
	}
	return s
}

// GatewaysAre tells the manager how gateways are here. It does not wait.
func (a *Agent) GatewaysAre(states []overlay.GatewayState) {
	a.out.mu.Lock()
	a.out.ways.states, a.out.ways.due = states, true
	a.out.mu.Unlock()
	a.out.ring()
}

// waysSaid is what was said of gateways last; due: this stream has not heard it.
type waysSaid struct {
	states []overlay.GatewayState
	due    bool
}

func (w *waysSaid) take() *api.GatewayStates {
	if !w.due {
		return nil
	}
	w.due = false
	return &api.GatewayStates{States: w.states}
}
