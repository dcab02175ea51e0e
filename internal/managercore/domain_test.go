package managercore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

func domain(name string) overlay.Doc {
	return overlay.Doc{Kind: overlay.KindDomain, Tenant: DefaultTenant, Name: name}
}

// within is a network document with a domain.
func within(domain string, d overlay.Doc) overlay.Doc {
	d.Network.Domain = domain
	return d
}

// policy is one of domain shop, both ways.
func policy(name, from, to string) overlay.Doc {
	return overlay.Doc{Kind: overlay.KindPolicy, Tenant: DefaultTenant, Name: name, Policy: overlay.PolicySpec{Domain: "shop", From: from, To: to, Both: true}}
}

func forward(d overlay.Doc) overlay.Doc {
	d.Policy.Both = false
	return d
}

func (r *rig) remove(kind overlay.Kind, name string) Reply {
	r.t.Helper()
	return r.ask(Asked{Delete: &Delete{Kind: kind, Tenant: DefaultTenant, Name: name}})
}

func (r *rig) net(name string) *overlay.Network {
	r.t.Helper()
	it := r.c.View().Named(overlay.KindNetwork, overlay.UID{0xd}, name)
	if it == nil {
		r.t.Fatalf("no network %s", name)
	}
	return it.Rec.(*overlay.Network)
}

// ways is "web reach db from db", by name.
func (r *rig) ways(name string) string {
	n := r.net(name)
	names := func(uids []overlay.UID) string {
		var out []string
		for _, u := range uids {
			out = append(out, r.c.View().Network(u).Name)
		}
		slices.Sort(out)
		return strings.Join(out, ",")
	}
	return fmt.Sprintf("%s reach %s from %s", name, names(n.Reach), names(n.From))
}

// shop is a rig with networks web, db and log in domain shop, and red in none.
func shop(t *testing.T) *rig {
	r := newRig(t)
	r.must(ModeCreate, domain("shop"), within("shop", network("web", "10.1.0.0/24", "fd00:1::/64")), within("shop", network("db", "10.2.0.0/24")),
		within("shop", network("log", "10.3.0.0/24")), network("red", "10.1.0.0/16"))
	return r
}

func TestPoliciesMakeWays(t *testing.T) {
	t.Parallel()
	r := shop(t)
	want := func(lines ...string) {
		t.Helper()
		for _, l := range lines {
			if got := r.ways(strings.Fields(l)[0]); got != l {
				t.Errorf("%s, want %s", got, l)
			}
		}
	}
	want("web reach  from ", "red reach  from ")
	x := r.must(ModeCreate, policy("web-db", "web", "db"), forward(policy("logs", "web", "log")))
	want("web reach db,log from db", "db reach web from web", "log reach  from web", "red reach  from ")
	for _, name := range []string{"web", "db", "log"} {
		if it := r.c.View().Fleet.Get(KeyOf(r.net(name))); it.Rev != x.Rev || !strings.Contains(r.net(name).Cause, "policy create") {
			t.Errorf("network %s is at %v (%s), want it written with the policies at %v", name, it.Rev, r.net(name).Cause, x.Rev)
		}
	}
	if len(x.Changes) != 2 {
		t.Errorf("changes %v, want the policies alone", x.Changes)
	}
	if x := r.must(ModeApply, policy("web-db", "web", "db")); x.Changes[0].Action != "unchanged" || !x.Rev.IsZero() {
		t.Errorf("applying it again: %v at %v", x.Changes, x.Rev)
	}
	// A network whose ways stay as they are is not written.
	before := r.c.View().Fleet.Get(KeyOf(r.net("db"))).Rev
	r.must(ModeCreate, policy("again", "db", "web"))
	r.must(ModeSet, labelled(policy("again", "db", "web"), "x", overlay.Rev{}))
	r.remove(overlay.KindPolicy, "again")
	if at := r.c.View().Fleet.Get(KeyOf(r.net("db"))).Rev; at != before {
		t.Errorf("db was written at %v for a policy that changes none of its ways", at)
	}
	r.must(ModeSet, forward(policy("web-db", "web", "db")))
	want("web reach db,log from ", "db reach  from web")
	r.must(ModeSet, labelled(within("shop", network("web", "10.1.0.0/24", "fd00:1::/64")), "x", overlay.Rev{}))
	want("web reach db,log from ") // a change of the network leaves its ways alone
	r.load()
	if x := r.remove(overlay.KindPolicy, "web-db"); x.Refusal != nil || x.Changes[0].Action != "deleted" {
		t.Errorf("delete after a restart: %+v", x)
	}
	want("web reach log from ", "db reach  from ")
	// In one request with what it is between, each record is written once.
	x = r.must(ModeCreate, domain("bank"), within("bank", network("a")), within("bank", network("b")), func() overlay.Doc {
		d := policy("a-b", "a", "b")
		d.Policy.Domain = "bank"
		return d
	}())
	want("a reach b from b", "b reach a from a")
	if cause := r.net("a").Cause; !strings.Contains(cause, "network create") {
		t.Errorf("cause of a network that came with its policy: %s", cause)
	}
	// The names and values of what is gone are free, and nothing of it is kept.
	for k, s := range r.recs {
		if s.Gone && k.Kind == overlay.KindPolicy {
			t.Errorf("the store keeps the tombstone %v", k)
		}
	}
	r.must(ModeCreate, policy("web-db", "db", "web"))
}

