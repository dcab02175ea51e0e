package trust

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// CAFile is the name of the authority's file in its directory.
const CAFile = "ca.pem"

const (
	pemKey  = "PRIVATE KEY"
	pemCert = "CERTIFICATE"
	// maxFile bounds what is read; such a file has about 2 KiB.
	maxFile = 64 << 10
)

// ErrExposed: a file with a key in it can be read by others than its owner.
var ErrExposed = errors.New("key file is open to others than its owner")

// Save writes the authority to dir, made with mode 0700 if it is not there. Key
// and certificate are one file of mode 0600, so that it is replaced whole or
// not at all, power cut included.
func (ca *CA) Save(dir string) error {
	return saveFile(filepath.Join(dir, CAFile), ca.key, ca.cert)
}

// LoadCA reads what Save wrote. An error of a missing file is fs.ErrNotExist.
func LoadCA(dir string) (*CA, error) {
	path := filepath.Join(dir, CAFile)
	key, certs, err := loadFile(path, 1)
	if err != nil {
		return nil, err
	}
	cluster, err := clusterOf(certs[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := (&Leaf{Cert: certs[0], Key: key}).keyFits(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &CA{cluster: cluster, cert: certs[0], key: key, life: DefaultLeafLife}, nil
}

// Save writes key, certificate and the CA's certificate to path, as CA.Save.
func (l *Leaf) Save(path string) error { return saveFile(path, l.Key, l.Cert, l.CA) }

// LoadLeaf reads what Leaf.Save wrote, and checks that its parts belong to each
// other; not whether the certificate has expired.
func LoadLeaf(path string) (*Leaf, error) {
	key, certs, err := loadFile(path, 2)
	if err != nil {
		return nil, err
	}
	l := &Leaf{Cert: certs[0], CA: certs[1], Key: key}
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

func saveFile(path string, key Key, certs ...*x509.Certificate) error {
	der, err := key.pkcs8()
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: c.Raw})...)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of key: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // of mode 0600
	if err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write key file: %w", errors.Join(err, os.Remove(f.Name())))
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	return nil
}

// loadFile reads a key and just n certificates.
func loadFile(path string, n int) (Key, []*x509.Certificate, error) {
	f, err := os.Open(path)
	if err != nil {
		return Key{}, nil, fmt.Errorf("read key file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Key{}, nil, fmt.Errorf("read key file: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return Key{}, nil, fmt.Errorf("%w: %s has mode %04o, wanted 0600", ErrExposed, path, st.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return Key{}, nil, fmt.Errorf("read key file: %w", err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemKey {
		return Key{}, nil, fmt.Errorf("%s: no private key at its beginning", path)
	}
	key, err := parseKey(block.Bytes)
	if err != nil {
		return Key{}, nil, fmt.Errorf("%s: %w", path, err)
	}
	var certs []*x509.Certificate
	for block, rest = pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != pemCert {
			return Key{}, nil, fmt.Errorf("%s: holds a %s where a certificate belongs", path, quote(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return Key{}, nil, fmt.Errorf("%s: read certificate: %w", path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) != n {
		return Key{}, nil, fmt.Errorf("%s: holds %d certificates, wanted %d", path, len(certs), n)
	}
	return key, certs, nil
}
