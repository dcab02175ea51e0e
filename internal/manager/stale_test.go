package manager

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"culvert/internal/api"
	"culvert/internal/managercore"
	"culvert/internal/overlay"
)

// TestWritersAtOnceLoseNothing: each reads the view, adds its label, writes at
// the revision it read, and after a refusal begins anew. A refusal comes when
// the view holds what was in the way, so each costs a change of somebody else.
func TestWritersAtOnceLoseNothing(t *testing.T) {
	t.Parallel()
	m, _ := start(t, newStore(t))
	if _, err := put(t, m, networkDoc("blue")); err != nil {
		t.Fatal(err)
	}
	const writers, labels = 6, 10
	ctx := ctx10(t)
	read := func() *managercore.Item {
		v := m.View()
		tenant := v.Named(overlay.KindTenant, overlay.UID{}, managercore.DefaultTenant)
		return v.Named(overlay.KindNetwork, tenant.Key.UID, "blue")
	}
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range labels {
				for tries := 1; ; tries++ {
					it, d := read(), networkDoc("blue")
					d.Seen = it.Rev
					d.Labels = append(slices.Clone(it.Rec.(*overlay.Network).Labels), overlay.Label{Key: fmt.Sprintf("w%d-%d", i, j)})
					overlay.SortLabels(d.Labels)
					_, err := m.Do(ctx, managercore.Asked{Actor: "test", Put: &managercore.Put{Mode: managercore.ModeSet, Docs: []overlay.Doc{d}}})
					if err == nil {
						break
					}
					var no *api.Refusal
					if !errors.As(err, &no) || no.Code() != api.CodeStale || tries > writers*labels {
						t.Errorf("writer %d, try %d: %v", i, tries, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if got := read().Rec.(*overlay.Network).Labels; len(got) != writers*labels {
		t.Errorf("%d labels are there, want %d: %v", len(got), writers*labels, got)
	}
}
