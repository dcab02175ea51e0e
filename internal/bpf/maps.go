package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// The structures of culvert.h, field by field.
type (
	bucket struct{ Interval, Depth uint64 }

	config struct {
		Layout                         uint32
		UDPPort, _                     uint16
		NetNS                          uint64
		Storm, Punt, Unclaimed, Router bucket
		Unknown                        bucket
	}

	portConf struct {
		MAC   overlay.MAC
		Flags uint16
		VNI   overlay.VNI
		_     uint32
		IP    [2][16]byte // see ownKey.family
	}

	portState struct {
		Storm, Punt, Unclaimed, Router uint64
		Unknown                        uint64
		Drops                          [32]uint64
		Bridge                         uint32
		VNI                            overlay.VNI
	}

	ownKey struct {
		Port, Kind uint32
		Addr       [16]byte
	}

	networkKey struct {
		MAC  overlay.MAC
		Kind uint16
		IP   [16]byte
	}

	networkVal struct {
		MAC overlay.MAC
		N   uint16
	}

	relayKey struct {
		Device uint32
		MAC    overlay.MAC
		_      uint16
	}

	routeKey struct {
		Bits uint32
		VNI  [4]byte // network order
		IP   [16]byte
	}
)

const configSize = 96

const (
	ownIP  = 0
	ownMAC = 1

	asShared  = 1
	asRouters = 2

	keySource   = 1
	keyRelayed  = 2
	keyReachIP  = 3
	keyReachMAC = 4
	keyKnown    = 5
	keyFrom     = 6
	keyRouted   = 7

	asStrangers = 1   // networkVal.N
	hopV4       = 256 // networkVal.N of a route, beside the length of its prefix

	relaying = 1 // bits of cv_turning
	aliasing = 2
)

// flags are hoststate's and the program's.
var flags = [...]struct {
	row  hoststate.Flags
	prog uint16
}{{hoststate.Open, 1}, {hoststate.CheckIP, 2}, {hoststate.NoServers, 4}, {hoststate.Watch, 8}, {hoststate.CheckLocal, 16}, {hoststate.Routed, 32}, {hoststate.Demand, 64}}

func portOf(v hoststate.Val) portConf {
	c := portConf{MAC: v.MAC}
	for _, f := range flags {
		if v.Flags&f.row != 0 {
			c.Flags |= f.prog
		}
	}
	return c
}

func (c portConf) val() hoststate.Val {
	v := hoststate.Val{MAC: c.MAC}
	for _, f := range flags {
		if c.Flags&f.prog != 0 {
			v.Flags |= f.row
		}
	}
	return v
}

func ownOf(k hoststate.Key) ownKey {
	if k.IP.IsValid() {
		return ownKey{Port: uint32(k.Port), Kind: ownIP, Addr: k.IP.As16()}
	}
	o := ownKey{Port: uint32(k.Port), Kind: ownMAC}
	copy(o.Addr[:], k.MAC[:])
	return o
}

// ownedAs is an entry's value: whether others may claim the address, too.
func ownedAs(v hoststate.Val) uint8 {
	switch {
	case v.Flags&hoststate.Router != 0:
		return asRouters
	case v.Flags&hoststate.Shared != 0:
		return asShared
	}
	return 0
}

// ownedVal is what ownedAs was made of.
func ownedVal(as uint8) (v hoststate.Val) {
	switch as {
	case asShared:
		v.Flags = hoststate.Shared
	case asRouters:
		v.Flags = hoststate.Router
	}
	return v
}

func (o ownKey) key() hoststate.Key {
	k := hoststate.Key{Table: hoststate.TableOwn, Port: int32(o.Port)}
	if o.Kind == ownMAC {
		k.MAC = overlay.MAC(o.Addr[:6])
	} else {
		k.IP = addr(o.Addr)
	}
	return k
}

func addr(b [16]byte) netip.Addr { return netip.AddrFrom16(b).Unmap() }

// tables are those that live in a network's map, by kind of key.
var tables = [...]hoststate.Table{
	keySource: hoststate.TableSource, keyRelayed: hoststate.TableRelayed, keyReachIP: hoststate.TableReach, keyReachMAC: hoststate.TableReach,
	keyKnown: hoststate.TableKnown, keyFrom: hoststate.TableFrom, keyRouted: hoststate.TableRouted,
}

// kindOf is 0 if a table lives elsewhere.
func kindOf(k hoststate.Key) uint16 {
	if k.Table == hoststate.TableReach && !k.IP.IsValid() {
		return keyReachMAC
	}
	return uint16(max(0, slices.Index(tables[:], k.Table)))
}

