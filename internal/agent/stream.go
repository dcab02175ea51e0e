package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Protocol is the version of the stream that this program speaks.
const Protocol = 1

// Bounds of reconnecting.
const (
	leastWait = 50 * time.Millisecond
	mostWait  = 3 * time.Second
)

// keepStream holds a stream to a manager for as long as ctx lives, whatever
// happens to the managers. It waits for the first look at the kernel: the first
// thing that a manager is told is how far this host has come, and an agent
// without a journal finds that there.
func (a *Agent) keepStream(ctx context.Context) {
	select {
	case <-a.looked:
	case <-ctx.Done():
	}
	wait := leastWait
	for ctx.Err() == nil {
		start := a.cfg.Now()
		err := a.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if a.cfg.Now().Sub(start) > 10*time.Second {
			wait = leastWait
		}
		var no *api.Refusal
		if errors.As(err, &no) {
			a.log.Warn("manager refused the stream", "code", string(no.Code()), "err", no)
		} else {
			a.log.Info("stream ended", "err", err, "again_in", wait)
		}
		t := time.NewTimer(wait/2 + rand.N(wait)) // spread, so that a fleet does not come back at once
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		wait = min(2*wait, mostWait)
	}
}

// stream is one stream from opening to end.
func (a *Agent) stream(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	st, err := a.mgrs.Attach(ctx)
	if err != nil {
		return err
	}
	defer st.Close()
	hello := make(chan api.Hello, 1)
	if !a.onLoop(ctx, func() { hello <- a.hello() }) {
		return ctx.Err()
	}
	h := <-hello
	sendErr := st.Send(api.Up{Hello: &h})
	d, err := st.Receive() // after a send that failed it says why
	if err == nil {
		err = sendErr
	}
	if err != nil {
		return err
	}
	if d.Refused != nil {
		return d.Refused
	}
	if d.Welcome == nil {
		return errors.New("first message of the manager is no welcome")
	}
	session := d.Welcome.Session
	a.log.Info("attached", "session", session, "epoch", d.Welcome.Epoch)
	a.out.reset(session)
	if !a.onLoop(ctx, func() { a.core.Step(a.now(), agentcore.Connected{Session: session}); a.seen = nil; a.report() }) {
		return ctx.Err()
	}
	defer a.onLoop(context.WithoutCancel(ctx), func() { a.core.Step(a.now(), agentcore.Disconnected{}) })
	sent := make(chan error, 1)
	go func() {
		sent <- a.out.drain(ctx, st, d.Welcome.Breath)
		end()
	}()
	w := newWitness(a)
	err = a.receive(ctx, st, w)
	end()
	w.wg.Wait()
	if sendErr = <-sent; err == nil || ctx.Err() != nil && sendErr != nil {
		err = errors.Join(err, sendErr)
	}
	return err
}

func (a *Agent) hello() api.Hello {
	return api.Hello{
		Protocol: Protocol, Least: Protocol, Version: a.cfg.Version, BootID: a.cfg.BootID, VTEP: a.cfg.VTEP,
		UpTo: a.core.Reached(), Logs: []api.Position{{Sent: a.core.FleetPosition()}},
	}
}

// receive feeds the core. What the manager says is in the journal before the
// core acts on it: a kernel is never ahead of the journal.
func (a *Agent) receive(ctx context.Context, st Stream, w *witness) error {
	for {
		d, err := st.Receive()
		if err != nil {
			return err
		}
		if d.Probe != nil {
			w.take(ctx, *d.Probe)
			continue
		}
		if d.Look != nil {
			w.wg.Go(func() { a.look(ctx, *d.Look) })
			continue
		}
		done := make(chan error, 1)
		if !a.onLoop(ctx, func() { done <- a.down(d) }) {
			return ctx.Err()
		}
		if err := <-done; err != nil {
			return err
		}
	}
}

func (a *Agent) down(d api.Down) error {
	switch {
	case d.Refused != nil:
		return d.Refused
	case d.Items != nil:
		if a.jr != nil {
			if err := a.jr.append(d.Items, a.core); err != nil {
				a.log.Error("journal not written", "err", err)
				return err
			}
		}
		a.log.Debug("told by the manager", "items", len(d.Items.Items), "up_to", d.Items.UpTo.String())
		a.core.Step(a.now(), itemsOf(d.Items))
	case d.Ask != nil:
		q := d.Ask
		a.core.Step(a.now(), agentcore.Ask{ID: q.ID, Network: q.Network, MAC: q.MAC, Address: q.Address, Within: agentcore.Time(q.Within)})
	case d.Answers != nil:
		a.log.Debug("answered by the manager", "claims", len(d.Answers))
		for _, x := range d.Answers {
			a.core.Step(a.now(), agentcore.Answered(x))
		}
	}
	return nil
}

func itemsOf(in *api.Items) agentcore.Items {
	out := agentcore.Items{Begins: in.Begins, Members: in.Members, Told: in.Told, Dropped: in.Dropped, UpTo: in.UpTo}
	for _, it := range in.Items {
		out.Items = append(out.Items, agentcore.Item{Rev: it.Rev, Gone: it.Gone, Rec: it.Rec})
	}
	for _, e := range in.Ends {
		out.Ends = append(out.Ends, agentcore.End(e))
	}
	return out
}

