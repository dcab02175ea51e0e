package apiserver_test

import (
	"net/netip"
	"strings"
	"testing"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/apiserver/apiservertest"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// campus is two networks of a domain, on a and b: a1 and a2 in one, b2 in the
// other, and hosts whose kernels hold all that they should.
func campus(t *testing.T) (*apiservertest.Backend, *client.Client) {
	t.Helper()
	b := apiservertest.New()
	b.Host("a", "192.0.2.11")
	b.Host("b", "192.0.2.12")
	net := func(name, prefix, gateway string) overlay.Doc {
		return overlay.Doc{Kind: overlay.KindNetwork, Tenant: "default", Name: name, Network: overlay.NetworkSpec{
			Domain: "d", Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix(prefix), Gateway: netip.MustParseAddr(gateway)}}}}
	}
	port := func(name, network, addr string, mac byte) overlay.Doc {
		return overlay.Doc{Kind: overlay.KindPort, Tenant: "default", Name: name, Port: overlay.PortSpec{
			Network: network, VM: "vm-" + name, MAC: overlay.MAC{2, 0, 0, 0, 0, mac}, Addresses: []netip.Addr{netip.MustParseAddr(addr)}}}
	}
	r, err := b.Do(t.Context(), managercore.Asked{Actor: "test", Put: &managercore.Put{Mode: managercore.ModeCreate, Docs: []overlay.Doc{
		{Kind: overlay.KindDomain, Tenant: "default", Name: "d"}, net("blue", "10.0.0.0/24", "10.0.0.254"), net("red", "10.1.0.0/24", "10.1.0.254"),
		port("a1", "blue", "10.0.0.1", 1), port("a2", "blue", "10.0.0.2", 2), port("b2", "red", "10.1.0.2", 3), port("idle", "red", "10.1.0.9", 9),
	}}})
	if err != nil || r.Refusal != nil {
		t.Fatal(err, r.Refusal)
	}
	b.Plug("a", "default", "a1")
	b.Plug("b", "default", "a2")
	b.Plug("b", "default", "b2")
	for _, h := range []string{"a", "b"} {
		b.Kernels[h] = holds(nil)
	}
	return b, dial(t, b)
}

// holds answers for a host whose kernel is as planned, but for what change does
// to the view of the other end.
func holds(change func(*api.LookView)) func([]api.LookQuery) api.Looked {
	return func(q []api.LookQuery) (l api.Looked) {
		for i := range q {
			v := api.LookView{Served: true}
			if i == 0 {
				v.Device, v.Passes = "tap0", true
			} else if v.Rows = []api.LookRow{{Row: "fdb 1 entry", State: api.RowHeld}}; change != nil {
				change(&v)
			}
			l.Views = append(l.Views, v)
		}
		return l
	}
}

func policy(from, to string, both bool) managercore.Asked {
	return managercore.Asked{Actor: "test", Put: &managercore.Put{Mode: managercore.ModeApply, Docs: []overlay.Doc{
		{Kind: overlay.KindPolicy, Tenant: "default", Name: "open", Policy: overlay.PolicySpec{Domain: "d", From: from, To: to, Both: both}}}}}
}

