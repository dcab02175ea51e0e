package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/overlay"
)

// spoken is a frame of realFrames.
func spoken(t testing.TB, name string) []byte {
	t.Helper()
	for _, f := range realFrames {
		if f.name == name {
			return unhex(t, f.hex)
		}
	}
	t.Fatalf("no frame %q", name)
	return nil
}

// seal makes lengths and checksums fit what was changed, so that a test meets
// what it changed and nothing before it. Extension headers other than
// hop-by-hop are left alone.
func seal(b []byte) []byte {
	if len(b) < ethLen+ipv4Len {
		return b
	}
	var from, to netip.Addr
	var proto byte
	var up []byte
	ip := b[ethLen:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case TypeIPv4:
		size := int(ip[0]&15) * 4
		if size < ipv4Len || size > len(ip) {
			return b
		}
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(0, ip[:size])))
		from, to, proto, up = ip4(ip[12:]), ip4(ip[16:]), ip[9], ip[size:]
	case TypeIPv6:
		if len(ip) < ipv6Len {
			return b
		}
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6Len))
		from, to, proto, up = ip6(ip[8:]), ip6(ip[24:]), ip[6], ip[ipv6Len:]
		if proto == 0 && len(up) >= 8 {
			proto, up = up[0], up[8:]
		}
	}
	at := map[byte]int{protoIGMP: 2, protoICMPv6: 2, protoUDP: 6}[proto]
	if at == 0 || len(up) < at+2 {
		return b
	}
	if proto == protoUDP {
		binary.BigEndian.PutUint16(up[4:], uint16(len(up)))
	}
	up[at], up[at+1] = 0, 0
	s := uint32(0)
	if proto != protoIGMP {
		s = pseudo(from, to, proto, len(up))
	}
	binary.BigEndian.PutUint16(up[at:], ^fold(sum(s, up)))
	return b
}

// set changes bytes from at on.
func set(at int, v ...byte) func([]byte) []byte {
	return func(b []byte) []byte { copy(b[at:], v); return b }
}

func cut(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

// insert puts bytes in before at.
func insert(at int, v ...byte) func([]byte) []byte {
	return func(b []byte) []byte { return slices.Insert(b, at, v...) }
}

func both(all ...func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		for _, f := range all {
			b = f(b)
		}
		return b
	}
}

// Where things are in the real frames.
const (
	atIP     = ethLen
	atICMP6  = ethLen + ipv6Len
	atMLD    = atICMP6 + 8
	atIGMP   = ethLen + 24
	atBOOTP  = ethLen + ipv4Len + udpLen
	atOption = atBOOTP + DHCPFixed4
	atDHCP6  = atICMP6 + udpLen
)

type refusal struct {
	name   string
	dir    Direction
	base   string
	change func([]byte) []byte
	raw    bool // do not seal
	want   Drop
}

