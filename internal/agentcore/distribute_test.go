package agentcore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// changes sets how the network is distributed.
func (s *teller) changes(mode string) {
	s.r.news("", "network n1 10 "+mode+" 10.0.0.0/24 fd00::/64")
	s.hear()
}

// TestSwitchingLosesNothing: at no step does the kernel have no way to who was
// reached before and is reached after, or a copy of a broadcast less.
func TestSwitchingLosesNothing(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "")
	pushed := r.dump()
	all := []netip.Addr{netip.MustParseAddr("192.0.2.202"), netip.MustParseAddr("192.0.2.203")}
	steps := 0
	r.each = func(op hoststate.Op) {
		steps++
		for _, g := range []overlay.MAC{packet.Broadcast, mac("01:00:5e:00:00:01"), mac("33:33:00:00:00:02")} {
			if k := op.Row.Key; k.Table == hoststate.TableRepl && k.MAC == g {
				continue // the kernel has no change of a whole list; its parts come together
			}
			var got []netip.Addr
			for _, w := range r.m.Frame(r.first, g, netip.Addr{}) {
				got = append(got, w.VTEP)
			}
			if !slices.Equal(got, all) {
				t.Errorf("after %v a frame to %s is copied to %v", op, g, got)
			}
		}
		for m, vtep := range map[string]netip.Addr{mac2: all[0], mac3: all[1]} {
			if w := r.m.Frame(r.first, mac(m), netip.Addr{}); len(w) != 1 || w[0].VTEP != vtep {
				t.Errorf("after %v a frame to %s goes to %v", op, m, w)
			}
		}
		for a, m := range map[string]string{"10.0.0.2": mac2, "fd00::2": mac2, "10.0.0.3": mac3} {
			if got, ok := r.m.Ask(r.first, netip.MustParseAddr(a)); !ok || got != mac(m) {
				t.Errorf("after %v %s is told to be at %v, %t", op, a, got, ok)
			}
		}
		for _, k := range []string{"source 10 " + mac2, "source 10 " + mac3} {
			if !strings.Contains(r.dump(), k) {
				t.Errorf("after %v frames of %s are not taken", op, k)
			}
		}
	}
	late := map[overlay.MAC]int{} // the list of one group is refused at first, and that of all
	r.m.Fail = func(op hoststate.Op) hoststate.Class {
		if k := op.Row.Key; op.Kind == hoststate.OpSet && k.Table == hoststate.TableRepl && (k.MAC == packet.Broadcast || k.MAC.IsZero()) && late[k.MAC] < len(all) {
			late[k.MAC]++
			return hoststate.ClassTransient
		}
		return hoststate.ClassOK
	}
	s.changes("ondemand")
	r.tick(second)
	s.hear()
	if got := r.dump(); !strings.Contains(got, "known 10 "+mac3) || strings.Contains(got, "repl 10 dst") || !strings.Contains(got, "any via 192.0.2.203 strangers") || !strings.Contains(got, "flood true") {
		t.Errorf("on demand the kernel holds\n%s", got)
	}
	s.changes("")
	r.tick(second)
	s.hear()
	if got := aged(r.dump()); got != aged(pushed) {
		t.Errorf("pushed again the kernel holds\n%s\nand held\n%s", got, pushed)
	}
	if n := r.c.nets[netUID("n1")]; len(n.wants) != 0 || n.listed || n.demanded {
		t.Errorf("of the former mode there is left: %v, %t, %t", n.wants, n.listed, n.demanded)
	}
	// A change of mind before the manager has answered.
	r.news("", "network n1 10 ondemand 10.0.0.0/24 fd00::/64")
	r.news("", "network n1 10 10.0.0.0/24 fd00::/64")
	s.hear()
	r.news("", "network n1 10 ondemand 10.0.0.0/24 fd00::/64")
	u := r.c.NextUp()
	r.news("", "network n1 10 10.0.0.0/24 fd00::/64")
	s.wants = map[overlay.Want]bool{}
	for _, d := range u.Demands {
		s.wants[d.Want] = true
	}
	s.onDemand = true
	s.pass() // of what it wanted first
	s.hear()
	if got := aged(r.dump()); got != aged(pushed) {
		t.Errorf("after a change of mind the kernel holds\n%s\nand held\n%s", got, pushed)
	}
	if steps == 0 {
		t.Error("nothing was done")
	}
}

