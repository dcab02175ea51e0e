package bpf

import (
	"errors"
	"maps"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
)

// host is a namespace with a device.
type host struct {
	*testing.T
	ns  *netnstest.NS
	dev int32
	cfg Config
}

func newHost(t *testing.T, filters bool) *host {
	t.Helper()
	h := &host{T: t, ns: netnstest.New(t), cfg: Config{UDPPort: 4789, Filters: filters}}
	netnstest.Veth(h.ns, "p0", netnstest.New(t), "eth0")
	h.dev = int32(h.ns.Index("p0"))
	return h
}

// in runs f on a thread of the namespace.
func (h *host) in(f func() error) {
	h.Helper()
	if err := h.ns.Run(f); err != nil {
		h.Fatal(err)
	}
}

func (h *host) load() *Set {
	h.Helper()
	var s *Set
	h.in(func() (err error) {
		s, err = Load(h.cfg, []int32{1, h.dev})
		return err
	})
	return s
}

func (h *host) standing(s *Set) Standing {
	h.Helper()
	var st Standing
	h.in(func() (err error) {
		st, err = s.Standing(h.dev)
		return err
	})
	return st
}

func (h *host) attach(s *Set) {
	h.Helper()
	h.in(func() error { return errors.Join(s.Attach(h.dev, FromPort), s.Attach(h.dev, ToPort)) })
}

func (h *host) close(s *Set) {
	h.Helper()
	if err := s.Close(); err != nil {
		h.Fatal(err)
	}
}

// numbers are the maps of a set.
func (h *host) numbers(s *Set) map[ebpf.MapID]bool {
	h.Helper()
	ids := map[ebpf.MapID]bool{}
	for _, m := range s.maps() {
		info, err := m.Info()
		if err != nil {
			h.Fatal(err)
		}
		id, _ := info.ID()
		ids[id] = true
	}
	return ids
}

func (h *host) rows(s *Set) []hoststate.Key {
	return []hoststate.Key{{Table: hoststate.TablePort, Port: h.dev}, {Table: hoststate.TableSource, VNI: 100, MAC: other, IP: known4}}
}

func (h *host) holds(s *Set, want bool) {
	h.Helper()
	for _, k := range h.rows(s) {
		if f := s.Read([]Change{{Row: hoststate.Row{Key: k}, Device: h.dev}})[0]; f.Present != want || f.Err != nil {
			h.Errorf("table %s: row there %t, %v; want %t", k.Table, f.Present, f.Err, want)
		}
	}
}

// filled is a set with rows whose port programs stand on the device.
func (h *host) filled() *Set {
	h.Helper()
	s := h.load()
	if err := errors.Join(s.AddPort(h.dev, Place{9, 100}), s.AddNetwork(100, h.dev)); err != nil {
		h.Fatal(err)
	}
	k := h.rows(s)
	errs := s.Write([]Change{{Row: hoststate.Row{Key: k[0], Val: hoststate.Val{MAC: mine, Flags: safe}}}, {Row: hoststate.Row{Key: k[1]}}})
	if err := errors.Join(errs...); err != nil {
		h.Fatal(err)
	}
	h.attach(s)
	return s
}

var both = Standing{Ingress: FromPort, Egress: ToPort, Current: true}

func eachHook(t *testing.T, f func(*testing.T, bool)) {
	t.Run("tcx", func(t *testing.T) { t.Parallel(); f(t, false) })
	t.Run("filters", func(t *testing.T) { t.Parallel(); f(t, true) })
}

// TestReloadKeepsProgramsAndMaps: a new process finds programs, maps and rows
// as the old one left them, and replaces nothing.
func TestReloadKeepsProgramsAndMaps(t *testing.T) {
	eachHook(t, func(t *testing.T, filters bool) {
		h := newHost(t, filters)
		a := h.filled()
		ids, nums := a.ids, h.numbers(a)
		h.attach(a) // twice is once
		if st := h.standing(a); st != both {
			t.Errorf("stands %+v", st)
		}
		h.close(a)
		b := h.load()
		defer h.close(b)
		if st := h.standing(b); st != both || !maps.Equal(h.numbers(b), nums) {
			t.Errorf("stands %+v, maps %v, before %v", st, h.numbers(b), nums)
		}
		if b.ids[FromPort] != ids[FromPort] || b.ids[ToPort] != ids[ToPort] {
			t.Errorf("programs %v, before %v", b.ids, ids)
		}
		h.holds(b, true)
		h.in(func() error { return errors.Join(b.Detach(h.dev, FromPort), b.Detach(h.dev, ToPort)) })
		if st := h.standing(b); st != (Standing{Current: true}) {
			t.Errorf("after detaching, %+v stands", st)
		}
	})
}

