package managercore

import (
	"testing"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// TestDistributionIsAChange: a network is distributed as its document says, from
// the beginning or from any time on, and what else it is stays.
func TestDistributionIsAChange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	demand := func(d overlay.Doc) overlay.Doc {
		d.Network.Distribution = overlay.DistributeOnDemand
		return d
	}
	for name, first := range map[string]overlay.Doc{"born so": demand(network("a", "10.1.0.0/24")), "become so": network("b", "10.2.0.0/24")} {
		r.must(ModeCreate, first, port("p"+first.Name, first.Name))
		uid := r.net(first.Name).UID
		for _, want := range []overlay.Distribution{overlay.DistributeOnDemand, overlay.DistributePush, overlay.DistributeOnDemand} {
			d := first
			d.Network.Distribution = want
			r.must(ModeApply, d)
			if x := r.must(ModeApply, d); x.Changes[0].Action != "unchanged" {
				t.Errorf("%s: applying %v again: %s", name, want, x.Changes[0].Action)
			}
			r.load()
			if n := r.net(first.Name); n.Distribution != want || n.UID != uid || len(n.Subnets) != 1 {
				t.Errorf("%s: %+v, want it distributed %v", name, n, want)
			}
		}
		d := first
		d.Network.Distribution = overlay.DistributePush
		r.refused(api.CodeExists, r.put(ModeCreate, d))
	}
}