var refusals = []refusal{
	{"cut Ethernet", FromGuest, "ping", cut(13), true, EthShort},
	{"group as source", FromGuest, "ping", set(6, 1), true, EthSource},
	{"zero as source", FromGuest, "ping", set(6, 0, 0, 0, 0, 0, 0), true, EthSource},
	{"802.1Q", FromGuest, "ping", insert(12, 0x81, 0, 0, 5), true, VLANTagged},
	{"802.1ad", FromGuest, "ping", insert(12, 0x88, 0xa8, 0, 5), true, VLANTagged},

	{"cut ARP", FromGuest, "linux ARP request", cut(41), true, ARPShort},
	{"ARP of another hardware", FromGuest, "linux ARP request", set(14, 0, 6), true, ARPHardware},
	{"ARP with long addresses", FromGuest, "linux ARP request", set(18, 8), true, ARPHardware},
	{"ARP operation 3", FromGuest, "linux ARP request", set(20, 0, 3), true, ARPOperation},
	{"RARP reply", FromGuest, "linux ARP request", set(12, 0x80, 0x35), true, ARPOperation},
	{"ARP for another MAC", FromGuest, "linux ARP request", set(22, 2, 0, 0, 0, 0, 9), true, ARPMACMismatch},
	{"ARP from loopback", FromGuest, "linux ARP request", set(28, 127), true, ARPAddress},
	{"ARP from a group", FromGuest, "linux gratuitous ARP", set(28, 224), true, ARPAddress},
	{"ARP reply from 0.0.0.0", ToGuest, "linux ARP reply", set(28, 0, 0, 0, 0), true, ARPAddress},
	{"ARP probe for 0.0.0.0", FromGuest, "linux ARP request", both(set(28, 0, 0, 0, 0), set(38, 0, 0, 0, 0)), true, ARPAddress},
	{"ARP reply to broadcast", ToGuest, "linux ARP reply", set(38, 255, 255, 255, 255), true, ARPAddress},
	{"ARP request for broadcast", FromGuest, "linux ARP request", set(38, 255, 255, 255, 255), true, ARPAddress},

	{"cut IPv4", FromGuest, "ping", cut(33), true, IPv4Short},
	{"total length beyond", FromGuest, "udhcpc discover", set(16, 0xff), true, IPv4Short},
	{"IPv4 version", FromGuest, "udhcpc discover", set(14, 0x65), false, IPv4Header},
	{"IPv4 header length", FromGuest, "udhcpc discover", set(14, 0x44), false, IPv4Header},
	{"IPv4 total below header", FromGuest, "udhcpc discover", set(16, 0, 19), true, IPv4Header},
	{"IPv4 checksum", FromGuest, "udhcpc discover", set(18, 0x12), true, IPv4Checksum},
	{"more fragments", FromGuest, "udhcpc discover", set(20, 0x20, 0), false, IPv4Fragment},
	{"fragment offset", FromGuest, "linux IGMPv3 join", set(20, 0, 1), false, IPv4Fragment},

	{"cut IPv6", FromGuest, "linux router solicitation", cut(53), true, IPv6Short},
	{"payload beyond", FromGuest, "linux router solicitation", set(18, 1), true, IPv6Short},
	{"hop-by-hop beyond", FromGuest, "linux MLDv2 report", set(atICMP6+1, 200), true, IPv6Short},
	{"IPv6 version", FromGuest, "linux router solicitation", set(14, 0x40), false, IPv6Header},
	{"broken hop-by-hop option", ToGuest, "linux MLDv2 report", set(atICMP6+3, 9), false, IPv6Header},
	{"hop-by-hop second", ToGuest, "linux MLDv2 report", set(atICMP6, 0), false, IPv6Header},
	{"nine headers", FromGuest, "linux router solicitation", both(set(20, 60), insert(atICMP6, bytes.Repeat([]byte{60, 0, 1, 4, 0, 0, 0, 0}, 9)...)), false, IPv6Header},
	{"IPv6 fragment", FromGuest, "linux router solicitation", both(set(20, 44), insert(atICMP6, 58, 0, 0, 1, 0, 0, 0, 1)), false, IPv6Fragment},

	{"to the router, from nowhere", FromGuest, "ping", both(set(0, overlay.ServerMAC[:]...), set(atIP+12, 0)), false, RouteAddress},
	{"to the router, for a group", FromGuest, "ping", both(set(0, overlay.ServerMAC[:]...), set(atIP+16, 224)), false, RouteAddress},
	{"to the router, header checksum", FromGuest, "ping", both(set(0, overlay.ServerMAC[:]...), set(atIP+8, 99)), true, IPv4Checksum},
	{"to the router, header length", FromGuest, "ping", both(set(0, overlay.ServerMAC[:]...), set(atIP, 0x44)), false, IPv4Header},
	{"to the router, cut", FromGuest, "ping", both(set(0, overlay.ServerMAC[:]...), cut(atIP+40)), true, IPv4Short},

	{"cut UDP", FromGuest, "udhcpc discover", cut(40), false, UDPLength},
	{"UDP length 7", FromGuest, "udhcpc discover", set(38, 0, 7), true, UDPLength},
	{"UDP length beyond", FromGuest, "udhcpc discover", set(38, 0xff), true, UDPLength},
	{"UDP checksum", FromGuest, "udhcpc discover", set(atBOOTP+4, 1), true, UDPChecksum},
	{"UDP without checksum in IPv6", FromGuest, "dhclient solicit", set(atDHCP6-2, 0, 0), true, UDPChecksum},

	{"cut solicitation", FromGuest, "linux unicast solicitation", cut(atICMP6 + 23), false, NDShort},
	{"cut router advertisement", ToGuest, "dnsmasq router advertisement", cut(atICMP6 + 15), false, NDShort},
	{"routed solicitation", FromGuest, "linux unicast solicitation", set(21, 254), false, NDHopLimit},
	{"ND checksum", FromGuest, "linux unicast solicitation", set(atICMP6+20, 1), true, NDChecksum},
	{"ND code", FromGuest, "linux unicast solicitation", set(atICMP6+1, 1), false, NDCode},
	{"probe to a host", FromGuest, "linux duplicate address detection", set(38, addr("fe80::1").AsSlice()...), false, NDSource},
	{"probe with an address option", FromGuest, "linux unicast solicitation", set(22, make([]byte, 16)...), false, NDSource},
	{"solicitation from a group", FromGuest, "linux unicast solicitation", set(22, 0xff, 2), false, NDSource},
	{"solicited to all", FromGuest, "linux unsolicited advertisement", set(atICMP6+4, 0x60), false, NDSource},
	{"advertisement from nobody", FromGuest, "linux solicited advertisement", set(22, make([]byte, 16)...), false, NDSource},
	{"router not link-local", ToGuest, "dnsmasq router advertisement", set(22, 0x20, 1), false, NDSource},
	{"target a group", FromGuest, "linux solicited advertisement", set(atICMP6+8, 0xff), false, NDTarget},
	{"target loopback", FromGuest, "linux solicited advertisement", set(atICMP6+8, netip.IPv6Loopback().AsSlice()...), false, NDTarget},
	{"target mapped", FromGuest, "linux unicast solicitation", set(atICMP6+8, addr("::ffff:192.0.2.1").AsSlice()...), false, NDTarget},
	{"option of length 0", FromGuest, "linux solicited advertisement", set(atICMP6+25, 0), false, NDOption},
	{"option beyond", FromGuest, "linux solicited advertisement", set(atICMP6+25, 2), false, NDOption},
	{"half an option", FromGuest, "linux solicited advertisement", cut(atICMP6 + 28), false, NDOption},
	{"address option twice", FromGuest, "linux solicited advertisement", insert(atICMP6+24, 2, 1, 0x52, 0x54, 0, 0, 0, 2), false, NDOption},
	{"address option of another length", FromGuest, "linux solicited advertisement", both(set(atICMP6+25, 2), insert(atICMP6+32, make([]byte, 8)...)), false, NDOption},
	{"link-layer address of another", FromGuest, "linux solicited advertisement", set(atICMP6+31, 9), false, NDMACMismatch},

	{"cut IGMP", FromGuest, "linux IGMPv3 join", cut(atIGMP + 7), false, IGMPShort},
	{"IGMP record beyond", FromGuest, "linux IGMPv3 join", set(atIGMP+11, 1), false, IGMPShort},
	{"IGMP records missing", FromGuest, "linux IGMPv3 join", set(atIGMP+7, 2), false, IGMPShort},
	{"IGMP TTL", FromGuest, "linux IGMPv3 join", set(22, 2), false, IGMPTTL},
	{"IGMP checksum", FromGuest, "linux IGMPv3 join", set(atIGMP+15, 9), true, IGMPChecksum},
	{"IGMP type", FromGuest, "linux IGMPv3 join", set(atIGMP, 0x13), false, IGMPType},
	{"IGMP group", FromGuest, "linux IGMPv3 join", set(atIGMP+12, 10), false, IGMPGroup},
	{"IGMPv2 group", FromGuest, "linux IGMPv3 join", both(cut(atIGMP+8), set(atIGMP, 0x16, 0, 0, 0, 10, 0, 0, 1)), false, IGMPGroup},

	{"cut MLD", ToGuest, "linux MLDv2 report", cut(atMLD + 7), false, MLDShort},
	{"MLD records missing", ToGuest, "linux MLDv2 report", set(atMLD+7, 5), false, MLDShort},
	{"MLD hop limit", ToGuest, "linux MLDv2 report", set(21, 64), false, MLDHopLimit},
	{"MLD checksum", ToGuest, "linux MLDv2 report", set(atMLD+20, 9), true, MLDChecksum},
	{"MLD from a global address", ToGuest, "linux MLDv2 report", set(22, addr("2001:db8::1").AsSlice()...), false, MLDSource},
	{"MLD query from nobody", ToGuest, "linux MLDv2 report", set(atMLD, icmpMLDQuery), false, MLDSource},
	{"MLD without alert", ToGuest, "linux MLDv2 report", set(atICMP6+2, 1, 4), false, MLDRouterAlert},
	{"MLD with another alert", ToGuest, "linux MLDv2 report", set(atICMP6+5, 1), false, MLDRouterAlert},
	{"MLD group", ToGuest, "linux MLDv2 report", set(atMLD+12, 0x20), false, MLDGroup},

	{"cut DHCP", FromGuest, "udhcpc discover", cut(atOption - 1), false, DHCPShort},
	{"DHCP hardware", FromGuest, "udhcpc discover", set(atBOOTP+1, 6), false, DHCPHardware},
	{"BOOTP", FromGuest, "udhcpc discover", set(atBOOTP+236, 0), false, DHCPMagic},
	{"DHCP option beyond", FromGuest, "udhcpc discover", both(cut(atOption+3), insert(atOption+3, 50, 5, 1)), false, DHCPOption},
	{"DHCP option of wrong length", FromGuest, "udhcpc discover", insert(atOption, 50, 3, 1, 2, 3), false, DHCPOption},
	{"DHCP type twice", FromGuest, "udhcpc discover", insert(atOption, 53, 1, 3), false, DHCPOption},
	{"DHCP without type", FromGuest, "udhcpc discover", set(atOption, 255), false, DHCPType},
	{"DHCP type 9", FromGuest, "udhcpc discover", set(atOption+2, 9), false, DHCPType},
	{"reply to the server's port", FromGuest, "udhcpc discover", set(atBOOTP, 2), false, DHCPType},
	{"ack to the server's port", FromGuest, "udhcpc discover", set(atOption+2, Ack4), false, DHCPType},
	{"DHCP server at a guest", FromGuest, "dnsmasq ack", func(b []byte) []byte { return b }, true, DHCPDirection},
	{"DHCP client to a guest", ToGuest, "udhcpc discover", func(b []byte) []byte { return b }, true, DHCPDirection},
	{"DHCP relay", FromGuest, "udhcpc discover", set(atBOOTP+24, 192, 0, 2, 9), false, DHCPRelay},
	{"DHCP for another MAC", FromGuest, "udhcpc discover", set(atBOOTP+33, 9), false, DHCPMACMismatch},
	{"ack to another MAC", ToGuest, "dnsmasq ack", set(atBOOTP+33, 9), false, DHCPMACMismatch},
	{"lease of a group", ToGuest, "dnsmasq ack", set(atBOOTP+16, 224), false, DHCPAddress},
	{"lease of broadcast", ToGuest, "dnsmasq ack", set(atBOOTP+16, 255, 255, 255, 255), false, DHCPAddress},
	{"ack without lease time", ToGuest, "dnsmasq ack", set(atOption+9, 200), false, DHCPNoLease},

	{"cut DHCPv6", FromGuest, "dhclient solicit", cut(atDHCP6 + 3), false, DHCP6Short},
	{"DHCPv6 option beyond", FromGuest, "dhclient solicit", cut(atDHCP6 + 9), false, DHCP6Option},
	{"DHCPv6 address of wrong length", ToGuest, "dnsmasq reply", both(cut(atDHCP6+4), insert(atDHCP6+4, append([]byte{0, 3, 0, 18, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 2, 0, 0}, nil...)...)), false, DHCP6Option},
	{"DHCPv6 type", FromGuest, "dhclient solicit", set(atDHCP6, 99), false, DHCP6Type},
	{"DHCPv6 reconfigure", ToGuest, "dnsmasq reply", set(atDHCP6, Reconfigure6), false, DHCP6Type},
	{"DHCPv6 reply to the server's port", FromGuest, "dhclient solicit", set(atDHCP6, Reply6), false, DHCP6Type},
	{"DHCPv6 server at a guest", FromGuest, "dnsmasq reply", func(b []byte) []byte { return b }, true, DHCP6Direction},
	{"DHCPv6 relay", FromGuest, "dhclient solicit", set(atDHCP6, RelayForward6), false, DHCP6Relay},
	{"DHCPv6 lease of a group", ToGuest, "dnsmasq reply", func(b []byte) []byte {
		a := addr("2001:db8::53").As16()
		b[bytes.Index(b, a[:])] = 0xff
		return b
	}, false, DHCP6Address},
	{"DHCPv6 reply to a group", ToGuest, "dnsmasq reply", set(0, 0x33, 0x33), true, DHCP6Address},
	{"five associations", FromGuest, "dhclient solicit", func(b []byte) []byte {
		return append(b, bytes.Repeat([]byte{0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, 5)...)
	}, false, DHCP6Many},
	{"17 addresses", FromGuest, "dhclient solicit", func(b []byte) []byte {
		one := append(append([]byte{0, 5, 0, 24}, addr("2001:db8::9").AsSlice()...), make([]byte, 8)...) // in one association for temporary ones
		b = append(b, 0, 4, byte((4+17*len(one))>>8), byte(4+17*len(one)), 0, 0, 0, 9)
		return append(b, bytes.Repeat(one, 17)...)
	}, false, DHCP6Many},
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range refusals {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.change(spoken(t, tt.base))
			if !tt.raw {
				b = seal(b)
			}
			if got, d := Parse(tt.dir, b, len(b)); d != tt.want || got != (Fact{}) {
				t.Errorf("got %v, %+v, want %v and no fact\n% x", d, got, tt.want, b)
			}
			if g := Groups(nil, b, len(b)); len(g) > 0 {
				t.Errorf("groups %v of a refused frame", g)
			}
		})
	}
}

