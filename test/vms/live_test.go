package vms

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"culvert/internal/lab"
)

// Guests under QEMU move live, a silent and a chatty one, while all that may
// happen to the daemons meanwhile does happen.
func TestLiveMigration(t *testing.T) {
	f := newFleet(t, lab.Topology{})
	f.make(lab.VMSpec{Name: "silent", Host: "h1", Qemu: true})
	f.make(lab.VMSpec{Name: "chatty", Host: "h1", Qemu: true, Announce: true})
	f.exact()
	f.step("pinged from three hosts", (*fleet).underPing)
	f.step("with a stream", (*fleet).underStream)
	f.step("eight times to and fro", (*fleet).toAndFro)
	f.step("manager killed before", (*fleet).managerKilledBefore)
	f.step("manager killed during", (*fleet).managerKilledDuring)
	f.step("there and back without a manager", (*fleet).thereAndBackWithoutManager)
	f.step("source late", (*fleet).sourceLate)
	f.retired()
}

// underPing: nothing is lost beyond QEMU's own pause, whoever asks, by either
// family, whether the guest speaks or not.
func (f *fleet) underPing() {
	for _, name := range []string{"silent", "chatty"} {
		f.unharmed(name, "h2", false, lab.MigrateOptions{})
		f.bound(name)
		f.unharmed(name, "h1", true, lab.MigrateOptions{})
		f.bound(name)
	}
}

// underStream: a TCP connection lives through two moves, and all that went
// over it came back as it was sent.
func (f *fleet) underStream() {
	s := f.stream("n3", "silent")
	for _, to := range []string{"h2", "h1"} {
		f.move("silent", to, lab.MigrateOptions{})
	}
	s.finish(f)
	f.bound("silent")
}

// toAndFro: of eight moves in one go nothing stays.
func (f *fleet) toAndFro() {
	for i := range 8 {
		f.move("silent", [2]string{"h2", "h1"}[i%2], lab.MigrateOptions{})
	}
	f.bound("silent")
	f.move("silent", "h3", lab.MigrateOptions{})
	f.bound("silent")
	f.move("silent", "h1", lab.MigrateOptions{})
	f.bound("silent")
}

// managerKilledBefore: with no manager nobody is told of a move; the guest is
// reached where it came to, and claimed as soon as there is a manager.
func (f *fleet) managerKilledBefore() {
	f.kill("m1")
	f.move("silent", "h2", lab.MigrateOptions{NoWait: true})
	f.reached("silent", "h2")
	f.start("m1")
	f.bound("silent")
}

// managerKilledDuring: the destination is known to expect the guest, so the
// source sends on what comes for it, as long as there is no manager.
func (f *fleet) managerKilledDuring() {
	f.retired()
	f.unharmed("silent", "h1", false, lab.MigrateOptions{NoWait: true, At: map[lab.Stage]func(){
		lab.Expected: func() { f.known("silent", "h1"); f.kill("m1") },
	}})
	if _, relay := f.held("h2"); len(relay) == 0 {
		f.t.Error("h2 does not relay: then it was not that by which h3 reached the guest")
	}
	f.start("m1")
	f.bound("silent")
}

// known waits until every host knows where a guest is expected: the destination,
// which has answered by now, may be the first to hear of it, and an agent that
// lost the manager comes back to it seconds after the others. What a former move
// left must be gone: a relay has hosts take frames of both its ends, too.
func (f *fleet) known(name, to string) {
	v := f.vms[name]
	row := fmt.Sprintf("source %d %s via %s", v.VNI, v.MAC, f.vteps[to])
	f.await(settle, name+" expected at "+to, func() error {
		for _, h := range f.hosts() {
			if rows, _ := f.held(h); h != to && !slices.Contains(rows, row) {
				return errors.New(h + " has no " + row)
			}
		}
		return nil
	})
}

// thereAndBackWithoutManager: the guest is back where all believe it to be.
func (f *fleet) thereAndBackWithoutManager() {
	f.kill("m1")
	f.move("silent", "h2", lab.MigrateOptions{NoWait: true})
	f.move("silent", "h1", lab.MigrateOptions{NoWait: true})
	f.reached("silent")
	f.start("m1")
	f.bound("silent")

	// The same, when it was known that h2 expects the guest: it is reached there,
	// until it runs at h1 again.
	f.retired()
	f.move("silent", "h2", lab.MigrateOptions{NoWait: true, At: map[lab.Stage]func(){
		lab.Expected: func() { f.known("silent", "h2"); f.kill("m1") },
	}})
	f.reached("silent")
	f.move("silent", "h1", lab.MigrateOptions{NoWait: true, At: map[lab.Stage]func(){
		lab.Expected: func() { f.reached("silent") },
	}})
	f.reached("silent")
	f.start("m1")
	f.bound("silent")
}

// sourceLate: the source's agent sleeps through the guest's departure, with what
// the guest last said still unread. What it says of that when it wakes is old.
func (f *fleet) sourceLate() {
	f.speak("chatty")
	f.move("chatty", "h2", lab.MigrateOptions{NoWait: true, At: map[lab.Stage]func(){
		lab.Expected: func() { f.signal("h1", unix.SIGSTOP) },
	}})
	f.await(settle, "claim of the destination", func() error { return f.at("chatty") })
	f.reached("chatty", "h2", "h3")
	f.signal("h1", unix.SIGCONT)
	f.bound("chatty")
}
