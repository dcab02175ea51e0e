package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Why a peer is not believed. Compare with errors.Is; the error itself is a
// *PeerError with the values.
var (
	ErrNoCertificate = errors.New("no certificate was shown")
	ErrOtherCluster  = errors.New("certificate is of another cluster")
	ErrNotOurs       = errors.New("certificate is not of this cluster's authority")
	ErrExpired       = errors.New("certificate has expired")
	ErrNotYetValid   = errors.New("certificate is not valid yet")
	ErrWrongRole     = errors.New("certificate is for another role")
	ErrWrongPin      = errors.New("authority does not match the pin")
)

// reasons are the words that refusals are counted under.
var reasons = []struct {
	err    error
	reason string
}{
	{ErrNoCertificate, "no-certificate"},
	{ErrOtherCluster, "other-cluster"},
	{ErrNotOurs, "not-ours"},
	{ErrExpired, "expired"},
	{ErrNotYetValid, "not-yet-valid"},
	{ErrWrongRole, "wrong-role"},
	{ErrWrongPin, "wrong-pin"},
}

// The reasons of refusals that have no certificate to look at.
const (
	ReasonOldTLS    = "old-tls"    // the client speaks nothing newer than TLS 1.2
	ReasonBrokenOff = "broken-off" // the handshake ended otherwise; the client may have refused us
)

// Reason is the word that err is counted under; "" where it is no refusal.
func Reason(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return ""
}

// PeerError is the refusal of a peer.
type PeerError struct {
	Kind   error // one of the sentinels above
	Detail string
}

func (e *PeerError) Error() string {
	if e.Detail == "" {
		return e.Kind.Error()
	}
	return e.Kind.Error() + ": " + e.Detail
}

// Unwrap is the kind.
func (e *PeerError) Unwrap() error { return e.Kind }

// Anchor is what one side believes in: one CA certificate and a clock.
type Anchor struct {
	cluster string
	cert    *x509.Certificate
	now     func() time.Time
}

// NewAnchor reads a CA's certificate (DER). Its subject says which cluster.
func NewAnchor(ca []byte, now func() time.Time) (*Anchor, error) {
	c, err := x509.ParseCertificate(ca)
	if err != nil {
		return nil, fmt.Errorf("read certificate of authority: %w", err)
	}
	cluster, err := clusterOf(c)
	if err != nil {
		return nil, err
	}
	return &Anchor{cluster: cluster, cert: c, now: now}, nil
}

// clusterOf reads the cluster out of a CA's certificate, and checks that it is
// one, signed by itself.
func clusterOf(c *x509.Certificate) (string, error) {
	cluster, ok := strings.CutPrefix(c.Subject.CommonName, caPrefix)
	if !ok || checkField("cluster id", cluster, maxField, fieldSet) != nil || !c.IsCA {
		return "", fmt.Errorf("certificate of %s is not a cluster's authority", quote(c.Subject.CommonName))
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		return "", fmt.Errorf("authority has not signed itself: %w", err)
	}
	return cluster, nil
}

// Cluster is the cluster whose certificates are believed.
func (a *Anchor) Cluster() string { return a.cluster }

// Pin is the pin of the CA.
func (a *Anchor) Pin() Pin { return pinOf(a.cert) }

// PeerIdentity is who is at the other end of a connection, verified here and
// now: a certificate that was good at the handshake and has expired since is
// refused. It depends on no setting of the connection's tls.Config. The error
// is a *PeerError.
func (a *Anchor) PeerIdentity(cs *tls.ConnectionState) (Identity, error) {
	if cs == nil {
		return Identity{}, &PeerError{Kind: ErrNoCertificate, Detail: "the connection is not TLS"}
	}
	return a.verify(cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
}

// verify believes the first of certs or says why not. Each way out tells as
// much as is certain: whose certificate it is comes before how old it is.
func (a *Anchor) verify(certs []*x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	if len(certs) == 0 {
		return Identity{}, &PeerError{Kind: ErrNoCertificate}
	}
	leaf, now := certs[0], a.now()
	id, idErr := claimed(leaf)
	if err := leaf.CheckSignatureFrom(a.cert); err != nil {
		if idErr == nil && id.Cluster != a.cluster {
			return Identity{}, &PeerError{Kind: ErrOtherCluster, Detail: fmt.Sprintf("it says %s, this is %s", quote(id.Cluster), quote(a.cluster))}
		}
		return Identity{}, &PeerError{Kind: ErrNotOurs, Detail: "issued by " + quote(leaf.Issuer.CommonName)}
	}
	if now.After(leaf.NotAfter) {
		return Identity{}, &PeerError{Kind: ErrExpired, Detail: fmt.Sprintf("at %s; it is %s here", stamp(leaf.NotAfter), stamp(now))}
	}
	if now.Before(leaf.NotBefore) {
		return Identity{}, &PeerError{Kind: ErrNotYetValid, Detail: fmt.Sprintf("before %s; it is %s here", stamp(leaf.NotBefore), stamp(now))}
	}
	if idErr != nil {
		return Identity{}, &PeerError{Kind: ErrNotOurs, Detail: idErr.Error()}
	}
	if id.Cluster != a.cluster {
		return Identity{}, &PeerError{Kind: ErrOtherCluster, Detail: "it says " + quote(id.Cluster)}
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
	var bad x509.CertificateInvalidError
	switch {
	case err == nil:
		return id, nil
	case errors.As(err, &bad) && bad.Reason == x509.IncompatibleUsage:
		return Identity{}, &PeerError{Kind: ErrWrongRole, Detail: "it is a certificate for " + id.Role.String()}
	case errors.As(err, &bad) && bad.Reason == x509.Expired:
		return Identity{}, &PeerError{Kind: ErrExpired, Detail: "the authority itself, at " + stamp(a.cert.NotAfter)}
	}
	return Identity{}, &PeerError{Kind: ErrNotOurs, Detail: err.Error()}
}

// verifyManager is verify, for a client: the other end must be a manager.
func (a *Anchor) verifyManager(certs []*x509.Certificate) error {
	id, err := a.verify(certs, x509.ExtKeyUsageServerAuth)
	if err == nil && id.Role != RoleManager {
		err = &PeerError{Kind: ErrWrongRole, Detail: "it is a certificate for " + id.Role.String() + ", wanted a manager's"}
	}
	return err
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
