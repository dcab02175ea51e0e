// Package answer makes what a host tells its guests on behalf of their
// network: DHCPv4 and DHCPv6 answers, router advertisements, and the ICMP of
// their router. It is pure: a message and a configuration give a frame, or a
// named reason to be silent. Leases are not kept here: an address belongs to
// the port that it was declared for, so the same question has the same answer
// at any time.
package answer

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// Silence says why a message gets no answer. The zero value means that it
// gets one.
type Silence uint8

// The reasons.
const (
	Spoken      Silence = iota
	NotAsked            // the message asks for nothing
	OtherServer         // it is for another server
	NoAddress           // no address is configured for the guest
	Malformed           // it must be discarded: an option that it has or lacks
)

var silenceNames = [...]string{"spoken", "not-asked", "other-server", "no-address", "malformed"}

// String is the name for counters: lower case and hyphens.
func (s Silence) String() string {
	if int(s) < len(silenceNames) {
		return silenceNames[s]
	}
	return "unknown"
}

// Forever is the lease time that never ends (RFC 2131 section 3.3, RFC 8415
// section 7.7).
const Forever uint32 = 0xffffffff

// part is tenths/10 of a lease, for the times to renew and rebind.
func part(seconds, tenths uint32) uint32 {
	if seconds == Forever {
		return Forever
	}
	return uint32(uint64(seconds) * uint64(tenths) / 10)
}

// names encodes domain names by RFC 1035 section 3.1 without compression,
// which RFC 8106 and RFC 8415 forbid and RFC 3397 does not require. A name
// that DNS cannot hold is left out.
func names(list []string) []byte {
	var all []byte
	for _, name := range list {
		labels := strings.Split(strings.TrimSuffix(name, "."), ".")
		var b []byte
		for _, l := range labels {
			if len(l) == 0 || len(l) > 63 {
				b = nil
				break
			}
			b = append(append(b, byte(len(l))), l...)
		}
		if len(b) > 0 && len(b) < 255 {
			all = append(append(all, b...), 0)
		}
	}
	return all
}

// addresses joins the addresses of list that are of one family, at most most.
func addresses(list []netip.Addr, six bool, most int) []byte {
	var b []byte
	for _, a := range list {
		if a.Is6() == six && a.IsValid() && most > 0 {
			b = append(b, a.AsSlice()...)
			most--
		}
	}
	return b
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
