package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/bpf"
	"culvert/internal/hoststate"
	"culvert/internal/lab"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// leastRatio is how much of a bare network's throughput and swiftness must be
// left with programs on every port.
const leastRatio = 0.98

// snoop measures what it costs two guests of two hosts that every port, VXLAN
// device and underlay device has our programs, beside the same with those of
// the ports detached and beside a bridge and a VXLAN device made by hand, in
// turns; and what a guest that floods its port with
// questions costs others.
func snoop(ctx context.Context, o options, out *printer) (err error) {
	fmt.Fprintln(os.Stderr, "building two labs of 2 hosts, one of them bare")
	w, err := newWorld(ctx, o, 2, 0)
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	if err != nil {
		return err
	}
	if err := w.compare(ctx, o.rounds, out); err != nil {
		return fmt.Errorf("with and without programs: %w", err)
	}
	if err := w.flooded(ctx, out, "hostile", floodRate); err != nil {
		return fmt.Errorf("hostile guest: %w", err)
	}
	return nil
}

// measure is something that is compared, more being better.
type measure struct {
	name, unit string
	least      float64 // of the ratio; 0: none is demanded
	take       func(*stream) (float64, error)
}

var measures = []measure{
	{"TCP", "Gbit/s", leastRatio, func(s *stream) (float64, error) { v, err := s.bytes(); return v * 8 / 1e9, err }},
	{"round trips", "1/ms", leastRatio, func(s *stream) (float64, error) { v, err := s.trip(); return 1000 / v, err }},
	{"least frames", "1/ms", 0, func(s *stream) (float64, error) { v, err := s.frames(); return v / 1000, err }},
}

const parts = 5

// variant is a stream under conditions.
type variant struct {
	name string
	*stream
	prepare func() error // nil: nothing is to be done
}

func (w *world) compare(ctx context.Context, n int, out *printer) error {
	ours, closeOurs, err := w.guarded(ctx)
	defer closeOurs()
	if err != nil {
		return err
	}
	bare, closeBare, err := bareStream(ctx, ours.mtu)
	defer closeBare()
	if err != nil {
		return err
	}
	// Agents would put back what is taken off.
	defer func() { _ = w.signal(context.WithoutCancel(ctx), unix.SIGCONT) }()
	if err := w.signal(ctx, unix.SIGSTOP); err != nil {
		return err
	}
	variants := []variant{
		{"programs", ours.stream, func() error { return ours.ports(true) }},
		{"detached", ours.stream, func() error { return ours.ports(false) }},
		{"bare", bare, nil},
	}
	took, err := rounds(ctx, n, measures, variants)
	if err != nil {
		return err
	}
	if err := errors.Join(ours.ports(true), w.signal(ctx, unix.SIGCONT)); err != nil {
		return err
	}
	return printRounds(out, measures, variants, took, len(variants))
}

// rounds takes measurements of all variants, n of each. A round has parts, each
// taken of all variants before the next, so that a busy moment meets all of
// them; the round's value is the parts' median. What it returns is by measure
// and variant.
func rounds(ctx context.Context, n int, measures []measure, variants []variant) (map[string]sample, error) {
	took := map[string]sample{}
	for i := range n + 1 {
		for _, m := range measures {
			got := make([]sample, len(variants))
			for part := range parts {
				for j := range variants {
					k := (i + part + j) % len(variants)
					v, err := variants[k].value(ctx, m.take)
					if err != nil {
						return nil, fmt.Errorf("%s, %s, round %d: %w", m.name, variants[k].name, i, err)
					}
					got[k] = append(got[k], v)
				}
			}
			for k, v := range variants {
				if i > 0 { // the first warms up
					took[m.name+", "+v.name] = append(took[m.name+", "+v.name], got[k].quantile(0.5))
				}
			}
		}
	}
	return took, nil
}

