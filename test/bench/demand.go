package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/lab"
	"culvert/internal/overlay"
)

// What a first packet may wait that nobody on its host knew the way of, ms.
const (
	goalFirst    = 2
	goalFirstP99 = 10
)

// firsts is how many first packets are measured of each kind, and of the guest's
// own retry, which takes a second each.
const (
	firsts  = 500
	retries = 11
)

// stormRate is what a guest asks of an on-demand network: so many ARP requests a
// second, or as many as it can.
const stormRate = 100_000

// demand measures networks that are distributed on demand: a first packet's way,
// and a guest that asks for everything.
func demand(ctx context.Context, o options, out *printer) error {
	if err := firstPackets(ctx, o, out); err != nil {
		return fmt.Errorf("first packets: %w", err)
	}
	if err := firstByRetry(ctx, out); err != nil {
		return fmt.Errorf("first packets by the kernel alone: %w", err)
	}
	fmt.Fprintln(os.Stderr, "building a lab of 2 hosts for a storm of misses")
	o.distribution = "on-demand"
	w, err := emptyWorld(ctx, o, "benchstorm", 2)
	defer w.close(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	if err := w.makeNetwork(ctx, o); err != nil {
		return err
	}
	return w.storm(ctx, out)
}

// asker is a network and the guest in it that sends first packets.
type asker struct {
	name, distribution string
	vni                overlay.VNI
	subnet             string // its first two bytes
	guest              *machine
	met                []*machine // that it sent to: a namespace that goes holds the lock of all links
	first, again       sample     // ms until the answer came, of the first packet and of the next
	lost               int
}

// firstPackets measures a datagram and its answer to a guest that was born on
// another host and that nobody on this one has ever asked for: in a network that
// is distributed on demand, and in one that is pushed.
func firstPackets(ctx context.Context, o options, out *printer) (err error) {
	fmt.Fprintln(os.Stderr, "building a lab of 2 hosts for first packets")
	w, err := emptyWorld(ctx, o, "benchdemand", 2)
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	if err != nil {
		return err
	}
	askers := []*asker{{name: "fetched", distribution: "on-demand", vni: 8100, subnet: "10.84"}, {name: "pushed", distribution: "push", vni: 8101, subnet: "10.85"}}
	for _, a := range askers {
		if _, err := w.api.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: []*culvertv1.Resource{api.Wrap(&culvertv1.Network{
			ApiVersion: api.Version, Kind: "Network", Metadata: &culvertv1.Metadata{Name: a.name, Tenant: api.DefaultTenant},
			Spec: &culvertv1.NetworkSpec{Vni: uint32(a.vni), Subnets: []*culvertv1.Subnet{{Prefix: a.subnet + ".0.0/16"}}, Distribution: a.distribution}})}}); err != nil {
			return fmt.Errorf("make network: %w", err)
		}
		if a.guest, err = w.born(ctx, a, 0, w.places[0]); err != nil {
			return err
		}
		defer func() {
			for _, m := range append(a.met, a.guest) {
				err = errors.Join(err, m.close())
			}
		}()
	}
	n := min(firsts, max(11, o.samples*firsts/200))
	for i := range n + 1 {
		for k := range askers {
			if err := w.askFirst(ctx, askers[(i+k)%len(askers)], i); err != nil {
				return err
			}
		}
	}
	for _, a := range askers {
		added := make(sample, len(a.first))
		for i := range added {
			added[i] = a.first[i] - a.again[i]
		}
		b := bound{}
		if a.distribution == "on-demand" {
			b = bound{goal: goalFirst, p99: goalFirstP99}
		}
		f := newFigure("first packet, "+a.name, "ms", 2, 0, added, b)
		f.Note = fmt.Sprintf("lost %d of %d; the next %.3f. %s", a.lost, n+1, a.again.quantile(0.5), f.Note)
		if err := out.figure(f); err != nil {
			return err
		}
	}
	return nil
}

