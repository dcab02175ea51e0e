package manager

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/apiserver"
	"culvert/internal/trust"
)

// Bounds of connections. A peer that is silent for pingAfter is asked for a
// sign of life; one that does not answer is gone.
const (
	headerTimeout = 5 * time.Second
	pingAfter     = 10 * time.Second
	pingTimeout   = 30 * time.Second
	maxUp         = 4 << 20 // bytes of one message of an agent
)

// joining serves the one call of strangers.
type joining struct{ m *Manager }

// Join signs for a machine that holds a token.
func (j joining) Join(ctx context.Context, req *culvertv1.JoinRequest) (*culvertv1.JoinResponse, error) {
	if j.m.authority.CA == nil {
		return nil, rpcerr.Encode(api.Refuse(api.CodeToken, "This machine did not join", "the manager asked holds no authority", ""))
	}
	out, err := j.m.join(ctx, j.m.authority, req)
	return out, rpcerr.Encode(err)
}

// Handler is all that the manager serves, without authentication: requests
// must carry an identity (apiserver.WithIdentity), or have none.
func (m *Manager) Handler() http.Handler {
	mux := http.NewServeMux()
	apiserver.New(m, apiserver.Options{Log: m.log, Refused: func(c api.Code) { m.counts.add("refused_"+string(c), 1) }}).Mount(mux)
	srv := connect.NewServer()
	culvertv1connect.RegisterAgentsHandler(srv, agents{m})
	culvertv1connect.RegisterJoiningHandler(srv, joining{m})
	connecthttp.Mount(mux, srv, connecthttp.WithCompressors(), connecthttp.WithReadMaxBytes(maxUp))
	return mux
}

// ServeTLS serves agents, operators and strangers who join, until ctx ends.
// Who shows a certificate that this cluster did not make is refused in the
// handshake, and counted by reason.
func (m *Manager) ServeTLS(ctx context.Context, l net.Listener, anchor *trust.Anchor, leaf trust.LeafFunc) error {
	cfg := trust.ServerConfig(trust.ServerOptions{
		Anchor: anchor, Leaf: leaf, Strangers: true,
		OnRefused: func(reason, remote string) {
			m.counts.add("tls_refused_"+reason, 1)
			m.log.Warn("connection refused", "reason", reason, "remote", remote)
		},
	})
	return m.serve(ctx, tls.NewListener(l, cfg), apiserver.Identify(anchor, m.Handler()))
}

// ServeSocket serves operators on this machine: whoever may open the socket
// and is root, or the daemon's own user.
func (m *Manager) ServeSocket(ctx context.Context, l net.Listener) error {
	return m.serve(ctx, l, m.Handler())
}

func (m *Manager) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, BaseContext: func(net.Listener) context.Context { return ctx }, ConnContext: apiserver.ConnContext,
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug), // refusals are logged with their reason where they are made
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // its error is of connections cut, which is meant
	defer stop()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
