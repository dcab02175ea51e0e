package trust

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// LeafFunc gives the certificate to show. It is called at every handshake, so
// that a renewed one is used from the next connection on.
type LeafFunc func() (*Leaf, error)

// Fixed is a LeafFunc that always gives l.
func Fixed(l *Leaf) LeafFunc { return func() (*Leaf, error) { return l, nil } }

// ServerOptions is what ServerConfig needs.
type ServerOptions struct {
	Anchor *Anchor
	Leaf   LeafFunc
	// Strangers lets clients in that show no certificate at all, for the one
	// call that needs none (join). Whoever answers any other call must ask
	// Anchor.PeerIdentity, which refuses them. A certificate that is shown and
	// not believed is refused in either case.
	Strangers bool
	// OnRefused is called, at most once a connection, with the reason of a
	// refusal (Reason, ReasonOldTLS, ReasonBrokenOff) and the client's
	// address. It may be called from several goroutines. nil: nobody counts.
	OnRefused func(reason, remote string)
}

// ServerConfig is a manager's side: TLS 1.3, HTTP/2, no session tickets (a
// resumed session would outlive its certificate).
//
// Certificates are verified here and not by crypto/tls, whose verification
// leaves no place to count and name a refusal. The price: the client's alert is
// always "bad certificate", whatever was wrong with it.
func ServerConfig(o ServerOptions) *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequestClientCert,
		Time:                   o.Anchor.now,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			l, err := o.Leaf()
			if err != nil {
				return nil, err
			}
			return l.TLS(), nil
		},
	}
	c := base.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		h := &handshake{o: o, remote: remoteOf(hello.Conn)}
		if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
			h.refuse(ReasonOldTLS)
		}
		context.AfterFunc(hello.Context(), h.over) // the handshake's own context
		own := base.Clone()
		own.VerifyConnection = h.verify
		return own, nil
	}
	return c
}

// handshake is one connection on its way in.
type handshake struct {
	o       ServerOptions
	remote  string
	decided atomic.Bool
}

func (h *handshake) refuse(reason string) {
	if h.decided.CompareAndSwap(false, true) && h.o.OnRefused != nil {
		h.o.OnRefused(reason, h.remote)
	}
}

// verify is called in every handshake, with or without a client's certificate.
func (h *handshake) verify(cs tls.ConnectionState) error {
	_, err := h.o.Anchor.PeerIdentity(&cs)
	if err == nil || h.o.Strangers && errors.Is(err, ErrNoCertificate) {
		h.decided.Store(true)
		return nil
	}
	h.refuse(Reason(err))
	return err
}

// over is called when the handshake has ended, one way or the other.
func (h *handshake) over() { h.refuse(ReasonBrokenOff) }

func remoteOf(c net.Conn) string {
	if c == nil {
		return ""
	}
	return c.RemoteAddr().String()
}

// ClientConfig is the side of an agent, an operator or a manager as another's
// client: it shows leaf and takes nobody but a manager of the anchor's cluster
// for the server. Which address it was reached by says nothing about a manager,
// so the name in the certificate is not compared.
func ClientConfig(a *Anchor, leaf LeafFunc) *tls.Config {
	c := clientConfig(a.now, func(cs tls.ConnectionState) error { return a.verifyManager(cs.PeerCertificates) })
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		l, err := leaf()
		if err != nil {
			return nil, err
		}
		return l.TLS(), nil // also to a server that asks for another CA's: it shall say no itself
	}
	return c
}

// PinnedClientConfig is the side of one who joins: it shows nothing, and takes
// nobody but a manager of the cluster whose CA, sent along by the server,
// matches the pin.
func PinnedClientConfig(pin Pin, now func() time.Time) *tls.Config {
	return clientConfig(now, func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return &PeerError{Kind: ErrNoCertificate}
		}
		for _, c := range cs.PeerCertificates[1:] {
			if pinOf(c) != pin {
				continue
			}
			a, err := NewAnchor(c.Raw, now)
			if err != nil {
				return &PeerError{Kind: ErrWrongPin, Detail: err.Error()}
			}
			return a.verifyManager(cs.PeerCertificates)
		}
		return &PeerError{Kind: ErrWrongPin, Detail: "issued by " + quote(cs.PeerCertificates[0].Issuer.CommonName) + ", wanted " + pin.String()}
	})
}

func clientConfig(now func() time.Time, verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
		Time:                   now,
		// Not "no verification" but "by verify": crypto/tls would insist on a
		// host name. VerifyConnection is called in every handshake.
		InsecureSkipVerify: true,
		VerifyConnection:   verify,
	}
}

// ErrRefused: the other end refused us. See RemoteRefusal.
var ErrRefused = errors.New("the other side refused this connection")

// RemoteRefusal says in our words what a TLS alert from the other end means,
// with own as the certificate that was shown (nil: none); ok is false where err
// holds no such alert. In TLS 1.3 a client learns of its refusal at the first
// read, after a handshake that went well.
func RemoteRefusal(err error, own *Leaf, now time.Time) (refusal error, ok bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return nil, false
	}
	detail := op.Err.Error()
	switch {
	case own == nil && (strings.Contains(detail, "certificate required") || strings.Contains(detail, "bad certificate")):
		return &PeerError{Kind: ErrRefused, Detail: "it wants a certificate, and this machine has none"}, true
	case own != nil && now.After(own.Cert.NotAfter):
		return &PeerError{Kind: ErrRefused, Detail: "this machine's certificate expired at " + stamp(own.Cert.NotAfter)}, true
	case own != nil && strings.Contains(detail, "bad certificate"):
		return &PeerError{Kind: ErrRefused, Detail: "it does not take this machine's certificate, issued by " + quote(own.Cert.Issuer.CommonName) + ", good until " + stamp(own.Cert.NotAfter) + "; its clock or its cluster may be another"}, true
	case strings.Contains(detail, "protocol version"):
		return &PeerError{Kind: ErrRefused, Detail: "it speaks TLS 1.3 only"}, true
	}
	return &PeerError{Kind: ErrRefused, Detail: detail}, true
}
