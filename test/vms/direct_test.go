package vms

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"culvert/internal/lab"
	"culvert/internal/lab/libvirttest"
	"culvert/internal/lab/qemu"
)

// A real guest whose card libvirt makes a macvtap (<interface type='direct'>)
// reaches another host and is reached, by IPv4 and IPv6, in each of the four
// modes, and says nothing unasked. The pair that it stands on is attached once,
// or only put into the bridge: then what libvirt says of the macvtap names its
// port. When the guest ends it is nowhere any more, though its pair stays.
func TestMacvtapUnderLibvirt(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Topology{Hosts: 2, Libvirt: true}, "fd00:20::/64")
	far := vm(t, l, lab.VMSpec{Name: "far", Host: "h2"})
	burnIndexes(t, l, "h1", 10)
	pair(t, l, "h1", "m0", "p0")
	mustInHost(t, l, "h1", "ip", "link", "set", "p0", "master", far.VNI.Bridge())
	for _, mode := range []string{"bridge", "vepa", "private", "passthrough"} {
		d := domain(t, l, far, mode)
		d.Announce, d.Bridge, d.Parent, d.Mode = false, "", "m0", mode
		if mode == "passthrough" {
			mustInHost(t, l, "h1", program, "attach", mode, "--dev", "p0", "--agent-socket", l.AgentSocket("h1"))
		}
		libvirttest.Create(t, l, "h1", d)
		libvirttest.AwaitReady(t, l, "h1", mode)
		for i, a := range d.Addresses {
			reaches(t, l, "far", a.Addr().String())
			out, code, err := qemu.Run(t.Context(), libvirttest.Serial(l, "h1", mode), "ping -c 2 -W 2 "+far.Addresses[i].Addr().String())
			if err != nil || code != 0 {
				t.Errorf("%s: the guest does not reach a VM of another host: exit code %d, %v\n%s", mode, code, err, out)
			}
		}
		libvirttest.Virsh(t, l, "h1", "destroy", mode)
		await(t, func() string { return owner(t, l, d.Addresses[0].Addr().String()) }, func(s string) bool { return s == "" }, mode+": nobody has the address of a guest that is gone")
	}
}

// A guest on macvtap moves live: its pair stands on both hosts, and nothing is
// lost but what comes in QEMU's own pause.
func TestMacvtapMigratesUnderLibvirt(t *testing.T) {
	f := newFleet(t, lab.Topology{Libvirt: true})
	beside := f.vms["n1"]
	for i, h := range []string{"h1", "h2"} {
		burnIndexes(t, f.l, h, 200+200*i)
		pair(t, f.l, h, "m0", "p0")
		mustInHost(t, f.l, h, "ip", "link", "set", "p0", "master", beside.VNI.Bridge())
	}
	d := domain(t, f.l, beside, "web")
	d.Announce, d.Bridge, d.Parent, d.Mode = false, "", "m0", "bridge"
	libvirttest.Create(t, f.l, "h1", d)
	libvirttest.AwaitReady(t, f.l, "h1", "web")
	f.vms["web"] = lab.VM{Name: "web", Host: "h1", VNI: beside.VNI, MAC: d.MAC, Addresses: d.Addresses}
	f.bound("web")
	for i, to := range []string{"h2", "h1", "h2", "h1"} {
		f.step(fmt.Sprintf("move %d", i+1), func(f *fleet) { f.unharmedDirect(to, i%2 == 1) })
		f.moved("web", to)
	}
	f.retired()
}

// unharmedDirect moves web, which is pinged from all hosts, and asserts that its
// pause alone cost any ping: besides what its own device had no room for, or it
// took and did not answer, as emulated guests of a busy machine do.
func (f *fleet) unharmedDirect(to string, v6 bool) {
	f.t.Helper()
	from := f.vms["web"].Host
	mute := f.muteDirect()
	all := f.pingFor("web", v6, 5*time.Second)
	first, left := f.droppedDirect(from), 0
	done := f.across(to)
	ctx, cancel := context.WithTimeout(f.t.Context(), settle)
	defer cancel()
	var there *qemu.Monitor
	f.await(settle, "QEMU at "+to, func() (err error) {
		there, err = qemu.Dial(ctx, libvirttest.Watch(f.l, to, "web"))
		return err
	})
	defer there.Close()
	stopped := f.hurry(to, done, func() { left = f.droppedDirect(from) })
	resumed, err := there.Await(ctx, func(e qemu.Event) bool { return e.Name == "RESUME" })
	if err != nil {
		f.t.Fatalf("web's end of its pause: %v", err)
	}
	came := f.droppedDirect(to)
	f.bound("web")
	for _, p := range all {
		p.stop()
	}
	outside := 0
	for _, p := range all {
		<-p.done
		n := p.res.LostOutside(stopped, resumed.At)
		outside += n
		f.t.Logf("figure: web on macvtap to %s: from %s: paused for %d ms, %d of %d pings lost, %d of them not in the pause:%s",
			to, p.from, resumed.At.Sub(stopped).Milliseconds(), len(p.res.Lost), p.res.Sent, n, p.lostAt(stopped))
		if p.err != nil || p.res.Sent < 200 {
			f.t.Errorf("from %s: %d pings sent, %v", p.from, p.res.Sent, p.err)
		}
	}
	full := left - first + f.droppedDirect(to) - came
	if mute = f.muteDirect() - mute; outside > full+mute+len(all)*int(mostLost) {
		f.t.Errorf("%d pings were lost though web ran; its device dropped %d, and it did not answer %d that it had", outside, full, mute)
	}
}

// droppedDirect is how many frames found no room in a host's macvtap device.
func (f *fleet) droppedDirect(host string) (n int) {
	f.t.Helper()
	err := lab.InNS(lab.NSOfNode(f.l.Name(), host), func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		for line := range strings.Lines(string(b)) {
			if w := strings.Fields(line); len(w) > 12 && strings.HasPrefix(w[0], "macvtap") {
				n += number(f.t, w[4])
			}
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// muteDirect is how many echo requests web has got and sent no reply to.
func (f *fleet) muteDirect() int {
	f.t.Helper()
	out, code, err := qemu.Run(f.t.Context(), libvirttest.Serial(f.l, f.vms["web"].Host, "web"), snmp)
	if err != nil || code != 0 {
		f.t.Fatalf("%s: exit code %d, %v", snmp, code, err)
	}
	return f.unansweredIn(out)
}

// burnIndexes uses some indexes of a host up. A macvtap's character device is
// named by its index, which libvirt does not choose: two hosts of a test, and two
// runs of one at once, would otherwise open each other's.
func burnIndexes(t *testing.T, l *lab.Lab, host string, least int) {
	t.Helper()
	var batch strings.Builder
	for i := range least + os.Getpid()%150 {
		fmt.Fprintf(&batch, "link add burn%d group 77 type veth\n", i)
	}
	batch.WriteString("link del group 77\n")
	file := t.TempDir() + "/batch"
	if err := os.WriteFile(file, []byte(batch.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	mustInHost(t, l, host, "ip", "-batch", file)
}
