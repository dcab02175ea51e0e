package api

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

var sameValues = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b *Refusal) bool {
		return a == nil && b == nil || a != nil && b != nil && proto.Equal(a.PB(), b.PB())
	}),
}

// overWire encodes, decodes and checks one message of an agent.
func overWire(pb *culvertv1.Up) (Up, error) {
	b, err := proto.Marshal(pb)
	if err != nil {
		return Up{}, err
	}
	var back culvertv1.Up
	if err := proto.Unmarshal(b, &back); err != nil {
		return Up{}, err
	}
	return UpFromPB(&back)
}

func downOverWire(pb *culvertv1.Down) (Down, error) {
	b, err := proto.Marshal(pb)
	if err != nil {
		return Down{}, err
	}
	var back culvertv1.Down
	if err := proto.Unmarshal(b, &back); err != nil {
		return Down{}, err
	}
	return DownFromPB(&back)
}

// make16 is the bytes of some UID.
func make16() []byte { return append(make([]byte, 15), 1) }

func genUID(t *rapid.T, label string) overlay.UID {
	u := overlay.UID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label))
	u[0] |= 1 // never zero
	return u
}

func genRev(t *rapid.T, label string) overlay.Rev {
	return overlay.Rev{Epoch: rapid.Uint32Range(1, 5).Draw(t, label+" epoch"), N: rapid.Uint64Range(1, 1<<40).Draw(t, label)}
}

func genMAC(t *rapid.T, label string) overlay.MAC {
	m := overlay.MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, label))
	m[0] = m[0]&^1 | 2
	return m
}

func genAddr(t *rapid.T, label string) netip.Addr {
	if rapid.Bool().Draw(t, label+" is v4") {
		return netip.AddrFrom4([4]byte{10, rapid.Byte().Draw(t, label), rapid.Byte().Draw(t, label), rapid.Byte().Draw(t, label)})
	}
	b := [16]byte{0xfd}
	copy(b[8:], rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, label))
	return netip.AddrFrom16(b)
}

func genText(t *rapid.T, label string) string { return rapid.StringN(0, 60, 200).Draw(t, label) }

func genPositions(t *rapid.T, label string) []Position {
	var out []Position
	for range rapid.IntRange(0, 4).Draw(t, label) {
		out = append(out, Position{Network: genUID(t, label), Sent: genRev(t, label), OnDemand: rapid.Bool().Draw(t, label+" on demand")})
	}
	return out
}

