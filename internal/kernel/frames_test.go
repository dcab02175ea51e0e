package kernel

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// TestSilentRemoteIsSeenByNoThirdGuest: a one-way unicast stream to a VM that
// never said anything reaches that VM and nobody else (facts-10, first row).
func TestSilentRemoteIsSeenByNoThirdGuest(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	vm1, third := h1.vm("vm1", macN(1)), h1.vm("vm3", macN(3))
	vm2, fourth := h2.vm("vm2", macN(2)), h2.vm("vm4", macN(4))
	h1.remote(vm2.mac, h2)

	vm1.stream(1000, vm2.mac, vm1.mac)
	if n := vm2.got(); n != 1000 {
		t.Errorf("the receiver got %d of 1000", n)
	}
	if a, b := third.got(), fourth.got(); a != 0 || b != 0 {
		t.Errorf("third guests saw %d and %d frames, want 0", a, b)
	}

	// The same without what is tested, so that the probe is known to see.
	h1.del(row(hoststate.TableMaster, vm2.mac, netip.Addr{}, 0, hoststate.Val{Flags: remoteFlags}))
	h1.ns.Exec("bridge", "link", "set", "dev", "vm3", "flood", "on")
	vm1.stream(1000, vm2.mac, vm1.mac)
	if n := third.got(); n != 0 {
		t.Errorf("without the bridge's entry and with flooding the third guest saw %d, although its program stands", n)
	}
	h1.strip("vm3")
	vm1.stream(1000, vm2.mac, vm1.mac)
	if n := third.got(); n != 1000 {
		t.Errorf("without entry and program, with flooding, the third guest saw %d of 1000", n)
	}
}

// TestSilentArrivalIsReachedByFirstFrame: a VM moves, without a word, to a host
// that had known it elsewhere (facts-10, second row).
func TestSilentArrivalIsReachedByFirstFrame(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	local, far := h1.vm("vm1", macN(1)), h2.vm("vm4", macN(4))
	h1.remote(macN(2), h2)
	h1.remote(far.mac, h2)
	vm2 := h1.plug("vm2", macN(2))

	h1.claim(vm2)
	local.stream(1, vm2.mac, local.mac)
	if n := vm2.got(); n != 1 {
		t.Errorf("the arrived VM got %d of 1 frame of a local guest", n)
	}
	h2.remote(vm2.mac, h1)
	far.stream(1, vm2.mac, far.mac)
	if n := vm2.got(); n != 1 {
		t.Errorf("the arrived VM got %d of 1 frame of a remote guest", n)
	}
	if v := h1.state().Rows[row(hoststate.TableMaster, vm2.mac, netip.Addr{}, 0, hoststate.Val{}).Key]; v != (hoststate.Val{Port: vm2.port, Flags: localFlags}) {
		t.Errorf("bridge holds %+v", v)
	}
}

// TestForeignSourceMovesNothing: frames with a local guest's MAC as source,
// from a remote host or another local guest, move no entry (facts-10, third
// row).
func TestForeignSourceMovesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	vm1, vm3, far := h1.vm("vm1", macN(1)), h1.vm("vm3", macN(3)), h2.vm("vm4", macN(4))
	h2.remote(vm3.mac, h1)
	h1.trust(vm1.mac, h2) // the programs would let no such frame through
	h2.lend(far, vm1.mac)
	h1.lend(vm3, vm1.mac)
	before := h1.state().String()

	far.stream(10, vm3.mac, vm1.mac)
	if n := vm3.got(); n != 10 {
		t.Errorf("%d of 10 frames arrived: the forgery did not come through, so nothing is proved", n)
	}
	vm3.stream(10, packet.Broadcast, vm1.mac)
	vm1.Drain()
	if after := h1.state().String(); after != before {
		t.Errorf("tables changed to\n%sfrom\n%s", after, before)
	}
	vm3.stream(10, vm1.mac, vm3.mac)
	if n := vm1.got(); n != 10 {
		t.Errorf("the owner of the MAC got %d of 10", n)
	}
}

