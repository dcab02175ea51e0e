// Package client connects to a manager's API over mutual TLS or a UNIX socket,
// and to the agent of this host. Every error that its calls return is an
// *api.Refusal with the four parts that a person needs, or the context's own.
package client

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/trust"
)

// Bounds of a connection attempt, and of how long a peer may be silent.
const (
	dialTimeout = 3 * time.Second
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	maxMessage  = 64 << 20 // a list of 100,000 endpoints
)

// Client is a connection to one cluster. It may be used from any number of
// goroutines.
type Client struct {
	culvertv1connect.APIClient
	transport *http.Transport
	where     string
}

// New prepares a client; it connects with the first call. Errors are
// *api.Refusal.
func New(cfg Config) (*Client, error) {
	if cfg.Socket != "" {
		t := socketTransport(cfg.Socket)
		where := endpoint{what: "manager's socket " + cfg.Socket, code: api.CodeUnreachable}
		return &Client{APIClient: culvertv1connect.NewAPIClient(rpc(t, "http://manager", where)), transport: t, where: cfg.Socket}, nil
	}
	tc, err := cfg.TLS(time.Now)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		TLSClientConfig:   tc,
		ForceAttemptHTTP2: true, // a tls.Config of one's own switches it off otherwise
		DialContext:       dialAny(cfg.Managers),
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	where := endpoint{what: "manager at " + strings.Join(cfg.Managers, ", "), code: api.CodeUnreachable,
		probe: func() error { return probe(t.DialContext, tc) }}
	return &Client{APIClient: culvertv1connect.NewAPIClient(rpc(t, "https://manager", where)), transport: t, where: strings.Join(cfg.Managers, ", ")}, nil
}

// Where is the address or path that the client asks, for people.
func (c *Client) Where() string { return c.where }

// Close ends idle connections. Calls under way end by their context.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Local is a connection to the agent of this host.
type Local struct {
	culvertv1connect.LocalClient
	transport *http.Transport
}

// NewLocal prepares a client of the agent that listens on a UNIX socket.
func NewLocal(socket string) *Local {
	t := socketTransport(socket)
	return &Local{culvertv1connect.NewLocalClient(rpc(t, "http://agent", endpoint{what: "agent's socket " + socket, code: api.CodeNoAgent})), t}
}

// Close ends idle connections.
func (l *Local) Close() { l.transport.CloseIdleConnections() }

// TLS is the client's side of the mutual TLS that the configuration describes:
// it takes nobody but a manager of the cluster for the server, whatever address
// it was reached by. now is the clock that certificates are held against.
// Errors are *api.Refusal.
func (cfg Config) TLS(now func() time.Time) (*tls.Config, error) {
	bad := func(path, why string) (*tls.Config, error) {
		return nil, api.Refuse(api.CodeFile, "file "+path+" was not used", why, "use the configuration that culvert init wrote on the first machine")
	}
	data, err := os.ReadFile(cfg.CA)
	if err != nil {
		return bad(cfg.CA, cause(err))
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return bad(cfg.CA, "it holds no certificate in PEM form")
	}
	anchor, err := trust.NewAnchor(block.Bytes, now)
	if err != nil {
		return bad(cfg.CA, err.Error())
	}
	for _, path := range []string{cfg.Cert, cfg.Key} {
		if _, err := os.Stat(path); err != nil {
			return bad(path, cause(err))
		}
	}
	cert, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return bad(cfg.Key, cause(err))
	}
	tc := trust.ClientConfig(anchor, nil)
	tc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	return tc, nil
}

func socketTransport(path string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", path)
	}}
}

// dialAny tries the addresses in order. The error has all of them.
func dialAny(addrs []string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		var errs []error
		for _, a := range addrs {
			c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", a)
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
}

// endpoint is whom we talk to, for errors.
type endpoint struct {
	what string
	code api.Code // if it is not reachable
	// reads is set for a call that changes nothing.
	reads bool
	// probe asks once more why we are not let in; nil where there is no TLS.
	probe func() error
}

// probe connects and waits for the server's first word. In TLS 1.3 a client
// learns only at the first read, after its own handshake went well, that the
// server refuses it, and the HTTP/2 client may report that as a connection that
// "could not be established". Only failed calls pay for this.
func probe(dial func(context.Context, string, string) (net.Conn, error), tc *tls.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout) // the caller's own may be over
	defer cancel()
	raw, err := dial(ctx, "tcp", "")
	if err != nil {
		return err
	}
	c := tls.Client(raw, tc)
	defer c.Close()
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetReadDeadline(deadline); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1)) // HTTP/2 servers speak first (RFC 9113 section 3.4)
	return err
}

func rpc(t *http.Transport, base string, where endpoint) *connect.Client {
	tr := connecthttp.NewTransport(&http.Client{Transport: t}, base,
		connecthttp.WithCompressors(), connecthttp.WithReadMaxBytes(maxMessage))
	return connect.NewClient(tr, where.intercept)
}

