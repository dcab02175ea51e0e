// Package apiserver answers the operators' API. It authorises a call before its
// body is parsed, checks every document field by field, hands changes to the
// manager and renders answers from the published view; it decides nothing.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
	"culvert/internal/trust"
)

// Backend is the manager behind the API. Its methods may be called from any
// number of goroutines.
type Backend interface {
	// View is the newest published view, never nil.
	View() *managercore.View
	// Await is the next view that is newer than after, or the context's error.
	Await(ctx context.Context, after overlay.Rev) (*managercore.View, error)
	// Do admits and commits a request; ID and Seed are the backend's to fill.
	// It returns when the view holds the change. A refusal is in the reply or
	// is the error; another error means that the outcome is not known.
	Do(ctx context.Context, ask managercore.Asked) (managercore.Reply, error)
	// WaitApplied waits until every connected host that rev concerns holds it,
	// or ctx ends, and says how far each is, by name. The end of ctx is no
	// error: the hosts that are behind are told.
	WaitApplied(ctx context.Context, rev overlay.Rev) ([]HostWait, error)
	// Hosts is what is known of every host that has joined, in any order.
	Hosts() []HostFact
	// Token makes a token for joining. Arguments have been checked.
	Token(ctx context.Context, t TokenRequest) (token string, expires time.Time, err error)
	// Facts is what status says of the cluster as a whole.
	Facts() Facts
	// Look asks a host what its kernel holds, at most api.MaxLookQueries at once.
	// ok is false if it is not connected or does not answer in time.
	Look(ctx context.Context, host overlay.UID, q []api.LookQuery) (l api.Looked, ok bool)
}

// HostWait is how far one host is with a revision.
type HostWait struct {
	Host    string
	State   string        // StateExact, StateBehind, StateAway
	After   time.Duration // from the call until it was exact
	Applied overlay.Rev   // newest that it is known to hold
}

// States of a host in a HostWait.
const (
	StateExact  = "exact"
	StateBehind = "behind"
	StateAway   = "away"
)

// States that a dead host gives: its own, and that of what is bound to it.
const (
	StateDead     = "dead"
	StateHostDead = "host dead"
)

// HostFact is what the manager's memory knows of one host.
type HostFact struct {
	UID       overlay.UID
	Connected bool
	Applied   overlay.Rev   // zero: nothing heard since this manager started
	Age       time.Duration // of the evidence for Applied
	Problems  []string
	Unclaimed []string
	Repairs   uint64
	Strangers uint64
	// What its agent counted and saw, see api.Report; nil if it said nothing.
	Drops, Unread []overlay.Count
	Refused       []overlay.Refused
	RefusedMore   uint32
	Seen          []overlay.Seen
	Serves        []overlay.UID          // networks, sorted
	Gateways      []overlay.GatewayState // that it is a candidate of
}

// TokenRequest asks for a token.
type TokenRequest struct {
	Role    trust.Role // agent or operator
	Expires time.Duration
	Uses    uint32
	Host    string // empty: any
	Actor   string
}

// Facts is what status says of the cluster as a whole.
type Facts struct {
	Cluster    string
	Managers   uint32
	ManagersUp uint32
	Counters   map[string]uint64
}

// Bounds of what one call may ask for.
const (
	maxWait     = 60 * time.Second
	maxRequest  = 16 << 20 // bytes; a file of api.MaxDocuments fits
	maxExpires  = 30 * 24 * time.Hour
	maxUses     = 10_000
	defaultUses = 1
)

// Server is the API of one manager.
type Server struct {
	b       Backend
	log     *slog.Logger
	refused func(code api.Code)
	now     func() time.Time
}

// Options are what a Server needs beside its backend.
type Options struct {
	Log *slog.Logger
	// Refused counts a refusal; it may be called from several goroutines. nil:
	// nobody counts.
	Refused func(code api.Code)
}

