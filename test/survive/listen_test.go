package survive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/lab"
)

// listener counts, in one host's namespace, every event on what is ours: links
// and neighbour entries of our devices, and changes of nftables.
type listener struct {
	t    *testing.T
	host string
	rt   *netlink.Conn
	nf   *netlink.Conn
	end  sync.WaitGroup

	mu     sync.Mutex
	ours   map[int32]string // ifindex of our devices and their ports
	ports  map[int32]string // settings of bridge ports
	timers map[int32]int    // notifications of ports that changed nothing
	events []string
	marks  int // messages about the mark alone
}

// listen begins to count on a host. Devices are those that stand now, and any
// that comes with one of our names.
func (r *rig) listen(host string) *listener {
	r.t.Helper()
	l := &listener{t: r.t, host: host, ours: map[int32]string{}, ports: map[int32]string{}, timers: map[int32]int{}}
	st, err := r.tables(host)
	if err != nil {
		r.t.Fatalf("tables of %s: %v", host, err)
	}
	for _, k := range st.Links {
		if k.VNI != 0 || k.Kind == hoststate.LinkOther {
			l.ours[k.Index] = k.Name
		}
	}
	fd, err := unix.Open("/run/netns/"+lab.NSOfNode(r.name, host), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		r.t.Fatalf("namespace of %s: %v", host, err)
	}
	defer unix.Close(fd)
	l.rt = l.open(fd, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH)
	l.nf = l.open(fd, unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	l.readPorts(fd)
	l.end.Go(func() { l.read(l.rt, l.route) })
	l.end.Go(func() { l.read(l.nf, l.nft) })
	r.t.Cleanup(l.close)
	return l
}

func (l *listener) open(ns, proto int, groups ...uint32) *netlink.Conn {
	l.t.Helper()
	c, err := netlink.Dial(proto, &netlink.Config{NetNS: ns})
	if err != nil {
		l.t.Fatalf("listen on %s: %v", l.host, err)
	}
	if err := c.SetReadBuffer(16 << 20); err != nil {
		l.t.Fatalf("listen on %s: %v", l.host, err)
	}
	for _, g := range groups {
		if err := c.JoinGroup(g); err != nil {
			l.t.Fatalf("listen on %s: %v", l.host, err)
		}
	}
	return c
}

func (l *listener) close() {
	past := time.Unix(1, 0)
	_, _ = l.rt.SetReadDeadline(past), l.nf.SetReadDeadline(past)
	l.end.Wait()
	_, _ = l.rt.Close(), l.nf.Close()
}

func (l *listener) read(c *netlink.Conn, each func(netlink.Message)) {
	for {
		msgs, err := c.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			l.note("events were lost")
			continue
		}
		if err != nil {
			return
		}
		for _, m := range msgs {
			each(m)
		}
	}
}

func (l *listener) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, fmt.Sprintf(format, args...))
}

// Names of events: rtnetlink(7).
var verbs = map[netlink.HeaderType]string{
	unix.RTM_NEWLINK: "new link", unix.RTM_DELLINK: "deleted link", unix.RTM_NEWNEIGH: "new entry", unix.RTM_DELNEIGH: "deleted entry",
}

func (l *listener) route(m netlink.Message) {
	verb, ok := verbs[m.Header.Type]
	if !ok || len(m.Data) < 12 { // a miss (RTM_GETNEIGH) is a guest's question, no write
		return
	}
	// struct ndmsg and struct ifinfomsg have the index at the same place.
	index := int32(binary.NativeEndian.Uint32(m.Data[4:]))
	text := fmt.Sprintf("%s: family %d", verb, m.Data[0])
	switch m.Header.Type {
	case unix.RTM_NEWLINK:
		if m.Data[0] == unix.AF_BRIDGE && l.timer(index, settings(m.Data)) {
			return
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		text += fmt.Sprintf(" state %#x flags %#x", binary.NativeEndian.Uint16(m.Data[8:]), m.Data[10])
		text += attributes(m.Data[12:], map[uint16]string{unix.NDA_DST: "dst", unix.NDA_LLADDR: "mac"})
	}
	if m.Header.Type == unix.RTM_NEWLINK {
		if name := attributes(m.Data[min(16, len(m.Data)):], map[uint16]string{unix.IFLA_IFNAME: "name"}); strings.Contains(name, "cvb") || strings.Contains(name, "cvx") {
			l.mu.Lock()
			l.ours[index] = name
			l.mu.Unlock()
		}
	}
	l.mu.Lock()
	name, ours := l.ours[index]
	l.mu.Unlock()
	if ours {
		l.note("%s of %s", text, name)
	}
}

// readPorts reads the settings of all bridge ports.
func (l *listener) readPorts(ns int) {
	l.t.Helper()
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: ns})
	if err != nil {
		l.t.Fatalf("read ports of %s: %v", l.host, err)
	}
	defer c.Close()
	ask := make([]byte, 16)
	ask[0] = unix.AF_BRIDGE
	msgs, err := c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump}, Data: ask})
	if err != nil {
		l.t.Fatalf("read ports of %s: %v", l.host, err)
	}
	for _, m := range msgs {
		if len(m.Data) >= 16 {
			l.ports[int32(binary.NativeEndian.Uint32(m.Data[4:]))] = settings(m.Data)
		}
	}
}

