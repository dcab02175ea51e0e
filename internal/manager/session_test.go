package manager

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"testing"

	"culvert/internal/agent"
	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/overlay"
	"culvert/internal/trust"
)

// until receives until want is satisfied, or fails.
func until(t *testing.T, st agent.Stream, what string, want func(api.Down) bool) {
	t.Helper()
	for {
		d, err := st.Receive()
		if err != nil {
			t.Fatalf("%s: stream ended: %v", what, err)
		}
		if want(d) {
			return
		}
	}
}

func say(t *testing.T, st agent.Stream, u api.Up) {
	t.Helper()
	if err := st.Send(u); err != nil {
		t.Fatalf("send: %v", err)
	}
}

// answer waits for the answer to a claim.
func answer(t *testing.T, st agent.Stream, id uint64) (a api.Answer) {
	t.Helper()
	until(t, st, "answer", func(d api.Down) bool {
		for _, x := range d.Answers {
			if x.ID == id {
				a = x
				return true
			}
		}
		return false
	})
	return a
}

// A host hears nothing of networks that do not select it, and has no port of
// them, whatever its agent asks for.
func TestAgentGetsWhatItsHostIsSelectedFor(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	h1, h2 := s.agentLeaf("h1"), s.agentLeaf("h2")
	only := networkDoc("theirs")
	only.Network.Hosts = []string{"h2"}
	theirs := s.put(only)[0].(*overlay.Network)
	port := s.put(portDoc("vm1", "theirs"))[0].(*overlay.Port)
	ours := s.put(networkDoc("ours"))[0].(*overlay.Network)

	st, session := s.mustAttach(h1)
	say(t, st, api.Up{Interest: &api.Interest{Add: []api.Position{{Network: theirs.UID}, {Network: ours.UID}}}})
	until(t, st, "log of the network that selects h1", func(d api.Down) bool {
		if d.Items == nil {
			return false
		}
		for _, it := range d.Items.Items {
			switch r := it.Rec.(type) {
			case *overlay.Network:
				if r.UID == theirs.UID {
					t.Errorf("h1 was told of network %s", r.Name)
				}
			case *overlay.Port:
				t.Errorf("h1 was told of port %s", r.Name)
			}
		}
		for _, e := range d.Items.Ends {
			if e.Network == theirs.UID {
				t.Error("h1 was given the log of a network that does not select it")
			}
			if e.Network == ours.UID {
				return true
			}
		}
		return false
	})
	s.counted("subscriptions_refused", 1)
	s.logged("subscription refused", "host=h1", theirs.UID.String())

	claim := api.Claim{ID: 1, Network: theirs.UID, MAC: port.MAC, Port: port.UID, Evidence: overlay.EvidenceDevice}
	say(t, st, api.Up{Claims: &api.Claims{Session: session, Claims: []api.Claim{claim}}})
	if a := answer(t, st, 1); a.Accepted || a.Reason == "" {
		t.Errorf("claim of a port of another's network: %+v, want it refused with a reason", a)
	}
	s.counted("claims_refused", 1)
	if e := s.endpoints(theirs.UID); len(e) != 0 {
		t.Errorf("endpoints %v", e)
	}
	_, err := culvertv1connect.NewAgentsClient(s.rpcOver(s.as(h1))).Resolve(ctx10(t), &culvertv1.ResolveRequest{Tenant: "default", Port: "vm1"})
	refused(t, err, api.CodeNotFound)
	_, err = culvertv1connect.NewAgentsClient(s.rpcOver(s.as(h1))).Resolve(ctx10(t), &culvertv1.ResolveRequest{Vni: uint32(theirs.VNI), Mac: port.MAC[:]})
	refused(t, err, api.CodeNotFound, "does not select host h1")

	// A MAC that is not the port's, and a port that does not exist.
	st2, session2 := s.mustAttach(h2)
	for id, c := range []api.Claim{
		{Network: theirs.UID, MAC: overlay.MAC{2, 0, 0, 0, 0, 1}, Port: port.UID},
		{Network: theirs.UID, MAC: port.MAC, Port: overlay.UID{9}},
		{Network: overlay.UID{9}, MAC: port.MAC, Port: port.UID},
	} {
		c.ID, c.Evidence = uint64(id+1), overlay.EvidenceDevice
		say(t, st2, api.Up{Claims: &api.Claims{Session: session2, Claims: []api.Claim{c}}})
		if a := answer(t, st2, c.ID); a.Accepted || a.Reason == "" {
			t.Errorf("claim %+v: %+v, want it refused with a reason", c, a)
		}
	}
	claim.ID = 9
	say(t, st2, api.Up{Claims: &api.Claims{Session: session2, Claims: []api.Claim{claim}}})
	if a := answer(t, st2, 9); !a.Accepted {
		t.Errorf("the host that is selected: %+v", a)
	}
}

