package libvirt

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	libvirt "github.com/digitalocean/go-libvirt"
)

// More procedures of libvirt's remote protocol, which the fake daemon has.
const (
	procOpen       = 1
	procXML        = 14
	procState      = 212
	procRegister   = 316
	procDeregister = 317
	procLifecycle  = 318 // this and the next are messages of the daemon
	procRemoved    = 333
	program        = 0x20008086
)

// fakeGuest is a guest of the fake daemon.
type fakeGuest struct {
	ref           libvirt.Domain
	state, reason int32
	xml           string
	broken        bool // its description cannot be had
	out           bool // its job is a migration from here
}

// fakeDaemon speaks as much of libvirt's protocol as the source asks for. It
// can lie, stall and end as no test can make the real one do.
type fakeDaemon struct {
	path string
	t    *testing.T

	mu       sync.Mutex
	l        net.Listener
	conns    []net.Conn
	guests   map[libvirt.UUID]*fakeGuest
	callback map[int32]int32 // of each event's kind
	calls    map[uint32]int
	frozen   chan struct{} // calls wait for its end; nil if they do not
	garbage  []byte        // sent instead of an answer to the next call
	gaveUp   chan struct{} // a caller did, of a call that was held back
}

func newFake(t *testing.T) *fakeDaemon {
	f := &fakeDaemon{path: filepath.Join(t.TempDir(), "sock"), t: t, guests: map[libvirt.UUID]*fakeGuest{}, callback: map[int32]int32{}, calls: map[uint32]int{}, gaveUp: make(chan struct{}, 100)}
	t.Cleanup(f.stop)
	return f
}

func (f *fakeDaemon) start() {
	l, err := net.Listen("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.l = l
	f.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			go f.serve(c)
		}
	}()
}

// stop is the daemon's sudden end.
func (f *fakeDaemon) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.l != nil {
		_ = f.l.Close()
	}
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.l, f.conns = nil, nil
}

func (f *fakeDaemon) serve(c net.Conn) {
	for {
		var head [28]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[:])-28)
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		f.mu.Lock()
		frozen := f.frozen
		f.mu.Unlock()
		if frozen != nil {
			f.wait(c, frozen)
		}
		f.mu.Lock()
		proc := binary.BigEndian.Uint32(head[12:])
		status, payload := f.answer(proc, body)
		out := packet(proc, 1, head[20:24], status, payload)
		if f.garbage != nil {
			out, f.garbage = f.garbage, nil
		}
		_, err := c.Write(out)
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// wait holds a call back. That its caller gave up is seen by the end of the
// connection.
func (f *fakeDaemon) wait(c net.Conn, frozen chan struct{}) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = c.Read(make([]byte, 1)) // no caller sends before it was answered
	}()
	select {
	case <-gone:
		f.gaveUp <- struct{}{}
	case <-frozen:
		_ = c.Close() // its next byte was taken: this connection is of no use any more
	}
	<-gone
}

func u32(v int32) []byte { return binary.BigEndian.AppendUint32(nil, uint32(v)) }

func str(s string) []byte {
	b := append(u32(int32(len(s))), s...)
	return append(b, make([]byte, (4-len(s)%4)%4)...)
}

func ref(d libvirt.Domain) []byte { return slices.Concat(str(d.Name), d.UUID[:], u32(d.ID)) }

func packet(proc uint32, typ int32, serial []byte, status int32, payload []byte) []byte {
	return slices.Concat(u32(int32(28+len(payload))), u32(program), u32(1), u32(int32(proc)), u32(typ), serial, u32(status), payload)
}

// answer is called with the lock held.
func (f *fakeDaemon) answer(proc uint32, body []byte) (status int32, payload []byte) {
	f.calls[proc]++
	no := func(code libvirt.ErrorNumber, text string) (int32, []byte) {
		return 1, slices.Concat(u32(int32(code)), u32(10), u32(1), str(text), u32(2))
	}
	guest := func() *fakeGuest {
		name := int(binary.BigEndian.Uint32(body))
		return f.guests[libvirt.UUID(body[4+(name+3)/4*4:])]
	}
	switch proc {
	case procOpen, procDeregister:
		return 0, nil
	case procAuth:
		return 0, slices.Concat(u32(1), u32(0))
	case procRegister:
		id := int32(binary.BigEndian.Uint32(body))
		f.callback[id] = 100 + id
		return 0, u32(100 + id)
	case procList:
		var all []byte
		n := int32(0)
		for _, g := range f.guests {
			if g.state != int32(libvirt.DomainShutoff) {
				all = append(all, ref(g.ref)...)
				n++
			}
		}
		return 0, slices.Concat(u32(n), all, u32(n))
	}
	g := guest()
	if g == nil {
		return no(libvirt.ErrNoDomain, "no such domain")
	}
	switch proc {
	case procState:
		return 0, slices.Concat(u32(g.state), u32(g.reason))
	case procXML:
		if g.broken {
			return no(libvirt.ErrOperationTimeout, "cannot acquire state change lock")
		}
		return 0, str(g.xml)
	case procJobStats:
		if !g.out {
			return no(libvirt.ErrOperationInvalid, "migration statistics are available only on the source host")
		}
		return 0, slices.Concat(u32(4), u32(1), str("operation"), u32(1), u32(jobOut))
	}
	return no(libvirt.ErrNoSupport, "unknown")
}

// set changes a guest without a word.
func (f *fakeDaemon) set(g fakeGuest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guests[g.ref.UUID] = &g
}

func (f *fakeDaemon) remove(g fakeGuest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.guests, g.ref.UUID)
}

// emit sends a lifecycle event on every connection.
func (f *fakeDaemon) emit(d libvirt.Domain, e event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.send(procLifecycle, slices.Concat(u32(f.callback[int32(libvirt.DomainEventIDLifecycle)]), ref(d), u32(int32(e.typ)), u32(e.detail)))
}

// emitRemoved says that a device is unplugged.
func (f *fakeDaemon) emitRemoved(d libvirt.Domain, alias string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.send(procRemoved, slices.Concat(u32(f.callback[int32(libvirt.DomainEventIDDeviceRemoved)]), ref(d), str(alias)))
}

func (f *fakeDaemon) send(proc uint32, payload []byte) {
	b := packet(proc, 2, u32(0), 0, payload)
	for _, c := range f.conns {
		_, _ = c.Write(b) // a connection that has ended is as good as none
	}
}

func (f *fakeDaemon) count(proc uint32) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[proc]
}

// freeze makes calls wait until the returned function is called.
func (f *fakeDaemon) freeze() (thaw func()) {
	ch := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = ch
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.frozen = nil
		close(ch)
	}
}
