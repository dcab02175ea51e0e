package kerneltest

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Model is one host's kernel. The zero value is not usable; see New. It is
// not safe for concurrent use.
type Model struct {
	// Fail, if not nil, is asked before each operation; a class other than
	// ClassOK is the operation's result and nothing is changed.
	Fail func(hoststate.Op) hoststate.Class
	// FailRead, if not nil, is asked before each read.
	FailRead func(hoststate.Scope) hoststate.Class
	// Lose, if not nil, is asked for each doorbell; true loses it silently,
	// as no kernel does, but as a bug in a watcher would.
	Lose func(hoststate.Doorbell) bool
	// Clock, if not nil, is the time since any moment, by which State.Idle is
	// told.
	Clock func() time.Duration

	links  map[int32]*link
	names  map[string]int32
	next   int32
	nets   map[overlay.VNI]*tables
	chains map[string]bool // isolation chains, by name of bridge
	base   bool
	vteps  shared[netip.Addr, struct{}]
	member shared[int32, struct{}]
	marks  shared[netip.Addr, struct{}]
	ports  shared[int32, hoststate.Val]
	owned  shared[owned, hoststate.Val]

	// Strangers and Drops are what State reports.
	Strangers uint64
	Drops     map[hoststate.DropKey]uint64

	bells  []hoststate.Doorbell
	heard  []hoststate.Heard
	misses []hoststate.Miss
	// Writes counts row operations that changed a table, Announced the
	// announcements that left a port, in order.
	Writes    int
	Announced []hoststate.Row
	Sent      []hoststate.Op // OpSend, of frames that left a port
}

// link is a device; the tables hang on the network, not on the device,
// because the names tie both (one bridge and one VXLAN device a VNI).
type link struct {
	hoststate.Link
	isolatedPort bool
	checked      bool // the source check stands on it
}

// tables are the rows of one network's devices.
type tables struct {
	fdb    shared[overlay.MAC, hoststate.Val]
	master shared[overlay.MAC, hoststate.Val]
	repl   shared[peer, hoststate.Val]
	neigh  shared[netip.Addr, hoststate.Val]

	program shared[hoststate.Key, hoststate.Val] // the programs'

	used shared[overlay.MAC, time.Duration] // of fdb: when it was last looked up
}

// shared is a map that two clones may hold: the first write copies it.
type shared[K comparable, V any] struct {
	m      map[K]V
	frozen bool
}

func (s *shared[K, V]) put(k K, v V) { s.own(); s.m[k] = v }

func (s *shared[K, V]) del(k K) { s.own(); delete(s.m, k) }

func (s *shared[K, V]) own() {
	if s.m == nil {
		s.m, s.frozen = map[K]V{}, false
	}
	if s.frozen {
		s.m, s.frozen = maps.Clone(s.m), false
	}
}

func (s *shared[K, V]) clone() shared[K, V] { s.frozen = true; return *s }

// New is a kernel with no link, no table and no nftables.
func New() *Model {
	return &Model{
		links: map[int32]*link{}, names: map[string]int32{}, next: 2,
		nets: map[overlay.VNI]*tables{}, chains: map[string]bool{},
	}
}

// Clone is a kernel that holds the same and goes its own way from here on.
// It costs O(links): tables are copied at the first write. The hooks are
// taken along, as they are.
func (m *Model) Clone() *Model {
	c := *m
	c.links = map[int32]*link{}
	for i, l := range m.links {
		k := *l
		k.AltNames = slices.Clone(l.AltNames)
		c.links[i] = &k
	}
	c.names, c.chains = maps.Clone(m.names), maps.Clone(m.chains)
	c.nets = map[overlay.VNI]*tables{}
	for v, t := range m.nets {
		c.nets[v] = &tables{fdb: t.fdb.clone(), master: t.master.clone(), repl: t.repl.clone(), neigh: t.neigh.clone(),
			program: t.program.clone(), used: t.used.clone()}
	}
	c.vteps, c.member, c.marks, c.ports, c.owned = m.vteps.clone(), m.member.clone(), m.marks.clone(), m.ports.clone(), m.owned.clone()
	c.Drops = maps.Clone(m.Drops)
	c.bells, c.heard, c.Announced = slices.Clone(m.bells), slices.Clone(m.heard), slices.Clone(m.Announced)
	c.Sent, c.misses = slices.Clone(m.Sent), slices.Clone(m.misses)
	return &c
}

// Doorbells hands out what rang since the last call, oldest first.
func (m *Model) Doorbells() []hoststate.Doorbell {
	b := m.bells
	m.bells = nil
	return b
}

