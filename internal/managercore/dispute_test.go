package managercore

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
)

// answers gives the answers of both sides to a dispute.
func (r *learning) answers(asked []Errand, first, second string) {
	r.t.Helper()
	if len(asked) != 2 || asked[0].Ask.MAC == asked[1].Ask.MAC {
		r.t.Fatalf("asked %+v, want one question to each", asked)
	}
	for i, says := range []string{first, second} {
		if says == "" {
			continue
		}
		r.c.Step(r.now, ProbeDone{Host: asked[i].Host, Session: asked[i].Session, ID: asked[i].Ask.ID, Answered: says == "yes", Unable: says == "unable"})
	}
	r.settle()
}

func TestOfTwoWithOneAddress(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		first, second string
		moves         bool
		why           string
	}{
		{"yes", "yes", false, "who answers for it"},
		{"yes", "no", false, "who answers for it"},
		{"no", "yes", true, ""},
		{"no", "no", false, "on h1's"},
		{"unable", "yes", false, "who cannot be asked"},
		{"no", "unable", false, "on h1's"},
		{"", "yes", false, "on h1's"},
		{"no", "", false, "on h1's"},
	} {
		r := newLearning(t)
		r.hears(0, 1, "10.0.0.8", "10.0.0.9")
		a := r.hears(1, 2, "10.0.0.9", "10.0.0.10")
		if !a.Accepted || !strings.Contains(a.Reason, "10.0.0.9: it is 02:00:00:00:00:01 on h1's") || r.has(2, "10.0.0.9") || !r.has(2, "10.0.0.10") {
			t.Fatalf("the second: %+v, want that address refused, alone", a)
		}
		asked := r.asks()
		if len(asked) == 2 && (asked[0].Host != r.hosts[0] || asked[1].Host != r.hosts[1] || asked[0].Ask.Address.String() != "10.0.0.9") {
			t.Errorf("asked %+v", asked)
		}
		if again := r.hears(1, 2, "10.0.0.9", "10.0.0.10"); len(r.asks()) != 0 || again.Reason == "" {
			t.Errorf("claimed again at once: %+v, want nobody asked again", again)
		}
		r.answers(asked, c.first, c.second)
		if got := !r.has(1, "10.0.0.9"); got != c.moves || !r.has(1, "10.0.0.8") {
			t.Errorf("the first says %q, the second %q: taken from the first %t, want %t, and that address alone", c.first, c.second, got, c.moves)
		}
		r.now += disputeAgain
		a = r.hears(1, 2, "10.0.0.9", "10.0.0.10")
		if r.has(2, "10.0.0.9") != c.moves || c.moves != (a.Reason == "") || !strings.Contains(a.Reason, c.why) {
			t.Errorf("the first says %q, the second %q: then %+v, want %q", c.first, c.second, a, c.why)
		}
	}
}

func TestWhoseHostIsDeadOrAway(t *testing.T) {
	t.Parallel()
	r := newLearning(t)
	r.hears(0, 1, "10.0.0.9")
	r.c.Step(r.now, Closed{Host: r.hosts[0], Session: r.n[0]})
	if a := r.hears(1, 2, "10.0.0.9"); !strings.Contains(a.Reason, "who cannot be asked") {
		t.Errorf("the first's agent is away: %+v", a)
	}
	asked := r.asks()
	if len(asked) != 1 {
		t.Fatalf("asked %+v, want the second alone", asked)
	}
	r.c.Step(r.now, ProbeDone{Host: asked[0].Host, Session: asked[0].Session, ID: asked[0].Ask.ID, Answered: true})
	r.settle()
	if !r.has(1, "10.0.0.9") {
		t.Error("the address was taken from a guest that could not be asked")
	}
	w := r.c.rows[Key{Kind: overlay.KindHost, UID: r.hosts[0]}]
	dead := *w.rec.(*overlay.Host)
	dead.Dead = true
	w.rec = &dead
	r.now += disputeAgain
	r.hears(1, 2, "10.0.0.9")
	for _, e := range r.asks() {
		r.c.Step(r.now, ProbeDone{Host: e.Host, Session: e.Session, ID: e.Ask.ID, Answered: true})
	}
	r.settle()
	if r.has(1, "10.0.0.9") {
		t.Error("a guest of a dead host keeps an address that another answers for")
	}
}

