package packet

import (
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
)

const (
	icmpEcho       = 8   // RFC 792
	icmpEcho6      = 128 // RFC 4443
	icmpMLDQuery   = 130
	icmpMLDReport  = 131
	icmpMLDDone    = 132
	icmpRS         = 133
	icmpRA         = 134
	icmpNS         = 135
	icmpNA         = 136
	icmpRedirect6  = 137
	icmpMLD2Report = 143

	optSource = 1 // source link-layer address (RFC 4861 section 4.6.1)
	optTarget = 2 // target link-layer address

	ndHopLimit = 255 // anything less was routed and is not believed
)

var (
	allNodes  = netip.MustParseAddr("ff02::1")
	solicited = netip.MustParsePrefix("ff02::1:ff00:0/104") // RFC 4291 section 2.7.1
)

func parseICMPv6(f *Fact, p *parts) Drop {
	if len(p.body) < 4 {
		return Taken
	}
	switch p.body[0] {
	case icmpRS, icmpRA, icmpNS, icmpNA:
		return parseND(f, p)
	case icmpMLDQuery, icmpMLDReport, icmpMLDDone, icmpMLD2Report:
		return parseMLD(f, p)
	}
	return Taken
}

// ndFixed is the length of each message before its options, from RS to NA (RFC
// 4861 section 4).
var ndFixed = [...]int{8, 16, 24, 24}

func parseND(f *Fact, p *parts) Drop {
	b := p.body
	fixed := ndFixed[b[0]-icmpRS]
	switch {
	case len(b) < fixed:
		return NDShort
	case p.hops != ndHopLimit:
		return NDHopLimit
	case b[1] != 0:
		return NDCode
	case p.cut && b[0] != icmpRA: // a router's list may be long, and that it speaks is all that is told
		return Cut
	case !p.cut && ^fold(sum(p.pseudo(protoICMPv6, len(b)), b)) != 0:
		return NDChecksum
	}
	mac, has, d := linkAddr(b[fixed:], b[0] == icmpNA, p.cut)
	switch {
	case d != Taken:
		return d
	case has && mac != f.Src:
		return NDMACMismatch
	}
	f.MAC = f.Src
	switch b[0] {
	case icmpNS:
		return solicit(f, p, has)
	case icmpNA:
		return advertised(f, p, has)
	case icmpRS:
		f.Kind = RouterSolicit
		if p.from.IsUnspecified() && !has {
			return Taken
		}
	default:
		f.Kind, f.Seconds = RouterAdvert, uint32(binary.BigEndian.Uint16(b[6:]))
		if !p.from.IsLinkLocalUnicast() {
			return NDSource
		}
	}
	return source(f, p)
}

// source takes the packet's own source for the fact's address.
func source(f *Fact, p *parts) Drop {
	if !unicast(p.from) {
		return NDSource
	}
	f.IP = p.from
	return Taken
}

func solicit(f *Fact, p *parts, has bool) Drop {
	f.Kind, f.Target = NeighborSolicit, ip6(p.body[8:24])
	if !unicast(f.Target) {
		return NDTarget
	}
	if p.from.IsUnspecified() {
		if has || !solicited.Contains(p.to) {
			return NDSource
		}
		f.Kind = NeighborProbe
		return Taken
	}
	return source(f, p)
}

func advertised(f *Fact, p *parts, has bool) Drop {
	f.Kind, f.IP = NeighborAdvert, ip6(p.body[8:24])
	if !unicast(f.IP) {
		return NDTarget
	}
	for i, flag := range [3]Flags{FlagRouter, FlagSolicited, FlagOverride} { // RFC 4861 section 4.4
		if p.body[4]&(0x80>>i) != 0 {
			f.Flags |= flag
		}
	}
	if has {
		f.Flags |= FlagLinkAddr
	}
	if !unicast(p.from) || p.to.IsMulticast() && f.Flags&FlagSolicited != 0 {
		return NDSource
	}
	return Taken
}

// linkAddr walks the options for the link-layer address that the message may
// carry. In a message that is cut the walk ends where the bytes do.
func linkAddr(opts []byte, target, cut bool) (mac overlay.MAC, has bool, d Drop) {
	want := byte(optSource)
	if target {
		want = optTarget
	}
	for len(opts) > 0 {
		size := 0
		if len(opts) >= 2 {
			size = int(opts[1]) * 8
		}
		switch {
		case len(opts) >= 2 && size == 0: // RFC 4861 section 4.6: silently discarded
			return mac, false, NDOption
		case len(opts) < 8 || size > len(opts):
			if cut {
				return mac, has, Taken
			}
			return mac, false, NDOption
		case opts[0] == want:
			if size != 8 || has { // RFC 2464 section 6
				return mac, false, NDOption
			}
			mac, has = overlay.MAC(opts[2:8]), true
		}
		opts = opts[size:]
	}
	return mac, has, Taken
}

// advert makes the advertisement of target, at src, with its link-layer
// address.
func advert(dst, src overlay.MAC, from, to, target netip.Addr, flags Flags) []byte {
	msg := make([]byte, 8, 32)
	msg[0] = icmpNA
	for i, flag := range [3]Flags{FlagRouter, FlagSolicited, FlagOverride} {
		if flags&flag != 0 {
			msg[4] |= 0x80 >> i
		}
	}
	t := target.As16()
	msg = append(msg, t[:]...)
	msg = append(msg, optTarget, 1)
	return ICMPv6(dst, src, from, to, ndHopLimit, append(msg, src[:]...))
}

// AnswerND tells to, at dst, that ip is at mac: a solicited neighbour
// advertisement with the override flag. An invalid or unspecified to is the
// answer to duplicate address detection: to all nodes, and not solicited (RFC
// 4861 section 7.2.4). router sets the flag that guests keep a default router
// by. Nil if ip is not IPv6.
func AnswerND(dst, mac overlay.MAC, ip, to netip.Addr, router bool) []byte {
	if !ip.Is6() {
		return nil
	}
	flags := FlagOverride
	if router {
		flags |= FlagRouter
	}
	if !to.IsValid() || to.IsUnspecified() {
		return advert(groupMAC(allNodes), mac, ip, allNodes, ip, flags)
	}
	return advert(dst, mac, ip, to, ip, flags|FlagSolicited)
}

// AskND asks for target by a neighbour solicitation of from, at src. With from
// unspecified it is the probe of duplicate address detection (RFC 4862 section
// 5.4.2), which changes nobody's cache. To dst Broadcast it goes to the
// target's solicited-node group, else to the target itself at dst; a probe
// goes to the group's address at dst, since RFC 4861 section 7.1.1 discards
// another destination. Nil if an address is not IPv6.
func AskND(dst, src overlay.MAC, from, target netip.Addr) []byte {
	if !from.Is6() || !target.Is6() {
		return nil
	}
	msg := make([]byte, 8, 32)
	msg[0] = icmpNS
	t := target.As16()
	msg = append(msg, t[:]...)
	if !from.IsUnspecified() {
		msg = append(msg, optSource, 1)
		msg = append(msg, src[:]...)
	}
	g := solicited.Addr().As16()
	copy(g[13:], t[13:])
	to := netip.AddrFrom16(g)
	if dst != Broadcast && !from.IsUnspecified() {
		to = target
	}
	b := ICMPv6(dst, src, from, to, ndHopLimit, msg)
	if b != nil && dst != Broadcast {
		copy(b, dst[:])
	}
	return b
}
