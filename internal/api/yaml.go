package api

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits of one document's shape. Resources nest four deep; the limits keep
// a hostile file from costing the recursive parser its stack.
const (
	maxDepth  = 32
	maxColumn = 512 // of a key or list entry in block style: bounds its depth
)

// node is a document before it has a type, the same for YAML and JSON.
type node struct {
	kind      nodeKind
	text      string // scalar: what was typed, quotes and escapes resolved
	line, col int
	entries   []entry // mapNode
	items     []*node // listNode
}

type entry struct {
	key   *node // stringNode
	value *node
}

type nodeKind uint8

const (
	nullNode nodeKind = iota
	stringNode
	numberNode // text is exactly as typed
	boolNode
	mapNode
	listNode
)

func (k nodeKind) String() string {
	return [...]string{"nothing", "text", "a number", "true or false", "a mapping", "a list"}[k]
}

// source is one input file.
type source struct {
	name string
	text string
}

func (s *source) fail(line, col int, problem, allowed string) *SourceError {
	return &SourceError{Code: CodeDocument, File: s.name, Line: line, Column: col, Problem: problem, Allowed: allowed,
		Excerpt: excerpt(s.text, line, col)}
}

// yamlDocuments parses the documents of a YAML stream. Empty documents are
// left out.
//
// The stream is cut into documents here, at lines that begin with the marker,
// which YAML allows nowhere else (YAML 1.2 section 9.1.2), and each is parsed
// alone: the library drops what follows an empty document without a word.
func (s *source) yamlDocuments() ([]*node, error) {
	var docs []*node
	lines := strings.Split(s.text, "\n")
	start := 0
	for i := 0; i <= len(lines); i++ {
		marker := i < len(lines) && (marks(lines[i], "---") || marks(lines[i], "..."))
		if i < len(lines) && !marker {
			continue
		}
		if marker {
			if rest := strings.TrimLeft(lines[i][3:], " \t"); rest != "" && rest[0] != '#' {
				return nil, s.fail(i+1, 5, "a document on the line of its marker", "Begin it on the next line.")
			}
		}
		n, err := s.yamlDocument(strings.Join(lines[start:i], "\n"), start)
		if err != nil {
			return nil, err
		}
		if n != nil {
			if len(docs) == MaxDocuments {
				return nil, s.fail(n.line, n.col, fmt.Sprintf("more than %d documents", MaxDocuments), "Apply it in several files.")
			}
			docs = append(docs, n)
		}
		start = i + 1
	}
	return docs, nil
}

func marks(line, marker string) bool {
	rest, ok := strings.CutPrefix(line, marker)
	return ok && (rest == "" || rest[0] == ' ' || rest[0] == '\t')
}

// yamlDocument parses text, which begins after so many lines of the source.
// nil is an empty document.
func (s *source) yamlDocument(text string, after int) (n *node, err error) {
	y := &yamlReader{src: s, after: after}
	scalars, err := y.check(lexer.Tokenize(text))
	if err != nil || scalars < 0 {
		return nil, err
	}
	// The parser is third party code on hostile input: what it cannot digest is
	// a refused document, not the end of the manager.
	defer func() {
		if r := recover(); r != nil {
			n, err = nil, s.fail(after+1, 1, "a document that the YAML parser cannot read", "Write it in plain block style.")
		}
	}()
	file, err := parser.ParseBytes([]byte(text), 0)
	if err != nil {
		return nil, y.syntax(err)
	}
	for _, d := range file.Docs {
		if d.Body == nil {
			continue
		}
		if n != nil {
			return nil, y.failNode(d.Body, "a second document without a marker", "Write --- on a line of its own between documents.")
		}
		if n, err = y.convert(d.Body, 0); err != nil {
			return nil, err
		}
	}
	if y.scalars != scalars {
		// The parser has left something out. Whatever it was, the user meant it.
		return nil, s.fail(after+1, 1, "a document whose parts do not all belong together", "Check its indentation.")
	}
	return n, nil
}

type yamlReader struct {
	src     *source
	after   int // lines of the source before this document
	scalars int // keys and values converted
}

func (y *yamlReader) failToken(t *token.Token, problem, allowed string) error {
	if t == nil || t.Position == nil {
		return y.src.fail(y.after+1, 1, problem, allowed)
	}
	return y.src.fail(y.after+t.Position.Line, t.Position.Column, problem, allowed)
}

func (y *yamlReader) failNode(n ast.Node, problem, allowed string) error {
	return y.failToken(n.GetToken(), problem, allowed)
}