// aged is a dump without the revisions that devices and marks carry.
func aged(dump string) string {
	var out []string
	for _, l := range strings.Split(dump, "\n") {
		if !strings.HasPrefix(l, "mark") {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

// TestAnAgentThatStartsAsksForWhatItHeld: from its journal, or from its kernel;
// and takes nothing away before it knows.
func TestAnAgentThatStartsAsksForWhatItHeld(t *testing.T) {
	t.Parallel()
	for _, journal := range []bool{true, false} {
		t.Run(fmt.Sprintf("journal %t", journal), func(t *testing.T) {
			t.Parallel()
			r, s := quiet(t, "ondemand")
			s.asks(mac1, "10.0.0.1", "10.0.0.2")
			s.asks(mac1, "10.0.0.1", "10.0.0.3")
			before := aged(r.dump())
			r.did()
			known := r.c.Known()
			r.blind()
			if journal {
				for _, it := range known {
					r.c.Step(r.now, it)
				}
			}
			r.step(Tick{})
			if !journal {
				r.rev, r.sums[""] = 0, nil
				rev := r.rev
				r.fleet("n1 10 ondemand 10.0.0.0/24 fd00::/64")
				r.rev = max(rev, 50)
			}
			r.tick(100 * second)
			if got := r.did(); strings.Contains(got, "del ") {
				t.Fatalf("without a manager:\n%s", got)
			}
			s.wants, s.subscribed = map[overlay.Want]bool{}, false
			r.connect()
			got := s.hear()
			for _, w := range []string{"want n1 " + mac2, "want n1 " + mac3, "want n1 " + mac1, "want n1 port p1", "inventory ends"} {
				if !strings.Contains(got, w) {
					t.Errorf("told\n%s\nwant %q among it", got, w)
				}
			}
			if did := r.did(); strings.Contains(did, "del known") || strings.Contains(did, "del fdb") || strings.Contains(did, "del neigh") || aged(r.dump()) != before {
				t.Errorf("it did\n%s\nand the kernel holds\n%s\nand held\n%s", did, r.dump(), before)
			}
			// What nobody has any more goes when that was said.
			s.put("-at h3 p3 " + mac3)
			s.hear()
			if strings.Contains(r.dump(), "fdb 10 "+mac3) {
				t.Errorf("the kernel holds\n%s", r.dump())
			}
		})
	}
}

// TestWhatIsGoneWhenItIsAskedForIsTakenAway: an agent without a disk finds an
// entry of one that left meanwhile.
func TestWhatIsGoneWhenItIsAskedForIsTakenAway(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.asks(mac1, "10.0.0.1", "10.0.0.3")
	r.blind()
	r.step(Tick{})
	r.step(Disconnected{})
	s.subscribed, s.wants = false, map[overlay.Want]bool{}
	s.put("-at h3 p3 " + mac3)
	r.sums[""] = nil
	r.fleet("n1 10 ondemand 10.0.0.0/24 fd00::/64")
	r.connect()
	s.mute = true
	s.hear()
	r.tick(100 * second)
	if !strings.Contains(r.dump(), "fdb 10 "+mac3) {
		t.Error("an entry is taken away before anybody has answered for it")
	}
	s.mute = false
	s.answer()
	s.hear()
	if got := r.dump(); strings.Contains(got, mac3) {
		t.Errorf("the kernel holds\n%s", got)
	}
}

// TestAJournalThatIsWrittenAnewAmidAPass goes on with it.
func TestAJournalThatIsWrittenAnewAmidAPass(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"", "ondemand"} {
		r, s := quiet(t, mode)
		s.asks(mac1, "10.0.0.1", "10.0.0.2")
		delete(s.log, overlay.Key{Kind: overlay.KindEndpoint, UID: netUID("n1"), MAC: mac(mac2)}) // its tombstone was thrown away
		pass := Items{Begins: []overlay.UID{netUID("n1")}}
		s.told = map[overlay.Key]Item{}
		for _, it := range s.sorted() {
			s.tell(&pass, it)
		}
		r.step(pass)
		known := r.c.Known()
		r.blind()
		for _, it := range known {
			r.c.Step(r.now, it)
		}
		var end Items
		s.end(&end, true)
		r.c.Step(r.now, end)
		n := r.c.nets[netUID("n1")]
		if e := n.eps[mac(mac2)]; r.c.Stats().SumWrong != 0 || n.log.named != nil || e != nil && !e.gone {
			t.Errorf("%q: %d sums differed, the pass is still open %t, and who is gone is %+v", mode, r.c.Stats().SumWrong, n.log.named != nil, e)
		}
	}
}

// TestTheSumsOfAJournal: those of what was told on demand are not compared, for
// what was given up between is not in it; all others are, and in a session all.
func TestTheSumsOfAJournal(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"", "ondemand"} {
		r, _ := quiet(t, mode)
		known := r.c.Known()
		r.blind()
		for _, it := range known {
			r.c.Step(r.now, it)
		}
		n := r.c.nets[netUID("n1")]
		end := End{Network: n.uid, Sent: n.log.sent, OnDemand: mode != ""}
		for i, want := range []bool{mode == "", true} { // replaying, then in a session
			if i == 1 {
				r.c.Step(r.now, Connected{Session: 7})
			}
			before := r.c.Stats().SumWrong
			r.c.Step(r.now, Items{Ends: []End{end}})
			if got := r.c.Stats().SumWrong != before; got != want || n.log.wantFull != want {
				t.Errorf("%q, step %d: the sum is wrong %t, all is wanted %t; want %t", mode, i, got, n.log.wantFull, want)
			}
		}
		r.c.stats.SumWrong = 0 // as it was to be
	}
}

// TestMembersAreThoseOfThePass: though the tables left the mode of the pass
// before in the midst of it, and though a part of that one ended in it.
func TestMembersAreThoseOfThePass(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	before := r.dump()
	pass := Items{Begins: []overlay.UID{netUID("n1")}, Members: []overlay.Member{{Network: netUID("n1"), Host: hostUID("h2")}}}
	for _, it := range s.told {
		pass.Items = append(pass.Items, it)
	}
	r.c.Step(r.now, pass)
	r.c.nets[netUID("n1")].members = nil
	var part, end Items
	s.end(&part, false)
	r.c.Step(r.now, part)
	s.end(&end, true)
	end.Members = []overlay.Member{{Network: netUID("n1"), Host: hostUID("h3")}}
	r.step(end)
	if got := r.dump(); got != before {
		t.Errorf("the kernel holds\n%s\nand held\n%s", got, before)
	}
}

// TestEachSessionIsToldAllWants: to a manager that knows none.
func TestEachSessionIsToldAllWants(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.asks(mac1, "10.0.0.1", "10.0.0.2")
	s.asks(mac1, "10.0.0.1", "10.0.0.77") // nobody's
	before := r.dump()
	r.step(Disconnected{})
	s.ask(mac1, "10.0.0.1", "10.0.0.78")
	s.wants, s.subscribed = map[overlay.Want]bool{}, false
	r.connect()
	got := s.hear()
	want := strings.Join([]string{
		"want n1 10.0.0.2", "want n1 10.0.0.77", "want n1 10.0.0.78 for " + mac1, "want n1 " + mac1, "want n1 " + mac2, "want n1 port p1",
		"add n1 from 11 on demand",
	}, "\n")
	if !strings.HasPrefix(got, want) {
		t.Errorf("told\n%s\nwant first\n%s", got, want)
	}
	if r.dump() != before {
		t.Errorf("the kernel holds\n%s\nand held\n%s", r.dump(), before)
	}
}

// TestUseIsCountedFromTheChangeOfMode: the kernel did not say before.
func TestUseIsCountedFromTheChangeOfMode(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "")
	r.tick(400 * second)
	s.hear()
	s.changes("ondemand")
	for range 290 {
		r.tick(second)
		s.hear()
	}
	if !strings.Contains(r.dump(), "fdb 10 "+mac3) {
		t.Error("given up as soon as it was told on demand")
	}
	for range 90 {
		r.tick(second)
		s.hear()
	}
	if strings.Contains(r.dump(), "fdb 10 "+mac3) {
		t.Error("kept, and nobody uses it")
	}
}

