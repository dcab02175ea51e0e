package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/lab"
	"culvert/internal/lab/qemu"
	"culvert/internal/overlay"
)

// plain is the peer of a migration: on the same hosts a bridge and a VXLAN
// device that floods to a multicast group and learns, as the kernel does it by
// itself, with the same guests.
type plain struct {
	lab    *lab.Lab
	places []*place
	dir    string
	pinger lab.Guest // a VM on h3
	guests map[string]*plainGuest
}

const plainMTU = 1450

// plainGroup is what the plain network floods to (RFC 2365: site-local).
var plainGroup = netip.AddrFrom4([4]byte{239, 1, 1, 1})

// newPlain makes the plain network on a lab's three hosts, and its guests.
func newPlain(ctx context.Context, l *lab.Lab) (p *plain, err error) {
	p = &plain{lab: l, guests: map[string]*plainGuest{}}
	if p.dir, err = os.MkdirTemp(filepath.Dir(lab.DefaultRoot), "bench-plain-"); err != nil {
		return p, err
	}
	for i := range 3 {
		place, err := openPlace(l.Name(), lab.HostName(i+1))
		if err != nil {
			return p, err
		}
		p.places = append(p.places, place)
		if err := makeBare(place, vtep(i+1), 4790, plainMTU, plainGroup); err != nil {
			return p, err
		}
	}
	p.pinger = lab.Guest{
		Lab: l.Name(), VM: "plainstays", MAC: overlay.MAC{0x52, 0x54, 0x45, 0, 0, 3}, MTU: plainMTU, Bridge: bareBridge,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.67.0.3/24")},
	}
	for _, step := range []func() error{
		func() error { return p.pinger.Make(ctx) }, func() error { return p.pinger.Prepare("h3") }, func() error { return p.pinger.Resume("h3") },
	} {
		if err := step(); err != nil {
			return p, fmt.Errorf("VM that pings on the plain network: %w", err)
		}
	}
	kernel, initramfs, err := l.GuestImage()
	if err != nil {
		return p, err
	}
	for i, name := range []string{"silent", "chatty"} {
		g := &plainGuest{plain: p, at: 0, addr: netip.AddrFrom4([4]byte{10, 67, 0, byte(i + 1)})}
		g.Guest = qemu.Guest{
			Name: name, MAC: overlay.MAC{0x52, 0x54, 0x45, 0, 0, byte(i + 1)}.String(), Addresses: []netip.Prefix{netip.PrefixFrom(g.addr, 24)},
			MTU: plainMTU, Announce: name == "chatty", Kernel: kernel, Initramfs: initramfs,
		}
		p.guests[name] = g
		if g.process, err = g.start("h1", ""); err != nil {
			return p, err
		}
		if err := await(ctx, func() (bool, error) { return qemu.Ready(g.path("h1", "log")) }); err != nil {
			return p, fmt.Errorf("boot of %s on the plain network: %w", name, err)
		}
	}
	return p, nil
}

func (p *plain) close() error {
	if p == nil {
		return nil
	}
	var errs []error
	for _, g := range p.guests { // order-free: all end
		if g.process != nil {
			errs = append(errs, g.process.end())
		}
	}
	for _, place := range p.places {
		errs = append(errs, place.close())
	}
	if p.dir != "" {
		errs = append(errs, os.RemoveAll(p.dir))
	}
	return errors.Join(errs...)
}

// plainGuest is a guest of QEMU on the plain network.
type plainGuest struct {
	qemu.Guest
	plain   *plain
	at      int // index of its host
	addr    netip.Addr
	process *process
}

func (g *plainGuest) path(host, kind string) string {
	return filepath.Join(g.plain.dir, g.Name+"."+host+"."+kind)
}

func (g *plainGuest) device() string { return "plain-" + g.Name }

// process is a QEMU.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func (p *process) end() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end QEMU: %w", err)
	}
	<-p.done
	return nil
}

// start starts QEMU on a host, with its tap in the bridge and up.
func (g *plainGuest) start(host, incoming string) (*process, error) {
	program, err := qemu.Program()
	if err != nil {
		return nil, err
	}
	q := g.Guest
	q.Incoming = incoming
	q.Monitor, q.Watch, q.Serial, q.SerialLog = g.path(host, "qmp"), g.path(host, "watch"), g.path(host, "serial"), g.path(host, "log")
	if err := os.Remove(q.SerialLog); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	place := g.plain.places[host[1]-'1']
	tap, err := place.openTap(g.device())
	if err != nil {
		return nil, err
	}
	defer tap.Close()
	if err := g.plug(place); err != nil {
		return nil, fmt.Errorf("device of %s on %s: %w", g.Name, host, err)
	}
	argv := q.Command(program)
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.ExtraFiles = []*os.File{tap}
	if err := lab.InNS(place.ns, p.cmd.Start); err != nil {
		return nil, fmt.Errorf("start QEMU on %s: %w", host, err)
	}
	go func() {
		_ = p.cmd.Wait() // it is killed in the end
		close(p.done)
	}()
	return p, nil
}

