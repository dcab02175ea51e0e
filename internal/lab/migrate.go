package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// MigrateResult is what a migration took. Times begin at the moment that the
// guest was stopped, but for Prepared.
type MigrateResult struct {
	VM, From, To string
	Changed      bool          // false: it was there already
	Prepared     time.Duration // to make the device on the destination, before the stop
	Resumed      time.Duration // the guest runs again
	Revision     string        // that says where it is
	Exact        time.Duration // every host that answers holds that revision
	Slowest      string        // the host that was the last; empty if none made the others wait
	Hosts        int           // hosts that hold it
	Away         []string      // hosts that did not answer
	Pings        *PingResult   // of MigrateOptions.Ping
	Interval     time.Duration // of these
	// Stopped and Running are when the guest stood still and when it ran again.
	Stopped, Running time.Time
}

// MigrateOptions say what goes with a migration.
type MigrateOptions struct {
	// Pings is how many pings another VM of the network sends to the moving
	// one meanwhile, 1 ms apart, half of them before it moves; 0 for none. A
	// live migration takes longer than that: it is pinged until its end, and
	// then half as many times.
	Pings int
	// At is called at the stages of a live migration: for tests, which let
	// something happen just then. The lab is locked meanwhile, so what is called
	// may look (Status, VM), and signal processes by itself.
	At map[Stage]func()
	// NoWait: the move is over when the guest runs at its destination, whatever
	// the hosts know of it. Without a manager nobody could say.
	NoWait bool
}

// Stage is a moment of a live migration.
type Stage int

// The stages, in their order. At Stopped and Running the hypervisor has not told
// the agents yet; Expected it has told, and the destination's agent has answered
// or is away.
const (
	Expected Stage = iota + 1 // QEMU waits at the destination; nothing was copied
	Stopped                   // the guest stands still at the source
	Running                   // the guest runs at the destination
)

func (o MigrateOptions) at(s Stage) {
	if f := o.At[s]; f != nil {
		f()
	}
}

// pingInterval is between the pings under which a VM moves.
const pingInterval = time.Millisecond

// Migrate moves a VM to another host as a hypervisor does: the device on the
// destination is made ahead; the guest stops, runs again there, and then its
// device on the source goes. A VM that is there already is left as it is.
func (l *Lab) Migrate(ctx context.Context, name, to string, o MigrateOptions) (MigrateResult, error) {
	unlock, err := l.lock(ctx)
	if err != nil {
		return MigrateResult{}, err
	}
	defer unlock(false)
	s, err := l.loadReady()
	if err != nil {
		return MigrateResult{}, err
	}
	what := fmt.Sprintf("VM %q was not moved", name)
	vm, ok := s.vm(name)
	if !ok || !vm.Ready {
		return MigrateResult{}, api.Refuse(api.CodeNotFound, what, "there is no VM of this name", "See the VMs: culvert lab status"+l.flag())
	}
	if !s.Topology.HasHost(to) {
		ref, _ := api.RefuseValue(what, &overlay.FieldError{Field: "host", Value: to, Allowed: "h1 to " + HostName(s.Topology.Hosts)})
		return MigrateResult{}, ref
	}
	r := MigrateResult{VM: name, From: vm.Host, To: to, Interval: pingInterval}
	if vm.Host == to && vm.Moving == "" {
		return r, nil
	}
	r.Changed = true
	if o.Pings == 0 {
		return l.moveAny(ctx, s, vm, r, o)
	}
	return l.moveUnderPing(ctx, s, vm, r, o)
}

// moveUnderPing moves the VM half-way through a ping from a VM that stays.
func (l *Lab) moveUnderPing(ctx context.Context, s *state, vm VM, r MigrateResult, o MigrateOptions) (MigrateResult, error) {
	count := o.Pings
	from, target, ok := pingerOf(s, vm, r.To)
	if !ok {
		return r, api.Refuse(api.CodeNotFound, fmt.Sprintf("VM %q was not moved", vm.Name),
			fmt.Sprintf("no other VM of network %s that is a namespace is there to ping it", vm.Network), "Make one: culvert lab vm create --help")
	}
	type outcome struct {
		res PingResult
		err error
	}
	done := make(chan outcome, 1)
	half := make(chan struct{})
	after := time.Duration(count/2) * pingInterval
	total := count
	pinging, stop := context.WithCancel(ctx)
	defer stop()
	if vm.Qemu {
		total = 0
	}
	go func() {
		res, err := Ping(pinging, NSOfVM(l.name, from.Name), PingOptions{
			Target: target, Count: total, Interval: pingInterval, At: map[int]func(){count / 2: func() { close(half) }},
		})
		done <- outcome{res, err}
	}()
	select {
	case <-half:
	case p := <-done: // it failed before the middle
		return r, p.err
	}
	r, err := l.moveAny(ctx, s, vm, r, o)
	if vm.Qemu {
		time.AfterFunc(after, stop)
	}
	p := <-done
	if err == nil {
		err = p.err
	}
	r.Pings = &p.res
	return r, err
}

