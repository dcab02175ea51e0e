package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pki is a cluster's authority and its usual certificates, made at t0.
type pki struct {
	ca                       *CA
	manager, agent, operator *Leaf
}

func newPKI(cluster string, made time.Time) *pki {
	ca := must(NewCA(cluster, made))
	return &pki{
		ca:       ca,
		manager:  must(ca.IssueServer("m1", []string{"m1.example"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, made)),
		agent:    must(ca.IssueAgent("0123", "h1", made)),
		operator: must(ca.IssueOperator("alice", made)),
	}
}

type refusal struct{ reason, remote string }

// result is how one connection went, at both ends.
type result struct {
	server, client error // of handshake and one byte each way
	id             Identity
	idErr          error
	refused        []refusal
	local          string // the client's address
}

// connect lets one client meet one server over TCP.
func connect(t *testing.T, srv ServerOptions, client *tls.Config) result {
	t.Helper()
	var r result
	refused := make(chan refusal, 9)
	srv.OnRefused = func(reason, remote string) { refused <- refusal{reason, remote} }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			r.server = err
			return
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		c := tls.Server(raw, ServerConfig(srv))
		if r.server = c.Handshake(); r.server != nil {
			io.Copy(io.Discard, raw) // let the client read the alert before a reset can overtake it
			return
		}
		cs := c.ConnectionState()
		r.id, r.idErr = srv.Anchor.PeerIdentity(&cs)
		_, r.server = io.Copy(c, io.LimitReader(c, 1))
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.local = raw.LocalAddr().String()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, client)
	if r.client = c.Handshake(); r.client == nil {
		if _, r.client = c.Write([]byte{1}); r.client == nil {
			_, r.client = io.ReadFull(c, make([]byte, 1))
		}
	}
	raw.Close()
	<-done
	// The count may come from a goroutine of its own, when the handshake is over.
	if r.server != nil {
		select {
		case one := <-refused:
			r.refused = append(r.refused, one)
		case <-time.After(5 * time.Second):
			t.Error("a refusal was not counted")
		}
	}
	for len(refused) > 0 {
		r.refused = append(r.refused, <-refused)
	}
	return r
}

func TestAccepted(t *testing.T) {
	p := newPKI("c1", t0)
	for _, c := range []struct {
		leaf *Leaf
		want Identity
	}{
		{p.agent, Identity{Cluster: "c1", Role: RoleAgent, UID: "0123", Name: "h1"}},
		{p.manager, Identity{Cluster: "c1", Role: RoleManager, UID: "m1"}},
		{p.operator, Identity{Cluster: "c1", Role: RoleOperator, UID: must(p.operator.Identity()).UID, Name: "alice"}},
	} {
		for _, strangers := range []bool{false, true} {
			srv := ServerOptions{Anchor: p.ca.Anchor(at(t0)), Leaf: Fixed(p.manager), Strangers: strangers}
			r := connect(t, srv, ClientConfig(must(c.leaf.Anchor(at(t0))), Fixed(c.leaf)))
			c.want.Serial = c.leaf.Cert.SerialNumber.Text(16)
			if r.server != nil || r.client != nil || r.idErr != nil || r.id != c.want || len(r.refused) != 0 {
				t.Errorf("%v, strangers %v: server %v, client %v, identity %+v %v, refused %v", c.want.Role, strangers, r.server, r.client, r.id, r.idErr, r.refused)
			}
		}
	}
}

// craft makes a certificate that Issue* would not.
func (p *pki) craft(change func(*x509.Certificate), signer *CA) *Leaf {
	key := must(NewKey())
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7),
		NotBefore:    t0.Add(-time.Hour),
		NotAfter:     t0.Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:         []*url.URL{{Scheme: "culvert", Host: "c1", Path: "/agent/0123"}},
	}
	change(c)
	return &Leaf{Cert: must(sign(c, signer.cert, key.Public(), signer.key)), CA: signer.cert, Key: key}
}

