package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// event is one line of `go test -json` (go doc test2json, cmd/go "build -json").
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build events
	Test        string
	Elapsed     float64 // seconds
	Output      string
	FailedBuild string
}

// tally counts tests that ended.
type tally struct{ passed, failed, skipped int }

func (t *tally) add(o tally) {
	t.passed += o.passed
	t.failed += o.failed
	t.skipped += o.skipped
}

// String is the verdict as the last line of a run has it.
func (t tally) String() string {
	s := fmt.Sprintf("%d passed, %d failed", t.passed, t.failed)
	if t.skipped > 0 {
		s += fmt.Sprintf(", %d skipped", t.skipped)
	}
	return s
}

// counter turns events into a tally. One test function is one test, however
// many rows its table has; with depth 2 its direct subtests count in its
// place, which is how a story counts for itself. A skip counts at any depth,
// so that none can hide inside a test that passed.
type counter struct {
	out   io.Writer
	depth int
	tally
	packages map[string]*packageRun
	builds   map[string][]string // output of builds by import path
	noise    []string            // lines that were no events
}

// packageRun is what is known of a package whose tests run.
type packageRun struct {
	tally
	output   map[string][]string // of tests that have not ended, "" for the package's own
	running  []string            // tests that began, in order
	children map[string]tally    // counted subtests of a test that runs
}

func newCounter(out io.Writer, depth int) *counter {
	return &counter{out: out, depth: depth, packages: map[string]*packageRun{}, builds: map[string][]string{}}
}

// read takes events until the stream ends.
func (c *counter) read(stream io.Reader) {
	lines := bufio.NewReader(stream)
	for {
		line, err := lines.ReadString('\n')
		if text := strings.TrimSpace(line); text != "" {
			var e event
			if json.Unmarshal([]byte(text), &e) != nil || e.Action == "" {
				c.noise = append(c.noise, text)
			} else {
				c.event(e)
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				c.noise = append(c.noise, err.Error())
			}
			return
		}
	}
}

func (c *counter) event(e event) {
	switch e.Action {
	case "build-output":
		c.builds[e.ImportPath] = append(c.builds[e.ImportPath], e.Output)
		return
	case "build-fail":
		return
	}
	p := c.packages[e.Package]
	if p == nil {
		p = &packageRun{output: map[string][]string{}, children: map[string]tally{}}
		c.packages[e.Package] = p
	}
	switch e.Action {
	case "run":
		p.running = append(p.running, e.Test)
	case "output":
		p.output[e.Test] = append(p.output[e.Test], e.Output)
		// A test that measures says so by t.Logf("figure: ...").
		if _, figure, ok := strings.Cut(e.Output, ": figure: "); ok {
			fmt.Fprintf(c.out, "     %s", figure)
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			c.packageEnds(e, p)
		} else {
			c.testEnds(e, p)
		}
	}
}

func (c *counter) testEnds(e event, p *packageRun) {
	if i := slices.Index(p.running, e.Test); i >= 0 {
		p.running = slices.Delete(p.running, i, i+1)
	}
	level := strings.Count(e.Test, "/") + 1
	var one tally
	switch {
	case e.Action == "skip":
		one.skipped = 1
	case level > c.depth:
	case e.Action == "pass":
		one.passed = 1
	default:
		one.failed = 1
	}
	inside := p.children[e.Test]
	delete(p.children, e.Test)
	if c.depth > level && inside.passed+inside.failed > 0 && (e.Action == "pass" || inside.failed > 0) {
		one = tally{} // its subtests have been counted
	}
	if parent := strings.LastIndexByte(e.Test, '/'); parent >= 0 && level <= c.depth {
		sum := p.children[e.Test[:parent]]
		sum.add(one)
		p.children[e.Test[:parent]] = sum
	}
	p.add(one)
	if e.Action == "fail" {
		c.say(p.output[e.Test])
	}
	if e.Action == "skip" {
		fmt.Fprintf(c.out, "skip %s %s: %s\n", e.Package, e.Test, reason(p.output[e.Test]))
	}
	delete(p.output, e.Test)
}

// reason is what a test that skipped said last before it did.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "---") && !strings.HasPrefix(line, "===") {
			return line
		}
	}
	return "no reason given"
}

func (c *counter) packageEnds(e event, p *packageRun) {
	for _, name := range p.running {
		if strings.Contains(name, "/") && slices.Contains(p.running, name[:strings.LastIndexByte(name, '/')]) {
			continue // its parent did not end either and stands for both
		}
		fmt.Fprintf(c.out, "FAIL %s %s began and did not end\n", e.Package, name)
		c.say(p.output[name])
		p.failed++
	}
	p.running = nil
	if e.Action == "fail" && p.failed == 0 {
		c.say(c.builds[e.FailedBuild])
		c.say(p.output[""])
		p.failed++
	}
	if e.Action != "skip" || p.passed+p.failed > 0 {
		word := "ok  "
		if p.failed > 0 {
			word = "FAIL"
		}
		fmt.Fprintf(c.out, "%s %s  %.1f s  %s\n", word, e.Package, e.Elapsed, p.tally)
	}
	c.add(p.tally)
	delete(c.packages, e.Package)
}

func (c *counter) say(lines []string) {
	for _, l := range lines {
		fmt.Fprint(c.out, l)
	}
}

// close ends the ring: died is what `go test` itself returned, stderr what it
// said there. The tally it returns fails when anything at all is amiss.
func (c *counter) close(name string, died error, stderr string) tally {
	for path, p := range c.packages {
		fmt.Fprintf(c.out, "FAIL %s did not end\n", path)
		p.failed++
		c.add(p.tally)
	}
	if died != nil && c.failed == 0 {
		fmt.Fprintf(c.out, "FAIL ring %s: go test died: %v\n%s\n%s\n", name, died, strings.Join(c.noise, "\n"), stderr)
		c.failed++
	}
	if c.passed+c.failed == 0 {
		fmt.Fprintf(c.out, "FAIL ring %s ran 0 tests\n", name)
		c.failed++
	}
	return c.tally
}
