package vms

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// macvtap is the NIC of a guest on a macvtap device, as QEMU has it: the test
// is the guest, and reads and writes frames at the character device.
type macvtap struct {
	t   *testing.T
	mac overlay.MAC
	ip  netip.Addr
	fd  *os.File
}

// vnetHeader precedes each frame (struct virtio_net_hdr, linux/virtio_net.h).
const vnetHeader = 10

func inHost(t *testing.T, l *lab.Lab, host string, argv ...string) error {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", lab.NSOfNode(l.Name(), host)}, argv...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

func mustInHost(t *testing.T, l *lab.Lab, host string, argv ...string) {
	t.Helper()
	if err := inHost(t, l, host, argv...); err != nil {
		t.Fatal(err)
	}
}

// indexes of macvtap devices begin here: the character device is named by its
// index, which is its namespace's, in a directory that all namespaces share.
const firstIndex = 730_000

// openMacvtap makes a macvtap device on parent at h1.
func openMacvtap(t *testing.T, l *lab.Lab, parent, name, mode string, index int, mac, ip string) (*macvtap, error) {
	t.Helper()
	if err := inHost(t, l, "h1", "ip", "link", "add", "link", parent, "name", name, "index", fmt.Sprint(index), "address", mac, "mtu", "1450", "type", "macvtap", "mode", mode); err != nil {
		return nil, err
	}
	mustInHost(t, l, "h1", "ip", "link", "set", name, "up")
	path := fmt.Sprintf("/dev/tap%d", index)
	fd, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { fd.Close() })
	m, err := overlay.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	return &macvtap{t: t, mac: m, ip: netip.MustParseAddr(ip), fd: fd}, nil
}

func (m *macvtap) send(frame []byte) {
	m.t.Helper()
	if _, err := m.fd.Write(append(make([]byte, vnetHeader), frame...)); err != nil {
		m.t.Fatalf("send at %s: %v", m.mac, err)
	}
}

// hears reports whether a frame that f accepts comes within a time.
func (m *macvtap) hears(within time.Duration, f func(frame []byte) bool) bool {
	m.t.Helper()
	if err := m.fd.SetReadDeadline(time.Now().Add(within)); err != nil {
		m.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := m.fd.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
		if err != nil {
			m.t.Fatalf("read at %s: %v", m.mac, err)
		}
		if n > vnetHeader && f(buf[vnetHeader:n]) {
			return true
		}
	}
}

// asked reports whether a frame is the question of ip for the address target.
func asked(frame []byte, ip, target netip.Addr) bool {
	f, _ := packet.Parse(packet.ToGuest, frame, len(frame))
	return f.Kind == packet.ARPRequest && f.IP == ip && f.Target == target
}

// finds asks for an address until somebody with that MAC answers.
func (m *macvtap) finds(target netip.Addr, mac overlay.MAC, limit time.Duration) bool {
	m.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		m.send(packet.AskARP(packet.Broadcast, m.mac, m.ip, target))
		if m.hears(200*time.Millisecond, func(b []byte) bool {
			f, _ := packet.Parse(packet.ToGuest, b, len(b))
			return f.Kind == packet.ARPReply && f.IP == target && f.MAC == mac
		}) {
			return true
		}
	}
	return false
}

func macOf(t *testing.T, v lab.VM) overlay.MAC {
	t.Helper()
	m, err := overlay.ParseMAC(v.MAC)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// pair makes the parent of a macvtap: one end of a pair whose other end is a
// port of a network's bridge. It has no address, or the bridge would learn what
// the host itself says on it.
func pair(t *testing.T, l *lab.Lab, host, parent, port string) {
	t.Helper()
	mustInHost(t, l, host, "ip", "link", "add", parent, "mtu", "1450", "type", "veth", "peer", "name", port, "mtu", "1450")
	mustInHost(t, l, host, "ip", "link", "set", parent, "addrgenmode", "none")
	mustInHost(t, l, host, "ip", "link", "set", parent, "up")
	mustInHost(t, l, host, "ip", "link", "set", port, "up")
}

// A guest on macvtap reaches the overlay and is reached in all four modes: its
// parent is one end of a pair, and the other end is the port.
func TestMacvtapReachesTheOverlay(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Topology{Hosts: 2})
	far := vm(t, l, lab.VMSpec{Name: "far", Host: "h2"})
	for i, mode := range []string{"bridge", "vepa", "private", "passthru"} {
		mac, ip := fmt.Sprintf("52:54:00:00:07:%02x", i+1), fmt.Sprintf("10.20.0.%d", 201+i)
		put(t, l, api.Wrap(&culvertv1.Port{
			ApiVersion: "culvert/v1alpha1", Kind: "Port", Metadata: &culvertv1.Metadata{Name: mode, Tenant: "default"},
			Spec: &culvertv1.PortSpec{Network: "blue", Mac: mac, Addresses: []string{ip}},
		}))
		pair(t, l, "h1", "m0", "p0")
		mustInHost(t, l, "h1", program, "attach", mode, "--dev", "p0", "--agent-socket", l.AgentSocket("h1"))
		m, err := openMacvtap(t, l, "m0", "g0", mode, firstIndex+i, mac, ip)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		if !m.finds(far.Addresses[0].Addr(), macOf(t, far), settle) {
			t.Errorf("%s: the guest does not find a VM of another host", mode)
		}
		// And the way back: a ping of the VM arrives at the guest.
		var got bool
		for end := time.Now().Add(settle); !got && time.Now().Before(end); {
			if _, err := l.PingVM(t.Context(), "far", ip, lab.PingOptions{Count: 1, Interval: 50 * time.Millisecond}); err != nil {
				t.Fatal(err)
			}
			got = m.hears(100*time.Millisecond, func(b []byte) bool {
				return len(b) > 34 && bytes.Equal(b[:6], m.mac[:]) && b[12] == 0x08 && b[13] == 0 && b[23] == 1 // IPv4, ICMP
			})
		}
		if !got {
			t.Errorf("%s: the guest is not reached from another host", mode)
		}
		if i == 0 {
			groupsOfMacvtap(t, l, m)
		}
		mustInHost(t, l, "h1", "ip", "link", "del", "m0")
	}
}

