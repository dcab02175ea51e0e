package packet

import (
	"bytes"
	"slices"
	"testing"

	"culvert/internal/overlay"
)

// holds asserts what is promised of any bytes: a fact or a reason, addresses
// that interfaces can have, groups that are groups, bounded lists, and the same
// again for the same bytes.
func holds(t *testing.T, dir Direction, b []byte, wire int) Fact {
	t.Helper()
	f, d := Parse(dir, b, wire)
	if again, e := Parse(dir, slices.Clone(b), wire); again != f || e != d {
		t.Fatalf("first %v %+v, then %v %+v", d, f, e, again)
	}
	switch {
	case int(d) >= Drops || d == Other:
		t.Fatalf("drop %d", d)
	case d != Taken && f != (Fact{}):
		t.Fatalf("%v and %+v", d, f)
	case d == Taken && (f.Kind == NoFact || int(f.Kind) >= kinds || !f.Src.IsUnicast()):
		t.Fatalf("taken: %+v", f)
	case d == Taken && f.Kind != Frame && !f.MAC.IsUnicast():
		t.Fatalf("about nobody: %+v", f)
	}
	for _, ip := range []struct {
		valid, ok bool
	}{{f.IP.IsValid(), unicast(f.IP)}, {f.Target.IsValid(), unicast(f.Target)}, {f.Server.IsValid(), unicast(f.Server)}} {
		if ip.valid && !ip.ok {
			t.Fatalf("an address that nobody has: %+v", f)
		}
	}
	switch {
	case f.Kind >= ARPRequest && f.Kind <= RARPAnnouncement && f.MAC != f.Src,
		dir == FromGuest && f.Kind != NoFact && f.Kind != Frame && f.MAC != f.Src:
		t.Fatalf("about another: %+v", f)
	case dir == FromGuest && (f.Kind == DHCPAck || f.Kind == DHCPOffer || f.Kind == DHCP6Reply || f.Kind == DHCP6Advertise):
		t.Fatalf("a guest as a server: %+v", f)
	}
	g := Groups(nil, b, wire)
	if len(g) > MostGroups || len(g) > 0 && f.Kind != GroupReport {
		t.Fatalf("%d groups, %+v", len(g), f)
	}
	for _, m := range g {
		if !m.Group.IsMulticast() {
			t.Fatalf("group %v", m.Group)
		}
	}
	if dir == FromGuest {
		w, e := ReadForward(b, wire)
		if (e == Taken) != (f.Kind == ToRouter) || e == Taken && (w.MAC != f.MAC || w.From != f.IP || w.To != f.Target || len(w.Packet) < ipv4Len || w.Echo != nil && (w.Mute || !bytes.HasSuffix(w.Packet, w.Echo))) {
			t.Fatalf("%+v, but read %v %+v", f, e, w)
		}
	}
	if m, e := ReadDHCP4(dir, b, wire); (e == Taken) != (f.Kind >= DHCPDiscover && f.Kind <= DHCPNak) || e == Taken && m.MAC != f.MAC {
		t.Fatalf("%+v, but read %v %+v", f, e, m)
	}
	if m, e := ReadDHCP6(dir, b, wire); (e == Taken) != (f.Kind >= DHCP6Solicit) || e == Taken && m.MAC != f.MAC {
		t.Fatalf("%+v, but read %v %+v", f, e, m)
	}
	return f
}

// rebuilt asserts that a fact, built anew, says the same.
func rebuilt(t *testing.T, f Fact) {
	t.Helper()
	var b []byte
	switch f.Kind {
	case ARPRequest, ARPProbe, ARPAnnouncement:
		from, target := f.IP, f.Target
		if f.Kind == ARPProbe {
			from = addr("0.0.0.0")
		}
		if f.Kind == ARPAnnouncement {
			target = from
		}
		b = AskARP(f.Dst, f.Src, from, target)
	case ARPReply:
		to := f.Target
		if !to.IsValid() {
			to = addr("0.0.0.0")
		}
		b = AnswerARP(f.Dst, f.Src, f.IP, to)
	case RARPAnnouncement:
		b, f.Dst = RARP(f.Src), Broadcast
	case NeighborSolicit:
		if f.Dst == Broadcast {
			return // AskND never sends to it
		}
		b = AskND(f.Dst, f.Src, f.IP, f.Target)
	case NeighborProbe:
		if f.Dst == Broadcast {
			return
		}
		b = AskND(f.Dst, f.Src, addr("::"), f.Target)
	case NeighborAdvert:
		if f.Flags&FlagSolicited == 0 || f.Dst[0]&1 != 0 {
			return
		}
		b = AnswerND(f.Dst, f.Src, f.IP, addr("fe80::1"), f.Flags&FlagRouter != 0)
		f.Flags |= FlagOverride | FlagLinkAddr
	default:
		return
	}
	if got, d := Parse(FromGuest, b, len(b)); d != Taken || got != f {
		t.Fatalf("%v\ngot  %+v\nwant %+v", d, got, f)
	}
}

