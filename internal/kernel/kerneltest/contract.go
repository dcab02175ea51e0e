package kerneltest

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Subject is a kernel under contract, with the hands that reach into it from
// outside the agent. Names of devices are at most 15 bytes.
type Subject interface {
	Read(context.Context, hoststate.Scope) (*hoststate.State, error)
	Apply(context.Context, []hoststate.Op) []hoststate.Result

	// Bell waits, where waiting is needed, until a doorbell matches and reports
	// whether one did. Those before it are dropped.
	Bell(func(hoststate.Doorbell) bool) bool
	// Quiet reports whether no doorbell rang since the last call of Bell or
	// Quiet; a list of those that did otherwise.
	Quiet() []hoststate.Doorbell

	Plug(name string) int32     // a VM's device, up, on no bridge; its ifindex
	Join(name, bridge string)   // `ip link set NAME master BRIDGE`
	Unplug(name string)         // the device goes
	SetUp(name string, up bool) // `ip link set NAME up|down`
	SetIPv6(name string, on bool)
	SetMAC(name string, mac overlay.MAC)
	SetRow(hoststate.Row)      // a foreign program writes
	DeleteRow(hoststate.Row)   // a foreign program deletes
	FlushRuleset()             // `nft flush ruleset`
	DropIsolation(overlay.VNI) // the chain of one bridge goes
	Strip(name string)         // our programs are taken off a device

	// The guest behind a device, whose MAC is mac1, asks for a neighbour; or
	// sends a frame to a MAC, with a packet to an address in it if that is valid.
	Ask(name string, ip netip.Addr)
	Frame(name string, to overlay.MAC, packet netip.Addr)
	// Missed waits, where waiting is needed, for a miss and returns those before
	// it; ok is false if it did not come.
	Missed(hoststate.Miss) (before []hoststate.Miss, ok bool)
}

// suite is a case with its subject at hand.
type suite struct {
	*testing.T
	Subject
}

// VNI, addresses and flags of the cases.
const (
	vni    overlay.VNI = 100
	remote             = hoststate.Static | hoststate.Extern
	local              = hoststate.Static | hoststate.Sticky
	neigh              = hoststate.Permanent | hoststate.Ours
)

var (
	mac1   = overlay.MAC{0x52, 0x54, 0, 0, 0, 1}
	mac2   = overlay.MAC{0x52, 0x54, 0, 0, 0, 2}
	vtep1  = netip.MustParseAddr("192.0.2.1") // our own
	vtep2  = netip.MustParseAddr("192.0.2.2")
	vtep3  = netip.MustParseAddr("192.0.2.3")
	vtepV6 = netip.MustParseAddr("2001:db8::2")
	guest4 = netip.MustParseAddr("10.1.0.2")
	guest6 = netip.MustParseAddr("fd00:1::2")
)

func testDevice() hoststate.Device {
	return hoststate.Device{VNI: vni, Local: vtep1, UDPPort: 4789, MTU: 1450, DF: overlay.DFSet,
		Alias: hoststate.DeviceAlias("c", overlay.UID{1}, overlay.Rev{Epoch: 1, N: 7}), AltName: "acme.blue"}
}

func fdbRow(m overlay.MAC, dst netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableFDB, VNI: vni, MAC: m}, Val: hoststate.Val{Dst: dst, Flags: remote}}
}

// crossRow is an entry that leads into another network.
func crossRow(m overlay.MAC, dst netip.Addr, into overlay.VNI) hoststate.Row {
	r := fdbRow(m, dst)
	r.Val.VNI = into
	return r
}

func routerRow(m overlay.MAC, dst netip.Addr) hoststate.Row {
	r := fdbRow(m, dst)
	r.Val.Flags |= hoststate.Router
	return r
}

func masterRow(m overlay.MAC, port int32, f hoststate.Flags) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableMaster, VNI: vni, MAC: m}, Val: hoststate.Val{Port: port, Flags: f}}
}

func neighRow(ip netip.Addr, m overlay.MAC) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableNeigh, VNI: vni, IP: ip}, Val: hoststate.Val{MAC: m, Flags: neigh}}
}

func replRow(dst netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableRepl, VNI: vni, IP: dst}, Val: hoststate.Val{Flags: hoststate.Permanent}}
}

func vtepRow(a netip.Addr) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableVTEP, IP: a}}
}

func memberRow(port int32) hoststate.Row {
	return hoststate.Row{Key: hoststate.Key{Table: hoststate.TableMember, Port: port}}
}

func markRow(n uint64) hoststate.Row {
	return hoststate.Row{Key: hoststate.MarkKey("c", overlay.Rev{Epoch: 1, N: n})}
}

// Set and Del make operations of rows.
func Set(rows ...hoststate.Row) []hoststate.Op { return ops(hoststate.OpSet, rows) }

// Del makes one OpDel a row.
func Del(rows ...hoststate.Row) []hoststate.Op { return ops(hoststate.OpDel, rows) }

func ops(kind hoststate.OpKind, rows []hoststate.Row) []hoststate.Op {
	var all []hoststate.Op
	for _, r := range rows {
		all = append(all, hoststate.Op{ID: uint64(len(all)), Kind: kind, Row: r})
	}
	return all
}