// A macvtap device drops frames to groups of which it knows nothing, and QEMU
// does not tell it what the guest joined: with allmulticast all pass.
func groupsOfMacvtap(t *testing.T, l *lab.Lab, m *macvtap) {
	t.Helper()
	group := func() bool {
		err := lab.InNS(lab.NSOfVM(l.Name(), "far"), func() error {
			// It ends with 1: nobody answers.
			return exec.Command("ping", "-c", "1", "-W", "1", "-I", "eth0", "239.1.2.3").Run()
		})
		if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
			t.Fatal(err)
		}
		return m.hears(200*time.Millisecond, func(b []byte) bool { return bytes.Equal(b[:6], []byte{0x01, 0x00, 0x5e, 1, 2, 3}) })
	}
	if group() {
		t.Error("a frame to a group that nobody joined reached the guest")
	}
	mustInHost(t, l, "h1", "ip", "link", "set", "g0", "allmulticast", "on")
	if !group() {
		t.Error("with allmulticast, a frame to a group did not reach the guest")
	}
}

// Guests that share one parent, in a network that learns: all reach other
// hosts; each other only where the mode says so, in the host itself.
func TestMacvtapGuestsOfOneParent(t *testing.T) {
	t.Parallel()
	l := newLab(t, lab.Topology{Hosts: 2})
	put(t, l, api.Wrap(&culvertv1.Network{
		ApiVersion: "culvert/v1alpha1", Kind: "Network", Metadata: &culvertv1.Metadata{Name: "green", Tenant: "default"},
		Spec: &culvertv1.NetworkSpec{Vni: 77, Admission: "learn", Subnets: []*culvertv1.Subnet{{Prefix: "10.21.0.0/24"}}},
	}))
	var far lab.VM
	for name, host := range map[string]string{"near": "h1", "far": "h2"} {
		r, err := l.CreateVM(t.Context(), lab.VMSpec{Name: name, Host: host, Network: "green"})
		if err != nil {
			t.Fatal(err)
		}
		if name == "far" {
			far = r.VM
		}
	}
	for i, c := range []struct {
		mode  string
		among bool // guests of one parent hear each other
		alone bool // one guest a parent
	}{{"bridge", true, false}, {"vepa", false, false}, {"private", false, false}, {"passthru", false, true}} {
		pair(t, l, "h1", "m1", "p1")
		mustInHost(t, l, "h1", "ip", "link", "set", "p1", "master", "cvb77")
		a, err := openMacvtap(t, l, "m1", "a1", c.mode, firstIndex+100+2*i, fmt.Sprintf("52:54:00:00:08:%02x", 2*i+1), fmt.Sprintf("10.21.0.%d", 201+2*i))
		if err != nil {
			t.Fatalf("%s: %v", c.mode, err)
		}
		b, err := openMacvtap(t, l, "m1", "b1", c.mode, firstIndex+101+2*i, fmt.Sprintf("52:54:00:00:08:%02x", 2*i+2), fmt.Sprintf("10.21.0.%d", 202+2*i))
		if c.alone != (err != nil) {
			t.Fatalf("%s: a second device on the parent: %v", c.mode, err)
		}
		if !a.finds(far.Addresses[0].Addr(), macOf(t, far), settle) {
			t.Errorf("%s: the first guest does not find a VM of another host", c.mode)
		}
		if !c.alone {
			if !b.finds(far.Addresses[0].Addr(), macOf(t, far), settle) {
				t.Errorf("%s: the second guest does not find a VM of another host", c.mode)
			}
			a.send(packet.AskARP(packet.Broadcast, a.mac, a.ip, b.ip))
			if heard := b.hears(time.Second, func(f []byte) bool { return asked(f, a.ip, b.ip) }); heard != c.among {
				t.Errorf("%s: a guest of the same parent hears the other: %t, want %t", c.mode, heard, c.among)
			}
		}
		mustInHost(t, l, "h1", "ip", "link", "del", "m1")
	}
}
