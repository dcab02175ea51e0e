package libvirt

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
)

// life follows what is reported of the interfaces of one daemon's guests.
type life struct {
	*heard
	t *testing.T
}

// want waits until the states told of a guest since the last call are those of
// a pattern, and forgets them. States that pass too quickly to be read are
// optional in it; "full" is told with a connection.
func (l life) want(vm, pattern string) {
	l.t.Helper()
	re := regexp.MustCompile("^(" + pattern + ")$")
	got := ""
	for end := time.Now().Add(time.Minute); ; <-time.After(2 * time.Millisecond) {
		var states []string
		l.mu.Lock()
		for _, line := range l.lines {
			w := strings.Fields(line)
			if w[0] == "full" {
				states = append(states, "full")
			} else if w[0] == vm {
				states = append(states, w[len(w)-1])
			}
		}
		if got = strings.Join(states, " "); re.MatchString(got) {
			l.t.Logf("%s: %s", vm, got)
			l.lines = nil
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		if time.Now().After(end) {
			l.t.Fatalf("%s: told %q, want %q", vm, got, pattern)
		}
	}
}

// nics is what was told last of each device of a guest.
func (l life) nics(vm string) map[string]hoststate.NIC {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]hoststate.NIC{}
	for _, n := range l.all {
		if n.VM == vm {
			if out[n.Device] = n; n.State == hoststate.NICGone {
				delete(out, n.Device)
			}
		}
	}
	return out
}

