package api

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// text makes s fit for the wire: valid UTF-8, bounded, cut at a character.
func text(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= MaxStreamText {
		return s
	}
	n := MaxStreamText - len("...")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}

func lines(in []string) []string {
	var out []string
	for i, s := range in {
		if i == MaxReportLines-1 && len(in) > MaxReportLines {
			return append(out, "and "+strconv.Itoa(len(in)-i)+" more")
		}
		out = append(out, text(s))
	}
	return out
}
