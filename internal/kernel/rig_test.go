package kernel

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/netnstest"
	"culvert/internal/overlay"
)

const (
	vni100        overlay.VNI = 100
	remoteFlags               = hoststate.Static | hoststate.Extern
	localFlags                = hoststate.Static | hoststate.Sticky
	neighFlags                = hoststate.Permanent | hoststate.Ours
	testEthertype             = 0x88b5 // IEEE 802 local experimental
)

// rig is hosts on one underlay segment (a bridge in a namespace of its own).
type rig struct {
	t     testing.TB
	wire  *netnstest.NS
	hosts []*host

	filters bool
}

// host is a namespace with the devices of one network and a kernel edge.
type host struct {
	*Kernel
	t    testing.TB
	ns   *netnstest.NS
	vtep netip.Addr
	x    int32 // VXLAN device
	rig  *rig
}

// guest is a VM: a namespace behind a veth whose other end is a bridge port.
type guest struct {
	ns   *netnstest.NS
	vni  overlay.VNI
	dev  string
	mac  overlay.MAC
	port int32
	*netnstest.Port
}

// newRig makes n hosts with network 100, all members of each other's lists.
func newRig(t testing.TB, n int) *rig {
	t.Helper()
	return newRigWith(t, n, false)
}

// newRigWith is newRig, with programs attached as on a kernel without tcx if
// filters is true.
func newRigWith(t testing.TB, n int, filters bool) *rig {
	t.Helper()
	r := &rig{t: t, wire: netnstest.New(t), filters: filters}
	r.wire.Exec("ip", "link", "add", "wire", "type", "bridge")
	r.wire.Exec("ip", "link", "set", "wire", "up")
	for i := range n {
		h := r.underlay(i + 1)
		k, err := Open(int(h.ns.Handle), Config{})
		if err != nil {
			t.Fatal(err)
		}
		h.Kernel = k
		k.guard.filters = filters
		t.Cleanup(func() { _ = h.Close() }) // of whichever it has by then
		h.apply(hoststate.Op{Kind: hoststate.OpBase})
		h.x = h.serve(vni100)
		r.hosts = append(r.hosts, h)
	}
	for _, h := range r.hosts {
		for _, o := range r.hosts {
			if o != h {
				h.set(row(hoststate.TableVTEP, overlay.MAC{}, o.vtep, 0, hoststate.Val{}),
					row(hoststate.TableRepl, overlay.MAC{}, o.vtep, 0, hoststate.Val{Flags: hoststate.Permanent}))
			}
		}
	}
	return r
}

// serve makes a network's devices, up; it returns the VXLAN device.
func (h *host) serve(v overlay.VNI) int32 {
	h.t.Helper()
	dev := hoststate.Device{VNI: v, Local: h.vtep, UDPPort: 4789, MTU: 1450, Alias: "test"}
	h.apply(hoststate.Op{Kind: hoststate.OpMakeBridge, Dev: dev}, hoststate.Op{Kind: hoststate.OpMakeVXLAN, Dev: dev})
	x := int32(h.ns.Index(v.VXLAN()))
	h.set(row(hoststate.TableMember, overlay.MAC{}, netip.Addr{}, x, hoststate.Val{}))
	h.apply(hoststate.Op{Kind: hoststate.OpUp, Index: x})
	return x
}

// underlay makes a machine on the wire with addresses 192.0.2.N and 2001:db8::N.
func (r *rig) underlay(n int) *host {
	h := &host{t: r.t, rig: r, ns: netnstest.New(r.t), vtep: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})}
	netnstest.Veth(r.wire, fmt.Sprintf("h%d", n), h.ns, "eth0")
	r.wire.Exec("ip", "link", "set", fmt.Sprintf("h%d", n), "master", "wire")
	h.ns.Addr("eth0", h.vtep.String()+"/24")
	h.ns.Addr("eth0", fmt.Sprintf("2001:db8::%d/64", n))
	return h
}

func row(table hoststate.Table, mac overlay.MAC, ip netip.Addr, port int32, v hoststate.Val) hoststate.Row {
	r := hoststate.Row{Key: hoststate.Key{Table: table, MAC: mac, IP: ip, Port: port}, Val: v}
	if table != hoststate.TableVTEP && table != hoststate.TableMember && table != hoststate.TablePort && table != hoststate.TableOwn {
		r.Key.VNI = vni100
	}
	return r
}

// of are rows of another network than row's.
func of(v overlay.VNI, rows ...hoststate.Row) []hoststate.Row {
	for i := range rows {
		rows[i].Key.VNI = v
	}
	return rows
}

func (h *host) apply(ops ...hoststate.Op) {
	h.t.Helper()
	for _, r := range h.Apply(h.t.Context(), ops) {
		if r.Class != hoststate.ClassOK {
			h.t.Fatalf("%v: %v %s", r.Op, r.Class, r.Text)
		}
	}
}

