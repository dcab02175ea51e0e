package vms

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
)

// Two guests use one address, which is one's port's. The other is refused that
// address alone, is named where the port is shown, and is told so by the network
// when it asks; when the first goes, it has the address by itself. Then a third
// takes it as well: the guest is asked, answers and keeps it, until it gives it
// up without a word.
func TestTwoGuestsOfOneAddress(t *testing.T) {
	t.Parallel()
	l := unbuilt(t)
	up(t, l, lab.Topology{Hosts: 3}, true)
	put(t, l, api.Wrap(&culvertv1.Network{
		ApiVersion: "culvert/v1alpha1", Kind: "Network", Metadata: &culvertv1.Metadata{Name: "blue", Tenant: "default"},
		Spec: &culvertv1.NetworkSpec{Admission: "learn", Subnets: []*culvertv1.Subnet{{Prefix: "10.20.0.0/24"}}},
	}))
	const shared, own = "10.20.0.7", "10.20.0.99"
	n1 := vm(t, l, lab.VMSpec{Name: "n1", Host: "h3"})
	first := vm(t, l, lab.VMSpec{Name: "first", Host: "h1", Qemu: true, Addresses: []string{shared}})
	reaches(t, l, "n1", shared)
	second := vm(t, l, lab.VMSpec{Name: "second", Host: "h2", Qemu: true, Undeclared: true, Announce: true, Addresses: []string{own, shared}})

	refused := "on h2, device vm-second: " + second.MAC + " may not have " + shared + ": it is port first's (CV0132)"
	await(t, func() string { return portRefusals(t, l, "first") }, func(s string) bool { return strings.Contains(s, refused) }, refused)
	await(t, func() string { return owner(t, l, own) }, func(s string) bool { return s == second.MAC }, second.MAC+" has "+own)
	if got := owner(t, l, shared); got != first.MAC {
		t.Errorf("%s is %s's, want the first guest's, %s", shared, got, first.MAC)
	}
	// Others reach each of them at what is its own, whoever spoke last.
	inGuest(t, l, "second", "arping -q -U -c 3 -I eth0 "+shared)
	reaches(t, l, "n1", own)
	reaches(t, l, "n1", shared)
	if got := neighbour(t, l, "n1", shared); got != first.MAC {
		t.Errorf("to n1, %s is at %s, want %s", shared, got, first.MAC)
	}
	// RFC 5227: busybox exits with 1 if somebody answers.
	if out, code, err := l.Run(t.Context(), "second", "arping -D -c 2 -w 2 -I eth0 "+shared); err != nil || code != 1 || !strings.Contains(strings.ToLower(out), first.MAC) {
		t.Errorf("the second asks whether the address is another's: exit code %d, %v\n%s", code, err, out)
	}

	if _, err := l.RemoveVM(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	await(t, func() string { return owner(t, l, shared) }, func(s string) bool { return s == second.MAC }, second.MAC+" has "+shared)
	reaches(t, l, "n1", shared)
	if got := neighbour(t, l, "n1", shared); got != second.MAC {
		t.Errorf("to n1, %s is at %s, want %s", shared, got, second.MAC)
	}

	third := vm(t, l, lab.VMSpec{Name: "third", Host: "h1", Undeclared: true, Addresses: []string{shared}})
	if r, err := l.PingVM(t.Context(), "third", n1.Addresses[0].Addr().String(), lab.PingOptions{Count: 2}); err != nil || r.Result.Received != 0 {
		t.Errorf("from the address that is another's: %+v, %v", r.Result, err)
	}
	refused = third.MAC + " may not have " + shared + ": it is " + second.MAC + " on h2"
	await(t, func() string { return hostRefusals(t, l, "h1") }, func(s string) bool { return strings.Contains(s, refused) }, refused)
	reaches(t, l, "n1", shared)
	if got := owner(t, l, shared); got != second.MAC {
		t.Errorf("%s is %s's, want that of the guest who had it and answers, %s", shared, got, second.MAC)
	}
	inGuest(t, l, "second", "ip address del "+shared+"/24 dev eth0")
	await(t, func() string { return owner(t, l, shared) }, func(s string) bool { return s == third.MAC }, third.MAC+" has "+shared)
	await(t, func() string { return hostRefusals(t, l, "h1") }, func(s string) bool { return s == "" }, "no refusals")
	reaches(t, l, n1.Name, own)
}

// await asks until the answer fits.
func await(t *testing.T, ask func() string, fits func(string) bool, want string) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(2 * settle) // what is denied is asked for again after up to a minute
	for {
		got := ask()
		if fits(got) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("within %s it is %q, want: %s", 2*settle, got, want)
		}
		<-tick.C
	}
}

// list asks the cluster for resources.
func list(t *testing.T, l *lab.Lab, q *culvertv1.ListRequest) []*culvertv1.Resource {
	t.Helper()
	c := dial(t, l)
	defer c.Close()
	res, err := c.List(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return res.GetItems()
}

func portRefusals(t *testing.T, l *lab.Lab, port string) string {
	t.Helper()
	var all []string
	for _, r := range list(t, l, &culvertv1.ListRequest{Kind: "port", Tenant: "default", Name: port}) {
		all = append(all, r.GetPort().GetStatus().GetRefusals()...)
	}
	return strings.Join(all, "\n")
}

func hostRefusals(t *testing.T, l *lab.Lab, host string) string {
	t.Helper()
	var all []string
	for _, r := range list(t, l, &culvertv1.ListRequest{Kind: "host", Name: host}) {
		all = append(all, r.GetHost().GetStatus().GetRefusals()...)
	}
	return strings.Join(all, "\n")
}

// owner is the MAC of the endpoint that has an address; empty if none has it.
func owner(t *testing.T, l *lab.Lab, address string) string {
	t.Helper()
	for _, r := range list(t, l, &culvertv1.ListRequest{Kind: "endpoint"}) {
		if st := r.GetEndpoint().GetStatus(); slices.Contains(st.GetAddresses(), address) {
			return st.GetMac()
		}
	}
	return ""
}

// neighbour is the MAC that a VM, which is a namespace, has for an address.
func neighbour(t *testing.T, l *lab.Lab, name, address string) string {
	t.Helper()
	out, err := exec.Command("ip", "-n", lab.NSOfVM(l.Name(), name), "neigh", "show", address).CombinedOutput()
	if err != nil {
		t.Fatalf("neighbours of %s: %v\n%s", name, err, out)
	}
	if w := strings.Fields(string(out)); slices.Contains(w, "lladdr") {
		return w[slices.Index(w, "lladdr")+1]
	}
	return ""
}
