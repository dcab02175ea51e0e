// Command ring runs the tests of Culvert ring by ring, from the pure ones that
// need nothing to the stories that build a data centre out of namespaces, and
// counts what it saw.
//
//	ring [-count N] [-seeds N] pure|check|kernel|sim|stories ...
//	ring [-seeds N] mutants
//
// The second form seeds known defects one by one and counts a defect that no
// test noticed as failed.
//
// Every figure is taken from the events of `go test -json`, none from exit
// codes or from text meant for people. A ring that ran no test, a test that
// began and did not end, a package that did not build and a `go test` that
// died are failures too. The last line is the verdict and nothing else:
//
//	N passed, N failed[, N skipped]
//
// and the exit code is 0 only when nothing failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	count := flag.Int("count", 1, "run the tests of each ring `N` times")
	seeds := flag.Int("seeds", 2000, "simulate `N` seeds")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := runner{out: os.Stdout, count: *count, seeds: *seeds, root: os.Geteuid() == 0}
	var total tally
	if flag.Arg(0) == "mutants" && flag.NArg() == 1 {
		total = r.mutants(ctx)
	} else {
		total = r.all(ctx, flag.Args())
	}
	verdict := total.String()
	// make adds a line of its own after a failure, so the verdict is kept for
	// whoever wants to end with it (.ci/run).
	if err := os.WriteFile(filepath.Join(binDir, "verdict"), []byte(verdict+"\n"), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	fmt.Fprintln(os.Stdout, verdict)
	if total.failed > 0 || total.passed == 0 {
		os.Exit(1)
	}
}

// binDir is where make builds things, relative to the module's root.
const binDir = "bin"

type runner struct {
	out          io.Writer
	count, seeds int
	root         bool // whether we are root
}

// took is one ring's line in the closing table.
type took struct {
	ring
	time time.Duration
	tally
}

// all runs the named rings in order and returns the sum. It goes on after a
// ring that failed, so that one run tells everything.
func (r runner) all(ctx context.Context, names []string) tally {
	chosen, err := choose(names)
	if err != nil {
		return r.refuse(err)
	}
	for _, g := range chosen {
		if g.root && !r.root {
			return r.refuse(fmt.Errorf("the ring %q builds network namespaces and needs root: use sudo, or run make quick and make check, which do not", g.name))
		}
	}
	if err := lookUnpacked(); err != nil {
		return r.refuse(fmt.Errorf("search path: %w", err))
	}
	if err := r.install(ctx, chosen); err != nil {
		return r.refuse(err)
	}
	packages, err := listPackages(ctx)
	if err != nil {
		return r.refuse(err)
	}
	fmt.Fprintf(r.out, "Rings and their budgets on 2 cores:")
	for _, g := range chosen {
		fmt.Fprintf(r.out, " %s %s", g.name, minutes(g.budget))
	}
	fmt.Fprintln(r.out)
	var total tally
	var rows []took
	for _, g := range chosen {
		began := time.Now()
		t := r.one(ctx, g, packages)
		rows = append(rows, took{g, time.Since(began), t})
		total.add(t)
	}
	r.table(rows)
	return total
}

// refuse is the verdict of a run that could not begin.
func (r runner) refuse(err error) tally {
	fmt.Fprintln(r.out, err)
	return tally{failed: 1}
}

// one runs one ring.
func (r runner) one(ctx context.Context, g ring, packages []pkg) tally {
	fmt.Fprintf(r.out, "\n== %s: %s\n", g.name, g.what)
	var paths []string
	for _, p := range packages {
		if p.hasTests() && ringOf(p) == g.name {
			paths = append(paths, p.ImportPath)
		}
	}
	if len(paths) == 0 {
		fmt.Fprintf(r.out, "FAIL ring %s has no package with tests\n", g.name)
		return tally{failed: 1}
	}
	c := newCounter(r.out, g.depth)
	args := append([]string{"test", "-json", "-timeout=" + g.limit.String(), "-count=" + strconv.Itoa(r.count)}, g.flags...)
	env := append(os.Environ(), "CGO_ENABLED=0", "CULVERT_GUESTS="+unpacked(), "CULVERT_SEEDS="+strconv.Itoa(r.seeds))
	if bin, err := filepath.Abs(filepath.Join(binDir, "culvert")); err == nil {
		env = append(env, "CULVERT_BIN="+bin)
	}
	if !g.root {
		env = append(env, "CULVERT_NOROOT=1")
	}
	if g.race {
		if hasRace() {
			args, env = append(args, "-race"), append(env, "CGO_ENABLED=1")
		} else {
			fmt.Fprintln(r.out, "without the race detector: it needs gcc and libc6-dev")
		}
	}
	cmd := exec.CommandContext(ctx, "go", append(args, paths...)...)
	cmd.Env = env
	// The child is asked first, so that tests take down what they built.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return r.refuse(err)
	}
	var talk tail
	cmd.Stderr = &talk
	if err := cmd.Start(); err != nil {
		return r.refuse(err)
	}
	c.read(stdout)
	return c.close(g.name, cmd.Wait(), talk.String())
}

// table prints what each ring took against its budget.
func (r runner) table(rows []took) {
	fmt.Fprintln(r.out)
	w := tabwriter.NewWriter(r.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "RING\tTOOK\tBUDGET\tPASSED\tFAILED\tSKIPPED")
	for _, t := range rows {
		note := ""
		if t.time > t.budget {
			note = "   over budget"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d%s\n", t.name, t.time.Round(time.Second), minutes(t.budget), t.passed, t.failed, t.skipped, note)
	}
	w.Flush()
}

func minutes(d time.Duration) string { return strconv.Itoa(int(d/time.Minute)) + " min" }

// tail keeps the end of what a process said on stderr.
type tail struct{ kept []byte }

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	const most = 64 << 10
	t.kept = append(t.kept, p...)
	if len(t.kept) > most {
		t.kept = t.kept[len(t.kept)-most:]
	}
	return len(p), nil
}

// String is what was kept, without the space around it.
func (t *tail) String() string { return strings.TrimSpace(string(t.kept)) }
