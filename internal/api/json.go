package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// jsonReader reads a stream of JSON values with the position of each. JSON is
// nearly YAML, but not quite: its escapes and its white space differ, so it
// gets a parser of its own.
type jsonReader struct {
	src  *source
	dec  *json.Decoder
	line int // position of off
	col  int
	off  int
}

func (s *source) jsonDocuments() ([]*node, error) {
	r := &jsonReader{src: s, dec: json.NewDecoder(bytes.NewReader([]byte(s.text))), line: 1, col: 1}
	r.dec.UseNumber()
	var docs []*node
	for {
		tok, err := r.token()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, err
		}
		n, err := r.value(tok, 0)
		if err != nil {
			return nil, err
		}
		if len(docs) == MaxDocuments {
			return nil, s.fail(n.line, n.col, fmt.Sprintf("more than %d documents", MaxDocuments), "Apply it in several files.")
		}
		docs = append(docs, n)
	}
}

// token takes the next token and moves the position to its first character.
func (r *jsonReader) token() (json.Token, error) {
	tok, err := r.dec.Token()
	if err == io.EOF {
		return nil, err
	}
	if err != nil {
		var syn *json.SyntaxError
		if errors.As(err, &syn) {
			// The offset is that of the fault or the one before it.
			at := max(int(syn.Offset)-1, r.off)
			for at < len(r.src.text) && bytes.IndexByte([]byte(" \t\r\n"), r.src.text[at]) >= 0 {
				at++
			}
			r.seek(at)
		} else {
			r.seek(len(r.src.text))
		}
		return nil, r.fail("not JSON: "+printable(err.Error()), "Look for a missing quote, comma or bracket near it.")
	}
	// InputOffset is the end of the token; its start is the first character
	// after the former end that is neither white space nor punctuation.
	start := r.off
	for start < len(r.src.text) && bytes.IndexByte([]byte(" \t\r\n,:"), r.src.text[start]) >= 0 {
		start++
	}
	r.seek(start)
	return tok, nil
}

// seek moves the position forward to byte off.
func (r *jsonReader) seek(off int) {
	for r.off < off && r.off < len(r.src.text) {
		if r.src.text[r.off] == '\n' {
			r.line, r.col = r.line+1, 0
		}
		_, size := utf8.DecodeRuneInString(r.src.text[r.off:])
		r.off += size
		r.col++
	}
}

func (r *jsonReader) fail(problem, allowed string) error {
	return r.src.fail(r.line, r.col, problem, allowed)
}

// value reads the value that begins with tok, at the present position.
func (r *jsonReader) value(tok json.Token, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, r.fail(fmt.Sprintf("nested deeper than %d", maxDepth), "No field of a resource is that deep: culvert schema network")
	}
	n := &node{line: r.line, col: r.col}
	end := int(r.dec.InputOffset())
	switch tok := tok.(type) {
	case nil:
		n.text = "null"
	case string:
		n.kind, n.text = stringNode, tok
	case json.Number:
		n.kind, n.text = numberNode, tok.String()
	case bool:
		n.kind, n.text = boolNode, fmt.Sprint(tok)
	case json.Delim:
		r.seek(end)
		if tok == '[' {
			n.kind = listNode
			return n, r.list(n, depth)
		}
		n.kind = mapNode
		return n, r.object(n, depth)
	}
	r.seek(end)
	return n, nil
}

func (r *jsonReader) list(n *node, depth int) error {
	for r.dec.More() {
		tok, err := r.inner()
		if err != nil {
			return err
		}
		item, err := r.value(tok, depth+1)
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
	}
	return r.close()
}

func (r *jsonReader) object(n *node, depth int) error {
	seen := map[string]bool{}
	for r.dec.More() {
		tok, err := r.inner()
		if err != nil {
			return err
		}
		key, err := r.value(tok, depth+1)
		if err != nil {
			return err
		}
		if seen[key.text] {
			return r.src.fail(key.line, key.col, fmt.Sprintf("key %s a second time", quote(key.text)), "Give each key once.")
		}
		seen[key.text] = true
		if tok, err = r.inner(); err != nil {
			return err
		}
		value, err := r.value(tok, depth+1)
		if err != nil {
			return err
		}
		n.entries = append(n.entries, entry{key, value})
	}
	return r.close()
}

// inner is token where the document may not end.
func (r *jsonReader) inner() (json.Token, error) {
	tok, err := r.token()
	if err == io.EOF {
		r.seek(len(r.src.text))
		return nil, r.fail("not JSON: the document ends too early", "Close what is open: } or ].")
	}
	return tok, err
}

func (r *jsonReader) close() error {
	if _, err := r.inner(); err != nil {
		return err
	}
	r.seek(int(r.dec.InputOffset()))
	return nil
}
