package vms

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/lab"
	"culvert/internal/lab/libvirttest"
	"culvert/internal/lab/qemu"
)

// A guest under libvirt moves live in every way that ends, while agents die at
// every state of it.
func TestMigrationsUnderLibvirt(t *testing.T) {
	f := newFleet(t, lab.Topology{Libvirt: true})
	f.create("web", "h1")
	f.step("daemon restarted", (*fleet).daemonRestarted)
	f.step("hot plug", (*fleet).hotPlug)
	f.step("aborted", (*fleet).aborted)
	f.step("destination killed", (*fleet).destinationKilled)
	f.step("suspended", (*fleet).suspended)
	f.step("post-copy", (*fleet).postCopy)
	f.step("agents killed", (*fleet).agentsKilled)
	f.retired()
}

// create starts a guest under libvirt whose port is declared.
func (f *fleet) create(name, host string) {
	f.t.Helper()
	beside := f.vms["n1"]
	d := domain(f.t, f.l, beside, name)
	libvirttest.Create(f.t, f.l, host, d)
	libvirttest.AwaitReady(f.t, f.l, host, name)
	f.vms[name] = lab.VM{Name: name, Host: host, VNI: beside.VNI, MAC: d.MAC, Addresses: d.Addresses}
	f.bound(name)
}

// daemonRestarted: a libvirtd that is killed and comes back changes nothing.
func (f *fleet) daemonRestarted() {
	before, err := f.endpoint("web")
	if err != nil {
		f.t.Fatal(err)
	}
	f.retired()
	all := f.ping("web", false)
	known := strings.Count(f.log("h1"), "msg=libvirt")
	if err := f.l.KillLibvirt("h1"); err != nil {
		f.t.Fatal(err)
	}
	f.await(settle, "agent follows libvirt again", func() error {
		if err := f.wrong(false, f.hosts()...); err != nil {
			f.t.Fatal(err)
		}
		if strings.Count(f.log("h1"), "msg=libvirt") < known+2 { // it went, and came
			return errors.New(f.log("h1"))
		}
		return nil
	})
	awaitDomain(f.t, f.l, "h1", "web")
	for _, p := range all {
		p.stop()
	}
	for _, p := range all {
		if <-p.done; p.err != nil || len(p.res.Lost) > 0 {
			f.t.Errorf("from %s: %d of %d pings lost, %v", p.from, len(p.res.Lost), p.res.Sent, p.err)
		}
	}
	after, err := f.endpoint("web")
	if err != nil || after.GetSince() != before.GetSince() || after.GetCause() != before.GetCause() {
		f.t.Errorf("before %v, after %v, %v", before, after, err)
	}
}

// hotPlug: an interface that is plugged into the running guest is its port.
func (f *fleet) hotPlug() {
	beside := f.vms["n1"]
	d := domain(f.t, f.l, beside, "web-second")
	f.vms["web-second"] = lab.VM{Name: "web-second", Host: "h1", VNI: beside.VNI, MAC: d.MAC, Addresses: d.Addresses}
	file := filepath.Join(f.t.TempDir(), "nic.xml")
	if err := os.WriteFile(file, []byte(libvirttest.NIC(d.MAC, d.Bridge, d.Alias)), 0o600); err != nil {
		f.t.Fatal(err)
	}
	libvirttest.Virsh(f.t, f.l, "h1", "attach-device", "web", file, "--live")
	f.await(settle, "the second port", func() error { return f.at("web-second") })
	f.exact()
	libvirttest.Virsh(f.t, f.l, "h1", "detach-device", "web", file, "--live")
	delete(f.vms, "web-second")
	f.exact()
}

// across begins to move web, so slowly that it does not come to an end by
// itself, and returns when its destination expects it.
func (f *fleet) across(to string, flags ...string) (done chan error) {
	f.t.Helper()
	done = make(chan error, 1)
	from := f.vms["web"].Host
	go func() {
		done <- libvirttest.Migrate(f.t.Context(), f.l, "web", from, to, append(flags, "--bandwidth", "1")...)
	}()
	f.await(settle, "web expected on "+to, func() error {
		st, err := f.endpoint("web")
		if err == nil && !slices.Contains(st.GetExpectedAt(), to) {
			err = errors.New("expected at " + strings.Join(st.GetExpectedAt(), " "))
		}
		return err
	})
	return done
}

