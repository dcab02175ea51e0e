package agentcore

import (
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

func TestTheMarkFollowsWhatIsHeld(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.tick(second / 2)
	r.wants()
	r.tick(second)
	r.wants("set mark 9")
	reads := r.reads
	r.news("n1", "at h3 p3 "+mac3+" 10.0.0.3")
	r.says("ack 10")
	r.news("n1", "-at h3 p3 "+mac3)
	r.says("ack 11")
	r.did()
	r.tick(second)
	r.wants("set mark 11", "del mark 9")
	for range 20 {
		r.tick(second)
	}
	if r.wants(); r.reads != reads {
		t.Errorf("%d reads because of the mark, want none", r.reads-reads)
	}
	r.m.DeleteRow(hoststate.MarkKey("lab", overlay.Rev{Epoch: 1, N: 11}))
	r.settle()
	r.wants("set mark 11")
}

// older is a rig whose kernel holds more than the store knows that the new
// agent meets, and what the kernel holds.
func older(t *testing.T) (*rig, string) {
	t.Helper()
	r := serving(t)
	r.news("", "network n1 10")
	r.says("ack 10")
	r.tick(2 * second)
	r.did()
	return r, r.dump()
}

const lines = "port p1 " + mac1 + "|port p2 " + mac2 + "|port p3 " + mac3 + "|at h2 p2 " + mac2 + " 10.0.0.2,fd00::2"

// harmless wants the kernel to hold what it held, and the agent to say that its
// manager is not to be believed.
func (r *rig) harmless(before string) {
	r.tb.Helper()
	if ops := r.did(); r.dump() != before || strings.Contains(ops, "del") || strings.Contains(ops, "tune") {
		r.tb.Errorf("the kernel holds\n%s\nand held\n%s\noperations were\n%s", r.dump(), before, ops)
	}
	if p := strings.Join(r.c.Problems(), "\n"); strings.Count(p, "CV0208") != 1 {
		r.tb.Errorf("problems are %q, want CV0208 once", p)
	}
	for _, word := range []string{"leave", "inventory", "ack", "claim"} {
		if got := r.ups(); strings.Contains(got, word) {
			r.tb.Errorf("told %q", got)
		}
	}
}

func TestAnOlderStoreTakesNothingAway(t *testing.T) {
	t.Parallel()
	for name, networks := range map[string][]string{"without the network": nil, "with an older record of it": {"n1 10"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, before := older(t)
			r.restart()
			if got := r.c.Reached(); got.N != 10 {
				t.Errorf("reached %v, want what the kernel remembers", got)
			}
			r.store(1, 0)
			r.connect()
			r.fleet(networks...)
			r.tick(300 * second)
			r.harmless(before)
			// Its revisions catch up with the mark. They prove nothing.
			r.rev = 100
			r.news("", "-network n1 10")
			r.log("n1")
			r.tick(300 * second)
			r.harmless(before)

			r.step(Disconnected{})
			if at := r.c.FleetPosition(); !at.IsZero() {
				t.Errorf("the fleet's log is to go on from %v, want a full pass", at)
			}
			r.good(before)
		})
	}
}

// good lets the agent meet its own store again: all is as it was.
func (r *rig) good(before string) {
	r.tb.Helper()
	r.store(1, 10)
	r.connect()
	r.fleet("10: n1 10")
	r.ups()
	r.rev = 5
	r.log("n1", strings.Split(lines, "|")...)
	if ops := r.did(); r.dump() != before || strings.Contains(ops, "del") || strings.Contains(ops, "tune") {
		r.tb.Errorf("the kernel holds\n%s\nand held\n%s\noperations were\n%s", r.dump(), before, ops)
	}
	if p := r.c.Problems(); len(p) > 0 {
		r.tb.Errorf("problems are %q", p)
	}
	if got := r.ups(); !strings.Contains(got, "inventory ends") || !strings.Contains(got, "ack 10") {
		r.tb.Errorf("told %q", got)
	}
	r.m.SetRow(hoststate.Row{Key: hoststate.Key{Table: hoststate.TableFDB, VNI: 10, MAC: mac("02:00:00:00:00:99")}, Val: hoststate.Val{Dst: r.c.cfg.VTEP.Next()}})
	r.settle()
	r.wants("del fdb 10 02:00:00:00:00:99 dst 192.0.2.202 ")
}

func TestAnOlderJournalTakesNothingAway(t *testing.T) {
	t.Parallel()
	r, before := older(t)
	r.blind()
	r.store(1, 0)
	r.fleet("n1 10")
	r.tick(300 * second)
	r.harmless(before)
	r.good(before)
}

func TestARaisedEpochIsBelieved(t *testing.T) {
	t.Parallel()
	r, _ := older(t)
	r.restart()
	r.store(2, 0)
	r.connect()
	r.fleet()
	if s := r.dump(); strings.Contains(s, "cv") || strings.Contains(s, "member") {
		t.Errorf("the kernel holds\n%s", s)
	}
	r.says("inventory ends", "ack 2.4")
	r.did()
	r.tick(2 * second)
	r.wants("set mark 2.4", "del mark 10")
}

// Without the mark, the aliases of devices still say how far this host was.
func TestAliasesRememberToo(t *testing.T) {
	t.Parallel()
	r, _ := older(t)
	r.m.FlushRuleset()
	r.m.Doorbells()
	r.restart()
	r.store(1, 0)
	r.connect()
	r.fleet()
	r.tick(300 * second)
	if got := r.did(); strings.Contains(got, "del") || !strings.Contains(r.dump(), "cvx10") {
		t.Errorf("operations are\n%s\nwant no deletion", got)
	}
}

func TestAnotherClustersMarkCountsForNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet()
	r.m.SetRow(hoststate.Row{Key: hoststate.MarkKey("other", overlay.Rev{Epoch: 9, N: 1000})})
	r.did()
	r.restart()
	r.store(1, 0)
	r.connect()
	r.fleet()
	r.wants("del mark 9.1000")
	r.says("inventory ends", "ack 4")
}
