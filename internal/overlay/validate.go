package overlay

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// FieldError is the refusal of one value of one field.
type FieldError struct {
	Field   string // path in the document, "spec.subnets[0].prefix"
	Value   string // what was given, shortened to what fits on a line
	Allowed string // what is allowed, as the end of "want ..."
}

// Error names field, value and what is allowed.
func (e *FieldError) Error() string {
	return fmt.Sprintf("%s is %s: want %s", e.Field, quote(e.Value), e.Allowed)
}

func quote(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strconv.Quote(s)
}

// MaxName is the length of the longest name, in bytes.
const MaxName = 40

// CheckName accepts a DNS label (RFC 1123: lower case letters, digits and
// inner hyphens) of at most MaxName bytes.
func CheckName(field, s string) error {
	ok := len(s) >= 1 && len(s) <= MaxName
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			ok = false
		}
	}
	if !ok {
		return &FieldError{field, s, "1 to 40 of a-z, 0-9 and inner hyphens"}
	}
	return nil
}

// ParseSubnet reads prefix and gateway of one subnet. An empty gateway means
// the first address of the prefix. The prefix must be written without host
// bits, so that what is stored is what was typed.
func ParseSubnet(field, prefix, gateway string) (Subnet, error) {
	p, err := netip.ParsePrefix(prefix)
	if err != nil || p.Addr().Is4In6() || p.Addr().Zone() != "" {
		return Subnet{}, &FieldError{field + ".prefix", prefix, "a prefix like 10.20.0.0/24 or fd00:20::/64"}
	}
	if p.Masked() != p {
		return Subnet{}, &FieldError{field + ".prefix", prefix, "no host bits: " + p.Masked().String()}
	}
	if p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsUnspecified() || p.Addr().IsLinkLocalUnicast() {
		return Subnet{}, &FieldError{field + ".prefix", prefix, "a unicast prefix that hosts may own"}
	}
	if p.Addr().Is4() && (p.Bits() < 8 || p.Bits() > 30) {
		return Subnet{}, &FieldError{field + ".prefix", prefix, "an IPv4 prefix of /8 to /30"}
	}
	if p.Addr().Is6() && (p.Bits() < 48 || p.Bits() > 126) {
		return Subnet{}, &FieldError{field + ".prefix", prefix, "an IPv6 prefix of /48 to /126"}
	}
	s := Subnet{Prefix: p, Gateway: p.Addr().Next()}
	if gateway != "" {
		g, err := netip.ParseAddr(gateway)
		if err != nil || !s.Usable(g) {
			return Subnet{}, &FieldError{field + ".gateway", gateway, "an address a host may have in " + p.String()}
		}
		s.Gateway = g
	}
	return s, nil
}

// Usable reports whether a is in the subnet and neither its network nor its
// IPv4 broadcast address (nor the IPv6 subnet-router anycast one, RFC 4291
// section 2.6.1). The gateway is usable.
func (s Subnet) Usable(a netip.Addr) bool {
	if !s.Prefix.Contains(a) || a == s.Prefix.Addr() || a.Zone() != "" {
		return false
	}
	return !a.Is4() || a != s.Last()
}

// Last is the highest address of the prefix (IPv4: the broadcast address).
func (s Subnet) Last() netip.Addr {
	b := s.Prefix.Addr().AsSlice()
	for i := s.Prefix.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// ParseAddr reads one address of a port: no zone, no IPv4-mapped form, no
// multicast or other address that a NIC cannot own.
func ParseAddr(field, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() || a.IsMulticast() || a.IsUnspecified() || a.IsLoopback() {
		return netip.Addr{}, &FieldError{field, s, "a unicast address like 10.20.0.5 or fd00:20::5"}
	}
	return a, nil
}

// ParseVNI reads a VNI as a decimal without sign or leading zero.
func ParseVNI(field, s string) (VNI, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || strings.HasPrefix(s, "0") || !VNI(n).Valid() {
		return 0, &FieldError{field, s, "a VNI from 1 to 16777215"}
	}
	return VNI(n), nil
}
