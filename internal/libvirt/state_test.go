package libvirt

import (
	"testing"

	libvirt "github.com/digitalocean/go-libvirt"

	"culvert/internal/hoststate"
)

// ev makes an event of any of the detail types.
func ev[D ~int32](t libvirt.DomainEventType, d D) event { return event{t, int32(d)} }

var (
	booted     = ev(libvirt.DomainEventStarted, libvirt.DomainEventStartedBooted)
	arriving   = ev(libvirt.DomainEventStarted, libvirt.DomainEventStartedMigrated)
	restoring  = ev(libvirt.DomainEventStarted, libvirt.DomainEventStartedRestored)
	unpaused   = ev(libvirt.DomainEventResumed, libvirt.DomainEventResumedUnpaused)
	arrived    = ev(libvirt.DomainEventResumed, libvirt.DomainEventResumedMigrated)
	postcopied = ev(libvirt.DomainEventResumed, libvirt.DomainEventResumedPostcopy)
	suspended  = ev(libvirt.DomainEventSuspended, libvirt.DomainEventSuspendedPaused)
	departing  = ev(libvirt.DomainEventSuspended, libvirt.DomainEventSuspendedMigrated)
	postcopy   = ev(libvirt.DomainEventSuspended, libvirt.DomainEventSuspendedPostcopy)
	restored   = ev(libvirt.DomainEventSuspended, libvirt.DomainEventSuspendedRestored)
	stopped    = ev(libvirt.DomainEventStopped, libvirt.DomainEventStoppedMigrated)
	none       event
)

