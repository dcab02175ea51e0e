package agentcore

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// told is a rig whose host has p1 in a network whose hosts tell its guests, and
// h2 has p2.
func told(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.fleet("n1 10 tells 10.0.0.0/24 fd00::/64")
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1+" ip=10.0.0.5,10.0.0.6,fd00::5", "port p2 "+mac2+" ip=10.0.0.2,fd00::2", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2")
	r.ups()
	r.m.Sent = nil
	r.tick(second) // the bucket that the first advertisement took from is full again
	return r
}

// speaks is a frame of the guest behind the first device; the answers are returned.
func (r *rig) speaks(frame []byte) []string {
	r.tb.Helper()
	r.utters(frame)
	return r.sent()
}

// utters is a frame of the guest behind the first device, read as the driver reads it.
func (r *rig) utters(frame []byte) {
	r.tb.Helper()
	r.m.Sent = nil
	r.now++
	e := Heard{Port: r.first, At: r.now}
	var d packet.Drop
	if e.Fact, d = packet.Parse(packet.FromGuest, frame, len(frame)); d != packet.Taken {
		r.tb.Fatalf("the frame is refused: %v", d)
	}
	if m, d := packet.ReadDHCP4(packet.FromGuest, frame, len(frame)); d == packet.Taken {
		e.DHCP4 = &m
	}
	if m, d := packet.ReadDHCP6(packet.FromGuest, frame, len(frame)); d == packet.Taken {
		e.DHCP6 = &m
	}
	if f, d := packet.ReadForward(frame, len(frame)); d == packet.Taken {
		e.Forward = &f
	}
	r.step(e)
}

// sent is what was sent out of ports since the last look.
func (r *rig) sent() (out []string) {
	for _, o := range r.m.Sent {
		f, d := packet.Parse(packet.ToGuest, []byte(o.Frame), len(o.Frame))
		if d != packet.Taken {
			r.tb.Errorf("a frame that no guest takes (%v): % x", d, o.Frame)
		}
		s := fmt.Sprintf("if%d %v to %s:", o.Index, f.Kind, f.Dst)
		if f.Kind != packet.RouterAdvert {
			s += " " + f.IP.String()
		}
		if f.Src != overlay.ServerMAC {
			s += " at " + f.Src.String()
		}
		if f.Server.IsValid() {
			s += " from " + f.Server.String()
		}
		out = append(out, s)
	}
	r.m.Sent = nil
	return out
}

func ask4(typ uint8, has string, options ...byte) []byte {
	b := make([]byte, packet.DHCPFixed4)
	b[0], b[1], b[2] = 1, 1, 6
	if has != "" {
		copy(b[12:], netip.MustParseAddr(has).AsSlice())
	}
	m := mac(mac1)
	copy(b[28:], m[:])
	binary.BigEndian.PutUint32(b[236:], packet.DHCPMagic4)
	b = append(append(append(b, 53, 1, typ), options...), 255)
	from := netip.MustParseAddrPort("0.0.0.0:68")
	return packet.UDP(packet.Broadcast, m, from, netip.MustParseAddrPort("255.255.255.255:67"), b)
}

func ask6(typ uint8, named string, server bool) []byte {
	b := []byte{typ, 1, 2, 3, 0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 1}
	if server {
		b = append(append(b, 0, 2, 0, 10, 0, 3, 0, 1), overlay.ServerMAC[:]...)
	}
	ia := []byte{0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0}
	if named != "" {
		ia = append(append(append(ia, 0, 5, 0, 24), netip.MustParseAddr(named).AsSlice()...), make([]byte, 8)...)
	}
	b = append(append(b, 0, 3, 0, byte(len(ia))), ia...)
	return packet.UDP(packet.Broadcast, mac(mac1), netip.AddrPortFrom(overlay.EUI64LinkLocal(mac(mac1)), 546), netip.MustParseAddrPort("[ff02::1:2]:547"), b)
}

