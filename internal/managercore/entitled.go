package managercore

import "culvert/internal/overlay"

// Concerns reports whether the host of that name is told of a network: it may
// serve it, or one that policies open a way to or from, or join to it. That
// changes by a change of the network's own record, or of the hosts of one of the
// others; with those its record is written, too (see spread), so that the log
// of the fleet brings it to whom it concerns from then on.
func (v *View) Concerns(host string, n *overlay.Network) bool {
	if n.SelectsHost(host) {
		return true
	}
	for _, list := range [...][]overlay.UID{n.Reach, n.From, n.Bridge} {
		for _, uid := range list {
			if o := v.Network(uid); o != nil && o.SelectsHost(host) {
				return true
			}
		}
	}
	return false
}

// withheld is what a host is told in place of a network's record that does not
// concern it: that there is no such network. It may have been told of it before.
func withheld(it *Item, n *overlay.Network) *Item {
	if it.Gone {
		return it
	}
	none := &overlay.Network{Meta: overlay.Meta{UID: n.UID, Name: n.Name}, TenantName: n.TenantName, VNI: n.VNI, MTU: n.MTU}
	return newItem(none, it.Rev, true)
}

// spread writes the networks that have a way to or from one which more hosts may
// serve now: they concern those hosts, too.
func (a *admission) spread() {
	for _, uid := range sortedUIDs(a.wider) {
		rec, _ := a.get(Key{Kind: overlay.KindNetwork, UID: uid})
		n := rec.(*overlay.Network)
		for _, list := range [...][]overlay.UID{n.Reach, n.From, n.Bridge} {
			for _, other := range list {
				k := Key{Kind: overlay.KindNetwork, UID: other}
				if _, written := a.seen[k]; written {
					continue
				}
				rec, _ := a.get(k)
				o := *rec.(*overlay.Network)
				o.Cause, o.Changed = n.Cause, n.Changed
				a.tx.put(&o)
			}
		}
	}
}
