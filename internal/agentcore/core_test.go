package agentcore

import (
	"slices"
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

const (
	mac1 = "02:00:00:00:00:01"
	mac2 = "02:00:00:00:00:02"
	mac3 = "02:00:00:00:00:03"
)

// serving is a rig whose host serves network n1 with port p1 here and p2 on h2.
func serving(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.fleet("n1 10")
	r.plug("n1", "p1")
	r.connect()
	r.says("add n1 from 0")
	r.log("n1", "port p1 "+mac1, "port p2 "+mac2, "port p3 "+mac3, "at h2 p2 "+mac2+" 10.0.0.2,fd00::2")
	r.says("claim 1 "+mac1+" base 9 device", "inventory ends", "ack 9")
	r.did()
	return r
}

// accept commits a claim of this host: the answer, then the log.
func (r *rig) accept(id uint64, at string) {
	e := r.item("n1", at)
	r.step(Answered{ID: id, Accepted: true, Binding: e.Rev})
	it := Items{Items: []Item{e}}
	r.finish(&it, netUID("n1"), "n1", false)
	r.step(it)
}

func TestServesANetworkFromItsFirstPortOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10")
	r.wants(
		"base 0",
		"set vtep 192.0.2.202", "set vtep 192.0.2.203", "set vtep 192.0.2.204",
		"make-bridge vni 10",
	)
	r.plug("n1", "p1")
	r.wants("port 3")
	r.log("n1", "port p1 "+mac1, "port p2 "+mac2, "at h2 p2 "+mac2+" 10.0.0.2,fd00::2")
	r.wants(
		"set port if3 mac "+mac1+" open", "set member if3", "port 3", "make-vxlan vni 10",
		"set member if4", "up 4",
		"set source 10 "+mac2+" via 192.0.2.202",
		"set fdb 10 "+mac2+" dst 192.0.2.202 static,extern_learn",
		"set master 10 "+mac1+" dev if3 static,sticky",
		"set master 10 "+mac2+" dev cvx10 static,extern_learn",
		"set repl 10 dst 192.0.2.202",
		"set neigh 10 10.0.0.2 lladdr "+mac2+" permanent,culvert",
		"set neigh 10 fd00::2 lladdr "+mac2+" permanent,culvert",
	)
}

// TestOneThatIsBoundNowhereIsClaimedAtOnce: while its port is made ready.
func TestOneThatIsBoundNowhereIsClaimedAtOnce(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1)
	r.ups()
	r.hold = true
	r.plug("n1", "p3")
	r.says("claim 2 " + mac3 + " base 10 device")
	r.release()
	r.says()
}

// TestAnOldLogSaysNotThatOneIsBoundNowhere: of a journal, as long as the
// manager has not said what came after.
func TestAnOldLogSaysNotThatOneIsBoundNowhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10")
	r.log("n1", "port p3 "+mac3)
	r.connect()
	r.ups()
	r.hold = true
	r.plug("n1", "p3")
	r.says("add n1 from 6")
	r.news("n1", "port p2 "+mac2)
	r.says("claim 1 " + mac3 + " base 7 device")
}

// TestALogThatIsWantedNoMoreHoldsNothingUp: it was not received to its end when
// the manager had said all, and says no more.
func TestALogThatIsWantedNoMoreHoldsNothingUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10")
	r.plug("n1", "p1")
	r.connect()
	r.says("add n1 from 0")
	r.news("", "host h2 192.0.2.202")
	r.says()
	r.unplug("p1")
	r.says("remove n1", "inventory ends", "ack 6")
}

func TestAdoptsWithoutAWrite(t *testing.T) {
	t.Parallel()
	r := serving(t)
	before, writes := r.dump(), r.m.Writes
	r.restart()
	r.rev = 0 // the same records again
	r.fleet("n1 10")
	r.connect()
	r.says("add n1 from 0")
	r.log("n1", "port p1 "+mac1, "port p2 "+mac2, "port p3 "+mac3, "at h2 p2 "+mac2+" 10.0.0.2,fd00::2", "at h1 p1 "+mac1+" 10.0.0.1")
	r.wants()
	if r.m.Writes != writes || r.dump() != before {
		t.Errorf("%d rows were written; the kernel holds\n%s\nand held\n%s", r.m.Writes-writes, r.dump(), before)
	}
	r.says("claim 1 "+mac1+" base 10 device", "inventory ends", "ack 10")
}

