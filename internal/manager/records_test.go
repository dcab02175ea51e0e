package manager

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
	"culvert/internal/store"
	"culvert/internal/store/mem"
)

func TestStoreKeysTellRecordsApart(t *testing.T) {
	t.Parallel()
	const prefix = "/culvert/c/"
	uid, mac := overlay.UID{1, 2, 3}, overlay.MAC{0x52, 0x54, 0, 1, 2, 3}
	seen := map[string]bool{}
	for kind := range folders {
		k := overlay.Key{Kind: kind, UID: uid}
		if kind == overlay.KindEndpoint {
			k.MAC = mac
		}
		s := storeKey(prefix, k)
		if seen[s] {
			t.Errorf("key %s stands for two records", s)
		}
		seen[s] = true
		if got, ok := parseKey(prefix, s); !ok || got != k {
			t.Errorf("parseKey(%s) = %v, %t, want %v", s, got, ok, k)
		}
	}
	for _, bad := range []string{"", "meta", "token/0102", "decider", "ep/" + uid.String(), "net/" + uid.String() + "/x", "net/zz", "port/", "ep/" + uid.String() + "/52:54"} {
		if k, ok := parseKey(prefix, prefix+bad); ok {
			t.Errorf("parseKey(%q) = %v, want it refused", bad, k)
		}
	}
}

func newStore(t *testing.T) *mem.Store {
	t.Helper()
	st, err := mem.New("c")
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// start runs a manager on st until the test ends or stop is called.
func start(t *testing.T, st store.Store) (m *Manager, stop func()) {
	t.Helper()
	m = New(st, Config{Cluster: "c", ID: "m1", Log: slog.New(slog.DiscardHandler), Now: time.Now})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(cancel)
	return m, stop
}

func ctx10(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func put(t *testing.T, m *Manager, docs ...overlay.Doc) (managercore.Reply, error) {
	t.Helper()
	return m.Do(ctx10(t), managercore.Asked{Actor: "test", Put: &managercore.Put{Mode: managercore.ModeCreate, Docs: docs}})
}

func networkDoc(name string) overlay.Doc {
	return overlay.Doc{Kind: overlay.KindNetwork, Tenant: managercore.DefaultTenant, Name: name, Network: overlay.NetworkSpec{
		Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")}},
	}}
}

func TestAnotherManagerGoesOnWhereTheStoreStands(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	m, stop := start(t, st)
	r, err := put(t, m, networkDoc("blue"))
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	uid := r.Changes[0].Rec.(*overlay.Network).UID
	stop()

	next, _ := start(t, st)
	r, err = put(t, next, networkDoc("blue"))
	if err != nil || r.Changes[0].Action != "unchanged" {
		t.Fatalf("creating it again: %v, %v, want unchanged", r.Changes, err)
	}
	if got := r.Changes[0].Rec.(*overlay.Network).UID; got != uid {
		t.Errorf("network has UID %v after the restart, want %v", got, uid)
	}
	if n := next.View().Network(uid); n == nil || n.VNI != 10001 {
		t.Errorf("view has %+v, want network blue with VNI 10001", n)
	}
}

func TestALostFenceLosesNothingThatWasConfirmed(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	m, _ := start(t, st)
	if _, err := put(t, m, networkDoc("blue")); err != nil {
		t.Fatalf("create: %v", err)
	}
	st.EndLease()
	var no *api.Refusal
	for {
		r, err := put(t, m, networkDoc("red"))
		if errors.As(err, &no) && (no.Code() == api.CodeUnknown || no.Code() == api.CodeNotDecider) {
			continue // asked while the place was lost: it says so, and to ask again
		}
		if err != nil {
			t.Fatalf("create after the fence was lost: %v", err)
		}
		if got := r.Changes[0].Rec.(*overlay.Network).VNI; got != 10002 {
			t.Errorf("red has VNI %d, want 10002: blue was confirmed and has 10001", got)
		}
		return
	}
}

func TestANewerStoreIsRefused(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	f, err := st.Campaign(ctx10(t), "m1", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.MarshalOptions{}.MarshalAppend([]byte{api.RecordVersion}, &culvertv1.StoreMeta{Cluster: "c", Schema: Schema + 1, LeastReader: Schema + 1, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Commit(ctx10(t), f, []store.Op{{Key: store.Prefix("c") + metaKey, Value: b}}); err != nil {
		t.Fatal(err)
	}
	m := New(st, Config{Cluster: "c", ID: "m1", Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err := m.term(ctx10(t)); !errors.Is(err, ErrNewerSchema) {
		t.Errorf("manager on a newer store: %v, want %v", err, ErrNewerSchema)
	}
}

func TestAnAlteredRecordStopsTheManager(t *testing.T) {
	t.Parallel()
	st := newStore(t)
	m, stop := start(t, st)
	r, err := put(t, m, networkDoc("blue"))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	f, err := st.Campaign(ctx10(t), "m1", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	key := storeKey(store.Prefix("c"), overlay.KeyOf(r.Changes[0].Rec))
	if _, err := st.Commit(ctx10(t), f, []store.Op{{Key: key, Value: []byte{api.RecordVersion, 0xff, 0xff}}}); err != nil {
		t.Fatal(err)
	}
	again := New(st, Config{Cluster: "c", ID: "m1", Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err := again.term(ctx10(t)); !errors.Is(err, api.ErrRecord) {
		t.Errorf("manager on an altered record: %v, want %v", err, api.ErrRecord)
	}
}
