package api

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

const gatewayHead = "apiVersion: culvert/v1alpha1\nkind: Gateway\nmetadata: {name: out}\nspec:\n  domain: shop\n  hosts: [h2, h1]\n" +
	"  uplink: {device: eth1, addresses: [203.0.113.10/24, \"2001:db8::10/64\"], nextHops: [\"2001:db8::1\", 203.0.113.1]}\n"

func parseOne(t *testing.T, src string) (overlay.Doc, error) {
	t.Helper()
	docs, err := DecodeDocuments("f", []byte(src))
	if err != nil {
		return overlay.Doc{}, err
	}
	return ParseResource(docs[0].Resource)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// What is read is what the record says, and what is shown of it can be applied.
func TestGatewaysAreReadAndShown(t *testing.T) {
	src := gatewayHead + "  snat: [203.0.113.11, 203.0.113.10]\n  floating: [{address: 203.0.113.20, to: 10.1.0.5}]\n  networks: [web, db]\n" +
		"  forwards: [{protocol: udp, address: 203.0.113.21, port: 53, to: 10.1.0.6}, {protocol: tcp, port: 8080, to: 10.1.0.7, toPort: 80}]\n"
	d, err := parseOne(t, src)
	if err != nil {
		t.Fatal(err)
	}
	want := overlay.GatewaySpec{
		Domain: "shop", Hosts: []string{"h2", "h1"}, Uplink: "eth1", Networks: []string{"db", "web"},
		Addresses: []netip.Prefix{netip.MustParsePrefix("203.0.113.10/24"), netip.MustParsePrefix("2001:db8::10/64")},
		NextHops:  []netip.Addr{addr("203.0.113.1"), addr("2001:db8::1")}, SNAT: []netip.Addr{addr("203.0.113.10"), addr("203.0.113.11")},
		Floating: []overlay.Floating{{Outside: addr("203.0.113.20"), Inside: addr("10.1.0.5")}},
		Forwards: []overlay.Forward{
			{Protocol: 6, Outside: addr("203.0.113.10"), Port: 8080, Inside: addr("10.1.0.7"), ToPort: 80},
			{Protocol: 17, Outside: addr("203.0.113.21"), Port: 53, Inside: addr("10.1.0.6"), ToPort: 53},
		},
	}
	if diff := cmp.Diff(want, d.Gateway, sameValues); diff != "" {
		t.Fatal(diff)
	}
	g := &overlay.Gateway{
		Meta: overlay.Meta{UID: overlay.UID{1}, Name: "out", Tenant: overlay.UID{2}}, TenantName: "default", Domain: overlay.UID{3}, Hosts: want.Hosts, Uplink: want.Uplink,
		Addresses: want.Addresses, NextHops: want.NextHops, SNAT: want.SNAT, Floating: want.Floating, Forwards: want.Forwards,
		Networks: []overlay.UID{{4}, {5}}, Active: overlay.UID{6},
		Legs: []overlay.Leg{{Network: overlay.UID{4}, Port: "out-db", MAC: overlay.MAC{2, 1}, Addresses: []netip.Addr{addr("10.1.0.2")}}, {Network: overlay.UID{5}, Port: "out-web", MAC: overlay.MAC{2, 2}}},
	}
	rec, gone, err := UnmarshalStore(MarshalStore(g, true))
	if diff := cmp.Diff(overlay.Record(g), rec, sameValues); err != nil || !gone || diff != "" {
		t.Errorf("from the store: %v, gone %v\n%s", err, gone, diff)
	}
	shown := RenderGateway(g, GatewayNames{Tenant: "default", Domain: "shop", Active: "h2", Networks: []string{"db", "web"}, Serves: []string{"db", "web"}}, overlay.Rev{Epoch: 1, N: 7})
	again, err := parseOne(t, string(EncodeYAML(Wrap(shown))))
	if diff := cmp.Diff(want, again.Gateway, sameValues); err != nil || diff != "" {
		t.Errorf("what is shown: %v\n%s", err, diff)
	}
}

func TestGatewaysAreRefused(t *testing.T) {
	for field, edits := range map[string][]func(s *culvertv1.GatewaySpec){
		"spec.domain":        {func(s *culvertv1.GatewaySpec) { s.Domain = "" }},
		"spec.hosts":         {func(s *culvertv1.GatewaySpec) { s.Hosts = nil }, func(s *culvertv1.GatewaySpec) { s.Hosts = []string{"h1", "h1"} }},
		"spec.uplink.device": {func(s *culvertv1.GatewaySpec) { s.Uplink = nil }, func(s *culvertv1.GatewaySpec) { s.Uplink.Device = "a/b" }},
		"spec.uplink.addresses": {
			func(s *culvertv1.GatewaySpec) { s.Uplink.Addresses = nil },
			func(s *culvertv1.GatewaySpec) { s.Uplink.Addresses = []string{"203.0.113.10"} },
			func(s *culvertv1.GatewaySpec) { s.Uplink.Addresses = []string{"203.0.113.0/24"} },
			func(s *culvertv1.GatewaySpec) { s.Uplink.Addresses = []string{"127.0.0.1/24"} },
			func(s *culvertv1.GatewaySpec) { s.Uplink.Addresses = []string{"fe80::1/64"} },
			func(s *culvertv1.GatewaySpec) {
				s.Uplink.Addresses = []string{"203.0.113.10/24", "203.0.113.10/25"}
			},
		},
		"spec.uplink.nextHops": {
			func(s *culvertv1.GatewaySpec) { s.Uplink.NextHops = nil },
			func(s *culvertv1.GatewaySpec) { s.Uplink.NextHops = []string{"198.51.100.1"} },
			func(s *culvertv1.GatewaySpec) { s.Uplink.NextHops = []string{"203.0.113.10"} },
			func(s *culvertv1.GatewaySpec) { s.Uplink.NextHops = []string{"203.0.113.1", "203.0.113.2"} },
		},
		"spec.snat": {func(s *culvertv1.GatewaySpec) { s.Snat = []string{"2001:db8::5"} }},
		"spec.floating": {
			func(s *culvertv1.GatewaySpec) { s.Floating = floating("203.0.113.10", "10.1.0.5") },
			func(s *culvertv1.GatewaySpec) { s.Floating = floating("203.0.113.20", "fd00::5") },
			func(s *culvertv1.GatewaySpec) { s.Floating = floating("203.0.113.20", "") },
			func(s *culvertv1.GatewaySpec) {
				s.Floating = append(floating("203.0.113.20", "10.1.0.5"), floating("203.0.113.21", "10.1.0.5")...)
			},
		},
		"spec.forwards": {
			func(s *culvertv1.GatewaySpec) { s.Forwards = forwards("icmp", 80) },
			func(s *culvertv1.GatewaySpec) { s.Forwards = forwards("tcp", 0) },
			func(s *culvertv1.GatewaySpec) { s.Forwards = forwards("tcp", 65536) },
			func(s *culvertv1.GatewaySpec) { s.Forwards = append(forwards("tcp", 80), forwards("tcp", 80)...) },
			func(s *culvertv1.GatewaySpec) {
				s.Forwards, s.Floating = forwards("tcp", 80), floating("203.0.113.20", "10.1.0.5")
				s.Forwards[0].Address = "203.0.113.20"
			},
		},
		"spec.networks": {func(s *culvertv1.GatewaySpec) { s.Networks = []string{"Web"} }},
	} {
		for i, edit := range edits {
			docs, err := DecodeDocuments("f", []byte(gatewayHead))
			if err != nil {
				t.Fatal(err)
			}
			edit(docs[0].Resource.GetGateway().Spec)
			var no *overlay.FieldError
			if _, err := ParseResource(docs[0].Resource); !errors.As(err, &no) || !strings.HasPrefix(no.Field, field) {
				t.Errorf("%s, %d: %v", field, i, err)
			}
		}
	}
	if _, err := parseOne(t, gatewayHead+"  l2: {port: eth2}\n"); err == nil || !strings.Contains(err.Error(), "it comes with layer-2 gateways") {
		t.Errorf("l2: %v", err)
	}
}

func floating(out, in string) []*culvertv1.FloatingAddress {
	return []*culvertv1.FloatingAddress{{Address: out, To: in}}
}

func forwards(protocol string, port uint32) []*culvertv1.PortForward {
	return []*culvertv1.PortForward{{Protocol: protocol, Port: port, To: "10.1.0.5"}}
}

// A default route is a prefix as any other, to guests and by next hops.
func TestDefaultRoutesAreKept(t *testing.T) {
	all4, all6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	n := &overlay.Network{
		Meta: overlay.Meta{UID: overlay.UID{1}, Name: "web", Tenant: overlay.UID{2}}, TenantName: "default", VNI: 10001, MTU: 1450,
		Tell:   overlay.Tell{Routes: []overlay.Route{{Prefix: all4, Via: addr("10.1.0.9")}}},
		Routes: []overlay.NextHop{{Prefix: all4, Network: overlay.UID{1}, MAC: overlay.MAC{2}}, {Prefix: all6, Network: overlay.UID{1}, MAC: overlay.MAC{2}}},
	}
	rec, _, err := UnmarshalStore(MarshalStore(n, false))
	if diff := cmp.Diff(overlay.Record(n), rec, sameValues); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	pb := RecordPB(n, false)
	for i, b := range []*culvertv1.NextHopRecord{{Address: []byte{10, 0, 0, 0}, Bits: 0}, {Address: []byte{10, 0, 0, 1}, Bits: 24}, {Address: []byte{10, 0, 0, 0}, Bits: 40}, {Bits: 0}} {
		b.Network, b.Mac = []byte(fmt.Sprintf("%016d", 1)), []byte{2, 0, 0, 0, 0, 1}
		pb.GetNetwork().NextHops = []*culvertv1.NextHopRecord{b}
		if _, _, err := RecordFromPB(pb); !errors.Is(err, ErrRecord) {
			t.Errorf("next hop %d is taken: %v", i, err)
		}
	}
}

func genGateways(t *rapid.T) *GatewayStates {
	g := &GatewayStates{}
	for range rapid.IntRange(0, 3).Draw(t, "gateways") {
		g.States = append(g.States, overlay.GatewayState{
			Gateway: genUID(t, "gateway"), Ready: rapid.Bool().Draw(t, "ready"), Active: rapid.Bool().Draw(t, "active"), Step: genText(t, "step"), Reason: genText(t, "reason"),
		})
	}
	return g
}
