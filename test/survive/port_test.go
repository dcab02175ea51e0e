package survive

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/lab"
	"culvert/internal/overlay"
)

// A virtual address moves from one VM to another: a guest elsewhere, and one
// beside the new owner, lose at most a second of their pings.
func TestMovedAddressIsFollowed(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	r.must("network", "create", "blue", "--vni", "42", "--subnet", "10.1.0.0/24", "--subnet", "2001:db8:1::/64")
	vip4, vip6 := "10.1.0.100", "2001:db8:1::100"
	for i, h := range []string{"h1", "h2", "h2", "h1"} {
		own := []string{fmt.Sprintf("10.1.0.1%d", i), fmt.Sprintf("2001:db8:1::1%d", i)}
		if i == 1 {
			own = append(own, vip4, vip6)
		}
		r.vm(lab.VMSpec{Name: fmt.Sprintf("vm%d", i), Host: h, Network: "blue", MAC: fmt.Sprintf("52:54:00:00:00:1%d", i), Addresses: own})
	}
	// Inside, the new owner takes the address and the old one lets it go.
	move := func(from, to string) {
		t.Helper()
		r.mustIn(to, "sh", "-c", fmt.Sprintf("ip addr add %s/24 dev eth0; ip addr add %s/64 dev eth0 nodad", vip4, vip6))
		r.mustIn(from, "sh", "-c", fmt.Sprintf("ip addr del %s/24 dev eth0; ip addr del %s/64 dev eth0", vip4, vip6))
	}
	set := func(name string, addresses ...string) {
		t.Helper()
		_, err := r.api.Put(r.ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_APPLY, Resources: []*culvertv1.Resource{api.Wrap(&culvertv1.Port{
			ApiVersion: "culvert/v1alpha1", Kind: "Port", Metadata: &culvertv1.Metadata{Name: name, Tenant: "default"},
			Spec: &culvertv1.PortSpec{Network: "blue", Mac: "52:54:00:00:00:1" + name[2:], Vm: name, Addresses: addresses},
		})}})
		if err != nil {
			t.Fatalf("set %s: %v", name, err)
		}
	}
	ping := func() []*pinging {
		return []*pinging{
			r.ping("vm0", netip.MustParseAddr(vip4), 10*time.Millisecond),
			r.ping("vm0", netip.MustParseAddr(vip6), 10*time.Millisecond),
		}
	}
	check := func(what string, ps []*pinging) {
		t.Helper()
		r.hold(1500 * time.Millisecond)
		for _, p := range ps {
			p.stop()
		}
		for _, p := range ps {
			res := p.end(t)
			t.Logf("%s: ping %s: %d sent, %d lost", what, p.to, res.Sent, len(res.Lost))
			if len(res.Lost) > 100 || res.Received < 100 {
				t.Errorf("%s: ping %s at 100 a second: %d of %d lost, want 100 at most", what, p.to, len(res.Lost), res.Sent)
			}
		}
	}

	r.connected()
	ps := ping()
	r.hold(300 * time.Millisecond)
	move("vm1", "vm2")
	set("vm1", "10.1.0.11", "2001:db8:1::11")
	set("vm2", "10.1.0.12", "2001:db8:1::12", vip4, vip6)
	check("between two VMs elsewhere, by two calls", ps)

	file := filepath.Join(t.TempDir(), "ports.yaml")
	doc := func(name string, addresses ...string) string {
		return fmt.Sprintf("apiVersion: culvert/v1alpha1\nkind: Port\nmetadata: {name: %s}\nspec: {network: blue, mac: '52:54:00:00:00:1%s', vm: %s, addresses: ['%s']}\n",
			name, name[2:], name, strings.Join(addresses, "', '"))
	}
	docs := doc("vm2", "10.1.0.12", "2001:db8:1::12") + "---\n" + doc("vm3", "10.1.0.13", "2001:db8:1::13", vip4, vip6)
	if err := os.WriteFile(file, []byte(docs), 0o600); err != nil {
		t.Fatal(err)
	}
	ps = ping()
	r.hold(300 * time.Millisecond)
	move("vm2", "vm3")
	r.must("apply", "-f", file)
	check("to a VM beside the guest, by one file", ps)
}

