package manager

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/agent"
	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/api/rpcerr"
	"culvert/internal/apiserver"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
	"culvert/internal/trust"
)

// served is a manager on a real port.
type served struct {
	t      *testing.T
	m      *Manager
	ca     *trust.CA
	addr   string
	socket string
	log    *lockedBuffer

	mu    sync.Mutex
	ahead time.Duration // of the manager's clock
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *served) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.ahead)
}

// serveManager starts a manager of cluster c on TCP and on a socket in a
// directory that every user may enter. change may alter its configuration.
func serveManager(t *testing.T, change ...func(*Config)) *served {
	t.Helper()
	ca, err := trust.NewCA("c", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{t: t, ca: ca, addr: l.Addr().String(), log: &lockedBuffer{}}
	leaf, err := ca.IssueServer("m1", nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Cluster: "c", ID: "m1", Log: slog.New(slog.NewTextHandler(s.log, nil)), Now: s.now, Authority: Authority{CA: ca, Advertise: s.addr},
	}
	for _, f := range change {
		f(&cfg)
	}
	s.m = New(newStore(t), cfg)
	dir, err := os.MkdirTemp("", "culvert-socket")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.socket = filepath.Join(dir, "manager.sock")
	local, err := apiserver.Socket(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.m.Run(ctx) })
	wg.Go(func() { _ = s.m.ServeTLS(ctx, l, ca.Anchor(s.now), trust.Fixed(leaf)) })
	wg.Go(func() { _ = s.m.ServeSocket(ctx, local) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

// counted waits until a counter has reached n: refusals in a handshake are
// counted when the connection ends.
func (s *served) counted(name string, n uint64) {
	s.t.Helper()
	s.eventually("counter "+name, func() error {
		if c := s.m.Facts().Counters; c[name] < n {
			return fmt.Errorf("counters %v, want %s at %d", c, name, n)
		}
		return nil
	})
}

func (s *served) logged(parts ...string) {
	s.t.Helper()
	s.eventually("log", func() error {
		for line := range strings.Lines(s.log.String()) {
			all := true
			for _, p := range parts {
				all = all && strings.Contains(line, p)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("no line with %q in:\n%s", parts, s.log.String())
	})
}

func (s *served) eventually(what string, f func() error) {
	s.t.Helper()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	end := time.Now().Add(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s: %v", what, err)
		}
		<-t.C
	}
}

// refused fails the test unless err is a refusal with that code and words.
func refused(t *testing.T, err error, code api.Code, words ...string) {
	t.Helper()
	no := rpcerr.Refusal(err)
	if no == nil {
		t.Errorf("got %v, want a refusal with code %s", err, code)
		return
	}
	if no.Code() != code {
		t.Errorf("refused with %s (%s), want %s", no.Code(), no.Text(), code)
	}
	for _, w := range words {
		if !strings.Contains(no.Text(), w) {
			t.Errorf("refusal says %q, want %q in it", no.Text(), w)
		}
	}
}

// rpcOver is a plain client over TLS.
func (s *served) rpcOver(c *tls.Config) *connect.Client {
	tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
	s.t.Cleanup(tr.CloseIdleConnections)
	return connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: tr}, "https://"+s.addr, connecthttp.WithCompressors()))
}

// as shows a certificate and believes this cluster's manager.
func (s *served) as(l *trust.Leaf) *tls.Config {
	return trust.ClientConfig(s.ca.Anchor(time.Now), trust.Fixed(l))
}

// stranger shows nothing.
func (s *served) stranger() *tls.Config { return trust.PinnedClientConfig(s.ca.Pin(), time.Now) }

func (s *served) operator() *trust.Leaf {
	s.t.Helper()
	l, err := s.ca.IssueOperator("admin", time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	return l
}

// operatorClient is what the command line uses, with a certificate's files.
func (s *served) operatorClient(ca *trust.CA, l *trust.Leaf) *client.Client {
	s.t.Helper()
	dir := s.t.TempDir()
	key, root := filepath.Join(dir, "operator.pem"), filepath.Join(dir, "ca.pem")
	if err := l.Save(key); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Cert().Raw}), 0o600); err != nil {
		s.t.Fatal(err)
	}
	c, err := client.New(client.Config{Cluster: ca.Cluster(), Managers: []string{s.addr}, CA: root, Cert: key, Key: key})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// token makes a join token as an operator does.
