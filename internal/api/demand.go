package api

import (
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Demand has the fields of agentcore.Demand, in their order, so that each
// converts to the other.
type Demand struct {
	overlay.Want
	For  overlay.MAC // of the guest that asked; zero if none did
	Drop bool
}

func demandsPB(in []Demand) *culvertv1.Up {
	out := &culvertv1.Demands{}
	for i := range in {
		x := &in[i]
		out.Demands = append(out.Demands, &culvertv1.Demand{Want: wantPB(x.Want), Asker: macBytes(x.For), Drop: x.Drop})
	}
	return &culvertv1.Up{Body: &culvertv1.Up_Demands{Demands: out}}
}

func wantPB(w overlay.Want) *culvertv1.Want {
	return &culvertv1.Want{Network: uidBytes(w.Network), Address: addrBytes(w.Address), Mac: macBytes(w.MAC), Name: w.Name}
}

func wantsPB(in []overlay.Want) []*culvertv1.Want {
	var out []*culvertv1.Want
	for _, w := range in {
		out = append(out, wantPB(w))
	}
	return out
}

func membersPB(in []overlay.Member) []*culvertv1.MemberItem {
	var out []*culvertv1.MemberItem
	for _, m := range in {
		out = append(out, &culvertv1.MemberItem{Network: uidBytes(m.Network), Host: uidBytes(m.Host), Gone: m.Gone})
	}
	return out
}

func (d *streamDecoder) demands(pb *culvertv1.Demands) []Demand {
	out := []Demand{}
	if !d.most(len(pb.GetDemands()), MaxStreamDemands, "demands") {
		return out
	}
	for _, x := range pb.GetDemands() {
		out = append(out, Demand{Want: d.want(x.GetWant(), "demand"), For: d.mac(x.GetAsker(), "who asked", false), Drop: x.GetDrop()})
	}
	return out
}

// want reads one that says one thing.
func (d *streamDecoder) want(pb *culvertv1.Want, what string) overlay.Want {
	w := overlay.Want{
		Network: d.uid(pb.GetNetwork(), what+"'s network", true), Address: d.addr(pb.GetAddress(), what+"'s address", false),
		MAC: d.mac(pb.GetMac(), what+"'s MAC", false), Name: pb.GetName(),
	}
	said := 0
	for _, has := range [...]bool{len(pb.GetAddress()) > 0, len(pb.GetMac()) > 0, w.Name != ""} {
		if has {
			said++
		}
	}
	if said != 1 {
		d.refuse("number of things in " + what)
	}
	if w.Name != "" && overlay.CheckName("name", w.Name) != nil {
		d.refuse(what + "'s name")
	}
	return w
}

func (d *streamDecoder) wants(in []*culvertv1.Want, what string) []overlay.Want {
	if !d.most(len(in), MaxStreamItems, what) {
		return nil
	}
	var out []overlay.Want
	for _, w := range in {
		out = append(out, d.want(w, what))
	}
	return out
}

func (d *streamDecoder) members(in []*culvertv1.MemberItem) []overlay.Member {
	if !d.most(len(in), MaxStreamMembers, "members") {
		return nil
	}
	var out []overlay.Member
	for _, m := range in {
		out = append(out, overlay.Member{Network: d.uid(m.GetNetwork(), "member's network", true), Host: d.uid(m.GetHost(), "member", true), Gone: m.GetGone()})
	}
	return out
}
