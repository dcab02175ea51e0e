package survive

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert/internal/lab"
)

// topologies is how many random worlds are made; CULVERT_TOPOLOGIES says
// otherwise, and CULVERT_TOPOLOGY=N makes the one of that seed.
const topologies = 12

// TestRandomTopologies: in random worlds of networks, pushed and on demand,
// domains, policies and VMs that come, go and move, exactly those VMs reach each other, by real packets,
// that may: who may is worked out here from what was asked for, and from nothing
// that Culvert says.
func TestRandomTopologies(t *testing.T) {
	t.Parallel()
	seeds := make([]uint64, topologies)
	if n, err := strconv.Atoi(os.Getenv("CULVERT_TOPOLOGIES")); err == nil {
		seeds = make([]uint64, n)
	}
	for i := range seeds {
		seeds[i] = uint64(i + 1)
	}
	if n, err := strconv.ParseUint(os.Getenv("CULVERT_TOPOLOGY"), 10, 64); err == nil {
		seeds = []uint64{n}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newTopology(t, seed)
			w.check("at first")
			for step := range 3 {
				w.change()
				w.check(fmt.Sprintf("after %d changes", step+1))
			}
		})
	}
}

// topology is a random world and what was asked for in it.
type topology struct {
	*rig
	t        *testing.T
	seed     uint64
	rnd      *rand.Rand
	networks []topoNetwork
	policies map[string]topoPolicy // by name
	vms      []topoVM
	made     int
	had      map[int]int // how many VMs each network has had, which numbers them
	did      []string    // what was done, for who reads a failure
}

type topoNetwork struct {
	tenant, name, domain string
	octet                int  // of its subnets
	demand               bool // it is told on demand
}

type topoPolicy struct {
	from, to int // networks
	both     bool
}

type topoVM struct {
	name, host string
	network    int
	v4, v6     string
}

func newTopology(t *testing.T, seed uint64) *topology {
	w := &topology{rig: newRig(t, 3), t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 42)), policies: map[string]topoPolicy{}, had: map[int]int{}}
	// Domain east of the tenant default and west of another: with the same
	// subnets, and two networks more that are in none.
	w.must("tenant", "create", "other")
	for _, d := range []struct{ tenant, name string }{{"default", "east"}, {"other", "west"}} {
		w.must("domain", "create", d.tenant+"/"+d.name)
		for i := range 2 + w.rnd.IntN(2) {
			w.addNetwork(topoNetwork{d.tenant, fmt.Sprintf("n%d", i+1), d.name, i + 1, false})
		}
	}
	w.addNetwork(topoNetwork{"default", "lone", "", 9, false})
	for i := range w.networks {
		w.addVM(i)
	}
	for range 4 {
		w.addVM(w.rnd.IntN(len(w.networks)))
	}
	for range 2 {
		w.addPolicy()
	}
	return w
}

func (w *topology) log(format string, args ...any) {
	w.did = append(w.did, fmt.Sprintf(format, args...))
}

func (w *topology) addNetwork(n topoNetwork) {
	args := []string{"network", "create", n.tenant + "/" + n.name,
		"--subnet", fmt.Sprintf("10.%d.0.0/24", n.octet), "--subnet", fmt.Sprintf("fd00:%d::/64", n.octet)}
	if n.domain != "" {
		args = append(args, "--domain", n.domain)
	}
	if n.demand = w.rnd.IntN(2) == 0; n.demand {
		args = append(args, "--distribution", "on-demand")
	}
	w.log("network %s", strings.Join(args[2:], " "))
	w.must(args...)
	w.networks = append(w.networks, n)
}

func (w *topology) addVM(network int) {
	w.made++
	w.had[network]++
	n, number := w.networks[network], 10+w.had[network]
	vm := topoVM{
		name: fmt.Sprintf("v%d", w.made), host: lab.HostName(1 + w.rnd.IntN(3)), network: network,
		v4: fmt.Sprintf("10.%d.0.%d", n.octet, number), v6: fmt.Sprintf("fd00:%d::%x", n.octet, number),
	}
	w.log("%s of %s/%s on %s", vm.name, n.tenant, n.name, vm.host)
	w.vm(lab.VMSpec{Name: vm.name, Host: vm.host, Tenant: n.tenant, Network: n.name, Addresses: []string{vm.v4, vm.v6}})
	w.vms = append(w.vms, vm)
}

