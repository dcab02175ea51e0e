package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/bpf"
	"culvert/internal/hoststate"
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// realSubject is a kernel in a private namespace; foreign hands are those of
// an operator: ip, bridge and nft.
type realSubject struct {
	*Kernel
	t     testing.TB
	ns    *netnstest.NS
	guest *netnstest.NS
	bells chan hoststate.Doorbell

	misses chan hoststate.Miss
	ports  map[string]*netnstest.Port
}

func newSubject(t *testing.T, filters bool) *realSubject {
	t.Helper()
	s := &realSubject{t: t, ns: netnstest.New(t), guest: netnstest.New(t), bells: make(chan hoststate.Doorbell, 1<<20),
		misses: make(chan hoststate.Miss, 1<<16), ports: map[string]*netnstest.Port{}}
	s.guest.Sysctl("net/ipv6/conf/default/disable_ipv6", "1") // silent: nothing is learned
	k, err := Open(int(s.ns.Handle), Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Kernel = k
	k.guard.filters = filters
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- k.Watch(ctx, func(d hoststate.Doorbell) { s.bells <- d }) }()
	go func() { done <- k.Misses(ctx, func(m hoststate.Miss) { s.misses <- m }) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("watch or misses: %v", err)
			}
		}
		if err := k.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	if !s.Bell(func(d hoststate.Doorbell) bool { return d.Overflow }) {
		t.Fatal("watch did not begin")
	}
	return s
}

func (s *realSubject) Bell(ok func(hoststate.Doorbell) bool) bool {
	end := time.After(3 * time.Second)
	for {
		select {
		case d := <-s.bells:
			if ok(d) {
				return true
			}
		case <-end:
			return false
		}
	}
}

func (s *realSubject) Quiet() []hoststate.Doorbell {
	var rang []hoststate.Doorbell
	for {
		select {
		case d := <-s.bells:
			rang = append(rang, d)
		case <-time.After(100 * time.Millisecond):
			return rang
		}
	}
}

func (s *realSubject) Plug(name string) int32 {
	netnstest.Veth(s.ns, name, s.guest, name)
	return int32(s.ns.Index(name))
}

// guestMAC is mac1 of the contract.
var guestMAC = overlay.MAC{0x52, 0x54, 0, 0, 0, 1}

// say sends a frame of the guest behind a device.
func (s *realSubject) say(name string, frame []byte) {
	s.t.Helper()
	if s.ports[name] == nil {
		s.ports[name] = netnstest.OpenPort(s.t, s.guest, name)
	}
	s.ports[name].Send(frame)
}

func (s *realSubject) Ask(name string, ip netip.Addr) {
	s.t.Helper()
	if ip.Is4() {
		s.say(name, packet.AskARP(packet.Broadcast, guestMAC, netip.IPv4Unspecified(), ip))
		return
	}
	s.say(name, packet.AskND(overlay.MAC{0x33, 0x33, 0xff, 0, 0, 1}, guestMAC, netip.MustParseAddr("fe80::1"), ip))
}

func (s *realSubject) Frame(name string, to overlay.MAC, ip netip.Addr) {
	s.t.Helper()
	switch {
	case !ip.IsValid():
		s.say(name, netnstest.Ethernet(to, guestMAC, testEthertype, []byte("culvert")))
	case ip.Is4():
		s.say(name, netnstest.Ethernet(to, guestMAC, packet.TypeIPv4, udp4(netip.MustParseAddr("10.1.0.1"), ip, 7777)))
	default:
		s.say(name, netnstest.Ethernet(to, guestMAC, packet.TypeIPv6, udp6(netip.MustParseAddr("fd00:1::1"), ip, 7777)))
	}
}

func (s *realSubject) Missed(x hoststate.Miss) (before []hoststate.Miss, ok bool) {
	for end := time.After(2 * time.Second); ; {
		select {
		case m := <-s.misses:
			if m == x {
				return before, true
			}
			before = append(before, m)
		case <-end:
			return before, false
		}
	}
}

func (s *realSubject) Join(name, bridge string) {
	s.ns.Exec("ip", "link", "set", name, "master", bridge)
}
func (s *realSubject) Unplug(name string) { s.ns.Exec("ip", "link", "del", name) }

func (s *realSubject) SetUp(name string, up bool) {
	if up {
		s.ns.Up(name)
	} else {
		s.ns.Down(name)
	}
}

func (s *realSubject) SetIPv6(name string, on bool) {
	v := "1"
	if on {
		v = "0"
	}
	s.ns.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", v)
}

func (s *realSubject) SetMAC(name string, mac overlay.MAC) {
	s.ns.Exec("ip", "link", "set", name, "address", mac.String())
}

// dev is the device that a row is addressed by.
func (s *realSubject) dev(r hoststate.Row) string {
	if r.Key.Table == hoststate.TableMaster && r.Val.Port != 0 {
		st, err := s.Read(context.Background(), hoststate.Scope{Links: true})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, l := range st.Links {
			if l.Index == r.Val.Port {
				return l.Name
			}
		}
		s.t.Fatalf("no port %d", r.Val.Port)
	}
	return r.Key.VNI.VXLAN()
}

