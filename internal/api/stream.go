package api

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Limits of one message of an agent's stream. A message beyond them is refused
// whole: neither side can make the other keep more than this at once.
const (
	// MaxStreamItems is above what a sender puts into one message (a batch of
	// 1,000 and the rest of the transaction that it must not split).
	MaxStreamItems = 4096
	// MaxStreamClaims bounds Claims and Answers; a sender with more sends
	// several messages.
	MaxStreamClaims = 1000
	// MaxStreamLogs bounds the logs that one message names.
	MaxStreamLogs = 16384
	// MaxStreamDemands bounds Demands; a sender with more sends several messages.
	MaxStreamDemands = 1000
	// MaxStreamMembers bounds the members that one message names: those of one
	// network are in one.
	MaxStreamMembers = 1 << 16
	// MaxReportLines bounds each list of a Report; UpPB cuts what is longer
	// and says so on the last line.
	MaxReportLines = 1000
	// MaxStreamText bounds every other text, in bytes; UpPB and DownPB cut.
	MaxStreamText = 1024
)

// ErrMessage is the cause of every refusal of a stream message.
var ErrMessage = errors.New("stream message is not valid")

// Up is one message of an agent. Exactly one part is set.
type Up struct {
	Hello        *Hello
	Interest     *Interest
	Claims       *Claims
	InventoryEnd *InventoryEnd
	Ack          *Ack
	Report       *Report
	Breath       bool // the host lives
	ProbeResult  *ProbeResult
	Gateways     *GatewayStates
	Seek         *Seek
	Waits        *Waits
	Looked       *Looked
	Demands      []Demand // nil: not set
}

// Waits says whether devices on this host wait for a port to be declared.
type Waits struct{ Devices bool }

// Hello is the first message of a stream.
type Hello struct {
	Protocol uint32 // newest that the agent speaks
	Least    uint32 // oldest that it speaks
	Version  string
	BootID   string
	VTEP     netip.Addr
	UpTo     overlay.Rev // what its kernel was seen to hold
	Logs     []Position  // what it received; a zero Network is the fleet's
}

// Position is how far an agent holds a log.
type Position struct {
	Network overlay.UID // zero for the fleet's log
	Sent    overlay.Rev // zero: from the start
	// OnDemand: of the network's log only what is the host's, and what it wants.
	OnDemand bool
}

// Interest adds and removes logs of single networks.
type Interest struct {
	Add    []Position
	Remove []overlay.UID
}

// InventoryEnd says that every endpoint of the host was claimed in Session.
type InventoryEnd struct{ Session uint64 }

// Ack says that the kernel was seen to hold everything up to Rev.
type Ack struct{ Rev overlay.Rev }

// Down is one message of a manager. Exactly one part is set.
type Down struct {
	Welcome *Welcome
	Items   *Items
	Answers []Answer
	Refused *Refusal // the stream ends after it
	Probe   *Probe
	Ask     *Ask
	Look    *Look
}

// Welcome answers a Hello.
type Welcome struct {
	Protocol uint32 // the one that this stream speaks
	Session  uint64
	Epoch    uint32
	Cluster  string
	Breath   time.Duration // how often the agent says that it lives; 0: never
}

// Items is one batch of entries of the logs.
type Items struct {
	Begins  []overlay.UID
	Items   []StreamItem
	Members []overlay.Member // of on-demand networks; with a full pass all of them
	Ends    []LogEnd
	// Told are wants of which all that is known was told, in this message or
	// before it. Dropped are wants that were given up, of which nothing comes
	// any more; a message that has some has nothing else.
	Told, Dropped []overlay.Want
	UpTo          overlay.Rev // zero while something is unsent
}

// StreamItem is one entry of a log. A sender that has the entry encoded (an
// encoded culvertv1.Item) gives Wire and needs no Rec; a receiver gets Rec.
type StreamItem struct {
	Rev  overlay.Rev
	Gone bool
	Rec  overlay.Record
	Wire []byte
}

// LogEnd has the fields of agentcore.End and managercore.LogEnd, in their
// order, so that each converts to the other.
type LogEnd struct {
	Network overlay.UID // zero for the fleet's log
	Full    bool
	Sum     overlay.Sum
	Sent    overlay.Rev
	// OnDemand: the log is told on demand, and Sum is over what was told.
	OnDemand bool
}

