package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The events below are what go1.26 really writes, cut to what is read.
func TestCounting(t *testing.T) {
	for _, c := range []struct {
		name, events string
		depth        int
		died         error
		want, says   string
	}{
		{"one of each", `
			{"Action":"start","Package":"p"}
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p","Test":"TestA"}
			{"Action":"run","Package":"p","Test":"TestB"}
			{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:3: want 1\n"}
			{"Action":"fail","Package":"p","Test":"TestB"}
			{"Action":"run","Package":"p","Test":"TestC"}
			{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:3: no tap here\n"}
			{"Action":"skip","Package":"p","Test":"TestC"}
			{"Action":"fail","Package":"p","Elapsed":0.1}`, 1, errors.New("exit status 1"), "1 passed, 1 failed, 1 skipped", "want 1"},
		{"rows of a table are one test", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"run","Package":"p","Test":"TestA/x"}
			{"Action":"pass","Package":"p","Test":"TestA/x"}
			{"Action":"run","Package":"p","Test":"TestA/y"}
			{"Action":"pass","Package":"p","Test":"TestA/y"}
			{"Action":"pass","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p"}`, 1, nil, "1 passed, 0 failed", "ok   p"},
		{"stories count for themselves", `
			{"Action":"run","Package":"p","Test":"TestStories"}
			{"Action":"run","Package":"p","Test":"TestStories/x"}
			{"Action":"pass","Package":"p","Test":"TestStories/x"}
			{"Action":"run","Package":"p","Test":"TestStories/y"}
			{"Action":"fail","Package":"p","Test":"TestStories/y"}
			{"Action":"fail","Package":"p","Test":"TestStories"}
			{"Action":"run","Package":"p","Test":"TestAlone"}
			{"Action":"pass","Package":"p","Test":"TestAlone"}
			{"Action":"fail","Package":"p"}`, 2, errors.New("exit status 1"), "2 passed, 1 failed", ""},
		{"a parent that fails by itself fails", `
			{"Action":"run","Package":"p","Test":"TestStories"}
			{"Action":"run","Package":"p","Test":"TestStories/x"}
			{"Action":"pass","Package":"p","Test":"TestStories/x"}
			{"Action":"fail","Package":"p","Test":"TestStories"}
			{"Action":"fail","Package":"p"}`, 2, errors.New("exit status 1"), "1 passed, 1 failed", ""},
		{"a skipped row shows", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"run","Package":"p","Test":"TestA/x"}
			{"Action":"output","Package":"p","Test":"TestA/x","Output":"    a_test.go:9: no tap here\n"}
			{"Action":"skip","Package":"p","Test":"TestA/x"}
			{"Action":"pass","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p"}`, 1, nil, "1 passed, 0 failed, 1 skipped", "no tap here"},
		{"repeated", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p","Test":"TestA"}
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p"}`, 1, nil, "2 passed, 0 failed", ""},
		{"a package that does not build", `
			{"ImportPath":"p [p.test]","Action":"build-output","Output":"p/a.go:1: undefined: x\n"}
			{"ImportPath":"p [p.test]","Action":"build-fail"}
			{"Action":"start","Package":"p"}
			{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`, 1, errors.New("exit status 1"), "0 passed, 1 failed", "undefined: x"},
		{"a panic ends the package", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"run","Package":"p","Test":"TestA/x"}
			{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}
			{"Action":"fail","Package":"p"}`, 1, errors.New("exit status 1"), "0 passed, 1 failed", "boom"},
		{"a test that exits with 0 half way", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p"}`, 1, nil, "0 passed, 1 failed", "did not end"},
		{"the stream breaks off", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p","Test":"TestA"}`, 1, nil, "1 passed, 1 failed", "p did not end"},
		{"TestMain fails", `
			{"Action":"output","Package":"p","Output":"needs root\n"}
			{"Action":"fail","Package":"p"}`, 1, errors.New("exit status 1"), "0 passed, 1 failed", "needs root"},
		{"go test dies", `go: cannot find main module`, 1, errors.New("exit status 1"), "0 passed, 1 failed", "cannot find main module"},
		{"all green but go test dies", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p"}`, 1, errors.New("signal: killed"), "1 passed, 1 failed", "signal: killed"},
		{"nothing ran", `
			{"Action":"output","Package":"p","Output":"?   \tp\t[no test files]\n"}
			{"Action":"skip","Package":"p"}`, 1, nil, "0 passed, 1 failed", "ran 0 tests"},
		{"all skipped is nothing run", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"skip","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p"}`, 1, nil, "0 passed, 1 failed, 1 skipped", "no reason given"},
		{"figures are shown", `
			{"Action":"run","Package":"p","Test":"TestA"}
			{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:9: figure: 31 seeds a second\n"}
			{"Action":"pass","Package":"p","Test":"TestA"}
			{"Action":"pass","Package":"p"}`, 1, nil, "1 passed, 0 failed", "     31 seeds a second\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			n := newCounter(&out, c.depth)
			n.read(strings.NewReader(c.events))
			if got := n.close("x", c.died, "").String(); got != c.want {
				t.Errorf("got %q, want %q\n%s", got, c.want, out.String())
			}
			if !strings.Contains(out.String(), c.says) {
				t.Errorf("does not say %q:\n%s", c.says, out.String())
			}
		})
	}
}

func TestRingOfPackages(t *testing.T) {
	for path, want := range map[string]string{
		"culvert/internal/plan": "pure", "culvert/internal/kernel/kerneltest": "pure", "culvert/internal/store/etcd": "pure",
		"culvert/internal/house": "check", "culvert/internal/house/ring": "check", "culvert/internal/sim": "sim",
		"culvert/test": "stories", "culvert/test/bench": "stories", "culvert/internal/lab": "kernel", "culvert/internal/netnstest": "kernel",
	} {
		if got := ringOf(pkg{ImportPath: path}); got != want {
			t.Errorf("%s is in ring %s, want %s", path, got, want)
		}
	}
	p := pkg{ImportPath: "culvert/internal/kernel", XTestImports: []string{"testing", "culvert/internal/netnstest"}}
	if got := ringOf(p); got != "kernel" {
		t.Errorf("a package whose tests build namespaces is in ring %s", got)
	}
	for _, g := range rings {
		if g.depth < 1 || g.limit < g.budget || g.budget == 0 {
			t.Errorf("ring %s: %+v", g.name, g)
		}
	}
}

func TestChoosing(t *testing.T) {
	got, err := choose([]string{"sim", "pure"})
	if err != nil || len(got) != 2 || got[0].name != "sim" {
		t.Errorf("%v, %v", got, err)
	}
	for _, names := range [][]string{nil, {"pur"}} {
		if _, err := choose(names); err == nil {
			t.Errorf("%q was taken", names)
		}
	}
}

func TestWithoutRootTheKernelIsRefused(t *testing.T) {
	var out bytes.Buffer
	got := runner{out: &out}.all(context.Background(), []string{"pure", "kernel"})
	if got.failed != 1 || got.passed != 0 || !strings.Contains(out.String(), "needs root") {
		t.Errorf("%v %s", got, out.String())
	}
}

func TestNeeds(t *testing.T) {
	there := filepath.Join(t.TempDir(), "x")
	if (need{probe: there}).met() {
		t.Error("a file that is not there was found")
	}
	if err := os.WriteFile(there, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	g := ring{needs: []need{{probe: there, debs: "a"}, {probe: there + "y", debs: "b"}, {probe: "go", debs: "c"}, {probe: "no-such-command", debs: "d", unpack: "e"}, {probe: "no-such-command-2", debs: "d"},
		{probe: there + "z*", unpack: "f"}, {probe: filepath.Dir(there) + "/x*", unpack: "g"}}}
	if got := toUnpack([]ring{g}); len(got) != 2 || got[0].unpack != "e" || got[1].unpack != "f" {
		t.Errorf("to unpack: %+v, want e and f", got)
	}
	if got := missing([]ring{g}); !slices.Equal(got, []string{"b", "d"}) {
		t.Errorf("%q", got)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var tl tail
	for range 3 {
		if _, err := tl.Write(bytes.Repeat([]byte("a"), 60<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tl.Write([]byte("end\n")); err != nil {
		t.Fatal(err)
	}
	if s := tl.String(); len(s) > 64<<10 || !strings.HasSuffix(s, "end") {
		t.Errorf("%d bytes", len(s))
	}
}
