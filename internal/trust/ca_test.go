package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestIssue(t *testing.T) {
	p := newPKI("culvert-7f3a", t0)
	if c := p.ca.Cert(); !strings.Contains(c.Subject.CommonName, "culvert-7f3a") || !c.IsCA || !c.MaxPathLenZero || c.KeyUsage&x509.KeyUsageDigitalSignature != 0 {
		t.Errorf("authority %v", c.Subject)
	}
	m := p.manager.Cert
	if len(m.DNSNames) != 1 || m.DNSNames[0] != "m1.example" || len(m.IPAddresses) != 1 || !m.IPAddresses[0].Equal(net.IPv4(127, 0, 0, 1)) {
		t.Errorf("manager's names %v, addresses %v", m.DNSNames, m.IPAddresses)
	}
	for _, l := range []*Leaf{p.manager, p.agent, p.operator} {
		if err := l.check(); err != nil {
			t.Error(err)
		}
		if l.Cert.NotAfter != t0.Add(30*24*time.Hour) || !l.Cert.NotBefore.Before(t0) || l.Cert.IsCA || l.Cert.KeyUsage != x509.KeyUsageDigitalSignature {
			t.Errorf("%v: %v to %v", l.Cert.URIs, l.Cert.NotBefore, l.Cert.NotAfter)
		}
	}
	if got := p.agent.Cert.URIs[0].String(); got != "culvert://culvert-7f3a/agent/0123" {
		t.Errorf("identity %s", got)
	}
	p.ca.SetLeafLife(time.Hour)
	if l := must(p.ca.IssueAgent("1", "", t0)); l.Cert.NotAfter != t0.Add(time.Hour) {
		t.Errorf("of an hour's life: good until %v", l.Cert.NotAfter)
	}
	for _, c := range []string{"", "a/b", "A", "a b", "a.b", strings.Repeat("a", 64), "ä"} {
		if _, err := NewCA(c, t0); err == nil {
			t.Errorf("an authority of cluster %q", c)
		}
		if _, err := p.ca.IssueAgent(c, "h1", t0); err == nil {
			t.Errorf("a certificate for uid %q", c)
		}
	}
	for _, n := range []string{"h 1", "h\n1", "a/b", strings.Repeat("a", 254)} {
		if _, err := p.ca.IssueAgent("1", n, t0); err == nil {
			t.Errorf("a certificate for name %q", n)
		}
	}
	if _, err := p.ca.IssueServer("m1", nil, []netip.Addr{{}}, t0); err == nil {
		t.Error("a certificate for no address")
	}
}

func TestSaveAndLoad(t *testing.T) {
	p := newPKI("c1", t0)
	dir := filepath.Join(t.TempDir(), "trust")
	if _, err := LoadCA(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	path := filepath.Join(dir, "agent.pem")
	for range 2 { // anew, and over the old
		if err := errors.Join(p.ca.Save(dir), p.agent.Save(path)); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := LoadCA(dir)
	if err != nil || ca.Pin() != p.ca.Pin() || ca.Cluster() != "c1" {
		t.Fatalf("authority %v, %v", ca, err)
	}
	l, err := LoadLeaf(path)
	if err != nil || !bytes.Equal(l.Cert.Raw, p.agent.Cert.Raw) {
		t.Fatalf("leaf %v", err)
	}
	// Both keys are the true ones.
	if l := must(ca.IssueAgent("1", "", t0)); l.Cert.CheckSignatureFrom(p.ca.cert) != nil {
		t.Error("the loaded authority signs otherwise")
	}
	names, _ := os.ReadDir(dir)
	if len(names) != 2 {
		t.Errorf("left behind: %v", names)
	}
	for _, n := range names {
		if st, _ := n.Info(); st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", n.Name(), st.Mode())
		}
	}
	if st, _ := os.Stat(dir); st.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v", st.Mode())
	}

	text, _ := os.ReadFile(path)
	caText, _ := os.ReadFile(filepath.Join(dir, CAFile))
	other := newPKI("c1", t0)
	otherPath := filepath.Join(dir, "other.pem")
	if err := other.agent.Save(otherPath); err != nil {
		t.Fatal(err)
	}
	otherText, _ := os.ReadFile(otherPath)
	head := func(b []byte) string { return string(b[:bytes.Index(b, []byte("-----BEGIN CERT"))]) }
	tail := func(b []byte) string { return string(b[bytes.Index(b, []byte("-----BEGIN CERT")):]) }
	for name, bad := range map[string]string{
		"empty":              "",
		"text":               "not a key",
		"key only":           head(text),
		"certificates only":  tail(text),
		"one certificate":    string(caText),
		"three certificates": string(text) + tail(caText),
		"another's key":      head(otherText) + tail(text),
		"another's CA":       head(text) + tail(text)[:strings.Index(tail(text), "-----END CERTIFICATE-----\n")+26] + tail(otherText)[strings.Index(tail(otherText), "-----END CERTIFICATE-----\n")+26:],
		"cut":                string(text[:len(text)-40]),
		"two keys":           string(text) + head(text),
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadLeaf(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	os.Chmod(otherPath, 0o640)
	if _, err := LoadLeaf(otherPath); !errors.Is(err, ErrExposed) {
		t.Errorf("open to the group: %v", err)
	}
	// An agent's file is no authority.
	if err := os.WriteFile(filepath.Join(dir, CAFile), []byte(head(text)+tail(text)[:strings.Index(tail(text), "-----END CERTIFICATE-----\n")+26]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(dir); err == nil {
		t.Error("a leaf was taken for an authority")
	}
}

// request makes a certificate request that asks for more than its due.
func request(key crypto.Signer) []byte {
	return must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "root", Organization: []string{"system:masters"}},
		DNSNames:    []string{"m1.example"},
		IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)},
		URIs:        []*url.URL{{Scheme: "culvert", Host: "c1", Path: "/operator/1"}},
	}, key))
}