// answers reports whether a VM answers another's ping, soon or within a while.
func (r *rig) answers(from string, to netip.Addr, count int) bool {
	r.t.Helper()
	ns, err := r.lab.Namespace(from)
	if err != nil {
		r.t.Fatal(err)
	}
	res, err := lab.Ping(r.ctx, ns, lab.PingOptions{Target: to, Count: count, Interval: 50 * time.Millisecond, Wait: 300 * time.Millisecond})
	if err != nil {
		r.t.Fatal(err)
	}
	return res.Received > 0
}

// portUp waits until a port is up on a host.
func (r *rig) portUp(port, host string) {
	r.t.Helper()
	r.await(10*time.Second, port+" is up on "+host, func() error {
		out, err := r.run("port", "show", port, "-o", "json")
		if err != nil {
			return err
		}
		if !strings.Contains(out, `"state": "up"`) || !strings.Contains(out, fmt.Sprintf("%q: %q", "host", host)) {
			return fmt.Errorf("port %s: %s", port, out)
		}
		return nil
	})
}

// A device that no port claims is shown, and passes nothing: not to a port,
// not to another such device, not to another host, and nothing comes to it.
func TestUnclaimedDevicePassesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	r.pair()
	x := r.vm(lab.VMSpec{Name: "x1", Host: "h1", Network: "blue", MAC: "52:54:00:00:00:a1", Addresses: []string{"10.1.0.201"}, Undeclared: true})
	y := r.vm(lab.VMSpec{Name: "y1", Host: "h1", Network: "blue", MAC: "52:54:00:00:00:b1", Addresses: []string{"10.1.0.202"}, Undeclared: true})
	r.await(10*time.Second, "both are shown as unclaimed", func() error {
		hosts, err := r.hostStatus()
		if err != nil {
			return err
		}
		u := hosts["h1"].GetUnclaimed()
		for _, d := range []string{lab.TapName("x1"), lab.TapName("y1")} {
			if !slices.ContainsFunc(u, func(s string) bool { return strings.HasPrefix(s, d+" ") }) {
				return fmt.Errorf("unclaimed: %q, want %s too", u, d)
			}
		}
		return nil
	})
	type way struct{ from, to, mac, addr string }
	var probes []*lab.Probe
	ways := []way{
		{"x1", "vm1", "52:54:00:00:00:11", "10.1.0.11"}, {"x1", "vm2", "52:54:00:00:00:12", "10.1.0.12"}, {"x1", "y1", y.MAC, "10.1.0.202"},
		{"vm1", "x1", x.MAC, "10.1.0.201"}, {"vm2", "x1", x.MAC, "10.1.0.201"},
	}
	for _, w := range ways {
		mac, err := overlay.ParseMAC(w.mac)
		if err != nil {
			t.Fatal(err)
		}
		p, err := lab.StartProbe(lab.NSOfVM(r.name, w.from), lab.NSOfVM(r.name, w.to), mac, netip.MustParseAddr(w.addr))
		if err != nil {
			t.Fatal(err)
		}
		probes = append(probes, p)
	}
	if r.answers("x1", netip.MustParseAddr("10.1.0.11"), 5) || r.answers("vm1", netip.MustParseAddr("10.1.0.201"), 5) ||
		r.answers("vm2", netip.MustParseAddr("10.1.0.201"), 5) || r.answers("x1", netip.MustParseAddr("10.1.0.202"), 5) {
		t.Error("a ping passed")
	}
	r.hold(time.Second)
	for i, p := range probes {
		sent, arrived, err := p.Stop()
		if err != nil || sent == 0 {
			t.Errorf("%v: %d sent: %v", ways[i], sent, err)
		}
		if len(arrived) > 0 {
			t.Errorf("%v: of %d frames %d arrived, the first %x", ways[i], sent, len(arrived), arrived[0].Data)
		}
	}
	if out := r.must("endpoint", "list", "-o", "json"); strings.Contains(out, x.MAC) || strings.Contains(out, y.MAC) {
		t.Errorf("an undeclared device is an endpoint:\n%s", out)
	}
	// What passes nothing can be let in: the probe would have seen it.
	if !r.answers("vm1", netip.MustParseAddr("10.1.0.12"), 20) {
		t.Error("not even declared VMs reach each other")
	}
}

