package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ring is a group of tests with the same needs.
type ring struct {
	name, what string
	budget     time.Duration // what it may take on two cores, warm
	limit      time.Duration // when go test is given up
	root       bool
	race       bool
	depth      int // how deep a test's name may be to count as a test of its own
	flags      []string
	needs      []need
}

// need is something that a ring takes from the distribution.
type need struct {
	probe string // a command, or a path in which * may stand for anything
	debs  string // what Debian calls it; empty if it is unpacked alone
	// unpack is a package that brings a service: it is laid below binDir and
	// never installed, so that no unit of it ever comes to this machine.
	unpack string
	// meta says that what is unpacked is the first package that this one
	// depends on: Debian names its newest kernel so.
	meta bool
}

// Commands that tests damage and look at a kernel with. The product itself
// runs none of them.
var kernelTools = []need{
	{probe: "ip", debs: "iproute2"}, {probe: "ping", debs: "iputils-ping"}, {probe: "arping", debs: "iputils-arping"},
	{probe: "nft", debs: "libnftables1", unpack: "nftables"}, {probe: "/usr/share/doc/libedit2", debs: "libedit2"},
}

// The hypervisor whose daemons tests run in namespaces of their own. None of
// these packages starts a service.
var hypervisor = []need{
	{probe: "qemu-system-x86_64", debs: "qemu-system-x86"},
	{probe: "libvirtd", debs: "libvirt-daemon"}, {probe: "virsh", debs: "libvirt-clients"},
	{probe: "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so", debs: "libvirt-daemon-driver-qemu"},
}

// What else real guests are made of; a kernel that is unpacked is not what the
// machine boots.
var guests = []need{
	{probe: unpacked() + "/bin/busybox", unpack: "busybox-static"},
	{probe: unpacked() + "/boot/vmlinuz-*", unpack: "linux-image-cloud-amd64", meta: true},
	{probe: unpacked() + "/usr/sbin/dhcpcd", unpack: "dhcpcd-base"},
}

var rings = []ring{
	{name: "pure", what: "values, cores, codecs, the model kernel, the store; no root", budget: 2 * time.Minute, limit: 15 * time.Minute,
		race: true, depth: 1, flags: []string{"-shuffle=on"},
		needs: []need{{probe: "gcc", debs: "gcc"}, {probe: "/usr/include/stdlib.h", debs: "libc6-dev"}}}, // the race detector links C
	{name: "check", what: "format, vet, staticcheck, generated code, house rules", budget: time.Minute, limit: 15 * time.Minute,
		depth: 1, needs: []need{{probe: "protoc", debs: "protobuf-compiler"}}}, // generated code is made again and compared
	{name: "kernel", what: "this machine's kernel, in namespaces of their own", budget: 2 * time.Minute, limit: 15 * time.Minute,
		root: true, depth: 1, needs: slices.Concat(kernelTools, hypervisor)},
	{name: "sim", what: "a manager and many agents in one thread, from a seed", budget: 3 * time.Minute, limit: 2 * time.Hour,
		depth: 1},
	{name: "stories", what: "whole labs: processes, namespaces, guests", budget: 9 * time.Minute, limit: 2 * time.Hour,
		root: true, depth: 2, flags: []string{"-p=1"}, needs: slices.Concat(kernelTools, hypervisor, guests)},
}

// choose finds rings by name.
func choose(names []string) ([]ring, error) {
	var chosen []ring
	for _, n := range names {
		i := slices.IndexFunc(rings, func(g ring) bool { return g.name == n })
		if i < 0 {
			return nil, fmt.Errorf("there is no ring %q", n)
		}
		chosen = append(chosen, rings[i])
	}
	if len(chosen) == 0 {
		return nil, errors.New("no ring named: pure, check, kernel, sim, stories")
	}
	return chosen, nil
}

// pkg is a package of this module as go list shows it.
type pkg struct {
	ImportPath                string
	TestGoFiles, XTestGoFiles []string
	TestImports, XTestImports []string
}

func (p pkg) hasTests() bool { return len(p.TestGoFiles)+len(p.XTestGoFiles) > 0 }

