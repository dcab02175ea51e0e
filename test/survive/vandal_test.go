package survive

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"culvert/internal/hoststate"
	"culvert/internal/lab"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
)

// repairLimit is how long a host may be other than it should.
const repairLimit = time.Second

// vandalism is what somebody with root does to h1, where vm1 (..:11) is local
// on vm-vm1 and vm2 (..:12) is on h2 (172.20.2.1).
var vandalism = []struct {
	name string
	cmd  string // for sh -c
	busy bool   // also done while a guest floods
}{
	{"FDB entry deleted", "bridge fdb del 52:54:00:00:00:12 dev cvx42 self", true},
	{"FDB entry led elsewhere", "bridge fdb replace 52:54:00:00:00:12 dev cvx42 dst 172.20.9.9 self static", true},
	{"foreign FDB entry", "bridge fdb add 52:54:00:00:00:77 dev cvx42 dst 172.20.2.1 self static", true},
	{"bridge's entry deleted", "bridge fdb del 52:54:00:00:00:12 dev cvx42 master", false},
	{"bridge's entry led to a guest", "bridge fdb replace 52:54:00:00:00:12 dev vm-vm1 master static", true},
	{"foreign entry of the bridge", "bridge fdb add 52:54:00:00:00:77 dev vm-vm1 master static", false},
	{"foreign entry of the bridge on vxlan", "bridge fdb add 52:54:00:00:00:78 dev cvx42 master static", false},
	{"local pin deleted", "bridge fdb del 52:54:00:00:00:11 dev vm-vm1 master", true},
	{"local pin moved", "bridge fdb replace 52:54:00:00:00:11 dev cvx42 master static", false},
	{"neighbour deleted", "ip neigh del 10.1.0.12 dev cvx42", true},
	{"neighbour with another MAC", "ip neigh replace 10.1.0.12 lladdr 52:54:00:00:00:66 dev cvx42 nud permanent", true},
	{"neighbour made stale", "ip neigh replace 10.1.0.12 lladdr 52:54:00:00:00:12 dev cvx42 nud stale", false},
	{"foreign neighbour", "ip neigh add 10.1.0.77 lladdr 52:54:00:00:00:77 dev cvx42 nud permanent", false},
	{"foreign IPv6 neighbour", "ip neigh add 2001:db8::77 lladdr 52:54:00:00:00:77 dev cvx42 nud permanent", false},
	{"IPv6 neighbour deleted", "ip neigh del 2001:db8:1::12 dev cvx42", false},
	// It gives up when what it flushed is there again each time it looks: that
	// they went is told by the count of repairs.
	{"all neighbours flushed", "ip neigh flush dev cvx42 nud permanent || true", false},
	{"broadcast list emptied", "bridge fdb del 00:00:00:00:00:00 dev cvx42 dst 172.20.2.1", true},
	{"foreign place in the broadcast list", "bridge fdb append 00:00:00:00:00:00 dev cvx42 dst 172.20.9.9", false},
	{"VTEP shut out", "nft delete element inet culvert vtep4 '{ 172.20.2.1 }'", true},
	{"foreign VTEP let in", "nft add element inet culvert vtep4 '{ 172.20.9.9 }'", false},
	{"member shut out", "nft delete element bridge culvert member '{ \"vm-vm1\" }'", true},
	{"mark deleted", "nft flush set inet culvert reached", false},
	{"foreign mark", "nft add element inet culvert reached '{ 2001:db8::1 }'", false},
	{"rule deleted", "nft flush chain inet culvert underlay", false},
	{"isolation of the bridge deleted", "nft delete chain netdev culvert cvb42", true},
	{"isolation of the bridge opened", "nft 'add chain netdev culvert cvb42 { policy accept; }'", false},
	{"table deleted", "nft delete table bridge culvert", false},
	{"ruleset flushed", "nft flush ruleset", true},
	{"vxlan device down", "ip link set cvx42 down", true},
	{"bridge down", "ip link set cvb42 down", false},
	{"vxlan device's MTU", "ip link set cvx42 mtu 1400", true},
	{"bridge's MTU", "ip link set cvb42 mtu 1300", false},
	{"vxlan device learns", "bridge link set dev cvx42 learning on", false},
	{"vxlan device floods", "bridge link set dev cvx42 flood on", false},
	{"VM's port floods and learns", "bridge link set dev vm-vm1 flood on learning on", false},
	{"vxlan device out of the bridge", "ip link set cvx42 nomaster", false},
	{"bridge without its second name", "ip link property del dev cvb42 altname default.blue", false},
	{"IPv6 off on the vxlan device", "echo 1 > /proc/sys/net/ipv6/conf/cvx42/disable_ipv6", false},
	{"vxlan device deleted", "ip link del cvx42", true},
}

