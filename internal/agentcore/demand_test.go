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

// asks is a guest's question for an address behind a device; what the manager is
// told of it is returned.
func (s *teller) asks(src, from, target string) string {
	s.ask(src, from, target)
	return s.hear()
}

func (s *teller) ask(src, from, target string) {
	r := s.r
	r.now++
	f := packet.Fact{Kind: packet.ARPRequest, Src: mac(src), Dst: packet.Broadcast, MAC: mac(src), IP: netip.MustParseAddr(from), Target: netip.MustParseAddr(target)}
	if f.Target.Is6() {
		f.Kind, f.Dst = packet.NeighborSolicit, overlay.MAC{0x33, 0x33, 0xff, 0, 0, 1}
	}
	port := r.c.nets[netUID(s.net)].guests[mac(src)].tap.index
	r.m.Ask(port, f.Target) // what the kernel misses comes first here
	r.settle()
	r.step(Heard{Port: port, Fact: f, At: r.now})
}

// demanding is a rig whose host has p1 in an on-demand network of which p2 and
// p3 are on h2 and h3.
func demanding(t *testing.T, mode string) (*rig, *teller) {
	t.Helper()
	r := newRig(t)
	r.m.Clock = r.clock
	s := newTeller(r, "n1")
	r.fleet("n1 10 " + mode + " 10.0.0.0/24 fd00::/64")
	s.put("port p1 "+mac1+" ip=10.0.0.1", "port p2 "+mac2+" ip=10.0.0.2,fd00::2", "port p3 "+mac3+" ip=10.0.0.3",
		"at h2 p2 "+mac2+" 10.0.0.2,fd00::2", "at h3 p3 "+mac3+" 10.0.0.3")
	s.members = []string{"h2", "h3"}
	r.plug("n1", "p1")
	r.connect()
	t.Cleanup(func() {
		if got := r.c.Stats().SumWrong; got != 0 {
			t.Errorf("%d sums differed from the manager's", got)
		}
	})
	return r, s
}

// quiet brings one to rest, with its guest claimed.
func quiet(t *testing.T, mode string) (*rig, *teller) {
	t.Helper()
	r, s := demanding(t, mode)
	s.hear()
	e := r.item("n1", "at h1 p1 "+mac1+" 10.0.0.1")
	s.log[overlay.KeyOf(e.Rec)] = e
	r.step(Answered{ID: 1, Accepted: true, Binding: e.Rev})
	var it Items
	s.tell(&it, e)
	s.end(&it, false)
	r.step(it)
	s.hear()
	r.did()
	return r, s
}

func TestAnOnDemandNetworkIsServed(t *testing.T) {
	t.Parallel()
	r, s := demanding(t, "ondemand")
	if got, want := s.hear(), strings.Join([]string{
		"want n1 port p1", "add n1 from 0 on demand", "want n1 " + mac1, "ack 10", "claim 1 " + mac1 + " base 10 device", "inventory ends",
	}, "\n"); got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
	var lists []string
	for _, g := range []string{"01:00:5e:00:00:01", "33:33:00:00:00:01", "33:33:00:00:00:02", "ff:ff:ff:ff:ff:ff"} {
		lists = append(lists, "repl 10 "+g+" dst 192.0.2.202", "repl 10 "+g+" dst 192.0.2.203")
	}
	r.has(t, "at first", append(lists,
		"known 10 01:00:5e:00:00:01", "known 10 "+mac1, "known 10 02:63:75:6c:76:74", "known 10 33:33:00:00:00:01", "known 10 33:33:00:00:00:02", "known 10 ff:ff:ff:ff:ff:ff",
		"source 10 any via 192.0.2.202 strangers", "source 10 any via 192.0.2.203 strangers",
		"master 10 "+mac1+" dev tap-p1 static,sticky",
	)...)
	if !strings.Contains(r.dump(), "vxlan cvx10 vni 10 up mtu 1500 master cvb10 local 192.0.2.201 port 4789 df set dove true flood true") {
		t.Errorf("the device does not tell of misses:\n%s", r.dump())
	}
	if !strings.Contains(r.dump(), "port tap-p1 mac "+mac1+" open,demand") {
		t.Errorf("the port does not watch for what is not known:\n%s", r.dump())
	}
}

