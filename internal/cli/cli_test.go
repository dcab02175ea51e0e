package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"culvert/internal/api"
	"culvert/internal/apiserver/apiservertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a terminal next to a manager.
type machine struct {
	t      *testing.T
	b      *apiservertest.Backend
	config string
	stdin  string
}

func newMachine(t *testing.T) *machine {
	b := apiservertest.New()
	return &machine{t: t, b: b, config: apiservertest.Serve(t, b)}
}

func (m *machine) env(out, err *bytes.Buffer) *Env {
	return &Env{Stdout: out, Stderr: err, Stdin: strings.NewReader(m.stdin), Now: m.b.Now, Version: "0.1.0",
		LabConfig: "/nonexistent/client.json",
		Getenv: func(k string) string {
			switch k {
			case "CULVERT_CONFIG":
				return m.config
			case "HOME":
				return "/nonexistent"
			}
			return ""
		}}
}

// run types a line, words split at spaces.
func (m *machine) run(line string) (stdout, stderr string, code int) {
	m.t.Helper()
	var out, err bytes.Buffer
	code = Main(m.t.Context(), m.env(&out, &err), strings.Fields(line))
	return out.String(), err.String(), code
}

// want types a line and compares what is printed and the exit code.
func (m *machine) want(line string, code api.Exit, stdout, stderr string) {
	m.t.Helper()
	o, e, c := m.run(line)
	stdout, stderr, o, e = plain(stdout), plain(stderr), plain(o), plain(e)
	if c != int(code) {
		m.t.Errorf("culvert %s: exit code %d, want %d\n%s%s", line, c, code, o, e)
	}
	if diff := cmp.Diff(strings.TrimPrefix(stdout, "\n"), o); diff != "" {
		m.t.Errorf("culvert %s: stdout (-want +got)\n%s", line, diff)
	}
	if diff := cmp.Diff(strings.TrimPrefix(stderr, "\n"), e); diff != "" {
		m.t.Errorf("culvert %s: stderr (-want +got)\n%s", line, diff)
	}
}

var revision = regexp.MustCompile(`revision [1-9][0-9]*`)

// plain leaves out what is no promise: which revision a change became.
func plain(s string) string { return revision.ReplaceAllString(s, "revision N") }

// ok types a line that must succeed.
func (m *machine) ok(line string) string {
	m.t.Helper()
	o, e, c := m.run(line)
	if c != 0 {
		m.t.Fatalf("culvert %s: exit code %d\n%s%s", line, c, o, e)
	}
	return o
}

// TestFirstTenMinutes is the promise of the contract, line by line.
func TestFirstTenMinutes(t *testing.T) {
	m := newMachine(t)
	m.b.Host("a", "192.0.2.11")
	m.b.Host("b", "192.0.2.12")
	m.b.Latency["a"], m.b.Latency["b"] = 14*time.Millisecond, 22*time.Millisecond

	m.want("network create blue --subnet 10.20.0.0/24", 0, `
network blue created: VNI 10001, gateway 10.20.0.1, MTU 1450 (revision 7)
  bridge cvb10001 on 2/2 hosts in 22 ms; tables come to a host with its first VM.
`, "")
	m.want("network create blue --subnet 10.20.0.0/24", 0, "network blue unchanged\n", "")
	m.want("port create vm1 --network blue --vm web1 --mac 52:54:00:7a:10:02", 0, `
port vm1 created: 10.20.0.2, 52:54:00:7a:10:02 (revision 8)
  waiting for a host: start the VM 'web1' on bridge cvb10001 anywhere; or on a host: culvert attach vm1 --dev tap0
`, "")
	m.want("port list", 0, `
PORT  NETWORK  ADDRESS     HOST  STATE     SINCE   TRAFFIC
vm1   blue     10.20.0.2   -     declared  -       -
`, "")
	m.b.Plug("a", "default", "vm1")
	m.b.Ack()
	m.b.Advance(12 * time.Second)
	m.want("port list", 0, `
PORT  NETWORK  ADDRESS     HOST  STATE  SINCE   TRAFFIC
vm1   blue     10.20.0.2   a     up     12 s    -
`, "")
	m.want("status", 0, "All 2 hosts exact at revision 9 (checked 12 s ago). 1 of 1 managers.\n", "")
	m.want("network delete blue", 5, "", `
Network blue was not deleted: 1 port uses it.
  vm1  10.20.0.2  up on a
Stop or move the VMs, or delete the ports too:  culvert network delete blue --with-ports
(CV0142)
`)
	m.want("network delete blue --with-ports", 0, `
network blue deleted with 1 port (revision 11)
  all 2 hosts exact in 22 ms (slowest b)
`, "")
}