// FuzzParse: any bytes, any length on the wire.
func FuzzParse(f *testing.F) {
	for _, r := range realFrames {
		f.Add(r.dir == ToGuest, unhex(f, r.hex), 0)
		f.Add(r.dir == ToGuest, unhex(f, r.hex)[:40], 90)
	}
	f.Fuzz(func(t *testing.T, to bool, b []byte, wire int) {
		dir := FromGuest
		if to {
			dir = ToGuest
		}
		rebuilt(t, holds(t, dir, b, wire))
	})
}

// fuzzInside fuzzes what is inside a sound Ethernet and IP frame: the frames
// that base names are cut at at, what the fuzzer found is put there, and
// lengths and checksums are made right, which no fuzzer would guess.
func fuzzInside(f *testing.F, at map[string]int) {
	heads := make([][]byte, 0, len(realFrames))
	dirs := make([]Direction, 0, len(realFrames))
	for _, r := range realFrames {
		n, ok := at[r.name]
		if !ok {
			continue
		}
		b := unhex(f, r.hex)
		f.Add(uint8(len(heads)), b[n:], uint16(0))
		heads, dirs = append(heads, b[:n]), append(dirs, r.dir)
	}
	if len(heads) != len(at) {
		f.Fatalf("%d frames of %d", len(heads), len(at))
	}
	f.Fuzz(func(t *testing.T, i uint8, inside []byte, missing uint16) {
		if len(inside) > 1500 {
			return
		}
		n := int(i) % len(heads)
		b := seal(append(slices.Clone(heads[n]), inside...))
		rebuilt(t, holds(t, dirs[n], b, len(b)))
		here := b[:len(b)-int(missing)%len(b)]
		holds(t, dirs[n], here, len(b))
	})
}

// FuzzForward: what is sent to the router, behind sound headers.
func FuzzForward(f *testing.F) {
	for _, c := range forwards() {
		f.Add(c.frame, uint16(0))
		f.Add(c.frame, uint16(20))
	}
	f.Fuzz(func(t *testing.T, b []byte, missing uint16) {
		if len(b) < ethLen || len(b) > 1500 {
			return
		}
		copy(b, overlay.ServerMAC[:])
		holds(t, FromGuest, b, len(b))
		b = seal(b)
		holds(t, FromGuest, b, len(b))
		holds(t, FromGuest, b[:len(b)-int(missing)%len(b)], len(b))
	})
}

// FuzzARP: the ARP and RARP parsers.
func FuzzARP(f *testing.F) {
	fuzzInside(f, map[string]int{"linux ARP request": 12, "linux ARP reply": 14, "linux gratuitous ARP": 20})
}

// FuzzND: neighbour discovery and MLD behind sound IPv6 headers.
func FuzzND(f *testing.F) {
	fuzzInside(f, map[string]int{
		"linux duplicate address detection": atICMP6, "linux unicast solicitation": atICMP6, "linux solicited advertisement": atICMP6,
		"linux unsolicited advertisement": atICMP6, "linux router solicitation": atICMP6, "dnsmasq router advertisement": atICMP6,
	})
}

// FuzzGroups: IGMP and MLD behind sound headers.
func FuzzGroups(f *testing.F) {
	fuzzInside(f, map[string]int{"linux IGMPv3 join": atIGMP, "linux IGMPv3 leave": atIGMP, "linux MLDv2 report": atMLD})
}

// FuzzDHCP4: messages of clients and servers in sound datagrams.
func FuzzDHCP4(f *testing.F) {
	fuzzInside(f, map[string]int{"udhcpc discover": atOption, "udhcpc request": atBOOTP, "dnsmasq offer": atOption, "dnsmasq ack": atBOOTP})
}

// FuzzDHCP6: messages of clients and servers in sound datagrams.
func FuzzDHCP6(f *testing.F) {
	fuzzInside(f, map[string]int{"dhclient solicit": atDHCP6, "dhclient request": atDHCP6, "dnsmasq advertise": atDHCP6, "dnsmasq reply": atDHCP6})
}

// TestParseAllocatesNothing: a flood of a guest's frames makes no garbage.
func TestParseAllocatesNothing(t *testing.T) {
	for _, r := range realFrames {
		b := unhex(t, r.hex)
		buf := make([]Membership, 0, MostGroups)
		n := testing.AllocsPerRun(100, func() {
			Parse(r.dir, b, len(b))
			Groups(buf, b, len(b))
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", r.name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, r := range realFrames {
		b.Run(r.name, func(b *testing.B) {
			frame := unhex(b, r.hex)
			b.ReportAllocs()
			for b.Loop() {
				Parse(r.dir, frame, len(frame))
			}
		})
	}
}
