package trust

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestTokenRoundTrip(t *testing.T) {
	pin := newPKI("c1", t0).ca.Pin()
	for _, c := range []struct {
		host    string
		port    uint16
		text    string
		address string
	}{
		{"192.0.2.11", 0, "192.0.2.11", "192.0.2.11:7443"},
		{"192.0.2.11", 8443, "192.0.2.11:8443", "192.0.2.11:8443"},
		{"2001:db8::1", 0, "2001:db8::1", "[2001:db8::1]:7443"},
		{"2001:db8::1", 443, "[2001:db8::1]:443", "[2001:db8::1]:443"},
		{"m1.example.com", 0, "m1.example.com", "m1.example.com:7443"},
		{"m1", 65535, "m1:65535", "m1:65535"},
	} {
		tok, rec, err := NewToken(RoleAgent, t0.Add(time.Hour), 1, "", pin, c.host, c.port)
		if err != nil {
			t.Errorf("%s: %v", c.host, err)
			continue
		}
		s := tok.Reveal()
		if !strings.HasPrefix(s, "cv1.") || !strings.HasSuffix(s, "."+c.text) || tok.Address() != c.address {
			t.Errorf("%s: token %s, address %s", c.host, s, tok.Address())
		}
		got, err := ParseToken(s)
		if err != nil || !sameToken(got, tok) {
			t.Errorf("%s: parsed %+v, %v", s, got, err)
		}
		if err := rec.Check(got.Secret, RoleAgent, "h1", t0); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	a, _, _ := NewToken(RoleAgent, t0, 1, "", pin, "m1", 0)
	b, _, _ := NewToken(RoleAgent, t0, 1, "", pin, "m1", 0)
	if a.ID == b.ID || a.Secret.Equal(b.Secret) {
		t.Error("two tokens share id or secret")
	}
	for _, host := range []string{"", "a b", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1%eth0", "::ffff:192.0.2.1", "192.0.2", "192.0.2.300", "-a", "a..b", strings.Repeat("a.", 200) + "a", "a:b"} {
		if _, _, err := NewToken(RoleAgent, t0, 1, "", pin, host, 0); err == nil {
			t.Errorf("a token for manager %q", host)
		}
	}
	if _, _, err := NewToken(RoleAgent, t0, 0, "", pin, "m1", 0); err == nil {
		t.Error("a token of no use")
	}
	if _, _, err := NewToken(9, t0, 1, "", pin, "m1", 0); err == nil {
		t.Error("a token for no role")
	}
}

func sameToken(a, b Token) bool {
	same := a.Secret.Equal(b.Secret)
	a.Secret, b.Secret = Secret{}, Secret{}
	return same && fmt.Sprintf("%#v", a) == fmt.Sprintf("%#v", b)
}

func TestParseTokenRefuses(t *testing.T) {
	tok, _, err := NewToken(RoleAgent, t0, 1, "", Pin{1}, "192.0.2.11", 0)
	if err != nil {
		t.Fatal(err)
	}
	good := tok.Reveal()
	payload := strings.Split(good, ".")[1]
	role := func(b byte) string {
		raw, _ := base64.RawURLEncoding.DecodeString(payload)
		raw[0] = b
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {"", "begin with cv1."},
		"newer form":         {"cv2." + payload + ".192.0.2.11", "begin with cv1."},
		"other case":         {"CV1." + payload + ".192.0.2.11", "begin with cv1."},
		"no address":         {"cv1." + payload, "no address"},
		"empty address":      {"cv1." + payload + ".", "address"},
		"cut off":            {"cv1." + payload[:60] + ".192.0.2.11", "cut off"},
		"too long inside":    {"cv1." + payload + "AAAA.192.0.2.11", "cut off"},
		"the printed sample": {"cv1.Qm9uZSBpcyBub3QgYSB0b2tlbg.192.0.2.11", "cut off"},
		"padding":            {"cv1." + payload + "=.192.0.2.11", "cut off"},
		"other alphabet":     {"cv1.+" + payload[1:] + ".192.0.2.11", "cut off"},
		"newline inside":     {"cv1." + payload[:10] + "\n" + payload[10:] + ".192.0.2.11", "spelled"},
		"space after":        {good + " ", "address"},
		"newline after":      {good + "\n", "address"},
		"role 0":             {"cv1." + role(0) + ".192.0.2.11", "role 0"},
		"role 4":             {"cv1." + role(4) + ".192.0.2.11", "role 4"},
		"port 0":             {good + ":0", "port"},
		"port above":         {good + ":65536", "port"},
		"port with zero":     {good + ":07443", ""},
		"port missing":       {good + ":", "port"},
		"IPv6 other form":    {"cv1." + payload + ".[2001:DB8::1]:1", "spelled"},
		"IPv6 other form 2":  {"cv1." + payload + ".2001:db8:0::1", ""},
		"too long":           {"cv1." + payload + "." + strings.Repeat("a", 512), "at most 512"},
	} {
		got, err := ParseToken(c.text)
		if c.want == "" && err == nil && got.Reveal() == c.text {
			continue
		}
		if !errors.Is(err, ErrTokenForm) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		} else if strings.Contains(err.Error(), payload[12:34]) {
			t.Errorf("%s: the refusal shows the secret: %v", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	for _, a := range []string{"192.0.2.11", "192.0.2.11:1", "2001:db8::1", "[2001:db8::1]:7443", "m1.example:443", "a:", "[::]", "1.2.3"} {
		tok := Token{Role: RoleAgent, Secret: NewSecret(make([]byte, 16))}
		s := tok.Reveal()
		f.Add(s + a)
	}
	f.Add("cv1..")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrTokenForm) || len(err.Error()) > 400 {
				t.Fatalf("refusal %v", err)
			}
			return
		}
		if len(s) > MaxToken || tok.Reveal() != s {
			t.Fatalf("%q was taken, and is %q", s, tok.Reveal())
		}
		again, err := ParseToken(tok.Reveal())
		if err != nil || !sameToken(again, tok) {
			t.Fatalf("%q: %+v, then %+v, %v", s, tok, again, err)
		}
		if tok.Address() == "" || !tok.Role.Valid() {
			t.Fatalf("%+v", tok)
		}
	})
}

