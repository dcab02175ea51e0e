package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
)

// pingsAMove go at 1 kHz while a guest moves, half of them before it stops.
const pingsAMove = 1000

// moved is what moves of one guest came to.
type moved struct {
	lost   sample // pings, while it ran: what remains without it is QEMU's own pause
	all    sample // pings
	paused sample // ms, by QEMU
}

func (m *moved) add(p lab.PingResult, stopped, running time.Time) {
	m.lost = append(m.lost, float64(p.LostOutside(stopped, running)))
	m.all = append(m.all, float64(len(p.Lost)))
	m.paused = m.paused.addTime(running.Sub(stopped))
}

// migrate moves real guests to and fro and counts the pings that are lost while
// the guest runs: what remains is QEMU's own pause, which nobody can take away.
// Beside it, between the same moves, guests of the same kind move on a network
// of the kernel's own on the same hosts: a bridge with a VXLAN device that
// floods by multicast and learns.
func migrate(ctx context.Context, o options, out *printer) (err error) {
	roots := []string{"bin/debian"}
	if dir := os.Getenv("CULVERT_GUESTS"); dir != "" {
		roots = []string{dir}
	}
	for i := range roots {
		if roots[i], err = filepath.Abs(roots[i]); err != nil {
			return err
		}
	}
	l, err := lab.New(fmt.Sprintf("bm%x", os.Getpid()), lab.Config{Culvert: []string{o.culvert}, GuestRoots: roots})
	if err != nil {
		return err
	}
	defer func() {
		_, derr := l.Down(context.WithoutCancel(ctx))
		err = errors.Join(err, derr)
	}()
	if err := guestsUp(ctx, l); err != nil {
		return err
	}
	peer, err := newPlain(ctx, l)
	defer func() { err = errors.Join(err, peer.close()) }()
	if err != nil {
		return fmt.Errorf("plain network: %w", err)
	}
	kinds := []string{"silent", "chatty"}
	ours, plainly := map[string]*moved{}, map[string]*moved{}
	for _, name := range kinds {
		ours[name], plainly[name] = &moved{}, &moved{}
	}
	for i := range o.moves {
		to := [2]string{"h2", "h1"}[i%2]
		for _, name := range kinds {
			r, err := l.Migrate(ctx, name, to, lab.MigrateOptions{Pings: pingsAMove})
			if err != nil {
				return fmt.Errorf("move %d of %s: %w", i+1, name, err)
			}
			ours[name].add(*r.Pings, r.Stopped, r.Running)
			if name == "silent" && i >= o.silent {
				continue
			}
			p, at, err := peer.guests[name].move(ctx)
			if err != nil {
				return fmt.Errorf("move %d of %s on the plain network: %w", i+1, name, err)
			}
			plainly[name].add(p, at.Stopped, at.Resumed)
		}
	}
	for _, name := range kinds {
		if err := ours[name].print(out, name, true); err != nil {
			return err
		}
		if err := plainly[name].print(out, name+", plain", false); err != nil {
			return err
		}
	}
	return nil
}

// Goals of the pings that are lost while a guest runs, 1 ms each.
const (
	medianLost = 0
	mostLost   = 50
)

func (m *moved) print(out *printer, name string, judged bool) error {
	figures := []figure{
		newFigure("lost while it ran, "+name, "pings", 3, 0, m.lost, bound{}),
		newFigure("lost in all, "+name, "pings", 3, 0, m.all, bound{}),
		newFigure("QEMU's own pause, "+name, "ms", 3, 0, m.paused, bound{}),
	}
	for i, s := range []sample{m.lost, m.all, m.paused} {
		figures[i].Note = fmt.Sprintf("most %g", round(s.quantile(1)))
	}
	goal := "met"
	if m.lost.quantile(0.5) > medianLost || m.lost.quantile(1) > mostLost {
		goal = "missed"
	}
	if judged {
		figures[0].Note += fmt.Sprintf("; goal (median %d, most %d) %s", medianLost, mostLost, goal)
	}
	for _, f := range figures {
		if err := out.figure(f); err != nil {
			return err
		}
	}
	return nil
}

// guestsUp builds a lab of three hosts, on one segment because multicast is for
// the plain network, with two guests that move and a VM that
// pings them from the third.
func guestsUp(ctx context.Context, l *lab.Lab) error {
	if _, err := l.Up(ctx, lab.Topology{Hosts: 3, Flat: true}, true); err != nil {
		return err
	}
	cfg, err := client.Load(l.ClientConfig())
	if err != nil {
		return err
	}
	c, err := client.New(cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: []*culvertv1.Resource{api.Wrap(&culvertv1.Network{
		ApiVersion: api.Version, Kind: "Network", Metadata: &culvertv1.Metadata{Name: "blue", Tenant: api.DefaultTenant},
		Spec: &culvertv1.NetworkSpec{Subnets: []*culvertv1.Subnet{{Prefix: "10.20.0.0/24"}}},
	})}})
	if err != nil {
		return err
	}
	for _, v := range []lab.VMSpec{
		{Name: "stays", Host: "h3"}, {Name: "silent", Host: "h1", Qemu: true}, {Name: "chatty", Host: "h1", Qemu: true, Announce: true},
	} {
		v.Network = "blue"
		if _, err := l.CreateVM(ctx, v); err != nil {
			return err
		}
	}
	return nil
}
