package hoststate

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"

	"culvert/internal/overlay"
)

// DeviceAlias is what the alias of a bridge and a VXLAN device of ours says:
// whose it is, which network it was made for, and the revision of the network's
// record by which it was made or tuned last. A device whose alias names another
// network's UID is not adopted.
func DeviceAlias(cluster string, network overlay.UID, rev overlay.Rev) string {
	return fmt.Sprintf("culvert cluster=%s network=%s rev=%d.%d", cluster, network, rev.Epoch, rev.N)
}

// ParseDeviceAlias reads what DeviceAlias wrote. ok is false for anything else.
// The revision is zero in aliases of releases that wrote none.
func ParseDeviceAlias(alias string) (cluster string, network overlay.UID, rev overlay.Rev, ok bool) {
	f := strings.Split(alias, " ")
	if len(f) == 4 {
		if _, err := fmt.Sscanf(f[3], "rev=%d.%d", &rev.Epoch, &rev.N); err != nil {
			return "", overlay.UID{}, overlay.Rev{}, false
		}
		f = f[:3]
	}
	if len(f) != 3 || f[0] != "culvert" {
		return "", overlay.UID{}, overlay.Rev{}, false
	}
	cluster, okC := strings.CutPrefix(f[1], "cluster=")
	uid, okU := strings.CutPrefix(f[2], "network=")
	network, err := overlay.ParseUID(uid)
	return cluster, network, rev, okC && okU && err == nil
}

// MarkKey is the key of the row in TableMark that says: this host's kernel
// holds all that the cluster's logs said up to rev. The revision is in the key,
// because a set has nothing else: to move the mark, the new row is written and
// then the older ones are deleted. Its 16 bytes have the form of an IPv6
// address, and in network order: 32 bits of the cluster's id, hashed, so that a
// host which changes clusters is not held to the old one's numbers; the epoch;
// the number.
func MarkKey(cluster string, rev overlay.Rev) Key {
	var b [16]byte
	binary.BigEndian.PutUint32(b[:], clusterHash(cluster))
	binary.BigEndian.PutUint32(b[4:], rev.Epoch)
	binary.BigEndian.PutUint64(b[8:], rev.N)
	return Key{Table: TableMark, IP: netip.AddrFrom16(b)}
}

// Mark is the revision of a row of TableMark; ok is false for other tables'
// keys and other clusters' marks.
func (k Key) Mark(cluster string) (rev overlay.Rev, ok bool) {
	if k.Table != TableMark || !k.IP.Is6() {
		return overlay.Rev{}, false
	}
	b := k.IP.As16()
	return k.rev(), binary.BigEndian.Uint32(b[:]) == clusterHash(cluster)
}

func (k Key) rev() overlay.Rev {
	b := k.IP.As16()
	return overlay.Rev{Epoch: binary.BigEndian.Uint32(b[4:]), N: binary.BigEndian.Uint64(b[8:])}
}

func clusterHash(cluster string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(cluster))
	return h.Sum32()
}
