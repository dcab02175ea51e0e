package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PingOptions say how to ping; zero values stand for contract's defaults.
type PingOptions struct {
	Target    netip.Addr
	Count     int            // echo requests; 0: until the context ends
	Interval  time.Duration  // between requests
	Wait      time.Duration  // for answers after the last request
	Size      int            // bytes of the IP packet; 0: least
	Broadcast bool           // Target is a broadcast or IPv6 multicast address
	At        map[int]func() // called just before the request of that number
}

// PingResult is what came back. Slices are indexed by request.
type PingResult struct {
	Sent       int
	Received   int // requests that were answered at least once
	Duplicated int // answers beyond the first; in a broadcast: by the same guest
	RTT        []time.Duration
	Lost       []int          // requests that no answer came to, ascending
	SentAt     []time.Time    // when each request was sent
	Refused    int            // requests that this machine itself refused to send (too big, no route)
	Reason     error          // the first of these refusals, nil if none
	Answered   map[string]int // answers by source address
	// Late is the most that a request left behind its schedule: on a loaded
	// machine, or while the sender's own kernel holds packets back because it
	// does not know the target's MAC.
	Late time.Duration
}

// Answerers lists who answered, sorted.
func (r PingResult) Answerers() []string { return slices.Sorted(maps.Keys(r.Answered)) }

// LostOutside counts the requests that were lost though the guest ran when they
// reached it: those sent after to, or so long before from that all but one in a
// hundred of the others had been answered by then.
func (r PingResult) LostOutside(from, to time.Time) (n int) {
	if rtt := slices.Sorted(slices.Values(r.RTT)); len(rtt) > 0 {
		from = from.Add(-rtt[len(rtt)*99/100])
	}
	for _, i := range r.Lost {
		if at := r.SentAt[i]; at.Before(from) || at.After(to) {
			n++
		}
	}
	return n
}

// LongestGap is the most requests in a row that were lost.
func (r PingResult) LongestGap() int {
	longest, run := 0, 0
	for i, s := range r.Lost {
		if i > 0 && s == r.Lost[i-1]+1 {
			run++
		} else {
			run = 1
		}
		longest = max(longest, run)
	}
	return longest
}

// Echo request and reply (RFC 792, RFC 4443 section 4).
const (
	echo4, echoReply4 = 8, 0
	echo6, echoReply6 = 128, 129
	echoHeader        = 8
	// pingMagic begins each request's data, after it comes the request's
	// number in 8 bytes: the 16 bits in the header go round in a minute at
	// 1,000 a second.
	pingMagic  = 0x63756c7665727421
	pingData   = 16
	ip4Header  = 20
	ip6Header  = 40
	pingSocket = 1 << 20 // bytes of socket buffer
)

// Ping sends echo requests from a namespace and matches the answers. It
// returns when Count requests were sent and answered or waited for, or when
// ctx ends; the end of ctx is no error and ends the sending of an endless ping.
func Ping(ctx context.Context, namespace string, o PingOptions) (PingResult, error) {
	if o.Interval <= 0 {
		o.Interval = 200 * time.Millisecond
	}
	if o.Wait <= 0 {
		o.Wait = time.Second
	}
	unroute, err := routeTo(namespace, o.Target)
	if err != nil {
		return PingResult{}, err
	}
	defer unroute()
	conn, own, err := pingConn(namespace, o)
	if err != nil {
		return PingResult{}, err
	}
	p := &pinger{o: o, conn: conn, own: own, id: uint16(time.Now().UnixNano() >> 10), all: make(chan struct{})}
	p.res.Answered = map[string]int{}
	var reading sync.WaitGroup
	reading.Go(p.receive)
	p.send(ctx)
	p.awaitAnswers()
	conn.Close()
	reading.Wait()
	return p.result(), nil
}

// routeTo makes an IPv6 target on-link for the time of a ping if no route
// leads to it: a VM must be seen to ask for what it may not reach, or its
// silence would prove nothing.
func routeTo(namespace string, target netip.Addr) (undo func(), err error) {
	if target.Is4() || target.IsMulticast() {
		return func() {}, nil
	}
	r, err := openNS(namespace)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := r.RouteGet(target.AsSlice()); err == nil {
		return func() {}, nil
	}
	l, err := r.LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("interface in %s: %w", namespace, err)
	}
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: target.AsSlice(), Mask: net.CIDRMask(128, 128)}}
	if err := r.RouteReplace(route); err != nil {
		return nil, fmt.Errorf("route to %s in %s: %w", target, namespace, err)
	}
	return func() {
		if r, err := openNS(namespace); err == nil {
			r.RouteDel(route)
			r.Close()
		}
	}, nil
}

