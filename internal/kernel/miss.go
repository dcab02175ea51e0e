package kernel

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// What is handed on of misses. Equal ones of one window are one: a guest that
// asks in vain asks again after a second (kernel-facts 1), and whoever gets a
// miss remembers it. The bound of a network keeps one that scans from filling
// the others' place.
const (
	missWindow    = 100 * time.Millisecond
	missesNetwork = 64  // a window
	missesAll     = 512 // a window
)

// missDevices is for how long it is believed whose network a device is.
const missDevices = time.Second

// missLoss counts what Misses did not hand on.
type missLoss struct{ over, overflows atomic.Uint64 }

// MissesLost counts misses beyond what Misses hands on, each of them, and the
// times that there were more than its socket held, which may be any number.
func (k *Kernel) MissesLost() (over, overflows uint64) {
	return k.lost.over.Load(), k.lost.overflows.Load()
}

// Misses calls f for the misses of networks whose device has
// hoststate.Device.Misses, one call at a time, until ctx ends; then it returns
// ctx.Err(). Those that are equal within a tenth of a second are handed on
// once, and of one network no more than 640 a second. A caller that opens it
// only while such a network is served spares the host the misses of all others.
// f must not call Close.
func (k *Kernel) Misses(ctx context.Context, f func(hoststate.Miss)) error {
	return k.again(ctx, "misses", func() error { return k.missesOnce(ctx, f) })
}

// missesOnce runs until the socket fails or ctx ends. A socket that overflowed
// is read on: what was lost will be asked again.
func (k *Kernel) missesOnce(ctx context.Context, f func(hoststate.Miss)) error {
	l, err := k.listen(unix.NETLINK_ROUTE, onlyMisses, unix.RTNLGRP_NEIGH)
	if err != nil {
		return fmt.Errorf("listen to misses: %w", err)
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { _ = l.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	m := missed{k: k, seen: map[hoststate.Miss]bool{}, of: map[overlay.VNI]int{}, devs: map[int32]overlay.VNI{}}
	for {
		err := l.receive(func(a answer) error {
			if miss, ok := m.take(a, time.Now()); ok {
				f(miss)
			}
			return nil
		})
		if !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		k.lost.overflows.Add(1)
	}
}

// onlyMisses passes RTM_GETNEIGH; compare noMisses.
var onlyMisses = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}, // nlmsg_type
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: networkOrder(unix.RTM_GETNEIGH)},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// missed is what was handed on in this window, and whose the devices are.
type missed struct {
	k     *Kernel
	until time.Time
	seen  map[hoststate.Miss]bool
	of    map[overlay.VNI]int

	known time.Time
	devs  map[int32]overlay.VNI // 0: no device that has misses
}

// take reads a miss and says whether it is to be handed on.
func (m *missed) take(a answer, now time.Time) (miss hoststate.Miss, ok bool) {
	n, err := parseNeigh(a.body)
	if err != nil || a.typ != unix.RTM_GETNEIGH {
		return miss, false
	}
	if miss, ok = n.miss(m.network(n.ifindex, now)); !ok {
		return miss, false
	}
	if !now.Before(m.until) {
		clear(m.seen)
		clear(m.of)
		m.until = now.Add(missWindow)
	}
	if m.seen[miss] {
		return miss, false
	}
	if m.of[miss.VNI] >= missesNetwork || len(m.seen) >= missesAll {
		m.k.lost.over.Add(1)
		return miss, false
	}
	m.seen[miss] = true
	m.of[miss.VNI]++
	return miss, true
}

// miss is what a message says of network v, 0 being none. NDA_VNI is a dummy
// (kernel-facts 1); an address or a MAC to which no endpoint could answer says
// nothing.
func (n neigh) miss(v overlay.VNI) (hoststate.Miss, bool) {
	m := hoststate.Miss{VNI: v}
	switch ip := n.dst; {
	case v == 0:
		return m, false
	case ip.IsValid():
		m.IP = ip
		return m, !ip.IsUnspecified() && !ip.IsMulticast() && !ip.Is4In6()
	}
	m.MAC = n.mac
	return m, n.hasMAC && n.mac.IsUnicast()
}

// network is whose device an ifindex is; 0 if it is none that has misses.
func (m *missed) network(index int32, now time.Time) overlay.VNI {
	if now.Sub(m.known) > missDevices {
		clear(m.devs)
		m.known = now
	}
	v, ok := m.devs[index]
	if ok {
		return v
	}
	if l, err := getLink(m.k.read, index, ""); err == nil && l.Kind == hoststate.LinkVXLAN && l.Flood && l.Master != 0 {
		v, _ = vniOf(l)
	}
	m.devs[index] = v
	return v
}
