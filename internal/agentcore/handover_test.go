package agentcore

import (
	"strings"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// A guest that was stopped to go on elsewhere is not expected where it was,
// though its device goes down and comes up there.
func TestADeviceThatFlapsExpectsNobodyWhoLeft(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")
	r.nic1("tap-p1", hoststate.NICLeaving)
	r.says("leave 2 "+mac1+" base 11 none", "ack 11")
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1 from=h1")
	r.says("ack 12")
	r.m.SetUp("tap-p1", false)
	r.settle()
	r.m.SetUp("tap-p1", true)
	r.settle()
	r.says()
	// It may be on its way back, or run on here after all.
	r.nic1("tap-p1", hoststate.NICIncoming)
	r.says("expect 3 " + mac1 + " base 12 device")
}

// A guest whose source let go of it is on its way here: another host that comes
// to expect it, too, does not make it one that went there.
func TestAGuestThatArrivesDoesNotReturn(t *testing.T) {
	t.Parallel()
	r := expecting(t)
	r.nic("tap-p2", hoststate.NICIncoming)
	r.ups()
	r.step(Answered{ID: 2, Accepted: true, Binding: overlay.Rev{Epoch: 1, N: 11}})
	r.news("n1", "at h2 p2 "+mac2+" 10.0.0.2,fd00::2 pre=h1")
	r.did()
	r.ups()
	r.news("n1", "at h1 p2 "+mac2+" 10.0.0.2,fd00::2 from=h2", "at h1 p2 "+mac2+" 10.0.0.2,fd00::2 from=h2 pre=h3")
	if s := r.dump(); strings.Contains(s, "relay 10 "+mac2) || !strings.Contains(s, "master 10 "+mac2+" dev tap-p2") {
		t.Errorf("the kernel holds\n%s\nwant the guest here, and nothing sent to h3", s)
	}
	r.says("claim 3 "+mac2+" base 13 device", "ack 13")
	if got, _ := r.c.GuestState("tap-p2"); got != "arriving" {
		t.Errorf("the guest's state is %s, want arriving", got)
	}
}

// A guest came back while its withdrawal was under way, and another host came to
// expect it before the manager saw that: the withdrawal is void, and what moves
// the guest later is no consequence of it.
func TestAVoidWithdrawalExplainsNothing(t *testing.T) {
	t.Parallel()
	r := serving(t)
	r.accept(1, "at h1 p1 "+mac1+" 10.0.0.1")
	r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1 pre=h3")
	r.nic1("tap-p1", hoststate.NICLeaving)
	r.says("leave 2 "+mac1+" base 11 none", "ack 11")
	r.now++
	r.nic1("tap-p1", hoststate.NICRunning)
	r.news("n1", "at h1 p1 "+mac1+" 10.0.0.1 pre=h3,h2")
	r.step(Answered{ID: 2, Binding: overlay.Rev{Epoch: 1, N: 12}, Reason: "a newer binding stands"})
	r.ups()
	r.now++
	r.news("n1", "at h3 p1 "+mac1+" 10.0.0.1 from=h1")
	if s := r.dump(); !strings.Contains(s, "relay 10 "+mac1) {
		t.Errorf("the kernel holds\n%s\nwant the guest sent after", s)
	}
	r.says("ack 13")
}
