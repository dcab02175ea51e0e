package api

import (
	"net/netip"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Bounds of a Look and its answer.
const (
	MaxLookQueries = 8
	MaxLookRows    = 64 // of a view; what is beyond is cut
)

// Look asks what a host's kernel holds of some endpoints.
type Look struct {
	ID      uint64
	Queries []LookQuery
}

// LookQuery is about the tables of a network. MAC and Address name the
// endpoint, either may be the zero one; VTEP, which may be invalid, another host
// that must be known.
type LookQuery struct {
	Network overlay.UID
	MAC     overlay.MAC
	Address netip.Addr
	VTEP    netip.Addr
}

// Looked answers a Look, each view in the place of its query.
type Looked struct {
	ID     uint64
	Failed string // why the kernel was not read; then there are no views
	Views  []LookView
}

// LookView answers a LookQuery.
type LookView struct {
	Served  bool   // the network's tables stand there
	Device  string // that the endpoint is behind; empty: it is not there
	Passes  bool   // ... which passes its frames
	Refused string // why not
	Rows    []LookRow
}

// LookRow is a row that should be there, or is. Have is what stands there of one
// that differs.
type LookRow struct{ Row, State, Have string }

// States of a LookRow.
const (
	RowHeld    = "held"
	RowMissing = "missing"
	RowDiffers = "differs"
	RowStray   = "stray"
)

func lookPB(l *Look) *culvertv1.Down {
	out := &culvertv1.Look{Id: l.ID}
	for _, q := range l.Queries {
		out.Queries = append(out.Queries, &culvertv1.LookQuery{Network: uidBytes(q.Network), Mac: macBytes(q.MAC), Address: addrBytes(q.Address), Vtep: addrBytes(q.VTEP)})
	}
	return &culvertv1.Down{Body: &culvertv1.Down_Look{Look: out}}
}

func (d *streamDecoder) look(pb *culvertv1.Look) *Look {
	out := &Look{ID: d.session(pb.GetId())}
	if !d.most(len(pb.GetQueries()), MaxLookQueries, "queries") {
		return out
	}
	for _, q := range pb.GetQueries() {
		out.Queries = append(out.Queries, LookQuery{
			Network: d.uid(q.GetNetwork(), "network to look at", true), MAC: d.mac(q.GetMac(), "MAC to look for", false),
			Address: d.addr(q.GetAddress(), "address to look for", false), VTEP: d.addr(q.GetVtep(), "VTEP to look for", false),
		})
	}
	return out
}

func lookedPB(l *Looked) *culvertv1.Up {
	out := &culvertv1.Looked{Id: l.ID, Failed: text(l.Failed)}
	for _, v := range l.Views {
		pb := &culvertv1.LookView{Served: v.Served, Device: text(v.Device), Passes: v.Passes, Refused: text(v.Refused)}
		for _, r := range v.Rows[:min(len(v.Rows), MaxLookRows)] {
			pb.Rows = append(pb.Rows, &culvertv1.LookRow{Row: text(r.Row), State: r.State, Have: text(r.Have)})
		}
		out.Views = append(out.Views, pb)
	}
	return &culvertv1.Up{Body: &culvertv1.Up_Looked{Looked: out}}
}

func (d *streamDecoder) looked(pb *culvertv1.Looked) *Looked {
	out := &Looked{ID: d.session(pb.GetId()), Failed: d.text(pb.GetFailed(), "reason")}
	if !d.most(len(pb.GetViews()), MaxLookQueries, "views") {
		return out
	}
	for _, v := range pb.GetViews() {
		view := LookView{Served: v.GetServed(), Device: d.text(v.GetDevice(), "device"), Passes: v.GetPasses(), Refused: d.text(v.GetRefused(), "reason")}
		if !d.most(len(v.GetRows()), MaxLookRows, "rows") {
			return out
		}
		for _, r := range v.GetRows() {
			switch r.GetState() {
			case RowHeld, RowMissing, RowDiffers, RowStray:
			default:
				d.refuse("state of a row")
			}
			view.Rows = append(view.Rows, LookRow{Row: d.text(r.GetRow(), "row"), State: r.GetState(), Have: d.text(r.GetHave(), "row")})
		}
		out.Views = append(out.Views, view)
	}
	return out
}