// New makes the API of a manager.
func New(b Backend, o Options) *Server {
	s := &Server{b: b, log: o.Log, refused: o.Refused, now: time.Now}
	if s.refused == nil {
		s.refused = func(api.Code) {}
	}
	return s
}

// Mount registers the API on mux, as Connect, gRPC and JSON over HTTP. Requests
// must carry an identity in their context; see WithIdentity.
func (s *Server) Mount(mux *http.ServeMux) {
	srv := connect.NewServer(s.answer, s.authorise)
	culvertv1connect.RegisterAPIHandler(srv, s)
	connecthttp.Mount(mux, srv, connecthttp.WithReadMaxBytes(maxRequest))
}

type identityKey struct{}

// WithIdentity adds the verified identity of the caller.
func WithIdentity(ctx context.Context, id trust.Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// IdentityOf is the verified identity of the caller; ok is false if there is
// none, which means: a stranger.
func IdentityOf(ctx context.Context) (id trust.Identity, ok bool) {
	id, ok = ctx.Value(identityKey{}).(trust.Identity)
	return id, ok
}

// actor is the caller in records' causes: "operator admin".
func actor(ctx context.Context) string {
	id, _ := IdentityOf(ctx)
	if id.Name == "" {
		return id.Role.String() + " " + id.UID
	}
	return id.Role.String() + " " + id.Name
}

// authorise lets operators in, before the body of the call is read.
func (s *Server) authorise(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		call := spec.Procedure[strings.LastIndexByte(spec.Procedure, '/')+1:]
		id, ok := IdentityOf(ctx)
		switch {
		case !ok:
			return api.Refuse(api.CodeNotAllowed, "the call "+call+" was not made", "the caller has no certificate of this cluster and is not root here", "")
		case id.Role != trust.RoleOperator:
			return api.Refuse(api.CodeNotAllowed, "the call "+call+" was not made", "it wants an operator, and the caller is "+strings.TrimSpace(id.Role.String()+" "+id.Name), "")
		}
		return next(ctx, spec, stream)
	}
}

// answer encodes refusals, counts them, and logs what is none.
func (s *Server) answer(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		err := next(ctx, spec, stream)
		if err == nil {
			return nil
		}
		var ref *api.Refusal
		var ce *connect.Error
		switch {
		case errors.As(err, &ref):
			s.refused(ref.Code())
			if ref.Code() == api.CodeNotAllowed {
				s.log.Warn("call refused", "call", spec.Procedure, "caller", actor(ctx))
			}
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.As(err, &ce):
		default:
			s.log.Error("call not finished", "call", spec.Procedure, "caller", actor(ctx), "err", err)
			if rpcerr.Reads(spec.Procedure) { // else the outcome is not known, see Encode
				err = api.Refuse(api.CodeServer, "the call was not answered", "the server met an obstacle that its log describes", "")
			}
		}
		return rpcerr.Encode(err)
	}
}

// Put implements the API.
func (s *Server) Put(ctx context.Context, req *culvertv1.PutRequest) (*culvertv1.PutResponse, error) {
	mode, ok := modes[req.GetMode()]
	if !ok {
		return nil, refuseField("nothing was written", "mode", req.GetMode().String(), "create, set or apply")
	}
	list := req.GetResources()
	if len(list) == 0 || len(list) > api.MaxDocuments {
		return nil, refuseField("nothing was written", "resources", fmt.Sprintf("%d of them", len(list)), fmt.Sprintf("1 to %d", api.MaxDocuments))
	}
	docs := make([]overlay.Doc, 0, len(list))
	seen := make(map[managercore.Delete]bool, len(list)) // a comparable kind, tenant and name
	for _, r := range list {
		d, err := api.ParseResource(r)
		if err != nil {
			return nil, refuseValue(fmt.Sprintf("%s was not written", described(r)), err)
		}
		key := managercore.Delete{Kind: d.Kind, Tenant: d.Tenant, Name: d.Name}
		if seen[key] {
			return nil, refuseField(described(r)+" was not written", "metadata.name", d.Name, "each "+d.Kind.String()+" once in a request")
		}
		seen[key] = true
		docs = append(docs, d)
	}
	reply, err := s.do(ctx, managercore.Asked{Put: &managercore.Put{Mode: mode, Docs: docs}})
	if err != nil {
		return nil, err
	}
	r := s.renderer()
	out := &culvertv1.PutResponse{Revision: "0"}
	if !reply.Rev.IsZero() {
		out.Revision = reply.Rev.String()
	}
	for _, c := range reply.Changes {
		out.Changes = append(out.Changes, &culvertv1.Change{Action: c.Action, Resource: r.changed(c)})
	}
	return out, nil
}