// has compares the rows of network 10.
func (r *rig) has(t *testing.T, when string, want ...string) {
	t.Helper()
	var got []string
	for _, l := range strings.Split(r.dump(), "\n") {
		if f := strings.Fields(l); len(f) > 1 && f[1] == "10" {
			got = append(got, l)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: the tables hold\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestWhoAsksIsAnswered: one want however many ask, and an answer as soon as the
// tables have what was asked for.
func TestWhoAsksIsAnswered(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, to, want string }{
		{"10.0.0.1", "10.0.0.2", "if3 arp-reply to " + mac1 + ": 10.0.0.2 at " + mac2},
		{"fd00::1", "fd00::2", "if3 neighbor-advert to " + mac1 + ": fd00::2 at " + mac2},
	} {
		r, s := quiet(t, "ondemand")
		r.m.Sent = nil
		s.mute = true
		if got, want := s.asks(mac1, c.from, c.to), "want n1 "+c.to+" for "+mac1; got != want {
			t.Errorf("told %q, want %q", got, want)
		}
		if got := s.asks(mac1, c.from, c.to); got != "" {
			t.Errorf("asked again while it is under way: told %q", got)
		}
		r.hold, s.mute = true, false
		s.answer()
		if got := r.sent(); got != nil {
			t.Errorf("answered before the tables have it: %q", got)
		}
		r.release()
		if got := r.sent(); !slices.Equal(got, []string{c.want}) {
			t.Errorf("answered %q, want %q", got, c.want)
		}
		if got, want := s.hear(), "want n1 "+mac2; got != want {
			t.Errorf("told\n%s\nwant\n%s", got, want)
		}
		if mac, ok := r.m.Ask(r.first, netip.MustParseAddr(c.to)); !ok || mac != mac2MAC() {
			t.Errorf("the kernel itself answers %v, %t", mac, ok)
		}
		if got := r.c.Stats(); got.Wants != 1 || got.Misses != 2 {
			t.Errorf("%d wants of %d misses, want 1 of 2", got.Wants, got.Misses)
		}
	}
}

func mac2MAC() overlay.MAC { return mac(mac2) }

// TestAGuestHereAnswersItself: nobody answers for it beside it.
func TestAGuestHereAnswersItself(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.put("-at h3 p3 " + mac3)
	r.plug("n1", "p3")
	s.hear()
	s.put("at h1 p3 " + mac3 + " 10.0.0.3")
	r.m.Sent = nil
	if got := s.asks(mac1, "10.0.0.1", "10.0.0.3"); strings.Contains(got, "want") || r.sent() != nil {
		t.Errorf("a question after a guest here: told %q, answered", got)
	}
}

// TestWhatNobodyHasIsKept: for longer each time, and only while it is asked for.
func TestWhatNobodyHasIsKept(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	if got, want := s.asks(mac1, "10.0.0.1", "10.0.0.77"), "want n1 10.0.0.77 for "+mac1; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	for range 50 {
		if got := s.asks(mac1, "10.0.0.1", "10.0.0.77"); got != "" {
			t.Fatalf("what nobody has is asked for again: %q", got)
		}
	}
	if got := r.c.Stats(); got.Wants != 1 || got.Negative < 50 {
		t.Errorf("%d wants, and %d questions for nobody", got.Wants, got.Negative)
	}
	var at []int
	for sec := range 40 {
		r.tick(second)
		if strings.Contains(s.hear(), "drop n1 10.0.0.77") {
			at = append(at, sec)
		}
		if sec == 5 { // it stands: who comes to have it is told of at once
			s.put("at h2 p2 " + mac2 + " 10.0.0.2,10.0.0.77")
			s.hear()
			if _, ok := r.m.Ask(r.first, netip.MustParseAddr("10.0.0.77")); !ok {
				t.Error("who came to have it is not in the tables")
			}
			s.put("at h2 p2 " + mac2 + " 10.0.0.2")
		}
	}
	if !slices.Equal(at, []int{9}) {
		t.Errorf("given up after %v seconds", at)
	}
}

// TestAskingIsBounded: a guest that scans costs no more than its share, and
// leaves others theirs.
func TestAskingIsBounded(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.put("-at h3 p3 " + mac3)
	r.plug("n1", "p3")
	s.hear()
	n := r.c.nets[netUID("n1")]
	s.mute = true
	said := 0
	for i := range 20_000 {
		r.now += millisecond / 10
		s.ask(mac1, "10.0.0.1", fmt.Sprintf("10.0.0.%d", 100+i%100))
		n.rec.Subnets[0].Prefix = netip.MustParsePrefix("10.0.0.0/8")
		f := packet.Fact{Kind: packet.ARPRequest, Src: mac(mac1), MAC: mac(mac1), IP: netip.MustParseAddr("10.0.0.1"), Target: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
		r.c.Step(r.now, Heard{Port: 3, Fact: f, At: r.now})
		said += strings.Count(s.hear(), "want")
	}
	if said > 256+256 || said < 100 { // of the device, and of misses that name none
		t.Errorf("%d wants of 2 s of scanning, want at most those of one device", said)
	}
	if st := r.c.Stats(); st.WantsRefused < 19_000 {
		t.Errorf("%d wants were refused", st.WantsRefused)
	}
	if got := len(n.waiting); got > maxWaiting {
		t.Errorf("%d addresses are waited for", got)
	}
	if got := s.asks(mac3, "10.0.0.3", "10.0.0.2"); got != "want n1 10.0.0.2 for "+mac3 {
		t.Errorf("another guest's question meanwhile: told %q", got)
	}
	// When it ends nothing is left of it.
	s.mute = false
	s.answer()
	for range 70 {
		r.tick(second)
		s.hear()
	}
	if n.asking != 0 || len(n.openOf) != 0 {
		t.Errorf("%d wants of %v are left", n.asking, n.openOf)
	}
}

// TestMissesAreWanted: but not those of what is known, or nobody's.
func TestMissesAreWanted(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	miss := func(m string, ip string) string {
		x := hoststate.Miss{VNI: 10}
		if m != "" {
			x.MAC = mac(m)
		} else {
			x.IP = netip.MustParseAddr(ip)
		}
		r.step(Missed{x})
		return s.hear()
	}
	if got, want := miss(mac3, ""), "want n1 "+mac3; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	if ways := r.m.Frame(r.first, mac(mac3), netip.Addr{}); len(ways) != 1 || ways[0].VTEP != netip.MustParseAddr("192.0.2.203") {
		t.Errorf("a frame to it goes to %v", ways)
	}
	for _, x := range [][2]string{{mac3, ""}, {mac1, ""}, {"01:00:5e:00:00:09", ""}, {"", "10.0.0.3"}, {"", "10.0.0.1"}, {"", "192.0.2.1"}, {"", "224.0.0.1"}} {
		if got := miss(x[0], x[1]); got != "" {
			t.Errorf("missed %v: told %q", x, got)
		}
	}
	if got, want := miss("", "10.0.0.2"), "want n1 10.0.0.2\nwant n1 "+mac2; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	if got := r.c.Stats().Misses; got != 9 {
		t.Errorf("%d misses counted, want 9", got)
	}
}

// TestWhatIsNotUsedIsGivenUp: by what the kernel says of its entries.
func TestWhatIsNotUsedIsGivenUp(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.asks(mac1, "10.0.0.1", "10.0.0.2")
	s.asks(mac1, "10.0.0.1", "10.0.0.3")
	before := r.dump()
	var gone []string
	for range 400 {
		r.tick(second)
		r.m.Frame(r.first, mac(mac2), netip.Addr{}) // this one is
		if got := s.hear(); strings.Contains(got, "drop") {
			gone = append(gone, got)
		}
	}
	if want := []string{"drop n1 " + mac3 + "\ndrop n1 10.0.0.3"}; !slices.Equal(gone, want) {
		t.Errorf("given up %q, want %q", gone, want)
	}
	if after := r.dump(); strings.Contains(after, mac3) || !strings.Contains(after, "fdb 10 "+mac2) || !strings.Contains(before, "known 10 "+mac3) {
		t.Errorf("the kernel holds\n%s\nand held\n%s", after, before)
	}
	if n := r.c.nets[netUID("n1")]; n.eps[mac(mac3)] != nil || n.ports[portUID("p3")] != nil || len(n.owner) != 3 {
		t.Errorf("of what was given up there is left: %v, %v, %v", n.eps[mac(mac3)], n.ports[portUID("p3")], n.owner)
	}
	if got := r.c.Stats().Dropped; got != 2 {
		t.Errorf("%d wants dropped, want 2", got)
	}
	if got := s.asks(mac1, "10.0.0.1", "10.0.0.3"); !strings.Contains(got, "want n1 10.0.0.3 for "+mac1) || !strings.Contains(r.dump(), "neigh 10 10.0.0.3") {
		t.Errorf("asked for again: told %q", got)
	}
}

// TestWhatIsWantedAgainWhileItIsGivenUp stays.
func TestWhatIsWantedAgainWhileItIsGivenUp(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.asks(mac1, "10.0.0.1", "10.0.0.2")
	s.mute = true
	var said string
	for range 400 {
		if r.tick(second); said == "" {
			said = s.hear()
		}
	}
	if !strings.Contains(said, "drop n1 10.0.0.2") {
		t.Fatalf("nothing was given up: %q", said)
	}
	s.asks(mac1, "10.0.0.1", "10.0.0.2") // known, and on its way out
	s.mute = false
	s.answer()
	s.hear()
	r.m.Sent = nil
	s.asks(mac1, "10.0.0.1", "10.0.0.2")
	if _, ok := r.m.Ask(r.first, netip.MustParseAddr("10.0.0.2")); !ok {
		t.Errorf("the kernel holds\n%s", r.dump())
	}
}