// TestBroadcastReachesEachMemberOnce: head-end replication.
func TestBroadcastReachesEachMemberOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, 3)
	vm1, vm2 := r.hosts[0].vm("vm1", macN(1)), r.hosts[0].vm("vm2", macN(2))
	vm3, vm4 := r.hosts[1].vm("vm3", macN(3)), r.hosts[2].vm("vm4", macN(4))
	vm1.stream(50, packet.Broadcast, vm1.mac)
	for _, g := range []*guest{vm2, vm3, vm4} {
		if n := g.got(); n != 50 {
			t.Errorf("%s got %d of 50", g.dev, n)
		}
	}
	if n := vm1.got(); n != 0 {
		t.Errorf("the sender got %d of its own", n)
	}
}

// TestUnclaimedPortPassesNothing: neither from nor to members, local or
// remote, nor between two unclaimed ports; a bridge that is not ours is left
// alone.
func TestUnclaimedPortPassesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	member, far := h1.vm("vm1", macN(1)), h2.vm("vm4", macN(4))
	a, b := h1.plug("un1", macN(8)), h1.plug("un2", macN(9))

	a.stream(20, packet.Broadcast, a.mac)
	a.stream(20, member.mac, a.mac)
	for _, g := range []*guest{member, far, b} {
		if n := g.got(); n != 0 {
			t.Errorf("%s got %d frames of an unclaimed port", g.dev, n)
		}
	}
	member.stream(20, packet.Broadcast, member.mac)
	far.stream(20, packet.Broadcast, far.mac)
	for _, g := range []*guest{a, b} {
		if n := g.got(); n != 0 {
			t.Errorf("unclaimed %s got %d frames", g.dev, n)
		}
	}
	member.Drain()
	far.Drain()

	h1.claim(a)
	a.stream(20, packet.Broadcast, a.mac)
	if n, m := member.got(), far.got(); n != 20 || m != 20 {
		t.Errorf("once claimed, members got %d and %d of 20", n, m)
	}
	h1.del(row(hoststate.TableMember, a.mac, netip.Addr{}, a.port, hoststate.Val{}))
	a.stream(20, packet.Broadcast, a.mac)
	for _, g := range []*guest{member, far, b} {
		if n := g.got(); n != 0 {
			t.Errorf("%s got %d frames of a port that is no longer claimed", g.dev, n)
		}
	}

	x, y := foreignBridge(t, h1)
	x.Send(netnstest.Ethernet(packet.Broadcast, macN(20), testEthertype, nil))
	if n := y.Count(300*time.Millisecond, netnstest.All(netnstest.In, netnstest.EtherType(testEthertype))); n != 1 {
		t.Errorf("a foreign bridge passed %d of 1 frame", n)
	}
}

// foreignBridge makes a bridge of somebody else's with two guests.
func foreignBridge(t *testing.T, h *host) (x, y *netnstest.Port) {
	t.Helper()
	h.ns.Exec("ip", "link", "add", "br0", "type", "bridge")
	h.ns.Exec("ip", "link", "set", "br0", "up")
	var ports []*netnstest.Port
	for i := range 2 {
		g := netnstest.New(t)
		name := fmt.Sprintf("foreign%d", i)
		netnstest.Veth(h.ns, name, g, "eth0")
		h.ns.Exec("ip", "link", "set", name, "master", "br0")
		ports = append(ports, netnstest.OpenPort(t, g, "eth0"))
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if out := h.ns.Exec("bridge", "link", "show", "dev", "foreign1"); len(out) > 0 && contains(out, "state forwarding") {
			return ports[0], ports[1]
		}
	}
	t.Fatal("foreign bridge does not forward")
	return nil, nil
}

