package trust

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

const (
	// DefaultLeafLife is how long a certificate is good where nothing else is
	// said.
	DefaultLeafLife = 30 * 24 * time.Hour

	caLife = 10 * 365 * 24 * time.Hour
	// clockSkew is how far the clocks of two machines may be apart: what is
	// made now is good from this long ago.
	clockSkew = time.Hour
	// maxCSR bounds what a stranger makes us parse. A request with a P-256 key
	// has some 250 bytes.
	maxCSR = 4096
)

// ErrBadRequest: a certificate request that the CA does not sign.
var ErrBadRequest = errors.New("certificate request is not taken")

// Pin is the SHA-256 of a CA's public key (its SubjectPublicKeyInfo, DER). It
// stays when the CA's certificate is renewed on the same key.
type Pin [sha256.Size]byte

// String is the pin in hexadecimal.
func (p Pin) String() string { return hex.EncodeToString(p[:]) }

func pinOf(c *x509.Certificate) Pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// CA is a cluster's authority: its certificate and its key.
type CA struct {
	cluster string
	cert    *x509.Certificate
	key     Key
	life    time.Duration
}

// Leaf is a certificate with its key and the CA's certificate.
type Leaf struct {
	Cert *x509.Certificate
	CA   *x509.Certificate
	Key  Key
}

// NewCA makes the authority of a new cluster: ECDSA P-256, self-signed, good
// for ten years from now. Its subject is "culvert cluster <id>".
func NewCA(cluster string, now time.Time) (*CA, error) {
	if err := checkField("cluster id", cluster, maxField, fieldSet); err != nil {
		return nil, err
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               caSubject(cluster),
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	cert, err := sign(t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &CA{cluster: cluster, cert: cert, key: key, life: DefaultLeafLife}, nil
}

const caPrefix = "culvert cluster "

func caSubject(cluster string) pkix.Name { return pkix.Name{CommonName: caPrefix + cluster} }

// newSerial is 128 random bits, so that no two CAs' certificates share one.
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails: crypto/rand
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b)
}

func sign(t, parent *x509.Certificate, pub any, key Key) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// SetLeafLife sets how long certificates are good that are given from now on.
// The default is DefaultLeafLife.
func (ca *CA) SetLeafLife(d time.Duration) { ca.life = d }

// Cluster is the cluster's id.
func (ca *CA) Cluster() string { return ca.cluster }

// Cert is the CA's own certificate.
func (ca *CA) Cert() *x509.Certificate { return ca.cert }

// Pin is the pin of this CA.
func (ca *CA) Pin() Pin { return pinOf(ca.cert) }

// Anchor is what verifies this CA's certificates, by the given clock.
func (ca *CA) Anchor(now func() time.Time) *Anchor {
	return &Anchor{cluster: ca.cluster, cert: ca.cert, now: now}
}

// IssueServer gives a manager its certificate. names and addrs are for browsers
// and other clients that know nothing of identities; both may be empty.
func (ca *CA) IssueServer(uid string, names []string, addrs []netip.Addr, now time.Time) (*Leaf, error) {
	t := &x509.Certificate{DNSNames: slices.Clone(names)}
	for _, a := range addrs {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
	}
	return ca.issue(Identity{Role: RoleManager, UID: uid}, t, now)
}

// IssueAgent gives the agent of a host its certificate.
func (ca *CA) IssueAgent(hostUID, hostName string, now time.Time) (*Leaf, error) {
	return ca.issue(Identity{Role: RoleAgent, UID: hostUID, Name: hostName}, &x509.Certificate{}, now)
}

// IssueOperator gives a person a certificate. Its uid is made here.
func (ca *CA) IssueOperator(name string, now time.Time) (*Leaf, error) {
	return ca.issue(Identity{Role: RoleOperator, UID: newSerial().Text(16), Name: name}, &x509.Certificate{}, now)
}

func (ca *CA) issue(id Identity, t *x509.Certificate, now time.Time) (*Leaf, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	cert, err := ca.certify(id, t, key.Public(), now)
	if err != nil {
		return nil, err
	}
	return &Leaf{Cert: cert, CA: ca.cert, Key: key}, nil
}

