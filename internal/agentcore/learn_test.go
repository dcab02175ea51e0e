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

// learning is a rig whose host has a device in a network that admits what is
// heard, behind which nothing is declared.
func learning(t *testing.T, mode string) *rig {
	t.Helper()
	r := newRig(t)
	r.fleet("n1 10 " + mode)
	r.m.Plug("tap-x", 10, "")
	r.settle()
	r.connect()
	r.log("n1", "port p2 "+mac2)
	r.ups()
	r.did()
	return r
}

// hears is a frame of the device tap-x: what it says, from whom.
func (r *rig) hears(kind packet.Kind, src, ip string) {
	f := packet.Fact{Kind: kind, Src: mac(src), MAC: mac(src)}
	if ip != "" {
		f.IP = netip.MustParseAddr(ip)
	}
	r.now++
	r.step(Heard{Port: 3, Fact: f, At: r.now})
}

func TestLearnsWhatADeviceSays(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	if s := r.dump(); !strings.Contains(s, "own tap-x 10.0.0.9") || !strings.Contains(s, "port tap-x mac "+mac1+" open") ||
		!strings.Contains(s, "master 10 "+mac1+" dev tap-x static,sticky") {
		t.Errorf("the kernel holds\n%s\nwant the endpoint pinned and let through", s)
	}
	u := r.c.NextUp()
	if len(u.Claims) != 1 || u.Claims[0].MAC != mac(mac1) || !u.Claims[0].Port.IsZero() || len(u.Claims[0].Addresses) != 1 || u.Claims[0].Evidence != overlay.EvidenceARP {
		t.Fatalf("told %+v, want a claim of the undeclared endpoint with its address", u)
	}
	r.accept(u.Claims[0].ID, "at h1 - "+mac1+" 10.0.0.9")
	r.ups()
	r.hears(packet.ARPReply, mac1, "10.0.0.9") // nothing new
	r.says()
	r.hears(packet.NeighborAdvert, mac1, "fd00::9")
	if got := r.ups(); !strings.HasPrefix(got, "claim") {
		t.Errorf("told\n%s\nwant a claim with the second address", got)
	}
	r.m.Unplug("tap-x")
	r.settle()
	if s := r.dump(); strings.Contains(s, mac1) {
		t.Errorf("the kernel holds\n%s\nwant nothing of the endpoint", s)
	}
}

