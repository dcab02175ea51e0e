package managercore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/overlay"
)

const (
	msec  Time = 1e6
	death      = 600 * msec
)

// machine is one host of a fleet in time.
type machine struct {
	uid     overlay.UID
	name    string
	vtep    netip.Addr
	session uint64
	agent   bool // its agent runs and is connected
	kernel  bool // its tunnel end point answers
	breath  Time // when it breathes next
}

// answerLater is a witness's answer under way.
type answerLater struct {
	at Time
	e  ProbeDone
}

// fleet drives a core in steps of 5 ms, with hosts that breathe and witnesses
// that answer.
type fleet struct {
	*rig
	hosts   []*machine
	way     []answerLater
	died    map[string]Time // when each was declared dead last
	deaths  int
	braked  int
	blocked bool // no echo passes
}

func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := &fleet{rig: newRig(t), died: map[string]Time{}}
	f.now = 1000 * second
	f.load()
	f.must(ModeCreate, network("blue", "10.1.0.0/24"))
	for i := range n {
		name := fmt.Sprintf("h%02d", i)
		x := f.ask(Asked{AddHost: &AddHost{Name: name, MachineID: name}})
		m := &machine{uid: x.Changes[0].Rec.(*overlay.Host).UID, name: name, vtep: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), kernel: true}
		f.hosts = append(f.hosts, m)
		f.attach(m)
		f.run(msec * 7) // out of step with one another
	}
	f.run(5 * second)
	return f
}

const second Time = 1e9

// load replaces the core, as a manager that starts.
func (f *fleet) load() {
	e := Loaded{N: f.n}
	for _, s := range f.recs {
		e.Records = append(e.Records, s)
	}
	f.c = New(Config{Epoch: 1, HostDeath: death})
	f.c.Step(f.now, e)
	f.settle()
}

func (f *fleet) attach(m *machine) {
	f.t.Helper()
	f.id++
	id := f.id
	f.c.Step(f.now, Opened{ID: id, Host: m.uid, VTEP: overlay.Host{VTEP: m.vtep}, BootID: "b"})
	for _, r := range f.settle() {
		if r.ID == id {
			m.session = r.Session
		}
	}
	m.agent, m.kernel, m.breath = true, true, f.now
	blue := f.c.View().Named(overlay.KindNetwork, overlay.UID{0xd}, "blue").Key.UID
	f.c.Step(f.now, Subscribed{Host: m.uid, Session: m.session, Network: blue})
}

func (f *fleet) inventory(m *machine) {
	f.c.Step(f.now, InventoryEnded{Host: m.uid, Session: m.session})
	f.settle()
}

// powerOff takes agent and kernel; nobody is told.
func (m *machine) powerOff() { m.agent, m.kernel = false, false }

// killAgent ends the agent alone: its stream ends.
func (f *fleet) killAgent(m *machine) {
	m.agent = false
	f.c.Step(f.now, Closed{Host: m.uid, Session: m.session})
}

// run lets time pass.
func (f *fleet) run(d Time) {
	for end := f.now + d; f.now < end; f.now += 5 * msec {
		for _, m := range f.hosts {
			if m.agent && m.breath <= f.now {
				m.breath = f.now + 100*msec
				f.c.Step(f.now, Breath{Host: m.uid, Session: m.session})
			}
		}
		for len(f.way) > 0 && f.way[0].at <= f.now {
			e := f.way[0].e
			f.way = f.way[1:]
			if m := f.byUID(e.Host); m.agent {
				f.c.Step(f.now, e)
			}
		}
		if w := f.c.Wake(); w != 0 && w <= f.now {
			f.c.Step(f.now, Tick{})
		}
		f.settle()
		f.errands()
	}
}

func (f *fleet) byUID(u overlay.UID) *machine {
	return f.hosts[slices.IndexFunc(f.hosts, func(m *machine) bool { return m.uid == u })]
}

func (f *fleet) errands() {
	for _, e := range f.c.NextErrands() {
		switch e.Kind {
		case ErrandProbe:
			a := answerLater{f.now + 5*msec, ProbeDone{Host: e.Host, Session: e.Session, ID: e.Probe.ID, Answered: true}}
			if i := slices.IndexFunc(f.hosts, func(m *machine) bool { return m.vtep == e.Probe.VTEP }); !f.hosts[i].kernel || f.blocked {
				a.at, a.e.Answered = f.now+e.Probe.Within, false
			}
			f.way = append(f.way, a)
			slices.SortStableFunc(f.way, func(a, b answerLater) int { return int(a.at - b.at) })
		case ErrandDied:
			f.deaths++
			m := f.byUID(e.Host)
			f.died[m.name] = f.now
			m.agent = false // its stream is ended, if there is one
		case ErrandBraked:
			f.braked++
		}
	}
}