func (g *plainGuest) plug(place *place) error {
	mac, err := net.ParseMAC(g.MAC)
	if err != nil {
		return err
	}
	mac[0] = 0xfe // as hypervisors do: the bridge never takes it for the least
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: g.device(), Index: place.index(g.device())}}
	for _, step := range []func() error{
		func() error { return place.noIPv6(g.device()) },
		func() error { return place.LinkSetHardwareAddr(link, mac) },
		func() error { return place.LinkSetMTU(link, plainMTU) },
		func() error {
			if g.Announce {
				return nil
			}
			return g.plain.lab.Hush(place.node, g.device())
		},
		func() error { return place.LinkSetMasterByIndex(link, place.index(bareBridge)) },
		func() error { return place.LinkSetUp(link) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// openTap makes a tap device on the host. It goes with the last open file of
// it.
func (p *place) openTap(name string) (f *os.File, err error) {
	err = lab.InNS(p.ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("tap %s on %s: %w", name, p.node, err)
	}
	return f, nil
}

// move moves the guest between h1 and h2 under a ping of 1 kHz that begins half
// a second before, and goes on for half a second after it was answered again.
// What nobody answers for reachLimit counts as long as that.
func (g *plainGuest) move(ctx context.Context) (res lab.PingResult, moved qemu.Moved, err error) {
	const half = pingsAMove / 2 * time.Millisecond
	from, to := lab.HostName(g.at+1), lab.HostName(2-g.at)
	incoming := g.path(to, "incoming")
	next, err := g.start(to, "unix:"+incoming)
	if err != nil {
		return res, moved, err
	}
	src, dst, err := g.monitors(ctx, from, to)
	if err != nil {
		return res, moved, errors.Join(err, next.end())
	}
	defer src.Close()
	defer dst.Close()
	ns := lab.NSOfVM(g.plain.lab.Name(), g.plain.pinger.VM)
	pinging, stop := context.WithCancel(ctx)
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		res, err = lab.Ping(pinging, ns, lab.PingOptions{Target: g.addr, Interval: time.Millisecond, At: map[int]func(){pingsAMove / 2: func() { close(begun) }}})
		done <- err
	}()
	defer stop()
	select {
	case <-begun:
	case err := <-done:
		return res, moved, errors.Join(fmt.Errorf("ping of %s ended: %w", g.Name, err), next.end())
	}
	if moved, err = qemu.Migrate(ctx, src, dst, "unix:"+incoming, func() {}, func() {}); err != nil {
		stop()
		return res, moved, errors.Join(err, <-done, next.end())
	}
	if err := g.process.end(); err != nil {
		return res, moved, err
	}
	g.process, g.at = next, 1-g.at
	if err := g.reached(ctx, ns); err != nil {
		return res, moved, err
	}
	time.AfterFunc(half, stop)
	return res, moved, <-done
}

// reachLimit is how long a guest of the plain network may stay unreached.
const reachLimit = 90 * time.Second

// reached waits until the guest answers, or reachLimit is over.
func (g *plainGuest) reached(ctx context.Context, ns string) error {
	for end := time.Now().Add(reachLimit); time.Now().Before(end); {
		res, err := lab.Ping(ctx, ns, lab.PingOptions{Target: g.addr, Count: 1, Wait: 50 * time.Millisecond})
		if err != nil || res.Received > 0 || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
	}
	return nil
}

func (g *plainGuest) monitors(ctx context.Context, from, to string) (src, dst *qemu.Monitor, err error) {
	err = await(ctx, func() (bool, error) {
		dst, err = qemu.Dial(ctx, g.path(to, "qmp"))
		return err == nil, ctx.Err()
	})
	if err != nil {
		return nil, nil, fmt.Errorf("monitor of %s on %s: %w", g.Name, to, err)
	}
	if src, err = qemu.Dial(ctx, g.path(from, "qmp")); err != nil {
		dst.Close()
		return nil, nil, fmt.Errorf("monitor of %s on %s: %w", g.Name, from, err)
	}
	return src, dst, nil
}