// TestListsLeadToTheMembers: to all that are alive, for all groups in use.
func TestListsLeadToTheMembers(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	list := func(group string) string {
		var out []string
		for _, w := range r.m.Frame(r.first, mac(group), netip.Addr{}) {
			out = append(out, strings.TrimPrefix(w.VTEP.String(), "192.0.2.20"))
		}
		return strings.Join(out, " ")
	}
	check := func(when, group, want string) {
		t.Helper()
		if got := list(group); got != want {
			t.Errorf("%s: frames to %s go to %q, want %q", when, group, got, want)
		}
	}
	const bcast, mdns = "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb"
	check("at first", bcast, "2 3")
	check("not in use", mdns, "")
	s.member("h4")
	check("one more", bcast, "2 3 4")
	r.joins(r.first, mac1, "+224.0.0.251")
	check("joined", mdns, "2 3 4")
	s.member("-h2")
	check("one less", mdns, "3 4")
	r.news("", "host h3 192.0.2.203 dead")
	check("one is dead", bcast, "4")
	if strings.Contains(r.dump(), "any via 192.0.2.203") {
		t.Error("frames of a dead host's are taken")
	}
	r.news("", "host h3 192.0.2.203")
	check("it lives", bcast, "3 4")
	r.joins(r.first, mac1, "-224.0.0.251")
	check("left", mdns, "")
	r.now++
	f := packet.Fact{Kind: packet.Frame, Src: mac(mac1), Dst: mac(mdns)}
	r.step(Heard{Port: r.first, Fact: f, At: r.now})
	check("sent to", mdns, "3 4")
	for i := range 20 { // a guest that sends to many
		f.Dst = overlay.MAC{1, 0, 0x5e, 9, 9, byte(i)}
		r.step(Heard{Port: r.first, Fact: f, At: r.now})
	}
	if got := len(r.c.nets[netUID("n1")].groups); got != 4+maxSent {
		t.Errorf("%d groups have lists", got)
	}
	r.unplug("p1")
	r.tick(10 * second)
	s.hear()
	if got := r.dump(); strings.Contains(got, "repl 10") || strings.Contains(got, "known 10") {
		t.Errorf("when the network is left the kernel holds\n%s", got)
	}
}

