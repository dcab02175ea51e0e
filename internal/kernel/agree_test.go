package kernel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
)

// pair is a model and a kernel to which the same things happen. Devices go by
// name, because each side numbers its own.
type pair struct {
	t     *testing.T
	rng   *rand.Rand
	model *kerneltest.Model
	real  *realSubject
	log   []string
	names map[int32]string // of VMs' devices, on both sides, gone ones included
}

const noIndex = 9999 // of no device on either side

// index is a device's ifindex on both sides.
func (p *pair) index(name string) (model, real int32) {
	model, real = noIndex, noIndex
	if l, ok := p.model.Link(name); ok {
		model = l.Index
	}
	if l, err := getLink(p.real.read, 0, name); err == nil {
		real = l.Index
	}
	return model, real
}

func (p *pair) vni() overlay.VNI { return overlay.VNI(1 + p.rng.IntN(2)) }

func (p *pair) vm() string { return "vm" + strconv.Itoa(1+p.rng.IntN(3)) }

func (p *pair) device() string {
	switch p.rng.IntN(4) {
	case 0:
		return p.vni().Bridge()
	case 1:
		return p.vni().VXLAN()
	}
	return p.vm()
}

func (p *pair) addr(family int) netip.Addr {
	n := byte(2 + p.rng.IntN(4))
	if family == 6 {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: n})
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, n})
}

func (p *pair) anyAddr() netip.Addr {
	if p.rng.IntN(4) == 0 {
		return p.addr(6)
	}
	return p.addr(4)
}

// agreeTables are the tables of random rows.
var agreeTables = []hoststate.Table{
	hoststate.TableVTEP, hoststate.TableFDB, hoststate.TableMaster, hoststate.TableRepl, hoststate.TableNeigh, hoststate.TableMember,
	hoststate.TableMark, hoststate.TablePort, hoststate.TableOwn, hoststate.TableSource, hoststate.TableRelayed, hoststate.TableRelay,
	hoststate.TableReach,
}

// row is a random row; its port, if any, is given by name.
func (p *pair) row() (r hoststate.Row, port string) {
	mac := overlay.MAC{0x52, 0x54, 0, 0, 0, byte(p.rng.IntN(4))}
	r.Key = hoststate.Key{Table: agreeTables[p.rng.IntN(len(agreeTables))], VNI: p.vni()}
	switch r.Key.Table {
	case hoststate.TableVTEP:
		r.Key.VNI, r.Key.IP = 0, p.anyAddr()
	case hoststate.TableMember:
		r.Key.VNI, port = 0, p.device()
	case hoststate.TableMark:
		r.Key = hoststate.MarkKey("c", overlay.Rev{Epoch: 1, N: uint64(p.rng.IntN(3))})
	case hoststate.TableFDB:
		r.Key.MAC, r.Val = mac, hoststate.Val{Dst: p.anyAddr(), Flags: remoteFlags}
		switch p.rng.IntN(4) {
		case 0:
			r.Val.Flags |= hoststate.Router
		case 1:
			r.Val.VNI = []overlay.VNI{1, 2, 3, overlay.MaxVNI, overlay.MaxVNI + 1}[p.rng.IntN(5)]
		}
	case hoststate.TableMaster:
		r.Key.MAC, r.Val.Flags = mac, remoteFlags
		if p.rng.IntN(2) == 0 {
			r.Val.Flags, port = localFlags, p.vm()
		}
	case hoststate.TableRepl:
		r.Key.IP, r.Val.Flags = p.anyAddr(), hoststate.Permanent
	case hoststate.TableNeigh:
		r.Key.IP, r.Val = p.anyAddr(), hoststate.Val{MAC: mac, Flags: neighFlags}
	case hoststate.TablePort:
		r.Key.VNI, port = 0, p.vm()
		r.Val = hoststate.Val{MAC: mac, Flags: hoststate.Open}
		if p.rng.IntN(2) == 0 {
			r.Val.Flags |= hoststate.CheckIP | hoststate.NoServers
		}
		if p.rng.IntN(2) == 0 {
			r.Val.Flags |= hoststate.Routed
		}
	case hoststate.TableOwn:
		r.Key.VNI, port = 0, p.vm()
		if r.Key.MAC = mac; p.rng.IntN(2) == 0 {
			r.Key.MAC, r.Key.IP = overlay.MAC{}, p.anyAddr()
			r.Val.Flags = []hoststate.Flags{0, hoststate.Shared, hoststate.Router}[p.rng.IntN(3)]
		}
	case hoststate.TableSource, hoststate.TableRelayed:
		if r.Key.MAC, r.Key.IP = mac, p.anyAddr(); r.Key.Table == hoststate.TableSource && p.rng.IntN(4) == 0 {
			r.Key.MAC = overlay.MAC{}
		}
	case hoststate.TableRelay:
		r.Key.MAC = mac
	case hoststate.TableReach:
		if r.Key.MAC = mac; p.rng.IntN(2) == 0 {
			r.Key.MAC, r.Key.IP = overlay.MAC{}, p.anyAddr()
		}
	}
	return r, port
}

