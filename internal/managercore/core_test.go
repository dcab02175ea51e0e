package managercore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// rig drives a core with a store that commits at once.
type rig struct {
	t    *testing.T
	c    *Core
	n    uint64 // revision of the store
	recs map[Key]StoredRecord
	id   uint64
	now  Time
	said []Reply // answers to claims
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, c: New(Config{Epoch: 1}), n: 1, recs: map[Key]StoredRecord{}}
	ten := &overlay.Tenant{Meta: overlay.Meta{UID: overlay.UID{0xd}, Name: DefaultTenant}}
	r.recs[KeyOf(ten)] = StoredRecord{Rec: ten, N: 1}
	r.load()
	return r
}

// load starts a core anew from what the store holds.
func (r *rig) load() {
	e := Loaded{N: r.n}
	for _, s := range r.recs {
		e.Records = append(e.Records, s)
	}
	r.c = New(Config{Epoch: 1})
	r.c.Step(r.now, e)
	r.settle()
}

// commit does one transaction; it reports false if there was none.
func (r *rig) commit() bool {
	ws := r.c.NextTxn(nil, 1000)
	if len(ws) == 0 {
		return false
	}
	r.n++
	e := Stored{N: r.n}
	for _, w := range ws {
		if w.Rec == nil {
			delete(r.recs, w.Key)
			e.Deletes = append(e.Deletes, w.Key)
			continue
		}
		s := StoredRecord{Rec: w.Rec, Gone: w.Gone, N: r.n}
		r.recs[w.Key] = s
		e.Puts = append(e.Puts, s)
	}
	r.c.Step(r.now, e)
	r.c.Step(r.now, TxnDone{N: r.n})
	return true
}

func (r *rig) settle() (out []Reply) {
	for {
		for _, x := range r.c.NextReplies() {
			if x.Claim != nil {
				r.said = append(r.said, x)
			} else {
				out = append(out, x)
			}
		}
		if !r.commit() {
			return out
		}
	}
}

func (r *rig) ask(a Asked) Reply {
	r.t.Helper()
	r.id++
	a.ID, a.Actor, a.Seed = r.id, "test", overlay.UID{byte(r.id >> 8), byte(r.id), 0xee}
	r.c.Step(r.now, a)
	for _, x := range r.settle() {
		if x.ID == a.ID {
			return x
		}
	}
	r.t.Fatalf("request %d was not answered", r.id)
	return Reply{}
}

func (r *rig) put(mode Mode, docs ...overlay.Doc) Reply {
	r.t.Helper()
	return r.ask(Asked{Put: &Put{Mode: mode, Docs: docs}})
}

// must is put that may not be refused.
func (r *rig) must(mode Mode, docs ...overlay.Doc) Reply {
	r.t.Helper()
	x := r.put(mode, docs...)
	if x.Refusal != nil {
		r.t.Fatalf("refused: %v", x.Refusal)
	}
	return x
}

func (r *rig) refused(want api.Code, x Reply) {
	r.t.Helper()
	if x.Refusal == nil || x.Refusal.Code() != want {
		r.t.Errorf("answer is %v, want a refusal with %s", x.Refusal, want)
	}
}

func network(name string, subnets ...string) overlay.Doc {
	d := overlay.Doc{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: name}
	for _, s := range subnets {
		sn, err := overlay.ParseSubnet("subnet", s, "")
		if err != nil {
			panic(err)
		}
		d.Network.Subnets = append(d.Network.Subnets, sn)
	}
	return d
}

func port(name, network string, ips ...string) overlay.Doc {
	d := overlay.Doc{Kind: overlay.KindPort, Tenant: DefaultTenant, Name: name, Port: overlay.PortSpec{Network: network}}
	for _, ip := range ips {
		d.Port.Addresses = append(d.Port.Addresses, netip.MustParseAddr(ip))
	}
	overlay.SortAddrs(d.Port.Addresses)
	return d
}

func (r *rig) portOf(x Reply, i int) *overlay.Port { return x.Changes[i].Rec.(*overlay.Port) }

