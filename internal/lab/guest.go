package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// Guest is a VM as its hypervisor knows it.
type Guest struct {
	Lab       string
	VM        string
	MAC       overlay.MAC
	Addresses []netip.Prefix
	Gateways  []netip.Addr // where its packets for other networks go; none: nowhere
	MTU       int          // bytes, of its eth0
	Bridge    string       // on every host: cvb<VNI>
	Alias     string       // of its device on a host; empty for none
	Announce  bool         // it speaks unasked, as most systems do; else it is silent
	Asks      bool         // it has no addresses and asks the network for them, as a stock image does
}

// stockMTU is the MTU of a NIC that nobody has told another one, in bytes.
const stockMTU = 1500

// guestEnd is the NIC's side of a VM's eth0.
const guestEnd = "guest"

// nicMTU is the MTU of a NIC's own ends: a NIC passes what it gets.
const nicMTU = 65535

// silence is what keeps a Linux guest from sending anything unasked, for all
// interfaces that come: no router solicitation, no duplicate address
// detection, no addresses of its own making.
var silence = []string{
	"ipv6.conf.%s.accept_ra", "0",
	"ipv6.conf.%s.autoconf", "0",
	"ipv6.conf.%s.accept_dad", "0",
	"ipv6.conf.%s.dad_transmits", "0",
	"ipv6.conf.%s.router_solicitations", "0",
	"ipv6.conf.%s.addr_gen_mode", "1",
	"ipv4.conf.%s.arp_notify", "0",
	"ipv6.conf.%s.ndisc_notify", "0",
}

// Make makes the VM and its NIC, plugged in nowhere. Namespaces of these names
// that exist are fs.ErrExist.
func (g Guest) Make(ctx context.Context) error {
	for _, name := range []string{NSOfVM(g.Lab, g.VM), nsOfNIC(g.Lab, g.VM)} {
		if err := makeNS(name); err != nil {
			return err
		}
	}
	vm, nic, err := g.open()
	if err != nil {
		return err
	}
	defer vm.Close()
	defer nic.Close()
	if err := nic.sysctl("ipv6.conf.all.disable_ipv6", "1", "ipv6.conf.default.disable_ipv6", "1"); err != nil {
		return err
	}
	if err := g.quiet(vm); err != nil {
		return err
	}
	err = nic.LinkAdd(&netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: guestEnd, MTU: nicMTU},
		PeerName:         "eth0",
		PeerHardwareAddr: net.HardwareAddr(g.MAC[:]),
		PeerMTU:          uint32(g.MTU),
		PeerNamespace:    netlink.NsFd(vm.fd),
	})
	if err != nil {
		return fmt.Errorf("VM's interface: %w", err)
	}
	eth0, err := vm.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("VM's interface: %w", err)
	}
	for _, a := range g.Addresses {
		if err := addAddress(vm, eth0, a); err != nil {
			return err
		}
	}
	end, err := nic.LinkByName(guestEnd)
	if err != nil {
		return fmt.Errorf("NIC: %w", err)
	}
	if err := addIngress(nic, end); err != nil {
		return err
	}
	if err := nic.LinkSetUp(end); err != nil {
		return fmt.Errorf("NIC up: %w", err)
	}
	if err := vm.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("VM's interface up: %w", err)
	}
	for _, a := range g.Gateways {
		if err := vm.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: a.AsSlice()}); err != nil {
			return fmt.Errorf("VM's route by way of %s: %w", a, err)
		}
	}
	return g.awaitListening(ctx)
}