// Overflow loses what rang and says so, as ENOBUFS does.
func (m *Model) Overflow() { m.bells = []hoststate.Doorbell{{Overflow: true}} }

func (m *Model) ring(d hoststate.Doorbell) {
	if m.Lose == nil || !m.Lose(d) {
		m.bells = append(m.bells, d)
	}
}

func (m *Model) ringLinks() { m.ring(hoststate.Doorbell{Links: true}) }

// String dumps everything, links and rows of all networks, in the form of
// hoststate.State.
func (m *Model) String() string {
	s := m.state(hoststate.Scope{Links: true})
	vnis := slices.Sorted(maps.Keys(m.nets))
	for _, v := range vnis {
		m.rows(s, v)
	}
	return s.String()
}

// Read implements the kernel edge.
func (m *Model) Read(ctx context.Context, sc hoststate.Scope) (*hoststate.State, error) {
	if err := ctx.Err(); err != nil {
		return nil, &hoststate.Error{What: "read", Class: hoststate.ClassTransient, Text: err.Error()}
	}
	if m.FailRead != nil {
		if c := m.FailRead(sc); c != hoststate.ClassOK {
			return nil, &hoststate.Error{What: "read", Class: c, Text: "injected"}
		}
	}
	return m.state(sc), nil
}

func (m *Model) state(sc hoststate.Scope) *hoststate.State {
	s := &hoststate.State{Rows: map[hoststate.Key]hoststate.Val{}}
	if sc.Links {
		for _, l := range m.links {
			if m.reported(l) {
				s.Links = append(s.Links, m.export(l))
			}
		}
		slices.SortFunc(s.Links, func(a, b hoststate.Link) int { return cmp.Compare(a.Index, b.Index) })
		s.Base, s.Strangers, s.Drops = m.Based(), m.Strangers, maps.Clone(m.Drops)
		m.portRows(s)
		for a := range m.vteps.m {
			s.Rows[hoststate.Key{Table: hoststate.TableVTEP, IP: a}] = hoststate.Val{}
		}
		for i := range m.member.m {
			s.Rows[hoststate.Key{Table: hoststate.TableMember, Port: i}] = hoststate.Val{}
		}
		for a := range m.marks.m {
			s.Rows[hoststate.Key{Table: hoststate.TableMark, IP: a}] = hoststate.Val{}
		}
	}
	m.rows(s, sc.VNI)
	return s
}

// rows adds the rows of one network.
func (m *Model) rows(s *hoststate.State, v overlay.VNI) {
	t := m.nets[v]
	if t == nil {
		return
	}
	for mac, val := range t.fdb.m {
		s.Rows[hoststate.Key{Table: hoststate.TableFDB, VNI: v, MAC: mac}] = val
	}
	for mac, val := range t.master.m {
		s.Rows[hoststate.Key{Table: hoststate.TableMaster, VNI: v, MAC: mac}] = val
	}
	for p, val := range t.repl.m {
		s.Rows[hoststate.Key{Table: hoststate.TableRepl, VNI: v, MAC: p.mac, IP: p.vtep}] = val
	}
	for ip, val := range t.neigh.m {
		s.Rows[hoststate.Key{Table: hoststate.TableNeigh, VNI: v, IP: ip}] = val
	}
	maps.Copy(s.Rows, t.program.m)
	m.idle(s, v, t)
}

// reported says whether a link is ours or a port of one of our bridges.
func (m *Model) reported(l *link) bool {
	if l.VNI != 0 {
		return true
	}
	b := m.links[l.Master]
	return b != nil && b.Kind == hoststate.LinkBridge && b.VNI != 0
}

func (m *Model) export(l *link) hoststate.Link {
	x := l.Link
	x.AltNames = slices.Clone(x.AltNames)
	if x.Kind == hoststate.LinkBridge {
		x.Isolated = m.chains[x.Name]
	}
	return x
}

func (m *Model) bridge(v overlay.VNI) *link { return m.device(v.Bridge(), hoststate.LinkBridge) }

func (m *Model) vxlan(v overlay.VNI) *link { return m.device(v.VXLAN(), hoststate.LinkVXLAN) }

func (m *Model) device(name string, kind hoststate.LinkKind) *link {
	if l := m.links[m.names[name]]; l != nil && l.Kind == kind {
		return l
	}
	return nil
}

func (m *Model) net(v overlay.VNI) *tables {
	t := m.nets[v]
	if t == nil {
		t = &tables{}
		m.nets[v] = t
	}
	return t
}

func (m *Model) addLink(l hoststate.Link) *link {
	l.Index = m.next
	m.next++
	k := &link{Link: l}
	m.links[l.Index] = k
	m.names[l.Name] = l.Index
	return k
}