func uris(list ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.URIs = nil
		for _, s := range list {
			c.URIs = append(c.URIs, must(url.Parse(s)))
		}
	}
}

func TestServerRefuses(t *testing.T) {
	p, other, twin := newPKI("c1", t0), newPKI("c2", t0), newPKI("c1", t0)
	old := newPKI("c1", t0.Add(-400*24*time.Hour))
	old.ca = p.ca
	expired := must(p.ca.IssueAgent("0123", "h1", t0.Add(-31*24*time.Hour)))
	early := must(p.ca.IssueAgent("0123", "h1", t0.Add(2*time.Hour)))
	// A leaf that signs: the CA allows none below it.
	underAgent := &CA{cluster: "c1", cert: p.agent.Cert, key: p.agent.Key}

	client := func(l *Leaf) *tls.Config { return ClientConfig(p.ca.Anchor(at(t0)), Fixed(l)) }
	stranger := PinnedClientConfig(p.ca.Pin(), at(t0))
	tls12 := client(p.agent)
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, c := range []struct {
		name   string
		client *tls.Config
		own    *Leaf
		want   error // nil: not of ours
		reason string
		remote string // in RemoteRefusal's text
	}{
		{"no certificate", stranger, nil, ErrNoCertificate, "no-certificate", "this machine has none"},
		{"other cluster", client(other.agent), other.agent, ErrOtherCluster, "other-cluster", "does not take"},
		{"another authority of the same name", client(twin.agent), twin.agent, ErrNotOurs, "not-ours", "does not take"},
		{"expired", client(expired), expired, ErrExpired, "expired", "expired at 2026-02"},
		{"not yet valid", client(early), early, ErrNotYetValid, "not-yet-valid", "clock"},
		{"the authority's own", client(&Leaf{Cert: p.ca.cert, CA: p.ca.cert, Key: p.ca.key}), p.manager, ErrNotOurs, "not-ours", "does not take"},
		{"signed by an agent", client(p.craft(uris("culvert://c1/operator/1"), underAgent)), p.agent, ErrNotOurs, "not-ours", "does not take"},
		{"server's only", client(p.craft(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, p.ca)), p.agent, ErrWrongRole, "wrong-role", "does not take"},
		{"other cluster in the name", client(p.craft(uris("culvert://c2/agent/1"), p.ca)), p.agent, ErrOtherCluster, "other-cluster", "does not take"},
		{"no identity", client(p.craft(uris(), p.ca)), p.agent, ErrNotOurs, "not-ours", "does not take"},
		{"two identities", client(p.craft(uris("culvert://c1/agent/1", "culvert://c1/agent/2"), p.ca)), p.agent, ErrNotOurs, "not-ours", "does not take"},
		{"unknown role", client(p.craft(uris("culvert://c1/root/1"), p.ca)), p.agent, ErrNotOurs, "not-ours", "does not take"},
		{"query in the name", client(p.craft(uris("culvert://c1/agent/1?x=y"), p.ca)), p.agent, ErrNotOurs, "not-ours", "does not take"},
		{"other scheme", client(p.craft(uris("spiffe://c1/agent/1"), p.ca)), p.agent, ErrNotOurs, "not-ours", "does not take"},
		{"long path", client(p.craft(uris("culvert://c1/agent/1/2"), p.ca)), p.agent, ErrNotOurs, "not-ours", "does not take"},
		{"TLS 1.2", tls12, p.agent, nil, ReasonOldTLS, "TLS 1.3"},
	} {
		for _, strangers := range []bool{false, true} {
			if strangers && c.want == ErrNoCertificate {
				continue // TestStrangers
			}
			t.Run(c.name, func(t *testing.T) {
				srv := ServerOptions{Anchor: p.ca.Anchor(at(t0)), Leaf: Fixed(p.manager), Strangers: strangers}
				r := connect(t, srv, c.client)
				if r.server == nil || c.want != nil && !errors.Is(r.server, c.want) {
					t.Errorf("server says %v, want %v", r.server, c.want)
				}
				if len(r.refused) != 1 || r.refused[0] != (refusal{c.reason, r.local}) {
					t.Errorf("counted %v, want once %s of %s", r.refused, c.reason, r.local)
				}
				if r.client == nil {
					t.Fatal("the client noticed nothing")
				}
				why, ok := RemoteRefusal(r.client, c.own, t0)
				if !ok || !errors.Is(why, ErrRefused) || !strings.Contains(why.Error(), c.remote) {
					t.Errorf("client says %v (%v), want %q", why, r.client, c.remote)
				}
			})
		}
	}
}