// TestEveryDropIsReached: no reason is there for show, each has a name of its
// own and a line of explanation.
func TestEveryDropIsReached(t *testing.T) {
	reached := map[Drop]bool{Taken: true}
	for _, tt := range refusals {
		reached[tt.want] = true
	}
	for _, tt := range cutFrames {
		reached[tt.want] = true
	}
	if _, d := ReadDHCP4(FromGuest, spoken(t, "ping"), 0); d != Other {
		t.Errorf("a ping is %v to ReadDHCP4", d)
	}
	reached[Other] = true
	names := map[string]bool{}
	for i := range Drops {
		d := Drop(i)
		switch {
		case !reached[d]:
			t.Errorf("no test reaches %v", d)
		case d.String() == "" || d.Why() == "" || names[d.String()]:
			t.Errorf("%d: name %q, reason %q", i, d, d.Why())
		case strings.Trim(d.String(), "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
			t.Errorf("%q is no name for a counter", d)
		}
		names[d.String()] = true
	}
	if Drop(Drops).String() != "unknown" || Drop(Drops).Why() != "" {
		t.Error("a value behind the last one has a name")
	}
	for i := range kinds {
		if k := Kind(i); k.String() == "" || names["kind "+k.String()] {
			t.Errorf("kind %d: name %q", i, k)
		} else {
			names["kind "+k.String()] = true
		}
	}
}

// cutFrames are frames of which fewer bytes are here than were on the wire.
var cutFrames = []struct {
	name string
	dir  Direction
	base string
	keep int
	want Drop
}{
	{"ack before its lease", ToGuest, "dnsmasq ack", atOption + 6, Cut},
	{"ack before its type", ToGuest, "dnsmasq ack", atOption + 1, Cut},
	{"ack behind its lease", ToGuest, "dnsmasq ack", atOption + 22, Taken},
	{"discover behind its type", FromGuest, "udhcpc discover", atOption + 3, Taken},
	{"solicitation", FromGuest, "linux unicast solicitation", atICMP6 + 28, Cut},
	{"router advertisement", ToGuest, "dnsmasq router advertisement", atICMP6 + 20, Taken},
	{"MLD", ToGuest, "linux MLDv2 report", atMLD + 8 + 30, Taken},
	{"DHCPv6", ToGuest, "dnsmasq reply", atDHCP6 + 40, Cut},
	{"extension header", ToGuest, "linux MLDv2 report", atICMP6 + 4, Cut},
}

func TestParseCutFrames(t *testing.T) {
	for _, tt := range cutFrames {
		t.Run(tt.name, func(t *testing.T) {
			b := spoken(t, tt.base)
			whole, _ := Parse(tt.dir, b, len(b))
			got, d := Parse(tt.dir, b[:tt.keep], len(b))
			if d != tt.want {
				t.Fatalf("got %v, want %v", d, tt.want)
			}
			got.Flags &^= FlagMore
			if d == Taken && got != whole {
				t.Errorf("got %+v, whole %+v", got, whole)
			}
		})
	}
	b := spoken(t, "linux MLDv2 report")
	got, _ := Parse(ToGuest, b[:atMLD+8+30], len(b))
	g := Groups(nil, b[:atMLD+8+30], len(b))
	if got.Flags&FlagMore == 0 || len(g) != 1 || g[0] != (Membership{addr("ff02::2"), true}) {
		t.Errorf("the first record of four alone: %+v, %v", got, g)
	}
}

// TestParseTakes: what no real frame above says.
func TestParseTakes(t *testing.T) {
	eight := func(at int, v ...byte) func([]byte) []byte { return both(cut(at+8), set(at, v...)) }
	tests := []struct {
		name   string
		dir    Direction
		base   string
		change func([]byte) []byte
		kind   Kind
		groups []Membership
	}{
		{"IGMPv1", FromGuest, "linux IGMPv3 join", eight(atIGMP, 0x12, 0, 0, 0, 239, 1, 1, 1), GroupReport, []Membership{{addr("239.1.1.1"), true}}},
		{"IGMPv2", FromGuest, "linux IGMPv3 join", eight(atIGMP, 0x16, 0, 0, 0, 239, 1, 1, 1), GroupReport, []Membership{{addr("239.1.1.1"), true}}},
		{"IGMP leave", FromGuest, "linux IGMPv3 join", eight(atIGMP, 0x17, 0, 0, 0, 239, 1, 1, 1), GroupReport, []Membership{{addr("239.1.1.1"), false}}},
		{"IGMP query", FromGuest, "linux IGMPv3 join", eight(atIGMP, 0x11, 100, 0, 0, 0, 0, 0, 0), GroupQuery, nil},
		{"record is-in with a source", FromGuest, "linux IGMPv3 join", both(set(atIGMP+8, 1, 0, 0, 1), insert(atIGMP+16, 192, 0, 2, 7)), GroupReport, []Membership{{addr("239.1.1.1"), true}}},
		{"record allow", FromGuest, "linux IGMPv3 join", both(set(atIGMP+8, 5, 1, 0, 1), insert(atIGMP+16, 192, 0, 2, 7, 0, 0, 0, 0)), GroupReport, []Membership{{addr("239.1.1.1"), true}}},
		{"record block", FromGuest, "linux IGMPv3 join", both(set(atIGMP+8, 6, 0, 0, 1), insert(atIGMP+16, 192, 0, 2, 7)), GroupReport, nil},
		{"record of the future", FromGuest, "linux IGMPv3 join", set(atIGMP+8, 7), GroupReport, nil},
		{"MLDv1 report", ToGuest, "linux MLDv2 report", both(cut(atMLD+24), set(atMLD, 131), set(atMLD+8, addr("ff02::9").AsSlice()...)), GroupReport, []Membership{{addr("ff02::9"), true}}},
		{"MLDv1 done", ToGuest, "linux MLDv2 report", both(cut(atMLD+24), set(atMLD, 132), set(atMLD+8, addr("ff02::9").AsSlice()...)), GroupReport, []Membership{{addr("ff02::9"), false}}},
		{"MLD query", ToGuest, "linux MLDv2 report", both(set(22, addr("fe80::1").AsSlice()...), set(atMLD, 130)), GroupQuery, nil},
		{"ND behind destination options", FromGuest, "linux router solicitation", both(set(20, 60), insert(atICMP6, 58, 0, 1, 4, 0, 0, 0, 0)), RouterSolicit, nil},
		{"router solicitation from nobody", FromGuest, "linux router solicitation", both(cut(atICMP6+8), set(22, make([]byte, 16)...)), RouterSolicit, nil},
		{"fragment of TCP", FromGuest, "linux router solicitation", both(set(20, 44), insert(atICMP6, 6, 0, 0, 1, 0, 0, 0, 1)), Frame, nil},
		{"echo request", FromGuest, "linux router solicitation", set(atICMP6, 128), Frame, nil},
		{"another UDP port", FromGuest, "udhcpc discover", set(36, 0, 53), Frame, nil},
		{"802.3 with LLC", FromGuest, "ping", set(12, 0, 40), Frame, nil},
		{"padding behind IPv4", FromGuest, "linux IGMPv3 join", func(b []byte) []byte { return append(b, 0xff, 0xff, 0xff) }, GroupReport, []Membership{{addr("239.1.1.1"), true}}},
		{"UDP without checksum", FromGuest, "udhcpc discover", set(40, 0, 0), DHCPDiscover, nil},
		{"DHCP type in the file field", FromGuest, "udhcpc discover", both(set(atOption, 52, 1, 1), set(atBOOTP+108, 53, 1, Decline4, 255)), DHCPDecline, nil},
		{"DHCP type in the name field", FromGuest, "udhcpc discover", both(set(atOption, 52, 1, 3), set(atBOOTP+44, 53, 1, Release4, 255)), DHCPRelease, nil},
		{"inform", FromGuest, "udhcpc discover", set(atOption+2, Inform4), DHCPInform, nil},
		{"nak", ToGuest, "dnsmasq ack", both(set(atOption+2, Nak4), set(atBOOTP+16, 0, 0, 0, 0)), DHCPNak, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := tt.change(spoken(t, tt.base))
			switch tt.name {
			case "padding behind IPv4", "UDP without checksum":
			default:
				b = seal(b)
			}
			got, d := Parse(tt.dir, b, len(b))
			if d != Taken || got.Kind != tt.kind {
				t.Errorf("got %v, %+v, want %v", d, got, tt.kind)
			}
			if g := Groups(nil, b, len(b)); !slices.Equal(g, tt.groups) {
				t.Errorf("groups %v, want %v", g, tt.groups)
			}
		})
	}
}