// born makes a guest with a declared port and waits until it is up, and all hosts
// hold what they hold of it.
func (w *world) born(ctx context.Context, a *asker, i int, p *place) (*machine, error) {
	e := endpoint{
		Name: fmt.Sprintf("%s%d", a.name, i), MAC: overlay.MAC{0x52, 0x54, 0x46, byte(a.vni), byte(i >> 8), byte(i)},
		IPs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("%s.%d.%d", a.subnet, 1+i/200, 11+i%200))},
	}
	if _, err := w.api.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: []*culvertv1.Resource{api.Wrap(&culvertv1.Port{
		ApiVersion: api.Version, Kind: "Port", Metadata: &culvertv1.Metadata{Name: e.Name, Tenant: api.DefaultTenant},
		Spec: &culvertv1.PortSpec{Network: a.name, Mac: e.MAC.String(), Addresses: []string{e.IPs[0].String()}}})}}); err != nil {
		return nil, fmt.Errorf("declare a port: %w", err)
	}
	if err := await(ctx, func() (bool, error) { return p.has(a.vni.Bridge()), nil }); err != nil {
		return nil, fmt.Errorf("bridge on %s: %w", p.node, err)
	}
	m, err := newMachine(p, a.vni.Bridge(), fmt.Sprintf("n%d-%d", a.vni, i), hoststate.PortAlias(api.DefaultTenant, e.Name), e, 16, overlay.DefaultMTU)
	if err != nil {
		return nil, err
	}
	up := ""
	err = await(ctx, func() (bool, error) {
		l, err := w.api.List(ctx, &culvertv1.ListRequest{Kind: "port", Tenant: api.DefaultTenant, Name: e.Name})
		if err == nil && len(l.GetItems()) == 1 && l.GetItems()[0].GetPort().GetStatus().GetState() == "up" {
			up = l.GetRevision()
		}
		return up != "", err
	})
	if err == nil {
		err = await(ctx, func() (bool, error) {
			r, err := w.api.Wait(ctx, &culvertv1.WaitRequest{Revision: up, TimeoutSeconds: 10})
			return r.GetDone(), err
		})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("port %s is not up: %w", e.Name, err), m.close())
	}
	return m, nil
}

// askFirst measures one first packet; the 0th warms up.
func (w *world) askFirst(ctx context.Context, a *asker, i int) error {
	to, err := w.born(ctx, a, i+1, w.places[1])
	if err != nil {
		return err
	}
	a.met = append(a.met, to)
	first, again, err := twice(a.guest, to, nil)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		a.lost++
	case err != nil:
		return err
	case i > 0:
		a.first, a.again = a.first.addTime(first), a.again.addTime(again)
	}
	return nil
}

// twice sends a datagram that is answered, and another. When the first is on its
// way it calls sent, if that is not nil.
func twice(from, to *machine, sent func() error) (first, again time.Duration, err error) {
	var echo net.PacketConn
	var c net.Conn
	if err = inside(to.fd, func() (err error) {
		echo, err = net.ListenPacket("udp", netip.AddrPortFrom(to.addr, 5002).String())
		return err
	}); err != nil {
		return 0, 0, fmt.Errorf("listen in a guest: %w", err)
	}
	defer echo.Close()
	go answerEcho(echo)
	if err = inside(from.fd, func() (err error) { c, err = net.Dial("udp", echo.LocalAddr().String()); return err }); err != nil {
		return 0, 0, fmt.Errorf("socket in a guest: %w", err)
	}
	defer c.Close()
	took := [2]time.Duration{}
	for i := range took {
		start := time.Now()
		if _, err := c.Write([]byte{1}); err != nil {
			return 0, 0, fmt.Errorf("send: %w", err)
		}
		if i == 0 && sent != nil {
			if err := sent(); err != nil {
				return 0, 0, err
			}
		}
		if err := c.SetReadDeadline(start.Add(5 * time.Second)); err != nil {
			return 0, 0, fmt.Errorf("echo: %w", err)
		}
		if _, err := c.Read(make([]byte, 8)); err != nil {
			return 0, 0, fmt.Errorf("echo: %w", err)
		}
		took[i] = time.Since(start)
	}
	return took[0], took[1], nil
}

// firstByRetry measures the same without anybody who answers for those that are
// waited for: the entries are put into the kernel when the question was seen, and
// the guest asks again when it does.
func firstByRetry(ctx context.Context, out *printer) (err error) {
	const name = "benchmiss"
	l, err := lab.New(name, lab.Config{})
	if err != nil {
		return err
	}
	defer func() { _, e := l.Down(context.WithoutCancel(ctx)); err = errors.Join(err, e) }()
	if _, err := l.Up(ctx, lab.Topology{Name: name, Hosts: 2, NoDaemons: true}, true); err != nil {
		return err
	}
	var ends []*machine
	var places []*place
	defer func() {
		for _, m := range ends {
			err = errors.Join(err, m.close())
		}
		for _, p := range places {
			err = errors.Join(err, p.close())
		}
	}()
	for i := range 2 {
		p, err := openPlace(name, lab.HostName(i+1))
		if err != nil {
			return err
		}
		places = append(places, p)
		if err := makeMissing(p, vtep(i+1)); err != nil {
			return err
		}
		e := endpoint{MAC: overlay.MAC{0x52, 0x54, 0x47, 0, 0, byte(i)}, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 67, 0, byte(i + 1)})}}
		m, err := newMachine(p, bareBridge, "missing", "", e, 24, overlay.DefaultMTU)
		if err != nil {
			return err
		}
		ends = append(ends, m)
	}
	if err := places[1].knows(ends[0], vtep(1)); err != nil {
		return err
	}
	var added sample
	for range retries {
		if err := errors.Join(places[0].forget(ends[1], vtep(2)), ends[0].unlearn(ends[1].addr)); err != nil {
			return err
		}
		heard, err := packetSocket(places[0].fd, "missing", unix.ETH_P_ALL)
		if err != nil {
			return err
		}
		first, again, err := twice(ends[0], ends[1], func() error {
			if err := hearQuestion(heard); err != nil {
				return err
			}
			return places[0].knows(ends[1], vtep(2))
		})
		unix.Close(heard)
		if err != nil {
			return err
		}
		added = added.addTime(first - again)
	}
	return out.figure(newFigure("first packet, by the guest's retry", "ms", 2, 0, added, bound{}))
}