// TestState has a row for each ending that libvirt has; the comment names it.
func TestState(t *testing.T) {
	const (
		incoming, running, leaving, paused, gone = hoststate.NICIncoming, hoststate.NICRunning, hoststate.NICLeaving, hoststate.NICPaused, hoststate.NICGone
	)
	tests := []struct {
		name   string
		state  libvirt.DomainState
		reason int32
		last   event
		want   hoststate.NICState
	}{
		{"plain start, before its processor runs", libvirt.DomainPaused, int32(libvirt.DomainPausedStartingUp), none, incoming},
		{"plain start: resumed comes before started", libvirt.DomainRunning, int32(libvirt.DomainRunningBooted), unpaused, running},
		{"started", libvirt.DomainRunning, int32(libvirt.DomainRunningBooted), booted, running},
		{"start --paused", libvirt.DomainPaused, int32(libvirt.DomainPausedUser), suspended, paused},
		{"suspend", libvirt.DomainPaused, int32(libvirt.DomainPausedUser), suspended, paused},
		{"suspend, its event lost", libvirt.DomainPaused, int32(libvirt.DomainPausedUser), none, paused},
		{"resume", libvirt.DomainRunning, int32(libvirt.DomainRunningUnpaused), unpaused, running},
		{"destination: device and domain are there", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), arriving, incoming},
		{"destination, before its event or after a reconnect", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), none, incoming},
		{"destination of a guest that was here before", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), stopped, incoming},
		{"destination: the guest runs", libvirt.DomainRunning, int32(libvirt.DomainRunningMigrated), arrived, running},
		{"destination: it runs, and only the old event was heard", libvirt.DomainRunning, int32(libvirt.DomainRunningMigrated), arriving, running},
		{"destination: --suspend", libvirt.DomainPaused, int32(libvirt.DomainPausedUser), suspended, paused},
		{"destination: --suspend, by the reason of its way in", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), suspended, paused},
		{"destination: post-copy", libvirt.DomainRunning, int32(libvirt.DomainRunningPostcopy), postcopied, running},
		{"destination: post-copy lost its source", libvirt.DomainRunning, int32(libvirt.DomainRunningPostcopyFailed), postcopied, running},
		{"destination: failed", libvirt.DomainShutoff, int32(libvirt.DomainShutoffFailed), stopped, gone},
		{"source: memory is copied", libvirt.DomainRunning, int32(libvirt.DomainRunningBooted), booted, running},
		{"source: stopped for the switch", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), departing, leaving},
		{"source: stopped, its event on the way", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), booted, leaving},
		{"source that was a destination", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), arrived, leaving},
		{"source: stopped, known to have lived here", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), lived, leaving},
		{"source: post-copy", libvirt.DomainPaused, int32(libvirt.DomainPausedPostcopy), postcopy, leaving},
		{"source: post-copy, after a reconnect", libvirt.DomainPaused, int32(libvirt.DomainPausedPostcopy), none, leaving},
		{"source: post-copy failed", libvirt.DomainPaused, int32(libvirt.DomainPausedPostcopyFailed), postcopy, leaving},
		{"source: done", libvirt.DomainShutoff, int32(libvirt.DomainShutoffMigrated), stopped, gone},
		{"source: aborted after the stop", libvirt.DomainRunning, int32(libvirt.DomainRunningMigrationCanceled), departing, running},
		{"source: aborted before the stop", libvirt.DomainRunning, int32(libvirt.DomainRunningBooted), none, running},
		{"source of a guest that was suspended", libvirt.DomainPaused, int32(libvirt.DomainPausedUser), suspended, paused},
		{"save", libvirt.DomainPaused, int32(libvirt.DomainPausedSave), suspended, paused},
		{"saved", libvirt.DomainShutoff, int32(libvirt.DomainShutoffSaved), stopped, gone},
		{"restore: loading", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), restoring, incoming},
		{"restore --paused", libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), restored, paused},
		{"restored", libvirt.DomainRunning, int32(libvirt.DomainRunningRestored), unpaused, running},
		{"snapshot, dump", libvirt.DomainPaused, int32(libvirt.DomainPausedSnapshot), suspended, paused},
		{"disk error", libvirt.DomainPaused, int32(libvirt.DomainPausedIoerror), none, paused},
		{"guest powers off", libvirt.DomainShutdown, 0, unpaused, paused},
		{"destroyed", libvirt.DomainShutoff, int32(libvirt.DomainShutoffDestroyed), stopped, gone},
		{"QEMU killed", libvirt.DomainShutoff, int32(libvirt.DomainShutoffFailed), stopped, gone},
		{"crashed and preserved", libvirt.DomainCrashed, 1, unpaused, paused},
		{"suspended by its own power management", libvirt.DomainPmsuspended, 0, unpaused, paused},
		{"waits for a resource", libvirt.DomainBlocked, 0, none, running},
		{"no state", libvirt.DomainNostate, 0, none, paused},
		{"a state of a later libvirt", 99, 99, none, paused},
		{"a reason of a later libvirt", libvirt.DomainPaused, 99, none, paused},
	}
	for _, tt := range tests {
		if got := state(tt.state, tt.reason, tt.last); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestOnlyRunningClaims: whatever event came, no domain that libvirt does not
// say to run is running, and one that it says to run is.
func TestOnlyRunningClaims(t *testing.T) {
	for s := libvirt.DomainState(-1); s < 12; s++ {
		for reason := int32(-1); reason < 20; reason++ {
			for typ := libvirt.DomainEventType(-1); typ < 10; typ++ {
				for detail := int32(-1); detail < 10; detail++ {
					got := state(s, reason, event{typ, detail})
					if runs := s == libvirt.DomainRunning || s == libvirt.DomainBlocked; runs != (got == hoststate.NICRunning) {
						t.Fatalf("state %d reason %d event %d/%d: %v", s, reason, typ, detail, got)
					}
					if got < hoststate.NICIncoming || got > hoststate.NICGone {
						t.Fatalf("state %d reason %d event %d/%d: no state", s, reason, typ, detail)
					}
				}
			}
		}
	}
}

// TestBefore: after a reconnect, a guest is taken for what it was.
func TestBefore(t *testing.T) {
	for _, was := range []hoststate.NICState{hoststate.NICIncoming, hoststate.NICLeaving, hoststate.NICPaused} {
		if got := state(libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), before(was)); got != was {
			t.Errorf("was %v, is taken for %v", was, got)
		}
	}
	if got := state(libvirt.DomainPaused, int32(libvirt.DomainPausedMigration), before(hoststate.NICRunning)); got != hoststate.NICLeaving {
		t.Errorf("ran here and migrates: %v", got)
	}
}
