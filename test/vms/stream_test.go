package vms

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert/internal/lab"
)

// A stream goes at its pace until it is told to finish, and has this many bytes
// at least.
const (
	streamLeast = 20 << 20
	streamPiece = 64 << 10
	streamEvery = 10 * time.Millisecond // 6.5 MB/s
)

// stream is a TCP connection from a guest to a VM, on which the guest sends
// back what it is sent.
type stream struct {
	what  string
	last  chan struct{} // closed: it may end
	over  chan error
	sent  int
	stall time.Duration // the longest time that nothing came
}

// stream begins one; it ends with finish.
func (f *fleet) stream(vm, guest string) *stream {
	f.t.Helper()
	var ln net.Listener
	addr := f.vms[vm].Addresses[0].Addr().String()
	err := lab.InNS(lab.NSOfVM(f.l.Name(), vm), func() (err error) {
		ln, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	defer ln.Close()
	port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	f.in(guest, "nc "+addr+" "+port+" -e cat >/dev/null 2>&1 &")
	tcp := ln.(*net.TCPListener)
	if err := tcp.SetDeadline(time.Now().Add(settle)); err != nil {
		f.t.Fatal(err)
	}
	conn, err := tcp.AcceptTCP()
	if err != nil {
		f.t.Fatalf("connection of %s: %v", guest, err)
	}
	s := &stream{what: guest + " to " + vm, last: make(chan struct{}), over: make(chan error, 1)}
	go func() {
		sent := make(chan error, 1)
		go func() { sent <- s.send(conn) }()
		err := s.receive(conn)
		conn.Close()
		if err = errors.Join(err, <-sent); err == nil && s.sent < streamLeast {
			err = fmt.Errorf("%d bytes alone were sent", s.sent)
		}
		s.over <- err
	}()
	f.t.Cleanup(func() { conn.Close() })
	return s
}

// noise is the same bytes each time, and no two places of it are alike.
func noise() io.Reader { return rand.NewChaCha8([32]byte([]byte("what goes must come back, whole."))) }

func (s *stream) send(conn *net.TCPConn) error {
	tick := time.NewTicker(streamEvery)
	defer tick.Stop()
	from, piece := noise(), make([]byte, streamPiece)
	for last := s.last; s.sent < streamLeast || last != nil; <-tick.C {
		select {
		case <-last:
			last = nil
		default:
		}
		if _, err := io.ReadFull(from, piece); err != nil {
			return err
		}
		n, err := conn.Write(piece)
		if s.sent += n; err != nil {
			return fmt.Errorf("broken after %d bytes: %w", s.sent, err)
		}
	}
	return conn.CloseWrite()
}

// receive compares what comes back until the guest closes.
func (s *stream) receive(conn *net.TCPConn) error {
	want, got, due := noise(), make([]byte, streamPiece), make([]byte, streamPiece)
	for at := 0; ; {
		since := time.Now()
		if err := conn.SetReadDeadline(since.Add(settle)); err != nil {
			return err
		}
		n, err := conn.Read(got)
		s.stall = max(s.stall, time.Since(since))
		if _, err := io.ReadFull(want, due[:n]); err != nil {
			return err
		}
		if !bytes.Equal(got[:n], due[:n]) {
			return fmt.Errorf("what came back differs after %d bytes", at)
		}
		at += n
		if errors.Is(err, io.EOF) && at == s.sent {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ended after %d of %d bytes: %w", at, s.sent, err)
		}
	}
}

// finish waits for the end of the stream and asserts that it was whole.
func (s *stream) finish(f *fleet) {
	f.t.Helper()
	close(s.last)
	select {
	case err := <-s.over:
		if err != nil {
			f.t.Errorf("stream of %s: %v", s.what, err)
		}
		f.t.Logf("figure: stream of %s: %d bytes and back, nothing came for at most %d ms", s.what, s.sent, s.stall.Milliseconds())
	case <-time.After(2 * settle):
		f.t.Errorf("stream of %s does not end", s.what)
	}
}

// in runs a command line in a guest of QEMU.
func (f *fleet) in(guest, line string) (out string) {
	f.t.Helper()
	out, code, err := f.l.Run(f.t.Context(), guest, line)
	if err != nil || code != 0 {
		f.t.Fatalf("%s in %s: %q, %d, %v", line, guest, out, code, err)
	}
	return out
}

// speak lets a guest announce its address again and again for a few seconds.
func (f *fleet) speak(guest string) {
	f.t.Helper()
	a := f.vms[guest].Addresses[0].Addr()
	f.in(guest, fmt.Sprintf("(for i in $(seq 100); do arping -q -U -c 1 -w 1 -I eth0 %s; usleep 10000; done) >/dev/null 2>&1 &", a))
}

// unanswered is how many echo requests a guest has got and sent no reply to: a
// burst of replies finds the send buffer of its kernel full.
func (f *fleet) unanswered(name string) int {
	f.t.Helper()
	return f.unansweredIn(f.in(name, snmp))
}

// snmp lists what unansweredIn reads.
const snmp = "cat /proc/net/snmp /proc/net/snmp6"

func (f *fleet) unansweredIn(snmp string) (sum int) {
	f.t.Helper()
	var titles []string
	for line := range strings.Lines(snmp) {
		w := strings.Fields(line)
		switch {
		case len(w) > 1 && w[0] == "Icmp:" && titles == nil:
			titles = w
		case len(w) > 1 && w[0] == "Icmp:":
			sum += number(f.t, w[slices.Index(titles, "InEchos")]) - number(f.t, w[slices.Index(titles, "OutEchoReps")])
		case len(w) == 2 && w[0] == "Icmp6InEchos":
			sum += number(f.t, w[1])
		case len(w) == 2 && w[0] == "Icmp6OutEchoReplies":
			sum -= number(f.t, w[1])
		}
	}
	return sum
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
