package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"google.golang.org/protobuf/reflect/protoreflect"

	"culvert/internal/api/culvertv1"
)

// EncodeJSON is the resource as one JSON object on one line: fields in the
// schema's order under their camel case names, numbers as numbers. In status
// every field of the schema is there, elsewhere only what is set. The encoder
// of protobuf itself is not used: it varies its white space on purpose and
// writes 64 bit numbers as text.
func EncodeJSON(r *culvertv1.Resource) []byte {
	var b bytes.Buffer
	if m := bodyOf(r); m != nil {
		encodeJSON(&b, m, false)
	} else {
		b.WriteString("null")
	}
	return b.Bytes()
}

// EncodeYAML is the resource as a YAML document that DecodeDocuments reads back
// to an equal one.
func EncodeYAML(r *culvertv1.Resource) []byte {
	var b bytes.Buffer
	if m := bodyOf(r); m != nil {
		encodeYAML(&b, m, "")
	}
	return b.Bytes()
}

func bodyOf(r *culvertv1.Resource) protoreflect.Message {
	var body protoreflect.Message
	r.ProtoReflect().Range(func(_ protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		body = v.Message() // there is one: all fields are of one oneof
		return false
	})
	return body
}

func encodeJSON(b *bytes.Buffer, m protoreflect.Message, all bool) {
	b.WriteByte('{')
	fields := m.Descriptor().Fields()
	comma := false
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) && (!all || (f.Message() != nil && !f.IsList())) {
			continue
		}
		if comma {
			b.WriteByte(',')
		}
		comma = true
		b.WriteString(jsonText(f.JSONName()) + ":")
		v := m.Get(f)
		switch {
		case f.IsMap():
			b.WriteByte('{')
			for j, k := range sortedKeys(v.Map()) {
				if j > 0 {
					b.WriteByte(',')
				}
				b.WriteString(jsonText(k) + ":" + jsonText(v.Map().Get(protoreflect.ValueOfString(k).MapKey()).String()))
			}
			b.WriteByte('}')
		case f.IsList():
			b.WriteByte('[')
			for j := range v.List().Len() {
				if j > 0 {
					b.WriteByte(',')
				}
				encodeJSONValue(b, f, v.List().Get(j), all)
			}
			b.WriteByte(']')
		default:
			encodeJSONValue(b, f, v, all || f.Name() == "status")
		}
	}
	b.WriteByte('}')
}

func encodeJSONValue(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value, all bool) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		encodeJSON(b, v.Message(), all)
	case protoreflect.StringKind:
		b.WriteString(jsonText(v.String()))
	case protoreflect.DoubleKind:
		b.WriteString(strconv.FormatFloat(v.Float(), 'f', -1, 64))
	default:
		fmt.Fprint(b, v.Interface())
	}
}

func jsonText(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return `""` // text always encodes
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func sortedKeys(m protoreflect.Map) []string {
	var keys []string
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k.String())
		return true
	})
	slices.Sort(keys)
	return keys
}

func encodeYAML(b *bytes.Buffer, m protoreflect.Message, indent string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			continue
		}
		v := m.Get(f)
		b.WriteString(indent + f.JSONName() + ":")
		switch {
		case f.IsMap():
			b.WriteByte('\n')
			for _, k := range sortedKeys(v.Map()) {
				val := v.Map().Get(protoreflect.ValueOfString(k).MapKey()).String()
				b.WriteString(indent + "  " + yamlText(k) + ": " + yamlText(val) + "\n")
			}
		case f.IsList():
			b.WriteByte('\n')
			for j := range v.List().Len() {
				if f.Message() == nil {
					b.WriteString(indent + "- " + yamlScalar(f, v.List().Get(j)) + "\n")
					continue
				}
				item := v.List().Get(j).Message()
				var inner bytes.Buffer
				encodeYAML(&inner, item, indent+"  ")
				if inner.Len() == 0 {
					b.WriteString(indent + "- {}\n")
					continue
				}
				b.WriteString(indent + "- " + inner.String()[len(indent)+2:])
			}
		case f.Message() != nil:
			var inner bytes.Buffer
			encodeYAML(&inner, v.Message(), indent+"  ")
			if inner.Len() == 0 {
				b.WriteString(" {}\n")
				continue
			}
			b.WriteByte('\n')
			b.Write(inner.Bytes())
		default:
			b.WriteString(" " + yamlScalar(f, v) + "\n")
		}
	}
}

func yamlScalar(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.StringKind:
		return yamlText(v.String())
	case protoreflect.DoubleKind:
		return strconv.FormatFloat(v.Float(), 'f', -1, 64)
	}
	return fmt.Sprint(v.Interface())
}

// yamlText writes a text so that every YAML reader, also one of version 1.1,
// takes it for text: plain only if it begins with a letter, has nothing but
// letters, digits and . _ - /, and is no word that some reader takes for a
// truth value or nothing.
func yamlText(s string) string {
	plain := s != "" && (s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z')
	for i := 0; plain && i < len(s); i++ {
		c := s[i]
		plain = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-/", c) >= 0
	}
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		plain = false
	}
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == ' ' || (unicode.IsPrint(r) && r != '\uFEFF'):
			b.WriteRune(r)
		case r <= 0xff:
			fmt.Fprintf(&b, `\x%02X`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			fmt.Fprintf(&b, `\U%08X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
