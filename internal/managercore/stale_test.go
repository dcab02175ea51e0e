package managercore

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// labelled is d with one label more, read at rev.
func labelled(d overlay.Doc, label string, seen overlay.Rev) overlay.Doc {
	d.Labels = append(slices.Clone(d.Labels), overlay.Label{Key: label})
	overlay.SortLabels(d.Labels)
	d.Seen = seen
	return d
}

// stale checks a refusal with CV0114 and that it says all of words.
func (r *rig) stale(x Reply, words ...string) {
	r.t.Helper()
	r.refused(api.CodeStale, x)
	for _, w := range words {
		if x.Refusal != nil && !strings.Contains(x.Refusal.Text(), w) {
			r.t.Errorf("the refusal does not say %q:\n%s", w, x.Refusal.Text())
		}
	}
}

func TestADocumentReadTooLongAgoIsRefused(t *testing.T) {
	t.Parallel()
	for _, base := range []overlay.Doc{{Kind: overlay.KindTenant, Name: "acme"}, network("blue", "10.1.0.0/24"), port("a", "red", "10.1.0.5"), domain("shop"), policy("web-db", "web", "db")} {
		t.Run(base.Kind.String(), func(t *testing.T) {
			r := newRig(t)
			r.must(ModeCreate, network("red", "10.1.0.0/24"))
			if base.Kind == overlay.KindPolicy {
				r.must(ModeCreate, domain("shop"), within("shop", network("web")), within("shop", network("db")))
			}
			x := r.must(ModeCreate, base)
			first := x.Rev
			mine, theirs := labelled(base, "mine", first), labelled(base, "theirs", first)
			second := r.must(ModeSet, theirs).Rev
			at := r.n
			r.stale(r.put(ModeSet, mine), "revision "+first.String(), "revision "+second.String()+" now", "test: "+base.Kind.String()+" set", "culvert "+base.Kind.String()+" show "+base.Name)
			r.stale(r.put(ModeApply, network("green"), mine), first.String(), second.String())
			r.stale(r.put(ModeSet, labelled(base, "mine", overlay.Rev{Epoch: 1, N: 999})), "999", second.String())
			r.stale(r.put(ModeSet, labelled(base, "mine", overlay.Rev{Epoch: 2, N: second.N})), "2."+second.String())
			if x := r.must(ModeSet, theirs); x.Changes[0].Action != "unchanged" {
				t.Errorf("asking for what is there: %s, want unchanged at whatever revision", x.Changes[0].Action)
			}
			if r.n != at {
				t.Fatalf("the store went from %d to %d, want nothing written", at, r.n)
			}
			both := labelled(theirs, "mine", second)
			third := r.must(ModeSet, both).Rev
			if !second.Less(third) {
				t.Errorf("a document of the newest revision was not written: %v", third)
			}
			mine.Seen = overlay.Rev{}
			if x := r.must(ModeApply, mine); x.Changes[0].Action != "changed" {
				t.Errorf("without a revision: %s, want the last writer to win", x.Changes[0].Action)
			}
		})
	}
}

func TestADocumentOfWhatIsGoneIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	blue := network("blue", "10.1.0.0/24")
	first := r.must(ModeCreate, blue).Rev
	r.ask(Asked{Delete: &Delete{Kind: overlay.KindNetwork, Tenant: DefaultTenant, Name: "blue"}})
	read := labelled(blue, "mine", first)
	r.stale(r.put(ModeApply, read), "no network has that name now", "metadata.revision out to make it anew")
	r.stale(r.put(ModeCreate, read))
	r.refused(api.CodeNotFound, r.put(ModeSet, read))
	elsewhere := read
	elsewhere.Tenant = "nobody"
	r.stale(r.put(ModeApply, elsewhere))
	// Another one of that name is not the one that was read.
	again := r.must(ModeCreate, blue).Rev
	r.stale(r.put(ModeApply, read), first.String(), again.String())
}

// What else is wrong with an old document may be wrong because it is old: here
// the address that it has was given to another port meanwhile.
func TestAnOldDocumentIsToldThatItIsOld(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.must(ModeCreate, network("blue", "10.1.0.0/24"), port("a", "blue", "10.1.0.5")).Rev
	r.must(ModeSet, port("a", "blue", "10.1.0.6"))
	r.must(ModeCreate, port("b", "blue", "10.1.0.5"))
	read := labelled(port("a", "blue", "10.1.0.5"), "mine", first)
	r.stale(r.put(ModeSet, read))
	read.Seen = overlay.Rev{}
	r.refused(api.CodeAddressInUse, r.put(ModeSet, read))
	// The refusals took nothing out of the indexes.
	r.refused(api.CodeAddressInUse, r.put(ModeCreate, port("c", "blue", "10.1.0.6")))
}

// answers collects the answers that are ready, by request.
func (r *rig) answers() map[uint64]Reply {
	out := map[uint64]Reply{}
	for _, x := range r.c.NextReplies() {
		out[x.ID] = x
	}
	return out
}

func (r *rig) begin(mode Mode, d overlay.Doc) (id uint64) {
	r.id++
	r.c.Step(r.now, Asked{ID: r.id, Actor: fmt.Sprintf("writer %d", r.id), Seed: overlay.UID{byte(r.id), 0xee}, Put: &Put{Mode: mode, Docs: []overlay.Doc{d}}})
	return r.id
}

