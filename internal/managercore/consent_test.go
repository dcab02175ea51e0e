package managercore

import (
	"testing"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

func of(tenant string, d overlay.Doc) overlay.Doc {
	d.Tenant = tenant
	return d
}

// letting is a domain document that lets networks of tenants in.
func letting(d overlay.Doc, tenants ...string) overlay.Doc {
	d.Domain.Tenants = tenants
	return d
}

// TestTwoTenantsAgree: a network is in a domain of another tenant as long as
// both want it, whoever says so last; neither takes it back while it is in use.
func TestTwoTenantsAgree(t *testing.T) {
	t.Parallel()
	r := shop(t)
	acme := overlay.Doc{Kind: overlay.KindTenant, Name: "acme"}
	net := of("acme", network("net", "10.7.0.0/24"))
	in := within("default/shop", net)
	del := func(kind overlay.Kind, tenant, name string) Reply {
		return r.ask(Asked{Delete: &Delete{Kind: kind, Tenant: tenant, Name: name}})
	}
	r.refusedFor(api.CodeNotFound, "culvert tenant create acme", r.put(ModeSet, letting(domain("shop"), "acme")))
	r.must(ModeCreate, acme, of("acme", network("net", "10.7.0.0/24")))
	r.refusedFor(api.CodeConsent, "Network acme/net was not written: domain default/shop does not let networks of tenant acme in", r.put(ModeSet, in))
	r.refusedFor(api.CodeNotFound, "domain default/nix does not exist", r.put(ModeSet, within("default/nix", net)))
	r.refusedFor(api.CodeNotFound, "domain nix/shop does not exist", r.put(ModeSet, within("nix/shop", net)))
	r.refusedFor(api.CodeNotFound, "domain acme/shop does not exist", r.put(ModeSet, within("shop", net)))

	r.must(ModeApply, in, letting(domain("shop"), "acme")) // in one request, in any order
	r.refusedFor(api.CodeDomainInUse, "network acme/net", r.put(ModeSet, domain("shop")))
	r.refusedFor(api.CodeOverlap, "network web of the same domain, default/shop", r.put(ModeSet, within("default/shop", of("acme", network("net", "10.1.0.0/24")))))
	if x := r.must(ModeSet, labelled(letting(domain("shop"), "acme"), "x", overlay.Rev{})); x.Changes[0].Action != "changed" {
		t.Errorf("a label: %s", x.Changes[0].Action)
	}

	r.must(ModeCreate, policy("web-net", "web", "acme/net"))
	r.load()
	there := r.c.View().Named(overlay.KindNetwork, r.c.View().Named(overlay.KindTenant, overlay.UID{}, "acme").Key.UID, "net").Rec.(*overlay.Network)
	if web := r.net("web"); len(web.Reach) != 1 || web.Reach[0] != there.UID || there.From[0] != web.UID {
		t.Errorf("web reaches %v, and %v is reached from %v", web.Reach, there.UID, there.From)
	}
	r.refusedFor(api.CodeHasPolicies, "default/web-net  default/web <-> net", r.put(ModeSet, net))
	r.refusedFor(api.CodeHasPolicies, "culvert policy delete web-net", del(overlay.KindNetwork, "acme", "net"))
	r.refusedFor(api.CodeNotFound, "network nix/net does not exist", r.put(ModeCreate, policy("p", "web", "nix/net")))
	r.must(ModeCreate, of("acme", network("out")))
	r.refusedFor(api.CodeNotInDomain, "culvert network set acme/out --domain default/shop", r.put(ModeCreate, policy("p", "web", "acme/out")))
	r.refusedFor(api.CodeNotFound, "domain acme/shop does not exist", r.put(ModeCreate, of("acme", policy("p", "net", "default/web"))))
	r.refusedFor(api.CodeDomainInUse, "network acme/net", r.remove(overlay.KindDomain, "shop"))

	// Back, in order.
	r.remove(overlay.KindPolicy, "web-net")
	r.must(ModeSet, net)
	if x := del(overlay.KindNetwork, "acme", "net"); x.Refusal != nil {
		t.Error(x.Refusal)
	}
	if x := del(overlay.KindNetwork, "acme", "out"); x.Refusal != nil {
		t.Error(x.Refusal)
	}
	r.refusedFor(api.CodeHasNetworks, "culvert domain set shop --no-admit-tenant", del(overlay.KindTenant, "", "acme"))
	r.must(ModeSet, domain("shop"))
	if x := del(overlay.KindTenant, "", "acme"); x.Refusal != nil {
		t.Error(x.Refusal)
	}
	if n := len(r.c.ix.admits); n != 0 {
		t.Errorf("%d tenants are let in, want none", n)
	}
	r.must(ModeCreate, acme) // another tenant of that name
	r.refused(api.CodeConsent, r.put(ModeCreate, in))
}
