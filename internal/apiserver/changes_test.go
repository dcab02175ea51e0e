package apiserver

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// world is a core that is committed at once, one revision a request.
type world struct {
	core *managercore.Core
	n    uint64
	id   uint64
	host overlay.UID
}

func newWorld() *world {
	w := &world{core: managercore.New(managercore.Config{Epoch: 1}), n: 1}
	w.step(managercore.Loaded{N: 1})
	w.put(overlay.Doc{Kind: overlay.KindTenant, Name: "default"})
	w.put(overlay.Doc{Kind: overlay.KindTenant, Name: "acme"})
	w.ask(managercore.Asked{AddHost: &managercore.AddHost{Name: "h1", MachineID: "m1"}})
	w.host = w.core.View().Named(overlay.KindHost, overlay.UID{}, "h1").Key.UID
	w.id++
	w.step(managercore.Opened{ID: w.id, Host: w.host, VTEP: overlay.Host{VTEP: netip.MustParseAddr("192.0.2.1")}, BootID: "b"})
	return w
}

func (w *world) step(e managercore.Event) {
	w.core.Step(0, e)
	for writes := w.core.NextTxn(nil, 1000); len(writes) > 0; writes = w.core.NextTxn(nil, 1000) {
		w.n++
		st := managercore.Stored{N: w.n}
		for _, x := range writes {
			if x.Rec == nil {
				st.Deletes = append(st.Deletes, x.Key)
				continue
			}
			st.Puts = append(st.Puts, managercore.StoredRecord{Rec: x.Rec, Gone: x.Gone, N: w.n})
		}
		w.core.Step(0, managercore.TxnDone{N: w.n})
		w.core.Step(0, st)
	}
	w.core.NextReplies()
}

func (w *world) ask(a managercore.Asked) {
	w.id++
	a.ID, a.Actor = w.id, "test"
	binary.BigEndian.PutUint64(a.Seed[:], w.id)
	w.step(a)
}

func (w *world) put(d ...overlay.Doc) {
	w.ask(managercore.Asked{Put: &managercore.Put{Mode: managercore.ModeApply, Docs: d}})
}

func (w *world) claim(tenant, port string, leave bool) {
	v := w.core.View()
	t := v.Named(overlay.KindTenant, overlay.UID{}, tenant)
	it := v.Named(overlay.KindPort, t.Key.UID, port)
	if it == nil {
		return
	}
	p := it.Rec.(*overlay.Port)
	w.id++
	c := managercore.Claim{ID: w.id, Network: p.Network, MAC: p.MAC, Port: p.UID, Evidence: overlay.EvidenceDevice, Leave: leave}
	if e := v.Endpoint(p.Network, p.MAC); e != nil {
		c.Base = e.Rev
	}
	w.step(managercore.Claimed{Host: w.host, Session: 1, Claims: []managercore.Claim{c}})
}

// act does one random thing.
func (w *world) act(t *rapid.T) {
	tenant := rapid.SampledFrom([]string{"default", "acme"}).Draw(t, "tenant")
	net := rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "network")
	port := rapid.SampledFrom([]string{"p1", "p2", "p3"}).Draw(t, "port")
	switch rapid.IntRange(0, 9).Draw(t, "act") {
	case 0:
		w.put(overlay.Doc{Kind: overlay.KindNetwork, Tenant: tenant, Name: net, Network: overlay.NetworkSpec{Domain: rapid.SampledFrom([]string{"", "d1", "d1", "acme/d1", "default/d1"}).Draw(t, "domain")}})
	case 1, 2:
		w.put(overlay.Doc{Kind: overlay.KindPort, Tenant: tenant, Name: port, Port: overlay.PortSpec{Network: net}})
	case 3:
		w.claim(tenant, port, false)
	case 4:
		w.claim(tenant, port, true)
	case 5:
		w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindPort, Tenant: tenant, Name: port}})
	case 6:
		w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindNetwork, Tenant: tenant, Name: net, WithPorts: true}})
	case 7:
		other := map[string]string{"default": "acme", "acme": "default"}[tenant]
		w.put(overlay.Doc{Kind: overlay.KindDomain, Tenant: tenant, Name: "d1", Domain: overlay.DomainSpec{Tenants: [][]string{nil, {other}}[rapid.IntRange(0, 1).Draw(t, "lets in")]}, Labels: []overlay.Label{{Key: net}}})
	case 8:
		w.put(overlay.Doc{Kind: overlay.KindPolicy, Tenant: tenant, Name: "w1", Policy: overlay.PolicySpec{Domain: "d1", From: "n1", To: rapid.SampledFrom([]string{"n2", "acme/n2", "default/n2"}).Draw(t, "to"), Both: rapid.Bool().Draw(t, "both")}})
	case 9:
		gone := managercore.Delete{Kind: overlay.KindPolicy, Tenant: tenant, Name: "w1"}
		if rapid.Bool().Draw(t, "the domain") {
			gone.Kind, gone.Name = overlay.KindDomain, "d1"
		}
		w.ask(managercore.Asked{Delete: &gone})
	}
}

