package api

import (
	"errors"
	"strings"

	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// Refusal is the refusal of a request. It has the four parts that every error
// shown to a person must have: what was refused, why with the values, what to
// type, and a stable code (Codes lists them all). Rules, parsers and the
// manager return it; the wire carries it as an error detail.
//
// The zero value is not useful; use Refuse.
type Refusal struct {
	pb *culvertv1.Refusal
}

// Refuse makes a refusal. what has no stop ("network blue was not
// deleted"), why continues it after a colon with the
// values ("1 port uses it"), cure is what to type, items are dependants or an
// excerpt, a line each. An empty cure means the one that Codes has for code.
// A code that is not in Codes is a defect of the caller and panics, so that a
// test finds it and no user ever sees a code that nothing explains.
func Refuse(code Code, what, why, cure string, items ...string) *Refusal {
	info, ok := Lookup(code)
	if !ok {
		panic("refusal with code " + string(code) + " that the table does not have")
	}
	if cure == "" {
		cure = info.Cure
	}
	return &Refusal{pb: &culvertv1.Refusal{Code: string(code), What: what, Why: why, Cure: cure, Items: items}}
}

// RefusalFromPB is the refusal that came over the wire. A nil message gives
// nil. The code may be one of a newer release; Exit then is ExitRefused.
func RefusalFromPB(pb *culvertv1.Refusal) *Refusal {
	if pb == nil {
		return nil
	}
	return &Refusal{pb: pb}
}

// PB is the wire form; the caller must not change it.
func (r *Refusal) PB() *culvertv1.Refusal { return r.pb }

// Code is the stable code, like CV0142.
func (r *Refusal) Code() Code { return Code(r.pb.GetCode()) }

// Exit is the exit code of a command that ends with this refusal.
func (r *Refusal) Exit() Exit {
	if info, ok := Lookup(r.Code()); ok {
		return info.Exit
	}
	return ExitRefused
}

// Error is what, why and code on one line, for logs and wrapped errors.
func (r *Refusal) Error() string {
	return r.pb.GetWhat() + ": " + r.pb.GetWhy() + " (" + r.pb.GetCode() + ")"
}

// Text is the refusal as a person reads it: what and why in a sentence, the
// items indented, the cure, and the code on a line of its own. It ends with a
// newline.
func (r *Refusal) Text() string {
	var b strings.Builder
	b.WriteString(capital(r.pb.GetWhat()))
	if why := r.pb.GetWhy(); why != "" {
		b.WriteString(": " + strings.TrimSuffix(why, "."))
	}
	b.WriteString(".\n")
	for _, it := range r.pb.GetItems() {
		b.WriteString("  " + it + "\n")
	}
	if cure := r.pb.GetCure(); cure != "" {
		// Two spaces set off what to type, so that it can be picked with the mouse.
		b.WriteString(strings.Replace(capital(cure), ": culvert ", ":  culvert ", 1) + "\n")
	}
	b.WriteString("(" + r.pb.GetCode() + ")\n")
	return b.String()
}

// capital makes the first letter a capital, unless the word is something to
// type or the name of a file.
func capital(s string) string {
	word, _, _ := strings.Cut(s, " ")
	if s == "" || s[0] < 'a' || s[0] > 'z' || word == "culvert" || strings.ContainsAny(word, "./") {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}

// Is makes errors.Is(err, api.Refuse(...)) compare codes only.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Code() == r.Code()
}

// RefuseValue turns the refusal of a field, of a feature of a later release or
// of a place in a file into a Refusal; what says what was not done because of
// it. ok is false if err is none of these.
func RefuseValue(what string, err error) (ref *Refusal, ok bool) {
	var field *overlay.FieldError
	var later *LaterError
	var source *SourceError
	switch {
	case errors.As(err, &ref):
		return ref, true
	case errors.As(err, &source):
		return Refuse(source.Code, what, source.place()+": "+source.Problem, source.Allowed, source.Excerpt...), true
	case errors.As(err, &later):
		return Refuse(CodeLater, what, later.Error(), later.cure()), true
	case errors.As(err, &field):
		return Refuse(CodeField, what, field.Field+" is "+quote(field.Value), "Write "+field.Allowed+"."), true
	}
	return nil, false
}

// LaterError refuses what the format knows and this release does not do.
type LaterError struct {
	Field string // path in the document, or "kind"
	Value string // what was given; empty if the field as such is refused
	Use   string // what this release takes instead; may be empty
	With  string // what brings it, as the end of "it comes with ..."
}

// Error names the field and what brings it.
func (e *LaterError) Error() string {
	s := e.Field
	if e.Value != "" {
		s += " " + quote(e.Value)
	}
	return s + " is not in this release (it comes with " + e.With + ")"
}

func (e *LaterError) cure() string {
	if e.Use == "" {
		return "Leave " + e.Field + " out."
	}
	return "Write " + e.Use + "."
}
