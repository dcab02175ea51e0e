package kernel

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// TestMissesHideNoForeignWrite: a guest asks for 50,000 addresses that nobody
// has; meanwhile a foreign write rings, and nothing overflows (facts-10).
func TestMissesHideNoForeignWrite(t *testing.T) {
	r := newRig(t, 1)
	h := r.hosts[0]
	g := h.vm("vm1", macN(1))
	misses := missListener(t, h)
	bells := watchAll(t, h.Kernel)
	ask := netnstest.Ethernet(packet.Broadcast, g.mac, packet.TypeARP,
		[]byte{0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 1, 10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 10, 1, 9, 9})
	for i := range 50_000 {
		ask[41], ask[40] = byte(i), byte(i>>8)
		g.Send(ask)
		if i == 25_000 {
			h.ns.Exec("bridge", "fdb", "add", macN(9).String(), "dev", "cvx100", "dst", "192.0.2.9", "self", "static")
		}
	}
	if n := misses(); n < 1000 {
		t.Errorf("the guest caused %d misses: the storm did not happen", n)
	}
	rang := 0
	for end := time.After(3 * time.Second); ; {
		select {
		case d := <-bells:
			if d.Overflow {
				t.Fatal("overflow")
			}
			if rang++; d.Row.Key.MAC == macN(9) {
				if rang > 10 {
					t.Errorf("%d doorbells before it", rang)
				}
				return
			}
		case <-end:
			t.Fatal("the foreign write did not ring")
		}
	}
}

// missListener counts miss notifications, as a probe, up to 1000.
func missListener(t *testing.T, h *host) func() int {
	t.Helper()
	c, err := h.listen(unix.NETLINK_ROUTE, nil, unix.RTNLGRP_NEIGH)
	if err != nil {
		t.Fatal(err)
	}
	return func() int {
		defer c.Close()
		if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
			t.Error(err)
		}
		n := 0
		full := errors.New("enough")
		for {
			err := c.receive(func(a answer) error {
				if a.typ == unix.RTM_GETNEIGH {
					n++
				}
				if n < 1000 {
					return nil
				}
				return full
			})
			if !errors.Is(err, syscall.ENOBUFS) { // without a filter the storm does overflow
				break
			}
		}
		return n
	}
}

// TestOverflowRings: a listener that does not keep up learns that it missed
// something, and hears what comes after.
func TestOverflowRings(t *testing.T) {
	n := netnstest.New(t)
	k, err := Open(int(n.Handle), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	dev := hoststate.Device{VNI: vni100, Local: netip.MustParseAddr("192.0.2.1"), UDPPort: 4789, MTU: 1450}
	mustApply(t, k, []hoststate.Op{{Kind: hoststate.OpBase}, {Kind: hoststate.OpMakeBridge, Dev: dev}, {Kind: hoststate.OpMakeVXLAN, Dev: dev}})

	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	overflows, last := 0, false
	hold, subscribed := make(chan struct{}), make(chan struct{})
	final := overlay.MAC{2, 0xff, 0, 0, 0, 1}
	done := make(chan error, 1)
	go func() {
		done <- k.Watch(ctx, func(d hoststate.Doorbell) {
			mu.Lock()
			if d.Overflow {
				overflows++
			}
			first := overflows == 1 && d.Overflow
			last = last || d.Row.Key.MAC == final
			mu.Unlock()
			if first {
				close(subscribed)
				<-hold
			}
		})
	}()
	<-subscribed
	var rows []hoststate.Row
	for i := range 40_000 {
		rows = append(rows, row(hoststate.TableFDB, overlay.MAC{2, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)}, netip.Addr{}, 0,
			hoststate.Val{Dst: netip.MustParseAddr("192.0.2.2"), Flags: remoteFlags}))
	}
	mustApply(t, k, kernelOps(hoststate.OpSet, rows))
	close(hold)
	seen := func() (int, bool) { mu.Lock(); defer mu.Unlock(); return overflows, last }
	for end := time.Now().Add(10 * time.Second); ; <-time.After(10 * time.Millisecond) {
		if n, _ := seen(); n >= 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("40,000 events fit, or the overflow was not told")
		}
	}
	mustApply(t, k, kernelOps(hoststate.OpSet, []hoststate.Row{row(hoststate.TableFDB, final, netip.Addr{}, 0,
		hoststate.Val{Dst: netip.MustParseAddr("192.0.2.2"), Flags: remoteFlags})}))
	for end := time.Now().Add(10 * time.Second); ; <-time.After(10 * time.Millisecond) {
		if _, ok := seen(); ok {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing was heard after the overflow")
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("watch: %v", err)
	}
}

// TestReadIsWholeOrNothing: while links and rows come and go, a read has all
// that stands still, or is a transient error.
func TestReadIsWholeOrNothing(t *testing.T) {
	r := newRig(t, 1)
	h := r.hosts[0]
	still := endpoints(500, netip.MustParseAddr("192.0.2.2"))
	h.set(still...)
	busy, err := Open(int(h.ns.Handle), Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		moving := endpoints(700, netip.MustParseAddr("192.0.2.3"))[3*500:]
		dev := hoststate.Device{VNI: 200, Local: h.vtep, UDPPort: 4789, MTU: 1450}
		for {
			select {
			case <-stop:
				return
			default:
			}
			busy.Apply(context.Background(), kernelOps(hoststate.OpSet, moving))
			busy.Apply(context.Background(), []hoststate.Op{{Kind: hoststate.OpMakeBridge, Dev: dev}})
			if l, err := getLink(busy.write, 0, dev.VNI.Bridge()); err == nil {
				busy.Apply(context.Background(), []hoststate.Op{{Kind: hoststate.OpDelLink, Index: l.Index}})
			}
			busy.Apply(context.Background(), kernelOps(hoststate.OpDel, moving))
		}
	}()
	whole, transient := 0, 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		st, err := h.Read(t.Context(), hoststate.Scope{Links: true, VNI: vni100})
		if err != nil {
			var typed *hoststate.Error
			if !errors.As(err, &typed) || typed.Class != hoststate.ClassTransient {
				t.Errorf("read: %v", err)
			}
			transient++
			continue
		}
		whole++
		for _, want := range still {
			if v, ok := st.Rows[want.Key]; !ok || v != want.Val {
				t.Fatalf("read without error lacks %v (holds %+v, %t)", want, v, ok)
			}
		}
		if !st.Base || len(st.Links) < 2 {
			t.Fatalf("base %t, links %v", st.Base, st.Links)
		}
	}
	close(stop)
	<-stopped
	if whole == 0 {
		t.Errorf("no read succeeded, %s were interrupted", strconv.Itoa(transient))
	}
	t.Logf("%d reads whole, %d interrupted", whole, transient)
}
