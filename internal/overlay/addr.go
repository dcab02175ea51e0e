package overlay

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// VNI is a VXLAN network identifier (RFC 7348 section 5: 24 bits). Zero means
// "to be allocated"; valid values are 1 to MaxVNI.
type VNI uint32

// MaxVNI is the largest VNI that the API accepts. The kernel takes
// 16777215 as well as 0; we refuse only 0, which means "allocate".
const MaxVNI VNI = 1<<24 - 1

// Valid reports whether v is a VNI that may stand in a kernel table.
func (v VNI) Valid() bool { return v >= 1 && v <= MaxVNI }

// Bridge is the name of the network's bridge on every host. It is what users
// write into libvirt XML, so it never changes. At most 11 bytes (IFNAMSIZ 16).
func (v VNI) Bridge() string { return BridgePrefix + strconv.FormatUint(uint64(v), 10) }

// VXLAN is the name of the network's VXLAN device on every host.
func (v VNI) VXLAN() string { return VXLANPrefix + strconv.FormatUint(uint64(v), 10) }

// Prefixes of the devices that an agent makes.
const (
	BridgePrefix = "cvb"
	VXLANPrefix  = "cvx"
)

// VNIOfDevice takes the VNI out of a device name made by Bridge or VXLAN.
// ok is false for any other name, also for one with leading zeros.
func VNIOfDevice(name string) (v VNI, ok bool) {
	s, found := strings.CutPrefix(name, BridgePrefix)
	if !found {
		if s, found = strings.CutPrefix(name, VXLANPrefix); !found {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || s[0] == '0' || !VNI(n).Valid() {
		return 0, false
	}
	return VNI(n), true
}

// MAC is an Ethernet address (IEEE 802, 48 bits).
type MAC [6]byte

// ParseMAC reads the colon form, in either case, and nothing else: the other
// forms that net.ParseMAC takes (dots, dashes, EUI-64) are how typos pass.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	if len(s) != 17 {
		return MAC{}, fmt.Errorf("MAC %q: want six octets like 52:54:00:12:34:56", s)
	}
	for i := range m {
		if i < 5 && s[3*i+2] != ':' {
			return MAC{}, fmt.Errorf("MAC %q: want six octets like 52:54:00:12:34:56", s)
		}
		if _, err := hex.Decode(m[i:i+1], []byte(s[3*i:3*i+2])); err != nil {
			return MAC{}, fmt.Errorf("MAC %q: want six octets like 52:54:00:12:34:56", s)
		}
	}
	return m, nil
}

// String is the colon form in lower case.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// IsZero reports the all-zero address, the key of the VXLAN default entry.
func (m MAC) IsZero() bool { return m == MAC{} }

// IsUnicast reports whether m may be the address of one interface: the group
// bit is clear and it is not all-zero.
func (m MAC) IsUnicast() bool { return m[0]&1 == 0 && !m.IsZero() }

// UID names a record for ever: made once, never used again. Names are for
// people and may be taken anew; records, the wire, devices and the audit refer
// to UIDs.
type UID [16]byte

// ParseUID reads the 32 hexadecimal digits that String prints.
func ParseUID(s string) (UID, error) {
	var u UID
	if len(s) != 32 {
		return UID{}, fmt.Errorf("uid %q: want 32 hexadecimal digits", s)
	}
	if _, err := hex.Decode(u[:], []byte(s)); err != nil {
		return UID{}, fmt.Errorf("uid %q: want 32 hexadecimal digits", s)
	}
	return u, nil
}

// UIDFromBytes takes the 16 bytes of the wire and store form. Any other length
// is an error, the zero UID included: it stands for "none".
func UIDFromBytes(b []byte) (UID, error) {
	if len(b) != 16 {
		return UID{}, fmt.Errorf("uid of %d bytes: want 16", len(b))
	}
	return UID(b), nil
}

// String is 32 hexadecimal digits in lower case.
func (u UID) String() string { return hex.EncodeToString(u[:]) }

// IsZero reports the UID that stands for "none".
func (u UID) IsZero() bool { return u == UID{} }

// Compare orders UIDs bytewise; the order has no meaning but is the same on
// every machine.
func (u UID) Compare(v UID) int { return bytes.Compare(u[:], v[:]) }

// Rev is a revision, the only order of events there is: the store's global
// number N within an Epoch; a restore raises the epoch.
type Rev struct {
	Epoch uint32
	N     uint64
}

// Compare orders by epoch, then by number.
func (r Rev) Compare(s Rev) int {
	switch {
	case r == s:
		return 0
	case r.Epoch < s.Epoch, r.Epoch == s.Epoch && r.N < s.N:
		return -1
	}
	return 1
}

// Less reports whether r is older than s.
func (r Rev) Less(s Rev) bool { return r.Compare(s) < 0 }

// IsZero reports the revision before all others.
func (r Rev) IsZero() bool { return r == Rev{} }

// String is "N" in the first epoch and "epoch.N" in later ones.
func (r Rev) String() string {
	if r.Epoch <= 1 {
		return strconv.FormatUint(r.N, 10)
	}
	return fmt.Sprintf("%d.%d", r.Epoch, r.N)
}

// EUI64LinkLocal is the fe80:: address that a guest derives from its MAC when
// it uses no privacy scheme (RFC 4291 appendix A).
func EUI64LinkLocal(m MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}
