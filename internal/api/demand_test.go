package api

import (
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

func genWant(t *rapid.T, label string) overlay.Want {
	w := overlay.Want{Network: genUID(t, label)}
	switch rapid.IntRange(0, 2).Draw(t, label+" by") {
	case 0:
		w.Address = genAddr(t, label)
	case 1:
		w.MAC = genMAC(t, label)
	default:
		w.Name = rapid.StringMatching(`[a-z][a-z0-9]{0,20}`).Draw(t, label)
	}
	return w
}

func genWants(t *rapid.T, label string) []overlay.Want {
	var out []overlay.Want
	for range rapid.IntRange(0, 3).Draw(t, label) {
		out = append(out, genWant(t, label))
	}
	return out
}

func genDemands(t *rapid.T) []Demand {
	out := []Demand{}
	for range rapid.IntRange(0, 4).Draw(t, "demands") {
		d := Demand{Want: genWant(t, "demand"), Drop: rapid.Bool().Draw(t, "drop")}
		if rapid.Bool().Draw(t, "a guest asked") {
			d.For = genMAC(t, "asker")
		}
		out = append(out, d)
	}
	return out
}

func genNextHops(t *rapid.T) []overlay.NextHop {
	var out []overlay.NextHop
	for i := range rapid.IntRange(0, 3).Draw(t, "next hops") {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16)
		if i == 2 {
			p = netip.MustParsePrefix("fd00:7::/64")
		}
		out = append(out, overlay.NextHop{Prefix: p, Network: genUID(t, "next hop's network"), MAC: genMAC(t, "next hop")})
	}
	return out
}

func TestDemandRefusals(t *testing.T) {
	uid, mac := make16(), []byte{2, 0, 0, 0, 0, 1}
	want := func(f func(*culvertv1.Want)) *culvertv1.Want {
		w := &culvertv1.Want{Network: uid, Mac: mac}
		f(w)
		return w
	}
	good := want(func(*culvertv1.Want) {})
	up := func(ds ...*culvertv1.Demand) *culvertv1.Up {
		return &culvertv1.Up{Body: &culvertv1.Up_Demands{Demands: &culvertv1.Demands{Demands: ds}}}
	}
	down := func(it *culvertv1.Items) *culvertv1.Down {
		return &culvertv1.Down{Body: &culvertv1.Down_Items{Items: it}}
	}
	many := make([]*culvertv1.Demand, MaxStreamDemands)
	for i := range many {
		many[i] = &culvertv1.Demand{Want: good}
	}
	if _, err := overWire(up(many...)); err != nil {
		t.Errorf("as many demands as a message may have: %v", err)
	}
	for name, c := range map[string]struct {
		pb   proto.Message
		want string
	}{
		"no want":           {up(&culvertv1.Demand{}), "demand's network"},
		"nothing wanted":    {up(&culvertv1.Demand{Want: want(func(w *culvertv1.Want) { w.Mac = nil })}), "number of things in demand"},
		"two things wanted": {up(&culvertv1.Demand{Want: want(func(w *culvertv1.Want) { w.Name = "vm1" })}), "number of things in demand"},
		"all three":         {up(&culvertv1.Demand{Want: want(func(w *culvertv1.Want) { w.Name, w.Address = "vm1", []byte{10, 0, 0, 1} })}), "number of things in demand"},
		"no network":        {up(&culvertv1.Demand{Want: want(func(w *culvertv1.Want) { w.Network = nil })}), "demand's network"},
		"group MAC":         {up(&culvertv1.Demand{Want: want(func(w *culvertv1.Want) { w.Mac = []byte{1, 0, 0, 0, 0, 1} })}), "demand's MAC"},
		"multicast address": {up(&culvertv1.Demand{Want: want(func(w *culvertv1.Want) { w.Mac, w.Address = nil, []byte{224, 0, 0, 1} })}), "demand's address"},
		"no such name":      {up(&culvertv1.Demand{Want: want(func(w *culvertv1.Want) { w.Mac, w.Name = nil, strings.Repeat("x", overlay.MaxName+1) })}), "demand's name"},
		"asker of 5 bytes":  {up(&culvertv1.Demand{Want: good, Asker: mac[:5]}), "who asked"},
		"too many demands":  {up(append(many, many[0])...), "number of demands"},
		"told nothing":      {down(&culvertv1.Items{Told: []*culvertv1.Want{{Network: uid}}}), "number of things in wants told"},
		"dropped two":       {down(&culvertv1.Items{Dropped: []*culvertv1.Want{{Network: uid, Mac: mac, Name: "x"}}}), "number of things in wants dropped"},
		"too many told":     {down(&culvertv1.Items{Told: make([]*culvertv1.Want, MaxStreamItems+1)}), "number of wants told"},
		"member nobody":     {down(&culvertv1.Items{Members: []*culvertv1.MemberItem{{Network: uid}}}), "member"},
		"member of nothing": {down(&culvertv1.Items{Members: []*culvertv1.MemberItem{{Host: uid}}}), "member's network"},
		"too many members":  {down(&culvertv1.Items{Members: make([]*culvertv1.MemberItem, MaxStreamMembers+1)}), "number of members"},
	} {
		var err error
		switch pb := c.pb.(type) {
		case *culvertv1.Up:
			_, err = overWire(pb)
		case *culvertv1.Down:
			_, err = downOverWire(pb)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a refusal of the %s", name, err, c.want)
		}
	}
}