// awaitListening waits until a VM with IPv6 addresses hears multicast, and so
// questions for its addresses: the kernel adds the route for it only once it
// has noticed the link, up to a second after it is up.
func (g Guest) awaitListening(ctx context.Context) error {
	if !slices.ContainsFunc(g.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return nil
	}
	err := poll(ctx, 5*time.Second, func() (bool, error) {
		var routes []byte
		err := InNS(NSOfVM(g.Lab, g.VM), func() (err error) {
			routes, err = os.ReadFile("/proc/thread-self/net/ipv6_route")
			return err
		})
		for line := range strings.Lines(string(routes)) {
			if strings.HasPrefix(line, "ff000000000000000000000000000000 08 ") && strings.HasSuffix(line, " eth0\n") {
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("IPv6 of %s: %w", g.VM, err)
	}
	return nil
}

func (g Guest) open() (vm, nic *room, err error) {
	if vm, err = openNS(NSOfVM(g.Lab, g.VM)); err != nil {
		return nil, nil, err
	}
	if nic, err = openNS(nsOfNIC(g.Lab, g.VM)); err != nil {
		vm.Close()
		return nil, nil, err
	}
	return vm, nic, nil
}

// quiet keeps the VM silent. Guests answer broadcast pings here: that is how
// a lab shows whom a broadcast reaches.
func (g Guest) quiet(vm *room) error {
	if err := vm.sysctl("ipv4.icmp_echo_ignore_broadcasts", "0"); err != nil {
		return err
	}
	if g.Asks {
		return nil
	}
	var kv []string
	for i := 0; i < len(silence); i += 2 {
		kv = append(kv, fmt.Sprintf(silence[i], "all"), silence[i+1], fmt.Sprintf(silence[i], "default"), silence[i+1])
	}
	if err := vm.sysctl(kv...); err != nil {
		return err
	}
	if g.Announce {
		return nil
	}
	return dropMLD(vm)
}

// dropMLD keeps listener reports in: the kernel has no setting to omit the
// one that each IPv6 address causes (its solicited-node group, RFC 4861
// section 7.2.1).
func dropMLD(vm *room) error {
	c, err := nftables.New(nftables.WithNetNSFd(vm.fd))
	if err != nil {
		return fmt.Errorf("nftables in %s: %w", vm.name, err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: "silent"})
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	// The reports carry a hop-by-hop header, so the type is not at a fixed
	// place of the IPv6 header but at the transport header that the kernel
	// finds behind it.
	for _, icmpType := range []byte{131, 143} { // MLD report v1 (RFC 2710), v2 (RFC 3810)
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{icmpType}},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("silence %s: %w", vm.name, err)
	}
	return nil
}

// Prepare makes the VM's device on a host, in the bridge, up and with carrier,
// as a tap is from the moment that its hypervisor opens it: its bridge port
// forwards, and the guest is not there. A device that is there already, of
// this VM, is replaced.
func (g Guest) Prepare(host string) error {
	if err := g.Retire(host); err != nil {
		return err
	}
	nic, err := openNS(nsOfNIC(g.Lab, g.VM))
	if err != nil {
		return err
	}
	defer nic.Close()
	node, err := openNS(NSOfNode(g.Lab, host))
	if err != nil {
		return err
	}
	defer node.Close()
	bridge, err := node.LinkByName(g.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s on %s: %w", g.Bridge, host, err)
	}
	// As hypervisors do, the device takes the bridge's MTU, not the guest's: a
	// frame that is too big must reach the bridge to be answered.
	//
	// A hypervisor's tap has the guest's MAC with fe in front, so that the
	// bridge never takes it for the least and never meets the guest's own.
	mac := g.MAC
	mac[0] = 0xfe
	tap := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: TapName(g.VM), MTU: bridge.Attrs().MTU, HardwareAddr: net.HardwareAddr(mac[:])},
		PeerName:      host,
		PeerMTU:       nicMTU,
		PeerNamespace: netlink.NsFd(nic.fd),
	}
	if err := node.LinkAdd(tap); err != nil {
		return fmt.Errorf("device %s on %s: %w", tap.Name, host, err)
	}
	if err := node.sysctl("ipv6.conf."+tap.Name+".disable_ipv6", "1"); err != nil {
		return err
	}
	end, err := nic.LinkByName(host)
	if err != nil {
		return fmt.Errorf("NIC's end on %s: %w", host, err)
	}
	if err := addIngress(nic, end); err != nil {
		return err
	}
	// The alias goes first: whoever sees the device in a bridge can already
	// tell whose it is.
	if g.Alias != "" {
		if err := node.LinkSetAlias(tap, g.Alias); err != nil {
			return fmt.Errorf("alias of %s on %s: %w", tap.Name, host, err)
		}
	}
	if err := node.LinkSetMaster(tap, bridge); err != nil {
		return fmt.Errorf("join %s on %s: %w", g.Bridge, host, err)
	}
	if err := node.LinkSetUp(tap); err != nil {
		return fmt.Errorf("device %s on %s up: %w", tap.Name, host, err)
	}
	if err := nic.LinkSetUp(end); err != nil {
		return fmt.Errorf("NIC's end on %s up: %w", host, err)
	}
	return nil
}