// intercept turns the errors of every call and stream into refusals.
func (e endpoint) intercept(next connect.ClientFunc) connect.ClientFunc {
	return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
		to := e
		to.reads = rpcerr.Reads(spec.Procedure)
		s, err := next(ctx, spec)
		if err != nil {
			return nil, to.explain(err)
		}
		return &stream{s, to}, nil
	}
}

type stream struct {
	connect.ClientStream
	to endpoint
}

func (s *stream) SendHeaders() error    { return s.to.explain(s.ClientStream.SendHeaders()) }
func (s *stream) Send(msg any) error    { return s.to.explain(s.ClientStream.Send(msg)) }
func (s *stream) Receive(msg any) error { return s.to.explain(s.ClientStream.Receive(msg)) }

// explain makes a refusal of an error. io.EOF and the end of the caller's own
// context pass as they are.
func (e endpoint) explain(err error) error {
	if err == nil || errors.Is(err, io.EOF) && !isRemote(err) {
		return err
	}
	if ref := rpcerr.Refusal(err); ref != nil {
		return ref
	}
	if ref := e.refusedBy(err); ref != nil {
		return ref
	}
	var (
		op *net.OpError
		ce *connect.Error
	)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, fs.ErrPermission):
		return api.Refuse(api.CodeNotAllowed, "the "+e.what+" did not let us in", "the file's mode does not allow this user", "type the command as root: sudo culvert ...")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist), errors.As(err, &op) && op.Op == "dial":
		return api.Refuse(e.code, "nobody answers", "the "+e.what+" was not reached ("+dialCause(err)+")", "")
	case errors.Is(err, context.DeadlineExceeded):
		return api.Refuse(api.CodeUnanswered, "the "+e.what+" did not answer in time", "it was reached, and its answer did not come", "")
	case errors.As(err, &ce) && ce.IsRemote() && (ce.Code() == connect.CodeCanceled || ce.Code() == connect.CodeDeadlineExceeded):
		return api.Refuse(api.CodeUnanswered, "the "+e.what+" ended the call early", "it is being stopped, or its own time was over", "")
	case errors.As(err, &ce) && ce.Code() == connect.CodeUnimplemented:
		return api.Refuse(api.CodeVersion, "the "+e.what+" did not do it", "its release does not know this call", "")
	case errors.As(err, &ce) && ce.IsRemote():
		return api.Refuse(api.CodeServer, "the "+e.what+" did not do it", ce.Error(), "")
	}
	if e.probe != nil {
		if ref := e.refusedBy(e.probe()); ref != nil {
			return ref
		}
	}
	if e.reads { // nothing was asked to change, so there is no outcome to be in doubt about
		return api.Refuse(e.code, "nobody answers", "the connection to the "+e.what+" broke ("+plain(err)+")", "")
	}
	return api.Refuse(api.CodeUnknown, "the call to the "+e.what+" was not finished", "the connection broke ("+plain(err)+")", "")
}

// refusedBy is the refusal if one side of a TLS connection did not believe the
// other; nil if err says nothing of that kind.
func (e endpoint) refusedBy(err error) *api.Refusal {
	var peer *trust.PeerError
	var op *net.OpError
	switch {
	case err == nil:
	case errors.As(err, &peer):
		return api.Refuse(api.CodeOtherCluster, "nothing was asked of the "+e.what, "its "+peer.Error(), "")
	case errors.As(err, &op) && op.Op == "remote error", strings.Contains(err.Error(), "remote error: tls:"):
		return api.Refuse(api.CodeCertificate, "the "+e.what+" did not let us in", "it does not accept our certificate ("+alert(err)+")", "")
	}
	return nil
}

func isRemote(err error) bool {
	var ce *connect.Error
	return errors.As(err, &ce)
}

func alert(err error) string {
	_, after, ok := strings.Cut(err.Error(), "remote error: tls: ")
	if !ok {
		return plain(err)
	}
	return after
}

// dialCause is the shortest true word on why a connection did not come about,
// for each address that was tried.
func dialCause(err error) string {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		var parts []string
		for _, e := range joined.Unwrap() {
			parts = append(parts, dialCause(e))
		}
		return strings.Join(parts, "; ")
	}
	var op *net.OpError
	word := plain(err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		word = "connection refused"
	case errors.Is(err, fs.ErrNotExist):
		word = "there is no such socket"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		word = "no route"
	case errors.As(err, &op) && op.Timeout():
		word = "no answer"
	}
	if errors.As(err, &op) && op.Addr != nil && op.Addr.Network() != "unix" {
		return fmt.Sprintf("%s: %s", op.Addr, word)
	}
	return word
}

// plain is the message without the protocol's code words, which say less.
func plain(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) && ce.Message() != "" {
		return ce.Message()
	}
	return err.Error()
}
