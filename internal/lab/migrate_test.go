package lab

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// A guest that moves keeps its interface; it is heard by and hears exactly one
// host at any time.
func TestMoveUnderPing(t *testing.T) {
	top := buildHosts(t, 2, false)
	for _, n := range top.HostNodes() {
		handBridge(t, top, n)
	}
	a, b := testGuest(top, 1), testGuest(top, 2)
	plug(t, a, "h1")
	plug(t, b, "h1")
	before := ifindex(t, NSOfVM(b.Lab, b.VM), "eth0")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan PingResult, 1)
	go func() {
		r, err := Ping(ctx, NSOfVM(a.Lab, a.VM), PingOptions{Target: b.Addresses[0].Addr(), Interval: time.Millisecond, Wait: 300 * time.Millisecond})
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	if err := b.Prepare("h2"); err != nil {
		t.Fatal(err)
	}
	// A tap has its carrier from the moment that a hypervisor opens it.
	if err := b.AwaitForwarding(t.Context(), "h2", time.Second); err != nil {
		t.Errorf("the port of a guest that is expected does not forward: %v", err)
	}
	start := time.Now()
	if err := b.Stop("h1"); err != nil {
		t.Fatal(err)
	}
	if ok, err := b.Forwarding("h1"); !ok || err != nil {
		t.Errorf("the port of a paused guest does not forward: %v", err)
	}
	if err := b.Resume("h2"); err != nil {
		t.Fatal(err)
	}
	pause := time.Since(start)
	if err := b.AwaitForwarding(t.Context(), "h2", time.Second); err != nil {
		t.Fatal(err)
	}
	if err := b.Retire("h1"); err != nil {
		t.Fatal(err)
	}
	// The bridges here learn, so a frame of the guest tells both where it is.
	if r := mustPing(t, b, PingOptions{Target: a.Addresses[0].Addr(), Count: 5, Interval: time.Millisecond}); r.Received != 5 {
		t.Errorf("ping from the moved guest: %+v", r)
	}
	cancel()
	r := <-done
	t.Logf("pause %s, lost %d of %d, longest gap %d", pause, len(r.Lost), r.Sent, r.LongestGap())
	if r.Received == 0 || r.Received+len(r.Lost) != r.Sent || r.Duplicated != 0 {
		t.Errorf("pings do not add up: sent %d, received %d, lost %d, duplicated %d", r.Sent, r.Received, len(r.Lost), r.Duplicated)
	}
	if len(r.Lost) > 0 && r.Lost[len(r.Lost)-1] == r.Sent-1 {
		t.Error("the last ping was lost: the move never healed")
	}
	if after := ifindex(t, NSOfVM(b.Lab, b.VM), "eth0"); after != before {
		t.Errorf("the guest's interface was %d and is %d", before, after)
	}
}

func ifindex(t *testing.T, namespace, device string) int {
	t.Helper()
	r, err := openNS(namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// A paused guest hears nothing of its host and a prepared device nothing of
// the guest.
func TestOnlyOneEndIsConnected(t *testing.T) {
	top := buildHosts(t, 2, true)
	for _, n := range top.HostNodes() {
		handBridge(t, top, n)
	}
	a, b := testGuest(top, 1), testGuest(top, 2)
	plug(t, a, "h1")
	plug(t, b, "h2")
	if err := b.Prepare("h1"); err != nil {
		t.Fatal(err)
	}
	all := PingOptions{Target: netip.MustParseAddr("10.1.0.255"), Broadcast: true, Count: 10, Interval: time.Millisecond, Wait: 100 * time.Millisecond}
	if r := mustPing(t, a, all); r.Received != 10 || r.Duplicated != 0 || !slices.Equal(r.Answerers(), []string{"10.1.0.2"}) {
		t.Errorf("broadcast with a prepared second device: %+v", r)
	}
	if err := b.Stop("h2"); err != nil {
		t.Fatal(err)
	}
	c, err := OpenCapture(NSOfVM(b.Lab, b.VM), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := StartProbe(NSOfVM(a.Lab, a.VM), NSOfVM(b.Lab, b.VM), b.MAC, b.Addresses[0].Addr())
	if err != nil {
		t.Fatal(err)
	}
	if r := mustPing(t, a, all); r.Received != 0 {
		t.Errorf("a paused guest answers: %+v", r)
	}
	sent, arrived, err := p.Stop()
	if err != nil || sent < 3 || len(arrived) != 0 {
		t.Errorf("probe to a paused guest: sent %d, arrived %d, %v", sent, len(arrived), err)
	}
	if frames, err := c.Stop(); err != nil || len(frames) != 0 {
		t.Errorf("a paused guest got %d frames, %v", len(frames), err)
	}
}

// The probe can fail: where frames may pass it says so.
func TestProbeSeesWhatArrives(t *testing.T) {
	top := buildHosts(t, 1, false)
	handBridge(t, top, top.HostNodes()[0])
	a, b := testGuest(top, 1), testGuest(top, 2)
	plug(t, a, "h1")
	plug(t, b, "h1")
	for _, addr := range b.Addresses {
		p, err := StartProbe(NSOfVM(a.Lab, a.VM), NSOfVM(b.Lab, b.VM), b.MAC, addr.Addr())
		if err != nil {
			t.Fatal(err)
		}
		err = poll(t.Context(), 2*time.Second, func() (bool, error) { return len(p.capture.Frames()) >= 6, nil })
		if err != nil {
			t.Error(err)
		}
		if sent, arrived, err := p.Stop(); err != nil || len(arrived) < 2 {
			t.Errorf("probe towards %s: sent %d, arrived %d, %v", addr, sent, len(arrived), err)
		}
	}
}

// A silent guest says nothing at all, at boot and at a move; one that
// announces is heard for each of its addresses.
func TestSilence(t *testing.T) {
	top := buildHosts(t, 1, false)
	handBridge(t, top, top.HostNodes()[0])
	loud, silent := testGuest(top, 1), testGuest(top, 2)
	loud.Announce = true
	listen := func(g Guest) []Frame {
		t.Helper()
		if err := g.Make(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := OpenCapture(NSOfVM(g.Lab, g.VM), "eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Prepare("h1"); err != nil {
			t.Fatal(err)
		}
		if err := g.Resume("h1"); err != nil {
			t.Fatal(err)
		}
		if err := g.AwaitForwarding(t.Context(), "h1", time.Second); err != nil {
			t.Fatal(err)
		}
		if g.Announce {
			if err := g.Speak(); err != nil {
				t.Fatal(err)
			}
		}
		// Long enough for listener reports and solicitations, which come
		// within the first second.
		quiet := time.NewTimer(1200 * time.Millisecond)
		defer quiet.Stop()
		<-quiet.C
		frames, err := c.Stop()
		if err != nil {
			t.Fatal(err)
		}
		var own []Frame
		for _, f := range frames {
			if f.Outgoing {
				own = append(own, f)
			}
		}
		return own
	}
	if f := listen(silent); len(f) != 0 {
		t.Errorf("a silent guest sent %d frames, the first %x", len(f), f[0].Data)
	}
	if f := listen(loud); len(f) < len(loud.Addresses) {
		t.Errorf("a guest that announces sent %d frames, want one an address or more", len(f))
	}
}

func TestDestroyWaitsForDevices(t *testing.T) {
	top := buildHosts(t, 1, false)
	handBridge(t, top, top.HostNodes()[0])
	g := testGuest(top, 1)
	plug(t, g, "h1")
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	r, err := openNS(NSOfNode(top.Name, "h1"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	links, err := r.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == TapName(g.VM) }) {
		t.Error("the removed VM's device is still on its host")
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}
