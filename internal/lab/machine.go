package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/lab/qemu"
)

// A machine is a VM that is a guest of QEMU. Its QEMU is a process in the
// namespace of its host, and its device there lives as long as that process:
// so what ends a lab's hosts ends its machines, however a command ended.
type machine struct {
	Guest
	lab *Lab
	// leased are the addresses that a guest which asks for them is to get.
	leased []netip.Prefix
}

// bootLimit is how long a guest has to boot on a loaded machine: 3 s on one
// that is not.
const bootLimit = 60 * time.Second

// endLimit is how long QEMU has to end when it is asked to.
const endLimit = 5 * time.Second

// GuestRoots are where the parts of QEMU guests are looked for after
// Config.GuestRoots: a folder that a user has unpacked packages in, and the
// machine itself.
var GuestRoots = []string{"/var/cache/culvert/guest", "/"}

func (l *Lab) guestDir() string { return filepath.Join(l.dir(), "guest") }

// path is of a machine's file on a host. Sockets' paths have room for 107
// bytes (unix(7)), so a long name of a VM stands there cut, as its device's.
func (m machine) path(host, kind string) string {
	return filepath.Join(m.lab.guestDir(), TapName(m.VM), host+"."+kind)
}

// logPath is where the lab's logs are: they are shown when a test fails.
func (m machine) logPath(host, kind string) string {
	return filepath.Join(m.lab.dir(), m.VM+"."+host+"."+kind)
}

func (v VM) machine(l *Lab) (machine, error) {
	g, err := v.guest(l.name)
	m := machine{Guest: g, lab: l}
	if g.Asks {
		m.leased = v.Addresses
	}
	return m, err
}

// image is what the lab's guests are booted from: QEMU's program, a kernel and
// its initramfs, for guests that ask for their addresses or for others. The lab keeps its own copies from its first guest on, so that
// guests go on to fit each other. What is missing is refused with the way to
// get it.
func (l *Lab) image(asks bool, what string) (kernel, initramfs, program string, err error) {
	kernel, initramfs = filepath.Join(l.guestDir(), "kernel"), filepath.Join(l.guestDir(), "initramfs")
	if asks {
		kernel, initramfs = kernel+"-dhcp", initramfs+"-dhcp"
	}
	program, err = qemu.Program()
	if _, serr := os.Stat(initramfs); err != nil || serr != nil { // it is written last
		if err == nil {
			err = l.makeImage(asks, kernel, initramfs)
		}
	}
	var missing *qemu.MissingError
	if errors.As(err, &missing) {
		err = api.Refuse(api.CodeLocal, what, err.Error(), "On Debian: "+missing.Cure(GuestRoots[0]))
	}
	return kernel, initramfs, program, err
}

// GuestImage is the kernel and the initramfs that the lab's guests are booted
// from, for guests that others start.
func (l *Lab) GuestImage() (kernel, initramfs string, err error) {
	kernel, initramfs, _, err = l.image(false, "there is nothing to boot guests from")
	return kernel, initramfs, err
}

func (l *Lab) makeImage(asks bool, kernel, initramfs string) error {
	im, err := qemu.Find(append(l.cfg.GuestRoots[:len(l.cfg.GuestRoots):len(l.cfg.GuestRoots)], GuestRoots...))
	if err != nil {
		return err
	}
	b, err := im.Initramfs(asks)
	if err != nil {
		return err
	}
	k, err := os.ReadFile(im.Kernel)
	if err != nil {
		return fmt.Errorf("guests' kernel: %w", err)
	}
	if err := os.MkdirAll(l.guestDir(), 0o700); err != nil {
		return fmt.Errorf("guests' directory: %w", err)
	}
	if err := errors.Join(os.WriteFile(kernel, k, 0o600), os.WriteFile(initramfs+".new", b, 0o600)); err != nil {
		return fmt.Errorf("guests' image: %w", err)
	}
	return os.Rename(initramfs+".new", initramfs)
}

// start starts the machine's QEMU on a host: with its device in the bridge and
// up, as hypervisors leave it. incoming is the URI that the guest is to come
// in at; empty for one that boots.
func (m machine) start(ctx context.Context, host, incoming string) (Daemon, error) {
	kernel, initramfs, program, err := m.lab.image(m.Asks, fmt.Sprintf("VM %q was not started", m.VM))
	if err != nil {
		return Daemon{}, err
	}
	g := qemu.Guest{
		Name: m.VM, MAC: m.MAC.String(), Addresses: slices.Concat(m.leased, m.Addresses), MTU: m.MTU, DHCP: m.Asks, Announce: m.Announce,
		Kernel: kernel, Initramfs: initramfs, Incoming: incoming,
		Monitor: m.path(host, "qmp"), Watch: m.path(host, "watch"), Serial: m.path(host, "serial"), SerialLog: m.logPath(host, "serial.log"),
	}
	if err := os.MkdirAll(filepath.Dir(g.Monitor), 0o700); err != nil {
		return Daemon{}, fmt.Errorf("directory of %s: %w", m.VM, err)
	}
	tap, err := m.tap(ctx, host)
	if err != nil {
		return Daemon{}, err
	}
	defer tap.Close()
	if err := m.place(host); err != nil {
		return Daemon{}, err
	}
	// Its log of a life before this one would say that it is ready.
	if err := os.Remove(g.SerialLog); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Daemon{}, fmt.Errorf("log of %s: %w", m.VM, err)
	}
	return launch{
		node: host, namespace: NSOfNode(m.Lab, host), dir: filepath.Dir(g.Monitor), log: m.logPath(host, "log"),
		argv: g.Command(program), files: []*os.File{tap},
	}.start()
}