func TestWhatIsDeclaredIsNotDisputed(t *testing.T) {
	t.Parallel()
	r := newLearning(t)
	if a := r.hears(1, 2, "10.0.0.5"); !strings.Contains(a.Reason, "it is port a's") || len(r.asks()) != 0 {
		t.Errorf("%+v, want refused, and nobody asked", a)
	}
}

// claims is a claim of the guest of MAC 1 at a host, answered or not.
func (r *learning) claims(host int) *ClaimAnswer {
	cl := Claim{ID: 1, Network: r.net, MAC: overlay.MAC{2, 0, 0, 0, 0, 1}, Evidence: overlay.EvidenceARP, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}}
	if it := r.c.View().Endpoint(r.net, cl.MAC); it != nil {
		cl.Base = it.Rev
	}
	r.said = nil
	r.c.Step(r.now, Claimed{Host: r.hosts[host], Session: r.n[host], Claims: []Claim{cl}})
	return r.answered()
}

func (r *learning) answered() *ClaimAnswer {
	r.settle()
	if len(r.said) == 0 {
		return nil
	}
	return r.said[len(r.said)-1].Claim
}

func (r *learning) at() string {
	it := r.c.View().Endpoint(r.net, overlay.MAC{2, 0, 0, 0, 0, 1})
	return r.c.View().Host(it.Rec.(*overlay.Endpoint).Host).Name
}

func TestOfTwoWithOneMAC(t *testing.T) {
	t.Parallel()
	for says, moves := range map[string]bool{"yes": false, "no": true, "unable": true, "gone": true, "again": true} {
		r := newLearning(t)
		r.hears(0, 1, "10.0.0.9")
		if a := r.claims(1); a != nil {
			t.Fatalf("the second was answered %+v before the first was asked", a)
		}
		asked := r.asks()
		if len(asked) != 1 || asked[0].Host != r.hosts[0] || asked[0].Ask.MAC != (overlay.MAC{2, 0, 0, 0, 0, 1}) || asked[0].Ask.Address.String() != "10.0.0.9" {
			t.Fatalf("asked %+v, want the first", asked)
		}
		if a := r.claims(2); a == nil || a.Accepted || !a.Disputed {
			t.Errorf("a third: %+v, want refused", a)
		}
		r.said = nil
		switch says {
		case "gone":
			r.c.Step(r.now, Closed{Host: r.hosts[0], Session: r.n[0]})
		case "again":
			r.id++
			r.c.Step(r.now, Opened{ID: r.id, Host: r.hosts[0], VTEP: overlay.Host{VTEP: netip.MustParseAddr("192.0.2.1")}})
		default:
			r.c.Step(r.now, ProbeDone{Host: asked[0].Host, Session: asked[0].Session, ID: asked[0].Ask.ID, Answered: says == "yes", Unable: says == "unable"})
		}
		a := r.answered()
		if a == nil || a.Accepted != moves || a.Disputed == moves || (r.at() == "h2") != moves {
			t.Errorf("the first says %q: %+v, and it is on %s; want moved %t", says, a, r.at(), moves)
			continue
		}
		if moves {
			continue
		}
		if !strings.Contains(a.Reason, "it is on h1, and answers there") {
			t.Errorf("refused for %q", a.Reason)
		}
		if a := r.claims(1); a == nil || !a.Disputed || len(r.asks()) != 0 {
			t.Errorf("claimed again at once: %+v, want refused without another question", a)
		}
		r.now += disputeAgain
		if r.claims(1); len(r.asks()) != 1 {
			t.Error("the first was not asked again later")
		}
	}
}

