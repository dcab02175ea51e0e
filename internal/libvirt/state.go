package libvirt

import (
	libvirt "github.com/digitalocean/go-libvirt"

	"culvert/internal/hoststate"
)

// event is the last lifecycle event of a domain that says how its life goes
// on: Started, Suspended, Resumed or Stopped. The zero event stands for none;
// its type is libvirt's Defined, which says nothing of a life.
type event struct {
	typ    libvirt.DomainEventType
	detail int32
}

// tells reports whether an event of that type is about a domain's life here.
// Defined, Undefined, Shutdown and the like come between the events that are,
// and must not hide them.
func (e event) tells() bool {
	return e.typ >= libvirt.DomainEventStarted && e.typ <= libvirt.DomainEventStopped
}

// Events that stand for what was known of a domain, when the true ones may
// have been lost.
var (
	lived = event{libvirt.DomainEventResumed, int32(libvirt.DomainEventResumedUnpaused)}
	stood = event{libvirt.DomainEventSuspended, int32(libvirt.DomainEventSuspendedPaused)}
)

// before is the event that stands for what was told of a domain.
func before(told hoststate.NICState) event {
	switch told {
	case hoststate.NICRunning, hoststate.NICLeaving:
		return lived
	case hoststate.NICPaused:
		return stood
	}
	return event{}
}

// state says what a domain's state, as it was read, means for its interfaces.
// The state decides; the last event is asked only where libvirt gives two
// situations the same name: a guest paused by a migration may be on its way in
// or on its way out. Numbers are those of libvirt/libvirt-domain.h; unknown
// ones mean that the guest stands still, which claims nothing and withdraws
// nothing.
func state(s libvirt.DomainState, reason int32, last event) hoststate.NICState {
	switch s {
	case libvirt.DomainRunning, libvirt.DomainBlocked:
		// The reason postcopy-failed too: such a guest runs here, or nowhere.
		return hoststate.NICRunning
	case libvirt.DomainShutoff:
		return hoststate.NICGone
	case libvirt.DomainPaused:
		return paused(libvirt.DomainPausedReason(reason), last)
	}
	return hoststate.NICPaused // shutting down, crashed and kept, suspended by its own power management
}

func paused(reason libvirt.DomainPausedReason, last event) hoststate.NICState {
	switch reason {
	case libvirt.DomainPausedStartingUp:
		return hoststate.NICIncoming
	case libvirt.DomainPausedPostcopy, libvirt.DomainPausedPostcopyFailed:
		// Only a source has these reasons: its guest lives at the destination
		// and can never run here again.
		return hoststate.NICLeaving
	case libvirt.DomainPausedMigration:
	default:
		return hoststate.NICPaused
	}
	switch {
	case !last.tells():
		return hoststate.NICIncoming // the reading that claims nothing
	case last.typ == libvirt.DomainEventStarted:
		// A guest of a saved image is loaded as one that arrives.
		if last.detail == int32(libvirt.DomainEventStartedMigrated) || last.detail == int32(libvirt.DomainEventStartedRestored) {
			return hoststate.NICIncoming
		}
		return hoststate.NICLeaving // it booted here, and now migrates
	case last.typ == libvirt.DomainEventSuspended && last.detail != int32(libvirt.DomainEventSuspendedMigrated) && last.detail != int32(libvirt.DomainEventSuspendedPostcopy):
		return hoststate.NICPaused // arrived or restored, and left standing as asked
	case last.typ == libvirt.DomainEventStopped:
		return hoststate.NICIncoming // of its former life here
	}
	return hoststate.NICLeaving
}
