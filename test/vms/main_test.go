// Package vms has tests with real guests: Linux under QEMU and under libvirt,
// on the hosts of a lab with real agents and the real overlay between them.
package vms

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
)

var (
	keep    = flag.Bool("keep", false, "leave the lab of a failed test for a look")
	program string // the culvert that labs run
	serial  atomic.Int32
)

// settle is how long a test waits for a state; a loaded machine gets it too.
const settle = 30 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		if os.Getenv("CULVERT_NOROOT") == "1" {
			fmt.Fprintln(os.Stderr, "tests with guests are skipped by CULVERT_NOROOT=1: they make namespaces, which needs root")
			return 0
		}
		fmt.Fprintln(os.Stderr, "tests with guests make namespaces: run as root, or set CULVERT_NOROOT=1 to skip them")
		return 1
	}
	if program = os.Getenv("CULVERT_BIN"); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "culvert-vms")
	if err != nil {
		fmt.Fprintln(os.Stderr, "directory for the program:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "culvert")
	build := exec.Command("go", "build", "-o", program, "culvert/cmd/culvert")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build culvert: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// guests is where the packages that guests are made of are unpacked: where
// `make stories` puts them, unless the runner says otherwise.
func guests(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("CULVERT_GUESTS"); dir != "" {
		return dir
	}
	dir, err := filepath.Abs("../../bin/debian")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// newLab builds a lab with a network blue of IPv4 and of the other subnets that
// are given.
func newLab(t *testing.T, top lab.Topology, more ...string) *lab.Lab {
	t.Helper()
	l := unbuilt(t)
	up(t, l, top, true)
	subnets := []*culvertv1.Subnet{{Prefix: "10.20.0.0/24"}}
	for _, p := range more {
		subnets = append(subnets, &culvertv1.Subnet{Prefix: p})
	}
	put(t, l, api.Wrap(&culvertv1.Network{
		ApiVersion: "culvert/v1alpha1", Kind: "Network", Metadata: &culvertv1.Metadata{Name: "blue", Tenant: "default"},
		Spec: &culvertv1.NetworkSpec{Subnets: subnets},
	}))
	return l
}

func up(t *testing.T, l *lab.Lab, top lab.Topology, empty bool) lab.UpResult {
	t.Helper()
	r, err := l.Up(t.Context(), top, empty)
	if err != nil {
		t.Fatalf("%v\n(%s)", err, hint)
	}
	return r
}

// hint goes with what may fail for want of a package.
const hint = "what guests are made of comes with: make stories"

// unbuilt names a lab and takes it down at the end: then nothing of it may be
// left.
func unbuilt(t *testing.T) *lab.Lab {
	t.Helper()
	name := fmt.Sprintf("v%xn%d", os.Getpid(), serial.Add(1))
	l, err := lab.New(name, lab.Config{Culvert: []string{program}, GuestRoots: []string{guests(t)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs(t, name)
			if *keep {
				t.Logf("lab kept: culvert lab status --lab %s", name)
				return
			}
		}
		if _, err := l.Down(context.Background()); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
		if left := l.Leaks(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if left := running(t, filepath.Join(lab.DefaultRoot, name)+"/"); len(left) > 0 {
			t.Errorf("left running: %v", left)
		}
	})
	return l
}

// running lists the processes on the machine that were started with a file of
// a lab, wherever they are.
func running(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir) {
			left = append(left, filepath.Dir(f)+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return left
}

// logs shows the end of each log of a lab.
func logs(t *testing.T, name string) {
	t.Helper()
	var files []string
	for _, pattern := range []string{"*.log", "*/libvirt/var/log/libvirt/qemu/*.log"} {
		found, err := filepath.Glob(filepath.Join(lab.DefaultRoot, name, pattern))
		if err != nil {
			t.Error(err)
		}
		files = append(files, found...)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		t.Logf("%s ends with:\n%s", path, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

// dial opens the cluster's API.
func dial(t *testing.T, l *lab.Lab) *client.Client {
	t.Helper()
	cfg, err := client.Load(l.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// put makes resources and returns them as the cluster has them.
func put(t *testing.T, l *lab.Lab, r ...*culvertv1.Resource) []*culvertv1.Change {
	t.Helper()
	c := dial(t, l)
	defer c.Close()
	res, err := c.Put(t.Context(), &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: r})
	if err != nil {
		t.Fatal(err)
	}
	return res.GetChanges()
}

// vm makes a VM.
func vm(t *testing.T, l *lab.Lab, spec lab.VMSpec) lab.VM {
	t.Helper()
	spec.Network = "blue"
	r, err := l.CreateVM(t.Context(), spec)
	if err != nil {
		t.Fatalf("%v\n(%s)", err, hint)
	}
	if len(r.Pending) > 0 {
		t.Fatalf("%s is not known on %v", spec.Name, r.Pending)
	}
	return r.VM
}

// reaches pings until all of a few pings come back.
func reaches(t *testing.T, l *lab.Lab, from, to string) {
	t.Helper()
	if err := reach(t, l, from, to); err != nil {
		t.Fatal(err)
	}
}

func reach(t *testing.T, l *lab.Lab, from, to string) error {
	t.Helper()
	var last lab.PingReport
	end := time.Now().Add(settle)
	for time.Now().Before(end) {
		r, err := l.PingVM(t.Context(), from, to, lab.PingOptions{Count: 3, Interval: 50 * time.Millisecond})
		if err != nil {
			return err
		}
		if last = r; r.OK() {
			return nil
		}
	}
	return fmt.Errorf("%s does not reach %s within %s: %s", from, to, settle, strings.TrimSpace(last.Text()))
}