// A new stream of a host ends the former one, and what is still said in the
// former session's name is void.
func TestFormerSessionIsVoid(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	h1 := s.agentLeaf("h1")
	net := s.put(networkDoc("blue"))[0].(*overlay.Network)
	port := s.put(portDoc("vm1", "blue"))[0].(*overlay.Port)
	claim := api.Claim{ID: 1, Network: net.UID, MAC: port.MAC, Port: port.UID, Evidence: overlay.EvidenceDevice}

	first, n1 := s.mustAttach(h1)
	second, n2 := s.mustAttach(h1)
	if n2 <= n1 {
		t.Fatalf("sessions %d, %d", n1, n2)
	}
	for {
		if _, err := first.Receive(); err != nil {
			break // it ends: with which words depends on what was on its way
		}
	}
	say(t, second, api.Up{Claims: &api.Claims{Session: n1, Claims: []api.Claim{claim}}})
	s.counted("claims_void", 1)
	if e := s.endpoints(net.UID); len(e) != 0 {
		t.Errorf("a claim of a former session was taken: %v", e)
	}
	claim.ID = 2
	say(t, second, api.Up{Claims: &api.Claims{Session: n2, Claims: []api.Claim{claim}}})
	if a := answer(t, second, 2); !a.Accepted {
		t.Fatalf("claim: %+v", a)
	}
	third, n3 := s.mustAttach(h1)
	// An inventory that ends in a former session's name withdraws nothing; in
	// its own it withdraws what it did not name.
	say(t, third, api.Up{InventoryEnd: &api.InventoryEnd{Session: n2}})
	claim.ID, claim.Network = 3, overlay.UID{9}
	say(t, third, api.Up{Claims: &api.Claims{Session: n3, Claims: []api.Claim{claim}}})
	answer(t, third, 3) // so what was said before has been taken
	if e := s.endpoints(net.UID); len(e) != 1 {
		t.Errorf("endpoints %v after the end of a former session's inventory, want one", e)
	}
	say(t, third, api.Up{InventoryEnd: &api.InventoryEnd{Session: n3}})
	s.eventually("withdrawal", func() error {
		if e := s.endpoints(net.UID); len(e) != 0 {
			return errors.New("the endpoint is still there")
		}
		return nil
	})
}