// wantNIC waits until a guest has one interface for which ok holds.
func (l life) wantNIC(vm, what string, ok func(hoststate.NIC) bool) (found hoststate.NIC) {
	l.t.Helper()
	poll(l.t, what, func() bool {
		for _, n := range l.nics(vm) {
			if ok(n) {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

func bridges(ns *netnstest.NS) {
	for _, br := range []string{"cvb1", "cvb2"} {
		ns.Exec("ip", "link", "add", br, "type", "bridge", "forward_delay", "0")
		ns.Up(br)
	}
}

// TestRealGuests: what is reported of guests of real daemons.
func TestRealGuests(t *testing.T) {
	a, b := netnstest.New(t), netnstest.New(t)
	bridges(a)
	bridges(b)
	netnstest.Veth(a, "u0", b, "u0")
	a.Addr("u0", "192.0.2.1/24")
	b.Addr("u0", "192.0.2.2/24")
	cache := t.TempDir()
	d1, d2 := startDaemon(t, a, "h1", "192.0.2.1", cache), startDaemon(t, b, "h2", "192.0.2.2", cache)
	d1.ready()
	d2.ready()
	t.Run("life", func(t *testing.T) { realLife(t, d1) })
	t.Run("migration", func(t *testing.T) { realMigration(t, d1, d2) })
	t.Run("hooks", func(t *testing.T) { realHooks(t, d1, d2) })
}

// realLife takes a guest through every turn that a life on one host can take.
func realLife(t *testing.T, d *realDaemon) {
	s, h := watch(t, d.socket(), callTimeout)
	l := life{h, t}
	l.want("", "full")
	d.virsh("define", d.file("g.xml", guestXML("g", nic("52:54:00:00:01:05", "cvb1", "ua-acme_web"))))
	d.virsh("start", "g")
	l.want("g", "(incoming )?running")
	l.wantNIC("g", "port by alias", func(n hoststate.NIC) bool {
		return n.Bridge == "cvb1" && n.Tenant == "acme" && n.Port == "web" && strings.HasPrefix(n.Device, "vnet") && n.MAC == mac("52:54:00:00:01:05")
	})
	d.virsh("suspend", "g")
	l.want("g", "paused")
	d.virsh("resume", "g")
	l.want("g", "running")
	d.virsh("save", "g", d.dir+"/g.save")
	l.want("g", "(paused )?gone")
	d.virsh("restore", d.dir+"/g.save")
	l.want("g", "(incoming )?running")

	// A second interface, and what is said of it.
	second := nic("52:54:00:00:01:06", "cvb1", "ua-db")
	d.virsh("attach-device", "g", d.file("nic.xml", second), "--live")
	added := l.wantNIC("g", "hot plug", func(n hoststate.NIC) bool { return n.Port == "db" && n.Tenant == "" })
	d.virsh("metadata", "g", PortNamespace, "--key", "culvert", "--set", "<ports><port mac='52:54:00:00:01:06' tenant='acme' name='store'/></ports>", "--live")
	l.wantNIC("g", "metadata", func(n hoststate.NIC) bool { return n.Device == added.Device && n.Tenant == "acme" && n.Port == "store" })
	d.virsh("update-device", "g", d.file("nic.xml", strings.Replace(second, "cvb1", "cvb2", 1)), "--live")
	s.Refresh(added.Device) // as the kernel's doorbell has it
	l.wantNIC("g", "another bridge", func(n hoststate.NIC) bool { return n.Device == added.Device && n.Bridge == "cvb2" })
	d.virsh("domif-setlink", "g", "52:54:00:00:01:06", "down")
	s.Refresh("")
	l.wantNIC("g", "no carrier", func(n hoststate.NIC) bool { return n.Device == added.Device && n.Unplugged })

	// The daemon dies under the guest; then the guest under the daemon.
	h.take(t, 0)
	d.kill("libvirtd")
	l.want("g", "full running running")
	d.kill("qemu-system")
	l.want("g", "gone gone")
	d.virsh("start", "g", "--paused")
	l.want("g", "(incoming )?(running )?paused")
	d.virsh("resume", "g")
	l.want("g", "running")
	d.virsh("destroy", "g")
	l.want("g", "(paused )?gone") // QEMU shuts down
	d.virsh("undefine", "g")
	if left := l.nics("g"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// realMigration: no state of a migration claims the guest for two hosts, and
// each end leaves it where it is.
func realMigration(t *testing.T, d1, d2 *realDaemon) {
	_, h1 := watch(t, d1.socket(), callTimeout)
	_, h2 := watch(t, d2.socket(), callTimeout)
	l1, l2 := life{h1, t}, life{h2, t}
	l1.want("", "full")
	l2.want("", "full")
	// Memory that is not zero has to be copied: 8 MiB of it take 8 s at the
	// lowest rate, in which a migration can be ended.
	memory := "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-device'/><qemu:arg value='loader,file=" +
		d1.file("memory", strings.Repeat("memory! ", 1<<20)) + ",addr=0x1000000,force-raw=on'/></qemu:commandline></domain>"
	d1.virsh("create", d1.file("g.xml", strings.Replace(guestXML("g", nic("52:54:00:00:01:05", "cvb1", "")), "</domain>", memory, 1)))
	l1.want("g", "(incoming )?running")

	to := func(d *realDaemon, addr string, more ...string) []string {
		return append([]string{"migrate", "--live", "g", d.uri(), "--migrateuri", "tcp://" + addr}, more...)
	}
	d1.virsh(to(d2, "192.0.2.2")...)
	l2.want("g", "incoming running")
	l1.want("g", "(leaving )?gone")
	d2.virsh(to(d1, "192.0.2.1", "--suspend")...)
	l1.want("g", "incoming paused")
	l2.want("g", "(leaving )?gone")
	d1.virsh("resume", "g")
	l1.want("g", "running")
	// Post-copy: the guest runs at the destination long before the source ends.
	slowly := func(d, from *realDaemon, addr string, more ...string) <-chan error {
		done := make(chan error, 1)
		go func() {
			out, err := from.tryVirsh(to(d, addr, append(more, "--bandwidth", "1")...)...)
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			done <- err
		}()
		return done
	}
	done := slowly(d2, d1, "192.0.2.2", "--postcopy", "--persistent")
	l2.want("g", "incoming")
	poll(t, "post-copy is begun", func() bool { // the source says no until its QEMU has begun to send
		_, err := d1.tryVirsh("migrate-postcopy", "g")
		return err == nil
	})
	l2.want("g", "running")
	l1.want("g", "leaving gone")
	if err := <-done; err != nil {
		t.Error(err)
	}

	// Nobody listens at that address: the guest stays and nobody claims it.
	if out, err := d2.tryVirsh(to(d1, "192.0.2.9")...); err == nil {
		t.Fatalf("migrated to nowhere: %s", out)
	}
	l1.want("g", "incoming gone")
	d2.virsh("suspend", "g")
	l2.want("g", "(leaving running )?paused")
	d2.virsh("resume", "g")
	l2.want("g", "running")

	// The migration is aborted; then the destination's QEMU dies under one.
	done = slowly(d1, d2, "192.0.2.1")
	l1.want("g", "incoming")
	d2.virsh("domjobabort", "g")
	if err := <-done; err == nil {
		t.Error("migrated though aborted")
	}
	l1.want("g", "gone")
	done = slowly(d1, d2, "192.0.2.1")
	l1.want("g", "incoming")
	d1.kill("qemu-system")
	if err := <-done; err == nil {
		t.Error("migrated to a QEMU that was killed")
	}
	l1.want("g", "gone")
	if left := l2.nics("g"); len(left) != 1 {
		t.Errorf("the source has %v", left)
	}
	d2.virsh("destroy", "g")
	l2.want("g", "(leaving running )?(paused )?gone")
}

// realHooks: a guest starts and arrives only where its agent lets it, and who
// starts it is told why not.
func realHooks(t *testing.T, d1, d2 *realDaemon) {
	const addr = "52:54:00:00:01:07"
	migrate := []string{"migrate", "--live", "k", d2.uri(), "--migrateuri", "tcp://192.0.2.2"}
	refused := func(d *realDaemon, by *realDaemon, args ...string) {
		t.Helper()
		by.file("answers", addr+"\n")
		out, err := d.tryVirsh(args...)
		if err == nil || !strings.Contains(out, "Guest k was not let in: port of "+addr+" is elsewhere") {
			t.Errorf("virsh %s: %v\n%s", args[0], err, out)
		}
		by.file("answers", "")
	}
	_, h1 := watch(t, d1.socket(), callTimeout)
	_, h2 := watch(t, d2.socket(), callTimeout)
	l1, l2 := life{h1, t}, life{h2, t}
	l1.want("", "full")
	l2.want("", "full")
	guest := d1.file("k.xml", guestXML("k", nic(addr, "cvb1", "")+nic("52:54:00:00:01:08", "virbr9", "")))
	d1.ns.Exec("ip", "link", "add", "virbr9", "type", "bridge")
	d2.ns.Exec("ip", "link", "add", "virbr9", "type", "bridge")
	refused(d1, d1, "create", guest)
	d1.virsh("create", guest)
	l1.want("k", "(gone |incoming )*running running")
	refused(d1, d2, migrate...)
	if n := l1.nics("k"); len(n) != 2 {
		t.Errorf("the source has %v", n)
	}
	if len(l2.nics("k")) > 0 {
		t.Error("the guest came all the same")
	}
	d1.virsh(migrate...)
	l2.want("k", "incoming incoming running running")
	d2.virsh("destroy", "k")
}
