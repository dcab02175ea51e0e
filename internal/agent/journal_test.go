package agent

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/overlay"
)

var (
	self = overlay.UID{1}
	peer = overlay.UID{2}
	blue = overlay.UID{3}
)

func rev(n uint64) overlay.Rev { return overlay.Rev{Epoch: 1, N: n} }

// passes is what a manager says of a fleet with one network and n endpoints on
// another host, in two full passes, from revision first on.
func passes(first uint64, n int) []*api.Items {
	fleet := &api.Items{Begins: []overlay.UID{{}}, Items: []api.StreamItem{
		{Rev: rev(1), Rec: &overlay.Host{Meta: overlay.Meta{UID: peer, Name: "h2"}, VTEP: netip.MustParseAddr("192.0.2.2")}},
		{Rev: rev(2), Rec: &overlay.Network{Meta: overlay.Meta{UID: blue, Name: "blue", Tenant: overlay.UID{9}}, TenantName: "default", VNI: 10001, MTU: 1450}},
	}, Ends: []api.LogEnd{{Full: true, Sent: rev(first)}}}
	net := &api.Items{Begins: []overlay.UID{blue}}
	var sum overlay.Sum
	for i := range n {
		ep := &overlay.Endpoint{
			Network: blue, MAC: overlay.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, Port: overlay.UID{4, byte(i >> 8), byte(i)}, Host: peer,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})},
		}
		net.Items = append(net.Items, api.StreamItem{Rev: rev(first + uint64(i)), Rec: ep})
		sum.Add(overlay.KeyOf(ep), rev(first+uint64(i)))
	}
	net.UpTo = rev(first + uint64(n))
	net.Ends = []api.LogEnd{{Network: blue, Full: true, Sum: sum, Sent: net.UpTo}}
	return []*api.Items{fleet, net}
}

func newCore() *agentcore.Core {
	return agentcore.New(agentcore.Config{Cluster: "c", Self: self, Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1")})
}

func replay(t *testing.T, path string) (*agentcore.Core, *journal) {
	t.Helper()
	c := newCore()
	j, err := openJournal(path, func(it agentcore.Items) { c.Step(1, it) })
	if err != nil {
		t.Fatalf("open journal: %v", err)
	}
	t.Cleanup(j.close)
	return c, j
}

func write(t *testing.T, j *journal, c *agentcore.Core, items []*api.Items) {
	t.Helper()
	for _, it := range items {
		if err := j.append(it, c); err != nil {
			t.Fatalf("append: %v", err)
		}
		c.Step(1, itemsOf(it))
	}
}

// known is what a core was told, as text.
func known(c *agentcore.Core) string {
	var b bytes.Buffer
	for _, it := range c.Known() {
		fmt.Fprintf(&b, "begins %v up to %v ends %v\n", it.Begins, it.UpTo, it.Ends)
		for _, x := range it.Items {
			fmt.Fprintf(&b, "  %v %t %v\n", x.Rev, x.Gone, overlay.KeyOf(x.Rec))
		}
	}
	return b.String()
}

func TestJournalGivesTheSameKnowledge(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	c, j := replay(t, path)
	write(t, j, c, passes(10, 50))
	again, _ := replay(t, path)
	if diff := cmp.Diff(known(c), known(again)); diff != "" {
		t.Errorf("knowledge after a restart differs (-before +after):\n%s", diff)
	}
	if got := again.Stats().SumWrong; got != 0 {
		t.Errorf("sum was wrong %d times, want 0", got)
	}
}

func TestJournalIsCutAtATornOrAlteredFrame(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func([]byte) []byte{
		"torn in the last frame":  func(b []byte) []byte { return b[:len(b)-3] },
		"torn in a header":        func(b []byte) []byte { return append(b, 0, 0, 1) },
		"a bit flipped":           func(b []byte) []byte { b[len(b)-5] ^= 4; return b },
		"a length beyond reason":  func(b []byte) []byte { return append(b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0) },
		"zeroes after the end":    func(b []byte) []byte { return append(b, make([]byte, 64)...) },
		"another program's frame": func(b []byte) []byte { return append(b, 0, 0, 0, 1, 0x9a, 0x71, 0xbb, 0x02, 'x') },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "journal")
			c, j := replay(t, path)
			all := passes(10, 5)
			write(t, j, c, all[:1])
			first := j.size
			write(t, j, c, all[1:])
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			again, k := replay(t, path)
			if k.size != first && k.size != int64(len(b)) {
				t.Errorf("journal was cut at %d, want the end of a whole frame: %d or %d", k.size, first, len(b))
			}
			write(t, k, again, all[1:]) // and it can be written on
			more, _ := replay(t, path)
			if diff := cmp.Diff(known(c), known(more)); diff != "" {
				t.Errorf("knowledge differs after it was written on (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJournalRewritesItself(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	c, j := replay(t, path)
	const rounds, endpoints = 80, 1500
	for i := range rounds {
		write(t, j, c, passes(uint64(10+i*endpoints), endpoints))
	}
	if j.size > 2*leastRewrite {
		t.Errorf("journal has %d bytes after %d equal passes, want at most %d", j.size, rounds, 2*leastRewrite)
	}
	again, _ := replay(t, path)
	if diff := cmp.Diff(known(c), known(again)); diff != "" {
		t.Errorf("knowledge after rewriting differs (-before +after):\n%s", diff)
	}
}

// FuzzReadFrame: whatever the file holds, reading ends, and what is accepted
// is a message that is written as an equal frame again.
func FuzzReadFrame(f *testing.F) {
	for _, it := range passes(10, 3) {
		b, err := frame(nil, it)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		items, n, err := readFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		if n > int64(len(b)) {
			t.Fatalf("frame of %d bytes read from %d", n, len(b))
		}
		again, err := frame(nil, items)
		if err != nil {
			t.Fatalf("frame of accepted items: %v", err)
		}
		same, _, err := readFrame(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("frame written anew is not read: %v", err)
		}
		if diff := cmp.Diff(items, same, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Fatalf("items changed:\n%s", diff)
		}
	})
}
