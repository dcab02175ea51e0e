package vms

import (
	"fmt"
	"os"
	"strings"
	"testing"

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
	burnIndexes(t, l)
	pair(t, l, "m0", "p0")
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

// burnIndexes uses some indexes of h1 up. A macvtap's character device is named
// by its index, which libvirt does not choose: two runs of this test at once
// would otherwise open each other's.
func burnIndexes(t *testing.T, l *lab.Lab) {
	t.Helper()
	var batch strings.Builder
	for i := range 10 + os.Getpid()%150 {
		fmt.Fprintf(&batch, "link add burn%d group 77 type veth\n", i)
	}
	batch.WriteString("link del group 77\n")
	file := t.TempDir() + "/batch"
	if err := os.WriteFile(file, []byte(batch.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	mustInHost(t, l, "h1", "ip", "-batch", file)
}