func TestLearnsOnlyWhereItIsAdmitted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode  string
		heard func(r *rig)
		addrs int // -1: no claim
	}{
		{"", func(r *rig) { r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9") }, -1},
		{"learn", func(r *rig) { r.hears(packet.Frame, mac1, "") }, 0},
		{"learn", func(r *rig) { r.hears(packet.ARPAnnouncement, overlay.ServerMAC.String(), "10.0.0.1") }, -1},
		{"dhcp", func(r *rig) { r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9") }, 0},
		{"dhcp", func(r *rig) {
			r.hears(packet.DHCPDiscover, mac1, "")
			r.now++
			r.step(Heard{Port: 3, ToGuest: true, At: r.now, Fact: packet.Fact{Kind: packet.DHCPAck, MAC: mac(mac1), IP: netip.MustParseAddr("10.0.0.9"), Seconds: 60}})
		}, 1},
		{"dhcp", func(r *rig) { r.hears(packet.DHCPAck, mac1, "10.0.0.9") }, 0}, // a guest's own word
	} {
		r := learning(t, c.mode)
		c.heard(r)
		got := -1
		for _, cl := range r.c.NextUp().Claims {
			got = len(cl.Addresses)
		}
		if got != c.addrs {
			t.Errorf("%q: claimed with %d addresses, want %d", c.mode, got, c.addrs)
		}
	}
}

func TestLearningIsBounded(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	for i := range 100 {
		m := overlay.MAC{2, 9, 0, 0, 0, byte(i)}
		r.hears(packet.ARPAnnouncement, m.String(), "10.0.1."+string(rune('0'+i%10)))
	}
	for i := range 100 {
		r.hears(packet.ARPAnnouncement, "02:09:00:00:00:00", netip.AddrFrom4([4]byte{10, 0, 2, byte(i)}).String())
	}
	n := r.c.nets[netUID("n1")]
	if len(n.guests) != maxLearned || len(n.guests[overlay.MAC{2, 9}].addrs) != maxLearnedAddrs {
		t.Errorf("%d endpoints and %d addresses were learned, want %d and %d", len(n.guests), len(n.guests[overlay.MAC{2, 9}].addrs), maxLearned, maxLearnedAddrs)
	}
}

func TestWhatWasLearnedIsAdopted(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	u := r.c.NextUp()
	r.accept(u.Claims[0].ID, "at h1 - "+mac1+" 10.0.0.9")
	r.ups()
	before, writes := r.dump(), r.m.Writes
	r.restart()
	r.fleet("n1 10 learn")
	r.connect()
	r.log("n1", "port p2 "+mac2, "at h1 - "+mac1+" 10.0.0.9")
	if got := r.ups(); !strings.Contains(got, "claim 1 "+mac1) || !strings.Contains(got, "inventory ends") {
		t.Errorf("told\n%s\nwant the endpoint in the inventory", got)
	}
	if r.dump() != before || r.m.Writes != writes {
		t.Errorf("%d rows were written; the kernel holds\n%s\nand held\n%s", r.m.Writes-writes, r.dump(), before)
	}
}

func TestADeclaredPortIsNotLearned(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.ARPAnnouncement, mac2, "10.0.0.66")
	u := r.c.NextUp()
	if len(u.Claims) != 1 || u.Claims[0].Port != portUID("p2") || len(u.Claims[0].Addresses) != 0 {
		t.Errorf("told %+v, want a claim of the declared port", u)
	}
	if s := r.dump(); strings.Contains(s, "10.0.0.66") {
		t.Errorf("the kernel holds\n%s\nwant no address that was not declared", s)
	}
}

func TestAdmissionTakenBack(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	u := r.c.NextUp()
	r.accept(u.Claims[0].ID, "at h1 - "+mac1+" 10.0.0.9")
	r.ups()
	r.news("", "network n1 10")
	if s := r.dump(); strings.Contains(s, "own ") || strings.Contains(s, "port tap-x mac") {
		t.Errorf("the kernel holds\n%s\nwant the device to pass nothing", s)
	}
	if got := r.ups(); !strings.Contains(got, "leave ") {
		t.Errorf("told\n%s\nwant the endpoint withdrawn", got)
	}
}

// TestTemporaryAddresses: a guest that makes itself new addresses keeps the
// newest (RFC 8981), and one that makes them without end makes no work.
func TestTemporaryAddresses(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	at := func(i int) string { return netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}).String() }
	r.hears(packet.NeighborAdvert, mac1, "fe80::1")
	for i := range 100 { // one a day, with the older ones silent
		r.hears(packet.NeighborSolicit, mac1, at(i))
		r.tick(3600 * second)
		r.hears(packet.NeighborAdvert, mac1, "fe80::1")
	}
	g := r.c.nets[netUID("n1")].guests[mac(mac1)]
	want := []netip.Addr{}
	for i := 100 - maxLearnedAddrs + 1; i < 100; i++ {
		want = append(want, netip.MustParseAddr(at(i)))
	}
	want = append(want, netip.MustParseAddr("fe80::1"))
	if !slices.Equal(g.addrs, want) || len(g.notes) != maxLearnedAddrs {
		t.Errorf("its addresses are %v with %d notes, want %v", g.addrs, len(g.notes), want)
	}
	if s := r.dump(); strings.Count(s, "own tap-x") != maxLearnedAddrs {
		t.Errorf("the kernel holds\n%s\nwant %d addresses", s, maxLearnedAddrs)
	}
	writes := r.m.Writes
	for i := range 200 {
		r.hears(packet.NeighborSolicit, mac1, netip.AddrFrom16([16]byte{0xfd, 1, 15: byte(i)}).String())
	}
	// All but the newest two were silent for long enough to give their places.
	if n := r.m.Writes - writes; n > 2*maxLearnedAddrs {
		t.Errorf("%d rows were written for 200 addresses at once, want at most %d", n, 2*maxLearnedAddrs)
	}
}

func (r *rig) acks(seconds uint32, ips ...string) {
	r.now++
	e := Heard{Port: 3, ToGuest: true, At: r.now, Fact: packet.Fact{Kind: packet.DHCPAck, MAC: mac(mac1), Seconds: seconds}}
	if a := netip.MustParseAddr(ips[0]); a.Is6() {
		e.Fact.Kind, e.DHCP6 = packet.DHCP6Reply, &packet.DHCP6{NLease: len(ips)}
		for i, s := range ips {
			e.DHCP6.Leases[i] = packet.Lease6{IP: netip.MustParseAddr(s), Seconds: seconds}
		}
	}
	e.Fact.IP = netip.MustParseAddr(ips[0])
	r.step(e)
}

