package apiserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/apiserver"
	"culvert/internal/apiserver/apiservertest"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// between has a second operator, who acts right after each change.
type between struct {
	*apiservertest.Backend
	after func()
}

func (b between) Do(ctx context.Context, ask managercore.Asked) (managercore.Reply, error) {
	r, err := b.Backend.Do(ctx, ask)
	b.after()
	return r, err
}

// TestRevisions: what was read can be written back once; then it is refused
// with all that a caller needs, and a plain client sees a conflict.
func TestRevisions(t *testing.T) {
	h, counts := handler(apiservertest.New(), io.Discard, operator)
	put := func(mtu int, revision string) (int, map[string]any) {
		return post(h, "Put", fmt.Sprintf(`{"mode":"PUT_MODE_APPLY","resources":[{"network":{"apiVersion":"culvert/v1alpha1","kind":"Network",
			"metadata":{"name":"blue","revision":%q},"spec":{"mtu":%d}}}]}`, revision, mtu))
	}
	if code, doc := put(1400, ""); code != 200 || doc["revision"] != "3" {
		t.Fatalf("status %d, %v", code, doc)
	}
	if code, doc := put(1390, "3"); code != 200 || doc["revision"] != "4" {
		t.Fatalf("written at the revision that was read: status %d, %v", code, doc)
	}
	code, doc := put(1380, "3")
	text, _ := json.Marshal(doc)
	if code != 409 || doc["code"] != "aborted" || counts.n[api.CodeStale] != 1 {
		t.Errorf("written once more: status %d, counted %v, %s", code, counts.n, text)
	}
	for _, want := range []string{string(api.CodeStale), "read at revision 3", "at revision 4 now", "operator admin: network set"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the refusal does not say %q: %s", want, text)
		}
	}
	if code, doc := put(1380, ""); code != 200 || doc["revision"] != "5" {
		t.Errorf("without a revision: status %d, %v", code, doc)
	}
}

// TestAnswersHaveOneRevision: the content and the revision of an answer belong
// together, also if the next change is in the view before the answer is made.
func TestAnswersHaveOneRevision(t *testing.T) {
	b := between{Backend: apiservertest.New()}
	b.after = func() {
		if _, err := b.Backend.Do(t.Context(), managercore.Asked{Actor: "rival", Put: &managercore.Put{Mode: managercore.ModeApply, Docs: []overlay.Doc{
			{Kind: overlay.KindNetwork, Tenant: "default", Name: "n", Network: overlay.NetworkSpec{MTU: 1300}},
		}}}); err != nil {
			t.Error(err)
		}
	}
	c := dial(t, b)
	mine := network("n")
	mine.GetNetwork().Spec.Mtu = 1400
	reply, err := c.Put(t.Context(), &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_APPLY, Resources: []*culvertv1.Resource{mine}})
	if err != nil {
		t.Fatal(err)
	}
	n := reply.GetChanges()[0].GetResource().GetNetwork()
	if n.GetMetadata().GetRevision() != "4" || n.GetSpec().GetMtu() != 1300 || reply.GetRevision() != "3" {
		t.Errorf("change %s, answered %v", reply.GetRevision(), n)
	}
}

// broken is a manager whose reads meet an obstacle.
type broken struct{ *apiservertest.Backend }

func (broken) WaitApplied(context.Context, overlay.Rev) ([]apiserver.HostWait, error) {
	return nil, errors.New("disk on fire")
}

// TestReadsAreNeverInDoubt: a read that met an obstacle changed nothing.
func TestReadsAreNeverInDoubt(t *testing.T) {
	var log bytes.Buffer
	h, _ := handler(broken{apiservertest.New()}, &log, operator)
	code, doc := post(h, "Wait", `{"revision":"2","timeoutSeconds":1}`)
	text, _ := json.Marshal(doc)
	if code != 503 || !strings.Contains(string(text), string(api.CodeServer)) || strings.Contains(string(text), "fire") || !strings.Contains(log.String(), "disk on fire") {
		t.Errorf("status %d, %s\nlog: %s", code, text, log.String())
	}
}