// pingerOf chooses who pings a VM that moves: one of its network, on a host
// that is neither source nor destination if there is one.
func pingerOf(s *state, vm VM, to string) (from VM, target netip.Addr, ok bool) {
	best := -1
	for _, v := range s.VMs {
		if v.Name == vm.Name || v.VNI != vm.VNI || !v.Ready || v.Qemu {
			continue
		}
		a, fits := commonAddress(v, vm)
		score := 0
		if v.Host != vm.Host && v.Host != to {
			score = 1
		}
		if fits && score > best {
			best, from, target, ok = score, v, a, true
		}
	}
	return from, target, ok
}

// commonAddress is the first address of to whose family from has as well.
func commonAddress(from, to VM) (netip.Addr, bool) {
	for _, a := range to.Addresses {
		for _, b := range from.Addresses {
			if a.Addr().Is4() == b.Addr().Is4() {
				return a.Addr(), true
			}
		}
	}
	return netip.Addr{}, false
}

// moveAny moves a VM of either kind.
func (l *Lab) moveAny(ctx context.Context, s *state, vm VM, r MigrateResult, o MigrateOptions) (MigrateResult, error) {
	start := time.Now()
	var err error
	if vm.Qemu {
		r, err = l.moveMachine(ctx, s, vm, r, o)
	} else {
		r, err = l.move(ctx, s, vm, r)
	}
	if err != nil || o.NoWait || !vm.Declared || s.Topology.NoDaemons {
		return r, err
	}
	if !r.Stopped.IsZero() {
		start = r.Stopped
	}
	vm.Host = r.To
	return l.awaitMoved(ctx, vm, r, start)
}

func (l *Lab) move(ctx context.Context, s *state, vm VM, r MigrateResult) (MigrateResult, error) {
	g, err := vm.guest(l.name)
	if err != nil {
		return r, err
	}
	if err := l.awaitBridge(ctx, r.To, g.Bridge); err != nil {
		return r, err
	}
	vm.Moving = r.To
	s.put(vm)
	if err := l.save(s); err != nil {
		return r, err
	}
	start := time.Now()
	if err := g.Prepare(r.To); err != nil {
		return r, err
	}
	l.report(ctx, vm, r.To, "incoming")
	r.Prepared = time.Since(start)
	start = time.Now()
	r.Stopped = start
	if err := g.Stop(r.From); err != nil {
		return r, err
	}
	l.report(ctx, vm, r.From, "leaving")
	if err := g.Resume(r.To); err != nil {
		return r, err
	}
	r.Running = time.Now()
	r.Resumed = r.Running.Sub(r.Stopped)
	l.report(ctx, vm, r.To, "running")
	if g.Announce {
		if err := g.Speak(); err != nil {
			return r, err
		}
	}
	if r.From != r.To {
		if err := g.Retire(r.From); err != nil {
			return r, err
		}
	}
	vm.Host, vm.Moving = r.To, ""
	s.put(vm)
	return r, l.save(s)
}

// reportWait is how long a hypervisor holds a migration up for the network.
const reportWait = 2 * time.Second

// report tells a host's agent what the hypervisor does. An agent that is away
// is told nothing, and learns from the guest's own frames.
func (l *Lab) report(ctx context.Context, vm VM, host, state string) {
	if !vm.Declared {
		return
	}
	c := client.NewLocal(l.AgentSocket(host))
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, reportWait+time.Second)
	defer cancel()
	q := &culvertv1.ReportGuestRequest{Device: TapName(vm.Name), State: state, Vm: vm.Name}
	if state == "incoming" {
		q.WaitMilliseconds = uint32(reportWait.Milliseconds())
	}
	_, _ = c.ReportGuest(ctx, q) // without an agent there is nobody to tell
}

// awaitMoved waits until all hosts know where the VM is.
func (l *Lab) awaitMoved(ctx context.Context, vm VM, r MigrateResult, start time.Time) (MigrateResult, error) {
	client, err := l.dial()
	if err != nil {
		return r, err
	}
	defer client.Close()
	var hosts []*culvertv1.HostWait
	r.Revision, hosts, err = awaitPorts(ctx, client, map[string]VM{vm.Tenant + "/" + vm.Name: vm})
	if err != nil {
		return r, err
	}
	r.Exact = time.Since(start)
	r.Away = notExact(hosts)
	r.Hosts = len(hosts) - len(r.Away)
	slowest := 0.0
	for _, h := range hosts {
		if h.GetState() == "exact" && h.GetSeconds() > slowest {
			slowest, r.Slowest = h.GetSeconds(), h.GetHost()
		}
	}
	return r, nil
}
