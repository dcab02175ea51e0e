package manager

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/trust"
)

// A stranger may knock at every door and join through one: with a token.
func TestStrangerIsRefusedEverywhere(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	rpc := s.rpcOver(s.stranger())
	_, err := culvertv1connect.NewAPIClient(rpc).Status(ctx10(t), &culvertv1.StatusRequest{})
	refused(t, err, api.CodeNotAllowed, "no certificate")
	s.counted("refused_"+string(api.CodeNotAllowed), 1)
	s.logged("call refused", "Status")
	_, err = culvertv1connect.NewAPIClient(rpc).CreateToken(ctx10(t), &culvertv1.CreateTokenRequest{Role: "agent", ExpiresSeconds: 60})
	refused(t, err, api.CodeNotAllowed)

	agents := culvertv1connect.NewAgentsClient(rpc)
	_, err = agents.Resolve(ctx10(t), &culvertv1.ResolveRequest{Tenant: "default", Port: "vm1"})
	refused(t, err, api.CodeNotAllowed)
	refused(t, openRaw(t, agents, api.Up{Hello: &hello}), api.CodeNotAllowed, "agents")
	s.counted("streams_refused_"+string(api.CodeNotAllowed), 2)
	s.logged("stream refused", "code="+string(api.CodeNotAllowed))
}

// openRaw opens a stream, says something and returns how it ends.
func openRaw(t *testing.T, agents culvertv1connect.AgentsClient, say ...api.Up) error {
	t.Helper()
	st, err := agents.Attach(ctx10(t))
	if err != nil {
		return err
	}
	defer st.Close()
	for _, u := range say {
		_ = st.Send(api.UpPB(u)) // the reason comes with Receive
	}
	for {
		if _, err := st.Receive(); err != nil {
			return err
		}
	}
}

