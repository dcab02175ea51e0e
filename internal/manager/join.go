package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
	"culvert/internal/store"
	"culvert/internal/trust"
)

// token is one join token as the store keeps it.
type token struct {
	pb *culvertv1.TokenRecord
}

func (t *token) id() string { return string(t.pb.GetId()) }

func readToken(b []byte) (*token, error) {
	var pb culvertv1.TokenRecord
	if len(b) == 0 || b[0] != api.RecordVersion || proto.Unmarshal(b[1:], &pb) != nil || len(pb.GetId()) != 8 || len(pb.GetSecretSha256()) != 32 {
		return nil, fmt.Errorf("token record: %w", api.ErrRecord)
	}
	return &token{&pb}, nil
}

// record is the token as package trust checks it.
func (t *token) record() (trust.TokenRecord, error) {
	role, err := trust.ParseRole(t.pb.GetRole())
	if err != nil {
		return trust.TokenRecord{}, err
	}
	return trust.TokenRecord{
		ID: trust.TokenID(t.pb.GetId()), Hash: [32]byte(t.pb.GetSecretSha256()), Role: role,
		Expires: time.Unix(0, t.pb.GetExpires()), Uses: t.pb.GetUsesLeft(), Host: t.pb.GetHost(),
	}, nil
}

// Authority signs for those who join. A manager without one serves no joins.
type Authority struct {
	CA *trust.CA
	// Advertise is the address that tokens name, "host:port".
	Advertise string
}

// Limits of tokens.
const (
	maxTokens      = 10_000
	maxTokenUses   = 5_000
	maxTokenExpiry = 30 * 24 * time.Hour
)

// CreateToken makes a join token; its secret is shown once and kept nowhere.
// Errors are *api.Refusal.
func (m *Manager) createToken(ctx context.Context, a Authority, role string, expires time.Duration, uses uint32, host, actor string) (string, time.Time, error) {
	no := func(why, cure string) (string, time.Time, error) {
		return "", time.Time{}, api.Refuse(api.CodeField, "No token was made", why, cure)
	}
	r, err := trust.ParseRole(role)
	if err != nil || r == trust.RoleManager {
		return no("role is "+strconv.Quote(role), "Write --role agent or --role operator.")
	}
	if uses < 1 || uses > maxTokenUses {
		return no(fmt.Sprintf("uses is %d", uses), fmt.Sprintf("Write --uses 1 to %d.", maxTokenUses))
	}
	if expires <= 0 || expires > maxTokenExpiry {
		return no(fmt.Sprintf("expires is %s", expires), "Write --expires with a time up to 720h.")
	}
	if host != "" {
		if err := overlay.CheckName("host", host); err != nil {
			return no(err.Error(), "Write --host with the name it will join under.")
		}
	}
	at, port, err := net.SplitHostPort(a.Advertise)
	if err != nil {
		return no("the manager advertises no address", "Start it with an address: culvert manager run --listen ADDRESS:7443")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return no("the manager advertises port "+strconv.Quote(port), "Start it with an address: culvert manager run --listen ADDRESS:7443")
	}
	if n == trust.DefaultPort {
		n = 0
	}
	until := m.cfg.Now().Add(expires)
	t, rec, err := trust.NewToken(r, until, uses, host, a.CA.Pin(), at, uint16(n))
	if err != nil {
		return no(err.Error(), "Start the manager with an address that hosts reach: culvert manager run --listen ADDRESS:7443")
	}
	tk := &token{&culvertv1.TokenRecord{
		Id: rec.ID[:], SecretSha256: rec.Hash[:], Role: r.String(), Expires: until.UnixNano(), UsesLeft: uses, Host: host, Cause: actor + ": token create",
	}}
	over, full := m.expiredTokens()
	if full {
		return no(fmt.Sprintf("there are %d tokens, the most there may be", maxTokens), "Wait until some have expired.")
	}
	if err := m.writeTokens(ctx, tk, over); err != nil {
		return "", time.Time{}, err
	}
	return t.Reveal(), until, nil
}

// maxExpired bounds how many expired tokens one new token takes along.
const maxExpired = 50

// expiredTokens lists some tokens whose time is over: a new token takes them
// out of the store. full says that there is no room for another even so.
func (m *Manager) expiredTokens() (over []*token, full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Now().UnixNano()
	for _, t := range m.tokens {
		if t.pb.GetExpires() < now && len(over) < maxExpired {
			over = append(over, t)
		}
	}
	return over, len(m.tokens)-len(over) >= maxTokens
}

