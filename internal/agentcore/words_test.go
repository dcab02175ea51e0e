package agentcore

import (
	"context"
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// A hypervisor's word is about one device. Another that has its name later is
// another guest's, or runs where no hypervisor is asked: the word, which may
// have outlived its device because nobody said that it went, moves nothing. A
// word that may be about the new device holds, whatever came first.
func TestAWordIsAboutOneDevice(t *testing.T) {
	t.Parallel()
	const device = "tap-p2"
	running := func(r *rig) Guests {
		return Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: device, MAC: mac(mac2), State: hoststate.NICRunning}}}
	}
	plug := func(r *rig) { r.m.Plug(device, 10, hoststate.PortAlias("default", "p2")) }
	for name, test := range map[string]struct {
		then func(r *rig) // the word was given, the device stands
		want string
	}{
		"the device goes, and another comes": {func(r *rig) {
			r.unplug("p2")
			r.tick(second)
			plug(r)
		}, "expect"},
		"between two looks": {func(r *rig) {
			r.m.Unplug(device)
			plug(r)
		}, "expect"},
		"its hypervisor is faster than the look": {func(r *rig) {
			r.m.Unplug(device)
			r.c.Step(r.now, running(r))
			plug(r)
		}, "claim"},
		"its hypervisor is faster than the device": {func(r *rig) {
			r.unplug("p2")
			r.step(running(r))
			r.tick(second)
			plug(r)
		}, "claim"},
		"the word comes while a look is under way": {func(r *rig) {
			r.c.Step(r.now, Bell{hoststate.Doorbell{Links: true}})
			sc, ok := r.c.NextRead()
			if !ok || !sc.Links {
				t.Fatalf("read %+v, want the links", sc)
			}
			st, _ := r.m.Read(context.Background(), sc)
			r.m.Unplug(device)
			plug(r)
			r.c.Step(r.now, running(r))
			r.c.Step(r.now, Read{Scope: sc, State: st, Cost: 1000})
		}, "claim"},
		"it was said of a device that no look has seen since": {func(r *rig) {
			r.step(running(r))
			r.tick(wordWait)
			r.unplug("p2")
			plug(r)
		}, "expect"},
	} {
		r := serving(t)
		r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
		r.step(running(r)) // before there is a device
		r.tick(second)
		r.ups()
		r.plug("n1", "p2")
		if got := r.ups(); !strings.HasPrefix(got, "claim 2 "+mac2) {
			t.Errorf("%s: told\n%s\nwant the guest to be claimed by a word that was there first", name, got)
		}
		r.news("n1", "at h3 p2 "+mac2+" 10.0.0.2") // it went on
		test.then(r)
		r.settle()
		var got []string
		for line := range strings.Lines(r.ups()) {
			if verb, _, _ := strings.Cut(line, " "); verb == "claim" || verb == "expect" {
				got = append(got, verb)
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: told %q, want %q", name, got, test.want)
		}
	}
}

// A device that was no port of ours for a while is the same one.
func TestAWordStaysWithADeviceThatWasAway(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "tap-p1", MAC: mac(mac1), State: hoststate.NICRunning}}})
	r.tick(wordWait)
	r.ups()
	r.m.Apply(context.Background(), []hoststate.Op{{Kind: hoststate.OpDetach, Name: "tap-p1", Dev: hoststate.Device{VNI: 10}}})
	r.settle()
	r.says("leave 2 " + mac1 + " base 10 none")
	r.news("n1", "-at h1 p1 "+mac1+" 10.0.0.1")
	r.tick(second)
	r.ups()
	r.m.Join("tap-p1", overlay.VNI(10).Bridge())
	r.settle()
	if got, want := r.ups(), "claim 3 "+mac1+" base 11 hypervisor"; !strings.HasPrefix(got, want) {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
}

// What is said of a macvtap is said of the pair that it stands on, and goes
// with it.
func TestAWordAboutAMacvtapIsAboutItsPair(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	pair := func() { r.m.Plug("p0", 10, ""); r.m.Pair("p0", "m0"); r.settle() }
	pair()
	r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "macvtap0", Over: "m0", MAC: mac(mac2), State: hoststate.NICRunning}}})
	r.tick(wordWait)
	if got, want := r.ups(), "claim 2 "+mac2; !strings.Contains(got, want) {
		t.Fatalf("told\n%s\nwant\n%s", got, want)
	}
	r.news("n1", "at h3 p2 "+mac2+" 10.0.0.2")
	r.m.Unplug("p0")
	r.settle()
	pair()
	if got := r.ups(); strings.Contains(got, "claim") {
		t.Errorf("told\n%s\nwant no claim", got)
	}
}
