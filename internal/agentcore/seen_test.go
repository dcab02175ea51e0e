package agentcore

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// joins is a group report of a device: "+239.1.1.1" joins, "-239.1.1.1" leaves.
func (r *rig) joins(port int32, src string, changes ...string) {
	e := Heard{Port: port, Fact: packet.Fact{Kind: packet.GroupReport, Src: mac(src), MAC: mac(src)}, At: r.now}
	for _, x := range changes {
		e.Groups = append(e.Groups, packet.Membership{Group: netip.MustParseAddr(x[1:]), Join: x[0] == '+'})
	}
	r.step(e)
}

// saw is what is seen of guests here, one word each.
func (r *rig) saw() string {
	var out []string
	for _, s := range r.c.Seen() {
		x := s.MAC.String()
		for _, g := range s.Groups {
			x += " " + g.String()
		}
		for _, d := range s.Drops {
			x += fmt.Sprintf(" %s=%d", d.Reason, d.N)
		}
		out = append(out, x)
	}
	return strings.Join(out, "\n")
}

func (r *rig) sees(when, want string) {
	r.tb.Helper()
	if got := r.saw(); got != want {
		r.tb.Errorf("%s: seen is\n%s\nwant\n%s", when, got, want)
	}
}

func TestGroupsOfAPort(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10")
	port := r.plug("n1", "p1")
	r.joins(port, mac1, "+239.1.1.1") // before it is known whose device it is
	r.joins(port, mac3, "+239.3.3.3")
	r.connect()
	r.log("n1", "port p1 "+mac1, "port p2 "+mac2)
	r.sees("named", mac1+" 239.1.1.1")
	r.joins(port, mac1, "+ff02::1:ff00:11", "+239.1.1.1", "+224.0.0.251")
	r.joins(port, mac2, "+239.2.2.2") // not its own MAC
	r.sees("joined", mac1+" 224.0.0.251 239.1.1.1 ff02::1:ff00:11")
	r.joins(port, mac1, "-239.1.1.1", "-239.7.7.7")
	r.tick(3600 * second) // nobody asks, so nothing ages
	r.sees("left", mac1+" 224.0.0.251 ff02::1:ff00:11")
	for i := range 100 {
		r.joins(port, mac1, fmt.Sprintf("+239.9.9.%d", i))
	}
	if got := r.c.Seen()[0].Groups; len(got) != maxGroups {
		t.Errorf("%d groups, want at most %d", len(got), maxGroups)
	}
	if got, _ := r.c.Refused(16); len(got) == 0 || got[0].Address.String() != "239.9.9.62" || got[0].Device != "tap-p1" || got[0].MAC != mac(mac1) {
		t.Errorf("refused are %v, want the first group that found no room", got)
	}
	r.news("n1", "at h2 p1 "+mac1+" 10.0.0.1")
	r.sees("moved on", "")
	r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1")
	r.unplug("p1")
	port = r.plug("n1", "p1")
	r.sees("another device", "")
	r.joins(port, mac1, "+239.1.1.1")
	r.news("n1", "-port p1 "+mac1, "port p4 "+mac3)
	r.sees("its port went", "")
	r.news("n1", "port p1 "+mac1)
	r.sees("it is a port again", "")
}

func TestGroupsOfUndeclaredEndpoints(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	r.hears(packet.ARPAnnouncement, mac3, "10.0.0.8")
	r.joins(3, mac3, "+239.3.3.3")
	r.joins(3, mac1, "+239.1.1.1")
	r.sees("both", mac1+" 239.1.1.1\n"+mac3+" 239.3.3.3")
	r.news("", "network n1 10")
	r.news("", "network n1 10 learn")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	r.sees("after the admission was taken back", "")
}

func TestDropsAreSummed(t *testing.T) {
	t.Parallel()
	r := serving(t)
	index := r.c.nets[netUID("n1")].guests[mac(mac1)].tap.index
	key := func(port int32, reason hoststate.DropReason) hoststate.DropKey {
		return hoststate.DropKey{Port: port, Reason: reason}
	}
	look := func(drops map[hoststate.DropKey]uint64) string {
		r.m.Drops = drops
		r.step(Bell{Doorbell: hoststate.Doorbell{Links: true}})
		r.tick(second)
		all, unheard := r.c.Dropped()
		return fmt.Sprint(all, unheard)
	}
	was := r.reads
	got := look(map[hoststate.DropKey]uint64{
		key(0, hoststate.DropSource): 7, key(index, hoststate.DropSourceMAC): 2, key(index, hoststate.DropStorm): 9,
		key(99, hoststate.DropStorm): 1, key(index, hoststate.DropPuntLimit): 5,
	})
	if got != "[{source-mac 2} {storm 10} {foreign-source 7}] 5" {
		t.Errorf("dropped are %s", got)
	}
	r.sees("a port's own", mac1+" source-mac=2 storm=9")
	if r.reads != was+1 {
		t.Errorf("%d reads, want the one of the links", r.reads-was)
	}
	// A port goes, and the programs are loaded anew: the sum does not fall.
	if got := look(map[hoststate.DropKey]uint64{key(0, hoststate.DropSource): 1, key(index, hoststate.DropStorm): 9}); got != "[{source-mac 2} {storm 10} {foreign-source 8}] 5" {
		t.Errorf("dropped are %s", got)
	}
	r.sees("a port's own", mac1+" storm=9")
}

