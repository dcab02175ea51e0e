package lab

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

func TestReadPing(t *testing.T) {
	out := `PING 10.1.0.16 (10.1.0.16): 56 data bytes
64 bytes from 10.1.0.16: seq=0 ttl=64 time=0.517 ms
64 bytes from 10.1.0.16: seq=2 ttl=64 time=1.000 ms
64 bytes from 10.1.0.16: seq=2 ttl=64 time=1.200 ms (DUP!)
64 bytes from 10.1.0.16: seq=9 ttl=64 time=1.000 ms

--- 10.1.0.16 ping statistics ---
3 packets transmitted, 2 packets received, 1 duplicates, 33% packet loss
`
	r := readPing(out, PingOptions{Count: 3}, nil)
	if r.Sent != 3 || r.Received != 2 || r.Duplicated != 1 || !slices.Equal(r.Lost, []int{1}) || r.RTT[0] != 517*time.Microsecond {
		t.Errorf("ping: %+v", r)
	}
	out = `64 bytes from 10.1.0.2: seq=0 ttl=64 time=0.1 ms
64 bytes from 10.1.0.3: seq=0 ttl=64 time=0.2 ms (DUP!)
64 bytes from fd00::3: seq=0 ttl=64 time=0.3 ms (DUP!)
64 bytes from 10.1.0.3: seq=0 ttl=64 time=0.4 ms (DUP!)
`
	r = readPing(out, PingOptions{Count: 1, Broadcast: true}, []string{"10.1.0.2"})
	if !slices.Equal(r.Answerers(), []string{"10.1.0.3", "fd00::3"}) || r.Duplicated != 1 || r.Received != 1 {
		t.Errorf("broadcast: %+v", r)
	}
	if r = readPing("ping: sendto: Network is unreachable\n", PingOptions{Count: 2}, nil); r.Sent != 2 || len(r.Lost) != 2 {
		t.Errorf("nothing came: %+v", r)
	}
}

func TestQuoted(t *testing.T) {
	if got, want := quoted([]string{"echo", "it's", "a b"}), `'echo' 'it'\''s' 'a b'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Whatever reads a silent machine's device sees neither RARP nor listener
// reports, and everything else.
func TestHush(t *testing.T) {
	l := newLab(t)
	mustUp(t, l, bare(1))
	node, err := openNS(NSOfNode(l.name, "h1"))
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	if err := node.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tap"}, PeerName: "nic"}); err != nil {
		t.Fatal(err)
	}
	if err := node.sysctl("ipv6.conf.tap.disable_ipv6", "1", "ipv6.conf.nic.disable_ipv6", "1"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tap", "nic"} {
		link, err := node.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "tap" {
			err = l.Hush("h1", name)
		}
		if err == nil {
			err = node.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	heard, err := OpenCapture(NSOfNode(l.name, "h1"), "tap")
	if err != nil {
		t.Fatal(err)
	}
	f, mac, err := packetSocket(NSOfNode(l.name, "h1"), "nic", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	report := append(ethernet(mac, overlay.MAC{0x33, 0x33, 0, 0, 0, 0x16}, unix.ETH_P_IPV6), make([]byte, 76)...)
	report[14] = 0x60 // next header 0: hop-by-hop options
	last := gratuitous(mac, netip.MustParseAddr("10.1.0.5"))
	for _, frame := range [][]byte{
		append(ethernet(mac, overlay.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x8035), make([]byte, 46)...),
		report, advertisement(mac, netip.MustParseAddr("fd00::5")), last,
	} {
		if _, err := f.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	err = poll(t.Context(), 5*time.Second, func() (bool, error) {
		got = nil
		for _, f := range heard.Frames() {
			if !f.Outgoing {
				got = append(got, string(f.Data[12:14]))
			}
		}
		return slices.Contains(got, string(last[12:14])), nil
	})
	if err != nil || !slices.Equal(got, []string{"\x86\xdd", "\x08\x06"}) {
		t.Errorf("frames of types %x, %v", got, err)
	}
	if _, err := heard.Stop(); err != nil {
		t.Error(err)
	}
}

// A long name of a VM still gives sockets whose paths fit into an address of a
// socket (unix(7): 107 bytes).
func TestSocketPathsFit(t *testing.T) {
	l, err := New("abcdefghijklmnopqrst", Config{})
	if err != nil {
		t.Fatal(err)
	}
	m := machine{Guest: Guest{VM: string(slices.Repeat([]byte("v"), 63))}, lab: l}
	for _, path := range []string{m.path("h99", "incoming"), l.LibvirtSocket("h99")} {
		if len(path) > 107 {
			t.Errorf("%d bytes: %s", len(path), path)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Errorf("guests need taps: %v", err)
	}
}