func TestAllocationTakesTheLowestFree(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	x := r.must(ModeCreate, network("blue", "10.1.0.0/29", "fd00:1::/64"))
	if n := x.Changes[0].Rec.(*overlay.Network); n.VNI != 10001 || n.MTU != 1450 {
		t.Errorf("network has VNI %d and MTU %d, want 10001 and 1450", n.VNI, n.MTU)
	}
	var got []string
	for i := range 5 {
		p := r.portOf(r.must(ModeCreate, port(fmt.Sprintf("p%d", i), "blue")), 0)
		got = append(got, fmt.Sprint(p.Addresses))
	}
	want := "[10.1.0.2 fd00:1::2] [10.1.0.3 fd00:1::3] [10.1.0.4 fd00:1::4] [10.1.0.5 fd00:1::5] [10.1.0.6 fd00:1::6]"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("addresses are %s, want %s", s, want)
	}
	r.refused(api.CodeSubnetFull, r.put(ModeCreate, port("p5", "blue")))
	r.ask(Asked{Delete: &Delete{Kind: overlay.KindPort, Tenant: DefaultTenant, Name: "p1"}})
	if p := r.portOf(r.must(ModeCreate, port("p6", "blue")), 0); fmt.Sprint(p.Addresses) != "[10.1.0.3 fd00:1::3]" {
		t.Errorf("after p1 went p6 has %v, want p1's addresses: the lowest free ones", p.Addresses)
	}
	if a, b := r.must(ModeCreate, network("red")).Changes[0].Rec.(*overlay.Network).VNI, overlay.VNI(10002); a != b {
		t.Errorf("second network has VNI %d, want %d", a, b)
	}
}

func TestRefusalsChangeNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.ask(Asked{AddHost: &AddHost{Name: "h1", MachineID: "m"}})
	r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue", "10.1.0.5"))
	taken := network("green")
	taken.Network.VNI = 10001
	fixed := network("blue", "10.1.0.0/24")
	fixed.Network.VNI = 77
	overlap := network("x", "10.1.0.0/24")
	overlap.Network.Subnets = append(overlap.Network.Subnets, overlap.Network.Subnets[0])
	nohost := network("x")
	nohost.Network.Hosts = []string{"h9"}
	narrow := network("blue", "10.2.0.0/24")
	moved := port("a", "red")
	mac := port("c", "blue")
	mac.Port.MAC = r.c.View().Named(overlay.KindPort, overlay.UID{0xd}, "a").Rec.(*overlay.Port).MAC
	newMAC := port("a", "blue", "10.1.0.5")
	newMAC.Port.MAC = overlay.MAC{2, 2, 2, 2, 2, 2}
	many := port("c", "blue")
	for i := range overlay.DefaultMaxPortAddresses + 1 {
		many.Port.Addresses = append(many.Port.Addresses, netip.AddrFrom4([4]byte{10, 1, 0, byte(100 + i)}))
	}
	servers := port("c", "blue")
	servers.Port.MAC = overlay.ServerMAC
	orphan := port("c", "none")
	elsewhere := network("blue", "10.1.0.0/24")
	elsewhere.Tenant = "nobody"
	before, at := fmt.Sprint(len(r.recs)), r.n
	for name, c := range map[string]struct {
		code api.Code
		mode Mode
		docs []overlay.Doc
	}{
		"VNI of another network":        {api.CodeVNIInUse, ModeCreate, []overlay.Doc{taken}},
		"VNI changed":                   {api.CodeImmutable, ModeSet, []overlay.Doc{fixed}},
		"subnets overlap":               {api.CodeOverlap, ModeCreate, []overlay.Doc{overlap}},
		"host that has not joined":      {api.CodeNoHost, ModeCreate, []overlay.Doc{nohost}},
		"create with other content":     {api.CodeExists, ModeCreate, []overlay.Doc{network("blue", "10.9.0.0/24")}},
		"set what is not there":         {api.CodeNotFound, ModeSet, []overlay.Doc{network("red")}},
		"subnet taken from a port":      {api.CodeOutside, ModeSet, []overlay.Doc{narrow}},
		"port moves to a new network":   {api.CodeImmutable, ModeApply, []overlay.Doc{network("red"), moved}},
		"address of another port":       {api.CodeAddressInUse, ModeCreate, []overlay.Doc{port("c", "blue", "10.1.0.5")}},
		"address of the gateway":        {api.CodeAddressInUse, ModeCreate, []overlay.Doc{port("c", "blue", "10.1.0.1")}},
		"address outside":               {api.CodeOutside, ModeCreate, []overlay.Doc{port("c", "blue", "10.7.0.1")}},
		"broadcast address":             {api.CodeOutside, ModeCreate, []overlay.Doc{port("c", "blue", "10.1.0.255")}},
		"MAC of another port":           {api.CodeMACInUse, ModeCreate, []overlay.Doc{mac}},
		"MAC that hosts speak with":     {api.CodeMACInUse, ModeCreate, []overlay.Doc{servers}},
		"MAC changed":                   {api.CodeImmutable, ModeSet, []overlay.Doc{newMAC}},
		"too many addresses":            {api.CodeQuota, ModeCreate, []overlay.Doc{many}},
		"network that is not there":     {api.CodeNotFound, ModeCreate, []overlay.Doc{orphan}},
		"tenant that is not there":      {api.CodeNotFound, ModeCreate, []overlay.Doc{elsewhere}},
		"second of two is bad: neither": {api.CodeAddressInUse, ModeCreate, []overlay.Doc{port("c", "blue", "10.1.0.9"), port("d", "blue", "10.1.0.9")}},
	} {
		x := r.put(c.mode, c.docs...)
		if x.Refusal == nil || x.Refusal.Code() != c.code {
			t.Errorf("%s: answer is %v, want a refusal with %s", name, x.Refusal, c.code)
		}
		if now := fmt.Sprint(len(r.recs)); now != before || r.n != at {
			t.Fatalf("%s: the store went from %s records at %d to %s at %d, want nothing written", name, before, at, now, r.n)
		}
	}
	// And the indexes are as before: what was refused is free, what stands is taken.
	r.must(ModeCreate, port("c", "blue", "10.1.0.9"))
	r.refused(api.CodeAddressInUse, r.put(ModeCreate, port("d", "blue", "10.1.0.5")))
}

