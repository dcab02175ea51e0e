package api

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Document is one resource with the place of each of its fields in the file.
type Document struct {
	Resource *culvertv1.Resource
	src      *source
	top      *node
	places   map[string]*node // by path, "spec.subnets[0].prefix"
}

// DecodeDocuments reads the documents of a YAML or JSON stream, in order. name
// is the file's, for errors. It is strict: an unknown field, a key given twice,
// a value of another type, a number in a form that another reader would take
// for another number, all are refused with the place. Nothing is converted from
// one type to another.
//
// Errors are *SourceError. What is inside is not checked: see ParseResource.
func DecodeDocuments(name string, data []byte) ([]*Document, error) {
	s := &source{name: name, text: lineEnds.Replace(strings.TrimPrefix(string(data), "\uFEFF"))}
	if len(data) > MaxDocumentBytes {
		s.text = ""
		return nil, s.fail(1, 1, fmt.Sprintf("%d bytes", len(data)), fmt.Sprintf("Apply it in several files of at most %d bytes.", MaxDocumentBytes))
	}
	if at := invalidUTF8(s.text); at >= 0 {
		line := 1 + strings.Count(s.text[:at], "\n")
		col := 1 + utf8.RuneCountInString(s.text[strings.LastIndexByte(s.text[:at], '\n')+1:at])
		return nil, s.fail(line, col, "a byte that is not UTF-8", "Write the file in UTF-8.")
	}
	var nodes []*node
	var err error
	if t := strings.TrimLeft(s.text, " \t\n"); t != "" && (t[0] == '{' || t[0] == '[') {
		nodes, err = s.jsonDocuments()
	} else {
		nodes, err = s.yamlDocuments()
	}
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, s.fail(1, 1, "no document", "See what one looks like: culvert schema network")
	}
	var docs []*Document
	for _, n := range nodes {
		d := &Document{src: s, top: n, places: map[string]*node{}}
		if err := d.decode(); err != nil {
			return nil, err
		}
		docs = append(docs, d)
	}
	return docs, nil
}

// lineEnds makes every line break that YAML knows (YAML 1.2 section 5.4) the
// one that we count.
var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