// check refuses, before the recursive parser sees it, what is nested too deep
// and what this format does without: anchors, aliases, merges, tags,
// directives. It returns how many scalars were written, or -1 if there is
// nothing but comments.
func (y *yamlReader) check(tokens token.Tokens) (int, error) {
	scalars, depth, any := 0, 0, false
	for _, t := range tokens {
		any = any || t.Type != token.CommentType
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return 0, y.failToken(t, "an anchor, alias or merge", "Write the value out; a text that begins with & or * goes in quotes.")
		case token.TagType:
			return 0, y.failToken(t, "a tag", "Leave it out; a text that begins with ! goes in quotes.")
		case token.DirectiveType:
			return 0, y.failToken(t, "a directive", "Leave it out.")
		case token.MappingKeyType:
			return 0, y.failToken(t, "a complex key", "Write KEY: VALUE.")
		case token.InvalidType:
			return 0, y.failToken(t, "not YAML: "+printable(t.Error), tabCure(t.Error))
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth = max(depth-1, 0)
		case token.SequenceEntryType, token.MappingValueType:
			if depth == 0 && t.Position != nil && t.Position.Column > maxColumn {
				return 0, y.failToken(t, fmt.Sprintf("a key or list entry beyond column %d", maxColumn), "Indent less.")
			}
		case token.StringType, token.SingleQuoteType, token.DoubleQuoteType, token.BoolType, token.NullType,
			token.IntegerType, token.BinaryIntegerType, token.OctetIntegerType, token.HexIntegerType, token.FloatType,
			token.InfinityType, token.NanType:
			scalars++
		}
		if depth > maxDepth {
			return 0, y.failToken(t, fmt.Sprintf("nested deeper than %d", maxDepth), "No field of a resource is that deep: culvert schema network")
		}
	}
	if !any {
		return -1, nil
	}
	return scalars, nil
}

func tabCure(problem string) string {
	if strings.Contains(problem, "'\t'") || strings.Contains(problem, "tab") {
		return "Indent with spaces, not with tabs."
	}
	return "Look for a missing quote, colon, bracket or space near it."
}

// syntax gives a parser's error our form and the position in the source.
func (y *yamlReader) syntax(err error) error {
	var e interface { // what the library's errors have in common
		error
		GetToken() *token.Token
		GetMessage() string
	}
	if !errors.As(err, &e) {
		return y.src.fail(y.after+1, 1, "not YAML: "+printable(err.Error()), tabCure(""))
	}
	problem := e.GetMessage()
	if strings.HasPrefix(problem, "mapping key ") && strings.Contains(problem, " already defined at ") {
		return y.failToken(e.GetToken(), fmt.Sprintf("key %s a second time", quote(e.GetToken().Value)), "Give each key once.")
	}
	return y.failToken(e.GetToken(), "not YAML: "+printable(problem), tabCure(problem))
}

func printable(s string) string {
	q := quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

func (y *yamlReader) convert(n ast.Node, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, y.failNode(n, fmt.Sprintf("nested deeper than %d", maxDepth), "No field of a resource is that deep: culvert schema network")
	}
	t := n.GetToken()
	out := &node{line: y.after + t.Position.Line, col: t.Position.Column}
	scalar := func(kind nodeKind, text string) (*node, error) {
		out.kind, out.text = kind, text
		y.scalars++
		if !utf8.ValidString(text) {
			return nil, y.failNode(n, "text that is not UTF-8", "Write it in UTF-8.")
		}
		return out, nil
	}
	switch n := n.(type) {
	case *ast.NullNode:
		if t.Type == token.ImplicitNullType {
			return out, nil // nothing was written, so nothing is counted
		}
		return scalar(nullNode, t.Value)
	case *ast.StringNode:
		return scalar(stringNode, n.Value)
	case *ast.LiteralNode:
		return scalar(stringNode, n.Value.Value)
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return scalar(numberNode, t.Value)
	case *ast.BoolNode:
		return scalar(boolNode, t.Value)
	case *ast.SequenceNode:
		out.kind = listNode
		for _, v := range n.Values {
			item, err := y.convert(v, depth+1)
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, item)
		}
		return out, nil
	case *ast.MappingNode:
		out.kind = mapNode
		for i, v := range n.Values {
			if err := y.entry(out, v, depth); err != nil {
				return nil, err
			}
			if i == 0 && t.Type == token.MappingValueType {
				out.line, out.col = out.entries[0].key.line, out.entries[0].key.col
			}
		}
		return out, nil
	case *ast.MappingValueNode:
		out.kind = mapNode
		if err := y.entry(out, n, depth); err != nil {
			return nil, err
		}
		out.line, out.col = out.entries[0].key.line, out.entries[0].key.col
		return out, nil
	}
	return nil, y.failNode(n, "a form of YAML that documents do without", "Write plain keys, values and lists.")
}

// entry adds one pair to a mapping. Keys are text: 010 or true as a key could
// mean two things.
func (y *yamlReader) entry(into *node, v *ast.MappingValueNode, depth int) error {
	key, err := y.convert(v.Key, depth+1)
	if err != nil {
		return err
	}
	if key.kind != stringNode {
		return y.failNode(v.Key, "a key that is "+key.kind.String(), "Write it in quotes.")
	}
	for _, e := range into.entries {
		if e.key.text == key.text {
			return y.failNode(v.Key, fmt.Sprintf("key %s a second time", quote(key.text)), "Give each key once.")
		}
	}
	value, err := y.convert(v.Value, depth+1)
	if err != nil {
		return err
	}
	into.entries = append(into.entries, entry{key, value})
	return nil
}
