package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"culvert/internal/api"
)

// HooksDir is where libvirt looks for hooks.
const HooksDir = "/etc/libvirt/hooks"

// signature is the line by which a script of ours is known.
const signature = "# Written by culvert; culvert libvirt remove-hooks takes it away."

const script = `#!/bin/sh
%s
# Asks this host's agent whether a guest's ports are ready, before the guest
# starts or arrives here. Without the program nobody is asked.
[ -x %[2]s ] || exit 0
exec %[2]s libvirt hook --agent-socket %[3]s -- "$@"
`

// Hooks is where the hook scripts go.
type Hooks struct {
	Dir     string // HooksDir, but for tests
	Program string // path of culvert
	Socket  string // of the agent
	// Single: the daemon runs one script, not those of a folder (libvirt before
	// 6.5.0).
	Single bool
}

// path is where the script goes: beside other programs' in the folder that
// libvirt runs in the order of names, or alone.
func (h Hooks) path() string {
	if h.Single {
		return filepath.Join(h.Dir, "qemu")
	}
	return filepath.Join(h.Dir, "qemu.d", "50-culvert")
}

// Install writes the script, and reports its path and whether that changed
// anything. A script of somebody else is left alone and refused. libvirt looks
// for scripts when its daemon starts: if there was none, it has to be
// restarted.
func (h Hooks) Install() (path string, changed bool, err error) {
	path = h.path()
	content := fmt.Appendf(nil, script, signature, quote(h.Program), quote(h.Socket))
	old, err := h.read("The hook was not written", path)
	if err != nil || bytes.Equal(old, content) {
		return path, false, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return path, false, fmt.Errorf("make folder of hooks: %w", err)
	}
	// Beside the folder, for whatever executable is in it gets run.
	f, err := os.CreateTemp(h.Dir, ".culvert-*")
	if err != nil {
		return path, false, fmt.Errorf("write hook: %w", err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(0o755), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return path, false, errors.Join(fmt.Errorf("write hook: %w", err), os.Remove(f.Name()))
	}
	return path, true, nil
}

// Remove takes scripts of ours away, in both places, and reports which. One of
// somebody else is none of ours.
func (h Hooks) Remove() (removed []string, err error) {
	for _, single := range []bool{false, true} {
		path := Hooks{Dir: h.Dir, Single: single}.path()
		old, err := h.read("The hook was not removed", path)
		if err != nil && !single {
			return removed, err
		}
		if err != nil || old == nil {
			continue // another's own qemu script beside our folder is nothing to complain of
		}
		if err := os.Remove(path); err != nil {
			return removed, fmt.Errorf("remove hook: %w", err)
		}
		removed = append(removed, path)
	}
	return removed, nil
}

// read reads our script; nil if there is none, a refusal if it is another's.
func (h Hooks) read(what, path string) ([]byte, error) {
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read hook: %w", err)
	}
	if !bytes.Contains(old, []byte(signature)) {
		return nil, api.Refuse(api.CodeHook, what, path+" is there and is not culvert's", "Keep it, and have it end with this line, stdin unread: exec "+h.Program+" libvirt hook -- \"$@\"")
	}
	return old, nil
}

// quote makes one word of the shell of s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

var versionText = regexp.MustCompile(`\(libvirt\) (\d+)\.(\d+)`)

// SingleHook reports whether this host's daemon is one that runs a single
// script. Without a daemon to ask, it is not.
func SingleHook(ctx context.Context) bool {
	for _, daemon := range []string{"virtqemud", "libvirtd"} {
		out, err := exec.CommandContext(ctx, daemon, "--version").Output()
		if err == nil {
			return singleHook(string(out))
		}
	}
	return false
}

func singleHook(version string) bool {
	m := versionText.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1]) // digits, by the expression
	minor, _ := strconv.Atoi(m[2])
	return major < 6 || major == 6 && minor < 5
}