// outbox is what waits for the stream. It is emptied when a stream begins: the
// core says again what matters.
type outbox struct {
	mu      *sync.Mutex
	session *uint64
	ups     *[]agentcore.Up
	ack     *overlay.Rev // not sent yet, and in no hurry
	rep     **api.Report
	results *[]api.ProbeResult
	looked  *[]api.Looked
	ways    *waysSaid
	wake    chan struct{}
}

func newOutbox() outbox {
	return outbox{mu: new(sync.Mutex), session: new(uint64), ups: new([]agentcore.Up), ack: new(overlay.Rev), rep: new(*api.Report), results: new([]api.ProbeResult), looked: new([]api.Looked), ways: new(waysSaid), wake: make(chan struct{}, 1)}
}

func (o outbox) ring() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o outbox) reset(session uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	*o.session, *o.ups, *o.ack, *o.rep, *o.results, *o.looked = session, nil, overlay.Rev{}, nil, nil, nil
	o.ways.due = o.ways.states != nil
}

// ackWithin is how long an acknowledgement may wait for another to go with. A
// VM that comes is two changes within some milliseconds, and the news of the
// second waits for whoever is busy with acknowledgements of the first.
const ackWithin = 5 * time.Millisecond

func (o outbox) put(u agentcore.Up) {
	o.mu.Lock()
	first := o.ack.IsZero()
	if !u.Ack.IsZero() {
		*o.ack, u.Ack = u.Ack, overlay.Rev{}
	}
	urgent := !u.Empty()
	if urgent {
		*o.ups = append(*o.ups, u)
	}
	o.mu.Unlock()
	switch {
	case urgent:
		o.ring()
	case first:
		time.AfterFunc(ackWithin, o.ring)
	}
}

// report replaces a report that was not sent yet.
func (o outbox) report(r *api.Report) {
	o.mu.Lock()
	if old := *o.rep; old != nil && r.Seen == nil {
		r.Seen = old.Seen
	}
	*o.rep = r
	o.mu.Unlock()
	o.ring()
}

func (o outbox) probed(r api.ProbeResult) {
	o.mu.Lock()
	*o.results = append(*o.results, r)
	o.mu.Unlock()
	o.ring()
}

// saw queues the answer to an operator's question.
func (o outbox) saw(l api.Looked) {
	o.mu.Lock()
	*o.looked = append(*o.looked, l)
	o.mu.Unlock()
	o.ring()
}

// drain sends until ctx ends or sending fails, and every so often that this
// host lives.
func (o outbox) drain(ctx context.Context, st Stream, every time.Duration) error {
	breath, stop := breaths(every)
	defer stop()
	for {
		select {
		case <-o.wake:
		case <-breath:
			if err := st.Send(api.Up{Breath: true}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		o.mu.Lock()
		ups, ack, rep, results, looked, session := *o.ups, *o.ack, *o.rep, *o.results, *o.looked, *o.session
		*o.ups, *o.ack, *o.rep, *o.results, *o.looked = nil, overlay.Rev{}, nil, nil, nil
		ways := o.ways.take()
		o.mu.Unlock()
		for _, l := range looked {
			if err := st.Send(api.Up{Looked: &l}); err != nil {
				return err
			}
		}
		if ways != nil {
			if err := st.Send(api.Up{Gateways: ways}); err != nil {
				return err
			}
		}
		for _, r := range results {
			if err := st.Send(api.Up{ProbeResult: &r}); err != nil {
				return err
			}
		}
		for _, u := range ups {
			if err := sendUp(st, session, u); err != nil {
				return err
			}
		}
		if !ack.IsZero() {
			if err := st.Send(api.Up{Ack: &api.Ack{Rev: ack}}); err != nil {
				return err
			}
		}
		if rep != nil {
			if err := st.Send(api.Up{Report: rep}); err != nil {
				return err
			}
		}
	}
}

// sendUp sends what is urgent of u.
func sendUp(st Stream, session uint64, u agentcore.Up) error {
	for part := range slices.Chunk(u.Demands, api.MaxStreamDemands) {
		ds := make([]api.Demand, 0, len(part))
		for _, d := range part {
			ds = append(ds, api.Demand(d))
		}
		if err := st.Send(api.Up{Demands: ds}); err != nil {
			return err
		}
	}
	if len(u.Add)+len(u.Remove) > 0 {
		in := &api.Interest{Remove: append([]overlay.UID(nil), u.Remove...)}
		for _, p := range u.Add {
			in.Add = append(in.Add, api.Position(p))
		}
		if err := st.Send(api.Up{Interest: in}); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(u.Claims, api.MaxStreamClaims) {
		cs := &api.Claims{Session: session}
		for _, c := range part {
			cs.Claims = append(cs.Claims, api.Claim(c))
		}
		if err := st.Send(api.Up{Claims: cs}); err != nil {
			return err
		}
	}
	if u.Waits != nil {
		if err := st.Send(api.Up{Waits: &api.Waits{Devices: *u.Waits}}); err != nil {
			return err
		}
	}
	if u.InventoryEnd {
		if err := st.Send(api.Up{InventoryEnd: &api.InventoryEnd{Session: session}}); err != nil {
			return err
		}
	}
	for _, k := range u.Seeks {
		if err := st.Send(api.Up{Seek: &api.Seek{Network: k.Network, Address: k.Address}}); err != nil {
			return err
		}
	}
	for _, f := range u.Findings {
		if err := st.Send(api.Up{ProbeResult: &api.ProbeResult{ID: f.ID, Answered: f.Answered, Unable: f.Unable}}); err != nil {
			return err
		}
	}
	return nil
}