// UpPB is u on the wire; nil if no part is set.
func UpPB(u Up) *culvertv1.Up {
	switch {
	case u.Hello != nil:
		h := u.Hello
		return &culvertv1.Up{Body: &culvertv1.Up_Hello{Hello: &culvertv1.Hello{
			Protocol: h.Protocol, ProtocolLeast: h.Least, Version: text(h.Version), BootId: text(h.BootID),
			Vtep: addrBytes(h.VTEP), UpTo: RevPB(h.UpTo), Logs: positionsPB(h.Logs),
		}}}
	case u.Interest != nil:
		in := &culvertv1.Interest{Add: positionsPB(u.Interest.Add)}
		for _, n := range u.Interest.Remove {
			in.Remove = append(in.Remove, uidBytes(n))
		}
		return &culvertv1.Up{Body: &culvertv1.Up_Interest{Interest: in}}
	case u.Claims != nil:
		cs := &culvertv1.Claims{Session: u.Claims.Session}
		for i := range u.Claims.Claims {
			c := &u.Claims.Claims[i]
			cs.Claims = append(cs.Claims, &culvertv1.Claim{
				Id: c.ID, Network: uidBytes(c.Network), Mac: macBytes(c.MAC), Port: uidBytes(c.Port),
				Base: RevPB(c.Base), Evidence: uint32(c.Evidence), Leave: c.Leave,
				Pre: c.Pre, Addresses: addrsBytes(c.Addresses), Heard: RevPB(c.Heard),
			})
		}
		return &culvertv1.Up{Body: &culvertv1.Up_Claims{Claims: cs}}
	case u.InventoryEnd != nil:
		return &culvertv1.Up{Body: &culvertv1.Up_InventoryEnd{InventoryEnd: &culvertv1.InventoryEnd{Session: u.InventoryEnd.Session}}}
	case u.Ack != nil:
		return &culvertv1.Up{Body: &culvertv1.Up_Ack{Ack: &culvertv1.Ack{Rev: RevPB(u.Ack.Rev)}}}
	case u.Report != nil:
		return &culvertv1.Up{Body: &culvertv1.Up_Report{Report: reportPB(u.Report)}}
	case u.Breath:
		return &culvertv1.Up{Body: &culvertv1.Up_Breath{Breath: &culvertv1.Breath{}}}
	case u.ProbeResult != nil:
		return probeResultPB(u.ProbeResult)
	case u.Gateways != nil:
		return gatewayStatesPB(u.Gateways)
	case u.Seek != nil:
		return seekPB(u.Seek)
	case u.Looked != nil:
		return lookedPB(u.Looked)
	case u.Waits != nil:
		return &culvertv1.Up{Body: &culvertv1.Up_Waits{Waits: &culvertv1.Waits{Devices: u.Waits.Devices}}}
	case u.Demands != nil:
		return demandsPB(u.Demands)
	}
	return nil
}

func positionsPB(in []Position) []*culvertv1.LogPosition {
	var out []*culvertv1.LogPosition
	for _, p := range in {
		out = append(out, &culvertv1.LogPosition{Network: uidBytes(p.Network), Sent: RevPB(p.Sent), OnDemand: p.OnDemand})
	}
	return out
}

// DownPB is d on the wire; nil if no part is set.
func DownPB(d Down) *culvertv1.Down {
	switch {
	case d.Welcome != nil:
		w := d.Welcome
		return &culvertv1.Down{Body: &culvertv1.Down_Welcome{Welcome: &culvertv1.Welcome{
			Protocol: w.Protocol, Session: w.Session, Epoch: w.Epoch, Cluster: text(w.Cluster), BreathMs: millis(w.Breath),
		}}}
	case d.Items != nil:
		return &culvertv1.Down{Body: &culvertv1.Down_Items{Items: itemsPB(d.Items)}}
	case d.Answers != nil:
		as := &culvertv1.Answers{}
		for i := range d.Answers {
			a := &d.Answers[i]
			as.Answers = append(as.Answers, &culvertv1.Answer{Id: a.ID, Accepted: a.Accepted, Binding: RevPB(a.Binding), Reason: text(a.Reason), Refused: addressRefusalsPB(a.Refused), Disputed: a.Disputed})
		}
		return &culvertv1.Down{Body: &culvertv1.Down_Answers{Answers: as}}
	case d.Refused != nil:
		return &culvertv1.Down{Body: &culvertv1.Down_Refused{Refused: d.Refused.PB()}}
	case d.Probe != nil:
		return probePB(d.Probe)
	case d.Ask != nil:
		return askPB(d.Ask)
	case d.Look != nil:
		return lookPB(d.Look)
	}
	return nil
}

// itemField is the number of Items.items in agent.proto.
const itemField = 1

