package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/apiserver"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
	"culvert/internal/trust"
)

// Protocol is the version of the agents' stream that this program speaks;
// LeastProtocol is the oldest that it still understands.
const (
	Protocol      = 1
	LeastProtocol = 1
)

// Bounds of one stream.
const (
	batchItems = 1000                 // of one Items message
	maxSaid    = managercore.MaxWants // networks and demands that were not looked at yet
	maxHints   = 1000
)

// stream is one agent's stream: a receiver that feeds the core, and a sender
// that owns the cursor.
type stream struct {
	m       *Manager
	host    overlay.UID
	name    string
	session uint64
	end     context.CancelCauseFunc
	waits   atomic.Bool // devices there wait for a port to be declared

	mu      sync.Mutex
	said    []api.Up       // interests and demands, in order
	load    int            // networks and demands in said
	hints   []overlay.Want // guests elsewhere that ask guests there
	answers []api.Answer
	probes  []api.Probe
	asks    []api.Ask
	looks   []api.Look
	wake    chan struct{} // of capacity 1
}

func (s *stream) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// answer queues the answer to a claim. Claims are bounded by what the agent
// has under way, so answers are too.
func (s *stream) answer(a managercore.ClaimAnswer) {
	s.mu.Lock()
	s.answers = append(s.answers, api.Answer(a))
	s.mu.Unlock()
	s.ring()
}

var (
	errReplaced = errors.New("the host opened another stream")
	errTermOver = errors.New("the manager reads its store anew")
)

// agents serves the agents' side of the schema.
type agents struct {
	m *Manager
}

