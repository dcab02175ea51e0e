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

// requests is a guest's question for an address; the searches that come of it
// are returned.
func (r *rig) requests(src, from, target string) (out []string) {
	r.now++
	f := packet.Fact{Kind: packet.ARPRequest, Src: mac(src), MAC: mac(src), IP: netip.MustParseAddr(from), Target: netip.MustParseAddr(target)}
	if f.Target.Is6() {
		f.Kind = packet.NeighborSolicit
	}
	r.step(Heard{Port: 3, Fact: f, At: r.now})
	for _, s := range r.c.NextUp().Seeks {
		out = append(out, s.Address.String())
	}
	return out
}

// seeking is a rig with a learned guest behind if3, in a network with subnets.
func seeking(t *testing.T, mode string) *rig {
	t.Helper()
	r := newRig(t)
	r.fleet("n1 10 " + mode + " tells 10.0.0.0/8 fd00::/64")
	r.m.Plug("tap-x", 10, "")
	r.settle()
	r.connect()
	r.log("n1", "port p2 "+mac2, "at h2 p2 "+mac2+" 10.0.0.2,fd00::2")
	r.ups()
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.9")
	u := r.c.NextUp()
	if mode == "learn" {
		r.accept(u.Claims[0].ID, "at h1 - "+mac1+" 10.0.0.9")
	}
	r.ups()
	return r
}

func TestWhatNobodyHasIsSearched(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode, target string
		want         bool
	}{
		{"learn", "10.0.0.77", true},
		{"learn", "fd00::77", true},
		{"learn", "fe80::77", true},
		{"learn", "10.0.0.2", false}, // another's
		{"learn", "10.0.0.9", false}, // a guest's here
		{"learn", "10.0.0.1", false}, // the gateway's
		{"learn", "192.0.2.7", false},
		{"dhcp", "10.0.0.77", false},
		{"", "10.0.0.77", false},
	} {
		r := seeking(t, c.mode)
		if got := len(r.requests(mac1, "10.0.0.9", c.target)) > 0; got != c.want {
			t.Errorf("%q: %s searched %t, want %t", c.mode, c.target, got, c.want)
		}
	}
	// Not again before ten seconds, then twice that, up to a minute.
	r := seeking(t, "learn")
	var at []int
	for sec := range 200 {
		if len(r.requests(mac1, "10.0.0.9", "10.0.0.77")) > 0 {
			at = append(at, sec)
		}
		r.tick(second)
	}
	if fmt.Sprint(at) != "[0 10 30 70 130 190]" {
		t.Errorf("searched after %v seconds", at)
	}
	// What asks without a stream finds nobody to tell, and is not remembered.
	r = seeking(t, "learn")
	r.step(Disconnected{})
	r.requests(mac1, "10.0.0.9", "10.0.0.77")
	r.connect()
	if got := r.requests(mac1, "10.0.0.9", "10.0.0.77"); len(got) != 1 {
		t.Errorf("searched %v after the stream came back, want the address", got)
	}
}

// TestAScanIsFewSearches: a guest asks for every address of a /16 within 100
// seconds; the manager is told of a bounded number.
func TestAScanIsFewSearches(t *testing.T) {
	t.Parallel()
	r := seeking(t, "learn")
	n := 0
	for i := range 1 << 16 {
		r.now += 100 * second / (1 << 16)
		n += len(r.requests(mac1, "10.0.0.9", netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}).String()))
	}
	if most := int(100*second/seekEvery) + seekBurst + 1; n == 0 || n > most {
		t.Errorf("%d searches within 100 s, want at most %d", n, most)
	}
	if n := len(r.c.net(netUID("n1")).sought); n > maxSought {
		t.Errorf("%d addresses are remembered, want at most %d", n, maxSought)
	}
	if got := r.requests(mac1, "10.0.0.9", "10.0.0.2"); len(got) != 0 {
		t.Errorf("searched %v, which is known", got)
	}
}