// TestAnnounceTellsLocalMembersOnly: the frame is right, comes to each member
// port, to no unclaimed one and over no tunnel, and moves no entry.
func TestAnnounceTellsLocalMembersOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	vm1, vm2, un, far := h1.vm("vm1", macN(1)), h1.vm("vm2", macN(2)), h1.plug("un1", macN(8)), h2.vm("vm4", macN(4))
	h1.remote(macN(9), h2)
	before := h1.state().String()
	for _, ip := range []netip.Addr{netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd00:1::9")} {
		want := packet.Announcement{IP: ip, MAC: macN(9)}
		h1.apply(hoststate.Op{Kind: hoststate.OpAnnounce, Row: row(hoststate.TableNeigh, macN(0), ip, 0, hoststate.Val{MAC: macN(9)})})
		said := func(f netnstest.Frame) bool {
			fact, _ := packet.Parse(packet.ToGuest, f.Data, len(f.Data))
			a, ok := fact.Announcement()
			return !f.Outgoing && ok && a == want
		}
		for _, g := range []*guest{vm1, vm2} {
			if n := g.Count(100*time.Millisecond, said); n != 1 {
				t.Errorf("%s heard %v %d times, want once", g.dev, want, n)
			}
		}
		for _, g := range []*guest{un, far} {
			if n := g.Count(100*time.Millisecond, said); n != 0 {
				t.Errorf("%s heard %v %d times, want never", g.dev, want, n)
			}
		}
	}
	if after := h1.state().String(); after != before {
		t.Errorf("tables changed to\n%sfrom\n%s", after, before)
	}
}

// TestSendPastThePort: who is behind a device that passes nothing can be asked.
func TestSendPastThePort(t *testing.T) {
	t.Parallel()
	h := newRig(t, 1).hosts[0]
	open, un, other := h.vm("vm1", macN(1)), h.plug("un1", macN(8)), h.plug("un2", macN(9))
	ask := packet.AskARP(packet.Broadcast, overlay.ServerMAC, netip.IPv4Unspecified(), netip.MustParseAddr("10.1.0.9"))
	for _, g := range []*guest{open, un} {
		h.apply(hoststate.Op{Kind: hoststate.OpSend, Index: g.port, Frame: string(ask), Past: true})
	}
	said := func(f netnstest.Frame) bool { return !f.Outgoing && bytes.Equal(f.Data, ask) }
	for g, want := range map[*guest]int{open: 1, un: 1, other: 0} {
		if n := g.Count(100*time.Millisecond, said); n != want {
			t.Errorf("%s heard the question %d times, want %d", g.dev, n, want)
		}
	}
}

// TestSendReachesOneGuest: a frame comes to the guest that it is for, as it is,
// once; and to nobody if the guest's port is not open.
func TestSendReachesOneGuest(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	vm1, vm2, un, far := h1.vm("vm1", macN(1)), h1.vm("vm2", macN(2)), h1.plug("un1", macN(8)), h2.vm("vm4", macN(4))
	before := h1.state().String()
	group := packet.AnswerND(packet.Broadcast, overlay.ServerMAC, netip.MustParseAddr("fd00:1::1"), netip.Addr{}, false)
	ack := packet.UDP(macN(1), overlay.ServerMAC, netip.MustParseAddrPort("10.1.0.1:67"), netip.MustParseAddrPort("10.1.0.2:68"), make([]byte, 300))
	for _, frame := range [][]byte{group, ack} {
		h1.apply(hoststate.Op{Kind: hoststate.OpSend, Index: vm1.port, Frame: string(frame)}, hoststate.Op{Kind: hoststate.OpSend, Index: un.port, Frame: string(frame)})
		said := func(f netnstest.Frame) bool { return !f.Outgoing && bytes.Equal(f.Data, frame) }
		if n := vm1.Count(100*time.Millisecond, said); n != 1 {
			t.Errorf("%s heard %v %d times, want once", vm1.dev, netnstest.Frame{Data: frame}, n)
		}
		for _, g := range []*guest{vm2, un, far} {
			if n := g.Count(100*time.Millisecond, said); n != 0 {
				t.Errorf("%s heard %v %d times, want never", g.dev, netnstest.Frame{Data: frame}, n)
			}
		}
	}
	if after := h1.state().String(); after != before {
		t.Errorf("tables changed to\n%sfrom\n%s", after, before)
	}
}
