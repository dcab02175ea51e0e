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

const (
	crowdSize  = 200
	crowdHosts = 4
)

// member is a VM of a crowd: a device with another end and nothing behind it.
type member struct {
	name, dev string
	mac       overlay.MAC
	ips       []netip.Addr
	host      int // from 0
}

// crowd is VMs of one generation, spread over all hosts. A later generation has
// the addresses of the one before, each on the next host; every other one has
// its MAC too.
func crowd(generation int) []member {
	all := make([]member, crowdSize)
	for i := range all {
		m := member{
			name: fmt.Sprintf("g%d-%03d", generation, i), dev: fmt.Sprintf("g%dn%03d", generation, i),
			mac: overlay.MAC{0x52, 0x54, 0, byte(generation), 0, byte(i)}, host: (i + generation) % crowdHosts,
			ips: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 1, byte(i + 1)}), netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 5: 1, 14: 1, 15: byte(i + 1)})},
		}
		if i%2 == 0 {
			m.mac[3] = 0
		}
		all[i] = m
	}
	return all
}

// appear declares the crowd's ports and plugs its devices in.
func (r *rig) appear(all []member) {
	r.t.Helper()
	req := &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE}
	plugs := make([]strings.Builder, crowdHosts)
	for _, m := range all {
		spec := &culvertv1.PortSpec{Network: "blue", Mac: m.mac.String()}
		for _, a := range m.ips {
			spec.Addresses = append(spec.Addresses, a.String())
		}
		req.Resources = append(req.Resources, api.Wrap(&culvertv1.Port{
			ApiVersion: api.Version, Kind: "Port", Metadata: &culvertv1.Metadata{Name: m.name, Tenant: api.DefaultTenant}, Spec: spec,
		}))
		fmt.Fprintf(&plugs[m.host], "link add %[1]s type veth peer name x%[1]s\nlink set x%[1]s addrgenmode none up\nlink set %[1]s addrgenmode none alias '%[2]s'\nlink set %[1]s master cvb42 up\n",
			m.dev, hoststate.PortAlias(api.DefaultTenant, m.name))
	}
	if _, err := r.api.Put(r.ctx, req); err != nil {
		r.t.Fatalf("declare %d ports: %v", len(all), err)
	}
	r.batches(plugs)
}

// vanish destroys the crowd: the devices, then the ports.
func (r *rig) vanish(all []member) {
	r.t.Helper()
	unplugs := make([]strings.Builder, crowdHosts)
	for _, m := range all {
		fmt.Fprintf(&unplugs[m.host], "link del %s\n", m.dev)
	}
	r.batches(unplugs)
	for _, m := range all {
		if _, err := r.api.Delete(r.ctx, &culvertv1.DeleteRequest{Kind: "port", Tenant: api.DefaultTenant, Name: m.name}); err != nil {
			r.t.Fatalf("delete port %s: %v", m.name, err)
		}
	}
}

// batches runs lines of ip(8) on each host.
func (r *rig) batches(lines []strings.Builder) {
	r.t.Helper()
	for i := range lines {
		path := filepath.Join(r.t.TempDir(), "batch")
		if err := os.WriteFile(path, []byte(lines[i].String()), 0o600); err != nil {
			r.t.Fatal(err)
		}
		r.mustIn(lab.HostName(i+1), "ip", "-batch", path)
	}
}

// crowdRows is what a host's kernel must hold of a crowd, a row a line, and no
// more, of the network's tables and of the programs'.
func crowdRows(all []member, host int) []string {
	var rows []string
	for _, m := range all {
		at := vtepOfHost(m.host + 1)
		if m.host == host {
			rows = append(rows, fmt.Sprintf("bridge %s here", m.mac), fmt.Sprintf("port %s", m.mac))
			for _, a := range m.ips {
				rows = append(rows, fmt.Sprintf("own %s at %s", a, m.dev))
			}
			for _, a := range []string{"10.1.0.1", "2001:db8:1::1", overlay.EUI64LinkLocal(overlay.ServerMAC).String()} { // the hosts'
				rows = append(rows, fmt.Sprintf("own %s at %s", a, m.dev))
			}
			continue
		}
		rows = append(rows, fmt.Sprintf("bridge %s away", m.mac), fmt.Sprintf("fdb %s %s", m.mac, at), fmt.Sprintf("source %s %s", m.mac, at))
		for _, a := range m.ips {
			rows = append(rows, fmt.Sprintf("neigh %s %s", a, m.mac))
		}
	}
	slices.Sort(rows)
	return rows
}

