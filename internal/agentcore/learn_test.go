package agentcore

import (
	"net/netip"
	"strings"
	"testing"

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
