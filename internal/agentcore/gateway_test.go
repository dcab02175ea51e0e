package agentcore

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// gated is a rig whose host has p1 in n1, whose router sends on to p2 in n2.
func gated(t *testing.T, more string) *rig {
	t.Helper()
	r := newRig(t)
	r.fleet("n1 10 "+more+" domain reach=n2 10.1.0.0/24 fd00:1::/64", "n2 20 domain from=n1 10.2.0.0/24 fd00:2::/64")
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1+" ip=10.1.0.5,fd00:1::5")
	r.log("n2", "port p2 "+mac2, far)
	r.ups()
	r.tick(second) // the bucket that the first advertisement took from is full again
	return r
}

// sends is a packet of the guest that its port program handed up, and what is
// told about it: "TYPE/CODE of SOURCE" of the one answer, or nothing.
func (r *rig) sends(frame []byte) string {
	r.tb.Helper()
	r.now += second
	r.utters(frame)
	var out []string
	for _, o := range r.m.Sent {
		b := []byte(o.Frame)
		if o.Index != r.first || overlay.MAC(b[:6]) != mac(mac1) || overlay.MAC(b[6:12]) != overlay.ServerMAC {
			r.tb.Errorf("sent to another: if%d % x", o.Index, b)
		}
		from, at := netip.AddrFrom4([4]byte(b[26:30])), 34
		if binary.BigEndian.Uint16(b[12:]) == packet.TypeIPv6 {
			from, at = netip.AddrFrom16([16]byte(b[22:38])), 54
		}
		out = append(out, fmt.Sprintf("%d/%d of %s", b[at], b[at+1], from))
	}
	return strings.Join(out, ", ")
}

// hop sets what is left of the way of a UDP packet.
func hop(from, to string, hops uint8) []byte {
	b := packet.UDP(overlay.ServerMAC, mac(mac1), netip.AddrPortFrom(netip.MustParseAddr(from), 4000), netip.AddrPortFrom(netip.MustParseAddr(to), 33434), []byte("hi"))
	if b[12] == 0x86 {
		b[21] = hops
		return b
	}
	sum := uint32(binary.BigEndian.Uint16(b[24:])) + uint32(b[22]-hops)<<8 // RFC 1624
	binary.BigEndian.PutUint16(b[24:], uint16(sum+sum>>16))
	b[22] = hops
	return b
}

func ping(from, to string) []byte {
	a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
	if a.Is4() {
		return packet.ICMPv4(overlay.ServerMAC, mac(mac1), a, b, 0, []byte{8, 0, 0, 0, 0, 1, 0, 1})
	}
	return packet.ICMPv6(overlay.ServerMAC, mac(mac1), a, b, 64, []byte{128, 0, 0, 0, 0, 1, 0, 1})
}

