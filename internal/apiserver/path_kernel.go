package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// kernels asks the hosts of both ends what they hold: each of its own end's
// device, and of the other end.
func (p *path) kernels(ctx context.Context, b Backend) {
	var sides [2]struct {
		looked api.Looked
		ok     bool
	}
	ends := [2]*end{&p.from, &p.to}
	var wg sync.WaitGroup
	for i, e := range ends {
		if e.alive() {
			q := p.queries(e, ends[1-i])
			wg.Go(func() { sides[i].looked, sides[i].ok = b.Look(ctx, e.host.UID, q) })
		}
	}
	wg.Wait()
	for i, e := range ends {
		other := ends[1-i]
		if !e.alive() || !p.answered(e.host.Name, sides[i].looked, sides[i].ok, len(p.queries(e, other))) {
			continue
		}
		views := sides[i].looked.Views
		if p.device(e, views[0]); len(views) > 1 && views[0].Served {
			p.towards(e, other, views[1], i == 1)
		}
	}
}

// queries are what a host is asked. In another network's tables an endpoint is
// found by its address, for its MAC is another there.
func (p *path) queries(e, other *end) []api.LookQuery {
	q := []api.LookQuery{{Network: e.net.UID, MAC: e.ep.MAC}}
	if !other.alive() {
		return q
	}
	o := api.LookQuery{Network: e.net.UID, Address: other.addr}
	if other.net.UID == e.net.UID {
		o.MAC = other.ep.MAC
	}
	if other.host.UID != e.host.UID {
		o.VTEP = other.host.VTEP
	}
	return append(q, o)
}

// answered reports whether a host told what it holds; if not it is not known
// that the path is whole.
func (p *path) answered(h string, l api.Looked, ok bool, want int) bool {
	cure := "culvert status host " + h
	switch {
	case !ok:
		p.fails(h, aboutTable, "the agent is not connected or does not answer, so that it is not known what the kernel holds", cure)
	case l.Failed != "":
		p.fails(h, aboutTable, "the kernel was not read: "+l.Failed, cure)
	case len(l.Views) != want:
		p.fails(h, aboutTable, "the agent's answer is not whole", cure)
	default:
		return true
	}
	return false
}

// device says how it is with the device of an end on its host.
func (p *path) device(e *end, v api.LookView) {
	h := e.host.Name
	switch {
	case !v.Served:
		p.fails(h, aboutPort, "network "+p.net(e.net)+" has no tables", "culvert status host "+h)
		return
	case v.Device == "":
		p.fails(h, aboutPort, e.name+" has no device", "on "+h+": culvert attach "+e.name+" --dev DEVICE")
	case !v.Passes && v.Refused != "":
		p.fails(h, aboutPort, fmt.Sprintf("device %s passes nothing: %s", v.Device, v.Refused), "culvert port show "+e.name)
	case !v.Passes:
		p.fails(h, aboutPort, fmt.Sprintf("device %s does not forward", v.Device), "on "+h+": bridge link show dev "+v.Device)
	default:
		p.step(h, aboutPort, stepOK, "device "+v.Device+" passes its frames")
	}
	p.compared(h, v)
}

// towards says what a host's kernel holds about the other end; back: for the
// answers.
func (p *path) towards(e, other *end, v api.LookView, back bool) {
	h := e.host.Name
	leads := slices.ContainsFunc(v.Rows, func(r api.LookRow) bool {
		return r.State != api.RowStray && (strings.HasPrefix(r.Row, "fdb ") || strings.HasPrefix(r.Row, "master "))
	})
	switch {
	case leads:
	case back && e.net.UID != other.net.UID && !contains(e.net.Reach, other.net.UID) && !contains(e.net.Bridge, other.net.UID):
		// Nothing opens that way, as was said.
	case p.why != "":
		// What the records do not let happen is in no kernel.
	case e.net.Distribution == overlay.DistributeOnDemand || other.net.Distribution == overlay.DistributeOnDemand:
		p.step(h, aboutTable, stepNote, "there is no entry for "+other.name+": it is fetched when it is asked for, on demand")
	default:
		p.fails(h, aboutTable, "no entry leads to "+other.name, "culvert status host "+h)
	}
	p.compared(h, v)
}

// compared tells each row, and what is otherwise than planned.
func (p *path) compared(h string, v api.LookView) {
	const repairs = "the agent repairs it; if it does not: culvert status host "
	for _, r := range v.Rows {
		switch r.State {
		case api.RowHeld:
			p.step(h, aboutTable, stepOK, r.Row)
		case api.RowMissing:
			p.fails(h, aboutTable, "the kernel lacks: "+r.Row, repairs+h)
		case api.RowDiffers:
			p.fails(h, aboutTable, "the kernel has "+r.Have+" in place of: "+r.Row, repairs+h)
		case api.RowStray:
			p.step(h, aboutTable, stepNote, "the kernel has, and nobody wants: "+r.Row)
		}
	}
}
