package kerneltest

import (
	"context"
	"errors"
	"testing"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// built is a model with one network, a VM and n remote endpoints.
func built(tb testing.TB, n int) (m *Model, port int32) {
	tb.Helper()
	m = New()
	all := []hoststate.Op{{Kind: hoststate.OpBase}, {Kind: hoststate.OpMakeBridge, Dev: testDevice()}, {Kind: hoststate.OpMakeVXLAN, Dev: testDevice()}}
	var rows []hoststate.Row
	for _, mac := range manyMACs(n) {
		rows = append(rows, fdbRow(mac, vtep2), masterRow(mac, 0, remote))
	}
	for _, r := range m.Apply(context.Background(), append(all, Set(rows...)...)) {
		if r.Class != hoststate.ClassOK {
			tb.Fatal(r.Op, r.Class)
		}
	}
	return m, m.Plug("vm1", vni, "culvert port=a/b")
}

func TestDump(t *testing.T) {
	m, port := built(t, 1)
	m.Apply(t.Context(), Set(replRow(vtep2), neighRow(guest4, mac1), masterRow(mac2, port, local), vtepRow(vtep2), memberRow(port),
		portRow(port, mac2, open|hoststate.Routed), routerRow(overlay.ServerMAC, vtep1), crossRow(mac1, vtep2, 200),
		reachMACRow(mac1), reachIPRow(guest4), reachIPRow(guest6)))
	const want = `port vm1 up master cvb100 forwarding flood true learning true alias "culvert port=a/b"
bridge cvb100 up mtu 1450 isolated altnames acme.blue
vxlan cvx100 vni 100 down mtu 1450 master cvb100 local 192.0.2.1 port 4789 df set dove true flood false learning false
vtep 192.0.2.2
member vm1
port vm1 mac 52:54:00:00:00:02 open,routed
fdb 100 02:63:75:6c:76:74 dst 192.0.2.1 static,extern_learn,router
fdb 100 52:54:00:00:00:01 dst 192.0.2.2 vni 200 static,extern_learn
fdb 100 52:54:01:00:00:00 dst 192.0.2.2 static,extern_learn
master 100 52:54:00:00:00:02 dev vm1 static,sticky
master 100 52:54:01:00:00:00 dev cvx100 static,extern_learn
repl 100 dst 192.0.2.2
neigh 100 10.1.0.2 lladdr 52:54:00:00:00:01 permanent,culvert
reach 100 10.1.0.2
reach 100 fd00:1::2
reach 100 52:54:00:00:00:01
`
	if got := m.String(); got != want {
		t.Errorf("dump:\n%s\nwant:\n%s", got, want)
	}
}

func TestClonesGoTheirOwnWays(t *testing.T) {
	m, port := built(t, 10)
	before := m.String()
	c := m.Clone()
	if c.String() != before {
		t.Fatal("a clone differs at once")
	}
	c.Apply(t.Context(), Set(fdbRow(mac1, vtep3), masterRow(mac1, port, local), neighRow(guest4, mac1), vtepRow(vtep3), reachIPRow(guest4)))
	c.SetAlias("vm1", "other")
	c.Unplug("vm1")
	c.FlushRuleset()
	if m.String() != before {
		t.Errorf("the original followed:\n%s", m)
	}
	after := c.String()
	m.Apply(t.Context(), Del(fdbRow(manyMACs(1)[0], vtep2)))
	m.DeleteLink(vni.Bridge())
	if c.String() != after {
		t.Errorf("the clone followed:\n%s", c)
	}
}

func TestHooks(t *testing.T) {
	m, _ := built(t, 0)
	m.Doorbells()
	m.Fail = func(o hoststate.Op) hoststate.Class {
		if o.Row.Key.Table == hoststate.TableFDB {
			return hoststate.ClassFull
		}
		return hoststate.ClassOK
	}
	before := m.Writes
	res := m.Apply(t.Context(), Set(fdbRow(mac1, vtep2), replRow(vtep2)))
	if res[0].Class != hoststate.ClassFull || res[0].Text == "" || res[1].Class != hoststate.ClassOK || m.Writes != before+1 {
		t.Errorf("%v %v, %d writes", res[0].Class, res[1].Class, m.Writes-before)
	}
	m.Fail = nil
	if b := m.Doorbells(); len(b) != 1 || b[0].Row != replRow(vtep2) {
		t.Errorf("rang %+v", b)
	}
	m.Lose = func(hoststate.Doorbell) bool { return true }
	m.SetRow(fdbRow(mac1, vtep2))
	if b := m.Doorbells(); len(b) != 0 {
		t.Errorf("rang %+v though lost", b)
	}
	m.Lose = nil
	m.DeleteRow(fdbRow(mac1, vtep2).Key)
	m.Overflow()
	if b := m.Doorbells(); len(b) != 1 || !b[0].Overflow {
		t.Errorf("rang %+v, want an overflow alone", b)
	}
	m.FailRead = func(hoststate.Scope) hoststate.Class { return hoststate.ClassTransient }
	var typed *hoststate.Error
	if _, err := m.Read(t.Context(), hoststate.Scope{Links: true}); !errors.As(err, &typed) || typed.Class != hoststate.ClassTransient {
		t.Errorf("read: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := m.Apply(ctx, Set(fdbRow(mac1, vtep2))); r[0].Class != hoststate.ClassTransient {
		t.Errorf("after the context's end: %v", r[0].Class)
	}
}

func TestPasses(t *testing.T) {
	m, a := built(t, 0)
	b := m.Plug("vm2", vni, "")
	d := testDevice()
	d.VNI, d.AltName = 101, ""
	m.Apply(t.Context(), []hoststate.Op{{Kind: hoststate.OpMakeBridge, Dev: d}})
	other := m.Plug("vm3", 101, "")
	check := func(from, to int32, want bool) {
		t.Helper()
		if got := m.Passes(from, to); got != want {
			t.Errorf("passes %d to %d: %t, want %t", from, to, got, want)
		}
	}
	check(a, b, true) // two ports that nobody looked at yet
	m.Apply(t.Context(), []hoststate.Op{{Kind: hoststate.OpPort, Index: a}, {Kind: hoststate.OpPort, Index: b}})
	check(a, b, false)
	m.Apply(t.Context(), Set(memberRow(a)))
	check(a, b, false)
	m.Apply(t.Context(), Set(memberRow(b), memberRow(other)))
	check(a, b, true)
	check(a, other, false)
	m.SetPortState("vm2", hoststate.StateBlocking)
	check(a, b, false)
	m.SetUp("vm2", false)
	m.SetUp("vm2", true)
	check(a, b, true)
	m.Apply(t.Context(), Del(memberRow(b)))
	check(a, b, false)
}

func TestSharedWatch(t *testing.T) {
	m, _ := built(t, 0)
	s := NewShared(m)
	ctx, cancel := context.WithCancel(t.Context())
	bells := make(chan hoststate.Doorbell, 100)
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, func(d hoststate.Doorbell) { bells <- d }) }()
	s.Apply(t.Context(), Set(fdbRow(mac1, vtep2)))
	s.Do(func(m *Model) { m.SetAlias("vm1", "x") })
	for d := range bells {
		if d.Row == fdbRow(mac1, vtep2) {
			break
		}
	}
	if d := <-bells; !d.Links {
		t.Errorf("rang %+v, want links", d)
	}
	if st, err := s.Read(t.Context(), hoststate.Scope{VNI: vni}); err != nil || len(st.Rows) != 1 {
		t.Errorf("read %v, %v", st, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("watch: %v", err)
	}
}

// BenchmarkModel writes 100,000 endpoints in batches of 200, clones and reads.
func BenchmarkModel(b *testing.B) {
	var all []hoststate.Op
	for _, mac := range manyMACs(100_000) {
		all = append(all, Set(fdbRow(mac, vtep2), masterRow(mac, 0, remote))...)
	}
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			m, _ := built(b, 0)
			for i := 0; i < len(all); i += 200 {
				m.Apply(context.Background(), all[i:i+200])
				m.Doorbells()
			}
		}
		b.ReportMetric(float64(len(all)*b.N)/b.Elapsed().Seconds(), "rows/s")
	})
	m, _ := built(b, 100_000)
	b.Run("clone", func(b *testing.B) {
		for b.Loop() {
			m.Clone()
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if st, _ := m.Read(context.Background(), hoststate.Scope{VNI: vni}); len(st.Rows) != 200_000 {
				b.Fatal(len(st.Rows))
			}
		}
	})
}