func (f *fleet) dead() (out []string) {
	for it := range f.c.View().List(overlay.KindHost, overlay.UID{}) {
		if h := it.Rec.(*overlay.Host); h.Dead {
			out = append(out, h.Name)
		}
	}
	return out
}

func (f *fleet) wantDead(when string, want ...string) {
	f.t.Helper()
	if got := f.dead(); !slices.Equal(got, want) {
		f.t.Errorf("%s: dead are %v, want %v", when, got, want)
	}
}

func (f *fleet) health(name string) string {
	for _, st := range f.c.HostStates() {
		if st.Name == name {
			return strings.Join(st.Health, "\n")
		}
	}
	return ""
}

func TestHostDiesInTimeAndOnce(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3, 8, 40} {
		for phase := range Time(10) {
			f := newFleet(t, n)
			f.run(phase * 10 * msec)
			at, rev := f.now, f.n
			f.hosts[1].powerOff()
			f.run(death * 9 / 10) // the rest is for the store and the way to the agents
			f.wantDead(fmt.Sprintf("%d hosts, %d ms after", n, (f.now-at)/msec), "h01")
			f.run(2 * second)
			if f.deaths != 1 || f.n != rev+1 {
				t.Errorf("%d hosts: %d verdicts and %d revisions, want one of each", n, f.deaths, f.n-rev)
			}
		}
	}
}

func TestAgentAwayIsNotDead(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 5)
	f.killAgent(f.hosts[2])
	f.hosts[3].agent = false // frozen: its stream stands
	f.run(120 * second)
	f.wantDead("two minutes after the agents went")
	at := f.now
	f.hosts[2].powerOff()
	f.run(death)
	f.wantDead("after the host of an absent agent died", "h02")
	if d := f.died["h02"] - at; d > death {
		t.Errorf("it took %d ms", d/msec)
	}
}

func TestOnlyHostNeverDies(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	f.hosts[0].powerOff()
	f.run(60 * second)
	f.wantDead("a fleet of one")
}

func TestManyAtOnceStopVerdicts(t *testing.T) {
	t.Parallel()
	for _, n := range []int{3, 9, 30} {
		f := newFleet(t, n)
		lost := max(3, n/3)
		for _, m := range f.hosts[:lost] {
			m.powerOff()
		}
		f.run(60 * second)
		f.wantDead(fmt.Sprintf("%d of %d hosts lost at once", lost, n))
		if n == lost {
			continue // nobody is left who could be asked, so nobody is condemned
		}
		good := f.hosts[n-1].name
		if f.braked != 1 || !strings.Contains(f.health("h01"), "CV0222") || f.health(good) != "" {
			t.Errorf("%d of %d: braked %d times, health of a lost one %q and of a good one %q", lost, n, f.braked, f.health("h01"), f.health(good))
		}
		for _, m := range f.hosts[1:lost] {
			f.attach(m)
		}
		f.run(15 * second)
		f.wantDead("after all but one returned", "h00")
		if f.health("h01") != "" {
			t.Errorf("health of one that returned is %q", f.health("h01"))
		}
	}
}

// What befalls several hosts, a switch or a power line, takes its time.
func TestManyWithinAQuarterSecond(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 5)
	for _, m := range f.hosts[:3] {
		m.powerOff()
		f.run(125 * msec)
	}
	f.run(30 * second)
	f.wantDead("three lost within 250 ms")
	if f.braked != 1 {
		t.Errorf("braked %d times", f.braked)
	}
}

func TestOneThatComesAndGoesIsOne(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	for i := range 6 {
		f.hosts[1].powerOff()
		f.run(death)
		f.wantDead(fmt.Sprintf("the same host for the %dth time", i+1), "h01")
		f.attach(f.hosts[1])
		f.inventory(f.hosts[1])
		f.run(500 * msec)
	}
	if f.braked != 0 {
		t.Errorf("braked %d times by one host", f.braked)
	}
}

func TestOneAfterTheOther(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 9)
	for _, m := range f.hosts[:4] {
		m.powerOff()
		f.run(2 * second)
	}
	f.wantDead("four lost within 8 s", "h00", "h01")
	f.run(40 * second)
	f.wantDead("much later", "h00", "h01", "h02", "h03")
}

func TestDeathOfHostsWhoseAgentsWereAway(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 9)
	for _, m := range f.hosts[:3] {
		f.killAgent(m)
		f.run(130 * msec)
	}
	f.run(10 * second)
	for _, m := range f.hosts[:3] {
		m.powerOff()
	}
	f.run(30 * second)
	f.wantDead("three kernels lost at once")
}

