package vms

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"culvert/internal/lab"
)

// Two guests on two hosts reach each other; one of them is moved live, to and
// fro, and is reachable afterwards by a guest and by a VM that stays; the lab
// goes without a trace.
func TestGuestsUnderQEMU(t *testing.T) {
	l := newLab(t, lab.Topology{Hosts: 2})
	vm(t, l, lab.VMSpec{Name: "n1", Host: "h2"})
	vm(t, l, lab.VMSpec{Name: "silent", Host: "h1", Qemu: true})
	vm(t, l, lab.VMSpec{Name: "chatty", Host: "h2", Qemu: true, Announce: true})
	reaches(t, l, "silent", "chatty")
	reaches(t, l, "chatty", "silent")
	reaches(t, l, "n1", "silent")
	before := uptime(t, l, "silent")
	for _, host := range []string{"h2", "h1"} {
		moveUnderPing(t, l, "silent", host)
	}
	moveUnderPing(t, l, "chatty", "h1")
	reaches(t, l, "silent", "chatty")
	reaches(t, l, "n1", "chatty")
	if after := uptime(t, l, "silent"); after < before {
		t.Errorf("the guest was started anew instead of moved: up %s, then %s", before, after)
	}
	if r, err := l.Migrate(t.Context(), "silent", "h1", lab.MigrateOptions{}); err != nil || r.Changed {
		t.Errorf("a move to where it is: %+v, %v", r, err)
	}
	if r, err := l.RemoveVM(t.Context(), "silent"); err != nil || !r.Changed {
		t.Errorf("remove: %+v, %v", r, err)
	}
	if left := running(t, "-silent"); len(left) > 0 {
		t.Errorf("left running: %v", left)
	}
}

// moveUnderPing moves a guest while n1 pings it a thousand times a second.
func moveUnderPing(t *testing.T, l *lab.Lab, name, host string) {
	t.Helper()
	r, err := l.Migrate(t.Context(), name, host, lab.MigrateOptions{Pings: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("figure: %s to %s: prepared in %d ms, paused for %d ms, all hosts exact %d ms after its stop; %d of %d pings lost, 1 ms apart",
		name, host, r.Prepared.Milliseconds(), r.Resumed.Milliseconds(), r.Exact.Milliseconds(), len(r.Pings.Lost), r.Pings.Sent)
	if n := len(r.Pings.Lost); n > 0 && r.Pings.Lost[n-1] == r.Pings.Sent-1 {
		t.Errorf("%s did not come back on %s: %d of %d pings lost, the last among them", name, host, n, r.Pings.Sent)
	}
	reaches(t, l, "n1", name)
}

// uptime asks the guest how long it has been running.
func uptime(t *testing.T, l *lab.Lab, name string) time.Duration {
	t.Helper()
	out, code, err := l.Run(t.Context(), name, "cut -d' ' -f1 /proc/uptime")
	if err != nil || code != 0 {
		t.Fatalf("uptime: %q, %d, %v", out, code, err)
	}
	d, err := time.ParseDuration(strings.TrimSpace(out) + "s")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A command that is killed while it boots or moves a guest leaves nothing that
// the next one does not clean up or finish.
func TestKilledCommandsLeaveNothing(t *testing.T) {
	l := newLab(t, lab.Topology{Hosts: 2})
	vm(t, l, lab.VMSpec{Name: "n1", Host: "h2"})
	killed(t, l, "vm-g", "lab", "vm", "create", "g", "--host", "h1", "--network", "blue", "--qemu")
	vm(t, l, lab.VMSpec{Name: "g", Host: "h1", Qemu: true})
	reaches(t, l, "n1", "g")
	killed(t, l, "/vm-g/h2.", "lab", "vm", "migrate", "g", "h2")
	if _, err := l.Migrate(t.Context(), "g", "h2", lab.MigrateOptions{}); err != nil {
		t.Fatal(err)
	}
	reaches(t, l, "n1", "g")
	killed(t, l, "vm-other", "lab", "vm", "create", "other", "--host", "h2", "--network", "blue", "--qemu")
	// And now down, with a guest half made.
}

// killed runs the program and kills it as soon as a process of that word runs.
func killed(t *testing.T, l *lab.Lab, word string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, append(args, "--lab", l.Name())...)
	cmd.Env = append(os.Environ(), "CULVERT_GUESTS="+guests(t), "CULVERT_CONFIG="+l.ClientConfig())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(settle)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(running(t, word)) == 0 {
		if time.Now().After(end) {
			t.Errorf("no process with %s within %s", word, settle)
			break
		}
		<-tick.C
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Errorf("it had ended before it was killed: %v", err)
	}
}