// addPolicy opens a way between two networks of a domain, if there are two that
// nothing names yet.
func (w *topology) addPolicy() {
	for range 20 {
		p := topoPolicy{w.rnd.IntN(len(w.networks)), w.rnd.IntN(len(w.networks)), w.rnd.IntN(3) > 0}
		from, to := w.networks[p.from], w.networks[p.to]
		name := fmt.Sprintf("p%d-%d", p.from, p.to)
		if _, there := w.policies[name]; there || p.from == p.to || from.domain == "" || from.domain != to.domain {
			continue
		}
		direction := "forward"
		if p.both {
			direction = "both"
		}
		w.log("policy %s/%s -> %s %s", from.tenant, from.name, to.name, direction)
		w.must("policy", "create", from.tenant+"/"+name, "--domain", from.domain, "--from", from.name, "--to", to.name, "--direction", direction)
		w.policies[name] = p
		return
	}
}

// change does something to the world.
func (w *topology) change() {
	switch i := w.rnd.IntN(len(w.vms)); w.rnd.IntN(6) {
	case 5:
		n, mode := &w.networks[w.rnd.IntN(len(w.networks))], []string{"push", "on-demand"}[w.rnd.IntN(2)]
		n.demand = mode == "on-demand"
		w.log("network %s/%s is %s", n.tenant, n.name, mode)
		w.must("network", "set", n.tenant+"/"+n.name, "--distribution", mode)
	case 0:
		w.addVM(w.rnd.IntN(len(w.networks)))
	case 1:
		w.log("%s goes", w.vms[i].name)
		if _, err := w.lab.RemoveVM(w.ctx, w.vms[i].name); err != nil {
			w.t.Fatal(err)
		}
		w.vms = slices.Delete(w.vms, i, i+1)
	case 2, 3:
		to := lab.HostName(1 + w.rnd.IntN(3))
		w.log("%s moves to %s", w.vms[i].name, to)
		if _, err := w.lab.Migrate(w.ctx, w.vms[i].name, to, lab.MigrateOptions{}); err != nil {
			w.t.Fatal(err)
		}
		w.vms[i].host = to
	case 4:
		var names []string
		for name := range w.policies {
			names = append(names, name)
		}
		if len(names) == 0 {
			w.addPolicy()
			return
		}
		slices.Sort(names)
		name := names[w.rnd.IntN(len(names))]
		w.log("policy %s goes", name)
		w.must("policy", "delete", w.networks[w.policies[name].from].tenant+"/"+name)
		delete(w.policies, name)
	}
}

// opens reports whether policies let the one network send to the other.
func (w *topology) opens(from, to int) bool {
	if from == to {
		return true
	}
	for _, p := range w.policies {
		if p.from == from && p.to == to || p.both && p.from == to && p.to == from {
			return true
		}
	}
	return false
}

// check compares who reaches whom with who may: a ping has to get there and back.
// To another network that is told on demand the first packet is what has the other
// end asked for, and is lost, each way: there more than two are sent.
func (w *topology) check(when string) {
	w.t.Helper()
	w.await(20*time.Second, "all hosts are exact", func() error { _, err := w.run("status"); return err })
	var wg sync.WaitGroup
	for _, from := range w.vms {
		wg.Go(func() { w.checkFrom(from, when) })
	}
	wg.Wait()
}

func (w *topology) checkFrom(from topoVM, when string) {
	// Tenants may have the same addresses: who has one and may be reached answers.
	want, pings := map[string]bool{}, map[string]int{}
	for _, to := range w.vms {
		if to.name != from.name {
			n := 2
			if to.network != from.network && (w.networks[to.network].demand || w.networks[from.network].demand) {
				n = 5
			}
			pings[to.v4], pings[to.v6] = max(n, pings[to.v4]), max(n, pings[to.v6])
			both := w.opens(from.network, to.network) && w.opens(to.network, from.network)
			want[to.v4], want[to.v6] = want[to.v4] || both, want[to.v6] || both
		}
	}
	delete(want, from.v4)
	delete(want, from.v6)
	var script strings.Builder
	for a := range want {
		fmt.Fprintf(&script, "ping -q -n -c %d -i 0.3 -W 1 %s >/dev/null 2>&1 && echo %s &\n", pings[a], a, a)
	}
	out, err := w.in(from.name, "sh", "-c", script.String()+"wait")
	if err != nil {
		w.t.Errorf("seed %d, %s: %v", w.seed, when, err)
		return
	}
	got := strings.Fields(out)
	for a, may := range want {
		if does := slices.Contains(got, a); does != may {
			w.t.Errorf("seed %d, %s: %s (%s) reaches %s: %v, want %v\n%s", w.seed, when, from.name, from.v4, a, does, may, strings.Join(w.did, "\n"))
		}
	}
}
