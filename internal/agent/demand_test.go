package agent

import (
	"bytes"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/overlay"
)

func wantMAC(i int) overlay.Want {
	return overlay.Want{Network: blue, MAC: overlay.MAC{2, 1, 0, 0, byte(i >> 8), byte(i)}}
}

// What was told of an on-demand network is in the journal: its members, in which
// mode it was told, what was answered and what was given up.
func TestJournalKeepsWhatIsToldOnDemand(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	c, j := replay(t, path)
	said := passes(10, 3)
	said[1].Members = []overlay.Member{{Network: blue, Host: peer}, {Network: blue, Host: overlay.UID{7}, Gone: true}}
	said[1].Told = []overlay.Want{wantMAC(1), {Network: blue, Name: "p1"}, {Network: blue, Address: netip.MustParseAddr("10.0.0.1")}}
	said[1].Ends[0].OnDemand = true
	said = append(said, &api.Items{Dropped: []overlay.Want{wantMAC(1)}})
	write(t, j, c, said)

	var got []agentcore.Items
	again, err := openJournal(path, func(it agentcore.Items) { got = append(got, it) })
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if len(got) != len(said) {
		t.Fatalf("%d messages, want %d", len(got), len(said))
	}
	for i, it := range got {
		if want := itemsOf(said[i]); !reflect.DeepEqual(it.Members, want.Members) || !reflect.DeepEqual(it.Told, want.Told) ||
			!reflect.DeepEqual(it.Dropped, want.Dropped) || !reflect.DeepEqual(it.Ends, want.Ends) {
			t.Errorf("message %d is\n%+v\nwant\n%+v", i, it, want)
		}
	}
}

// A journal that is written anew says things in an order in which they can be
// taken: members with the beginning, all items before what was told of, the end
// last.
func TestJournalIsWrittenAnewInOrder(t *testing.T) {
	t.Parallel()
	full := itemsOf(passes(10, 2500)[1])
	full.Members = []overlay.Member{{Network: blue, Host: peer}}
	for i := range 2500 {
		full.Told = append(full.Told, wantMAC(i))
	}
	full.Ends[0].OnDemand = true
	b, err := appendChunks(nil, full)
	if err != nil {
		t.Fatal(err)
	}
	var back agentcore.Items
	frames := 0
	for ; len(b) > 0; frames++ {
		it, n, err := readFrame(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("frame %d: %v", frames, err)
		}
		b = b[n:]
		part := itemsOf(it)
		if len(part.Begins) > 0 && (frames > 0 || len(part.Members) != 1) {
			t.Errorf("frame %d begins the pass with %d members, want the first with one", frames, len(part.Members))
		}
		if len(part.Items) > 0 && len(back.Told) > 0 {
			t.Error("items come after wants that were told")
		}
		if len(part.Ends) > 0 && len(b) > 0 {
			t.Error("the end is not the last")
		}
		back.Begins, back.Items, back.Members = append(back.Begins, part.Begins...), append(back.Items, part.Items...), append(back.Members, part.Members...)
		back.Told, back.Ends, back.UpTo = append(back.Told, part.Told...), append(back.Ends, part.Ends...), part.UpTo
	}
	if len(back.Items) != len(full.Items) || !slices.Equal(back.Told, full.Told) || !reflect.DeepEqual(back.Ends, full.Ends) || back.UpTo != full.UpTo {
		t.Errorf("%d items, %d wants, ends %v, up to %v; want %d, %d, %v, %v", len(back.Items), len(back.Told), back.Ends, back.UpTo, len(full.Items), len(full.Told), full.Ends, full.UpTo)
	}
	if frames != 6 {
		t.Errorf("%d frames, want 6", frames)
	}
}

// sink is a stream that keeps what is sent.
type sink struct{ sent []api.Up }

func (s *sink) Send(u api.Up) error      { s.sent = append(s.sent, u); return nil }
func (*sink) Receive() (api.Down, error) { select {} }
func (*sink) Close()                     {}

// What is wanted of a network is said before the network is subscribed to, in
// messages that the manager takes.
func TestDemandsAreSaidBeforeTheSubscription(t *testing.T) {
	t.Parallel()
	u := agentcore.Up{Add: []agentcore.Position{{Network: blue, OnDemand: true}}}
	for i := range 2*api.MaxStreamDemands + 1 {
		u.Demands = append(u.Demands, agentcore.Demand{Want: wantMAC(i), Drop: i == 7, For: wantMAC(i + 1).MAC})
	}
	var s sink
	if err := sendUp(&s, 1, u); err != nil {
		t.Fatal(err)
	}
	var said []agentcore.Demand
	for i, m := range s.sent {
		if m.Interest != nil && (i != len(s.sent)-1 || !m.Interest.Add[0].OnDemand) {
			t.Errorf("message %d of %d is the subscription %+v, want the last, on demand", i, len(s.sent), m.Interest)
		}
		if _, err := api.UpFromPB(api.UpPB(m)); err != nil {
			t.Errorf("message %d would be refused: %v", i, err)
		}
		for _, d := range m.Demands {
			said = append(said, agentcore.Demand(d))
		}
	}
	if len(s.sent) != 4 || !slices.Equal(said, u.Demands) {
		t.Errorf("%d demands in %d messages, want %d in 3 and the subscription", len(said), len(s.sent)-1, len(u.Demands))
	}
}
