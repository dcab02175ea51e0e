package agentcore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

const (
	vip4   = "10.0.0.9"
	vip6   = "fd00::9"
	vmac   = "00:00:5e:00:01:07"
	sharer = "port p1 " + mac1 + " ip=10.0.0.1,fd00::1 share=" + vip4 + "," + vip6
	other  = "port p2 " + mac2 + " ip=10.0.0.2,fd00::2 share=" + vip4 + "," + vip6
)

// sharingRig is a host that has p1, which shares addresses with p2 on h2; p2
// holds them.
func sharingRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.fleet("n1 10")
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", sharer, other, "at h1 p1 "+mac1+" 10.0.0.1,fd00::1", "at h2 p2 "+mac2+" 10.0.0.2,"+vip4+",fd00::2,"+vip6)
	r.agree()
	r.did()
	return r
}

// agree answers every claim that it has been there already, and lists them.
func (r *rig) agree() (out []Claim) {
	for {
		u := r.c.NextUp()
		if u.Empty() {
			return out
		}
		for _, cl := range u.Claims {
			out = append(out, cl)
			r.step(Answered{ID: cl.ID, Accepted: true, Binding: r.c.nets[netUID("n1")].log.sent})
		}
	}
}

// tells is a frame of tap-p1's guest that says who has an address.
func (r *rig) tells(kind packet.Kind, src, ip string) {
	f := packet.Fact{Kind: kind, Src: mac(src), MAC: mac(src), IP: netip.MustParseAddr(ip)}
	if kind == packet.NeighborAdvert {
		f.Flags = packet.FlagLinkAddr | packet.FlagOverride
	}
	r.now++
	r.step(Heard{Port: 3, Fact: f, At: r.now})
}

// told lists the shared addresses in the claims that are to be sent now.
func (r *rig) told() string {
	var out []string
	for _, cl := range r.c.NextUp().Claims {
		out = append(out, fmt.Sprintf("%s %v as of %v", cl.MAC, cl.Addresses, cl.Heard))
	}
	return strings.Join(out, "; ")
}

func TestASharedAddressIsClaimedWhenItIsAnnounced(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind   packet.Kind
		ip     string
		claims bool
	}{
		{packet.ARPAnnouncement, vip4, true},
		{packet.NeighborAdvert, vip6, true},
		{packet.ARPRequest, vip4, false}, // it uses what another holds, and may be about to give it up
		{packet.ARPReply, vip4, false},
		{packet.NeighborSolicit, vip6, false},
		{packet.ARPAnnouncement, "10.0.0.1", false},  // its own
		{packet.ARPAnnouncement, "10.0.0.77", false}, // nobody's
	} {
		r := sharingRig(t)
		r.tells(c.kind, mac1, c.ip)
		want := ""
		if c.claims {
			want = fmt.Sprintf("%s [%s] as of %v", mac1, c.ip, overlay.Rev{Epoch: 1, N: r.rev})
		}
		if got := r.told(); got != want {
			t.Errorf("%v of %s: told %q, want %q", c.kind, c.ip, got, want)
		}
		r.tells(c.kind, mac1, c.ip) // again while the claim is under way
		if got := r.told(); got != "" {
			t.Errorf("%v of %s again: told %q, want nothing", c.kind, c.ip, got)
		}
	}
	// What nobody holds is taken by use.
	r := sharingRig(t)
	r.news("n1", "-at h2 p2 "+mac2+" 10.0.0.2,"+vip4+",fd00::2,"+vip6)
	r.tells(packet.ARPRequest, mac1, vip4)
	if got := r.told(); !strings.HasPrefix(got, mac1+" ["+vip4+"]") {
		t.Errorf("used, and nobody holds it: told %q, want it", got)
	}
}

// TestASharedAddressTurnsInTheTables: elsewhere it is a neighbour, here it is
// not, and guests of this host hear others announce it.
func TestASharedAddressTurnsInTheTables(t *testing.T) {
	t.Parallel()
	r := sharingRig(t)
	row := "neigh 10 " + vip4
	if s := r.dump(); !strings.Contains(s, row+" lladdr "+mac2) || strings.Contains(s, "own tap-p1 "+vip4) || !strings.Contains(s, "own tap-p1 10.0.0.1") {
		t.Fatalf("the kernel holds\n%s\nwant the other's address as a neighbour, and only p1's own as its own", s)
	}
	r.tells(packet.ARPAnnouncement, mac1, vip4)
	cl := r.c.NextUp().Claims[0]
	e := Items{Items: []Item{r.item("n1", "at h1 p1 "+mac1+" 10.0.0.1,"+vip4+",fd00::1"), r.item("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2,"+vip6)}}
	e.Items[1].Rev = e.Items[0].Rev
	r.sums["n1"].Sub(overlay.KeyOf(e.Items[1].Rec), overlay.Rev{Epoch: 1, N: r.rev})
	r.sums["n1"].Add(overlay.KeyOf(e.Items[1].Rec), e.Items[1].Rev)
	r.revs[overlay.KeyOf(e.Items[1].Rec)] = e.Items[1].Rev.N
	r.finish(&e, netUID("n1"), "n1", false)
	r.step(Answered{ID: cl.ID, Accepted: true, Binding: e.Items[0].Rev})
	r.step(e)
	if s := r.dump(); strings.Contains(s, row) || !strings.Contains(s, "neigh 10 "+vip6) {
		t.Errorf("the kernel holds\n%s\nwant no entry of %s, which is here, and one of %s", s, vip4, vip6)
	}
	r.tells(packet.ARPAnnouncement, mac1, vip4) // it has it
	if got := r.told(); got != "" {
		t.Errorf("told %q, want nothing: it holds it", got)
	}
}

// asks reports whether the guest was asked for an address since the last look.
func (r *rig) asks() bool { return strings.Contains(r.did(), "send") }

// TestOldAnnouncementsMoveNothing: what was announced before the address went
// to another counts no more; if it was only just, the guest is asked.
func TestOldAnnouncementsMoveNothing(t *testing.T) {
	t.Parallel()
	lose := func(r *rig) {
		r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2,"+vip6, "at h3 p3 02:00:00:00:00:03 "+vip4)
	}
	r := sharingRig(t)
	r.tells(packet.ARPAnnouncement, mac1, vip4)
	lose(r)
	if got := r.told(); got != "" {
		t.Errorf("told %q, want nothing: another has announced it since", got)
	}
	r.did()
	r.tick(doubtTime)
	if !r.asks() {
		t.Error("the guest announced it while it went to another, and was not asked whether it has it")
	}
	r.tells(packet.ARPReply, mac1, vip4)
	if got := r.told(); !strings.HasPrefix(got, mac1+" ["+vip4+"]") {
		t.Errorf("the guest answers that it has it: told %q, want it", got)
	}

	r = sharingRig(t) // one that says nothing, and one whose frame comes late
	lose(r)
	r.step(Heard{Port: 3, Fact: packet.Fact{Kind: packet.ARPAnnouncement, Src: mac(mac1), MAC: mac(mac1), IP: netip.MustParseAddr(vip4)}, At: r.now - 1})
	r.did()
	r.tick(second)
	if got := r.told(); got != "" || r.asks() {
		t.Errorf("a frame from before: told %q, want nothing, and no question", got)
	}

	// The manager has it otherwise: the guest is asked once.
	r = sharingRig(t)
	r.tells(packet.ARPAnnouncement, mac1, vip4)
	r.step(Answered{ID: r.c.NextUp().Claims[0].ID, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: r.rev}, Reason: vip4 + ": another announced it later"})
	r.did()
	r.tick(doubtTime)
	if !r.asks() {
		t.Error("the manager refused it, and the guest was not asked")
	}
	r.tick(second)
	r.tells(packet.ARPReply, mac1, vip4)
	if got := r.told(); got != "" || r.asks() {
		t.Errorf("an answer that comes after its time: told %q, want nothing", got)
	}
}

// TestAnnouncementsOutliveTheStream: what was announced while no manager was
// there is told when one is, with what was known then.
func TestAnnouncementsOutliveTheStream(t *testing.T) {
	t.Parallel()
	r := sharingRig(t)
	at := overlay.Rev{Epoch: 1, N: r.rev}
	r.step(Disconnected{})
	r.tells(packet.ARPAnnouncement, mac1, vip4)
	r.connect()
	if got, want := r.told(), fmt.Sprintf("%s [%s] as of %v", mac1, vip4, at); got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	r.connect() // the answer was lost
	if got := r.told(); !strings.HasPrefix(got, mac1+" ["+vip4+"]") {
		t.Errorf("told %q after another stream, want it again", got)
	}
}

// TestAnnouncementsAreBounded: two guests that fight for an address cost what a
// port may, and no more.
func TestAnnouncementsAreBounded(t *testing.T) {
	t.Parallel()
	r := sharingRig(t)
	claims := 0
	for range 200 { // ten seconds, every 50 ms
		r.now += 50 * millisecond
		r.tells(packet.ARPAnnouncement, mac1, vip4)
		for _, cl := range r.agree() {
			claims += len(cl.Addresses)
			r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1,"+vip4+",fd00::1")
			r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,"+vip4+",fd00::2,"+vip6)
		}
	}
	if most := int(10*second/shareEvery) + shareBurst + 1; claims > most || claims < most/2 || r.c.Stats().SharesDelayed == 0 {
		t.Errorf("%d claims of 200 announcements in ten seconds, %d of them delayed; want %d at most, and not far fewer", claims, r.c.Stats().SharesDelayed, most)
	}
}

// TestAVirtualMACIsWhereItsFramesComeFrom: heard, pinned, let through and
// claimed like the port's own; found again by an agent without memory; gone
// with the last address that the port shares.
func TestAVirtualMACIsWhereItsFramesComeFrom(t *testing.T) {
	t.Parallel()
	r := sharingRig(t)
	pinned, through := "master 10 "+vmac+" dev tap-p1 static,sticky", "own tap-p1 "+vmac
	r.tells(packet.Frame, vmac, vip4)
	r.tells(packet.ARPAnnouncement, vmac, vip4)
	if s := r.dump(); !strings.Contains(s, pinned) || !strings.Contains(s, through) || !strings.Contains(s, "port tap-p1 mac "+mac1+" open") {
		t.Fatalf("the kernel holds\n%s\nwant the virtual MAC pinned and let through", s)
	}
	u := r.c.NextUp()
	if len(u.Claims) != 1 || u.Claims[0].Port != portUID("p1") || u.Claims[0].MAC != mac(vmac) || !slices.Equal(u.Claims[0].Addresses, addresses(vip4)) {
		t.Fatalf("told %+v, want the virtual MAC behind p1 with the address", u.Claims)
	}
	r.accept(u.Claims[0].ID, "at h1 p1 "+vmac+" "+vip4)
	r.restart()
	r.fleet("n1 10")
	r.connect()
	r.log("n1", sharer, other, "at h1 p1 "+mac1+" 10.0.0.1,fd00::1", "at h1 p1 "+vmac+" "+vip4)
	r.settle()
	if s := r.dump(); !strings.Contains(s, pinned) || !strings.Contains(s, through) {
		t.Errorf("after a restart the kernel holds\n%s\nwant it still", s)
	}
	if !slices.ContainsFunc(r.agree(), func(cl Claim) bool { return cl.MAC == mac(vmac) && !cl.Leave }) {
		t.Error("after a restart it was not claimed")
	}
	// It is heard elsewhere, and then here again.
	r.news("n1", "at h2 p2 "+vmac+" "+vip4+" from=h1")
	if s := r.dump(); strings.Contains(s, pinned) || strings.Contains(s, through) || !strings.Contains(s, "neigh 10 "+vip4) {
		t.Errorf("elsewhere: the kernel holds\n%s\nwant it there", s)
	}
	r.tells(packet.Frame, vmac, vip4)
	if got := r.told(); !strings.HasPrefix(got, vmac) {
		t.Errorf("heard here again: told %q, want it claimed", got)
	}
	r.news("n1", "port p1 "+mac1+" ip=10.0.0.1,fd00::1")
	if s := r.dump(); strings.Contains(s, pinned) || strings.Contains(s, through) {
		t.Errorf("the port shares nothing any more, and the kernel holds\n%s", s)
	}
	r.tells(packet.Frame, "00:00:5e:00:01:08", vip4)
	if s := r.dump(); strings.Contains(s, "00:00:5e:00:01:08") {
		t.Errorf("of a port that shares nothing, the kernel holds\n%s", s)
	}
}

// TestWhoTakesOverIsNotWarned: duplicate address detection of an address that a
// port may take is not answered by its host in the name of who has it.
func TestWhoTakesOverIsNotWarned(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]bool{vip6: false, "fd00::2": true} {
		r := sharingRig(t)
		r.now++
		r.step(Heard{Port: 3, Fact: packet.Fact{Kind: packet.NeighborProbe, Src: mac(mac1), MAC: mac(mac1), Target: netip.MustParseAddr(target)}, At: r.now})
		if got := r.asks(); got != want {
			t.Errorf("probe for %s: answered is %t, want %t", target, got, want)
		}
	}
}
