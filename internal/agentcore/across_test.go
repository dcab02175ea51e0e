package agentcore

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// holds compares which of some rows the kernel has: all of want, and none else
// that begins with one of the words, in VNI 10.
func (r *rig) holds(when string, words []string, want ...string) {
	r.tb.Helper()
	var got []string
	for _, l := range strings.Split(r.dump(), "\n") {
		if f := strings.Fields(l); len(f) > 2 && f[1] == "10" && slices.Contains(words, f[0]) {
			got = append(got, l)
		}
	}
	if got, want := strings.Join(sorted(got), "\n"), strings.Join(sorted(want), "\n"); got != want {
		r.tb.Errorf("%s, the kernel holds\n%s\nwant\n%s", when, got, want)
	}
}

// Endpoints whose aliases are the same, as a search of 2^24 names found: one in
// n2 and one in n3, and two in n3.
const (
	sameN2, sameN3     = "02:00:00:12:19:43", "02:00:00:07:5e:c2"
	oneOfN3, otherOfN3 = "02:00:00:30:28:ad", "02:00:00:59:8e:a8"
)

// TestTwoOfOneAlias: the first of the two is reached, and the other when that
// has gone, in whatever order they come; nothing is ever sent to one for the
// other.
func TestTwoOfOneAlias(t *testing.T) {
	t.Parallel()
	alias := overlay.Alias(netUID("n2"), mac(sameN2)).String()
	if a := overlay.Alias(netUID("n3"), mac(sameN3)).String(); a != alias {
		t.Fatalf("aliases are %s and %s: want the same", alias, a)
	}
	words := []string{"reach", "neigh", "fdb"}
	rows := func(ip, dst string) []string {
		return []string{"fdb 10 " + router + " dst 192.0.2.201 static,extern_learn,router", "reach 10 " + alias, "reach 10 " + ip + " mtu 1450", "neigh 10 " + ip + " lladdr " + alias + " permanent,culvert", "fdb 10 " + alias + " dst " + dst + " static,extern_learn"}
	}
	first, second := "at h2 - "+sameN2+" 10.2.0.2", "at h2 - "+sameN3+" 10.3.0.3"
	in2, in3 := rows("10.2.0.2", "192.0.2.202 vni 20"), rows("10.3.0.3", "192.0.2.202 vni 30")
	r := newRig(t)
	r.fleet("n1 10 domain reach=n2,n3 10.1.0.0/24", "n2 20 domain from=n1 10.2.0.0/24", "n3 30 domain from=n1 10.3.0.0/24")
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.log("n2")
	r.log("n3")
	r.news("n3", second)
	r.holds("one alone", words, in3...)
	r.news("n2", first)
	r.holds("the first comes second", words, in2...)
	r.news("n3", "at h3 - "+sameN3+" 10.3.0.3")
	r.holds("the other moves", words, in2...)
	r.news("n2", "-"+first)
	r.holds("the first goes", words, rows("10.3.0.3", "192.0.2.203 vni 30")...)
	r.news("n3", "-"+second)
	r.news("n2", first)
	r.news("n3", second)
	r.holds("the other comes second", words, in2...)
	r.news("n3", "-"+second)
	r.holds("the other goes", words, in2...)
	r.news("n3", second)
	r.news("", "network n1 10 domain reach=n3 10.1.0.0/24")
	r.holds("the first is reached no more", words, in3...)
	r.news("", "network n1 10 domain 10.1.0.0/24")
	r.holds("neither is", words, in2[0])
}

// TestTwoOfOneAliasHere: what is sent by it is the first's.
func TestTwoOfOneAliasHere(t *testing.T) {
	t.Parallel()
	alias := overlay.Alias(netUID("n3"), mac(oneOfN3)).String()
	for _, macs := range [][2]string{{oneOfN3, otherOfN3}, {otherOfN3, oneOfN3}} {
		r := newRig(t)
		r.fleet("n1 30 domain reach=n3 10.1.0.0/24", "n3 10 domain from=n1 10.3.0.0/24")
		r.plug("n3", "p1")
		r.plug("n3", "p2")
		r.connect()
		r.log("n3", "port p1 "+macs[0], "port p2 "+macs[1])
		r.news("n3", "at h1 p1 "+macs[0]+" 10.3.0.3")
		r.news("n3", "at h1 p2 "+macs[1]+" 10.3.0.4")
		r.holds("both here", []string{"alias"}, "alias 10 "+alias+" of "+oneOfN3)
	}
}

