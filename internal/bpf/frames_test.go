package bpf

import (
	"encoding/binary"
	"net/netip"

	"culvert/internal/overlay"
)

// Makers of frames. Lengths are right and checksums are none, for no program
// looks at those.

func cat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func eth(dst, src overlay.MAC, typ uint16, payload ...[]byte) []byte {
	b := cat(dst[:], src[:], be16(typ), cat(payload...))
	for len(b) < 60 {
		b = append(b, 0)
	}
	return b
}

// tag is an 802.1Q tag before the type of what follows.
func tag(vid, typ uint16) []byte { return cat(be16(vid), be16(typ)) }

func arp(op uint16, sha overlay.MAC, spa, tpa netip.Addr) []byte {
	return cat(be16(1), be16(0x0800), []byte{6, 4}, be16(op), sha[:], spa.AsSlice(), make([]byte, 6), tpa.AsSlice())
}

func ip4(src, dst netip.Addr, proto byte, payload ...[]byte) []byte {
	p := cat(payload...)
	return cat([]byte{0x45, 0}, be16(uint16(20+len(p))), []byte{0, 1, 0, 0, 64, proto, 0, 0}, src.AsSlice(), dst.AsSlice(), p)
}

// fragment sets the fragment field of an IPv4 packet: flags and offset.
func fragment(p []byte, field uint16) []byte {
	binary.BigEndian.PutUint16(p[6:], field)
	return p
}

func ip6(src, dst netip.Addr, next byte, payload ...[]byte) []byte {
	p := cat(payload...)
	return cat([]byte{0x60, 0, 0, 0}, be16(uint16(len(p))), []byte{next, 255}, src.AsSlice(), dst.AsSlice(), p)
}

// options is an extension header of 8 bytes: hop by hop, destination.
func options(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

func udp(sport, dport uint16, payload ...[]byte) []byte {
	p := cat(payload...)
	return cat(be16(sport), be16(dport), be16(uint16(8+len(p))), []byte{0, 0}, p)
}

func icmp6(typ byte, target netip.Addr) []byte {
	b := []byte{typ, 0, 0, 0, 0, 0, 0, 0}
	if target.IsValid() {
		b = append(b, target.AsSlice()...)
	}
	return b
}

// vxlan is a VXLAN header with an inner frame.
func vxlan(flags byte, vni overlay.VNI, inner []byte) []byte {
	return cat([]byte{flags, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}, inner)
}