// itemsPB encodes nothing twice: entries that come encoded are put in as they
// are, as fields that the message has not parsed. The bytes on the wire are
// those of the parsed form.
func itemsPB(in *Items) *culvertv1.Items {
	out := &culvertv1.Items{UpTo: RevPB(in.UpTo)}
	var raw []byte
	for _, it := range in.Items {
		wire := it.Wire
		if wire == nil {
			wire = ItemWire(it.Rec, it.Rev, it.Gone)
		}
		raw = protowire.AppendTag(raw, itemField, protowire.BytesType)
		raw = protowire.AppendBytes(raw, wire)
	}
	if raw != nil {
		out.ProtoReflect().SetUnknown(raw)
	}
	for _, n := range in.Begins {
		out.Begins = append(out.Begins, uidBytes(n))
	}
	for _, e := range in.Ends {
		out.Ends = append(out.Ends, &culvertv1.LogEnd{Network: uidBytes(e.Network), Full: e.Full, Sum: e.Sum.Bytes(), Sent: RevPB(e.Sent), OnDemand: e.OnDemand})
	}
	out.Members, out.Told, out.Dropped = membersPB(in.Members), wantsPB(in.Told), wantsPB(in.Dropped)
	return out
}

// streamDecoder checks messages as decoder does records.
type streamDecoder struct{ decoder }

func newStreamDecoder() *streamDecoder { return &streamDecoder{decoder{is: ErrMessage}} }

func (d *streamDecoder) rev(r *culvertv1.Rev, what string) overlay.Rev {
	if r.GetEpoch() == 0 && r.GetN() != 0 {
		d.refuse(what + " without epoch")
	}
	return RevFromPB(r)
}

func (d *streamDecoder) most(n, max int, what string) bool {
	if n > max {
		d.refuse("number of " + what)
	}
	return n <= max
}

func (d *streamDecoder) text(s, what string) string {
	if len(s) > MaxStreamText {
		d.refuse("length of " + what)
		return ""
	}
	return s
}

func (d *streamDecoder) lines(in []string, what string) []string {
	if !d.most(len(in), MaxReportLines, what) {
		return nil
	}
	var out []string
	for _, s := range in {
		out = append(out, d.text(s, what))
	}
	return out
}

func (d *streamDecoder) positions(in []*culvertv1.LogPosition, fleet bool) []Position {
	if !d.most(len(in), MaxStreamLogs, "log positions") {
		return nil
	}
	var out []Position
	for _, p := range in {
		out = append(out, Position{Network: d.uid(p.GetNetwork(), "log position's network", !fleet), Sent: d.rev(p.GetSent(), "log position"), OnDemand: p.GetOnDemand()})
	}
	return out
}

// UpFromPB checks and converts one message of an agent. What it accepts, UpPB
// turns into an equal message. Errors wrap ErrMessage.
func UpFromPB(pb *culvertv1.Up) (Up, error) {
	var u Up
	d := newStreamDecoder()
	switch b := pb.GetBody().(type) {
	case *culvertv1.Up_Hello:
		h := b.Hello
		u.Hello = &Hello{
			Protocol: h.GetProtocol(), Least: h.GetProtocolLeast(), Version: d.text(h.GetVersion(), "version"), BootID: d.text(h.GetBootId(), "boot id"),
			VTEP: d.addr(h.GetVtep(), "VTEP", true), UpTo: d.rev(h.GetUpTo(), "revision held"), Logs: d.positions(h.GetLogs(), true),
		}
		if h.GetProtocol() == 0 || h.GetProtocolLeast() == 0 || h.GetProtocolLeast() > h.GetProtocol() {
			d.refuse("range of protocols")
		}
	case *culvertv1.Up_Interest:
		u.Interest = &Interest{Add: d.positions(b.Interest.GetAdd(), false)}
		if d.most(len(b.Interest.GetRemove()), MaxStreamLogs, "networks to remove") {
			for _, n := range b.Interest.GetRemove() {
				u.Interest.Remove = append(u.Interest.Remove, d.uid(n, "network to remove", true))
			}
		}
	case *culvertv1.Up_Claims:
		u.Claims = d.claims(b.Claims)
	case *culvertv1.Up_InventoryEnd:
		u.InventoryEnd = &InventoryEnd{Session: d.session(b.InventoryEnd.GetSession())}
	case *culvertv1.Up_Ack:
		u.Ack = &Ack{Rev: d.rev(b.Ack.GetRev(), "acknowledged revision")}
		if u.Ack.Rev.IsZero() {
			d.refuse("acknowledged revision")
		}
	case *culvertv1.Up_Report:
		u.Report = d.report(b.Report)
	case *culvertv1.Up_Breath:
		u.Breath = true
	case *culvertv1.Up_ProbeResult:
		u.ProbeResult = d.probeResult(b.ProbeResult)
	case *culvertv1.Up_GatewayStates:
		u.Gateways = d.gatewayStates(b.GatewayStates)
	case *culvertv1.Up_Seek:
		u.Seek = d.seek(b.Seek)
	case *culvertv1.Up_Looked:
		u.Looked = d.looked(b.Looked)
	case *culvertv1.Up_Waits:
		u.Waits = &Waits{Devices: b.Waits.GetDevices()}
	case *culvertv1.Up_Demands:
		u.Demands = d.demands(b.Demands)
	default:
		d.refuse("kind of message")
	}
	if d.err != nil {
		return Up{}, d.err
	}
	return u, nil
}