// TestNextHops: packets to a prefix go to where its next hop is, here or
// elsewhere, in this network or in one that it reaches; and nowhere while that
// is bound nowhere, or cannot be reached.
func TestNextHops(t *testing.T) {
	t.Parallel()
	const own, across = "10.1.0.0/24 fd00:1::/64 hop=10.9.0.0/16,n1," + mac1 + " hop=::/0,n1," + mac1, "hop=10.9.0.0/16,n2," + mac2
	words := []string{"route", "master"}
	master := func(m, dev string) string { return "master 10 " + m + " dev " + dev }
	base := master(router, "cvx10 static,extern_learn")
	local := master(mac1, "tap-p1 static,sticky")
	var around []string
	r := newRig(t)
	r.fleet("n1 10 domain reach=n2 from=n2 "+own, both2)
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.log("n2", far)
	for _, sn := range []string{"fd00:1::/64", "fd00:2::/64"} { // which the route to all goes around
		around = append(around, "route 10 "+sn+" via 00:00:00:00:00:00")
	}
	r.holds("here", words, append(around, base, local, "route 10 10.9.0.0/16 via "+mac1, "route 10 ::/0 via "+mac1)...)
	r.news("n1", "port p3 "+mac3, "at h2 p3 "+mac3+" 10.1.0.3")
	r.news("", "network n1 10 domain reach=n2 from=n2 "+strings.ReplaceAll(own, mac1, mac3))
	r.holds("elsewhere", words, append(around, base, local, master(mac3, "cvx10 static,extern_learn"), "route 10 10.9.0.0/16 via "+mac3, "route 10 ::/0 via "+mac3)...)
	r.news("n1", "-at h2 p3 "+mac3+" 10.1.0.3")
	r.holds("bound nowhere", words, append(around, base, local)...)
	r.news("", "network n1 10 domain reach=n2 from=n2 10.1.0.0/24 "+across)
	toward := []string{base, local, master(alias2, "cvx10 static,extern_learn"), "route 10 10.9.0.0/16 via " + alias2}
	r.holds("across", words, toward...)
	r.news("n2", "at h1 p2 "+mac2+" 10.2.0.2")
	r.holds("across, here", words, toward...)
	r.news("", "host h3 192.0.2.203 dead")
	r.news("n2", "at h3 p2 "+mac2+" 10.2.0.2")
	r.holds("on a host that is dead", words, base, local)
	r.news("", "host h3 192.0.2.203")
	r.holds("that returned", words, toward...)
	r.news("", "network n1 10 domain from=n2 10.1.0.0/24 "+across)
	r.holds("not to be reached", words, base, local)
	r.news("", "network n1 10 domain reach=n2 from=n2 10.1.0.0/24")
	r.holds("no route", words, base, local)
}

