package agentcore

import (
	"slices"
	"strings"
	"testing"
)

// foreignRows lists what the kernel holds of VTEPs that are no host's of the rig.
func (r *rig) foreignRows() string {
	var out []string
	for _, l := range strings.Split(r.dump(), "\n") {
		if (strings.HasPrefix(l, "vtep ") || strings.HasPrefix(l, "repl ") || strings.HasPrefix(l, "source ") && strings.Contains(l, " any ")) && !strings.Contains(l, " 192.0.2.20") {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

// TestForeignVTEPs: they are known as long as the network is there, and send
// and hear in it while it is served; in another network they are nothing.
func TestForeignVTEPs(t *testing.T) {
	t.Parallel()
	const served = "repl 10 dst 192.0.2.9; source 10 any via 192.0.2.9; vtep 192.0.2.9"
	r := newRig(t)
	r.fleet("n1 10 foreign=192.0.2.9", "n2 20")
	r.log("n1", "port p1 "+mac1)
	r.log("n2", "port p2 "+mac2)
	want := func(when, rows string) {
		t.Helper()
		if got := r.foreignRows(); got != rows {
			t.Errorf("%s: the kernel holds %q, want %q\n%s", when, got, rows, r.dump())
		}
	}
	want("not served", "vtep 192.0.2.9")
	r.plug("n1", "p1")
	r.plug("n2", "p2")
	want("served", served)
	r.did()
	r.restart()
	want("at a start, with nothing known", served)
	r.fleet("n1 10 foreign=192.0.2.9", "n2 20")
	r.log("n1", "port p1 "+mac1)
	r.log("n2", "port p2 "+mac2)
	want("started again", served)
	if ops := r.did(); strings.Contains(ops, "192.0.2.9") {
		t.Errorf("a start has written what stood:\n%s", ops)
	}

	r.news("", "network n1 10 foreign=192.0.2.8,192.0.2.9")
	want("another one", "repl 10 dst 192.0.2.8; repl 10 dst 192.0.2.9; source 10 any via 192.0.2.8; source 10 any via 192.0.2.9; vtep 192.0.2.8; vtep 192.0.2.9")
	r.news("", "network n2 20 foreign=192.0.2.9")
	r.news("", "network n1 10 foreign=192.0.2.8")
	want("the other network's", "repl 10 dst 192.0.2.8; repl 20 dst 192.0.2.9; source 10 any via 192.0.2.8; source 20 any via 192.0.2.9; vtep 192.0.2.8; vtep 192.0.2.9")
	r.news("", "network n2 20")
	r.news("", "network n1 10 none foreign=192.0.2.9")
	want("without flooding", "source 10 any via 192.0.2.9; vtep 192.0.2.9")
	r.news("", "network n1 10 foreign=2001:db8::9")
	want("of a family that this host has not", "")
	r.news("", "network n1 10 foreign=192.0.2.9")
	want("again", served)
	r.unplug("p1")
	r.tick(6 * second)
	r.tick(second)
	want("not served any more", "vtep 192.0.2.9")
	r.news("", "-network n1 10 foreign=192.0.2.9")
	want("deleted", "")
}

// TestAHostIsNotForeign: an address that a host has keeps the checks of hosts,
// whether the host came before it was declared or after.
func TestAHostIsNotForeign(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10 foreign=192.0.2.202,192.0.2.9")
	r.log("n1", "port p1 "+mac1)
	r.plug("n1", "p1")
	foreign := func(when string, want ...string) {
		t.Helper()
		for _, a := range []string{"192.0.2.202", "192.0.2.9"} {
			s := r.dump()
			if has := strings.Contains(s, "source 10 any via "+a+"\n"); has != slices.Contains(want, a) {
				t.Errorf("%s: %s may send anything: %t\n%s", when, a, has, s)
			}
			if !strings.Contains(s, "vtep "+a+"\n") {
				t.Errorf("%s: %s is not known\n%s", when, a, s)
			}
		}
	}
	foreign("h2 has one", "192.0.2.9")
	r.news("", "host h2 192.0.2.202 dead")
	if s := r.dump(); strings.Contains(s, "any via 192.0.2.202") {
		t.Errorf("a dead host's VTEP may send anything:\n%s", s)
	}
	r.news("", "host h2 192.0.2.9")
	foreign("h2 has moved to the other", "192.0.2.202")
	r.news("", "-host h2 192.0.2.9")
	foreign("h2 has left", "192.0.2.202", "192.0.2.9")
}
