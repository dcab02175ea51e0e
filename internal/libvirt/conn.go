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

var errFraming = errors.New("no packet of libvirt's protocol")

// conn is a connection that ends itself when what comes is no packet. The RPC
// library trusts the length that it reads, and a wrong one would end the whole
// process.
type conn struct {
	net.Conn
	gone chan struct{} // closed with it
	once sync.Once

	length [4]byte // of the packet that comes; reader only
	have   int
	left   uint32 // bytes of it that are still to come
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
		if c.left > 0 {
			n := min(int(c.left), len(b))
			c.left -= uint32(n)
			b = b[n:]
			continue
		}
		n := copy(c.length[c.have:], b)
		c.have += n
		b = b[n:]
		if c.have == len(c.length) {
			size := binary.BigEndian.Uint32(c.length[:])
			if size < leastPacket || size > mostPacket {
				return false
			}
			c.have, c.left = 0, size-4
		}
	}
	return true
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