// pingConn opens a raw socket in the namespace. The socket stays there, so
// the goroutines that use it need not. Of a broadcast it also returns the
// sender's own addresses: its kernel answers too, without any network.
func pingConn(namespace string, o PingOptions) (conn net.PacketConn, own []string, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if o.Target.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd := -1
	err = InNS(namespace, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return fmt.Errorf("raw socket in %s: %w", namespace, err)
		}
		// Bound to the device, IPv4 asks for any address on its link, also
		// for one that no route leads to.
		err = unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0")
		if err != nil || !o.Broadcast {
			return err
		}
		own, err = addressesOf("eth0")
		return errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, pingSocket); err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("socket buffer in %s: %w", namespace, err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	conn, err = net.FilePacketConn(f)
	if err != nil {
		return nil, nil, fmt.Errorf("raw socket in %s: %w", namespace, err)
	}
	return conn, own, nil
}

// addressesOf lists the addresses of a device of the thread's namespace.
func addressesOf(device string) ([]string, error) {
	i, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil, err
	}
	var s []string
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			s = append(s, n.IP.String())
		}
	}
	return s, nil
}

type pinger struct {
	o    PingOptions
	conn net.PacketConn
	own  []string // answers from these do not count
	id   uint16
	all  chan struct{} // closed when sending is over and every request was answered

	mu      sync.Mutex // guards what follows
	sentAt  []time.Time
	answers []map[string]int // by request, then source; nil for none
	over    bool             // no more requests are sent
	res     PingResult
}

func (p *pinger) send(ctx context.Context) {
	request, reply := byte(echo4), ip4Header
	if p.o.Target.Is6() {
		request, reply = echo6, ip6Header
	}
	packet := make([]byte, max(echoHeader+pingData, p.o.Size-reply))
	packet[0] = request
	binary.BigEndian.PutUint16(packet[4:], p.id)
	binary.BigEndian.PutUint64(packet[8:], pingMagic)
	to := &net.IPAddr{IP: p.o.Target.AsSlice()}
	if p.o.Broadcast && p.o.Target.Is6() {
		to.Zone = "" // the socket is bound to the interface
	}
	// Requests keep to a schedule: one that was late does not delay the next.
	start := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; p.o.Count == 0 || i < p.o.Count; i++ {
		timer.Reset(time.Until(start.Add(time.Duration(i) * p.o.Interval)))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if f := p.o.At[i]; f != nil {
			f()
		}
		binary.BigEndian.PutUint16(packet[6:], uint16(i))
		binary.BigEndian.PutUint64(packet[16:], uint64(i))
		if request == echo4 {
			binary.BigEndian.PutUint16(packet[2:], 0)
			binary.BigEndian.PutUint16(packet[2:], checksum(packet))
		}
		p.mu.Lock()
		p.sentAt = append(p.sentAt, time.Now())
		p.answers = append(p.answers, nil)
		p.mu.Unlock()
		_, err := p.conn.WriteTo(packet, to)
		late := time.Since(start.Add(time.Duration(i) * p.o.Interval))
		p.mu.Lock()
		p.res.Late = max(p.res.Late, late)
		if err != nil {
			p.res.Refused++
			if p.res.Reason == nil {
				p.res.Reason = err
			}
		}
		p.mu.Unlock()
	}
}

func (p *pinger) receive() {
	reply := byte(echoReply4)
	if p.o.Target.Is6() {
		reply = echoReply6
	}
	buf := make([]byte, nicMTU)
	for {
		n, from, err := p.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Other errors are ICMP errors that the kernel hands to the socket.
		if err != nil || n < echoHeader+pingData || buf[0] != reply ||
			binary.BigEndian.Uint16(buf[4:]) != p.id || binary.BigEndian.Uint64(buf[8:]) != pingMagic {
			continue
		}
		p.note(binary.BigEndian.Uint64(buf[16:]), from.String(), time.Now())
	}
}

func (p *pinger) note(i uint64, from string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i >= uint64(len(p.answers)) || slices.Contains(p.own, from) {
		return
	}
	p.res.Answered[from]++
	if p.answers[i] == nil {
		p.answers[i] = map[string]int{}
		p.res.Received++
		p.res.RTT = append(p.res.RTT, at.Sub(p.sentAt[i]))
		p.finish()
	} else if !p.o.Broadcast || p.answers[i][from] > 0 {
		p.res.Duplicated++
	}
	p.answers[i][from]++
}

// finish closes all if there is nothing to wait for; the caller holds mu. Of a
// broadcast nobody knows how many answers there will be, so its whole wait is
// taken.
func (p *pinger) finish() {
	if p.over && p.res.Received == len(p.answers) && !p.o.Broadcast {
		close(p.all)
	}
}

// awaitAnswers waits for what is under way.
func (p *pinger) awaitAnswers() {
	p.mu.Lock()
	p.over = true
	p.finish()
	p.mu.Unlock()
	timer := time.NewTimer(p.o.Wait)
	defer timer.Stop()
	select {
	case <-p.all:
	case <-timer.C:
	}
}

func (p *pinger) result() PingResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.res.Sent, p.res.SentAt = len(p.sentAt), p.sentAt
	for i, a := range p.answers {
		if a == nil {
			p.res.Lost = append(p.res.Lost, i)
		}
	}
	return p.res
}

// checksum is the Internet checksum (RFC 1071) of b. ICMPv6's is made by the
// kernel, which knows the source address.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
