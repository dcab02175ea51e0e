package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[secret]"

// Secret is bytes that no formatting shows. They are behind a function because
// fmt walks unexported fields without calling their methods. A pointer would
// not do: fmt follows it where the verb does not suit it ("%s" of a pointer).
type Secret struct{ get func() []byte }

// NewSecret takes b over; the caller must not change it.
func NewSecret(b []byte) Secret { return Secret{func() []byte { return b }} }

// Bytes is the secret itself, for sending or hashing. nil of the zero Secret.
func (s Secret) Bytes() []byte {
	if s.get == nil {
		return nil
	}
	return s.get()
}

// Equal compares in constant time.
func (s Secret) Equal(o Secret) bool { return subtle.ConstantTimeCompare(s.Bytes(), o.Bytes()) == 1 }

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, for every verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and so serves encoding/json.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Key is a private key that no formatting shows. It signs (crypto.Signer), so
// that it can stand in a tls.Certificate and keep even that from showing it.
type Key struct{ get func() crypto.Signer }

var _ crypto.Signer = Key{}

// NewKey makes an ECDSA key on P-256.
//
// There is no source of randomness to pass: crypto/ecdsa takes none but the
// system's (since Go 1.26 its parameter is ignored).
func NewKey() (Key, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make key: %w", err)
	}
	return keyOf(k), nil
}

func keyOf(s crypto.Signer) Key { return Key{func() crypto.Signer { return s }} }

// parseKey reads PKCS #8, of the kinds of key that certificates are given for.
func parseKey(der []byte) (Key, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return Key{}, fmt.Errorf("read private key: %w", err)
	}
	s, ok := k.(crypto.Signer)
	if !ok || !goodKey(s.Public()) {
		return Key{}, fmt.Errorf("private key is neither ECDSA on P-256 nor Ed25519 (%T)", k)
	}
	return keyOf(s), nil
}

// goodKey: the two kinds of public key that the CA signs.
func goodKey(pub crypto.PublicKey) bool {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256()
	case ed25519.PublicKey:
		return true
	}
	return false
}

// pkcs8 is the key itself, for its file.
func (k Key) pkcs8() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(k.get()) }

// Public implements crypto.Signer; nil of the zero Key.
func (k Key) Public() crypto.PublicKey {
	if k.get == nil {
		return nil
	}
	return k.get().Public()
}

// Sign implements crypto.Signer.
func (k Key) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return k.get().Sign(r, digest, o)
}

// String implements fmt.Stringer.
func (Key) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Key) GoString() string { return redacted }

// Format implements fmt.Formatter, for every verb.
func (Key) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (Key) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and so serves encoding/json.
func (Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }
