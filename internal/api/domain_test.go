package api

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

const policyHead = "apiVersion: culvert/v1alpha1\nkind: NetworkPolicy\nmetadata: {name: web-db}\nspec:\n  domain: shop\n  from: web\n  to: db\n"

func TestDomainsAndPoliciesAreRead(t *testing.T) {
	for src, want := range map[string]overlay.Doc{
		"apiVersion: culvert/v1alpha1\nkind: Domain\nmetadata: {name: shop, labels: {a: b}}\n":                       {Kind: overlay.KindDomain, Tenant: DefaultTenant, Name: "shop", Labels: []overlay.Label{{Key: "a", Value: "b"}}},
		"apiVersion: culvert/v1alpha1\nkind: Domain\nmetadata: {name: shop, tenant: acme}\nspec: {tenants: [far]}\n": {Kind: overlay.KindDomain, Tenant: "acme", Name: "shop", Domain: overlay.DomainSpec{Tenants: []string{"far"}}},
		netHead + "spec: {domain: acme/shop}\n":                                                                      {Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "blue", Network: overlay.NetworkSpec{Domain: "acme/shop"}},
		netHead + "spec: {domain: default/shop}\n":                                                                   {Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "blue", Network: overlay.NetworkSpec{Domain: "shop"}},
		strings.ReplaceAll(strings.Replace(policyHead, "web\n", "acme/web\n", 1), "db\n", "default/db\n"):            {Kind: overlay.KindPolicy, Tenant: DefaultTenant, Name: "web-db", Policy: overlay.PolicySpec{Domain: "shop", From: "acme/web", To: "db", Both: true}},
		policyHead: {Kind: overlay.KindPolicy, Tenant: DefaultTenant, Name: "web-db", Policy: overlay.PolicySpec{Domain: "shop", From: "web", To: "db", Both: true}},
		policyHead + "  direction: both\n  mode: routed\n  cast: unicast\n": {Kind: overlay.KindPolicy, Tenant: DefaultTenant, Name: "web-db", Policy: overlay.PolicySpec{Domain: "shop", From: "web", To: "db", Both: true}},
		policyHead + "  mode: bridged\n":                                    {Kind: overlay.KindPolicy, Tenant: DefaultTenant, Name: "web-db", Policy: overlay.PolicySpec{Domain: "shop", From: "web", To: "db", Both: true, Bridged: true}},
		policyHead + "  direction: forward\n":                               {Kind: overlay.KindPolicy, Tenant: DefaultTenant, Name: "web-db", Policy: overlay.PolicySpec{Domain: "shop", From: "web", To: "db"}},
	} {
		docs, err := DecodeDocuments("f", []byte(src))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseResource(docs[0].Resource)
		if diff := cmp.Diff(want, got, sameValues); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", src, err, diff)
		}
	}
}

