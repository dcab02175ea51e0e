package agentcore

import (
	"slices"
	"strings"
	"testing"

	"culvert/internal/overlay"
)

const (
	router = "02:63:75:6c:76:74"
	both1  = "n1 10 domain reach=n2 from=n2 10.1.0.0/24 fd00:1::/64"
	both2  = "n2 20 domain reach=n1 from=n1 10.2.0.0/24 fd00:2::/64"
	alone1 = "n1 10 domain 10.1.0.0/24 fd00:1::/64"
	alone2 = "n2 20 domain 10.2.0.0/24 fd00:2::/64"
)

// alias1 to alias3 are the names of n1's mac1 in n2, and of n2's others in n1.
var (
	alias1 = overlay.Alias(netUID("n1"), mac(mac1)).String()
	alias2 = overlay.Alias(netUID("n2"), mac(mac2)).String()
	alias3 = overlay.Alias(netUID("n2"), mac(mac3)).String()
)

// far is the endpoint of n2 on h2 that guests of n1 reach.
const far = "at h2 p2 " + mac2 + " 10.2.0.2,fd00:2::2"

// routed is a rig whose host has p1 in n1, and none of n2.
func routed(t testing.TB) *rig {
	t.Helper()
	r := newRig(t)
	r.fleet(both1, both2)
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.log("n2", "port p2 "+mac2, far)
	r.ups()
	r.did()
	return r
}

