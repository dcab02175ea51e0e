package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/packet"
)

// boot measures a guest's first packet until every other host's kernel knows
// it, and its end (its device goes, as when a hypervisor is killed) until none
// does; of a declared guest, and of one that nobody has declared, in a network
// that learns. A declared guest is awaited as soon as its device is there,
// whether it speaks or not: its clock runs from the netlink call that puts the
// device into the bridge, and its packet follows.
func boot(ctx context.Context, o options, out *printer) (err error) {
	sizes := o.sizes(3, 8)
	fl, err := newFloor(ctx, sizes...)
	defer func() { err = errors.Join(err, fl.close(context.WithoutCancel(ctx))) }()
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	o.admission = "learn"
	var boots []*booting
	for _, hosts := range sizes {
		fmt.Fprintf(os.Stderr, "building a lab of %d hosts, for guests that boot\n", hosts)
		w, err := newWorld(ctx, o, hosts, 0)
		defer w.close(context.WithoutCancel(ctx))
		if err != nil {
			return fmt.Errorf("lab of %d hosts: %w", hosts, err)
		}
		for _, declared := range []bool{true, false} {
			b := &booting{w: w, declared: declared, guests: w.next("boot", o.samples+1)}
			if declared {
				if _, err := w.declare(ctx, b.guests); err != nil {
					return err
				}
			}
			boots = append(boots, b)
		}
	}
	for i := range o.samples + 1 {
		for k := range boots {
			b := boots[(k+i)%len(boots)]
			if err := b.measure(ctx, i); err != nil {
				return fmt.Errorf("%s guest %d, %d hosts: %w", b, i, b.w.hosts, err)
			}
		}
		if err := fl.measure(ctx, i); err != nil {
			return fmt.Errorf("floor: %w", err)
		}
	}
	for _, b := range boots {
		for _, f := range []figure{
			newFigure("boots, "+b.String(), "ms", b.w.hosts, 0, b.known, bound{}),
			newFigure("killed, "+b.String(), "ms", b.w.hosts, 0, b.gone, bound{}),
			newFigure("of it the deletion", "ms", b.w.hosts, 0, b.deleted, bound{}),
		} {
			if err := out.figure(f); err != nil {
				return err
			}
		}
	}
	return fl.print(out)
}

// booting is guests of one kind that boot and are killed, one after the other.
type booting struct {
	w        *world
	declared bool
	guests   []endpoint
	// From the first packet until all know it; from the deletion of its device
	// until none does; what the netlink call took that deletes it.
	known, gone, deleted sample
}

func (b *booting) String() string {
	if b.declared {
		return "declared"
	}
	return "undeclared"
}

func (b *booting) measure(ctx context.Context, i int) error {
	w, host, e := b.w, b.w.places[0], b.guests[i]
	alias := ""
	if b.declared {
		alias = hoststate.PortAlias(api.DefaultTenant, e.Name)
	} else {
		e.IPs = e.IPs[:1] // what its first packet says
	}
	n, err := host.makeDevice(e.Name, alias)
	if err != nil {
		return err
	}
	s, err := host.socket(peerOf(e.Name))
	if err != nil {
		return err
	}
	defer unix.Close(s)
	w.expect(e, false)
	start, err := host.plug(n, w.vni.Bridge())
	if err == nil && !b.declared {
		if err = host.guarded(ctx, n); err == nil {
			err = w.settle(ctx)
		}
		start = time.Now()
	}
	if err != nil {
		return err
	}
	if _, err := unix.Write(s, packet.Announce(packet.Announcement{IP: e.IPs[0], MAC: e.MAC})); err != nil {
		return fmt.Errorf("first packet: %w", err)
	}
	known, err := gather(w.ears, limit)
	if err != nil {
		return err
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	w.expect(e, true)
	killed := time.Now()
	if err := host.unplug(n); err != nil {
		return err
	}
	deleted := time.Now()
	gone, err := gather(w.ears, limit)
	if err != nil {
		return fmt.Errorf("removal: %w", err)
	}
	if i > 0 { // the first is not counted, as everywhere
		b.known, b.gone, b.deleted = b.known.addTime(known.Sub(start)), b.gone.addTime(gone.Sub(killed)), b.deleted.addTime(deleted.Sub(killed))
	}
	if b.declared {
		if _, err := w.api.Delete(ctx, &culvertv1.DeleteRequest{Kind: "port", Tenant: api.DefaultTenant, Name: e.Name}); err != nil {
			return err
		}
	}
	return w.settle(ctx)
}
