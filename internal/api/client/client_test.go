package client_test

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"go.uber.org/goleak"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/apiserver"
	"culvert/internal/apiserver/apiservertest"
	"culvert/internal/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newCA(t *testing.T, cluster string) *trust.CA {
	t.Helper()
	ca, err := trust.NewCA(cluster, time.Now())
	return must(t, ca, err)
}

// serve is a manager of ca's cluster on TCP; it returns its address.
func serve(t *testing.T, ca *trust.CA, leaf *trust.Leaf) string {
	t.Helper()
	mux := http.NewServeMux()
	apiserver.New(apiservertest.New(), apiserver.Options{Log: slog.New(slog.DiscardHandler)}).Mount(mux)
	anchor := ca.Anchor(time.Now)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, l, err)
	srv := &http.Server{Handler: apiserver.Identify(anchor, mux), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		TLSConfig: trust.ServerConfig(trust.ServerOptions{Anchor: anchor, Leaf: trust.Fixed(leaf)})}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return l.Addr().String()
}

// config writes what an operator has: the authority that is believed, and the
// certificate that is shown.
func config(t *testing.T, believed *trust.CA, shown *trust.Leaf, managers ...string) client.Config {
	t.Helper()
	dir := t.TempDir()
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: believed.Cert().Raw})
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "ca.pem"), root, 0o600), shown.Save(filepath.Join(dir, "leaf.pem")),
		client.Save(filepath.Join(dir, "config.json"), client.Config{Cluster: "x", Managers: managers, CA: "ca.pem", Cert: "leaf.pem", Key: "leaf.pem"})); err != nil {
		t.Fatal(err)
	}
	cfg, err := client.Load(filepath.Join(dir, "config.json"))
	return must(t, cfg, err)
}

// refused calls Status and returns the refusal; nil if it was answered.
func refused(t *testing.T, cfg client.Config, timeout time.Duration) *api.Refusal {
	t.Helper()
	c, err := client.New(cfg)
	must(t, c, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	_, err = c.Status(ctx, &culvertv1.StatusRequest{})
	if err == nil {
		return nil
	}
	var ref *api.Refusal
	if !errors.As(err, &ref) {
		t.Fatalf("error %T %v is no refusal", err, err)
	}
	return ref
}

// deadPort is an address where nobody listens.
func deadPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, l, err)
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return addr
}

// mute accepts connections and never says a word.
func mute(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, l, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var held []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				for _, c := range held {
					_ = c.Close()
				}
				return
			}
			held = append(held, c)
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

// TestTLS: who is let in, and what each of the others is told.
func TestTLS(t *testing.T) {
	ours, others := newCA(t, "ours"), newCA(t, "others")
	server := must2(ours.IssueServer("m1", nil, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, time.Now()))(t)
	operator := must2(ours.IssueOperator("admin", time.Now()))(t)
	stranger := must2(others.IssueOperator("eve", time.Now()))(t)
	agent := must2(ours.IssueAgent("0123456789abcdef0123456789abcdef", "h1", time.Now()))(t)
	expired := must2(ours.IssueOperator("old", time.Now().Add(-10*365*24*time.Hour)))(t)
	impostor := must2(ours.IssueOperator("impostor", time.Now()))(t)
	addr, dead := serve(t, ours, server), deadPort(t)
	tests := []struct {
		name string
		cfg  client.Config
		code api.Code // empty: answered
		want string
	}{
		{"operator", config(t, ours, operator, addr), "", ""},
		{"first manager dead", config(t, ours, operator, dead, addr), "", ""},
		{"agent", config(t, ours, agent, addr), api.CodeNotAllowed, "the caller is agent h1"},
		{"certificate of another cluster", config(t, ours, stranger, addr), api.CodeCertificate, "bad certificate"},
		{"expired certificate", config(t, ours, expired, addr), api.CodeCertificate, "bad certificate"},
		{"manager of another cluster", config(t, others, operator, addr), api.CodeOtherCluster, "another cluster"},
		{"an operator plays manager", config(t, ours, operator, serve(t, ours, impostor)), api.CodeOtherCluster, "another role"},
		{"nobody listens", config(t, ours, operator, dead), api.CodeUnreachable, dead + ": connection refused"},
		{"mute", config(t, ours, operator, mute(t)), api.CodeUnanswered, "did not answer in time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			timeout := 10 * time.Second
			if tt.name == "mute" {
				timeout = 200 * time.Millisecond
			}
			ref := refused(t, tt.cfg, timeout)
			switch {
			case ref == nil && tt.code == "":
			case ref == nil:
				t.Fatalf("answered, want %s", tt.code)
			case ref.Code() != tt.code || !strings.Contains(ref.Text(), tt.want):
				t.Errorf("got\n%swant %s with %q", ref.Text(), tt.code, tt.want)
			}
		})
	}
}

func must2[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T { return must(t, v, err) }
}

