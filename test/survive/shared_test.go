package survive

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/lab"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

const (
	sharedVNI = 42
	shared4   = "10.1.0.100"
	shared6   = "2001:db8:1::100"
)

// sharing is two VMs on two hosts that share an address of each family, and a
// third on a third host that pings them.
type sharing struct {
	*rig
	vteps map[string]netip.Addr // by host
	macs  map[string]overlay.MAC
	moves int // so far: the even ones to vm1
}

func newSharing(t *testing.T) *sharing {
	t.Helper()
	r := &sharing{newRig(t, 3), map[string]netip.Addr{}, map[string]overlay.MAC{}, 0}
	r.must("network", "create", "blue", "--vni", fmt.Sprint(sharedVNI), "--subnet", "10.1.0.0/24", "--subnet", "2001:db8:1::/64")
	for i, name := range []string{"vm1", "vm2", "vm3"} {
		vm := r.vm(lab.VMSpec{
			Name: name, Host: lab.HostName(i + 1), Network: "blue", MAC: fmt.Sprintf("52:54:00:00:00:1%d", i+1),
			Addresses: []string{fmt.Sprintf("10.1.0.1%d", i+1), fmt.Sprintf("2001:db8:1::1%d", i+1)},
		})
		mac, err := overlay.ParseMAC(vm.MAC)
		if err != nil {
			t.Fatal(err)
		}
		r.macs[name] = mac
	}
	for _, name := range []string{"vm1", "vm2"} {
		r.must("port", "set", name, "--shared-address", shared4, "--shared-address", shared6)
	}
	r.connected()
	hosts, err := r.hostStatus()
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range hosts {
		r.vteps[name] = netip.MustParseAddr(h.GetVtep())
	}
	return r
}

// say sends frames out of a VM's NIC.
func (r *sharing) say(vm string, frames ...[]byte) {
	r.t.Helper()
	fd := -1
	index := 0
	err := lab.InNS(lab.NSOfVM(r.name, vm), func() error {
		nic, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		index = nic.Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		r.t.Fatalf("packet socket of %s: %v", vm, err)
	}
	defer unix.Close(fd)
	for _, f := range frames {
		if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}); err != nil {
			r.t.Fatalf("send from %s: %v", vm, err)
		}
	}
}

func announce(mac overlay.MAC, addrs ...string) (frames [][]byte) {
	for _, a := range addrs {
		frames = append(frames, packet.Announce(packet.Announcement{IP: netip.MustParseAddr(a), MAC: mac}))
	}
	return frames
}

// held complains unless every host's kernel has it that an address is at mac on
// a host: nothing of it there, and elsewhere nothing but that.
func (r *sharing) held(addr string, mac overlay.MAC, at string) error {
	for _, h := range r.hosts {
		s, err := r.kernels[h].Read(r.ctx, hoststate.Scope{VNI: sharedVNI})
		if err != nil {
			return err
		}
		v, there := s.Rows[hoststate.Key{Table: hoststate.TableNeigh, VNI: sharedVNI, IP: netip.MustParseAddr(addr)}]
		fdb := s.Rows[hoststate.Key{Table: hoststate.TableFDB, VNI: sharedVNI, MAC: mac}]
		switch {
		case h == at && there:
			return fmt.Errorf("%s says that %s is at %s, and it is here", h, addr, v.MAC)
		case h != at && (!there || v.MAC != mac):
			return fmt.Errorf("%s says that %s is at %s (%t), want %s", h, addr, v.MAC, there, mac)
		case h != at && fdb.Dst != r.vteps[at]:
			return fmt.Errorf("%s sends to %s by %s, want %s on %s", h, mac, fdb.Dst, r.vteps[at], at)
		}
	}
	return nil
}

// handOver has the addresses handed to and fro, and says how long each move
// took from the announcement to the last host's kernel, and to the first answer
// to a third VM.
func (r *sharing) handOver(times int, take, leave func(vm string), mac func(vm string) overlay.MAC, addrs ...string) {
	r.t.Helper()
	var took, seen []time.Duration
	late := 0
	pace := time.NewTicker(200 * time.Millisecond) // an agent takes five changes a second of a port
	defer pace.Stop()
	for range times {
		<-pace.C
		to, from := "vm1", "vm2"
		if r.moves++; r.moves%2 == 0 {
			to, from = from, to
		}
		leave(from)
		take(to)
		start := time.Now()
		r.say(to, announce(mac(to), addrs...)...)
		d, err := poll(r.ctx, start, time.Second, func() error {
			for _, a := range addrs {
				if err := r.held(a, mac(to), "h"+to[2:]); err != nil {
					return err
				}
			}
			return nil
		})
		took = append(took, d)
		for _, a := range addrs {
			if err == nil {
				err = r.answered("vm3", netip.MustParseAddr(a), start)
			}
		}
		if seen = append(seen, time.Since(start)); err == nil && seen[len(seen)-1] > time.Second {
			err = fmt.Errorf("answered after %s", seen[len(seen)-1])
		}
		if err != nil {
			late++
			r.t.Errorf("move %d to %s is not in every host's kernel, or not answered there, within a second: %v", r.moves, to, err)
		}
		if late > 3 {
			r.t.FailNow()
		}
	}
	line := func(d []time.Duration) string {
		slices.Sort(d)
		return fmt.Sprintf("median %s, most %s", d[len(d)/2].Round(time.Millisecond), d[len(d)-1].Round(time.Millisecond))
	}
	r.t.Logf("%d moves of %v: %d within 1 s; in every kernel: %s; answered to a third VM: %s", times, addrs, times-late, line(took), line(seen))
}