// crossing lists what the tables of n1 hold that is not of its own endpoints.
func (r *rig) crossing() string {
	var out []string
	for _, l := range strings.Split(r.dump(), "\n") {
		f := strings.Fields(l)
		if len(f) > 2 && f[1] == "10" && f[0] != "master" && f[0] != "repl" && !strings.Contains(l, mac1) {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

func (r *rig) crosses(when string, lines ...string) {
	r.tb.Helper()
	if got, want := strings.Join(sorted(strings.Split(r.crossing(), "\n")), "\n"), strings.Join(sorted(lines), "\n"); got != want {
		r.tb.Errorf("%s, the kernel holds\n%s\nwant\n%s", when, got, want)
	}
}

const routerRow = "fdb 10 " + router + " dst 192.0.2.201 static,extern_learn,router"

// reached are the rows of mac2 in n1 by which it is sent to; sending are those by
// which it may send there.
func reached(vtep string, addrs ...string) (out []string) {
	out = append(out, "reach 10 "+alias2)
	for _, a := range addrs {
		out = append(out, "neigh 10 "+a+" lladdr "+alias2+" permanent,culvert", "reach 10 "+a+" mtu 1450")
	}
	return append(out, "fdb 10 "+alias2+" dst "+vtep+" vni 20 static,extern_learn")
}

func sending(addrs string, vteps ...string) (out []string) {
	for _, a := range strings.Split(addrs, ",") {
		out = append(out, "from 10 "+a+" of "+alias2)
	}
	for _, v := range vteps {
		out = append(out, "routed 10 "+alias2+" via "+v)
	}
	return out
}

// TestRoutesToAnotherNetwork: the other's log is wanted as soon as a guest is
// here, without its devices; nothing counts as held before it was received; and
// what is written comes in order.
func TestRoutesToAnotherNetwork(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet(both1, both2)
	r.plug("n1", "p1")
	r.connect()
	r.says("add n1 from 0", "add n2 from 0")
	r.log("n1", "port p1 "+mac1)
	r.says("claim 1 "+mac1+" base 7 device", "inventory ends")
	r.tick(second)
	r.did()
	r.log("n2", "port p2 "+mac2, far)
	r.wants(
		"set routed 10 "+alias2+" via 192.0.2.202",
		"set from 10 10.2.0.2 of "+alias2, "set from 10 fd00:2::2 of "+alias2,
		"set reach 10 "+alias2, "set reach 10 10.2.0.2 mtu 1450", "set reach 10 fd00:2::2 mtu 1450",
		"set fdb 10 "+alias2+" dst 192.0.2.202 vni 20 static,extern_learn",
		"set neigh 10 10.2.0.2 lladdr "+alias2+" permanent,culvert",
		"set neigh 10 fd00:2::2 lladdr "+alias2+" permanent,culvert",
	)
	r.says("ack 9")
	for _, want := range []string{"\n" + routerRow + "\n", "\nmaster 10 " + router + " dev cvx10 static,extern_learn\n", "port tap-p1 mac " + mac1 + " open,routed\n", "alias 10 " + alias1 + " of " + mac1 + "\n"} {
		if !strings.Contains(r.dump(), want) {
			t.Errorf("the kernel lacks %q:\n%s", want, r.dump())
		}
	}
	if strings.Contains(r.dump(), "cvx20") {
		t.Errorf("a device of a network without ports:\n%s", r.dump())
	}
}

// TestRoutesToWhatDoesNotSelectThisHost: its endpoints are reached, and no bridge
// of it stands here for guests, until it selects this host, too.
func TestRoutesToWhatDoesNotSelectThisHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet(both1, both2+" hosts=h2,h3")
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.log("n2", "port p2 "+mac2, far)
	if have := r.crossing(); !strings.Contains(have, "fdb 10 "+alias2+" dst 192.0.2.202 vni 20 ") || !strings.Contains(have, "reach 10 10.2.0.2") {
		t.Errorf("what is reached is not in the tables:\n%s", have)
	}
	if strings.Contains(r.dump(), "cvb20") {
		t.Errorf("a bridge of a network that does not select this host:\n%s", r.dump())
	}
	r.says("add n1 from 7", "add n2 from 9", "claim 1 "+mac1+" base 7 device", "inventory ends", "ack 9")
	r.news("", "network "+both2+" hosts=h1,h2,h3")
	if !strings.Contains(r.dump(), "cvb20") {
		t.Errorf("no bridge of a network that selects this host:\n%s", r.dump())
	}
}

// TestRoutedEndpointsFollow: whatever becomes of an endpoint of another network,
// or of its host.
func TestRoutedEndpointsFollow(t *testing.T) {
	t.Parallel()
	r := routed(t)
	rows := func(lists ...[]string) []string { return sorted(append(slices.Concat(lists...), routerRow)) }
	both := "10.2.0.2,fd00:2::2"
	for _, c := range []struct {
		log, line string
		want      []string
	}{
		{"n2", "port p3 " + mac3, rows(reached("192.0.2.202", "10.2.0.2", "fd00:2::2"), sending(both, "192.0.2.202"))},
		{"n2", "at h3 p2 " + mac2 + " 10.2.0.2,fd00:2::2 from=h2", rows(reached("192.0.2.203", "10.2.0.2", "fd00:2::2"), sending(both, "192.0.2.202", "192.0.2.203"))},
		{"n2", "at h3 p2 " + mac2 + " 10.2.0.9", rows(reached("192.0.2.203", "10.2.0.9"), sending("10.2.0.9", "192.0.2.203"))},
		{"n2", "at h3 p2 " + mac2 + " 10.2.0.9,10.9.0.9,fe80::9", rows(reached("192.0.2.203", "10.2.0.9"), sending("10.2.0.9", "192.0.2.203"))},
		{"n2", "at h3 p2 " + mac2 + " 10.2.0.9 pre=h4", rows(reached("192.0.2.203", "10.2.0.9"), sending("10.2.0.9", "192.0.2.203", "192.0.2.204"))},
		{"", "host h3 192.0.2.99", rows(reached("192.0.2.99", "10.2.0.9"), sending("10.2.0.9", "192.0.2.204", "192.0.2.99"))},
		{"", "host h3 192.0.2.99 dead", rows(sending("10.2.0.9", "192.0.2.204"))},
		{"", "host h3 192.0.2.203", rows(reached("192.0.2.203", "10.2.0.9"), sending("10.2.0.9", "192.0.2.203", "192.0.2.204"))},
		{"n2", "at h1 p2 " + mac2 + " 10.2.0.9", rows(reached("192.0.2.201", "10.2.0.9"), sending("10.2.0.9"))},
		{"n2", "at h2 p2 " + mac2 + " 10.2.0.9", rows(reached("192.0.2.202", "10.2.0.9"), sending("10.2.0.9", "192.0.2.202"))},
		{"n2", "-at h2 p2 " + mac2 + " 10.2.0.9", rows()},
		{"n2", far, rows(reached("192.0.2.202", "10.2.0.2", "fd00:2::2"), sending(both, "192.0.2.202"))},
	} {
		r.news(c.log, c.line)
		if got, want := strings.Join(sorted(strings.Split(r.crossing(), "\n")), "\n"), strings.Join(c.want, "\n"); got != want {
			t.Errorf("after %q the kernel holds\n%s\nwant\n%s", c.line, got, want)
		}
	}
}

// TestWhoMayRouteHere: the hosts that an endpoint is on which may send here, for
// that endpoint alone, and after a move for a while the one that it left.
func TestWhoMayRouteHere(t *testing.T) {
	t.Parallel()
	r := routed(t)
	routes := func(when, alias, vtep string, want bool) {
		t.Helper()
		if got := strings.Contains(r.dump(), "routed 10 "+alias+" via "+vtep+"\n"); got != want {
			t.Errorf("%s: %s may route here for %s: %v, want %v", when, vtep, alias, got, want)
		}
	}
	r.news("n2", "port p3 "+mac3, "at h2 p3 "+mac3+" 10.2.0.3")
	routes("both", alias2, "192.0.2.202", true)
	routes("both", alias3, "192.0.2.202", true)
	r.news("n2", "-"+far)
	routes("one is left", alias2, "192.0.2.202", false)
	routes("one is left", alias3, "192.0.2.202", true)
	r.news("n2", "at h3 p3 "+mac3+" 10.2.0.3 from=h2")
	routes("it moved", alias3, "192.0.2.202", true)
	routes("it moved", alias3, "192.0.2.203", true)
	r.tick(11 * second)
	routes("long ago", alias3, "192.0.2.202", false)
	r.news("", "network "+"n1 10 domain reach=n2 10.1.0.0/24")
	if got := r.crossing(); strings.Contains(got, "routed ") || strings.Contains(got, "from ") || strings.Contains(got, "alias ") {
		t.Errorf("it may not send here:\n%s", got)
	}
	if !strings.Contains(r.crossing(), "fdb 10 "+alias3+" dst 192.0.2.203 vni 20") {
		t.Errorf("it is not reached:\n%s", r.crossing())
	}
	if got := r.dump(); strings.Contains(got, "\nalias ") {
		t.Errorf("nobody sends here by another name:\n%s", got)
	}
}

// TestPoliciesOpenAndClose: with the record that says so, and no sooner does it
// count as done.
func TestPoliciesOpenAndClose(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet(alone1, alone2)
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.ups()
	r.crosses("closed", routerRow)
	r.news("", "network "+both1, "network "+both2)
	r.says("add n2 from 0")
	r.log("n2", "port p2 "+mac2, far)
	r.says("ack 11")
	r.did()
	if !strings.Contains(r.crossing(), "reach 10 10.2.0.2") {
		t.Errorf("open, and the kernel holds\n%s", r.crossing())
	}
	r.news("", "network "+alone1, "network "+alone2)
	r.wants(
		"tune vni 10",
		"del neigh 10 fd00:2::2 lladdr "+alias2+" permanent,culvert",
		"del neigh 10 10.2.0.2 lladdr "+alias2+" permanent,culvert",
		"del fdb 10 "+alias2+" dst 192.0.2.202 vni 20 static,extern_learn",
		"del reach 10 fd00:2::2 mtu 1450", "del reach 10 10.2.0.2 mtu 1450", "del reach 10 "+alias2,
		"del alias 10 "+alias1+" of "+mac1,
		"del from 10 fd00:2::2 of "+alias2, "del from 10 10.2.0.2 of "+alias2,
		"del routed 10 "+alias2+" via 192.0.2.202",
		"tune vni 20",
	)
	r.says("remove n2", "ack 13")
	// It leaves the domain: no router any more.
	r.news("", "network n1 10 10.1.0.0/24 fd00:1::/64")
	r.crosses("outside")
	if !strings.Contains(r.dump(), "port tap-p1 mac "+mac1+" open\n") || strings.Contains(r.dump(), router) {
		t.Errorf("it is routed still:\n%s", r.dump())
	}
}

// TestRoutedWhileServed: the other's log is wanted as long as the network is
// served here.
func TestRoutedWhileServed(t *testing.T) {
	t.Parallel()
	r := routed(t)
	r.unplug("p1")
	r.tick(6 * second)
	if got := r.ups(); !strings.Contains(got, "remove n2") {
		t.Errorf("told\n%s", got)
	}
	r.plug("n1", "p1")
	r.says("add n2 from 0", "claim 2 "+mac1+" base 7 device") // n1's own was kept: nobody answered the first claim
	r.log("n2", "port p2 "+mac2, far)
	if !strings.Contains(r.crossing(), "reach 10 10.2.0.2") {
		t.Errorf("the kernel holds\n%s", r.crossing())
	}
	// Its record comes last of all, or is deleted.
	r.news("", "-network "+both2)
	r.crosses("deleted", routerRow)
	r.news("", "network "+both2)
	r.ups()
	r.log("n2", "port p2 "+mac2, far)
	if !strings.Contains(r.crossing(), "reach 10 10.2.0.2") {
		t.Errorf("the kernel holds\n%s", r.crossing())
	}
}

func TestAdoptsRoutesWithoutAWrite(t *testing.T) {
	t.Parallel()
	r := routed(t)
	before, writes := r.dump(), r.m.Writes
	r.restart()
	r.rev = 0 // the same records again
	r.fleet(both1, both2)
	r.connect()
	r.says("add n1 from 0", "add n2 from 0")
	r.log("n1", "port p1 "+mac1)
	r.says("claim 1 "+mac1+" base 7 device", "inventory ends")
	r.log("n2", "port p2 "+mac2, far)
	r.wants()
	if r.m.Writes != writes || r.dump() != before {
		t.Errorf("%d rows were written; the kernel holds\n%s\nand held\n%s", r.m.Writes-writes, r.dump(), before)
	}
	r.says("ack 9")
}

// routesGone is what takes away all that n1 has of n2, found there by an agent
// that starts.
var routesGone = []string{
	"del neigh 10 10.2.0.2 lladdr " + alias2 + " permanent,culvert",
	"del neigh 10 fd00:2::2 lladdr " + alias2 + " permanent,culvert",
	"del fdb 10 " + alias2 + " dst 192.0.2.202 vni 20 static,extern_learn",
	"del reach 10 10.2.0.2 mtu 1450", "del reach 10 fd00:2::2 mtu 1450", "del reach 10 " + alias2,
	"del from 10 10.2.0.2 of " + alias2, "del from 10 fd00:2::2 of " + alias2,
	"del routed 10 " + alias2 + " via 192.0.2.202",
}

// TestDeletesNoRoutesBeforeAPassHasEnded: neither the end of the network's own
// log nor half of the other's says that nobody is there.
func TestDeletesNoRoutesBeforeAPassHasEnded(t *testing.T) {
	t.Parallel()
	r := routed(t)
	r.restart()
	r.rev = 0
	r.fleet(both1, both2)
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.ups()
	part := Items{Begins: []overlay.UID{netUID("n2")}, Items: []Item{r.item("n2", "port p2 "+mac2)}}
	r.step(part)
	r.tick(300 * second)
	if got := r.did(); strings.Contains(got, "del") || r.c.Stats().Repairs != 0 {
		t.Errorf("%d repairs; operations are\n%s\nwant no deletion", r.c.Stats().Repairs, got)
	}
	end := Items{}
	r.sums["n2"] = &overlay.Sum{}
	r.sums["n2"].Add(overlay.Key{Kind: overlay.KindPort, UID: portUID("p2")}, part.Items[0].Rev)
	r.finish(&end, netUID("n2"), "n2", true)
	r.step(end)
	r.wants(
		routesGone...,
	)
}

// TestWhatStandsInTheWayOfDeletions: another network's log no longer does when
// nothing is routed there any more, or that network is gone; and it does from
// before its record came.
func TestWhatStandsInTheWayOfDeletions(t *testing.T) {
	t.Parallel()
	for name, news := range map[string]string{"closed": "network " + alone1, "deleted": "-network " + both2} {
		r := routed(t)
		r.restart()
		r.rev = 0
		r.fleet(both1, both2)
		r.connect()
		r.log("n1", "port p1 "+mac1)
		r.wants()
		r.news("", news)
		got := strings.Join(slices.DeleteFunc(strings.Split(r.did(), "\n"), func(l string) bool { return strings.HasPrefix(l, "tune") || strings.HasPrefix(l, "del-link") }), "\n")
		want := strings.Join(routesGone, "\n")
		if name == "closed" { // nor does anybody send here
			want = strings.Replace(want, "\ndel from", "\ndel alias 10 "+alias1+" of "+mac1+"\ndel from", 1)
		}
		if got != want {
			t.Errorf("%s: operations are\n%s\nwant\n%s", name, got, want)
		}
	}
	r := routed(t)
	r.restart()
	r.rev = 4 // after the hosts
	e := Items{Begins: []overlay.UID{{}}, Items: []Item{r.item("", "network "+both1)}}
	r.step(e)
	r.connect()
	r.log("n1", "port p1 "+mac1)
	if got := r.did(); strings.Contains(got, "del") {
		t.Errorf("before the fleet's log has ended: operations are\n%s\nwant no deletion", got)
	}
}

// TestAPolicyThatIsWrittenAnewTakesNothingAway: closed and opened in one go.
func TestAPolicyThatIsWrittenAnewTakesNothingAway(t *testing.T) {
	t.Parallel()
	r := routed(t)
	before := r.crossing()
	r.news("", "network "+alone1, "network "+both1)
	if got := r.ups(); !strings.HasPrefix(got, "add n2 from 0") {
		t.Errorf("told\n%s", got)
	}
	r.log("n2", "port p2 "+mac2, far)
	if got := r.did(); got != "tune vni 10" || r.crossing() != before {
		t.Errorf("operations are\n%s\nwant none of rows; the kernel holds\n%s", got, r.crossing())
	}
}

// TestServedLaterAndAnew: the other network's log may come first, and its
// endpoints have no rows while no guest is here, and have them again after.
func TestServedLaterAndAnew(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet(both1, both2)
	r.plug("n1", "p1")
	r.connect()
	r.ups()
	r.log("n2", "port p2 "+mac2, far)
	r.log("n1", "port p1 "+mac1)
	want := r.crossing()
	if !strings.Contains(want, "reach 10 10.2.0.2") {
		t.Errorf("the kernel holds\n%s", want)
	}
	r.news("n1", "-port p1 "+mac1) // its device stays
	r.tick(6 * second)
	r.crosses("served no more")
	r.news("n1", "port p1 "+mac1)
	r.crosses("served again", strings.Split(want, "\n")...)
}

// TestALogThatNeverComesKeepsNoDevice: what waits for it holds a network's
// devices only while that network is served.
func TestALogThatNeverComesKeepsNoDevice(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet(both1, both2)
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.news("n1", "-port p1 "+mac1)
	r.tick(6 * second)
	r.tick(second)
	if got := r.dump(); strings.Contains(got, "cvx10") || strings.Contains(got, "master 10 "+mac1) {
		t.Errorf("the kernel holds\n%s", got)
	}
}

// TestEqualMACs: the same MAC in both networks, on this host, on others and on
// the same other: each is sent to, and none meets another's rows.
func TestEqualMACs(t *testing.T) {
	t.Parallel()
	r := routed(t)
	own := "at h3 p4 " + mac2 + " 10.1.0.4"
	rows := func(lists ...[]string) []string { return sorted(append(slices.Concat(lists...), routerRow)) }
	there, ours := slices.Concat(reached("192.0.2.202", "10.2.0.2", "fd00:2::2"), sending("10.2.0.2,fd00:2::2", "192.0.2.202")), func(v string) []string {
		return []string{"fdb 10 " + mac2 + " dst " + v + " static,extern_learn", "neigh 10 10.1.0.4 lladdr " + mac2 + " permanent,culvert", "source 10 " + mac2 + " via " + v}
	}
	r.news("n1", "port p4 "+mac2, own)
	r.crosses("both elsewhere", rows(there, ours("192.0.2.203"))...)
	r.news("n1", "at h2 p4 "+mac2+" 10.1.0.4")
	r.crosses("on one host", rows(there, ours("192.0.2.202"))...)
	r.news("n1", "-"+own)
	r.crosses("one is gone", rows(there)...)
	r.news("n2", "port p5 "+mac1, "at h1 p5 "+mac1+" 10.2.0.5")
	name := overlay.Alias(netUID("n2"), mac(mac1)).String()
	for _, want := range []string{"\nmaster 10 " + mac1 + " dev tap-p1 static,sticky\n", "\nfdb 10 " + name + " dst 192.0.2.201 vni 20 static,extern_learn\n"} {
		if !strings.Contains(r.dump(), want) {
			t.Errorf("both here: the kernel lacks %q:\n%s", want, r.dump())
		}
	}
}

func sorted(lines []string) []string { return slices.Sorted(slices.Values(lines)) }

// TestRoutesAreInTheJournal: an agent that kept what it knew begins with the
// logs of other networks, too, writes nothing, and goes on where it was.
func TestRoutesAreInTheJournal(t *testing.T) {
	t.Parallel()
	r := routed(t)
	before, known := r.dump(), r.c.Known()
	r.blind()
	for _, it := range known {
		r.c.Step(r.now, it)
	}
	r.step(Tick{})
	r.connect()
	r.wants()
	if r.dump() != before {
		t.Errorf("the kernel holds\n%s\nand held\n%s", r.dump(), before)
	}
	if got := r.ups(); !strings.HasPrefix(got, "add n1 from 7\nadd n2 from 9\n") {
		t.Errorf("told\n%s", got)
	}
}
