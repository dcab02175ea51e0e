package api

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// good is a whole document of each kind that can be written.
func good() (*culvertv1.Tenant, *culvertv1.Network, *culvertv1.Port) {
	return &culvertv1.Tenant{ApiVersion: Version, Kind: "Tenant", Metadata: &culvertv1.Metadata{Name: "acme", Labels: map[string]string{"b": "2", "a": "1"}},
			Spec: &culvertv1.TenantSpec{Quotas: &culvertv1.TenantQuotas{Networks: 5, Ports: 50, AddressesPerPort: 3}}},
		&culvertv1.Network{ApiVersion: Version, Kind: "Network", Metadata: &culvertv1.Metadata{Name: "blue", Tenant: "acme"},
			Spec: &culvertv1.NetworkSpec{Vni: 7, Mtu: 1400, Df: "inherit", Flood: "none", Distribution: "on-demand", Admission: "declared", Hosts: []string{"h2", "h1"}, ForeignVteps: []string{"203.0.113.9", "198.51.100.7"}, Domain: "shop",
				Dhcp: "host", Dns: []string{"fd00:20::2", "10.20.0.2"}, Lease: 600, Routes: []*culvertv1.Route{{Prefix: "0.0.0.0/0", Via: "10.20.0.9"}},
				Subnets: []*culvertv1.Subnet{{Prefix: "10.20.0.0/24"}, {Prefix: "fd00:20::/64", Gateway: "fd00:20::fe"}}}},
		&culvertv1.Port{ApiVersion: Version, Kind: "Port", Metadata: &culvertv1.Metadata{Name: "vm1"},
			Spec: &culvertv1.PortSpec{Network: "blue", Mac: "52:54:00:12:34:56", Addresses: []string{"fd00:20::5", "10.20.0.5"}, Vm: "web 1", Hosts: []string{"h1"}, SharedAddresses: []string{"10.20.0.100"}, AddressCheck: true}}
}

func TestParseAccepts(t *testing.T) {
	tenant, network, port := good()
	want := []overlay.Doc{
		{Kind: overlay.KindTenant, Name: "acme", Labels: []overlay.Label{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}},
			Quotas: overlay.TenantSpec{MaxNetworks: 5, MaxPorts: 50, MaxPortAddresses: 3}},
		{Kind: overlay.KindNetwork, Tenant: "acme", Name: "blue", Network: overlay.NetworkSpec{VNI: 7, MTU: 1400, DF: overlay.DFInherit, Flood: overlay.FloodNone, Distribution: overlay.DistributeOnDemand, Hosts: []string{"h1", "h2"},
			Foreign: []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("203.0.113.9")}, Domain: "shop",
			Tell: overlay.Tell{DNS: []netip.Addr{netip.MustParseAddr("fd00:20::2"), netip.MustParseAddr("10.20.0.2")}, Lease: 600,
				Routes: []overlay.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.20.0.9")}}},
			Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.20.0.0/24"), Gateway: netip.MustParseAddr("10.20.0.1")},
				{Prefix: netip.MustParsePrefix("fd00:20::/64"), Gateway: netip.MustParseAddr("fd00:20::fe")}}}},
		{Kind: overlay.KindPort, Tenant: "default", Name: "vm1", Port: overlay.PortSpec{Network: "blue", MAC: overlay.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}, VM: "web 1", Hosts: []string{"h1"},
			Addresses: []netip.Addr{netip.MustParseAddr("10.20.0.5"), netip.MustParseAddr("fd00:20::5")}, Shared: []netip.Addr{netip.MustParseAddr("10.20.0.100")}, AddressCheck: true}},
	}
	for i, r := range []*culvertv1.Resource{Wrap(tenant), Wrap(network), Wrap(port)} {
		got, err := ParseResource(r)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want[i], got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	}
}

