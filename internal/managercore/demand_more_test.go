package managercore

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
)

// found is what a log's lookup says of all that these tests put into it.
func found(l *Log) map[string][]Key {
	out := map[string][]Key{}
	add := func(what string) func(*Item) {
		return func(it *Item) { out[what] = append(out[what], it.Key) }
	}
	for i := range 5 {
		l.found.ofHost(demandHost(i), add("host "+demandHost(i).String()))
	}
	for i := range 120 {
		for _, w := range []overlay.Want{byMAC(i), byName(i), byAddr(i)} {
			l.meets(w, add("want "+w.Name+w.MAC.String()+w.Address.String()))
		}
	}
	return out
}

// A view that was published says the same for ever, and what it finds is what a
// log finds that had the same records from the start.
func TestAViewFindsWhatWasThereThen(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := &demandWorld{t: t, c: demandCore(4, overlay.DistributeOnDemand), n: 10, all: map[Key]*Item{}, f: newFollower(t, demandHost(1)), ports: map[int]overlay.UID{}}
		var views []*View
		var said []map[string][]Key
		for range rapid.IntRange(1, 15).Draw(t, "changes") {
			w.change()
			views = append(views, w.c.View())
			said = append(said, found(w.c.View().Net(demandNet)))
		}
		for i, v := range views {
			l := v.Net(demandNet)
			if now := found(l); !reflect.DeepEqual(now, said[i]) {
				t.Fatalf("view %d of %d says %v, said %v", i, len(views), now, said[i])
			}
			anew := newLog()
			for it := range l.Keys() {
				anew.put(it)
			}
			whole := anew.members()
			anew.lookUp(true, v.At)
			if want := found(anew); !reflect.DeepEqual(want, said[i]) {
				t.Fatalf("view %d says %v, a lookup made anew %v", i, said[i], want)
			}
			if !slices.Equal(l.members(), whole) || !slices.Equal(anew.members(), whole) {
				t.Fatalf("members %v, made anew %v, want %v", l.members(), anew.members(), whole)
			}
		}
	})
}

// subscribed is a cursor of h1 that has read all.
func subscribed(t *testing.T, c *Core) *Cursor {
	t.Helper()
	cur := NewCursor(c.View(), "h1", c.View().At)
	if !cur.SubscribeOnDemand(c.View(), demandNet) {
		t.Fatal("the subscription was refused")
	}
	readAll(t, c, cur)
	return cur
}

// readAll is what is told until nothing is left, as one batch.
func readAll(t *testing.T, c *Core, cur *Cursor) (all Batch) {
	t.Helper()
	for range 10_000 {
		b := cur.Next(c.View(), 1000)
		if n := max(len(b.Items), len(b.Told), len(b.Dropped)); n > 1000 {
			t.Fatalf("a batch of 1000 has %d", n)
		}
		all.Items, all.Told, all.Dropped = append(all.Items, b.Items...), append(all.Told, b.Told...), append(all.Dropped, b.Dropped...)
		if !b.UpTo.IsZero() {
			return all
		}
	}
	t.Fatal("there is no end")
	return all
}

// Wants beyond the bounds are counted and come to nothing; the others stand, and
// there is room again when some are given up.
func TestWantsAreBounded(t *testing.T) {
	t.Parallel()
	c := demandCore(2, overlay.DistributeOnDemand)
	cur := subscribed(t, c)
	for i := range maxHints + 3 {
		cur.Hint(byMAC(i))
	}
	readAll(t, c, cur)
	if n := cur.Refused(); n != 3 {
		t.Errorf("%d hints were refused, want 3", n)
	}
	for i := range MaxWants + 5 { // the first are those that were hinted
		cur.Demand(byMAC(i), false)
		if i%1000 == 0 {
			cur.Next(c.View(), 1000)
		}
	}
	readAll(t, c, cur)
	if n := cur.Refused(); n != 5 || cur.wants.n != MaxWants || cur.wants.hints != 0 {
		t.Errorf("%d refused, %d stand, %d of them hints; want 5, %d and none", n, cur.wants.n, cur.wants.hints, MaxWants)
	}
	cur.Demand(byMAC(1), true)
	cur.Demand(byMAC(MaxWants), false)
	if b := readAll(t, c, cur); !slices.Equal(b.Dropped, []overlay.Want{byMAC(1)}) || !slices.Equal(b.Told, []overlay.Want{byMAC(MaxWants)}) || cur.Refused() != 0 {
		t.Errorf("dropped %v, told %v, want one each", b.Dropped, b.Told)
	}
	cur.Unsubscribe(demandNet)
	if cur.wants.n != 0 || len(cur.wants.of) != 0 {
		t.Errorf("%d wants of %d networks are left, want none", cur.wants.n, len(cur.wants.of))
	}
}

