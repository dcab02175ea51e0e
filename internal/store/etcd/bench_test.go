package etcd

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"culvert/internal/store"
)

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	mustOpen(b, Options{Dir: dir}).Close()
	for b.Loop() {
		mustOpen(b, Options{Dir: dir}).Close()
	}
}

// BenchmarkCommit is with fsync, 200 bytes a value.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1, 128, 1000} {
		b.Run(fmt.Sprintf("ops=%d", size), func(b *testing.B) {
			s := mustOpen(b, Options{Dir: b.TempDir()})
			f := mustCampaign(b, s)
			value := []byte(strings.Repeat("v", 200))
			ops := make([]store.Op, size)
			n := 0
			for b.Loop() {
				for i := range ops {
					ops[i] = store.Op{Key: fmt.Sprintf("%st/%d", s.Prefix(), n%4096), Value: value}
					n++
				}
				if _, err := s.Commit(context.Background(), f, ops); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