// TestBridged: each other's endpoints are in the tables as if they were the
// network's own, but that frames to them go into theirs; here by this host's
// own tunnel end point, and without a device of theirs.
func TestBridged(t *testing.T) {
	t.Parallel()
	words := []string{"source", "fdb", "master", "neigh", "reach", "from", "routed", "repl", "alias"}
	rows := func(vtep string, senders ...string) (out []string) {
		for _, s := range senders {
			out = append(out, "source 10 "+mac2+" via "+s)
		}
		return append(out, "fdb 10 "+mac2+" dst "+vtep+" vni 20 static,extern_learn", "master 10 "+mac2+" dev cvx10 static,extern_learn",
			"neigh 10 10.1.0.2 lladdr "+mac2+" permanent,culvert", "master 10 "+mac1+" dev tap-p1 static,sticky")
	}
	r := newRig(t)
	r.fleet("n1 10 bridge=n2 10.1.0.0/24", "n2 20 bridge=n1 10.1.0.0/24")
	r.plug("n1", "p1")
	r.connect()
	r.says("add n1 from 0", "add n2 from 0")
	r.log("n1", "port p1 "+mac1)
	r.log("n2", "port p2 "+mac2, "at h2 p2 "+mac2+" 10.1.0.2")
	r.holds("elsewhere", words, rows("192.0.2.202", "192.0.2.202")...)
	if got := r.dump(); strings.Contains(got, "cvx20") || !strings.Contains(got, "port tap-p1 mac "+mac1+" open\n") {
		t.Errorf("a device without ports, or a router:\n%s", got)
	}
	r.news("n2", "at h3 p2 "+mac2+" 10.1.0.2 from=h2")
	r.holds("it moves", words, rows("192.0.2.203", "192.0.2.203", "192.0.2.202")...)
	r.tick(11 * second)
	r.holds("it moved", words, rows("192.0.2.203", "192.0.2.203")...)
	r.news("n2", "at h1 p2 "+mac2+" 10.1.0.2")
	r.holds("here", words, rows("192.0.2.201")...)
	r.did()
	r.news("n2", "port p3 "+mac3, "at h3 p3 "+mac3+" 10.1.0.2") // newer
	if got := r.did(); !strings.Contains(got, "announce vni 10 10.1.0.2 at "+mac3) {
		t.Errorf("its address is another's, and guests here are not told:\n%s", got)
	}
	probe := packet.AskND(packet.Broadcast, mac(mac1), netip.IPv6Unspecified(), netip.MustParseAddr("fd00:1::2"))
	r.news("n2", "at h3 p3 "+mac3+" fd00:1::2")
	r.tick(second)
	if got := r.speaks(probe); len(got) != 1 {
		t.Errorf("who takes a bridged endpoint's address is answered %v, want an advertisement", got)
	}
	r.news("n2", "-at h3 p3 "+mac3+" fd00:1::2")
	before := r.dump()
	known := r.c.Known()
	r.blind()
	for _, it := range known {
		r.c.Step(r.now, it)
	}
	r.did()
	r.step(Tick{})
	r.wants()
	if r.dump() != before {
		t.Errorf("a new agent changes what the kernel holds to\n%s", r.dump())
	}
	r.connect()
	r.ups()
	r.news("", "network n1 10 10.1.0.0/24")
	r.holds("bridged no more", words, "master 10 "+mac1+" dev tap-p1 static,sticky")
}

// TestBridgingComesBeforeRoutes: guests of bridged networks ask for each other,
// and nothing of that is guarded, or sent in the router's name.
func TestBridgingComesBeforeRoutes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10 domain reach=n2 from=n2 bridge=n2 10.1.0.0/24", "n2 20 domain reach=n1 from=n1 bridge=n1 10.2.0.0/24")
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.log("n2", "at h2 - "+mac2+" 10.2.0.2")
	r.holds("both ways", []string{"reach", "from", "routed", "source", "neigh"}, "source 10 "+mac2+" via 192.0.2.202", "neigh 10 10.2.0.2 lladdr "+mac2+" permanent,culvert")
}

// TestDevicesAreOfNetworksThatMayBeHere: a host is told of a network that one
// here reaches, and has no devices of it unless it may have guests, too.
func TestDevicesAreOfNetworksThatMayBeHere(t *testing.T) {
	t.Parallel()
	const elsewhere = both2 + " hosts=h2,h3"
	r := newRig(t)
	r.fleet(both1, elsewhere)
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.log("n2", "port p2 "+mac2, far)
	if got := r.dump(); strings.Contains(got, "cvb20") || !strings.Contains(got, "reach 10 10.2.0.2") {
		t.Errorf("the kernel holds\n%s", got)
	}
	r.news("", "network "+both2)
	r.news("n2", "port p3 "+mac3)
	r.plug("n2", "p3")
	if got := r.dump(); !strings.Contains(got, "cvx20") || !strings.Contains(got, "port tap-p3 mac "+mac3) {
		t.Errorf("it may be here, and the kernel holds\n%s", got)
	}
	r.restart()
	r.rev = 20
	r.fleet(both1, elsewhere)
	r.connect()
	r.log("n1", "port p1 "+mac1)
	r.log("n2", "port p2 "+mac2, far)
	r.tick(second)
	if got := r.dump(); strings.Contains(got, "cvb20") || strings.Contains(got, "cvx20") || strings.Contains(got, "port tap-p3 mac") || !strings.Contains(got, "reach 10 10.2.0.2") {
		t.Errorf("it may not be here, and the kernel holds\n%s", got)
	}
}
