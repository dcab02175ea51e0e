package bpf

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

func (b *bench) delete(k hoststate.Key) {
	b.Helper()
	if err := b.Write([]Change{{Row: hoststate.Row{Key: k}, Delete: true, Device: port}})[0]; err != nil {
		b.Fatal(err)
	}
}

// TestAddressesComeAndGo: whatever order they come and go in, a guest sends from
// those that it has and from no others.
func TestAddressesComeAndGo(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{Storm: Rate{1, 1000}, Punt: Rate{1, 1000}, Unclaimed: Rate{1, 1000}})
	const v4, v6 = 0x0800, 0x86dd
	has := map[netip.Addr]bool{own4: true, own6: true}
	check := func(when string) {
		t.Helper()
		for _, a := range []netip.Addr{own4, their4, else4, own6, their6, else6} {
			f, want := eth(other, mine, v4, ip4(a, far4, 6)), hoststate.DropSourceIP
			if a.Is6() {
				f = eth(other, mine, v6, ip6(a, far6, 6))
			}
			if has[a] {
				want = 0
			}
			b.verdicts(b.objects.CvFromPort, port, []frameCase{{when + ": from " + a.String(), f, want}})
		}
		nobody := eth(other, mine, v6, ip6(link6, far6, 58, icmp6(136, none6)))
		b.verdicts(b.objects.CvFromPort, port, []frameCase{{when + ": advertising no address", nobody, hoststate.DropSourceIP}})
	}
	own := func(a netip.Addr) hoststate.Key {
		return hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: a}
	}
	add := func(as ...netip.Addr) {
		for _, a := range as {
			b.row(own(a), hoststate.Val{})
			has[a] = true
		}
	}
	remove := func(as ...netip.Addr) {
		for _, a := range as {
			b.delete(own(a))
			has[a] = false
		}
	}
	check("at first")
	add(their4, their6)
	check("two of each family")
	remove(own4, own6)
	check("the first ones gone")
	add(own4, own6)
	remove(own4, own6)
	check("the last ones gone")
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe | hoststate.Watch})
	check("flags changed")
	remove(their4, their6)
	check("none left")
	add(else4)
	check("one again")
	b.delete(hoststate.Key{Table: hoststate.TablePort, Port: port})
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe})
	check("port written anew")
	if err := b.AddPort(port, Place{9, 100}); err != nil {
		t.Fatal(err)
	}
	has = map[netip.Addr]bool{}
	b.row(hoststate.Key{Table: hoststate.TablePort, Port: port}, hoststate.Val{MAC: mine, Flags: safe})
	check("port registered anew")
	add(own4, own6)
	check("addresses after their port")
}

// TestNotedAddressSparesALook: a port's entry names its newest addresses, and
// none that it has no more.
func TestNotedAddressSparesALook(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{})
	noted := func(want ...netip.Addr) {
		t.Helper()
		c, ok, err := get[uint32, portConf](b.objects.CvPorts, port)
		if err != nil || !ok || addr(c.IP[0]) != want[0] || addr(c.IP[1]) != want[1] || c.VNI != 100 {
			t.Errorf("entry %+v, %t, %v, want %v in network 100", c, ok, err, want)
		}
	}
	key := hoststate.Key{Table: hoststate.TablePort, Port: port}
	noted(own4, own6)
	b.row(key, hoststate.Val{MAC: spare, Flags: safe})
	noted(own4, own6)
	b.delete(hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: own4})
	noted(none6, own6)
	b.delete(key)
	errs := b.Write([]Change{
		{Row: hoststate.Row{Key: hoststate.Key{Table: hoststate.TableOwn, Port: port, IP: their4}}},
		{Row: hoststate.Row{Key: key, Val: hoststate.Val{MAC: mine, Flags: safe}}},
	})
	if errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
	noted(their4, none6)
}