// TestPoliciesAreRefused has a row for each field of a policy, and for what a
// later release brings.
func TestPoliciesAreRefused(t *testing.T) {
	covered := map[string]bool{}
	for field, edits := range map[string][]func(p *culvertv1.NetworkPolicy){
		"apiVersion":        {func(p *culvertv1.NetworkPolicy) { p.ApiVersion = "" }},
		"kind":              {func(p *culvertv1.NetworkPolicy) { p.Kind = "Policy" }},
		"metadata.name":     {func(p *culvertv1.NetworkPolicy) { p.Metadata.Name = "" }},
		"metadata.tenant":   {func(p *culvertv1.NetworkPolicy) { p.Metadata.Tenant = "T" }},
		"metadata.labels":   {func(p *culvertv1.NetworkPolicy) { p.Metadata.Labels = map[string]string{"": ""} }},
		"metadata.revision": {func(p *culvertv1.NetworkPolicy) { p.Metadata.Revision = "0" }},
		"spec.domain":       {func(p *culvertv1.NetworkPolicy) { p.Spec = nil }, func(p *culvertv1.NetworkPolicy) { p.Spec.Domain = "acme/shop" }},
		"spec.from":         {func(p *culvertv1.NetworkPolicy) { p.Spec.From = "" }, func(p *culvertv1.NetworkPolicy) { p.Spec.From = "Web" }, func(p *culvertv1.NetworkPolicy) { p.Spec.From = "a/b/c" }, func(p *culvertv1.NetworkPolicy) { p.Spec.From = "/web" }},
		"spec.to":           {func(p *culvertv1.NetworkPolicy) { p.Spec.To = "" }, func(p *culvertv1.NetworkPolicy) { p.Spec.To = p.Spec.From }, func(p *culvertv1.NetworkPolicy) { p.Spec.To = DefaultTenant + "/web" }},
		"spec.direction":    {func(p *culvertv1.NetworkPolicy) { p.Spec.Direction = "back" }, func(p *culvertv1.NetworkPolicy) { p.Spec.Mode, p.Spec.Direction = "bridged", "forward" }},
		"spec.mode":         {func(p *culvertv1.NetworkPolicy) { p.Spec.Mode = "nat" }},
		"spec.cast":         {func(p *culvertv1.NetworkPolicy) { p.Spec.Cast = "broadcast" }},
		"later spec.cast":   {func(p *culvertv1.NetworkPolicy) { p.Spec.Cast = "multicast" }},
	} {
		covered[strings.TrimPrefix(field, "later ")] = true
		for _, edit := range edits {
			p := &culvertv1.NetworkPolicy{ApiVersion: Version, Kind: "NetworkPolicy", Metadata: &culvertv1.Metadata{Name: "web-db"},
				Spec: &culvertv1.NetworkPolicySpec{Domain: "shop", From: "web", To: "db"}}
			edit(p)
			if _, err := ParseResource(Wrap(p)); refusedField(t, err) != field {
				t.Errorf("%v: %v, want a refusal of %s", p, err, field)
			}
		}
	}
	everyField(t, covered, overlay.KindPolicy)
	for field, with := range map[string]string{"ports: [443]": "policies by protocol and port", "protocol: tcp": "policies by protocol and port", "encryption: required": "encryption"} {
		_, err := DecodeDocuments("f", []byte(policyHead+"  "+field+"\n"))
		var src *SourceError
		if !errors.As(err, &src) || src.Code != CodeLater || src.Line != 8 || !strings.Contains(src.Problem, "it comes with "+with) {
			t.Errorf("%s: %v, want it refused as of a later release", field, err)
		}
	}
}