// denied is what is refused here, a line each.
func (r *rig) denied() string {
	var out []string
	list, more := r.c.Refused(16)
	for _, x := range list {
		line := x.Device + " " + x.MAC.String()
		if x.Address.IsValid() {
			line += " " + x.Address.String()
		}
		out = append(out, line+": "+x.Reason)
	}
	if more > 0 {
		out = append(out, fmt.Sprint(more, " more"))
	}
	return strings.Join(out, "\n")
}

func (r *rig) denies(when, want string) {
	r.tb.Helper()
	if got := r.denied(); got != want {
		r.tb.Errorf("%s: refused is\n%s\nwant\n%s", when, got, want)
	}
}

func TestARefusedAddressHeals(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.1")
	answer := func(at string, refused ...overlay.AddressRefusal) {
		t.Helper()
		u := r.c.NextUp()
		if len(u.Claims) != 1 || u.Claims[0].MAC != mac(mac1) || len(u.Claims[0].Addresses) != 2 {
			t.Fatalf("told %+v, want a claim with both addresses", u)
		}
		r.step(Answered{ID: u.Claims[0].ID, Accepted: true, Reason: "some are refused", Refused: refused})
		if at != "" {
			r.news("n1", at)
		}
		r.ups()
	}
	gateway := overlay.AddressRefusal{Address: netip.MustParseAddr("10.0.0.1"), Reason: "it is the gateway's (CV0132)"}
	answer("at h1 - "+mac1+" 10.0.0.9", gateway)
	r.denies("one address", "tap-x "+mac1+" 10.0.0.1: it is the gateway's (CV0132)")
	r.tick(2 * second)
	r.says()
	r.tick(4 * second) // it asks again by itself, and nothing has changed
	answer("", gateway)
	r.denies("asked again", "tap-x "+mac1+" 10.0.0.1: it is the gateway's (CV0132)")
	r.tick(6 * second)
	answer("at h1 - " + mac1 + " 10.0.0.1,10.0.0.9")
	r.denies("the cause went", "")
	r.tick(60 * second)
	r.says()
	// A port is declared that has one of them: why it went, the manager says.
	r.news("n1", "at h1 - "+mac1+" 10.0.0.9")
	answer("", overlay.AddressRefusal{Address: netip.MustParseAddr("10.0.0.1"), Reason: "it is port p7's"})
	r.denies("taken away", "tap-x "+mac1+" 10.0.0.1: it is port p7's")
	// One that is not heard any more is not asked for, and not shown.
	r.tick(addrQuiet)
	u := r.c.NextUp()
	if len(u.Claims) != 1 || len(u.Claims[0].Addresses) != 1 {
		t.Fatalf("told %+v, want a claim without the address that was not heard of", u)
	}
	r.denies("given up", "")
}

func TestWhatIsRefusedIsShown(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.Frame, mac1, "")
	id := r.c.NextUp().Claims[0].ID
	r.step(Answered{ID: id, Reason: "the tenant's quota of 3 ports is used up (CV0113)"})
	r.denies("an endpoint", "tap-x "+mac1+": the tenant's quota of 3 ports is used up (CV0113)")
	r.tick(2 * second)
	u := r.c.NextUp()
	if len(u.Claims) != 1 {
		t.Fatalf("told %+v, want it claimed again", u)
	}
	r.accept(u.Claims[0].ID, "at h1 - "+mac1)
	r.denies("it may", "")

	// What this agent itself refuses is shown while it is tried.
	r.hears(packet.Frame, overlay.ServerMAC.String(), "")
	for i := range 20 {
		r.hears(packet.Frame, overlay.MAC{2, 9, 0, 0, 0, byte(i)}.String(), "")
	}
	if got := r.denied(); strings.Count(got, "\n")+1 != maxDenied || !strings.Contains(got, "hosts speak to their guests with this MAC") || !strings.Contains(got, "as many endpoints") {
		t.Errorf("refused is\n%s\nwant %d lines", got, maxDenied)
	}
	if list, more := r.c.Refused(1); len(list) != 1 || more != maxDenied-1 {
		t.Errorf("%d and %d more, want 1 and the rest", len(list), more)
	}
	r.tick(denialQuiet)
	r.denies("not tried any more", "")
}

func TestAForeignPortsMACIsShown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10")
	port := r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1, "port p2 "+mac2, "port p3 "+mac3+" h2")
	r.step(Heard{Port: port, Fact: packet.Fact{Kind: packet.Frame, Src: mac(mac2)}, At: r.now})
	r.denies("another port's", "tap-p1 "+mac2+": it is port p2's, and the device is port p1's (CV0133)")
	r.tick(denialQuiet)
	r.denies("it stopped", "")

	// A device that names a port which may not be here, or is none.
	other := r.m.Plug("tap-x", 10, "")
	r.settle()
	r.step(Heard{Port: other, Fact: packet.Fact{Kind: packet.Frame, Src: mac(mac3)}, At: r.now})
	r.denies("another host's", "tap-x "+mac3+": port p3 may not be on host h1, see spec.hosts (CV0027)")
	r.plug("n1", "p9")
	r.denies("none", "tap-x "+mac3+": port p3 may not be on host h1, see spec.hosts (CV0027)\n"+
		"tap-p9 00:00:00:00:00:00: its alias names port default/p9, which the network has not (CV0110)")
	r.news("n1", "port p3 "+mac3, "port p9 02:00:00:00:00:09")
	r.denies("the ports are declared so", "")
}