// TestParseRefuses has at least one row for each field that a user may write.
func TestParseRefuses(t *testing.T) {
	names := func(n int) (s []string) {
		for i := range n {
			s = append(s, fmt.Sprintf("h%d", i))
		}
		return s
	}
	addrs := func(n int) (s []string) {
		for i := range n {
			s = append(s, fmt.Sprintf("10.0.%d.%d", i/250, 1+i%250))
		}
		return s
	}
	tests := []struct {
		field string
		edit  func(*culvertv1.Tenant, *culvertv1.Network, *culvertv1.Port)
	}{
		{"apiVersion", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.ApiVersion = "culvert/v1" }},
		{"kind", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Kind = "Port" }},
		{"metadata.name", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Metadata = nil }},
		{"metadata.name", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Metadata.Name = "Blue" }},
		{"metadata.name", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) {
			t.Metadata.Name = strings.Repeat("a", 41)
		}},
		{"metadata.tenant", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) { t.Metadata.Tenant = "x" }},
		{"metadata.tenant", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Metadata.Tenant = "a/b" }},
		{"metadata.labels", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) {
			t.Metadata.Labels = map[string]string{"": "x"}
		}},
		{"metadata.labels", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) {
			t.Metadata.Labels = map[string]string{"a b": "x"}
		}},
		{"metadata.labels.k", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) {
			t.Metadata.Labels = map[string]string{"k": strings.Repeat("v", 64)}
		}},
		{"metadata.labels", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) {
			t.Metadata.Labels = map[string]string{}
			for _, n := range names(65) {
				t.Metadata.Labels[n] = ""
			}
		}},
		{"spec.quotas.networks", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) { t.Spec.Quotas.Networks = 1 << 24 }},
		{"spec.quotas.ports", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) { t.Spec.Quotas.Ports = 10_000_001 }},
		{"spec.quotas.addressesPerPort", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) {
			t.Spec.Quotas.AddressesPerPort = 257
		}},
		{"spec.vni", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Vni = 1 << 24 }},
		{"spec.mtu", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Mtu = 1279 }},
		{"spec.mtu", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Mtu = 65486 }},
		{"spec.mtu", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Mtu = 1<<16 + 1400 }},
		{"spec.df", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Df = "unset" }},
		{"spec.flood", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Flood = "HER" }},
		{"later spec.flood", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Flood = "multicast" }},
		{"spec.distribution", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Distribution = "pull" }},
		{"spec.admission", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Admission = "any" }},
		{"spec.dhcp", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Dhcp = "none" }},
		{"spec.dhcp", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Admission = "dhcp" }},
		{"spec.dns", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Dhcp = "own" }},
		{"spec.lease", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Dhcp, n.Spec.Dns = "own", nil
		}},
		{"spec.routes", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Dhcp, n.Spec.Dns, n.Spec.Lease = "own", nil, 0
		}},
		{"spec.dns", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Dns = addrs(9) }},
		{"spec.dns[1]", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Dns = []string{"10.20.0.2", "10.20.0.2"}
		}},
		{"spec.dns[0]", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Dns = []string{"dns.example"}
		}},
		{"spec.lease", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Lease = 59 }},
		{"spec.lease", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Lease = 31_536_001 }},
		{"spec.routes", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Routes = make([]*culvertv1.Route, 17)
		}},
		{"spec.routes[0].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Routes[0].Prefix = "10.30.0.1/16"
		}},
		{"spec.routes[0].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Routes[0].Prefix = "fd00:30::/64"
		}},
		{"spec.routes[0].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Routes[0].Prefix = "10.30.0.0"
		}},
		{"spec.routes[1].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Routes = append(n.Spec.Routes, n.Spec.Routes[0])
		}},
		{"spec.routes[0].via", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Routes[0].Via = "10.21.0.9" }},
		{"spec.routes[0].via", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Routes[0].Via = "10.20.0.1" }},
		{"spec.routes[0].via", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Routes[0].Via = "fd00:20::9"
		}},
		{"spec.domain", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Domain = "acme/shop/x" }},
		{"spec.hosts[1]", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Hosts = []string{"h1", "H"} }},
		{"spec.hosts[1]", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Hosts = []string{"h1", "h1"}
		}},
		{"spec.hosts", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Hosts = names(4097) }},
		{"spec.subnets", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			for i := range 17 {
				n.Spec.Subnets = append(n.Spec.Subnets, &culvertv1.Subnet{Prefix: fmt.Sprintf("10.9.%d.0/24", i)})
			}
		}},
		{"spec.subnets[0].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Spec.Subnets[0].Prefix = "" }},
		{"spec.subnets[0].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Subnets[0].Prefix = "10.20.0.1/24"
		}},
		{"spec.subnets[0].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Subnets[0].Prefix = "10.20.0.0/31"
		}},
		{"spec.subnets[0].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Subnets[0].Prefix = "224.0.0.0/24"
		}},
		{"spec.subnets[1].prefix", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Subnets[1] = &culvertv1.Subnet{Prefix: "10.20.0.128/25"}
		}},
		{"spec.subnets[1].gateway", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Subnets[1].Gateway = "10.20.0.1"
		}},
		{"spec.subnets[1].gateway", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.Subnets[1].Gateway = "fd00:20::"
		}},
		{"spec.network", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec = nil }},
		{"spec.network", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec.Network = "acme/blue" }},
		{"spec.mac", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec.Mac = "52-54-00-12-34-56" }},
		{"spec.mac", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec.Mac = "00:00:00:00:00:00" }},
		{"spec.mac", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec.Mac = "ff:ff:ff:ff:ff:ff" }},
		{"spec.addresses[0]", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) {
			p.Spec.Addresses[0] = "10.0.0.1/24"
		}},
		{"spec.addresses[0]", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) {
			p.Spec.Addresses[0] = "::ffff:10.0.0.1"
		}},
		{"spec.addresses[1]", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) {
			p.Spec.Addresses[1] = "fd00:20:0::5"
		}},
		{"spec.addresses", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec.Addresses = addrs(257) }},
		{"spec.foreignVteps[1]", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.ForeignVteps = []string{"198.51.100.7", "198.51.100.7"}
		}},
		{"spec.foreignVteps[0]", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.ForeignVteps = []string{"fe80::1"}
		}},
		{"spec.foreignVteps[0]", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.ForeignVteps = []string{"255.255.255.255"}
		}},
		{"spec.foreignVteps", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) {
			n.Spec.ForeignVteps = addrs(overlay.MaxForeign + 1)
		}},
		{"spec.sharedAddresses[0]", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) {
			p.Spec.SharedAddresses = []string{"10.20.0.0/24"}
		}},
		{"spec.sharedAddresses", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec.SharedAddresses = addrs(9) }},
		{"spec.vm", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec.Vm = "a\nb" }},
		{"spec.vm", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) {
			p.Spec.Vm = strings.Repeat("v", 256)
		}},
		{"spec.hosts[0]", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Spec.Hosts = []string{""} }},
		{"metadata.revision", func(t *culvertv1.Tenant, _ *culvertv1.Network, _ *culvertv1.Port) { t.Metadata.Revision = "newest" }},
		{"metadata.revision", func(_ *culvertv1.Tenant, n *culvertv1.Network, _ *culvertv1.Port) { n.Metadata.Revision = "0" }},
		{"metadata.revision", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Metadata.Revision = "2.0" }},
		{"metadata.revision", func(_ *culvertv1.Tenant, _ *culvertv1.Network, p *culvertv1.Port) { p.Metadata.Revision = "-7" }},
	}
	covered := map[string]bool{}
	for _, tt := range tests {
		t.Run(tt.field, func(t *testing.T) {
			tenant, network, port := good()
			tt.edit(tenant, network, port)
			var errs []error
			for _, r := range []*culvertv1.Resource{Wrap(tenant), Wrap(network), Wrap(port)} {
				if _, err := ParseResource(r); err != nil {
					errs = append(errs, err)
				}
			}
			if len(errs) != 1 {
				t.Fatalf("errors %v, want one", errs)
			}
			if got := refusedField(t, errs[0]); got != tt.field {
				t.Errorf("refused is %q (%v), want %q", got, errs[0], tt.field)
			}
			covered[strings.TrimPrefix(tt.field, "later ")] = true
		})
	}
	everyField(t, covered, overlay.KindTenant, overlay.KindNetwork, overlay.KindPort)
}