// step makes one random thing happen on both sides.
func (p *pair) step() {
	switch n := p.rng.IntN(20); {
	case n < 15:
		p.apply()
	default:
		p.vandal()
	}
}

// side keeps the ifindexes of the two sides apart.
func side(index int32, model bool) int32 {
	if model {
		return -index
	}
	return index
}

func (p *pair) apply() {
	for _, name := range []string{"vm1", "vm2", "vm3"} {
		m, k := p.index(name)
		p.names[side(m, true)], p.names[side(k, false)] = name, name
	}
	var ma, re []hoststate.Op
	for range 1 + p.rng.IntN(6) {
		a, b := p.op()
		ma, re = append(ma, a), append(re, b)
	}
	resM, resR := p.model.Apply(p.t.Context(), ma), p.real.Apply(p.t.Context(), re)
	for i := range resM {
		m, r := p.outcome(resM[i], true), p.outcome(resR[i], false)
		p.log = append(p.log, fmt.Sprintf("%v: %s", re[i], r))
		if m != r {
			p.fail("%v:\nmodel  %s\nkernel %s (%s)", re[i], m, r, resR[i].Text)
		}
	}
}

// op is a random operation, as each side must be told it.
func (p *pair) op() (model, real hoststate.Op) {
	dev := hoststate.Device{VNI: p.vni(), Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1400 + uint32(p.rng.IntN(2)),
		DF: overlay.DF(p.rng.IntN(2)), Alias: "a" + strconv.Itoa(p.rng.IntN(2)), AltName: "t.n" + strconv.Itoa(p.rng.IntN(2))}
	name := p.device()
	var o hoststate.Op
	switch p.rng.IntN(17) {
	case 0:
		o = hoststate.Op{Kind: hoststate.OpBase}
	case 1:
		o = hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: dev}
	case 2:
		o = hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: dev}
	case 3:
		o = hoststate.Op{Kind: hoststate.OpUp}
	case 4:
		o = hoststate.Op{Kind: hoststate.OpTune, Dev: dev}
	case 5:
		o, name = hoststate.Op{Kind: hoststate.OpPort}, p.vm()
	case 6:
		o = hoststate.Op{Kind: hoststate.OpDelLink}
		if p.rng.IntN(3) > 0 {
			name = p.vm()
		}
	case 7:
		o = hoststate.Op{Kind: hoststate.OpAttach, Dev: dev, Name: p.vm(), Alias: hoststate.PortAlias("t", "p")}
	case 8:
		o = hoststate.Op{Kind: hoststate.OpDetach, Name: p.vm()}
	case 9:
		o = hoststate.Op{Kind: hoststate.OpAnnounce, Row: hoststate.Row{Key: hoststate.Key{VNI: p.vni(), IP: p.anyAddr()}, Val: hoststate.Val{MAC: macN(1)}}}
	case 10:
		o, name = hoststate.Op{Kind: hoststate.OpSend, Frame: strings.Repeat("x", 13+p.rng.IntN(3))}, p.vm()
	default:
		return p.rowOp()
	}
	model, real = o, o
	if o.Kind == hoststate.OpUp || o.Kind == hoststate.OpSend || o.Kind == hoststate.OpPort || o.Kind == hoststate.OpDelLink {
		model.Index, real.Index = p.index(name)
	}
	return model, real
}