func genUp(t *rapid.T) Up {
	switch rapid.IntRange(0, 11).Draw(t, "kind") {
	case 0:
		h := &Hello{Least: rapid.Uint32Range(1, 3).Draw(t, "least"), Version: genText(t, "version"), BootID: genText(t, "boot"), VTEP: genAddr(t, "vtep"), Logs: genPositions(t, "logs")}
		h.Protocol = h.Least + rapid.Uint32Range(0, 3).Draw(t, "protocol")
		if rapid.Bool().Draw(t, "knows") {
			h.UpTo = genRev(t, "up to")
			h.Logs = append(h.Logs, Position{Sent: h.UpTo})
		}
		return Up{Hello: h}
	case 1:
		in := &Interest{Add: genPositions(t, "add")}
		for range rapid.IntRange(0, 3).Draw(t, "removed") {
			in.Remove = append(in.Remove, genUID(t, "remove"))
		}
		return Up{Interest: in}
	case 2:
		cs := &Claims{Session: rapid.Uint64Range(1, 1<<50).Draw(t, "session")}
		for range rapid.IntRange(0, 5).Draw(t, "claims") {
			c := Claim{ID: rapid.Uint64().Draw(t, "id"), Network: genUID(t, "network"), MAC: genMAC(t, "mac"), Evidence: overlay.Evidence(rapid.Byte().Draw(t, "evidence")), Leave: rapid.Bool().Draw(t, "leave")}
			if !c.Leave || rapid.Bool().Draw(t, "has port") {
				c.Port = genUID(t, "port")
			}
			if rapid.Bool().Draw(t, "has base") {
				c.Base = genRev(t, "base")
			}
			c.Pre = rapid.Bool().Draw(t, "pre")
			if rapid.Bool().Draw(t, "has addresses") {
				c.Addresses = overlay.SortAddrs([]netip.Addr{genAddr(t, "first"), genAddr(t, "second")})
			}
			if rapid.Bool().Draw(t, "announced") {
				c.Heard = genRev(t, "heard")
			}
			cs.Claims = append(cs.Claims, c)
		}
		return Up{Claims: cs}
	case 3:
		return Up{InventoryEnd: &InventoryEnd{Session: rapid.Uint64Range(1, 1<<50).Draw(t, "session")}}
	case 4:
		return Up{Ack: &Ack{Rev: genRev(t, "ack")}}
	case 5:
		return Up{Breath: true}
	case 6:
		r := &ProbeResult{ID: rapid.Uint64Range(1, 1<<60).Draw(t, "probe"), Answered: rapid.Bool().Draw(t, "answered")}
		r.Unable = !r.Answered && rapid.Bool().Draw(t, "unable")
		return Up{ProbeResult: r}
	case 7:
		return Up{Seek: &Seek{Network: genUID(t, "network"), Address: genAddr(t, "address")}}
	case 8:
		return Up{Waits: &Waits{Devices: rapid.Bool().Draw(t, "devices wait")}}
	case 9:
		return Up{Demands: genDemands(t)}
	case 10:
		return Up{Gateways: genGateways(t)}
	}
	r := &Report{Repairs: rapid.Uint64().Draw(t, "repairs"), Strangers: rapid.Uint64().Draw(t, "strangers")}
	for range rapid.IntRange(0, 3).Draw(t, "problems") {
		r.Problems = append(r.Problems, genText(t, "problem"))
	}
	genSeen(t, r)
	return Up{Report: r}
}

func genRecord(t *rapid.T) overlay.Record {
	meta := overlay.Meta{UID: genUID(t, "uid"), Name: "a" + strings.ToLower(rapid.StringMatching(`[a-z0-9]{0,20}`).Draw(t, "name")), Cause: genText(t, "cause"), Changed: rapid.Int64().Draw(t, "changed")}
	switch rapid.IntRange(0, 3).Draw(t, "record") {
	case 0:
		return &overlay.Host{Meta: meta, VTEP: genAddr(t, "vtep"), Dead: rapid.Bool().Draw(t, "dead")}
	case 1:
		meta.Tenant = genUID(t, "tenant")
		n := &overlay.Network{
			Meta: meta, TenantName: "blue", VNI: overlay.VNI(rapid.Uint32Range(1, 1<<24-1).Draw(t, "vni")), MTU: 1450,
			Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.20.0.0/24"), Gateway: netip.MustParseAddr("10.20.0.1")}},
			Blocked: rapid.Bool().Draw(t, "blocked"), Flood: overlay.Flood(rapid.IntRange(0, 1).Draw(t, "flood")),
			Tell: genTell(t), Foreign: genAddrs(t), Distribution: overlay.Distribution(rapid.IntRange(0, 1).Draw(t, "distribution")),
		}
		if rapid.Bool().Draw(t, "in a domain") {
			n.Domain, n.Reach, n.From, n.Bridge = genUID(t, "domain"), genUIDs(t, meta.UID), genUIDs(t, meta.UID), genUIDs(t, meta.UID)
		}
		n.Routes, n.Distribution = genNextHops(t), overlay.Distribution(rapid.IntRange(0, 1).Draw(t, "distribution"))
		return n
	case 2:
		meta.Tenant = genUID(t, "tenant")
		return &overlay.Port{Meta: meta, Network: genUID(t, "network"), MAC: genMAC(t, "mac"), Addresses: genAddrs(t), VM: genText(t, "vm"), Shared: genAddrs(t), AddressCheck: rapid.Bool().Draw(t, "address check")}
	}
	e := &overlay.Endpoint{
		Network: genUID(t, "network"), MAC: genMAC(t, "mac"), Port: genUID(t, "port"), Host: genUID(t, "host"), Addresses: genAddrs(t),
		Evidence: overlay.EvidenceDevice, Cause: genText(t, "cause"), Since: rapid.Int64().Draw(t, "since"),
	}
	for range rapid.IntRange(0, overlay.MaxPre).Draw(t, "expected at") {
		if u := genUID(t, "pre"); !slices.Contains(e.Pre, u) {
			e.Pre = append(e.Pre, u)
		}
	}
	if rapid.Bool().Draw(t, "moved") {
		e.From = genUID(t, "from")
	}
	return e
}

