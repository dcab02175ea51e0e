package answer

import (
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// Router is what a router advertisement tells (RFC 4861 section 4.2, RFC 8106).
type Router struct {
	MAC      overlay.MAC
	IP       netip.Addr // link-local
	Seconds  uint16     // how long it is a default router; 0: it is none
	Managed  bool       // addresses come by DHCPv6
	Other    bool       // other configuration comes by DHCPv6
	MTU      uint32     // told from 1280 on (RFC 8200 section 5)
	Prefixes []Prefix
	DNS      []netip.Addr
	Search   []string
	Lifetime uint32 // seconds for which DNS and Search hold
}

// Prefix is one prefix information option (RFC 4861 section 4.6.2).
type Prefix struct {
	Prefix    netip.Prefix
	OnLink    bool
	Auto      bool   // guests may form addresses by themselves
	Valid     uint32 // seconds; Forever
	Preferred uint32 // seconds, at most Valid
}

// Advertise is the frame that tells r to one guest, or to all on the link if
// to is invalid. Nil if r.IP is not IPv6 or there is more than a packet holds.
func Advertise(r Router, dst overlay.MAC, to netip.Addr) []byte {
	if !to.IsValid() {
		to = netip.IPv6LinkLocalAllNodes()
	}
	b := make([]byte, 16, 128)
	b[0], b[4] = 134, 64 // the hop limit that hosts use by default
	if r.Managed {
		b[5] |= 0x80
	}
	if r.Other {
		b[5] |= 0x40
	}
	binary.BigEndian.PutUint16(b[6:], r.Seconds)
	b = append(append(b, 1, 1), r.MAC[:]...) // source link-layer address
	if r.MTU >= 1280 {
		b = append(append(b, 5, 1, 0, 0), be32(r.MTU)...)
	}
	for _, p := range r.Prefixes {
		if !p.Prefix.IsValid() || !p.Prefix.Addr().Is6() {
			continue
		}
		var flags byte
		if p.OnLink {
			flags |= 0x80
		}
		if p.Auto {
			flags |= 0x40
		}
		b = append(b, 3, 4, byte(p.Prefix.Bits()), flags)
		b = append(append(b, be32(p.Valid)...), be32(min(p.Preferred, p.Valid))...)
		b = append(append(b, 0, 0, 0, 0), p.Prefix.Masked().Addr().AsSlice()...)
	}
	if list := addresses(r.DNS, true, mostDNS6); len(list) > 0 {
		b = append(append(b, 25, byte(1+len(list)/8), 0, 0), be32(r.Lifetime)...)
		b = append(b, list...)
	}
	if list := names(r.Search); len(list) > 0 && len(list) < 512 {
		for len(list)%8 != 0 { // RFC 8106 section 5.2: zeros to a multiple of 8
			list = append(list, 0)
		}
		b = append(append(b, 31, byte(1+len(list)/8), 0, 0), be32(r.Lifetime)...)
		b = append(b, list...)
	}
	return packet.ICMPv6(dst, r.MAC, r.IP, to, 255, b)
}