// Stop cuts the VM off: from its return on nothing passes either way, while
// its device on the host stays as it is, as a paused guest's does.
func (g Guest) Stop(host string) error {
	nic, err := openNS(nsOfNIC(g.Lab, g.VM))
	if err != nil {
		return err
	}
	defer nic.Close()
	guest, end, err := g.ends(nic, host)
	if err != nil {
		return err
	}
	if err := delRedirect(nic, end); err != nil {
		return err
	}
	return delRedirect(nic, guest)
}

// Resume connects the VM to its prepared device on a host. No other host's device may be connected.
func (g Guest) Resume(host string) error {
	nic, err := openNS(nsOfNIC(g.Lab, g.VM))
	if err != nil {
		return err
	}
	defer nic.Close()
	guest, end, err := g.ends(nic, host)
	if err != nil {
		return err
	}
	if err := addRedirect(nic, end, guest); err != nil {
		return err
	}
	return addRedirect(nic, guest, end)
}

func (g Guest) ends(nic *room, host string) (guest, end netlink.Link, err error) {
	if guest, err = nic.LinkByName(guestEnd); err != nil {
		return nil, nil, fmt.Errorf("NIC of %s: %w", g.VM, err)
	}
	if end, err = nic.LinkByName(host); err != nil {
		return nil, nil, fmt.Errorf("NIC's end of %s on %s: %w", g.VM, host, err)
	}
	return guest, end, nil
}

// Retire removes the VM's device from a host, as a hypervisor's process does
// when it ends. None there is no error.
func (g Guest) Retire(host string) error {
	node, err := openNS(NSOfNode(g.Lab, host))
	if err != nil {
		return err
	}
	defer node.Close()
	tap, err := node.LinkByName(TapName(g.VM))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = node.LinkDel(tap)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device of %s from %s: %w", g.VM, host, err)
	}
	return nil
}

// Remove removes the VM, its NIC and its devices on all hosts.
func (g Guest) Remove(ctx context.Context) error {
	var names []string
	for _, n := range []string{nsOfNIC(g.Lab, g.VM), NSOfVM(g.Lab, g.VM)} {
		if _, err := os.Lstat(nsPath(n)); err == nil {
			names = append(names, n)
		}
	}
	// Devices on hosts are peers of the NIC's: they go with it.
	return destroy(ctx, names)
}

// Forwarding reports whether the VM's device on a host has a bridge port that
// forwards.
func (g Guest) Forwarding(host string) (bool, error) {
	node, err := openNS(NSOfNode(g.Lab, host))
	if err != nil {
		return false, err
	}
	defer node.Close()
	l, err := node.LinkByName(TapName(g.VM))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("device of %s on %s: %w", g.VM, host, err)
	}
	return l.Attrs().OperState == netlink.OperUp && l.Attrs().MasterIndex != 0, nil
}

// AwaitForwarding waits until Forwarding.
func (g Guest) AwaitForwarding(ctx context.Context, host string, limit time.Duration) error {
	err := poll(ctx, limit, func() (bool, error) { return g.Forwarding(host) })
	if err != nil {
		return fmt.Errorf("port of %s on %s: %w", g.VM, host, err)
	}
	return nil
}

// ingress is the parent of filters for frames that come in (tc-ingress(8)).
const ingress = 0xffff0000

func addIngress(r *room, l netlink.Link) error {
	q := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: ingress, Parent: netlink.HANDLE_INGRESS}}
	if err := r.QdiscReplace(q); err != nil {
		return fmt.Errorf("ingress of %s in %s: %w", l.Attrs().Name, r.name, err)
	}
	return nil
}

// addRedirect sends every frame that comes in at from out of to. u32 with an
// empty selector matches all, and is there on kernels that lack matchall.
func addRedirect(r *room, from, to netlink.Link) error {
	f := redirectFilter(from)
	f.Actions = []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)}
	if err := delRedirect(r, from); err != nil {
		return err
	}
	if err := r.FilterAdd(f); err != nil {
		return fmt.Errorf("redirect %s to %s in %s: %w", from.Attrs().Name, to.Attrs().Name, r.name, err)
	}
	return nil
}

func delRedirect(r *room, from netlink.Link) error {
	err := r.FilterDel(redirectFilter(from))
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("end redirect of %s in %s: %w", from.Attrs().Name, r.name, err)
	}
	return nil
}

func redirectFilter(from netlink.Link) *netlink.U32 {
	return &netlink.U32{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: from.Attrs().Index, Parent: ingress, Priority: 1, Protocol: unix.ETH_P_ALL,
	}}
}
