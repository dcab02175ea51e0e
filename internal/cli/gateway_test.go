package cli

import (
	"strings"
	"testing"

	"culvert/internal/api"
	"culvert/internal/apiserver"
	"culvert/internal/overlay"
)

// TestGateways: from a domain to a way out, and what is said of it.
func TestGateways(t *testing.T) {
	m := newMachine(t)
	m.b.Host("h1", "192.0.2.1")
	m.b.Host("h2", "192.0.2.2")
	m.ok("domain create shop")
	m.ok("network create web --subnet 10.30.1.0/24 --domain shop")
	m.want("gateway create out --domain shop --host h1 --host h2 --uplink eth1 --address 203.0.113.10/24 --next-hop 203.0.113.1", 0, `
gateway out created: 203.0.113.10/24 on eth1 of h1, h2, for web (revision 8)
  all 2 hosts exact in 0.0 ms (slowest h1)
`, "")
	m.want("gateway list", 0, `
GATEWAY  DOMAIN  ADDRESS          NETWORKS  ACTIVE  STATE    HOSTS
out      shop    203.0.113.10/24  web       -       waiting  h1:not-ready h2:not-ready
`, "")
	g := m.b.View().Named(overlay.KindGateway, m.b.View().Named(overlay.KindTenant, overlay.UID{}, "default").Key.UID, "out")
	m.b.Health["h1"] = apiserver.HostFact{Gateways: []overlay.GatewayState{{Gateway: g.Key.UID, Step: "next hop", Reason: "203.0.113.1 does not answer on device eth1"}}}
	m.b.Health["h2"] = apiserver.HostFact{Gateways: []overlay.GatewayState{{Gateway: g.Key.UID, Ready: true}}}
	if o := m.ok("gateway show out"); !strings.Contains(o, `
  hosts:
  - host: h1
    state: "not ready"
    step: "next hop"
    reason: "203.0.113.1 does not answer on device eth1"
  - host: h2
    state: ready
`) {
		t.Errorf("gateway show:\n%s", o)
	}
	m.ok("gateway set out --floating 203.0.113.20=10.30.1.5 --forward tcp/8080=10.30.1.7:80 --forward udp/203.0.113.21:53=10.30.1.8:53 --snat 203.0.113.11 --network web")
	o := m.ok("gateway show out")
	for _, want := range []string{"  snat:\n  - \"203.0.113.11\"\n", "  - address: \"203.0.113.20\"\n    to: \"10.30.1.5\"\n",
		"  - protocol: tcp\n    port: 8080\n    to: \"10.30.1.7\"\n    toPort: 80\n", "  - protocol: udp\n    address: \"203.0.113.21\"\n    port: 53\n    to: \"10.30.1.8\"\n", "  networks:\n  - web\nstatus:"} {
		if !strings.Contains(o, want) {
			t.Errorf("gateway show has not %q:\n%s", want, o)
		}
	}
	m.ok("gateway set out --no-floating --no-forward --no-snat --all-networks")
	if o := m.ok("gateway show out"); strings.Contains(o, "203.0.113.20") || strings.Contains(o, "forwards") || strings.Contains(o, "snat") {
		t.Errorf("what was taken away is shown:\n%s", o)
	}
	m.want("port delete out-web", 5, "", `
Port out-web was not deleted: it is a leg of gateway out and follows from it.
Change the gateway, or delete it:  culvert gateway delete out
(`+string(api.CodeImmutable)+`)
`)
	m.ok("gateway delete out")
	m.ok("network delete web")
	m.ok("domain delete shop")
}
