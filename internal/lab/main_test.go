package lab

import (
	"context"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary stands for culvert where a lab starts commands: `init` never
// ends, so a lab that is being built stays half built; `lab guard` and
// `lab up` are what they are in the product.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != "culvert" {
		os.Exit(m.Run())
	}
	args := os.Args[2:]
	if args[0] == "init" {
		unix.Pause() // where all goroutines wait for each other the runtime ends the process
	}
	l, err := New(args[2], standIn(os.Getenv("LAB_TEST_ROOT")))
	if err == nil && args[1] == "guard" {
		err = l.Guard(context.Background(), os.Stdin)
	}
	if err == nil && args[1] == "up" {
		_, err = l.Up(context.Background(), Topology{Hosts: 1}, true)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func standIn(root string) Config {
	return Config{Root: root, Guard: true, Culvert: []string{"/proc/self/exe", "culvert"}}
}
