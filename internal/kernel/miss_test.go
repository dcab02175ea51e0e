package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// missOf is a miss notification of a device, as kernel-facts 1 shows it.
func missOf(index int32, ip netip.Addr, mac *overlay.MAC) answer {
	var m batch
	fam := uint8(unix.AF_INET)
	if ip.Is6() {
		fam = unix.AF_INET6
	}
	m.ndmsg(fam, index, unix.NUD_STALE, 0)
	if ip.IsValid() {
		m.addr(unix.NDA_DST, ip)
	}
	if mac != nil {
		m.attr(unix.NDA_LLADDR, mac[:])
	}
	m.u32(unix.NDA_VNI, 16777216)
	return answer{typ: unix.RTM_GETNEIGH, body: m.b}
}

// TestMissesAreBounded: equal ones are one, a network that scans leaves room
// for another, and what names no endpoint is none.
func TestMissesAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	k := &Kernel{}
	m := missed{k: k, seen: map[hoststate.Miss]bool{}, of: map[overlay.VNI]int{}, known: now, devs: map[int32]overlay.VNI{5: 100, 6: 200, 7: 0}}
	take := func(index int32, ip string, mac *overlay.MAC) bool {
		a, _ := netip.ParseAddr(ip)
		miss, ok := m.take(missOf(index, a, mac), now)
		want := hoststate.Miss{VNI: m.devs[index], IP: a}
		if !a.IsValid() && mac != nil {
			want.MAC = *mac
		}
		if ok && miss != want {
			t.Errorf("took %+v, want %+v", miss, want)
		}
		return ok
	}
	one, group, zero := macN(1), overlay.MAC{1, 0, 0x5e, 0, 0, 1}, overlay.MAC{}
	for _, c := range []struct {
		index int32
		ip    string
		mac   *overlay.MAC
		want  bool
	}{
		{5, "10.1.0.1", nil, true}, {5, "10.1.0.1", nil, false}, {6, "10.1.0.1", nil, true}, {5, "fd00::1", nil, true}, {5, "", &one, true}, {5, "", &one, false},
		{7, "10.1.0.2", nil, false}, {5, "", &group, false}, {5, "", &zero, false}, {5, "", nil, false},
		{5, "0.0.0.0", nil, false}, {5, "::", nil, false}, {5, "224.0.0.1", nil, false}, {5, "ff02::1", nil, false}, {5, "::ffff:10.1.0.1", nil, false},
	} {
		if got := take(c.index, c.ip, c.mac); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
	cut := missOf(5, netip.MustParseAddr("10.1.0.3"), nil)
	cut.body = cut.body[:len(cut.body)-3]
	if _, ok := m.take(cut, now); ok {
		t.Error("took a cut message")
	}
	scan := func() (taken int) {
		for i := range 10_000 {
			if _, ok := m.take(missOf(5, netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), nil), now); ok {
				taken++
			}
		}
		return taken
	}
	if n := scan(); n != missesNetwork-3 {
		t.Errorf("took %d of a scan, want %d", n, missesNetwork-3)
	}
	if over, _ := k.MissesLost(); over != 10_000-missesNetwork+3 {
		t.Errorf("counted %d", over)
	}
	if !take(6, "10.1.0.9", nil) {
		t.Error("the scan took another network's place")
	}
	now = now.Add(missWindow)
	if n := scan(); n != missesNetwork {
		t.Errorf("took %d of a scan in the next window, want %d", n, missesNetwork)
	}
	for i := range int32(100) {
		m.devs[100+i] = overlay.VNI(1000 + i)
		for j := range byte(20) {
			m.take(missOf(100+i, netip.AddrFrom4([4]byte{10, 3, 0, j}), nil), now)
		}
	}
	if n := len(m.seen); n != missesAll {
		t.Errorf("%d in a window, want %d", n, missesAll)
	}
}