func (p *pair) rowOp() (model, real hoststate.Op) {
	kind := hoststate.OpSet
	if p.rng.IntN(3) == 0 {
		kind = hoststate.OpDel
	}
	r, port := p.row()
	model, real = hoststate.Op{Kind: kind, Row: r}, hoststate.Op{Kind: kind, Row: r}
	if port == "" {
		return model, real
	}
	m, k := p.index(port)
	if r.Key.Table != hoststate.TableMaster {
		model.Row.Key.Port, real.Row.Key.Port = m, k
	} else {
		model.Row.Val.Port, real.Row.Val.Port = m, k
	}
	return model, real
}

// outcome is a result without what differs between the sides.
func (p *pair) outcome(r hoststate.Result, model bool) string {
	s := fmt.Sprintf("%v verified %t present %t", r.Class, r.Verified, r.Present)
	if !r.Present {
		return s
	}
	have := r.Have
	if have.Port != 0 {
		s += " on " + p.names[side(have.Port, model)]
		have.Port = 0
	}
	return fmt.Sprintf("%s %+v", s, have)
}

// vandal is what happens behind the agent's back.
func (p *pair) vandal() {
	name := p.vm()
	_, onModel := p.model.Link(name)
	what := ""
	switch p.rng.IntN(7) {
	case 6:
		if p.rng.IntN(2) == 0 {
			if name = p.vni().VXLAN(); p.rng.IntN(2) == 0 {
				name = p.vm()
			}
			if _, ok := p.model.Link(name); ok {
				what = "strip " + name
				p.model.Strip(name)
				p.real.Strip(name)
			}
		}
	case 0:
		if what = "unplug " + name; onModel {
			p.model.Unplug(name)
			p.real.Unplug(name)
		}
	case 1, 2:
		if what = "plug " + name; !onModel {
			p.model.Plug(name, 0, "")
			p.real.Plug(name)
		}
	case 3:
		x := p.vni().VXLAN()
		if _, ok := p.model.Link(x); ok {
			up := p.rng.IntN(3) > 0
			what = fmt.Sprintf("set up %s %t", x, up)
			p.model.SetUp(x, up)
			p.real.SetUp(x, up)
		}
	case 4:
		if p.rng.IntN(3) == 0 {
			what = "flush ruleset"
			p.model.FlushRuleset()
			p.real.FlushRuleset()
		}
	case 5:
		b := p.vni().Bridge()
		_, okB := p.model.Link(b)
		if onModel && okB {
			what = "join " + name + " " + b
			p.model.Join(name, b)
			p.real.Join(name, b)
		}
	}
	p.log = append(p.log, what)
}

// compare compares everything that both hold, ports' states excepted: the
// kernel changes them in its own time.
func (p *pair) compare() {
	st, err := p.real.Read(p.t.Context(), hoststate.Scope{Links: true})
	if err != nil {
		p.fail("read: %v", err)
	}
	for v := overlay.VNI(1); v <= 2; v++ {
		one, err := p.real.Read(p.t.Context(), hoststate.Scope{VNI: v})
		if err != nil {
			p.fail("read: %v", err)
		}
		for k, val := range one.Rows {
			st.Rows[k] = val
		}
	}
	if m := p.model.Based(); m != st.Base {
		p.fail("base: model %t, kernel %t", m, st.Base)
	}
	for _, l := range st.Links {
		if m, _ := p.model.Link(l.Name); m.Guarded != l.Guarded {
			p.fail("guarded %s: model %t, kernel %t", l.Name, m.Guarded, l.Guarded)
		}
	}
	clean := strings.NewReplacer(" forwarding", "", " blocked", "")
	if m, k := clean.Replace(p.model.String()), clean.Replace(st.String()); m != k {
		p.fail("model:\n%s\nkernel:\n%s", m, k)
	}
}

func (p *pair) fail(format string, args ...any) {
	p.t.Helper()
	from := max(0, len(p.log)-40)
	p.t.Fatalf("%s\nafter:\n%s", fmt.Sprintf(format, args...), strings.Join(p.log[from:], "\n"))
}

// TestModelAgreesWithKernel lets the same random things happen to both. A
// failure names the seed; CULVERT_SEED=N runs that one alone.
func TestModelAgreesWithKernel(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4}
	if s := os.Getenv("CULVERT_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{n}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			p := &pair{t: t, rng: rand.New(rand.NewPCG(seed, 0)), model: kerneltest.New(), real: newSubject(t, false), names: map[int32]string{}}
			for range 250 {
				p.step()
				p.compare()
			}
		})
	}
}
