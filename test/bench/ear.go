package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/kernel"
	"culvert/internal/lab"
	"culvert/internal/overlay"
)

// place is a host's namespace with a netlink handle in it, and a namespace for
// the guests' ends of its devices: on the host they would be devices of the
// underlay, which an agent guards, as no VM's end ever is.
type place struct {
	*netlink.Handle
	ns, node string
	fd       int
	guests   *netlink.Handle
	guestsFD int
	edge     *kernel.Kernel // reads what netlink alone does not tell
}

func openPlace(labName, node string) (*place, error) {
	p := &place{ns: lab.NSOfNode(labName, node), node: node}
	var err error
	if p.fd, err = unix.Open("/run/netns/"+p.ns, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("namespace of %s: %w", node, err)
	}
	if p.Handle, err = netlink.NewHandleAt(netns.NsHandle(p.fd), unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("netlink on %s: %w", node, err), unix.Close(p.fd))
	}
	if p.guestsFD, err = guestNamespace(); err == nil {
		p.guests, err = netlink.NewHandleAt(netns.NsHandle(p.guestsFD), unix.NETLINK_ROUTE)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("namespace of guests on %s: %w", node, err), p.close())
	}
	if p.edge, err = kernel.Open(p.fd, kernel.Config{}); err != nil {
		return nil, errors.Join(fmt.Errorf("kernel of %s: %w", node, err), p.close())
	}
	return p, nil
}

// guestNamespace makes a namespace whose devices have no IPv6 of their own. It
// lives as long as the descriptor.
func guestNamespace() (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and the thread ends with it
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			err = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
		}
		if err == nil {
			fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
	}()
	<-done
	return fd, err
}

// guarded waits until the port programs stand on a device and its guest's end
// can send: from then on the agent hears what the guest says. A device whose
// carrier the kernel has not looked at yet throws away what is sent
// (net/core/link_watch.c), without an error.
func (p *place) guarded(ctx context.Context, n nic) error {
	err := await(ctx, func() (bool, error) {
		st, err := p.edge.Read(ctx, hoststate.Scope{Links: true})
		if err != nil {
			return false, err
		}
		end, err := p.guests.LinkByName("vm" + strings.TrimPrefix(n.name, "nic"))
		if err != nil || end.Attrs().OperState != netlink.OperUp {
			return false, err
		}
		i := slices.IndexFunc(st.Links, func(l hoststate.Link) bool { return l.Index == int32(n.index) })
		return i >= 0 && st.Links[i].Guarded && st.Links[i].State == hoststate.StateForwarding, nil
	})
	if err != nil {
		return fmt.Errorf("programs on %s of %s: %w", n.name, p.node, err)
	}
	return nil
}

// socket opens a packet socket on a guest's end, to send what the guest says.
func (p *place) socket(device string) (fd int, err error) {
	return packetSocket(p.guestsFD, device, 0)
}

func (p *place) close() error {
	p.Handle.Close()
	errs := []error{unix.Close(p.fd)}
	if p.guests != nil {
		p.guests.Close()
	}
	if p.guestsFD != 0 {
		errs = append(errs, unix.Close(p.guestsFD))
	}
	if p.edge != nil {
		errs = append(errs, p.edge.Close())
	}
	return errors.Join(errs...)
}

// table is a kernel table.
type table uint8

const (
	self   table = iota // the VXLAN device's FDB
	master              // the bridge's FDB
	neigh               // the VXLAN device's neighbours
)

// key is what the kernel tells entries apart by.
type key struct {
	table table
	mac   overlay.MAC // self, master
	ip    netip.Addr  // neigh
}

// value is what an entry says.
type value struct {
	dst  netip.Addr  // self: the VTEP
	port int         // master: ifindex
	mac  overlay.MAC // neigh
}

// entries are what a host holds of one network's remote endpoints.
type entries map[key]value

// entryOf reads an entry of the network whose devices are bridge and vxlan; ok
// is false for the others and for what the kernel holds by itself.
func entryOf(n *netlink.Neigh, bridge, vxlan int) (k key, v value, ok bool) {
	if len(n.HardwareAddr) == 6 {
		k.mac = overlay.MAC(n.HardwareAddr)
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	ip = ip.Unmap()
	switch {
	case n.Family == unix.AF_BRIDGE && n.MasterIndex == bridge && bridge != 0:
		k.table, v.port = master, n.LinkIndex
		return k, v, n.State&netlink.NUD_PERMANENT == 0
	case n.LinkIndex != vxlan:
		return k, v, false
	case n.Family == unix.AF_BRIDGE:
		k.table, v.dst = self, ip
		return k, v, !k.mac.IsZero()
	case n.Family == unix.AF_INET || n.Family == unix.AF_INET6:
		v.mac, k.mac = k.mac, overlay.MAC{}
		k.table, k.ip = neigh, ip
		return k, v, n.State&netlink.NUD_PERMANENT != 0 && !ip.IsMulticast()
	}
	return k, v, false
}

// dump reads what the host's kernel holds of the network, remote and local.
func (p *place) dump(bridge, vxlan int) (entries, error) {
	all := entries{}
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		list, err := p.NeighList(0, family)
		if err != nil {
			return nil, fmt.Errorf("dump tables of %s: %w", p.node, err)
		}
		for i := range list {
			if k, v, ok := entryOf(&list[i], bridge, vxlan); ok {
				all[k] = v
			}
		}
	}
	return all, nil
}