// TestWhatNobodyIsToldToHaveIsSearched: where guests are learned.
func TestWhatNobodyIsToldToHaveIsSearched(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand learn")
	s.mute = true
	if got := s.asks(mac1, "10.0.0.1", "10.0.0.77"); got != "want n1 10.0.0.77 for "+mac1 {
		t.Errorf("told %q", got)
	}
	if u := r.c.NextUp(); len(u.Seeks) != 0 {
		t.Errorf("searched before the manager has answered: %v", u.Seeks)
	}
	s.mute = false
	s.answer()
	if u := r.c.NextUp(); len(u.Seeks) != 1 || u.Seeks[0].Address != netip.MustParseAddr("10.0.0.77") {
		t.Errorf("searched %v", u.Seeks)
	}
	r.tick(11 * second) // asked for before that is over, and searched again
	s.ask(mac1, "10.0.0.1", "10.0.0.77")
	if u := r.c.NextUp(); len(u.Seeks) != 1 {
		t.Errorf("searched again %v", u.Seeks)
	}
}

// TestAPacketToAnotherNetworkWaits: its sender is told nothing before it is known
// that nobody is there.
func TestAPacketToAnotherNetworkWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10 domain reach=n2 10.1.0.0/24", "n2 20 ondemand domain from=n1 10.2.0.0/24")
	s := newTeller(r, "n2")
	s.put("port p2 "+mac2, "at h2 p2 "+mac2+" 10.2.0.7")
	r.plug("n1", "p1")
	r.connect()
	s.hear()
	r.log("n1", "port p1 "+mac1+" ip=10.1.0.5")
	s.hear()
	s.mute = true
	for range 3 {
		if got := r.sends(hop("10.1.0.5", "10.2.0.7", 8)); got != "" {
			t.Errorf("a packet to one that is not known: %q", got)
		}
	}
	if got := s.hear(); got != "want n2 10.2.0.7" {
		t.Errorf("told %q", got)
	}
	s.mute = false
	s.answer()
	s.hear()
	if got := r.dump(); !strings.Contains(got, "neigh 10 10.2.0.7") {
		t.Errorf("the kernel holds\n%s", got)
	}
	if got := r.sends(hop("10.1.0.5", "10.2.0.9", 8)); got != "" {
		t.Errorf("a packet to another that is not known: %q", got)
	}
	s.hear()
	if got := r.sends(hop("10.1.0.5", "10.2.0.9", 8)); got != "3/1 of 10.1.0.1" {
		t.Errorf("a packet to one whom nobody has: %q", got)
	}
	if got := r.c.Stats().SumWrong; got != 0 {
		t.Errorf("%d sums differed", got)
	}
}

