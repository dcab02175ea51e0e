package agent

import (
	"context"

	"culvert/internal/hoststate"
)

// Guests takes what a hypervisor says of its guests' interfaces: all of them
// if full is set, else those that have changed. It returns when the loop has
// it, or ctx has ended.
func (a *Agent) Guests(ctx context.Context, full bool, nics []hoststate.NIC) {
	a.onLoop(ctx, func() { a.guests(full, nics) })
}

// guests is on the loop.
func (a *Agent) guests(full bool, nics []hoststate.NIC) {
	if full {
		a.log.Info("the hypervisor told of all guests", "interfaces", len(nics))
	}
	for _, n := range nics {
		a.log.Info("guest", "vm", n.VM, "state", n.State.String(), "device", n.Device, "mac", n.MAC.String(), "bridge", n.Bridge, "tenant", n.Tenant, "port", n.Port)
	}
}
