package answer

import (
	"net/netip"
	"slices"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// Why a router did not send a packet on (RFC 792, RFC 1812 section 5.2.7, RFC
// 4443 section 3).
type Why uint8

// The reasons.
const (
	NoRoute Why = iota // nothing leads to the destination
	NoHost             // its network can be reached, and nobody there has it
	NoPort             // it is the router's own, and nobody listens there
	TooFar             // the hop limit was exceeded on the way
)

// icmpError is type and code of an error, for IPv4 and IPv6.
type icmpError struct{ four, six [2]byte }

var icmpErrors = [...]icmpError{
	NoRoute: {[2]byte{3, 0}, [2]byte{1, 0}},
	NoHost:  {[2]byte{3, 1}, [2]byte{1, 3}},
	NoPort:  {[2]byte{3, 3}, [2]byte{1, 4}},
	TooFar:  {[2]byte{11, 0}, [2]byte{3, 0}},
}

// tooBig is RFC 792's "fragmentation needed", and RFC 4443 section 3.2.
var tooBig = icmpError{[2]byte{3, 4}, [2]byte{2, 0}}

// Limits of a whole error in bytes, with its IP header: RFC 1812 section 4.3.2.3
// and RFC 4443 section 2.4 (c).
const (
	mostError4 = 576
	mostError6 = 1280
)

// Undelivered tells the guest that sent f why it was not sent on, from router:
// an address in a subnet of the guest's own. It quotes as much of the packet as
// was kept and there is room for, and nothing behind that, so that there is no
// length to tell (RFC 4884 section 4). Nil if nothing may be said about such a
// packet, or the router has no address of its family.
func Undelivered(f packet.Forward, why Why, mac overlay.MAC, router netip.Addr) []byte {
	if int(why) >= len(icmpErrors) {
		return nil
	}
	return undelivered(f, icmpErrors[why], 0, mac, router)
}

// TooBig tells it that packets may have mtu bytes (RFC 1191 section 4, RFC 4443
// section 3.2). Hosts cut no packet for the way, so it is told so as well if
// those of IPv4 might be cut: who sends them does it then.
func TooBig(f packet.Forward, mtu uint16, mac overlay.MAC, router netip.Addr) []byte {
	return undelivered(f, tooBig, mtu, mac, router)
}

func undelivered(f packet.Forward, e icmpError, mtu uint16, mac overlay.MAC, router netip.Addr) []byte {
	if f.Mute || router.Is4() != f.From.Is4() {
		return nil
	}
	room, kind := mostError4-20-8, e.four
	if router.Is6() {
		room, kind = mostError6-40-8, e.six
	}
	msg := append([]byte{kind[0], kind[1], 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, f.Packet[:min(room, len(f.Packet))]...)
	if router.Is6() {
		return packet.ICMPv6(f.MAC, mac, router, f.From, 64, msg)
	}
	// The type of service is the packet's, the precedence that of internetwork
	// control (RFC 1812 section 4.3.2.5).
	return packet.ICMPv4(f.MAC, mac, router, f.From, f.Class&0x1e|0xc0, msg)
}

// Echo answers an echo request to an address of the router's (RFC 792, RFC 4443
// section 4.2): the same message back. Nil if f is none that can be answered.
func Echo(f packet.Forward, mac overlay.MAC) []byte {
	if f.Echo == nil {
		return nil
	}
	msg := slices.Clone(f.Echo)
	msg[2], msg[3] = 0, 0
	if f.To.Is4() {
		msg[0] = 0
		return packet.ICMPv4(f.MAC, mac, f.To, f.From, f.Class, msg)
	}
	msg[0] = 129
	return packet.ICMPv6(f.MAC, mac, f.To, f.From, 64, msg)
}
