package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"culvert/internal/api"
)

// TestDomains: from two networks to guests that reach each other, and back.
func TestDomains(t *testing.T) {
	m := newMachine(t)
	m.b.Host("h1", "192.0.2.1")
	m.want("domain create shop", 0, "domain shop created (revision 5)\n", "")
	m.want("network create web --subnet 10.30.1.0/24 --domain shop", 0, `
network web created: VNI 10001, gateway 10.30.1.1, MTU 1450 (revision 6)
  bridge cvb10001 on 1/1 hosts in 0.0 ms; tables come to a host with its first VM.
`, "")
	m.ok("network create db --subnet 10.30.2.0/24")
	m.want("policy create web-db --domain shop --from web --to db", 5, "", `
Policy web-db was not written: network db is not in domain shop.
Put it in first:  culvert network set db --domain shop
(CV0146)
`)
	m.ok("network set db --domain shop")
	m.want("policy create web-db --domain shop --from web --to db", 0, `
policy web-db created: web <-> db in domain shop (revision 9)
  exact on h1 in 0.0 ms
`, "")
	m.want("policy create web-db --domain shop --from web --to db", 0, "policy web-db unchanged\n", "")
	m.want("policy set web-db --direction forward", 0, `
policy web-db changed: web -> db in domain shop (revision 10)
  exact on h1 in 0.0 ms
`, "")
	m.ok("policy create back --domain shop --from db --to web --label why=test")
	m.want("policy list", 0, `
POLICY  DOMAIN  WAY
back    shop    db <-> web
web-db  shop    web -> db
`, "")
	m.want("domain list", 0, "\nDOMAIN  NETWORKS  POLICIES\nshop    2         2\n", "")
	m.want("network list", 0, `
NETWORK  VNI    SUBNETS       MTU   DOMAIN  PORTS  ENDPOINTS  HOSTS
db       10002  10.30.2.0/24  1450  shop    0      0          -
web      10001  10.30.1.0/24  1450  shop    0      0          -
`, "")
	if o := m.ok("domain show shop"); !strings.HasSuffix(o, "spec: {}\nstatus:\n  networks:\n  - db\n  - web\n  policies:\n  - back\n  - web-db\n") {
		t.Errorf("domain show:\n%s", o)
	}
	m.ok("policy delete back")
	wantStatus := func(network, reach, from string) {
		t.Helper()
		var doc struct {
			Spec   struct{ Domain string }
			Status struct {
				Domain      string
				Reach, From []string
			}
		}
		if err := json.Unmarshal([]byte(m.ok("network show "+network+" -o json")), &doc); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(doc.Status.Reach, ",") + " " + strings.Join(doc.Status.From, ","); doc.Spec.Domain != "shop" || doc.Status.Domain != "shop" || got != reach+" "+from {
			t.Errorf("network %s: %+v, want reach %s, from %s", network, doc, reach, from)
		}
	}
	wantStatus("web", "db", "")
	wantStatus("db", "", "web")
	m.want("network set web --no-domain", 5, "", `
Network web was not changed: 1 policy names it.
  web-db  web -> db
Delete what is listed first:  culvert policy delete web-db
(CV0147)
`)
	m.want("domain delete shop", 5, "", `
Domain shop was not deleted: it has 2 networks and 1 policy.
  network db
  network web
  policy web-db  web -> db
Delete its policies, then take each network out:  culvert network set NETWORK --no-domain
(CV0148)
`)
	m.want("policy delete web-db", 0, "policy web-db deleted (revision 15)\n  exact on h1 in 0.0 ms\n", "")
	m.want("network set web --no-domain", 0, "network web changed: VNI 10001, gateway 10.30.1.1, MTU 1450 (revision 17)\n  exact on h1 in 0.0 ms\n", "")
	m.ok("network delete db")
	m.want("domain delete shop", 0, "domain shop deleted (revision 20)\n", "")
	m.want("policy list", 0, "", "There is no policy.\n")
}

