package apiserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/apiserver"
	"culvert/internal/apiserver/apiservertest"
	"culvert/internal/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counted counts refusals.
type counted struct {
	mu sync.Mutex
	n  map[api.Code]int
}

func (c *counted) add(code api.Code) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[code]++
}

func handler(b apiserver.Backend, log io.Writer, id *trust.Identity) (http.Handler, *counted) {
	c := &counted{n: map[api.Code]int{}}
	mux := http.NewServeMux()
	apiserver.New(b, apiserver.Options{Log: slog.New(slog.NewTextHandler(log, nil)), Refused: c.add}).Mount(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id != nil {
			r = r.WithContext(apiserver.WithIdentity(r.Context(), *id))
		}
		mux.ServeHTTP(w, r)
	}), c
}

func post(h http.Handler, call, body string) (int, map[string]any) {
	req := httptest.NewRequest("POST", "/culvert.api.v1alpha1.API/"+call, strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	var doc map[string]any
	_ = json.Unmarshal(rec.Body.Bytes(), &doc)
	return rec.Code, doc
}

var operator = &trust.Identity{Cluster: "c", Role: trust.RoleOperator, UID: "1", Name: "admin"}

// TestRoles: only operators may call, and who may not is told so before a byte
// of the body is understood.
func TestRoles(t *testing.T) {
	tests := []struct {
		name string
		id   *trust.Identity
		ok   bool
	}{
		{"stranger", nil, false},
		{"no role", &trust.Identity{Cluster: "c", UID: "1"}, false},
		{"agent", &trust.Identity{Cluster: "c", Role: trust.RoleAgent, UID: "1", Name: "h1"}, false},
		{"manager", &trust.Identity{Cluster: "c", Role: trust.RoleManager, UID: "1"}, false},
		{"operator", operator, true},
	}
	calls := map[string]string{"Put": "{", "Delete": "{", "List": "{", "Wait": "{", "CreateToken": "{", "Status": "{"}
	for _, tt := range tests {
		h, counts := handler(apiservertest.New(), io.Discard, tt.id)
		for call, garbage := range calls {
			code, doc := post(h, call, garbage)
			if tt.ok != (code == http.StatusBadRequest) || tt.ok == (doc["code"] == "permission_denied") {
				t.Errorf("%s calls %s: status %d, %v", tt.name, call, code, doc)
			}
		}
		if !tt.ok && counts.n[api.CodeNotAllowed] != len(calls) {
			t.Errorf("%s: counted %v", tt.name, counts.n)
		}
	}
}

// TestJSONOverHTTP: what a browser or curl does.
func TestJSONOverHTTP(t *testing.T) {
	h, _ := handler(apiservertest.New(), io.Discard, operator)
	code, doc := post(h, "Put", `{"mode":"PUT_MODE_CREATE","resources":[{"network":{"apiVersion":"culvert/v1alpha1","kind":"Network","metadata":{"name":"blue"},"spec":{"subnets":[{"prefix":"10.20.0.0/24"}]}}}]}`)
	if code != 200 || doc["revision"] != "3" {
		t.Fatalf("status %d, %v", code, doc)
	}
	code, doc = post(h, "List", `{"kind":"network"}`)
	if items, _ := doc["items"].([]any); code != 200 || len(items) != 1 {
		t.Fatalf("status %d, %v", code, doc)
	}
	code, doc = post(h, "Delete", `{"kind":"network","name":"nix"}`)
	if details, _ := doc["details"].([]any); code != 404 || len(details) != 1 || doc["code"] != "not_found" {
		t.Fatalf("status %d, %v", code, doc)
	}
}

func dial(t *testing.T, b apiserver.Backend) *client.Client {
	t.Helper()
	cfg, err := client.Load(apiservertest.Serve(t, b))
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func network(name string) *culvertv1.Resource {
	return api.Wrap(&culvertv1.Network{ApiVersion: api.Version, Kind: "Network", Metadata: &culvertv1.Metadata{Name: name}, Spec: &culvertv1.NetworkSpec{}})
}

// TestRefusals has a row for each field of each call.
func TestRefusals(t *testing.T) {
	b := apiservertest.New()
	c := dial(t, b)
	put := func(mode culvertv1.PutMode, list ...*culvertv1.Resource) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.Put(ctx, &culvertv1.PutRequest{Mode: mode, Resources: list})
			return err
		}
	}
	del := func(r *culvertv1.DeleteRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := c.Delete(ctx, r); return err }
	}
	list := func(r *culvertv1.ListRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := c.List(ctx, r); return err }
	}
	watch := func(r *culvertv1.WatchRequest) func(context.Context) error {
		return func(ctx context.Context) error {
			s, err := c.Watch(ctx, r)
			if err != nil {
				return err
			}
			defer s.Close()
			_, err = s.Receive()
			return err
		}
	}
	wait := func(rev string, timeout float64) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := c.Wait(ctx, &culvertv1.WaitRequest{Revision: rev, TimeoutSeconds: timeout})
			return err
		}
	}
	token := func(r *culvertv1.CreateTokenRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := c.CreateToken(ctx, r); return err }
	}
	apply := culvertv1.PutMode_PUT_MODE_APPLY
	many := make([]*culvertv1.Resource, api.MaxDocuments+1)
	for i := range many {
		many[i] = network("n")
	}
	bad := network("n")
	bad.GetNetwork().Spec.Mtu = 5
	at := func(rev string) *culvertv1.Resource {
		r := network("n")
		r.GetNetwork().Metadata.Revision = rev
		return r
	}
	tests := []struct {
		name string
		call func(context.Context) error
		code api.Code
		want string
	}{
		{"put without mode", put(0, network("n")), api.CodeField, "mode is"},
		{"put with another mode", put(9, network("n")), api.CodeField, "mode is"},
		{"put nothing", put(apply), api.CodeField, "resources"},
		{"put too many", put(apply, many...), api.CodeField, "resources"},
		{"put an empty resource", put(apply, &culvertv1.Resource{}), api.CodeField, "kind"},
		{"put a bad field", put(apply, network("ok"), bad), api.CodeField, "spec.mtu"},
		{"put at no revision", put(apply, at("newest")), api.CodeField, "metadata.revision"},
		{"put at revision 0", put(apply, at("0")), api.CodeField, "metadata.revision"},
		{"put at a negative revision", put(apply, at("-2")), api.CodeField, "metadata.revision"},
		{"put at a revision too large", put(apply, at("18446744073709551616")), api.CodeField, "metadata.revision"},
		{"put what is not there at a revision", put(apply, network("ok"), at("2")), api.CodeStale, "read at revision 2"},
		{"put one twice", put(apply, network("n"), network("n")), api.CodeField, "metadata.name"},
		{"put a host", put(apply, api.Wrap(&culvertv1.Host{Metadata: &culvertv1.Metadata{Name: "h"}})), api.CodeField, "joining"},
		{"delete no kind", del(&culvertv1.DeleteRequest{Name: "n"}), api.CodeField, "kind"},
		{"delete a host", del(&culvertv1.DeleteRequest{Kind: "host", Name: "n"}), api.CodeLater, "observed"},
		{"delete an endpoint", del(&culvertv1.DeleteRequest{Kind: "endpoint", Name: "n"}), api.CodeLater, "observed"},
		{"delete no name", del(&culvertv1.DeleteRequest{Kind: "network"}), api.CodeField, "name"},
		{"delete in a bad tenant", del(&culvertv1.DeleteRequest{Kind: "network", Name: "n", Tenant: "T"}), api.CodeField, "tenant"},
		{"delete a tenant's tenant", del(&culvertv1.DeleteRequest{Kind: "tenant", Name: "n", Tenant: "t"}), api.CodeField, "tenant"},
		{"delete a port with ports", del(&culvertv1.DeleteRequest{Kind: "port", Name: "n", WithPorts: true}), api.CodeField, "withPorts"},
		{"delete what is not there", del(&culvertv1.DeleteRequest{Kind: "network", Name: "n"}), api.CodeNotFound, "n"},
		{"list no kind", list(&culvertv1.ListRequest{}), api.CodeField, "kind"},
		{"list a bad tenant", list(&culvertv1.ListRequest{Kind: "port", Tenant: "T"}), api.CodeField, "tenant"},
		{"list a bad name", list(&culvertv1.ListRequest{Kind: "port", Name: "T"}), api.CodeField, "name"},
		{"list a bad network", list(&culvertv1.ListRequest{Kind: "port", Network: "T"}), api.CodeField, "network"},
		{"list hosts of a tenant", list(&culvertv1.ListRequest{Kind: "host", Tenant: "t"}), api.CodeField, "tenant"},
		{"list networks of a network", list(&culvertv1.ListRequest{Kind: "network", Network: "t"}), api.CodeField, "network"},
		{"list domains of a network", list(&culvertv1.ListRequest{Kind: "domain", Network: "t"}), api.CodeField, "network"},
		{"delete a domain that is not there", del(&culvertv1.DeleteRequest{Kind: "domain", Name: "n"}), api.CodeNotFound, "n"},
		{"delete a policy with ports", del(&culvertv1.DeleteRequest{Kind: "policy", Name: "n", WithPorts: true}), api.CodeField, "withPorts"},
		{"list of an unknown tenant", list(&culvertv1.ListRequest{Kind: "port", Tenant: "t"}), api.CodeNotFound, "tenant t"},
		{"list of an unknown network", list(&culvertv1.ListRequest{Kind: "port", Network: "t"}), api.CodeNotFound, "network t"},
		{"watch no kind", watch(&culvertv1.WatchRequest{}), api.CodeField, "kind"},
		{"watch a bad tenant", watch(&culvertv1.WatchRequest{Kind: "port", Tenant: "T"}), api.CodeField, "tenant"},
		{"watch an unknown network", watch(&culvertv1.WatchRequest{Kind: "port", Network: "t"}), api.CodeNotFound, "network t"},
		{"wait for nothing", wait("", 1), api.CodeField, "revision"},
		{"wait for a word", wait("new", 1), api.CodeField, "revision"},
		{"wait for the future", wait("999", 1), api.CodeField, "revision"},
		{"wait for another epoch", wait("2.1", 1), api.CodeField, "revision"},
		{"wait too long", wait("2", 61), api.CodeField, "timeoutSeconds"},
		{"wait a negative time", wait("2", -1), api.CodeField, "timeoutSeconds"},
		{"wait no number", wait("2", math.NaN()), api.CodeField, "timeoutSeconds"},
		{"token without role", token(&culvertv1.CreateTokenRequest{ExpiresSeconds: 1}), api.CodeField, "role"},
		{"token for a manager", token(&culvertv1.CreateTokenRequest{Role: "manager", ExpiresSeconds: 1}), api.CodeLater, "role"},
		{"token that is expired", token(&culvertv1.CreateTokenRequest{Role: "agent"}), api.CodeField, "expiresSeconds"},
		{"token for ever", token(&culvertv1.CreateTokenRequest{Role: "agent", ExpiresSeconds: 1e9}), api.CodeField, "expiresSeconds"},
		{"token for no time", token(&culvertv1.CreateTokenRequest{Role: "agent", ExpiresSeconds: math.NaN()}), api.CodeField, "expiresSeconds"},
		{"token for all", token(&culvertv1.CreateTokenRequest{Role: "agent", ExpiresSeconds: 1, Uses: 10_001}), api.CodeField, "uses"},
		{"token for a bad host", token(&culvertv1.CreateTokenRequest{Role: "agent", ExpiresSeconds: 1, Host: "H"}), api.CodeField, "host"},
	}
	for _, tt := range tests {
		err := tt.call(t.Context())
		var ref *api.Refusal
		if !errors.As(err, &ref) || ref.Code() != tt.code || !strings.Contains(ref.Error(), tt.want) {
			t.Errorf("%s: %v, want %s with %q", tt.name, err, tt.code, tt.want)
			continue
		}
		if pb := ref.PB(); pb.GetWhat() == "" || pb.GetWhy() == "" || pb.GetCure() == "" {
			t.Errorf("%s: not four parts: %v", tt.name, pb)
		}
	}
	if got := b.View().At.N; got != 2 {
		t.Errorf("the store is at revision %d: something was half applied", got)
	}
	if len(b.Asked) != 0 {
		t.Errorf("tokens were made: %v", b.Asked)
	}
}