// do applies and wants each operation to end in class.
func (s suite) do(class hoststate.Class, ops ...hoststate.Op) []hoststate.Result {
	s.Helper()
	res := s.Apply(s.Context(), ops)
	if len(res) != len(ops) {
		s.Fatalf("%d results for %d operations", len(res), len(ops))
	}
	for i, r := range res {
		if r.Op != ops[i] {
			s.Fatalf("result %d is of %v, want of %v", i, r.Op, ops[i])
		}
		if r.Class != class {
			s.Errorf("%v: %v %q, want %v", r.Op, r.Class, r.Text, class)
		}
		if (r.Class == hoststate.ClassOK) != (r.Text == "") {
			s.Errorf("%v: class %v with text %q", r.Op, r.Class, r.Text)
		}
	}
	return res
}

// set writes rows and wants them read back as written.
func (s suite) set(rows ...hoststate.Row) {
	s.Helper()
	for _, r := range s.do(hoststate.ClassOK, Set(rows...)...) {
		if !r.Verified || !r.Present || r.Have != r.Op.Row.Val {
			s.Errorf("%v: verified %t, present %t, holds %+v", r.Op, r.Verified, r.Present, r.Have)
		}
	}
	s.holds(rows...)
}

// del deletes rows and wants them gone.
func (s suite) del(rows ...hoststate.Row) {
	s.Helper()
	for _, r := range s.do(hoststate.ClassOK, Del(rows...)...) {
		if !r.Verified || r.Present {
			s.Errorf("%v: verified %t, present %t", r.Op, r.Verified, r.Present)
		}
	}
	s.lacks(rows...)
}

func (s suite) state() *hoststate.State {
	s.Helper()
	st, err := s.Read(s.Context(), hoststate.Scope{Links: true, VNI: vni})
	if err != nil {
		s.Fatal(err)
	}
	return st
}

func (s suite) holds(rows ...hoststate.Row) {
	s.Helper()
	st := s.state()
	for _, r := range rows {
		if v, ok := st.Rows[r.Key]; !ok || v != r.Val {
			s.Errorf("holds %+v (%t) under the key of %v", v, ok, r)
		}
	}
}

func (s suite) lacks(rows ...hoststate.Row) {
	s.Helper()
	st := s.state()
	for _, r := range rows {
		if v, ok := st.Rows[r.Key]; ok {
			s.Errorf("holds %v under the key of %v, want nothing", hoststate.Row{Key: r.Key, Val: v}, r)
		}
	}
}

// link reads one link back by name.
func (s suite) link(name string) (hoststate.Link, bool) {
	s.Helper()
	for _, l := range s.state().Links {
		if l.Name == name {
			return l, true
		}
	}
	return hoststate.Link{}, false
}

func (s suite) mustLink(name string) hoststate.Link {
	s.Helper()
	l, ok := s.link(name)
	if !ok {
		s.Fatalf("no link %s", name)
	}
	return l
}

// devices makes base, bridge and VXLAN device and sets the latter up.
func (s suite) devices() {
	s.Helper()
	d := testDevice()
	s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpBase}, hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: d},
		hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: d})
	s.up()
}

func (s suite) up() {
	s.Helper()
	s.do(hoststate.ClassOK, hoststate.Op{Kind: hoststate.OpUp, Index: s.mustLink(vni.VXLAN()).Index})
}

// port plugs a VM in and attaches it.
func (s suite) port(name string) int32 {
	s.Helper()
	i := s.Plug(name)
	s.do(hoststate.ClassOK,
		hoststate.Op{Kind: hoststate.OpAttach, Dev: testDevice(), Name: name, Alias: hoststate.PortAlias("acme", name)},
		hoststate.Op{Kind: hoststate.OpPort, Index: i})
	return i
}

// eventually retries what the kernel does in the background (carrier, and so
// the state of a port).
func (s suite) eventually(what string, ok func() bool) {
	s.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(end) {
			s.Fatalf("not in 5 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// Contract runs every case on a subject of its own.
func Contract(t *testing.T, fresh func(*testing.T) Subject) {
	for _, group := range [][]contractCase{rowCases, routeCases, missCases, deviceCases, nftCases, programCases, demandCases} {
		run(t, group, fresh)
	}
}

// ProgramContract runs the cases of the programs and their tables alone.
func ProgramContract(t *testing.T, fresh func(*testing.T) Subject) {
	run(t, programCases, fresh)
	run(t, demandCases, fresh)
}

func run(t *testing.T, cases []contractCase, fresh func(*testing.T) Subject) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.run(suite{t, fresh(t)})
		})
	}
}

// contractCase is named after the row of the kernel facts that it proves.
type contractCase struct {
	name string
	run  func(suite)
}

func manyMACs(n int) []overlay.MAC {
	all := make([]overlay.MAC, n)
	for i := range all {
		all[i] = overlay.MAC{0x52, 0x54, 1, byte(i >> 16), byte(i >> 8), byte(i)}
	}
	return all
}

func manyAddrs(n int) []netip.Addr {
	all := make([]netip.Addr, n)
	for i := range all {
		all[i] = netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
	}
	return all
}

func describe(bells []hoststate.Doorbell) string { return fmt.Sprintf("%+v", bells) }
