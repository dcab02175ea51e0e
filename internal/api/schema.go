package api

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// FieldInfo is one line of the description of a kind.
type FieldInfo struct {
	Path    string // "spec.subnets[].prefix"
	Type    string // "text", "number", "list of text", ...
	Meaning string // what may be written; empty for what the server writes
}

// meanings says what a user may write, by kind and path. A test compares it
// with the schema, both ways.
var meanings = map[string]string{
	"Tenant.spec.quotas.networks":         "networks it may own; default 1000",
	"Tenant.spec.quotas.ports":            "ports it may own; default 100000",
	"Tenant.spec.quotas.addressesPerPort": "addresses a port may have; default 16",
	"Network.spec.vni":                    "1 to 16777215, one network each; default allocated",
	"Network.spec.subnets[].prefix":       "like 10.20.0.0/24 or fd00:20::/64, without overlap",
	"Network.spec.subnets[].gateway":      "an address of the prefix; default the first",
	"Network.spec.mtu":                    "of the guests, 1280 to 65485 bytes; default what the underlay allows",
	"Network.spec.df":                     "don't-fragment of the outer header: set (default) or inherit",
	"Network.spec.hosts[]":                "hosts that may serve it; default all",
	"Network.spec.distribution":           "how much of it hosts know: push (default): all, or on-demand: what their guests ask for",
	"Network.spec.flood":                  "broadcast: her (default) or none",
	"Network.spec.admission":              "who may be in it: declared (default), learn or dhcp",
	"Network.spec.dhcp":                   "who tells guests their addresses: host (default), or own: servers among the guests",
	"Network.spec.dns[]":                  "servers that guests are told, the best first",
	"Network.spec.lease":                  "of addresses, 60 to 31536000 seconds; default 3600",
	"Network.spec.routes[].prefix":        "IPv4 prefix, like 10.30.0.0/16 or 0.0.0.0/0",
	"Network.spec.routes[].via":           "address of a guest in a subnet of the network",
	"Network.spec.foreignVteps[]":         "tunnel end points that no agent owns, with any MACs behind them; at most 32",
	"Network.spec.domain":                 "domain of the same tenant, or TENANT/NAME of one that lets it in; default none",
	"Domain.spec.tenants[]":               "another tenant, whose networks may be in it; at most 1",
	"Domain.spec.routes[].prefix":         "beyond its networks, like 10.30.0.0/16, fd00:30::/64 or 0.0.0.0/0",
	"Domain.spec.routes[].via":            "address of a declared port in a network of the domain",
	"NetworkPolicy.spec.domain":           "domain of the same tenant",
	"NetworkPolicy.spec.from":             "network of the domain; TENANT/NAME if it is another tenant's",
	"NetworkPolicy.spec.to":               "another network of the domain, ditto",
	"NetworkPolicy.spec.direction":        "who may send: both (default) or forward: from alone",
	"NetworkPolicy.spec.mode":             "routed (default) or bridged: joined by layer 2",
	"NetworkPolicy.spec.cast":             "unicast (default)",
	"Gateway.spec.domain":                 "domain of the same tenant",
	"Gateway.spec.hosts[]":                "hosts that may have it, in order of preference",
	"Gateway.spec.uplink.device":          "name of the hosts' device on the outside network",
	"Gateway.spec.uplink.addresses[]":     "the gateway's own outside, like 203.0.113.10/24",
	"Gateway.spec.uplink.nextHops[]":      "routers outside, at most one a family",
	"Gateway.spec.snat[]":                 "IPv4 addresses outside that guests send from; default the first own one",
	"Gateway.spec.floating[].address":     "outside, of one guest alone, both ways",
	"Gateway.spec.floating[].to":          "the guest's address",
	"Gateway.spec.forwards[].protocol":    "tcp or udp",
	"Gateway.spec.forwards[].address":     "outside; default the first own one",
	"Gateway.spec.forwards[].port":        "outside, 1 to 65535",
	"Gateway.spec.forwards[].to":          "the guest's address",
	"Gateway.spec.forwards[].toPort":      "the guest's; default as outside",
	"Gateway.spec.networks[]":             "networks of the domain that it serves; default all",
	"Port.spec.network":                   "network of the same tenant",
	"Port.spec.mac":                       "like 52:54:00:12:34:56; default allocated",
	"Port.spec.addresses[]":               "addresses in the network's subnets; default one a subnet is allocated",
	"Port.spec.vm":                        "name of the VM",
	"Port.spec.hosts[]":                   "hosts that it may appear on; default all of the network",
	"Port.spec.sharedAddresses[]":         "addresses that it may hold besides its own, as other ports may (VRRP); at most 8",
	"Port.spec.addressCheck":              "whether it may send from these addresses alone; default false",
}

var metaMeanings = map[string]string{
	"apiVersion":        Version,
	"kind":              "this kind",
	"metadata.name":     "1 to 40 of a-z, 0-9 and inner hyphens",
	"metadata.tenant":   "owner; default the tenant named default",
	"metadata.labels.*": "text for people",
	"metadata.revision": "of the last change; if given, refused unless it still is that one",
}