type still struct{ v *managercore.View }

func (s still) View() *managercore.View { return s.v }
func (s still) Await(context.Context, overlay.Rev) (*managercore.View, error) {
	return s.v, nil
}
func (s still) Do(context.Context, managercore.Asked) (managercore.Reply, error) {
	return managercore.Reply{}, nil
}
func (s still) WaitApplied(context.Context, overlay.Rev) ([]HostWait, error) { return nil, nil }
func (s still) Hosts() []HostFact                                            { return nil }
func (s still) Token(context.Context, TokenRequest) (string, time.Time, error) {
	return "", time.Time{}, nil
}
func (s still) Facts() Facts { return Facts{} }
func (s still) Look(context.Context, overlay.UID, []api.LookQuery) (api.Looked, bool) {
	return api.Looked{}, false
}

func (s still) server() *Server { return New(s, Options{}) }

// TestWatchEqualsList: whoever applies the events between two views to the
// list of the first has the list of the second, in both ways of finding them.
func TestWatchEqualsList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		q := selection{kind: rapid.SampledFrom([]overlay.Kind{overlay.KindTenant, overlay.KindDomain, overlay.KindNetwork, overlay.KindPolicy, overlay.KindPort, overlay.KindEndpoint}).Draw(t, "kind")}
		if q.kind != overlay.KindTenant && rapid.Bool().Draw(t, "one tenant") {
			q.tenant = "acme"
		}
		have := map[string]string{}
		before := still{w.core.View()}.server().renderer()
		for _, res := range q.list(before) {
			have[identity(res)] = names(res)
		}
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			for range rapid.IntRange(1, 4).Draw(t, "acts") {
				w.act(t)
			}
			after := still{w.core.View()}.server().renderer()
			for way, events := range map[string][]*culvertv1.WatchResponse{"log": q.changes(before, after), "comparison": q.compare(before, after)} {
				got := apply(have, events)
				want := map[string]string{}
				for _, res := range q.list(after) {
					want[identity(res)] = names(res)
				}
				if fmt.Sprint(got) != fmt.Sprint(want) { // maps print in the order of their keys
					t.Fatalf("by %s: have %v, want %v, events %v", way, got, want, events)
				}
				if !slices.IsSortedFunc(events, func(a, b *culvertv1.WatchResponse) int {
					ra, _ := api.ParseRev("", a.GetRevision())
					rb, _ := api.ParseRev("", b.GetRevision())
					return ra.Compare(rb)
				}) {
					t.Fatalf("by %s: events out of order: %v", way, events)
				}
			}
			have = apply(have, q.changes(before, after))
			before = after
		}
	})
}

// names is what of a resource must never be missed: that it is, where it is,
// whom it reaches.
func names(r *culvertv1.Resource) string {
	st := r.GetNetwork().GetStatus()
	return fmt.Sprintf("%s/%s %s %s %s%v%v %s", api.MetadataOf(r).GetTenant(), api.MetadataOf(r).GetName(), r.GetPort().GetStatus().GetHost(), r.GetEndpoint().GetStatus().GetHost(),
		st.GetDomain(), st.GetReach(), st.GetFrom(), r.GetPolicy().GetStatus().GetDirection())
}

func apply(have map[string]string, events []*culvertv1.WatchResponse) map[string]string {
	out := map[string]string{}
	for k, v := range have {
		out[k] = v
	}
	for _, e := range events {
		if e.GetType() == "deleted" {
			delete(out, identity(e.GetResource()))
			continue
		}
		out[identity(e.GetResource())] = names(e.GetResource())
	}
	return out
}
