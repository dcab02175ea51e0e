package agent

import (
	"bufio"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
)

// whole is a transport that sends each message of a request's stream in one
// piece. The RPC library writes the five bytes before a message by themselves,
// and HTTP/2 then makes two frames, two TLS records and two system calls of
// every message, on both sides.
type whole struct{ http.RoundTripper }

// RoundTrip sends a request; see [http.RoundTripper].
func (t whole) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && strings.HasPrefix(r.Header.Get("Content-Type"), "application/connect+") { // a stream
		r = r.Clone(r.Context())
		r.Body = newMessages(r.Body)
	}
	return t.RoundTripper.RoundTrip(r)
}

// messages reads a stream of messages, each after a byte of flags and four of
// length (connectrpc.com/docs/protocol, "Enveloped-Message"), such that a read
// does not end within one if that can be helped. It is no check: what is no
// such stream passes as it is.
type messages struct {
	io.Closer
	buf  *bufio.Reader
	left int64 // of the message that a read has begun
}

const (
	prefixLen  = 5
	messageBuf = 16 << 10 // the size of a frame of HTTP/2 and of a TLS record
)

func newMessages(r io.ReadCloser) *messages {
	return &messages{Closer: r, buf: bufio.NewReaderSize(r, messageBuf)}
}

// Read reads the rest of a message, or as much of it as there is room for.
func (m *messages) Read(p []byte) (int, error) {
	if m.left == 0 {
		head, err := m.buf.Peek(prefixLen)
		if err != nil {
			return m.buf.Read(p) // the end, which it says again
		}
		m.left = prefixLen + int64(binary.BigEndian.Uint32(head[1:]))
		_, _ = m.buf.Peek(int(min(m.left, messageBuf))) // waits; an error comes again with the read
	}
	n, err := m.buf.Read(p[:min(int64(len(p)), m.left)])
	m.left -= int64(n)
	return n, err
}
