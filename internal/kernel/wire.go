package kernel

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// native is the byte order of netlink headers and rtnetlink attributes;
// nftables attributes are in network order.
var native = binary.NativeEndian

// batch is netlink messages one after the other, as sent.
type batch struct {
	b     []byte
	start int // of the message being built
}

// begin starts a message; its length is filled in by end.
func (m *batch) begin(typ, flags uint16, seq uint32) {
	m.start = len(m.b)
	m.b = native.AppendUint32(m.b, 0)
	m.b = native.AppendUint16(m.b, typ)
	m.b = native.AppendUint16(m.b, flags|unix.NLM_F_REQUEST)
	m.b = native.AppendUint32(m.b, seq)
	m.b = native.AppendUint32(m.b, 0)
}

func (m *batch) end() { native.PutUint32(m.b[m.start:], uint32(len(m.b)-m.start)) }

// addFlags sets header flags of the message last begun.
func (m *batch) addFlags(flags uint16) {
	at := m.start + 6
	native.PutUint16(m.b[at:], native.Uint16(m.b[at:])|flags)
}

func (m *batch) raw(p ...byte) { m.b = append(m.b, p...) }

// attr appends one attribute, padded to 4 bytes.
func (m *batch) attr(typ uint16, data []byte) {
	m.b = native.AppendUint16(m.b, uint16(4+len(data)))
	m.b = native.AppendUint16(m.b, typ)
	m.b = append(m.b, data...)
	m.pad()
}

func (m *batch) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *batch) u8(typ uint16, v uint8) { m.attr(typ, []byte{v}) }

func (m *batch) u32(typ uint16, v uint32) {
	m.b = native.AppendUint16(m.b, 8)
	m.b = native.AppendUint16(m.b, typ)
	m.b = native.AppendUint32(m.b, v)
}

// be16 is a 16-bit value in network order (UDP ports of IFLA_VXLAN_PORT).
func (m *batch) be16(typ uint16, v uint16) {
	m.attr(typ, binary.BigEndian.AppendUint16(nil, v))
}

func (m *batch) str(typ uint16, s string) { m.attr(typ, append([]byte(s), 0)) }

func (m *batch) addr(typ uint16, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		m.attr(typ, b[:])
		return
	}
	b := a.As16()
	m.attr(typ, b[:])
}

// nest appends an attribute whose content f appends.
func (m *batch) nest(typ uint16, f func()) {
	at := len(m.b)
	m.b = native.AppendUint16(m.b, 0)
	m.b = native.AppendUint16(m.b, typ|unix.NLA_F_NESTED)
	f()
	native.PutUint16(m.b[at:], uint16(len(m.b)-at))
}

var errTruncated = errors.New("truncated netlink message")

// eachAttr calls f for each attribute of b, with the flag bits of the type
// removed. A cut attribute is an error: half a message is never used.
func eachAttr(b []byte, f func(typ uint16, data []byte)) error {
	for len(b) >= 4 {
		n := int(native.Uint16(b))
		if n < 4 || n > len(b) {
			return errTruncated
		}
		f(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
	if len(b) != 0 {
		return errTruncated
	}
	return nil
}

// str0 is a string attribute without its terminating zero.
func str0(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}

// ipAttr is an address attribute; invalid if it has neither 4 nor 16 bytes.
func ipAttr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func u32Attr(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

func u8Attr(b []byte) uint8 {
	if len(b) < 1 {
		return 0
	}
	return b[0]
}
