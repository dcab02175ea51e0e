package apiserver

import (
	"context"
	"slices"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// selection is what a list or watch asks for.
type selection struct {
	kind                  overlay.Kind
	tenant, name, network string
}

func parseSelection(what, kind, tenant, name, network string) (selection, error) {
	k, err := api.ParseKind("kind", kind)
	if err != nil {
		return selection{}, refuseValue(what, err)
	}
	q := selection{kind: k, tenant: tenant, name: name, network: network}
	for _, f := range []struct{ field, value string }{{"tenant", tenant}, {"name", name}, {"network", network}} {
		if f.value == "" {
			continue
		}
		if err := overlay.CheckName(f.field, f.value); err != nil {
			return selection{}, refuseValue(what, err)
		}
	}
	if tenant != "" && (k == overlay.KindTenant || k == overlay.KindHost) {
		return selection{}, refuseField(what, "tenant", tenant, "nothing for a "+kind)
	}
	if network != "" && k != overlay.KindPort && k != overlay.KindEndpoint {
		return selection{}, refuseField(what, "network", network, "nothing for a "+kind)
	}
	return q, nil
}

// check refuses the name of a tenant or network that does not exist: an empty
// list would look like an answer.
func (q selection) check(v *managercore.View) error {
	var tenant overlay.UID
	if q.tenant != "" {
		it := v.Named(overlay.KindTenant, overlay.UID{}, q.tenant)
		if it == nil {
			return api.Refuse(api.CodeNotFound, "tenant "+q.tenant+" was not found", "no tenant has that name", "see what there is: culvert tenant list")
		}
		tenant = it.Key.UID
	}
	if q.network == "" {
		return nil
	}
	for it := range v.List(overlay.KindNetwork, tenant) {
		if it.Rec.(*overlay.Network).Name == q.network {
			return nil
		}
	}
	return api.Refuse(api.CodeNotFound, "network "+q.network+" was not found", "no network has that name", "see what there is: culvert network list")
}

// wants reports whether a resource is asked for.
func (q selection) wants(r *culvertv1.Resource) bool {
	m := api.MetadataOf(r)
	if q.tenant != "" && m.GetTenant() != q.tenant || q.name != "" && m.GetName() != q.name {
		return false
	}
	if q.network == "" {
		return true
	}
	return q.network == r.GetPort().GetSpec().GetNetwork() || q.network == r.GetEndpoint().GetStatus().GetNetwork()
}

// mayWant spares what has another name from being rendered only to be thrown
// away. An endpoint's name is its port's and is not in the record.
func (q selection) mayWant(rec overlay.Record) bool {
	if q.name == "" {
		return true
	}
	switch rec := rec.(type) {
	case *overlay.Tenant:
		return rec.Name == q.name
	case *overlay.Network:
		return rec.Name == q.name
	case *overlay.Port:
		return rec.Name == q.name
	case *overlay.Host:
		return rec.Name == q.name
	case *overlay.Domain:
		return rec.Name == q.name
	case *overlay.Policy:
		return rec.Name == q.name
	case *overlay.Gateway:
		return rec.Name == q.name
	}
	return true
}

// items are the live records of the kind, before names are compared, from as
// few logs as the selection allows.
func (q selection) items(v *managercore.View, yield func(*managercore.Item)) {
	if q.kind != overlay.KindPort && q.kind != overlay.KindEndpoint {
		for it := range v.List(q.kind, overlay.UID{}) {
			if q.mayWant(it.Rec) {
				yield(it)
			}
		}
		return
	}
	for n := range v.List(overlay.KindNetwork, overlay.UID{}) {
		if q.network != "" && n.Rec.(*overlay.Network).Name != q.network {
			continue
		}
		if l := v.Net(n.Key.UID); l != nil {
			for it := range l.Keys() {
				if it.Key.Kind == q.kind && !it.Gone && q.mayWant(it.Rec) {
					yield(it)
				}
			}
		}
	}
}

func (q selection) list(r *renderer) []*culvertv1.Resource {
	var out []*culvertv1.Resource
	q.items(r.v, func(it *managercore.Item) {
		if res := r.item(it); q.wants(res) {
			out = append(out, res)
		}
	})
	slices.SortStableFunc(out, byName)
	return out
}

// List implements the API.
func (s *Server) List(_ context.Context, req *culvertv1.ListRequest) (*culvertv1.ListResponse, error) {
	q, err := parseSelection("nothing was listed", req.GetKind(), req.GetTenant(), req.GetName(), req.GetNetwork())
	if err != nil {
		return nil, err
	}
	r := s.renderer()
	if err := q.check(r.v); err != nil {
		return nil, err
	}
	return &culvertv1.ListResponse{Items: q.list(r), Revision: r.v.At.String()}, nil
}

// Watch implements the API: what there is, then a mark, then every change. A
// slow reader gets fewer, newer events, never a queue of old ones.
func (s *Server) Watch(ctx context.Context, req *culvertv1.WatchRequest, stream culvertv1connect.APIWatchServerStream) error {
	q, err := parseSelection("nothing is watched", req.GetKind(), req.GetTenant(), "", req.GetNetwork())
	if err != nil {
		return err
	}
	r := s.renderer()
	if err := q.check(r.v); err != nil {
		return err
	}
	for _, res := range q.list(r) {
		if err := stream.Send(&culvertv1.WatchResponse{Type: "existing", Revision: api.MetadataOf(res).GetRevision(), Resource: res}); err != nil {
			return err
		}
	}
	if err := stream.Send(&culvertv1.WatchResponse{Type: "synced", Revision: r.v.At.String()}); err != nil {
		return err
	}
	for {
		v, err := s.b.Await(ctx, r.v.At)
		if err != nil {
			return err
		}
		before := r
		r = s.rendererOf(v)
		for _, e := range q.changes(before, r) {
			if err := stream.Send(e); err != nil {
				return err
			}
		}
	}
}
