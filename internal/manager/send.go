package manager

import (
	"context"
	"slices"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// sendAll sends what the cursor finds, and answers, until ctx ends.
func (s *stream) sendAll(ctx context.Context, st culvertv1connect.AgentsAttachServerStream, hello *api.Hello) error {
	view, changed := s.m.feed.next()
	cur := managercore.NewCursor(view, s.name, fleetPosition(hello))
	var told overlay.Rev // the newest UpTo that was sent
	for {
		if err := s.sendShort(st); err != nil {
			return err
		}
		if err := s.interest(ctx, view, cur); err != nil {
			return err
		}
		b := cur.Next(view, batchItems)
		for late := (<-chan time.Time)(nil); told.Less(b.UpTo) && !b.Urgent() && s.patient(ctx, changed, &late); {
			view, changed = s.m.feed.next()
			more := cur.Next(view, batchItems)
			if !b.Join(more) {
				if err := s.sendBatch(st, b); err != nil {
					return err
				}
				b = more
			}
		}
		if n := cur.Refused(); n > 0 {
			s.m.counts.add("demands_refused", n)
		}
		if !b.Empty() || told.Less(b.UpTo) {
			if err := s.sendBatch(st, b); err != nil {
				return err
			}
		}
		if b.UpTo.IsZero() { // more to send of this very view
			continue
		}
		told = b.UpTo
		select {
		case <-changed:
		case <-s.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		view, changed = s.m.feed.next()
	}
}

func (s *stream) sendBatch(st culvertv1connect.AgentsAttachServerStream, b managercore.Batch) error {
	return st.Send(api.DownPB(api.Down{Items: itemsOf(b)}))
}

// portsWithin is how long a host is not told of ports when no device there
// waits for one. Where one does, on another host, it is claimed within that
// time, and all are told of port and endpoint at once; the host that matters
// is not told last.
const portsWithin = 20 * time.Millisecond

// patient waits until what is no hurry has another change to go with. It
// reports false when it is to be sent now; late is when that is at the latest.
func (s *stream) patient(ctx context.Context, changed <-chan struct{}, late *<-chan time.Time) bool {
	if s.waits.Load() {
		return false
	}
	if *late == nil {
		*late = time.After(portsWithin)
	}
	select {
	case <-changed:
		return true
	case <-s.wake:
		s.ring() // not ours
	case <-*late:
	case <-ctx.Done():
	}
	return false
}

func fleetPosition(h *api.Hello) overlay.Rev {
	for _, p := range h.Logs {
		if p.Network.IsZero() {
			return p.Sent
		}
	}
	return overlay.Rev{}
}

func itemsOf(b managercore.Batch) *api.Items {
	out := &api.Items{Begins: b.Begins, Members: b.Members, Told: b.Told, Dropped: b.Dropped, UpTo: b.UpTo}
	for _, it := range b.Items {
		out.Items = append(out.Items, api.StreamItem{Wire: it.Wire})
	}
	for _, e := range b.Ends {
		out.Ends = append(out.Ends, api.LogEnd(e))
	}
	return out
}

// sendShort sends what does not wait for the logs: probes and questions, then answers.
func (s *stream) sendShort(st culvertv1connect.AgentsAttachServerStream) error {
	for _, p := range s.takeProbes() {
		if err := st.Send(api.DownPB(api.Down{Probe: &p})); err != nil {
			return err
		}
	}
	for _, a := range s.takeAsks() {
		if err := st.Send(api.DownPB(api.Down{Ask: &a})); err != nil {
			return err
		}
	}
	for _, l := range s.takeLooks() {
		if err := st.Send(api.DownPB(api.Down{Look: &l})); err != nil {
			return err
		}
	}
	s.mu.Lock()
	as := s.answers
	s.answers = nil
	s.mu.Unlock()
	for part := range slices.Chunk(as, api.MaxStreamClaims) {
		if err := st.Send(api.DownPB(api.Down{Answers: part})); err != nil {
			return err
		}
	}
	return nil
}