func networkKeyOf(k hoststate.Key) networkKey {
	n := networkKey{MAC: k.MAC, Kind: kindOf(k)}
	if k.IP.IsValid() {
		n.IP = k.IP.As16()
	}
	return n
}

// key is what networkKeyOf was given; of the zero table if there is no such kind.
func (n networkKey) key(v overlay.VNI) hoststate.Key {
	k := hoststate.Key{VNI: v, MAC: n.MAC}
	if int(n.Kind) < len(tables) {
		k.Table = tables[n.Kind]
	}
	if n.Kind != keyReachMAC && n.Kind != keyKnown {
		k.IP = addr(n.IP)
	}
	return k
}

func networkValOf(v hoststate.Val) networkVal {
	n := networkVal{MAC: v.MAC, N: v.MTU}
	if v.Flags&hoststate.Strangers != 0 {
		n.N = asStrangers
	}
	return n
}

func (n networkVal) val(k networkKey) hoststate.Val {
	v := hoststate.Val{MAC: n.MAC}
	switch {
	case k.Kind == keyReachIP:
		v.MTU = n.N
	case n.N == asStrangers:
		v.Flags = hoststate.Strangers
	}
	return v
}

// routeOf is a route's key, and what tells its value from that of a shorter
// prefix, which a look for it finds, too.
func routeOf(k hoststate.Key) (r routeKey, n uint16) {
	r = routeKey{IP: k.IP.As16()}
	binary.BigEndian.PutUint32(r.VNI[:], uint32(k.VNI))
	n = uint16(k.Bits)
	if k.IP.Is4() {
		n += 96 + hopV4
	}
	r.Bits = 32 + uint32(n&^hopV4)
	return r, n
}

func (r routeKey) vni() overlay.VNI { return overlay.VNI(binary.BigEndian.Uint32(r.VNI[:])) }

func (r routeKey) row(v networkVal) hoststate.Row {
	k := hoststate.Key{Table: hoststate.TableRoute, VNI: r.vni(), IP: netip.AddrFrom16(r.IP), Bits: uint8(r.Bits - 32)}
	if v.N&hopV4 != 0 {
		k.IP, k.Bits = k.IP.Unmap(), k.Bits-96
	}
	return hoststate.Row{Key: k, Val: hoststate.Val{MAC: v.MAC}}
}

// Numbers of entries a call.
const (
	chunk = 1024
	few   = 32
)

// put writes entries, in batches; of each that is refused the error is handed
// to failed. A batch ends at its first refusal, so the rest of it is written
// one by one.
func put[K, V any](m *ebpf.Map, keys []K, values []V, failed func(i int, err error)) {
	for from := 0; from < len(keys); from += chunk {
		to := min(from+chunk, len(keys))
		n, err := m.BatchUpdate(keys[from:to], values[from:to], nil)
		if err == nil {
			continue
		}
		for i := from + max(n, 0); i < to; i++ {
			if err := m.Put(keys[i], values[i]); err != nil {
				failed(i, err)
			}
		}
	}
}

// remove deletes entries as put writes them. ebpf.ErrKeyNotExist wraps
// unix.ENOENT.
func remove[K any](m *ebpf.Map, keys []K, failed func(i int, err error)) {
	for from := 0; from < len(keys); from += chunk {
		to := min(from+chunk, len(keys))
		n, err := m.BatchDelete(keys[from:to], nil)
		if err == nil {
			continue
		}
		for i := from + max(n, 0); i < to; i++ {
			if err := m.Delete(keys[i]); err != nil {
				failed(i, err)
			}
		}
	}
}

// each reads a map. An entry that stands during the whole call is handed out
// once; the kernel walks the table bucket by bucket. Most tables are small, so
// that the first call has room for few.
func each[K, V any](m *ebpf.Map, f func(K, V)) error {
	most := int(min(chunk, m.MaxEntries()))
	n := min(few, most)
	keys, values := make([]K, n), make([]V, n)
	var at ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&at, keys, values, nil)
		for i := range n {
			f(keys[i], values[i])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case errors.Is(err, unix.ENOSPC) && len(keys) < most: // a bucket has more than there is room for
		case err != nil:
			return err
		}
		if len(keys) < most {
			keys, values = make([]K, most), make([]V, most)
		}
	}
}

// get is one entry. ok is false if there is none.
func get[K, V any](m *ebpf.Map, k K) (v V, ok bool, err error) {
	err = m.Lookup(k, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	return v, err == nil, err
}
