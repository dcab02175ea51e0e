package agentcore

import (
	"strings"
	"testing"

	"culvert/internal/hoststate"
)

// What a hypervisor says of a macvtap is said of the device on the other end of
// the pair that it stands on, whichever of them comes first; of several on one
// pair nothing is.
func TestAMacvtapIsTheOtherEndOfItsPair(t *testing.T) {
	t.Parallel()
	nic := func(device, m, over string, s hoststate.NICState) hoststate.NIC {
		return hoststate.NIC{Device: device, MAC: mac(m), Over: over, Mode: "private", State: s}
	}
	for _, first := range []bool{true, false} {
		r := newRig(t)
		r.fleet("n1 10")
		r.connect()
		r.log("n1", "port p1 "+mac1+" ip=10.0.0.1", "port p2 "+mac2+" ip=10.0.0.2")
		r.ups()
		told := func(want string) {
			t.Helper()
			if got := r.ups(); !strings.HasPrefix(strings.TrimPrefix(got, "add n1 from 7\n"), want) {
				t.Errorf("first %t: told\n%s\nwant\n%s", first, got, want)
			}
		}
		says := func(n ...hoststate.NIC) { r.step(Guests{Source: "libvirt", NICs: n}) }
		if first {
			says(nic("macvtap0", mac1, "m0", hoststate.NICRunning))
		}
		r.m.Plug("p0", 10, "")
		r.m.Pair("p0", "m0")
		r.settle()
		if !first {
			if got := r.ups(); strings.Contains(got, "claim") {
				t.Errorf("a device that nothing names: told\n%s", got)
			}
			says(nic("macvtap7", mac2, "m7", hoststate.NICRunning)) // of another pair
			r.says()
			says(nic("macvtap0", mac1, "m0", hoststate.NICRunning))
		}
		told("claim 1 " + mac1 + " base 7 hypervisor")
		r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
		r.ups()
		says(nic("macvtap0", mac1, "m0", hoststate.NICGone))
		r.did()
		told("leave 3 " + mac1)
		r.news("n1", "-at h1 p1 "+mac1+" 10.0.0.1")
		r.ups()
		// Another guest has the pair; then a second comes to it, and goes.
		says(nic("macvtap1", mac2, "m0", hoststate.NICRunning))
		r.did()
		told("claim 4 " + mac2)
		r.accept(4, "at h1 p2 "+mac2+" 10.0.0.2")
		r.ups()
		says(nic("macvtap2", mac1, "m0", hoststate.NICRunning))
		says(nic("macvtap2", mac1, "m0", hoststate.NICGone))
		if n := r.c.nets[netUID("n1")]; n.guests[mac(mac2)] == nil || n.guests[mac(mac2)].tap.empty {
			t.Error("a guest that stays was taken for gone when another on its pair went")
		}
		// A list of all has none of them any more.
		r.step(Guests{Source: "libvirt", Full: true})
		if x := r.c.nicOf("p0", "m0"); x.State != 0 {
			t.Errorf("after a list without it: %+v", x)
		}
	}
}
