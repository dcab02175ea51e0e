package managercore

import (
	"net/netip"
	"strings"
	"testing"

	"culvert/internal/overlay"
)

// learning is a rig with a network that admits whom it hears, which three hosts
// serve; their sessions are complete.
type learning struct {
	*rig
	net   overlay.UID
	hosts [3]overlay.UID
	n     [3]uint64
}

func newLearning(t *testing.T) *learning {
	t.Helper()
	r := &learning{rig: newRig(t)}
	blue := network("blue", "10.0.0.0/8")
	blue.Network.Admission = overlay.AdmitLearn
	r.net = r.must(ModeCreate, blue, port("a", "blue", "10.0.0.5")).Changes[0].Rec.(*overlay.Network).UID
	r.now = 1e9
	for i, name := range []string{"h1", "h2", "h3"} {
		r.hosts[i], r.n[i] = r.attach(name)
		r.c.Step(r.now, Subscribed{Host: r.hosts[i], Session: r.n[i], Network: r.net})
		r.c.Step(r.now, InventoryEnded{Host: r.hosts[i], Session: r.n[i]})
	}
	r.c.NextErrands()
	return r
}

// seeks has a host search an address, and counts whom that costs a message.
func (r *learning) seeks(host int, ip string) int {
	r.c.Step(r.now, Seek{Host: r.hosts[host], Session: r.n[host], Network: r.net, Address: netip.MustParseAddr(ip)})
	return len(r.asks())
}

func (r *learning) asks() (out []Errand) {
	for _, e := range r.c.NextErrands() {
		if e.Kind == ErrandAsk {
			out = append(out, e)
		}
	}
	return out
}

// hears is a claim of an undeclared endpoint.
func (r *learning) hears(host int, mac byte, ips ...string) ClaimAnswer {
	cl := Claim{ID: 1, Network: r.net, MAC: overlay.MAC{2, 0, 0, 0, 0, mac}, Evidence: overlay.EvidenceARP}
	for _, ip := range ips {
		cl.Addresses = append(cl.Addresses, netip.MustParseAddr(ip))
	}
	if it := r.c.View().Endpoint(r.net, cl.MAC); it != nil {
		cl.Base = it.Rev
	}
	return r.say(r.hosts[host], r.n[host], cl)
}

func (r *learning) has(mac byte, ip string) bool {
	ep := r.endpoint(r.net, overlay.MAC{2, 0, 0, 0, 0, mac})
	return ep != nil && strings.Contains(strings.Join(strings.Fields(addrsText(ep.Addresses)), " "), ip)
}

func addrsText(in []netip.Addr) (s string) {
	for _, a := range in {
		s += a.String() + " "
	}
	return s
}

func TestASearchAsksTheHostsThatServeTheNetwork(t *testing.T) {
	t.Parallel()
	r := newLearning(t)
	r.hears(1, 1, "10.0.0.9")
	r.asks()
	for ip, want := range map[string]int{
		"10.0.0.77": 3,
		"10.0.0.5":  0, // declared
		"10.0.0.9":  0, // heard
		"10.0.0.1":  0, // the gateway's
		"192.0.2.9": 0, // of no subnet
		"0.0.0.0":   0, "224.0.0.1": 0, "fd00::1": 0,
		"fe80::1": 3,
	} {
		if got := r.seeks(0, ip); got != want {
			t.Errorf("searching %s cost %d messages, want %d", ip, got, want)
		}
	}
	r.c.Step(r.now, Subscribed{Host: r.hosts[2], Session: r.n[2], Network: r.net, Off: true})
	r.c.Step(r.now, Closed{Host: r.hosts[1], Session: r.n[1]})
	if got := r.seeks(0, "10.0.0.78"); got != 1 {
		t.Errorf("%d hosts were asked, want the one that serves the network", got)
	}
	if got := r.seeks(2, "10.0.0.79"); got != 0 {
		t.Errorf("a host that does not serve the network had %d asked", got)
	}
	for _, mode := range []overlay.Admission{overlay.AdmitDeclared, overlay.AdmitDHCP} {
		blue := network("blue", "10.0.0.0/8")
		blue.Network.Admission = mode
		r.must(ModeApply, blue)
		if got := r.seeks(0, "10.0.0.80"); got != 0 {
			t.Errorf("admission %v: %d hosts were asked, want none", mode, got)
		}
	}
}

