package agentcore

import (
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// runs is a rig with p1 behind tap-p1, of which its hypervisor has said so.
func runs(t *testing.T) *rig {
	t.Helper()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.nic1("tap-p1", hoststate.NICRunning)
	r.ups()
	return r
}

// misses is one whose agent is told after a cut that h3 has p1.
func misses(t *testing.T) *rig {
	t.Helper()
	r := runs(t)
	r.step(Disconnected{})
	r.connect()
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1")
	r.says("add n1 from 11", "expect 2 "+mac1+" base 11 hypervisor", "inventory ends", "ack 11")
	r.accept(2, "at h3 p1 "+mac1+" 10.0.0.1 pre=h1")
	return r
}

// claimed is one whose agent claims p1 before it is told so.
func claimed(t *testing.T) *rig {
	t.Helper()
	r := runs(t)
	r.step(Disconnected{})
	r.connect()
	r.says("add n1 from 10", "claim 2 "+mac1+" base 10 hypervisor", "inventory ends", "ack 10")
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1")
	r.step(Answered{ID: 2, Binding: overlay.Rev{Epoch: 1, N: 11}, Reason: "a newer binding stands: it is on h3"})
	return r
}

// refused is one whose agent claims p1 when it has come back from h2, and is
// told that h3 has it.
func refused(t *testing.T) *rig {
	t.Helper()
	r := runs(t)
	r.news("n1", "at h2 p1 "+mac1+" 10.0.0.1")
	r.nic1("tap-p1", hoststate.NICPaused)
	r.nic1("tap-p1", hoststate.NICRunning)
	r.says("claim 2 "+mac1+" base 11 hypervisor", "ack 11")
	r.step(Answered{ID: 2, Binding: overlay.Rev{Epoch: 1, N: 12}, Reason: "a newer binding stands: it is on h3"})
	if r.c.NextInquiry() {
		t.Error("the hypervisor is asked before the newer binding is known")
	}
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1")
	return r
}

func (r *rig) answer(nics ...hoststate.NIC) {
	r.step(Guests{Source: "libvirt", Full: true, Answer: true, NICs: nics})
}

func nicOf1(s hoststate.NICState) hoststate.NIC {
	return hoststate.NIC{Device: "tap-p1", MAC: mac(mac1), State: s}
}

// claims reports whether the agent claims p1 now.
func (r *rig) claims() bool { return strings.Contains(r.ups(), "claim") }

// A hypervisor says once that a guest runs. Where the agent learns late of a
// binding elsewhere, its next answer counts against that, and nothing else does.
func TestAHypervisorIsAskedAnew(t *testing.T) {
	t.Parallel()
	running := nicOf1(hoststate.NICRunning)
	for name, begin := range map[string]func(t *testing.T) *rig{"a cut": misses, "a claim after a cut": claimed, "a refusal": refused} {
		for answer, c := range map[string]struct {
			then func(r *rig)
			want bool
		}{
			"it runs here":                    {func(r *rig) { r.answer(running) }, true},
			"it runs here, and is renamed":    {func(r *rig) { x := running; x.VM = "other"; r.answer(x) }, true},
			"it is on its way":                {func(r *rig) { r.answer(nicOf1(hoststate.NICLeaving)) }, false},
			"it is to come":                   {func(r *rig) { r.answer(nicOf1(hoststate.NICIncoming)) }, false},
			"it stands still":                 {func(r *rig) { r.answer(nicOf1(hoststate.NICPaused)) }, false},
			"it is gone":                      {func(r *rig) { r.answer() }, false},
			"another device has it":           {func(r *rig) { x := running; x.Device = "tap-x"; r.answer(x) }, false},
			"it was said before the question": {func(r *rig) { r.step(Guests{Source: "libvirt", Full: true, NICs: []hoststate.NIC{running}}) }, false},
			"it had said that it went":        {func(r *rig) { r.nic1("tap-p1", hoststate.NICLeaving); r.answer(nicOf1(hoststate.NICLeaving)) }, false},
			"it goes on elsewhere meanwhile":  {func(r *rig) { r.news("n1", "at h2 p1 "+mac1+" 10.0.0.1"); r.answer(running) }, false},
		} {
			r := begin(t)
			if r.claims() {
				t.Errorf("%s: the agent claims a guest on an old word", name)
			}
			if !r.c.NextInquiry() || r.c.NextInquiry() {
				t.Fatalf("%s: the hypervisor is not asked once", name)
			}
			c.then(r)
			if got := r.claims(); got != c.want {
				t.Errorf("%s: %s: claimed %t, want %t", name, answer, got, c.want)
			}
		}
	}
}

// What was read before a binding was heard of says nothing against it: after
// a binding that came while it was read the hypervisor is asked once more, at
// most once a second.
func TestAnAnswerIsNewerThanTheBinding(t *testing.T) {
	t.Parallel()
	r := misses(t)
	r.c.NextInquiry()
	r.news("n1", "at h2 p1 "+mac1+" 10.0.0.1")
	r.tick(30 * second) // nothing else is due soon
	r.answer(nicOf1(hoststate.NICRunning))
	if r.c.NextInquiry() {
		t.Error("the hypervisor is asked again at once")
	}
	if wake := r.c.Step(r.now, Tick{}); wake == 0 || wake > r.now+inquireEvery {
		t.Errorf("the agent wakes at %d, now is %d", wake, r.now)
	}
	r.tick(inquireEvery)
	if !r.c.NextInquiry() {
		t.Fatal("the hypervisor is not asked again")
	}
	r.answer(nicOf1(hoststate.NICRunning))
	if got, want := r.ups(), "claim 3 "+mac1+" base 13 hypervisor"; !strings.HasPrefix(got, want) {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
	r.tick(inquireEvery)
	if r.c.NextInquiry() {
		t.Error("the hypervisor is asked though all is known")
	}
}

// A guest that is heard of elsewhere in time has moved, whatever was said of it
// here: two VMs of one MAC would else take it from each other for ever. Nor is
// a hypervisor asked of a guest that it does not say to run.
func TestAHypervisorIsAskedForAReason(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]func(r *rig){
		"it moves": func(r *rig) { r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1") },
		"it moves, and a cut follows": func(r *rig) {
			r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1")
			r.step(Disconnected{})
			r.connect()
			r.ups()
			r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2")
		},
		"its hypervisor stopped it": func(r *rig) {
			r.nic1("tap-p1", hoststate.NICLeaving)
			r.step(Disconnected{})
			r.connect()
			r.ups()
			r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1")
		},
		"its binding came back": func(r *rig) {
			r.step(Disconnected{})
			r.connect()
			r.ups()
			r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1", "-at h3 p1 "+mac1+" 10.0.0.1")
		},
		"its claim was refused for another reason": func(r *rig) {
			r.step(Disconnected{})
			r.connect()
			r.ups()
			r.step(Answered{ID: 2, Reason: "no such port is declared"})
			r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2")
		},
	} {
		r := runs(t)
		c(r)
		if r.tick(10 * second); r.c.NextInquiry() {
			t.Errorf("%s: the hypervisor is asked", name)
		}
	}
}
