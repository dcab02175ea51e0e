package sim

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"

	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// Virtual durations, in nanoseconds.
const (
	micro  int64 = 1e3
	milli  int64 = 1e6
	second int64 = 1e9
)

// event is something that happens at a time. Of two at the same time the one
// that was asked for first happens first.
type event struct {
	at  int64
	seq uint64
	do  func()
}

func (e event) before(f event) bool { return e.at < f.at || e.at == f.at && e.seq < f.seq }

// agenda is a binary heap of events.
type agenda []event

func (a *agenda) push(e event) {
	h := append(*a, e)
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(h[up]) {
			break
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
	*a = h
}

func (a *agenda) pop() event {
	h := *a
	top, last := h[0], len(h)-1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	for i := 0; ; {
		l, least := 2*i+1, i
		if l < last && h[l].before(h[least]) {
			least = l
		}
		if l+1 < last && h[l+1].before(h[least]) {
			least = l + 1
		}
		if least == i {
			break
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
	*a = h
	return top
}

// world is one simulated cluster.
type world struct {
	seed   uint64
	rng    *rand.Rand
	now    int64
	seq    uint64
	events agenda

	narrow  bool // see Options.Migrations
	routed  bool // see Options.Domains
	open    bool // see Options.Guests
	calm    bool // faults are over
	enabled [faults]bool
	hits    [faults]int
	done    int // events

	store *store
	mgr   *manager
	old   *managercore.View // what the store said some time ago
	hosts []*host
	nics  []*nic
	ever  history
	talks talks
	names int // of devices, ever
	vteps int // given, ever
	vnis  map[overlay.VNI]overlay.UID

	strangers int             // MACs of undeclared guests, ever
	number    byte            // that the newest address of one has
	masters   map[netAddr]*vm // who holds a shared address, as the guests see it

	trace traceRing
}

// violation ends a run: an invariant did not hold.
type violation struct{ text string }

// fail ends the run.
func (w *world) fail(format string, args ...any) {
	panic(violation{fmt.Sprintf(format, args...)})
}

// after asks for do in d nanoseconds.
func (w *world) after(d int64, do func()) { w.at(w.now+d, do) }

func (w *world) at(t int64, do func()) {
	w.seq++
	w.events.push(event{max(t, w.now), w.seq, do})
}

// run lets everything happen that is due until t.
func (w *world) run(t int64) {
	for len(w.events) > 0 && w.events[0].at <= t {
		e := w.events.pop()
		w.now = e.at
		w.done++
		e.do()
	}
	w.now = t
}

// chance is true with probability p.
func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// between is a number of [a, b], mostly near a.
func (w *world) between(a, b int64) int64 {
	if b <= a {
		return a
	}
	r := w.rng.Float64()
	return a + int64(r*r*float64(b-a))
}

func (w *world) pick(n int) int { return w.rng.IntN(n) }

// uid makes an identity out of chance.
func (w *world) uid() (u overlay.UID) {
	for i := range u {
		u[i] = byte(w.rng.Uint32())
	}
	return u
}

// hit decides whether a fault of that kind happens now, and counts it.
func (w *world) hit(f Fault, p float64) bool {
	if w.calm || !w.enabled[f] || !w.chance(p) {
		return false
	}
	w.hits[f]++
	return true
}

// traceRing is the end of what happened, and a hash of all of it.
type traceRing struct {
	lines [60]traceLine
	n     int
	hash  uint64
	echo  func(string) // nil: keep silent
	deep  bool         // hash the text of every line, too
}

type traceLine struct {
	at     int64
	format string
	args   []any
}

func (l traceLine) String() string {
	return fmt.Sprintf("%12.6f  ", float64(l.at)/1e9) + fmt.Sprintf(l.format, l.args...)
}

// log notes an event. The arguments must be values: they are put into words
// only when somebody wants to read them.
func (w *world) log(format string, args ...any) {
	t := &w.trace
	line := traceLine{w.now, format, args}
	t.lines[t.n%len(t.lines)] = line
	t.n++
	t.fold(uint64(w.now))
	t.fold(uint64(len(format)) ^ uint64(format[0])<<8)
	if t.deep {
		h := fnv.New64a()
		_, _ = h.Write([]byte(line.String()))
		t.fold(h.Sum64())
	}
	if t.echo != nil {
		t.echo(line.String())
	}
}

func (t *traceRing) fold(x uint64) { t.hash = (t.hash ^ x) * 0x100000001b3 }

// foldBytes puts a message into the hash.
func (t *traceRing) foldBytes(b []byte) {
	h := t.hash
	for _, c := range b {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	t.hash = h
}

func (t *traceRing) String() string {
	var b strings.Builder
	for i := max(0, t.n-len(t.lines)); i < t.n; i++ {
		b.WriteString(t.lines[i%len(t.lines)].String() + "\n")
	}
	return b.String()
}