// One who joins gets in without a certificate, and is nobody there.
func TestStrangers(t *testing.T) {
	p := newPKI("c1", t0)
	srv := ServerOptions{Anchor: p.ca.Anchor(at(t0)), Leaf: Fixed(p.manager), Strangers: true}
	r := connect(t, srv, PinnedClientConfig(p.ca.Pin(), at(t0)))
	if r.server != nil || r.client != nil || len(r.refused) != 0 {
		t.Fatalf("server %v, client %v, refused %v", r.server, r.client, r.refused)
	}
	if !errors.Is(r.idErr, ErrNoCertificate) || r.id != (Identity{}) {
		t.Fatalf("identity %+v, %v", r.id, r.idErr)
	}
	if _, err := p.ca.Anchor(at(t0)).PeerIdentity(nil); !errors.Is(err, ErrNoCertificate) {
		t.Fatalf("a connection without TLS: %v", err)
	}
}

func TestClientRefuses(t *testing.T) {
	p, other, twin := newPKI("c1", t0), newPKI("c2", t0), newPKI("c1", t0)
	expired := must(p.ca.IssueServer("m1", nil, nil, t0.Add(-31*24*time.Hour)))
	// An impostor has the true CA's certificate (it is public), and not its key.
	impostor := &Leaf{Cert: twin.manager.Cert, CA: p.ca.cert, Key: twin.manager.Key}
	agentServes := p.craft(func(*x509.Certificate) {}, p.ca)
	for _, c := range []struct {
		name         string
		server       *Leaf
		want, pinned error
	}{
		{"other cluster", other.manager, ErrOtherCluster, ErrWrongPin},
		{"another authority of the same name", twin.manager, ErrNotOurs, ErrWrongPin},
		{"impostor with the true authority in the chain", impostor, ErrNotOurs, ErrNotOurs},
		{"expired", expired, ErrExpired, ErrExpired},
		{"an agent", p.agent, ErrWrongRole, ErrWrongRole},
		{"an agent with a server's usage", agentServes, ErrWrongRole, ErrWrongRole},
	} {
		for _, pinned := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				cfg, want := ClientConfig(p.ca.Anchor(at(t0)), Fixed(p.agent)), c.want
				if pinned {
					cfg, want = PinnedClientConfig(p.ca.Pin(), at(t0)), c.pinned
				}
				r := connect(t, ServerOptions{Anchor: p.ca.Anchor(at(t0)), Leaf: Fixed(c.server), Strangers: true}, cfg)
				if !errors.Is(r.client, want) {
					t.Errorf("pinned %v: client says %v, want %v", pinned, r.client, want)
				}
				if r.server == nil || len(r.refused) != 1 || r.refused[0].reason != ReasonBrokenOff {
					t.Errorf("pinned %v: server %v, counted %v", pinned, r.server, r.refused)
				}
			})
		}
	}
	// A chain without the CA cannot be checked by its pin.
	bare := ServerOptions{Anchor: p.ca.Anchor(at(t0)), Strangers: true, Leaf: Fixed(&Leaf{Cert: p.manager.Cert, CA: p.manager.Cert, Key: p.manager.Key})}
	if r := connect(t, bare, PinnedClientConfig(p.ca.Pin(), at(t0))); !errors.Is(r.client, ErrWrongPin) {
		t.Errorf("chain without the authority: %v", r.client)
	}
}