func TestDeletesNothingBeforeAPassHasEnded(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.restart()
	r.fleet("n1 10")
	r.connect()
	part := Items{Begins: []overlay.UID{netUID("n1")}, Items: []Item{r.item("n1", "port p1 "+mac1)}}
	r.step(part)
	r.tick(300 * second)
	if got := r.did(); strings.Contains(got, "del") {
		t.Errorf("operations are\n%s\nwant no deletion", got)
	}
	// The end of the pass names no endpoint: now p2 is gone.
	end := Items{}
	r.sums["n1"] = &overlay.Sum{}
	r.sums["n1"].Add(overlay.Key{Kind: overlay.KindPort, UID: portUID("p1")}, part.Items[0].Rev)
	r.finish(&end, netUID("n1"), "n1", true)
	r.step(end)
	r.wants(
		"del neigh 10 10.0.0.2 lladdr "+mac2+" permanent,culvert",
		"del neigh 10 fd00::2 lladdr "+mac2+" permanent,culvert",
		"del repl 10 dst 192.0.2.202",
		"del master 10 "+mac2+" dev cvx10 static,extern_learn",
		"del fdb 10 "+mac2+" dst 192.0.2.202 static,extern_learn",
		"del source 10 "+mac2+" via 192.0.2.202",
	)
}

func TestAnEmptyManagerDeletesNothing(t *testing.T) {
	t.Parallel()
	r := serving(t)
	before := r.dump()
	r.restart()
	r.connect()
	r.step(Items{Items: nil, UpTo: overlay.Rev{Epoch: 1, N: 999}})
	r.tick(300 * second)
	if r.wants(); r.dump() != before {
		t.Errorf("the kernel holds\n%s\nand held\n%s", r.dump(), before)
	}
	r.says() // no inventory, no acknowledgement
}

func TestOwnWritesAreNotReadAgain(t *testing.T) {
	t.Parallel()
	r := serving(t)
	reads := r.reads
	r.news("n1", "at h3 p3 "+mac3+" 10.0.0.3")
	if r.reads != reads {
		t.Errorf("%d reads after own writes, want none", r.reads-reads)
	}
	if got := r.c.Stats().Repairs; got != 0 {
		t.Errorf("%d repairs counted, want none", got)
	}
}

func TestForeignWritesAreRepairedAndCounted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   func(r *rig)
		want []string
	}{
		"row deleted": {func(r *rig) { r.m.DeleteRow(hoststate.Key{Table: hoststate.TableFDB, VNI: 10, MAC: mac(mac2)}) },
			[]string{"set fdb 10 " + mac2 + " dst 192.0.2.202 static,extern_learn"}},
		"row added": {func(r *rig) {
			r.m.SetRow(hoststate.Row{Key: hoststate.Key{Table: hoststate.TableFDB, VNI: 10, MAC: mac("02:00:00:00:00:99")}, Val: hoststate.Val{Dst: r.c.cfg.VTEP.Next()}})
		}, []string{"del fdb 10 02:00:00:00:00:99 dst 192.0.2.202 "}},
		"device deleted":  {func(r *rig) { r.m.DeleteLink("cvx10") }, nil},
		"ruleset flushed": {func(r *rig) { r.m.FlushRuleset() }, nil},
	} {
		r := serving(t)
		before := r.dump()
		c.do(r)
		r.settle()
		if c.want != nil {
			r.wants(c.want...)
		}
		if r.dump() != before {
			t.Errorf("%s: the kernel holds\n%s\nand held\n%s", name, r.dump(), before)
		}
		if r.c.Stats().Repairs == 0 {
			t.Errorf("%s: no repair was counted", name)
		}
	}
}

func TestAMigrationIsFollowed(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.news("n1", "at h3 p2 "+mac2+" 10.0.0.2,fd00::2")
	r.wants(
		"set source 10 "+mac2+" via 192.0.2.203",
		"set fdb 10 "+mac2+" dst 192.0.2.203 static,extern_learn",
		"set repl 10 dst 192.0.2.203",
		"del repl 10 dst 192.0.2.202",
		"del source 10 "+mac2+" via 192.0.2.202",
	)
	r.says("ack 10")
}