// refusedField is the field that an error is about, behind "later " if a later
// release has it.
func refusedField(t *testing.T, err error) string {
	var fe *overlay.FieldError
	var le *LaterError
	switch {
	case errors.As(err, &fe):
		if fe.Allowed == "" {
			t.Error("nothing says what is allowed")
		}
		return fe.Field
	case errors.As(err, &le):
		return "later " + le.Field
	}
	return ""
}

// everyField checks that each field which a user may write was refused.
func everyField(t *testing.T, covered map[string]bool, kinds ...overlay.Kind) {
	t.Helper()
	for _, k := range kinds {
		for _, f := range Fields(k) {
			at := strings.NewReplacer("[].", "[1].", ".*", "").Replace(f.Path)
			at0 := strings.ReplaceAll(at, "[1]", "[0]")
			// A truth value has no wrong one; what is none the decoder refuses.
			if f.Meaning != "written by the server" && f.Type != "true or false" && !covered[at] && !covered[at0] && !covered[strings.TrimSuffix(at, "[]")] {
				t.Errorf("%s of %s: no row refuses a value", f.Path, KindName(k))
			}
		}
	}
}

func TestParseObserved(t *testing.T) {
	for _, r := range []*culvertv1.Resource{Wrap(&culvertv1.Host{}), Wrap(&culvertv1.Endpoint{}), {}} {
		_, err := ParseResource(r)
		if ref, ok := RefuseValue("x was not written", err); !ok || ref.Code() != CodeField {
			t.Errorf("%v: %v", r, err)
		}
	}
}

