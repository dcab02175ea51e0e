package sim

import (
	"culvert/internal/kernel/kerneltest"
	"culvert/internal/managercore"
)

// Probes are made at rest, one thing at a time, where chance would rarely make
// them or something else would cover what went wrong.

// lostEvents lets somebody delete a row while the kernel loses the event and
// says so: it is repaired at once, not only when the slow verify comes round.
func (w *world) lostEvents() {
	for _, p := range w.placements() {
		h, vni := p.nic.host, p.net.VNI
		rows := h.kernel.Rows(vni)
		if len(rows) == 0 || h.readAt[vni]+verify < w.now+3*second {
			continue
		}
		r := rows[w.pick(len(rows))]
		w.log("probe: %s loses %v, and the event", h.name, r)
		h.touch(func(m *kerneltest.Model) { m.DeleteRow(r.Key); m.Overflow() })
		w.run(w.now + 2*second)
		if v, ok := h.kernel.Row(r.Key); !ok || v != r.Val {
			w.fail("%s lost events and did not look: %v is not repaired after two seconds", h.name, r)
		}
		w.run(w.now + 10*second)
		w.judge("after lost events")
		return
	}
}

// oldInventory lets the end of a former session's inventory arrive when the
// host has a new session that has claimed nothing yet.
func (w *world) oldInventory() {
	for _, p := range w.placements() {
		h := p.nic.host
		if h.stream == nil {
			continue
		}
		old := h.session
		w.log("probe: the inventory of session %d of %s ends late", old, h.name)
		h.stream.cut()
		for range 5000 {
			if w.run(w.now + milli/4); h.session != old {
				break
			}
		}
		w.mgr.step(managercore.InventoryEnded{Host: h.uid, Session: old})
		w.run(w.now + 10*second)
		w.judge("after a late inventory")
		return
	}
}