func TestTokenCheck(t *testing.T) {
	tok, rec, err := NewToken(RoleAgent, t0.Add(time.Hour), 2, "h1", Pin{1}, "m1", 0)
	if err != nil {
		t.Fatal(err)
	}
	used := rec
	used.Uses = 0
	anyHost := rec
	anyHost.Host = ""
	wrong := NewSecret(append([]byte{^tok.Secret.Bytes()[0]}, tok.Secret.Bytes()[1:]...))
	seen := map[string]bool{}
	for name, c := range map[string]struct {
		rec    *TokenRecord
		secret Secret
		role   Role
		host   string
		now    time.Time
		want   error
	}{
		"good":                    {&rec, tok.Secret, RoleAgent, "h1", t0, nil},
		"any host":                {&anyHost, tok.Secret, RoleAgent, "h9", t0, nil},
		"last moment":             {&rec, tok.Secret, RoleAgent, "h1", t0.Add(time.Hour - 1), nil},
		"unknown":                 {nil, tok.Secret, RoleAgent, "h1", t0, ErrTokenUnknown},
		"wrong secret":            {&rec, wrong, RoleAgent, "h1", t0, ErrTokenSecret},
		"no secret":               {&rec, Secret{}, RoleAgent, "h1", t0, ErrTokenSecret},
		"hash as secret":          {&rec, NewSecret(rec.Hash[:]), RoleAgent, "h1", t0, ErrTokenSecret},
		"expired":                 {&rec, tok.Secret, RoleAgent, "h1", t0.Add(time.Hour), ErrTokenExpired},
		"used up":                 {&used, tok.Secret, RoleAgent, "h1", t0, ErrTokenUsedUp},
		"wrong role":              {&rec, tok.Secret, RoleOperator, "h1", t0, ErrTokenWrongRole},
		"no role":                 {&rec, tok.Secret, 0, "h1", t0, ErrTokenWrongRole},
		"wrong host":              {&rec, tok.Secret, RoleAgent, "h2", t0, ErrTokenWrongHost},
		"secret before all else":  {&used, wrong, RoleOperator, "h2", t0.Add(time.Hour), ErrTokenSecret},
		"empty record, no secret": {&TokenRecord{}, Secret{}, 0, "", t0, ErrTokenSecret},
	} {
		err := c.rec.Check(c.secret, c.role, c.host, c.now)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if c.want != nil {
			if TokenReason(err) == "" {
				t.Errorf("%s: %v is counted under no reason", name, err)
			}
			seen[TokenReason(err)] = true
		}
	}
	if len(seen) != 6 {
		t.Errorf("six refusals are counted as %v", seen)
	}
}