// Attach runs one agent's stream.
func (a agents) Attach(ctx context.Context, st culvertv1connect.AgentsAttachServerStream) error {
	id, uid, no := agentIdentity(ctx)
	if no != nil {
		return a.m.refuseStream(id, no)
	}
	hello, err := receiveHello(st)
	if err != nil {
		a.m.counts.add("streams_malformed", 1)
		a.m.log.Warn("stream ended", "host", id.Name, "err", err)
		return err
	}
	if hello.Least > Protocol || hello.Protocol < LeastProtocol {
		return a.m.refuseStream(id, api.Refuse(api.CodeVersion, "The stream was not opened",
			fmt.Sprintf("the agent speaks protocol %d to %d, this manager %d to %d", hello.Least, hello.Protocol, LeastProtocol, Protocol), ""))
	}
	if err := a.m.checkNewer(ctx, uid, hello); err != nil {
		return a.m.refuseStream(id, err)
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &stream{m: a.m, host: uid, name: id.Name, end: end, wake: make(chan struct{}, 1)}
	r, err := a.m.request(ctx, func(n uint64) managercore.Event {
		return managercore.Opened{ID: n, Host: uid, VTEP: overlay.Host{VTEP: hello.VTEP}, BootID: hello.BootID}
	})
	if err != nil {
		return a.m.refuseStream(id, err)
	}
	s.session = r.Session
	a.m.enter(s)
	defer a.m.leave(s)
	a.m.log.Info("agent attached", "host", s.name, "session", s.session, "holds", hello.UpTo.String())
	welcome := &api.Welcome{Protocol: Protocol, Session: s.session, Epoch: a.m.feed.view().At.Epoch, Cluster: a.m.cfg.Cluster, Breath: a.m.breathEvery()}
	if err := st.Send(api.DownPB(api.Down{Welcome: welcome})); err != nil {
		return err
	}
	received := make(chan error, 1)
	go func() {
		err := s.receive(ctx, st)
		end(err)
		received <- err
	}()
	sendErr := s.sendAll(ctx, st, hello)
	end(sendErr)
	// The receiver ends with the call: its Receive fails once Attach returns.
	select {
	case err := <-received:
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	default:
	}
	return sendErr
}

// refuseStream counts a refusal by its code, logs it, and makes the error that
// the agent gets. What is no refusal passes as it is.
func (m *Manager) refuseStream(id trust.Identity, err error) error {
	var no *api.Refusal
	if !errors.As(err, &no) {
		return err
	}
	m.counts.add("streams_refused_"+string(no.Code()), 1)
	m.log.Warn("stream refused", "role", id.Role.String(), "name", id.Name, "code", string(no.Code()), "err", no)
	return rpcerr.Encode(no)
}

// checkNewer refuses an agent that holds a revision which this store has never
// had: the store is an older copy, and what it lacks is not a deletion. The
// host stays refused as long as this manager runs, since revisions of the copy
// go on from where it was made and would catch up with the agent's.
func (m *Manager) checkNewer(ctx context.Context, host overlay.UID, h *api.Hello) error {
	var at overlay.Rev
	if err := m.inLoop(ctx, func(c *managercore.Core) { at = c.View().At }); err != nil {
		return err
	}
	holds := h.UpTo
	for _, p := range h.Logs {
		if holds.Less(p.Sent) {
			holds = p.Sent
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if at.Less(holds) {
		m.newer[host] = holds
	}
	newer, ok := m.newer[host]
	if !ok {
		return nil
	}
	return api.Refuse(api.CodeOlderStore, "The stream was not opened", "this manager's store is an older copy: it is at revision "+at.String()+
		", and the host holds "+newer.String(), "")
}

// agentIdentity is the caller's, who must be an agent of this cluster.
func agentIdentity(ctx context.Context) (trust.Identity, overlay.UID, *api.Refusal) {
	id, ok := apiserver.IdentityOf(ctx)
	if !ok || id.Role != trust.RoleAgent {
		return id, overlay.UID{}, api.Refuse(api.CodeNotAllowed, "The call was refused", "it is for agents, and the caller's certificate is not an agent's", "Join this machine as a host: culvert token create --role agent")
	}
	uid, err := overlay.ParseUID(id.UID)
	if err != nil {
		return id, overlay.UID{}, api.Refuse(api.CodeCertificate, "The call was refused", "the certificate names no host", "")
	}
	return id, uid, nil
}

func receiveHello(st culvertv1connect.AgentsAttachServerStream) (*api.Hello, error) {
	pb, err := st.Receive()
	if err != nil {
		return nil, err
	}
	up, err := api.UpFromPB(pb)
	if err != nil || up.Hello == nil {
		return nil, connect.Errorf(connect.CodeInvalidArgument, "first message is no hello")
	}
	return up.Hello, nil
}

// enter makes s the host's stream; the former one, if it is still open, ends.
func (m *Manager) enter(s *stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.streams[s.host]; old != nil && old.session < s.session {
		old.end(errReplaced)
	}
	m.streams[s.host] = s
}

func (m *Manager) leave(s *stream) {
	m.mu.Lock()
	if m.streams[s.host] == s {
		delete(m.streams, s.host)
	}
	m.mu.Unlock()
	select {
	case m.inbox <- event{e: managercore.Closed{Host: s.host, Session: s.session}, after: m.noteStates}:
	case <-m.stopped:
	}
}

func (m *Manager) endStreams() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.streams {
		s.end(errTermOver)
	}
}

// receive feeds the core with what the agent says. What is malformed ends the
// stream: an agent of ours never says it.
func (s *stream) receive(ctx context.Context, st culvertv1connect.AgentsAttachServerStream) error {
	for {
		pb, err := st.Receive()
		if err != nil {
			return err
		}
		up, err := api.UpFromPB(pb)
		if err == nil && up.Hello != nil {
			err = fmt.Errorf("%w: a second hello", api.ErrMessage)
		}
		if err != nil {
			s.m.counts.add("streams_malformed", 1)
			s.m.log.Warn("stream ended", "host", s.name, "err", err)
			return connect.Errorf(connect.CodeInvalidArgument, "%v", err)
		}
		if err := s.take(ctx, up); err != nil {
			return err
		}
	}
}

func (s *stream) take(ctx context.Context, up api.Up) error {
	switch {
	case up.Interest != nil || up.Demands != nil:
		return s.takeInterest(up)
	case up.Claims != nil:
		e := managercore.Claimed{Host: s.host, Session: up.Claims.Session}
		for _, c := range up.Claims.Claims {
			e.Claims = append(e.Claims, managercore.Claim(c))
		}
		return s.m.send(ctx, e)
	case up.InventoryEnd != nil:
		return s.m.send(ctx, managercore.InventoryEnded{Host: s.host, Session: up.InventoryEnd.Session})
	case up.Ack != nil:
		select {
		case s.m.inbox <- event{e: managercore.Acked{Host: s.host, Session: s.session, Rev: up.Ack.Rev}, after: s.m.noteStates}:
		case <-ctx.Done():
			return ctx.Err()
		}
	case up.Report != nil:
		s.m.mu.Lock()
		r := Report{*up.Report, s.m.cfg.Now()}
		if r.Seen == nil {
			r.Seen = s.m.reports[s.host].Seen
		}
		s.m.reports[s.host] = r
		s.m.mu.Unlock()
		if len(up.Report.Problems) > 0 { // one may be why it never acknowledges
			return s.m.inLoop(ctx, s.m.noteStates)
		}
	case up.Waits != nil:
		s.waits.Store(up.Waits.Devices)
		if up.Waits.Devices { // what was held is wanted now
			s.ring()
		}
	case up.Looked != nil:
		s.m.looked(s.host, *up.Looked)
	case up.Gateways != nil:
		select {
		case s.m.inbox <- event{e: managercore.GatewaysStated{Host: s.host, Session: s.session, States: up.Gateways.States}, after: s.m.noteStates}:
		case <-ctx.Done():
			return ctx.Err()
		}
	case up.Breath || up.ProbeResult != nil || up.Seek != nil:
		return s.alive(ctx, up)
	}
	return nil
}

// noteStates has what the core knows of the hosts published soon; on the loop.
// It is all hosts at once, and after a change every host acknowledges: to
// publish at each would cost the square of their number.
func (m *Manager) noteStates(*managercore.Core) { m.statesDue = true }

// statesEvery is how often the states are published at most; statesShare is one
// part in how many of the time that may take.
const (
	statesEvery = 5 * time.Millisecond
	statesShare = 20
)

// publishStates is called on the loop when they are due.
func (m *Manager) publishStates() (next time.Duration) {
	start := m.cfg.Now()
	st := m.core.HostStates()
	m.states.Store(&st)
	m.hosts.publish(m.core.View())
	m.statesDue = false
	return max(statesEvery, statesShare*m.cfg.Now().Sub(start))
}
