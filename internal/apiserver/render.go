package apiserver

import (
	"slices"
	"strings"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// renderer shows records of one view, with the names and numbers around them.
// It lives for one call: counts are made when they are first asked for.
type renderer struct {
	v     *managercore.View
	hosts map[overlay.UID]HostFact
	now   time.Time

	endpoints map[overlay.UID]uint32   // by host; nil until asked for
	members   map[overlay.UID]*members // by domain
	ports     map[overlay.UID]uint32   // by network and by tenant
	seen      *seen                    // see there; nil until asked for
}

func (s *Server) renderer() *renderer { return s.rendererOf(s.b.View()) }

func (s *Server) rendererOf(v *managercore.View) *renderer {
	r := &renderer{v: v, hosts: map[overlay.UID]HostFact{}, now: s.now()}
	for _, h := range s.b.Hosts() {
		r.hosts[h.UID] = h
	}
	return r
}

// tenant, network and hostName are names, of deleted records too: their
// tombstones keep them.
func (r *renderer) tenant(uid overlay.UID) string {
	if it := r.v.Tenants.Get(managercore.Key{Kind: overlay.KindTenant, UID: uid}); it != nil {
		return it.Rec.(*overlay.Tenant).Name
	}
	return ""
}

func (r *renderer) network(uid overlay.UID) *overlay.Network {
	if it := r.v.Fleet.Get(managercore.Key{Kind: overlay.KindNetwork, UID: uid}); it != nil {
		return it.Rec.(*overlay.Network)
	}
	return &overlay.Network{}
}

func (r *renderer) hostName(uid overlay.UID) string {
	if it := r.v.Fleet.Get(managercore.Key{Kind: overlay.KindHost, UID: uid}); it != nil {
		return it.Rec.(*overlay.Host).Name
	}
	return ""
}

// item shows a live or deleted record.
func (r *renderer) item(it *managercore.Item) *culvertv1.Resource {
	return r.record(it.Rec, it.Rev, it.Gone)
}

func (r *renderer) record(rec overlay.Record, rev overlay.Rev, gone bool) *culvertv1.Resource {
	switch rec := rec.(type) {
	case *overlay.Tenant:
		return api.Wrap(r.tenantOf(rec, rev))
	case *overlay.Network:
		return api.Wrap(r.networkOf(rec, rev))
	case *overlay.Port:
		return api.Wrap(r.port(rec, rev, gone))
	case *overlay.Host:
		return api.Wrap(r.host(rec, rev))
	case *overlay.Endpoint:
		return api.Wrap(r.endpoint(rec, rev))
	case *overlay.Domain:
		return api.Wrap(r.domainOf(rec, rev))
	case *overlay.Policy:
		return api.Wrap(r.policy(rec, rev))
	case *overlay.Gateway:
		return api.Wrap(r.gateway(rec, rev))
	}
	return nil
}

// changed shows a record that a request changed, as the view has it: another
// change may stand in the view already, and content of one revision under the
// number of a newer one would let its reader overwrite what he has not read.
func (r *renderer) changed(c managercore.Changed) *culvertv1.Resource {
	var log *managercore.Log
	switch rec := c.Rec.(type) {
	case *overlay.Tenant, *overlay.Domain, *overlay.Policy:
		log = r.v.Tenants
	case *overlay.Port:
		log = r.v.Net(rec.Network)
	case *overlay.Endpoint:
		log = r.v.Net(rec.Network)
	default:
		log = r.v.Fleet
	}
	if log != nil {
		if it := log.Get(managercore.KeyOf(c.Rec)); it != nil {
			if !it.Gone {
				return r.item(it)
			}
			return r.record(c.Rec, it.Rev, false)
		}
	}
	return r.record(c.Rec, r.v.At, false)
}

// nameOf is "port default/vm1": kind, owner, name.
func (r *renderer) nameOf(rec overlay.Record) string {
	switch rec := rec.(type) {
	case *overlay.Tenant:
		return "tenant " + rec.Name
	case *overlay.Network:
		return "network " + r.tenant(rec.Tenant) + "/" + rec.Name
	case *overlay.Port:
		return "port " + r.tenant(rec.Tenant) + "/" + rec.Name
	case *overlay.Host:
		return "host " + rec.Name
	case *overlay.Endpoint:
		return "endpoint " + rec.MAC.String()
	case *overlay.Domain:
		return "domain " + r.tenant(rec.Tenant) + "/" + rec.Name
	case *overlay.Gateway:
		return "gateway " + r.tenant(rec.Tenant) + "/" + rec.Name
	case *overlay.Policy:
		return "policy " + r.tenant(rec.Tenant) + "/" + rec.Name
	}
	return ""
}

func (r *renderer) tenantOf(t *overlay.Tenant, rev overlay.Rev) *culvertv1.Tenant {
	out := api.RenderTenant(t, rev)
	for range r.v.List(overlay.KindNetwork, t.UID) {
		out.Status.Networks++
	}
	r.countPorts()
	out.Status.Ports = r.ports[t.UID]
	return out
}

func (r *renderer) countPorts() {
	if r.ports != nil {
		return
	}
	r.ports = map[overlay.UID]uint32{}
	for it := range r.v.List(overlay.KindPort, overlay.UID{}) {
		p := it.Rec.(*overlay.Port)
		r.ports[p.Network]++
		r.ports[p.Tenant]++ // UIDs are never shared between kinds
	}
}

func (r *renderer) networkOf(n *overlay.Network, rev overlay.Rev) *culvertv1.Network {
	out := api.RenderNetwork(n, r.tenant(n.Tenant), r.domain(n.Tenant, n.Domain), rev)
	out.Status.Reach, out.Status.From, out.Status.Bridged = r.networkNames(n.Tenant, n.Reach), r.networkNames(n.Tenant, n.From), r.networkNames(n.Tenant, n.Bridge)
	for _, h := range n.Routes {
		out.Status.NextHops = append(out.Status.NextHops, &culvertv1.NextHop{Prefix: h.Prefix.String(), Network: r.networkName(n.Tenant, h.Network), Mac: h.MAC.String()})
	}
	r.countPorts()
	out.Status.Ports = r.ports[n.UID]
	at := map[overlay.UID]bool{}
	for it := range r.v.Endpoints(n.UID) {
		out.Status.Endpoints++
		at[it.Rec.(*overlay.Endpoint).Host] = true
	}
	routed := len(n.Reach)+len(n.From)+len(n.Bridge) > 0 // then hosts hear of it that only send to it
	for uid, h := range r.hosts {                        // order-free: sorted below
		if slices.Contains(h.Serves, n.UID) && (!routed || at[uid]) {
			out.Status.ServingHosts = append(out.Status.ServingHosts, r.hostName(uid))
		}
	}
	slices.Sort(out.Status.ServingHosts)
	return out
}

func (r *renderer) port(p *overlay.Port, rev overlay.Rev, gone bool) *culvertv1.Port {
	n := r.network(p.Network)
	out := api.RenderPort(p, r.tenant(p.Tenant), n.Name, rev)
	out.Status.Bridge = n.VNI.Bridge()
	if gone {
		out.Status.State = "deleted"
		return out
	}
	if it := r.v.Endpoint(p.Network, p.MAC); it != nil {
		e := it.Rec.(*overlay.Endpoint)
		out.Status.State, out.Status.Host, out.Status.Since = "up", r.hostName(e.Host), stamp(e.Since)
		if h, ok := r.hosts[e.Host]; !ok || !h.Connected {
			out.Status.Reason = "its host is away: this is where it was last"
		} else if len(e.Pre) > 0 {
			out.Status.Reason = "expected at " + strings.Join(r.hostNames(e.Pre), ", ")
		}
		if r.dead(e.Host) {
			out.Status.State, out.Status.Reason = StateHostDead, "no host has entries that point to it; it may be started on another"
		}
	}
	r.portSeen(p, out.Status)
	if n.Blocked {
		out.Status.State, out.Status.Reason = "blocked", "its network is being deleted"
	}
	return out
}

func (r *renderer) host(h *overlay.Host, rev overlay.Rev) *culvertv1.Host {
	out := api.RenderHost(h, rev)
	f := r.hosts[h.UID]
	out.Status.State = StateAway
	if f.Connected {
		out.Status.State = "connected"
	}
	if h.Dead {
		out.Status.State = StateDead
	}
	if !f.Applied.IsZero() {
		out.Status.AppliedRevision, out.Status.EvidenceAgeSeconds = f.Applied.String(), f.Age.Seconds()
	}
	out.Status.Problems, out.Status.Unclaimed = slices.Clone(f.Problems), slices.Clone(f.Unclaimed)
	out.Status.Repairs, out.Status.Strangers = f.Repairs, f.Strangers
	out.Status.Drops, out.Status.Unread, out.Status.Refusals = dropsOf(f.Drops), dropsOf(f.Unread), r.refusals(&f)
	if r.endpoints == nil {
		r.endpoints = map[overlay.UID]uint32{}
		for it := range r.v.List(overlay.KindNetwork, overlay.UID{}) {
			for e := range r.v.Endpoints(it.Key.UID) {
				r.endpoints[e.Rec.(*overlay.Endpoint).Host]++
			}
		}
	}
	out.Status.Endpoints = r.endpoints[h.UID]
	return out
}

func (r *renderer) endpoint(e *overlay.Endpoint, rev overlay.Rev) *culvertv1.Endpoint {
	n := r.network(e.Network)
	names := api.EndpointNames{Tenant: r.tenant(n.Tenant), Network: n.Name, Host: r.hostName(e.Host)}
	if l := r.v.Net(e.Network); l != nil {
		if it := l.Get(managercore.Key{Kind: overlay.KindPort, UID: e.Port}); it != nil {
			names.Port = it.Rec.(*overlay.Port).Name
		}
	}
	names.Expected = r.hostNames(e.Pre)
	if !e.From.IsZero() {
		names.From = r.hostName(e.From)
	}
	out := api.RenderEndpoint(e, names, rev, stamp(e.Since))
	if out.Status.State = "up"; r.dead(e.Host) {
		out.Status.State = StateHostDead
	}
	return out
}

// dead reports whether a host was declared dead and has not returned.
func (r *renderer) dead(host overlay.UID) bool {
	h := r.v.Host(host)
	return h != nil && h.Dead
}

func (r *renderer) hostNames(uids []overlay.UID) (names []string) {
	for _, u := range uids {
		names = append(names, r.hostName(u))
	}
	return names
}

func stamp(unixNano int64) string {
	if unixNano == 0 {
		return ""
	}
	return time.Unix(0, unixNano).UTC().Format(time.RFC3339Nano)
}

// byName orders resources by tenant and name.
func byName(a, b *culvertv1.Resource) int {
	ma, mb := api.MetadataOf(a), api.MetadataOf(b)
	if c := strings.Compare(ma.GetTenant(), mb.GetTenant()); c != 0 {
		return c
	}
	return strings.Compare(ma.GetName(), mb.GetName())
}
