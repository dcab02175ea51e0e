// Package apiservertest has a manager without store, clock or network: the real
// core, driven in the caller's own goroutine. Tests of the API and of the
// command line speak to it through a real server.
package apiservertest

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert/internal/api"
	"culvert/internal/apiserver"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// Start is the time when a Backend begins. It passes only by Advance.
var Start = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// Backend implements apiserver.Backend.
type Backend struct {
	mu      sync.Mutex
	core    *managercore.Core
	now     time.Time
	n       uint64
	id      uint64
	changed chan struct{} // closed at the next view
	hosts   map[string]overlay.UID
	replies map[uint64]managercore.Reply
	fail    error

	// Latency is how long each connected host takes to hold a revision.
	Latency map[string]time.Duration
	// Stuck are connected hosts that never do.
	Stuck map[string]bool
	// Health is added to what is known of a host, by name.
	Health map[string]apiserver.HostFact
	// Kernels is what hosts answer to a Look, by name; who is not in it does not
	// answer.
	Kernels map[string]func(q []api.LookQuery) api.Looked
	// Asked are the tokens that were asked for.
	Asked []apiserver.TokenRequest
}

// New makes a backend with tenant default and nothing else.
func New() *Backend {
	b := &Backend{core: managercore.New(managercore.Config{Epoch: 1}), now: Start, n: 1, changed: make(chan struct{}),
		hosts: map[string]overlay.UID{}, replies: map[uint64]managercore.Reply{},
		Latency: map[string]time.Duration{}, Stuck: map[string]bool{}, Health: map[string]apiserver.HostFact{}, Kernels: map[string]func([]api.LookQuery) api.Looked{}}
	b.core.Step(b.time(), managercore.Loaded{N: 1})
	b.core.Step(b.time(), managercore.Stored{N: 1})
	if _, err := b.Do(context.Background(), managercore.Asked{Actor: "test", Put: &managercore.Put{Mode: managercore.ModeApply,
		Docs: []overlay.Doc{{Kind: overlay.KindTenant, Name: "default"}}}}); err != nil {
		panic(err)
	}
	return b
}

func (b *Backend) time() managercore.Time { return managercore.Time(b.now.UnixNano()) }

// Now is the backend's time.
func (b *Backend) Now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

// Advance lets time pass.
func (b *Backend) Advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

// Fail makes every later Do return err.
func (b *Backend) Fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