// A change that is on its way counts: its number is not known yet, so the
// refusal waits for it and then says it.
func TestAChangeOnItsWayCounts(t *testing.T) {
	t.Parallel()
	for _, doneFirst := range []bool{true, false} {
		r := newRig(t)
		blue := network("blue")
		first := r.must(ModeCreate, blue).Rev
		a := r.begin(ModeSet, labelled(blue, "a", first))
		b := r.begin(ModeSet, labelled(blue, "b", first))
		same := r.begin(ModeSet, labelled(blue, "a", first))
		if got := r.answers(); len(got) != 1 || got[same].Refusal != nil {
			t.Fatalf("before the store has written: answers %v, want one, to what is asked for already", got)
		}
		ws := r.c.NextTxn(nil, 1000)
		c := r.begin(ModeSet, labelled(blue, "c", first))
		r.n++
		e := Stored{N: r.n, Puts: []StoredRecord{{Rec: ws[0].Rec, N: r.n}}}
		if doneFirst {
			r.c.Step(r.now, TxnDone{N: r.n})
			if got := r.answers(); len(got) != 0 {
				t.Fatalf("before the view has it: answers %v, want none", got)
			}
			r.c.Step(r.now, e)
		} else {
			r.c.Step(r.now, e)
			// The view has it, and whoever read it there is not refused.
			d := r.begin(ModeSet, labelled(labelled(blue, "a", first), "d", r.c.View().At))
			if got := r.answers(); len(got) != 0 {
				t.Fatalf("before the transaction is known to be done: answers %v, want none", got)
			}
			r.c.Step(r.now, TxnDone{N: r.n})
			defer func() {
				if x := r.settle(); len(x) != 1 || x[0].ID != d || x[0].Refusal != nil {
					t.Errorf("the change made on the newest revision: %v, want it done", x)
				}
			}()
		}
		got := r.answers()
		if got[a].Refusal != nil || got[a].Rev.N != r.n {
			t.Errorf("the first writer: %v, want revision %d", got[a], r.n)
		}
		for _, id := range []uint64{b, c} {
			r.stale(got[id], "revision "+first.String(), "revision "+got[a].Rev.String()+" now", fmt.Sprintf("writer %d: network set", a))
		}
	}
}

func TestAStaleDocumentInALostTransaction(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := r.must(ModeCreate, network("blue")).Rev
	a := r.begin(ModeSet, labelled(network("blue"), "a", first))
	b := r.begin(ModeSet, labelled(network("blue"), "b", first))
	r.c.NextTxn(nil, 1000)
	r.c.Step(r.now, Lost{})
	got := r.answers()
	r.refused(api.CodeUnknown, got[a])
	r.refused(api.CodeNotDecider, got[b]) // nothing of it was written, whatever became of a's
}

// TestNoUpdateIsLost: writers who read, add their label and write what they
// read, however their steps and those of the store interleave, all find their
// labels in the end; each refusal is for a change that really came first.
func TestNoUpdateIsLost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		base := network("blue")
		r.must(ModeCreate, base)
		stored := func() (overlay.Rev, []overlay.Label) {
			it := r.c.View().Named(overlay.KindNetwork, overlay.UID{0xd}, "blue")
			return it.Rev, it.Rec.(*overlay.Network).Labels
		}
		asked, seen, accepted := map[uint64]string{}, map[uint64]overlay.Rev{}, map[string]bool{}
		var events []Event // of the store, in the order in which they happen
		take := func() {
			for id, x := range r.answers() {
				now, _ := stored()
				switch {
				case x.Refusal == nil:
					accepted[asked[id]] = true
				case x.Refusal.Code() != api.CodeStale:
					rt.Fatalf("refused: %v", x.Refusal)
				case !seen[id].Less(now):
					rt.Fatalf("refused at revision %v, and the view is at %v: reading again would give the same", seen[id], now)
				}
				delete(asked, id)
			}
		}
		step := func() {
			r.c.Step(r.now, events[0])
			events = events[1:]
			take()
		}
		next := func() bool {
			ws := r.c.NextTxn(nil, 1)
			if len(ws) == 0 {
				return false
			}
			r.n++
			two := []Event{Stored{N: r.n, Puts: []StoredRecord{{Rec: ws[0].Rec, N: r.n}}}, TxnDone{N: r.n}}
			if rapid.Bool().Draw(rt, "done before seen") {
				slices.Reverse(two)
			}
			events = append(events, two...)
			return true
		}
		type read struct {
			doc overlay.Doc
			own string
		}
		var reads []read
		for n := range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				at, labels := stored()
				d := base
				d.Labels = labels
				own := fmt.Sprintf("w%02d", n)
				reads = append(reads, read{labelled(d, own, at), own})
			case 1:
				if len(reads) > 0 {
					i := rapid.IntRange(0, len(reads)-1).Draw(rt, "writer")
					w := reads[i]
					reads = slices.Delete(reads, i, i+1)
					id := r.begin(ModeSet, w.doc)
					seen[id], asked[id] = w.doc.Seen, w.own
					take()
				}
			case 2:
				next()
			case 3:
				if len(events) > 0 {
					step()
				}
			}
		}
		for len(events) > 0 || next() {
			step()
		}
		if len(asked) > 0 {
			rt.Fatalf("never answered: %v", asked)
		}
		_, labels := stored()
		for l := range accepted {
			if !slices.ContainsFunc(labels, func(x overlay.Label) bool { return x.Key == l }) {
				rt.Fatalf("label %s was accepted and is lost: %v", l, labels)
			}
		}
		if len(labels) != len(accepted) {
			rt.Fatalf("labels %v, accepted %v", labels, accepted)
		}
	})
}