// An open connection's certificate is judged by the clock of the question.
func TestExpiresWhileOpen(t *testing.T) {
	p := newPKI("c1", t0)
	now := t0
	a := p.ca.Anchor(func() time.Time { return now })
	cs := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{p.agent.Cert}}
	if _, err := a.PeerIdentity(cs); err != nil {
		t.Fatal(err)
	}
	now = t0.Add(DefaultLeafLife)
	if _, err := a.PeerIdentity(cs); err != nil {
		t.Fatalf("in its last second: %v", err)
	}
	now = now.Add(time.Second)
	if _, err := a.PeerIdentity(cs); !errors.Is(err, ErrExpired) || !strings.Contains(err.Error(), "2026-03-31T12:00:00Z") {
		t.Fatalf("after it: %v", err)
	}
	now = t0.Add(11 * 365 * 24 * time.Hour)
	late := p.craft(func(c *x509.Certificate) { c.NotAfter = now.Add(time.Hour) }, p.ca)
	cs.PeerCertificates[0] = late.Cert
	if _, err := a.PeerIdentity(cs); !errors.Is(err, ErrExpired) || !strings.Contains(err.Error(), "authority") {
		t.Fatalf("when the authority has expired: %v", err)
	}
}

// Renewed certificates are shown from the next connection on, at both ends.
func TestRenewal(t *testing.T) {
	p := newPKI("c1", t0)
	server, client := p.manager, p.agent
	srv := ServerOptions{Anchor: p.ca.Anchor(at(t0)), Leaf: func() (*Leaf, error) { return server, nil }}
	cfg := ClientConfig(p.ca.Anchor(at(t0)), func() (*Leaf, error) { return client, nil })
	verify, shown := cfg.VerifyConnection, ""
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		shown = cs.PeerCertificates[0].SerialNumber.Text(16)
		return verify(cs)
	}
	for range 2 {
		r := connect(t, srv, cfg)
		if r.client != nil || r.id.Serial != client.Cert.SerialNumber.Text(16) || shown != server.Cert.SerialNumber.Text(16) {
			t.Fatalf("client %v, shows %s, sees %s", r.client, r.id.Serial, shown)
		}
		server = must(p.ca.IssueServer("m1", nil, nil, t0))
		client = must(p.ca.IssueAgent("0123", "h1", t0))
	}
	gone := errors.New("no certificate at hand")
	if r := connect(t, srv, ClientConfig(p.ca.Anchor(at(t0)), func() (*Leaf, error) { return nil, gone })); !errors.Is(r.client, gone) {
		t.Fatalf("client without its leaf: %v", r.client)
	}
}

func TestConfigs(t *testing.T) {
	p := newPKI("c1", t0)
	for name, c := range map[string]*tls.Config{
		"server": ServerConfig(ServerOptions{Anchor: p.ca.Anchor(at(t0)), Leaf: Fixed(p.manager)}),
		"client": ClientConfig(p.ca.Anchor(at(t0)), Fixed(p.agent)),
		"pinned": PinnedClientConfig(p.ca.Pin(), at(t0)),
	} {
		if c.MinVersion != tls.VersionTLS13 || !c.SessionTicketsDisabled || len(c.NextProtos) != 1 || c.NextProtos[0] != "h2" {
			t.Errorf("%s: %x, tickets off %v, %v", name, c.MinVersion, c.SessionTicketsDisabled, c.NextProtos)
		}
	}
	if _, ok := RemoteRefusal(io.EOF, nil, t0); ok {
		t.Error("an end of file is called a refusal")
	}
	if Reason(io.EOF) != "" || Reason(nil) != "" {
		t.Error("an end of file has a reason")
	}
}