// TestDomainsAreRefused has a row for each field of a domain.
func TestDomainsAreRefused(t *testing.T) {
	covered := map[string]bool{}
	for field, edits := range map[string][]func(d *culvertv1.Domain){
		"apiVersion":        {func(d *culvertv1.Domain) { d.ApiVersion = "" }},
		"kind":              {func(d *culvertv1.Domain) { d.Kind = "Network" }},
		"metadata.name":     {func(d *culvertv1.Domain) { d.Metadata = nil }},
		"metadata.tenant":   {func(d *culvertv1.Domain) { d.Metadata.Tenant = "T" }},
		"metadata.labels":   {func(d *culvertv1.Domain) { d.Metadata.Labels = map[string]string{"": ""} }},
		"metadata.revision": {func(d *culvertv1.Domain) { d.Metadata.Revision = "0" }},
		"spec.routes":       {func(d *culvertv1.Domain) { d.Spec.Routes = make([]*culvertv1.Route, overlay.MaxNextHops+1) }},
		"spec.routes[1].prefix": {
			func(d *culvertv1.Domain) { d.Spec.Routes[1].Prefix = "10.9.0.1/16" }, func(d *culvertv1.Domain) { d.Spec.Routes[1].Prefix = "10.9.0.0" },
			func(d *culvertv1.Domain) { d.Spec.Routes[1].Prefix = "0.0.0.0/0" }, func(d *culvertv1.Domain) { d.Spec.Routes[1].Prefix = "224.0.0.0/4" },
			func(d *culvertv1.Domain) { d.Spec.Routes[1].Prefix = "fe80::/64" }, func(d *culvertv1.Domain) { d.Spec.Routes[1].Prefix = "::ffff:10.0.0.0/104" },
		},
		"spec.routes[1].via": {func(d *culvertv1.Domain) { d.Spec.Routes[1].Via = "fd00::9" }, func(d *culvertv1.Domain) { d.Spec.Routes[1].Via = "" }},
		"spec.tenants":       {func(d *culvertv1.Domain) { d.Spec.Tenants = []string{"far", "near"} }},
		"spec.tenants[0]":    {func(d *culvertv1.Domain) { d.Spec.Tenants = []string{"Far"} }, func(d *culvertv1.Domain) { d.Spec.Tenants = []string{DefaultTenant} }},
	} {
		covered[field] = true
		for _, edit := range edits {
			d := &culvertv1.Domain{ApiVersion: Version, Kind: "Domain", Metadata: &culvertv1.Metadata{Name: "shop"}, Spec: &culvertv1.DomainSpec{
				Routes: []*culvertv1.Route{{Prefix: "0.0.0.0/0", Via: "10.1.0.9"}, {Prefix: "10.9.0.0/16", Via: "10.1.0.9"}}}}
			if _, err := ParseResource(Wrap(d)); err != nil {
				t.Fatal(err)
			}
			edit(d)
			if _, err := ParseResource(Wrap(d)); refusedField(t, err) != field {
				t.Errorf("%v: %v, want a refusal of %s", d, err, field)
			}
		}
	}
	everyField(t, covered, overlay.KindDomain)
}