func genAddrs(t *rapid.T) []netip.Addr {
	var out []netip.Addr
	for range rapid.IntRange(0, 4).Draw(t, "addresses") {
		out = append(out, genAddr(t, "address"))
	}
	return overlay.SortAddrs(out)
}

func genDown(t *rapid.T) Down {
	switch rapid.IntRange(0, 5).Draw(t, "kind") {
	case 0:
		return Down{Welcome: &Welcome{Breath: time.Duration(rapid.IntRange(0, 60_000).Draw(t, "breath")) * time.Millisecond, Protocol: 1, Session: rapid.Uint64Range(1, 1<<50).Draw(t, "session"), Epoch: rapid.Uint32Range(1, 9).Draw(t, "epoch"), Cluster: genText(t, "cluster")}}
	case 1:
		out := []Answer{}
		for range rapid.IntRange(0, 4).Draw(t, "answers") {
			a := Answer{ID: rapid.Uint64().Draw(t, "id"), Accepted: rapid.Bool().Draw(t, "accepted"), Binding: genRev(t, "binding"), Reason: genText(t, "reason"), Disputed: rapid.Bool().Draw(t, "disputed")}
			for range rapid.IntRange(0, 3).Draw(t, "refused") {
				a.Refused = append(a.Refused, overlay.AddressRefusal{Address: genAddr(t, "refused"), Reason: genText(t, "why")})
			}
			out = append(out, a)
		}
		return Down{Answers: out}
	case 2:
		return Down{Refused: Refuse(CodeNotFound, genText(t, "what"), genText(t, "why"), "x")}
	case 3:
		return Down{Probe: &Probe{
			ID: rapid.Uint64Range(1, 1<<60).Draw(t, "probe"), VTEP: genAddr(t, "vtep"),
			Within: time.Duration(rapid.IntRange(1, 60_000).Draw(t, "within")) * time.Millisecond,
		}}
	case 4:
		a := &Ask{Network: genUID(t, "network"), Address: genAddr(t, "address")}
		if rapid.Bool().Draw(t, "one") {
			a.ID, a.MAC, a.Within = rapid.Uint64Range(1, 1<<60).Draw(t, "question"), genMAC(t, "mac"), time.Duration(rapid.IntRange(1, 60_000).Draw(t, "within"))*time.Millisecond
		}
		return Down{Ask: a}
	}
	it := &Items{}
	for range rapid.IntRange(0, 3).Draw(t, "begins") {
		it.Begins = append(it.Begins, genUID(t, "begin"))
	}
	for range rapid.IntRange(0, 5).Draw(t, "items") {
		it.Items = append(it.Items, StreamItem{Rev: genRev(t, "rev"), Gone: rapid.Bool().Draw(t, "gone"), Rec: genRecord(t)})
	}
	for range rapid.IntRange(0, 3).Draw(t, "ends") {
		it.Ends = append(it.Ends, LogEnd{Network: genUID(t, "end"), Full: rapid.Bool().Draw(t, "full"), Sum: overlay.Sum{rapid.Uint64().Draw(t, "sum"), 7}, Sent: genRev(t, "sent"), OnDemand: rapid.Bool().Draw(t, "on demand")})
	}
	for range rapid.IntRange(0, 3).Draw(t, "members") {
		it.Members = append(it.Members, overlay.Member{Network: genUID(t, "network"), Host: genUID(t, "host"), Gone: rapid.Bool().Draw(t, "gone")})
	}
	it.Told, it.Dropped = genWants(t, "told"), genWants(t, "dropped")
	if rapid.Bool().Draw(t, "at end") {
		it.UpTo = genRev(t, "up to")
	}
	return Down{Items: it}
}

func TestUpRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genUp(t)
		got, err := overWire(UpPB(want))
		if err != nil {
			t.Fatalf("decode of %+v: %v", want, err)
		}
		if d := cmp.Diff(want, got, sameValues); d != "" {
			t.Fatalf("decode(encode(x)) differs (-want +got):\n%s", d)
		}
	})
}

func TestDownRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genDown(t)
		got, err := downOverWire(DownPB(want))
		if err != nil {
			t.Fatalf("decode of %+v: %v", want, err)
		}
		if d := cmp.Diff(want, got, sameValues); d != "" {
			t.Fatalf("decode(encode(x)) differs (-want +got):\n%s", d)
		}
	})
}

// Entries that come encoded give the same bytes as those encoded here, and as
// the parsed form of the message.
func TestItemsSplicedWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var plain, wired Items
		var parsed culvertv1.Items
		for range rapid.IntRange(1, 5).Draw(t, "items") {
			it := StreamItem{Rev: genRev(t, "rev"), Gone: rapid.Bool().Draw(t, "gone"), Rec: genRecord(t)}
			plain.Items = append(plain.Items, it)
			wired.Items = append(wired.Items, StreamItem{Wire: ItemWire(it.Rec, it.Rev, it.Gone)})
			parsed.Items = append(parsed.Items, &culvertv1.Item{Rev: RevPB(it.Rev), Record: RecordPB(it.Rec, it.Gone)})
		}
		want, _ := proto.MarshalOptions{Deterministic: true}.Marshal(&culvertv1.Down{Body: &culvertv1.Down_Items{Items: &parsed}})
		for _, in := range []*Items{&plain, &wired} {
			if got, err := proto.Marshal(DownPB(Down{Items: in})); err != nil || string(got) != string(want) {
				t.Fatalf("bytes %x (%v), want %x", got, err, want)
			}
		}
	})
}

