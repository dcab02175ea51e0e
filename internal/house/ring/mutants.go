package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	mutantDir   = "test/mutants" // *.patch, from the module's root
	mutantLimit = 5 * time.Minute
	mutantLeast = 12 // fewer seeded defects than this are a failure
)

// mutant is a defect seeded on purpose: a patch below a head of two lines,
//
//	Breaks: no delete before complete: the completeness gate is skipped
//	Found by: internal/sim TestSeeds
//
// of which the second may come several times. It has been found when one of
// the named tests fails; code that does not compile, or a test that failed
// before, finds nothing.
type mutant struct {
	name   string
	breaks string
	tests  []string // "PACKAGE REGEXP"
	files  []string // that the patch changes, from the module's root
	patch  string
}

var (
	patched = regexp.MustCompile(`(?m)^\+\+\+ b/(\S+)$`)
	foundBy = regexp.MustCompile(`(?m)^Found by: (\S+ \S+)$`)
	breaks  = regexp.MustCompile(`(?m)^Breaks: (.+)$`)
)

// parseMutant reads a patch with its head.
func parseMutant(name, text string) (mutant, error) {
	m := mutant{name: strings.TrimSuffix(name, ".patch"), patch: text}
	if b := breaks.FindStringSubmatch(text); b != nil {
		m.breaks = b[1]
	}
	for _, t := range foundBy.FindAllStringSubmatch(text, -1) {
		m.tests = append(m.tests, t[1])
	}
	for _, f := range patched.FindAllStringSubmatch(text, -1) {
		m.files = append(m.files, f[1])
	}
	switch {
	case m.breaks == "":
		return m, fmt.Errorf("mutant %s: no line \"Breaks: ...\"", m.name)
	case len(m.tests) == 0:
		return m, fmt.Errorf("mutant %s: no line \"Found by: PACKAGE TEST\"", m.name)
	case len(m.files) == 0:
		return m, fmt.Errorf("mutant %s: changes no file", m.name)
	case slices.ContainsFunc(m.files, func(f string) bool { return strings.HasSuffix(f, "_test.go") }):
		return m, fmt.Errorf("mutant %s: changes a test", m.name)
	}
	return m, nil
}

// overlay applies the patch to copies of the files it changes, below dir, and
// returns the file for `go test -overlay`. The tree itself stays as it is.
func (m mutant) overlay(root, dir string) (string, error) {
	replace := map[string]string{}
	for _, f := range m.files {
		text, err := os.ReadFile(filepath.Join(root, f))
		if err != nil {
			return "", err
		}
		to := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(to, text, 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, f)] = to
	}
	cmd := exec.Command("git", "apply", "-")
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(m.patch)
	// The copies are no repository, whatever is above them.
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("the patch no longer applies: %w\n%s", err, out)
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "overlay.json")
	return name, os.WriteFile(name, text, 0o644)
}

// mutants seeds each defect and returns how many were found (passed) and
// missed (failed).
func (r runner) mutants(ctx context.Context) tally {
	root, err := os.Getwd()
	if err != nil {
		return r.refuse(err)
	}
	names, err := filepath.Glob(filepath.Join(mutantDir, "*.patch"))
	if err != nil {
		return r.refuse(err)
	}
	var total tally
	healthy := map[string]error{} // of each test, without any defect
	for _, name := range names {
		began := time.Now()
		by, err := r.mutant(ctx, root, name, healthy)
		if err != nil {
			total.failed++
			fmt.Fprintf(r.out, "MISSED %s: %v\n", filepath.Base(name), err)
			continue
		}
		total.passed++
		fmt.Fprintf(r.out, "found  %s  by %s  %s\n", filepath.Base(name), by, time.Since(began).Round(100*time.Millisecond))
	}
	if len(names) < mutantLeast {
		fmt.Fprintf(r.out, "FAIL %d seeded defects in %s, at least %d are wanted\n", len(names), mutantDir, mutantLeast)
		total.failed++
	}
	return total
}

// mutant seeds one defect and returns the test that failed by it.
func (r runner) mutant(ctx context.Context, root, name string, healthy map[string]error) (by string, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	m, err := parseMutant(filepath.Base(name), string(text))
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "culvert-mutant")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	overlay, err := m.overlay(root, dir)
	if err != nil {
		return "", err
	}
	for _, test := range m.tests {
		if _, known := healthy[test]; !known {
			healthy[test] = r.healthy(ctx, test)
		}
		if healthy[test] != nil {
			return "", healthy[test]
		}
		failing, err := r.failing(ctx, test, "-overlay="+overlay)
		if err != nil {
			return "", err
		}
		if failing != "" {
			return failing, nil
		}
	}
	return "", fmt.Errorf("%s, and %s still pass", m.breaks, strings.Join(m.tests, ", "))
}

// healthy makes sure that a test passes without any defect.
func (r runner) healthy(ctx context.Context, test string) error {
	failing, err := r.failing(ctx, test)
	if err == nil && failing != "" {
		err = fmt.Errorf("%s fails without any defect", failing)
	}
	return err
}

// failing runs a test and returns the first that failed, by name.
func (r runner) failing(ctx context.Context, test string, flags ...string) (string, error) {
	ctx, stop := context.WithTimeout(ctx, mutantLimit)
	defer stop()
	pkg, name, _ := strings.Cut(test, " ")
	args := append([]string{"test", "-json", "-failfast", "-run=" + name}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./"+pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "CULVERT_SEEDS="+strconv.Itoa(r.seeds))
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s: gave up after %s", test, mutantLimit)
	}
	return firstFailure(strings.NewReader(string(out)), test, err)
}

// firstFailure reads the events of one test run. Died is what go test
// returned.
func firstFailure(stream io.Reader, test string, died error) (string, error) {
	ran, broken := 0, ""
	for dec := json.NewDecoder(stream); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", fmt.Errorf("%s: %w", test, err)
		}
		switch {
		case e.Action == "build-output":
			broken += e.Output
		case e.Test == "":
		case e.Action == "fail":
			return e.Package + " " + e.Test, nil
		case e.Action == "pass":
			ran++
		}
	}
	switch {
	case broken != "":
		return "", fmt.Errorf("%s does not compile:\n%s", test, broken)
	case died != nil:
		return "", fmt.Errorf("%s: go test died: %w", test, died)
	case ran == 0:
		return "", fmt.Errorf("%s: no such test", test)
	}
	return "", nil
}
