package netnstest

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestVethCarriesFrames(t *testing.T) {
	a, b := New(t), New(t)
	Veth(a, "va", b, "vb")
	pa, pb := OpenPort(t, a, "va"), OpenPort(t, b, "vb")
	src, dst := [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	for range 100 {
		pa.Send(Ethernet(dst, src, 0x88b5, []byte("x")))
	}
	m := All(In, EtherType(0x88b5), To(dst), From(src))
	if n := pb.Count(200*time.Millisecond, m); n != 100 {
		t.Errorf("received %d frames, want 100", n)
	}
	if f, ok := pb.Receive(10*time.Millisecond, EtherType(0x88b6)); ok {
		t.Errorf("received %v, want nothing of that type", f)
	}
}

func TestNamespaceIsPrivate(t *testing.T) {
	n := New(t)
	if out := n.Exec("ip", "-o", "link"); strings.Count(out, "\n") != 1 || !strings.Contains(out, "lo:") {
		t.Errorf("links of a new namespace:\n%s\nwant lo only", out)
	}
	var inside string
	err := n.Run(func() (err error) { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err })
	outside, errOut := os.Readlink("/proc/thread-self/ns/net")
	if err != nil || errOut != nil || inside != n.inode || outside == inside {
		t.Errorf("inside %s (%v), outside %s (%v), want %s inside only", inside, err, outside, errOut, n.inode)
	}
}

func TestHoldersFindsAProcess(t *testing.T) {
	n := New(t)
	err := n.Run(func() error {
		if h := holders(n.inode); len(h) < 2 { // the handle and this thread
			t.Errorf("holders: %v, want this thread and the handle", h)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