// TestApplyDomains: a file makes all of it at once, what is shown can be applied
// again, and the second time writes nothing.
func TestApplyDomains(t *testing.T) {
	m := newMachine(t)
	m.stdin = `apiVersion: culvert/v1alpha1
kind: Domain
metadata: {name: shop}
---
apiVersion: culvert/v1alpha1
kind: Network
metadata: {name: web}
spec: {subnets: [{prefix: 10.30.1.0/24}], domain: shop}
---
apiVersion: culvert/v1alpha1
kind: Network
metadata: {name: db}
spec: {subnets: [{prefix: 10.30.2.0/24}], domain: shop}
---
apiVersion: culvert/v1alpha1
kind: NetworkPolicy
metadata: {name: web-db}
spec: {domain: shop, from: web, to: db, direction: forward}
`
	m.want("apply -f -", 0, `
domain shop created (revision 3)
network web created: VNI 10001, gateway 10.30.1.1, MTU 1450 (revision 3)
network db created: VNI 10002, gateway 10.30.2.1, MTU 1450 (revision 3)
policy web-db created: web -> db in domain shop (revision 3)
`, "")
	m.want("apply -f -", 0, "domain shop unchanged\nnetwork web unchanged\nnetwork db unchanged\npolicy web-db unchanged\n", "")
	for _, what := range []string{"domain shop", "network web", "policy web-db"} {
		kind, name, _ := strings.Cut(what, " ")
		for _, form := range []string{"json", "yaml"} {
			m.stdin = m.ok(kind + " show " + name + " -o " + form)
			m.want("apply -f -", 0, what+" unchanged\n", "")
		}
	}
	for field, word := range map[string]string{"cast: multicast": "multicast between networks",
		"ports: [443]": "policies by protocol and port", "protocol: tcp": "policies by protocol and port", "encryption: required": "encryption"} {
		m.stdin = "apiVersion: culvert/v1alpha1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  domain: shop\n  from: web\n  to: db\n  " + field + "\n"
		if _, e, code := m.run("apply -f -"); code != int(api.ExitUsage) || !strings.Contains(e, "is not in this release (it comes with "+word+")") || !strings.Contains(e, "CV0102") {
			t.Errorf("%s: exit code %d\n%s", field, code, e)
		}
	}
}

// TestDomainNames: a policy goes where its domain is, and names are of a tenant.
func TestDomainNames(t *testing.T) {
	m := newMachine(t)
	for _, line := range []string{"tenant create acme", "domain create acme/shop", "network create acme/web --domain shop", "network create acme/db --domain shop",
		"policy create web-db --domain shop --from web --to db"} {
		m.ok(line)
	}
	m.want("policy list", 0, "\nPOLICY       DOMAIN  WAY\nacme/web-db  shop    web <-> db\n", "")
	m.want("domain list --tenant default", 0, "", "There is no domain.\n")
	m.want("network delete acme/db", 5, "", `
Network acme/db was not deleted: 1 policy names it.
  web-db  web <-> db
Delete what is listed first:  culvert policy delete acme/web-db
(CV0147)
`)
	if o := m.ok("status policy web-db"); !strings.Contains(o, "web <-> db") {
		t.Errorf("status of a policy:\n%s", o)
	}
}

// TestTwoTenants: a domain of one tenant has a network of another, as both say.
func TestTwoTenants(t *testing.T) {
	m := newMachine(t)
	for _, line := range []string{"tenant create x", "tenant create y", "domain create x/shop", "network create x/web --subnet 10.30.1.0/24 --domain shop", "network create y/db --subnet 10.30.2.0/24"} {
		m.ok(line)
	}
	m.want("network set y/db --domain x/shop", 5, "", `
Network y/db was not written: domain x/shop does not let networks of tenant y in.
Let them in first:  culvert domain set x/shop --admit-tenant y
(CV0139)
`)
	m.ok("domain set x/shop --admit-tenant y")
	m.ok("network set y/db --domain x/shop")
	m.ok("policy create web-db --domain x/shop --from web --to y/db")
	m.want("policy list", 0, "\nPOLICY    DOMAIN  WAY\nx/web-db  shop    web <-> y/db\n", "")
	for what, words := range map[string]string{
		"domain show x/shop":   "spec:\n  tenants:\n  - \"y\"\nstatus:\n  networks:\n  - web\n  - y/db\n",
		"network show y/db":    "  domain: x/shop\n",
		"network show x/web":   "  reach:\n  - y/db\n",
		"policy show x/web-db": "  from: web\n  to: y/db\n",
	} {
		m.stdin = m.ok(what)
		if !strings.Contains(m.stdin, words) {
			t.Errorf("%s:\n%s", what, m.stdin)
		}
		kind, name, _ := strings.Cut(strings.Replace(what, " show", "", 1), " ")
		m.want("apply -f -", 0, kind+" "+name+" unchanged\n", "")
	}
	m.want("domain set x/shop --no-admit-tenant", 5, "", `
Domain x/shop was not written: it has networks of tenant y.
  network y/db
Take them out first:  culvert network set y/db --no-domain
(CV0148)
`)
	m.want("network set y/db --no-domain", 5, "", `
Network y/db was not changed: 1 policy names it.
  x/web-db  x/web <-> db
Delete what is listed first:  culvert policy delete x/web-db
(CV0147)
`)
	m.ok("policy delete x/web-db")
	m.ok("network set y/db --no-domain")
	if _, e, code := m.run("domain set x/shop --admit-tenant y --no-admit-tenant"); code != int(api.ExitUsage) || !strings.Contains(e, "no --admit-tenant beside it") {
		t.Errorf("exit code %d\n%s", code, e)
	}
	m.ok("domain set x/shop --no-admit-tenant")
}