var modes = map[culvertv1.PutMode]managercore.Mode{
	culvertv1.PutMode_PUT_MODE_CREATE: managercore.ModeCreate,
	culvertv1.PutMode_PUT_MODE_SET:    managercore.ModeSet,
	culvertv1.PutMode_PUT_MODE_APPLY:  managercore.ModeApply,
}

// do asks the backend and takes the refusal out of the reply.
func (s *Server) do(ctx context.Context, ask managercore.Asked) (managercore.Reply, error) {
	ask.Actor = actor(ctx)
	reply, err := s.b.Do(ctx, ask)
	if err == nil && reply.Refusal != nil {
		err = reply.Refusal
	}
	return reply, err
}

func described(r *culvertv1.Resource) string {
	m := api.MetadataOf(r)
	if m.GetTenant() != "" && m.GetTenant() != api.DefaultTenant {
		return fmt.Sprintf("%s %s/%s", api.KindOf(r), m.GetTenant(), m.GetName())
	}
	return fmt.Sprintf("%s %s", api.KindOf(r), m.GetName())
}

func refuseField(what, field, value, allowed string) error {
	return refuseValue(what, &overlay.FieldError{Field: field, Value: value, Allowed: allowed})
}

func refuseValue(what string, err error) error {
	if ref, ok := api.RefuseValue(what, err); ok {
		return ref
	}
	return err
}

// Delete implements the API.
func (s *Server) Delete(ctx context.Context, req *culvertv1.DeleteRequest) (*culvertv1.DeleteResponse, error) {
	const what = "nothing was deleted"
	kind, err := api.ParseKind("kind", req.GetKind())
	if err != nil {
		return nil, refuseValue(what, err)
	}
	switch kind {
	case overlay.KindHost, overlay.KindEndpoint:
		return nil, api.Refuse(api.CodeLater, what, "a "+kind.String()+" is observed and goes by itself", "see them: culvert "+kind.String()+" list")
	}
	if err := overlay.CheckName("name", req.GetName()); err != nil {
		return nil, refuseValue(what, err)
	}
	del := managercore.Delete{Kind: kind, Name: req.GetName(), WithPorts: req.GetWithPorts()}
	switch {
	case kind == overlay.KindTenant && req.GetTenant() != "":
		return nil, refuseField(what, "tenant", req.GetTenant(), "nothing for a tenant")
	case kind != overlay.KindNetwork && del.WithPorts:
		return nil, refuseField(what, "withPorts", "true", "false for a "+kind.String())
	case kind != overlay.KindTenant:
		del.Tenant = req.GetTenant()
		if del.Tenant == "" {
			del.Tenant = api.DefaultTenant
		}
		if err := overlay.CheckName("tenant", del.Tenant); err != nil {
			return nil, refuseValue(what, err)
		}
	}
	reply, err := s.do(ctx, managercore.Asked{Delete: &del})
	if err != nil {
		return nil, err
	}
	r := s.renderer()
	out := &culvertv1.DeleteResponse{Revision: "0"}
	if !reply.Rev.IsZero() {
		out.Revision = reply.Rev.String()
	}
	for _, c := range reply.Changes {
		if c.Action == "deleted" {
			out.Deleted = append(out.Deleted, r.nameOf(c.Rec))
		}
	}
	return out, nil
}

