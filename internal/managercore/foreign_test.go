package managercore

import (
	"net/netip"
	"testing"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// abroad is network with foreign tunnel end points.
func abroad(d overlay.Doc, vteps ...string) overlay.Doc {
	for _, a := range vteps {
		d.Network.Foreign = append(d.Network.Foreign, netip.MustParseAddr(a))
	}
	return d
}

// TestForeignVTEPsAreAdmitted: none of them is a host's, and hosts can send to
// them as far as it is known how hosts send.
func TestForeignVTEPsAreAdmitted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.ask(Asked{AddHost: &AddHost{Name: "h9", MachineID: "m"}}) // has not said where it is
	blue := network("blue", "10.1.0.0/24")
	r.must(ModeCreate, abroad(blue, "198.51.100.7", "2001:db8::7"))
	r.attach("h1") // 192.0.2.1
	r.refused(api.CodeAddressInUse, r.put(ModeCreate, abroad(network("red"), "192.0.2.1")))
	r.refused(api.CodeAddressInUse, r.put(ModeSet, abroad(blue, "192.0.2.1", "198.51.100.7")))
	r.refused(api.CodeOutside, r.put(ModeSet, abroad(blue, "198.51.100.7", "2001:db8::7")))
	for _, want := range []string{"changed", "unchanged"} {
		if x := r.must(ModeApply, abroad(blue, "198.51.100.7")); x.Changes[0].Action != want {
			t.Errorf("%s, want %s", x.Changes[0].Action, want)
		}
	}
	r.load() // and what the store says gives the same
	x := r.must(ModeApply, blue)
	if n := x.Changes[0].Rec.(*overlay.Network); len(n.Foreign) != 0 || x.Changes[0].Action != "changed" {
		t.Errorf("%s: %v, want none", x.Changes[0].Action, n.Foreign)
	}
}
