package kernel

import (
	"net/netip"
	"testing"
	"time"

	"culvert/internal/netnstest"
)

// probed is two machines on a wire, the first with a kernel edge.
func probed(t *testing.T) (a, b *host) {
	t.Helper()
	r := &rig{t: t, wire: netnstest.New(t)}
	r.wire.Exec("ip", "link", "add", "wire", "type", "bridge")
	r.wire.Exec("ip", "link", "set", "wire", "up")
	a, b = r.underlay(1), r.underlay(2)
	k, err := Open(int(a.ns.Handle), Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	a.Kernel = k
	return a, b
}

func TestProbeTellsWhetherAHostAnswers(t *testing.T) {
	const within = 300 * time.Millisecond
	a, b := probed(t)
	six := netip.MustParseAddr("2001:db8::2")
	ask := func(what string, to, from netip.Addr, want bool) {
		t.Helper()
		start := time.Now()
		got, err := a.Probe(t.Context(), from, to, 3, within)
		if err != nil || got != want {
			t.Errorf("%s: answered %t, %v; want %t", what, got, err, want)
		}
		if took := time.Since(start); !want && took < within {
			t.Errorf("%s: given up after %v, want %v", what, took, within)
		}
	}
	ask("IPv4", b.vtep, a.vtep, true)
	ask("IPv4 from any address", b.vtep, netip.Addr{}, true)
	ask("IPv6", six, netip.MustParseAddr("2001:db8::1"), true)
	ask("an address nobody has", netip.MustParseAddr("192.0.2.77"), a.vtep, false)

	b.ns.Sysctl("net/ipv4/icmp_echo_ignore_all", "1")
	ask("a host that ignores echo requests", b.vtep, a.vtep, false)
	b.ns.Sysctl("net/ipv4/icmp_echo_ignore_all", "0")
	ask("the same host again", b.vtep, a.vtep, true)
	b.ns.Exec("ip", "link", "set", "eth0", "down")
	ask("a host that lost its link", b.vtep, a.vtep, false)

	if got, err := a.Probe(t.Context(), a.vtep, netip.MustParseAddr("203.0.113.1"), 3, within); err == nil {
		t.Errorf("without a route: answered %t and no error, want one: nothing was asked", got)
	}
}

// A late second request is answered, too: the first may be lost while the
// neighbour is being found.
func TestProbeAsksMoreThanOnce(t *testing.T) {
	a, b := probed(t)
	b.ns.Exec("ip", "link", "set", "eth0", "down")
	up := time.AfterFunc(150*time.Millisecond, func() { b.ns.Exec("ip", "link", "set", "eth0", "up") })
	defer up.Stop()
	if got, err := a.Probe(t.Context(), a.vtep, b.vtep, 10, 5*time.Second); err != nil || !got {
		t.Errorf("answered %t, %v; want the host to answer once its link is up", got, err)
	}
}
