package kernel

import (
	"net/netip"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

var testDevices = devices{bridge: 3, vxlan: 4, vxlanMaster: 3}

// anyRow draws a row as a plan has them.
func anyRow(t *rapid.T) hoststate.Row {
	var mac overlay.MAC
	copy(mac[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "mac"))
	mac[0] &^= 1
	if mac.IsZero() {
		mac[5] = 1
	}
	ip := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "v4")))
	if rapid.Bool().Draw(t, "six") {
		ip = netip.AddrFrom16([16]byte(append([]byte{0xfd}, rapid.SliceOfN(rapid.Byte(), 15, 15).Draw(t, "v6")...)))
	}
	r := hoststate.Row{Key: hoststate.Key{VNI: vni100}}
	switch r.Key.Table = rapid.SampledFrom([]hoststate.Table{hoststate.TableFDB, hoststate.TableMaster, hoststate.TableRepl, hoststate.TableNeigh}).Draw(t, "table"); r.Key.Table {
	case hoststate.TableFDB:
		r.Key.MAC, r.Val = mac, hoststate.Val{Dst: ip, Flags: remoteFlags}
	case hoststate.TableMaster:
		r.Key.MAC, r.Val.Flags = mac, remoteFlags
		if p := rapid.Int32Range(0, 100).Draw(t, "port"); p > 4 {
			r.Val = hoststate.Val{Port: p, Flags: localFlags}
		}
	case hoststate.TableRepl:
		r.Key.IP, r.Val.Flags = ip, hoststate.Permanent
	case hoststate.TableNeigh:
		if ip.IsMulticast() {
			ip = netip.MustParseAddr("10.0.0.1")
		}
		r.Key.IP, r.Val = ip, hoststate.Val{MAC: mac, Flags: neighFlags}
	}
	return r
}

// TestRowsSurviveTheWire: what a write says, read as an event, is the row.
func TestRowsSurviveTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRow(t)
		var m batch
		m.set(r, testDevices, false, 7)
		var n neigh
		_, err := eachMessage(m.b, func(a answer) (bool, error) {
			if a.seq != 7 || a.typ != unix.RTM_NEWNEIGH {
				t.Fatalf("type %d, seq %d", a.typ, a.seq)
			}
			var err error
			n, err = parseNeigh(a.body)
			return true, err
		})
		if err != nil {
			t.Fatal(err)
		}
		if r.Key.Table == hoststate.TableMaster {
			n.master = testDevices.bridge // events carry it, writes do not
		}
		if got, ok := n.row(vni100, testDevices); !ok || got != r {
			t.Fatalf("got %v (%t), want %v", got, ok, r)
		}
	})
}

// TestCutMessagesAreErrors: no prefix of a message is taken for a whole one.
func TestCutMessagesAreErrors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m batch
		m.set(anyRow(t), testDevices, false, 1)
		cut := m.b[:rapid.IntRange(1, len(m.b)-1).Draw(t, "cut")]
		seen := false
		_, err := eachMessage(cut, func(answer) (bool, error) { seen = true; return true, nil })
		if seen || err == nil && len(cut) >= unix.NLMSG_HDRLEN {
			t.Fatalf("%d of %d bytes: taken %t, %v", len(cut), len(m.b), seen, err)
		}
		attrs := m.b[unix.NLMSG_HDRLEN+sizeofNdm:]
		first := int(native.Uint16(attrs))
		if _, err := parseNeigh(m.b[unix.NLMSG_HDRLEN:][:sizeofNdm+rapid.IntRange(1, first-1).Draw(t, "attr")]); err == nil {
			t.Fatal("a cut attribute was taken")
		}
	})
}

// FuzzMessages: no bytes make a parser panic, and walking attributes never
// yields more than there is.
func FuzzMessages(f *testing.F) {
	for _, r := range []hoststate.Row{
		row(hoststate.TableFDB, macN(1), netip.Addr{}, 0, hoststate.Val{Dst: netip.MustParseAddr("192.0.2.1"), Flags: remoteFlags}),
		row(hoststate.TableNeigh, overlay.MAC{}, netip.MustParseAddr("fd00::1"), 0, hoststate.Val{MAC: macN(1), Flags: neighFlags}),
	} {
		var m batch
		m.set(r, testDevices, false, 1)
		f.Add(m.b)
	}
	f.Add([]byte{16, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		_, _ = eachMessage(b, func(a answer) (bool, error) {
			total += unix.NLMSG_HDRLEN + len(a.body)
			if n, err := parseNeigh(a.body); err == nil {
				if r, ok := n.row(vni100, testDevices); ok && r.Key.VNI != vni100 {
					t.Errorf("row %v of another network", r)
				}
			}
			if l, err := parseLink(a.body); err == nil && len(a.body) < unix.SizeofIfInfomsg {
				t.Errorf("link %+v of %d bytes", l, len(a.body))
			}
			_ = a.code()
			return false, nil
		})
		if total > len(b) {
			t.Errorf("%d bytes of messages in %d", total, len(b))
		}
		attrs := 0
		_ = eachAttr(b, func(_ uint16, d []byte) { attrs += 4 + len(d) })
		if attrs > len(b) {
			t.Errorf("%d bytes of attributes in %d", attrs, len(b))
		}
	})
}

// TestErrorAnswers: the code and the kernel's words come out of an NLMSG_ERROR.
func TestErrorAnswers(t *testing.T) {
	var m batch
	m.b = native.AppendUint32(m.b, uint32(0xffffffff-uint32(unix.EINVAL)+1))
	m.raw(make([]byte, unix.NLMSG_HDRLEN)...)
	m.str(1, "bad VNI")
	a := answer{typ: unix.NLMSG_ERROR, flags: 0x200, body: m.b}
	if err := a.code(); !reflect.DeepEqual(err, &errno{no: unix.EINVAL, text: "bad VNI"}) {
		t.Errorf("got %v", err)
	}
	for _, body := range [][]byte{nil, {0, 0, 0, 0}} {
		if err := (answer{typ: unix.NLMSG_DONE, body: body}).code(); err != nil {
			t.Errorf("%v: %v", body, err)
		}
	}
}