// TestTheRouterAnswers: what is for itself, and why it does not send on the
// rest; always from the gateway of the guest's own subnet, and only what may be
// answered.
func TestTheRouterAnswers(t *testing.T) {
	t.Parallel()
	r := gated(t, "")
	for _, c := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"ping of the gateway", ping("10.1.0.5", "10.1.0.1"), "0/0 of 10.1.0.1"},
		{"ping of the gateway over IPv6", ping("fd00:1::5", "fd00:1::1"), "129/0 of fd00:1::1"},
		{"ping of the router's own address", ping("fe80::5", serverIP6.String()), "129/0 of " + serverIP6.String()},
		{"UDP to the gateway", hop("10.1.0.5", "10.1.0.1", 64), "3/3 of 10.1.0.1"},
		{"UDP to the gateway over IPv6", hop("fd00:1::5", "fd00:1::1", 1), "1/4 of fd00:1::1"},
		{"last hop", hop("10.1.0.5", "10.2.0.2", 1), "11/0 of 10.1.0.1"},
		{"last hop over IPv6", hop("fd00:1::5", "fd00:2::2", 1), "3/0 of fd00:1::1"},
		{"none left", hop("10.1.0.5", "10.2.0.2", 0), "11/0 of 10.1.0.1"},
		{"there is a way meanwhile", hop("10.1.0.5", "10.2.0.2", 64), ""},
		{"nobody has it", hop("10.1.0.5", "10.2.0.77", 64), "3/1 of 10.1.0.1"},
		{"nobody has it over IPv6", hop("fd00:1::5", "fd00:2::77", 64), "1/3 of fd00:1::1"},
		{"on the link", hop("10.1.0.5", "10.1.0.77", 64), "3/1 of 10.1.0.1"},
		{"no policy", hop("10.1.0.5", "10.3.0.2", 64), "3/0 of 10.1.0.1"},
		{"no policy over IPv6", hop("fd00:1::5", "fd00:3::2", 64), "1/0 of fd00:1::1"},
		{"no policy, last hop", hop("10.1.0.5", "10.3.0.2", 1), "3/0 of 10.1.0.1"},
		{"all of the subnet", hop("10.1.0.5", "10.1.0.255", 64), ""},
		{"all of another", hop("10.1.0.5", "10.2.0.255", 64), ""},
		{"all of another, as of old", hop("10.1.0.5", "10.2.0.0", 64), ""},
		{"from a subnet that is not the network's", hop("10.9.0.5", "10.3.0.2", 64), ""},
		{"from a link-local address", hop("fe80::5", "fd00:3::2", 64), ""},
		{"an error", packet.ICMPv4(overlay.ServerMAC, mac(mac1), netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("10.3.0.2"), 0, []byte{3, 0, 0, 0, 0, 0, 0, 0}), ""},
	} {
		if got := r.sends(c.frame); got != c.want {
			t.Errorf("%s: told %q, want %q", c.name, got, c.want)
		}
	}
	for range answerBurst + 5 {
		r.now -= second // which sends lets pass
		r.sends(ping("10.1.0.5", "10.1.0.1"))
	}
	if n := r.c.Stats().Unanswered; n < 5 {
		t.Errorf("%d were one too many, want 5", n)
	}
	r.news("", "network n1 10 10.1.0.0/24 fd00:1::/64")
	if got := r.sends(ping("10.1.0.5", "10.1.0.1")); got != "" {
		t.Errorf("outside a domain: told %q", got)
	}
}

// TestTheRouterTellsOfBigPackets: how long those may be that the other network
// takes, and of the hop first.
func TestTheRouterTellsOfBigPackets(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.fleet("n1 10 domain reach=n2 10.1.0.0/24 fd00:1::/64", "n2 20 domain from=n1 mtu=1400 10.2.0.0/24 fd00:2::/64")
	r.plug("n1", "p1")
	r.connect()
	r.log("n1", "port p1 "+mac1+" ip=10.1.0.5,fd00:1::5")
	r.log("n2", "port p2 "+mac2, far)
	r.ups()
	big := func(from, to string, size int) []byte {
		head := 20
		if strings.Contains(to, ":") {
			head = 40
		}
		return packet.UDP(overlay.ServerMAC, mac(mac1), netip.AddrPortFrom(netip.MustParseAddr(from), 4000), netip.AddrPortFrom(netip.MustParseAddr(to), 9), make([]byte, size-head-8))
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  string
		mtu   uint16
	}{
		{"as long as may be", big("10.1.0.5", "10.2.0.2", 1400), "", 0},
		{"a byte more", big("10.1.0.5", "10.2.0.2", 1401), "3/4 of 10.1.0.1", 1400},
		{"as long as may be, IPv6", big("fd00:1::5", "fd00:2::2", 1400), "", 0},
		{"a byte more, IPv6", big("fd00:1::5", "fd00:2::2", 1401), "2/0 of fd00:1::1", 1400},
		{"whom nobody has", big("10.1.0.5", "10.2.0.77", 1450), "3/1 of 10.1.0.1", 0},
	} {
		if got := r.sends(c.frame); got != c.want {
			t.Errorf("%s: told %q, want %q", c.name, got, c.want)
		}
		for _, o := range r.m.Sent {
			at := 34
			if o.Frame[12:14] == "\x86\xdd" {
				at = 54
			}
			if got := binary.BigEndian.Uint32([]byte(o.Frame[at+4:])); got != uint32(c.mtu) {
				t.Errorf("%s: told of %d bytes, want %d", c.name, got, c.mtu)
			}
		}
	}
	// That the other network takes more is no matter: its own is the bound, and
	// what the device would say of a longer one goes to the router, not to the guest.
	r.news("", "network n2 20 domain from=n1 mtu=1500 10.2.0.0/24 fd00:2::/64")
	if got := r.dump(); !strings.Contains(got, "reach 10 10.2.0.2 mtu 1450") {
		t.Errorf("bounded by a network that takes more:\n%s", got)
	}
}

