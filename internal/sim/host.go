package sim

import (
	"context"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// Durations that the agents are configured with.
const (
	grace  = 3 * second
	verify = 10 * second
)

// host is a machine: a kernel that stays, and an agent that comes and goes.
// It drives the agent's core as package agent does, without threads.
type host struct {
	w       *world
	index   int
	name    string
	uid     overlay.UID
	vtep    netip.Addr
	kernel  *kerneltest.Model
	slow    bool
	session uint64 // newest that the manager gave

	up      bool
	inc     int // incarnation of the agent
	core    *agentcore.Core
	busy    bool // a read or a batch is under way
	stream  *stream
	former  *stream // the newest that the manager welcomed
	current uint64  // session, once welcomed
	dialing bool
	wakeAt  int64
	journal []frame
	bells   int64                 // when the newest doorbell arrives
	readAt  map[overlay.VNI]int64 // when each network's tables were read last
	linksAt int64                 // of when the links are that its agent read last
	written int                   // operations that change a kernel, ever
	joined  bool
	left    []departure       // VMs that were here
	poor    *managercore.View // what the manager says that it meets, while that has an older store
	misled  int64             // until when it may have devices because of that

	off      bool  // without power
	onAt     int64 // when it got its power back
	cutUntil int64 // reaches no manager before

	seen knowledge
	// troubled: until when the kernel may differ from what the agent knows by
	// somebody else's doing.
	troubled int64
	deaf     int64        // until when its hypervisor tells nothing
	words    int64        // when its hypervisor's newest event arrives
	applying int64        // until when the newest batch is under way
	outages  int          // of its power, ever
	started  int64        // its agent
	vteps    []netip.Addr // that it had, ever
}

func (h *host) startAgent() {
	w := h.w
	if h.up || h.off {
		return
	}
	h.up, h.started = true, w.now
	h.vteps = append(h.vteps, h.vtep)
	h.inc++
	h.words = 0
	h.core = agentcore.New(agentcore.Config{
		Cluster: cluster, Self: h.uid, Name: h.name, VTEP: h.vtep, UDPPort: 4789,
		Grace: agentcore.Time(grace), Verify: agentcore.Time(verify),
	})
	h.busy, h.stream, h.current, h.dialing, h.wakeAt = false, nil, 0, false, 0
	h.seen.restart()
	w.log("agent of %s starts, %d frames in its journal", h.name, len(h.journal))
	for _, f := range h.journal {
		it := h.decodeItems(f.bytes)
		it.Told = nil // no journal has them
		h.seen.items(h, it, f.covers)
		h.core.Step(agentcore.Time(w.now), coreItems(it))
	}
	for _, x := range w.nics {
		if x.host == h && !h.pins(x) {
			x.spoke, x.forgot = min(x.spoke, x.since-1), w.now
		}
	}
	h.kernel.Doorbells()
	h.core.Step(agentcore.Time(w.now), agentcore.Bell{Doorbell: hoststate.Doorbell{Overflow: true}})
	h.list(w.between(milli, 300*milli))
	h.dial()
	h.pump()
}

// stopAgent kills the agent. bare takes its disk, too.
func (h *host) stopAgent(bare bool, again int64) {
	w := h.w
	if !h.up {
		return
	}
	w.log("agent of %s is killed, disk lost %t", h.name, bare)
	h.check()
	h.up = false
	if h.stream != nil {
		h.stream.cut()
	}
	h.stream = nil
	if bare {
		h.journal = nil
	}
	// A process has ended only when its system calls have: the next one starts
	// after what this one had sent is done.
	w.after(max(again, h.applying-w.now+1), h.startAgent)
}

// check looks at what must never have happened.
func (h *host) check() {
	if st := h.core.Stats(); st.SumWrong != 0 {
		h.w.fail("agent of %s: %d sums differed from the manager's", h.name, st.SumWrong)
	}
}

// mine runs do later unless the agent was killed meanwhile.
func (h *host) mine(d int64, do func()) {
	inc := h.inc
	h.w.after(d, func() {
		if h.up && h.inc == inc {
			do()
		}
	})
}

func (h *host) step(e agentcore.Event) {
	if !h.up {
		return
	}
	h.core.Step(agentcore.Time(h.w.now), e)
	h.pump()
}

// pump pulls what the core wants done.
func (h *host) pump() {
	if !h.busy {
		if sc, ok := h.core.NextRead(); ok {
			h.read(sc)
		} else if ops := h.core.NextOps(nil, 200); len(ops) > 0 {
			h.apply(ops)
		}
	}
	if h.core.NextInquiry() {
		h.w.log("%s asks its hypervisor anew", h.name)
		h.lists(h.lag(100*micro, 10*milli), true)
	}
	h.tell()
	// The wake is asked for last: pulling may have set one.
	if wake := int64(h.core.Step(agentcore.Time(h.w.now), agentcore.Tick{})); wake != 0 {
		h.wakeBy(max(wake, h.w.now+1))
	}
}

func (h *host) wakeBy(t int64) {
	if h.wakeAt > h.w.now && h.wakeAt <= t {
		return
	}
	h.wakeAt = t
	h.mine(t-h.w.now, func() {
		if h.wakeAt == t {
			h.wakeAt = 0
			h.step(agentcore.Tick{})
		}
	})
}

func (h *host) lag(a, b int64) int64 {
	d := h.w.between(a, b)
	if h.slow {
		d *= 100
	}
	return d
}

func (h *host) read(sc hoststate.Scope) {
	h.busy = true
	if sc.VNI != 0 {
		h.readAt[sc.VNI] = h.w.now
	}
	took := h.lag(50*micro, 500*micro)
	h.mine(took, func() {
		at := h.w.now
		st, err := h.kernel.Read(context.Background(), sc)
		if err != nil {
			st = nil
		}
		h.w.log("%s reads links %t vni %d, ok %t", h.name, sc.Links, uint32(sc.VNI), err == nil)
		h.mine(h.lag(20*micro, 200*micro), func() {
			h.busy = false
			if sc.Links && st != nil {
				h.linksAt = at
				h.seen.links(h, st)
			}
			h.step(agentcore.Read{Scope: sc, State: st, Cost: agentcore.Time(took)})
		})
	})
}

// apply carries out a batch. The kernel goes on with it when the agent is
// killed: what was sent is done.
func (h *host) apply(ops []hoststate.Op) {
	h.busy = true
	h.checkBatch(ops)
	h.seen.decide()
	w, inc, kernel := h.w, h.inc, h.kernel
	d := h.lag(50*micro, milli)
	h.applying = w.now + d
	half := len(ops)
	if len(ops) > 1 && w.hit(OpsHalfDone, 0.01) {
		half = w.pick(len(ops))
	}
	w.after(d, func() {
		alive := h.up && h.inc == inc
		if h.kernel != kernel || !alive && w.chance(0.5) {
			return
		}
		var res []hoststate.Result
		for _, op := range ops[:half] {
			res = append(res, h.applyOne(op, alive))
		}
		h.ring()
		if !alive {
			return
		}
		if half < len(ops) {
			h.stopAgent(false, w.between(10*milli, 2*second))
			return
		}
		h.mine(h.lag(20*micro, 300*micro), func() {
			h.busy = false
			h.step(agentcore.Applied{Results: res})
		})
	})
}

func (h *host) applyOne(op hoststate.Op, alive bool) hoststate.Result {
	if op.Kind != hoststate.OpSend { // guests are told again from time to time
		h.written++
	}
	if alive {
		h.checkOp(op)
	}
	r := h.kernel.Apply(context.Background(), []hoststate.Op{op})[0]
	h.w.log("%s applies %v: %v", h.name, op, r.Class)
	if op.Kind == hoststate.OpSend && r.Class == hoststate.ClassOK && h.w.open {
		h.asked(op.Index, op.Frame)
	}
	return r
}

// failOp is the kernel's hook: the class with which an operation is refused.
func (h *host) failOp(op hoststate.Op) hoststate.Class {
	w := h.w
	class := hoststate.ClassOK
	switch {
	case w.hit(OpTransient, 0.01):
		class = hoststate.ClassTransient
	case w.hit(OpFull, 0.01):
		class = hoststate.ClassFull
	case w.hit(OpRefused, 0.01):
		class = hoststate.ClassRefused
	case w.hit(OpUnknown, 0.01):
		class = hoststate.ClassUnknown
	}
	if class != hoststate.ClassOK {
		h.trouble(15 * second)
	}
	return class
}

func (h *host) failRead(hoststate.Scope) hoststate.Class {
	if h.w.hit(ReadFailed, 0.05) {
		return hoststate.ClassTransient
	}
	return hoststate.ClassOK
}

func (h *host) loseBell(d hoststate.Doorbell) bool {
	if !d.Links && !d.Overflow && h.w.hit(BellLost, 0.02) {
		h.trouble(verify + 5*second)
		return true
	}
	return false
}

func (h *host) trouble(d int64) { h.troubled = max(h.troubled, h.w.now+d) }

// ring delivers the kernel's doorbells.
func (h *host) ring() {
	w := h.w
	h.miss()
	bells := h.kernel.Doorbells()
	if len(bells) == 0 {
		return
	}
	if w.hit(BellsOverflowed, 0.01) {
		bells = []hoststate.Doorbell{{Overflow: true}}
	}
	h.bells = max(h.bells+1, w.now+h.lag(20*micro, 500*micro))
	inc := h.inc
	w.at(h.bells, func() {
		if !h.up || h.inc != inc {
			return
		}
		for _, b := range bells {
			h.core.Step(agentcore.Time(w.now), agentcore.Bell{Doorbell: b})
		}
		h.pump()
	})
}

// touch lets the outside world do something to the kernel.
func (h *host) touch(do func(m *kerneltest.Model)) {
	do(h.kernel)
	h.ring()
}

// dial opens a stream, sooner or later.
func (h *host) dial() {
	if h.dialing || h.stream != nil {
		return
	}
	h.dialing = true
	h.mine(h.w.between(milli, 300*milli), func() {
		h.dialing = false
		if h.stream != nil || !h.up {
			return
		}
		if !h.w.mgr.up || !h.core.Looked() {
			h.dial()
			return
		}
		s := h.w.newStream(h)
		h.stream = s
		hello := api.Hello{Protocol: 1, Least: 1, Version: "sim", BootID: "b", VTEP: h.vtep, UpTo: h.core.Reached(), Logs: []api.Position{{Sent: h.core.FleetPosition()}}}
		s.up.send(api.UpPB(api.Up{Hello: &hello}))
	})
}

func (h *host) streamEnded(s *stream) {
	if h.stream != s {
		return
	}
	h.stream, h.current = nil, 0
	h.step(agentcore.Disconnected{})
	h.dial()
}

// heard is one message of the manager.
func (h *host) heard(s *stream, d api.Down, f frame) {
	if !h.up || h.stream != s {
		return // of a stream that was given up: the driver reads from one only
	}
	switch {
	case d.Welcome != nil:
		h.current = d.Welcome.Session
		h.step(agentcore.Connected{Session: d.Welcome.Session})
		h.breathe(s, int64(d.Welcome.Breath))
	case d.Items != nil:
		h.journal = append(h.journal, f)
		if len(h.journal) > 60 && h.w.hit(JournalRewritten, 0.2) {
			h.rewriteJournal(f)
		}
		h.seen.items(h, d.Items, f.covers)
		h.step(coreItems(d.Items))
		h.check()
	case d.Probe != nil:
		h.witness(s, *d.Probe)
	case d.Ask != nil:
		q := d.Ask
		h.step(agentcore.Ask{ID: q.ID, Network: q.Network, MAC: q.MAC, Address: q.Address, Within: agentcore.Time(q.Within)})
	case d.Answers != nil:
		for _, a := range d.Answers {
			h.step(agentcore.Answered(a))
		}
	}
}

// rewriteJournal writes anew what the core knows, before the message at hand.
func (h *host) rewriteJournal(at frame) {
	var out []frame
	for _, it := range h.core.Known() {
		in := api.Items{Begins: it.Begins, Members: it.Members, UpTo: it.UpTo}
		for _, x := range it.Items {
			in.Items = append(in.Items, api.StreamItem{Rev: x.Rev, Gone: x.Gone, Rec: x.Rec})
		}
		for _, e := range it.Ends {
			in.Ends = append(in.Ends, api.LogEnd(e))
		}
		out = append(out, frame{bytes: h.w.encodeDown(api.Down{Items: &in})})
	}
	if out == nil {
		return // nothing is known for certain yet
	}
	h.journal = append(out, at)
}

func (w *world) encodeDown(d api.Down) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(api.DownPB(d))
	if err != nil {
		w.fail("a message cannot be encoded: %v", err)
	}
	return b
}