func TestSignRequest(t *testing.T) {
	p := newPKI("c1", t0)
	agent := Identity{Role: RoleAgent, UID: "77", Name: "h7"}
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	for name, key := range map[string]crypto.Signer{"P-256": must(NewKey()), "Ed25519": edKey} {
		c, err := p.ca.SignRequest(request(key), agent, t0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkGranted(t, p.ca, c, agent)
	}
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	bad := request(must(NewKey()))
	bad[len(bad)-5] ^= 1
	swapped := request(edKey)
	for name, csr := range map[string][]byte{
		"empty":     nil,
		"text":      []byte("-----BEGIN CERTIFICATE REQUEST-----"),
		"RSA":       request(rsaKey),
		"P-384":     request(must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))),
		"signature": bad,
		"trailing":  append(swapped[:len(swapped):len(swapped)], 0),
		"too long":  make([]byte, maxCSR+1),
	} {
		if _, err := p.ca.SignRequest(csr, agent, t0); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := p.ca.SignRequest(swapped, Identity{Role: RoleAgent}, t0); err == nil {
		t.Error("signed for nobody")
	}
}

// checkGranted: the certificate is the granted identity's, and nothing more.
func checkGranted(t *testing.T, ca *CA, c *x509.Certificate, want Identity) {
	t.Helper()
	got, err := ca.Anchor(at(t0)).verify([]*x509.Certificate{c}, x509.ExtKeyUsageClientAuth)
	want.Cluster, want.Serial = ca.cluster, c.SerialNumber.Text(16)
	if err != nil || got != want {
		t.Errorf("identity %+v, %v; want %+v", got, err, want)
	}
	if len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) != 0 || len(c.URIs) != 1 || c.IsCA ||
		len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(c.Subject.Organization) != 0 {
		t.Errorf("more than was granted: %v %v %v %v", c.Subject, c.DNSNames, c.IPAddresses, c.URIs)
	}
}

func FuzzSignRequest(f *testing.F) {
	p := newPKI("c1", t0)
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	f.Add(request(must(NewKey())))
	f.Add(request(edKey))
	_, plain, _ := NewRequest()
	f.Add(plain)
	want := Identity{Role: RoleAgent, UID: "77", Name: "h7"}
	f.Fuzz(func(t *testing.T, csr []byte) {
		c, err := p.ca.SignRequest(csr, want, t0)
		if err != nil {
			if !errors.Is(err, ErrBadRequest) {
				t.Fatal(err)
			}
			return
		}
		checkGranted(t, p.ca, c, want)
		if !goodKey(c.PublicKey) {
			t.Fatalf("signed a %T", c.PublicKey)
		}
	})
}

func TestJoin(t *testing.T) {
	p, other := newPKI("c1", t0), newPKI("c1", t0)
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.ca.SignRequest(csr, Identity{Role: RoleAgent, UID: "77", Name: "h7"}, t0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLeaf(key, c.Raw, p.ca.Cert().Raw, p.ca.Pin())
	if err != nil {
		t.Fatal(err)
	}
	r := connect(t, ServerOptions{Anchor: p.ca.Anchor(at(t0)), Leaf: Fixed(p.manager)}, ClientConfig(must(l.Anchor(at(t0))), Fixed(l)))
	if r.client != nil || r.id.UID != "77" {
		t.Fatalf("client %v, identity %+v", r.client, r.id)
	}
	if _, err := NewLeaf(key, c.Raw, other.ca.Cert().Raw, p.ca.Pin()); !errors.Is(err, ErrWrongPin) {
		t.Errorf("another authority: %v", err)
	}
	if _, err := NewLeaf(key, c.Raw, other.ca.Cert().Raw, other.ca.Pin()); err == nil {
		t.Error("a certificate of another authority was taken")
	}
	if _, err := NewLeaf(must(NewKey()), c.Raw, p.ca.Cert().Raw, p.ca.Pin()); err == nil {
		t.Error("a certificate for another key was taken")
	}
	if _, err := NewLeaf(key, nil, p.ca.Cert().Raw, p.ca.Pin()); err == nil {
		t.Error("no certificate was taken")
	}
	if _, err := NewLeaf(key, c.Raw, nil, p.ca.Pin()); err == nil {
		t.Error("no authority was taken")
	}
	if _, err := NewAnchor(p.agent.Cert.Raw, at(t0)); err == nil {
		t.Error("a leaf was taken for an authority")
	}
}