// hurry lets a move that goes slowly come to its end. stops, if it is not nil,
// is called as soon as the guest stands still; since when is returned then.
func (f *fleet) hurry(to string, done chan error, stops func()) (stopped time.Time) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), settle)
	defer cancel()
	m, err := qemu.Dial(ctx, libvirttest.Watch(f.l, f.vms["web"].Host, "web"))
	if err != nil {
		f.t.Fatal(err)
	}
	defer m.Close()
	f.await(settle, "the source sends", func() error { // before that libvirt has its speed to set yet
		var q struct{ Status string }
		if err := m.Do(ctx, "query-migrate", nil, &q); err != nil || q.Status != "active" {
			return errors.Join(fmt.Errorf("migration is %q", q.Status), err)
		}
		return nil
	})
	if err := m.Do(ctx, "migrate-set-parameters", map[string]int{"max-bandwidth": 1 << 30}, nil); err != nil {
		f.t.Fatal(err)
	}
	if stops != nil {
		stop, err := m.Await(ctx, func(e qemu.Event) bool { return e.Name == "STOP" })
		if err != nil {
			f.t.Fatalf("the stop of web: %v", err)
		}
		stopped = stop.At
		stops()
	}
	if err := <-done; err != nil {
		f.t.Fatal(err)
	}
	f.moved("web", to)
	return stopped
}

// stays: a move that failed leaves the guest where it was.
func (f *fleet) stays(done chan error) {
	f.t.Helper()
	if err := <-done; err == nil {
		f.t.Error("it was moved")
	}
	f.bound("web")
}

func (f *fleet) aborted() {
	done := f.across("h2")
	libvirttest.Virsh(f.t, f.l, "h1", "domjobabort", "web")
	f.stays(done)
}

func (f *fleet) destinationKilled() {
	done := f.across("h2")
	if err := unix.Kill(f.qemuOf("h2"), unix.SIGKILL); err != nil {
		f.t.Error(err)
	}
	f.stays(done)
}

// suspended: it arrives paused, and is placed before it goes on.
func (f *fleet) suspended() {
	if err := libvirttest.Migrate(f.t.Context(), f.l, "web", "h1", "h2", "--suspend"); err != nil {
		f.t.Fatal(err)
	}
	f.moved("web", "h2")
	f.await(settle, "web bound to h2 while paused", func() error { return f.at("web") })
	libvirttest.Virsh(f.t, f.l, "h2", "resume", "web")
	f.bound("web")
}

// postCopy: it runs at its destination long before its memory is there.
func (f *fleet) postCopy() {
	done := f.across("h1", "--postcopy")
	f.await(settle, "the source sends", func() error {
		_, err := libvirttest.Try(f.t.Context(), f.l, "h2", "", "migrate-postcopy", "web")
		return err
	})
	libvirttest.Virsh(f.t, f.l, "h2", "migrate-setspeed", "web", "10000", "--postcopy")
	f.moved("web", "h1")
	f.reached("web")
	if err := <-done; err != nil {
		f.t.Fatal(err)
	}
	f.bound("web")
}

// agentsKilled: the agent of the source, and the one of the destination, is
// killed and started again before a move, when the guest is expected, when it
// stops, and while the source relays.
func (f *fleet) agentsKilled() {
	again := func(node string) {
		f.kill(node)
		f.start(node)
	}
	for i := range 8 {
		from := f.vms["web"].Host
		to := map[string]string{"h1": "h2", "h2": "h1"}[from]
		node, side := from, "source"
		if i%2 == 1 {
			node, side = to, "destination"
		}
		state := []string{"before", "expected", "stopped", "relay"}[i/2]
		f.step(side+", "+state, func(f *fleet) {
			if state == "before" {
				again(node)
			}
			done := f.across(to)
			switch state {
			case "expected":
				again(node)
				f.hurry(to, done, nil)
			case "stopped":
				f.hurry(to, done, func() { f.kill(node) })
				f.start(node)
			case "relay":
				f.hurry(to, done, nil)
				again(node)
			default:
				f.hurry(to, done, nil)
			}
			f.bound("web")
		})
		f.moved("web", to)
	}
}

// qemuOf is the process of web's QEMU on a host.
func (f *fleet) qemuOf(host string) int {
	f.t.Helper()
	ns, err := os.Stat(filepath.Join("/run/netns", lab.NSOfNode(f.l.Name(), host)))
	if err != nil {
		f.t.Fatal(err)
	}
	for _, found := range running(f.t, "guest=web,") {
		dir, _, _ := strings.Cut(found, ":")
		if at, err := os.Stat(dir + "/ns/net"); err == nil && os.SameFile(ns, at) {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				f.t.Fatal(err)
			}
			return pid
		}
	}
	f.t.Fatalf("no QEMU on %s", host)
	return 0
}