// TestTheRouterTellsOfPrefixes: of those behind a next hop, and those behind it.
func TestTheRouterTellsOfPrefixes(t *testing.T) {
	t.Parallel()
	r := gated(t, "hop=0.0.0.0/0,n2,"+mac3+" hop=10.1.0.64/26,n2,"+mac2+" hop=10.7.0.0/16,n1,"+mac1+" hop=10.9.0.0/16,n2,"+mac2)
	for _, c := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"last hop", hop("10.1.0.5", "10.9.0.1", 1), "11/0 of 10.1.0.1"},
		{"there is a way meanwhile", hop("10.1.0.5", "10.9.0.1", 64), ""},
		{"whose next hop is bound nowhere", hop("10.1.0.5", "10.8.0.1", 64), "3/1 of 10.1.0.1"},
		{"no route", hop("fd00:1::5", "fd00:9::1", 64), "1/0 of fd00:1::1"},
		{"from behind the guest", hop("10.7.0.5", "10.6.0.1", 64), "3/1 of 10.1.0.1"},
		{"from behind another", hop("10.9.0.5", "10.6.0.1", 64), ""},
		{"part of a subnet", hop("10.1.0.5", "10.1.0.66", 1), "11/0 of 10.1.0.1"},
		{"to all of a subnet", hop("10.1.0.5", "10.2.0.255", 1), ""},
	} {
		if got := r.sends(c.frame); got != c.want {
			t.Errorf("%s: told %q, want %q", c.name, got, c.want)
		}
	}
	// With a next hop for all that is nowhere else, as before: who is nowhere in a
	// subnet is not behind it, neither here nor in a network that is reached.
	subnets := []string{"route 10 10.1.0.0/24 via 00:00:00:00:00:00", "route 10 10.2.0.0/24 via 00:00:00:00:00:00"}
	more := []string{"route 10 10.1.0.64/26 via " + alias2, "route 10 10.7.0.0/16 via " + mac1, "route 10 10.9.0.0/16 via " + alias2}
	r.holds("without it", []string{"route"}, slices.Concat(more, subnets)...)
	r.news("n2", "port p3 "+mac3, "at h3 p3 "+mac3+" 10.2.0.3")
	r.holds("with it", []string{"route"}, slices.Concat(more, subnets, []string{"route 10 0.0.0.0/0 via " + alias3})...)
	for to, want := range map[string]string{"10.1.0.77": "", "10.1.0.5": "3/1 of 10.1.0.1", "10.2.0.77": "3/1 of 10.1.0.1", "10.6.0.1": ""} {
		if got := r.sends(hop("10.1.0.5", to, 64)); got != want {
			t.Errorf("to %s: told %q, want %q", to, got, want)
		}
	}
	r.news("", "network n2 20 domain from=n1 10.2.4.0/24")
	subnets[1] = "route 10 10.2.4.0/24 via 00:00:00:00:00:00"
	r.holds("another subnet", []string{"route"}, slices.Concat(more, subnets, []string{"route 10 0.0.0.0/0 via " + alias3})...)
}