func TestStreamRefusals(t *testing.T) {
	uid := make([]byte, 16)
	uid[0] = 1
	rev := &culvertv1.Rev{Epoch: 1, N: 7}
	claim := func(f func(*culvertv1.Claim)) *culvertv1.Up {
		c := &culvertv1.Claim{Network: uid, Mac: []byte{2, 0, 0, 0, 0, 1}, Port: uid}
		f(c)
		return &culvertv1.Up{Body: &culvertv1.Up_Claims{Claims: &culvertv1.Claims{Session: 1, Claims: []*culvertv1.Claim{c}}}}
	}
	hello := func(f func(*culvertv1.Hello)) *culvertv1.Up {
		h := &culvertv1.Hello{Protocol: 1, ProtocolLeast: 1, Vtep: []byte{192, 0, 2, 1}}
		f(h)
		return &culvertv1.Up{Body: &culvertv1.Up_Hello{Hello: h}}
	}
	report := func(r *culvertv1.Report) *culvertv1.Up { return &culvertv1.Up{Body: &culvertv1.Up_Report{Report: r}} }
	for name, c := range map[string]struct {
		up   *culvertv1.Up
		want string
	}{
		"nothing set":        {&culvertv1.Up{}, "kind of message"},
		"protocol 0":         {hello(func(h *culvertv1.Hello) { h.Protocol, h.ProtocolLeast = 0, 0 }), "range of protocols"},
		"protocols reversed": {hello(func(h *culvertv1.Hello) { h.ProtocolLeast = 2 }), "range of protocols"},
		"no VTEP":            {hello(func(h *culvertv1.Hello) { h.Vtep = nil }), "VTEP"},
		"multicast VTEP":     {hello(func(h *culvertv1.Hello) { h.Vtep = []byte{224, 0, 0, 1} }), "VTEP"},
		"long version":       {hello(func(h *culvertv1.Hello) { h.Version = strings.Repeat("x", MaxStreamText+1) }), "length of version"},
		"number, no epoch":   {hello(func(h *culvertv1.Hello) { h.UpTo = &culvertv1.Rev{N: 3} }), "revision held without epoch"},
		"short log uid":      {hello(func(h *culvertv1.Hello) { h.Logs = []*culvertv1.LogPosition{{Network: uid[:15]}} }), "log position's network"},
		"zero claim session": {&culvertv1.Up{Body: &culvertv1.Up_Claims{Claims: &culvertv1.Claims{}}}, "session number"},
		"claim no network":   {claim(func(c *culvertv1.Claim) { c.Network = nil }), "claim's network"},
		"claim bad address":  {claim(func(c *culvertv1.Claim) { c.Addresses = [][]byte{{1, 2}} }), "claim's addresses"},
		"claim group MAC":    {claim(func(c *culvertv1.Claim) { c.Mac = []byte{1, 0, 0, 0, 0, 1} }), "claim's MAC"},
		"claim evidence 256": {claim(func(c *culvertv1.Claim) { c.Evidence = 256 }), "claim's evidence"},
		"interest in fleet":  {&culvertv1.Up{Body: &culvertv1.Up_Interest{Interest: &culvertv1.Interest{Add: []*culvertv1.LogPosition{{}}}}}, "log position's network"},
		"remove zero uid":    {&culvertv1.Up{Body: &culvertv1.Up_Interest{Interest: &culvertv1.Interest{Remove: [][]byte{make([]byte, 16)}}}}, "network to remove"},
		"inventory of none":  {&culvertv1.Up{Body: &culvertv1.Up_InventoryEnd{InventoryEnd: &culvertv1.InventoryEnd{}}}, "session number"},
		"empty ack":          {&culvertv1.Up{Body: &culvertv1.Up_Ack{Ack: &culvertv1.Ack{}}}, "acknowledged revision"},
		"too many claims":    {&culvertv1.Up{Body: &culvertv1.Up_Claims{Claims: &culvertv1.Claims{Session: 1, Claims: make([]*culvertv1.Claim, MaxStreamClaims+1)}}}, "number of claims"},
		"search for nothing": {&culvertv1.Up{Body: &culvertv1.Up_Seek{Seek: &culvertv1.Seek{Network: make16()}}}, "address to search"},
		"result, no number":  {&culvertv1.Up{Body: &culvertv1.Up_ProbeResult{ProbeResult: &culvertv1.ProbeResult{Answered: true}}}, "result of a probe"},
		"result both ways":   {&culvertv1.Up{Body: &culvertv1.Up_ProbeResult{ProbeResult: &culvertv1.ProbeResult{Id: 1, Answered: true, Unable: true}}}, "result of a probe"},
		"too many problems":  {&culvertv1.Up{Body: &culvertv1.Up_Report{Report: &culvertv1.Report{Problems: make([]string, MaxReportLines+1)}}}, "number of problems"},
		"too many refusals":  {report(&culvertv1.Report{Refused: make([]*culvertv1.Refused, MaxRefused+1)}), "number of refusals"},
		"refused address":    {report(&culvertv1.Report{Refused: []*culvertv1.Refused{{Network: make([]byte, 16), Address: []byte{1}}}}), "refus"},
		"too many reasons":   {report(&culvertv1.Report{Drops: make([]*culvertv1.Count, maxCounts+1)}), "number of drops"},
		"too many ports":     {report(&culvertv1.Report{Seen: &culvertv1.Seen{Ports: make([]*culvertv1.SeenPort, MaxReportLines+1)}}), "number of ports"},
		"too many groups":    {report(&culvertv1.Report{Seen: &culvertv1.Seen{Ports: []*culvertv1.SeenPort{{Network: uid, Mac: []byte{2, 0, 0, 0, 0, 1}, Groups: make([][]byte, MaxGroups+1)}}}}), "number of groups"},
		"no group":           {report(&culvertv1.Report{Seen: &culvertv1.Seen{Ports: []*culvertv1.SeenPort{{Network: uid, Mac: []byte{2, 0, 0, 0, 0, 1}, Groups: [][]byte{{10, 0, 0, 1}}}}}}), "group"},
	} {
		if u, err := UpFromPB(c.up); !errors.Is(err, ErrMessage) || !strings.Contains(err.Error(), c.want) || !cmp.Equal(u, Up{}, sameValues) {
			t.Errorf("%s: got %+v, %v; want a refusal with %q", name, u, err, c.want)
		}
	}
	item := func(rec overlay.Record, rev *culvertv1.Rev) *culvertv1.Down {
		return &culvertv1.Down{Body: &culvertv1.Down_Items{Items: &culvertv1.Items{Items: []*culvertv1.Item{{Rev: rev, Record: RecordPB(rec, false)}}}}}
	}
	host := &overlay.Host{Meta: overlay.Meta{UID: overlay.UID(uid), Name: "h1"}}
	told := func(edit func(n *culvertv1.NetworkRecord)) *culvertv1.Down {
		d := item(&overlay.Network{Meta: host.Meta, TenantName: "blue", VNI: 7, MTU: 1450}, rev)
		edit(d.GetItems().GetItems()[0].GetRecord().GetNetwork())
		return d
	}
	for name, c := range map[string]struct {
		down *culvertv1.Down
		want string
	}{
		"nothing set":     {&culvertv1.Down{}, "kind of message"},
		"session zero":    {&culvertv1.Down{Body: &culvertv1.Down_Welcome{Welcome: &culvertv1.Welcome{Protocol: 1, Epoch: 1}}}, "session number"},
		"epoch zero":      {&culvertv1.Down{Body: &culvertv1.Down_Welcome{Welcome: &culvertv1.Welcome{Protocol: 1, Session: 1}}}, "protocol or epoch"},
		"no code":         {&culvertv1.Down{Body: &culvertv1.Down_Refused{Refused: &culvertv1.Refusal{}}}, "refusal without code"},
		"item, no rev":    {item(host, nil), "item's revision"},
		"item of no kind": {&culvertv1.Down{Body: &culvertv1.Down_Items{Items: &culvertv1.Items{Items: []*culvertv1.Item{{Rev: rev}}}}}, "kind of record"},
		"session as item": {item(&overlay.Session{Host: overlay.UID(uid), N: 1}, rev), "kind of item"},
		"own too far":     {told(func(n *culvertv1.NetworkRecord) { n.Dhcp = 2 }), "what guests are told"},
		"lease too short": {told(func(n *culvertv1.NetworkRecord) { n.WantLease = overlay.MinLease - 1 }), "what guests are told"},
		"lease too long":  {told(func(n *culvertv1.NetworkRecord) { n.WantLease = overlay.MaxLease + 1 }), "what guests are told"},
		"many servers":    {told(func(n *culvertv1.NetworkRecord) { n.Dns = make([][]byte, overlay.MaxDNS+1) }), "what guests are told"},
		"server of 3":     {told(func(n *culvertv1.NetworkRecord) { n.Dns = [][]byte{{1, 2, 3}} }), "name server"},
		"many routes":     {told(func(n *culvertv1.NetworkRecord) { n.Routes = make([]*culvertv1.RouteRecord, overlay.MaxRoutes+1) }), "what guests are told"},
		"route, host bits": {told(func(n *culvertv1.NetworkRecord) {
			n.Routes = []*culvertv1.RouteRecord{{Address: []byte{10, 0, 0, 1}, Bits: 8, Via: []byte{10, 0, 0, 9}}}
		}), "route"},
		"route of IPv6": {told(func(n *culvertv1.NetworkRecord) {
			n.Routes = []*culvertv1.RouteRecord{{Address: make([]byte, 16), Via: []byte{10, 0, 0, 9}}}
		}), "route"},
		"route to nowhere": {told(func(n *culvertv1.NetworkRecord) {
			n.Routes = []*culvertv1.RouteRecord{{Address: []byte{10, 0, 0, 0}, Bits: 8}}
		}), "route"},
		"breath too rare":             {&culvertv1.Down{Body: &culvertv1.Down_Welcome{Welcome: &culvertv1.Welcome{Protocol: 1, Session: 1, Epoch: 1, BreathMs: 60_001}}}, "time between breaths"},
		"question without an address": {&culvertv1.Down{Body: &culvertv1.Down_Ask{Ask: &culvertv1.Ask{Network: make16()}}}, "address to ask for"},
		"question without number":     {&culvertv1.Down{Body: &culvertv1.Down_Ask{Ask: &culvertv1.Ask{Network: make16(), Address: []byte{192, 0, 2, 1}, Mac: []byte{2, 0, 0, 0, 0, 1}, WithinMs: 5}}}, "question after an address"},
		"question to nobody":          {&culvertv1.Down{Body: &culvertv1.Down_Ask{Ask: &culvertv1.Ask{Id: 1, Network: make16(), Address: []byte{192, 0, 2, 1}, WithinMs: 5}}}, "question after an address"},
		"probe of nobody":             {&culvertv1.Down{Body: &culvertv1.Down_Probe{Probe: &culvertv1.Probe{Id: 1, WithinMs: 5}}}, "VTEP to probe"},
		"probe, no number":            {&culvertv1.Down{Body: &culvertv1.Down_Probe{Probe: &culvertv1.Probe{Vtep: []byte{192, 0, 2, 1}, WithinMs: 5}}}, "probe without number or time"},
		"probe, no time":              {&culvertv1.Down{Body: &culvertv1.Down_Probe{Probe: &culvertv1.Probe{Id: 1, Vtep: []byte{192, 0, 2, 1}}}}, "probe without number or time"},
		"short sum":                   {&culvertv1.Down{Body: &culvertv1.Down_Items{Items: &culvertv1.Items{Ends: []*culvertv1.LogEnd{{Sum: []byte{1}, Sent: rev}}}}}, "sum of an end"},
		"too many items":              {&culvertv1.Down{Body: &culvertv1.Down_Items{Items: &culvertv1.Items{Items: make([]*culvertv1.Item, MaxStreamItems+1)}}}, "number of items"},
		"too many answers":            {&culvertv1.Down{Body: &culvertv1.Down_Answers{Answers: &culvertv1.Answers{Answers: make([]*culvertv1.Answer, MaxStreamClaims+1)}}}, "number of answers"},
	} {
		if d, err := DownFromPB(c.down); !errors.Is(err, ErrMessage) || !strings.Contains(err.Error(), c.want) || !cmp.Equal(d, Down{}, sameValues) {
			t.Errorf("%s: got %+v, %v; want a refusal with %q", name, d, err, c.want)
		}
	}
}

