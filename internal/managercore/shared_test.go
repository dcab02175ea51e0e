package managercore

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// sharing is port with addresses that it shares.
func sharing(d overlay.Doc, shared ...string) overlay.Doc {
	for _, a := range shared {
		d.Port.Shared = append(d.Port.Shared, netip.MustParseAddr(a))
	}
	overlay.SortAddrs(d.Port.Shared)
	return d
}

// claimOf is a claim of a port's endpoint that carries announcements which were
// heard at a revision.
func claimOf(p *overlay.Port, heard overlay.Rev, addrs ...string) Claim {
	c := Claim{ID: 1, Network: p.Network, MAC: p.MAC, Port: p.UID, Base: heard, Evidence: overlay.EvidenceDevice, Heard: heard}
	for _, a := range addrs {
		c.Addresses = append(c.Addresses, netip.MustParseAddr(a))
	}
	return c
}

func (r *rig) has(p *overlay.Port, mac overlay.MAC) string {
	ep := r.endpoint(p.Network, mac)
	if ep == nil {
		return "nothing"
	}
	return strings.Trim(fmt.Sprint(ep.Addresses), "[]")
}

// TestSharedAddressesAreAdmitted: inside, nobody's own, both ways, and never
// allocated.
func TestSharedAddressesAreAdmitted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(ModeCreate, network("blue", "10.1.0.0/24"), sharing(port("a", "blue", "10.1.0.10"), "10.1.0.2", "10.1.0.3"), sharing(port("b", "blue"), "10.1.0.2"))
	if p := r.portOf(r.must(ModeApply, sharing(port("b", "blue"), "10.1.0.2")), 0); p.Addresses[0].String() != "10.1.0.4" {
		t.Errorf("allocated %v, want the first that nobody shares: 10.1.0.4", p.Addresses)
	}
	for _, c := range []struct {
		code api.Code
		doc  overlay.Doc
	}{
		{api.CodeOutside, sharing(port("c", "blue"), "10.2.0.2")},
		{api.CodeOutside, sharing(port("c", "blue"), "10.1.0.1")}, // the gateway's
		{api.CodeAddressInUse, sharing(port("c", "blue"), "10.1.0.10")},
		{api.CodeAddressInUse, sharing(port("c", "blue", "10.1.0.20"), "10.1.0.20")},
		{api.CodeAddressInUse, port("c", "blue", "10.1.0.3")},
		{api.CodeAddressInUse, sharing(port("c", "blue", "10.1.0.3"), "10.1.0.2")},
	} {
		r.refused(c.code, r.put(ModeCreate, c.doc))
	}
	// In one request, in either order, an address may become another's own.
	r.must(ModeApply, port("c", "blue", "10.1.0.3"), sharing(port("a", "blue", "10.1.0.10"), "10.1.0.2"))
	r.must(ModeApply, sharing(port("a", "blue", "10.1.0.10"), "10.1.0.2", "10.1.0.3"), port("c", "blue", "10.1.0.7"))
	r.load() // and what the store says gives the same
	r.refused(api.CodeAddressInUse, r.put(ModeCreate, port("d", "blue", "10.1.0.2")))
	for i := range maxSharing - 2 {
		r.must(ModeCreate, sharing(port(fmt.Sprintf("s%d", i), "blue"), "10.1.0.2"))
	}
	r.refused(api.CodeQuota, r.put(ModeCreate, sharing(port("last", "blue"), "10.1.0.2")))
}

