// Package libvirttest is a test's hand on the libvirt daemons of a lab: it
// writes a domain as a user would, and drives it by virsh(1).
package libvirttest

import (
	"context"
	"encoding/xml"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"culvert/internal/lab"
	"culvert/internal/lab/qemu"
)

// limit is how long one command of virsh may take on a loaded machine.
const limit = 90 * time.Second

// Domain is a guest as it is told to libvirt.
type Domain struct {
	qemu.Guest
	Bridge string // that its NIC is in: cvb<VNI>
	// Parent is the device that its NIC is a macvtap on, instead, and Mode is
	// libvirt's word for how: bridge, vepa, private, passthrough.
	Parent, Mode string
	// Alias is that of its NIC ("ua-..."), which libvirt keeps over a
	// migration; empty for one of libvirt's choice.
	Alias string
}

// XML is the domain's definition. Its serial line's log is under
// /var/log/libvirt of each host, where hosts do not meet: see Log.
func (d Domain) XML() string {
	args := []string{"-qmp", "unix:/run/libvirt/" + d.Name + ".watch,server=on,wait=off"}
	if !d.Announce {
		args = append(args, "-global", "virtio-net-pci.guest_announce=off")
	}
	var words strings.Builder
	for _, a := range args {
		words.WriteString("<qemu:arg value='" + quoted(a) + "'/>")
	}
	nic := NIC(d.MAC, d.Bridge, d.Alias)
	if d.Parent != "" {
		nic = direct(d.MAC, d.Parent, d.Mode, d.Alias)
	}
	return fmt.Sprintf(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>%s</name>
  <memory unit='MiB'>96</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline></os>
  <features><acpi/></features><cpu mode='custom'><model>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    %s
    <serial type='unix'><source mode='bind' path='/run/libvirt/%[1]s.serial'/><log file='/var/log/libvirt/qemu/%[1]s.serial.log' append='off'/></serial>
    <controller type='pci' index='0' model='pcie-root'/><controller type='pci' index='1' model='pcie-root-port'/><controller type='pci' index='2' model='pcie-root-port'/><controller type='pci' index='3' model='pcie-root-port'/>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
  <qemu:commandline>%[6]s</qemu:commandline>
</domain>
`, quoted(d.Name), quoted(d.Kernel), quoted(d.Initramfs), quoted(d.CommandLine()), nic, words.String())
}

// NIC is the definition of an interface, also of one that is plugged into a
// running guest. There is room for two of those.
func NIC(mac, bridge, alias string) string {
	return fmt.Sprintf("<interface type='bridge'><mac address='%s'/><source bridge='%s'/><model type='virtio'/>%s</interface>", mac, bridge, named(alias))
}

func direct(mac, parent, mode, alias string) string {
	return fmt.Sprintf("<interface type='direct' trustGuestRxFilters='yes'><mac address='%s'/><source dev='%s' mode='%s'/><model type='virtio'/>%s</interface>", mac, parent, mode, named(alias))
}

func named(alias string) string {
	if alias == "" {
		return ""
	}
	return "<alias name='" + quoted(alias) + "'/>"
}

func quoted(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

// Log is the file that the output of a domain's serial line is in, while it is
// on that host.
func Log(l *lab.Lab, host, domain string) string {
	return l.LibvirtLog(host) + "/" + domain + ".serial.log"
}

// Serial is the path of a domain's serial line, while it is on that host.
func Serial(l *lab.Lab, host, domain string) string {
	return strings.TrimSuffix(l.LibvirtSocket(host), "libvirt-sock") + domain + ".serial"
}

// Watch is the path of a socket of a domain's QEMU that its monitor's protocol
// is spoken on besides libvirt, while it is on that host.
func Watch(l *lab.Lab, host, domain string) string {
	return strings.TrimSuffix(Serial(l, host, domain), "serial") + "watch"
}

// Try runs virsh at a host's libvirtd and returns what it printed. The error
// has it too.
func Try(ctx context.Context, l *lab.Lab, host, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", l.LibvirtURI(host)}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("virsh %s on %s: %w: %s", strings.Join(args, " "), host, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// Virsh is Try that must succeed.
func Virsh(t *testing.T, l *lab.Lab, host string, args ...string) string {
	t.Helper()
	out, err := Try(t.Context(), l, host, "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Create starts a domain that is gone when it ends.
func Create(t *testing.T, l *lab.Lab, host string, d Domain) {
	t.Helper()
	if _, err := Try(t.Context(), l, host, d.XML(), "create", "/dev/stdin"); err != nil {
		t.Fatal(err)
	}
}

// Define makes a domain known to a host, without starting it.
func Define(t *testing.T, l *lab.Lab, host string, d Domain) {
	t.Helper()
	if _, err := Try(t.Context(), l, host, d.XML(), "define", "/dev/stdin"); err != nil {
		t.Fatal(err)
	}
}

// Migrate moves a running domain, live. More flags of virsh may be given.
func Migrate(ctx context.Context, l *lab.Lab, domain, from, to string, flags ...string) error {
	addr := ""
	st, err := l.Status()
	if err != nil {
		return err
	}
	for _, n := range st.Nodes {
		if n.Name == to {
			addr = n.Address.Addr().String()
		}
	}
	args := append([]string{"migrate", "--live"}, flags...)
	_, err = Try(ctx, l, from, "", append(args, domain, l.LibvirtURI(to), "--migrateuri", "tcp://"+addr)...)
	return err
}

// Domains lists the running domains of a host by name, sorted as virsh does.
func Domains(t *testing.T, l *lab.Lab, host string) []string {
	t.Helper()
	return strings.Fields(Virsh(t, l, host, "list", "--name"))
}

// AwaitReady waits until a domain's guest has booted.
func AwaitReady(t *testing.T, l *lab.Lab, host, domain string) {
	t.Helper()
	end := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := qemu.Ready(Log(l, host, domain))
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s on %s did not boot within %s", domain, host, limit)
		}
		<-tick.C
	}
}
