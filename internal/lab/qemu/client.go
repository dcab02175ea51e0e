package qemu

import (
	"debug/elf"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// libraryDirs are where a distribution keeps libraries, as its loader has it
// built in: Debian's first, then those of others.
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib"}

// findClient looks for the DHCP client and for what it is linked to. One whose
// libraries are not all there is none. dhcpcd and not busybox's, which Debian
// builds without DHCPv6: it speaks both, reads router advertisements itself, and
// asks whether its address is another's, as most images do.
func (m *Image) findClient() {
	for _, root := range m.roots {
		for _, name := range []string{"usr/sbin/dhcpcd", "sbin/dhcpcd"} {
			p := filepath.Join(root, name)
			if libraries, ok := m.linked(p); ok {
				m.Client, m.Libraries = p, libraries
				return
			}
		}
	}
}

// linked lists the loader of a program and the libraries that it needs, and
// those that they need. It is false if one of them is not there, or the program
// itself.
func (m *Image) linked(program string) (found []Library, ok bool) {
	seen := map[string]bool{}
	for next := []string{program}; len(next) > 0; next = next[1:] {
		f, err := elf.Open(next[0])
		if err != nil {
			return nil, false
		}
		needs, err := f.ImportedLibraries()
		loader := interpreter(f)
		f.Close()
		if err != nil {
			return nil, false
		}
		if loader != "" {
			l, ok := m.file(loader)
			if !ok {
				return nil, false
			}
			seen[filepath.Base(loader)] = true
			found = append(found, l)
		}
		for _, name := range needs {
			if seen[name] {
				continue
			}
			seen[name] = true
			l, ok := m.sharedObject(name)
			if !ok {
				return nil, false
			}
			found, next = append(found, l), append(next, l.Path)
		}
	}
	return found, true
}

func (m *Image) sharedObject(name string) (Library, bool) {
	for _, dir := range libraryDirs {
		if l, ok := m.file(filepath.Join(dir, name)); ok {
			return l, true
		}
	}
	return Library{}, false
}

// file finds a file below one of the roots.
func (m *Image) file(name string) (Library, bool) {
	for _, root := range m.roots {
		p := filepath.Join(root, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return Library{p, name}, true
		}
	}
	return Library{}, false
}

// interpreter is the path of a program's loader without its leading slash;
// empty for none.
func interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return ""
		}
		return strings.Trim(string(b), "/\x00")
	}
	return ""
}