// TestRenderReadsBack: what a record renders to is the document that made it.
func TestRenderReadsBack(t *testing.T) {
	_, network, port := good()
	nd, err := ParseResource(Wrap(network))
	if err != nil {
		t.Fatal(err)
	}
	pd, err := ParseResource(Wrap(port))
	if err != nil {
		t.Fatal(err)
	}
	rev := overlay.Rev{Epoch: 2, N: 7}
	nd.Seen, pd.Seen = rev, rev
	n := &overlay.Network{Meta: overlay.Meta{Name: "blue"}, WantVNI: nd.Network.VNI, VNI: 7, Subnets: nd.Network.Subnets, WantMTU: nd.Network.MTU, MTU: 1400,
		DF: nd.Network.DF, Flood: nd.Network.Flood, Distribution: nd.Network.Distribution, Foreign: nd.Network.Foreign, Hosts: nd.Network.Hosts, Tell: nd.Network.Tell}
	p := &overlay.Port{Meta: overlay.Meta{Name: "vm1"}, WantMAC: pd.Port.MAC, MAC: pd.Port.MAC, WantAddresses: pd.Port.Addresses, Addresses: pd.Port.Addresses, VM: pd.Port.VM, Hosts: pd.Port.Hosts, Shared: pd.Port.Shared, AddressCheck: pd.Port.AddressCheck}
	for _, tt := range []struct {
		res  *culvertv1.Resource
		want overlay.Doc
	}{{Wrap(RenderNetwork(n, "acme", "shop", rev)), nd}, {Wrap(RenderPort(p, "default", "blue", rev)), pd}} {
		if MetadataOf(tt.res).GetRevision() != "2.7" {
			t.Errorf("revision %q", MetadataOf(tt.res).GetRevision())
		}
		for _, text := range [][]byte{EncodeJSON(tt.res), EncodeYAML(tt.res)} {
			docs, err := DecodeDocuments("f", text)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			got, err := ParseResource(docs[0].Resource)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("%s\n%s", diff, text)
			}
			if !proto.Equal(docs[0].Resource, tt.res) && string(text) == string(EncodeYAML(tt.res)) {
				t.Errorf("not equal after reading back:\n%s", text)
			}
		}
	}
}