func TestWaiting(t *testing.T) {
	m := newMachine(t)
	for _, h := range []string{"h1", "h2", "h3"} {
		m.b.Host(h, "192.0.2.1"+h[1:])
	}
	m.b.Latency["h2"] = 1500 * time.Millisecond
	m.b.Leave("h3")
	pending := `
The change is accepted and durable, but not yet on 1 host: it is revision REV.
  h3  away, at revision AT
See which:  culvert host list
(CV0170)
`
	want := func(line, stdout, rev, at string) {
		m.want(line, 4, stdout, strings.NewReplacer("REV", rev, "AT", at).Replace(pending))
	}
	want("network create blue", `
network blue created: VNI 10001, MTU 1450 (revision 9)
  bridge cvb10001 on 2/3 hosts in 1.5 s (slowest h2); tables come to a host with its first VM.
`, "9", "8")
	want("network set blue --mtu 1400", `
network blue changed: VNI 10001, MTU 1400 (revision 10)
  2 of 3 hosts exact in 1.5 s (slowest h2)
`, "10", "8")
	m.want("network set blue --mtu 1390 --no-wait", 0, "network blue changed: VNI 10001, MTU 1390 (revision 11)\n", "")
	m.b.Stuck["h2"] = true
	m.want("network set blue --mtu 1380 --wait 1ms", 4, `
network blue changed: VNI 10001, MTU 1380 (revision 12)
  1 of 3 hosts exact in 0.0 ms (slowest h1)
`, `
The change is accepted and durable, but not yet on 2 hosts: it is revision 12.
  h2  behind, at revision 10
  h3  away, at revision 8
See which:  culvert host list
(CV0170)
`)
	m.want("network set blue --wait 5s --no-wait --mtu 1400", 2, "", `
Nothing was done: --wait and --no-wait exclude each other.
See culvert network set --help
(CV0001)
`)
}

func TestNames(t *testing.T) {
	m := newMachine(t)
	for _, line := range []string{
		"tenant create acme", "tenant create zeta", "network create acme/red --subnet 10.0.0.0/24", "network create blue --subnet 10.0.0.0/24",
		"network create blue --tenant acme --subnet 10.1.0.0/24", "network create acme/twin", "network create zeta/twin",
		"port create p --network red", "port create q --network acme/blue", "port create q --network blue",
	} {
		m.ok(line)
	}
	m.want("port list", 0, `
PORT    NETWORK  ADDRESS     HOST  STATE     SINCE   TRAFFIC
acme/p  red      10.0.0.2    -     declared  -       -
acme/q  blue     10.1.0.2    -     declared  -       -
q       blue     10.0.0.2    -     declared  -       -
`, "")
	m.want("port list --tenant acme --network red", 0, `
PORT    NETWORK  ADDRESS     HOST  STATE     SINCE   TRAFFIC
acme/p  red      10.0.0.2    -     declared  -       -
`, "")
	if o := m.ok("port show p"); !strings.Contains(o, "tenant: acme") {
		t.Errorf("the only match was not taken:\n%s", o)
	}
	if o := m.ok("port show q"); !strings.Contains(o, "tenant: default") {
		t.Errorf("tenant default was not preferred:\n%s", o)
	}
	m.want("network show twin", 2, "", `
Network twin was not chosen: 2 tenants have one.
  acme/twin
  zeta/twin
Name the tenant: --tenant TENANT, or TENANT/NAME.
(CV0005)
`)
	m.want("network show nix", 7, "", `
Network nix was not found: no tenant has one of that name.
See what there is:  culvert network list
(CV0110)
`)
	m.want("port create p --network acme/red --tenant zeta", 2, "", `
Nothing was done: --network acme/red and --tenant zeta name two tenants.
Name one of them
(CV0001)
`)
	m.want("port list --network nix", 7, "", `
Network nix was not found: no network has that name.
See what there is:  culvert network list
(CV0110)
`)
}

