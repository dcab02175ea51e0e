package agent

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"culvert/internal/hoststate"
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
		{1, 2, 3},
	}
	e := newEars()
	for _, f := range frames {
		e.hear(hoststate.Heard{Port: 3, Frame: f, Length: len(f), At: 7})
		clear(f)
	}
	got := e.take()
	if len(got) != 3 || e.bad[packet.EthShort] != 1 {
		t.Fatalf("%d of 3 are read, %d are refused", len(got), e.bad[packet.EthShort])
	}
	switch m, n, a := got[0], got[1], got[2]; {
	case m.Fact.Kind != packet.DHCPDiscover || m.DHCP4 == nil || m.DHCP6 != nil || string(m.DHCP4.ClientID) != "\x07\x08\x09" || m.DHCP4.MAC != guest:
		t.Errorf("the first is %+v, %+v", m.Fact, m.DHCP4)
	case n.Fact.Kind != packet.DHCP6Solicit || n.DHCP6 == nil || n.DHCP4 != nil || string(n.DHCP6.ClientID) != "\x00\x03\x00\x09":
		t.Errorf("the second is %+v, %+v", n.Fact, n.DHCP6)
	case a.Fact.Kind != packet.ARPRequest || a.DHCP4 != nil || a.DHCP6 != nil || a.Port != 3 || a.At != 7:
		t.Errorf("the third is %+v", a)
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