func TestALocalPortThatMovedAwayPassesNothing(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.did()
	r.news("n1", "at h2 p1 "+mac1+" 10.0.0.1")
	r.wants(
		"del member if3",
		"del port if3 mac "+mac1+" open",
		"set source 10 "+mac1+" via 192.0.2.202",
		"set fdb 10 "+mac1+" dst 192.0.2.202 static,extern_learn",
		"set master 10 "+mac1+" dev cvx10 static,extern_learn",
		"set neigh 10 10.0.0.1 lladdr "+mac1+" permanent,culvert",
	)
	// An agent that starts now finds the device, and does not claim.
	r.restart()
	r.fleet("n1 10")
	r.connect()
	r.log("n1", "port p1 "+mac1, "at h2 p1 "+mac1+" 10.0.0.1")
	if s := r.ups(); strings.Contains(s, "claim") {
		t.Errorf("a device that was left behind is claimed:\n%s", s)
	}
}

func TestAPortDeclaredForAnotherHostPassesNothingHere(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.did()
	r.news("n1", "port p1 "+mac1+" h2")
	if got := r.did(); !strings.HasPrefix(got, "del member if3") {
		t.Errorf("operations are\n%s\nwant the device to be no member any more", got)
	}
	if got := r.c.Unclaimed(); len(got) != 1 {
		t.Errorf("unclaimed devices are %q, want this one", got)
	}
	r.news("n1", "port p1 "+mac1+" h1 h2")
	if got := r.did(); !strings.Contains(got, "set member if3") {
		t.Errorf("operations are\n%s\nwant the device to be a member again", got)
	}
}