func (h *host) set(rows ...hoststate.Row) {
	h.t.Helper()
	h.apply(kernelOps(hoststate.OpSet, rows)...)
}

func (h *host) del(rows ...hoststate.Row) {
	h.t.Helper()
	h.apply(kernelOps(hoststate.OpDel, rows)...)
}

func kernelOps(kind hoststate.OpKind, rows []hoststate.Row) []hoststate.Op {
	var ops []hoststate.Op
	for _, r := range rows {
		ops = append(ops, hoststate.Op{Kind: kind, Row: r})
	}
	return ops
}

// plug makes a silent VM: IPv6 is off in it, so that it says nothing unless a
// test makes it.
func (h *host) plug(name string, mac overlay.MAC) *guest {
	h.t.Helper()
	return h.plugInto(vni100, name, mac)
}

func (h *host) plugInto(v overlay.VNI, name string, mac overlay.MAC) *guest {
	h.t.Helper()
	g := &guest{ns: netnstest.New(h.t), vni: v, dev: name, mac: mac}
	g.ns.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	netnstest.Veth(h.ns, name, g.ns, "eth0")
	g.ns.Exec("ip", "link", "set", "eth0", "address", mac.String())
	g.port = int32(h.ns.Index(name))
	h.ns.Exec("ip", "link", "set", name, "master", v.Bridge())
	h.apply(hoststate.Op{Kind: hoststate.OpPort, Index: g.port})
	g.Port = netnstest.OpenPort(h.t, g.ns, "eth0")
	h.forwarding(name)
	return g
}

// claim pins a VM's MAC to its port and lets the port pass. The other hosts
// take its frames from here.
func (h *host) claim(g *guest) {
	h.t.Helper()
	h.set(of(g.vni, row(hoststate.TableMaster, g.mac, netip.Addr{}, 0, hoststate.Val{Port: g.port, Flags: localFlags}))[0],
		row(hoststate.TableMember, overlay.MAC{}, netip.Addr{}, g.port, hoststate.Val{}),
		row(hoststate.TablePort, overlay.MAC{}, netip.Addr{}, g.port, hoststate.Val{MAC: g.mac, Flags: hoststate.Open}))
	for _, o := range h.rig.hosts {
		if o != h {
			o.set(of(g.vni, row(hoststate.TableSource, g.mac, h.vtep, 0, hoststate.Val{}))...)
		}
	}
}

// trust makes h take frames of a MAC from another host.
func (h *host) trust(mac overlay.MAC, from *host) {
	h.t.Helper()
	h.set(row(hoststate.TableSource, mac, from.vtep, 0, hoststate.Val{}))
}

// lend lets a guest send from, and get frames for, a MAC besides its own.
func (h *host) lend(g *guest, mac overlay.MAC) {
	h.t.Helper()
	h.set(row(hoststate.TableOwn, mac, netip.Addr{}, g.port, hoststate.Val{}))
}

// strip takes all our programs off a device.
func (h *host) strip(dev string) {
	h.t.Helper()
	(&realSubject{Kernel: h.Kernel, t: h.t, ns: h.ns}).Strip(dev)
}

func (h *host) vm(name string, mac overlay.MAC) *guest {
	h.t.Helper()
	g := h.plug(name, mac)
	h.claim(g)
	return g
}

// remote makes h know mac at another host.
func (h *host) remote(mac overlay.MAC, at *host) {
	h.t.Helper()
	h.set(row(hoststate.TableFDB, mac, netip.Addr{}, 0, hoststate.Val{Dst: at.vtep, Flags: remoteFlags}),
		row(hoststate.TableMaster, mac, netip.Addr{}, 0, hoststate.Val{Flags: remoteFlags}))
}

func (h *host) forwarding(name string) {
	h.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
		for _, l := range h.state().Links {
			if l.Name == name && l.State == hoststate.StateForwarding {
				return
			}
		}
	}
	h.t.Fatalf("%s does not forward", name)
}

func (h *host) state() *hoststate.State {
	h.t.Helper()
	st, err := h.Read(h.t.Context(), hoststate.Scope{Links: true, VNI: vni100})
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

func macN(n byte) overlay.MAC { return overlay.MAC{0x52, 0x54, 0, 0, 0, n} }

// stream sends n equal frames from g to a MAC, with a source of choice.
func (g *guest) stream(n int, dst, src overlay.MAC) {
	f := netnstest.Ethernet(dst, src, testEthertype, []byte("culvert"))
	for range n {
		g.Send(f)
	}
}

// got counts the frames of stream that came in.
func (g *guest) got() int {
	return g.Count(300*time.Millisecond, netnstest.All(netnstest.In, netnstest.EtherType(testEthertype)))
}
