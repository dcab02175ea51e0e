package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/rpcerr"
	"culvert/internal/overlay"
)

// Prepare says whether a guest's interface may start or arrive here now: its
// port is declared and is this interface's, the network and the port select
// this host, and the network's bridge stands. What this host was not told it
// asks a manager; if none answers, an interface whose port is not known is
// refused, for it would pass nothing.
func (l local) Prepare(ctx context.Context, req *culvertv1.PrepareRequest) (*culvertv1.PrepareResponse, error) {
	what := "Guest " + req.GetVm() + " was not let in"
	mac, err := overlay.ParseMAC(req.GetMac())
	if err != nil {
		return nil, rpcerr.Encode(api.Refuse(api.CodeField, what, err.Error(), ""))
	}
	g := agentcore.Guest{MAC: mac, Bridge: req.GetBridge(), Network: req.GetNetwork(), Tenant: req.GetTenant(), Port: req.GetPort()}
	p, ok := l.place(ctx, g)
	if !ok {
		return nil, ctx.Err()
	}
	if !p.Ours {
		return &culvertv1.PrepareResponse{}, nil
	}
	if p.Port == nil {
		if p, err = l.ask(ctx, what, g, p); err != nil {
			return nil, rpcerr.Encode(err)
		}
	}
	if no := l.unfit(what, g, p); no != nil {
		return nil, rpcerr.Encode(no)
	}
	l.a.log.Info("guest may come", "vm", req.GetVm(), "mac", mac.String(), "tenant", p.Tenant, "port", p.Port.Name, "incoming", req.GetIncoming())
	return &culvertv1.PrepareResponse{Ours: true, Tenant: p.Tenant, Port: p.Port.Name, Bridge: p.VNI.Bridge()}, nil
}

func (l local) place(ctx context.Context, g agentcore.Guest) (agentcore.Place, bool) {
	ch := make(chan agentcore.Place, 1)
	if !l.a.onLoop(ctx, func() { ch <- l.a.core.Place(g) }) {
		return agentcore.Place{}, false
	}
	select {
	case p := <-ch:
		return p, true
	case <-ctx.Done(): // the loop may have ended with the order in its hands
		return agentcore.Place{}, false
	}
}

// ask completes what this host knows by what a manager does.
func (l local) ask(ctx context.Context, what string, g agentcore.Guest, p agentcore.Place) (agentcore.Place, error) {
	q := PortQuery{Tenant: p.Tenant, Name: g.Port, VNI: p.VNI, MAC: g.MAC}
	vni, port, err := l.a.mgrs.Resolve(ctx, q)
	if no, ok := api.RefuseValue(what, err); ok && err != nil {
		return p, api.Refuse(no.Code(), what, "port "+q.String()+": "+no.PB().GetWhy(), no.PB().GetCure())
	}
	if err != nil {
		return p, err
	}
	if p.VNI != 0 && vni != p.VNI {
		return p, api.Refuse(api.CodeGuest, what, fmt.Sprintf("port %s is in the network of bridge %s, and the interface in %s", q, vni.Bridge(), p.VNI.Bridge()), "")
	}
	if p.VNI == 0 {
		at, ok := l.place(ctx, agentcore.Guest{MAC: g.MAC, Bridge: vni.Bridge()})
		if !ok {
			return p, ctx.Err()
		}
		at.Tenant, p = p.Tenant, at
	}
	p.Port, p.May = port, len(port.Hosts) == 0 || slices.Contains(port.Hosts, l.a.cfg.Name)
	return p, nil
}

// unfit is the reason why an interface may not come to its port here.
func (l local) unfit(what string, g agentcore.Guest, p agentcore.Place) *api.Refusal {
	port := "port " + strings.TrimPrefix(p.Tenant+"/"+p.Port.Name, "/") // the tenant of a network not told of is not known
	switch {
	case p.Port.MAC != g.MAC:
		return api.Refuse(api.CodeGuest, what, fmt.Sprintf("its interface has MAC %s, and %s has %s", g.MAC, port, p.Port.MAC),
			fmt.Sprintf("Write <mac address='%s'/> into its description.", p.Port.MAC))
	case !p.May:
		return api.Refuse(api.CodeHostNotYours, what, fmt.Sprintf("%s is declared for other hosts than %s", port, l.a.cfg.Name), "See where it may be: culvert port list")
	case p.Blocked:
		return api.Refuse(api.CodeBlocked, what, "network "+p.Network+" of "+port+" is being deleted", "")
	case !p.Stands:
		return api.Refuse(api.CodeNotReady, what, fmt.Sprintf("bridge %s of %s does not stand on host %s yet", p.VNI.Bridge(), port, l.a.cfg.Name), "")
	}
	return nil
}