var examples = map[overlay.Kind]string{
	overlay.KindTenant:  "apiVersion: culvert/v1alpha1\nkind: Tenant\nmetadata:\n  name: acme\nspec:\n  quotas:\n    networks: 10\n",
	overlay.KindNetwork: "apiVersion: culvert/v1alpha1\nkind: Network\nmetadata:\n  name: blue\nspec:\n  subnets:\n  - prefix: 10.20.0.0/24\n",
	overlay.KindDomain:  "apiVersion: culvert/v1alpha1\nkind: Domain\nmetadata:\n  name: shop\n",
	overlay.KindPolicy:  "apiVersion: culvert/v1alpha1\nkind: NetworkPolicy\nmetadata:\n  name: web-db\nspec:\n  domain: shop\n  from: web\n  to: db\n  direction: forward\n",
	overlay.KindGateway: "apiVersion: culvert/v1alpha1\nkind: Gateway\nmetadata:\n  name: out\nspec:\n  domain: shop\n  hosts: [h1, h2]\n  uplink:\n    device: eth1\n    addresses: [203.0.113.10/24]\n    nextHops: [203.0.113.1]\n",
	overlay.KindPort:    "apiVersion: culvert/v1alpha1\nkind: Port\nmetadata:\n  name: vm1\nspec:\n  network: blue\n  addresses: [10.20.0.5]\n",
}

// Example is a small document of the kind; empty for kinds that are observed.
func Example(k overlay.Kind) string { return examples[k] }

func descriptor(k overlay.Kind) protoreflect.MessageDescriptor {
	fields := (&culvertv1.Resource{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if string(fields.Get(i).Message().Name()) == KindName(k) {
			return fields.Get(i).Message()
		}
	}
	return nil
}

// Fields describes every field of a kind, in the schema's order; nil for a
// number that is no kind.
func Fields(k overlay.Kind) []FieldInfo {
	var out []FieldInfo
	if m := descriptor(k); m != nil {
		walk(m, KindName(k), "", &out)
	}
	return out
}

func walk(m protoreflect.MessageDescriptor, kind, path string, out *[]FieldInfo) {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		at := join(path, f.JSONName())
		info := FieldInfo{Path: at, Type: typeName(f)}
		switch {
		case f.IsMap():
			info.Path += ".*"
		case f.IsList() && f.Message() != nil:
			walk(f.Message(), kind, at+"[]", out)
			continue
		case f.IsList():
			info.Path += "[]"
		case f.Message() != nil:
			walk(f.Message(), kind, at, out)
			continue
		}
		switch {
		case kind == "Tenant" && at == "metadata.tenant", strings.HasPrefix(at, "status."), at == "metadata.uid",
			kind == "Host", kind == "Endpoint":
			info.Meaning = "written by the server"
		case metaMeanings[info.Path] != "":
			info.Meaning = metaMeanings[info.Path]
		default:
			info.Meaning = meanings[kind+"."+info.Path]
		}
		if kind == "Tenant" && at == "metadata.tenant" {
			continue // a tenant has no owner
		}
		*out = append(*out, info)
	}
}

func typeName(f protoreflect.FieldDescriptor) string {
	switch f.Kind() {
	case protoreflect.StringKind, protoreflect.MessageKind: // a message here is the entry of a map of texts
		return "text"
	case protoreflect.BoolKind:
		return "true or false"
	}
	return "number"
}

// JSONSchema is the JSON Schema (draft 2020-12) of a kind's documents, as a
// value to encode. It says which fields there are and of what type; what values
// are allowed is for ParseResource.
func JSONSchema(k overlay.Kind) map[string]any {
	m := descriptor(k)
	if m == nil {
		return nil
	}
	s := objectSchema(m)
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = KindName(k)
	s["required"] = []string{"apiVersion", "kind", "metadata"}
	props := s["properties"].(map[string]any)
	props["apiVersion"] = map[string]any{"const": Version}
	props["kind"] = map[string]any{"const": KindName(k)}
	return s
}

func objectSchema(m protoreflect.MessageDescriptor) map[string]any {
	props := map[string]any{}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		var p map[string]any
		switch {
		case f.IsMap():
			p = map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}}
		case f.Message() != nil:
			p = objectSchema(f.Message())
		case f.Kind() == protoreflect.StringKind:
			p = map[string]any{"type": "string"}
		case f.Kind() == protoreflect.BoolKind:
			p = map[string]any{"type": "boolean"}
		case f.Kind() == protoreflect.DoubleKind:
			p = map[string]any{"type": "number"}
		default:
			p = map[string]any{"type": "integer", "minimum": 0}
		}
		if f.IsList() {
			p = map[string]any{"type": "array", "items": p}
		}
		props[f.JSONName()] = p
	}
	return map[string]any{"type": "object", "properties": props, "additionalProperties": false}
}