func TestWhatWasNotFoundIsNotSearchedAgainSoon(t *testing.T) {
	t.Parallel()
	r := newLearning(t)
	var at []int
	for sec := range 200 {
		r.now = Time(sec+10) * 1e9
		if r.seeks(sec%3, "10.0.0.77") > 0 {
			at = append(at, sec)
		}
	}
	// It lasts 1 s, then 10, 20, 40, 60 and 60 s nobody is asked.
	want := []int{0, 11, 32, 73, 134, 195}
	if len(at) != len(want) {
		t.Fatalf("searched after %v seconds, want %v", at, want)
	}
	for i := range at {
		if at[i] != want[i] {
			t.Errorf("searched after %v seconds, want %v", at, want)
		}
	}
	r.hears(1, 1, "10.0.0.77")
	r.c.Step(r.now, Claimed{Host: r.hosts[1], Session: r.n[1], Claims: []Claim{{ID: 2, Network: r.net, MAC: overlay.MAC{2, 0, 0, 0, 0, 1}, Base: r.c.View().Endpoint(r.net, overlay.MAC{2, 0, 0, 0, 0, 1}).Rev, Leave: true}}})
	r.settle()
	r.asks()
	if r.seeks(0, "10.0.0.77") == 0 {
		t.Error("an address that was found, and is gone, was not searched")
	}
}

// TestAScanCostsTheOtherHostsLittle: a guest asks for every address of a /16 as
// fast as its host's agent could tell; what the hosts are sent is counted.
func TestAScanCostsTheOtherHostsLittle(t *testing.T) {
	t.Parallel()
	r := newLearning(t)
	const seconds = 100
	sent := map[overlay.UID]int{}
	for i := range 1 << 16 {
		r.now += seconds * Time(1e9) / (1 << 16)
		r.c.Step(r.now, Seek{Host: r.hosts[i%3], Session: r.n[i%3], Network: r.net, Address: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})})
		for _, e := range r.asks() {
			sent[e.Host]++
		}
	}
	for i, h := range r.hosts {
		if n := sent[h]; n == 0 || n > maxSearches*(seconds+1) {
			t.Errorf("host %d was asked %d times within %d s, want at most %d a second", i, n, seconds, maxSearches)
		}
	}
	if n := len(r.c.searches[r.net]); n > maxNotFound {
		t.Errorf("%d addresses are remembered, want at most %d", n, maxNotFound)
	}
	if s := r.c.Stats(); s.SearchesRefused == 0 || s.Searches == 0 {
		t.Errorf("counted %+v", s)
	}
}

// What an undeclared endpoint has in a subnet that its network loses, or that
// becomes a gateway's, it has no more; what else it has stays.
func TestUndeclaredEndpointsFollowTheSubnets(t *testing.T) {
	t.Parallel()
	r := newLearning(t)
	r.hears(0, 1, "10.0.0.9", "10.9.0.9")
	r.hears(1, 2, "10.0.0.8", "fe80::8")
	blue := network("blue", "10.0.0.0/16")
	blue.Network.Admission, blue.Network.Subnets[0].Gateway = overlay.AdmitLearn, netip.MustParseAddr("10.0.0.8")
	r.must(ModeSet, blue)
	if !r.has(1, "10.0.0.9") || r.has(1, "10.9.0.9") || r.has(2, "10.0.0.8") || !r.has(2, "fe80::8") {
		t.Error("want of 10.0.0.9, 10.9.0.9, 10.0.0.8 and fe80::8 the first and the last alone")
	}
	if a := r.hears(0, 1, "10.0.0.9", "10.9.0.9"); len(a.Refused) != 1 || r.has(1, "10.9.0.9") {
		t.Errorf("claimed again: %+v, want that address refused", a)
	}
}
