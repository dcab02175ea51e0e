package manager

import (
	"context"
	"slices"

	"connectrpc.com/connect/v2"

	"culvert/internal/api"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// takeInterest queues what the host subscribes to and wants, for the sender.
// Wants that come faster than they are looked at are refused as those that are
// beyond the bounds of a cursor.
func (s *stream) takeInterest(up api.Up) error {
	s.mu.Lock()
	refused := 0
	if s.load+len(up.Demands) > maxSaid {
		n := len(up.Demands)
		up.Demands = slices.DeleteFunc(up.Demands, func(d api.Demand) bool { return !d.Drop })
		refused = n - len(up.Demands)
	}
	s.load += len(up.Demands)
	if up.Interest != nil {
		s.load += len(up.Interest.Add) + len(up.Interest.Remove)
	}
	s.said = append(s.said, up)
	tooMuch := s.load > 2*maxSaid
	s.mu.Unlock()
	if refused > 0 {
		s.m.counts.add("demands_refused", uint64(refused))
	}
	if tooMuch {
		return connect.Errorf(connect.CodeResourceExhausted, "more networks and demands than a host may have at once")
	}
	s.ring()
	return nil
}

// interest looks at what came in, in its order.
func (s *stream) interest(ctx context.Context, v *managercore.View, cur *managercore.Cursor) error {
	s.mu.Lock()
	said, hints := s.said, s.hints
	s.said, s.load, s.hints = nil, 0, nil
	s.mu.Unlock()
	for _, up := range said {
		for _, d := range up.Demands {
			cur.Demand(d.Want, d.Drop)
			if !d.For.IsZero() && !d.Drop {
				s.hint(v, d)
			}
		}
		if up.Interest == nil {
			continue
		}
		if err := s.subscribe(ctx, v, cur, up.Interest); err != nil {
			return err
		}
	}
	for _, w := range hints {
		cur.Hint(w)
	}
	return nil
}

// subscribe adds and removes networks. One that the host is not entitled to is
// counted and comes to nothing: the host was not told of such a network, or
// will be told that it is gone.
func (s *stream) subscribe(ctx context.Context, v *managercore.View, cur *managercore.Cursor, in *api.Interest) error {
	for _, n := range in.Remove {
		cur.Unsubscribe(n)
		if err := s.m.send(ctx, managercore.Subscribed{Host: s.host, Session: s.session, Network: n, Off: true}); err != nil {
			return err
		}
	}
	for _, p := range in.Add {
		ok := false
		if p.OnDemand {
			ok = cur.SubscribeOnDemand(v, p.Network)
		} else {
			ok = cur.Subscribe(v, p.Network, p.Sent)
		}
		if !ok {
			s.m.counts.add("subscriptions_refused", 1)
			s.m.log.Warn("subscription refused", "host", s.name, "network", p.Network.String())
			continue
		}
		if err := s.m.send(ctx, managercore.Subscribed{Host: s.host, Session: s.session, Network: p.Network}); err != nil {
			return err
		}
	}
	return nil
}

// hint has the hosts of what a guest asks for told of that guest, too: the
// answer is sent to it, and must not miss. A host that is behind is not waited
// for: it asks for itself when the answer misses.
func (s *stream) hint(v *managercore.View, d api.Demand) {
	asker := overlay.Want{Network: d.Network, MAC: d.For}
	for _, h := range v.Holders(d.Want) {
		if h == s.host {
			continue
		}
		s.m.mu.Lock()
		to := s.m.streams[h]
		s.m.mu.Unlock()
		if to == nil {
			continue
		}
		to.mu.Lock()
		full := len(to.hints) >= maxHints
		if !full {
			to.hints = append(to.hints, asker)
		}
		to.mu.Unlock()
		if full {
			s.m.counts.add("hints_dropped", 1)
			continue
		}
		to.ring()
	}
}
