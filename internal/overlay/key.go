package overlay

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
)

// Key is a record's identity within a log.
type Key struct {
	Kind Kind
	UID  UID // of the record; of the network for endpoints
	MAC  MAC // endpoints only
}

// Compare orders keys the same way on every machine; the order has no meaning.
func (k Key) Compare(l Key) int {
	if k.Kind != l.Kind {
		return cmp.Compare(k.Kind, l.Kind)
	}
	if c := k.UID.Compare(l.UID); c != 0 {
		return c
	}
	return bytes.Compare(k.MAC[:], l.MAC[:])
}

// KeyOf is the identity of rec; the zero Key for nil.
func KeyOf(rec Record) Key {
	switch r := rec.(type) {
	case *Tenant:
		return Key{Kind: r.Kind(), UID: r.UID}
	case *Network:
		return Key{Kind: r.Kind(), UID: r.UID}
	case *Port:
		return Key{Kind: r.Kind(), UID: r.UID}
	case *Host:
		return Key{Kind: r.Kind(), UID: r.UID}
	case *Endpoint:
		return Key{Kind: r.Kind(), UID: r.Network, MAC: r.MAC}
	case *Session:
		return Key{Kind: r.Kind(), UID: r.Host}
	case *Floor:
		return Key{Kind: r.Kind(), UID: r.Network}
	case *Domain:
		return Key{Kind: r.Kind(), UID: r.UID}
	case *Policy:
		return Key{Kind: r.Kind(), UID: r.UID}
	case *Gateway:
		return Key{Kind: r.Kind(), UID: r.UID}
	}
	return Key{}
}

// Sum is a 128-bit sum over the keys and revisions of a log's live items. Two
// holders of the same log have the same sum, in whatever order they got there.
type Sum [2]uint64

// Add adds one live key at rev; Sub takes it out again.
func (s *Sum) Add(k Key, rev Rev) { h := sumOf(k, rev); s[0] += h[0]; s[1] += h[1] }

// Sub undoes Add.
func (s *Sum) Sub(k Key, rev Rev) { h := sumOf(k, rev); s[0] -= h[0]; s[1] -= h[1] }

// Bytes is the sum on the wire, 16 bytes.
func (s Sum) Bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, s[0]), s[1])
}

// SumFromBytes reads what Bytes wrote; any other length than 16 is an error.
func SumFromBytes(b []byte) (Sum, error) {
	if len(b) != 16 {
		return Sum{}, fmt.Errorf("sum of %d bytes: want 16", len(b))
	}
	return Sum{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, nil
}

func sumOf(k Key, rev Rev) Sum {
	h := fnv.New128a()
	var b [35]byte
	b[0] = byte(k.Kind)
	copy(b[1:], k.UID[:])
	copy(b[17:], k.MAC[:])
	binary.BigEndian.PutUint32(b[23:], rev.Epoch)
	binary.BigEndian.PutUint64(b[27:], rev.N)
	_, _ = h.Write(b[:]) // a hash never errs
	sum := h.Sum(b[:0])
	return Sum{binary.BigEndian.Uint64(sum), binary.BigEndian.Uint64(sum[8:])}
}