// TestLeasesAlone: where admission is dhcp, a guest has what a server leased,
// for as long as it did.
func TestLeasesAlone(t *testing.T) {
	t.Parallel()
	r := learning(t, "dhcp")
	has := func(want string) {
		t.Helper()
		if got := fmt.Sprint(r.c.nets[netUID("n1")].guests[mac(mac1)].addrs); got != want {
			t.Errorf("its addresses are %s, want %s", got, want)
		}
	}
	r.hears(packet.DHCPDiscover, mac1, "")
	if s := r.dump(); !strings.Contains(s, "port tap-x mac "+mac1+" open,check_ip\n") {
		t.Errorf("the kernel holds\n%s\nwant only leased addresses let through", s)
	}
	r.acks(60, "10.0.0.9")
	r.acks(120, "fd00::9", "fd00::a")
	has("[10.0.0.9 fd00::9 fd00::a]")
	r.tick(50 * second)
	r.acks(60, "10.0.0.9") // renewed
	r.tick(59 * second)
	has("[10.0.0.9 fd00::9 fd00::a]")
	u := r.c.NextUp()
	r.accept(u.Claims[0].ID, "at h1 - "+mac1+" 10.0.0.9,fd00::9,fd00::a")
	r.ups()
	r.tick(2 * second)
	has("[fd00::9 fd00::a]")
	if got := r.c.NextUp().Claims; len(got) != 1 || len(got[0].Addresses) != 2 {
		t.Errorf("told %+v, want the address given up", got)
	}
	r.acks(0, "fd00::9")
	has("[fd00::a]")
	r.step(Heard{Port: 3, At: r.now, Fact: packet.Fact{Kind: packet.DHCP6Release, Src: mac(mac1), MAC: mac(mac1), Target: netip.MustParseAddr("fd00::a")}})
	has("[]")
	r.acks(0xffffffff, "10.0.0.9")
	r.tick(365 * 24 * 3600 * second)
	has("[10.0.0.9]")
}

// TestWhatMovesHereKeepsItsAddresses: its new host hears one frame of it, and
// neither a lease nor its addresses.
func TestWhatMovesHereKeepsItsAddresses(t *testing.T) {
	t.Parallel()
	r := learning(t, "dhcp")
	r.news("n1", "at h2 - "+mac1+" 10.0.0.9")
	r.tick(second)
	r.hears(packet.RARPAnnouncement, mac1, "")
	u := r.c.NextUp()
	if len(u.Claims) != 1 || len(u.Claims[0].Addresses) != 1 {
		t.Errorf("told %+v, want a claim with the address that it had", u)
	}
}

// A device that becomes a port has what that declares, and nothing else that was
// learned behind it.
func TestAPortForgetsWhatItsDeviceWas(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	r.says("claim 1 " + mac1 + " base 6 arp")
	r.accept(1, "at h1 - "+mac1+" 10.0.0.9")
	r.ups()
	r.m.SetAlias("tap-x", hoststate.PortAlias("default", "p2"))
	r.settle()
	if s := r.dump(); strings.Contains(s, mac1) || !strings.Contains(s, "master 10 "+mac2+" dev tap-x") {
		t.Errorf("the kernel holds\n%s\nwant port p2 behind the device, and nothing else", s)
	}
	r.says("claim 2 "+mac2+" base 7 device", "leave 3 "+mac1+" base 7 none")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	r.says()
}

// What a guest says while a claim of it is under way is claimed next, whichever
// of the answer and the log comes first.
func TestWhatIsHeardDuringAClaimIsClaimed(t *testing.T) {
	t.Parallel()
	r := learning(t, "learn")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	r.says("claim 1 " + mac1 + " base 6 arp")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.10")
	r.news("n1", "at h1 - "+mac1+" 10.0.0.9")
	r.step(Answered{ID: 1, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 7}})
	u := r.c.NextUp()
	if len(u.Claims) != 1 || len(u.Claims[0].Addresses) != 2 {
		t.Errorf("told %+v, want a claim of both addresses", u)
	}
}
