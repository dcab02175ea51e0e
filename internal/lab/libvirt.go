package lab

import (
	"context"
	"crypto/sha256"
	_ "embed" // the host's first process
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
)

//go:embed libvirt.sh
var libvirtScript string

// libvirtDir is where a host's libvirtd has everything that it has elsewhere
// in /etc/libvirt (etc), /run/libvirt (run) and /var (var).
func (l *Lab) libvirtDir(host string) string { return filepath.Join(l.nodeDir(host), "libvirt") }

// LibvirtSocket is the path of the socket of a host's libvirtd, for all rights
// on it.
func (l *Lab) LibvirtSocket(host string) string {
	return filepath.Join(l.libvirtDir(host), "run", "libvirt-sock")
}

// LibvirtURI is how virsh(1) is told of a host's libvirtd.
func (l *Lab) LibvirtURI(host string) string {
	return "qemu+unix:///system?socket=" + l.LibvirtSocket(host)
}

// LibvirtEtc is what is /etc/libvirt to a host's libvirtd; hooks are below it.
func (l *Lab) LibvirtEtc(host string) string { return filepath.Join(l.libvirtDir(host), "etc") }

// LibvirtLog is where a host's libvirtd keeps the logs of its guests' QEMUs.
func (l *Lab) LibvirtLog(host string) string {
	return filepath.Join(l.libvirtDir(host), "var", "log", "libvirt", "qemu")
}

// needLibvirt refuses to build what would fail for want of libvirt.
func (l *Lab) needLibvirt() error {
	if _, err := exec.LookPath("libvirtd"); err != nil {
		return api.Refuse(api.CodeLocal, fmt.Sprintf("lab %q was not built", l.name), "there is no libvirtd on the search path",
			"On Debian (these packages start no service): apt-get install --no-install-recommends qemu-system-x86 libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients")
	}
	return nil
}

// ensureLibvirt starts each host's libvirtd unless it runs, and waits until
// all can be connected to.
func (l *Lab) ensureLibvirt(ctx context.Context, s *state) (started bool, err error) {
	if !s.Topology.Libvirt {
		return false, nil
	}
	for _, n := range s.Topology.HostNodes() {
		if d, ok := s.libvirt(n.Name); ok && d.State() != "dead" {
			continue
		}
		d, err := l.startLibvirt(s.Topology, n)
		if err != nil {
			return started, err
		}
		started = true
		s.setLibvirt(d)
		if err := l.save(s); err != nil {
			return started, err
		}
	}
	for _, n := range s.Topology.HostNodes() {
		if err := l.awaitLibvirt(ctx, s, n.Name); err != nil {
			return started, err
		}
	}
	return started, nil
}

func (l *Lab) awaitLibvirt(ctx context.Context, s *state, host string) error {
	err := poll(ctx, startLimit, func() (bool, error) {
		if d, ok := s.libvirt(host); !ok || d.State() == "dead" {
			return false, errors.New("it ended by itself: see " + l.logPath(host+".libvirt"))
		}
		conn, err := net.Dial("unix", l.LibvirtSocket(host))
		if err == nil {
			conn.Close()
		}
		return err == nil, nil
	})
	if err != nil {
		return fmt.Errorf("libvirtd of %s: %w", host, err)
	}
	return nil
}

// KillLibvirt kills a host's libvirtd. Its guests live on, and it is started
// again at once.
func (l *Lab) KillLibvirt(host string) error {
	in, ok := inode(NSOfNode(l.name, host))
	if !ok {
		return l.noNode(host)
	}
	for _, p := range processesIn([]string{in}) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p)); err != nil || string(comm) != "libvirtd\n" {
			continue
		}
		if err := unix.Kill(p, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill libvirtd of %s: %w", host, err)
		}
	}
	return nil
}

func (l *Lab) startLibvirt(t Topology, n Node) (Daemon, error) {
	dir, shared := l.libvirtDir(n.Name), filepath.Join(l.dir(), "libvirt-cache")
	for _, d := range []string{shared, dir + "/etc/hooks", dir + "/run", dir + "/newrun/libvirt", dir + "/var/lib/libvirt", dir + "/var/log/libvirt/qemu", dir + "/var/cache/libvirt"} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return Daemon{}, fmt.Errorf("libvirt's directory: %w", err)
		}
	}
	files := libvirtFiles(l.name, t, n)
	for _, name := range []string{"passwd", "group"} {
		b, err := os.ReadFile("/etc/" + name)
		if err != nil {
			return Daemon{}, fmt.Errorf("libvirt's %s: %w", name, err)
		}
		if files[name] = string(b); !strings.Contains(files[name], "\nlibvirt-qemu:") {
			files[name] += libvirtUser[name]
		}
	}
	for _, name := range sortedKeys(files) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(files[name]), 0o644); err != nil {
			return Daemon{}, fmt.Errorf("libvirt's %s: %w", name, err)
		}
	}
	return launch{
		node: n.Name, namespace: NSOfNode(l.name, n.Name), dir: dir, log: l.logPath(n.Name + ".libvirt"),
		argv:  []string{"/bin/sh", "-c", libvirtScript, "libvirt", dir, n.Name, shared},
		clone: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID,
	}.start()
}

// libvirtUser is the user that Debian's qemu driver is compiled to know.
var libvirtUser = map[string]string{
	"passwd": "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n",
	"group":  "libvirt-qemu:x:64055:\n",
}

// libvirtFiles are the files of a host's libvirtd, by name below its
// directory.
func libvirtFiles(lab string, t Topology, n Node) map[string]string {
	// Daemons of one identity refuse to move a guest between them. It is the
	// same for the same host, so that one that is started again is known.
	id := sha256.Sum256([]byte(lab + "/" + n.Name))
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // version 4, as RFC 9562 has it
	hosts := "127.0.0.1 localhost\n"
	for _, o := range t.Nodes() {
		hosts += fmt.Sprintf("%s %s\n", o.Address.Addr(), o.Name)
	}
	return map[string]string{
		"hosts":         hosts,
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
		"etc/libvirtd.conf": fmt.Sprintf(`host_uuid = "%x-%x-%x-%x-%x"
listen_tls = 0
auth_unix_rw = "none"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
log_outputs = "3:stderr"
`, id[:4], id[4:6], id[6:8], id[8:10], id[10:16]),
		// Guests run as root, in the namespaces that libvirtd is in: whoever
		// may use a lab is root already.
		"etc/qemu.conf": fmt.Sprintf(`user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migration_address = "%s"
`, n.Address.Addr()),
		"etc/libvirt.conf": "",
	}
}