// The manager is told whether devices here wait for a port, when that changes,
// and in each session anew.
func TestDevicesThatWaitAreTold(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10")
	r.plug("n1", "p2")
	r.log("n1", "port p1 "+mac1)
	told := func(what string, want ...bool) {
		t.Helper()
		var got []bool
		for u := r.c.NextUp(); !u.Empty(); u = r.c.NextUp() {
			if u.Waits != nil {
				got = append(got, *u.Waits)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: told %v, want %v", what, got, want)
		}
	}
	r.connect()
	told("with a device of a port that does not exist", true)
	r.plug("n1", "p1")
	told("with a device whose port is declared")
	r.news("n1", "port p2 "+mac2)
	told("with the port declared", false)
	r.unplug("p1")
	told("with a device less")
	r.connect()
	told("in a new session, where nothing waits")
	r.news("n1", "port p2 "+mac2+" h2")
	told("with a port that must not be here", true)
	r.connect()
	told("in a new session, where a device waits", true)
}

func TestOlderItemsChangeNothing(t *testing.T) {
	t.Parallel()
	r := serving(t)
	old := r.item("n1", "-at h2 p2 "+mac2)
	r.sums, r.revs = map[string]*overlay.Sum{}, map[overlay.Key]uint64{} // the sum is of no interest here
	live := r.item("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2")
	r.step(Items{Items: []Item{live}})
	r.did()
	r.step(Items{Items: []Item{old}})
	r.step(Items{Items: []Item{old, live}})
	r.wants()
	if r.c.Stats().Stale == 0 {
		t.Error("no stale item was counted")
	}
}

func TestAddressMovesAreAnnounced(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.news("n1", "at h3 p3 "+mac3+" 10.0.0.2")
	got := r.did()
	if want := "announce vni 10 10.0.0.2 at " + mac3; !strings.Contains(got, want) {
		t.Errorf("operations are\n%s\nwant %q among them", got, want)
	}
	r.news("n1", "at h3 p3 "+mac3+" 10.0.0.2")
	if got := r.did(); strings.Contains(got, "announce") {
		t.Errorf("an address that did not move is announced:\n%s", got)
	}
}

func TestBlockedNetworkPassesNothing(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.news("", "network n1 10 blocked")
	r.wants("del member if3", "del port if3 mac "+mac1+" open", "tune vni 10") // its alias says by which record it stands
	if u := r.ups(); strings.Contains(u, "claim") {
		t.Errorf("a port of a blocked network is claimed:\n%s", u)
	}
}

func TestAcknowledgesOnlyWhatTheKernelHolds(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.hold = true
	r.news("n1", "at h3 p3 "+mac3+" 10.0.0.3")
	r.says()
	r.hold = false
	r.news("n1", "at h4 p3 "+mac3+" 10.0.0.4")
	r.says() // the later one waits for the earlier
	r.release()
	r.says("ack 11")
}

func TestANetworkIsLeftAfterItsGrace(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.did()
	r.unplug("p1")
	r.wants("del member if3") // its entry went with the device
	r.says("leave 2 "+mac1+" base 10 none", "ack 10")
	r.news("n1", "-at h1 p1 "+mac1)
	r.tick(4 * second)
	r.wants("set mark 10")
	r.tick(2 * second)
	if got := r.did(); !strings.Contains(got, "del-link 4") {
		t.Errorf("operations are\n%s\nwant the VXLAN device deleted", got)
	}
	r.tick(10 * second)
	r.says("remove n1", "ack 11")
	if s := r.dump(); strings.Contains(s, "fdb") || strings.Contains(s, "cvx10") || !strings.Contains(s, "cvb10") {
		t.Errorf("the kernel holds\n%s\nwant the bridge and nothing else of the network", s)
	}
}

func TestADeletedNetworkLeavesNothing(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.news("", "-network n1 10")
	if s := r.dump(); strings.Contains(s, "cv") || strings.Contains(s, "member") {
		t.Errorf("the kernel holds\n%s", s)
	}
	r.says("ack 10")
}

func TestEveryOrderOfStepsComesToTheSame(t *testing.T) {
	t.Parallel()
	lines := []string{
		"at h2 p2 " + mac2 + " 10.0.0.2,fd00::2", "at h3 p2 " + mac2 + " 10.0.0.2", "at h3 p3 " + mac3 + " 10.0.0.3",
		"-at h3 p3 " + mac3, "at h4 p3 " + mac3 + " 10.0.0.2,10.0.0.4", "at h2 p2 " + mac2 + " fd00::2",
	}
	end := func(together int) string {
		r := serving(t)
		for part := range slices.Chunk(lines, together) {
			r.news("n1", part...)
		}
		return r.dump()
	}
	want := end(1)
	for together := 2; together <= len(lines); together++ {
		if got := end(together); got != want {
			t.Errorf("%d at a time: the kernel holds\n%s\nwant\n%s", together, got, want)
		}
	}
}

// TestNothingGoesWhileDevicesAreBusy: the log of a network may come while its
// devices are tuned, and the links cannot be read: until either shows that the
// network is to be served, nothing that stands there is unwanted.
func TestNothingGoesWhileDevicesAreBusy(t *testing.T) {
	t.Parallel()
	r := serving(t)
	before := r.dump()
	r.restart()
	r.rev = 0
	r.hold = true
	r.fleet("9: n1 10") // a newer record: the devices' alias is to say so
	r.connect()
	r.wants("tune vni 10")
	e := Items{Begins: []overlay.UID{netUID("n1")}}
	r.rev = 5
	for _, l := range []string{"port p1 " + mac1, "port p2 " + mac2, "port p3 " + mac3, "at h2 p2 " + mac2 + " 10.0.0.2,fd00::2"} {
		e.Items = append(e.Items, r.item("n1", l))
	}
	r.rev = 9
	r.finish(&e, netUID("n1"), "n1", true)
	r.c.Step(r.now, e)
	for sc, ok := r.c.NextRead(); ok; sc, ok = r.c.NextRead() {
		x := Read{Scope: sc}
		if !sc.Links {
			x.State, _ = r.m.Read(t.Context(), sc)
		}
		r.c.Step(r.now, x)
	}
	for _, op := range r.c.NextOps(nil, 200) {
		if op.Kind == hoststate.OpDel {
			t.Errorf("while the devices are busy: %v", op)
		}
	}
	r.now += second
	r.release()
	if got := r.dump(); got != before {
		t.Errorf("the kernel holds\n%s\nand held\n%s", got, before)
	}
}

// A device without a name speaks once, and before it is known which ports there
// are.
func TestADeviceIsNamedByAFrameFromBeforeTheLog(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10")
	device := r.m.Plug("tap-x", 10, "")
	r.settle()
	r.step(Heard{Port: device, Fact: packet.Fact{Src: mac(mac1)}, At: r.now})
	r.connect()
	r.says("add n1 from 0")
	r.log("n1", "port p1 "+mac1)
	r.says("claim 1 "+mac1+" base 6 frame", "inventory ends", "ack 6")
}
