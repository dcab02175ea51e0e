package vms

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"culvert/internal/lab/qemu"
)

// hostInit is the first process of a guest that is to be a host: it loads what
// the agent has the kernel load by itself where modprobe is, and runs the test
// program that stands at /job.
const hostInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox dmesg -n 1
while read -r module; do
	/bin/busybox insmod "$module" || echo "module $module was not loaded"
done </etc/modules
export PATH=/tools
echo "kernel $(/bin/busybox uname -r)"
cd /tmp
/job -test.v -test.run "$(/bin/busybox sed 's/.* job=\([^ ]*\).*/\1/' /proc/cmdline)" 2>&1
echo "job ends $?"
/bin/busybox poweroff -f
`

// hostModules are what a host needs of a kernel that has nothing built in.
var hostModules = []string{
	"af_packet", "veth", "tun", "bridge", "vxlan", "nf_tables", "nft_objref", "nft_meta_bridge", "sch_ingress", "cls_bpf",
}

// hostTools are commands that the tests of the kernel type.
var hostTools = []string{"ip", "bridge", "nft"}

// The programs load and do their work on the kernel of a distribution, too: the
// contract of the kernel edge runs in a guest with Debian's. That of Debian 12
// (6.1) has no tcx, and a verifier that knows less.
func TestProgramsOnADistributionsKernel(t *testing.T) {
	t.Parallel()
	image, err := qemu.Find([]string{guests(t)})
	if err != nil {
		t.Fatalf("%v\n(%s)", err, hint)
	}
	dir := t.TempDir()
	job := filepath.Join(dir, "job")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", job, "culvert/internal/kernel")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests of the kernel edge: %v\n%s", err, out)
	}
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, hostArchive(t, image, job), 0o600); err != nil {
		t.Fatal(err)
	}
	out := boot(t, image, initrd, "TestProgramContract")
	kernel := regexp.MustCompile(`(?m)^kernel (\S+)$`).FindSubmatch(out)
	if kernel == nil {
		t.Fatalf("the guest did not come up:\n%s", out)
	}
	passed := bytes.Count(out, []byte("    --- PASS: "))
	if !bytes.Contains(out, []byte("\njob ends 0")) || passed < 14 || bytes.Contains(out, []byte("--- FAIL")) || bytes.Contains(out, []byte("--- SKIP")) {
		t.Errorf("%d cases passed in the guest, want 14 at least and no other:\n%s", passed, out[max(0, len(out)-6000):])
	}
	t.Logf("%d cases on %s", passed, kernel[1])
}

// hostArchive is the file system of such a guest.
func hostArchive(t *testing.T, image qemu.Image, job string) []byte {
	t.Helper()
	var a qemu.Archive
	add := func(name, file string) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		a.Add(name, 0o755, b)
	}
	a.Add("init", 0o755, []byte(hostInit))
	add("bin/busybox", image.Busybox)
	add("job", job)
	modules, err := image.ModuleFiles(hostModules)
	if err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for _, m := range modules {
		name := "lib/modules/" + path.Base(m)
		add(name, m)
		list.WriteString("/" + name + "\n")
	}
	a.Add("etc/modules", 0o644, []byte(list.String()))
	library := regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)
	for _, tool := range hostTools {
		p, err := exec.LookPath(tool)
		if err != nil {
			t.Fatalf("%v\n(%s)", err, hint)
		}
		add("tools/"+tool, p)
		out, err := exec.CommandContext(t.Context(), "ldd", p).CombinedOutput()
		if err != nil {
			t.Fatalf("libraries of %s: %v\n%s", p, err, out)
		}
		for _, m := range library.FindAllSubmatch(out, -1) {
			file := string(m[1])
			if strings.Contains(path.Base(file), "ld-linux") {
				add(strings.TrimPrefix(file, "/"), file) // named by the program itself
				continue
			}
			add("lib/x86_64-linux-gnu/"+path.Base(file), file)
		}
	}
	return a.Bytes()
}

// boot runs such a guest to its end and returns all that it printed.
func boot(t *testing.T, image qemu.Image, initrd, tests string) []byte {
	t.Helper()
	program, err := qemu.Program()
	if err != nil {
		t.Fatalf("%v\n(%s)", err, hint)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", image.Kernel, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 quiet cryptomgr.notests mitigations=off job="+tests)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("guest: %v\n%s", err, out)
	}
	return bytes.ReplaceAll(out, []byte("\r"), nil)
}