// usurped are devices that get another's mark: they are not ours to touch any
// more, so it is not put right but reported, until it is undone.
var usurped = []string{"cvb42", "cvx42"}

// Whatever is removed, changed or added behind the agent's back is put right
// within a second and counted.
func TestVandalismIsRepaired(t *testing.T) {
	t.Parallel()
	r := newRig(t, 2)
	vm1, vm2 := r.pair6()
	r.connected()
	r.marked()
	good := r.look("h1")
	for _, v := range vandalism {
		r.vandalise(v.name, v.cmd, good)
	}
	for _, device := range usurped {
		mark := r.mark(device)
		r.usurp(device+" with another's mark", "ip link set "+device+" alias nobody", fmt.Sprintf("ip link set %s alias '%s'", device, mark), good)
	}
	p, q := r.ping("vm1", address(vm2), 10*time.Millisecond), r.ping("vm2", address(vm1), 10*time.Millisecond)
	r.hold(500 * time.Millisecond)
	lossless(t, p, q)
}

// The same while the guest asks for 50,000 addresses a second.
func TestVandalismIsRepairedUnderFlood(t *testing.T) {
	r := newRig(t, 2)
	vm1, vm2 := r.pair6()
	r.connected()
	r.marked()
	good := r.look("h1")
	f := r.flood("vm1", "10.1.0.11")
	for _, v := range vandalism {
		if v.busy {
			r.vandalise(v.name, v.cmd, good)
		}
	}
	rate := f.end()
	t.Logf("%.0f ARP requests a second", rate)
	if rate < 10_000 {
		t.Errorf("the guest sent %.0f ARP requests a second, want %d, or a fifth of that on a busy machine", rate, floodRate)
	}
	p, q := r.ping("vm1", address(vm2), 10*time.Millisecond), r.ping("vm2", address(vm1), 10*time.Millisecond)
	r.hold(500 * time.Millisecond)
	lossless(t, p, q)
}

// look is a host's state without what a repair may change: ifindexes.
func (r *rig) look(host string) string {
	r.t.Helper()
	s, err := r.tables(host)
	if err != nil {
		r.t.Fatalf("tables of %s: %v", host, err)
	}
	return lookOf(s)
}

// lookOf is all of a host's state but ifindexes, and what a port's bridge
// knows of it.
func lookOf(s *hoststate.State) string {
	var b strings.Builder
	for _, l := range s.Links {
		l.Index, l.Master = 0, 0
		fmt.Fprintf(&b, "%+v\n", l)
	}
	for k := range s.Rows {
		if k.Table == hoststate.TableMark {
			fmt.Fprintln(&b, hoststate.Row{Key: k})
		}
	}
	lines := strings.Split(b.String(), "\n")
	slices.Sort(lines) // the order is that of ifindexes
	return fmt.Sprintf("base %t\n%s\n%s", s.Base, s, strings.Join(lines, "\n"))
}

// mark is the alias of a device of h1.
func (r *rig) mark(device string) string {
	r.t.Helper()
	s, err := r.tables("h1")
	if err != nil {
		r.t.Fatal(err)
	}
	i := slices.IndexFunc(s.Links, func(l hoststate.Link) bool { return l.Name == device })
	if i < 0 {
		r.t.Fatalf("h1 has no %s", device)
	}
	return s.Links[i].Alias
}

// checking is how long the agent may look whether its last repair holds. What
// is damaged meanwhile is put right with that one, and not counted by itself.
const checking = 500 * time.Millisecond

