package house

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what docs/architecture.md should say")

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot(), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The import graph in docs/architecture.md stands between these lines.
const (
	graphBegins = "<!-- import graph: written by go test ./internal/house -run TestArchitectureGraph -update -->\n```text\n"
	graphEnds   = "```\n<!-- end of import graph -->\n"
)

// importGraph draws what production packages import of each other, one package
// a line, those that import nothing first, each after all that it imports.
func importGraph(pkgs []goPackage) string {
	imports := map[string][]string{}
	for _, p := range pkgs {
		name := rel(p.ImportPath)
		if support(name) || len(p.GoFiles) == 0 {
			continue
		}
		imports[name] = []string{}
		for _, im := range p.Imports {
			if strings.HasPrefix(im, module) {
				imports[name] = append(imports[name], rel(im))
			}
		}
		slices.Sort(imports[name])
	}
	var b strings.Builder
	short := func(p string) string { return strings.TrimPrefix(p, "internal/") }
	for level := 0; len(imports) > 0; level++ {
		var ready []string
		for name, needs := range imports {
			if !slices.ContainsFunc(needs, func(n string) bool { return imports[n] != nil }) {
				ready = append(ready, name)
			}
		}
		slices.Sort(ready)
		for _, name := range ready {
			fmt.Fprintf(&b, "%d %s", level, short(name))
			for i, n := range imports[name] {
				if i == 0 {
					b.WriteString(" ->")
				}
				b.WriteString(" " + short(n))
			}
			b.WriteByte('\n')
		}
		for _, name := range ready {
			delete(imports, name)
		}
		if len(ready) == 0 {
			b.WriteString("a circle\n")
			break
		}
	}
	return b.String()
}

// cutGraph splits a document at its import graph.
func cutGraph(doc string) (before, graph, after string, err error) {
	before, rest, ok := strings.Cut(doc, graphBegins)
	graph, after, ok2 := strings.Cut(rest, graphEnds)
	if !ok || !ok2 {
		return "", "", "", fmt.Errorf("no import graph between %q and %q", graphBegins, graphEnds)
	}
	return before, graph, after, nil
}