// TestRelaysComeAndGo: one stays when another goes, and none is looked for when
// all are gone.
func TestRelaysComeAndGo(t *testing.T) {
	t.Parallel()
	b := newBench(t, Limits{})
	key := func(m overlay.MAC) hoststate.Key {
		return hoststate.Key{Table: hoststate.TableRelay, VNI: 100, MAC: m}
	}
	check := func(when string, first, second, looked uint32) {
		t.Helper()
		for m, want := range map[overlay.MAC]uint32{mine: first, other: second} {
			if got := b.run(b.objects.CvFromOverlay, eth(m, spare, 0x0800)); got != want {
				t.Errorf("%s: to %s: verdict %d, want %d", when, m, int32(got), int32(want))
			}
		}
		if got, _, err := get[uint32, uint32](b.objects.CvTurning, 0); got != looked || err != nil {
			t.Errorf("%s: relays are looked for: %d, %v, want %d", when, got, err, looked)
		}
	}
	check("at first", next, next, 0)
	b.row(key(mine), hoststate.Val{})
	b.row(key(other), hoststate.Val{})
	check("two", resend, resend, 1)
	b.delete(key(mine))
	check("one", next, resend, 1)
	b.delete(key(other))
	check("none", next, next, 0)
	b.row(key(mine), hoststate.Val{})
	check("one again", resend, next, 1)
	if err := b.DropNetwork(port); err != nil {
		t.Fatal(err)
	}
	check("no network", next, next, 0)
}

// TestFramesInPieces: a frame whose headers do not lie in one piece is judged as
// any other. A hypervisor's backend says how long the first piece is.
func TestFramesInPieces(t *testing.T) {
	t.Parallel()
	const v4, v6, size = 0x0800, 0x86dd, 8000 // beyond a page, or it is one piece
	h := newHost(t, false)
	tap := openTap(h, "t0", size)
	h.dev = int32(h.ns.Index("t0"))
	s := h.filled()
	defer h.close(s)
	own := []hoststate.Key{{Table: hoststate.TableOwn, Port: h.dev, IP: own4}, {Table: hoststate.TableOwn, Port: h.dev, IP: own6}}
	for _, err := range s.Write([]Change{{Row: hoststate.Row{Key: own[0]}}, {Row: hoststate.Row{Key: own[1]}}}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	b := &bench{TB: t, Set: s, ns: h.ns}
	data := make([]byte, size-100)
	for _, c := range []frameCase{
		{"IPv4 from its own", eth(other, mine, v4, ip4(own4, their4, 17, udp(5555, 5555, data))), 0},
		{"IPv6 from its own", eth(other, mine, v6, ip6(own6, their6, 17, udp(5555, 5555, data))), 0},
		{"a foreign IPv4", eth(other, mine, v4, ip4(their4, own4, 17, udp(5555, 5555, data))), hoststate.DropSourceIP},
		{"a foreign IPv6", eth(other, mine, v6, ip6(their6, own6, 17, udp(5555, 5555, data))), hoststate.DropSourceIP},
		{"DHCP answer", eth(other, mine, v4, ip4(own4, their4, 17, udp(67, 68, data))), hoststate.DropServer},
		{"router advertisement", eth(other, mine, v6, ip6(link6, their6, 58, icmp6(134, netip.Addr{}), data)), hoststate.DropServer},
		{"a foreign MAC", eth(other, spare, v4, ip4(own4, their4, 17, udp(5555, 5555, data))), hoststate.DropSourceMAC},
	} {
		for _, first := range []uint16{14, 16, 33, 34, 36, 54, 200} {
			want := b.drops(h.dev)
			if c.want != 0 {
				want[c.want]++
			}
			header := make([]byte, 10) // struct virtio_net_hdr: no flags, no GSO, hdr_len
			header[2], header[3] = byte(first), byte(first>>8)
			if _, err := unix.Write(tap, cat(header, c.frame)); err != nil {
				t.Fatal(err)
			}
			got := b.drops(h.dev)
			for r := range hoststate.DropReason(hoststate.DropReasons) {
				if r != hoststate.DropPuntLimit && got[r] != want[r] {
					t.Errorf("%s, first piece of %d bytes: %s counted %d, want %d", c.name, first, r, got[r], want[r])
				}
			}
		}
	}
}

// openTap makes a tap device and opens it as a hypervisor does.
func openTap(h *host, name string, mtu int) (fd int) {
	h.Helper()
	h.in(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	h.Cleanup(func() { _ = unix.Close(fd) })
	l, err := h.ns.Links().LinkByName(name)
	if err == nil {
		err = h.ns.Links().LinkSetMTU(l, mtu)
	}
	if err != nil {
		h.Fatal(err)
	}
	h.ns.Up(name)
	return fd
}