func state(f hoststate.Flags) string {
	switch {
	case f&hoststate.Permanent != 0:
		return "permanent"
	case f&hoststate.Static != 0:
		return "static"
	}
	return "dynamic"
}

func (s *realSubject) SetRow(r hoststate.Row) {
	s.t.Helper()
	k, v := r.Key, r.Val
	var args []string
	switch k.Table {
	case hoststate.TableFDB:
		args = []string{"bridge", "fdb", "replace", k.MAC.String(), "dev", s.dev(r), "dst", v.Dst.String(), "self", state(v.Flags)}
		if v.VNI != 0 {
			args = append(args, "vni", fmt.Sprint(v.VNI))
		}
	case hoststate.TableMaster:
		args = []string{"bridge", "fdb", "replace", k.MAC.String(), "dev", s.dev(r), "master", state(v.Flags)}
	case hoststate.TableRepl:
		args = []string{"bridge", "fdb", "append", k.MAC.String(), "dev", s.dev(r), "dst", k.IP.String()}
	case hoststate.TableNeigh:
		args = []string{"ip", "neigh", "replace", k.IP.String(), "lladdr", v.MAC.String(), "dev", s.dev(r), "nud", state(v.Flags)}
	case hoststate.TableVTEP:
		args = []string{"nft", "add", "element", "inet", "culvert", "vtep4", fmt.Sprintf("{ %s }", k.IP)}
	case hoststate.TableMember:
		args = []string{"nft", "add", "element", "bridge", "culvert", "member", fmt.Sprintf("{ %d }", k.Port)}
	case hoststate.TableMark:
		args = []string{"nft", "add", "element", "inet", "culvert", "reached", fmt.Sprintf("{ %s }", k.IP)}
	default:
		s.writeMap(bpf.Change{Row: r})
		return
	}
	if v.Flags&hoststate.Extern != 0 {
		args = append(args, "extern_learn")
	}
	if v.Flags&hoststate.Router != 0 {
		args = append(args, "router")
	}
	if v.Flags&hoststate.Sticky != 0 {
		args = append(args, "sticky")
	}
	if v.Flags&hoststate.Ours != 0 {
		args = append(args, "protocol", fmt.Sprint(Protocol))
	}
	s.ns.Exec(args[0], args[1:]...)
}

func (s *realSubject) DeleteRow(r hoststate.Row) {
	s.t.Helper()
	k := r.Key
	var args []string
	switch k.Table {
	case hoststate.TableFDB:
		args = []string{"bridge", "fdb", "del", k.MAC.String(), "dev", s.dev(r), "self"}
	case hoststate.TableMaster:
		args = []string{"bridge", "fdb", "del", k.MAC.String(), "dev", s.dev(r), "master"}
	case hoststate.TableRepl:
		args = []string{"bridge", "fdb", "del", k.MAC.String(), "dev", s.dev(r), "dst", k.IP.String()}
	case hoststate.TableNeigh:
		args = []string{"ip", "neigh", "del", k.IP.String(), "dev", s.dev(r)}
	case hoststate.TableVTEP:
		args = []string{"nft", "delete", "element", "inet", "culvert", "vtep4", fmt.Sprintf("{ %s }", k.IP)}
	case hoststate.TableMember:
		args = []string{"nft", "delete", "element", "bridge", "culvert", "member", fmt.Sprintf("{ %d }", k.Port)}
	case hoststate.TableMark:
		args = []string{"nft", "delete", "element", "inet", "culvert", "reached", fmt.Sprintf("{ %s }", k.IP)}
	default:
		s.writeMap(bpf.Change{Row: r, Delete: true})
		return
	}
	s.ns.Exec(args[0], args[1:]...)
}

// writeMap writes an entry of a program's map past the edge.
func (s *realSubject) writeMap(c bpf.Change) {
	s.t.Helper()
	if c.Row.Key.VNI != 0 {
		c.Device = int32(s.ns.Index(c.Row.Key.VNI.VXLAN()))
	}
	if err := s.guard.set.Write([]bpf.Change{c})[0]; err != nil {
		s.t.Fatalf("write map: %v", err)
	}
}

func (s *realSubject) Strip(name string) {
	s.t.Helper()
	dev := int32(s.ns.Index(name))
	err := s.ns.Run(func() error {
		var err error
		for _, p := range []bpf.Program{bpf.FromPort, bpf.ToPort, bpf.FromOverlay, bpf.Underlay} {
			err = errors.Join(err, s.guard.set.Detach(dev, p))
		}
		return err
	})
	if err != nil {
		s.t.Fatalf("take programs off %s: %v", name, err)
	}
}

func (s *realSubject) FlushRuleset() { s.ns.Exec("nft", "flush", "ruleset") }

func (s *realSubject) DropIsolation(v overlay.VNI) {
	s.ns.Exec("nft", "delete", "chain", "netdev", "culvert", v.Bridge())
}

func TestContract(t *testing.T) {
	kerneltest.Contract(t, func(t *testing.T) kerneltest.Subject { return newSubject(t, false) })
}

// TestProgramContractWithFilters: on a kernel without tcx too.
func TestProgramContractWithFilters(t *testing.T) {
	kerneltest.ProgramContract(t, func(t *testing.T) kerneltest.Subject { return newSubject(t, true) })
}
