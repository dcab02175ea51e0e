package overlay

import (
	"testing"

	"pgregory.net/rapid"
)

// Two holders of the same log have the same sum, in whatever order they got
// there, and whatever stood in it meanwhile.
func TestSumForgetsTheWay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type entry struct {
			k   Key
			rev Rev
		}
		var all []entry
		for i := range rapid.IntRange(0, 10).Draw(t, "entries") {
			k := Key{Kind: KindEndpoint, UID: UID{1}, MAC: MAC{2, byte(i)}}
			if rapid.Bool().Draw(t, "port") {
				k = Key{Kind: KindPort, UID: UID{byte(i)}}
			}
			all = append(all, entry{k, Rev{Epoch: 1, N: rapid.Uint64Range(1, 1000).Draw(t, "rev")}})
		}
		var straight, around Sum
		for _, e := range all {
			straight.Add(e.k, e.rev)
		}
		for _, e := range rapid.Permutation(all).Draw(t, "order") {
			around.Add(e.k, Rev{Epoch: 1, N: e.rev.N + 5000}) // it changed later, and back
			around.Sub(e.k, Rev{Epoch: 1, N: e.rev.N + 5000})
			around.Add(e.k, e.rev)
		}
		if straight != around {
			t.Fatalf("sums %v and %v", straight, around)
		}
		back, err := SumFromBytes(straight.Bytes())
		if err != nil || back != straight {
			t.Fatalf("%v after the wire: %v, %v", straight, back, err)
		}
		if len(all) > 0 {
			around.Sub(all[0].k, all[0].rev)
			around.Add(all[0].k, Rev{Epoch: 2, N: all[0].rev.N})
			if straight == around {
				t.Fatal("another epoch gives the same sum")
			}
		}
	})
}

func TestSumRefusesOtherLengths(t *testing.T) {
	for _, n := range []int{0, 15, 17} {
		if s, err := SumFromBytes(make([]byte, n)); err == nil {
			t.Errorf("%d bytes were taken as %v", n, s)
		}
	}
}