// certify signs t, with everything but names and addresses set here.
func (ca *CA) certify(id Identity, t *x509.Certificate, pub any, now time.Time) (*x509.Certificate, error) {
	id.Cluster = ca.cluster
	if err := id.check(); err != nil {
		return nil, err
	}
	t.SerialNumber = newSerial()
	t.Subject = pkix.Name{CommonName: id.Name}
	t.URIs = []*url.URL{id.uri()}
	t.NotBefore, t.NotAfter = now.Add(-clockSkew), now.Add(ca.life)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if id.Role == RoleManager { // managers serve, and are each other's clients
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	t.BasicConstraintsValid = true
	return sign(t, ca.cert, pub, ca.key)
}

// NewRequest is what a machine asks for its certificate with: a new key, which
// never leaves it, and a request (PKCS #10, DER) that shows its possession. It
// says nothing of who asks: that is the token's to decide.
func NewRequest() (Key, []byte, error) {
	key, err := NewKey()
	if err != nil {
		return Key{}, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return Key{}, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, csr, nil
}

// CheckRequest reports whether SignRequest would take a request, as nil or
// ErrBadRequest: for those who have something to do before a certificate may
// be made.
func CheckRequest(csr []byte) error {
	_, err := parseRequest(csr)
	return err
}

func parseRequest(csr []byte) (*x509.CertificateRequest, error) {
	if len(csr) > maxCSR {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrBadRequest, len(csr), maxCSR)
	}
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	if !goodKey(r.PublicKey) {
		return nil, fmt.Errorf("%w: its key is %v, wanted ECDSA on P-256 or Ed25519", ErrBadRequest, r.PublicKeyAlgorithm)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	return r, nil
}

// SignRequest certifies the key of a request as the identity that a token
// allows. Whatever else the request asks for (subject, names, usages) is
// ignored. id.Cluster and id.Serial are set by the CA.
// Errors: ErrBadRequest, or of an identity that cannot be.
func (ca *CA) SignRequest(csr []byte, id Identity, now time.Time) (*x509.Certificate, error) {
	r, err := parseRequest(csr)
	if err != nil {
		return nil, err
	}
	return ca.certify(id, &x509.Certificate{}, r.PublicKey, now)
}

// NewLeaf puts together what a join brought: the key made here, the certificate
// and the CA's (DER). It refuses a CA that does not match the pin and a
// certificate that is not the CA's for this key.
func NewLeaf(key Key, cert, ca []byte, pin Pin) (*Leaf, error) {
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	root, err := x509.ParseCertificate(ca)
	if err != nil {
		return nil, fmt.Errorf("read certificate of authority: %w", err)
	}
	if pinOf(root) != pin {
		return nil, &PeerError{Kind: ErrWrongPin, Detail: "authority is " + pinOf(root).String() + ", wanted " + pin.String()}
	}
	l := &Leaf{Cert: c, CA: root, Key: key}
	return l, l.check()
}

// check: the parts belong to each other. Time is not looked at.
func (l *Leaf) check() error {
	if err := l.keyFits(); err != nil {
		return err
	}
	if err := l.Cert.CheckSignatureFrom(l.CA); err != nil {
		return fmt.Errorf("certificate is not of its authority: %w", err)
	}
	_, err := claimed(l.Cert)
	return err
}

func (l *Leaf) keyFits() error {
	pub, ok := l.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(l.Cert.PublicKey) {
		return errors.New("certificate is for another key")
	}
	return nil
}

// Identity is whom the certificate speaks for.
func (l *Leaf) Identity() (Identity, error) { return claimed(l.Cert) }

// Anchor verifies the certificates of the same cluster, by the given clock.
func (l *Leaf) Anchor(now func() time.Time) (*Anchor, error) {
	return NewAnchor(l.CA.Raw, now)
}

// TLS is the leaf as crypto/tls wants it. The CA's certificate is in the chain:
// one who joins knows no more of it than its pin.
func (l *Leaf) TLS() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{l.Cert.Raw, l.CA.Raw}, PrivateKey: l.Key, Leaf: l.Cert}
}