// step gives one event to the core and commits all that follows from it.
func (b *Backend) step(e managercore.Event) {
	before := b.core.View()
	b.core.Step(b.time(), e)
	for {
		writes := b.core.NextTxn(nil, 1000)
		if len(writes) == 0 {
			break
		}
		b.n++
		st := managercore.Stored{N: b.n}
		for _, w := range writes {
			if w.Rec == nil {
				st.Deletes = append(st.Deletes, w.Key)
				continue
			}
			st.Puts = append(st.Puts, managercore.StoredRecord{Rec: w.Rec, Gone: w.Gone, N: b.n})
		}
		b.core.Step(b.time(), managercore.TxnDone{N: b.n})
		b.core.Step(b.time(), st)
	}
	for _, r := range b.core.NextReplies() {
		b.replies[r.ID] = r
	}
	if b.core.View() != before {
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

func (b *Backend) seed() overlay.UID {
	b.id++
	var u overlay.UID
	binary.BigEndian.PutUint64(u[:], b.id)
	return u
}

// Host adds a host with a session and that VTEP.
func (b *Backend) Host(name, vtep string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seed := b.seed()
	b.step(managercore.Asked{ID: b.id, Actor: "test", Seed: seed, AddHost: &managercore.AddHost{Name: name, MachineID: "machine-" + name}})
	b.hosts[name] = b.replies[b.id].Changes[0].Rec.(*overlay.Host).UID
	b.open(name, vtep)
}

func (b *Backend) open(name, vtep string) {
	b.id++
	b.step(managercore.Opened{ID: b.id, Host: b.hosts[name], VTEP: overlay.Host{VTEP: netip.MustParseAddr(vtep)}, BootID: "boot-" + name})
	b.ack(name)
}

func (b *Backend) state(name string) managercore.HostState {
	states := b.core.HostStates()
	return states[slices.IndexFunc(states, func(s managercore.HostState) bool { return s.Name == name })]
}

func (b *Backend) ack(name string) {
	b.step(managercore.Acked{Host: b.hosts[name], Session: b.state(name).Session, Rev: b.core.View().At})
}

// Ack says that every connected host that is not stuck holds everything.
func (b *Backend) Ack() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, st := range b.core.HostStates() {
		if st.Open && !b.Stuck[st.Name] {
			b.ack(st.Name)
		}
	}
}

// Leave ends the session of a host.
func (b *Backend) Leave(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.step(managercore.Closed{Host: b.hosts[name], Session: b.state(name).Session})
}

// Die is the verdict that a host is dead.
func (b *Backend) Die(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	dead := *b.core.View().Host(b.hosts[name])
	dead.Dead = true
	b.n++
	b.step(managercore.Stored{N: b.n, Puts: []managercore.StoredRecord{{Rec: &dead, N: b.n}}})
	b.step(managercore.Closed{Host: b.hosts[name], Session: b.state(name).Session})
}

// Plug makes a host claim the endpoint of a port.
func (b *Backend) Plug(host, tenant, port string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.core.View()
	p := v.Named(overlay.KindPort, v.Named(overlay.KindTenant, overlay.UID{}, tenant).Key.UID, port).Rec.(*overlay.Port)
	st := b.state(host)
	b.step(managercore.Subscribed{Host: st.Host, Session: st.Session, Network: p.Network})
	b.id++
	b.step(managercore.Claimed{Host: st.Host, Session: st.Session, Claims: []managercore.Claim{{ID: b.id, Network: p.Network, MAC: p.MAC, Port: p.UID, Evidence: overlay.EvidenceDevice}}})
	b.ack(host)
}

// View implements apiserver.Backend.
func (b *Backend) View() *managercore.View {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.core.View()
}

// Await implements apiserver.Backend.
func (b *Backend) Await(ctx context.Context, after overlay.Rev) (*managercore.View, error) {
	for {
		b.mu.Lock()
		v, changed := b.core.View(), b.changed
		b.mu.Unlock()
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

// Do implements apiserver.Backend.
func (b *Backend) Do(_ context.Context, ask managercore.Asked) (managercore.Reply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return managercore.Reply{}, b.fail
	}
	ask.Seed = b.seed()
	ask.ID = b.id
	b.step(ask)
	r := b.replies[ask.ID]
	delete(b.replies, ask.ID)
	return r, nil
}

// WaitApplied implements apiserver.Backend. No time passes.
func (b *Backend) WaitApplied(_ context.Context, rev overlay.Rev) ([]apiserver.HostWait, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []apiserver.HostWait
	for _, st := range b.core.Concerned(rev) {
		w := apiserver.HostWait{Host: st.Name, State: apiserver.StateAway, Applied: st.Acked}
		switch {
		case !st.Open:
		case b.Stuck[st.Name]:
			w.State = apiserver.StateBehind
		default:
			b.ack(st.Name)
			w.State, w.After, w.Applied = apiserver.StateExact, b.Latency[st.Name], b.core.View().At
		}
		out = append(out, w)
	}
	return out, nil
}

// Hosts implements apiserver.Backend.
func (b *Backend) Hosts() []apiserver.HostFact {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []apiserver.HostFact
	for _, st := range b.core.HostStates() {
		f := b.Health[st.Name]
		f.UID, f.Connected, f.Applied, f.Serves = st.Host, st.Open, st.Acked, st.Serves
		if f.Age == 0 {
			f.Age = b.now.Sub(time.Unix(0, int64(st.AckedAt)))
		}
		out = append(out, f)
	}
	return out
}

// Token implements apiserver.Backend.
func (b *Backend) Token(_ context.Context, t apiserver.TokenRequest) (string, time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Asked = append(b.Asked, t)
	return "cv1.Qm9uZSBpcyBub3QgYSB0b2tlbg.192.0.2.11", b.now.Add(t.Expires), nil
}

// Look implements apiserver.Backend.
func (b *Backend) Look(_ context.Context, host overlay.UID, q []api.LookQuery) (l api.Looked, ok bool) {
	h := b.View().Host(host)
	if h == nil {
		return l, false
	}
	b.mu.Lock()
	answer := b.Kernels[h.Name]
	b.mu.Unlock()
	if answer == nil {
		return l, false
	}
	return answer(q), true
}

// Facts implements apiserver.Backend.
func (b *Backend) Facts() apiserver.Facts {
	return apiserver.Facts{Cluster: "culvert-7f3a", Managers: 1, ManagersUp: 1, Counters: map[string]uint64{}}
}
