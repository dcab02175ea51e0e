package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/packet"
)

// shareBound is what the control plane's share of a migration is held against,
// in milliseconds.
var shareBound = bound{must: 8, goal: 3}

// share measures the control plane's share of a migration: from the first sign
// that the guest runs at its destination until every other host's kernel
// points there, the source's included. Guests are devices here, not machines:
// a hypervisor's own pause is none of it.
func share(ctx context.Context, o options, out *printer) (err error) {
	sizes := o.sizes(3, 8)
	fl, err := newFloor(ctx, sizes...)
	if err != nil {
		return errors.Join(fmt.Errorf("floor: %w", err), fl.close(context.WithoutCancel(ctx)))
	}
	defer func() { err = errors.Join(err, fl.close(context.WithoutCancel(ctx))) }()
	var movers []*mover
	for _, hosts := range sizes {
		fmt.Fprintf(os.Stderr, "building a lab of %d hosts, for guests that move\n", hosts)
		w, err := newWorld(ctx, o, hosts, 0)
		defer w.close(context.WithoutCancel(ctx))
		if err == nil {
			err = w.listenOnFirst()
		}
		if err != nil {
			return fmt.Errorf("lab of %d hosts: %w", hosts, err)
		}
		for _, e := range evidences {
			m, err := newMover(ctx, w, e)
			if err != nil {
				return fmt.Errorf("guest that moves, %s, lab of %d hosts: %w", e.name, hosts, err)
			}
			defer m.close()
			movers = append(movers, m)
		}
	}
	for i := range o.samples + 1 {
		for k := range movers {
			m := movers[(k+i)%len(movers)]
			took, err := m.move(ctx)
			if err != nil {
				return fmt.Errorf("%s, %d hosts, move %d: %w", m.evidence.name, m.w.hosts, i, err)
			}
			if i > 0 { // the first is not counted, as everywhere
				m.took = m.took.addTime(took)
			}
		}
		if err := fl.measure(ctx, i); err != nil {
			return fmt.Errorf("floor: %w", err)
		}
	}
	for _, m := range movers {
		f := newFigure("move seen by "+m.evidence.name, "ms", m.w.hosts, 0, m.took, shareBound)
		f.Note = fmt.Sprintf("goal %g %s, most %.2f", shareBound.goal, m.took.verdict(0.5, shareBound.goal), m.took.quantile(1))
		if err := out.figure(f); err != nil {
			return err
		}
	}
	return fl.print(out)
}

// evidence is how a destination learns that a guest runs there.
type evidence struct {
	name string
	// told: a hypervisor has announced the guest to its destination. Without,
	// the guest's frames are all there is.
	told bool
	// leaves: it tells the source too that the guest stands still, so that the
	// source hands over before the guest runs. Times may be below 0 then.
	leaves bool
	// frame is what the guest, or its QEMU, sends as it begins to run; nil: the
	// hypervisor says so.
	frame func(endpoint) []byte
}

var evidences = []evidence{
	{name: "frame", frame: func(e endpoint) []byte {
		return packet.Announce(packet.Announcement{IP: e.IPs[0], MAC: e.MAC})
	}},
	{name: "RARP", frame: func(e endpoint) []byte { return packet.RARP(e.MAC) }},
	{name: "event", told: true},
	{name: "handover", told: true, leaves: true},
}

// mover is a guest that moves from host to host, in a round.
type mover struct {
	w        *world
	evidence evidence
	endpoint endpoint
	at       int // index of its host
	nic      nic // there
	agents   []*client.Local
	took     sample
}