func (h *host) decodeItems(b []byte) *api.Items {
	var pb culvertv1.Down
	if err := proto.Unmarshal(b, &pb); err != nil {
		h.w.fail("the journal of %s cannot be read: %v", h.name, err)
	}
	d, err := api.DownFromPB(&pb)
	if err != nil || d.Items == nil {
		h.w.fail("the journal of %s is refused: %v", h.name, err)
	}
	return d.Items
}

func coreItems(in *api.Items) agentcore.Items {
	out := agentcore.Items{Begins: in.Begins, Members: in.Members, Told: in.Told, Dropped: in.Dropped, UpTo: in.UpTo}
	for _, it := range in.Items {
		out.Items = append(out.Items, agentcore.Item{Rev: it.Rev, Gone: it.Gone, Rec: it.Rec})
	}
	for _, e := range in.Ends {
		out.Ends = append(out.Ends, agentcore.End(e))
	}
	return out
}

// tell sends what the core has to say.
func (h *host) tell() {
	u := h.core.NextUp()
	if u.Empty() {
		return
	}
	if !u.Ack.IsZero() {
		h.checkAck(u.Ack)
	}
	s := h.stream
	if s == nil {
		h.w.fail("agent of %s speaks without a stream", h.name)
	}
	h.tellDemands(s, u.Demands)
	if len(u.Add)+len(u.Remove) > 0 {
		in := &api.Interest{Remove: u.Remove}
		for _, p := range u.Add {
			in.Add = append(in.Add, api.Position(p))
		}
		s.up.send(api.UpPB(api.Up{Interest: in}))
	}
	for part := range slices.Chunk(u.Claims, api.MaxStreamClaims) {
		cs := &api.Claims{Session: h.current}
		for _, c := range part {
			h.w.log("%s claims %v in %v base %v leave %t pre %t", h.name, c.MAC, c.Network, c.Base, c.Leave, c.Pre)
			h.checkClaim(c)
			cs.Claims = append(cs.Claims, api.Claim(c))
		}
		s.up.send(api.UpPB(api.Up{Claims: cs}))
	}
	if u.InventoryEnd {
		s.up.send(api.UpPB(api.Up{InventoryEnd: &api.InventoryEnd{Session: h.current}}))
	}
	for _, k := range u.Seeks {
		s.up.send(api.UpPB(api.Up{Seek: &api.Seek{Network: k.Network, Address: k.Address}}))
	}
	for _, f := range u.Findings {
		s.up.send(api.UpPB(api.Up{ProbeResult: &api.ProbeResult{ID: f.ID, Answered: f.Answered, Unable: f.Unable}}))
	}
	if !u.Ack.IsZero() {
		s.up.send(api.UpPB(api.Up{Ack: &api.Ack{Rev: u.Ack}}))
	}
}
