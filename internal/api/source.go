package api

import (
	"fmt"
	"strings"
)

// SourceError refuses a place in a document.
type SourceError struct {
	Code    Code   // CodeDocument, CodeField or CodeLater
	File    string // as it was given, "-" for standard input
	Line    int    // from 1
	Column  int    // from 1, in characters
	Problem string // what is there, "unknown field ..."
	Allowed string // what to type instead, a sentence; may be empty
	Excerpt []string
}

// Error is file:line:column and the problem.
func (e *SourceError) Error() string { return e.place() + ": " + e.Problem }

func (e *SourceError) place() string { return fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Column) }

// excerpt shows the line before, the line itself, and a mark below the column.
// Long lines are cut, tabs and control characters shown as spaces, so that the
// mark stands below what it means.
func excerpt(src string, line, column int) []string {
	const most = 100
	lines := strings.SplitN(src, "\n", line+1)
	if line < 1 || line > len(lines) {
		return nil
	}
	show := func(s string) string {
		var b strings.Builder
		n := 0
		for _, r := range s {
			if n++; n > most {
				b.WriteString("...")
				break
			}
			if r < ' ' || r == 0x7f {
				r = ' '
			}
			b.WriteRune(r)
		}
		return strings.TrimRight(b.String(), " ")
	}
	var out []string
	if line > 1 {
		out = append(out, strings.TrimRight(fmt.Sprintf("  %4d | %s", line-1, show(lines[line-2])), " "))
	}
	out = append(out, strings.TrimRight(fmt.Sprintf("> %4d | %s", line, show(lines[line-1])), " "))
	if column >= 1 && column <= most {
		out = append(out, strings.Repeat(" ", 8+column)+"^")
	}
	return out
}