func TestApply(t *testing.T) {
	m := newMachine(t)
	m.stdin = `apiVersion: culvert/v1alpha1
kind: Network
metadata: {name: blue}
spec:
  subnets: [{prefix: 10.20.0.0/24}]
---
apiVersion: culvert/v1alpha1
kind: Port
metadata: {name: vm1}
spec: {network: blue, mac: "52:54:00:00:00:01"}
`
	m.want("apply -f -", 0, `
network blue created: VNI 10001, gateway 10.20.0.1, MTU 1450 (revision 3)
port vm1 created: 10.20.0.2, 52:54:00:00:00:01 (revision 3)
`, "")
	m.want("apply -f -", 0, "network blue unchanged\nport vm1 unchanged\n", "")
	// What is shown can be applied again, in both forms.
	for _, form := range []string{"json", "yaml"} {
		m.stdin = m.ok("network show blue -o " + form)
		m.want("apply -f -", 0, "network blue unchanged\n", "")
	}
	m.stdin = `apiVersion: culvert/v1alpha1
kind: Network
metadata: {name: green}
---
apiVersion: culvert/v1alpha1
kind: Port
metadata: {name: vm2}
spec: {network: green, addresses: [10.20.0.300]}
`
	m.want("apply -f -", 2, "", `
Standard input was not applied: -:8:36: spec.addresses[0] is "10.20.0.300".
       7 | metadata: {name: vm2}
  >    8 | spec: {network: green, addresses: [10.20.0.300]}
                                              ^
Write a unicast address like 10.20.0.5 or fd00:20::5.
(CV0101)
`)
	m.stdin = strings.Replace(m.stdin, "[10.20.0.300]", "[10.20.0.3]", 1)
	if _, e, code := m.run("apply -f -"); code != 5 || !strings.Contains(e, "CV0131") {
		t.Errorf("exit code %d\n%s", code, e)
	}
	m.want("network show green", 7, "", `
Network green was not found: no tenant has one of that name.
See what there is:  culvert network list
(CV0110)
`)
	m.want("apply -f /nonexistent/x.yaml", 2, "", `
/nonexistent/x.yaml was not applied: it was not opened: no such file or directory.
Check the path and its mode.
(CV0006)
`)
}

func TestJSON(t *testing.T) {
	m := newMachine(t)
	m.b.Host("a", "192.0.2.11")
	m.b.Latency["a"] = 250 * time.Millisecond
	tests := []struct{ line, want string }{
		{"network create blue --subnet 10.20.0.0/24 -o json", `{
  "apiVersion": "culvert/v1alpha1", "kind": "Changes", "revision": "5",
  "changes": [{"action": "created", "resource": {"apiVersion": "culvert/v1alpha1", "kind": "Network",
    "metadata": {"name": "blue", "tenant": "default", "uid": "UID", "revision": "5"},
    "spec": {"subnets": [{"prefix": "10.20.0.0/24"}]},
    "status": {"vni": 10001, "bridge": "cvb10001", "mtu": 1450, "gateways": ["10.20.0.1"], "ports": 0, "endpoints": 0, "servingHosts": [], "dhcp": "host", "lease": 3600, "domain": "", "reach": [], "from": [], "bridged": [], "nextHops": []}}}],
  "wait": {"done": true, "hosts": [{"host": "a", "state": "exact", "seconds": 0.25, "appliedRevision": "5"}]}}`},
		{"network create blue --subnet 10.20.0.0/24 -o json --no-wait", `{
  "apiVersion": "culvert/v1alpha1", "kind": "Changes", "revision": "0",
  "changes": [{"action": "unchanged", "resource": {"apiVersion": "culvert/v1alpha1", "kind": "Network",
    "metadata": {"name": "blue", "tenant": "default", "uid": "UID", "revision": "5"},
    "spec": {"subnets": [{"prefix": "10.20.0.0/24"}]},
    "status": {"vni": 10001, "bridge": "cvb10001", "mtu": 1450, "gateways": ["10.20.0.1"], "ports": 0, "endpoints": 0, "servingHosts": [], "dhcp": "host", "lease": 3600, "domain": "", "reach": [], "from": [], "bridged": [], "nextHops": []}}}]}`},
		{"port list -o json", `{"apiVersion": "culvert/v1alpha1", "kind": "PortList", "revision": "5", "items": []}`},
		{"host list -o json", `{"apiVersion": "culvert/v1alpha1", "kind": "HostList", "revision": "5", "items": [
  {"apiVersion": "culvert/v1alpha1", "kind": "Host", "metadata": {"name": "a", "uid": "UID", "revision": "4"}, "spec": {},
   "status": {"vtep": "192.0.2.11", "state": "connected", "appliedRevision": "5", "evidenceAgeSeconds": 0, "endpoints": 0,
     "problems": [], "unclaimed": [], "repairs": 0, "strangers": 0, "drops": [], "unread": [], "refusals": []}}]}`},
		{"status -o json", `{"apiVersion": "culvert/v1alpha1", "kind": "Status", "cluster": "culvert-7f3a", "revision": "5", "degraded": false, "managers": 1, "managersUp": 1,
  "hosts": [{"apiVersion": "culvert/v1alpha1", "kind": "Host", "metadata": {"name": "a", "uid": "UID", "revision": "4"}, "spec": {},
   "status": {"vtep": "192.0.2.11", "state": "connected", "appliedRevision": "5", "evidenceAgeSeconds": 0, "endpoints": 0,
     "problems": [], "unclaimed": [], "repairs": 0, "strangers": 0, "drops": [], "unread": [], "refusals": []}}], "counters": {}}`},
		{"token create --role agent -o json", `{"apiVersion": "culvert/v1alpha1", "kind": "Token", "token": "cv1.Qm9uZSBpcyBub3QgYSB0b2tlbg.192.0.2.11", "expires": "2026-03-01T10:00:00Z"}`},
		{"version -o json", `{"apiVersion": "culvert/v1alpha1", "kind": "Version", "version": "0.1.0"}`},
		{"network delete blue -o json", `{"apiVersion": "culvert/v1alpha1", "kind": "Deleted", "revision": "6", "deleted": ["network default/blue"],
  "wait": {"done": true, "hosts": [{"host": "a", "state": "exact", "seconds": 0.25, "appliedRevision": "6"}]}}`},
	}
	for _, tt := range tests {
		got, e, code := m.run(tt.line)
		if code != 0 || e != "" {
			t.Errorf("culvert %s: exit code %d\n%s", tt.line, code, e)
		}
		var g, w any
		if err := json.Unmarshal([]byte(got), &g); err != nil {
			t.Fatalf("culvert %s: %v\n%s", tt.line, err, got)
		}
		if err := json.Unmarshal([]byte(tt.want), &w); err != nil {
			t.Fatalf("want of %s: %v", tt.line, err)
		}
		hideNumbers(g)
		hideNumbers(w)
		if diff := cmp.Diff(w, g); diff != "" {
			t.Errorf("culvert %s (-want +got)\n%s", tt.line, diff)
		}
	}
	_, e, code := m.run("network show blue -o json")
	if want := `{
  "apiVersion": "culvert/v1alpha1",
  "kind": "Error",
  "error": {
    "code": "CV0110",
    "what": "network blue was not found",
    "why": "no tenant has one of that name",
    "cure": "see what there is: culvert network list",
    "items": [],
    "exit": 7
  }
}
`; e != want || code != 7 {
		t.Errorf("exit code %d, error\n%s\nwant\n%s", code, e, want)
	}
}