func TestParseRev(t *testing.T) {
	for s, want := range map[string]overlay.Rev{"": {}, "0": {}, "7": {Epoch: 1, N: 7}, "2.41": {Epoch: 2, N: 41}, "18446744073709551615": {Epoch: 1, N: 1<<64 - 1}} {
		got, err := ParseRev("revision", s)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"07", "-1", "1.5", "2.", ".5", "2.05", "x", "18446744073709551616", "4294967296.1", "1 "} {
		if got, err := ParseRev("revision", s); err == nil {
			t.Errorf("%q was read as %v", s, got)
		}
	}
}

// TestCodes: the table is in order, whole, and says nothing that a person
// cannot use.
func TestCodes(t *testing.T) {
	for i, info := range Codes {
		if len(info.Code) != 6 || !strings.HasPrefix(string(info.Code), "CV") {
			t.Errorf("code %q", info.Code)
		}
		if i > 0 && Codes[i-1].Code >= info.Code {
			t.Errorf("%s comes after %s", info.Code, Codes[i-1].Code)
		}
		if info.Title == "" || info.Meaning == "" || info.Cure == "" || info.Exit < ExitDiffers || info.Exit > ExitConflict {
			t.Errorf("%s is not whole: %+v", info.Code, info)
		}
		ref := Refuse(info.Code, "network blue was not made", "it is so", "", "one", "two")
		if want := "Network blue was not made: it is so.\n  one\n  two\n"; !strings.HasPrefix(ref.Text(), want) || !strings.HasSuffix(ref.Text(), "\n("+string(info.Code)+")\n") {
			t.Errorf("text of %s:\n%s", info.Code, ref.Text())
		}
		for _, s := range []string{info.Title, info.Meaning, info.Cure} {
			for _, bad := range []string{"failed to", "unknown error", "context deadline exceeded", "file exists", "restart"} {
				if strings.Contains(strings.ToLower(s), bad) {
					t.Errorf("%s says %q", info.Code, bad)
				}
			}
		}
	}
	if Refuse(CodeHasPorts, "x", "y", "").Exit() != ExitRefused || CodeHasPorts != "CV0142" {
		t.Error("CV0142 is the refusal to delete a network with ports, exit code 5")
	}
	if !errors.Is(fmt.Errorf("wrapped: %w", Refuse(CodeExists, "a", "b", "")), Refuse(CodeExists, "c", "d", "")) {
		t.Error("refusals of one code are not alike")
	}
	if got := RefusalFromPB(&culvertv1.Refusal{Code: "CV9999", What: "w"}); got.Exit() != ExitRefused || RefusalFromPB(nil) != nil {
		t.Error("a code of a newer release")
	}
}

func TestRefuseWithoutRowPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a code that the table does not have was taken")
		}
	}()
	Refuse("CV9999", "a", "b", "c")
}

// TestSchema: every field that a user may write is described, nothing else is.
func TestSchema(t *testing.T) {
	left := map[string]bool{}
	for k := range meanings {
		left[k] = true
	}
	for _, k := range kinds {
		for _, f := range Fields(k.kind) {
			if f.Meaning == "" {
				t.Errorf("%s of %s is not described", f.Path, k.name)
			}
			delete(left, k.name+"."+f.Path)
		}
		if ex := Example(k.kind); ex != "" {
			docs, err := DecodeDocuments("example", []byte(ex))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ParseResource(docs[0].Resource); err != nil {
				t.Errorf("example of %s: %v", k.name, err)
			}
		}
		if s := JSONSchema(k.kind); s["title"] != k.name {
			t.Errorf("schema of %s: %v", k.name, s)
		}
	}
	if len(left) > 0 {
		t.Errorf("described fields that do not exist: %v", left)
	}
	if Fields(99) != nil || JSONSchema(99) != nil || KindName(99) != "" {
		t.Error("a number that is no kind has fields")
	}
}