// settings is what can be set of a bridge port, out of a link message: all of
// IFLA_PROTINFO but its timers and pending flags (linux/if_link.h, 19 to 23).
func settings(b []byte) string {
	ad, err := netlink.NewAttributeDecoder(b[min(16, len(b)):])
	if err != nil {
		return err.Error()
	}
	var s strings.Builder
	for ad.Next() {
		if ad.Type() != unix.IFLA_PROTINFO {
			continue
		}
		in, err := netlink.NewAttributeDecoder(ad.Bytes())
		if err != nil {
			return err.Error()
		}
		for in.Next() {
			if in.Type() < 19 || in.Type() > 23 {
				fmt.Fprintf(&s, "%d=%x ", in.Type(), in.Bytes())
			}
		}
	}
	return s.String()
}

// timer reports whether a notification of a bridge port is the one that the
// bridge itself sends when the forwarding timer of a new port runs out: it
// changes no setting, and comes once.
func (l *listener) timer(index int32, now string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was, known := l.ports[index]
	l.ports[index] = now
	if !known || was != now {
		return false
	}
	l.timers[index]++
	return l.timers[index] == 1
}

// attributes shows some of a message's attributes.
func attributes(b []byte, names map[uint16]string) string {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return " " + err.Error()
	}
	var s strings.Builder
	for ad.Next() {
		switch name, ok := names[ad.Type()]; {
		case !ok:
		case name == "name":
			fmt.Fprintf(&s, " %s", ad.String())
		default:
			fmt.Fprintf(&s, " %s %x", name, ad.Bytes())
		}
	}
	return s.String()
}

// nft notes every change of nftables, whoever's: nobody else has rules here.
func (l *listener) nft(m netlink.Message) {
	switch msg := uint16(m.Header.Type) & 0xff; {
	case msg == unix.NFT_MSG_NEWGEN, msg == unix.NFT_MSG_TRACE: // a generation follows each change
	case (msg == unix.NFT_MSG_NEWSETELEM || msg == unix.NFT_MSG_DELSETELEM) && setOf(m) == "reached":
		l.mu.Lock()
		l.marks++
		l.mu.Unlock()
	default:
		l.note("%s", note(msg))
	}
}

// setOf is the set that a message about elements is of.
func setOf(m netlink.Message) (name string) {
	ad, err := netlink.NewAttributeDecoder(m.Data[min(4, len(m.Data)):]) // struct nfgenmsg
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_SET_ELEM_LIST_SET {
			name = ad.String()
		}
	}
	return name
}

// marked is how often the mark was written since the last call. It follows the
// revisions of the fleet, and so does not count as an event of its own.
func (l *listener) marked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.marks
	l.marks = 0
	return n
}

// fence waits until all that was written before has been heard, by a table of
// nobody's that comes and goes, and begins anew.
func (l *listener) fence(r *rig) {
	l.t.Helper()
	r.mustIn(l.host, "nft", "add", "table", "ip", "fence")
	r.mustIn(l.host, "nft", "delete", "table", "ip", "fence")
	var heard []string
	r.await(5*time.Second, l.host+" is heard", func() error {
		if heard = append(heard, l.take()...); !slices.Contains(heard, note(unix.NFT_MSG_DELTABLE)) {
			return errSilent
		}
		return nil
	})
	l.marked()
}

func note(msg uint16) string { return fmt.Sprintf("nftables message %d", msg) }

// take hands out what was noted and begins anew.
func (l *listener) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.events
	l.events = nil
	return e
}

// nothing fails the test if anything was noted since the last take.
func (l *listener) nothing(when string) {
	l.t.Helper()
	if e := l.take(); len(e) > 0 {
		l.t.Errorf("%s: %d events on %s, want none; the first:\n%s", when, len(e), l.host, strings.Join(e[:min(12, len(e))], "\n"))
	}
}

// noDeletion fails the test if an entry or device was deleted since the last
// take, and returns what was noted.
func (l *listener) noDeletion(when string) []string {
	l.t.Helper()
	e := l.take()
	if i := slices.IndexFunc(e, func(s string) bool { return strings.HasPrefix(s, "deleted") || s == "events were lost" }); i >= 0 {
		l.t.Errorf("%s: on %s: %s", when, l.host, e[i])
	}
	return e
}