// hearQuestion waits for an ARP frame. Only who hears all sees what a bridge's
// port receives.
func hearQuestion(sock int) error {
	if err := unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return fmt.Errorf("hear the question: %w", err)
	}
	for b := make([]byte, 64); ; {
		n, err := unix.Read(sock, b)
		if err != nil {
			return fmt.Errorf("hear the question: %w", err)
		}
		if n >= 14 && b[12] == 0x08 && b[13] == 0x06 {
			return nil
		}
	}
}

const missVXLAN = "vxmiss"

// makeMissing makes a bridge with a VXLAN device that answers for who is known
// and forwards nothing else.
func makeMissing(p *place, local netip.Addr) error {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bareBridge}}
	vx := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: missVXLAN}, VxlanId: 8102, SrcAddr: local.AsSlice(), Port: 4789, Proxy: true, L2miss: true, L3miss: true}
	for _, step := range []func() error{
		func() error { return p.LinkAdd(br) },
		func() error { return p.LinkAdd(vx) },
		func() error { return p.LinkSetMasterByIndex(vx, p.index(bareBridge)) },
		func() error { return p.LinkSetUp(vx) },
		func() error { return p.LinkSetUp(br) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("network without daemons on %s: %w", p.node, err)
		}
	}
	return nil
}

// missEntries are those by which a host reaches a guest elsewhere.
func (p *place) missEntries(m *machine, at netip.Addr) (fdb, neigh *netlink.Neigh) {
	dev := p.index(missVXLAN)
	fdb = &netlink.Neigh{LinkIndex: dev, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF, IP: at.AsSlice(), HardwareAddr: hardware(m.mac)}
	neigh = &netlink.Neigh{LinkIndex: dev, Family: unix.AF_INET, State: unix.NUD_PERMANENT, IP: m.addr.AsSlice(), HardwareAddr: hardware(m.mac)}
	return fdb, neigh
}

func (p *place) knows(m *machine, at netip.Addr) error {
	fdb, neigh := p.missEntries(m, at)
	return errors.Join(p.NeighSet(fdb), p.NeighSet(neigh))
}

func (p *place) forget(m *machine, at netip.Addr) error {
	fdb, neigh := p.missEntries(m, at)
	for _, n := range []*netlink.Neigh{neigh, fdb} {
		if err := p.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget a guest: %w", err)
		}
	}
	return nil
}

// unlearn has a guest forget another's MAC.
func (m *machine) unlearn(a netip.Addr) error {
	eth, err := m.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("interface of a guest: %w", err)
	}
	err = m.NeighDel(&netlink.Neigh{LinkIndex: eth.Attrs().Index, Family: unix.AF_INET, IP: a.AsSlice()})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forget a neighbour: %w", err)
	}
	return nil
}

// storm measures a guest that asks for everything, what its host's daemons weigh
// before and after, and how soon all hosts are exact when it has ended.
func (w *world) storm(ctx context.Context, out *printer) error {
	weigh := func(when string) error {
		st, err := w.lab.Status()
		if err != nil {
			return err
		}
		for _, n := range st.Nodes {
			if n.Name != "h1" && n.Name != "m1" {
				continue
			}
			kib, err := rss(n.PID)
			if err != nil {
				return err
			}
			if err := out.figure(newFigure("storm, memory of "+n.Name+" "+when, "MiB", 2, 0, sample{kib / 1024}, bound{})); err != nil {
				return err
			}
		}
		return nil
	}
	if err := weigh("before"); err != nil {
		return err
	}
	if err := w.flooded(ctx, out, "storm", stormRate); err != nil {
		return err
	}
	start := time.Now()
	err := await(ctx, func() (bool, error) {
		st, err := w.api.Status(ctx, &culvertv1.StatusRequest{})
		if err != nil {
			return false, err
		}
		for _, h := range st.GetHosts() {
			if h.GetStatus().GetAppliedRevision() != st.GetRevision() {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("exact after the storm: %w", err)
	}
	if err := out.figure(newFigure("storm, then exact after", "ms", 2, 0, sample{}.addTime(time.Since(start)), bound{})); err != nil {
		return err
	}
	return weigh("after")
}