// TestExplainPath: the verdict names what is missing first, and what to type;
// only a path on which nothing is missing is one.
func TestExplainPath(t *testing.T) {
	rows := func(state, have string) func(b *apiservertest.Backend) {
		return func(b *apiservertest.Backend) {
			b.Kernels["a"] = holds(func(v *api.LookView) { v.Rows[0].State, v.Rows[0].Have = state, have })
		}
	}
	open := func(from, to string, both bool) func(b *apiservertest.Backend) {
		return func(b *apiservertest.Backend) { _, _ = b.Do(t.Context(), policy(from, to, both)) }
	}
	for _, c := range []struct {
		name, from, to, service string
		first                   func(*apiservertest.Backend)
		verdict, cure           string // no cure: it is reached
	}{
		{"one network", "a1", "a2", "", nil, "a1 reaches a2: in one hop over the underlay, from a (192.0.2.11) to b (192.0.2.12)", ""},
		{"by the VM's name", "vm-a1", "default/a2", "tcp/443", nil, "a1 reaches a2", ""},
		{"one host", "a2", "b2", "", open("blue", "red", true), "both are on b, nothing crosses the underlay", ""},
		{"by address", "a1", "10.1.0.2", "", open("blue", "red", true), "a1 reaches b2 (10.1.0.2)", ""},
		{"its gateway", "a1", "10.0.0.254", "icmp", nil, "its own host answers", ""},
		{"no policy", "a1", "b2", "", nil, "no policy of domain d opens the way from network blue to network red", "culvert policy create blue-red --domain d --from blue --to red"},
		{"the other way alone", "a1", "b2", "", open("red", "blue", false), "no policy of domain d opens", "culvert policy create"},
		{"no way back", "a1", "b2", "", open("blue", "red", false), "nothing opens the way back", "culvert policy set POLICY --direction both (policy open)"},
		{"no way back, and none needed", "a1", "b2", "udp/514", open("blue", "red", false), "a1 reaches b2", ""},
		{"no such neighbour", "a1", "10.0.0.77", "", nil, "nobody in network blue has 10.0.0.77", "culvert endpoint list --network blue"},
		{"no route", "a1", "198.51.100.7", "", nil, "no route of domain d leads there", "culvert domain set d --route PREFIX=VIA"},
		{"bound nowhere", "a1", "idle", "", open("blue", "red", true), "idle is on no host", "culvert attach idle --dev DEVICE"},
		{"on a dead host", "a1", "a2", "", func(b *apiservertest.Backend) { b.Die("b") }, "a2 is on b, which is dead", "culvert status host b"},
		{"no answer", "a1", "a2", "", func(b *apiservertest.Backend) { delete(b.Kernels, "b") }, "on b, the agent is not connected or does not answer", "culvert status host b"},
		{"an entry is missing", "a1", "a2", "", rows(api.RowMissing, ""), "on a, the kernel lacks: fdb 1 entry", "culvert status host a"},
		{"an entry differs", "a1", "a2", "", rows(api.RowDiffers, "fdb 1 other"), "on a, the kernel has fdb 1 other in place of: fdb 1 entry", "culvert status host a"},
		{"nothing wants it", "a1", "a2", "", rows(api.RowStray, ""), "on a, no entry leads to a2", "culvert status host a"},
		{"a port that is shut", "a1", "a2", "", func(b *apiservertest.Backend) {
			b.Kernels["b"] = func(q []api.LookQuery) api.Looked {
				l := holds(nil)(q)
				l.Views[0].Passes, l.Views[0].Refused = false, "another has its MAC"
				return l
			}
		}, "on b, device tap0 passes nothing: another has its MAC", "culvert port show a2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, cl := campus(t)
			if c.first != nil {
				c.first(b)
			}
			r, err := cl.ExplainPath(t.Context(), &culvertv1.ExplainPathRequest{From: c.from, To: c.to, Service: c.service})
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(r.GetVerdict(), c.verdict) || r.GetReachable() != (c.cure == "") || !strings.Contains(r.GetCure(), c.cure) {
				t.Errorf("reachable %v: %s\ncure: %s", r.GetReachable(), r.GetVerdict(), r.GetCure())
			}
		})
	}
}

// TestExplainPathRefuses names that are nobody's, or somebody's else.
func TestExplainPathRefuses(t *testing.T) {
	_, cl := campus(t)
	for want, req := range map[string]*culvertv1.ExplainPathRequest{
		string(api.CodeNotFound): {From: "a1", To: "nobody"},
		`VM2 is "a1"`:            {From: "a1", To: "a1"},
		`SERVICE is "tcp/http"`:  {From: "a1", To: "a2", Service: "tcp/http"},
		`VM1 is "A1"`:            {From: "A1", To: "a2"},
	} {
		if _, err := cl.ExplainPath(t.Context(), req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", req, err, want)
		}
	}
}