// TestOtherServers: what answers is no manager, or one of another release.
func TestOtherServers(t *testing.T) {
	tests := []struct {
		name    string
		handler http.HandlerFunc
		read    api.Code // of a call that changes nothing
		write   api.Code // of one that does
	}{
		{"no such call", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, api.CodeVersion, api.CodeVersion},
		{"a web page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, api.CodeUnreachable, api.CodeUnknown},
		{"an error of its own", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(500)
			_, _ = io.WriteString(w, `{"code":"data_loss","message":"gone"}`)
		}, api.CodeServer, api.CodeServer},
		{"it is stopped", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(499)
			_, _ = io.WriteString(w, `{"code":"canceled","message":"the call was ended early"}`)
		}, api.CodeUnanswered, api.CodeUnanswered},
		{"it breaks off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, api.CodeUnreachable, api.CodeUnknown},
		{"it dies in its answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "abc")
		}, api.CodeUnreachable, api.CodeUnknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "cv")
			must(t, dir, err)
			defer os.RemoveAll(dir)
			l, err := apiserver.Socket(filepath.Join(dir, "m.sock"))
			must(t, l, err)
			apiservertest.ServeOn(t, l, tt.handler)
			ref := refused(t, client.Config{Socket: filepath.Join(dir, "m.sock")}, 10*time.Second)
			if ref == nil || ref.Code() != tt.read {
				t.Errorf("read: got %v, want %s", ref, tt.read)
			}
			c, err := client.New(client.Config{Socket: filepath.Join(dir, "m.sock")})
			must(t, c, err)
			defer c.Close()
			if _, err := c.Put(t.Context(), &culvertv1.PutRequest{}); !errors.As(err, &ref) || ref.Code() != tt.write {
				t.Errorf("write: got %v, want %s", err, tt.write)
			}
			w, err := c.Watch(t.Context(), &culvertv1.WatchRequest{Kind: "network"})
			if err == nil {
				_, err = w.Receive()
				_ = w.Close()
			}
			if !errors.As(err, &ref) || ref.Code() == api.CodeUnknown {
				t.Errorf("watch: %v, want a refusal that leaves nothing in doubt: nothing was to be changed", err)
			}
		})
	}
}

// TestCanceled: the end of the caller's own context is not dressed up.
func TestCanceled(t *testing.T) {
	c, err := client.New(client.Config{Socket: "/nonexistent/m.sock"})
	must(t, c, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Status(ctx, &culvertv1.StatusRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// localAgent answers for the agent of this host.
type localAgent struct {
	culvertv1connect.LocalHandler
}

func (localAgent) Tables(context.Context, *culvertv1.TablesRequest) (*culvertv1.TablesResponse, error) {
	return &culvertv1.TablesResponse{Text: "empty\n"}, nil
}

func TestLocal(t *testing.T) {
	dir, err := os.MkdirTemp("", "cv")
	must(t, dir, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "a.sock")
	local := client.NewLocal(path)
	defer local.Close()
	call := func() (string, error) {
		r, err := local.Tables(t.Context(), &culvertv1.TablesRequest{})
		return r.GetText(), err
	}
	var ref *api.Refusal
	if _, err := call(); !errors.As(err, &ref) || ref.Code() != api.CodeNoAgent {
		t.Errorf("no socket: %v", err)
	}
	l, err := apiserver.Socket(path)
	must(t, l, err)
	srv := connect.NewServer()
	culvertv1connect.RegisterLocalHandler(srv, localAgent{})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, srv)
	apiservertest.ServeOn(t, l, mux)
	if text, err := call(); err != nil || text != "empty\n" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"HOME": dir}
	getenv := func(k string) string { return env[k] }
	lab := filepath.Join(dir, "lab.json")
	save := func(path, cluster string) {
		t.Helper()
		if err := client.Save(path, client.Config{Cluster: cluster, Socket: "/m.sock"}); err != nil {
			t.Fatal(err)
		}
	}
	found := func(want string) {
		t.Helper()
		cfg, path, err := client.Find(getenv, lab)
		if err != nil || cfg.Cluster != want || path == "" {
			t.Errorf("found %q at %q, %v; want %q", cfg.Cluster, path, err, want)
		}
	}
	var ref *api.Refusal
	if _, _, err := client.Find(getenv, lab); !errors.As(err, &ref) || ref.Code() != api.CodeNoCluster {
		t.Errorf("nothing there: %v", err)
	}
	save(lab, "lab")
	found("lab")
	save(filepath.Join(dir, ".config", "culvert", "config.json"), "own")
	found("own")
	env["XDG_CONFIG_HOME"] = filepath.Join(dir, "xdg")
	found("lab")
	save(filepath.Join(dir, "xdg", "culvert", "config.json"), "xdg")
	found("xdg")
	env["CULVERT_CONFIG"] = filepath.Join(dir, "named.json")
	if _, _, err := client.Find(getenv, lab); !errors.As(err, &ref) || ref.Code() != api.CodeFile {
		t.Errorf("a named file that is missing must not be passed over: %v", err)
	}
	save(env["CULVERT_CONFIG"], "named")
	found("named")
	if fi, err := os.Stat(env["CULVERT_CONFIG"]); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}
