package agentcore

import (
	"strings"
	"testing"

	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// TestAClaimWaitsUntilItIsKnownWhoHasTheMAC.
func TestAClaimWaitsUntilItIsKnownWhoHasTheMAC(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.mute = true
	r.plug("n1", "p3")
	if got, want := s.hear(), "want n1 port p3"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	s.answer()
	if got, want := s.hear(), "want n1 "+mac3; got != want {
		t.Errorf("told %q, want %q: not whose port it is, before its MAC was asked for", got, want)
	}
	r.tick(second)
	if got := s.hear(); strings.Contains(got, "claim") {
		t.Errorf("told %q", got)
	}
	if strings.Contains(r.dump(), "port tap-p3 mac") {
		t.Errorf("the device passes frames before it is known who has its MAC:\n%s", r.dump())
	}
	s.mute = false
	s.answer()
	if got := s.hear(); !strings.Contains(got, "expect") { // h3 has it
		t.Errorf("told %q", got)
	}
	// And one whom nobody has any more.
	r.step(Answered{ID: 2, Reason: "not now"})
	s.put("-at h3 p3 " + mac3)
	if got := s.hear(); !strings.Contains(got, "claim") {
		t.Errorf("told %q", got)
	}
}

// TestThatOneLeftSaysNotWhoHadItThen: when nobody here wanted to know any more.
func TestThatOneLeftSaysNotWhoHadItThen(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.asks(mac1, "10.0.0.1", "10.0.0.3")
	s.put("-at h3 p3 " + mac3)
	s.mute = true
	s.hear()
	s.unsaid = nil
	s.wants = map[overlay.Want]bool{}
	s.put("at h2 p3 " + mac3 + " 10.0.0.3") // of which this host is not told
	r.plug("n1", "p3")                      // that it is given up was not confirmed yet
	if strings.Contains(r.dump(), "port tap-p3 mac") {
		t.Errorf("a device passes frames whose guest is elsewhere:\n%s", r.dump())
	}
}

// TestAnAnswerToAFormerSubscriptionIsNone: a pass that begins after it says what
// is known.
func TestAnAnswerToAFormerSubscriptionIsNone(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	r.plug("n1", "p3")
	s.hear()
	want := overlay.Want{Network: netUID("n1"), MAC: mac(mac3)}
	delete(s.wants, want)
	s.pass()
	s.unsaid = []Demand{{Want: want}}
	s.answer()
	if !strings.Contains(r.dump(), "fdb 10 "+mac3) {
		t.Errorf("what was answered then is not taken:\n%s", r.dump())
	}
}

// TestADeviceStaysItsPortUntilThatIsAnswered: though a pass did not name it.
func TestADeviceStaysItsPortUntilThatIsAnswered(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	const row = "port tap-p3 mac"
	s.put("-at h3 p3 " + mac3)
	r.plug("n1", "p3")
	s.hear()
	s.put("-port p3 " + mac3)
	s.put("port p3 " + mac3)
	s.hear()
	s.wants = map[overlay.Want]bool{}
	delete(s.log, overlay.Key{Kind: overlay.KindPort, UID: portUID("p3")}) // and its tombstone is thrown away
	s.pass()
	if !strings.Contains(r.dump(), row) {
		t.Error("a guest is cut off before it is known that its port is none")
	}
	s.unsaid = []Demand{{Want: overlay.Want{Network: netUID("n1"), Name: "p3"}}}
	s.answer()
	if strings.Contains(r.dump(), row) {
		t.Errorf("a port that is none passes frames:\n%s", r.dump())
	}
}

// TestADeviceIsRecognisedByWhatIsHeardOnIt: in the other mode its port is known
// before.
func TestADeviceIsRecognisedByWhatIsHeardOnIt(t *testing.T) {
	t.Parallel()
	r, s := quiet(t, "ondemand")
	s.put("-at h3 p3 " + mac3)
	i := r.m.Plug("tap-x", 10, "")
	r.settle()
	s.hear()
	r.now++
	r.step(Heard{Port: i, Fact: packet.Fact{Kind: packet.Frame, Src: mac(mac3)}, At: r.now})
	if got := s.hear(); !strings.Contains(got, "want n1 "+mac3) || !strings.Contains(got, "claim 2 "+mac3) {
		t.Errorf("told\n%s", got)
	}
}
