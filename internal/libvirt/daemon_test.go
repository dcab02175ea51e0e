package libvirt

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert/internal/netnstest"
)

// realDaemon is a libvirtd of this test, in namespaces of its own: network,
// mounts, processes. All that it starts ends with it, for the shell below is
// process 1 of them.
type realDaemon struct {
	t   *testing.T
	ns  *netnstest.NS
	dir string
}

const daemonScript = `
D=$1; hostname "$2"
for f in passwd group hosts resolv.conf nsswitch.conf; do mount --bind $D/$f /etc/$f || exit; done
for p in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
  mkdir -p ${p#*:}; mount --bind $D/${p%%:*} ${p#*:} || exit; done
while :; do # until the file is gone, a daemon that ended is started anew
  libvirtd --listen --pid-file $D/libvirtd.pid --config /etc/libvirt/libvirtd.conf & wait $!
  [ -e $D/restart ] || break
done`

const daemonConf = `host_uuid = "%s"
listen_tls = 0
listen_tcp = 1
listen_addr = "%s"
auth_tcp = "none"
auth_unix_rw = "none"
unix_sock_group = "root"
log_outputs = "2:file:%s/libvirtd.log"
max_workers = 5
`

const qemuConf = `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migration_address = "%s"
`

// startDaemon starts a daemon. cache is shared by the
// daemons of a test: what QEMU can do is probed once.
func startDaemon(t *testing.T, ns *netnstest.NS, name, addr, cache string) *realDaemon {
	t.Helper()
	for _, tool := range []string{"libvirtd", "virsh", "qemu-system-x86_64", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: apt-get install --no-install-recommends libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86", err)
		}
	}
	dir, err := os.MkdirTemp("", "lv") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &realDaemon{t: t, ns: ns, dir: dir}
	for _, sub := range []string{"etc/hooks", "run", "lib", "log"} {
		d.must(os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	d.must(os.Symlink(cache, filepath.Join(dir, "cache")))
	// The driver looks its compiled-in user up before it reads its configuration,
	// and every daemon its own name, which must not wait for DNS.
	passwd, err := os.ReadFile("/etc/passwd")
	d.must(err)
	group, err := os.ReadFile("/etc/group")
	d.must(err)
	for name, content := range map[string]string{
		"etc/libvirtd.conf": fmt.Sprintf(daemonConf, fmt.Sprintf("7f3c0c5e-0000-4000-8000-%012d", len(addr)*1000+int(addr[len(addr)-1])), addr, dir),
		"etc/qemu.conf":     fmt.Sprintf(qemuConf, addr),
		"etc/libvirt.conf":  "",
		"passwd":            string(passwd) + "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\n",
		"group":             string(group) + "libvirt-qemu:x:64055:\n",
		"hosts":             "127.0.0.1 localhost\n" + addr + " " + name + "\n",
		"resolv.conf":       "",
		"nsswitch.conf":     "hosts: files\npasswd: files\ngroup: files\n",
		"restart":           "",
		"answers":           "",
	} {
		d.must(os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	program, err := os.Executable()
	d.must(err)
	_, _, err = Hooks{Dir: filepath.Join(dir, "etc/hooks"), Program: program, Socket: d.answers()}.Install()
	d.must(err)
	var out bytes.Buffer
	cmd := exec.Command("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-c", daemonScript, "sh", dir, name)
	cmd.Stdout, cmd.Stderr = &out, &out
	// The signal at the parent's death is about the thread that started it, so
	// that one stays until the end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		_ = ns.Run(func() error {
			err := cmd.Start()
			started <- err
			if err != nil {
				return err
			}
			return cmd.Wait()
		})
	}()
	d.must(<-started)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if log, err := os.ReadFile(filepath.Join(dir, "libvirtd.log")); t.Failed() && err == nil {
			t.Logf("%s: %s%s", name, out.String(), log)
		}
	})
	return d
}

// answers is the file that stands for the agent of the daemon's host: its lines
// are MACs that are refused.
func (d *realDaemon) answers() string { return filepath.Join(d.dir, "answers") }

// ready waits until the daemon answers.
func (d *realDaemon) ready() {
	d.t.Helper()
	poll(d.t, d.dir+" answers", func() bool {
		_, err := d.tryVirsh("version")
		return err == nil
	})
}

func (d *realDaemon) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *realDaemon) socket() string { return filepath.Join(d.dir, "run/libvirt-sock") }
func (d *realDaemon) uri() string    { return "qemu+unix:///system?socket=" + d.socket() }

func (d *realDaemon) tryVirsh(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "virsh", append([]string{"-c", d.uri()}, args...)...).CombinedOutput()
	return string(out), err
}

func (d *realDaemon) virsh(args ...string) string {
	d.t.Helper()
	out, err := d.tryVirsh(args...)
	if err != nil {
		d.t.Fatalf("virsh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// file writes a file that virsh may be given.
func (d *realDaemon) file(name, content string) string {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	d.must(os.WriteFile(path, []byte(content), 0o644))
	return path
}

// kill kills the processes of that name in the daemon's network namespace.
func (d *realDaemon) kill(name string) {
	d.t.Helper()
	mine, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", int(d.ns.Handle)))
	d.must(err)
	all, err := filepath.Glob("/proc/[0-9]*/comm")
	d.must(err)
	killed := 0
	for _, path := range all {
		comm, _ := os.ReadFile(path) // it may have ended
		net, _ := os.Readlink(filepath.Join(filepath.Dir(path), "ns/net"))
		var pid int
		if n, _ := fmt.Sscanf(path, "/proc/%d/", &pid); n == 1 && net == mine && strings.HasPrefix(string(comm), name) {
			d.must(syscall.Kill(pid, syscall.SIGKILL))
			killed++
		}
	}
	if killed == 0 {
		d.t.Fatalf("no %s to kill", name)
	}
}

// poll waits for something that another process does.
func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%s: not in a minute\n%s", what, buf[:runtime.Stack(buf, false)])
		}
	}
}

// guestXML is a guest that boots no further than its firmware, which is all
// that its life as a domain needs.
func guestXML(name, nics string) string {
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name>
  <memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features><cpu mode='custom'><model>qemu64</model></cpu>
  <on_crash>destroy</on_crash>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>%s
    <controller type='pci' index='0' model='pcie-root'/><controller type='pci' index='1' model='pcie-root-port'/><controller type='pci' index='2' model='pcie-root-port'/><controller type='pci' index='3' model='pcie-root-port'/>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>`, name, nics)
}

func nic(mac, bridge, alias string) string {
	s := fmt.Sprintf("<interface type='bridge'><mac address='%s'/><source bridge='%s'/><model type='virtio'/>", mac, bridge)
	if alias != "" {
		s += "<alias name='" + alias + "'/>"
	}
	return s + "</interface>"
}
