// Package readme runs what README.md tells a newcomer to type.
package readme

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// commands are the lines of a document's fenced sh blocks, block by block.
// Other fences are for looking at.
func commands(doc string) (blocks [][]string, err error) {
	var block []string
	in, fence := false, ""
	for i, line := range strings.Split(doc, "\n") {
		mark := strings.HasPrefix(line, "```")
		switch {
		case mark && !in:
			in, fence, block = true, strings.TrimPrefix(line, "```"), nil
		case mark:
			if line != "```" {
				return nil, fmt.Errorf("line %d: a fence inside a fence", i+1)
			}
			if fence == "sh" {
				blocks = append(blocks, block)
			}
			in = false
		case in && line != "" && !strings.HasPrefix(line, "#"):
			block = append(block, line)
		}
	}
	if in {
		return nil, errors.New("the last fence is not closed")
	}
	return blocks, nil
}

func TestCommandsAreFound(t *testing.T) {
	got, err := commands("a\n```text\nno\n```\n```sh\nmake build\n# why\n\nx up\n```\nb\n```sh\nx down\n```\n")
	if err != nil || len(got) != 2 || !slices.Equal(got[0], []string{"make build", "x up"}) || !slices.Equal(got[1], []string{"x down"}) {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"```sh\nx", "```sh\nx\n```sh\ny\n```"} {
		if got, err := commands(bad); err == nil {
			t.Errorf("%q gave %q", bad, got)
		}
	}
}

// TestReadmeRuns types the README's commands on this machine. They use the
// lab "default"; one that is up already belongs to somebody.
func TestReadmeRuns(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CULVERT_NOROOT") == "1" {
			t.Skip("needs root for network namespaces")
		}
		t.Fatal("needs root for network namespaces; CULVERT_NOROOT=1 skips it")
	}
	if _, err := os.Stat("/run/netns/cv-default-m1"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("a lab \"default\" is up on this machine: culvert lab down")
	}
	doc, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := commands(string(doc))
	if err != nil || len(blocks) == 0 {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	path := withSudo(t)
	t.Cleanup(func() {
		if out, err := exec.Command(filepath.Join(root, "bin/culvert"), "lab", "down").CombinedOutput(); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
	})
	for _, line := range slices.Concat(blocks...) {
		t.Log("$ " + line)
		cmd := exec.Command("sh", "-euc", line)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "PATH="+path, "MAKEFLAGS=")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

// withSudo is a PATH on which sudo is there: whoever runs this is root, and
// may have none installed.
func withSudo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sudo"), []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir + ":" + os.Getenv("PATH")
}
