// Package qemu boots real Linux guests: it makes their initramfs, says how
// QEMU is started, speaks to a running QEMU over its monitor (QMP) and to the
// guest over its serial line. It starts no process and makes no device itself:
// that is its caller's, who knows where they belong.
//
// Guests are emulated, never run on KVM: that /dev/kvm can be opened does not
// say that a kernel boots on it where this machine is itself a guest, and a
// guest that answers pings costs nothing while idle.
package qemu

import (
	"fmt"
	"net/netip"
	"strings"
)

// memory is a guest's in MB: below 80 the kernel does not boot.
const memory = 96

// translated bounds, in MB, the cache of translated code, which QEMU would
// let grow to a quarter of the machine's memory.
const translated = 32

// tapFD is the number by which QEMU gets its tap: the first after the
// standard streams.
const tapFD = 3

// Guest is one guest as QEMU starts it.
type Guest struct {
	Name      string
	MAC       string
	Addresses []netip.Prefix // of eth0; static, unless DHCP
	Gateway   netip.Addr     // IPv4; invalid for none
	MTU       int            // bytes
	// DHCP says that it asks the network for its addresses, MTU, routes and name
	// servers. It is ready when it has Addresses, which may be empty.
	DHCP bool
	// Announce says that the guest and QEMU speak unasked: gratuitous ARP at
	// boot, and the guest's own announcement after a migration.
	Announce bool

	Kernel, Initramfs string // paths
	Monitor           string // path of the socket that QMP is spoken on
	Watch             string // path of a second one, for whoever only listens
	Serial            string // path of the socket of the serial line
	SerialLog         string // path of the file that all of its output goes to
	// Incoming is the URI that a migration comes in at ("unix:PATH"); empty
	// for a guest that boots.
	Incoming string
}

// CommandLine is the guest's kernel's.
func (g Guest) CommandLine() string {
	words := []string{"console=ttyS0", "panic=-1", "quiet", "cryptomgr.notests", "mitigations=off", "cv.name=" + g.Name}
	var v4, v6 []string
	for _, a := range g.Addresses {
		if a.Addr().Is4() {
			v4 = append(v4, a.String())
		} else {
			v6 = append(v6, a.String())
		}
	}
	if len(v4) > 0 {
		words = append(words, "cv.ip="+strings.Join(v4, ","))
	}
	if len(v6) > 0 {
		words = append(words, "cv.ip6="+strings.Join(v6, ","))
	}
	if g.Gateway.IsValid() {
		words = append(words, "cv.gw="+g.Gateway.String())
	}
	if g.MTU > 0 {
		words = append(words, fmt.Sprintf("cv.mtu=%d", g.MTU))
	}
	if g.DHCP {
		words = append(words, "cv.dhcp=1")
	}
	if g.Announce {
		words = append(words, "cv.announce=1")
	}
	return strings.Join(words, " ")
}

// Command is the command line of QEMU. It expects the guest's tap as its file
// descriptor 3, so that the tap goes when QEMU does.
func (g Guest) Command(program string) []string {
	nic := "virtio-net-pci,netdev=net0,id=nic0,mac=" + g.MAC
	if !g.Announce {
		nic += ",guest_announce=off"
	}
	// q35: microvm's clock does not calibrate under emulation one time in
	// three, and the guest then hangs.
	argv := []string{program,
		"-name", g.Name, "-machine", "q35", "-accel", fmt.Sprintf("tcg,tb-size=%d", translated), "-cpu", "qemu64",
		"-smp", "1", "-m", fmt.Sprint(memory), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", g.Kernel, "-initrd", g.Initramfs, "-append", g.CommandLine(),
		"-chardev", "socket,id=serial0,path=" + g.Serial + ",server=on,wait=off,logfile=" + g.SerialLog + ",logappend=on",
		"-serial", "chardev:serial0",
		"-qmp", "unix:" + g.Monitor + ",server=on,wait=off",
		"-qmp", "unix:" + g.Watch + ",server=on,wait=off",
		"-netdev", fmt.Sprintf("tap,id=net0,fd=%d", tapFD), "-device", nic,
	}
	if g.Incoming != "" {
		argv = append(argv, "-incoming", g.Incoming)
	}
	return argv
}