// hideNumbers leaves out what is no promise: UIDs and revisions.
func hideNumbers(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			switch text, _ := x.(string); {
			case k == "uid" && len(text) == 32:
				v[k] = "UID"
			case (k == "revision" || k == "appliedRevision") && text != "0":
				v[k] = "N"
			}
			hideNumbers(x)
		}
	case []any:
		for _, x := range v {
			hideNumbers(x)
		}
	}
}

// safeBuffer is a writer whose text a second goroutine may look at.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	for _, s := range strings.SplitAfter(string(p), "\n") {
		if s != "" {
			l <- s
		}
	}
	return len(p), nil
}

func TestWatch(t *testing.T) {
	m := newMachine(t)
	m.b.Host("a", "192.0.2.11")
	m.ok("network create blue --subnet 10.20.0.0/24")
	m.ok("port create vm1 --network blue --mac 52:54:00:00:00:01")
	ctx, cancel := context.WithCancel(t.Context())
	out := make(lines, 100)
	env := m.env(nil, &bytes.Buffer{})
	env.Stdout = out
	done := make(chan int)
	go func() { done <- Main(ctx, env, []string{"port", "watch", "-o", "json"}) }()
	next := func(typ, name, state string) {
		t.Helper()
		var e struct {
			APIVersion, Type, Revision string
			Resource                   struct {
				Metadata struct{ Name string }
				Status   struct{ State string }
			}
		}
		select {
		case s := <-out:
			if err := json.Unmarshal([]byte(s), &e); err != nil {
				t.Fatalf("%v in %q", err, s)
			}
			if e.APIVersion != api.Version || e.Type != typ || e.Resource.Metadata.Name != name || e.Resource.Status.State != state || e.Revision == "" {
				t.Errorf("got %s, want %s of %q with state %q", s, typ, name, state)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no event; want %s of %q", typ, name)
		}
	}
	next("existing", "vm1", "declared")
	next("synced", "", "")
	m.ok("port create vm2 --network blue")
	next("changed", "vm2", "declared")
	m.b.Plug("a", "default", "vm1")
	next("changed", "vm1", "up")
	m.ok("port delete vm2")
	next("deleted", "vm2", "deleted")
	cancel()
	if code := <-done; code != 130 {
		t.Errorf("exit code %d after an interrupt, want 130", code)
	}
}

func TestStatusDegraded(t *testing.T) {
	m := newMachine(t)
	m.want("status", 0, "No host yet; revision 2. 1 of 1 managers.\n", "")
	m.b.Host("a", "192.0.2.11")
	m.b.Host("b", "192.0.2.12")
	m.b.Leave("b")
	m.b.Ack()
	h := m.b.Health["a"]
	h.Problems, h.Unclaimed = []string{"CV0207 neighbour limit of the kernel is 1024, used 61 %"}, []string{"tap7"}
	m.b.Health["a"] = h
	m.b.Advance(2 * time.Second)
	m.want("status", 1, `
1 of 2 hosts exact at revision 6 (checked 2 s ago). 1 of 1 managers.
3 things to know:
  b is away: last checked 2 s ago, at revision 6; its VMs keep the tables they have
  CV0207  a: neighbour limit of the kernel is 1024, used 61 %
  a: device tap7 is in a bridge of ours and no port claims it: culvert attach PORT --dev tap7
`, "")
	m.want("status host b", 1, `
HOST  VTEP        STATE  REVISION  CHECKED  ENDPOINTS  PROBLEMS
b     192.0.2.12  away   6         2 s ago  0          0
1 thing to know:
  b is away: last checked 2 s ago, at revision 6; its VMs keep the tables they have
`, "")
}

func TestOtherVerbs(t *testing.T) {
	m := newMachine(t)
	m.want("version", 0, "culvert 0.1.0 (culvert/v1alpha1)\n", "")
	m.want("port list", 0, "", "There is no port.\n")
	m.want("token create --role agent --uses 2", 0, "sudo culvert join cv1.Qm9uZSBpcyBub3QgYSB0b2tlbg.192.0.2.11\n",
		"For one agent, valid until 2026-03-01T10:00:00Z, 2 uses. On the machine itself:\n")
	m.want("tenant create acme --max-networks 3 --label tier=a", 0, "tenant acme created (revision 3)\n", "")
	m.want("tenant set acme --max-ports 5", 0, "tenant acme changed (revision 4)\n", "")
	m.want("tenant show acme -o yaml", 0, `
apiVersion: culvert/v1alpha1
kind: Tenant
metadata:
  name: acme
  labels:
    tier: a
  uid: "`+field(m.ok("tenant show acme"), "uid: \"")+`"
  revision: "`+field(m.ok("tenant show acme"), "revision: \"")+`"
spec:
  quotas:
    networks: 3
    ports: 5
status: {}
`, "")
	m.want("tenant list", 0, "\nTENANT   NETWORKS  PORTS\nacme     0         0\ndefault  0         0\n", "")
	m.want("tenant delete acme", 0, "tenant acme deleted (revision 5)\n", "")
	m.ok("network create blue --subnet 10.20.0.0/24 --gateway 10.20.0.254")
	m.want("network list", 0, `
NETWORK  VNI    SUBNETS       MTU   DOMAIN  PORTS  ENDPOINTS  HOSTS
blue     10001  10.20.0.0/24  1450  -       0      0          -
`, "")
	m.b.Host("h1", "192.0.2.1")
	m.ok("port create vm1 --network blue --mac 52:54:00:00:00:01")
	m.want("port bind vm1 --host h1", 0, "port vm1 changed: 10.20.0.1, 52:54:00:00:00:01 (revision 10)\n", "")
	m.b.Plug("h1", "default", "vm1")
	m.b.Advance(3 * time.Minute)
	m.want("endpoint list", 0, `
ENDPOINT  NETWORK  MAC                ADDRESS    HOST  STATE  SINCE  EVIDENCE
vm1       blue     52:54:00:00:00:01  10.20.0.1  h1    up     3 min  device
`, "")
	m.b.Die("h1")
	m.want("endpoint list", 0, `
ENDPOINT  NETWORK  MAC                ADDRESS    HOST  STATE      SINCE  EVIDENCE
vm1       blue     52:54:00:00:00:01  10.20.0.1  h1    host dead  3 min  device
`, "")
	if hosts, ports := m.ok("host list"), m.ok("port list"); !strings.Contains(hosts, "dead") || !strings.Contains(ports, "host dead") {
		t.Errorf("lists say\n%s%s\nwant h1 dead", hosts, ports)
	}
}

func field(s, after string) string {
	_, rest, _ := strings.Cut(s, after)
	v, _, _ := strings.Cut(rest, "\"")
	return v
}
