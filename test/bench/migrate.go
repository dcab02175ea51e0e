package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
)

// pingsAMove go at 1 kHz while a guest moves, half of them before it stops.
const pingsAMove = 1000

// migrate moves real guests to and fro and counts the pings that are lost while
// the guest runs: what remains is QEMU's own pause, which nobody can take away.
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
	lost, paused, all := map[string]sample{}, map[string]sample{}, map[string]sample{}
	for i := range o.moves {
		to := [2]string{"h2", "h1"}[i%2]
		for _, name := range []string{"silent", "chatty"} {
			r, err := l.Migrate(ctx, name, to, lab.MigrateOptions{Pings: pingsAMove})
			if err != nil {
				return fmt.Errorf("move %d of %s: %w", i+1, name, err)
			}
			lost[name] = append(lost[name], float64(r.Pings.LostOutside(r.Stopped, r.Running)))
			all[name] = append(all[name], float64(len(r.Pings.Lost)))
			paused[name] = paused[name].addTime(r.Resumed)
		}
	}
	for _, name := range []string{"silent", "chatty"} {
		figures := []figure{
			newFigure("lost while it ran, "+name, "pings", 3, 0, lost[name], bound{}),
			newFigure("lost in all, "+name, "pings", 3, 0, all[name], bound{}),
			newFigure("QEMU's own pause, "+name, "ms", 3, 0, paused[name], bound{}),
		}
		figures[0].Note = fmt.Sprintf("goal median 0, most 50; most %v", lost[name].quantile(1))
		for _, f := range figures {
			if err := out.figure(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// guestsUp builds a lab of three hosts with two guests that move and a VM that
// pings them from the third.
func guestsUp(ctx context.Context, l *lab.Lab) error {
	if _, err := l.Up(ctx, lab.Topology{Hosts: 3}, true); err != nil {
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