// TestAddressCheckIsAChange: of the port's record alone.
func TestAddressCheckIsAChange(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.portOf(r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue")), 1)
	checked := port("a", "blue")
	checked.Port.AddressCheck = true
	for _, want := range []string{"changed", "unchanged"} {
		x := r.must(ModeApply, checked)
		if got := x.Changes[0]; got.Action != want || !r.c.rows[KeyOf(p)].rec.(*overlay.Port).AddressCheck {
			t.Errorf("%s, want %s, and checked", got.Action, want)
		}
	}
	if x := r.must(ModeApply, port("a", "blue")); x.Changes[0].Action != "changed" || r.c.rows[KeyOf(p)].rec.(*overlay.Port).AddressCheck {
		t.Errorf("%s, want changed, and not checked", x.Changes[0].Action)
	}
	fresh := port("b", "blue")
	fresh.Port.AddressCheck = true
	if b := r.portOf(r.must(ModeCreate, fresh), 0); !b.AddressCheck {
		t.Error("a port that was made with it is not checked")
	}
}

// TestASharedAddressGoesToWhoAnnouncedItLast: in one change, with what was
// announced later, and never by an older or a repeated word.
func TestASharedAddressGoesToWhoAnnouncedItLast(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	x := r.must(ModeCreate, network("blue", "10.1.0.0/24"), sharing(port("a", "blue", "10.1.0.10"), "10.1.0.100", "10.1.0.101"), sharing(port("b", "blue", "10.1.0.11"), "10.1.0.100"), port("c", "blue", "10.1.0.12"))
	a, b, c := r.portOf(x, 1), r.portOf(x, 2), r.portOf(x, 3)
	h1, s1 := r.attach("h1")
	h2, s2 := r.attach("h2")
	r.say(h1, s1, claimOf(a, overlay.Rev{}))
	r.say(h2, s2, claimOf(b, overlay.Rev{}))
	r.say(h2, s2, claimOf(c, overlay.Rev{}))
	before := r.c.View().At
	first := r.say(h1, s1, claimOf(a, before, "10.1.0.100", "10.1.0.101"))
	if !first.Accepted || first.Reason != "" || r.has(a, a.MAC) != "10.1.0.10 10.1.0.100 10.1.0.101" {
		t.Fatalf("%+v, a has %s", first, r.has(a, a.MAC))
	}
	// b announced before it had heard of that.
	if x := r.say(h2, s2, claimOf(b, before, "10.1.0.100")); !x.Accepted || !strings.Contains(x.Reason, "10.1.0.100: "+a.MAC.String()+" announced it later") || r.has(b, b.MAC) != "10.1.0.11" {
		t.Errorf("an older announcement: %+v, b has %s", x, r.has(b, b.MAC))
	}
	moved := r.say(h2, s2, claimOf(b, first.Binding, "10.1.0.100"))
	if !moved.Accepted || r.has(b, b.MAC) != "10.1.0.11 10.1.0.100" || r.has(a, a.MAC) != "10.1.0.10 10.1.0.101" {
		t.Errorf("a later announcement: %+v, a has %s and b %s", moved, r.has(a, a.MAC), r.has(b, b.MAC))
	}
	if it := r.c.View().Endpoint(a.Network, a.MAC); it.Rev != moved.Binding {
		t.Errorf("a lost it at %v and b got it at %v, want one revision", it.Rev, moved.Binding)
	}
	// A claim without announcements, as of a session that begins, moves nothing.
	r.say(h1, s1, claimOf(a, moved.Binding))
	if x := r.say(h2, s2, claimOf(c, moved.Binding, "10.1.0.100")); !strings.Contains(x.Reason, "port c does not share it") {
		t.Errorf("a port that does not share it: %+v", x)
	}
	if r.has(b, b.MAC) != "10.1.0.11 10.1.0.100" || r.has(c, c.MAC) != "10.1.0.12" {
		t.Errorf("b has %s and c %s", r.has(b, b.MAC), r.has(c, c.MAC))
	}
	// What it does not share any more it does not hold, and with it it goes.
	r.must(ModeApply, sharing(port("a", "blue", "10.1.0.10"), "10.1.0.100"))
	if r.has(a, a.MAC) != "10.1.0.10" {
		t.Errorf("a has %s, want what is its own", r.has(a, a.MAC))
	}
	leave := claimOf(b, moved.Binding)
	leave.Leave = true
	r.say(h2, s2, leave)
	if x := r.say(h1, s1, claimOf(a, overlay.Rev{}, "10.1.0.100")); !x.Accepted || r.has(a, a.MAC) != "10.1.0.10 10.1.0.100" {
		t.Errorf("after its holder left: %+v, a has %s", x, r.has(a, a.MAC))
	}
}

// TestAVirtualRoutersMACIsAnEndpointOfItsPorts moves with its addresses.
func TestAVirtualRoutersMACIsAnEndpointOfItsPorts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	x := r.must(ModeCreate, network("blue", "10.1.0.0/24"), sharing(port("a", "blue", "10.1.0.10"), "10.1.0.100"), sharing(port("b", "blue", "10.1.0.11"), "10.1.0.100"), port("c", "blue"))
	a, b, c := r.portOf(x, 1), r.portOf(x, 2), r.portOf(x, 3)
	h1, s1 := r.attach("h1")
	h2, s2 := r.attach("h2")
	virtual := func(p *overlay.Port, at overlay.Rev, addrs ...string) Claim {
		cl := claimOf(p, at, addrs...)
		cl.MAC = overlay.MAC{0, 0, 0x5e, 0, 1, 7}
		return cl
	}
	own := r.say(h1, s1, claimOf(a, overlay.Rev{}, "10.1.0.100"))
	one := virtual(a, own.Binding, "10.1.0.100")
	if x := r.say(h1, s1, one); !x.Accepted || r.has(a, one.MAC) != "10.1.0.100" || r.has(a, a.MAC) != "10.1.0.10" {
		t.Fatalf("%+v, the virtual MAC has %s, a %s", x, r.has(a, one.MAC), r.has(a, a.MAC))
	}
	if x := r.say(h2, s2, virtual(b, r.c.View().At)); !x.Accepted || r.endpoint(b.Network, one.MAC).Host != h2 || r.has(b, one.MAC) != "10.1.0.100" {
		t.Errorf("a frame of it on another host: %+v, endpoint %+v", x, r.endpoint(b.Network, one.MAC))
	}
	for name, cl := range map[string]Claim{
		"a port that shares nothing": virtual(c, r.c.View().At),
		"a MAC that is not virtual":  {ID: 1, Network: a.Network, Port: a.UID, MAC: overlay.MAC{0, 0, 0x5e, 0, 3, 7}},
		"expected":                   {ID: 1, Network: a.Network, Port: a.UID, MAC: one.MAC, Pre: true},
	} {
		if x := r.say(h2, s2, cl); x.Accepted {
			t.Errorf("%s: %+v, want refused", name, x)
		}
	}
	r.load()
	r.ask(Asked{Delete: &Delete{Kind: overlay.KindPort, Tenant: DefaultTenant, Name: "b"}})
	if got := r.has(b, one.MAC); got != "nothing" {
		t.Errorf("its port was deleted, and it has %s", got)
	}
}

