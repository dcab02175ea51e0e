package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	tcx "github.com/cilium/ebpf/link"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// vxlanFrame is a datagram's payload: a VXLAN header (RFC 7348 section 5) and
// a frame of the tests' own type.
func vxlanFrame(flags byte, vni overlay.VNI, dst, src overlay.MAC) []byte {
	return append([]byte{flags, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}, netnstest.Ethernet(dst, src, testEthertype, nil)...)
}

// sendUDP sends n equal datagrams to the VXLAN port of a host.
func (h *host) sendUDP(to string, payload []byte, n int) {
	h.t.Helper()
	err := h.ns.Run(func() error {
		c, err := net.Dial("udp", net.JoinHostPort(to, "4789"))
		if err != nil {
			return err
		}
		defer c.Close()
		for range n {
			if _, err := c.Write(payload); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) drops(port int32, r hoststate.DropReason) uint64 {
	h.t.Helper()
	return h.state().Drops[hoststate.DropKey{Port: port, Reason: r}]
}

// TestForgedSourcesReachNobody: of each kind of forged VXLAN datagram nothing
// reaches a guest, and all that came are counted under their reason.
func TestForgedSourcesReachNobody(t *testing.T) {
	forgeSources(newRig(t, 2), 100_000)
	forgeSources(newRigWith(t, 2, true), 1_000)
}

func forgeSources(r *rig, n int) {
	t := r.t
	h, peer := r.hosts[0], r.hosts[1]
	stranger := r.underlay(66)
	g, far := h.vm("vm1", macN(1)), peer.vm("vm2", macN(2))
	peer.remote(g.mac, h)
	for _, c := range []struct {
		what    string
		from    *host
		payload []byte
		want    hoststate.DropReason
	}{
		{"an unknown VTEP", stranger, vxlanFrame(8, vni100, g.mac, far.mac), hoststate.DropVTEP},
		{"a known VTEP with a foreign MAC", peer, vxlanFrame(8, vni100, g.mac, macN(3)), hoststate.DropSource},
		{"a known VTEP with the guest's own MAC", peer, vxlanFrame(8, vni100, packet.Broadcast, g.mac), hoststate.DropSource},
		{"another network", peer, vxlanFrame(8, vni100+1, g.mac, far.mac), hoststate.DropVNI},
		{"no VNI flag", peer, vxlanFrame(0, vni100, g.mac, far.mac), hoststate.DropMalformed},
		{"half an inner frame", peer, vxlanFrame(8, vni100, g.mac, far.mac)[:20], hoststate.DropMalformed},
	} {
		before := h.drops(0, c.want)
		c.from.sendUDP("192.0.2.1", c.payload, n)
		if got := g.got(); got != 0 {
			t.Errorf("%s: the guest got %d of %d", c.what, got, n)
		}
		// A full backlog of the wire may take some of them first.
		if counted := h.drops(0, c.want) - before; counted > uint64(n) || counted < uint64(n*9/10) {
			t.Errorf("%s: counted %d of %d", c.what, counted, n)
		}
	}
	far.stream(100, g.mac, far.mac)
	if got := g.got(); got != 100 {
		t.Errorf("of honest frames the guest got %d of 100", got)
	}
}

// TestRoutedVXLANIsNotOurs: a host that only routes VXLAN of somebody else's
// on lets it pass.
func TestRoutedVXLANIsNotOurs(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	h, stranger, beyond := r.hosts[0], r.underlay(66), netnstest.New(t)
	netnstest.Veth(h.ns, "beyond", beyond, "eth0")
	h.ns.Addr("beyond", "198.51.100.1/24")
	beyond.Addr("eth0", "198.51.100.9/24")
	h.apply(hoststate.Op{Kind: hoststate.OpBase})
	h.ns.Sysctl("net/ipv4/ip_forward", "1")
	stranger.ns.Exec("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
	beyond.Exec("ping", "-c", "1", "-W", "2", "198.51.100.1")
	end := netnstest.OpenPort(t, beyond, "eth0")
	stranger.sendUDP("198.51.100.9", vxlanFrame(8, 77, macN(1), macN(2)), 20)
	if n := end.Count(300*time.Millisecond, netnstest.All(netnstest.In, netnstest.EtherType(packet.TypeIPv4))); n != 20 {
		t.Errorf("%d of 20 datagrams were routed on", n)
	}
	stranger.sendUDP("192.0.2.1", vxlanFrame(8, 77, macN(1), macN(2)), 20)
	if n := h.drops(0, hoststate.DropVTEP); n != 20 {
		t.Errorf("of 20 for the host itself %d were dropped", n)
	}
}

// arpClaim is a gratuitous ARP: a says that ip is at mac.
func arpClaim(ip netip.Addr, mac overlay.MAC) []byte {
	return packet.Announce(packet.Announcement{IP: ip, MAC: mac})
}

// TestAddressOfAPortIsClaimedByNobodyElse: a guest hears no claim of an
// address that is its own, whoever makes it; others hear it if the claimant's
// port is not checked, and nobody if it is.
func TestAddressOfAPortIsClaimedByNobodyElse(t *testing.T) {
	t.Parallel()
	for _, filters := range []bool{false, true} {
		t.Run(fmt.Sprintf("filters=%t", filters), func(t *testing.T) { claimAddresses(newRigWith(t, 1, filters)) })
	}
}

func claimAddresses(r *rig) {
	t := r.t
	h := r.hosts[0]
	victim, thief, third := h.vm("vm1", macN(1)), h.vm("vm2", macN(2)), h.vm("vm3", macN(3))
	for _, ip := range []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")} {
		h.set(row(hoststate.TableOwn, overlay.MAC{}, ip, victim.port, hoststate.Val{}))
		claim := arpClaim(ip, thief.mac)
		claims := func(f netnstest.Frame) bool {
			return !f.Outgoing && bytes.Equal(f.Data, claim)
		}
		thief.Send(claim)
		if n := third.Count(300*time.Millisecond, claims); n != 1 {
			t.Errorf("%s: a third guest heard the claim %d times: nothing is proved", ip, n)
		}
		if n := victim.Count(100*time.Millisecond, claims); n != 0 {
			t.Errorf("%s: the address's owner heard the claim", ip)
		}
		h.set(row(hoststate.TablePort, overlay.MAC{}, netip.Addr{}, thief.port, hoststate.Val{MAC: thief.mac, Flags: hoststate.Open | hoststate.CheckIP}))
		thief.Send(claim)
		if n := third.Count(300*time.Millisecond, claims); n != 0 {
			t.Errorf("%s: a checked port's claim was heard", ip)
		}
		h.set(row(hoststate.TablePort, overlay.MAC{}, netip.Addr{}, thief.port, hoststate.Val{MAC: thief.mac, Flags: hoststate.Open}))
	}
	if a, b := h.drops(victim.port, hoststate.DropOwnAddress), h.drops(thief.port, hoststate.DropSourceIP); a != 2 || b != 2 {
		t.Errorf("counted %d and %d, want 2 and 2", a, b)
	}
}

// TestStormIsBounded: however many broadcasts a guest sends, no more come to
// the others than its bucket lets through.
func TestStormIsBounded(t *testing.T) {
	r := newRig(t, 1)
	h := r.hosts[0]
	g, other := h.vm("vm1", macN(1)), h.vm("vm2", macN(2))
	const offered = 50_000
	begin := time.Now()
	g.stream(offered, packet.Broadcast, g.mac)
	took := time.Since(begin)
	got, most := other.got(), 4000+int(2000*(took+time.Second).Seconds())
	t.Logf("offered %d in %s, delivered %d", offered, took, got)
	if got < 4000 || got > most {
		t.Errorf("of %d in %s, %d were delivered; want 4000 to %d", offered, took, got, most)
	}
	if n := h.drops(g.port, hoststate.DropStorm); n != uint64(offered-got) {
		t.Errorf("counted %d, want %d", n, offered-got)
	}
	g.stream(100, other.mac, g.mac)
	if n := other.got(); n != 100 {
		t.Errorf("after the storm %d of 100 unicast frames came", n)
	}
}

// TestMovedGuestIsReachedOverItsOldHost: a third host that has not heard of
// the move sends to the old one, which sends on to the new one.
func TestMovedGuestIsReachedOverItsOldHost(t *testing.T) {
	t.Parallel()
	for _, filters := range []bool{false, true} {
		t.Run(fmt.Sprintf("filters=%t", filters), func(t *testing.T) { relayFrames(newRigWith(t, 3, filters)) })
	}
}

func relayFrames(r *rig) {
	t := r.t
	before, now, third := r.hosts[0], r.hosts[1], r.hosts[2]
	moved, far := now.vm("vm1", macN(1)), third.vm("vm3", macN(3))
	third.remote(moved.mac, before)
	before.remote(moved.mac, now)
	far.stream(10, moved.mac, far.mac)
	if n := moved.got(); n != 0 {
		t.Errorf("%d frames came before there was a relay: nothing is proved", n)
	}
	before.set(row(hoststate.TableRelay, moved.mac, netip.Addr{}, 0, hoststate.Val{}))
	far.stream(10, moved.mac, far.mac)
	if n := moved.got(); n != 0 {
		t.Errorf("%d frames came from a host that relays for nobody, as far as the new one knows", n)
	}
	now.set(row(hoststate.TableRelayed, moved.mac, before.vtep, 0, hoststate.Val{}))
	far.stream(10, moved.mac, far.mac)
	if n := moved.got(); n != 10 {
		t.Errorf("%d of 10 frames came over the old host", n)
	}
	before.del(row(hoststate.TableRelay, moved.mac, netip.Addr{}, 0, hoststate.Val{}))
	far.stream(10, moved.mac, far.mac)
	if n := moved.got(); n != 0 {
		t.Errorf("%d frames came after the relay was gone", n)
	}
}

// programsOn are the numbers of the programs at all devices of a host, and of
// the maps that they use.
func (h *host) programsOn() (programs map[string]ebpf.ProgramID, maps map[ebpf.MapID]bool) {
	h.t.Helper()
	programs, maps = map[string]ebpf.ProgramID{}, map[ebpf.MapID]bool{}
	devs := map[int32]string{}
	if err := eachLink(h.read, 0, func(l link) { devs[l.Index] = l.Name }); err != nil {
		h.t.Fatal(err)
	}
	err := h.ns.Run(func() error {
		for i, name := range devs {
			for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				res, err := tcx.QueryPrograms(tcx.QueryOptions{Target: int(i), Attach: at})
				if err != nil {
					return err
				}
				for _, a := range res.Programs {
					programs[fmt.Sprintf("%s %v", name, at)] = a.ID
					p, err := ebpf.NewProgramFromID(a.ID)
					if err != nil {
						return err
					}
					info, err := p.Info()
					ids, _ := info.MapIDs()
					for _, id := range ids {
						maps[id] = true
					}
					if err = errors.Join(err, p.Close()); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return programs, maps
}

// reopen is a new process's edge: all that the old one held in memory is gone.
func (h *host) reopen() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	k, err := Open(int(h.ns.Handle), Config{})
	if err != nil {
		h.t.Fatal(err)
	}
	k.guard.filters = h.rig.filters
	h.Kernel = k
}

// TestRestartKeepsProgramsRowsAndCounters: two hosts side by side on one
// machine; after a restart each has its own programs and maps again, the same
// ones, with frames passing all the while.
func TestRestartKeepsProgramsRowsAndCounters(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	h1, h2 := r.hosts[0], r.hosts[1]
	a, b := h1.vm("vm1", macN(1)), h2.vm("vm2", macN(2))
	h1.remote(b.mac, h2)
	a.stream(3, b.mac, macN(9)) // dropped, to have something counted
	p1, m1 := h1.programsOn()
	p2, m2 := h2.programsOn()
	for id := range m1 {
		if m2[id] {
			t.Errorf("both hosts use map %d", id)
		}
	}
	if len(m1) != 13 || len(p1) != 4 { // lo is not underlay; cvx100, vm1 twice, eth0
		t.Errorf("%d maps, programs %v", len(m1), p1)
	}
	before1, before2 := h1.state(), h2.state()
	if err := errors.Join(h1.Close(), h2.Close()); err != nil {
		t.Fatal(err)
	}
	a.stream(500, b.mac, a.mac)
	a.stream(3, b.mac, macN(9))
	if n := b.got(); n != 500 {
		t.Errorf("with nobody there %d of 500 frames came", n)
	}
	for i, h := range r.hosts {
		k, err := Open(int(h.ns.Handle), Config{})
		if err != nil {
			t.Fatal(err)
		}
		h.Kernel = k
		before := []*hoststate.State{before1, before2}[i]
		after := h.state()
		if after.String() != before.String() || !after.Base {
			t.Errorf("host %d: base %t, tables\n%sbefore\n%s", i+1, after.Base, after, before)
		}
		h.apply(hoststate.Op{Kind: hoststate.OpBase})
	}
	if n := h1.drops(a.port, hoststate.DropSourceMAC); n != 6 {
		t.Errorf("counted %d, want 6", n)
	}
	for i, h := range r.hosts {
		p, m := h.programsOn()
		if want := []map[string]ebpf.ProgramID{p1, p2}[i]; fmt.Sprint(p) != fmt.Sprint(want) {
			t.Errorf("host %d: programs %v, before %v", i+1, p, want)
		}
		if want := []map[ebpf.MapID]bool{m1, m2}[i]; fmt.Sprint(m) != fmt.Sprint(want) {
			t.Errorf("host %d: maps %v, before %v", i+1, m, want)
		}
	}
}

// TestListen: what a guest says is heard, over a restart too.
func TestListen(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1)
	h := r.hosts[0]
	g := h.vm("vm1", macN(1))
	claim := arpClaim(netip.MustParseAddr("10.1.0.1"), g.mac)
	listen := func() (<-chan hoststate.Heard, func()) {
		ctx, cancel := context.WithCancel(context.Background())
		heard, done := make(chan hoststate.Heard, 16), make(chan error, 1)
		k := h.Kernel
		go func() { done <- k.Listen(ctx, func(h hoststate.Heard) { heard <- h }) }()
		return heard, func() {
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("listen: %v", err)
			}
		}
	}
	expect := func(heard <-chan hoststate.Heard) {
		t.Helper()
		select {
		case f := <-heard:
			if f.Port != g.port || f.Dropped || f.ToGuest || string(f.Frame) != string(claim) {
				t.Errorf("heard %+v", f)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("not heard")
		}
	}
	heard, stop := listen()
	g.Send(claim)
	expect(heard)
	stop()
	g.Send(claim) // nobody listens
	h.reopen()
	heard, stop = listen()
	defer stop()
	expect(heard)
	g.Send(claim)
	expect(heard)
}