// Who is asked is told of who asks, also when that is bound a moment later, and
// is not told that it had wanted it.
func TestAHintIsTold(t *testing.T) {
	t.Parallel()
	c := demandCore(3, overlay.DistributeOnDemand)
	cur := subscribed(t, c)
	ep := func(i, host int) *overlay.Endpoint {
		return &overlay.Endpoint{Network: demandNet, MAC: demandMAC(i), Host: demandHost(host), Addresses: addrsOf(i)}
	}
	c.Step(0, Stored{N: 11, Puts: []StoredRecord{{Rec: ep(1, 1), N: 11}, {Rec: ep(2, 2), N: 11}, {Rec: ep(4, 3), N: 11}}})
	if got, want := c.View().Holders(byAddr(2)), []overlay.UID{demandHost(2)}; !slices.Equal(got, want) {
		t.Errorf("the address is on %v, want %v", got, want)
	}
	readAll(t, c, cur)
	cur.Hint(byMAC(2))
	cur.Hint(byMAC(3))
	if b := readAll(t, c, cur); len(b.Items) != 1 || b.Items[0].Key.MAC != demandMAC(2) || len(b.Told) != 0 {
		t.Errorf("told %d items and %v, want the one that asks alone", len(b.Items), b.Told)
	}
	c.Step(0, Stored{N: 12, Puts: []StoredRecord{{Rec: ep(3, 2), N: 12}, {Rec: ep(5, 2), N: 12}}})
	if b := readAll(t, c, cur); len(b.Items) != 1 || b.Items[0].Key.MAC != demandMAC(3) {
		t.Errorf("told %d items, want the one that asked before it was bound", len(b.Items))
	}
	cur.Demand(byMAC(2), true)
	if b := readAll(t, c, cur); len(b.Dropped) != 1 {
		t.Errorf("dropped %v, want what was hinted", b.Dropped)
	}
	c.Step(0, Stored{N: 13, Puts: []StoredRecord{{Rec: ep(2, 3), N: 13}}})
	if b := readAll(t, c, cur); len(b.Items) != 0 {
		t.Errorf("%d items of what was given up, want none", len(b.Items))
	}
}

// A want that is given up while the network is told whole, or not at all, is
// confirmed all the same; in that mode nothing is kept of it.
func TestWhatIsGivenUpIsAlwaysConfirmed(t *testing.T) {
	t.Parallel()
	c := demandCore(2, overlay.DistributeOnDemand)
	cur := subscribed(t, c)
	cur.Demand(byMAC(1), false)
	cur.Demand(byMAC(1), true)
	cur.Demand(byName(2), false)
	if !cur.Subscribe(c.View(), demandNet, overlay.Rev{}) {
		t.Fatal("the subscription was refused")
	}
	cur.Demand(byAddr(3), true)
	if b := readAll(t, c, cur); !slices.Equal(b.Dropped, []overlay.Want{byMAC(1), byAddr(3)}) || len(b.Told) != 0 || cur.wants.n != 0 {
		t.Errorf("dropped %v, told %v, %d wants stand; want two, none, none", b.Dropped, b.Told, cur.wants.n)
	}
	cur.Demand(overlay.Want{Network: overlay.UID{9}, Name: "x"}, true)
	if b := readAll(t, c, cur); len(b.Dropped) != 1 {
		t.Errorf("dropped %v of a network that is not subscribed to, want one", b.Dropped)
	}
}

// What a host was not sent it has nothing to do for: it acknowledges all the
// same, so a verb that waits for the network waits for it as ever.
func TestAHostThatWasSentNothingGetsToTheEnd(t *testing.T) {
	t.Parallel()
	c := demandCore(3, overlay.DistributeOnDemand)
	cur := subscribed(t, c)
	c.Step(0, Stored{N: 11, Puts: []StoredRecord{{Rec: &overlay.Endpoint{Network: demandNet, MAC: demandMAC(2), Host: demandHost(2)}, N: 11}}})
	b := cur.Next(c.View(), 1000)
	if len(b.Items) != 0 || b.UpTo != c.View().At || len(b.Members) != 1 || !b.Urgent() {
		t.Errorf("%d items, %d members up to %v, want one member alone up to %v", len(b.Items), len(b.Members), b.UpTo, c.View().At)
	}
}

// What is given up in a full pass is confirmed after its end; and what stays for
// another want is told again after that, for whoever reads this later and does
// not know what was wanted.
func TestWhatStaysIsToldAgain(t *testing.T) {
	t.Parallel()
	c := demandCore(2, overlay.DistributeOnDemand)
	e := Stored{N: 11}
	for i := range 4 { // the first is elsewhere
		e.Puts = append(e.Puts, StoredRecord{Rec: &overlay.Endpoint{Network: demandNet, MAC: demandMAC(i), Host: demandHost(2 - min(i, 1)), Addresses: addrsOf(i)}, N: 11})
	}
	c.Step(0, e)
	cur := NewCursor(c.View(), "h1", c.View().At)
	cur.SubscribeOnDemand(c.View(), demandNet)
	cur.Demand(byMAC(9), true)
	cur.Demand(byMAC(0), false)
	cur.Demand(byAddr(0), false)
	cur.Demand(byMAC(0), true)
	var order []string
	for done := false; !done; {
		b := cur.Next(c.View(), 1)
		for range b.Items {
			order = append(order, "item")
		}
		for _, e := range b.Ends {
			if e.Full && e.OnDemand {
				order = append(order, "end")
			}
		}
		for range b.Dropped {
			order = append(order, "dropped")
		}
		done = !b.UpTo.IsZero()
	}
	if want := []string{"item", "item", "item", "end", "dropped", "item", "dropped", "item"}; !slices.Equal(order, want) {
		t.Errorf("said %v, want %v", order, want)
	}
	cur.Demand(byAddr(0), true)
	if b := readAll(t, c, cur); len(b.Items) != 0 || len(b.Dropped) != 1 {
		t.Errorf("%d items and %v dropped, want the want alone", len(b.Items), b.Dropped)
	}
}