func newMover(ctx context.Context, w *world, e evidence) (*mover, error) {
	m := &mover{w: w, evidence: e, endpoint: w.next("move", 1)[0]}
	list := []endpoint{m.endpoint}
	if _, err := w.declare(ctx, list); err != nil {
		return nil, err
	}
	m.endpoint = list[0]
	for _, p := range w.places {
		m.agents = append(m.agents, client.NewLocal(w.lab.AgentSocket(p.node)))
	}
	w.expectAt(m.endpoint, 0, -1)
	n, err := w.places[0].makeNIC(m.endpoint.Name)
	if err == nil {
		_, err = w.places[0].plug(n, w.vni.Bridge())
	}
	if err == nil {
		_, err = gather(w.ears[1:], limit)
	}
	m.nic = n
	return m, err
}

func (m *mover) close() {
	for _, a := range m.agents {
		a.Close()
	}
}

func (m *mover) report(ctx context.Context, host int, n nic, state string) error {
	q := &culvertv1.ReportGuestRequest{Device: n.name, State: state, Vm: m.endpoint.Name}
	if state == "incoming" {
		q.WaitMilliseconds = uint32((10 * time.Second).Milliseconds())
	}
	res, err := m.agents[host].ReportGuest(ctx, q)
	if err != nil {
		return fmt.Errorf("report %s: %w", state, err)
	}
	if state == "incoming" && res.GetState() != "expected" {
		return fmt.Errorf("guest on its way: the agent says %s %s", res.GetState(), res.GetReason())
	}
	return nil
}

// move moves the guest to the next host.
func (m *mover) move(ctx context.Context) (time.Duration, error) {
	from, to := m.at, (m.at+1)%m.w.hosts
	n, err := m.w.places[to].makeNIC(m.endpoint.Name)
	if err == nil {
		_, err = m.w.places[to].plug(n, m.w.vni.Bridge())
	}
	if err == nil {
		err = m.w.places[to].guarded(ctx, n)
	}
	if err == nil && m.evidence.told {
		err = m.report(ctx, to, n, "incoming")
	}
	if err == nil {
		err = m.w.settle(ctx)
	}
	if err != nil {
		return 0, err
	}
	s, err := m.w.places[to].socket(peerOf(m.endpoint.Name))
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	heard := m.w.expectAt(m.endpoint, to, from)
	if m.evidence.leaves {
		if err := m.report(ctx, from, m.nic, "leaving"); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	if m.evidence.frame != nil {
		_, err = unix.Write(s, m.evidence.frame(m.endpoint))
	} else {
		err = m.report(ctx, to, n, "running")
	}
	if err != nil {
		return 0, err
	}
	at, err := gather(heard, limit)
	if err != nil {
		return 0, err
	}
	if err := m.w.places[from].unplug(m.nic); err != nil {
		return 0, err
	}
	// What a hypervisor said of a device stands until it takes it back.
	if m.evidence.told {
		if err := m.report(ctx, from, m.nic, "gone"); err != nil {
			return 0, err
		}
	}
	m.at, m.nic = to, n
	return at.Sub(start), m.w.settle(ctx)
}

// expectAt sets the ears of all hosts but the one that the endpoint is coming
// to, and returns them. Hosts that know it elsewhere have one entry written
// anew; from, where it was, has all of them yet to write. A host from that is
// negative is none: then nobody knows it yet.
func (w *world) expectAt(e endpoint, to, from int) []*ear {
	var heard []*ear
	for i, ear := range w.ears {
		if i == to {
			continue
		}
		want := entries{}
		e.entries(want, vtep(to+1), ear.vxlan)
		if from >= 0 && i != from {
			for k := range want { // order-free: one entry stays, whichever comes first
				if k.table != self {
					delete(want, k)
				}
			}
		}
		ear.expect(want, false)
		heard = append(heard, ear)
	}
	return heard
}

// listenOnFirst listens on h1 too, so that ears are hosts from then on, index
// by index.
func (w *world) listenOnFirst() error {
	p := w.places[0]
	e, err := listen(p, p.index(w.vni.Bridge()), p.index(w.vni.VXLAN()))
	if err != nil {
		return err
	}
	w.ears = append([]*ear{e}, w.ears...)
	return nil
}
