package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"

	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// Result is what became of one seed.
type Result struct {
	Err    string // empty: all invariants held
	Trace  string // the last events, a line each
	Hash   uint64 // of the whole run
	Hits   [Faults]int
	Events int
}

// Options of a run.
type Options struct {
	Echo func(string) // gets every line of the trace; nil: none
	Deep bool         // put the text of every line into the hash: slower
	// Migrations narrows the world to one network on two or three hosts with
	// few VMs, which are moved again and again, and shortens its rests.
	Migrations bool
	// Domains makes a world in which networks are routed to each other.
	Domains bool
	// Guests makes a world in which networks admit undeclared endpoints and name
	// foreign tunnel end points, and ports share addresses and are checked.
	Guests bool
}

// Run simulates one seed from beginning to end.
func Run(seed uint64, o Options) (res Result) {
	w := newWorld(seed)
	w.narrow, w.routed, w.open = o.Migrations, o.Domains, o.Guests
	w.trace.echo, w.trace.deep = o.Echo, o.Deep
	defer func() {
		res.Trace, res.Hash, res.Hits, res.Events = w.trace.String(), w.trace.hash, w.hits, w.done
		if v := recover(); v != nil {
			violated, ok := v.(violation)
			if !ok { // a core has panicked: what led to it is worth more than the stack
				violated.text = fmt.Sprintf("panic: %v\n%s", v, debug.Stack())
			}
			res.Err = violated.text
		}
	}()
	w.begin()
	if w.narrow {
		w.migrations()
		return res
	}
	for range 1 + w.pick(2) {
		w.chaos()
		w.rest()
	}
	return res
}

func newWorld(seed uint64) *world {
	w := &world{seed: seed, rng: rand.New(rand.NewPCG(seed, 0x43756c76657274)), vnis: map[overlay.VNI]overlay.UID{}, masters: map[netAddr]*vm{}}
	w.ever = history{macs: map[netMAC]bool{}, addrs: map[netAddr]bool{}, vteps: map[netip.Addr]bool{}, goneAt: map[overlay.UID]uint64{}, bound: map[netMAC][]written{}, ways: map[way]bool{}, aliases: map[overlay.MAC]overlay.UID{}, foreign: map[netAddr]bool{}, learns: map[overlay.UID]bool{}, said: map[netAddr]bool{}, gates: map[netAddr]bool{}}
	w.talks = newTalks()
	w.store = &store{
		w: w, rev: 1, values: map[overlay.Key]value{}, bound: map[overlay.UID][]overlay.Key{}, declared: map[overlay.UID][]overlay.Key{},
		tell: func(managercore.Stored) {},
	}
	w.mgr, w.old = &manager{w: w}, &managercore.View{At: overlay.Rev{Epoch: 1, N: math.MaxUint64}}
	return w
}

func vtepOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

// begin joins the hosts and starts everything.
func (w *world) begin() {
	w.calm = true
	w.now = second
	n := 2 + w.pick(3)
	switch {
	case w.narrow:
		n = 2 + w.pick(2)
	case w.chance(0.05):
		n = 12 + w.pick(9)
	case w.chance(0.2):
		n = 5 + w.pick(5)
	}
	w.mgr.start()
	w.ask(w.put(overlay.Doc{Kind: overlay.KindTenant, Name: "t0"}), "tenant t0")
	for i := range n {
		w.vteps++
		h := &host{w: w, index: i, name: fmt.Sprintf("h%d", i+1), vtep: vtepOf(w.vteps), readAt: map[overlay.VNI]int64{}}
		h.newKernel()
		w.hosts = append(w.hosts, h)
		if i == 0 || w.narrow || w.chance(0.8) {
			w.join(h)
		} else { // later
			w.after(w.between(second, 20*second), func() { w.join(h) })
		}
	}
	w.run(w.now + second)
	if w.routed {
		w.beginDomain()
	}
	if w.open {
		w.beginGuests()
	}
}

// join adds a host to the cluster and starts its agent, again and again until
// the manager has said yes.
func (w *world) join(h *host) {
	if h.joined {
		return
	}
	w.mgr.ask(managercore.Asked{AddHost: &managercore.AddHost{Name: h.name, MachineID: h.name}}, func(r managercore.Reply) {
		if r.Refusal == nil && !h.joined {
			h.joined, h.uid = true, r.Changes[0].Rec.(*overlay.Host).UID
			h.startAgent()
		}
	})
	w.after(2*second, func() { w.join(h) })
}

// chaos is the time in which things happen and break.
func (w *world) chaos() {
	w.calm = false
	w.chooseFaults()
	steps := 40 + w.pick(120)
	pace := []int64{20 * milli, 100 * milli, 400 * milli}[w.pick(3)]
	for range steps {
		if w.chance(0.05) && w.mgr.up {
			w.old = w.mgr.core.View()
		}
		w.operate()
		if w.chance(0.5) {
			w.makeTrouble()
		}
		w.run(w.now + w.between(milli/10, pace))
	}
}