// tap makes the machine's device on a host. One that a QEMU had which was just
// ended is busy until the last of its threads has ended.
func (m machine) tap(ctx context.Context, host string) (f *os.File, err error) {
	limit := poll(ctx, endLimit, func() (bool, error) {
		f, err = openTap(NSOfNode(m.Lab, host), TapName(m.VM))
		return !errors.Is(err, unix.EBUSY), nil
	})
	if err == nil && limit != nil {
		f.Close()
		return nil, limit
	}
	return f, err
}

// openTap makes a tap device in a namespace. It goes with the last open file
// of it.
func openTap(namespace, name string) (*os.File, error) {
	var f *os.File
	err := InNS(namespace, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("tap %s in %s: %w", name, namespace, err)
	}
	return f, nil
}

// place puts the machine's new device into the bridge and takes it up.
func (m machine) place(host string) error {
	node, err := openNS(NSOfNode(m.Lab, host))
	if err != nil {
		return err
	}
	defer node.Close()
	tap, err := node.LinkByName(TapName(m.VM))
	if err != nil {
		return fmt.Errorf("device of %s on %s: %w", m.VM, host, err)
	}
	bridge, err := node.LinkByName(m.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s on %s: %w", m.Bridge, host, err)
	}
	mac := m.MAC
	mac[0] = 0xfe // as in Prepare
	steps := []func() error{
		func() error { return node.sysctl("ipv6.conf."+tap.Attrs().Name+".disable_ipv6", "1") },
		func() error { return node.LinkSetHardwareAddr(tap, net.HardwareAddr(mac[:])) },
		func() error { return node.LinkSetMTU(tap, bridge.Attrs().MTU) },
		func() error {
			if m.Announce || m.Asks {
				return nil
			}
			return hush(node, tap)
		},
		func() error {
			if m.Alias == "" {
				return nil
			}
			return node.LinkSetAlias(tap, m.Alias)
		},
		func() error { return node.LinkSetMaster(tap, bridge) },
		func() error { return node.LinkSetUp(tap) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("device of %s on %s: %w", m.VM, host, err)
		}
	}
	return nil
}

// awaitReady waits until the guest has booted.
func (m machine) awaitReady(ctx context.Context, host string, d Daemon) error {
	err := poll(ctx, bootLimit, func() (bool, error) {
		if d.State() == "dead" {
			return false, m.ended(host)
		}
		return qemu.Ready(m.logPath(host, "serial.log"))
	})
	if err != nil {
		return fmt.Errorf("boot of %s: %w", m.VM, err)
	}
	return nil
}

// ended says how QEMU ended by itself.
func (m machine) ended(host string) error {
	b, err := os.ReadFile(m.logPath(host, "log"))
	if err != nil {
		b = []byte(err.Error())
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return api.Refuse(api.CodeLocal, fmt.Sprintf("VM %q does not run", m.VM), "its QEMU on "+host+" ended by itself", "Its log ends as above.", lines[max(0, len(lines)-5):]...)
}

// dial opens the monitor of the machine's QEMU on a host.
func (m machine) dial(ctx context.Context, host string) (*qemu.Monitor, error) {
	var mon *qemu.Monitor
	var last error
	err := poll(ctx, endLimit, func() (bool, error) {
		mon, last = qemu.Dial(ctx, m.path(host, "qmp"))
		return last == nil, nil
	})
	if errors.Is(err, errTimeout) {
		err = last
	}
	return mon, err
}

// remove ends the machine's QEMUs on all hosts, those too that a command did
// not live to note, and removes its files.
func (m machine) remove(ctx context.Context, noted []Daemon) error {
	for _, d := range noted {
		if err := d.kill(ctx); err != nil {
			return err
		}
	}
	dir := filepath.Dir(m.path("h1", ""))
	if err := m.end(ctx, dir+"/"); err != nil {
		return err
	}
	logs, err := filepath.Glob(m.logPath("*", "*log"))
	if err != nil {
		return fmt.Errorf("logs of %s: %w", m.VM, err)
	}
	for _, f := range append(logs, dir) {
		if err := os.RemoveAll(f); err != nil {
			return fmt.Errorf("files of %s: %w", m.VM, err)
		}
	}
	return nil
}

// end kills the processes of which the command line names files that begin so,
// and waits until they have ended.
func (m machine) end(ctx context.Context, files string) error {
	err := poll(ctx, 10*time.Second, func() (bool, error) {
		pids := m.lab.processesOf(files)
		for _, p := range pids {
			if err := unix.Kill(p, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return false, fmt.Errorf("kill process %d: %w", p, err)
			}
		}
		return len(pids) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("end %s: %w", m.VM, err)
	}
	return nil
}

// processesOf lists the processes on the lab's hosts that were started with
// files that begin so.
func (l *Lab) processesOf(files string) []int {
	names, err := namespaces(l.name)
	if err != nil {
		return nil
	}
	var inodes []string
	for _, n := range names {
		if i, ok := inode(n); ok {
			inodes = append(inodes, i)
		}
	}
	var pids []int
	for _, p := range processesIn(inodes) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
		if err == nil && bytes.Contains(b, []byte(files)) {
			pids = append(pids, p)
		}
	}
	return pids
}
