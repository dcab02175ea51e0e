package managercore

import (
	"net/netip"
	"strings"
	"testing"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

var (
	twinMAC    = overlay.MAC{2, 0, 0, 0, 0, 7}
	virtualMAC = overlay.MAC{0, 0, 0x5e, 0, 1, 7}
)

func withMAC(d overlay.Doc, m overlay.MAC) overlay.Doc {
	d.Port.MAC = m
	return d
}

func bridged(d overlay.Doc) overlay.Doc {
	d.Policy.Bridged, d.Policy.Both = true, true
	return d
}

// sayVirtual claims virtualMAC for a port that shares something.
func (r *rig) sayVirtual(host overlay.UID, session uint64, p *overlay.Port) ClaimAnswer {
	r.t.Helper()
	c := claimOf(p, r.c.View().At, p.Shared[0].String())
	c.MAC = virtualMAC
	r.said = nil
	r.c.Step(r.now, Claimed{Host: host, Session: session, Claims: []Claim{c}})
	r.settle()
	if len(r.said) != 1 {
		r.t.Fatalf("claim got %d answers, want 1", len(r.said))
	}
	return *r.said[0].Claim
}

// refusedFor is refused with words of the refusal.
func (r *rig) refusedFor(want api.Code, words string, x Reply) {
	r.t.Helper()
	if x.Refusal == nil || x.Refusal.Code() != want || !strings.Contains(x.Refusal.Text(), words) {
		r.t.Errorf("answer is %v, want a refusal with %s and %q", x.Refusal, want, words)
	}
}

// segment is a rig with networks old and new of equal subnets, bridged.
func segment(t *testing.T) *rig {
	r := newRig(t)
	r.must(ModeCreate, domain("shop"), within("shop", network("old", "10.1.0.0/24")), within("shop", network("new", "10.1.0.0/24")), within("shop", network("web", "10.2.0.0/24")),
		bridged(policy("move", "old", "new")))
	return r
}

// TestBridgedNetworksHaveOneOfEach: no MAC and no address is in two networks
// that are bridged, whichever of the two comes, and however; what is allocated
// avoids the other's.
func TestBridgedNetworksHaveOneOfEach(t *testing.T) {
	t.Parallel()
	r := segment(t)
	x := r.must(ModeCreate, withMAC(port("a", "old", "10.1.0.2"), twinMAC), port("b", "new"), port("c", "old"), port("d", "new"))
	for i, want := range []string{"10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"} {
		if got := r.portOf(x, i).Addresses[0].String(); got != want {
			t.Errorf("port %d has %s, want %s", i, got, want)
		}
	}
	r.remove(overlay.KindPort, "c")
	if p := r.portOf(r.must(ModeCreate, port("e", "new")), 0); p.Addresses[0].String() != "10.1.0.4" {
		t.Errorf("%v was allocated, want what became free in the other network", p.Addresses)
	}
	for words, d := range map[string]overlay.Doc{
		"MAC " + twinMAC.String() + " is port a's in network old, which is bridged with network new": withMAC(port("f", "new"), twinMAC),
		"10.1.0.2 is port a's in network old, which is bridged with network new":                     port("f", "new", "10.1.0.2"),
		"10.1.0.3 is port b's in network new":                                                        sharing(port("f", "old"), "10.1.0.3"),
	} {
		code := api.CodeAddressInUse
		if strings.HasPrefix(words, "MAC") {
			code = api.CodeMACInUse
		}
		r.refusedFor(code, words, r.put(ModeCreate, d))
	}
	r.refused(api.CodeAddressInUse, r.put(ModeSet, port("b", "new", "10.1.0.2")))
	r.must(ModeCreate, sharing(port("s", "new"), "10.1.0.99"))
	r.refusedFor(api.CodeAddressInUse, "10.1.0.99 is shared by ports in network new", r.put(ModeCreate, port("f", "old", "10.1.0.99")))
	r.refused(api.CodeAddressInUse, r.put(ModeCreate, sharing(port("f", "old"), "10.1.0.99")))

	moved := within("shop", network("new", "10.1.0.0/24"))
	moved.Network.Subnets[0].Gateway = netip.MustParseAddr("10.1.0.2")
	r.refusedFor(api.CodeAddressInUse, "10.1.0.2 is", r.put(ModeSet, moved))
	moved.Network.Subnets[0].Gateway = netip.MustParseAddr("10.1.0.50")
	r.must(ModeSet, moved)
	r.refusedFor(api.CodeAddressInUse, "10.1.0.50 is the gateway's in network new", r.put(ModeCreate, port("f", "old", "10.1.0.50")))

	// What is allocated as a MAC is not the other's, either.
	next := derive(overlay.UID{byte((r.id + 2) >> 8), byte(r.id + 2), 0xee}, 1, "port/z")
	taken := overlay.MAC{0x52, 0x54, 0, next[0], next[1], next[2]}
	r.must(ModeCreate, withMAC(port("t", "old"), taken))
	if p := r.portOf(r.must(ModeCreate, port("z", "new")), 0); p.MAC == taken || p.MAC[3] != taken[3] {
		t.Errorf("allocated %v, want the one after %v", p.MAC, taken)
	}

	// A virtual router is in one of them.
	host, session := r.attach("h1")
	r.must(ModeCreate, sharing(port("v", "old"), "10.1.0.98"))
	get := func(name string) *overlay.Port {
		return r.c.View().Named(overlay.KindPort, overlay.UID{0xd}, name).Rec.(*overlay.Port)
	}
	if a := r.sayVirtual(host, session, get("v")); !a.Accepted {
		t.Fatalf("the first: %+v", a)
	}
	if a := r.sayVirtual(host, session, get("s")); a.Accepted || !strings.Contains(a.Reason, "in network old, which is bridged with this one") {
		t.Errorf("the same MAC across the bridge: %+v", a)
	}
	r.refusedFor(api.CodeMACInUse, "a virtual router's in network old", r.put(ModeCreate, withMAC(port("f", "new"), virtualMAC)))
}

// TestWhatIsNotBridged: what could not be one segment is refused, whatever of it
// comes last, and changes nothing.
func TestWhatIsNotBridged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	on := func(name, subnet string, mtu uint16, admission overlay.Admission) overlay.Doc {
		d := within("shop", network(name, subnet))
		d.Network.MTU, d.Network.Admission = mtu, admission
		return d
	}
	a, b, c := on("a", "10.1.0.0/24", 1400, 0), on("b", "10.2.0.0/24", 1400, 0), on("c", "10.3.0.0/24", 1450, overlay.AdmitLearn)
	r.must(ModeCreate, domain("shop"), a, b, c)
	ab := bridged(policy("ab", "a", "b"))
	twins := []overlay.Doc{withMAC(port("x", "a"), twinMAC), withMAC(port("y", "b"), twinMAC)}
	r.must(ModeCreate, twins...)
	r.refusedFor(api.CodeMACInUse, "network a and in network b, which are bridged", r.put(ModeCreate, ab))
	r.remove(overlay.KindPort, "y")
	r.must(ModeCreate, ab)
	r.refused(api.CodeMACInUse, r.put(ModeCreate, twins[1]))
	r.refusedFor(api.CodeTwoModes, "ab  a <-> b (bridged)", r.put(ModeCreate, forward(policy("way", "b", "a"))))
	r.refusedFor(api.CodeUndeclared, "culvert network set c --admission declared", r.put(ModeCreate, bridged(policy("ac", "a", "c"))))
	r.must(ModeSet, on("c", "10.3.0.0/24", 1450, 0))
	r.refusedFor(api.CodeBridgeMTU, "network a has MTU 1400, and network c, which is bridged with it, 1450", r.put(ModeCreate, bridged(policy("ac", "a", "c"))))
	r.refused(api.CodeBridgeMTU, r.put(ModeSet, on("b", "10.2.0.0/24", 1300, 0)))
	r.must(ModeSet, on("b", "10.2.0.0/24", 1300, 0), on("a", "10.1.0.0/24", 1300, 0))
	r.refused(api.CodeUndeclared, r.put(ModeSet, on("b", "10.2.0.0/24", 1300, overlay.AdmitDHCP)))
	r.must(ModeCreate, policy("ac", "a", "c")) // bridged and routed, to different networks
	r.refused(api.CodeTwoModes, r.put(ModeCreate, bridged(policy("ac2", "a", "c"))))

	// A bridge allows what a policy that is gone, or routed, does not.
	r.must(ModeSet, on("b", "10.1.0.0/24", 1300, 0))
	at := r.n
	r.refusedFor(api.CodeOverlap, "Policy ab was not deleted: subnet 10.1.0.0/24 of network a overlaps 10.1.0.0/24 of network b", r.remove(overlay.KindPolicy, "ab"))
	r.refused(api.CodeOverlap, r.put(ModeSet, policy("ab", "a", "b")))
	if r.n != at {
		t.Error("something was written")
	}
	if w := r.ways("a"); w != "a reach c from c" || len(r.net("a").Bridge) != 1 || r.net("b").Bridge[0] != r.net("a").UID {
		t.Errorf("%s, bridged with %v", w, r.net("a").Bridge)
	}
	r.load()
	r.must(ModeSet, on("b", "10.9.0.0/24", 1300, 0))
	if x := r.remove(overlay.KindPolicy, "ab"); x.Refusal != nil || len(r.net("a").Bridge)+len(r.net("b").Bridge) != 0 {
		t.Errorf("%v: a is bridged with %v", x.Refusal, r.net("a").Bridge)
	}
	r.must(ModeCreate, twins[1])
}

// TestMACsOfTwoThatAreBridgedWithAThird: both stand in the third's tables, so
// they have none in common, in whatever order they come; addresses they may.
func TestMACsOfTwoThatAreBridgedWithAThird(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(ModeCreate, domain("shop"), within("shop", network("mid", "10.1.0.0/24")), within("shop", network("left", "10.2.0.0/24")), within("shop", network("right", "10.3.0.0/24")),
		bridged(policy("l", "left", "mid")), withMAC(port("a", "left", "10.2.0.2"), twinMAC), withMAC(port("b", "right", "10.3.0.2"), twinMAC))
	r.refusedFor(api.CodeMACInUse, "MAC "+twinMAC.String()+" is in network right and in network left, which are both bridged with network mid", r.put(ModeCreate, bridged(policy("r", "mid", "right"))))
	r.remove(overlay.KindPort, "b")
	r.must(ModeCreate, bridged(policy("r", "mid", "right")))
	r.refusedFor(api.CodeMACInUse, "MAC "+twinMAC.String()+" is in network left, which is bridged with network mid as network right is", r.put(ModeCreate, withMAC(port("b", "right"), twinMAC)))
	r.must(ModeCreate, port("c", "right"))
}
