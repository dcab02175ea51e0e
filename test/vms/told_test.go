package vms

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
)

// A guest boots that knows nothing: its own host tells it addresses of both
// families (two of IPv6), the MTU, routes and name servers, and it reaches another host and
// is reached. It is moved live, and while no manager runs its leases are renewed
// by the host that it is at now.
func TestGuestBootsByDHCP(t *testing.T) {
	t.Parallel()
	l := unbuilt(t)
	up(t, l, lab.Topology{Hosts: 2}, true)
	put(t, l, api.Wrap(&culvertv1.Network{
		ApiVersion: "culvert/v1alpha1", Kind: "Network", Metadata: &culvertv1.Metadata{Name: "blue", Tenant: "default"},
		Spec: &culvertv1.NetworkSpec{
			Subnets: []*culvertv1.Subnet{{Prefix: "10.20.0.0/24"}, {Prefix: "fd00:20::/64"}},
			Dns:     []string{"10.20.0.53", "fd00:20::53"}, Lease: 600,
			Routes: []*culvertv1.Route{{Prefix: "10.9.0.0/16", Via: "10.20.0.9"}},
		},
	}))
	n1 := vm(t, l, lab.VMSpec{Name: "n1", Host: "h2"})
	start := time.Now()
	vm(t, l, lab.VMSpec{Name: "g", Host: "h1", Qemu: true, DHCP: true, Addresses: []string{"10.20.0.7", "fd00:20::7", "fd00:20::8"}})
	t.Logf("figure: from the start of QEMU to a guest that has its addresses: %.1f s", time.Since(start).Seconds())

	told := func(command string, wants ...string) {
		t.Helper()
		awaitIn(t, l, "g", command, func(out string) bool {
			for _, w := range wants {
				if !regexp.MustCompile("(?m)" + w).MatchString(out) {
					return false
				}
			}
			return true
		}, wants...)
	}
	told("ip address show dev eth0", ` mtu 1450 `, ` inet 10\.20\.0\.7/24 `, ` inet6 fd00:20::7/128 .*dynamic`, ` inet6 fd00:20::8/128 .*dynamic`)
	told("ip route", `^10\.20\.0\.0/24 dev eth0`, `^10\.9\.0\.0/16 via 10\.20\.0\.9 dev eth0`)
	told("ip -6 route", `^fd00:20::/64 dev eth0`)
	told("cat /etc/resolv.conf", `^nameserver 10\.20\.0\.53$`, `^nameserver fd00:20::53$`)
	// Nothing routes between networks: a guest is told no default route.
	if out := inGuest(t, l, "g", "ip route; ip -6 route"); strings.Contains(out, "default") {
		t.Errorf("the guest has a default route:\n%s", out)
	}
	both := func() {
		t.Helper()
		for _, a := range n1.Addresses {
			reaches(t, l, "g", a.Addr().String())
		}
		reaches(t, l, "n1", "10.20.0.7")
		reaches(t, l, "n1", "fd00:20::7")
		reaches(t, l, "n1", "fd00:20::8")
	}
	both()
	// What the MTU allows passes whole, both ways.
	if out, err := exec.Command("ip", "netns", "exec", lab.NSOfVM(l.Name(), "n1"), "ping", "-c", "3", "-W", "2", "-M", "do", "-s", strconv.Itoa(1450-20-8), "10.20.0.7").CombinedOutput(); err != nil {
		t.Errorf("pings of 1450 bytes: %v\n%s", err, out)
	}

	if _, err := l.Migrate(t.Context(), "g", "h2", lab.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Signal(t.Context(), "m1", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	before := leases(t, l, "g")
	inGuest(t, l, "g", "dhcpcd -N eth0")
	awaitIn(t, l, "g", "ip address show dev eth0", func(out string) bool {
		now := left(out)
		for i, s := range now {
			if len(now) != len(before) || s <= before[i] {
				return false
			}
		}
		return len(now) > 0
	}, fmt.Sprintf("more than %v seconds left", before))
	both()
}

// lifetime is an address's in seconds, as ip(8) prints it.
var lifetime = regexp.MustCompile(`valid_lft ([0-9]+)sec`)

func left(addresses string) (seconds []int) {
	for _, m := range lifetime.FindAllStringSubmatch(addresses, -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return nil
		}
		seconds = append(seconds, n)
	}
	return seconds
}

// leases waits until the three leases of a guest are some seconds old, so that one
// that is renewed is told from one that is not, and returns what is left of them.
func leases(t *testing.T, l *lab.Lab, name string) (seconds []int) {
	t.Helper()
	awaitIn(t, l, name, "ip address show dev eth0", func(out string) bool {
		seconds = left(out)
		return len(seconds) == 3 && slices.Max(seconds) <= 595
	}, "three leases, 5 s old")
	return seconds
}

// inGuest runs a command line in a guest of QEMU and returns what it printed.
func inGuest(t *testing.T, l *lab.Lab, name, command string) string {
	t.Helper()
	out, code, err := l.Run(t.Context(), name, command)
	if err != nil || code != 0 {
		t.Fatalf("%s in %s: exit code %d, %v\n%s", command, name, code, err, out)
	}
	return out
}

// awaitIn runs a command line in a guest until its output is as wanted.
func awaitIn(t *testing.T, l *lab.Lab, name, command string, fits func(string) bool, wants ...string) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(settle)
	for {
		out := inGuest(t, l, name, command)
		if fits(out) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s in %s says within %s:\n%swant %q; its client says:\n%s", command, name, settle, out, wants, inGuest(t, l, name, "cat /run/dhcpcd.log"))
		}
		<-tick.C
	}
}
