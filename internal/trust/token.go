package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The form of a token:
//
//	cv1.<payload>.<address>
//
// payload is base64url without padding, of
//
//	1 byte   role
//	8 bytes  id, by which the manager finds its record
//	16 bytes secret
//	32 bytes pin of the CA, whole: 22 characters more than half of it, and
//	         nobody has to reason about what half is worth
//
// address is a manager's: an IPv4 or IPv6 address or a DNS name, and a port
// where it is not DefaultPort; an IPv6 address with a port stands in brackets.
const (
	tokenPrefix  = "cv1."
	tokenPayload = 1 + 8 + 16 + sha256.Size
	// MaxToken is the length in bytes that no token exceeds.
	MaxToken = 512
	// DefaultPort is the port of managers where none is said.
	DefaultPort = 7443
)

// ErrTokenForm: a text that is no token of a form known here.
var ErrTokenForm = errors.New("not a join token")

// TokenID finds a token's record. It is no secret.
type TokenID [8]byte

// String is the id in hexadecimal.
func (id TokenID) String() string { return hex.EncodeToString(id[:]) }

// Token is what `token create` prints and `join` takes. Only Reveal shows it.
type Token struct {
	Role   Role
	ID     TokenID
	Secret Secret // 16 bytes
	Pin    Pin
	Host   string // address or DNS name of a manager
	Port   uint16 // 0: DefaultPort
}

// Address is where the manager is, for net.Dial.
func (t Token) Address() string {
	port := t.Port
	if port == 0 {
		port = DefaultPort
	}
	return joinHostPort(t.Host, port)
}

// Reveal is the token's text, secret included.
func (t Token) Reveal() string {
	b := make([]byte, 0, tokenPayload)
	b = append(b, byte(t.Role))
	b = append(b, t.ID[:]...)
	b = append(b, t.Secret.Bytes()...)
	b = append(b, t.Pin[:]...)
	host := t.Host
	if t.Port != 0 {
		host = joinHostPort(t.Host, t.Port)
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b) + "." + host
}

func joinHostPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(port))
}

// ParseToken reads what Reveal prints, and nothing else: one token has one
// text. The error is ErrTokenForm with what is wrong; it repeats no part of the
// secret.
func ParseToken(s string) (Token, error) {
	form := func(what string) (Token, error) { return Token{}, fmt.Errorf("%w: %s", ErrTokenForm, what) }
	if len(s) > MaxToken {
		return form(fmt.Sprintf("%d bytes, at most %d", len(s), MaxToken))
	}
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return form("it does not begin with " + tokenPrefix)
	}
	payload, addr, ok := strings.Cut(rest, ".")
	if !ok {
		return form("it has no address at its end")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(payload)
	if err != nil || len(b) != tokenPayload {
		return form(fmt.Sprintf("its middle part has %d characters, wanted %d of base64url; was it cut off in copying?", len(payload), base64.RawURLEncoding.EncodedLen(tokenPayload)))
	}
	t := Token{Role: Role(b[0]), ID: TokenID(b[1:9]), Secret: NewSecret(b[9:25:25]), Pin: Pin(b[25:])}
	if !t.Role.Valid() {
		return form(fmt.Sprintf("it is for role %d, which is not known here", b[0]))
	}
	if t.Host, t.Port, err = splitAddress(addr); err != nil {
		return form(err.Error())
	}
	if t.Reveal() != s {
		return form("it is spelled otherwise than it was made")
	}
	return t, nil
}

// splitAddress takes an address of a token apart.
func splitAddress(s string) (host string, port uint16, err error) {
	host = s
	if ap, err := netip.ParseAddrPort(s); err == nil {
		host, port = ap.Addr().String(), ap.Port()
	} else if _, err := netip.ParseAddr(s); err != nil {
		if h, p, ok := strings.Cut(s, ":"); ok {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil {
				return "", 0, fmt.Errorf("address %s has no port in 1 to 65535", quote(s))
			}
			host, port = h, uint16(n)
		}
	}
	if host != s && port == 0 {
		return "", 0, fmt.Errorf("address %s has no port in 1 to 65535", quote(s))
	}
	return host, port, checkHost(host)
}