func TestUndeclaredGuestsAreAsked(t *testing.T) {
	t.Parallel()
	r := seeking(t, "learn")
	r.m.Plug("tap-y", 10, "")                                    // nobody is known behind it
	r.m.Plug("tap-p2", 10, hoststate.PortAlias("default", "p2")) // declared
	r.settle()
	r.ups()
	for a, want := range map[string]string{
		"10.0.0.77": "arp-probe 10.0.0.77",
		"fd00::77":  "neighbor-solicit fd00::77",
	} {
		r.m.Sent = nil
		r.step(Ask{Network: netUID("n1"), Address: netip.MustParseAddr(a)})
		var got []string
		for _, o := range r.m.Sent {
			l, _ := r.m.LinkAt(o.Index)
			f, d := packet.Parse(packet.ToGuest, []byte(o.Frame), len(o.Frame))
			if d != packet.Taken || !o.Past || f.Src != overlay.ServerMAC {
				t.Errorf("sent %v past the port %t: %v", f, o.Past, d)
			}
			got = append(got, fmt.Sprintf("%s %v %v", l.Name, f.Kind, f.Target))
		}
		slices.Sort(got)
		if g, w := strings.Join(got, "\n"), "tap-x "+want+"\ntap-y "+want; g != w {
			t.Errorf("asked\n%s\nwant\n%s", g, w)
		}
	}
	if u := r.c.NextUp(); len(u.Findings) != 0 {
		t.Errorf("told %+v, want nothing: who answers is heard", u.Findings)
	}
}

func TestAGuestIsAskedForItsAddress(t *testing.T) {
	t.Parallel()
	question := Ask{ID: 7, Network: netUID("n1"), MAC: mac(mac1), Address: netip.MustParseAddr("10.0.0.9"), Within: second}
	found := func(r *rig) string {
		s := ""
		for _, f := range r.c.NextUp().Findings {
			s += fmt.Sprintf("%d answered %t unable %t", f.ID, f.Answered, f.Unable)
		}
		return s
	}
	r := seeking(t, "learn")
	r.m.Sent = nil
	r.step(question)
	if s := found(r); s != "" || len(r.m.Sent) != 1 {
		t.Errorf("said %q at once, and asked %d times", s, len(r.m.Sent))
	}
	r.hears(packet.ARPReply, mac1, "10.0.0.8") // of another address
	r.hears(packet.ARPReply, mac3, "10.0.0.9") // of another guest
	if s := found(r); s != "" {
		t.Errorf("said %q for what is no answer", s)
	}
	r.hears(packet.ARPReply, mac1, "10.0.0.9")
	if s := found(r); s != "7 answered true unable false" {
		t.Errorf("said %q", s)
	}
	r.step(question)
	r.m.Sent = nil
	for range 10 {
		r.tick(second / 10)
	}
	if s := found(r); s != "7 answered false unable false" || len(r.m.Sent) != 3 {
		t.Errorf("said %q after %d more questions, want no answer after 3", s, len(r.m.Sent))
	}
	for range maxQuestions {
		r.step(question)
	}
	r.step(question)
	if s := found(r); s != "7 answered false unable true" {
		t.Errorf("said %q of one question too many", s)
	}
	r.connect() // of a former session: nobody waits for it
	r.tick(2 * second)
	if s := found(r); s != "" {
		t.Errorf("said %q in another session", s)
	}
	r.m.Unplug("tap-x")
	r.settle()
	r.step(question)
	if s := found(r); s != "7 answered false unable false" {
		t.Errorf("said %q of a guest whose device is gone", s)
	}
	question.Network = netUID("n9")
	r.step(question)
	if s := found(r); s != "7 answered false unable true" {
		t.Errorf("said %q of a network that is not known", s)
	}
}

// TestADoubledMACIsShutOut: whose MAC another has, who answers, passes nothing,
// and is claimed again on a sign of life after a while; or at once if the other
// is gone.
func TestADoubledMACIsShutOut(t *testing.T) {
	t.Parallel()
	r := seeking(t, "learn")
	r.news("n1", "at h3 - "+mac3+" 10.0.0.8")
	refuse := func() {
		t.Helper()
		u := r.c.NextUp()
		if len(u.Claims) != 1 || u.Claims[0].MAC != mac(mac3) {
			t.Fatalf("told %+v, want a claim", u)
		}
		r.step(Answered{ID: u.Claims[0].ID, Binding: u.Claims[0].Base, Reason: "it is on h3, and answers there", Disputed: true})
		if s := r.dump(); strings.Contains(s, "own tap-x 10.0.0.8") || !strings.Contains(s, "fdb 10 "+mac3+" dst 192.0.2.203") {
			t.Errorf("the kernel holds\n%s\nwant the other reached, and nothing of this one let through", s)
		}
	}
	r.hears(packet.ARPAnnouncement, mac3, "10.0.0.8")
	refuse()
	if p := r.c.Problems(); len(p) != 1 || !strings.Contains(p[0], "CV0209 "+mac3+" in default/n1 on tap-x passes nothing: it is on h3") {
		t.Errorf("problems %q", p)
	}
	for _, wait := range []Time{5, 10, 20, 40, 60, 60} {
		r.tick(wait*second - millisecond)
		r.hears(packet.ARPAnnouncement, mac3, "10.0.0.8")
		if u := r.c.NextUp(); len(u.Claims) != 0 {
			t.Fatalf("claimed again before %d s", wait)
		}
		r.tick(millisecond)
		r.hears(packet.ARPAnnouncement, mac3, "10.0.0.8")
		refuse()
	}
	r.news("n1", "-at h3 - "+mac3+" 10.0.0.8")
	u := r.c.NextUp()
	if len(u.Claims) != 1 {
		t.Fatal("not claimed at once when the other is gone")
	}
	r.accept(u.Claims[0].ID, "at h1 - "+mac3+" 10.0.0.8")
	if s := r.dump(); !strings.Contains(s, "own tap-x 10.0.0.8") || len(r.c.Problems()) != 0 {
		t.Errorf("the kernel holds\n%s\nproblems %v: want the guest let through", s, r.c.Problems())
	}
	r.tick(100 * second) // every table was read meanwhile
	if n := r.c.Stats().Repairs; n != 0 {
		t.Errorf("%d repairs, want none: nobody else wrote", n)
	}
}

// TestARefusedAddressIsRefusedAlone: what the manager refuses of a guest's
// addresses it does not use, is shown, and is claimed again by itself.
func TestARefusedAddressIsRefusedAlone(t *testing.T) {
	t.Parallel()
	r := seeking(t, "learn")
	r.news("n1", "at h3 - "+mac3+" 10.0.0.8")
	r.hears(packet.ARPAnnouncement, mac1, "10.0.0.8")
	refuse := func() {
		t.Helper()
		u := r.c.NextUp()
		if len(u.Claims) != 1 || len(u.Claims[0].Addresses) != 2 {
			t.Fatalf("told %+v, want a claim with both addresses", u)
		}
		r.step(Answered{ID: u.Claims[0].ID, Accepted: true, Binding: u.Claims[0].Base, Refused: []overlay.AddressRefusal{{Address: netip.MustParseAddr("10.0.0.8"), Reason: "it is another's"}}})
	}
	refuse()
	r.news("n1", "at h1 - "+mac1+" 10.0.0.9")
	if s := r.dump(); strings.Contains(s, "own tap-x 10.0.0.8") || !strings.Contains(s, "own tap-x 10.0.0.9") || !strings.Contains(s, "check_ip") {
		t.Errorf("the kernel holds\n%s\nwant the guest's other address alone let through", s)
	}
	r.denies("refused", "tap-x "+mac1+" 10.0.0.8: it is another's")
	for range 3 {
		r.tick(recheck - millisecond)
		if u := r.c.NextUp(); len(u.Claims) != 0 {
			t.Fatal("claimed again too early")
		}
		r.tick(millisecond)
		refuse()
	}
	r.news("n1", "at h3 - "+mac3+" 10.0.0.7") // it has another now
	u := r.c.NextUp()
	if len(u.Claims) != 1 {
		t.Fatal("not claimed at once when nobody has it any more")
	}
	r.accept(u.Claims[0].ID, "at h1 - "+mac1+" 10.0.0.8,10.0.0.9")
	if s := r.dump(); !strings.Contains(s, "own tap-x 10.0.0.8") || strings.Contains(s, "check_ip") || len(r.c.Problems()) != 0 {
		t.Errorf("the kernel holds\n%s\nproblems %v: want both addresses let through", s, r.c.Problems())
	}
	// It is taken from it, because it did not answer: why, the manager says.
	r.news("n1", "at h1 - "+mac1+" 10.0.0.9", "at h3 - "+mac3+" 10.0.0.8")
	refuse()
	r.denies("taken", "tap-x "+mac1+" 10.0.0.8: it is another's")
	r.m.Unplug("tap-x")
	r.settle()
	if p := r.c.Problems(); len(p) != 0 {
		t.Errorf("problems %v of a guest that is gone", p)
	}
}