func (s *served) token(req *culvertv1.CreateTokenRequest) trust.Token {
	s.t.Helper()
	if req.GetExpiresSeconds() == 0 {
		req.ExpiresSeconds = 3600
	}
	res, err := s.operatorClient(s.ca, s.operator()).CreateToken(ctx10(s.t), req)
	if err != nil {
		s.t.Fatalf("create token: %v", err)
	}
	tok, err := trust.ParseToken(res.GetToken())
	if err != nil {
		s.t.Fatal(err)
	}
	return tok
}

// join joins as a machine of that name.
func (s *served) join(tok trust.Token, name string) (*trust.Leaf, error) {
	s.t.Helper()
	key, csr, err := trust.NewRequest()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.joinWith(tok, key, &culvertv1.JoinRequest{Csr: csr, HostName: name, MachineId: "machine of " + name})
}

func (s *served) joinWith(tok trust.Token, key trust.Key, req *culvertv1.JoinRequest) (*trust.Leaf, error) {
	req.TokenId, req.TokenSecret = tok.ID[:], tok.Secret.Bytes()
	cl := culvertv1connect.NewJoiningClient(s.rpcOver(trust.PinnedClientConfig(tok.Pin, time.Now)))
	r, err := cl.Join(ctx10(s.t), req)
	if err != nil {
		return nil, err
	}
	return trust.NewLeaf(key, r.GetCertificate(), r.GetCaCertificate(), tok.Pin)
}

// agentLeaf is the certificate of a host that has joined.
func (s *served) agentLeaf(name string) *trust.Leaf {
	s.t.Helper()
	l, err := s.join(s.token(&culvertv1.CreateTokenRequest{Role: "agent"}), name)
	if err != nil {
		s.t.Fatalf("join %s: %v", name, err)
	}
	return l
}

// dialer is what an agent uses.
func (s *served) dialer(l *trust.Leaf) *agent.Dialer {
	return agent.NewDialer([]string{s.addr}, s.ca.Anchor(time.Now), trust.Fixed(l))
}

var hello = api.Hello{Protocol: 1, Least: 1, Version: "test", BootID: "boot", VTEP: netip.MustParseAddr("192.0.2.1")}

// attach opens a stream up to its welcome.
func (s *served) attach(l *trust.Leaf, h api.Hello) (agent.Stream, *api.Welcome, error) {
	s.t.Helper()
	st, err := s.dialer(l).Attach(ctx10(s.t))
	if err != nil {
		return nil, nil, err
	}
	s.t.Cleanup(st.Close)
	sendErr := st.Send(api.Up{Hello: &h})
	d, err := st.Receive()
	if err != nil {
		return nil, nil, err
	}
	if sendErr != nil || d.Welcome == nil {
		return nil, nil, fmt.Errorf("first message %+v: %w", d, errors.Join(sendErr, errors.New("no welcome")))
	}
	return st, d.Welcome, nil
}

func (s *served) mustAttach(l *trust.Leaf) (agent.Stream, uint64) {
	s.t.Helper()
	st, w, err := s.attach(l, hello)
	if err != nil {
		s.t.Fatalf("attach: %v", err)
	}
	return st, w.Session
}

// put writes documents as an operator and returns the records.
func (s *served) put(docs ...overlay.Doc) []overlay.Record {
	s.t.Helper()
	r, err := put(s.t, s.m, docs...)
	if err != nil {
		s.t.Fatalf("put: %v", err)
	}
	var out []overlay.Record
	for _, c := range r.Changes {
		out = append(out, c.Rec)
	}
	return out
}

func portDoc(name, network string) overlay.Doc {
	return overlay.Doc{Kind: overlay.KindPort, Tenant: managercore.DefaultTenant, Name: name, Port: overlay.PortSpec{Network: network}}
}

// endpoints lists the MACs that are bound in a network, with their hosts.
func (s *served) endpoints(network overlay.UID) map[overlay.MAC]overlay.UID {
	out := map[overlay.MAC]overlay.UID{}
	l := s.m.View().Net(network)
	if l == nil {
		return out
	}
	for it := range l.After(overlay.Rev{}) {
		if e, ok := it.Rec.(*overlay.Endpoint); ok && !it.Gone {
			out[e.MAC] = e.Host
		}
	}
	return out
}
