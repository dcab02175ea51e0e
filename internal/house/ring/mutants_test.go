package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const samplePatch = `Breaks: adding: one is taken away instead
Found by: internal/x TestAdd

diff --git a/internal/x/x.go b/internal/x/x.go
--- a/internal/x/x.go
+++ b/internal/x/x.go
@@ -1,3 +1,3 @@
 package x
 
-func Add(a int) int { return a + 1 }
+func Add(a int) int { return a - 1 }
`

func TestMutantsAreRead(t *testing.T) {
	m, err := parseMutant("01-add.patch", samplePatch)
	if err != nil || m.name != "01-add" || len(m.tests) != 1 || m.tests[0] != "internal/x TestAdd" ||
		len(m.files) != 1 || m.files[0] != "internal/x/x.go" {
		t.Fatalf("%+v, %v", m, err)
	}
	for _, bad := range []string{
		strings.Replace(samplePatch, "Breaks", "Does", 1),
		strings.Replace(samplePatch, "Found by", "Seen by", 1),
		strings.Replace(samplePatch, "+++ b/", "+++ /", 1),
		strings.ReplaceAll(samplePatch, "x/x.go", "x/x_test.go"),
	} {
		if _, err := parseMutant("x.patch", bad); err == nil {
			t.Errorf("was taken:\n%s", bad)
		}
	}
}

// TestMutantsAreFound seeds the sample into a module of its own.
func TestMutantsAreFound(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		full := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module m\n\ngo 1.26\n")
	write("internal/x/x.go", "package x\n\nfunc Add(a int) int { return a + 1 }\n")
	write("internal/x/x_test.go", "package x\n\nimport \"testing\"\n\nfunc TestAdd(t *testing.T) {\n\tif Add(1) != 2 {\n\t\tt.Error(Add(1))\n\t}\n}\n\nfunc TestBlind(t *testing.T) {}\n")
	write("sample.patch", samplePatch)
	write("blind.patch", strings.Replace(samplePatch, "TestAdd", "TestBlind", 1))
	write("gone.patch", strings.Replace(samplePatch, "TestAdd", "TestGone", 1))
	write("broken.patch", strings.Replace(samplePatch, "a - 1", "b - 1", 1))
	write("old.patch", strings.Replace(samplePatch, "a + 1", "a + 2", 1))
	t.Chdir(root)
	r := runner{out: t.Output()}
	for name, want := range map[string]string{
		"blind.patch": "still pass", "gone.patch": "no such test", "broken.patch": "does not compile", "old.patch": "no longer applies",
	} {
		if by, err := r.mutant(t.Context(), root, name, map[string]error{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: found by %q, %v, want %q", name, by, err, want)
		}
	}
	by, err := r.mutant(t.Context(), root, "sample.patch", map[string]error{})
	if err != nil || by != "m/internal/x TestAdd" {
		t.Errorf("found by %q, %v", by, err)
	}
	if out, err := exec.Command("go", "test", "./...").CombinedOutput(); err != nil {
		t.Errorf("seeding changed the tree itself: %v\n%s", err, out)
	}
	write("internal/x/x.go", "package x\n\nfunc Add(a int) int { return a }\n")
	if _, err := r.mutant(t.Context(), root, "sample.patch", map[string]error{}); err == nil {
		t.Error("a test that fails anyway found a defect")
	}
	if got := r.mutants(t.Context()); got.failed == 0 {
		t.Error("no seeded defects at all are no failure")
	}
}

func TestFirstFailure(t *testing.T) {
	events := `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`
	if by, err := firstFailure(strings.NewReader(events), "p TestA", nil); by != "" || err != nil {
		t.Errorf("%q, %v", by, err)
	}
	if _, err := firstFailure(strings.NewReader(events), "p TestA", errors.New("exit status 2")); err == nil {
		t.Error("go test died unnoticed")
	}
}
