package managercore

import (
	"bytes"
	"fmt"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// outdated reports whether d was read at a revision that its record is no
// longer at: the working state counts, so a change that is on its way to the
// store counts too.
func (a *admission) outdated(d *overlay.Doc) bool {
	if d.Seen.IsZero() {
		return false
	}
	rec := a.exists(d)
	if rec == nil {
		return true
	}
	return d.Seen != overlay.Rev{Epoch: a.c.cfg.Epoch, N: a.c.rows[KeyOf(rec)].n} || !a.c.settled(rec)
}

// settled reports whether the working record is what the store has of it. busy
// alone does not tell: a revision is seen some time before its transaction is
// known to be done, and whoever read it meanwhile has read the newest.
func (c *Core) settled(rec overlay.Record) bool {
	w := c.rows[KeyOf(rec)]
	if w == nil || w.busy == 0 {
		return true
	}
	it := c.logged(rec)
	return it != nil && bytes.Equal(api.MarshalStore(it.Rec, it.Gone), api.MarshalStore(w.rec, w.gone))
}

// logged is what the store has of a record that users write, tombstones
// included; nil if it has nothing.
func (c *Core) logged(rec overlay.Record) *Item {
	l := c.fleet
	switch r := rec.(type) {
	case *overlay.Tenant, *overlay.Domain, *overlay.Policy:
		l = c.tenants
	case *overlay.Port:
		l = c.nets[r.Network]
	}
	if l == nil {
		return nil
	}
	return l.Get(KeyOf(rec))
}

// refuseStale takes the request back and refuses it because of d. While the
// change that came first is not yet in the view, the answer waits for it: then
// it names the revision that is in the way, and a caller who reads again finds
// that revision, and does not turn in a circle until the store has written.
func (a *admission) refuseStale(d overlay.Doc) {
	a.rollback()
	a.unfree()
	c, id, rec := a.c, a.req.ID, a.exists(&d)
	answer := func() { c.reply(Reply{ID: id, Refusal: c.stale(&d, rec)}) }
	if rec == nil || c.settled(rec) {
		answer()
		return
	}
	ch := c.last(KeyOf(rec))
	then, fail := ch.then, ch.fail
	ch.then = func(rev overlay.Rev) {
		if then != nil {
			then(rev)
		}
		answer()
	}
	ch.fail = func() {
		if fail != nil {
			fail()
		}
		c.reply(Reply{ID: id, Refusal: refuseLost()})
	}
}

// last is the newest change that writes k and is not released; there is one as
// long as the row of k is busy.
func (c *Core) last(k Key) *change {
	for _, list := range [][]*change{c.queue, c.inflight, c.done} {
		for i := len(list) - 1; i >= 0; i-- {
			for _, w := range list[i].writes {
				if w.Key == k {
					return list[i]
				}
			}
		}
	}
	return nil
}

// stale says what came first: rec is the record of d, nil if there is none.
func (c *Core) stale(d *overlay.Doc, rec overlay.Record) *api.Refusal {
	what, seen := title(d)+" was not written", "the document was read at revision "+d.Seen.String()
	var it *Item
	if rec != nil {
		it = c.logged(rec)
	}
	if it == nil || it.Gone {
		why := seen + ", and no " + d.Kind.String() + " has that name now"
		if it != nil {
			why = fmt.Sprintf("%s, and revision %s has deleted it (%s)", seen, it.Rev, causeOf(it.Rec))
		}
		return api.Refuse(api.CodeStale, what, why, fmt.Sprintf("leave metadata.revision out to make it anew, or see what there is: culvert %s list", d.Kind))
	}
	return api.Refuse(api.CodeStale, what, fmt.Sprintf("%s, and it is at revision %s now (%s)", seen, it.Rev, causeOf(it.Rec)),
		fmt.Sprintf("repeat the change on what is there now, or leave metadata.revision out to overwrite it: culvert %s show %s", d.Kind, qualified(d.Tenant, d.Name)))
}

// causeOf is who changed a record last and how: "operator admin: network set".
func causeOf(rec overlay.Record) string {
	switch r := rec.(type) {
	case *overlay.Tenant:
		return r.Cause
	case *overlay.Network:
		return r.Cause
	case *overlay.Port:
		return r.Cause
	case *overlay.Domain:
		return r.Cause
	case *overlay.Policy:
		return r.Cause
	case *overlay.Gateway:
		return r.Cause
	}
	return ""
}
