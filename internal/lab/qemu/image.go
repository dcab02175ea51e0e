package qemu

import (
	"debug/elf"
	_ "embed" // the guest's own programs
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed init.sh
var initScript []byte

// What tells the DHCP client of guests that ask for their addresses what to
// ask for, and what it runs when it was told something.
//
//go:embed dhcpcd.conf
var clientConfig []byte

//go:embed told.sh
var clientScript []byte

// needed are the modules of a guest's NIC: everything else that it needs,
// kernels have built in.
var needed = []string{"virtio_pci", "virtio_net", "af_packet"}

// Image is what guests are booted from. All paths are absolute.
type Image struct {
	Kernel  string // bzImage
	Modules string // directory lib/modules/RELEASE that belongs to it
	Busybox string // statically linked
	// Client is the DHCP client of guests that ask for their addresses, dhcpcd;
	// empty if there is none. Guests that do not ask need none.
	Client    string
	Libraries []Library // of the client, its loader among them
	roots     []string  // that all of it was looked for in
}

// Library is a file that a program is linked to.
type Library struct {
	Path string // of it here
	Name string // of it in the guest, without a leading slash
}

// MissingError says what a guest cannot be booted without.
type MissingError struct {
	What string   // in words
	Seen []string // where it was looked for
	cure string   // a command for Debian; %s is the folder to unpack in
}

// Error names what is missing and where it was looked for.
func (e *MissingError) Error() string {
	return fmt.Sprintf("there is no %s in %s", e.What, strings.Join(e.Seen, ", "))
}

// Cure is the command that brings it on Debian. What only a guest uses is
// unpacked into a folder below the given one and not installed.
func (e *MissingError) Cure(root string) string { return strings.ReplaceAll(e.cure, "%s", root) }

// How to get what guests are made of. A kernel that is unpacked changes
// nothing of how the machine boots.
const (
	cureQEMU   = "apt-get install --no-install-recommends qemu-system-x86"
	cureUnpack = "cd $(mktemp -d) && apt-get download busybox-static dhcpcd-base $(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2}') && for d in *.deb; do dpkg-deb -x $d %s; done"
)

// Program is the path of QEMU, looked for on the search path; a *MissingError
// if it is not there.
func Program() (string, error) {
	p, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return "", &MissingError{"qemu-system-x86_64", filepath.SplitList(os.Getenv("PATH")), cureQEMU}
	}
	return p, nil
}

// Find looks for what guests need below root directories of unpacked or
// installed packages; the first root that has it wins. What is missing is a
// *MissingError.
func Find(roots []string) (Image, error) {
	m := Image{roots: roots}
	for _, root := range roots {
		if m.Kernel == "" {
			m.Kernel, m.Modules = findKernel(root)
		}
		for _, b := range []string{"bin/busybox", "usr/bin/busybox"} {
			if p := filepath.Join(root, b); m.Busybox == "" && static(p) {
				m.Busybox = p
			}
		}
	}
	if m.Kernel == "" {
		return Image{}, &MissingError{"Linux kernel (boot/vmlinuz-*) with its modules, not compressed,", roots, cureUnpack}
	}
	if m.Busybox == "" {
		return Image{}, &MissingError{"statically linked busybox", roots, cureUnpack}
	}
	m.findClient()
	return m, nil
}

// findKernel finds the newest kernel below a root by name that has modules
// which can be loaded without decompressing them.
func findKernel(root string) (kernel, modules string) {
	found, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return "", "" // the pattern is ours and right
	}
	slices.Sort(found)
	for _, k := range slices.Backward(found) {
		dir := filepath.Join(root, "lib/modules", strings.TrimPrefix(filepath.Base(k), "vmlinuz-"))
		if _, err := loadOrder(dir, needed); err == nil {
			return k, dir
		}
	}
	return "", ""
}

// static reports whether a program runs without a loader and libraries.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// Initramfs is the file system that a guest runs in: busybox, the modules of
// its NIC, an init of ours, and for a guest that asks for its addresses a DHCP
// client. It is the same for all such guests, and the same bytes for the same
// image. A client that is missing is a *MissingError.
func (m Image) Initramfs(asks bool) ([]byte, error) {
	var a Archive
	for _, d := range []string{"proc/", "sys/", "dev/", "tmp/"} {
		a.Add(d+".keep", 0o644, nil)
	}
	a.Add("init", 0o755, initScript)
	files := []Library{{m.Busybox, "bin/busybox"}}
	if asks {
		if m.Client == "" {
			return nil, &MissingError{"DHCP client (dhcpcd) with the libraries that it is linked to", m.roots, cureUnpack}
		}
		a.Add("etc/dhcpcd.conf", 0o644, clientConfig)
		a.Add("etc/told.sh", 0o755, clientScript)
		a.Add("var/lib/dhcpcd/.keep", 0o644, nil)
		files = append(append(files, Library{m.Client, "bin/dhcpcd"}), m.Libraries...)
	}
	for _, f := range files {
		b, err := os.ReadFile(f.Path)
		if err != nil {
			return nil, fmt.Errorf("guest's programs: %w", err)
		}
		a.Add(f.Name, 0o755, b)
	}
	order, err := m.ModuleFiles(needed)
	if err != nil {
		return nil, fmt.Errorf("guest's modules: %w", err)
	}
	var list strings.Builder
	for _, file := range order {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("guest's modules: %w", err)
		}
		name := "lib/modules/" + path.Base(file)
		a.Add(name, 0o644, b)
		list.WriteString("/" + name + "\n")
	}
	a.Add("etc/modules", 0o644, []byte(list.String()))
	return a.Bytes(), nil
}

// ModuleFiles lists the files of the kernel's modules of these names, and of
// what they depend on, in the order in which they can be loaded. Those that are
// built in are left out.
func (m Image) ModuleFiles(names []string) ([]string, error) { return loadOrder(m.Modules, names) }

// loadOrder lists the files of the named modules and of what they depend on,
// each after what it needs. The dependencies are read from the modules
// themselves (section .modinfo): a kernel package that was only unpacked has
// no modules.dep, which depmod(8) makes.
func loadOrder(modules string, names []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(filepath.Join(modules, "kernel"), func(p string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(p), ".ko"); err == nil && ok && !d.IsDir() {
			files[moduleName(name)] = p
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	done := map[string]bool{}
	for line := range strings.Lines(string(builtin)) {
		done[moduleName(strings.TrimSuffix(path.Base(strings.TrimSpace(line)), ".ko"))] = true
	}
	var order []string
	var add func(string) error
	add = func(name string) error {
		if name = moduleName(name); done[name] {
			return nil
		}
		done[name] = true
		file, ok := files[name]
		if !ok {
			return fmt.Errorf("no module %s.ko in %s", name, modules)
		}
		depends, err := dependencies(file)
		if err != nil {
			return err
		}
		for _, d := range depends {
			if err := add(d); err != nil {
				return err
			}
		}
		order = append(order, file)
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName is a module's name as the kernel compares it.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

var errNoInfo = errors.New("no section .modinfo")

func dependencies(module string) ([]string, error) {
	f, err := elf.Open(module)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", module, err)
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("module %s: %w", module, errNoInfo)
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", module, err)
	}
	for kv := range strings.SplitSeq(string(info), "\x00") {
		if v, ok := strings.CutPrefix(kv, "depends="); ok && v != "" {
			return strings.Split(v, ","), nil
		}
	}
	return nil, nil
}