// Wait implements the API.
func (s *Server) Wait(ctx context.Context, req *culvertv1.WaitRequest) (*culvertv1.WaitResponse, error) {
	const what = "nobody was waited for"
	rev, err := api.ParseRev("revision", req.GetRevision())
	if err != nil {
		return nil, refuseValue(what, err)
	}
	if rev.IsZero() || s.b.View().At.Less(rev) {
		return nil, refuseField(what, "revision", req.GetRevision(), "one that was given out; the newest is "+s.b.View().At.String())
	}
	t := req.GetTimeoutSeconds()
	if !(t >= 0 && t <= maxWait.Seconds()) { // also refuses NaN
		return nil, refuseField(what, "timeoutSeconds", fmt.Sprint(t), fmt.Sprintf("0 to %.0f", maxWait.Seconds()))
	}
	wait, cancel := context.WithTimeout(ctx, time.Duration(t*float64(time.Second)))
	defer cancel()
	hosts, err := s.b.WaitApplied(wait, rev)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	out := &culvertv1.WaitResponse{Done: true}
	for _, h := range hosts {
		out.Done = out.Done && h.State == StateExact
		out.Hosts = append(out.Hosts, &culvertv1.HostWait{Host: h.Host, State: h.State, Seconds: h.After.Seconds(), AppliedRevision: h.Applied.String()})
	}
	return out, nil
}

// CreateToken implements the API.
func (s *Server) CreateToken(ctx context.Context, req *culvertv1.CreateTokenRequest) (*culvertv1.CreateTokenResponse, error) {
	const what = "no token was made"
	t := TokenRequest{Uses: req.GetUses(), Host: req.GetHost(), Actor: actor(ctx)}
	switch req.GetRole() {
	case "agent":
		t.Role = trust.RoleAgent
	case "operator":
		t.Role = trust.RoleOperator
	case "manager":
		return nil, refuseValue(what, &api.LaterError{Field: "role", Value: "manager", Use: "agent or operator", With: "several managers"})
	default:
		return nil, refuseField(what, "role", req.GetRole(), "agent or operator")
	}
	e := req.GetExpiresSeconds()
	if !(e > 0 && e <= maxExpires.Seconds()) {
		return nil, refuseField(what, "expiresSeconds", fmt.Sprint(e), fmt.Sprintf("above 0 and up to %.0f", maxExpires.Seconds()))
	}
	t.Expires = time.Duration(e * float64(time.Second))
	if t.Uses == 0 {
		t.Uses = defaultUses
	}
	if t.Uses > maxUses {
		return nil, refuseField(what, "uses", fmt.Sprint(t.Uses), fmt.Sprintf("1 to %d", maxUses))
	}
	if t.Host != "" {
		if err := overlay.CheckName("host", t.Host); err != nil {
			return nil, refuseValue(what, err)
		}
	}
	token, expires, err := s.b.Token(ctx, t)
	if err != nil {
		return nil, err
	}
	return &culvertv1.CreateTokenResponse{Token: token, Expires: expires.UTC().Format(time.RFC3339)}, nil
}

// Status implements the API.
func (s *Server) Status(context.Context, *culvertv1.StatusRequest) (*culvertv1.StatusResponse, error) {
	r := s.renderer()
	f := s.b.Facts()
	out := &culvertv1.StatusResponse{Cluster: f.Cluster, Revision: r.v.At.String(), Managers: f.Managers, ManagersUp: f.ManagersUp, Counters: f.Counters}
	for it := range r.v.List(overlay.KindHost, overlay.UID{}) {
		out.Hosts = append(out.Hosts, r.host(it.Rec.(*overlay.Host), it.Rev))
	}
	return out, nil
}