// TestHiddenCauses: what went wrong inside is for the log; the caller learns
// that the outcome is not known, and what to do.
func TestHiddenCauses(t *testing.T) {
	b := apiservertest.New()
	b.Fail(errors.New("disk on fire at /var/lib/secret"))
	var log bytes.Buffer
	h, counts := handler(b, &log, operator)
	code, doc := post(h, "Delete", `{"kind":"network","name":"blue"}`)
	text, _ := json.Marshal(doc)
	if code != 503 || !strings.Contains(string(text), string(api.CodeUnknown)) || strings.Contains(string(text), "secret") {
		t.Errorf("status %d, %s", code, text)
	}
	if !strings.Contains(log.String(), "disk on fire") || !strings.Contains(log.String(), "operator admin") {
		t.Errorf("log: %s", log.String())
	}
	if len(counts.n) != 0 {
		t.Errorf("counted as refused: %v", counts.n)
	}
}

// TestCause: a record says who made it.
func TestCause(t *testing.T) {
	b := apiservertest.New()
	h, _ := handler(b, io.Discard, operator)
	if code, doc := post(h, "Put", `{"mode":"PUT_MODE_APPLY","resources":[{"tenant":{"apiVersion":"culvert/v1alpha1","kind":"Tenant","metadata":{"name":"acme"}}}]}`); code != 200 {
		t.Fatalf("status %d, %v", code, doc)
	}
	found := ""
	for it := range b.View().Tenants.Keys() {
		found += causeOf(it.Rec) + "\n"
	}
	if !strings.Contains(found, "operator admin: ") {
		t.Errorf("causes: %s", found)
	}
}
