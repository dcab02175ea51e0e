package api

import (
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/api/culvertv1"
)

// TestLookRoundTrip: a question after a kernel and its answer arrive as they
// were sent; rows beyond the bound are cut by the sender, and what is malformed
// is refused by the receiver.
func TestLookRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &Look{ID: rapid.Uint64Range(1, 1<<60).Draw(t, "id")}
		a := &Looked{ID: l.ID}
		for range rapid.IntRange(1, MaxLookQueries).Draw(t, "queries") {
			q := LookQuery{Network: genUID(t, "network")}
			if rapid.Bool().Draw(t, "by MAC") {
				q.MAC = genMAC(t, "mac")
			} else {
				q.Address, q.VTEP = genAddr(t, "address"), genAddr(t, "vtep")
			}
			l.Queries = append(l.Queries, q)
			v := LookView{Served: rapid.Bool().Draw(t, "served"), Device: genText(t, "device"), Passes: rapid.Bool().Draw(t, "passes"), Refused: genText(t, "why")}
			for range rapid.IntRange(0, 4).Draw(t, "rows") {
				v.Rows = append(v.Rows, LookRow{genText(t, "row"), rapid.SampledFrom([]string{RowHeld, RowMissing, RowDiffers, RowStray}).Draw(t, "state"), genText(t, "have")})
			}
			a.Views = append(a.Views, v)
		}
		down, err := DownFromPB(DownPB(Down{Look: l}))
		if err != nil || !reflect.DeepEqual(down.Look, l) {
			t.Fatalf("%v\n%+v\n%+v", err, l, down.Look)
		}
		up, err := UpFromPB(UpPB(Up{Looked: a}))
		if err != nil || !reflect.DeepEqual(up.Looked, a) {
			t.Fatalf("%v\n%+v\n%+v", err, a, up.Looked)
		}
	})
	many := &Looked{ID: 1, Views: []LookView{{Rows: make([]LookRow, MaxLookRows+5)}}}
	for i := range many.Views[0].Rows {
		many.Views[0].Rows[i].State = RowHeld
	}
	if up, err := UpFromPB(UpPB(Up{Looked: many})); err != nil || len(up.Looked.Views[0].Rows) != MaxLookRows {
		t.Errorf("%v, %d rows", err, len(up.Looked.Views[0].Rows))
	}
	for what, pb := range map[string]*culvertv1.Up{
		"session": {Body: &culvertv1.Up_Looked{Looked: &culvertv1.Looked{}}},
		"state":   {Body: &culvertv1.Up_Looked{Looked: &culvertv1.Looked{Id: 1, Views: []*culvertv1.LookView{{Rows: []*culvertv1.LookRow{{State: "odd"}}}}}}},
		"views":   {Body: &culvertv1.Up_Looked{Looked: &culvertv1.Looked{Id: 1, Views: make([]*culvertv1.LookView, MaxLookQueries+1)}}},
	} {
		if _, err := UpFromPB(pb); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
