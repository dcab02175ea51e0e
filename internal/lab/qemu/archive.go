package qemu

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Archive is an initramfs in the making: a cpio archive of format newc
// (kernel: Documentation/driver-api/early-userspace/buffer-format.rst). Equal
// contents give equal bytes: names are sorted, times and owners are 0.
type Archive struct{ entries map[string]entry }

type entry struct {
	mode uint32 // as in stat(2)
	data []byte
}

const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

// Add puts a file in, with the directories above it. The name has no leading
// slash.
func (a *Archive) Add(name string, perm uint32, data []byte) {
	if a.entries == nil {
		a.entries = map[string]entry{}
	}
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		a.entries[d] = entry{modeDir | 0o755, nil}
	}
	a.entries[name] = entry{modeFile | perm, data}
}

// Bytes is the archive.
func (a *Archive) Bytes() []byte {
	names := make([]string, 0, len(a.entries))
	for n := range a.entries {
		names = append(names, n)
	}
	slices.SortFunc(names, strings.Compare)
	var b bytes.Buffer
	for i, n := range names {
		writeEntry(&b, i+1, n, a.entries[n])
	}
	writeEntry(&b, 0, "TRAILER!!!", entry{})
	pad(&b, 512)
	return b.Bytes()
}

func writeEntry(b *bytes.Buffer, inode int, name string, e entry) {
	links := 1
	if e.mode&modeDir != 0 {
		links = 2
	}
	fields := []uint32{uint32(inode), e.mode, 0, 0, uint32(links), 0, uint32(len(e.data)), 0, 0, 0, 0, uint32(len(name) + 1), 0}
	b.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(b, "%08x", f)
	}
	b.WriteString(name + "\x00")
	pad(b, 4)
	b.Write(e.data)
	pad(b, 4)
}

func pad(b *bytes.Buffer, to int) {
	for b.Len()%to != 0 {
		b.WriteByte(0)
	}
}
