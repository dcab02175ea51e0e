package agent

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// TestEarsReadWhatIsSaid: what is heard is read at once, a DHCP message whole,
// and stays as it was when the edge uses its buffer again.
func TestEarsReadWhatIsSaid(t *testing.T) {
	guest := overlay.MAC{2, 0, 0, 0, 0, 1}
	v4 := make([]byte, packet.DHCPFixed4)
	v4[0], v4[1], v4[2] = 1, 1, 6
	copy(v4[28:], guest[:])
	binary.BigEndian.PutUint32(v4[236:], packet.DHCPMagic4)
	v4 = append(v4, 53, 1, packet.Discover4, 61, 3, 7, 8, 9, 255)
	v6 := []byte{packet.Solicit6, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 9}
	frames := [][]byte{
		packet.UDP(packet.Broadcast, guest, netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), v4),
		packet.UDP(packet.Broadcast, guest, netip.MustParseAddrPort("[fe80::1]:546"), netip.MustParseAddrPort("[ff02::1:2]:547"), v6),
		packet.AskARP(packet.Broadcast, guest, netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.0.1")),
		packet.UDP(overlay.ServerMAC, guest, netip.MustParseAddrPort("10.0.0.5:1"), netip.MustParseAddrPort("10.1.0.7:2"), []byte("hi")),
		{1, 2, 3},
	}
	e := newEars()
	for _, f := range frames {
		e.hear(hoststate.Heard{Port: 3, Frame: f, Length: len(f), At: 7})
		clear(f)
	}
	got := e.take()
	if len(got) != 4 || e.bad[packet.EthShort] != 1 {
		t.Fatalf("%d of 4 are read, %d are refused", len(got), e.bad[packet.EthShort])
	}
	switch m, n, a, w := got[0], got[1], got[2], got[3]; {
	case m.Fact.Kind != packet.DHCPDiscover || m.DHCP4 == nil || m.DHCP6 != nil || string(m.DHCP4.ClientID) != "\x07\x08\x09" || m.DHCP4.MAC != guest:
		t.Errorf("the first is %+v, %+v", m.Fact, m.DHCP4)
	case n.Fact.Kind != packet.DHCP6Solicit || n.DHCP6 == nil || n.DHCP4 != nil || string(n.DHCP6.ClientID) != "\x00\x03\x00\x09":
		t.Errorf("the second is %+v, %+v", n.Fact, n.DHCP6)
	case a.Fact.Kind != packet.ARPRequest || a.DHCP4 != nil || a.DHCP6 != nil || a.Port != 3 || a.At != 7:
		t.Errorf("the third is %+v", a)
	case w.Fact.Kind != packet.ToRouter || w.Forward == nil || w.Forward.To != netip.MustParseAddr("10.1.0.7") || !strings.HasSuffix(string(w.Forward.Packet), "hi"):
		t.Errorf("the fourth is %+v, %+v", w.Fact, w.Forward)
	}
	if len(e.take()) != 0 {
		t.Error("what was taken is taken again")
	}
	for range maxHeard + 5 {
		f := packet.AskARP(packet.Broadcast, guest, netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.0.1"))
		e.hear(hoststate.Heard{Frame: f, Length: len(f)})
	}
	if n := len(e.take()); n != maxHeard || e.lost != 5 {
		t.Errorf("%d are kept and %d lost, want %d and 5", n, e.lost, maxHeard)
	}
}

// TestEarsHearGroups: what a group report joins is read from it, and what
// nothing comes of is counted by its reason.
func TestEarsHearGroups(t *testing.T) {
	report, err := hex.DecodeString("01005e010203020000000001080046000020000040000102e9ce0a000005ef010203940400001600f8faef010203") // IGMPv2, joins 239.1.2.3
	if err != nil {
		t.Fatal(err)
	}
	e := newEars()
	e.hear(hoststate.Heard{Port: 3, Frame: report, Length: len(report)})
	broken := slices.Clone(report)
	broken[len(broken)-1] ^= 1
	for range 3 {
		e.hear(hoststate.Heard{Port: 3, Frame: broken, Length: len(broken)})
	}
	got := e.take()
	if len(got) != 1 || len(got[0].Groups) != 1 || got[0].Groups[0] != (packet.Membership{Group: netip.MustParseAddr("239.1.2.3"), Join: true}) {
		t.Fatalf("heard %+v, want one report of one group", got)
	}
	e.lost = 2
	if got := fmt.Sprint(e.unread(7)); got != "[{igmp-checksum 3} {punt-limit 7} {agent-busy 2}]" {
		t.Errorf("unread are %s", got)
	}
}

// TestReportTellsPortsOnce: what is seen of ports is in the first report of a
// stream, stays in one that was not sent, and comes again when it is new.
func TestReportTellsPortsOnce(t *testing.T) {
	a := New(&modelKernel{m: kerneltest.New()}, silentManagers{}, Config{Cluster: "c", Host: self, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	told := func(want bool, when string) {
		t.Helper()
		a.report()
		if got := (*a.out.rep).Seen != nil; got != want {
			t.Errorf("%s: ports are told: %v, want %v", when, got, want)
		}
	}
	told(true, "at first")
	told(true, "before that was sent")
	*a.out.rep = nil
	told(false, "nothing is new")
	*a.out.rep = nil
	a.seen = append(a.seen, overlay.Seen{MAC: overlay.MAC{2}})
	told(true, "a port went")
	*a.out.rep = nil
	a.seen = nil // as a new stream does
	told(true, "in a new stream")
}
