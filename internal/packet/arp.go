package packet

import (
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
)

const (
	arpLen     = 28
	arpRequest = 1
	arpReply   = 2
	rarpAsk    = 3 // request reverse (RFC 903)
)

// arpHeader checks what ARP and RARP share and returns the operation.
func arpHeader(src overlay.MAC, b []byte) (op uint16, d Drop) {
	switch {
	case len(b) < arpLen:
		return 0, ARPShort
	case binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != TypeIPv4 || b[4] != 6 || b[5] != 4:
		return 0, ARPHardware
	case overlay.MAC(b[8:14]) != src:
		return 0, ARPMACMismatch
	}
	return binary.BigEndian.Uint16(b[6:]), Taken
}

func parseARP(f *Fact, b []byte) Drop {
	op, d := arpHeader(f.Src, b)
	if d != Taken {
		return d
	}
	if op != arpRequest && op != arpReply {
		return ARPOperation
	}
	f.MAC = f.Src
	sender, target := ip4(b[14:18]), ip4(b[24:28])
	switch {
	case sender.IsUnspecified() && op == arpRequest && unicast(target):
		f.Kind, f.Target = ARPProbe, target
		return Taken
	case !unicast(sender):
		return ARPAddress
	}
	f.IP = sender
	switch {
	case sender == target:
		f.Kind = ARPAnnouncement
	case op == arpRequest && unicast(target):
		f.Kind, f.Target = ARPRequest, target
	case op == arpReply && (unicast(target) || target.IsUnspecified()): // 0: answer to a probe
		f.Kind = ARPReply
		if !target.IsUnspecified() {
			f.Target = target
		}
	default:
		return ARPAddress
	}
	return Taken
}

func parseRARP(f *Fact, b []byte) Drop {
	op, d := arpHeader(f.Src, b)
	if d != Taken {
		return d
	}
	if op != rarpAsk || overlay.MAC(b[18:24]) != f.Src {
		return ARPOperation
	}
	f.Kind, f.MAC = RARPAnnouncement, f.Src
	return Taken
}

func arpFrame(dst, src overlay.MAC, typ, op uint16, sender, target netip.Addr, targetMAC overlay.MAC) []byte {
	if !sender.Is4() || !target.Is4() {
		return nil
	}
	s, t := sender.As4(), target.As4()
	b := ethernet(dst, src, typ)
	b = append(b, 0, 1, byte(TypeIPv4>>8), byte(TypeIPv4&0xff), 6, 4) // Ethernet, IPv4 (RFC 826)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, src[:]...)
	b = append(b, s[:]...)
	b = append(b, targetMAC[:]...)
	b = append(b, t[:]...)
	return pad(b)
}

// AskARP is a request by IP from, at src, for target. To dst Broadcast it is
// the question of RFC 826; to one MAC it is a unicast poll (RFC 1122 section
// 2.3.2.1); with from 0.0.0.0 it is a probe (RFC 5227 section 2.1.1), which
// changes nobody's cache. Nil if an address is not IPv4.
func AskARP(dst, src overlay.MAC, from, target netip.Addr) []byte {
	return arpFrame(dst, src, TypeARP, arpRequest, from, target, overlay.MAC{})
}

// AnswerARP tells to, at dst, that ip is at mac (RFC 826). to is 0.0.0.0 in the
// answer to a probe. Nil if an address is not IPv4.
func AnswerARP(dst, mac overlay.MAC, ip, to netip.Addr) []byte {
	return arpFrame(dst, mac, TypeARP, arpReply, ip, to, dst)
}

// RARP is the frame by which QEMU tells switches that mac has moved to this
// host: a reverse request to all, which no host answers and no cache takes
// (QEMU's net/announce.c).
func RARP(mac overlay.MAC) []byte {
	zero := netip.IPv4Unspecified()
	return arpFrame(Broadcast, mac, typeRARP, rarpAsk, zero, zero, mac)
}
