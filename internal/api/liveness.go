package api

import (
	"net/netip"
	"time"

	"culvert/internal/api/culvertv1"
)

// MaxProbe is the longest that a witness may take, and the longest time
// between two breaths.
const MaxProbe = time.Minute

// Probe asks an agent to be a witness: does this tunnel end point answer ICMP
// echo requests (RFC 792, RFC 4443 section 4)?
type Probe struct {
	ID     uint64 // the manager's own, never 0; comes back in the result
	VTEP   netip.Addr
	Within time.Duration // whole milliseconds; after it the result is due
}

// ProbeResult is what became of a Probe.
type ProbeResult struct {
	ID       uint64
	Answered bool
	// Unable: the probe could not be carried out, which says nothing about the
	// host that was asked after.
	Unable bool
}

func millis(d time.Duration) uint32 { return uint32(min(d, MaxProbe) / time.Millisecond) }

func (d *streamDecoder) millis(ms uint32, what string) time.Duration {
	t := time.Duration(ms) * time.Millisecond
	if t > MaxProbe {
		d.refuse(what)
		return 0
	}
	return t
}

func probePB(p *Probe) *culvertv1.Down {
	return &culvertv1.Down{Body: &culvertv1.Down_Probe{Probe: &culvertv1.Probe{Id: p.ID, Vtep: addrBytes(p.VTEP), WithinMs: millis(p.Within)}}}
}

func probeResultPB(r *ProbeResult) *culvertv1.Up {
	return &culvertv1.Up{Body: &culvertv1.Up_ProbeResult{ProbeResult: &culvertv1.ProbeResult{Id: r.ID, Answered: r.Answered, Unable: r.Unable}}}
}

func (d *streamDecoder) probe(pb *culvertv1.Probe) *Probe {
	p := &Probe{ID: pb.GetId(), VTEP: d.addr(pb.GetVtep(), "VTEP to probe", true), Within: d.millis(pb.GetWithinMs(), "time for a probe")}
	if p.ID == 0 || p.Within == 0 {
		d.refuse("probe without number or time")
	}
	return p
}

func (d *streamDecoder) probeResult(pb *culvertv1.ProbeResult) *ProbeResult {
	r := &ProbeResult{ID: pb.GetId(), Answered: pb.GetAnswered(), Unable: pb.GetUnable()}
	if r.ID == 0 || r.Answered && r.Unable {
		d.refuse("result of a probe")
	}
	return r
}
