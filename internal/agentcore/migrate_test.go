package agentcore

import (
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// expecting is a rig whose host has the device of p2, which runs on h2.
func expecting(t *testing.T) *rig {
	t.Helper()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.did()
	r.ups()
	r.plug("n1", "p2")
	return r
}

// nic1 is a hypervisor's word on a guest with the MAC of p1.
func (r *rig) nic1(device string, s hoststate.NICState) {
	r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: device, MAC: mac(mac1), State: s}}})
}

// about is a hypervisor's word on a guest of which it names the device alone.
func (r *rig) about(device string, s hoststate.NICState) {
	r.step(Guests{Source: "report", NICs: []hoststate.NIC{{Device: device, State: s}}})
}

func (r *rig) nic(device string, s hoststate.NICState) {
	r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: device, MAC: mac(mac2), State: s}}})
}

func TestADeviceAloneMovesNothing(t *testing.T) {
	t.Parallel()
	r := expecting(t)
	r.says("expect 2 " + mac2 + " base 9 device")
	if got := r.did(); strings.Contains(got, "member if5") || strings.Contains(got, "master") {
		t.Errorf("operations are\n%s\nwant the guest to be reached where it runs, and its device to pass nothing", got)
	}
	r.step(Answered{ID: 2, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 11}})
	r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2 pre=h1")
	r.wants(
		"set port if5 mac "+mac2+" open,watch",
		"set member if5",
		"set relayed 10 "+mac2+" via 192.0.2.202",
	)
	r.says("ack 11")
	// The device goes again: the migration was given up.
	r.unplug("p2")
	r.says("unexpect 3 " + mac2 + " base 11 none")
}

func TestTheFirstSignOfLifeMovesIt(t *testing.T) {
	t.Parallel()
	for name, sign := range map[string]func(r *rig){
		"frame":      func(r *rig) { r.step(Heard{Port: 5, Fact: packet.Fact{Src: mac(mac2)}, At: r.now}) },
		"hypervisor": func(r *rig) { r.nic("tap-p2", hoststate.NICRunning) },
	} {
		r := expecting(t)
		r.ups()
		r.step(Answered{ID: 2, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 11}})
		r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2 pre=h1")
		r.did()
		r.ups()
		r.now++
		sign(r)
		got := r.did()
		for _, want := range []string{"set master 10 " + mac2 + " dev if5", "set port if5 mac " + mac2 + " open", "del neigh 10 10.0.0.2", "del fdb 10 " + mac2} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: operations are\n%s\nwant %q among them", name, got, want)
			}
		}
		if got := r.ups(); !strings.HasPrefix(got, "claim 3 "+mac2+" base 11 ") {
			t.Errorf("%s: told\n%s\nwant a claim", name, got)
		}
		// The manager agrees, and the source relays for a while.
		r.accept(3, "at h1 p2 "+mac2+" 10.0.0.2,fd00::2 from=h2")
		if s := r.dump(); !strings.Contains(s, "relayed 10 "+mac2+" via 192.0.2.202") || !strings.Contains(s, "source 10 "+mac2+" via 192.0.2.202") {
			t.Errorf("%s: the kernel holds\n%s\nwant what the source relays, and sent before, to be taken", name, s)
		}
		r.tick(relayTime + 1)
		if s := r.dump(); strings.Contains(s, "relayed") || strings.Contains(s, mac2+" via") {
			t.Errorf("%s: the kernel holds\n%s\nwant the relay to have ended", name, s)
		}
	}
}

func TestOldSignsOfLifeMoveNothing(t *testing.T) {
	t.Parallel()
	r := expecting(t)
	r.step(Answered{ID: 2, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 11}})
	r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2 pre=h1")
	r.ups()
	before := r.dump()
	r.step(Heard{Port: 5, Fact: packet.Fact{Src: mac(mac2)}, At: r.now - 1})  // before the binding was known
	r.step(Heard{Port: 5, Fact: packet.Fact{Src: mac(mac3)}, At: r.now + 1})  // another MAC
	r.step(Heard{Port: 99, Fact: packet.Fact{Src: mac(mac2)}, At: r.now + 1}) // no port of ours
	r.step(Heard{Port: 3, Fact: packet.Fact{Src: mac(mac2)}, At: r.now + 1})  // another port's device
	r.nic("tap-p2", hoststate.NICIncoming)                                    // not here yet
	r.nic("tap-p2", hoststate.NICPaused)                                      // nor now
	if r.dump() != before {
		t.Errorf("the kernel holds\n%s\nand held\n%s", r.dump(), before)
	}
	r.says()
}

