package managercore

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"culvert/internal/overlay"
)

func TestTombstonesArePrunedBehindAFloor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.must(ModeCreate, network("blue", "10.1.0.0/16")).Changes[0].Rec.(*overlay.Network)
	early := r.c.View().At
	for i := range maxTombstones + 10 {
		name := fmt.Sprintf("p%d", i)
		r.must(ModeCreate, port(name, "blue"))
		r.ask(Asked{Delete: &Delete{Kind: overlay.KindPort, Tenant: DefaultTenant, Name: name}})
	}
	l := r.c.View().Net(n.UID)
	if got := l.Len() - l.Live(); got > maxTombstones {
		t.Errorf("log has %d tombstones, want at most %d", got, maxTombstones)
	}
	if l.Floor.IsZero() || !early.Less(l.Floor) {
		t.Fatalf("floor is %v, want it above %v", l.Floor, early)
	}
	floor := l.Floor
	r.load()
	if got := r.c.View().Net(n.UID).Floor; got.Compare(floor) < 0 {
		t.Errorf("floor after a restart is %v, want %v", got, floor)
	}
	c := NewCursor(r.c.View(), "h1", r.c.View().At)
	c.Subscribe(r.c.View(), n.UID, early)
	if b := c.Next(r.c.View(), 10_000); !slices.Contains(b.Begins, n.UID) {
		t.Errorf("a reader below the floor gets %d items without a full pass, want a full pass", len(b.Items))
	}
}

// Ports that nobody waits for may go with what comes next: what two batches
// say together is what one says that is taken later.
func TestBatchesThatWaitSayTheSameTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.must(ModeCreate, network("blue", "10.1.0.0/16")).Changes[0].Rec.(*overlay.Network)
	h1, s1 := r.attach("h1")
	first := r.must(ModeCreate, port("p0", "blue"))
	cursor := func() *Cursor {
		c := NewCursor(r.c.View(), "h2", r.c.View().At)
		c.Subscribe(r.c.View(), n.UID, r.c.View().At)
		c.Next(r.c.View(), 10)
		return c
	}
	early, late := cursor(), cursor()

	r.must(ModeCreate, port("p1", "blue"))
	b := early.Next(r.c.View(), 10)
	if len(b.Items) != 1 || b.Urgent() {
		t.Fatalf("a declared port is %d items, urgent %v; want one that is not", len(b.Items), b.Urgent())
	}
	p := r.portOf(first, 0)
	if a := r.claim(h1, s1, p, overlay.Rev{}, false); !a.Accepted {
		t.Fatalf("claim: %+v", a)
	}
	more := early.Next(r.c.View(), 10)
	if !more.Urgent() {
		t.Error("an endpoint can wait, want it to be urgent")
	}
	if !b.Join(more) {
		t.Fatal("the batches do not join")
	}
	if want := late.Next(r.c.View(), 10); !reflect.DeepEqual(b, want) {
		t.Errorf("joined\n%+v\nwant\n%+v", b, want)
	}

	r.ask(Asked{Delete: &Delete{Kind: overlay.KindPort, Tenant: DefaultTenant, Name: "p1"}})
	gone := early.Next(r.c.View(), 10)
	if !gone.Urgent() {
		t.Error("a deleted port can wait, want it to be urgent")
	}
	full := NewCursor(r.c.View(), "h2", overlay.Rev{})
	if all := full.Next(r.c.View(), 10); !all.Urgent() || b.Join(all) {
		t.Error("a full pass can wait or be joined, want neither")
	}
}

func TestACursorTellsEachChangeOnceAndNeverSplitsUpTo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := r.must(ModeCreate, network("blue", "10.1.0.0/16")).Changes[0].Rec.(*overlay.Network)
	for i := range 25 {
		r.must(ModeCreate, port(fmt.Sprintf("p%d", i), "blue"))
	}
	v := r.c.View()
	c := NewCursor(v, "h1", overlay.Rev{})
	if !c.Subscribe(v, n.UID, overlay.Rev{}) {
		t.Fatal("subscription was refused")
	}
	seen := map[Key]int{}
	rounds := 0
	for {
		rounds++
		b := c.Next(v, 7)
		for _, it := range b.Items {
			seen[it.Key]++
		}
		if !b.UpTo.IsZero() {
			if b.UpTo != v.At {
				t.Errorf("up to is %v, want %v", b.UpTo, v.At)
			}
			break
		}
	}
	if len(seen) != 26 || rounds < 4 {
		t.Errorf("%d records in %d batches, want 26 in at least 4", len(seen), rounds)
	}
	for k, times := range seen {
		if times != 1 {
			t.Errorf("%v was told %d times, want once", k, times)
		}
	}
	if b := c.Next(v, 7); len(b.Items)+len(b.Ends)+len(b.Begins) != 0 {
		t.Errorf("the same view again gives %d items, want none", len(b.Items))
	}
	for range 10 { // ten changes while the agent is slow are one
		r.must(ModeSet, port("p3", "blue", "10.1.0.5"))
		r.must(ModeSet, port("p3", "blue", "10.1.200.5"))
	}
	if b := c.Next(r.c.View(), 100); len(b.Items) != 1 {
		t.Errorf("twenty changes of one port are %d items, want 1", len(b.Items))
	}
	hidden := network("hidden")
	r.ask(Asked{AddHost: &AddHost{Name: "h7", MachineID: "m"}})
	hidden.Network.Hosts = []string{"h7"}
	uid := r.must(ModeCreate, hidden).Changes[0].Rec.(*overlay.Network).UID
	for _, it := range c.Next(r.c.View(), 100).Items {
		if it.Key.UID == uid && !it.Gone {
			t.Error("a host was told of a network that does not select it")
		}
	}
	if c.Subscribe(r.c.View(), uid, overlay.Rev{}) {
		t.Error("a host subscribed to a network that does not select it")
	}
}
