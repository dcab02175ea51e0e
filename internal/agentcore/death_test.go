package agentcore

import (
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

const (
	h2Dies   = "host h2 192.0.2.202 dead"
	h2Return = "host h2 192.0.2.202"
)

func TestADeadHostsRowsGoByOneRecord(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	before := r.dump()
	r.did()
	r.ups()
	r.news("", h2Dies)
	r.wants(
		"del vtep 192.0.2.202",
		"del neigh 10 fd00::2 lladdr "+mac2+" permanent,culvert",
		"del neigh 10 10.0.0.2 lladdr "+mac2+" permanent,culvert",
		"del repl 10 dst 192.0.2.202",
		"del master 10 "+mac2+" dev cvx10 static,extern_learn",
		"del fdb 10 "+mac2+" dst 192.0.2.202 static,extern_learn",
		"del source 10 "+mac2+" via 192.0.2.202",
	)
	if s := r.dump(); strings.Contains(s, "192.0.2.202") || strings.Contains(s, mac2) {
		t.Errorf("the kernel holds\n%s\nwant nothing of h2", s)
	}
	r.says("ack 11")
	// A change of a binding there brings no row back.
	r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2")
	r.wants()
	r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2")
	r.ups()
	r.news("", h2Return)
	if s := r.dump(); s != before {
		t.Errorf("after its return the kernel holds\n%s\nwant\n%s", s, before)
	}
}

// Nor may frames come from a dead host on which an endpoint was expected.
func TestADeadHostIsNoSource(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h3 p2 "+mac2+" 10.0.0.2 pre=h2")
	r.news("", h2Dies)
	if s := r.dump(); strings.Contains(s, "192.0.2.202") {
		t.Errorf("the kernel holds\n%s\nwant nothing of h2", s)
	}
	r.news("", h2Return)
	if s := r.dump(); !strings.Contains(s, "source 10 "+mac2+" via 192.0.2.202") {
		t.Errorf("after its return the kernel holds\n%s\nwant it as a source again", s)
	}
}

// A guest of a dead host that is started here is claimed, whether its device
// came before its host was known to be dead or after.
func TestAGuestOfADeadHostIsTakenOver(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(r *rig){
		"device after death": func(r *rig) { r.news("", h2Dies); r.plug("n1", "p2") },
		"device before death": func(r *rig) {
			r.plug("n1", "p2")
			r.ups()
			r.step(Answered{ID: 2, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 11}})
			r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2 pre=h1")
			r.news("", h2Dies)
		},
		"known later": func(r *rig) {
			r.news("n1", "-at h2 p2 "+mac2)
			r.plug("n1", "p2")
			r.news("", h2Dies)
			r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2")
		},
	} {
		r := serving(t)
		r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
		r.ups()
		do(r)
		if s := r.ups(); !strings.Contains(s, "claim ") || strings.Contains(s, "expect ") {
			t.Errorf("%s: told\n%s\nwant a claim, and nothing expected", name, s)
		}
		if s := r.dump(); !strings.Contains(s, "member tap-p2") {
			t.Errorf("%s: the kernel holds\n%s\nwant the device to pass frames", name, s)
		}
	}
}

func TestWhatWasLeftBehindIsNotTakenOver(t *testing.T) {
	t.Parallel()
	left := serving(t)
	left.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	left.news("n1", "at h2 p1 "+mac1+" 10.0.0.1 from=h1")
	left.ups()
	left.news("", h2Dies)
	waits := serving(t)
	waits.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	waits.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "tap-p2", MAC: mac(mac2), State: hoststate.NICIncoming}}})
	waits.plug("n1", "p2")
	waits.ups()
	waits.news("", h2Dies)
	for name, r := range map[string]*rig{"a source's device": left, "a migration's destination": waits} {
		if s := r.ups(); strings.Contains(s, "claim ") {
			t.Errorf("%s: told\n%s\nwant no claim", name, s)
		}
	}
}
