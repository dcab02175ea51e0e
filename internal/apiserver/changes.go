package apiserver

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// logs are the logs of a view that hold records of the kind.
func (q selection) logs(v *managercore.View) []*managercore.Log {
	switch q.kind {
	case overlay.KindTenant, overlay.KindDomain, overlay.KindPolicy:
		return []*managercore.Log{v.Tenants}
	case overlay.KindNetwork, overlay.KindHost, overlay.KindGateway:
		return []*managercore.Log{v.Fleet}
	}
	var out []*managercore.Log
	for n := range v.List(overlay.KindNetwork, overlay.UID{}) { // for the others see dropped
		if l := v.Net(n.Key.UID); l != nil {
			out = append(out, l)
		}
	}
	return out
}

// changes are the events between two views, by revision.
func (q selection) changes(before, after *renderer) []*culvertv1.WatchResponse {
	var events []event
	for _, l := range q.logs(after.v) {
		if before.v.At.Less(l.Floor) || before.v.At.Epoch != after.v.At.Epoch {
			// Tombstones that this watcher has not seen are gone: only a
			// comparison of everything tells what went.
			return q.compare(before, after)
		}
		for it := range l.After(before.v.At) {
			if e, ok := q.event(after, l, it); ok {
				events = append(events, e)
			}
		}
	}
	return q.encode(append(events, q.dropped(before, after)...))
}

// dropped are the events of what went with a deleted network. Its ports and
// endpoints are gone with it, whatever its log still says and for how long.
func (q selection) dropped(before, after *renderer) []event {
	if q.kind != overlay.KindPort && q.kind != overlay.KindEndpoint {
		return nil
	}
	var events []event
	for n := range before.v.List(overlay.KindNetwork, overlay.UID{}) {
		l := before.v.Net(n.Key.UID)
		if l == nil || after.v.Network(n.Key.UID) != nil {
			continue
		}
		rev := after.v.At // unless the tombstone of the network tells better
		if it := after.v.Fleet.Get(n.Key); it != nil && it.Gone {
			rev = it.Rev
		}
		for it := range l.Keys() {
			if it.Key.Kind != q.kind || it.Gone {
				continue
			}
			if e := (event{rev: rev, gone: true, res: before.record(it.Rec, rev, true)}); q.wants(e.res) {
				events = append(events, e)
			}
		}
	}
	return events
}

// event is one change, with the order that it belongs to.
type event struct {
	rev  overlay.Rev
	gone bool
	res  *culvertv1.Resource
}

// event makes an event of an item. A port also changes when its endpoint does.
func (q selection) event(r *renderer, l *managercore.Log, it *managercore.Item) (event, bool) {
	e := event{rev: it.Rev, gone: it.Gone}
	switch {
	case it.Key.Kind == q.kind:
		e.res = r.item(it)
	case q.kind == overlay.KindPort && it.Key.Kind == overlay.KindEndpoint:
		port := l.Get(managercore.Key{Kind: overlay.KindPort, UID: it.Rec.(*overlay.Endpoint).Port})
		if port == nil || port.Gone || port.Rev == it.Rev {
			return event{}, false // told by the port's own change
		}
		e.gone, e.res = false, r.item(port)
	default:
		return event{}, false
	}
	return e, q.wants(e.res)
}

// compare finds the events between two views without their logs.
func (q selection) compare(before, after *renderer) []*culvertv1.WatchResponse {
	old := map[string]*culvertv1.Resource{}
	for _, res := range q.list(before) {
		old[identity(res)] = res
	}
	var events []event
	for _, res := range q.list(after) {
		id := identity(res)
		was := old[id]
		delete(old, id)
		if was == nil || !proto.Equal(was, res) {
			rev, _ := api.ParseRev("revision", api.MetadataOf(res).GetRevision()) // our own print
			events = append(events, event{rev: rev, res: res})
		}
	}
	for _, res := range old { // order-free: sorted by encode
		events = append(events, event{rev: after.v.At, gone: true, res: res})
	}
	return q.encode(events)
}

func (q selection) encode(events []event) []*culvertv1.WatchResponse {
	slices.SortStableFunc(events, func(a, b event) int {
		if c := a.rev.Compare(b.rev); c != 0 {
			return c
		}
		return byName(a.res, b.res)
	})
	var out []*culvertv1.WatchResponse
	for _, e := range events {
		kind := "changed"
		if e.gone {
			kind = "deleted"
		}
		out = append(out, &culvertv1.WatchResponse{Type: kind, Revision: e.rev.String(), Resource: e.res})
	}
	return out
}

// identity tells resources apart for ever.
func identity(r *culvertv1.Resource) string {
	if e := r.GetEndpoint(); e != nil {
		return e.GetMetadata().GetTenant() + "/" + e.GetStatus().GetNetwork() + "/" + e.GetStatus().GetMac()
	}
	return api.MetadataOf(r).GetUid()
}