// TestGatewaysAreAnsweredForInADomain, also where hosts tell nothing else: and
// outside one not.
func TestGatewaysAreAnsweredForInADomain(t *testing.T) {
	t.Parallel()
	for more, want := range map[string][3]string{
		"domain": {"if3 arp-reply to " + mac1 + ": 10.1.0.1", "if3 neighbor-advert to " + mac1 + ": fd00:1::1 router", ""},
		"tells":  {"if3 arp-reply to " + mac1 + ": 10.1.0.1", "if3 neighbor-advert to " + mac1 + ": fd00:1::1", "0"},
		"tells domain": {
			"if3 arp-reply to " + mac1 + ": 10.1.0.1", "if3 neighbor-advert to " + mac1 + ": fd00:1::1 router", "1800",
		},
		"": {},
	} {
		r := newRig(t)
		r.fleet("n1 10 " + more + " 10.1.0.0/24 fd00:1::/64")
		r.plug("n1", "p1")
		r.connect()
		r.m.Sent = nil
		r.log("n1", "port p1 "+mac1+" ip=10.1.0.5,fd00:1::5")
		var lifetime string
		for _, o := range r.m.Sent {
			if f, _ := packet.Parse(packet.ToGuest, []byte(o.Frame), len(o.Frame)); f.Kind == packet.RouterAdvert {
				lifetime = fmt.Sprint(f.Seconds)
			}
		}
		r.tick(second)
		arp := strings.Join(r.speaks(packet.AskARP(packet.Broadcast, mac(mac1), netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("10.1.0.1"))), ", ")
		r.utters(packet.AskND(packet.Broadcast, mac(mac1), netip.MustParseAddr("fd00:1::5"), netip.MustParseAddr("fd00:1::1")))
		flag := ""
		for _, o := range r.m.Sent {
			if f, _ := packet.Parse(packet.ToGuest, []byte(o.Frame), len(o.Frame)); f.Flags&packet.FlagRouter != 0 {
				flag = " router"
			}
		}
		nd := strings.Join(r.sent(), ", ") + flag
		if got := [3]string{arp, nd, lifetime}; got != want {
			t.Errorf("%q: answered %q, want %q", more, got, want)
		}
	}
}

// TestTheRouterIsTold: by DHCP, unless the network names one among its guests;
// with the routes that it names besides, for a client that takes those ignores
// the router.
func TestTheRouterIsTold(t *testing.T) {
	t.Parallel()
	r := gated(t, "tells")
	options := func() string {
		r.utters(ask4(packet.Discover4, ""))
		if len(r.m.Sent) == 0 {
			return "nothing"
		}
		b := []byte(r.m.Sent[0].Frame)[14+20+8+packet.DHCPFixed4:]
		var out []string
		for len(b) > 2 && b[0] != 255 {
			if b[0] == 3 || b[0] == 121 {
				out = append(out, fmt.Sprintf("%d: %v", b[0], b[2:2+b[1]]))
			}
			b = b[2+b[1]:]
		}
		return strings.Join(out, "; ")
	}
	if got := options(); got != "3: [10 1 0 1]; 121: [16 10 9 10 0 0 9 0 10 1 0 1]" {
		t.Errorf("told %s", got)
	}
	n := *r.c.nets[netUID("n1")].rec
	change := func(routes ...overlay.Route) {
		n := n
		n.Tell.Routes = routes
		r.rev++
		r.step(Items{Items: []Item{{Rev: overlay.Rev{Epoch: 1, N: r.rev}, Rec: &n}}})
	}
	change()
	if got := options(); got != "3: [10 1 0 1]" {
		t.Errorf("without routes: told %s", got)
	}
	change(overlay.Route{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.1.0.9")})
	if got := options(); got != "3: [10 1 0 9]; 121: [0 10 1 0 9]" {
		t.Errorf("with a router among the guests: told %s", got)
	}
	// Outside the domain it is none, and guests hear of it at once.
	change()
	r.tick(second)
	r.m.Sent = nil
	n.Domain, n.Reach = overlay.UID{}, nil
	change()
	if len(r.m.Sent) != 1 {
		t.Fatalf("told %q, want an advertisement", r.sent())
	}
	if f, _ := packet.Parse(packet.ToGuest, []byte(r.m.Sent[0].Frame), len(r.m.Sent[0].Frame)); f.Kind != packet.RouterAdvert || f.Seconds != 0 {
		t.Errorf("told %+v, want that it is no router", f)
	}
	if got := options(); got != "" {
		t.Errorf("outside a domain: told %s", got)
	}
}