// TestDomainRefusals: what is refused changes nothing.
func TestDomainRefusals(t *testing.T) {
	t.Parallel()
	r := shop(t)
	r.must(ModeCreate, domain("bank"), within("bank", network("vault", "10.1.0.0/24")), within("shop", network("free", "10.4.0.0/24")), policy("web-db", "web", "db"))
	r.must(ModeCreate, overlay.Doc{Kind: overlay.KindTenant, Name: "acme"}, overlay.Doc{Kind: overlay.KindDomain, Tenant: "acme", Name: "far"})
	web := network("web", "10.1.0.0/24", "fd00:1::/64")
	bank := policy("p", "web", "db")
	bank.Policy.Domain = "bank"
	nowhere := policy("p", "web", "db")
	nowhere.Policy.Domain = "nix"
	del := func(kind overlay.Kind, tenant, name string) Asked {
		return Asked{Delete: &Delete{Kind: kind, Tenant: tenant, Name: name, WithPorts: kind == overlay.KindNetwork}}
	}
	put := func(mode Mode, docs ...overlay.Doc) Asked { return Asked{Put: &Put{Mode: mode, Docs: docs}} }
	before, at := len(r.recs), r.n
	for name, c := range map[string]struct {
		ask   Asked
		code  api.Code
		words string
	}{
		"network of no domain":        {put(ModeCreate, within("nix", network("x"))), api.CodeNotFound, "culvert domain create nix"},
		"domain of another tenant":    {put(ModeCreate, within("far", network("x"))), api.CodeNotFound, "domain far does not exist"},
		"set a domain that is not":    {put(ModeSet, domain("nix")), api.CodeNotFound, "culvert domain list"},
		"domain with other labels":    {put(ModeCreate, labelled(domain("shop"), "x", overlay.Rev{})), api.CodeExists, "culvert domain set shop"},
		"subnet of another":           {put(ModeCreate, within("shop", network("x", "10.9.0.0/24", "10.2.0.128/25"))), api.CodeOverlap, "subnet 10.2.0.128/25 of network x overlaps 10.2.0.0/24 of network db"},
		"subnet grows into another's": {put(ModeSet, within("shop", network("log", "10.2.0.0/15"))), api.CodeOverlap, "network db"},
		"enters with its subnet":      {put(ModeSet, within("shop", network("red", "10.1.0.0/16"))), api.CodeOverlap, "network web"},
		"leaves with policies":        {put(ModeSet, web), api.CodeHasPolicies, "web-db  web <-> db"},
		"to another domain":           {put(ModeSet, within("bank", web)), api.CodeHasPolicies, "culvert policy delete web-db"},
		"policy of no domain":         {put(ModeCreate, nowhere), api.CodeNotFound, "culvert domain create nix"},
		"policy of no network":        {put(ModeCreate, policy("p", "web", "nix")), api.CodeNotFound, "culvert network create nix --domain shop"},
		"policy out of the domain":    {put(ModeCreate, policy("p", "web", "red")), api.CodeNotInDomain, "culvert network set red --domain shop"},
		"policy of another domain":    {put(ModeCreate, bank), api.CodeNotInDomain, "network web is not in domain bank"},
		"policy across domains":       {put(ModeCreate, policy("p", "web", "vault")), api.CodeNotInDomain, "network vault"},
		"policy turned":               {put(ModeSet, policy("web-db", "db", "web")), api.CodeImmutable, "web-db  web <-> db"},
		"policy to another network":   {put(ModeApply, policy("web-db", "web", "log")), api.CodeImmutable, "create it anew"},
		"policy with other content":   {put(ModeCreate, forward(policy("web-db", "web", "db"))), api.CodeExists, "culvert policy set web-db"},
		"network with policies goes":  {del(overlay.KindNetwork, DefaultTenant, "db"), api.CodeHasPolicies, "culvert policy delete web-db"},
		"domain with networks goes":   {del(overlay.KindDomain, DefaultTenant, "shop"), api.CodeDomainInUse, "4 networks and 1 policy"},
		"tenant with a domain goes":   {del(overlay.KindTenant, "", "acme"), api.CodeHasNetworks, "culvert domain list --tenant acme"},
		"domain that is not goes":     {del(overlay.KindDomain, DefaultTenant, "nix"), api.CodeNotFound, "culvert domain list"},
		"policy that is not goes":     {del(overlay.KindPolicy, DefaultTenant, "nix"), api.CodeNotFound, "culvert policy list"},
	} {
		x := r.ask(c.ask)
		if x.Refusal == nil || x.Refusal.Code() != c.code || !strings.Contains(x.Refusal.Text(), c.words) {
			t.Errorf("%s: answer is %v, want a refusal with %s and %q", name, x.Refusal, c.code, c.words)
		}
		if len(r.recs) != before || r.n != at {
			t.Fatalf("%s: something was written", name)
		}
	}
	// And what is not used goes.
	for _, q := range []struct {
		kind overlay.Kind
		name string
	}{{overlay.KindPolicy, "web-db"}, {overlay.KindNetwork, "db"}, {overlay.KindNetwork, "web"}, {overlay.KindNetwork, "log"}, {overlay.KindNetwork, "free"}, {overlay.KindDomain, "shop"}} {
		if x := r.remove(q.kind, q.name); x.Refusal != nil {
			t.Errorf("delete %s %s: %v", q.kind, q.name, x.Refusal)
		}
	}
	r.must(ModeCreate, domain("shop"), within("shop", network("web")))
}

