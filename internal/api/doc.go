// Package api is the API as values: resources read from documents and checked
// field by field, records rendered as resources, and refusals with their codes.
// The wire itself is in culvertv1, the connection in client.
//
// Everything here is pure: no clock, no file, no socket. The manager's core,
// the server and the command line share it, so a value is refused in the same
// words wherever it enters.
package api

import (
	"strconv"
	"unicode/utf8"

	"culvert/internal/overlay"
)

// Version is the value of apiVersion in every document.
const Version = "culvert/v1alpha1"

// DefaultTenant owns what names no tenant.
const DefaultTenant = "default"

// Limits of one request. They bound what a file can cost and fit one
// transaction of the store, since a file is applied whole or not at all.
const (
	MaxDocuments     = 1000
	MaxDocumentBytes = 4 << 20
)

// kinds orders the kinds as documents spell them.
var kinds = []struct {
	kind overlay.Kind
	name string
}{
	{overlay.KindTenant, "Tenant"},
	{overlay.KindDomain, "Domain"},
	{overlay.KindNetwork, "Network"},
	{overlay.KindPolicy, "NetworkPolicy"},
	{overlay.KindGateway, "Gateway"},
	{overlay.KindPort, "Port"},
	{overlay.KindHost, "Host"},
	{overlay.KindEndpoint, "Endpoint"},
}

// ParseKind reads a kind's noun in lower case, as requests spell it.
func ParseKind(field, s string) (overlay.Kind, error) {
	for _, k := range kinds {
		if k.kind.String() == s {
			return k.kind, nil
		}
	}
	return 0, &overlay.FieldError{Field: field, Value: s, Allowed: "tenant, domain, network, policy, gateway, port, host or endpoint"}
}

// KindName is the kind as documents spell it: "Network". Empty for a number
// that is no kind.
func KindName(k overlay.Kind) string {
	for _, e := range kinds {
		if e.kind == k {
			return e.name
		}
	}
	return ""
}

// laterKinds are the kinds that the format reserves, with what brings them.
var laterKinds = map[string]string{
	"SecurityPolicy":   "security policy",
	"Group":            "security policy",
	"EncryptionPolicy": "encryption",
	"ServiceChain":     "service chains",
	"Mirror":           "mirroring",
	"Site":             "several sites",
	"Token":            "access management; until then tokens are made by a verb",
	"Role":             "access management",
	"Event":            "the audit",
	"Audit":            "the audit",
}

// laterFields are fields that the format reserves, by kind and path.
var laterFields = map[string]string{
	"Tenant.spec.hosts":             "hosts of a tenant",
	"Network.spec.underlay":         "the IPv6 underlay",
	"Network.spec.encryption":       "encryption",
	"NetworkPolicy.spec.ports":      "policies by protocol and port",
	"NetworkPolicy.spec.protocol":   "policies by protocol and port",
	"NetworkPolicy.spec.encryption": "encryption",
	"Gateway.spec.l2":               "layer-2 gateways",
	"Port.spec.allowedAddresses":    "addresses that several ports share",
	"Port.spec.groups":              "security policy",
	"Port.spec.security":            "security policy",
	"Port.spec.qos":                 "quality of service",
	"Host.spec.vteps":               "several VTEPs a host",
	"Host.spec.drained":             "draining of hosts",
}

// quote shows a value on one line, shortened at a character boundary.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		n := most
		for n > 0 && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n] + "..."
	}
	return strconv.Quote(s)
}