// TestMembersOfANetworkThatIsRoutedHereMayRoute: also for guests that are not
// known here.
func TestMembersOfANetworkThatIsRoutedHereMayRoute(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10 domain from=n2 10.1.0.0/24", "n2 20 ondemand domain reach=n1 10.2.0.0/24")
	s := newTeller(r, "n2")
	s.members = []string{"h2", "h3"}
	r.plug("n1", "p1")
	r.connect()
	s.hear()
	r.log("n1", "port p1 "+mac1+" ip=10.1.0.5")
	s.hear()
	const row = "routed 10 any via 192.0.2.20"
	for _, c := range []struct {
		change string
		at     string
	}{{"", "23"}, {"-h2", "3"}, {"h4", "34"}} {
		if c.change != "" {
			s.member(c.change)
		}
		for i := '2'; i < '5'; i++ {
			if got, want := strings.Contains(r.dump(), row+string(i)), strings.ContainsRune(c.at, i); got != want {
				t.Errorf("after %q what h%c routed is taken %t, want %t", c.change, i, got, want)
			}
		}
	}
}

// TestNextHopsAreWanted: nobody asks for the endpoint that a route goes by, and
// the route stands all the same: in its own network, and in one that reaches it.
func TestNextHopsAreWanted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	hop := "hop=10.9.0.0/16,n2," + mac2
	r.fleet("n1 10 domain reach=n2 "+hop+" 10.1.0.0/24", "n2 20 ondemand domain from=n1 "+hop+" 10.2.0.0/24")
	s := newTeller(r, "n2")
	s.members = []string{"h2"}
	s.put("port p2 "+mac2+" ip=10.2.0.7", "at h2 p2 "+mac2+" 10.2.0.7", "port p3 "+mac3+" ip=10.2.0.8")
	r.plug("n1", "p1")
	r.connect()
	s.hear()
	r.log("n1", "port p1 "+mac1+" ip=10.1.0.5")
	s.hear()
	alias := overlay.Alias(netUID("n2"), mac(mac2)).String()
	if got := r.dump(); !strings.Contains(got, "route 10 10.9.0.0/16 via "+alias) || !strings.Contains(got, "fdb 10 "+alias+" dst 192.0.2.202 vni 20") {
		t.Errorf("a network that reaches it holds\n%s", got)
	}
	r.plug("n2", "p3")
	s.hear()
	if got := r.dump(); !strings.Contains(got, "route 20 10.9.0.0/16 via "+mac2) || !strings.Contains(got, "fdb 20 "+mac2+" dst 192.0.2.202 static") {
		t.Errorf("its own network holds\n%s", got)
	}
}