// Certificates that this cluster's authority did not make, or made for another
// time, end in the handshake; each side says why.
func TestForeignCertificatesAreRefused(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	now := time.Now()
	authority := func(cluster string) *trust.CA {
		ca, err := trust.NewCA(cluster, now)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	leaf := func(l *trust.Leaf, err error) *trust.Leaf {
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	const uid = "000102030405060708090a0b0c0d0e0f"
	other, forged := authority("d"), authority("c")
	for _, c := range []struct {
		name    string
		agent   *trust.Leaf
		counter string
	}{
		{"of another cluster", leaf(other.IssueAgent(uid, "h1", now)), "tls_refused_other-cluster"},
		{"of a forged authority", leaf(forged.IssueAgent(uid, "h1", now)), "tls_refused_not-ours"},
		{"expired", leaf(s.ca.IssueAgent(uid, "h1", now.Add(-20*365*24*time.Hour))), "tls_refused_expired"},
		{"of the future", leaf(s.ca.IssueAgent(uid, "h1", now.Add(365*24*time.Hour))), "tls_refused_not-yet-valid"},
	} {
		before := s.m.Facts().Counters[c.counter]
		_, _, err := s.attach(c.agent, hello)
		refused(t, err, api.CodeCertificate)
		s.counted(c.counter, before+1)
		s.logged("connection refused", "reason="+strings.TrimPrefix(c.counter, "tls_refused_"), "remote=127.0.0.1")
	}

	// On the operators' API the same, with the command line's own client.
	_, err := s.operatorClient(s.ca, leaf(other.IssueOperator("admin", now))).Status(ctx10(t), &culvertv1.StatusRequest{})
	refused(t, err, api.CodeCertificate)
	s.counted("tls_refused_other-cluster", 2)
	// And a client of the other cluster refuses this manager, before it says a word.
	_, err = s.operatorClient(other, leaf(other.IssueOperator("admin", now))).Status(ctx10(t), &culvertv1.StatusRequest{})
	refused(t, err, api.CodeOtherCluster)
	s.counted("tls_refused_broken-off", 1)
	// A server's certificate opens neither door of clients.
	_, _, err = s.attach(leaf(s.ca.IssueServer("m2", nil, nil, now)), hello)
	if err == nil {
		t.Error("a manager's server certificate opened a stream")
	}
}

// Each role has its door.
func TestRolesKeepToTheirDoors(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	h1 := s.agentLeaf("h1")
	_, err := s.operatorClient(s.ca, h1).Status(ctx10(t), &culvertv1.StatusRequest{})
	refused(t, err, api.CodeNotAllowed, "operator", "h1")
	_, err = s.operatorClient(s.ca, h1).Put(ctx10(t), &culvertv1.PutRequest{})
	refused(t, err, api.CodeNotAllowed)
	s.counted("refused_"+string(api.CodeNotAllowed), 2)
	s.logged("call refused", "caller=\"agent h1\"")

	_, _, err = s.attach(s.operator(), hello)
	refused(t, err, api.CodeNotAllowed, "agents")
	s.counted("streams_refused_"+string(api.CodeNotAllowed), 1)
	s.logged("stream refused", "role=operator", "name=admin")
	_, err = culvertv1connect.NewAgentsClient(s.rpcOver(s.as(s.operator()))).Resolve(ctx10(t), &culvertv1.ResolveRequest{Tenant: "default", Port: "x"})
	refused(t, err, api.CodeNotAllowed)

	// A host that this cluster does not know, with a certificate that it made.
	ghost, err := s.ca.IssueAgent("000102030405060708090a0b0c0d0e0f", "ghost", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = s.attach(ghost, hello)
	refused(t, err, api.CodeNotFound, "not known to this cluster")
	s.counted("streams_refused_"+string(api.CodeNotFound), 1)
	// A release that speaks another protocol.
	late := hello
	late.Protocol, late.Least = 9, 8
	_, _, err = s.attach(h1, late)
	refused(t, err, api.CodeVersion, "8 to 9")
	s.counted("streams_refused_"+string(api.CodeVersion), 1)
}

// A token opens once, for its host, in its time, with its secret.
func TestTokensAreChecked(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	good := s.token(&culvertv1.CreateTokenRequest{Role: "agent"})

	wrong := good
	wrong.Secret = trust.NewSecret(make([]byte, 16))
	_, err := s.join(wrong, "h1")
	refused(t, err, api.CodeToken)
	s.counted("join_refused_token-secret", 1)
	unknown := good
	unknown.ID = trust.TokenID{1}
	_, err = s.join(unknown, "h1")
	refused(t, err, api.CodeToken)
	s.counted("join_refused_token-unknown", 1)
	_, err = s.join(good, "Not A Name")
	refused(t, err, api.CodeField)
	s.counted("join_refused_name", 1)

	bound := s.token(&culvertv1.CreateTokenRequest{Role: "agent", Host: "h2"})
	_, err = s.join(bound, "h3")
	refused(t, err, api.CodeToken, "h2", "h3")
	s.counted("join_refused_token-host", 1)
	s.logged("join refused", "host=h3")
	if _, err := s.join(bound, "h2"); err != nil {
		t.Errorf("the host that the token is for: %v", err)
	}

	// A request that cannot be signed costs no use.
	key, err := trust.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.joinWith(good, key, &culvertv1.JoinRequest{Csr: []byte("no request"), HostName: "h1"})
	refused(t, err, api.CodeField)
	s.counted("join_refused_request", 1)

	// Twenty at once with a token for one: one.
	var wg sync.WaitGroup
	errs := make([]error, 20)
	for i := range errs {
		wg.Go(func() { _, errs[i] = s.join(good, "h1") })
	}
	wg.Wait()
	in := 0
	for _, err := range errs {
		if err == nil {
			in++
			continue
		}
		refused(t, err, api.CodeTokenUsed)
	}
	if in != 1 {
		t.Errorf("%d machines joined with a token for one", in)
	}
	s.counted("join_refused_token-used-up", 19)
	s.logged("join refused", "used up")

	// Another machine under a name that is taken.
	two := s.token(&culvertv1.CreateTokenRequest{Role: "agent", Uses: 2})
	key, csr, err := trust.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.joinWith(two, key, &culvertv1.JoinRequest{Csr: csr, HostName: "h1", MachineId: "another"})
	refused(t, err, api.CodeHostTaken, "h1")

	// Its time is over.
	s.mu.Lock()
	s.ahead = 2 * time.Hour
	s.mu.Unlock()
	_, err = s.join(two, "h4")
	refused(t, err, api.CodeTokenExpired)
	s.counted("join_refused_token-expired", 1)

	// The secret is in no log.
	if strings.Contains(s.log.String(), string(good.Secret.Bytes())) || strings.Contains(s.log.String(), good.Reveal()) {
		t.Error("the log shows a token's secret")
	}
}

// A token whose pin is another authority's is told nothing.
func TestJoinRefusesAnotherAuthority(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	tok := s.token(&culvertv1.CreateTokenRequest{Role: "agent"})
	tok.Pin[0] ^= 1
	if _, err := s.join(tok, "h1"); err == nil || !strings.Contains(err.Error(), "authority does not match the pin") {
		t.Errorf("join with a wrong pin: %v, want it refused for its authority", err)
	}
	s.counted("tls_refused_broken-off", 1)
	if n := s.m.Facts().Counters["joined"]; n != 0 {
		t.Errorf("%d joined", n)
	}
	// The token still opens for whoever knows the pin.
	tok.Pin[0] ^= 1
	if _, err := s.join(tok, "h1"); err != nil {
		t.Error(err)
	}
}

// The socket is its owner's: by the mode of the file, and, should the mode be
// another, by who connects.
func TestSocketOfAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skipf("euid %d: only root becomes another user", os.Geteuid())
	}
	s := serveManager(t)
	status := func(dial func(context.Context, string, string) (net.Conn, error)) error {
		tr := &http.Transport{DialContext: dial}
		t.Cleanup(tr.CloseIdleConnections)
		rpc := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: tr}, "http://socket", connecthttp.WithCompressors()))
		_, err := culvertv1connect.NewAPIClient(rpc).Status(ctx10(t), &culvertv1.StatusRequest{})
		return err
	}
	asNobody := func(context.Context, string, string) (net.Conn, error) { return dialAs(s.socket, 65534) }
	if err := status(asNobody); !errors.Is(err, syscall.EACCES) {
		t.Errorf("socket of mode 0600 opened by another user: %v, want EACCES", err)
	}
	if err := os.Chmod(s.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	refused(t, status(asNobody), api.CodeNotAllowed, "not root")
	s.counted("refused_"+string(api.CodeNotAllowed), 1)
	s.logged("call refused", "Status")
	if err := status(func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", s.socket) }); err != nil {
		t.Errorf("root: %v", err)
	}
}

// dialAs connects as another user: the kernel notes who called connect(2). The
// thread that became that user ends with its goroutine.
func dialAs(path string, uid int) (c net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
			return
		}
		c, err = net.Dial("unix", path)
	}()
	<-done
	return c, err
}