func invalidUTF8(s string) int {
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// Locate gives the refusal of a value (see ParseResource) its place in the
// file. Any other error is returned as it is.
func (d *Document) Locate(err error) error {
	e := &SourceError{Code: CodeField}
	var path string
	switch err := err.(type) {
	case *overlay.FieldError:
		path, e.Problem, e.Allowed = err.Field, err.Field+" is "+quote(err.Value), "Write "+err.Allowed+"."
		if err.Value == "" {
			e.Problem = err.Field + " is missing"
		}
	case *LaterError:
		path, e.Code, e.Problem, e.Allowed = err.Field, CodeLater, err.Error(), err.cure()
	default:
		return err
	}
	n := d.top
	for p := path; p != ""; p = p[:max(strings.LastIndexAny(p, ".["), 0)] {
		if at, ok := d.places[p]; ok {
			n = at
			break
		}
	}
	e.File, e.Line, e.Column, e.Excerpt = d.src.name, n.line, n.col, excerpt(d.src.text, n.line, n.col)
	return e
}

func (d *Document) fail(n *node, problem, allowed string) error {
	return d.src.fail(n.line, n.col, problem, allowed)
}

func (d *Document) decode() error {
	if d.top.kind != mapNode {
		return d.fail(d.top, d.top.kind.String()+" where a document should be", "Begin it with apiVersion: "+Version)
	}
	for _, want := range []string{"apiVersion", "kind"} {
		n := d.top.get(want)
		switch {
		case n == nil:
			return d.fail(d.top, want+" is missing", map[string]string{
				"apiVersion": "Write apiVersion: " + Version, "kind": "Write kind: " + kindsAllowed}[want])
		case n.kind != stringNode:
			return d.fail(n, want+" is "+n.kind.String(), "Write text.")
		case want == "apiVersion" && n.text != Version:
			return d.fail(n, "apiVersion is "+quote(n.text), "Write apiVersion: "+Version)
		}
	}
	kind := d.top.get("kind")
	fields := (&culvertv1.Resource{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if string(f.Message().Name()) != kind.text {
			continue
		}
		d.Resource = &culvertv1.Resource{}
		m := d.Resource.ProtoReflect().Mutable(f).Message()
		return d.message(d.top, m, kind.text, "")
	}
	if with, ok := laterKinds[kind.text]; ok {
		e := &LaterError{Field: "kind", Value: kind.text, Use: kindsAllowed, With: with}
		d.places["kind"] = kind
		return d.Locate(e)
	}
	var names []string
	for _, k := range kinds {
		names = append(names, k.name)
	}
	return d.fail(kind, "kind is "+quote(kind.text)+nearest(kind.text, names), "Write kind: "+kindsAllowed)
}

func (n *node) get(key string) *node {
	for _, e := range n.entries {
		if e.key.text == key {
			return e.value
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (d *Document) message(n *node, m protoreflect.Message, kind, path string) error {
	if n.kind != mapNode {
		return d.fail(n, path+" is "+n.kind.String(), "Write a mapping of fields, or leave it out.")
	}
	fields := m.Descriptor().Fields()
	for _, e := range n.entries {
		at := join(path, e.key.text)
		f := fields.ByJSONName(e.key.text)
		if f == nil {
			return d.unknown(e.key, fields, kind, path)
		}
		d.places[at] = e.value
		if err := d.field(e.value, m, f, kind, at); err != nil {
			return err
		}
	}
	return nil
}

func (d *Document) unknown(key *node, fields protoreflect.FieldDescriptors, kind, path string) error {
	at := join(path, key.text)
	if with, ok := laterFields[kind+"."+at]; ok {
		d.places[at] = key
		return d.Locate(&LaterError{Field: at, With: with})
	}
	var names []string
	for i := range fields.Len() {
		names = append(names, fields.Get(i).JSONName())
	}
	where := kind
	if path != "" {
		where = path + " of " + kind
	}
	allowed := "There are no fields in " + where + ": leave it out."
	if len(names) > 0 {
		allowed = "Fields of " + where + ": " + strings.Join(names, ", ") + "."
	}
	return d.fail(key, "unknown field "+quote(key.text)+nearest(key.text, names), allowed)
}

func (d *Document) field(n *node, m protoreflect.Message, f protoreflect.FieldDescriptor, kind, path string) error {
	switch {
	case n.kind == nullNode:
		return d.fail(n, path+" has no value", "Give it one, or leave the line out.")
	case f.IsMap():
		return d.mapField(n, m.Mutable(f).Map(), path)
	case f.IsList():
		if n.kind != listNode {
			return d.fail(n, path+" is "+n.kind.String(), "Write a list.")
		}
		list := m.Mutable(f).List()
		for i, item := range n.items {
			at := path + "[" + strconv.Itoa(i) + "]"
			d.places[at] = item
			if f.Message() != nil {
				if err := d.message(item, list.AppendMutable().Message(), kind, at); err != nil {
					return err
				}
				continue
			}
			v, err := d.scalar(item, f, at)
			if err != nil {
				return err
			}
			list.Append(v)
		}
		return nil
	case f.Message() != nil:
		return d.message(n, m.Mutable(f).Message(), kind, path)
	}
	v, err := d.scalar(n, f, path)
	if err != nil {
		return err
	}
	if v.Equal(f.Default()) && (path == "spec" || strings.HasPrefix(path, "spec.")) {
		// An explicit zero would mean "the default" and not zero.
		return d.fail(n, path+" is "+shown(n), "Leave the line out to have the default.")
	}
	m.Set(f, v)
	return nil
}

func (d *Document) mapField(n *node, m protoreflect.Map, path string) error {
	if n.kind != mapNode {
		return d.fail(n, path+" is "+n.kind.String(), "Write a mapping of keys and values.")
	}
	for _, e := range n.entries {
		at := join(path, e.key.text)
		d.places[at] = e.value
		if e.value.kind != stringNode {
			return d.fail(e.value, at+" is "+shown(e.value), "Write text; in quotes: "+strconv.Quote(e.value.text))
		}
		m.Set(protoreflect.ValueOfString(e.key.text).MapKey(), protoreflect.ValueOfString(e.value.text))
	}
	return nil
}

func shown(n *node) string {
	switch n.kind {
	case numberNode, boolNode:
		return n.kind.String() + ", " + n.text
	case stringNode:
		return quote(n.text)
	}
	return n.kind.String()
}

func (d *Document) scalar(n *node, f protoreflect.FieldDescriptor, path string) (protoreflect.Value, error) {
	bad := func(allowed string) (protoreflect.Value, error) {
		return protoreflect.Value{}, d.fail(n, path+" is "+shown(n), allowed)
	}
	switch f.Kind() {
	case protoreflect.StringKind:
		switch n.kind {
		case stringNode:
			return protoreflect.ValueOfString(n.text), nil
		case numberNode, boolNode:
			return bad("Write text; in quotes: " + strconv.Quote(n.text))
		}
		return bad("Write text.")
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind:
		bits, most := 32, "4294967295"
		if f.Kind() == protoreflect.Uint64Kind {
			bits, most = 64, "18446744073709551615"
		}
		const plain = "Write a plain decimal number, without quotes, sign, leading zero or separator."
		if n.kind != numberNode {
			return bad(plain)
		}
		v, err := parseDecimal(n.text)
		if err != nil {
			return bad(plain)
		}
		if bits == 32 {
			if v > 1<<32-1 {
				return bad("Write a number of at most " + most + ".")
			}
			return protoreflect.ValueOfUint32(uint32(v)), nil
		}
		return protoreflect.ValueOfUint64(v), nil
	case protoreflect.DoubleKind:
		v, err := strconv.ParseFloat(n.text, 64)
		if n.kind != numberNode || err != nil || strings.ContainsAny(n.text, "xX_") || v-v != 0 {
			return bad("Write a decimal number.")
		}
		return protoreflect.ValueOfFloat64(v), nil
	case protoreflect.BoolKind:
		if n.kind != boolNode || (n.text != "true" && n.text != "false") {
			return bad("Write true or false.")
		}
		return protoreflect.ValueOfBool(n.text == "true"), nil
	}
	return bad("Leave it out: this release cannot read it.")
}

// nearest is "; nearest is ..." if a name is close enough to be what was meant.
func nearest(s string, names []string) string {
	best, dist := "", 3
	for _, n := range names {
		if d := distance(strings.ToLower(s), strings.ToLower(n)); d < dist || (d == dist && best != "" && n < best) {
			best, dist = n, d
		}
	}
	if best == "" || dist >= max(len(s), 2) {
		return ""
	}
	return "; nearest is " + quote(best)
}

// distance is the number of letters to insert, delete or replace
// (Levenshtein). Long strings are not looked at.
func distance(a, b string) int {
	if len(a) > 40 || len(b) > 40 {
		return 40
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost++
			}
			prev = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
