package manager

import (
	"context"
	"slices"
	"time"

	"culvert/internal/api"
	"culvert/internal/apiserver"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// View is the newest published view.
func (m *Manager) View() *managercore.View { return m.feed.view() }

// Await is the next view that is newer than after.
func (m *Manager) Await(ctx context.Context, after overlay.Rev) (*managercore.View, error) {
	for {
		v, changed := m.feed.next()
		if after.Less(v.At) {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Do admits and commits one request.
func (m *Manager) Do(ctx context.Context, ask managercore.Asked) (managercore.Reply, error) {
	ask.Seed = seed()
	return m.request(ctx, func(id uint64) managercore.Event {
		ask.ID = id
		return ask
	})
}

// WaitApplied waits until every connected host that rev concerns holds it.
func (m *Manager) WaitApplied(ctx context.Context, rev overlay.Rev) ([]apiserver.HostWait, error) {
	start := m.cfg.Now()
	exact := map[string]time.Duration{}
	for {
		_, changed := m.hosts.next()
		var states []managercore.HostState
		if err := m.inLoop(ctx, func(c *managercore.Core) { states = c.Concerned(rev) }); err != nil && ctx.Err() == nil {
			return nil, err
		}
		waits, behind := progress(states, rev, exact, m.cfg.Now().Sub(start))
		if !behind {
			return waits, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return waits, nil
		}
	}
}

// progress says how far each host is. A host is noted as exact at the time
// when that was first seen.
func progress(states []managercore.HostState, rev overlay.Rev, exact map[string]time.Duration, now time.Duration) (waits []apiserver.HostWait, behind bool) {
	for _, st := range states {
		w := apiserver.HostWait{Host: st.Name, State: apiserver.StateExact, Applied: st.Acked}
		switch {
		case rev.Compare(st.Acked) <= 0:
			if _, seen := exact[st.Name]; !seen {
				exact[st.Name] = now
			}
			w.After = exact[st.Name]
		case st.Open:
			w.State, behind = apiserver.StateBehind, true
		default:
			w.State = apiserver.StateAway
		}
		waits = append(waits, w)
	}
	return waits, behind
}

// Hosts is what is known of every host that has joined.
func (m *Manager) Hosts() []apiserver.HostFact {
	now := m.cfg.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []apiserver.HostFact
	for _, st := range *m.states.Load() {
		f := apiserver.HostFact{UID: st.Host, Connected: st.Open, Applied: st.Acked, Serves: st.Serves, Problems: st.Health, Gateways: st.Gateways}
		if st.Session != 0 {
			f.Age = now.Sub(time.Unix(0, int64(st.AckedAt)))
		}
		if r, ok := m.reports[st.Host]; ok {
			f.Problems = slices.Concat(f.Problems, r.Problems)
			f.Unclaimed, f.Repairs, f.Strangers = r.Unclaimed, r.Repairs, r.Strangers
			f.Drops, f.Unread, f.Refused, f.RefusedMore, f.Seen = r.Drops, r.Unread, r.Refused, r.RefusedMore, r.Seen
			if st.Open {
				f.Age = min(f.Age, now.Sub(r.At)) // a report is evidence that the agent still holds it
			}
		}
		out = append(out, f)
	}
	return out
}

// Token makes a token for joining.
func (m *Manager) Token(ctx context.Context, t apiserver.TokenRequest) (string, time.Time, error) {
	if m.authority.CA == nil {
		return "", time.Time{}, api.Refuse(api.CodeToken, "No token was made", "this manager holds no authority", "")
	}
	return m.createToken(ctx, m.authority, t.Role.String(), t.Expires, t.Uses, t.Host, t.Actor)
}

// Facts is what status says of the cluster as a whole.
func (m *Manager) Facts() apiserver.Facts {
	f := apiserver.Facts{Cluster: m.cfg.Cluster, Managers: 1, ManagersUp: 1, Counters: m.counts.copy()}
	if st := m.stats.Load(); st != nil {
		for name, n := range map[string]uint64{
			"claims_refused": st.ClaimsRefused, "claims_void": st.ClaimsVoid, "endpoints_withdrawn": st.Withdrawn, "endpoints_handed_over": st.HandedOver, "shared_addresses_moved": st.SharedMoved, "defects": st.Defects,
			"hosts_died": st.HostsDied, "hosts_returned": st.HostsReturned, "death_brakes": st.Brakes,
		} {
			if n > 0 {
				f.Counters[name] = n
			}
		}
	}
	return f
}
