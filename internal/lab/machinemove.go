package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"culvert/internal/api"
	"culvert/internal/lab/qemu"
)

// moveLimit is how long a live migration may take.
const moveLimit = 60 * time.Second

// moveMachine moves a machine as its hypervisor does: QEMU starts on the
// destination and waits, the memory goes over while the guest runs, and the
// source ends when it runs there.
func (l *Lab) moveMachine(ctx context.Context, s *state, vm VM, r MigrateResult, o MigrateOptions) (MigrateResult, error) {
	m, err := vm.machine(l)
	if err != nil {
		return r, err
	}
	if vm.Moving != "" {
		there, err := l.settleMove(ctx, s, m, &vm)
		if err != nil {
			return r, err
		}
		if there && vm.Host == r.To {
			return r, nil
		}
	}
	r.From = vm.Host
	if r.From == r.To {
		return r, nil
	}
	if err := l.awaitBridge(ctx, r.To, m.Bridge); err != nil {
		return r, err
	}
	vm.Moving = r.To
	s.put(vm)
	if err := l.save(s); err != nil {
		return r, err
	}
	start := time.Now()
	moved, err := l.transfer(ctx, s, m, &vm, start, &r, o)
	if err != nil {
		// It runs where it did, unless the machine is lost altogether.
		return r, errors.Join(err, l.endQEMU(context.WithoutCancel(ctx), s, m, &vm, r.To))
	}
	r.Stopped, r.Running = moved.Stopped, moved.Resumed
	r.Resumed = moved.Resumed.Sub(moved.Stopped)
	vm.Host = r.To
	return r, l.endQEMU(ctx, s, m, &vm, r.From)
}

// transfer starts the destination and moves the guest to it.
func (l *Lab) transfer(ctx context.Context, s *state, m machine, vm *VM, start time.Time, r *MigrateResult, o MigrateOptions) (qemu.Moved, error) {
	ctx, cancel := context.WithTimeout(ctx, moveLimit)
	defer cancel()
	socket := m.path(r.To, "incoming")
	d, err := m.start(ctx, r.To, "unix:"+socket)
	if err != nil {
		return qemu.Moved{}, err
	}
	vm.Processes = append(vm.Processes, d)
	s.put(*vm)
	if err := l.save(s); err != nil {
		return qemu.Moved{}, err
	}
	dst, err := m.dial(ctx, r.To)
	if err != nil {
		if d.State() == "dead" {
			err = m.ended(r.To)
		}
		return qemu.Moved{}, err
	}
	defer dst.Close()
	src, err := m.dial(ctx, r.From)
	if err != nil {
		return qemu.Moved{}, err
	}
	defer src.Close()
	l.report(ctx, *vm, r.To, "incoming")
	r.Prepared = time.Since(start)
	o.at(Expected)
	moved, err := qemu.Migrate(ctx, src, dst, "unix:"+socket,
		func() { o.at(Stopped); l.report(ctx, *vm, r.From, "leaving") },
		func() { o.at(Running); l.report(ctx, *vm, r.To, "running") })
	if err != nil {
		l.report(context.WithoutCancel(ctx), *vm, r.From, "running")
		return qemu.Moved{}, fmt.Errorf("migrate %s: %w", m.VM, err)
	}
	return moved, nil
}

// endQEMU ends a machine's QEMU on one host, of which the guest has left or
// which it never came to, and notes that the move is over.
func (l *Lab) endQEMU(ctx context.Context, s *state, m machine, vm *VM, host string) error {
	var keep []Daemon
	for _, d := range vm.Processes {
		if d.Node != host {
			keep = append(keep, d)
			continue
		}
		if err := m.quit(ctx, host, d); err != nil {
			return err
		}
	}
	vm.Processes, vm.Moving = keep, ""
	s.put(*vm)
	return l.save(s)
}

// quit asks QEMU to end, and ends it if it does not.
func (m machine) quit(ctx context.Context, host string, d Daemon) error {
	if d.State() == "dead" {
		return nil
	}
	asked, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	if mon, err := qemu.Dial(asked, m.path(host, "qmp")); err == nil {
		err = mon.Quit(asked)
		mon.Close()
		if err == nil && poll(asked, endLimit, func() (bool, error) { return d.State() == "dead", nil }) == nil {
			return nil
		}
	}
	return d.kill(ctx)
}

// settleMove ends a move that a command did not live to end: where the guest
// runs, there it is. there is false if it is still, or again, at the source.
func (l *Lab) settleMove(ctx context.Context, s *state, m machine, vm *VM) (there bool, err error) {
	to := vm.Moving
	err = poll(ctx, moveLimit, func() (done bool, err error) {
		if there, err = m.runs(ctx, to); there || err != nil {
			return true, err
		}
		here, err := m.runs(ctx, vm.Host)
		return here || err != nil, err
	})
	if errors.Is(err, errTimeout) {
		return false, api.Refuse(api.CodeLocal, fmt.Sprintf("VM %q was not moved", m.VM), "it runs neither on "+vm.Host+" nor on "+to,
			"Remove it: culvert lab vm remove "+m.VM+l.flag())
	}
	if err != nil {
		return false, err
	}
	if !there {
		if err := m.end(ctx, m.path(to, "")); err != nil { // a command may not have lived to note it
			return false, err
		}
		return false, l.endQEMU(ctx, s, m, vm, to)
	}
	from := vm.Host
	vm.Host = to
	return true, l.endQEMU(ctx, s, m, vm, from)
}

// runs reports whether the guest runs on a host. No QEMU there is no error.
func (m machine) runs(ctx context.Context, host string) (bool, error) {
	mon, err := qemu.Dial(ctx, m.path(host, "qmp"))
	if err != nil {
		if _, serr := os.Stat(m.path(host, "qmp")); ctx.Err() == nil || serr != nil {
			return false, nil
		}
		return false, err
	}
	defer mon.Close()
	return mon.Running(ctx)
}