func TestAnAddressMovesBetweenPortsOfOneRequest(t *testing.T) {
	t.Parallel()
	for _, order := range [][2]int{{0, 1}, {1, 0}} {
		r := newRig(t)
		r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue", "10.1.0.5", "10.1.0.99"), port("b", "blue", "10.1.0.6"))
		docs := []overlay.Doc{port("a", "blue", "10.1.0.5"), port("b", "blue", "10.1.0.6", "10.1.0.99")}
		x := r.must(ModeApply, docs[order[0]], docs[order[1]])
		if len(x.Changes) != 2 || x.Changes[0].Action != "changed" {
			t.Errorf("order %v: changes are %v, want two", order, x.Changes)
		}
		r.refused(api.CodeAddressInUse, r.put(ModeApply, port("a", "blue", "10.1.0.5", "10.1.0.99"), port("b", "blue", "10.1.0.6", "10.1.0.99")))
		if x := r.must(ModeApply, docs[0], docs[1]); x.Changes[0].Action != "unchanged" || !x.Rev.IsZero() {
			t.Errorf("order %v: applying it again: %v at %v, want unchanged and no revision", order, x.Changes, x.Rev)
		}
		r.refused(api.CodeAddressInUse, r.put(ModeCreate, port("c", "blue", "10.1.0.99")))
	}
}

// attach opens a session of a host and returns its UID and number.
func (r *rig) attach(name string) (overlay.UID, uint64) {
	r.t.Helper()
	x := r.ask(Asked{AddHost: &AddHost{Name: name, MachineID: "of-" + name}})
	host := x.Changes[0].Rec.(*overlay.Host).UID
	r.id++
	id := r.id
	r.c.Step(r.now, Opened{ID: id, Host: host, VTEP: overlay.Host{VTEP: netip.MustParseAddr("192.0.2.1")}})
	for _, y := range r.settle() {
		if y.ID == id && y.Refusal == nil {
			return host, y.Session
		}
	}
	r.t.Fatalf("session of %s was not opened", name)
	return host, 0
}

func (r *rig) claim(host overlay.UID, session uint64, p *overlay.Port, base overlay.Rev, leave bool) ClaimAnswer {
	r.t.Helper()
	r.said = nil
	r.c.Step(r.now, Claimed{Host: host, Session: session, Claims: []Claim{{ID: 1, Network: p.Network, MAC: p.MAC, Port: p.UID, Base: base, Evidence: overlay.EvidenceDevice, Leave: leave}}})
	r.settle()
	if len(r.said) != 1 {
		r.t.Fatalf("claim got %d answers, want 1", len(r.said))
	}
	return *r.said[0].Claim
}

func (r *rig) where(p *overlay.Port) string {
	it := r.c.View().Endpoint(p.Network, p.MAC)
	if it == nil {
		return "nowhere"
	}
	return r.c.View().Host(it.Rec.(*overlay.Endpoint).Host).Name
}

func TestTheNewerBindingWins(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue")), 1)
	h1, s1 := r.attach("h1")
	h2, s2 := r.attach("h2")
	first := r.claim(h1, s1, p, overlay.Rev{}, false)
	if !first.Accepted || r.where(p) != "h1" {
		t.Fatalf("first claim: %+v, endpoint %s, want accepted on h1", first, r.where(p))
	}
	if a := r.claim(h2, s2, p, overlay.Rev{}, false); a.Accepted || a.Binding != first.Binding {
		t.Errorf("claim on older evidence: %+v, want refused with binding %v", a, first.Binding)
	}
	moved := r.claim(h2, s2, p, first.Binding, false)
	if !moved.Accepted || r.where(p) != "h2" {
		t.Errorf("claim on the binding in force: %+v, endpoint %s, want accepted on h2", moved, r.where(p))
	}
	r.claim(h1, s1, p, first.Binding, true)
	if r.where(p) != "h2" {
		t.Errorf("a late withdrawal of the former host: endpoint %s, want it still on h2", r.where(p))
	}
	at := r.n
	if a := r.claim(h2, s2, p, moved.Binding, false); !a.Accepted || r.n != at {
		t.Errorf("claiming again: %+v and %d revisions written, want accepted and none", a, r.n-at)
	}
	if a := r.claim(h2, s2, p, moved.Binding, true); !a.Accepted || r.where(p) != "nowhere" {
		t.Errorf("withdrawal: %+v, endpoint %s, want accepted and nowhere", a, r.where(p))
	}
	if a := r.claim(h1, s1, p, moved.Binding, false); a.Accepted {
		t.Errorf("claim older than the tombstone: %+v, want refused", a)
	}
}