// What no agent of ours says ends the stream, and is counted.
func TestMalformedMessagesEndTheStream(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	h1 := s.agentLeaf("h1")
	open := api.UpPB(api.Up{Hello: &hello})
	for i, c := range []struct {
		name string
		say  []*culvertv1.Up
	}{
		{"nothing", []*culvertv1.Up{{}}},
		{"no hello first", []*culvertv1.Up{api.UpPB(api.Up{Ack: &api.Ack{Rev: overlay.Rev{Epoch: 1, N: 1}}})}},
		{"a hello without protocol", []*culvertv1.Up{{Body: &culvertv1.Up_Hello{Hello: &culvertv1.Hello{}}}}},
		{"an empty message", []*culvertv1.Up{open, {}}},
		{"two hellos", []*culvertv1.Up{open, open}},
		{"claims of no session", []*culvertv1.Up{open, {Body: &culvertv1.Up_Claims{Claims: &culvertv1.Claims{}}}}},
		{"an inventory of no session", []*culvertv1.Up{open, {Body: &culvertv1.Up_InventoryEnd{InventoryEnd: &culvertv1.InventoryEnd{}}}}},
		{"an acknowledgement of nothing", []*culvertv1.Up{open, {Body: &culvertv1.Up_Ack{Ack: &culvertv1.Ack{}}}}},
		{"a network of three bytes", []*culvertv1.Up{open, {Body: &culvertv1.Up_Interest{Interest: &culvertv1.Interest{Remove: [][]byte{{1, 2, 3}}}}}}},
	} {
		st, err := culvertv1connect.NewAgentsClient(s.rpcOver(s.as(h1))).Attach(ctx10(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range c.say {
			_ = st.Send(u) // how it ends comes with Receive
		}
		for err == nil {
			_, err = st.Receive()
		}
		if errors.Is(err, io.EOF) {
			t.Errorf("%s: the stream ended without a word", c.name)
		}
		_ = st.Close()
		s.counted("streams_malformed", uint64(i+1))
	}
	s.logged("stream ended", "host=h1")
	// Revisions that this store has never had are counted as a defect.
	st, _ := s.mustAttach(h1)
	say(t, st, api.Up{Ack: &api.Ack{Rev: overlay.Rev{Epoch: 1, N: 1 << 40}}})
	s.counted("defects", 1)
	// The manager still serves.
	if _, err := s.operatorClient(s.ca, s.operator()).Status(ctx10(t), &culvertv1.StatusRequest{}); err != nil {
		t.Error(err)
	}
}

// An agent that holds what this store never had is refused: the store is an
// older copy. Its host stays refused, also when it comes without memory.
func TestOlderStoreServesNoNewerAgent(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	h1, h2 := s.agentLeaf("h1"), s.agentLeaf("h2")
	newer := hello
	newer.UpTo = overlay.Rev{Epoch: 1, N: 1_000}
	_, _, err := s.attach(h1, newer)
	refused(t, err, api.CodeOlderStore, "1000")
	newer.UpTo, newer.Logs = overlay.Rev{}, []api.Position{{Sent: overlay.Rev{Epoch: 2, N: 1}}}
	_, _, err = s.attach(h1, newer)
	refused(t, err, api.CodeOlderStore)
	_, _, err = s.attach(h1, hello)
	refused(t, err, api.CodeOlderStore)
	s.counted("streams_refused_"+string(api.CodeOlderStore), 3)
	if _, _, err := s.attach(h2, hello); err != nil {
		t.Errorf("the other host: %v", err)
	}
	// Nothing was written for the refused streams.
	before := s.m.View().At
	_, _, err = s.attach(h1, hello)
	refused(t, err, api.CodeOlderStore)
	if at := s.m.View().At; before.Less(at) {
		t.Errorf("a refused stream moved the store from %s to %s", before, at)
	}
}

// What an agent tells of its ports stands until it tells otherwise: it does not
// say it again with every report.
func TestWhatWasSeenStands(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	st, _ := s.mustAttach(s.agentLeaf("h1"))
	seen := overlay.Seen{Network: overlay.UID{7}, MAC: overlay.MAC{2}, Groups: []netip.Addr{netip.MustParseAddr("239.1.1.1")}, Drops: []overlay.Count{{Reason: "storm", N: 3}}}
	refused := overlay.Refused{Network: overlay.UID{7}, MAC: overlay.MAC{2}, Device: "tap0", Reason: "it is the gateway's"}
	for i, r := range []api.Report{
		{Repairs: 1, Seen: []overlay.Seen{seen}, Drops: seen.Drops, Refused: []overlay.Refused{refused}, RefusedMore: 4},
		{Repairs: 2},
		{Repairs: 3, Seen: []overlay.Seen{}},
	} {
		r.Problems = []string{"one"} // so that it is published at once
		say(t, st, api.Up{Report: &r})
		s.eventually("the report", func() error {
			for _, f := range s.m.Hosts() {
				if f.Repairs != r.Repairs {
					continue
				}
				if want := 1 - i/2; len(f.Seen) != want || len(f.Drops) != len(r.Drops) || len(f.Refused) != len(r.Refused) || f.RefusedMore != r.RefusedMore {
					t.Errorf("report %d: %+v, want %d ports", i, f, want)
				}
				return nil
			}
			return errors.New("it is not there")
		})
	}
}

// Where no device waits for a port, ports come with what follows them; where
// one does, at once.
func TestPortsAreToldFirstWhereDevicesWait(t *testing.T) {
	t.Parallel()
	s := serveManager(t)
	h1, h2 := s.agentLeaf("h1"), s.agentLeaf("h2")
	n := s.put(networkDoc("blue"))[0].(*overlay.Network)
	attach := func(l *trust.Leaf) (agent.Stream, uint64) {
		st, session := s.mustAttach(l)
		say(t, st, api.Up{Interest: &api.Interest{Add: []api.Position{{Network: n.UID}}}})
		until(t, st, "log of the network", func(d api.Down) bool {
			return d.Items != nil && slices.ContainsFunc(d.Items.Ends, func(e api.LogEnd) bool { return e.Network == n.UID })
		})
		return st, session
	}
	waits, session := attach(h1)
	say(t, waits, api.Up{Waits: &api.Waits{Devices: true}})
	say(t, waits, api.Up{InventoryEnd: &api.InventoryEnd{Session: session}})
	idle, _ := attach(h2)

	has := func(d api.Down) (port, endpoint bool) {
		if d.Items == nil {
			return false, false
		}
		for _, it := range d.Items.Items {
			switch it.Rec.(type) {
			case *overlay.Port:
				port = true
			case *overlay.Endpoint:
				endpoint = true
			}
		}
		return port, endpoint
	}
	together := false
	for i := range 20 { // a busy machine may take longer than a port waits
		p := s.put(portDoc(fmt.Sprintf("vm%d", i), "blue"))[0].(*overlay.Port)
		until(t, waits, "port where a device waits", func(d api.Down) bool { port, _ := has(d); return port })
		say(t, waits, api.Up{Claims: &api.Claims{Session: session, Claims: []api.Claim{{ID: uint64(i + 1), Network: n.UID, MAC: p.MAC, Port: p.UID, Evidence: overlay.EvidenceDevice}}}})
		until(t, idle, "endpoint where none does", func(d api.Down) bool {
			port, endpoint := has(d)
			together = together || port && endpoint
			return endpoint
		})
	}
	if !together {
		t.Error("no port came with its endpoint, want them in one message")
	}
}
