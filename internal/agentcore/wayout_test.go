package agentcore

import (
	"net/netip"
	"testing"

	"culvert/internal/overlay"
)

// An agent knows of its gateways what its journal and its managers say: that one
// is to be active here it believes only a manager, and that one is gone the end
// of a full pass.
func TestGatewaysFollowTheRecords(t *testing.T) {
	t.Parallel()
	me, other := hostUID("h1"), hostUID("h2")
	rev := func(n uint64) overlay.Rev { return overlay.Rev{Epoch: 1, N: n} }
	web := &overlay.Network{Meta: overlay.Meta{UID: netUID("web"), Name: "web"}, TenantName: "default", VNI: 42, MTU: 1450}
	gw := func(name string, active overlay.UID, hosts ...string) *overlay.Gateway {
		return &overlay.Gateway{Meta: overlay.Meta{UID: named('g', name), Name: name}, TenantName: "default", Hosts: hosts, Uplink: "eth1", Active: active,
			Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.10/24")},
			Legs:      []overlay.Leg{{Network: web.UID, Port: name + "-web", MAC: overlay.MAC{2, 1}}, {Network: netUID("none"), Port: name + "-none", MAC: overlay.MAC{2, 2}}}}
	}
	pass := func(n uint64, recs ...overlay.Record) Items {
		it := Items{Begins: []overlay.UID{{}}, Ends: []End{{Full: true, Sent: rev(n)}}, UpTo: rev(n)}
		for _, r := range recs {
			it.Items = append(it.Items, Item{Rev: rev(n), Rec: r})
		}
		return it
	}
	c := New(Config{Cluster: "lab", Self: me, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.201"), UDPPort: 4789})
	if list, heard, whole, _ := c.Gateways(); len(list) != 0 || heard || whole {
		t.Fatalf("at first: %v, heard %v, whole %v", list, heard, whole)
	}
	c.Step(1, pass(1, web, gw("out", me, "h2", "h1"), gw("far", other, "h2"))) // the journal
	list, heard, whole, at := c.Gateways()
	if len(list) != 1 || list[0].Name != "out" || !list[0].Here || heard || !whole {
		t.Fatalf("by the journal: %+v, heard %v, whole %v", list, heard, whole)
	}
	if n := list[0].Networks; len(n) != 2 || n[0] == nil || n[0].VNI != 42 || n[1] != nil {
		t.Errorf("its networks: %v", n)
	}
	said := c.Known()
	c.Step(2, Connected{Session: 1})
	c.Step(3, Items{Items: []Item{{Rev: rev(2), Rec: gw("out", other, "h2", "h1")}}, Ends: []End{{Sent: rev(2)}}, UpTo: rev(2)})
	list, heard, _, then := c.Gateways()
	if len(list) != 1 || list[0].Here || !heard || then == at {
		t.Errorf("by the manager: %+v, heard %v, at %d and then %d", list, heard, at, then)
	}
	c.Step(4, Items{Items: []Item{{Rev: rev(1), Rec: gw("out", me, "h1")}}})
	if list, _, _, _ := c.Gateways(); len(list) != 1 || list[0].Here {
		t.Errorf("older news were believed: %+v", list)
	}
	c.Step(5, pass(3, web))
	if list, _, _, now := c.Gateways(); len(list) != 0 || now == then {
		t.Errorf("after a pass without it: %+v", list)
	}

	// What the journal is written anew from says the same.
	again := New(Config{Cluster: "lab", Self: me, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.201"), UDPPort: 4789})
	for _, it := range said {
		again.Step(1, it)
	}
	if list, _, _, _ := again.Gateways(); len(list) != 1 || !list[0].Here {
		t.Errorf("by a journal that was written anew: %+v", list)
	}
}
