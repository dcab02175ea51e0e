package libvirt

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"go.uber.org/goleak"

	"culvert/internal/hoststate"
)

// heard gathers reports as lines: "answer", "full", then "VM DEVICE STATE" each.
type heard struct {
	mu    sync.Mutex
	lines []string
	all   []hoststate.NIC // everything that was ever told
}

func (h *heard) tell(r Report) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.Answer {
		h.lines = append(h.lines, "answer")
	}
	if r.Full {
		h.lines = append(h.lines, "full")
	}
	h.all = append(h.all, r.NICs...)
	for _, n := range r.NICs {
		h.lines = append(h.lines, n.VM+" "+n.Device+" "+n.State.String())
	}
}

// take waits for n more lines and hands all out.
func (h *heard) take(t *testing.T, n int) string {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; <-time.After(2 * time.Millisecond) {
		h.mu.Lock()
		if len(h.lines) >= n {
			out := strings.Join(h.lines, ", ")
			h.lines = nil
			h.mu.Unlock()
			return out
		}
		got := strings.Join(h.lines, ", ")
		h.mu.Unlock()
		if time.Now().After(end) {
			t.Fatalf("heard %q, want %d lines", got, n)
		}
	}
}

func (h *heard) want(t *testing.T, want string) {
	t.Helper()
	if got := h.take(t, strings.Count(want, ", ")+1); got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
}

// watch works a source until the test ends, and looks for what it leaves behind.
func watch(t *testing.T, socket string, patience time.Duration) (*Source, *heard) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	h := &heard{}
	s := New(Config{Socket: socket, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	s.patience = patience
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Watch(ctx, h.tell) }()
	t.Cleanup(func() {
		cancel()
		<-done
		goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("culvert/internal/libvirt.(*fakeDaemon).start.func1"), goleak.IgnoreAnyFunction("culvert/internal/libvirt.(*fakeDaemon).serve"))
	})
	return s, h
}

func guest(n byte, id int32, state libvirt.DomainState, reason int32) fakeGuest {
	d := libvirt.Domain{Name: fmt.Sprintf("g%d", n), UUID: libvirt.UUID{n}, ID: id}
	xml := fmt.Sprintf("<domain><name>g%d</name><devices><interface type='bridge'><mac address='52:54:00:00:01:%02x'/><source bridge='cvb1'/><target dev='vnet%d'/></interface></devices></domain>", n, n, id)
	return fakeGuest{ref: d, state: int32(state), reason: reason, xml: xml}
}

func (g fakeGuest) in(state libvirt.DomainState, reason int32) fakeGuest {
	g.state, g.reason = int32(state), reason
	return g
}

var migrating = int32(libvirt.DomainPausedMigration)

func TestWatchReportsAllThenChanges(t *testing.T) {
	f := newFake(t)
	a, b := guest(1, 1, libvirt.DomainRunning, 1), guest(2, 2, libvirt.DomainPaused, migrating)
	f.set(a)
	f.set(b)
	f.start()
	_, h := watch(t, f.path, callTimeout)
	h.want(t, "full, g1 vnet1 running, g2 vnet2 incoming")

	f.set(b.in(libvirt.DomainRunning, 2))
	f.emit(b.ref, arrived)
	h.want(t, "g2 vnet2 running")

	f.emit(b.ref, arrived) // doubled
	f.emit(a.ref, unpaused)
	f.set(a.in(libvirt.DomainPaused, migrating))
	f.emit(a.ref, departing)
	h.want(t, "g1 vnet1 leaving")
	f.set(a.in(libvirt.DomainRunning, 6))
	f.emit(a.ref, arrived) // the migration was aborted after the stop
	h.want(t, "g1 vnet1 running")

	f.remove(a)
	f.emit(a.ref, stopped)
	h.want(t, "g1 vnet1 gone")

	two := b
	two.xml = strings.Replace(b.xml, "</devices>", "<interface type='bridge'><mac address='52:54:00:00:01:99'/><target dev='vnet3'/></interface></devices>", 1)
	f.set(two.in(libvirt.DomainRunning, 2))
	f.emit(b.ref, event{libvirt.DomainEventDefined, 1}) // says nothing of a life, and is as good a reason to look
	h.want(t, "g2 vnet3 running")
	f.set(b.in(libvirt.DomainRunning, 2))
	f.emitRemoved(b.ref, "net1")
	h.want(t, "g2 vnet3 gone")

	again := guest(2, 7, libvirt.DomainRunning, 1) // it restarted, and its end was lost
	f.set(again)
	f.emit(again.ref, booted)
	h.want(t, "g2 vnet2 gone, g2 vnet7 running")
	again.ref.ID = 8 // and once more, by devices of the same names
	f.set(again)
	f.emit(again.ref, booted)
	h.want(t, "g2 vnet7 running")
}