// Which port a device is: by its alias, by `attach`, by a source MAC seen.
func TestDevicesAreRecognised(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	r.pair() // by alias
	r.must("port", "create", "pa", "--network", "blue", "--mac", "52:54:00:00:00:a1", "--ip", "10.1.0.101")
	r.must("port", "create", "pb", "--network", "blue", "--mac", "52:54:00:00:00:b1", "--ip", "10.1.0.102")
	r.vm(lab.VMSpec{Name: "va", Host: "h1", Network: "blue", MAC: "52:54:00:00:00:a1", Addresses: []string{"10.1.0.101"}, Undeclared: true})
	r.vm(lab.VMSpec{Name: "vb", Host: "h1", Network: "blue", MAC: "52:54:00:00:00:b1", Addresses: []string{"10.1.0.102"}, Undeclared: true})
	a, b := netip.MustParseAddr("10.1.0.101"), netip.MustParseAddr("10.1.0.102")
	if r.answers("vm2", a, 3) || r.answers("vm2", b, 3) {
		t.Error("a silent device without a word of whose it is was reached")
	}

	out := r.must("attach", "pa", "--dev", lab.TapName("va"), "--agent-socket", r.lab.AgentSocket("h1"))
	r.portUp("pa", "h1")
	if !r.answers("vm2", a, 20) {
		t.Errorf("the attached device is not reached; attach said: %s", out)
	}
	if out := r.must("attach", "pa", "--dev", lab.TapName("va"), "--agent-socket", r.lab.AgentSocket("h1"), "-o", "json"); !strings.Contains(out, `"unchanged"`) {
		t.Errorf("attached twice: %s, want unchanged", out)
	}

	r.answers("vb", netip.MustParseAddr("10.1.0.12"), 3) // it speaks, and is heard on its own port only
	r.portUp("pb", "h1")
	if !r.answers("vm2", b, 20) {
		t.Error("the device recognised by its MAC is not reached")
	}
	// What was recognised stays so without its agent's memory.
	before := r.pictures()
	r.forget("h1")
	r.connected()
	r.same("h1 restarted without memory", before)
}

// flood: none keeps no list: broadcast stays on its host, and guests find each
// other nevertheless.
func TestNetworkWithoutFlooding(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	r.must("network", "create", "blue", "--vni", "42", "--subnet", "10.1.0.0/24", "--subnet", "2001:db8:1::/64", "--flood", "none")
	for i, h := range []string{"h1", "h1", "h2"} {
		r.vm(lab.VMSpec{Name: fmt.Sprintf("vm%d", i+1), Host: h, Network: "blue", Addresses: []string{fmt.Sprintf("10.1.0.1%d", i+1), fmt.Sprintf("2001:db8:1::1%d", i+1)}})
	}
	for _, h := range r.hosts {
		s, err := r.tables(h)
		if err != nil {
			t.Fatal(err)
		}
		for k := range s.Rows {
			if k.Table == hoststate.TableRepl {
				t.Errorf("%s has a place in a broadcast list: %s", h, k.IP)
			}
		}
	}
	for _, to := range []string{"10.1.0.13", "2001:db8:1::13", "10.1.0.12", "2001:db8:1::12"} {
		if !r.answers("vm1", netip.MustParseAddr(to), 20) {
			t.Errorf("vm1 does not reach %s", to)
		}
	}
	_, res, err := r.lab.PingAll(r.ctx, "vm1", lab.PingOptions{Count: 5, Interval: 50 * time.Millisecond, Wait: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Answerers(); !slices.Equal(got, []string{"10.1.0.12"}) {
		t.Errorf("a broadcast was answered by %v, want 10.1.0.12 alone", got)
	}
}