// ear listens to the neighbour and FDB events of one host.
type ear struct {
	*place
	sock          int
	bridge, vxlan int
	closed        atomic.Bool
	ended         sync.WaitGroup

	mu      sync.Mutex
	want    entries // what has not come yet
	gone    bool    // wait for deletions
	heard   chan time.Time
	good    entries // what must not be touched
	touched int
	lost    bool
}

const earBuffer = 64 << 20

// listen begins to listen in a host's namespace, to the events of one network.
func listen(p *place, bridge, vxlan int) (*ear, error) {
	e := &ear{place: p, bridge: bridge, vxlan: vxlan, heard: make(chan time.Time, 1)}
	err := lab.InNS(p.ns, func() (err error) {
		e.sock, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", p.node, err)
	}
	// Classic BPF loads in network order; nlmsg_type is in host order.
	swapped := uint32(unix.RTM_GETNEIGH&0xff)<<8 | unix.RTM_GETNEIGH>>8
	if nl.NativeEndian().Uint16([]byte{0, 1}) == 1 {
		swapped = unix.RTM_GETNEIGH
	}
	noMisses := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: swapped},
		{Code: unix.BPF_RET | unix.BPF_K},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	err = errors.Join(
		unix.SetsockoptInt(e.sock, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, earBuffer),
		unix.SetsockoptSockFprog(e.sock, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(noMisses)), Filter: &noMisses[0]}),
		unix.SetsockoptTimeval(e.sock, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}), // to see closed
		unix.Bind(e.sock, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_NEIGH - 1)}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", p.node, err), unix.Close(e.sock))
	}
	e.ended.Go(e.run)
	return e, nil
}

func (e *ear) close() error {
	e.closed.Store(true)
	e.ended.Wait()
	return unix.Close(e.sock)
}

func (e *ear) run() {
	buf := make([]byte, 1<<20)
	for !e.closed.Load() {
		n, err := unix.Read(e.sock, buf)
		at := time.Now()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			e.mu.Lock()
			e.lost = true
			e.mu.Unlock()
			continue
		case err != nil:
			continue // the timeout, or a signal
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			continue
		}
		for _, m := range msgs {
			e.hear(m, at)
		}
	}
}

func (e *ear) hear(m syscall.NetlinkMessage, at time.Time) {
	typ := m.Header.Type
	if typ != unix.RTM_NEWNEIGH && typ != unix.RTM_DELNEIGH {
		return
	}
	n, err := netlink.NeighDeserialize(m.Data)
	if err != nil {
		return
	}
	// A deleted neighbour says NUD_FAILED or nothing of what it was.
	if typ == unix.RTM_DELNEIGH && n.Family != unix.AF_BRIDGE {
		n.State |= netlink.NUD_PERMANENT
	}
	k, v, ok := entryOf(n, e.bridge, e.vxlan)
	if !ok {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, is := e.good[k]; is {
		e.touched++
	}
	want, is := e.want[k]
	if !is || e.gone != (typ == unix.RTM_DELNEIGH) || !e.gone && want != v {
		return
	}
	delete(e.want, k)
	if len(e.want) == 0 {
		e.heard <- at
	}
}

// expect waits from now on for all of want to be written, or to be deleted.
func (e *ear) expect(want entries, gone bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.want, e.gone = want, gone
	select {
	case <-e.heard: // of an expectation that was given up
	default:
	}
}

// guard counts from now on every event on one of good; nil ends it.
func (e *ear) guard(good entries) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.good, e.touched = good, 0
}

func (e *ear) counts() (touched int, lost bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.touched, e.lost
}

// missing lists what was expected and has not come, for errors.
func (e *ear) missing() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k := range e.want {
		return fmt.Sprintf("%s: %d entries, one of them in table %d for %s%s", e.node, len(e.want), k.table, k.mac, ipText(k.ip))
	}
	return e.node + ": nothing"
}

func ipText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return " " + a.String()
}

// gather waits for all ears and returns when the last heard what it expected.
func gather(ears []*ear, limit time.Duration) (time.Time, error) {
	end := time.NewTimer(limit)
	defer end.Stop()
	var last time.Time
	for _, e := range ears {
		select {
		case at := <-e.heard:
			if at.After(last) {
				last = at
			}
		case <-end.C:
			return last, fmt.Errorf("not heard within %s on %s", limit, e.missing())
		}
		if _, lost := e.counts(); lost {
			return last, fmt.Errorf("events on %s were lost: nothing can be said", e.node)
		}
	}
	return last, nil
}

func hardware(m overlay.MAC) net.HardwareAddr { return net.HardwareAddr(m[:]) }
