package sim

import (
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// reached is the newest mark in the host's kernel.
func (h *host) reached() (newest overlay.Rev) {
	for _, r := range h.kernel.GlobalRows() {
		if rev, ok := r.Key.Mark(cluster); ok && newest.Less(rev) {
			newest = rev
		}
	}
	return newest
}

// storeWentBack kills the agent with its disk and lets it meet, when it is up
// again, a manager that knows no more than was so some time ago, and that asks
// nobody how far it has come. The other agents are left out: they have their
// journals, and the manager's own check is tested elsewhere.
func (h *host) storeWentBack(down int64) {
	w := h.w
	if !h.up {
		return
	}
	h.poor = w.old
	h.misled = w.now + down + 20*second
	w.log("%s meets a manager at revision %d, its kernel holds %d", h.name, w.old.At.N, h.reached().N)
	h.stopAgent(true, down)
	w.after(down+w.between(second, 6*second), func() {
		w.log("%s meets its own manager again", h.name)
		h.poor = nil
		if h.stream != nil {
			h.stream.cut()
		}
	})
}

// checkPoor: whatever a manager with an older store says, nothing is taken away
// and nothing that stands is changed.
func (h *host) checkPoor(op hoststate.Op) {
	if h.poor == nil {
		return
	}
	if _, there := h.kernel.LinkAt(op.Row.Key.Port); op.Kind == hoststate.OpDel && op.Row.Key.Port != 0 && !there {
		return // of a device that has gone
	}
	switch op.Kind {
	case hoststate.OpDel, hoststate.OpDelLink:
		h.w.fail("%s: %v, told by a manager at revision %d while the kernel holds %d", h.name, op, h.poor.At.N, h.reached().N)
	case hoststate.OpSet:
		if v, ok := h.kernel.Row(op.Row.Key); ok && v != op.Row.Val {
			h.w.fail("%s: %v replaces %v, told by a manager at revision %d while the kernel holds %d", h.name, op, v, h.poor.At.N, h.reached().N)
		}
	}
}