// Lengths of a rest: until everything must be as it should, and how long
// nothing may happen then.
const (
	settling = 45 * second
	idling   = 35 * second
)

// rest ends all trouble and waits; then kernels must equal the oracle.
func (w *world) rest() {
	w.log("rest begins")
	w.calm = true
	for _, h := range w.hosts {
		h.slow = false
	}
	w.run(w.now + 8*second) // everybody is up again, every device where it goes
	w.finish()
	w.run(w.now + settling)
	w.finish()
	w.run(w.now + settling)
	w.converse()
	w.judge("at rest")
	w.idle()
	w.quietChange()
	w.lostEvents()
	w.oldInventory()
	w.cleanMigration()
	w.thereAndBack()
	w.addressesMove()
	w.leaseEnds()
	w.silentIsFound()
	w.hostDies()
	w.manyDie()
}

// finish does what a patient user does: repeats what was not confirmed, and
// puts VMs back onto bridges.
func (w *world) finish() {
	for _, n := range w.store.networks() {
		if n.Blocked {
			w.ask(managercore.Asked{Delete: &managercore.Delete{Kind: overlay.KindNetwork, Tenant: n.TenantName, Name: n.Name, WithPorts: true}}, "network delete %s/%s, again", n.TenantName, n.Name)
		}
	}
	w.rejoin()
	seen := map[overlay.UID]bool{}
	for _, x := range slices.Clone(w.nics) {
		_, p := w.portOf(x)
		switch {
		case x.vm.moving:
		case x.vm.runs == nil: // it lost the device that it had
			w.destroy(x.vm)
		case x.vm.runs != x: // a migration left it behind
			if w.chance(0.5) {
				w.remove(x)
			}
		case p != nil && seen[p.UID]: // two VMs that say to be the same: one stays
			w.destroy(x.vm)
		case p != nil:
			seen[p.UID] = true
		}
	}
	w.finishGuests()
}

// judge compares everything with the oracle.
func (w *world) judge(when string) {
	w.mgr.check()
	all := w.placements()
	var diff []string
	for _, h := range w.hosts {
		if !h.up || h.stream == nil || h.current == 0 {
			w.fail("%s: agent of %s is not connected", when, h.name)
		}
		h.check()
		for _, d := range w.compare(h, all) {
			diff = append(diff, h.name+" "+d)
		}
	}
	diff = append(diff, w.compareStore(all)...)
	for _, k := range w.store.keys() {
		if v := w.store.values[k]; k.Kind == overlay.KindNetwork && v.gone {
			diff = append(diff, fmt.Sprintf("network %s, deleted at %d, is still in quarantine", v.rec.(*overlay.Network).Name, v.n))
		}
	}
	if len(diff) > 0 {
		w.fail("%s, %d differences (at most 20 are listed):\n  %s", when, len(diff), strings.Join(diff[:min(len(diff), 20)], "\n  "))
	}
	for _, h := range w.hosts {
		if held := h.core.Held().N; held != w.store.newest() {
			w.fail("%s: %s has acknowledged %d, the store's newest change is %d", when, h.name, held, w.store.newest())
		}
	}
}

// idle: a converged fleet writes nothing.
func (w *world) idle() {
	rev, told := w.store.rev, w.mgr.told
	written := make([]int, len(w.hosts))
	for i, h := range w.hosts {
		written[i] = h.written
	}
	w.run(w.now + idling)
	for i, h := range w.hosts {
		if h.written != written[i] {
			w.fail("idle: the agent of %s did %d operations", h.name, h.written-written[i])
		}
	}
	if w.store.rev != rev || w.mgr.told != told {
		w.fail("idle: %d revisions and %d messages", w.store.rev-rev, w.mgr.told-told)
	}
}

// quietChange lets one VM start on a network that others serve already: they
// write what is new and read nothing, because all that rings is their own
// echo.
func (w *world) quietChange() {
	all := w.placements()
	for _, p := range all {
		n := p.net
		for _, port := range w.portsOf(n.UID) {
			if len(w.devicesOf(n, port)) > 0 {
				continue
			}
			w.log("quiet change: port %s on %s", port.Name, p.nic.host.name)
			still := w.unread(p.nic.host, n.VNI)
			w.boot(p.nic.host, n, port)
			w.run(w.now + second)
			for _, h := range still {
				if h.readAt[n.VNI] >= w.now-second {
					w.fail("%s read the tables of %s though nobody but its agent wrote them", h.name, n.VNI.Bridge())
				}
			}
			w.run(w.now + 10*second)
			w.judge("after a quiet change")
			return
		}
	}
}

// unread are the hosts, but one, that serve a network and are not due to
// verify it within the next second.
func (w *world) unread(but *host, vni overlay.VNI) (out []*host) {
	for _, h := range w.hosts {
		if _, ok := h.kernel.Link(vni.VXLAN()); ok && h != but && h.readAt[vni]+verify > w.now+second+100*milli {
			out = append(out, h)
		}
	}
	return out
}