func TestAStoppedSourceHandsOver(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")
	// Its frames are taken from there from now on; else nothing changes here.
	r.wants("set source 10 " + mac1 + " via 192.0.2.203")
	r.ups()
	r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "tap-p1", MAC: mac(mac1), State: hoststate.NICLeaving}}})
	r.wants(
		"set port if3 mac "+mac1+" open,watch", // it may go on here, after all
		"set fdb 10 "+mac1+" dst 192.0.2.203 static,extern_learn",
		"set master 10 "+mac1+" dev cvx10 static,extern_learn",
		"set repl 10 dst 192.0.2.203",
		"set neigh 10 10.0.0.1 lladdr "+mac1+" permanent,culvert",
		"set relay 10 "+mac1,
	)
	r.says("leave 2 " + mac1 + " base 11 none")
	// It failed over there, and runs here again before anybody heard of it.
	r.now++
	r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "tap-p1", MAC: mac(mac1), State: hoststate.NICRunning}}})
	if s := r.dump(); strings.Contains(s, "relay 10") || !strings.Contains(s, "master 10 "+mac1+" dev tap-p1") {
		t.Errorf("the kernel holds\n%s\nwant the guest here again", s)
	}
}

func TestTheSourceRelays(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1 from=h1")
	if s := r.dump(); !strings.Contains(s, "relay 10 "+mac1) || strings.Contains(s, "member tap-p1") {
		t.Errorf("the kernel holds\n%s\nwant a relay, and the device to pass nothing", s)
	}
	r.ups()
	r.tick(relayTime + 1)
	if s := r.dump(); strings.Contains(s, "relay 10") {
		t.Errorf("the kernel holds\n%s\nwant the relay to have ended", s)
	}
	if s := r.ups(); strings.Contains(s, "expect") {
		t.Errorf("a device that a migration left behind is told as expected:\n%s", s)
	}
}

func TestAThirdHostTakesFramesFromBothEnds(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.did()
	r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2 pre=h3")
	r.wants("set source 10 " + mac2 + " via 192.0.2.203")
	r.news("n1", "at h3 p2 "+mac2+" 10.0.0.2,fd00::2 from=h2")
	if got := r.did(); strings.Contains(got, "del source") || strings.Contains(got, "relay") {
		t.Errorf("operations are\n%s\nwant what the source sent to be taken still", got)
	}
	r.tick(relayTime + 1)
	r.wants("set mark 9", "del source 10 "+mac2+" via 192.0.2.202")
}

// A guest may run before its own pre-association is told: that says nothing
// against it.
func TestASignOfLifeOutlivesItsPreAssociation(t *testing.T) {
	t.Parallel()
	r := expecting(t)
	r.ups()
	r.now++
	r.nic("tap-p2", hoststate.NICRunning)
	r.did()
	r.says() // one at a time
	r.step(Answered{ID: 2, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 11}})
	r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2 pre=h1")
	if s := r.dump(); !strings.Contains(s, "master 10 "+mac2+" dev tap-p2") || !strings.Contains(s, "member tap-p2") {
		t.Errorf("the kernel holds\n%s\nwant the guest here still", s)
	}
	r.says("claim 3 "+mac2+" base 11 hypervisor", "ack 11")
}

// A migration that fails after the source has stopped: what comes of the
// source's withdrawal is older than the guest's return, whatever its revision.
func TestAGuestThatCameBackIsClaimedBack(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")
	r.did()
	r.ups()
	r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "tap-p1", MAC: mac(mac1), State: hoststate.NICLeaving}}})
	r.did()
	r.says("leave 2 " + mac1 + " base 11 none")
	r.now++
	r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "tap-p1", MAC: mac(mac1), State: hoststate.NICRunning}}})
	r.did()
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1 from=h1")
	if s := r.dump(); strings.Contains(s, "relay 10") || !strings.Contains(s, "master 10 "+mac1+" dev tap-p1") {
		t.Errorf("the kernel holds\n%s\nwant the guest here", s)
	}
	r.says("claim 3 "+mac1+" base 12 hypervisor", "ack 12")
}

