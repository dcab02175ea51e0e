// Package survive shows on real processes and kernels what the data plane does
// not notice: daemons that are killed, frozen, or come back with less than
// they had; and what it must notice: tables that somebody else has changed.
//
// Every check reads the kernels by itself, and events are counted by a
// netlink listener of its own in each host's namespace.
package survive

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"culvert/internal/lab"
)

// program is the culvert that labs run: CULVERT_BIN, else built once.
var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		if os.Getenv("CULVERT_NOROOT") == "1" {
			fmt.Fprintln(os.Stderr, "labs are skipped by CULVERT_NOROOT=1: they make namespaces, which needs root")
			return 0
		}
		fmt.Fprintln(os.Stderr, "labs make namespaces: run as root, or set CULVERT_NOROOT=1 to skip them")
		return 1
	}
	if program = os.Getenv("CULVERT_BIN"); program == "" {
		dir, err := os.MkdirTemp("", "culvert-survive")
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
	}
	if !filepath.IsAbs(program) {
		fmt.Fprintln(os.Stderr, "CULVERT_BIN must be an absolute path:", program)
		return 1
	}
	// Most of what these tests do is to wait and to see that nothing happens,
	// which more labs than processors can do at once.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil {
		if n, err := strconv.Atoi(f.Value.String()); err == nil && n < labsAtOnce {
			_ = f.Value.Set(strconv.Itoa(labsAtOnce)) // a number is always taken
		}
	}
	code := m.Run()
	if left := leftBehind(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "labs left behind:", left)
		return 1
	}
	return code
}

// labsAtOnce is how many labs stand at the same time.
const labsAtOnce = 4

// leftBehind takes down what labs of this process there still are, and names
// them.
func leftBehind() []string {
	var left []string
	for i := range serial.Load() {
		name := labName(i + 1)
		l, err := lab.New(name, lab.Config{Culvert: []string{program}})
		if err != nil || len(l.Leaks()) == 0 {
			continue
		}
		if keepLabs() {
			continue
		}
		left = append(left, name)
		if _, err := l.Down(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "take down", name, err)
		}
	}
	return left
}

func keepLabs() bool { return os.Getenv("CULVERT_KEEP") == "1" }