// checkHost refuses what cannot be a manager's place.
func checkHost(host string) error {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("address %s is no place to connect to from another machine", quote(host))
		}
		return nil
	}
	labels := strings.Split(host, ".")
	bad := len(host) > maxName
	for _, l := range labels {
		bad = bad || checkField("", strings.ToLower(l), maxField, fieldSet) != nil || l[0] == '-' || l[len(l)-1] == '-'
	}
	// A name whose last label is a number is a mistyped address (RFC 3696, 2).
	if _, err := strconv.ParseUint(labels[len(labels)-1], 10, 64); bad || err == nil {
		return fmt.Errorf("address %s is neither an IP address nor a DNS name", quote(host))
	}
	return nil
}

// Why a token does not open the door. Compare with errors.Is.
var (
	ErrTokenUnknown   = errors.New("token is not known")
	ErrTokenSecret    = errors.New("token's secret is wrong")
	ErrTokenExpired   = errors.New("token has expired")
	ErrTokenUsedUp    = errors.New("token is used up")
	ErrTokenWrongRole = errors.New("token is for another role")
	ErrTokenWrongHost = errors.New("token is for another host")
)

// TokenRecord is what a manager keeps of a token. It does not give the secret
// back. The secret has 128 random bits, so a plain hash is enough.
type TokenRecord struct {
	ID      TokenID
	Hash    [sha256.Size]byte // of the secret
	Role    Role
	Expires time.Time
	Uses    uint32 // left
	Host    string // the one host name that may use it; empty: any
}

// NewToken makes a token and its record. host is the manager's address, and
// forHost the one host name that may use the token (empty: any).
func NewToken(role Role, expires time.Time, uses uint32, forHost string, pin Pin, host string, port uint16) (Token, TokenRecord, error) {
	t := Token{Role: role, Pin: pin, Host: host, Port: port}
	if !role.Valid() {
		return Token{}, TokenRecord{}, fmt.Errorf("%v: want agent, manager or operator", role)
	}
	if uses == 0 {
		return Token{}, TokenRecord{}, errors.New("uses 0: want 1 or more")
	}
	secret := make([]byte, 16)
	rand.Read(secret) // never fails: crypto/rand
	rand.Read(t.ID[:])
	t.Secret = NewSecret(secret)
	if _, err := ParseToken(t.Reveal()); err != nil {
		return Token{}, TokenRecord{}, fmt.Errorf("token for manager %s: %w", quote(host), err)
	}
	return t, TokenRecord{ID: t.ID, Hash: sha256.Sum256(secret), Role: role, Expires: expires, Uses: uses, Host: forHost}, nil
}

// Check says whether a token's secret opens the door now, to role and on host;
// nil, or one of the errors above with the values. r is nil where no record has
// the id. Who does not know the secret learns nothing else of the token.
func (r *TokenRecord) Check(secret Secret, role Role, host string, now time.Time) error {
	var want [sha256.Size]byte
	if r != nil {
		want = r.Hash
	}
	got := sha256.Sum256(secret.Bytes())
	same := subtle.ConstantTimeCompare(got[:], want[:]) == 1
	switch {
	case r == nil:
		return ErrTokenUnknown
	case !same:
		return ErrTokenSecret
	case !now.Before(r.Expires):
		return fmt.Errorf("%w at %s; it is %s here", ErrTokenExpired, stamp(r.Expires), stamp(now))
	case r.Uses == 0:
		return ErrTokenUsedUp
	case r.Role != role:
		return fmt.Errorf("%w: it is for %v, not %v", ErrTokenWrongRole, r.Role, role)
	case r.Host != "" && r.Host != host:
		return fmt.Errorf("%w: it is for %s, not %s", ErrTokenWrongHost, quote(r.Host), quote(host))
	}
	return nil
}

// TokenReason is the word that a refusal of Check is counted under; "" where
// err is none.
func TokenReason(err error) string {
	for _, r := range []struct {
		err    error
		reason string
	}{
		{ErrTokenUnknown, "token-unknown"},
		{ErrTokenSecret, "token-secret"},
		{ErrTokenExpired, "token-expired"},
		{ErrTokenUsedUp, "token-used-up"},
		{ErrTokenWrongRole, "token-role"},
		{ErrTokenWrongHost, "token-host"},
	} {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return ""
}
