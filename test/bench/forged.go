package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
	"culvert/internal/packet"
)

// forgery is a kind of VXLAN datagram that no host may take.
type forgery struct {
	what    string
	reason  hoststate.DropReason // under which it is counted
	payload []byte               // of the datagram
	from    netip.Addr           // outer source
}

// testType is the EtherType of what is sent here (IEEE 802 local experimental).
const testType = 0x88b5

// forged sends each kind of forged datagram to a host of a lab until its check
// has judged as many as were asked for, and counts what reached a guest. A
// thousand honest frames before and after each kind, by the same socket, show
// that what arrives is seen.
func forged(ctx context.Context, o options, out *printer) (err error) {
	fmt.Fprintf(os.Stderr, "building a lab of 2 hosts, to send it %d forged frames of each kind\n", o.forged)
	w, err := newWorld(ctx, o, 2, 0)
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	if err != nil {
		return err
	}
	f, err := newForger(w)
	if err != nil {
		return err
	}
	defer f.close()
	guest, far := w.keepers[0].MAC, w.keepers[1].MAC
	foreign := overlay.MAC{0x52, 0x54, 0x66, 0, 0, 1}
	stranger := netip.AddrFrom4([4]byte{172, 20, 99, 66})
	peer := vtep(2)
	f.honest = frameTo(vtep(1), peer, vxlan(8, w.vni, guest, far))
	for _, k := range []forgery{
		{"unknown VTEP", hoststate.DropVTEP, vxlan(8, w.vni, guest, far), stranger},
		{"foreign MAC", hoststate.DropSource, vxlan(8, w.vni, guest, foreign), peer},
		{"guest's own MAC", hoststate.DropSource, vxlan(8, w.vni, packet.Broadcast, guest), peer},
		{"unserved VNI", hoststate.DropVNI, vxlan(8, w.vni+1, guest, far), peer},
		{"no VNI flag", hoststate.DropMalformed, vxlan(0, w.vni, guest, far), peer},
		{"cut inner frame", hoststate.DropMalformed, vxlan(8, w.vni, guest, far)[:20], peer},
	} {
		if err := f.measure(ctx, k, o.forged, out); err != nil {
			return fmt.Errorf("%s: %w", k.what, err)
		}
	}
	return nil
}

// forger stands on the underlay, at the router's end of h1's cable.
type forger struct {
	host   *place
	sock   int
	guest  int // hears what arrives at h1's guest
	header []byte
	honest []byte
}

func newForger(w *world) (*forger, error) {
	f := &forger{host: w.places[0], sock: -1, guest: -1}
	router, err := openPlace(w.lab.Name(), "rt")
	if err != nil {
		return nil, err
	}
	defer router.close()
	mine, err := router.LinkByName(f.host.node)
	if err != nil {
		return nil, fmt.Errorf("router's end of the cable: %w", err)
	}
	its, err := f.host.LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("underlay device: %w", err)
	}
	f.header = append(append(f.header, its.Attrs().HardwareAddr...), mine.Attrs().HardwareAddr...)
	f.header = binary.BigEndian.AppendUint16(f.header, packet.TypeIPv4)
	if f.sock, err = packetSocket(router.fd, f.host.node, 0); err != nil {
		return nil, err
	}
	// Without a queue on the way what was sent is under way.
	err = unix.SetsockoptInt(f.sock, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	if err == nil {
		f.guest, err = packetSocket(f.host.guestsFD, peerOf(w.keepers[0].Name), unix.ETH_P_ALL)
	}
	if err == nil {
		err = hearOnly(f.guest)
	}
	if err != nil {
		f.close()
		return nil, fmt.Errorf("sockets of the forger: %w", err)
	}
	return f, nil
}

func (f *forger) onWire(ip []byte) []byte { return append(slices.Clone(f.header), ip...) }

func (f *forger) close() {
	unix.Close(f.sock)
	unix.Close(f.guest)
}