func TestArchitectureGraph(t *testing.T) {
	const name = "docs/architecture.md"
	before, graph, after, err := cutGraph(readDoc(t, name))
	if err != nil {
		t.Fatal(err)
	}
	want := importGraph(packages(t))
	if *update {
		text := before + graphBegins + want + graphEnds + after
		if err := os.WriteFile(filepath.Join(moduleRoot(), name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if graph != want {
		t.Errorf("the import graph has changed; if it is meant to: go test ./internal/house -run TestArchitectureGraph -update\nin the document:\n%s\nreal:\n%s", graph, want)
	}
}

func TestArchitectureGraphIsDrawn(t *testing.T) {
	got := importGraph([]goPackage{
		{ImportPath: module + "internal/plan", GoFiles: []string{"x"}, Imports: []string{"fmt", module + "internal/overlay", module + "internal/hoststate"}},
		{ImportPath: module + "internal/overlay", GoFiles: []string{"x"}},
		{ImportPath: module + "internal/hoststate", GoFiles: []string{"x"}, Imports: []string{module + "internal/overlay"}},
		{ImportPath: module + "internal/kernel/kerneltest", GoFiles: []string{"x"}, Imports: []string{module + "internal/plan"}},
	})
	if want := "0 overlay\n1 hoststate -> overlay\n2 plan -> hoststate overlay\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	_, graph, _, err := cutGraph("x\n" + graphBegins + got + graphEnds)
	if err != nil || graph != got {
		t.Errorf("%q, %v", graph, err)
	}
	if _, _, _, err := cutGraph("x"); err == nil {
		t.Error("a document without a graph was taken")
	}
}

var (
	promiseRow = regexp.MustCompile(`(?m)^\| (\d+) \| (.+) \| (.+) \|$`)
	quoted     = regexp.MustCompile("`([^`]+)`")
	testName   = regexp.MustCompile(`^(\S+) ((?:Test|Fuzz|Benchmark)\w*)$`)
)

// demands is how many numbered promises docs/promises.md has to keep.
const demands = 14

// checkPromises returns rows that name a test, or a file, that is not there,
// rows that name nothing without saying so, and numbers without a row.
func checkPromises(doc string, hasTest func(pkg, name string) bool, hasFile func(string) bool) []string {
	var broken []string
	seen := map[string]bool{}
	for _, row := range promiseRow.FindAllStringSubmatch(doc, -1) {
		number, tests := row[1], row[3]
		seen[number] = true
		names := quoted.FindAllStringSubmatch(tests, -1)
		if len(names) == 0 && !strings.Contains(tests, "not yet") {
			broken = append(broken, "promise "+number+": names no test and does not say \"not yet\"")
		}
		for _, n := range names {
			if m := testName.FindStringSubmatch(n[1]); m != nil {
				if !hasTest(m[1], m[2]) {
					broken = append(broken, "promise "+number+": there is no test "+n[1])
				}
			} else if !hasFile(n[1]) {
				broken = append(broken, "promise "+number+": there is no file "+n[1])
			}
		}
	}
	for i := 1; i <= demands; i++ {
		if !seen[fmt.Sprint(i)] {
			broken = append(broken, fmt.Sprintf("promise %d has no row", i))
		}
	}
	return broken
}

func TestPromisesNameRealTests(t *testing.T) {
	tests := map[string]bool{}
	for _, s := range sources(t) {
		if s.test() {
			for name := range s.file.Scope.Objects {
				tests[s.pkg+" "+name] = true
			}
		}
	}
	report(t, checkPromises(readDoc(t, "docs/promises.md"),
		func(pkg, name string) bool { return tests[pkg+" "+name] }, inModule))
}

func inModule(name string) bool {
	_, err := os.Stat(filepath.Join(moduleRoot(), name))
	return err == nil
}

func TestPromisesNameRealTestsFindsViolations(t *testing.T) {
	var doc strings.Builder
	doc.WriteString("| # | Promise | Tests |\n| --- | --- | --- |\n")
	for i := 3; i <= demands; i++ {
		fmt.Fprintf(&doc, "| %d | x | `a TestThere`, `story.txtar`; the rest not yet |\n", i)
	}
	there := func(pkg, name string) bool { return pkg == "a" && name == "TestThere" }
	file := func(name string) bool { return name == "story.txtar" }
	got := strings.Join(checkPromises("| 1 | x | `a TestGone`, `gone.txtar` |\n| 2 | x | soon |\n"+doc.String(), there, file), "\n")
	want := "promise 1: there is no test a TestGone\npromise 1: there is no file gone.txtar\npromise 2: names no test and does not say \"not yet\""
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := checkPromises(doc.String(), there, file); len(got) != 2 {
		t.Errorf("missing rows: %q", got)
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)\)`)

// checkLinks returns links to files of this repository that are not there.
func checkLinks(name, text string, hasFile func(string) bool) []string {
	var broken []string
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		if target := filepath.Join(filepath.Dir(name), m[1]); !hasFile(target) {
			broken = append(broken, name+": links to "+target+", which is not there")
		}
	}
	return broken
}

func TestLinksInDocumentsHold(t *testing.T) {
	looked := 0
	err := walk(func(name string) error {
		if strings.HasSuffix(name, ".md") {
			looked++
			report(t, checkLinks(name, readDoc(t, name), inModule))
		}
		return nil
	})
	if err != nil || looked < 5 {
		t.Fatalf("looked at %d documents, %v", looked, err)
	}
}

func TestLinksInDocumentsHoldFindsViolations(t *testing.T) {
	there := func(name string) bool { return name == "docs/a.md" || name == "README.md" }
	text := "[a](a.md) [b](b.md) [r](../README.md) [w](https://example.org/x) [h](#here)"
	if got := checkLinks("docs/x.md", text, there); len(got) != 1 || !strings.Contains(got[0], "docs/b.md") {
		t.Errorf("%q", got)
	}
}

// targets are what the Makefile has to offer.
var targets = []string{"build", "demo", "quick", "check", "test", "bench", "sim", "mutants", "stories", "clean", "help"}

func TestMakefileHasItsTargets(t *testing.T) {
	text := readDoc(t, "Makefile")
	for _, name := range targets {
		if !regexp.MustCompile(`(?m)^` + name + `:.*  ## \S`).MatchString(text) {
			t.Errorf("no target %s with a line of help", name)
		}
	}
	for _, m := range regexp.MustCompile(`\./(scripts/\S+)`).FindAllStringSubmatch(text, -1) {
		st, err := os.Stat(filepath.Join(moduleRoot(), strings.TrimRight(m[1], "'")))
		if err != nil || st.Mode()&0o111 == 0 {
			t.Errorf("%s: not there or not executable", m[1])
		}
	}
}
