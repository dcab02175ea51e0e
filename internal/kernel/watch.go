package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// watchBuf holds about 20,000 events (kernel-facts 3).
const watchBuf = 8 << 20

// Pauses between attempts to open the sockets anew.
const (
	reopenMin = 100 * time.Millisecond
	reopenMax = 5 * time.Second
)

// Watch calls ring for each change of what is ours, one call at a time, until
// ctx ends; then it returns ctx.Err(). The first doorbell is an Overflow: from
// then on nothing is missed unnoticed. Lost events, and sockets that had to be
// opened anew, ring Overflow too.
//
// After an overflow the sockets are opened anew: the kernel says ENOBUFS once
// and then goes on losing events in silence until the queue has been read
// empty (NETLINK_S_CONGESTED in net/netlink/af_netlink.c), and what is in the
// queue is worth nothing when everything is read again anyway.
//
// Own writes ring where the kernel cannot tell the writer (both FDBs), and do
// not where it can (neighbours, set elements). ring must not call Close.
func (k *Kernel) Watch(ctx context.Context, ring func(hoststate.Doorbell)) error {
	return k.again(ctx, "kernel events", func() error {
		err := k.watchOnce(ctx, ring)
		if errors.Is(err, unix.ENOBUFS) && ctx.Err() == nil {
			k.log.Info("kernel events overflowed, listening anew")
			return nil
		}
		return err
	})
}

// again calls listen until ctx ends, and then returns ctx.Err(). After an error
// it waits first, longer each time unless what it called lasted.
func (k *Kernel) again(ctx context.Context, what string, listen func() error) error {
	pause := reopenMin
	for ctx.Err() == nil {
		opened := time.Now()
		err := listen()
		if ctx.Err() != nil {
			break
		}
		if time.Since(opened) > reopenMax {
			pause = reopenMin
		}
		if err == nil {
			continue
		}
		k.log.Warn("interrupted, listening anew", "to", what, "err", err, "in", pause)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		pause = min(2*pause, reopenMax)
	}
	return ctx.Err()
}

// watcher is one pair of event sockets and what it knows of links.
type watcher struct {
	k  *Kernel
	mu sync.Mutex // one call of ring at a time
	f  func(hoststate.Doorbell)

	// Of the goroutine that reads rtnetlink alone.
	links map[int32]watched
	devs  map[overlay.VNI]devices
	under map[int32]bool // underlay devices, and what may become one
}

// watched is a link that matters: a device of ours or a port of one.
type watched struct {
	vni    overlay.VNI // of its own name; 0 for a VM's port
	kind   hoststate.LinkKind
	master int32
}

func (w *watcher) ring(d hoststate.Doorbell) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.f(d)
}

// watchOnce runs until a socket fails or ctx ends.
func (k *Kernel) watchOnce(ctx context.Context, ring func(hoststate.Doorbell)) error {
	rt, err := k.listen(unix.NETLINK_ROUTE, noMisses, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH)
	if err != nil {
		return fmt.Errorf("listen to rtnetlink: %w", err)
	}
	defer rt.Close()
	nf, err := k.listen(unix.NETLINK_NETFILTER, nil, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("listen to nftables: %w", err)
	}
	defer nf.Close()

	w := &watcher{k: k, f: ring, links: map[int32]watched{}, devs: map[overlay.VNI]devices{}, under: map[int32]bool{}}
	if err := w.learnLinks(); err != nil {
		return fmt.Errorf("read links: %w", err)
	}
	w.ring(hoststate.Doorbell{Overflow: true})

	// A deadline in the past ends both receives, for good.
	end := func() {
		_ = rt.SetReadDeadline(time.Unix(1, 0))
		_ = nf.SetReadDeadline(time.Unix(1, 0))
	}
	stop := context.AfterFunc(ctx, end)
	defer stop()
	done := make(chan error, 1)
	go func() {
		err := nf.receive(w.nftEvent)
		end()
		done <- err
	}()
	err = rt.receive(w.routeEvent)
	end()
	return errors.Join(err, <-done)
}

// listener is an event socket. Closing or a deadline ends a read that waits.
type listener struct {
	*os.File
	buf []byte
}

// eventBuf takes the largest event: a port's RTM_NEWLINK is some 2 KiB, and the
// kernel makes none beyond 32 KiB.
const eventBuf = 64 << 10

// listen opens an event socket in the namespace.
func (k *Kernel) listen(proto int, filter []unix.SockFilter, groups ...int) (l *listener, err error) {
	err = inNS(k.ns, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		l = &listener{os.NewFile(uintptr(fd), "netlink events"), make([]byte, eventBuf)}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuf); err != nil {
			return fmt.Errorf("receive buffer: %w", err)
		}
		if filter != nil {
			if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
				return fmt.Errorf("filter: %w", err)
			}
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		for _, g := range groups {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
				return fmt.Errorf("join group %d: %w", g, err)
			}
		}
		return nil
	})
	if err != nil && l != nil {
		err = errors.Join(err, l.Close())
	}
	return l, err
}

// receive hands messages to each until it or the socket fails.
func (l *listener) receive(each func(answer) error) error {
	for {
		n, err := l.Read(l.buf)
		if err != nil {
			return err
		}
		if n == len(l.buf) {
			return errTruncated
		}
		if _, err := eachMessage(l.buf[:n], func(a answer) (bool, error) { return false, each(a) }); err != nil {
			return err
		}
	}
}

