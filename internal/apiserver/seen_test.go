package apiserver_test

import (
	"net/netip"
	"slices"
	"testing"

	"culvert/internal/api/culvertv1"
	"culvert/internal/apiserver"
	"culvert/internal/apiserver/apiservertest"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// TestSeen: a port shows what its host saw of it, and whoever is refused what
// is the port's; a host shows all that it refuses, while it is connected.
func TestSeen(t *testing.T) {
	b := apiservertest.New()
	b.Host("a", "192.0.2.11")
	b.Host("b", "192.0.2.12")
	r, err := b.Do(t.Context(), managercore.Asked{Actor: "test", Put: &managercore.Put{Mode: managercore.ModeCreate, Docs: []overlay.Doc{
		{Kind: overlay.KindNetwork, Tenant: "default", Name: "n", Network: overlay.NetworkSpec{VNI: 42, Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.254")}}}},
		{Kind: overlay.KindPort, Tenant: "default", Name: "p", Port: overlay.PortSpec{Network: "n", MAC: overlay.MAC{2, 0, 0, 0, 0, 1}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}},
	}}})
	if err != nil || r.Refusal != nil {
		t.Fatal(err, r.Refusal)
	}
	b.Plug("a", "default", "p")
	p := r.Changes[1].Rec.(*overlay.Port)
	other := overlay.MAC{2, 0, 0, 0, 0, 9}
	saw := []overlay.Seen{{Network: p.Network, MAC: p.MAC, Groups: []netip.Addr{netip.MustParseAddr("239.1.1.1")}, Drops: []overlay.Count{{Reason: "storm", N: 3}}}}
	b.Health["a"] = apiserver.HostFact{Seen: saw, Drops: []overlay.Count{{Reason: "storm", N: 4}}, Unread: []overlay.Count{{Reason: "igmp-type", N: 1}}}
	b.Health["b"] = apiserver.HostFact{
		Seen: []overlay.Seen{{Network: p.Network, MAC: p.MAC, Groups: []netip.Addr{netip.MustParseAddr("239.9.9.9")}}}, // it moved on
		Refused: []overlay.Refused{
			{Network: p.Network, MAC: other, Address: p.Addresses[0], Device: "tap1", Reason: "it is port p's (CV0132)"},
			{Network: p.Network, MAC: p.MAC, Device: "tap2", Reason: "the device is another's"},
			{Network: p.Network, MAC: other, Address: netip.MustParseAddr("10.9.9.9"), Device: "tap1", Reason: "it is outside"},
			{Network: p.Network, Device: "tap3", Reason: "its alias names nothing"},
		},
		RefusedMore: 2,
	}
	c := dial(t, b)
	get := func(kind, tenant, name string) *culvertv1.Resource {
		t.Helper()
		r, err := c.List(t.Context(), &culvertv1.ListRequest{Kind: kind, Tenant: tenant, Name: name})
		if err != nil || len(r.GetItems()) != 1 {
			t.Fatal(r, err)
		}
		return r.GetItems()[0]
	}
	want := func(got, want []string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got %q\nwant %q", got, want)
		}
	}
	st := get("port", "default", "p").GetPort().GetStatus()
	want(st.GetGroups(), []string{"239.1.1.1"})
	if d := st.GetDrops(); len(d) != 1 || d[0].GetReason() != "storm" || d[0].GetFrames() != 3 {
		t.Errorf("drops %v", d)
	}
	want(st.GetRefusals(), []string{
		"on b, device tap2: 02:00:00:00:00:01 is not let in: the device is another's",
		"on b, device tap1: 02:00:00:00:00:09 may not have 10.0.0.1: it is port p's (CV0132)",
	})
	h := get("host", "", "a").GetHost().GetStatus()
	if d, u := h.GetDrops(), h.GetUnread(); len(d) != 1 || d[0].GetFrames() != 4 || len(u) != 1 || u[0].GetReason() != "igmp-type" || len(h.GetRefusals()) != 0 {
		t.Errorf("host a: %v", h)
	}
	want(get("host", "", "b").GetHost().GetStatus().GetRefusals(), []string{
		"device tap1 in default/n: 02:00:00:00:00:09 may not have 10.0.0.1: it is port p's (CV0132)",
		"device tap2 in default/n: 02:00:00:00:00:01 is not let in: the device is another's",
		"device tap1 in default/n: 02:00:00:00:00:09 may not have 10.9.9.9: it is outside",
		"device tap3 in default/n: its alias names nothing",
		"and 2 more",
	})
	b.Leave("b")
	want(get("host", "", "b").GetHost().GetStatus().GetRefusals(), nil)
	want(get("port", "default", "p").GetPort().GetStatus().GetRefusals(), nil)
}
