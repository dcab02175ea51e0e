package hoststate

import (
	"encoding/binary"
	"hash/fnv"

	"culvert/internal/overlay"
)

// Error is what a read that did not succeed means. No part of what was read
// is handed out with it: half a dump would look like deletions.
type Error struct {
	What  string // noun phrase: "read links"
	Class Class  // never ClassOK
	Text  string // the kernel's words, for people
}

// Error is "read links: transient: interrupted dump".
func (e *Error) Error() string { return e.What + ": " + e.Class.String() + ": " + e.Text }

// BridgeMAC is the address of the network's bridge on this host. It is given
// at creation because a bridge without one takes that of a port and changes
// it as ports come and go.
func (d Device) BridgeMAC() overlay.MAC { return d.mac('b') }

// VXLANMAC is the address of the network's VXLAN device on this host: the
// same after a re-creation, and set at creation because a change of it loses
// all neighbours (kernel-facts 2).
func (d Device) VXLANMAC() overlay.MAC { return d.mac('x') }

// mac folds 56 bits of VNI and address into the 46 free bits of a locally
// administered unicast address (IEEE 802, section 8.4).
func (d Device) mac(kind byte) overlay.MAC {
	h := fnv.New64a()
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(d.VNI))
	local := d.Local.As16()
	h.Write([]byte{kind})
	h.Write(b[:])
	h.Write(local[:])
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], h.Sum64())
	m := overlay.MAC(sum[2:8])
	m[0] = m[0]&^1 | 2
	return m
}