func TestAGuestIsAnswered(t *testing.T) {
	t.Parallel()
	ip := netip.MustParseAddr
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	own := overlay.EUI64LinkLocal(mac(mac1))
	all := "33:33:00:00:00:01"
	rs := packet.ICMPv6(packet.Broadcast, mac(mac1), any6, netip.IPv6LinkLocalAllRouters(), 255, []byte{133, 0, 0, 0, 0, 0, 0, 0})
	rsOwn := packet.ICMPv6(packet.Broadcast, mac(mac1), own, netip.IPv6LinkLocalAllRouters(), 255, []byte{133, 0, 0, 0, 0, 0, 0, 0})
	for _, c := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"discover", ask4(packet.Discover4, ""), "if3 dhcp-offer to " + mac1 + ": 10.0.0.5 from 10.0.0.1"},
		{"discover with another of its own", ask4(packet.Discover4, "", 50, 4, 10, 0, 0, 6), "if3 dhcp-offer to " + mac1 + ": 10.0.0.6 from 10.0.0.1"},
		{"discover with another's", ask4(packet.Discover4, "", 50, 4, 10, 0, 0, 2), "if3 dhcp-offer to " + mac1 + ": 10.0.0.5 from 10.0.0.1"},
		{"request", ask4(packet.Request4, "", 50, 4, 10, 0, 0, 5, 54, 4, 10, 0, 0, 1), "if3 dhcp-ack to " + mac1 + ": 10.0.0.5 from 10.0.0.1"},
		{"renewal", ask4(packet.Request4, "10.0.0.6"), "if3 dhcp-ack to " + mac1 + ": 10.0.0.6 from 10.0.0.1"},
		{"request of another's", ask4(packet.Request4, "", 50, 4, 10, 0, 0, 2), "if3 dhcp-nak to ff:ff:ff:ff:ff:ff: invalid IP from 10.0.0.1"},
		{"inform", ask4(packet.Inform4, "10.0.0.5"), "if3 dhcp-ack to " + mac1 + ": invalid IP from 10.0.0.1"},
		{"solicit", ask6(packet.Solicit6, "", false), "if3 dhcp6-advertise to " + mac1 + ": fd00::5"},
		{"request, v6", ask6(packet.Request6, "fd00::5", true), "if3 dhcp6-reply to " + mac1 + ": fd00::5"},
		{"router solicitation", rs, "if3 router-advert to " + all + ":"},
		{"router solicitation with an address", rsOwn, "if3 router-advert to " + mac1 + ":"},
		{"who is the gateway", packet.AskARP(packet.Broadcast, mac(mac1), ip("10.0.0.5"), ip("10.0.0.1")), "if3 arp-reply to " + mac1 + ": 10.0.0.1"},
		{"may I be the gateway", packet.AskARP(packet.Broadcast, mac(mac1), any4, ip("10.0.0.1")), "if3 arp-reply to " + mac1 + ": 10.0.0.1"},
		{"who is the gateway, v6", packet.AskND(packet.Broadcast, mac(mac1), own, ip("fd00::1")), "if3 neighbor-advert to " + mac1 + ": fd00::1"},
		{"may I be the gateway, v6", packet.AskND(packet.Broadcast, mac(mac1), any6, ip("fd00::1")), "if3 neighbor-advert to " + all + ": fd00::1"},
		{"who is the server, v6", packet.AskND(packet.Broadcast, mac(mac1), own, serverIP6), "if3 neighbor-advert to " + mac1 + ": " + serverIP6.String()},
		{"may I be p2", packet.AskND(packet.Broadcast, mac(mac1), any6, ip("fd00::2")), "if3 neighbor-advert to " + all + ": fd00::2 at " + mac2},
		{"may I be myself", packet.AskND(packet.Broadcast, mac(mac1), any6, ip("fd00::5")), ""},
		{"may I be nobody", packet.AskND(packet.Broadcast, mac(mac1), any6, ip("fd00::77")), ""},
		{"who is p2: the proxy says it", packet.AskND(packet.Broadcast, mac(mac1), own, ip("fd00::2")), ""},
		{"who is p2, v4: the proxy says it", packet.AskARP(packet.Broadcast, mac(mac1), ip("10.0.0.5"), ip("10.0.0.2")), ""},
		{"I am the gateway", packet.Announce(packet.Announcement{IP: ip("10.0.0.1"), MAC: mac(mac1)}), ""},
	} {
		r := told(t)
		if got := strings.Join(r.speaks(c.frame), "\n"); got != c.want {
			t.Errorf("%s: answered\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

// A guest is given all IPv6 addresses that are its port's alone, of all subnets
// of its link, also when it names one already.
func TestAllIPv6AddressesAreGiven(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10 tells 10.0.0.0/24 fd00::/64 fd00:2::/64")
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1+" ip=10.0.0.5,fd00::5,fd00::6,fd00:2::5,fd00:9::5 share=fd00::9")
	r.ups()
	r.tick(second)
	for _, frame := range [][]byte{ask6(packet.Solicit6, "", false), ask6(packet.Request6, "fd00::6", true), ask6(packet.Renew6, "fd00:2::5", true)} {
		r.m.Sent, r.now = nil, r.now+second
		m, d := packet.ReadDHCP6(packet.FromGuest, frame, len(frame))
		if d != packet.Taken {
			t.Fatal(d)
		}
		e := Heard{Port: 3, At: r.now, DHCP6: &m}
		e.Fact, _ = packet.Parse(packet.FromGuest, frame, len(frame))
		r.step(e)
		if len(r.m.Sent) != 1 {
			t.Fatalf("%d answers", len(r.m.Sent))
		}
		a, d := packet.ReadDHCP6(packet.ToGuest, []byte(r.m.Sent[0].Frame), len(r.m.Sent[0].Frame))
		var got []string
		for _, l := range a.Leases[:a.NLease] {
			got = append(got, l.IP.String())
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); d != packet.Taken || a.NIA != 1 || s != "fd00:2::5 fd00::5 fd00::6" {
			t.Errorf("%v: given %s in %d associations, %v", e.Fact.Kind, s, a.NIA, d)
		}
	}
}

// TestTheAnswersSayWhatTheNetworkSays: options of an offer and of an
// advertisement.
func TestTheAnswersSayWhatTheNetworkSays(t *testing.T) {
	t.Parallel()
	r := told(t)
	r.speaks(ask4(packet.Discover4, ""))
	r.news("", "network n1 10 tells 10.0.0.0/24 fd00::/64") // as it was: nothing to say
	if got := r.sent(); len(got) != 0 {
		t.Errorf("told %v of a change that is none", got)
	}
	r.step(Heard{}) // of no device
	frames := map[string]string{}
	for name, f := range map[string][]byte{"offer": ask4(packet.Discover4, ""), "solicitation": packet.ICMPv6(packet.Broadcast, mac(mac1), netip.IPv6Unspecified(), netip.IPv6LinkLocalAllRouters(), 255, []byte{133, 0, 0, 0, 0, 0, 0, 0})} {
		r.now += second
		e := Heard{Port: r.first, At: r.now}
		e.Fact, _ = packet.Parse(packet.FromGuest, f, len(f))
		if m, d := packet.ReadDHCP4(packet.FromGuest, f, len(f)); d == packet.Taken {
			e.DHCP4 = &m
		}
		r.step(e)
		if len(r.m.Sent) != 1 {
			t.Fatalf("%s: %d answers", name, len(r.m.Sent))
		}
		frames[name] = r.m.Sent[0].Frame
		r.m.Sent = nil
	}
	for what, want := range map[string]string{
		"lease":       "\x33\x04\x00\x00\x0e\x10",
		"mask":        "\x01\x04\xff\xff\xff\x00",
		"MTU":         "\x1a\x02\x05\xaa",
		"name server": "\x06\x04\x0a\x00\x00\x35",
		"routes":      "\x79\x07\x10\x0a\x09\x0a\x00\x00\x09",
	} {
		if !strings.Contains(frames["offer"], want) {
			t.Errorf("the offer lacks the %s: % x", what, frames["offer"])
		}
	}
	if strings.Contains(frames["offer"], "\x03\x04\x0a\x00\x00\x01") {
		t.Errorf("the offer names the gateway as a router, and nothing routes: % x", frames["offer"])
	}
	ra := frames["solicitation"]
	if ra[14+40+5] != 0xc0 || ra[14+40+6] != 0 || ra[14+40+7] != 0 {
		t.Errorf("flags and router lifetime are % x, want managed, other, 0", ra[14+40+5:14+40+8])
	}
	for what, want := range map[string]string{
		"MTU":         "\x05\x01\x00\x00\x00\x00\x05\xaa",
		"prefix":      "\x03\x04\x40\x80", // on link, not for addresses of one's own making
		"name server": "\x19\x03\x00\x00\x00\x00\x03\x84\xfd",
	} {
		if !strings.Contains(ra, want) {
			t.Errorf("the advertisement lacks the %s: % x", what, ra)
		}
	}
}

func TestWhoIsNotAnswered(t *testing.T) {
	t.Parallel()
	discover := ask4(packet.Discover4, "")
	for name, prepare := range map[string]func(r *rig){
		"servers of the network's own": func(r *rig) { r.news("", "network n1 10 10.0.0.0/24 fd00::/64") },
		"a network that goes":          func(r *rig) { r.news("", "network n1 10 tells blocked 10.0.0.0/24 fd00::/64") },
		"a port without an address":    func(r *rig) { r.news("n1", "port p1 "+mac1) },
		"a port that went":             func(r *rig) { r.news("n1", "-port p1 "+mac1+" ip=10.0.0.5") },
		"a guest that moved away": func(r *rig) {
			r.now += second
			r.news("n1", "at h2 p1 "+mac1+" 10.0.0.5")
			r.now -= 2 * second // and its last frame comes late
		},
		"a network without subnets": func(r *rig) { r.news("", "network n1 10 tells") },
	} {
		r := told(t)
		prepare(r)
		if got := r.speaks(discover); len(got) != 0 {
			t.Errorf("%s: answered %v", name, got)
		}
	}
	r := told(t)
	f, _ := packet.Parse(packet.FromGuest, discover, len(discover))
	m, _ := packet.ReadDHCP4(packet.FromGuest, discover, len(discover))
	f.Src = mac(mac3)
	r.step(Heard{Port: 3, At: r.now, Fact: f, DHCP4: &m})
	f.Src = mac(mac1)
	r.step(Heard{Port: 3, At: r.now, Fact: f, DHCP4: &m, ToGuest: true})
	if got := r.sent(); len(got) != 0 {
		t.Errorf("answered %v to another MAC or to a server", got)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	r := told(t)
	n := 0
	for range 1000 {
		n += len(r.speaks(ask4(packet.Discover4, "")))
	}
	if n != answerBurst || r.c.Stats().Unanswered != 1000-answerBurst {
		t.Errorf("%d of 1000 at once are answered and %d counted as one too many, want %d and the rest", n, r.c.Stats().Unanswered, answerBurst)
	}
	r.tick(second)
	n = 0
	for range 1000 {
		n += len(r.speaks(ask4(packet.Discover4, "")))
	}
	if n != int(second/answerEvery) {
		t.Errorf("%d are answered a second later, want %d", n, second/answerEvery)
	}
}

func TestUnsolicitedAdvertisements(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10 tells 10.0.0.0/24 fd00::/64")
	r.plug("n1", "p1")
	r.log("n1", "port p1 "+mac1+" ip=10.0.0.5,fd00::5")
	const ra = "if3 router-advert to 33:33:00:00:00:01:"
	if got := strings.Join(r.sent(), "\n"); got != ra {
		t.Errorf("a port that opens is told\n%s\nwant\n%s", got, ra)
	}
	if did := r.did(); strings.Index(did, "send") < strings.Index(did, "set member if3") {
		t.Errorf("operations are\n%s\nwant the advertisement after the port is open", did)
	}
	r.tick(advertEvery - 1)
	if got := r.sent(); len(got) != 0 {
		t.Errorf("told %v before it is due", got)
	}
	for range 3 {
		r.tick(advertEvery)
		if got := strings.Join(r.sent(), "\n"); got != ra {
			t.Errorf("told\n%s\nwant one advertisement", got)
		}
	}
	r.news("", "network n1 10 tells 10.0.0.0/24 fd00::/64 fd01::/64")
	if got := strings.Join(r.sent(), "\n"); got != ra {
		t.Errorf("a change of the subnets is told\n%s\nwant\n%s", got, ra)
	}
	r.news("", "network n1 10 10.0.0.0/24 fd00::/64")
	r.tick(2 * advertEvery)
	if got := r.sent(); len(got) != 0 {
		t.Errorf("told %v though the network has servers of its own", got)
	}
	r.news("", "network n1 10 tells 10.0.0.0/24 fd00::/64")
	if got := strings.Join(r.sent(), "\n"); got != ra {
		t.Errorf("told\n%s\nwant\n%s", got, ra)
	}
	r.unplug("p1")
	r.tick(2 * advertEvery)
	if got := r.sent(); len(got) != 0 || len(r.c.adverts) > 1 {
		t.Errorf("told %v though nobody is there; %d are waiting", got, len(r.c.adverts))
	}
}

func TestForeignServersAreBlocked(t *testing.T) {
	t.Parallel()
	r := told(t)
	if s := r.dump(); !strings.Contains(s, "port tap-p1 mac "+mac1+" open,no_servers\n") {
		t.Errorf("the kernel holds\n%s\nwant the guest to be no server", s)
	}
	r.news("", "network n1 10 10.0.0.0/24 fd00::/64")
	if s := r.dump(); !strings.Contains(s, "port tap-p1 mac "+mac1+" open\n") {
		t.Errorf("the kernel holds\n%s\nwant servers of the network's own let through", s)
	}
}

func TestADeclinedAddressIsShown(t *testing.T) {
	t.Parallel()
	const want = "CV0207 the guest of port default/p1 says that another uses its address 10.0.0.5"
	r := told(t)
	r.speaks(ask4(packet.Decline4, "", 50, 4, 10, 0, 0, 2)) // not its own
	if got := r.c.Problems(); len(got) != 0 {
		t.Errorf("problems %v", got)
	}
	r.speaks(ask4(packet.Decline4, "", 50, 4, 10, 0, 0, 5))
	if got := r.c.Problems(); len(got) != 1 || got[0] != want {
		t.Errorf("problems %v, want %s", got, want)
	}
	if got := r.speaks(ask4(packet.Discover4, "")); len(got) != 1 || !strings.Contains(got[0], "10.0.0.5") {
		t.Errorf("answered %v, want the one address that it has", got)
	}
	r.tick(conflictTime / 2)
	r.speaks(ask4(packet.Decline4, "", 50, 4, 10, 0, 0, 5)) // again
	r.tick(conflictTime - second)
	if got := r.c.Problems(); len(got) != 1 {
		t.Errorf("problems %v, want the conflict as long as the guest says so", got)
	}
	r.tick(second)
	if got := r.c.Problems(); len(got) != 0 {
		t.Errorf("problems %v, want none any more", got)
	}
	r.speaks(ask6(packet.Decline6, "fd00::5", true))
	if got := r.c.Problems(); len(got) != 1 || !strings.HasSuffix(got[0], "fd00::5") {
		t.Errorf("problems %v, want the conflict of fd00::5", got)
	}
	r.unplug("p1")
	if got := r.c.Problems(); len(got) != 0 {
		t.Errorf("problems %v of a guest that is gone", got)
	}
}

// TestAProbeForWhatMovedOn: who had an address says nothing of who has it.
func TestAProbeForWhatMovedOn(t *testing.T) {
	t.Parallel()
	probe := packet.AskND(packet.Broadcast, mac(mac1), netip.IPv6Unspecified(), netip.MustParseAddr("fd00::2"))
	r := told(t)
	r.news("n1", "-at h2 p2 "+mac2+" 10.0.0.2,fd00::2")
	if got := r.speaks(probe); len(got) != 0 {
		t.Errorf("answered %v for an endpoint that is gone", got)
	}
	r.news("n1", "at h3 p2 "+mac2+" 10.0.0.2")
	if got := r.speaks(probe); len(got) != 0 {
		t.Errorf("answered %v for an address that was given up", got)
	}
	r.news("", "network n1 10 10.0.0.0/24 fd00::/64") // whoever tells guests their addresses
	r.news("n1", "at h3 p2 "+mac2+" fd00::2")
	if got := r.speaks(probe); len(got) != 1 {
		t.Errorf("answered %v, want the owner's advertisement", got)
	}
}

func TestSendNeedsNoAnswer(t *testing.T) {
	t.Parallel()
	r := told(t)
	r.m.Fail = func(o hoststate.Op) hoststate.Class {
		if o.Kind == hoststate.OpSend {
			return hoststate.ClassGone
		}
		return hoststate.ClassOK
	}
	r.speaks(ask4(packet.Discover4, ""))
	if got := r.c.Problems(); len(got) != 0 || len(r.c.orders) != 0 {
		t.Errorf("problems %v, %d orders left", got, len(r.c.orders))
	}
}
