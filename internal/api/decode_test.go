package api

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"culvert/internal/overlay"
)

const portHead = "apiVersion: culvert/v1alpha1\nkind: Port\nmetadata: {name: vm1}\nspec:\n  network: blue\n"

const netHead = "apiVersion: culvert/v1alpha1\nkind: Network\nmetadata: {name: blue}\n"

func TestDecodeAccepts(t *testing.T) {
	src := `# two kinds, in one file
---
apiVersion: culvert/v1alpha1
kind: Tenant
metadata:
  name: no
  labels:
    tier: "1"
    on: yes
spec:
  quotas: {networks: 10}
---
# nothing here
---
---
apiVersion: culvert/v1alpha1
kind: Network
metadata:
  name: blue
  tenant: no
spec:
  vni: 10001
  subnets:
    - prefix: 10.20.0.0/24
    - {prefix: 'fd00:20::/64', gateway: "fd00:20::fe"}
  hosts: [h1, h2]
...
---
apiVersion: culvert/v1alpha1
kind: Port
metadata: {name: vm1}
spec:
  network: blue
  mac: 52:54:00:12:34:56
  addresses:
  - 10.20.0.5
  vm: |-
    web 1
`
	for _, eol := range []string{"\n", "\r\n"} {
		docs, err := DecodeDocuments("f.yaml", []byte(strings.ReplaceAll(src, "\n", eol)))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range docs {
			got = append(got, string(EncodeJSON(d.Resource)))
		}
		want := []string{
			`{"apiVersion":"culvert/v1alpha1","kind":"Tenant","metadata":{"name":"no","labels":{"on":"yes","tier":"1"}},"spec":{"quotas":{"networks":10}}}`,
			`{"apiVersion":"culvert/v1alpha1","kind":"Network","metadata":{"name":"blue","tenant":"no"},"spec":{"vni":10001,"subnets":[{"prefix":"10.20.0.0/24"},{"prefix":"fd00:20::/64","gateway":"fd00:20::fe"}],"hosts":["h1","h2"]}}`,
			`{"apiVersion":"culvert/v1alpha1","kind":"Port","metadata":{"name":"vm1"},"spec":{"network":"blue","mac":"52:54:00:12:34:56","addresses":["10.20.0.5"],"vm":"web 1"}}`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("eol %q: %s", eol, diff)
		}
		// The same as a stream of JSON values.
		again, err := DecodeDocuments("f.json", []byte(strings.Join(want, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		for i := range docs {
			if !proto.Equal(docs[i].Resource, again[i].Resource) {
				t.Errorf("document %d: YAML and JSON differ", i)
			}
		}
	}
}

// TestDecodeRefuses has a row for each way a document can be wrong, with the
// place that is shown.
func TestDecodeRefuses(t *testing.T) {
	tests := []struct{ name, src, want string }{
		{"empty", "", "1:1: no document"},
		{"only comments", "# nothing\n---\n", "1:1: no document"},
		{"list on top", "- a\n", "1:1: a list where a document should be"},
		{"text on top", "hello\n", "1:1: text where a document should be"},
		{"no apiVersion", "kind: Network\n", "1:1: apiVersion is missing"},
		{"no kind", "apiVersion: culvert/v1alpha1\n", "1:1: kind is missing"},
		{"other apiVersion", "apiVersion: v1\nkind: Network\n", `1:13: apiVersion is "v1"`},
		{"other kind", "apiVersion: culvert/v1alpha1\nkind: Netwrok\n", `2:7: kind is "Netwrok"; nearest is "Network"`},
		{"kind in lower case", "apiVersion: culvert/v1alpha1\nkind: port\n", `2:7: kind is "port"; nearest is "Port"`},
		{"kind is a number", "apiVersion: culvert/v1alpha1\nkind: 1\n", `2:7: kind is a number`},
		{"later kind", "apiVersion: culvert/v1alpha1\nkind: Site\n", `2:7: kind "Site" is not in this release (it comes with several sites)`},
		{"unknown field", netHead + "spec:\n  subnet: x\n", `5:3: unknown field "subnet"; nearest is "subnets"`},
		{"unknown field on top", netHead + "sepc: {}\n", `4:1: unknown field "sepc"; nearest is "spec"`},
		{"unknown field, nothing near", netHead + "spec: {colour: red}\n", `4:8: unknown field "colour"`},
		{"proto name is not the JSON name", "api_version: culvert/v1alpha1\nkind: Network\n", "1:1: apiVersion is missing"},
		{"later field", netHead + "spec:\n  encryption: on\n", `5:3: spec.encryption is not in this release (it comes with encryption)`},
		{"octal", netHead + "spec:\n  vni: 010\n", `5:8: spec.vni is a number, 010`},
		{"hexadecimal", netHead + "spec: {vni: 0x10}\n", `4:13: spec.vni is a number, 0x10`},
		{"separator", netHead + "spec: {vni: 10_000}\n", `4:13: spec.vni is a number, 10_000`},
		{"exponent", netHead + "spec: {vni: 1.0e3}\n", `4:13: spec.vni is a number, 1.0e3`},
		{"sign", netHead + "spec: {vni: +7}\n", `4:13: spec.vni is a number, +7`},
		{"negative", netHead + "spec: {vni: -7}\n", `4:13: spec.vni is a number, -7`},
		{"fraction", netHead + "spec: {mtu: 1450.0}\n", `4:13: spec.mtu is a number, 1450.0`},
		{"not finite", netHead + "spec: {mtu: .inf}\n", `4:13: spec.mtu is a number, .inf`},
		{"number too large", netHead + "spec: {vni: 4294967296}\n", `4:13: spec.vni is a number, 4294967296`},
		{"number in quotes", netHead + "spec: {vni: \"10\"}\n", `4:13: spec.vni is "10"`},
		{"explicit zero", netHead + "spec: {vni: 0}\n", `4:13: spec.vni is a number, 0`},
		{"truth value is a word", portHead + "  addressCheck: on\n", `6:17: spec.addressCheck is "on"`},
		{"truth value in quotes", portHead + "  addressCheck: \"true\"\n", `6:17: spec.addressCheck is "true"`},
		{"truth value is a number", portHead + "  addressCheck: 1\n", `6:17: spec.addressCheck is a number, 1`},
		{"explicit empty text", netHead + "spec: {flood: \"\"}\n", `4:15: spec.flood is ""`},
		{"name is a number", "apiVersion: culvert/v1alpha1\nkind: Network\nmetadata: {name: 10}\n", `3:18: metadata.name is a number, 10`},
		{"name is a truth value", "apiVersion: culvert/v1alpha1\nkind: Network\nmetadata: {name: true}\n", `3:18: metadata.name is true or false, true`},
		{"text is null", netHead + "spec: {flood: ~}\n", `4:15: spec.flood has no value`},
		{"spec is null", netHead + "spec:\n", `4:7: spec has no value`},
		{"spec is text", netHead + "spec: x\n", `4:7: spec is text`},
		{"list is text", netHead + "spec: {hosts: h1}\n", `4:15: spec.hosts is text`},
		{"list item is a mapping", netHead + "spec: {hosts: [{a: b}]}\n", `4:16: spec.hosts[0] is a mapping`},
		{"subnet is text", netHead + "spec: {subnets: [10.0.0.0/8]}\n", `4:18: spec.subnets[0] is text`},
		{"label is a number", "apiVersion: culvert/v1alpha1\nkind: Network\nmetadata: {name: a, labels: {tier: 1}}\n", `3:36: metadata.labels.tier is a number, 1`},
		{"labels are a list", "apiVersion: culvert/v1alpha1\nkind: Network\nmetadata: {name: a, labels: [x]}\n", `3:29: metadata.labels is a list`},
		{"key twice", netHead + "spec:\n  vni: 5\n  mtu: 1400\n  vni: 6\n", `7:3: key "vni" a second time`},
		{"key twice in flow", netHead + "spec: {vni: 5, vni: 6}\n", `4:16: key "vni" a second time`},
		{"key twice, once in quotes", netHead + "spec:\n  vni: 5\n  \"vni\": 6\n", `6:3: key "vni" a second time`},
		{"key is a number", netHead + "spec: {1: 2}\n", `4:8: a key that is a number`},
		{"tab", netHead + "spec:\n\tvni: 5\n", `5:1: not YAML: found character '\t' that cannot start any token`},
		{"anchor", netHead + "spec: &a {vni: 5}\n", `4:7: an anchor, alias or merge`},
		{"alias", netHead + "spec: {flood: *a}\n", `4:15: an anchor, alias or merge`},
		{"merge", netHead + "spec:\n  <<: {vni: 5}\n", `5:3: an anchor, alias or merge`},
		{"tag", netHead + "spec: {flood: !!str her}\n", `4:15: a tag`},
		{"directive", "%YAML 1.1\n---\n" + netHead, `1:1: a directive`},
		{"complex key", netHead + "? spec\n: {}\n", `4:1: a complex key`},
		{"open quote", netHead + "spec: {flood: \"her}\n", `4:15: not YAML: could not find end character of double-quoted text`},
		{"open brace", netHead + "spec: {flood: her\n", `4:7: not YAML: `},
		{"on the marker's line", "--- {a: b}\n", `1:5: a document on the line of its marker`},
		{"not UTF-8", "apiVersion: culvert/v1alpha1\nkind: Net\xffwork\n", `2:10: a byte that is not UTF-8`},
		{"second document has the fault", netHead + "---\n" + netHead + "spec: {vni: 0x5}\n", `8:13: spec.vni is a number, 0x5`},
		{"too deep in flow", netHead + "spec: " + strings.Repeat("[", 100_000), `4:39: nested deeper than 32`},
		{"too deep in block", netHead + strings.Repeat("- ", 100_000) + "x\n", `4:513: a key or list entry beyond column 512`},
		{"deep", netHead + "spec: " + strings.Repeat("[", 31) + strings.Repeat("]", 31) + "\n", `4:7: spec is a list`},
		{"JSON syntax", `{"apiVersion": "culvert/v1alpha1",` + "\n" + ` "kind" "Network"}`, `2:9: not JSON: invalid character '"' after object key`},
		{"JSON cut off", `{"apiVersion": "culvert/v1alpha1"`, `1:34: not JSON: `},
		{"JSON key twice", `{"apiVersion": "culvert/v1alpha1",` + "\n" + `"kind": "Network", "kind": "Port"}`, `2:20: key "kind" a second time`},
		{"JSON list", `[]`, `1:1: a list where a document should be`},
		{"JSON unknown field", `{"apiVersion":"culvert/v1alpha1","kind":"Network",` + "\n" + `  "spec":{"ünï":"ü", "vni":7}}`, `2:11: unknown field "ünï"`},
		{"JSON number", `{"apiVersion":"culvert/v1alpha1","kind":"Network",` + "\n" + `  "spec":{"vni":1e3}}`, `2:17: spec.vni is a number, 1e3`},
		{"JSON null", `{"apiVersion":"culvert/v1alpha1","kind":"Network","spec":null}`, `1:58: spec has no value`},
		{"JSON too deep", strings.Repeat("[", 10_000), `1:34: nested deeper than 32`},
		{"JSON rest", `{"apiVersion":"culvert/v1alpha1","kind":"Network"} x`, `1:52: not JSON: `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := DecodeDocuments("f", []byte(tt.src))
			var src *SourceError
			if !errors.As(err, &src) {
				t.Fatalf("got %d documents and error %v, want a source error", len(docs), err)
			}
			if !strings.HasPrefix(err.Error(), "f:"+tt.want) {
				t.Errorf("got  %s\nwant f:%s", err, tt.want)
			}
			ref, ok := RefuseValue("f was not applied", err)
			if !ok || ref.PB().GetCure() == "" {
				t.Errorf("%v makes no whole refusal", err)
			}
		})
	}
}

func TestDecodeBounds(t *testing.T) {
	many := strings.Repeat("---\n"+netHead, MaxDocuments+1)
	if _, err := DecodeDocuments("f", []byte(many)); err == nil || !strings.Contains(err.Error(), "more than 1000 documents") {
		t.Errorf("error %v, want too many documents", err)
	}
	if docs, err := DecodeDocuments("f", []byte(strings.Repeat("---\n"+netHead, MaxDocuments))); err != nil || len(docs) != MaxDocuments {
		t.Errorf("%d documents, error %v", len(docs), err)
	}
	if _, err := DecodeDocuments("f", make([]byte, MaxDocumentBytes+1)); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("error %v, want too many bytes", err)
	}
}

func TestExcerpt(t *testing.T) {
	_, err := DecodeDocuments("net.yaml", []byte(netHead+"spec:\n  vni: 7\n  subnet: 10.20.0.0/24\n"))
	ref, ok := RefuseValue("net.yaml was not applied", err)
	if !ok {
		t.Fatal(err)
	}
	want := `net.yaml was not applied: net.yaml:6:3: unknown field "subnet"; nearest is "subnets".
       5 |   vni: 7
  >    6 |   subnet: 10.20.0.0/24
             ^
Fields of spec of Network: vni, subnets, mtu, df, hosts, distribution, flood, admission, dhcp, dns, lease, routes, foreignVteps, domain.
(CV0002)
`
	if diff := cmp.Diff(want, ref.Text()); diff != "" {
		t.Error(diff)
	}
}

func TestLocate(t *testing.T) {
	src := netHead + "spec:\n  subnets:\n  - prefix: 10.0.0.0/24\n  - prefix: 10.0.0.5/24\n  flood: multicast\n"
	docs, err := DecodeDocuments("f", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		err  error
		want string
	}{
		{&overlay.FieldError{Field: "spec.subnets[1].prefix", Value: "10.0.0.5/24", Allowed: "x"}, `f:7:13: spec.subnets[1].prefix is "10.0.0.5/24"`},
		{&overlay.FieldError{Field: "spec.subnets[1].gateway", Value: "", Allowed: "x"}, `f:7:5: spec.subnets[1].gateway is missing`},
		{&overlay.FieldError{Field: "spec.network", Value: "", Allowed: "x"}, `f:5:3: spec.network is missing`},
		{&overlay.FieldError{Field: "other", Value: "v", Allowed: "x"}, `f:1:1: other is "v"`},
		{&LaterError{Field: "spec.flood", Value: "multicast", Use: "her", With: "y"}, `f:8:10: spec.flood "multicast" is not in this release (it comes with y)`},
		{fmt.Errorf("other"), "other"},
	}
	for _, tt := range tests {
		if got := docs[0].Locate(tt.err).Error(); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// FuzzDecode: nothing panics, an error has a place inside the file, and what is
// accepted reads back equal from both renderings.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(netHead + "spec:\n  vni: 7\n  subnets:\n  - prefix: 10.0.0.0/8\n"))
	f.Add([]byte("---\n" + netHead + "...\n---\napiVersion: culvert/v1alpha1\nkind: Port\nmetadata: {name: \"a\\U0001F600\\x85\", labels: {\"\": \"\\0\"}}\nspec: {network: x, addresses: [1.2.3.4], vm: 'a''b'}\n"))
	f.Add([]byte(`{"apiVersion":"culvert/v1alpha1","kind":"Host","metadata":{"name":"\ud83d\ude00\u0000\u2028"},"spec":{},"status":{"evidenceAgeSeconds":1.5,"repairs":18446744073709551615,"problems":["a"]}}`))
	f.Add([]byte("apiVersion: culvert/v1alpha1\nkind: Tenant\nspec:\n  quotas:\n    networks: 1\nmetadata:\n  name: >-\n    folded\n    text\n  labels: {}\n"))
	f.Add([]byte(netHead + "spec: {hosts: [a,\n b], subnets: [{}]}\n"))
	f.Add([]byte(policyHead + "  direction: forward\n---\napiVersion: culvert/v1alpha1\nkind: Domain\nmetadata: {name: shop}\nspec: {}\nstatus: {networks: [web]}\n"))
	f.Add([]byte("\r0"))
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := DecodeDocuments("f", data)
		if err != nil {
			var src *SourceError
			if !errors.As(err, &src) || src.Line < 1 || src.Column < 1 || src.Line > 1+strings.Count(lineEnds.Replace(string(data)), "\n") {
				t.Fatalf("error without a place in the file: %v", err)
			}
			return
		}
		for _, d := range docs {
			for _, text := range [][]byte{EncodeYAML(d.Resource), EncodeJSON(d.Resource)} {
				again, err := DecodeDocuments("again", text)
				if err != nil {
					t.Fatalf("rendering is refused: %v\n%s", err, text)
				}
				if len(again) != 1 || !proto.Equal(again[0].Resource, d.Resource) {
					t.Fatalf("rendering reads back as another resource:\n%s", text)
				}
			}
			if doc, err := ParseResource(d.Resource); err == nil && (doc.Kind == 0 || doc.Name == "") {
				t.Fatalf("checked document without kind or name: %+v", doc)
			}
		}
	})
}
