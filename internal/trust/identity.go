package trust

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Role is what a certificate or token is for.
type Role uint8

// The roles. Their numbers are part of the token's format.
const (
	RoleAgent    Role = 1
	RoleManager  Role = 2
	RoleOperator Role = 3
)

var roleNames = [...]string{RoleAgent: "agent", RoleManager: "manager", RoleOperator: "operator"}

// Valid reports whether r is one of the roles.
func (r Role) Valid() bool { return r >= RoleAgent && r <= RoleOperator }

// String is the role's name, as ParseRole reads it.
func (r Role) String() string {
	if !r.Valid() {
		return fmt.Sprintf("role %d", uint8(r))
	}
	return roleNames[r]
}

// ParseRole reads what String prints.
func ParseRole(s string) (Role, error) {
	for r := RoleAgent; r <= RoleOperator; r++ {
		if s == roleNames[r] {
			return r, nil
		}
	}
	return 0, fmt.Errorf("role %s: want agent, manager or operator", quote(s))
}

// Identity is who a certificate speaks for.
type Identity struct {
	Cluster string
	Role    Role
	UID     string // of the host, manager or operator; made once
	Name    string // for people; may be empty
	Serial  string // of the certificate, hexadecimal
}

const (
	scheme    = "culvert"
	maxField  = 63 // of cluster and uid
	maxName   = 253
	fieldSet  = "abcdefghijklmnopqrstuvwxyz0123456789-"
	nameExtra = "ABCDEFGHIJKLMNOPQRSTUVWXYZ._@"
)

// uri is the one URI that makes a certificate this identity's.
func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: id.Cluster, Path: "/" + id.Role.String() + "/" + id.UID}
}

// check refuses what could not be told apart again in a URI or a log.
func (id Identity) check() error {
	if err := checkField("cluster id", id.Cluster, maxField, fieldSet); err != nil {
		return err
	}
	if !id.Role.Valid() {
		return fmt.Errorf("%v: want agent, manager or operator", id.Role)
	}
	if err := checkField("uid", id.UID, maxField, fieldSet); err != nil {
		return err
	}
	if id.Name == "" {
		return nil
	}
	return checkField("name", id.Name, maxName, fieldSet+nameExtra)
}

func checkField(what, v string, longest int, set string) error {
	if v == "" || len(v) > longest || strings.ContainsFunc(v, func(r rune) bool { return !strings.ContainsRune(set, r) }) {
		return fmt.Errorf("%s %s: want 1 to %d of %s", what, quote(v), longest, set)
	}
	return nil
}

// errNoIdentity: a certificate without exactly one well-formed URI of ours.
var errNoIdentity = errors.New("certificate carries no culvert identity")

// claimed is what a certificate says of itself. It proves nothing: the caller
// has verified it, or only wants to name it in a refusal.
func claimed(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 {
		return Identity{}, errNoIdentity
	}
	u := c.URIs[0]
	parts := strings.Split(u.Path, "/")
	if len(parts) != 3 || parts[0] != "" {
		return Identity{}, errNoIdentity
	}
	role, err := ParseRole(parts[1])
	if err != nil {
		return Identity{}, errNoIdentity
	}
	id := Identity{Cluster: u.Host, Role: role, UID: parts[2], Name: c.Subject.CommonName, Serial: fmt.Sprintf("%x", c.SerialNumber)}
	// The URI must be the very one that the identity makes: no query, user,
	// port, escape or other spelling is left over.
	if id.check() != nil || id.uri().String() != u.String() {
		return Identity{}, errNoIdentity
	}
	return id, nil
}

// quote makes a stranger's text fit for a message.
func quote(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return fmt.Sprintf("%q", s)
}