// TestWatchLooksByItself: what libvirt has no event for, or whose event is
// lost, is found by looking at guests between two hosts, and by Refresh.
func TestWatchLooksByItself(t *testing.T) {
	f := newFake(t)
	a, b := guest(1, 1, libvirt.DomainPaused, migrating), guest(2, 2, libvirt.DomainRunning, 1)
	f.set(a)
	f.set(b)
	f.start()
	s, h := watch(t, f.path, callTimeout)
	h.want(t, "full, g1 vnet1 incoming, g2 vnet2 running")
	f.set(a.in(libvirt.DomainRunning, 2))
	h.want(t, "g1 vnet1 running")

	b.xml = strings.Replace(b.xml, "cvb1", "cvb2", 1)
	f.set(b)
	before := f.count(procState)
	s.Refresh("vnet9")
	s.Refresh("vnet2")
	h.want(t, "g2 vnet2 running")
	if n := f.count(procState) - before; n > 2+4 { // once or twice for the guest; all are looked at again now and then
		t.Errorf("%d states were read for one device", n)
	}
	f.remove(b)
	s.Refresh("")
	h.want(t, "g2 vnet2 gone")
}

// TestWatchAnswers: who asks is told of every guest once more, after what has
// changed, when all can be read; of a daemon that is away, when it is back.
func TestWatchAnswers(t *testing.T) {
	f := newFake(t)
	a, b, c := guest(1, 1, libvirt.DomainRunning, 1), guest(2, 2, libvirt.DomainRunning, 1), guest(3, 3, libvirt.DomainRunning, 1)
	f.set(a)
	f.set(b)
	f.start()
	s, h := watch(t, f.path, callTimeout)
	h.want(t, "full, g1 vnet1 running, g2 vnet2 running")
	s.Inquire()
	h.want(t, "answer, full, g1 vnet1 running, g2 vnet2 running")

	f.remove(b)
	s.Inquire()
	h.want(t, "g2 vnet2 gone, answer, full, g1 vnet1 running")

	c.broken = true
	f.set(c)
	f.set(a.in(libvirt.DomainPaused, 1))
	s.Inquire()
	h.want(t, "g1 vnet1 paused")
	c.broken = false
	f.set(c)
	h.want(t, "g3 vnet3 running, answer, full, g1 vnet1 paused, g3 vnet3 running")

	thaw := f.freeze()
	s.Inquire()
	f.stop()
	thaw()
	f.remove(c)
	f.start()
	h.want(t, "answer, full, g1 vnet1 paused")
	f.stop()
	f.start()
	h.want(t, "full, g1 vnet1 paused")
}

// TestWatchKnowsTheWay: a guest that a migration has paused before the source
// was watched is on its way out if its job says so, or if it has lived here.
func TestWatchKnowsTheWay(t *testing.T) {
	f := newFake(t)
	out, in, here := guest(1, 1, libvirt.DomainPaused, migrating), guest(2, 2, libvirt.DomainPaused, migrating), guest(3, 3, libvirt.DomainRunning, 1)
	out.out = true
	f.set(out)
	f.set(in)
	f.set(here)
	f.start()
	_, h := watch(t, f.path, callTimeout)
	h.want(t, "full, g1 vnet1 leaving, g2 vnet2 incoming, g3 vnet3 running")
	f.stop()
	f.set(here.in(libvirt.DomainPaused, migrating))
	f.start()
	h.want(t, "full, g1 vnet1 leaving, g2 vnet2 incoming, g3 vnet3 leaving")
}

// TestWatchOutlivesTheDaemon: missing, killed, frozen and lying daemons change
// nothing of what was said, and are taken up again.
func TestWatchOutlivesTheDaemon(t *testing.T) {
	f := newFake(t)
	_, h := watch(t, f.path, time.Second)
	a := guest(1, 1, libvirt.DomainRunning, 1)
	f.set(a)
	f.start() // only now
	h.want(t, "full, g1 vnet1 running")
	f.stop()
	f.remove(a)
	b := guest(2, 2, libvirt.DomainRunning, 1)
	f.set(b)
	f.start()
	h.want(t, "full, g2 vnet2 running")

	for _, lie := range [][]byte{{0, 0, 0, 3, 1, 2, 3, 4}, {255, 255, 255, 255, 0}, append(u32(28), make([]byte, 24)...), append(u32(40), make([]byte, 12)...), packet(procList, 1, u32(5), 0, u32(1<<30))} {
		f.mu.Lock()
		f.garbage = lie
		f.mu.Unlock()
		f.emit(b.ref, unpaused)
		h.want(t, "full, g2 vnet2 running")
	}
	f.emit(libvirt.Domain{Name: "nobody\x1b", UUID: libvirt.UUID{9}}, booted)
	f.emit(b.ref, event{99, 99})
	f.set(b.in(libvirt.DomainPaused, 1))
	f.emit(b.ref, suspended)
	h.want(t, "g2 vnet2 paused")
}