// heldRows is what a host's kernel holds, in the words of crowdRows.
func (r *rig) heldRows(host int) ([]string, error) {
	s, err := r.tables(lab.HostName(host + 1))
	if err != nil {
		return nil, err
	}
	names := map[int32]string{}
	for _, l := range s.Links {
		names[l.Index] = l.Name
	}
	var rows []string
	for k, v := range s.Rows {
		line := ""
		switch k.Table {
		case hoststate.TableMaster:
			line = fmt.Sprintf("bridge %s away", k.MAC)
			if v.Port != 0 {
				line = fmt.Sprintf("bridge %s here", k.MAC)
			}
		case hoststate.TableFDB:
			line = fmt.Sprintf("fdb %s %s", k.MAC, v.Dst)
		case hoststate.TableNeigh:
			line = fmt.Sprintf("neigh %s %s", k.IP, v.MAC)
		case hoststate.TableSource:
			line = fmt.Sprintf("source %s %s", k.MAC, k.IP)
		case hoststate.TablePort:
			line = fmt.Sprintf("port %s", v.MAC)
		case hoststate.TableOwn:
			line = fmt.Sprintf("own %s at %s", k.IP, names[k.Port])
		case hoststate.TableRelay, hoststate.TableRelayed:
			line = fmt.Sprintf("%s %s", k.Table, k.MAC)
		default: // VTEPs and lists are of hosts
			continue
		}
		rows = append(rows, line)
	}
	slices.Sort(rows)
	return rows, nil
}

// exact waits until every host holds a crowd's rows and none besides.
func (r *rig) exact(what string, all []member) time.Duration {
	r.t.Helper()
	return r.await(90*time.Second, what, func() error {
		for h := range crowdHosts {
			got, err := r.heldRows(h)
			if err != nil {
				return err
			}
			if want := crowdRows(all, h); !slices.Equal(got, want) {
				diff := difference(strings.Join(want, "\n"), strings.Join(got, "\n"))
				return fmt.Errorf("h%d: %d rows, want %d:\n%.2000s", h+1, len(got), len(want), diff)
			}
		}
		return nil
	})
}

// standing is a VM on each host that stays: every host makes the bridge for it.
func (r *rig) standing() (all []member) {
	r.t.Helper()
	for i, h := range r.hosts {
		vm := r.vm(lab.VMSpec{Name: fmt.Sprintf("stay%d", i), Host: h, Network: "blue"})
		mac, err := overlay.ParseMAC(vm.MAC)
		if err != nil {
			r.t.Fatal(err)
		}
		m := member{name: vm.Name, dev: lab.TapName(vm.Name), mac: mac, host: i}
		for _, a := range vm.Addresses {
			m.ips = append(m.ips, a.Addr())
		}
		all = append(all, m)
	}
	return all
}

// 200 VMs are destroyed and 200 others made at once, with the addresses of the
// first on other hosts, every other one with its MAC too: every table is right
// after it and nothing of the first is anywhere, three times over.
func TestACrowdTakesTheAddressesOfAnother(t *testing.T) {
	t.Parallel()
	r := newRig(t, crowdHosts)
	r.must("network", "create", "blue", "--vni", "42", "--subnet", "10.1.0.0/16", "--subnet", "2001:db8:1::/64")
	r.connected() // asks by r.api, too
	stay := r.standing()
	before := crowd(1)
	r.appear(before)
	r.exact("the first crowd's tables", slices.Concat(stay, before))
	for g := 2; g <= 4; g++ {
		after := crowd(g)
		start := time.Now()
		r.vanish(before)
		r.appear(after)
		asked := time.Since(start)
		r.exact(fmt.Sprintf("the tables of crowd %d", g), slices.Concat(stay, after))
		t.Logf("%d VMs destroyed and as many made with their addresses elsewhere in %v; all tables right %v after", crowdSize, asked.Round(time.Millisecond), (time.Since(start) - asked).Round(time.Millisecond))
		if s := r.must("port", "list"); strings.Contains(s, fmt.Sprintf("g%d-", g-1)) {
			t.Errorf("ports of the crowd before are still listed:\n%s", s)
		}
		before = after
	}
	r.vanish(before)
	r.exact("no crowd's tables", stay)
}