// TestDomainRenderReadsBack: what is shown can be applied.
func TestDomainRenderReadsBack(t *testing.T) {
	rev := overlay.Rev{Epoch: 1, N: 7}
	routes := []overlay.Route{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.1.0.9")},
		{Prefix: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.1.0.8")},
		{Prefix: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd00::9")},
	}
	docs, err := DecodeDocuments("f", EncodeYAML(Wrap(RenderDomain(&overlay.Domain{Meta: overlay.Meta{Name: "shop"}, Routes: routes}, "acme", []string{"far"}, rev))))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseResource(docs[0].Resource)
	want := overlay.Doc{Kind: overlay.KindDomain, Tenant: "acme", Name: "shop", Seen: rev, Domain: overlay.DomainSpec{Tenants: []string{"far"}, Routes: routes}}
	if diff := cmp.Diff(want, got, sameValues); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// TestDerivedIsNotWritten: what follows from policies is no field of a spec, and
// as status it is not read.
func TestDerivedIsNotWritten(t *testing.T) {
	for _, field := range []string{"reach", "from", "bridged"} {
		if _, err := DecodeDocuments("f", []byte(netHead+"spec: {"+field+": [web]}\n")); err == nil || !strings.Contains(err.Error(), `unknown field "`+field+`"`) {
			t.Errorf("spec.%s: %v, want it unknown", field, err)
		}
	}
	docs, err := DecodeDocuments("f", []byte(netHead+"status: {reach: [web], from: [web], bridged: [web], domain: shop}\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseResource(docs[0].Resource)
	if diff := cmp.Diff(overlay.Doc{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "blue"}, got, sameValues); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// TestPolicyRenderReadsBack: what is shown can be applied.
func TestPolicyRenderReadsBack(t *testing.T) {
	rev := overlay.Rev{Epoch: 1, N: 7}
	for _, p := range []overlay.Policy{{Both: true}, {}, {Both: true, Bridged: true}} {
		p.Name = "web-db"
		r := Wrap(RenderPolicy(&p, PolicyNames{Tenant: "acme", Domain: "shop", From: "web", To: "db"}, rev))
		docs, err := DecodeDocuments("f", EncodeYAML(r))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseResource(docs[0].Resource)
		want := overlay.Doc{Kind: overlay.KindPolicy, Tenant: "acme", Name: "web-db", Seen: rev, Policy: overlay.PolicySpec{Domain: "shop", From: "web", To: "db", Both: p.Both, Bridged: p.Bridged}}
		if diff := cmp.Diff(want, got, sameValues); err != nil || diff != "" || KindOf(r) != overlay.KindPolicy || MetadataOf(r).GetName() != "web-db" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
}

// TestDomainRecords: what is stored is read back equal.
func TestDomainRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		meta := overlay.Meta{UID: genUID(t, "uid"), Name: "a", Tenant: genUID(t, "tenant"), Cause: genText(t, "cause"), Changed: rapid.Int64().Draw(t, "changed")}
		dom := &overlay.Domain{Meta: meta}
		if u := genUID(t, "other tenant"); u != meta.Tenant && rapid.Bool().Draw(t, "lets in") {
			dom.Tenants = []overlay.UID{u}
		}
		for _, p := range []string{"0.0.0.0/0", "10.9.0.0/16"} {
			if rapid.Bool().Draw(t, p) {
				dom.Routes = append(dom.Routes, overlay.Route{Prefix: netip.MustParsePrefix(p), Via: netip.AddrFrom4([4]byte{10, 1, 0, rapid.Byte().Draw(t, "via")})})
			}
		}
		var rec overlay.Record = dom
		if rapid.Bool().Draw(t, "policy") {
			p := &overlay.Policy{Meta: meta, Domain: genUID(t, "domain"), From: genUID(t, "from"), To: genUID(t, "to"), Both: rapid.Bool().Draw(t, "both")}
			p.To[1], p.Bridged = ^p.From[1], p.Both && rapid.Bool().Draw(t, "bridged")
			rec = p
		}
		gone := rapid.Bool().Draw(t, "gone")
		got, isGone, err := UnmarshalStore(MarshalStore(rec, gone))
		if diff := cmp.Diff(rec, got, sameValues); err != nil || isGone != gone || diff != "" {
			t.Fatalf("%v, gone %t\n%s", err, isGone, diff)
		}
		if k := overlay.KeyOf(rec); k.Kind != rec.Kind() || k.UID != meta.UID {
			t.Fatalf("key %v", k)
		}
	})
}

// TestTornDomainRecords: a record that contradicts itself is refused.
func TestTornDomainRecords(t *testing.T) {
	uid := func(n byte) []byte { return append(make([]byte, 15), n) }
	network := func(edit func(n *culvertv1.NetworkRecord)) *culvertv1.Record {
		r := RecordPB(&overlay.Network{Meta: overlay.Meta{UID: overlay.UID(uid(9)), Name: "n"}, TenantName: "t", VNI: 7, MTU: 1450, Domain: overlay.UID(uid(1))}, false)
		edit(r.GetNetwork())
		return r
	}
	policy := func(edit func(p *culvertv1.PolicyRecord)) *culvertv1.Record {
		r := RecordPB(&overlay.Policy{Meta: overlay.Meta{UID: overlay.UID(uid(9)), Name: "n"}, Domain: overlay.UID(uid(1)), From: overlay.UID(uid(2)), To: overlay.UID(uid(3))}, false)
		edit(r.GetPolicy())
		return r
	}
	routed := func(routes ...*culvertv1.RouteRecord) *culvertv1.Record {
		r := RecordPB(&overlay.Domain{Meta: overlay.Meta{UID: overlay.UID(uid(9)), Name: "n", Tenant: overlay.UID(uid(1))}}, false)
		r.GetDomain().Routes = routes
		return r
	}
	v4, v6 := []byte{10, 9, 0, 0}, make([]byte, 16)
	tenants := func(uids ...[]byte) *culvertv1.Record {
		r := RecordPB(&overlay.Domain{Meta: overlay.Meta{UID: overlay.UID(uid(9)), Name: "n", Tenant: overlay.UID(uid(1))}}, false)
		r.GetDomain().Tenants = uids
		return r
	}
	bad := map[string]*culvertv1.Record{
		"two families":         routed(&culvertv1.RouteRecord{Address: v6, Via: v4}),
		"host bits":            routed(&culvertv1.RouteRecord{Address: v4, Bits: 8, Via: v4}),
		"too long":             routed(&culvertv1.RouteRecord{Address: v4, Bits: 33, Via: v4}),
		"routed twice":         routed(&culvertv1.RouteRecord{Address: v4, Bits: 16, Via: v4}, &culvertv1.RouteRecord{Address: v4, Bits: 16, Via: v4}),
		"too many routes":      routed(make([]*culvertv1.RouteRecord, overlay.MaxNextHops+1)...),
		"lets itself in":       tenants(uid(1)),
		"lets many in":         tenants(uid(2), uid(3)),
		"reach without domain": network(func(n *culvertv1.NetworkRecord) { n.Domain, n.Reach = nil, [][]byte{uid(2)} }),
		"reach out of order":   network(func(n *culvertv1.NetworkRecord) { n.Reach = [][]byte{uid(3), uid(2)} }),
		"from named twice":     network(func(n *culvertv1.NetworkRecord) { n.From = [][]byte{uid(2), uid(2)} }),
		"reach of itself":      network(func(n *culvertv1.NetworkRecord) { n.Reach = [][]byte{uid(9)} }),
		"reach of zero":        network(func(n *culvertv1.NetworkRecord) { n.Reach = [][]byte{uid(0)} }),
		"too many":             network(func(n *culvertv1.NetworkRecord) { n.From = make([][]byte, overlay.MaxPolicies+1) }),
		"short domain":         network(func(n *culvertv1.NetworkRecord) { n.Domain = uid(1)[1:] }),
		"no domain":            policy(func(p *culvertv1.PolicyRecord) { p.Domain = nil }),
		"no network":           policy(func(p *culvertv1.PolicyRecord) { p.To = nil }),
		"one network":          policy(func(p *culvertv1.PolicyRecord) { p.To = p.From }),
		"bridged one way":      policy(func(p *culvertv1.PolicyRecord) { p.Bridged = true }),
		"no name":              policy(func(p *culvertv1.PolicyRecord) { p.Meta.Name = "" }),
	}
	for name, r := range bad {
		if rec, _, err := RecordFromPB(r); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: read as %v, %v", name, rec, err)
		}
	}
	good := network(func(n *culvertv1.NetworkRecord) { n.Reach, n.From = [][]byte{uid(2), uid(3)}, [][]byte{uid(3)} })
	rec, _, err := RecordFromPB(good)
	if err != nil || !proto.Equal(good, RecordPB(rec, false)) {
		t.Errorf("a whole one: %v, %v", rec, err)
	}
	// No agent is told of domains and policies.
	domain := RecordPB(&overlay.Domain{Meta: overlay.Meta{UID: overlay.UID(uid(9)), Name: "n"}}, false)
	for _, r := range []*culvertv1.Record{domain, policy(func(*culvertv1.PolicyRecord) {})} {
		down := &culvertv1.Down{Body: &culvertv1.Down_Items{Items: &culvertv1.Items{Items: []*culvertv1.Item{{Rev: &culvertv1.Rev{Epoch: 1, N: 2}, Record: r}}}}}
		if _, err := DownFromPB(down); !errors.Is(err, ErrMessage) || !strings.Contains(err.Error(), "kind of item") {
			t.Errorf("%v in a stream: %v", r, err)
		}
	}
}

// genUIDs are in order, and none is not.
func genUIDs(t *rapid.T, not overlay.UID) []overlay.UID {
	var out []overlay.UID
	for range rapid.IntRange(0, 3).Draw(t, "uids") {
		if u := genUID(t, "uid"); u != not {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, overlay.UID.Compare)
	return slices.Compact(out)
}