// TestWatchSaysFullOnlyOfAll: while one guest cannot be read, the others are
// told as changes; nobody must take it for gone.
func TestWatchSaysFullOnlyOfAll(t *testing.T) {
	f := newFake(t)
	a, b := guest(1, 1, libvirt.DomainRunning, 1), guest(2, 2, libvirt.DomainRunning, 1)
	b.broken = true
	f.set(a)
	f.set(b)
	f.start()
	_, h := watch(t, f.path, callTimeout)
	h.want(t, "g1 vnet1 running")
	b.broken = false
	f.set(b)
	h.want(t, "full, g1 vnet1 running, g2 vnet2 running")
	b.broken = true
	f.set(b.in(libvirt.DomainPaused, 1)) // its life can be read all the same
	f.emit(b.ref, suspended)
	h.want(t, "g2 vnet2 paused")
	b.broken, b.xml = false, "no XML"
	f.set(b.in(libvirt.DomainRunning, 5))
	f.emit(b.ref, unpaused)
	h.want(t, "g2 vnet2 running")
}

// TestWatchFrozenDaemon: a daemon that accepts and never answers is left after
// a bound, and the source ends at once when it is told to.
func TestWatchFrozenDaemon(t *testing.T) {
	f := newFake(t)
	a := guest(1, 1, libvirt.DomainRunning, 1)
	f.set(a)
	f.start()
	_, h := watch(t, f.path, time.Second)
	h.want(t, "full, g1 vnet1 running")
	thaw := f.freeze()
	f.emit(a.ref, unpaused)
	f.set(a.in(libvirt.DomainPaused, 1))
	<-f.gaveUp
	thaw()
	h.want(t, "full, g1 vnet1 paused")
	thaw = f.freeze()
	t.Cleanup(thaw)
	f.emit(a.ref, unpaused) // the test's end now waits for no answer
}

func TestMarksAreBounded(t *testing.T) {
	m := newMarks()
	for i := range 3 * maxMarks {
		m.domain(libvirt.Domain{UUID: libvirt.UUID{byte(i), byte(i >> 8)}}, arriving)
	}
	if s := m.take(); !s.all || !s.lost || len(s.doms) > maxMarks {
		t.Errorf("%v %v, %d marks", s.all, s.lost, len(s.doms))
	}
	d := libvirt.Domain{UUID: libvirt.UUID{1}}
	m.domain(d, arriving)
	m.domain(d, event{libvirt.DomainEventDefined, 0})
	m.domain(d, event{})
	if s := m.take(); s.all || s.doms[d.UUID].event != arriving {
		t.Errorf("%+v", s.doms)
	}
	if s := m.take(); s.all || len(s.doms) > 0 {
		t.Error("marks were handed out twice")
	}
}

// TestFrames: however a stream is cut, a wrong length in it is seen, and no
// other is.
func TestFrames(t *testing.T) {
	list := func(proc uint32, status int32, words ...int32) []byte {
		var b []byte
		for _, w := range words {
			b = append(b, u32(w)...)
		}
		return packet(proc, 1, u32(1), status, b)
	}
	good := [][]byte{
		packet(1, 1, u32(1), 0, make([]byte, 12)), packet(1, 1, u32(1), 0, nil), packet(1, 1, u32(1), 0, make([]byte, 100)),
		list(procAuth, 0, 1, 0), list(procList, 0, 0, 0), list(procList, 1, 1<<30, 0), list(procList, 0), list(procJobStats, 0, 4, 1, 0, 0, 0), list(procJobStats, 0, 1<<30),
	}
	bad := [][]byte{
		u32(leastPacket - 1), u32(mostPacket + 1), u32(-1), append(u32(0), make([]byte, 40)...),
		list(procAuth, 0, 2, 0), list(procAuth, 0, -1, 0), list(procList, 0, 1, 0, 0, 0), list(procList, 0, 1<<30, 0), list(procJobStats, 0, 4, 2, 0, 0, 0),
	}
	through := func(stream []byte, cut int) bool {
		c := newConn(nil)
		for len(stream) > 0 {
			n := min(cut, len(stream))
			if !c.frames(stream[:n]) {
				return false
			}
			stream = stream[n:]
		}
		return true
	}
	all := bytes.Join(good, nil)
	for cut := 1; cut <= len(all); cut++ {
		if !through(all, cut) {
			t.Fatalf("a good stream in pieces of %d was refused", cut)
		}
		for i, b := range bad {
			if through(append(all[:len(all):len(all)], b...), cut) {
				t.Fatalf("bad packet %d in pieces of %d was taken", i, cut)
			}
		}
	}
}