// TestMissStorm: whoever does not keep up loses misses, is told so, and hears
// those that come after.
func TestMissStorm(t *testing.T) {
	h := newRig(t, 1).hosts[0]
	h.apply(hoststate.Op{Kind: hoststate.OpTune, Dev: hoststate.Device{VNI: vni100, Local: h.vtep, UDPPort: 4789, MTU: 1450, Alias: "test", Misses: true}})
	g := h.vm("vm1", macN(1))
	ctx, cancel := context.WithCancel(context.Background())
	var last atomic.Pointer[hoststate.Miss]
	hold, begun := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		first := true
		done <- h.Misses(ctx, func(m hoststate.Miss) {
			if last.Store(&m); first {
				first = false
				close(begun)
				<-hold
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("misses: %v", err)
		}
	}()
	ask := packet.AskARP(packet.Broadcast, g.mac, netip.IPv4Unspecified(), netip.MustParseAddr("10.2.0.0"))
	for asked := false; !asked; {
		g.Send(ask)
		select {
		case <-begun:
			asked = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	h.strip("vm1") // the program's bucket stands before all this
	for i := range 60_000 {
		binary.BigEndian.PutUint16(ask[40:], uint16(i))
		g.Send(ask)
	}
	close(hold)
	poll(t, 5*time.Second, "the loss is counted", func() bool { _, n := h.MissesLost(); return n > 0 })
	want := hoststate.Miss{VNI: vni100, IP: netip.MustParseAddr("10.3.0.1")}
	copy(ask[38:], want.IP.AsSlice())
	poll(t, 10*time.Second, "misses after the storm", func() bool { g.Send(ask); m := last.Load(); return m != nil && *m == want })
}

// TestUnknownUnicastWithMissesOnly: a frame to a MAC that no table has comes to
// the VXLAN device of a network with misses, and of no other; and with lists of
// groups alone broadcast is carried, and unknown unicast is not.
func TestUnknownUnicastWithMissesOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	vm1, vm2 := h1.vm("vm1", macN(1)), h2.vm("vm2", macN(2))
	dev := hoststate.Device{VNI: vni100, Local: h1.vtep, UDPPort: 4789, MTU: 1450, Alias: "test"}
	seen := func(dst overlay.MAC) int {
		vm2.Drain()
		vm1.stream(10, dst, vm1.mac)
		return vm2.got()
	}
	// With a list for all, what the bridge hands on is carried to everybody.
	if n := seen(vm2.mac); n != 0 {
		t.Errorf("%d of 10 frames left the host without misses", n)
	}
	dev.Misses = true
	h1.apply(hoststate.Op{Kind: hoststate.OpTune, Dev: dev})
	if n := seen(vm2.mac); n != 10 {
		t.Errorf("%d of 10 frames left the host with misses", n)
	}
	all := row(hoststate.TableRepl, overlay.MAC{}, h2.vtep, 0, hoststate.Val{Flags: hoststate.Permanent})
	every := row(hoststate.TableRepl, packet.Broadcast, h2.vtep, 0, hoststate.Val{Flags: hoststate.Permanent})
	h1.set(every) // added before the other goes
	if n := seen(packet.Broadcast); n != 10 {
		t.Errorf("with both lists %d of 10 broadcasts arrived, want each once", n)
	}
	h1.del(all)
	if n := seen(packet.Broadcast); n != 10 {
		t.Errorf("%d of 10 broadcasts arrived", n)
	}
	group := overlay.MAC{1, 0, 0x5e, 0, 0, 0x12}
	if a, b := seen(vm2.mac), seen(group); a+b != 0 {
		t.Errorf("%d unknown unicast and %d group frames left the host", a, b)
	}
	h1.set(row(hoststate.TableRepl, group, h2.vtep, 0, hoststate.Val{Flags: hoststate.Permanent}))
	if n := seen(group); n != 10 {
		t.Errorf("%d of 10 frames to a group with a list arrived", n)
	}
	h1.remote(vm2.mac, h2)
	if n := seen(vm2.mac); n != 10 {
		t.Errorf("%d of 10 frames arrived once the MAC was known", n)
	}
}