// TestDomainRoutes: ways out of a domain, from one verb or a file, and what is in
// the way of who leads there.
func TestDomainRoutes(t *testing.T) {
	m := newMachine(t)
	for _, line := range []string{"domain create shop", "network create web --subnet 10.30.1.0/24 --domain shop", "network create db --subnet 10.30.2.0/24 --domain shop",
		"policy create db-web --domain shop --from db --to web --direction forward", "port create edge --network web --ip 10.30.1.9 --mac 52:54:00:00:00:09"} {
		m.ok(line)
	}
	m.want("domain set shop --route 0.0.0.0/0=10.30.1.8", 5, "", `
Domain shop was not changed: no declared port of a network of the domain has the address by way of which what is listed goes as its own.
  0.0.0.0/0 via 10.30.1.8
Declare the port first, or put its network in:  culvert port create PORT --network NETWORK --ip ADDRESS
(CV0140)
`)
	m.ok("domain set shop --route 0.0.0.0/0=10.30.1.9 --route 10.9.0.0/16=10.30.1.9")
	if o := m.ok("network show db"); !strings.Contains(o, "  nextHops:\n  - prefix: \"0.0.0.0/0\"\n    network: web\n    mac: \"52:54:00:00:00:09\"\n  - prefix: \"10.9.0.0/16\"\n") {
		t.Errorf("network show:\n%s", o)
	}
	m.stdin = m.ok("domain show shop")
	m.want("apply -f -", 0, "domain shop unchanged\n", "")
	m.want("port delete edge", 5, "", `
Port edge was not deleted: 2 routes of domain shop go by way of it.
  0.0.0.0/0 via 10.30.1.9
  10.9.0.0/16 via 10.30.1.9
Give them another way, or take them out, first:  culvert domain set shop --no-route
(CV0149)
`)
	for line, words := range map[string]string{"--route 0.0.0.0/0": "PREFIX=ADDRESS", "--route 10.9.0.0/16=x": "spec.routes[0].via", "--no-route --route 0.0.0.0/0=10.30.1.9": "no --route beside it"} {
		if _, e, code := m.run("domain set shop " + line); code != int(api.ExitUsage) || !strings.Contains(e, words) {
			t.Errorf("%s: exit code %d\n%s", line, code, e)
		}
	}
	m.ok("domain set shop --no-route")
	m.ok("port delete edge")
}

// TestBridgedNetworks: two networks of one subnet become one segment, as a file
// says, and are shown so; what is in the way is said.
func TestBridgedNetworks(t *testing.T) {
	m := newMachine(t)
	m.b.Host("h1", "192.0.2.1")
	m.stdin = `apiVersion: culvert/v1alpha1
kind: Domain
metadata: {name: shop}
---
apiVersion: culvert/v1alpha1
kind: Network
metadata: {name: old}
spec: {subnets: [{prefix: 10.30.1.0/24}], domain: shop}
---
apiVersion: culvert/v1alpha1
kind: Network
metadata: {name: new}
spec: {subnets: [{prefix: 10.30.1.0/24}], domain: shop}
---
apiVersion: culvert/v1alpha1
kind: NetworkPolicy
metadata: {name: move}
spec: {domain: shop, from: old, to: new, mode: bridged}
`
	if o := m.ok("apply -f -"); !strings.Contains(o, "policy move created: old <-> new (bridged) in domain shop") {
		t.Errorf("apply:\n%s", o)
	}
	m.want("policy list", 0, "\nPOLICY  DOMAIN  WAY\nmove    shop    old <-> new (bridged)\n", "")
	if o := m.ok("network show old"); !strings.Contains(o, "  bridged:\n  - new\n") || strings.Contains(o, "reach") {
		t.Errorf("network show:\n%s", o)
	}
	m.stdin = m.ok("policy show move")
	m.want("apply -f -", 0, "policy move unchanged\n", "")
	m.want("policy set move --direction forward", 2, "", `
Policy move was not written: spec.direction is "forward".
Write both, or nothing, beside spec.mode bridged: what is one segment has no direction.
(CV0101)
`)
	m.want("policy delete move", 5, "", `
Policy move was not deleted: subnet 10.30.1.0/24 of network old overlaps 10.30.1.0/24 of network new of the same domain, shop.
Give one of the two other subnets first:  culvert network set new --subnet PREFIX
(CV0130)
`)
	m.ok("network set new --subnet 10.30.2.0/24")
	m.want("policy set move --mode routed", 0, "policy move changed: old <-> new in domain shop (revision 6)\n  exact on h1 in 0.0 ms\n", "")
	if o := m.ok("network show old"); strings.Contains(o, "bridged") || !strings.Contains(o, "  reach:\n  - new\n") {
		t.Errorf("network show:\n%s", o)
	}
	m.ok("policy set move --mode bridged")
	m.ok("policy delete move")
}
