package lab

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// Frame is one captured Ethernet frame.
type Frame struct {
	At       time.Time
	Data     []byte
	Outgoing bool // sent by this namespace, not received
}

// Capture records the frames of one device from Open to Stop.
type Capture struct {
	file *os.File
	done sync.WaitGroup

	mu     sync.Mutex // guards what follows
	frames []Frame
	drops  uint32
}

// maxCapture is the most frames that a capture keeps; more are counted as
// dropped.
const maxCapture = 200_000

// OpenCapture begins to record the device's frames, both directions.
func OpenCapture(namespace, device string) (*Capture, error) {
	f, _, err := packetSocket(namespace, device, unix.ETH_P_ALL)
	if err != nil {
		return nil, err
	}
	c := &Capture{file: f}
	c.done.Go(c.read)
	return c, nil
}

// packetSocket opens a packet socket (packet(7)) on a device and returns the
// device's MAC with it.
func packetSocket(namespace, device string, protocol uint16) (*os.File, net.HardwareAddr, error) {
	var fd = -1
	var mac net.HardwareAddr
	err := InNS(namespace, func() error {
		iface, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		mac = iface.HardwareAddr
		// Protocol 0 receives nothing until bind, so no frame of another
		// device slips in before.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if protocol != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
				return err
			}
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(protocol), Ifindex: iface.Index})
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, nil, fmt.Errorf("packet socket on %s in %s: %w", device, namespace, err)
	}
	return os.NewFile(uintptr(fd), device), mac, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func (c *Capture) read() {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, nicMTU+64)
	for {
		var n int
		var from unix.Sockaddr
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, from, rerr = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		if err != nil {
			return
		}
		if rerr != nil { // ENETDOWN while the device is down
			continue
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		c.add(Frame{At: time.Now(), Data: bytes.Clone(buf[:n]), Outgoing: ok && ll.Pkttype == unix.PACKET_OUTGOING})
	}
}

func (c *Capture) add(f Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.frames) >= maxCapture {
		c.drops++
		return
	}
	c.frames = append(c.frames, f)
}

// Frames is what was recorded so far.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[:len(c.frames):len(c.frames)]
}

// Stop ends the recording and returns all frames. The error says that some
// were lost, so that absence proves nothing.
func (c *Capture) Stop() ([]Frame, error) {
	var drops uint32
	if raw, err := c.file.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				drops = st.Drops
			}
		})
	}
	c.file.Close()
	c.done.Wait()
	if drops += c.drops; drops > 0 {
		return c.frames, fmt.Errorf("capture lost %d frames", drops)
	}
	return c.frames, nil
}

// Probe sends what must not arrive, for as long as it lives: from one VM
// towards another's MAC and address, and to everyone.
type Probe struct {
	capture *Capture
	token   [16]byte
	file    *os.File
	stop    chan struct{}
	done    sync.WaitGroup
	sent    int
}

// StartProbe begins to send 100 frames a second in each of three forms from
// the first VM: to the MAC given, as a broadcast, and as an ARP request for
// the address. It watches the second VM for any of them.
func StartProbe(fromNS, toNS string, mac overlay.MAC, addr netip.Addr) (*Probe, error) {
	p := &Probe{stop: make(chan struct{})}
	rand.Read(p.token[:])
	var err error
	if p.capture, err = OpenCapture(toNS, "eth0"); err != nil {
		return nil, err
	}
	file, own, err := packetSocket(fromNS, "eth0", 0)
	if err != nil {
		p.capture.Stop()
		return nil, err
	}
	p.file = file
	everyone := overlay.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frames := [][]byte{p.datagram(own, mac, addr), p.datagram(own, everyone, netip.AddrFrom4([4]byte{255, 255, 255, 255}))}
	if addr.Is4() {
		frames = append(frames, p.question(own, addr))
	}
	p.done.Go(func() { p.send(frames) })
	return p, nil
}

func (p *Probe) send(frames [][]byte) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, f := range frames {
			if _, err := p.file.Write(f); err == nil {
				p.sent++
			}
		}
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
	}
}

// Stop ends the probe and says how many frames were sent and which of them
// arrived. Nothing sent is an error: then nothing was probed.
func (p *Probe) Stop() (sent int, arrived []Frame, err error) {
	close(p.stop)
	p.done.Wait()
	p.file.Close()
	frames, err := p.capture.Stop()
	for _, f := range frames {
		if !f.Outgoing && bytes.Contains(f.Data, p.token[:]) {
			arrived = append(arrived, f)
		}
	}
	if p.sent == 0 {
		err = errors.Join(err, errors.New("probe sent nothing"))
	}
	return p.sent, arrived, err
}

func ethernet(from net.HardwareAddr, to overlay.MAC, proto uint16) []byte {
	b := append(to[:len(to):len(to)], from...)
	return binary.BigEndian.AppendUint16(b, proto)
}

// datagram is an IP packet with the token, of the experimental protocol 253
// (RFC 3692 section 2.1) so that no guest answers it.
func (p *Probe) datagram(from net.HardwareAddr, to overlay.MAC, dst netip.Addr) []byte {
	if dst.Is6() {
		b := ethernet(from, to, unix.ETH_P_IPV6)
		b = append(b, 0x60, 0, 0, 0, 0, byte(len(p.token)), 253, 64)
		src := overlay.EUI64LinkLocal(overlay.MAC(from)).As16()
		b = append(b, src[:]...)
		d := dst.As16()
		return append(append(b, d[:]...), p.token[:]...)
	}
	ip := []byte{0x45, 0, 0, byte(ip4Header + len(p.token)), 0, 0, 0, 0, 64, 253, 0, 0, 192, 0, 2, 1}
	d := dst.As4()
	ip = append(ip, d[:]...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(append(ethernet(from, to, unix.ETH_P_IP), ip...), p.token[:]...)
}

// question is an ARP request (RFC 826) without a sender's address, with the
// token as trailing bytes.
func (p *Probe) question(from net.HardwareAddr, addr netip.Addr) []byte {
	b := ethernet(from, overlay.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(b, from...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	d := addr.As4()
	return append(append(b, d[:]...), p.token[:]...)
}