// writeTokens commits a token's record, and the end of others, under the fence
// of the present term. A token that is used up stays until it expires, so that
// whoever tries it again learns why it does not open.
func (m *Manager) writeTokens(ctx context.Context, t *token, over []*token) error {
	var f store.Fence
	if err := m.inLoop(ctx, func(*managercore.Core) { f = m.fence }); err != nil {
		return api.Refuse(api.CodeUnknown, "Nothing was confirmed", "the answer did not come in time", "")
	}
	if f == nil {
		return api.Refuse(api.CodeNotDecider, "Nothing was changed", "this manager is reading its store", "")
	}
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{api.RecordVersion}, t.pb)
	if err != nil {
		return fmt.Errorf("encode token: %w", err)
	}
	ops := []store.Op{{Key: m.tokenKey(t), Value: b}}
	for _, o := range over {
		ops = append(ops, store.Op{Key: m.tokenKey(o)})
	}
	if _, err := m.store.Commit(ctx, f, ops); err != nil {
		m.log.Warn("writing a token", "err", err)
		return api.Refuse(api.CodeUnknown, "The token was not confirmed", "the store did not take it", "")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range over {
		delete(m.tokens, o.id())
	}
	m.tokens[t.id()] = t
	return nil
}

func (m *Manager) tokenKey(t *token) string {
	return m.store.Prefix() + tokenFolder + trust.TokenID(t.pb.GetId()).String()
}

// checkToken finds the token that opens the door, and its role.
func (m *Manager) checkToken(req *culvertv1.JoinRequest) (*token, trust.Role, error) {
	m.mu.Lock()
	t := m.tokens[string(req.GetTokenId())]
	m.mu.Unlock()
	err := trust.ErrTokenUnknown
	var rec trust.TokenRecord
	if t != nil {
		if rec, err = t.record(); err == nil {
			err = rec.Check(trust.NewSecret(req.GetTokenSecret()), rec.Role, req.GetHostName(), m.cfg.Now())
		}
	}
	if err != nil {
		m.counts.add("join_refused_"+trust.TokenReason(err), 1)
		m.log.Warn("join refused", "host", req.GetHostName(), "reason", err)
		return nil, 0, tokenRefusal(err)
	}
	return t, rec.Role, nil
}

func tokenRefusal(err error) *api.Refusal {
	code := api.CodeToken
	switch {
	case errors.Is(err, trust.ErrTokenExpired):
		code = api.CodeTokenExpired
	case errors.Is(err, trust.ErrTokenUsedUp):
		code = api.CodeTokenUsed
	}
	return api.Refuse(code, "This machine did not join", err.Error(), "")
}

// join is the one call that a stranger may make.
func (m *Manager) join(ctx context.Context, a Authority, req *culvertv1.JoinRequest) (*culvertv1.JoinResponse, error) {
	if err := overlay.CheckName("host", req.GetHostName()); err != nil {
		m.counts.add("join_refused_name", 1)
		return nil, api.Refuse(api.CodeField, "This machine did not join", err.Error(), "Join under another name: culvert join TOKEN --host NAME")
	}
	if len(req.GetMachineId()) > 128 || len(req.GetCsr()) > 8192 {
		return nil, api.Refuse(api.CodeField, "This machine did not join", "its request is larger than any request is", "Use the culvert command to join.")
	}
	if err := trust.CheckRequest(req.GetCsr()); err != nil { // before anything is made for it
		m.counts.add("join_refused_request", 1)
		return nil, api.Refuse(api.CodeField, "This machine did not join", err.Error(), "Use the culvert command to join.")
	}
	m.joining.Lock() // a use is checked and taken off by one at a time
	defer m.joining.Unlock()
	t, role, err := m.checkToken(req)
	if err != nil {
		return nil, err
	}
	id := trust.Identity{Cluster: m.cfg.Cluster, Role: role, Name: req.GetHostName()}
	out := &culvertv1.JoinResponse{CaCertificate: a.CA.Cert().Raw, Cluster: m.cfg.Cluster, Managers: []string{a.Advertise}}
	switch role {
	case trust.RoleAgent:
		r, err := m.request(ctx, func(n uint64) managercore.Event {
			return managercore.Asked{ID: n, Seed: seed(), Actor: "token " + trust.TokenID(req.GetTokenId()).String(),
				AddHost: &managercore.AddHost{Name: req.GetHostName(), MachineID: req.GetMachineId()}}
		})
		if err != nil {
			return nil, err
		}
		host := r.Changes[0].Rec.(*overlay.Host)
		id.UID, out.HostUid = host.UID.String(), host.UID.String()
	default:
		u := seed()
		id.UID = u.String()
	}
	cert, err := a.CA.SignRequest(req.GetCsr(), id, m.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	// The use is durable before the certificate leaves. What was done before
	// may be done again by the same machine, so a refusal up to here costs
	// nothing.
	used := proto.CloneOf(t.pb)
	used.UsesLeft--
	if err := m.writeTokens(ctx, &token{used}, nil); err != nil {
		return nil, err
	}
	out.Certificate = cert.Raw
	m.counts.add("joined", 1)
	m.log.Info("joined", "role", role.String(), "name", req.GetHostName())
	return out, nil
}
