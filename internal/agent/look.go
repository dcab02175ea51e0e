package agent

import (
	"context"
	"fmt"
	"strings"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// look answers an operator's question, one at a time: the kernel is read anew,
// and beside what stands there is told what should.
func (a *Agent) look(ctx context.Context, q api.Look) {
	select {
	case a.looking <- struct{}{}:
		defer func() { <-a.looking }()
	case <-ctx.Done():
		return
	}
	out := api.Looked{ID: q.ID}
	states := map[overlay.VNI]*hoststate.State{}
	all, err := a.kernel.Read(ctx, hoststate.Scope{Links: true})
	for _, x := range q.Queries {
		if err != nil {
			break
		}
		var s agentcore.Sight
		knows := true
		done := make(chan struct{})
		if !a.onLoop(ctx, func() {
			s = a.core.Sight(x.Network, x.MAC, x.Address)
			knows = !x.VTEP.IsValid() || a.core.Knows(x.VTEP)
			close(done)
		}) {
			return
		}
		<-done
		if s.VNI != 0 && states[s.VNI] == nil {
			if states[s.VNI], err = a.kernel.Read(ctx, hoststate.Scope{VNI: s.VNI}); err != nil {
				break
			}
		}
		out.Views = append(out.Views, viewOf(x, s, knows, all, states[s.VNI]))
	}
	if err != nil {
		out.Failed, out.Views = err.Error(), nil
	}
	a.out.saw(out)
}

// viewOf compares what is wanted with what was read.
func viewOf(q api.LookQuery, s agentcore.Sight, knows bool, all, tables *hoststate.State) api.LookView {
	v := api.LookView{Served: s.Served, Device: s.Device, Passes: s.Passes, Refused: s.Refused}
	names := map[int32]string{}
	for _, l := range all.Links {
		names[l.Index] = l.Name
	}
	text := func(r hoststate.Row) string {
		return strings.TrimSuffix(r.Named(func(i int32) string {
			if n, ok := names[i]; ok {
				return n
			}
			return fmt.Sprintf("if%d", i)
		}), " ")
	}
	have := func(k hoststate.Key) (hoststate.Val, bool) {
		if tables != nil {
			if v, ok := tables.Rows[k]; ok {
				return v, true
			}
		}
		v, ok := all.Rows[k]
		return v, ok
	}
	compare := func(want hoststate.Row) {
		row := api.LookRow{Row: text(want), State: api.RowHeld}
		switch is, ok := have(want.Key); {
		case !ok:
			row.State = api.RowMissing
		case is != want.Val:
			row.State, row.Have = api.RowDiffers, text(hoststate.Row{Key: want.Key, Val: is})
		}
		v.Rows = append(v.Rows, row)
	}
	wanted := map[hoststate.Key]bool{}
	if q.VTEP.IsValid() && knows {
		compare(hoststate.Row{Key: hoststate.Key{Table: hoststate.TableVTEP, IP: q.VTEP}})
	}
	for _, r := range s.Rows {
		wanted[r.Key] = true
		compare(r)
	}
	if tables != nil {
		for _, r := range hoststate.SortedRows(tables.Rows) {
			if !wanted[r.Key] && r.About(s.MACs, q.Address) {
				v.Rows = append(v.Rows, api.LookRow{Row: text(r), State: api.RowStray})
			}
		}
	}
	return v
}