// variant replaces the port programs by others of the same name and with the
// same maps, as another version of culvert left them.
func (h *host) variant(s *Set) {
	h.Helper()
	spec, err := loadCulvert()
	if err != nil {
		h.Fatal(err)
	}
	replace := map[string]*ebpf.Map{}
	for _, m := range s.maps() {
		info, err := m.Info()
		if err != nil {
			h.Fatal(err)
		}
		replace[info.Name] = m
	}
	for _, p := range spec.Programs {
		i := p.Instructions
		p.Instructions = append(asm.Instructions{i[0], asm.Mov.Imm(asm.R0, 7)}, i[1:]...)
	}
	var o culvertObjects
	if err := spec.LoadAndAssign(&o, &ebpf.CollectionOptions{MapReplacements: replace}); err != nil {
		h.Fatalf("load variant: %v", err)
	}
	old := &Set{objects: o, hook: s.hook, known: map[ebpf.ProgramID]Program{}}
	for p, slot := range old.slots() {
		if old.ids[p], _, err = identity(*slot); err != nil {
			h.Fatal(err)
		}
		for _, m := range s.maps() {
			if err := (*slot).BindMap(m); err != nil {
				h.Fatal(err)
			}
		}
	}
	h.attach(old)
	if err := o.Close(); err != nil {
		h.Fatal(err)
	}
}

// TestAnotherVersionIsReplacedInPlace: its maps are taken over with all rows,
// its programs are seen not to be of this version, and replaced.
func TestAnotherVersionIsReplacedInPlace(t *testing.T) {
	eachHook(t, func(t *testing.T, filters bool) {
		h := newHost(t, filters)
		a := h.filled()
		nums := h.numbers(a)
		h.variant(a)
		h.close(a)
		b := h.load()
		defer h.close(b)
		if st := h.standing(b); st != (Standing{Ingress: FromPort, Egress: ToPort}) || !maps.Equal(h.numbers(b), nums) {
			t.Errorf("stands %+v, maps %v, before %v; want programs of another version and the same maps", st, h.numbers(b), nums)
		}
		h.holds(b, true)
		h.attach(b)
		if st := h.standing(b); st != both {
			t.Errorf("stands %+v", st)
		}
		h.in(func() error {
			for _, in := range []bool{true, false} {
				if on, err := b.hook.query(h.dev, in); err != nil || len(on) != 1 {
					t.Errorf("%d programs, %v; want one", len(on), err)
				}
			}
			return nil
		})
		// The underlay's program takes the place of a port's, and back.
		h.in(func() error { return b.Attach(h.dev, Underlay) })
		if st := h.standing(b); st != (Standing{Ingress: Underlay, Egress: ToPort, Current: true}) {
			t.Errorf("stands %+v", st)
		}
	})
}

// TestForeignMapsAreNotTakenOver: programs of another layout or of another
// namespace are known, but their maps are left alone.
func TestForeignMapsAreNotTakenOver(t *testing.T) {
	eachHook(t, func(t *testing.T, filters bool) {
		for name, spoil := range map[string]func(*config){
			"layout": func(c *config) { c.Layout++ }, "namespace": func(c *config) { c.NetNS++ },
		} {
			h := newHost(t, filters)
			a := h.filled()
			nums := h.numbers(a)
			c := a.config
			spoil(&c)
			if err := a.objects.CvConfig.Put(uint32(0), c); err != nil {
				t.Fatal(err)
			}
			h.close(a)
			b := h.load()
			if st := h.standing(b); st != (Standing{Ingress: FromPort, Egress: ToPort}) {
				t.Errorf("%s: stands %+v", name, st)
			}
			for id := range h.numbers(b) {
				if nums[id] {
					t.Errorf("%s: map %d was taken over", name, id)
				}
			}
			h.holds(b, false)
			h.attach(b)
			if st := h.standing(b); st != both {
				t.Errorf("%s: stands %+v", name, st)
			}
			h.close(b)
		}
	})
}

// TestNetworkGrows: a network's map takes any number of rows, and keeps them
// as it grows.
func TestNetworkGrows(t *testing.T) {
	t.Parallel()
	h := newHost(t, false)
	s := h.load()
	defer h.close(s)
	if err := s.AddNetwork(100, h.dev); err != nil {
		t.Fatal(err)
	}
	const n = 20_000
	changes := make([]Change, n)
	for i := range changes {
		m := mine
		m[4], m[5] = byte(i>>8), byte(i)
		changes[i].Row.Key = hoststate.Key{Table: hoststate.TableSource, VNI: 100, MAC: m, IP: known4}
	}
	for from := 0; from < n; from += 700 {
		if err := errors.Join(s.Write(changes[from:min(from+700, n)])...); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[hoststate.Key]bool{}
	if err := s.NetworkRows(100, h.dev, func(r hoststate.Row) { seen[r.Key] = true }); err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if !seen[c.Row.Key] {
			t.Fatalf("%v is missing; %d rows are there", c.Row, len(seen))
		}
	}
}
