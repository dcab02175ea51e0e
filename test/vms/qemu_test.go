package vms

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert/internal/lab"
	"culvert/internal/overlay"
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
		if said := moveUnderPing(t, l, "silent", host); len(said) > 0 {
			t.Errorf("a silent guest said unasked on its way to %s: %x", host, said)
		}
	}
	if said := moveUnderPing(t, l, "chatty", "h1"); len(said) == 0 {
		t.Error("n1 heard nothing of a chatty guest's move: then it proves nothing for a silent one")
	}
	reaches(t, l, "silent", "chatty")
	reaches(t, l, "n1", "chatty")
	if after := uptime(t, l, "silent"); after < before {
		t.Errorf("the guest was started anew instead of moved: up %s, then %s", before, after)
	}
	cmd := exec.Command(program, "lab", "exec", "--lab", l.Name(), "silent", "--", "sh", "-c", "hostname; exit 7")
	var exit *exec.ExitError
	if out, err := cmd.Output(); string(out) != "silent\n" || !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("a command in the guest: %q, %v", out, err)
	}
	if r, err := l.Migrate(t.Context(), "silent", "h1", lab.MigrateOptions{}); err != nil || r.Changed {
		t.Errorf("a move to where it is: %+v, %v", r, err)
	}
	if r, err := l.RemoveVM(t.Context(), "silent"); err != nil || !r.Changed {
		t.Errorf("remove: %+v, %v", r, err)
	}
	if left := running(t, filepath.Join(lab.DefaultRoot, l.Name(), "guest", "vm-silent")); len(left) > 0 {
		t.Errorf("left running: %v", left)
	}
}

// moveUnderPing moves a guest while n1 pings it a thousand times a second. It
// returns what n1 heard of it by broadcast.
func moveUnderPing(t *testing.T, l *lab.Lab, name, host string) (said [][]byte) {
	t.Helper()
	v, err := l.VM(name)
	if err != nil {
		t.Fatal(err)
	}
	mac, err := overlay.ParseMAC(v.MAC)
	if err != nil {
		t.Fatal(err)
	}
	heard, err := lab.OpenCapture(lab.NSOfVM(l.Name(), "n1"), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Migrate(t.Context(), name, host, lab.MigrateOptions{Pings: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("figure: %s to %s: prepared in %d ms, paused for %d ms, all hosts exact %d ms after its stop; %d of %d pings lost, 1 ms apart, %d of them not in the pause",
		name, host, r.Prepared.Milliseconds(), r.Resumed.Milliseconds(), r.Exact.Milliseconds(), len(r.Pings.Lost), r.Pings.Sent, r.Pings.LostOutside(r.Stopped, r.Running))
	reaches(t, l, "n1", name)
	frames, err := heard.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if f.Data[0]&1 == 1 && bytes.Equal(f.Data[6:12], mac[:]) {
			said = append(said, f.Data)
		}
	}
	return said
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

// The sample VMs of a lab may be guests of QEMU; one whose QEMU was killed is
// made again by the next up.
func TestLabOfGuests(t *testing.T) {
	top := lab.Topology{Hosts: 2, VMs: lab.VMsQemu}
	l := unbuilt(t)
	vms := up(t, l, top, false).State.VMs
	if len(vms) != 6 || !vms[0].Qemu {
		t.Fatalf("VMs: %+v", vms)
	}
	reaches(t, l, "vm1", "vm4")
	if r, err := l.PingVM(t.Context(), "vm1", "vm5", lab.PingOptions{Count: 2}); err != nil || !r.Crosses() || r.Result.Received != 0 {
		t.Errorf("to another network: %+v, %v", r.Result, err)
	}
	if r := up(t, l, top, false); r.Changed {
		t.Error("the second up changed something")
	}
	if out, err := exec.Command("kill", "-9", fmt.Sprint(vms[3].Processes[0].PID)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	awaitDead(t, vms[3].Processes[0])
	if r := up(t, l, top, false); !r.Changed {
		t.Error("up left a VM without its QEMU")
	}
	reaches(t, l, "vm1", "vm4")
}

func awaitDead(t *testing.T, d lab.Daemon) {
	t.Helper()
	end := time.Now().Add(settle)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for d.State() != "dead" {
		if time.Now().After(end) {
			t.Fatalf("process %d does not end", d.PID)
		}
		<-tick.C
	}
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