// hearOnly lets a packet socket count frames of testType and such as are too
// short to have a type.
func hearOnly(sock int) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: 14, Jf: 2},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: testType, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 64},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	return unix.SetsockoptSockFprog(sock, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

func (f *forger) counted(ctx context.Context, r hoststate.DropReason) (uint64, error) {
	st, err := f.host.edge.Read(ctx, hoststate.Scope{Links: true})
	if err != nil {
		return 0, fmt.Errorf("count what was dropped: %w", err)
	}
	return st.Drops[hoststate.DropKey{Reason: r}], nil
}

func (f *forger) measure(ctx context.Context, k forgery, count int, out *printer) error {
	if err := f.control(ctx); err != nil {
		return fmt.Errorf("before: %w", err)
	}
	before, err := f.counted(ctx, k.reason)
	if err != nil {
		return err
	}
	b := newBurst(f.sock, f.onWire(frameTo(vtep(1), k.from, k.payload)))
	// A full backlog of the receiver may lose some on the wire: what was not
	// judged proves nothing, so more are sent in their place.
	judged, sent := uint64(0), 0
	start := time.Now()
	for judged < uint64(count) && ctx.Err() == nil {
		if sent > 3*count+burstSize {
			return fmt.Errorf("of %d that were sent %d were counted as %s", sent, judged, k.reason)
		}
		for left := min(count-int(judged), 100_000); left > 0; {
			n, err := b.send(left)
			if err != nil {
				return err
			}
			left -= n
			sent += n
		}
		n, err := f.counted(ctx, k.reason)
		if err != nil {
			return err
		}
		judged = n - before
	}
	took := time.Since(start)
	got, err := arrived(f.guest)
	if err != nil {
		return err
	}
	if err := f.control(ctx); err != nil {
		return fmt.Errorf("after: %w", err)
	}
	fig := untouched(newFigure("forged, "+k.what, "1", 2, 0, sample{float64(got)}, bound{}), sample{float64(got)})
	fig.Note = fmt.Sprintf("delivered of %d, counted as %s, %.0f a second", judged, k.reason, float64(sent)/took.Seconds())
	return errors.Join(out.figure(fig), ctx.Err())
}

// control sends honest frames, all of which must arrive.
func (f *forger) control(ctx context.Context) error {
	const count = 1000
	if _, err := arrived(f.guest); err != nil {
		return err
	}
	b := newBurst(f.sock, f.onWire(f.honest))
	for left := count; left > 0; {
		n, err := b.send(min(left, burstSize))
		if err != nil {
			return err
		}
		left -= n
	}
	got := uint64(0)
	err := await(ctx, func() (bool, error) {
		n, err := arrived(f.guest)
		got += n
		return got >= count, err
	})
	if err != nil || got > count {
		return fmt.Errorf("of %d honest frames %d arrived: %w", count, got, errors.Join(err, errNotCounted))
	}
	return nil
}

var errNotCounted = errors.New("what is forged could not be told from what is not")

// vxlan is a datagram's payload (RFC 7348 section 5) with a least frame in it.
func vxlan(flags byte, vni overlay.VNI, dst, src overlay.MAC) []byte {
	b := []byte{flags, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	b = append(append(b, dst[:]...), src[:]...)
	b = binary.BigEndian.AppendUint16(b, testType)
	return append(b, make([]byte, 46)...)
}

// frameTo is an IPv4 packet to the VXLAN port; it has no UDP checksum (RFC
// 768).
func frameTo(dst, src netip.Addr, payload []byte) []byte {
	b := []byte{0x45, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(28+len(payload)))
	b = append(b, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], inetSum(b))
	b = binary.BigEndian.AppendUint16(b, 49152)
	b = binary.BigEndian.AppendUint16(b, 4789)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// inetSum is the Internet checksum (RFC 1071) of an even number of bytes.
func inetSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