// ringOf puts a package into the one ring that runs its tests. What builds
// namespaces in its tests needs root, and is known by what the tests import.
func ringOf(p pkg) string {
	name := strings.TrimPrefix(p.ImportPath, "culvert/")
	below := func(dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
	namespaces := func(imports []string) bool {
		return slices.ContainsFunc(imports, func(im string) bool {
			return im == "culvert/internal/netnstest" || im == "culvert/internal/lab"
		})
	}
	switch {
	case below("internal/house"):
		return "check"
	case below("internal/sim"):
		return "sim"
	case below("test"):
		return "stories"
	case name == "internal/netnstest", name == "internal/lab", namespaces(p.TestImports), namespaces(p.XTestImports):
		return "kernel"
	}
	return "pure"
}

func listPackages(ctx context.Context) ([]pkg, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-e", "-json=ImportPath,TestGoFiles,XTestGoFiles,TestImports,XTestImports", "./...")
	var talk tail
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, talk.String())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		all = append(all, p)
	}
}

// unpacked is where packages with services are laid.
func unpacked() string {
	dir, err := filepath.Abs(filepath.Join(binDir, "debian"))
	if err != nil { // only without a working directory, and then nothing else works
		return "/nonexistent"
	}
	return dir
}

// lookUnpacked makes the commands of unpacked packages found, after those that
// the machine has.
func lookUnpacked() error {
	path := os.Getenv("PATH")
	for _, dir := range []string{"usr/sbin", "usr/bin", "bin"} {
		path += ":" + filepath.Join(unpacked(), dir)
	}
	return os.Setenv("PATH", path)
}

func (n need) met() bool {
	if filepath.IsAbs(n.probe) {
		found, err := filepath.Glob(n.probe)
		return err == nil && len(found) > 0
	}
	_, err := exec.LookPath(n.probe)
	return err == nil
}

// missing lists the packages to install for the rings, in the order named.
func missing(chosen []ring) []string {
	var debs []string
	for _, g := range chosen {
		for _, n := range g.needs {
			if n.debs != "" && !n.met() && !slices.Contains(debs, n.debs) {
				debs = append(debs, n.debs)
			}
		}
	}
	return debs
}

// toUnpack lists what to unpack for the rings, in the order named.
func toUnpack(chosen []ring) []need {
	var debs []need
	for _, g := range chosen {
		for _, n := range g.needs {
			known := slices.ContainsFunc(debs, func(o need) bool { return o.unpack == n.unpack })
			if n.unpack != "" && !n.met() && !known {
				debs = append(debs, n)
			}
		}
	}
	return debs
}

// install brings what the rings need from Debian. Without root it says what is
// missing and goes on: each ring then tells what it could not do.
func (r runner) install(ctx context.Context, chosen []ring) error {
	debs, apart := missing(chosen), toUnpack(chosen) // both before debs are there: one probe may tell of both
	if len(debs)+len(apart) == 0 {
		return nil
	}
	if !r.root {
		fmt.Fprintf(r.out, "Missing: %s. As root: apt-get install %[1]s\n", strings.Join(debs, " "))
		return nil
	}
	steps := [][]string{{"apt-get", "update", "-q"}}
	if len(debs) > 0 {
		fmt.Fprintf(r.out, "Installing %s\n", strings.Join(debs, " "))
		steps = append(steps, append([]string{"apt-get", "install", "-q", "-y", "--no-install-recommends"}, debs...))
	}
	for _, args := range steps {
		if err := command(ctx, ".", args...); err != nil {
			return err
		}
	}
	return r.unpack(ctx, apart)
}

// unpack lays packages below binDir without installing them.
func (r runner) unpack(ctx context.Context, apart []need) error {
	if len(apart) == 0 {
		return nil
	}
	var debs []string
	for _, n := range apart {
		deb := n.unpack
		if n.meta {
			var err error
			if deb, err = firstDependency(ctx, deb); err != nil {
				return err
			}
		}
		debs = append(debs, deb)
	}
	fmt.Fprintf(r.out, "Unpacking %s\n", strings.Join(debs, " "))
	dir, err := os.MkdirTemp("", "culvert-debs-")
	if err != nil {
		return fmt.Errorf("folder for packages: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := command(ctx, dir, append([]string{"apt-get", "download", "-q"}, debs...)...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return fmt.Errorf("packages: %w", err)
	}
	for _, f := range files {
		if err := command(ctx, dir, "dpkg-deb", "-x", f, unpacked()); err != nil {
			return err
		}
	}
	return nil
}

// firstDependency is the first package that one depends on.
func firstDependency(ctx context.Context, deb string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", deb).Output()
	if err != nil {
		return "", fmt.Errorf("what %s depends on: %w", deb, err)
	}
	for line := range strings.Lines(string(out)) {
		if dep, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			return dep, nil
		}
	}
	return "", fmt.Errorf("%s depends on nothing", deb)
}

func command(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func hasRace() bool { return len(missing(rings[:1])) == 0 }