// Without a manager the guest goes to h3, which expects it, and comes back: its
// device alone does not end the relay, and the first sign of life does.
func TestAGuestThatIsToComeBackIsReachedWhereItWent(t *testing.T) {
	t.Parallel()
	for name, sign := range map[string]func(r *rig, device int32){
		"hypervisor": func(r *rig, _ int32) { r.about("tap-p1", hoststate.NICRunning) },
		"frame":      func(r *rig, device int32) { r.step(Heard{Port: device, Fact: packet.Fact{Src: mac(mac1)}, At: r.now}) },
	} {
		r := serving(t)
		r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
		r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")
		r.about("tap-p1", hoststate.NICRunning)
		r.step(Disconnected{})
		r.about("tap-p1", hoststate.NICLeaving)
		r.unplug("p1")
		gone := r.dump()
		device := r.plug("n1", "p1") // of the same name, of which the hypervisor has said that the guest left
		r.about("tap-p1", hoststate.NICIncoming)
		wants := func(when string) {
			t.Helper()
			s := r.dump()
			for _, want := range []string{"relay 10 " + mac1, "fdb 10 " + mac1 + " dst 192.0.2.203", "neigh 10 10.0.0.1", "port tap-p1 mac " + mac1 + " open,watch"} {
				if !strings.Contains(s, want) || strings.Contains(s, "dev tap-p1") {
					t.Errorf("%s: %s: the kernel holds\n%s\nwant %q as before the device was there:\n%s", name, when, s, want, gone)
				}
			}
			if got, _ := r.c.GuestState("tap-p1"); got != "expected" {
				t.Errorf("%s: %s: the guest's state is %s", name, when, got)
			}
		}
		wants("its device is there")
		r.step(Heard{Port: device, Fact: packet.Fact{Src: mac(mac1)}, At: r.now}) // older than the hypervisor's word
		wants("an old frame was heard")

		// A manager that comes back now is told that the binding stands.
		r.connect()
		r.says("add n1 from 11", "claim 2 "+mac1+" base 11 device", "inventory ends", "ack 11")
		r.step(Answered{ID: 2, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 11}})
		wants("a manager was there")
		r.step(Disconnected{})

		r.now++
		sign(r, device)
		if s := r.dump(); strings.Contains(s, "relay 10") || !strings.Contains(s, "master 10 "+mac1+" dev tap-p1") || strings.Contains(s, "watch") {
			t.Errorf("%s: the kernel holds\n%s\nwant the guest here", name, s)
		}
	}
}

// The last guest of a network goes where it is expected, and no manager says so
// for longer than a network without ports is kept.
func TestAGuestIsSentAfterUntilAManagerSaysWhereItIs(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")
	r.ups()
	r.step(Disconnected{})
	r.unplug("p1")
	for range 10 {
		r.tick(10 * second)
	}
	if s := r.dump(); !strings.Contains(s, "relay 10 "+mac1) || !strings.Contains(s, "fdb 10 "+mac1+" dst 192.0.2.203") {
		t.Errorf("the kernel holds\n%s\nwant a relay", s)
	}
	r.connect()
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1 from=h1")
	for range 3 {
		r.tick(6 * second)
	}
	if s := r.dump(); strings.Contains(s, "cvx10") {
		t.Errorf("the kernel holds\n%s\nwant no VXLAN device any more", s)
	}
}