// TestBlockedNetworksHaveNoPolicies: no policy comes between the halves of a
// network's deletion.
func TestBlockedNetworksHaveNoPolicies(t *testing.T) {
	t.Parallel()
	r := shop(t)
	r.must(ModeCreate, port("a", "web"))
	r.c.Step(r.now, Asked{ID: 999, Delete: &Delete{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "web", WithPorts: true}})
	id := r.begin(ModeCreate, policy("p", "web", "db"))
	for _, x := range r.settle() {
		switch {
		case x.ID == id && (x.Refusal == nil || x.Refusal.Code() != api.CodeBlocked):
			t.Errorf("policy of a network that goes: %v", x.Refusal)
		case x.ID == 999 && x.Refusal != nil:
			t.Errorf("the network's deletion: %v", x.Refusal)
		}
	}
	if n := len(r.c.ix.policies); n != 0 {
		t.Errorf("%d entries of policies are left", n)
	}
}

// TestEqualMACsInADomain: networks that are routed to each other have MACs of
// their own, declared or not, and also those of virtual routers.
func TestEqualMACsInADomain(t *testing.T) {
	t.Parallel()
	r := shop(t)
	free := within("shop", network("free", "10.4.0.0/24"))
	free.Network.Admission = overlay.AdmitLearn
	r.must(ModeCreate, free, policy("web-db", "web", "db"), policy("web-free", "free", "web"))
	x := r.must(ModeCreate, withMAC(port("a", "web"), twinMAC), withMAC(port("b", "db"), twinMAC), withMAC(sharing(port("c", "log"), "10.3.0.99"), virtualMAC))
	if p, q := r.portOf(x, 0), r.portOf(x, 1); p.MAC != q.MAC {
		t.Errorf("%v and %v, want one MAC", p.MAC, q.MAC)
	}
	host, session := r.attach("h1")
	r.c.Step(r.now, Claimed{Host: host, Session: session, Claims: []Claim{{ID: 1, Network: r.net("free").UID, MAC: twinMAC, Base: r.c.View().At, Evidence: overlay.EvidenceARP}}})
	r.settle()
	if len(r.said) != 1 || !r.said[0].Claim.Accepted {
		t.Errorf("an undeclared endpoint with a MAC of the domain: %+v", r.said)
	}
	learns := within("shop", network("db", "10.2.0.0/24"))
	learns.Network.Admission = overlay.AdmitDHCP
	r.must(ModeSet, learns)
	r.must(ModeCreate, sharing(port("w", "web"), "10.1.0.99"), sharing(port("d", "db"), "10.2.0.99"))
	for _, name := range []string{"w", "d"} {
		p := r.c.View().Named(overlay.KindPort, overlay.UID{0xd}, name).Rec.(*overlay.Port)
		if a := r.sayVirtual(host, session, p); !a.Accepted {
			t.Errorf("the virtual router of %s: %+v", name, a)
		}
	}
}

