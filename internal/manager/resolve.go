package manager

import (
	"context"
	"fmt"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/rpcerr"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// Resolve finds a declared port by name or MAC, of networks that select the
// caller.
func (a agents) Resolve(ctx context.Context, req *culvertv1.ResolveRequest) (*culvertv1.ResolveResponse, error) {
	id, _, no := agentIdentity(ctx)
	if no != nil {
		return nil, a.m.refuseStream(id, no)
	}
	v := a.m.feed.view()
	what, why := "Port "+req.GetTenant()+"/"+req.GetPort()+" was not found", "no port of a network that host "+id.Name+" serves has that name"
	find := portNamed
	if req.GetPort() == "" {
		what, why = fmt.Sprintf("The port with MAC %s was not found", macOf(req)), fmt.Sprintf("the network with VNI %d has none, or does not select host %s", req.GetVni(), id.Name)
		find = portWithMAC
	}
	port := find(v, req)
	if port == nil {
		return nil, rpcerr.Encode(api.Refuse(api.CodeNotFound, what, why, "See the ports: culvert port list"))
	}
	n := v.Network(port.Network)
	if n == nil || !n.SelectsHost(id.Name) {
		return nil, rpcerr.Encode(api.Refuse(api.CodeNotFound, what, why, "See the ports: culvert port list"))
	}
	return &culvertv1.ResolveResponse{Network: n.UID[:], Vni: uint32(n.VNI), Port: port.UID[:], Name: port.Name, Mac: port.MAC[:], Hosts: port.Hosts}, nil
}

func portNamed(v *managercore.View, req *culvertv1.ResolveRequest) *overlay.Port {
	t := v.Named(overlay.KindTenant, overlay.UID{}, req.GetTenant())
	if t == nil {
		return nil
	}
	p := v.Named(overlay.KindPort, t.Key.UID, req.GetPort())
	if p == nil {
		return nil
	}
	return p.Rec.(*overlay.Port)
}

// portWithMAC looks through the ports of the network's tenant. It is asked
// when a guest starts that its host was not told of, which needs no index.
func portWithMAC(v *managercore.View, req *culvertv1.ResolveRequest) *overlay.Port {
	mac := macOf(req)
	for n := range v.List(overlay.KindNetwork, overlay.UID{}) {
		net := n.Rec.(*overlay.Network)
		if net.VNI != overlay.VNI(req.GetVni()) {
			continue
		}
		for p := range v.List(overlay.KindPort, net.Tenant) {
			if port := p.Rec.(*overlay.Port); port.Network == net.UID && port.MAC == mac {
				return port
			}
		}
	}
	return nil
}

// macOf is the MAC of a request; of one that has none, the zero one, which no
// port has.
func macOf(req *culvertv1.ResolveRequest) (m overlay.MAC) {
	if len(req.GetMac()) == len(m) {
		copy(m[:], req.GetMac())
	}
	return m
}
