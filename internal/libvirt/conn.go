package libvirt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
)

// Bounds of a packet of the daemon (libvirt's src/rpc/virnetprotocol.x): its
// length counts itself and the header of six words.
const (
	leastPacket = 4 + 6*4
	mostPacket  = 32<<20 + 4
)

// lists are the answers with a list in them, of the calls that are made here
// (src/remote/remote_protocol.x): where in the packet its length stands, and
// how many bytes an entry has at least.
var lists = map[uint32]struct{ at, entry int }{
	procAuth:     {leastPacket, 4},
	procList:     {leastPacket, 4 + 16 + 4},
	procJobStats: {leastPacket + 4, 4 + 4 + 4},
}

// Procedures of libvirt's remote protocol.
const (
	procAuth     = 66
	procList     = 273
	procJobStats = 298
)

var errFraming = errors.New("no packet of libvirt's protocol")

// conn is a connection that ends itself when what comes is no packet. The RPC
// library trusts the lengths that it reads, and makes room for what they say: a
// wrong one would end the whole process.
type conn struct {
	net.Conn
	gone chan struct{} // closed with it
	once sync.Once

	head      [leastPacket + 8]byte // of the packet that comes; reader only
	got, size int                   // bytes of it; size is 0 until it is known
}

func newConn(c net.Conn) *conn { return &conn{Conn: c, gone: make(chan struct{})} }

// Dial hands the connection out, as the RPC library wants it.
func (c *conn) Dial() (net.Conn, error) { return c, nil }

// Close ends the connection, and with it every call that waits on it.
func (c *conn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// Read reads, and passes on nothing of a chunk with a wrong packet in it.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil && !c.frames(b[:n]) {
		n, err = 0, errFraming
	}
	if err != nil {
		_ = c.Close() // the reason is err
	}
	return n, err
}

// frames follows the packets through a chunk of the stream.
func (c *conn) frames(b []byte) bool {
	for len(b) > 0 {
		head := 4
		if c.size > 0 {
			head = min(len(c.head), c.size)
		}
		n := min(c.size-c.got, len(b))
		if c.got < head {
			n = copy(c.head[c.got:head], b)
		}
		c.got, b = c.got+n, b[n:]
		if c.got != head {
			if c.got == c.size {
				c.got, c.size = 0, 0
			}
			continue
		}
		if c.size == 0 {
			size := binary.BigEndian.Uint32(c.head[:])
			if size < leastPacket || size > mostPacket {
				return false
			}
			c.size = int(size)
			continue
		}
		if !c.plausible() {
			return false
		}
		if c.got == c.size {
			c.got, c.size = 0, 0
		}
	}
	return true
}

// plausible reports whether a list that the packet begins with fits into it.
func (c *conn) plausible() bool {
	word := func(at int) uint32 { return binary.BigEndian.Uint32(c.head[at:]) }
	const procedure, kind, status, reply, ok = 12, 16, 24, 1, 0
	l, is := lists[word(procedure)]
	if !is || word(kind) != reply || word(status) != ok || c.size < l.at+4 {
		return true // too short a one is refused where it is read
	}
	return int64(word(l.at)) <= int64(c.size-l.at-4)/int64(l.entry)
}

// session is one connection to the daemon. Its calls end with it.
type session struct {
	c        *conn
	rpc      *libvirt.Libvirt
	patience time.Duration // of one call
}

// open connects to the daemon behind a socket and opens its QEMU driver.
func open(path string, patience time.Duration) (*session, error) {
	raw, err := net.DialTimeout("unix", path, patience)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s := &session{c: newConn(raw), patience: patience}
	s.rpc = libvirt.NewWithDialer(s.c)
	if err := s.call(s.rpc.Connect); err != nil {
		return nil, errors.Join(fmt.Errorf("open connection: %w", err), s.c.Close())
	}
	return s, nil
}

// call does a call within a bound. The RPC library has none: a daemon that is
// frozen, with its socket open, would keep the caller for ever. Cutting the
// connection is the one way to take a call back.
func (s *session) call(f func() error) error {
	t := time.AfterFunc(s.patience, func() { _ = s.c.Close() })
	defer t.Stop()
	return f()
}

// alive reports whether an error is the daemon's answer, not the loss of it.
func (s *session) alive() bool {
	select {
	case <-s.c.gone:
		return false
	default:
		return true
	}
}