// printRounds prints what rounds took, and the first variant's ratios to the
// others; nothing is demanded of those from the held-th on.
func printRounds(out *printer, measures []measure, variants []variant, took map[string]sample, held int) error {
	for _, m := range measures {
		for _, v := range variants {
			if err := out.figure(newFigure(m.name+", "+v.name, m.unit, 2, 0, took[m.name+", "+v.name], bound{})); err != nil {
				return err
			}
		}
		first := took[m.name+", "+variants[0].name]
		for i, v := range variants[1:] {
			least := m.least
			if i+1 >= held {
				least = 0
			}
			if err := out.figure(newRatio(m.name+" to "+v.name, 2, first.over(took[m.name+", "+v.name]), least)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v variant) value(ctx context.Context, take func(*stream) (float64, error)) (float64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if v.prepare != nil {
		if err := v.prepare(); err != nil {
			return 0, err
		}
	}
	return take(v.stream)
}

// over divides measurements of the same rounds.
func (s sample) over(o sample) (ratio sample) {
	for i := range s {
		ratio = append(ratio, s[i]/o[i])
	}
	return ratio
}

// signal signals all agents of the lab.
func (w *world) signal(ctx context.Context, sig unix.Signal) error {
	for _, p := range w.places {
		if err := w.lab.Signal(ctx, p.node, sig); err != nil {
			return err
		}
	}
	return nil
}

// flow is a stream with what its guests' devices have.
type flow struct {
	*stream
	mtu   int
	hosts []guardedPort
}

// guardedPort is a guest's device with the programs of its host.
type guardedPort struct {
	*place
	set *bpf.Set
	dev int32
}

// ports puts the port programs onto the guests' devices, or takes them off.
func (f flow) ports(on bool) error {
	for _, h := range f.hosts {
		err := inside(h.fd, func() error {
			if on {
				return errors.Join(h.set.Attach(h.dev, bpf.FromPort), h.set.Attach(h.dev, bpf.ToPort))
			}
			return errors.Join(h.set.Detach(h.dev, bpf.FromPort), h.set.Detach(h.dev, bpf.ToPort))
		})
		if err != nil {
			return fmt.Errorf("programs on %s: %w", h.node, err)
		}
	}
	return nil
}

// takeOver opens the programs that stand on a device.
func (p *place) takeOver(device string) (g guardedPort, err error) {
	g = guardedPort{place: p, dev: int32(p.index(device))}
	err = inside(p.fd, func() (err error) {
		if g.set, err = bpf.Load(bpf.Config{UDPPort: 4789}, []int32{g.dev}); err != nil {
			return err
		}
		on, err := g.set.Standing(g.dev)
		if err == nil && (on.Ingress != bpf.FromPort || on.Egress != bpf.ToPort || !on.Current) {
			err = fmt.Errorf("%+v: not the agent's", on)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("programs on %s of %s: %w", device, p.node, err)
	}
	return g, err
}

// guarded is a stream between two guests of declared ports on h1 and h2.
func (w *world) guarded(ctx context.Context) (f flow, closeAll func(), err error) {
	var guests []*machine
	closeAll = func() {
		if f.stream != nil {
			f.close()
		}
		for _, h := range f.hosts {
			_ = h.set.Close()
		}
		for _, g := range guests {
			_ = g.close()
		}
	}
	list := w.next("flow", 2)
	if _, err := w.declare(ctx, list); err != nil {
		return f, closeAll, err
	}
	l, err := w.places[0].LinkByName(w.vni.Bridge())
	if err != nil {
		return f, closeAll, fmt.Errorf("bridge: %w", err)
	}
	f.mtu = l.Attrs().MTU
	for i, e := range list {
		p := w.places[i]
		g, err := newMachine(p, w.vni.Bridge(), "flow", hoststate.PortAlias(api.DefaultTenant, e.Name), e, 12, f.mtu)
		if err != nil {
			return f, closeAll, err
		}
		guests = append(guests, g)
		want := entries{}
		e.entries(want, vtep(i+1), 0)
		if err := w.awaitEntries(ctx, w.places[1-i], want); err != nil {
			return f, closeAll, err
		}
	}
	for _, p := range w.places {
		h, err := p.takeOver("flow")
		if h.set != nil {
			f.hosts = append(f.hosts, h)
		}
		if err != nil {
			return f, closeAll, err
		}
	}
	f.stream, err = newStream(guests[0], guests[1])
	return f, closeAll, err
}

// bareStream is a stream between two guests of bare networks, in a lab of its
// own without daemons.
func bareStream(ctx context.Context, mtu int) (s *stream, closeAll func(), err error) {
	const name = "benchbare"
	var guests []*machine
	var places []*place
	l, err := lab.New(name, lab.Config{})
	closeAll = func() {
		if s != nil {
			s.close()
		}
		for _, g := range guests {
			_ = g.close()
		}
		for _, p := range places {
			_ = p.close()
		}
		_, _ = l.Down(context.WithoutCancel(ctx)) // the next one of this name replaces what is left
	}
	if err != nil {
		return nil, func() {}, err
	}
	if _, err := l.Up(ctx, lab.Topology{Name: name, Hosts: 2, NoDaemons: true}, true); err != nil {
		return nil, closeAll, err
	}
	for i := range 2 {
		p, err := openPlace(name, lab.HostName(i+1))
		if err != nil {
			return nil, closeAll, err
		}
		places = append(places, p)
		e := endpoint{MAC: overlay.MAC{0x52, 0x54, 0x44, 0, 0, byte(i)}, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 66, 0, byte(i + 1)})}}
		if err := makeBare(p, vtep(i+1), 4789, mtu, netip.Addr{}); err != nil {
			return nil, closeAll, err
		}
		other := e.MAC
		other[5] = byte(1 - i)
		if err := errors.Join(p.point(overlay.MAC{}, vtep(2-i)), p.point(other, vtep(2-i))); err != nil {
			return nil, closeAll, err
		}
		g, err := newMachine(p, bareBridge, "flow", "", e, 12, mtu)
		if err != nil {
			return nil, closeAll, err
		}
		guests = append(guests, g)
	}
	s, err = newStream(guests[0], guests[1])
	return s, closeAll, err
}

// floodRate is what a hostile guest asks: this many ARP requests a second, each
// for another address.
const floodRate = 10_000

// flooded measures what a hostile guest costs its host's agent that asks so often
// a second, and a ping between others: the same for as long with it and without,
// in turns.
func (w *world) flooded(ctx context.Context, out *printer, what string, rate int) error {
	const turns, turn = 6, 5 * time.Second
	target := netip.Addr{}
	for _, v := range []lab.VMSpec{{Name: "hostile", Host: "h1"}, {Name: "calm", Host: "h1"}, {Name: "far", Host: "h2"}} {
		v.Network = networkName
		res, err := w.lab.CreateVM(ctx, v)
		if err != nil {
			return err
		}
		for _, a := range res.VM.Addresses {
			if a.Addr().Is4() {
				target = a.Addr()
			}
		}
	}
	var rtt [2]sample
	var lost, sent [2]int
	used := map[string]*[2]time.Duration{"h1": {}, "h2": {}, "m1": {}}
	asked := 0
	for i := range turns {
		hostile := i % 2
		before := map[string]time.Duration{}
		for n := range used { // order-free: each is asked by itself
			t, err := w.cpu(n)
			if err != nil {
				return err
			}
			before[n] = t
		}
		flooding, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		if hostile == 1 {
			go func() { n, err := w.flood(flooding, rate); asked += n; done <- err }()
		} else {
			done <- nil
		}
		res, err := lab.Ping(ctx, lab.NSOfVM(w.lab.Name(), "calm"), lab.PingOptions{Target: target, Count: int(turn / time.Millisecond), Interval: time.Millisecond})
		stop()
		if err = errors.Join(err, <-done); err != nil {
			return err
		}
		for _, d := range res.RTT {
			rtt[hostile] = append(rtt[hostile], float64(d)/float64(time.Microsecond))
		}
		lost[hostile] += len(res.Lost)
		sent[hostile] += res.Sent
		for n, u := range used { // order-free: each is asked by itself
			t, err := w.cpu(n)
			if err != nil {
				return err
			}
			u[hostile] += t - before[n]
		}
	}
	share := func(d time.Duration) float64 { return 100 * d.Seconds() / (turn.Seconds() * turns / 2) }
	figures := []figure{untouched(newFigure(what+", others lose", "1", 2, 0, sample{float64(lost[1])}, bound{}), sample{float64(lost[1])})}
	figures[0].Note = fmt.Sprintf("of %d pings while %d were asked; %d of %d without", sent[1], asked, lost[0], sent[0])
	for _, n := range []string{"h1", "h2", "m1"} {
		f := newFigure(what+", CPU of "+n, "%", 2, 0, sample{share(used[n][1])}, bound{})
		f.Note = fmt.Sprintf("of one processor; %.1f without", share(used[n][0]))
		figures = append(figures, f)
	}
	figures = append(figures, newFigure(what+", others' RTT", "us", 2, 0, rtt[1], bound{}), newFigure(what+", others' RTT without", "us", 2, 0, rtt[0], bound{}))
	for _, f := range figures {
		if err := out.figure(f); err != nil {
			return err
		}
	}
	return nil
}

// flood asks for addresses that nobody has until ctx ends, and says how often.
func (w *world) flood(ctx context.Context, rate int) (asked int, err error) {
	vm, err := w.lab.VM("hostile")
	if err != nil {
		return 0, err
	}
	mac, err := overlay.ParseMAC(vm.MAC)
	if err != nil {
		return 0, err
	}
	ns, err := unix.Open("/run/netns/"+lab.NSOfVM(w.lab.Name(), vm.Name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("namespace of the hostile guest: %w", err)
	}
	defer unix.Close(ns)
	s, err := packetSocket(ns, "eth0", 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	own := netip.Addr{}
	for _, a := range vm.Addresses {
		if a.Addr().Is4() {
			own = a.Addr()
		}
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for {
		select {
		case <-ctx.Done():
			return asked, nil
		case <-tick.C:
		}
		for due := int(time.Since(start).Seconds() * float64(rate)); asked < due; asked++ {
			target := netip.AddrFrom4([4]byte{10, 70 + byte(asked>>16)%9, byte(asked >> 8), byte(asked)})
			if _, err := unix.Write(s, packet.AskARP(packet.Broadcast, mac, own, target)); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return asked, fmt.Errorf("ask: %w", err)
			}
		}
	}
}