// noMisses drops RTM_GETNEIGH: a guest makes tens of thousands of miss
// notifications a second (kernel-facts 1), which share the group with what
// we listen to. Classic BPF loads in network order and netlink headers are in
// host order, hence the byte swap.
var noMisses = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4}, // nlmsg_type
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: networkOrder(unix.RTM_GETNEIGH)},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
}

// networkOrder is what a big-endian load sees of v in host order.
func networkOrder(v uint16) uint32 {
	b := native.AppendUint16(nil, v)
	return uint32(b[0])<<8 | uint32(b[1])
}

// learnLinks fills what events refer to, after the sockets are open.
func (w *watcher) learnLinks() error {
	for range dumpTries {
		clear(w.links)
		clear(w.devs)
		clear(w.under)
		var ports []link
		err := eachLink(w.k.read, 0, func(l link) {
			if _, ok := vniOf(l); ok {
				w.note(l)
			} else if l.Master != 0 {
				ports = append(ports, l)
			}
			w.under[l.Index] = roleOf(l, false) == roleUnderlay
		})
		if errors.Is(err, errInterrupted) {
			continue
		}
		for _, p := range ports {
			if w.ours(p.Master) {
				w.note(p)
			}
		}
		return err
	}
	return errInterrupted
}

// note remembers a link as it is now.
func (w *watcher) note(l link) {
	v, _ := vniOf(l)
	w.links[l.Index] = watched{vni: v, kind: l.Kind, master: l.Master}
	if v == 0 {
		return
	}
	d := w.devs[v]
	if l.Kind == hoststate.LinkBridge {
		d.bridge = l.Index
	} else {
		d.vxlan, d.vxlanMaster = l.Index, l.Master
	}
	w.devs[v] = d
}

// forget removes a link that is gone. Its network's devices stay known under
// their old index, for the deletions of rows that may still come.
func (w *watcher) forget(index int32) { delete(w.links, index) }

// ours says whether an ifindex is a bridge of ours.
func (w *watcher) ours(index int32) bool {
	l, ok := w.links[index]
	return ok && l.vni != 0 && l.kind == hoststate.LinkBridge
}

func (w *watcher) routeEvent(m answer) error {
	switch m.typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		w.linkEvent(m.typ, m.body)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		w.neighEvent(m)
	}
	return nil
}

func (w *watcher) linkEvent(typ uint16, body []byte) {
	l, err := parseLink(body)
	if err != nil {
		w.ring(hoststate.Doorbell{Links: true}) // what it was of cannot be known
		return
	}
	_, known := w.links[l.Index]
	if body[0] == unix.AF_BRIDGE {
		// A change of a port, also its leaving; says nothing of the device.
		if known || w.ours(l.Master) {
			w.ring(hoststate.Doorbell{Links: true})
		}
		return
	}
	if l.VNI == 0 && !w.ours(l.Master) && !known {
		if w.underlayChanged(typ, l) {
			w.ring(hoststate.Doorbell{Links: true})
		}
		return
	}
	w.under[l.Index] = false
	switch _, device := vniOf(l); {
	case typ == unix.RTM_DELLINK:
		w.forget(l.Index)
	case device, w.ours(l.Master):
		w.note(l)
	default:
		w.forget(l.Index)
	}
	w.ring(hoststate.Doorbell{Links: true})
}

// underlayChanged says whether a device that is none of ours became one of the
// underlay that is up, which wants the source check, or ceased to be one.
func (w *watcher) underlayChanged(typ uint16, l link) bool {
	was := w.under[l.Index]
	if typ == unix.RTM_DELLINK {
		delete(w.under, l.Index)
		return false // the check went with it
	}
	w.under[l.Index] = roleOf(l, false) == roleUnderlay
	return w.under[l.Index] != was
}

func (w *watcher) neighEvent(m answer) {
	typ := m.typ
	n, err := parseNeigh(m.body)
	if err != nil {
		w.ring(hoststate.Doorbell{Overflow: true})
		return
	}
	if n.family != unix.AF_BRIDGE && m.pid != 0 && m.pid == w.k.write.portID() {
		return
	}
	index := n.ifindex
	if n.master != 0 {
		index = n.master
	}
	v := w.links[index].vni
	if v == 0 {
		return
	}
	r, ok := n.row(v, w.devs[v])
	if !ok {
		// A neighbour that died says nothing but that it is no longer there.
		if n.family == unix.AF_BRIDGE || !n.dst.IsValid() || n.dst.IsMulticast() {
			return
		}
		r.Key = hoststate.Key{Table: hoststate.TableNeigh, VNI: v, IP: n.dst}
		typ = unix.RTM_DELNEIGH
	}
	w.ring(hoststate.Doorbell{VNI: v, Row: r, Deleted: typ == unix.RTM_DELNEIGH})
}

// nftEvent rings for every object of a table of our name: all kinds of
// objects have the table's name as their first attribute. Elements written by
// ourselves do not ring.
func (w *watcher) nftEvent(m answer) error {
	if m.typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.body) < 4 || m.pid == w.k.nfw.portID() {
		return nil
	}
	if msg := m.typ & 0xff; msg == unix.NFT_MSG_NEWGEN || msg == unix.NFT_MSG_TRACE {
		return nil
	}
	const tableAttr = 1
	ours := false
	err := eachAttr(m.body[4:], func(t uint16, d []byte) { ours = ours || t == tableAttr && str0(d) == tableName })
	if ours || err != nil {
		w.ring(hoststate.Doorbell{Links: true})
	}
	return nil
}
