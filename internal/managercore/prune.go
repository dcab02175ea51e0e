package managercore

import "culvert/internal/overlay"

// Bounds of a network's tombstones. Beyond the higher one the oldest are
// thrown away down to the lower, and the log's floor rises: an agent that was
// away for longer gets a full pass instead of a difference.
const (
	maxTombstones  = 2000
	keepTombstones = 1000
)

// prune throws away a network's oldest tombstones once there are too many. The
// floor is committed with them, so that no later manager believes an agent to
// be up to date that missed them.
func (c *Core) prune(network overlay.UID) {
	l := c.nets[network]
	if c.lost || l == nil || l.Len()-l.Live() <= maxTombstones || c.pruning[network] {
		return
	}
	drop := l.Len() - l.Live() - keepTombstones
	t := c.begin()
	var floor overlay.Rev
	for it := range l.After(overlay.Rev{Epoch: c.cfg.Epoch}) {
		if len(t.ch.writes) == drop {
			break
		}
		if w := c.rows[it.Key]; it.Gone && w != nil && w.gone && w.busy == 0 {
			t.purge(it.Key)
			floor = it.Rev
		}
	}
	if t.empty() {
		return
	}
	t.put(&overlay.Floor{Network: network, Rev: floor})
	c.pruning[network] = true
	t.commit(func(overlay.Rev) { delete(c.pruning, network) }, nil)
}

// purgeFleet throws away a tombstone of the fleet's log, and commits the log's
// floor with that: an agent that has not heard of it, or that lost what it knew
// and heard an older store, is told everything anew, by later managers too.
func (c *Core) purgeFleet(t *tx, k Key) {
	t.purge(k)
	if it := c.fleet.Get(k); it != nil && c.floor.Less(it.Rev) {
		c.floor = it.Rev
		t.put(&overlay.Floor{Rev: it.Rev})
	}
}

// unreadKind reports whether no agent reads records of the kind: nobody needs
// their tombstones.
func unreadKind(k overlay.Kind) bool {
	return k == overlay.KindTenant || k == overlay.KindDomain || k == overlay.KindPolicy
}

// forget deletes a tombstone that no reader needs.
func (c *Core) forget(k Key) {
	if w := c.rows[k]; c.lost || w == nil || !w.gone || w.busy > 0 {
		return
	}
	t := c.begin()
	t.purge(k)
	t.commit(nil, nil)
}