// TestSharedAddressesHaveOneHolder: whatever is announced, in whatever order
// it comes, each address is held by one endpoint at most and by none that may
// not. What was announced when all before was known is believed, and what was
// announced before the last move is not.
func TestSharedAddressesHaveOneHolder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		all := []string{"10.1.0.100", "10.1.0.101"}
		docs := []overlay.Doc{network("blue", "10.1.0.0/24")}
		for i := range 4 {
			docs = append(docs, sharing(port(fmt.Sprintf("p%d", i), "blue"), all[:1+i%2]...))
		}
		x := r.must(ModeCreate, docs...)
		var ports []*overlay.Port
		for i := range 4 {
			ports = append(ports, r.portOf(x, i+1))
		}
		hosts, sessions := [2]overlay.UID{}, [2]uint64{}
		attach := func() {
			for i := range hosts {
				hosts[i], sessions[i] = r.attach(fmt.Sprintf("h%d", i+1))
			}
		}
		attach()
		holder := func(a string) int {
			who := -1
			for j, q := range ports {
				if !strings.Contains(" "+r.has(q, q.MAC)+" ", " "+a+" ") {
					continue
				}
				if who >= 0 {
					rt.Fatalf("%s and %s both have %s", ports[who].Name, q.Name, a)
				}
				who = j
			}
			return who
		}
		heard := make([]overlay.Rev, len(ports))
		moved := map[string]overlay.Rev{}
		for range rapid.IntRange(1, 30).Draw(rt, "events") {
			i := rapid.IntRange(0, 3).Draw(rt, "port")
			p, a := ports[i], rapid.SampledFrom(all).Draw(rt, "address")
			if rapid.Bool().Draw(rt, "hears") {
				heard[i] = r.c.View().At
			}
			cl := claimOf(p, heard[i], a)
			cl.Base = r.c.View().At
			newest, before := heard[i] == cl.Base, holder(a)
			ans := r.say(hosts[i%2], sessions[i%2], cl)
			after := holder(a)
			may := slices.ContainsFunc(p.Shared, func(x netip.Addr) bool { return x.String() == a })
			switch {
			case after != before && (after != i || !may || before >= 0 && heard[i].Less(moved[a])):
				rt.Fatalf("%s announced %s as of %v, and it went from %d to %d, having moved at %v: %+v", p.Name, a, heard[i], before, after, moved[a], ans)
			case may && after != i && (newest || before < 0):
				rt.Fatalf("%s announced %s as of now, and %d has it: %+v", p.Name, a, after, ans)
			}
			if after != before {
				moved[a] = ans.Binding
			}
			holder(all[0])
			holder(all[1])
			if rapid.IntRange(0, 9).Draw(rt, "restart") == 0 {
				r.load()
				attach()
			}
		}
	})
}
