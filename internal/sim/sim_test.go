package sim

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise uint64) (uint64, bool) {
	s := os.Getenv(name)
	if s == "" {
		return otherwise, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s is %q: want a number", name, s)
	}
	return n, true
}

// TestSeeds simulates CULVERT_SEEDS seeds from CULVERT_FIRST on, or the one
// that CULVERT_SEED names, with its whole trace.
func TestSeeds(t *testing.T) {
	seeds, _ := number(t, "CULVERT_SEEDS", 200)
	simulate(t, "TestSeeds", seeds, Options{}, func(Fault) bool { return true })
}

// TestMigrationSeeds does the same with worlds in which little else happens
// than that guests are moved, CULVERT_MIGRATION_SEEDS of them.
func TestMigrationSeeds(t *testing.T) {
	seeds, _ := number(t, "CULVERT_MIGRATION_SEEDS", 300)
	simulate(t, "TestMigrationSeeds", seeds, Options{Migrations: true}, func(f Fault) bool {
		return f >= HeardLost && f <= MigratedUnmanaged || f >= MovedEarly && f <= HypervisorRestarted
	})
}

// TestDomainSeeds does the same with worlds in which networks are routed to each
// other, CULVERT_DOMAIN_SEEDS of them.
func TestDomainSeeds(t *testing.T) {
	seeds, _ := number(t, "CULVERT_DOMAIN_SEEDS", 100)
	simulate(t, "TestDomainSeeds", seeds, Options{Domains: true}, func(Fault) bool { return false })
}

// TestGuestSeeds does the same with worlds in which guests are undeclared, share
// addresses and are checked, and networks name foreign tunnel end points,
// CULVERT_GUEST_SEEDS of them.
func TestGuestSeeds(t *testing.T) {
	seeds, _ := number(t, "CULVERT_GUEST_SEEDS", 100)
	simulate(t, "TestGuestSeeds", seeds, Options{Guests: true}, func(Fault) bool { return false })
}

// processorTime is what this process has used so far: how fast the simulation
// is does not depend on what else runs here.
func processorTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatalf("read the processor time: %v", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// simulate runs seeds, and fails where one does, or where a fault that must
// hit never did.
func simulate(t *testing.T, name string, seeds uint64, o Options, must func(Fault) bool) {
	if seed, ok := number(t, "CULVERT_SEED", 0); ok {
		o.Echo = func(line string) { t.Log(line) }
		if r := Run(seed, o); r.Err != "" {
			t.Fatalf("seed %d: %s", seed, r.Err)
		}
		return
	}
	first, _ := number(t, "CULVERT_FIRST", 1)
	var mu sync.Mutex
	var hits [Faults]int
	var done, events, failed int
	began := processorTime(t)
	next := first
	workers := runtime.GOMAXPROCS(0)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				mu.Lock()
				seed := next
				next++
				stop := seed >= first+seeds || failed >= 3
				mu.Unlock()
				if stop {
					return
				}
				r := Run(seed, o)
				mu.Lock()
				done++
				events += r.Events
				for i, n := range r.Hits {
					hits[i] += n
				}
				if r.Err != "" {
					failed++
					t.Errorf("seed %d: %s\nreplay: CULVERT_SEED=%d go test ./internal/sim -run '^%s$' -v\nthe last events:\n%s", seed, r.Err, seed, name, r.Trace)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	took := processorTime(t) - began
	t.Logf("figure: %d seeds, %d events, %.1f seeds a second of processor time", done, events, float64(done)/took.Seconds())
	text := ""
	for i, n := range hits {
		text += fmt.Sprintf(" %s=%d", Fault(i), n)
		if n == 0 && seeds >= 200 && failed == 0 && must(Fault(i)) {
			t.Errorf("fault %s never hit in %d seeds", Fault(i), seeds)
		}
	}
	t.Logf("faults hit:%s", text)
}

// TestSameSeedSameRun: what a seed does is a function of the seed.
func TestSameSeedSameRun(t *testing.T) {
	for seed := range uint64(8) {
		o := Options{Deep: true, Guests: seed%2 == 1}
		a, b := Run(1000+seed, o), Run(1000+seed, o)
		if a.Hash != b.Hash || a.Events != b.Events {
			t.Errorf("seed %d: %016x after %d events, then %016x after %d", 1000+seed, a.Hash, a.Events, b.Hash, b.Events)
		}
		if a.Trace != b.Trace {
			t.Errorf("seed %d: the last events differ", 1000+seed)
		}
	}
}