func TestHostReturnsByCompleteInventory(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	p := f.portOf(f.must(ModeCreate, port("vm1", "blue")), 0)
	q := f.portOf(f.must(ModeCreate, port("vm2", "blue")), 0)
	claim := func(m *machine, id uint64, p *overlay.Port, base overlay.Rev) {
		f.c.Step(f.now, Claimed{Host: m.uid, Session: m.session, Claims: []Claim{{ID: id, Network: p.Network, MAC: p.MAC, Port: p.UID, Base: base, Evidence: overlay.EvidenceDevice}}})
		f.settle()
	}
	h := f.hosts[0]
	claim(h, 1, p, overlay.Rev{})
	claim(h, 2, q, overlay.Rev{})
	f.inventory(h)
	old := h.session
	h.powerOff()
	f.run(death)
	f.wantDead("after its death", "h00")
	for _, x := range []*overlay.Port{p, q} {
		if e := f.c.View().Endpoint(x.Network, x.MAC); e == nil || e.Rec.(*overlay.Endpoint).Host != h.uid {
			t.Errorf("the binding of %s was changed by the death: %v", x.Name, e)
		}
	}
	f.c.Step(f.now, Breath{Host: h.uid, Session: old})
	f.c.Step(f.now, InventoryEnded{Host: h.uid, Session: old})
	f.settle()
	f.wantDead("after words of its former session", "h00")

	f.attach(h)
	claim(h, 3, p, overlay.Rev{})
	f.run(5 * second)
	f.wantDead("before its inventory is complete", "h00")
	rev := f.n
	f.inventory(h)
	f.wantDead("after its inventory")
	if e := f.c.View().Endpoint(q.Network, q.MAC); e != nil {
		t.Errorf("what it did not claim anew is still bound: %v", e.Rec)
	}
	if f.n != rev+1 {
		t.Errorf("its return and what it did not claim took %d revisions, want one: nobody is to point at what is not there", f.n-rev)
	}
}

func TestBindingOnDeadHostIsFree(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	p := f.portOf(f.must(ModeCreate, port("vm1", "blue")), 0)
	a, b := f.hosts[0], f.hosts[1]
	claim := Claim{ID: 1, Network: p.Network, MAC: p.MAC, Port: p.UID, Evidence: overlay.EvidenceDevice}
	f.c.Step(f.now, Claimed{Host: a.uid, Session: a.session, Claims: []Claim{claim}})
	f.settle()
	a.powerOff()
	f.run(death)
	claim.Base = f.c.View().Endpoint(p.Network, p.MAC).Rev
	f.c.Step(f.now, Claimed{Host: b.uid, Session: b.session, Claims: []Claim{claim}})
	f.settle()
	if e := f.c.View().Endpoint(p.Network, p.MAC); e.Rec.(*overlay.Endpoint).Host != b.uid {
		t.Errorf("the endpoint is on %v, want it where it was started anew", f.c.hostName(e.Rec.(*overlay.Endpoint).Host))
	}
	claim.Base = overlay.Rev{} // the dead one returns and says that it has it still
	f.attach(a)
	f.c.Step(f.now, Claimed{Host: a.uid, Session: a.session, Claims: []Claim{claim}})
	f.inventory(a)
	if e := f.c.View().Endpoint(p.Network, p.MAC); e.Rec.(*overlay.Endpoint).Host != b.uid {
		t.Error("a host that returned took back what another has")
	}
	f.wantDead("after its return")
}

func TestWithoutEchoNoVerdict(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	f.blocked = true
	for i := range 3 {
		name := fmt.Sprintf("x%d", i)
		x := f.ask(Asked{AddHost: &AddHost{Name: name, MachineID: name}})
		m := &machine{uid: x.Changes[0].Rec.(*overlay.Host).UID, name: name, vtep: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 101)}), kernel: true}
		f.hosts = append(f.hosts, m)
		f.attach(m)
	}
	f.run(30 * second)
	if !strings.Contains(f.health("x1"), "CV0221") {
		t.Errorf("health is %q, want it said that x1 cannot be judged", f.health("x1"))
	}
	f.hosts[1].powerOff()
	f.run(60 * second)
	f.wantDead("a host whose echoes never passed")
	f.blocked = false
	f.attach(f.hosts[1])
	f.run(90 * second)
	if f.health("x1") != "" {
		t.Errorf("health is %q after echoes pass", f.health("x1"))
	}
	f.hosts[1].powerOff()
	f.run(death)
	f.wantDead("after echoes passed", "x0")
}

func TestManagerThatSleptPardons(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	for _, m := range f.hosts {
		m.kernel = false // no witness will say a good word
	}
	f.now += 20 * second // the manager was stopped; breaths wait to be read
	f.c.Step(f.now, Tick{})
	f.errands()
	f.run(300 * msec)
	f.wantDead("just after the manager woke")
	if f.braked != 0 {
		t.Error("its own sleep was taken for a loss of many")
	}
}

func TestDeathWhileNoManagerRan(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	f.hosts[3].powerOff()
	f.load()
	for _, m := range f.hosts[:3] {
		f.attach(m)
	}
	f.run(9 * second)
	f.wantDead("while hosts may still come back")
	f.run(3 * second)
	f.wantDead("after that", "h03")
}