// TestWhoMovesIsNotAsked: a declared port moves by its own signs, and who has
// no address cannot be asked.
func TestWhoMovesIsNotAsked(t *testing.T) {
	t.Parallel()
	r := newLearning(t)
	r.hears(0, 1)
	if a := r.claims(1); a == nil || !a.Accepted || len(r.asks()) != 0 {
		t.Errorf("one without address: %+v, want moved", a)
	}
	p := r.portOf(r.must(ModeCreate, port("b", "blue", "10.0.0.7")), 0)
	first := r.claim(r.hosts[0], r.n[0], p, overlay.Rev{}, false)
	if a := r.claim(r.hosts[1], r.n[1], p, first.Binding, false); !a.Accepted || len(r.asks()) != 0 {
		t.Errorf("a declared port: %+v, want moved", a)
	}
}

func TestDisputesAreBounded(t *testing.T) {
	t.Parallel()
	r := newLearning(t)
	max := 0
	for i := range 2 * maxDisputes / 16 {
		var ips []string
		for j := range 16 {
			ips = append(ips, fmt.Sprintf("10.7.%d.%d", i, j))
		}
		r.hears(0, byte(i), ips...)
		cl := Claim{ID: 1, Network: r.net, MAC: overlay.MAC{2, 1, 0, 0, 0, byte(i)}, Evidence: overlay.EvidenceARP}
		for _, ip := range ips {
			cl.Addresses = append(cl.Addresses, netip.MustParseAddr(ip))
		}
		r.say(r.hosts[1], r.n[1], cl)
		r.asks()
		max = len(r.c.disputes)
	}
	if max != maxDisputes || len(r.c.questions) > 2*maxDisputes {
		t.Errorf("%d disputes and %d questions, want %d", max, len(r.c.questions), maxDisputes)
	}
	r.now += disputeAgain
	if r.hears(2, 200, "10.7.0.0"); len(r.asks()) == 0 {
		t.Error("none may begin when others have ended")
	}
}

// TestOneOwnerAlways: whatever guests claim, leave and answer, in any order, an
// address has one owner, and who answers is not robbed.
func TestOneOwnerAlways(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newLearning(t)
		alive := map[byte]bool{1: true, 2: true, 3: true}
		var open []Errand
		for range 40 {
			r.now += Time(rapid.IntRange(0, 3000).Draw(rt, "ms")) * 1e6
			mac := byte(rapid.IntRange(1, 3).Draw(rt, "mac"))
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0, 1:
				if alive[mac] {
					r.hears(int(mac)-1, mac, "10.0.0.9")
				}
			case 2:
				alive[mac] = !alive[mac]
			case 3:
				if len(open) == 0 {
					break
				}
				i := rapid.IntRange(0, len(open)-1).Draw(rt, "which")
				e := open[i]
				open = append(open[:i], open[i+1:]...)
				owned := r.has(e.Ask.MAC[5], "10.0.0.9")
				r.c.Step(r.now, ProbeDone{Host: e.Host, Session: e.Session, ID: e.Ask.ID, Answered: alive[e.Ask.MAC[5]]})
				r.settle()
				if owned && alive[e.Ask.MAC[5]] && !r.has(e.Ask.MAC[5], "10.0.0.9") {
					rt.Fatalf("%v answered and was robbed", e.Ask.MAC)
				}
			}
			open = append(open, r.asks()...)
			owners := 0
			for mac := byte(1); mac <= 3; mac++ {
				if r.has(mac, "10.0.0.9") {
					owners++
				}
			}
			if owners > 1 {
				rt.Fatalf("%d owners", owners)
			}
		}
		if n := r.c.Stats().Defects; n != 0 {
			rt.Fatalf("%d defects", n)
		}
	})
}
