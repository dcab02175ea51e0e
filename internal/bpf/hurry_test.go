package bpf

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

func setting(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(expedited)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func set(t *testing.T, v string) {
	t.Helper()
	if err := os.WriteFile(expedited, []byte(v), 0); err != nil {
		t.Fatal(err)
	}
}

// TestHurriedLeavesNothingBehind: the setting is the machine's, and whoever else
// hurries puts 0 there, so each case may be tried again.
func TestHurriedLeavesNothingBehind(t *testing.T) {
	was := setting(t)
	t.Cleanup(func() { set(t, was) })
	failure := errors.New("no")
	for _, tt := range []struct{ before, during, after string }{
		{"0", hurry, "0"},
		{hurry, hurry, "0"}, // of one who was killed
		{"1", "1", "1"},     // somebody else's
	} {
		var during, after string
		for range 50 {
			set(t, tt.before)
			if err := hurried(func() error { during = setting(t); return failure }); !errors.Is(err, failure) {
				t.Errorf("error %v, want what the call returned", err)
			}
			if after = setting(t); during == tt.during && after == tt.after {
				break
			}
		}
		if during != tt.during || after != tt.after {
			t.Errorf("from %s it is %s during the call and %s after, want %s and %s", tt.before, during, after, tt.during, tt.after)
		}
	}
}

// BenchmarkMapOfMaps: what one entry costs that the kernel waits for, hurried and
// not.
func BenchmarkMapOfMaps(b *testing.B) {
	inner := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.HashOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		b.Fatal(err)
	}
	defer outer.Close()
	m, err := ebpf.NewMap(inner)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for name, run := range map[string]func(func() error) error{"hurried": hurried, "waiting": func(f func() error) error { return f() }} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := run(func() error { return outer.Put(uint32(0), m) }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