// TestSubnetsOfADomainChangePlaces: in one request, in any order.
func TestSubnetsOfADomainChangePlaces(t *testing.T) {
	t.Parallel()
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		r := newRig(t)
		r.must(ModeCreate, domain("shop"), within("shop", network("a", "10.1.0.0/24")), within("shop", network("b", "10.2.0.0/24")))
		docs := []overlay.Doc{within("shop", network("a", "10.2.0.0/24")), within("shop", network("b", "10.1.0.0/24"))}
		r.refused(api.CodeOverlap, r.put(ModeSet, docs[0]))
		r.must(ModeSet, docs[order[0]], docs[order[1]])
		if n := r.net("a"); n.Subnets[0].Prefix.String() != "10.2.0.0/24" {
			t.Errorf("order %v: a is %+v", order, n)
		}
	}
}

// TestDomainsAreBounded: domains of a tenant, networks and policies of a domain,
// and what one request may come to.
func TestDomainsAreBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var docs []overlay.Doc
	for i := range overlay.MaxDomains - 1 {
		docs = append(docs, domain(fmt.Sprintf("d%d", i)))
	}
	r.must(ModeCreate, append(docs, domain("shop"))...)
	r.refused(api.CodeQuota, r.put(ModeCreate, domain("more")))
	r.remove(overlay.KindDomain, "d0")
	r.must(ModeCreate, domain("more"))

	r.must(ModeSet, overlay.Doc{Kind: overlay.KindTenant, Name: DefaultTenant, Quotas: overlay.TenantSpec{MaxNetworks: 5000}})
	docs = nil
	for i := range overlay.MaxDomainNetworks {
		docs = append(docs, within("shop", network(fmt.Sprintf("n%d", i))))
	}
	r.must(ModeCreate, docs...)
	r.refused(api.CodeQuota, r.put(ModeCreate, within("shop", network("x"))))
	r.must(ModeCreate, network("x"))
	r.refused(api.CodeQuota, r.put(ModeSet, within("shop", network("x"))))

	docs = nil
	for i := range overlay.MaxPolicies {
		docs = append(docs, policy(fmt.Sprintf("p%d", i), "n0", fmt.Sprintf("n%d", 1+i%(overlay.MaxDomainNetworks-1))))
	}
	at := r.n
	x := r.put(ModeCreate, docs...)
	if r.refused(api.CodeField, x); r.n != at || len(r.net("n0").Reach) != 0 {
		t.Error("a request that was too large was written")
	}
	r.must(ModeCreate, docs[:400]...)
	r.must(ModeCreate, docs[400:800]...)
	r.must(ModeCreate, docs[800:]...)
	r.refused(api.CodeQuota, r.put(ModeCreate, policy("more", "n1", "n2")))
	if n := len(r.net("n0").Reach); n != overlay.MaxDomainNetworks-1 {
		t.Errorf("n0 reaches %d networks, want all others", n)
	}
	r.load() // such a record is one that is read again
	r.remove(overlay.KindPolicy, "p1")
	r.must(ModeCreate, policy("more", "n1", "n2"))
}

// TestTombstonesNobodyReads: what a manager left when it died between a deletion
// and its end goes when the next one begins.
func TestTombstonesNobodyReads(t *testing.T) {
	t.Parallel()
	r := shop(t)
	for _, rec := range []overlay.Record{&overlay.Policy{Meta: overlay.Meta{UID: overlay.UID{1}, Name: "old"}}, &overlay.Domain{Meta: overlay.Meta{UID: overlay.UID{2}, Name: "old"}}, &overlay.Tenant{Meta: overlay.Meta{UID: overlay.UID{3}, Name: "old"}}} {
		r.recs[KeyOf(rec)] = StoredRecord{Rec: rec, Gone: true, N: r.n}
	}
	r.load()
	for k, s := range r.recs {
		if s.Gone {
			t.Errorf("%v is left", k)
		}
	}
}

