package api

import (
	"net/netip"
	"time"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Seek says that a guest of the host asked for an address that nobody is known
// to have. There is no answer: if somebody has it, the log says so.
type Seek struct {
	Network overlay.UID
	Address netip.Addr
}

// Ask has guests of a host asked whether they have an address: the one with the
// MAC, of which a ProbeResult with the same ID tells; or, with ID and MAC zero,
// all that are not declared, which are then heard as ever. It has the fields of managercore.Ask and agentcore.Ask, in their order.
type Ask struct {
	ID      uint64
	Network overlay.UID
	MAC     overlay.MAC
	Address netip.Addr
	Within  time.Duration // whole milliseconds; after it the result is due
}

func seekPB(s *Seek) *culvertv1.Up {
	return &culvertv1.Up{Body: &culvertv1.Up_Seek{Seek: &culvertv1.Seek{Network: uidBytes(s.Network), Address: addrBytes(s.Address)}}}
}

func askPB(a *Ask) *culvertv1.Down {
	return &culvertv1.Down{Body: &culvertv1.Down_Ask{Ask: &culvertv1.Ask{
		Id: a.ID, Network: uidBytes(a.Network), Mac: macBytes(a.MAC), Address: addrBytes(a.Address), WithinMs: millis(a.Within),
	}}}
}

func (d *streamDecoder) seek(pb *culvertv1.Seek) *Seek {
	return &Seek{Network: d.uid(pb.GetNetwork(), "network to search", true), Address: d.addr(pb.GetAddress(), "address to search", true)}
}

func (d *streamDecoder) ask(pb *culvertv1.Ask) *Ask {
	a := &Ask{
		ID: pb.GetId(), Network: d.uid(pb.GetNetwork(), "network to ask in", true), MAC: d.mac(pb.GetMac(), "MAC to ask", false),
		Address: d.addr(pb.GetAddress(), "address to ask for", true), Within: d.millis(pb.GetWithinMs(), "time for a question"),
	}
	if (a.ID == 0) != a.MAC.IsZero() || (a.ID == 0) != (a.Within == 0) {
		d.refuse("question after an address")
	}
	return a
}