// What comes from devices and people is made fit for the wire, not refused.
func TestUpPBMakesTextFit(t *testing.T) {
	r := &Report{Unclaimed: make([]string, MaxReportLines+5), Problems: []string{"bad \xff name", strings.Repeat("é", MaxStreamText)}}
	got, err := overWire(UpPB(Up{Report: r}))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Report.Unclaimed); n != MaxReportLines || got.Report.Unclaimed[n-1] != "and 6 more" {
		t.Errorf("%d lines, the last %q; want %d and \"and 6 more\"", n, got.Report.Unclaimed[n-1], MaxReportLines)
	}
	if got.Report.Problems[0] != "bad ? name" || !strings.HasSuffix(got.Report.Problems[1], "é...") || len(got.Report.Problems[1]) > MaxStreamText {
		t.Errorf("problems %q", got.Report.Problems)
	}
}

func FuzzUp(f *testing.F) {
	for i := range 40 {
		b, _ := proto.Marshal(UpPB(rapid.Custom(genUp).Example(i)))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var pb culvertv1.Up
		if proto.Unmarshal(b, &pb) != nil {
			return
		}
		got, err := UpFromPB(&pb)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatalf("refused with %v, want ErrMessage", err)
			}
			return
		}
		again, err := overWire(UpPB(got))
		if d := cmp.Diff(got, again, sameValues); err != nil || d != "" {
			t.Fatalf("decode(encode(x)): %v, differs:\n%s", err, d)
		}
	})
}

func FuzzDown(f *testing.F) {
	for i := range 40 {
		b, _ := proto.Marshal(DownPB(rapid.Custom(genDown).Example(i)))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var pb culvertv1.Down
		if proto.Unmarshal(b, &pb) != nil {
			return
		}
		got, err := DownFromPB(&pb)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatalf("refused with %v, want ErrMessage", err)
			}
			return
		}
		again, err := downOverWire(DownPB(got))
		if d := cmp.Diff(got, again, sameValues); err != nil || d != "" {
			t.Fatalf("decode(encode(x)): %v, differs:\n%s", err, d)
		}
	})
}
