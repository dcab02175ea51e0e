package trust

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// TestNothingShows: whatever holds a secret is printed in every way there is,
// and the secret's bytes must not be there in any spelling.
func TestNothingShows(t *testing.T) {
	p := newPKI("c1", t0)
	tok, _, err := NewToken(RoleAgent, t0, 1, "", p.ca.Pin(), "m1", 0)
	if err != nil {
		t.Fatal(err)
	}
	der, err := p.agent.Key.pkcs8()
	if err != nil {
		t.Fatal(err)
	}
	caDER, err := p.ca.key.pkcs8()
	if err != nil {
		t.Fatal(err)
	}
	// The private scalar of a P-256 key in PKCS #8 lies at a fixed place.
	canaries := [][]byte{tok.Secret.Bytes(), der[36:68], caDER[36:68]}
	type inner struct {
		secret Secret
		key    Key
	}
	for name, v := range map[string]any{
		"secret":            tok.Secret,
		"secret's pointer":  &tok.Secret,
		"key":               p.agent.Key,
		"key's pointer":     &p.agent.Key,
		"token":             tok,
		"token's pointer":   &tok,
		"tokens":            []Token{tok},
		"token by name":     map[string]Token{"a": tok},
		"authority":         p.ca,
		"authority's value": *p.ca,
		"leaf":              p.agent,
		"leaf's value":      *p.agent,
		"tls certificate":   p.agent.TLS(),
		"its value":         *p.agent.TLS(),
		"tls config":        []tls.Certificate{*p.agent.TLS()},
		"unexported":        inner{tok.Secret, p.agent.Key},
		"unexported below":  struct{ in *inner }{&inner{tok.Secret, p.agent.Key}},
		"any":               []any{tok.Secret, p.agent.Key},
		"zero":              []any{Secret{}, Key{}},
	} {
		var outs []string
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U"} {
			outs = append(outs, fmt.Sprintf(verb, v))
		}
		outs = append(outs, fmt.Sprint(v), fmt.Errorf("with %v", v).Error())
		if j, err := json.Marshal(v); err == nil {
			outs = append(outs, string(j))
		}
		var b bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			slog.New(h).Info("message", "v", v)
			slog.New(h).With("v", v).Info("message")
		}
		for _, out := range append(outs, b.String()) {
			for _, c := range canaries {
				if s := shows(out, c); s != "" {
					t.Errorf("%s shows a secret as %s: %.200s", name, s, out)
				}
			}
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %s %x", tok.Secret, tok.Secret, p.agent.Key, p.agent.Key, tok.Secret); s != strings.TrimSpace(strings.Repeat("[secret] ", 5)) {
		t.Errorf("a secret prints as %s", s)
	}
	if !strings.Contains(fmt.Sprintf("%+v", tok), tok.ID.String()) {
		t.Error("a token's id is no secret, and is missing")
	}
	// The test can fail: the same search finds what is not hidden.
	for _, open := range []any{tok.Secret.Bytes(), tok.Reveal(), fmt.Sprintf("%x", tok.Secret.Bytes()), fmt.Sprintf("%#v", tok.Secret.Bytes())} {
		if shows(fmt.Sprint(open), tok.Secret.Bytes()) == "" {
			t.Errorf("the search misses %v", open)
		}
	}
}

// shows names the spelling in which out holds secret; "" if none.
func shows(out string, secret []byte) string {
	part := secret[:12]
	if strings.Contains(out, string(part)) {
		return "bytes"
	}
	low := strings.ToLower(out)
	for _, s := range []string{fmt.Sprintf("%x", part), fmt.Sprintf("% x", part)} {
		if strings.Contains(low, s) {
			return "hexadecimal"
		}
	}
	for _, s := range []string{fmt.Sprint(part), fmt.Sprintf("%#v", part)} {
		s = strings.TrimPrefix(s, "[]byte")
		if strings.Contains(out, s[1:len(s)-1]) {
			return "list"
		}
	}
	// base64, wherever it begins in a longer text.
	for off := range 3 {
		enc := base64.RawStdEncoding.EncodeToString(part[off : off+9])
		url := base64.RawURLEncoding.EncodeToString(part[off : off+9])
		if strings.Contains(out, enc) || strings.Contains(out, url) {
			return "base64"
		}
	}
	if strings.Contains(low, hex.EncodeToString(part)) {
		return "hexadecimal"
	}
	return ""
}