// TestGroupsAreBounded: a report of more groups than are read tells so.
func TestGroupsAreBounded(t *testing.T) {
	for _, n := range []int{MostGroups, MostGroups + 1, 180} {
		b := spoken(t, "linux IGMPv3 join")[:atIGMP+8]
		b[atIGMP+7] = byte(n)
		for i := range n {
			b = append(b, recToExclude, 0, 0, 0, 239, 1, 1, byte(i))
		}
		seal(b)
		f, d := Parse(FromGuest, b, len(b))
		g := Groups(nil, b, len(b))
		if d != Taken || len(g) != min(n, MostGroups) || (f.Flags&FlagMore != 0) != (n > MostGroups) {
			t.Errorf("%d records: %v, %+v, %d groups", n, d, f, len(g))
		}
	}
}

// TestManyLeases: Parse tells the first address of a reply and that there are
// more, ReadDHCP6 all of them.
func TestManyLeases(t *testing.T) {
	b := spoken(t, "dnsmasq reply")
	ia := append([]byte{0, 3, 0, 40, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 24}, addr("2001:db8::99").AsSlice()...)
	b = seal(append(append(b, ia...), 0, 0, 0, 7, 0, 0, 0, 9))
	f, d := Parse(ToGuest, b, len(b))
	if d != Taken || f.IP != addr("2001:db8::53") || f.Flags != FlagMore {
		t.Errorf("%v, %+v", d, f)
	}
	m, d := ReadDHCP6(ToGuest, b, len(b))
	if d != Taken || m.NIA != 2 || m.IAs[1] != (IA6{OptIANA6, 2, 1, 1}) || m.NLease != 2 || m.Leases[1] != (Lease6{addr("2001:db8::99"), 9}) || m.MAC != guest {
		t.Errorf("%v, %+v", d, m)
	}
}

func TestReadDHCP4(t *testing.T) {
	b := spoken(t, "udhcpc request")
	m, d := ReadDHCP4(FromGuest, b, len(b))
	if d != Taken || m.Type != Request4 || m.Requested != addr("192.0.2.54") || m.Server != addr("192.0.2.1") || m.MAC != guest || m.MaxSize != 576 ||
		!bytes.Equal(m.ClientID, append([]byte{1}, guest[:]...)) || !bytes.Contains(m.Params, []byte{1, 3, 6}) || m.Has.IsValid() || m.Broadcast {
		t.Errorf("%v, %+v", d, m)
	}
	if _, d := ReadDHCP4(FromGuest, spoken(t, "dhclient solicit"), 0); d != Other {
		t.Errorf("DHCPv6: %v", d)
	}
	if _, d := ReadDHCP6(FromGuest, b, len(b)); d != Other {
		t.Errorf("DHCPv4: %v", d)
	}
	if m, d := ReadDHCP4(FromGuest, b[:60], 60); d != IPv4Short || m.MAC != (overlay.MAC{}) {
		t.Errorf("%v, %+v", d, m)
	}
}