// A device that only the entry of its guest names is still known after the
// agent's restart, though its guest is expected elsewhere by then.
func TestAGuestThatIsExpectedElsewhereIsKnownAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10")
	r.connect()
	device := r.m.Plug("tap-p1", 10, "")
	r.settle()
	r.ups()
	log := []string{"port p1 " + mac1, "port p2 " + mac2, "at h2 p2 " + mac2 + " 10.0.0.2"}
	r.log("n1", log...)
	r.step(Heard{Port: device, Fact: packet.Fact{Src: mac(mac1)}, At: r.now})
	r.says("claim 1 "+mac1+" base 8 frame", "inventory ends", "ack 8")
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")
	before := r.dump()
	r.did()
	for _, fails := range []bool{false, true} { // the look at what the entry is, at first
		r.restart()
		r.rev = 0
		r.fleet("n1 10")
		r.m.FailRead = func(sc hoststate.Scope) hoststate.Class {
			if fails && sc.VNI != 0 {
				return hoststate.ClassTransient
			}
			return hoststate.ClassOK
		}
		r.log("n1", append(log, "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")...)
		fails = false
		r.tick(second)
		if r.wants(); r.dump() != before {
			t.Errorf("the kernel holds\n%s\nand held\n%s", r.dump(), before)
		}
	}
}

// A guest whose migration failed while its hypervisor forgets to say so speaks
// for itself.
func TestAFrameAfterItsStopSaysThatAGuestIsHere(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")
	r.about("tap-p1", hoststate.NICLeaving)
	heard := func(at Time) {
		r.step(Heard{Port: 3, Fact: packet.Fact{Src: mac(mac1)}, At: at})
	}
	heard(r.now)
	if s := r.dump(); !strings.Contains(s, "relay 10 "+mac1) {
		t.Errorf("the kernel holds\n%s\nwant a frame from before the stop to say nothing", s)
	}
	r.now++
	heard(r.now)
	if s := r.dump(); strings.Contains(s, "relay 10") || !strings.Contains(s, "master 10 "+mac1+" dev tap-p1") {
		t.Errorf("the kernel holds\n%s\nwant the guest here", s)
	}
	// What it says of a next migration is new again.
	r.about("tap-p1", hoststate.NICRunning)
	r.about("tap-p1", hoststate.NICLeaving)
	if s := r.dump(); !strings.Contains(s, "relay 10 "+mac1) {
		t.Errorf("the kernel holds\n%s\nwant a relay", s)
	}
}

// Where it is expected back nothing is relayed: it would turn in a circle with
// the host that sends it here.
func TestAHostThatExpectsItBackDoesNotRelay(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1 from=h1")
	r.did()
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1 from=h1 pre=h1")
	if s := r.dump(); strings.Contains(s, "relay 10") || !strings.Contains(s, "relayed 10 "+mac1+" via 192.0.2.203") {
		t.Errorf("the kernel holds\n%s\nwant no relay any more", s)
	}
}

// A device that its hypervisor has forgotten has no guest, whatever is bound to
// this host: a VM that restarts, or comes back, leaves such devices behind.
func TestADeviceLeftBehindHasNoGuest(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.nic1("tap-p1", hoststate.NICRunning)
	r.says("ack 10")
	second := r.m.Plug("tap-p1b", 10, hoststate.PortAlias("default", "p1"))
	r.settle()
	r.nic1("tap-p1b", hoststate.NICRunning)
	r.nic1("tap-p1", hoststate.NICGone)
	r.did()
	r.says("claim 2 " + mac1 + " base 10 hypervisor") // by the other device
	r.step(Answered{ID: 2, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 10}})
	r.m.Unplug("tap-p1b")
	r.settle()
	if s := r.dump(); strings.Contains(s, "member tap-p1") || strings.Contains(s, "master 10 "+mac1+" dev tap") {
		t.Errorf("the kernel holds\n%s\nwant the device that is left to pass nothing", s)
	}
	r.says("leave 3 " + mac1 + " base 10 none")
	r.news("n1", "-at h1 p1 "+mac1+" 10.0.0.1")
	r.says("ack 11")
	// Old frames are no news. A new one is: the hypervisor was wrong.
	if l, ok := r.m.Link("tap-p1"); !ok || l.Index == second {
		t.Fatal("the first device is not there")
	} else {
		r.step(Heard{Port: l.Index, Fact: packet.Fact{Src: mac(mac1)}, At: r.now - 1})
		r.says()
		r.step(Heard{Port: l.Index, Fact: packet.Fact{Src: mac(mac1)}, At: r.now + 1})
	}
	r.says("claim 4 " + mac1 + " base 11 device")
}

