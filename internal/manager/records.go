package manager

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
	"culvert/internal/store"
)

// Schema is what this program writes; it reads stores whose least reader is
// not newer.
const Schema = 1

// ErrNewerSchema: the store was written by a newer release.
var ErrNewerSchema = errors.New("store is of a newer release")

// Folders of the store, below its prefix.
var folders = map[overlay.Kind]string{
	overlay.KindTenant: "tenant", overlay.KindNetwork: "net", overlay.KindPort: "port", overlay.KindHost: "host",
	overlay.KindEndpoint: "ep", overlay.KindSession: "session", overlay.KindFloor: "floor",
	overlay.KindDomain: "domain", overlay.KindPolicy: "policy", overlay.KindGateway: "gateway",
}

var kinds = func() map[string]overlay.Kind {
	m := map[string]overlay.Kind{}
	for k, f := range folders {
		m[f] = k
	}
	return m
}()

const (
	metaKey     = "meta"
	tokenFolder = "token/"
	deciderKey  = "decider"
)

// storeKey is where a record stands: "<folder>/<uid>", "ep/<network>/<mac>".
func storeKey(prefix string, k overlay.Key) string {
	s := prefix + folders[k.Kind] + "/" + k.UID.String()
	if k.Kind == overlay.KindEndpoint {
		s += "/" + k.MAC.String()
	}
	return s
}

// parseKey reads what storeKey made. ok is false for the keys of others.
func parseKey(prefix, s string) (k overlay.Key, ok bool) {
	f := strings.Split(strings.TrimPrefix(s, prefix), "/")
	kind, known := kinds[f[0]]
	if !known || len(f) < 2 || (kind == overlay.KindEndpoint) != (len(f) == 3) {
		return overlay.Key{}, false
	}
	uid, err := overlay.ParseUID(f[1])
	if err != nil {
		return overlay.Key{}, false
	}
	k = overlay.Key{Kind: kind, UID: uid}
	if kind == overlay.KindEndpoint {
		if k.MAC, err = overlay.ParseMAC(f[2]); err != nil {
			return overlay.Key{}, false
		}
	}
	return k, true
}

func encode(prefix string, writes []managercore.Write) []store.Op {
	ops := make([]store.Op, 0, len(writes))
	for _, w := range writes {
		op := store.Op{Key: storeKey(prefix, w.Key)}
		if w.Rec != nil {
			op.Value = api.MarshalStore(w.Rec, w.Gone)
		}
		ops = append(ops, op)
	}
	return ops
}

// record reads one value. ok is false for keys that are not the core's.
func (m *Manager) record(kv store.KV) (r managercore.StoredRecord, ok bool, err error) {
	k, ok := parseKey(m.store.Prefix(), kv.Key)
	if !ok {
		return r, false, nil
	}
	rec, gone, err := api.UnmarshalStore(kv.Value)
	if err != nil {
		return r, false, fmt.Errorf("store key %s: %w", kv.Key, err)
	}
	if overlay.KeyOf(rec) != k {
		return r, false, fmt.Errorf("store key %s holds another record's value: %w", kv.Key, api.ErrRecord)
	}
	return managercore.StoredRecord{Rec: rec, Gone: gone, N: uint64(kv.ModRev)}, true, nil
}

// prepare writes what a new store needs before it can be used: its schema and
// the default tenant. A store of a newer release is refused by its number.
func (m *Manager) prepare(ctx context.Context, f store.Fence) error {
	found := false
	err := m.scan(ctx, func(kv store.KV) error {
		if kv.Key == m.store.Prefix()+metaKey {
			found = true
			_, err := readMeta(kv.Value)
			return err
		}
		return nil
	})
	if err != nil || found {
		return err
	}
	meta := &culvertv1.StoreMeta{Cluster: m.cfg.Cluster, Schema: Schema, LeastReader: Schema, Epoch: 1}
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{api.RecordVersion}, meta)
	if err != nil {
		return fmt.Errorf("encode store meta: %w", err)
	}
	t := &overlay.Tenant{Meta: overlay.Meta{UID: seed(), Name: managercore.DefaultTenant, Cause: "init", Changed: m.cfg.Now().UnixNano()}}
	_, err = m.store.Commit(ctx, f, []store.Op{
		{Key: m.store.Prefix() + metaKey, Value: b},
		{Key: storeKey(m.store.Prefix(), overlay.KeyOf(t)), Value: api.MarshalStore(t, false)},
	})
	if err != nil {
		return fmt.Errorf("write store meta: %w", err)
	}
	return nil
}

func readMeta(b []byte) (*culvertv1.StoreMeta, error) {
	var meta culvertv1.StoreMeta
	if len(b) == 0 || b[0] != api.RecordVersion || proto.Unmarshal(b[1:], &meta) != nil {
		return nil, fmt.Errorf("store meta: %w", api.ErrRecord)
	}
	if meta.GetLeastReader() > Schema {
		return nil, fmt.Errorf("store schema %d, this program reads up to %d: %w", meta.GetSchema(), Schema, ErrNewerSchema)
	}
	return &meta, nil
}

func (m *Manager) scan(ctx context.Context, f func(store.KV) error) error {
	_, err := m.store.Snapshot(ctx, func(kvs []store.KV) error {
		for _, kv := range kvs {
			if err := f(kv); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// load reads the whole store at one revision.
func (m *Manager) load(ctx context.Context) (*managercore.Loaded, uint32, error) {
	var out managercore.Loaded
	var epoch uint32
	tokens := map[string]*token{}
	rev, err := m.store.Snapshot(ctx, func(kvs []store.KV) error {
		for _, kv := range kvs {
			name := strings.TrimPrefix(kv.Key, m.store.Prefix())
			switch {
			case name == metaKey:
				meta, err := readMeta(kv.Value)
				if err != nil {
					return err
				}
				epoch = meta.GetEpoch()
			case name == deciderKey:
			case strings.HasPrefix(name, tokenFolder):
				t, err := readToken(kv.Value)
				if err != nil {
					return fmt.Errorf("store key %s: %w", kv.Key, err)
				}
				tokens[t.id()] = t
			default:
				r, ok, err := m.record(kv)
				if err != nil {
					return err
				}
				if ok {
					out.Records = append(out.Records, r)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read store: %w", err)
	}
	m.mu.Lock()
	m.tokens = tokens
	m.mu.Unlock()
	out.N = uint64(rev)
	return &out, epoch, nil
}

// decodeBatch is one revision of the watch for the core; nil for a bookmark.
func (m *Manager) decodeBatch(b store.Batch) (*managercore.Stored, error) {
	if b.Bookmark {
		return nil, nil
	}
	e := &managercore.Stored{N: uint64(b.Rev)}
	for _, kv := range b.Puts {
		r, ok, err := m.record(kv)
		if err != nil {
			return nil, err
		}
		if ok {
			e.Puts = append(e.Puts, r)
		}
	}
	for _, key := range b.Deletes {
		if k, ok := parseKey(m.store.Prefix(), key); ok {
			e.Deletes = append(e.Deletes, k)
		}
	}
	return e, nil
}