func (d *streamDecoder) session(n uint64) uint64 {
	if n == 0 {
		d.refuse("session number")
	}
	return n
}

// DownFromPB checks and converts one message of a manager. What it accepts,
// DownPB turns into an equal message. Errors wrap ErrMessage.
func DownFromPB(pb *culvertv1.Down) (Down, error) {
	var out Down
	d := newStreamDecoder()
	switch b := pb.GetBody().(type) {
	case *culvertv1.Down_Welcome:
		w := b.Welcome
		out.Welcome = &Welcome{
			Protocol: w.GetProtocol(), Session: d.session(w.GetSession()), Epoch: w.GetEpoch(), Cluster: d.text(w.GetCluster(), "cluster"),
			Breath: d.millis(w.GetBreathMs(), "time between breaths"),
		}
		if w.GetProtocol() == 0 || w.GetEpoch() == 0 {
			d.refuse("protocol or epoch")
		}
	case *culvertv1.Down_Items:
		out.Items = d.items(b.Items)
	case *culvertv1.Down_Answers:
		out.Answers = []Answer{}
		if d.most(len(b.Answers.GetAnswers()), MaxStreamClaims, "answers") {
			for _, a := range b.Answers.GetAnswers() {
				out.Answers = append(out.Answers, Answer{
					ID: a.GetId(), Accepted: a.GetAccepted(), Binding: d.rev(a.GetBinding(), "binding"), Reason: d.text(a.GetReason(), "reason"),
					Refused: d.addressRefusals(a.GetRefused()), Disputed: a.GetDisputed(),
				})
			}
		}
	case *culvertv1.Down_Refused:
		if out.Refused = RefusalFromPB(b.Refused); out.Refused == nil || out.Refused.Code() == "" {
			d.refuse("refusal without code")
		}
	case *culvertv1.Down_Probe:
		out.Probe = d.probe(b.Probe)
	case *culvertv1.Down_Ask:
		out.Ask = d.ask(b.Ask)
	case *culvertv1.Down_Look:
		out.Look = d.look(b.Look)
	default:
		d.refuse("kind of message")
	}
	if d.err != nil {
		return Down{}, d.err
	}
	return out, nil
}

func (d *streamDecoder) items(pb *culvertv1.Items) *Items {
	out := &Items{UpTo: d.rev(pb.GetUpTo(), "revision told up to")}
	if !d.most(len(pb.GetItems()), MaxStreamItems, "items") || !d.most(len(pb.GetBegins()), MaxStreamLogs, "passes begun") ||
		!d.most(len(pb.GetEnds()), MaxStreamLogs, "passes ended") {
		return out
	}
	for _, n := range pb.GetBegins() {
		out.Begins = append(out.Begins, d.uid(n, "network of a pass", false))
	}
	for _, it := range pb.GetItems() {
		rec, gone, err := RecordFromPB(it.GetRecord())
		if err != nil {
			d.refuse("item: " + strings.TrimSuffix(err.Error(), ": "+ErrRecord.Error()))
			return out
		}
		switch rec.(type) {
		case *overlay.Host, *overlay.Network, *overlay.Port, *overlay.Endpoint, *overlay.Gateway:
		default:
			d.refuse("kind of item")
		}
		rev := d.rev(it.GetRev(), "item's revision")
		if rev.N == 0 {
			d.refuse("item's revision")
		}
		out.Items = append(out.Items, StreamItem{Rev: rev, Gone: gone, Rec: rec})
	}
	for _, e := range pb.GetEnds() {
		end := LogEnd{Network: d.uid(e.GetNetwork(), "network of an end", false), Full: e.GetFull(), Sent: d.rev(e.GetSent(), "end's revision"), OnDemand: e.GetOnDemand()}
		sum, err := overlay.SumFromBytes(e.GetSum())
		if err != nil {
			d.refuse("sum of an end")
		}
		end.Sum = sum
		out.Ends = append(out.Ends, end)
	}
	out.Members, out.Told, out.Dropped = d.members(pb.GetMembers()), d.wants(pb.GetTold(), "wants told"), d.wants(pb.GetDropped(), "wants dropped")
	return out
}
