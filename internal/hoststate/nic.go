package hoststate

import "culvert/internal/overlay"

// NICState is what a hypervisor says of a guest behind a device.
type NICState uint8

// States of a guest. Only NICRunning says that it lives here: a device that is
// there, or a domain that is started and paused for an incoming migration, may
// belong to a guest that still runs elsewhere.
const (
	// NICIncoming: the guest is expected; its device is or will be there.
	NICIncoming NICState = 1
	// NICRunning: the guest runs here.
	NICRunning NICState = 2
	// NICLeaving: it was stopped here so that it goes on elsewhere. It comes
	// back as NICRunning if that fails.
	NICLeaving NICState = 3
	// NICPaused: it stands still here and belongs here.
	NICPaused NICState = 4
	// NICGone: it is not here any more.
	NICGone NICState = 5
)

// String is the state's word in logs.
func (s NICState) String() string {
	names := [...]string{"none", "incoming", "running", "leaving", "paused", "gone"}
	if int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// ParseNICState reads what String wrote. ok is false for anything else.
func ParseNICState(s string) (state NICState, ok bool) {
	for state = NICIncoming; state <= NICGone; state++ {
		if state.String() == s {
			return state, true
		}
	}
	return 0, false
}

// NIC is what a hypervisor says of one network interface of a guest.
type NIC struct {
	Device string // name of the tap or macvtap on this host; empty while there is none
	MAC    overlay.MAC
	Bridge string // that the device is to be a port of, as the hypervisor resolved it; may be empty
	// Over is the device that a macvtap stands on, and Mode its mode (bridge,
	// vepa, private, passthrough); empty for other devices.
	Over, Mode string
	// Network is a name of the hypervisor's own for the network (libvirt's
	// network, with its portgroup as NETWORK/PORTGROUP); may be empty.
	Network string
	Tenant  string // named by the user's metadata or alias; empty: the network's
	Port    string // ditto; empty: the declared port with that MAC
	VM      string // the guest's name
	// Unplugged: the hypervisor shows the guest no carrier. The device is up on
	// the host all the same.
	Unplugged bool
	State     NICState
}