// vandalise does something to h1 and waits for the repair and its count.
func (r *rig) vandalise(name, cmd, good string) {
	r.t.Helper()
	r.hold(checking)
	hosts, err := r.hostStatus()
	if err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	before := hosts["h1"].GetRepairs()
	r.mustIn("h1", "sh", "-c", cmd)
	start := time.Now()
	took, err := poll(r.ctx, start, 10*repairLimit, func() error {
		s, err := r.tables("h1")
		if err != nil {
			return err
		}
		if now := lookOf(s); now != good {
			return fmt.Errorf("h1 differs:\n%s", difference(good, now))
		}
		return nil
	})
	if err != nil {
		r.t.Fatalf("%s: not repaired after %s: %v", name, took.Round(time.Millisecond), err)
	}
	if took > repairLimit {
		r.t.Errorf("%s: repaired after %s, want %s", name, took, repairLimit)
	}
	counted, err := poll(r.ctx, time.Now(), 3*time.Second, func() error {
		hosts, err := r.hostStatus()
		if err != nil {
			return err
		}
		if n := hosts["h1"].GetRepairs(); n <= before {
			return fmt.Errorf("%d repairs of h1 are known, as before", n)
		}
		return nil
	})
	if err != nil {
		r.t.Errorf("%s: not counted: %v", name, err)
	}
	r.t.Logf("%-40s repaired in %s, counted %s later", name, took.Round(time.Millisecond), counted.Round(time.Millisecond))
}

// usurp does something to h1 that only a report may follow, and undoes it.
func (r *rig) usurp(name, cmd, undo, good string) {
	r.t.Helper()
	problems := func(want bool) func() error {
		return func() error {
			hosts, err := r.hostStatus()
			if err != nil {
				return err
			}
			p := strings.Join(hosts["h1"].GetProblems(), "\n")
			if strings.Contains(p, "CV0205") != want {
				return fmt.Errorf("problems of h1: %q", p)
			}
			return nil
		}
	}
	r.mustIn("h1", "sh", "-c", cmd)
	took := r.await(3*time.Second, name+" is reported", problems(true))
	if took > repairLimit {
		r.t.Errorf("%s: reported after %s, want %s", name, took, repairLimit)
	}
	r.mustIn("h1", "sh", "-c", undo)
	r.await(5*time.Second, name+" is undone", func() error {
		if now := r.look("h1"); now != good {
			return fmt.Errorf("h1 differs:\n%s", difference(good, now))
		}
		return problems(false)()
	})
	r.t.Logf("%-40s reported in %s", name, took.Round(time.Millisecond))
}

// flood is a guest that asks for one address after the other.
type flood struct {
	stop context.CancelFunc
	done sync.WaitGroup
	sent int
	took time.Duration
}

// floodRate is ARP requests a second.
const floodRate = 50_000

// flood makes a VM ask, in bursts of a millisecond's worth, until it is ended.
func (r *rig) flood(vm, addr string) *flood {
	r.t.Helper()
	h, err := netns.GetFromName(lab.NSOfVM(r.name, vm))
	if err != nil {
		r.t.Fatalf("namespace of %s: %v", vm, err)
	}
	defer h.Close()
	port := netnstest.OpenPort(r.t, &netnstest.NS{Handle: h}, "eth0")
	v, err := r.lab.VM(vm)
	if err != nil {
		r.t.Fatal(err)
	}
	mac, err := overlay.ParseMAC(v.MAC)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(r.ctx)
	f := &flood{stop: stop}
	frame := question(mac, addr)
	f.done.Go(func() {
		start := time.Now()
		t := time.NewTicker(time.Millisecond)
		defer t.Stop()
		for ctx.Err() == nil {
			select {
			case <-t.C:
			case <-ctx.Done():
			}
			due := int(time.Since(start).Seconds() * floodRate)
			for end := min(due, f.sent+500); f.sent < end; f.sent++ {
				binary.BigEndian.PutUint16(frame[14+26:], uint16(f.sent)) // the last half of the address asked for
				port.Send(frame)
			}
		}
		f.took = time.Since(start)
	})
	r.t.Cleanup(func() { f.end() })
	return f
}

// end stops the flood and returns its rate.
func (f *flood) end() float64 {
	f.stop()
	f.done.Wait()
	return float64(f.sent) / f.took.Seconds()
}

// question is an ARP request (RFC 826) for an address in the sender's /16.
func question(mac overlay.MAC, addr string) []byte {
	a, err := overlay.ParseAddr("addr", addr)
	if err != nil {
		panic(err)
	}
	ip := a.As4()
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(append(b, mac[:]...), ip[:]...)
	b = append(append(b, 0, 0, 0, 0, 0, 0), ip[:]...)
	return netnstest.Ethernet([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, 0x0806, b)
}
