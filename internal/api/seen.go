package api

import (
	"net/netip"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Bounds of a Report beside MaxReportLines.
const (
	// MaxRefused bounds what is told of refusals.
	MaxRefused = 16
	// MaxGroups bounds the groups of one port.
	MaxGroups = 64
	// maxCounts is above the number of reasons for which a frame is dropped, or
	// not read.
	maxCounts = 256
)

// Report is what status shows of a host; no decision rests on it.
type Report struct {
	Problems, Unclaimed []string
	Repairs, Strangers  uint64
	// Drops are frames that the host's programs dropped, Unread those that were
	// handed up and not read; by reason, sorted.
	Drops, Unread []overlay.Count
	Refused       []overlay.Refused // at most MaxRefused
	RefusedMore   uint32            // how many there are besides
	// Seen is sent when it is another than in the last report of the stream;
	// nil: it is not. Of more than MaxReportLines ports the last ones are left
	// out.
	Seen []overlay.Seen
}

func reportPB(r *Report) *culvertv1.Report {
	out := &culvertv1.Report{
		Problems: lines(r.Problems), Unclaimed: lines(r.Unclaimed), Repairs: r.Repairs, Strangers: r.Strangers,
		Drops: countsPB(r.Drops), Unread: countsPB(r.Unread), RefusedMore: r.RefusedMore,
	}
	for _, x := range r.Refused {
		out.Refused = append(out.Refused, &culvertv1.Refused{
			Network: uidBytes(x.Network), Mac: macBytes(x.MAC), Address: addrBytes(x.Address), Device: text(x.Device), Reason: text(x.Reason),
		})
	}
	if r.Seen == nil {
		return out
	}
	out.Seen = &culvertv1.Seen{}
	for _, s := range r.Seen[:min(len(r.Seen), MaxReportLines)] {
		out.Seen.Ports = append(out.Seen.Ports, &culvertv1.SeenPort{
			Network: uidBytes(s.Network), Mac: macBytes(s.MAC), Groups: addrsBytes(s.Groups), Drops: countsPB(s.Drops),
		})
	}
	return out
}

func countsPB(in []overlay.Count) (out []*culvertv1.Count) {
	for _, c := range in {
		out = append(out, &culvertv1.Count{Reason: text(c.Reason), Count: c.N})
	}
	return out
}

func (d *streamDecoder) report(pb *culvertv1.Report) *Report {
	r := &Report{
		Problems: d.lines(pb.GetProblems(), "problems"), Unclaimed: d.lines(pb.GetUnclaimed(), "unclaimed devices"),
		Repairs: pb.GetRepairs(), Strangers: pb.GetStrangers(),
		Drops: d.counts(pb.GetDrops(), "drops"), Unread: d.counts(pb.GetUnread(), "unread frames"), RefusedMore: pb.GetRefusedMore(),
	}
	if d.most(len(pb.GetRefused()), MaxRefused, "refusals") {
		for _, x := range pb.GetRefused() {
			r.Refused = append(r.Refused, overlay.Refused{
				Network: d.uid(x.GetNetwork(), "refusal's network", true), MAC: d.mac(x.GetMac(), "refusal's MAC", false),
				Address: d.refused(x.GetAddress()), Device: d.text(x.GetDevice(), "refusal's device"), Reason: d.text(x.GetReason(), "reason"),
			})
		}
	}
	if pb.GetSeen() == nil || !d.most(len(pb.GetSeen().GetPorts()), MaxReportLines, "ports") {
		return r
	}
	r.Seen = []overlay.Seen{}
	for _, s := range pb.GetSeen().GetPorts() {
		r.Seen = append(r.Seen, overlay.Seen{
			Network: d.uid(s.GetNetwork(), "port's network", true), MAC: d.mac(s.GetMac(), "port's MAC", true),
			Groups: d.groups(s.GetGroups()), Drops: d.counts(s.GetDrops(), "drops of a port"),
		})
	}
	return r
}

func (d *streamDecoder) counts(in []*culvertv1.Count, what string) (out []overlay.Count) {
	if d.most(len(in), maxCounts, what) {
		for _, c := range in {
			out = append(out, overlay.Count{Reason: d.text(c.GetReason(), "reason"), N: c.GetCount()})
		}
	}
	return out
}

func (d *streamDecoder) groups(in [][]byte) (out []netip.Addr) {
	if !d.most(len(in), MaxGroups, "groups of a port") {
		return nil
	}
	for _, b := range in {
		a, ok := netip.AddrFromSlice(b)
		if !ok || !a.IsMulticast() || a.Is4In6() {
			d.refuse("group")
		}
		out = append(out, a)
	}
	return out
}

// refused is an address that is refused, which may be any that a guest can
// speak of; invalid if there is none.
func (d *streamDecoder) refused(b []byte) netip.Addr {
	if len(b) == 0 {
		return netip.Addr{}
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || a.Is4In6() {
		d.refuse("refused address")
	}
	return a
}

func addressRefusalsPB(in []overlay.AddressRefusal) (out []*culvertv1.AddressRefusal) {
	for _, r := range in {
		out = append(out, &culvertv1.AddressRefusal{Address: addrBytes(r.Address), Reason: text(r.Reason)})
	}
	return out
}

func (d *streamDecoder) addressRefusals(in []*culvertv1.AddressRefusal) (out []overlay.AddressRefusal) {
	if len(in) > maxRecordAddresses {
		d.refuse("number of refused addresses")
		return nil
	}
	for _, r := range in {
		out = append(out, overlay.AddressRefusal{Address: d.addr(r.GetAddress(), "refused address", true), Reason: d.text(r.GetReason(), "reason")})
	}
	return out
}