// TestWaysAreWhatPoliciesSay: after any sequence of changes, Reach, From and
// Bridge are what a look at all policies gives, and the other's mirror.
func TestWaysAreWhatPoliciesSay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		nets := []string{"a", "b", "c", "d", "e"}
		for _, d := range []string{"shop", "bank"} {
			r.must(ModeCreate, domain(d))
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			name := rapid.SampledFrom(nets).Draw(rt, "network")
			pol := fmt.Sprintf("p%d", rapid.IntRange(0, 5).Draw(rt, "policy"))
			switch rapid.IntRange(0, 6).Draw(rt, "what") {
			case 0, 1:
				d := within(rapid.SampledFrom([]string{"", "shop", "shop", "bank"}).Draw(rt, "domain"), network(name))
				d.Network.MTU = rapid.SampledFrom([]uint16{1400, 1450}).Draw(rt, "mtu")
				r.put(ModeApply, d)
			case 2, 3:
				var docs []overlay.Doc
				for i := range rapid.IntRange(1, 3).Draw(rt, "policies") {
					d := policy(fmt.Sprintf("%s-%d", pol, i), name, rapid.SampledFrom(nets).Draw(rt, "to"))
					d.Policy.Domain = rapid.SampledFrom([]string{"shop", "shop", "bank"}).Draw(rt, "of")
					d.Policy.Bridged = rapid.IntRange(0, 3).Draw(rt, "bridged") == 0
					if d.Policy.Both = d.Policy.Bridged || rapid.Bool().Draw(rt, "both"); d.Policy.From != d.Policy.To {
						docs = append(docs, d)
					}
				}
				r.put(ModeApply, docs...)
			case 4:
				r.remove(overlay.KindPolicy, fmt.Sprintf("%s-%d", pol, rapid.IntRange(0, 2).Draw(rt, "number")))
			case 5:
				r.remove(overlay.KindNetwork, name)
			case 6:
				r.load()
			}
			r.checkWays(rt)
		}
	})
}

// checkWays compares each network of the store with all policies of the store.
func (r *rig) checkWays(rt *rapid.T) {
	reach, bridge := map[[2]overlay.UID]bool{}, map[[2]overlay.UID]bool{} // from, to
	nets := map[overlay.UID]*overlay.Network{}
	for _, s := range r.recs {
		if n, ok := s.Rec.(*overlay.Network); ok && !s.Gone {
			nets[n.UID] = n
		}
	}
	for _, s := range r.recs {
		p, ok := s.Rec.(*overlay.Policy)
		if !ok || s.Gone {
			continue
		}
		there, back := [2]overlay.UID{p.From, p.To}, [2]overlay.UID{p.To, p.From}
		if a, b := nets[p.From], nets[p.To]; a == nil || b == nil || a.Domain != b.Domain || a.Domain.IsZero() {
			rt.Fatalf("a policy opens a way between %+v and %+v", a, b)
		}
		switch {
		case p.Bridged:
			bridge[there], bridge[back] = true, true
		case p.Both:
			reach[there], reach[back] = true, true
		default:
			reach[there] = true
		}
	}
	for w := range bridge {
		if reach[w] {
			rt.Fatalf("%s and %s are bridged and routed", nets[w[0]].Name, nets[w[1]].Name)
		}
		if nets[w[0]].MTU != nets[w[1]].MTU {
			rt.Fatalf("%s and %s are bridged with two MTUs", nets[w[0]].Name, nets[w[1]].Name)
		}
	}
	for a, n := range nets {
		var wantReach, wantFrom, wantBridge []overlay.UID
		for b := range nets {
			if reach[[2]overlay.UID{a, b}] {
				wantReach = append(wantReach, b)
			}
			if reach[[2]overlay.UID{b, a}] {
				wantFrom = append(wantFrom, b)
			}
			if bridge[[2]overlay.UID{a, b}] {
				wantBridge = append(wantBridge, b)
			}
			if slices.Contains(n.Reach, b) != slices.Contains(nets[b].From, a) {
				rt.Fatalf("%s and %s contradict each other", n.Name, nets[b].Name)
			}
		}
		slices.SortFunc(wantReach, overlay.UID.Compare)
		slices.SortFunc(wantFrom, overlay.UID.Compare)
		slices.SortFunc(wantBridge, overlay.UID.Compare)
		if !slices.Equal(n.Bridge, wantBridge) {
			rt.Fatalf("%s is bridged with %v, want %v", n.Name, n.Bridge, wantBridge)
		}
		if !slices.Equal(n.Reach, wantReach) || !slices.Equal(n.From, wantFrom) {
			rt.Fatalf("%s reaches %v and is reached from %v, want %v and %v", n.Name, n.Reach, n.From, wantReach, wantFrom)
		}
	}
}