// doubled is a rig whose guest p1 went to h3 and left its device, and on which
// another guest of its MAC came to run, as if5, and went.
func doubled(t *testing.T) *rig {
	t.Helper()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.nic1("tap-p1", hoststate.NICRunning)
	r.nic1("tap-p1", hoststate.NICLeaving)
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1 from=h1")
	r.m.Plug("tap-p1b", 10, hoststate.PortAlias("default", "p1"))
	r.settle()
	r.nic1("tap-p1b", hoststate.NICRunning)
	r.says("claim 2 "+mac1+" base 11 hypervisor", "ack 11")
	r.accept(2, "at h1 p1 "+mac1+" 10.0.0.1 from=h3")
	r.ups()
	r.m.Unplug("tap-p1b")
	r.settle()
	return r
}

// What is bound here by one device is not kept by another that was left behind:
// the guest of that may run elsewhere, silent.
func TestADeviceLeftBehindKeepsNoBinding(t *testing.T) {
	t.Parallel()
	r := doubled(t)
	if s := r.dump(); strings.Contains(s, "member tap-p1") || strings.Contains(s, "dev tap-p1") {
		t.Errorf("the kernel holds\n%s\nwant the device that is left to pass nothing", s)
	}
	r.says("leave 3 " + mac1 + " base 12 none")
	// Nobody has it: a device is evidence enough, and no more than a device.
	r.news("n1", "-at h1 p1 "+mac1+" 10.0.0.1")
	r.says("claim 4 "+mac1+" base 13 device", "ack 13")
}

// It does as soon as its guest is there by any sign.
func TestADeviceLeftBehindThatLivesKeepsItsBinding(t *testing.T) {
	t.Parallel()
	for name, sign := range map[string]func(r *rig){
		"hypervisor": func(r *rig) { r.nic1("tap-p1", hoststate.NICRunning) },
		"frame": func(r *rig) {
			l, _ := r.m.Link("tap-p1")
			r.step(Heard{Port: l.Index, Fact: packet.Fact{Src: mac(mac1)}, At: r.now})
		},
		"returning": func(r *rig) { r.nic1("tap-p1", hoststate.NICIncoming) },
	} {
		r := doubled(t)
		r.says("leave 3 " + mac1 + " base 12 none")
		r.now++
		sign(r)
		if s := r.dump(); !strings.Contains(s, "master 10 "+mac1+" dev tap-p1") {
			t.Errorf("%s: the kernel holds\n%s\nwant the guest here", name, s)
		}
		if got := r.ups(); !strings.HasPrefix(got, "claim 4 "+mac1+" base 12 ") {
			t.Errorf("%s: told %q, want it claimed", name, got)
		}
	}
}

// Whose hypervisor says that it is gone need not wait for the device to go.
func TestAGuestThatIsGoneIsWithdrawn(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.ups()
	gone := Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "tap-p1", MAC: mac(mac1), State: hoststate.NICGone}}}
	r.step(gone)
	r.did()
	r.says("leave 2 " + mac1 + " base 10 none")
	r.step(gone)
	r.says()
	r.news("n1", "-at h1 p1 "+mac1+" 10.0.0.1")
	r.says("ack 11")
	// Its device is used again.
	r.m.SetUp("tap-p1", false)
	r.settle()
	r.m.SetUp("tap-p1", true)
	r.settle()
	r.says("claim 3 " + mac1 + " base 11 device")
}

// Where nobody has an endpoint, a device is enough to claim it: also one that a
// migration left behind, and it may be faster than the host on which the guest
// runs. The hypervisor's word there says more than such a device.
func TestARunningGuestIsClaimedBackFromADevice(t *testing.T) {
	t.Parallel()
	for state, want := range map[hoststate.NICState]string{
		hoststate.NICRunning: "claim 2 " + mac1 + " base 10 hypervisor\nack 10",
		hoststate.NICPaused:  "ack 10",
	} {
		r := serving(t) // and has claimed it
		r.step(Guests{Source: "libvirt", NICs: []hoststate.NIC{{Device: "tap-p1", MAC: mac(mac1), State: state}}})
		r.ups()
		r.step(Answered{ID: 1, Binding: overlay.Rev{Epoch: 1, N: 10}, Reason: "a newer binding stands"})
		r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1")
		r.did()
		r.says(want)
	}
}
