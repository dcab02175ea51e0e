package api

import (
	"net/netip"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Claims are claims of one session, in the order in which they were made.
type Claims struct {
	Session uint64
	Claims  []Claim
}

// Claim has the fields of agentcore.Claim and managercore.Claim, in their
// order, so that each converts to the other.
type Claim struct {
	ID       uint64
	Network  overlay.UID
	MAC      overlay.MAC
	Port     overlay.UID // zero with Leave, or of an undeclared endpoint
	Base     overlay.Rev
	Evidence overlay.Evidence
	Leave    bool
	// Pre: the endpoint is expected here (RFC 8394, pre-associate), or with
	// Leave not any more.
	Pre bool
	// Addresses of an undeclared endpoint, sorted; of a declared one, shared
	// addresses that it has announced.
	Addresses []netip.Addr
	// Heard is up to where the agent had the log when the shared addresses were
	// announced.
	Heard overlay.Rev
}

// Answer is what became of one claim. It has the fields of
// managercore.ClaimAnswer and agentcore.Answered, in their order.
type Answer struct {
	ID       uint64
	Accepted bool
	Binding  overlay.Rev
	Reason   string
	Refused  []overlay.AddressRefusal // of an accepted endpoint
	Disputed bool                     // another, who answers, has the MAC
}

func (d *streamDecoder) claims(pb *culvertv1.Claims) *Claims {
	out := &Claims{Session: d.session(pb.GetSession())}
	if !d.most(len(pb.GetClaims()), MaxStreamClaims, "claims") {
		return out
	}
	for _, c := range pb.GetClaims() {
		if c.GetEvidence() > 255 {
			d.refuse("claim's evidence")
		}
		out.Claims = append(out.Claims, Claim{
			ID: c.GetId(), Network: d.uid(c.GetNetwork(), "claim's network", true), MAC: d.mac(c.GetMac(), "claim's MAC", true),
			Port: d.uid(c.GetPort(), "claim's port", false), Base: d.rev(c.GetBase(), "claim's base"),
			Evidence: overlay.Evidence(c.GetEvidence()), Leave: c.GetLeave(),
			Pre: c.GetPre(), Addresses: d.addrs(c.GetAddresses(), "claim's addresses"), Heard: d.rev(c.GetHeard(), "claim's announcement"),
		})
	}
	return out
}