func TestMessagesOfAFormerSessionAreVoid(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue")), 1)
	h1, old := r.attach("h1")
	_, now := r.attach("h1")
	if now != old+1 {
		t.Fatalf("sessions are %d and %d, want the second one higher", old, now)
	}
	r.said = nil
	r.c.Step(r.now, Claimed{Host: h1, Session: old, Claims: []Claim{{ID: 1, Network: p.Network, MAC: p.MAC, Port: p.UID}}})
	r.settle()
	if r.where(p) != "nowhere" || len(r.said) != 0 || r.c.Stats().ClaimsVoid != 1 {
		t.Errorf("endpoint %s, %d answers, %d void claims, want nowhere, 0 and 1", r.where(p), len(r.said), r.c.Stats().ClaimsVoid)
	}
	r.load() // and numbers go on after a restart of the manager
	if _, again := r.attach("h1"); again != now+1 {
		t.Errorf("session after the manager's restart is %d, want %d", again, now+1)
	}
}

func TestAnInventoryWithdrawsOnlyAtItsEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	x := r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue"), port("b", "blue"))
	a, b := r.portOf(x, 1), r.portOf(x, 2)
	h1, s := r.attach("h1")
	r.claim(h1, s, a, overlay.Rev{}, false)
	r.claim(h1, s, b, overlay.Rev{}, false)
	_, s = r.attach("h1")
	r.claim(h1, s, a, overlay.Rev{}, false)
	if r.where(b) != "h1" {
		t.Fatalf("b is %s before the inventory ended, want h1", r.where(b))
	}
	r.c.Step(r.now, InventoryEnded{Host: h1, Session: s})
	r.settle()
	if r.where(a) != "h1" || r.where(b) != "nowhere" {
		t.Errorf("after the inventory a is %s and b %s, want h1 and nowhere", r.where(a), r.where(b))
	}
}

func TestADeletedNetworksVNIWaitsForEveryHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h1, s1 := r.attach("h1")
	r.attach("h2")
	p := r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue")), 1)
	r.claim(h1, s1, p, overlay.Rev{}, false)
	del := Asked{Delete: &Delete{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "blue"}}
	x := r.ask(del)
	r.refused(api.CodeHasPorts, x)
	if items := x.Refusal.PB().GetItems(); len(items) != 1 || !strings.Contains(items[0], "up on h1") {
		t.Errorf("dependants are %q, want port a, up on h1", items)
	}
	del.Delete.WithPorts = true
	if x := r.ask(del); x.Refusal != nil {
		t.Fatalf("deletion with ports: %v", x.Refusal)
	}
	again := network("green")
	again.Network.VNI = 10001
	r.refused(api.CodeVNIWaits, r.put(ModeCreate, again))
	r.load() // quarantine survives the manager
	h1, s1 = r.attach("h1")
	r.c.Step(r.now, Acked{Host: h1, Session: s1, Rev: r.c.View().At})
	r.settle()
	x = r.put(ModeCreate, again)
	r.refused(api.CodeVNIWaits, x)
	if items := x.Refusal.PB().GetItems(); !slices.Equal(items, []string{"h2"}) {
		t.Errorf("quarantine waits for %q, want h2", items)
	}
	h2, s2 := r.attach("h2")
	r.c.Step(r.now, Acked{Host: h2, Session: s2, Rev: r.c.View().At})
	r.settle()
	r.must(ModeCreate, again)
	for k, s := range r.recs {
		if k.Kind == overlay.KindPort || k.Kind == overlay.KindEndpoint || k.Kind == overlay.KindNetwork && s.Gone {
			t.Errorf("the store still has %v", k)
		}
	}
	floor := r.c.View().Fleet.Floor
	r.load() // and the next manager tells all to who heard only of what was before
	if got := r.c.View().Fleet.Floor; floor.IsZero() || got != floor {
		t.Errorf("the fleet's log has floor %v after a load, and had %v", got, floor)
	}
}