// answered pings an address from a VM until it answers, a second after start at
// the latest.
func (r *sharing) answered(from string, to netip.Addr, start time.Time) error {
	_, err := poll(r.ctx, start, time.Second, func() error {
		res, err := lab.Ping(r.ctx, lab.NSOfVM(r.name, from), lab.PingOptions{Target: to, Count: 1, Interval: 10 * time.Millisecond, Wait: 30 * time.Millisecond})
		if err == nil && res.Received == 0 {
			err = fmt.Errorf("%s does not answer %s", to, from)
		}
		return err
	})
	return err
}

// Two VMs hand addresses of both families to and fro by announcing them, as
// keepalived does: a hundred of a hundred moves are in every host's kernel
// within a second, and answered a third VM.
func TestSharedAddressesFollowTheirAnnouncements(t *testing.T) {
	t.Parallel()
	r := newSharing(t)
	take := func(vm string) {
		r.mustIn(vm, "sh", "-c", fmt.Sprintf("ip addr add %s/24 dev eth0; ip addr add %s/64 dev eth0 nodad", shared4, shared6))
	}
	leave := func(vm string) {
		_, _ = r.in(vm, "sh", "-c", fmt.Sprintf("ip addr del %s/24 dev eth0; ip addr del %s/64 dev eth0", shared4, shared6))
	}
	own := func(vm string) overlay.MAC { return r.macs[vm] }
	r.handOver(1, take, leave, own, shared4, shared6)
	r.handOver(100, take, leave, own, shared4, shared6)

	// An announcement of who may not have it moves nothing.
	r.say("vm3", announce(r.macs["vm3"], shared4, shared6)...)
	r.hold(300 * time.Millisecond)
	for _, a := range []string{shared4, shared6} {
		if err := r.held(a, r.macs["vm1"], "h1"); err != nil {
			t.Errorf("after a stranger's announcement: %v", err)
		}
	}
	// With the holder its addresses go, and the other one takes them.
	if _, err := r.lab.RemoveVM(r.ctx, "vm1"); err != nil {
		t.Fatal(err)
	}
	r.await(10*time.Second, "nobody has the addresses of a VM that is gone", func() error {
		for _, h := range r.hosts {
			s, err := r.kernels[h].Read(r.ctx, hoststate.Scope{VNI: sharedVNI})
			if err != nil {
				return err
			}
			if v, there := s.Rows[hoststate.Key{Table: hoststate.TableNeigh, VNI: sharedVNI, IP: netip.MustParseAddr(shared4)}]; there {
				return fmt.Errorf("%s says that %s is at %s", h, shared4, v.MAC)
			}
		}
		return nil
	})
	r.handOver(1, take, leave, own, shared4)
}

// The same from a virtual router's MAC, which moves with the address: guests
// keep what they know, and frames go to the other host.
func TestVirtualRouterMovesWithItsMAC(t *testing.T) {
	t.Parallel()
	r := newSharing(t)
	mac := overlay.MAC{0, 0, 0x5e, 0, 1, 7}
	for _, vm := range []string{"vm1", "vm2"} {
		r.mustIn(vm, "ip", "link", "add", "vrrp", "link", "eth0", "address", mac.String(), "type", "macvlan", "mode", "private")
	}
	take := func(vm string) {
		r.mustIn(vm, "sh", "-c", fmt.Sprintf("ip link set vrrp up && ip addr add %s/32 dev vrrp", shared4))
	}
	leave := func(vm string) { r.mustIn(vm, "sh", "-c", "ip addr flush dev vrrp; ip link set vrrp down") }
	virtual := func(string) overlay.MAC { return mac }
	r.handOver(1, take, leave, virtual, shared4)
	r.handOver(100, take, leave, virtual, shared4)
	// An agent without memory finds it in its kernel.
	r.forget("h1")
	r.connected()
	r.hold(time.Second)
	if err := r.held(shared4, mac, "h1"); err != nil {
		t.Errorf("after the agent of its host was started again: %v", err)
	}
}
