// Package scenario tells stories: what a user types, on real kernels, with the
// tables that every host must then hold, and with probes of what must never
// pass. A story is a file of testdata; its commands beside those of testscript
// are listed at commands.
package scenario

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

	"github.com/rogpeppe/go-internal/testscript"

	"culvert/internal/lab"
)

var (
	update  = flag.Bool("update", false, "write the tables that stories end with into their files")
	keep    = flag.Bool("keep", false, "leave the lab of a failed story for a look")
	program string // the culvert that stories run
	serial  atomic.Int32
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

// run builds culvert once: stories run the program that a user has. One that is
// built already may be named by CULVERT_BIN.
func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		if os.Getenv("CULVERT_NOROOT") == "1" {
			fmt.Fprintln(os.Stderr, "stories are skipped by CULVERT_NOROOT=1: they make namespaces, which needs root")
			return 0
		}
		fmt.Fprintln(os.Stderr, "stories make namespaces: run as root, or set CULVERT_NOROOT=1 to skip them")
		return 1
	}
	if program = os.Getenv("CULVERT_BIN"); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "culvert-stories")
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

// Each story is a test of its own, with a lab of its own. Its probes are read
// when the script has ended, and then the lab must go without a trace.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { tell(t, file) })
	}
}

func tell(t *testing.T, file string) {
	s := newStory(t, file)
	t.Cleanup(s.end)
	testscript.Run(t, testscript.Params{
		Files: []string{file},
		Setup: func(e *testscript.Env) error {
			e.Setenv("LAB", s.name)
			e.Setenv("CULVERT_CONFIG", s.lab.ClientConfig())
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("PATH", os.Getenv("PATH"))
			return nil
		},
		Cmds:               s.commands(),
		UpdateScripts:      *update,
		RequireUniqueNames: true,
	})
}

// story is one file being told.
type story struct {
	t    *testing.T
	file string
	name string // of its lab
	lab  *lab.Lab
	stop context.CancelFunc

	ctx      context.Context
	probes   []probe
	pings    map[string]*pinging
	captures map[string]*lab.Capture
	links    map[string]string
	clients  map[string]*client
	running  []*exec.Cmd       // ended with the story
	written  map[string]bool   // files of tables that were used, with -update
	names    map[string]string // of aliases, see aliases
}

type probe struct {
	from, to string
	*lab.Probe
}

func newStory(t *testing.T, file string) *story {
	t.Helper()
	s := &story{
		t: t, file: file, name: fmt.Sprintf("s%xn%d", os.Getpid(), serial.Add(1)),
		pings: map[string]*pinging{}, captures: map[string]*lab.Capture{}, links: map[string]string{}, clients: map[string]*client{}, written: map[string]bool{}, names: map[string]string{},
	}
	var err error
	if s.lab, err = lab.New(s.name, lab.Config{Culvert: []string{program}}); err != nil {
		t.Fatal(err)
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// end reads the probes and takes the lab down.
func (s *story) end() {
	s.stop()
	s.endPrograms()
	for _, p := range s.probes {
		sent, arrived, err := p.Stop()
		if err != nil {
			s.t.Errorf("probe from %s to %s: %v", p.from, p.to, err)
		}
		if len(arrived) > 0 {
			s.t.Errorf("probe: of %d frames from %s, %d arrived at %s, the first %x", sent, p.from, len(arrived), p.to, arrived[0].Data)
		}
	}
	for _, p := range s.pings {
		<-p.done
	}
	for _, c := range s.captures {
		c.Stop()
	}
	if s.t.Failed() {
		s.logs()
		if *keep {
			s.t.Logf("lab kept: culvert lab status --lab %s", s.name)
			return
		}
	}
	if _, err := s.lab.Down(context.Background()); err != nil {
		s.t.Errorf("take the lab down: %v", err)
	}
	if left := s.lab.Leaks(); len(left) > 0 {
		s.t.Errorf("left behind: %v", left)
	}
}

// logs shows the end of each daemon's log.
func (s *story) logs() {
	logs, err := filepath.Glob(filepath.Join(lab.DefaultRoot, s.name, "*.log"))
	if err != nil {
		return
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		s.t.Logf("%s ends with:\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}
