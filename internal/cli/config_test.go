package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert/internal/api"
)

func TestConfigurations(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name, config string
		code         api.Exit
		want         string
	}{
		{"missing", dir + "/none.json", 2, "there is no such file"},
		{"not JSON", write("a", "{"), 2, "unexpected EOF"},
		{"unknown field", write("b", `{"manager":"x"}`), 2, `unknown field "manager"`},
		{"nobody", write("c", `{"cluster":"x"}`), 2, "it names no manager and no socket"},
		{"bad address", write("d", `{"managers":["192.0.2.1"]}`), 2, `manager "192.0.2.1" is no address with port`},
		{"no CA", write("e", `{"managers":["192.0.2.1:7443"]}`), 2, "it names no ca"},
		{"CA missing", write("f", `{"managers":["192.0.2.1:7443"],"ca":"ca.pem","cert":"c.pem","key":"k.pem"}`), 2, "there is no such file"},
		{"nobody listens", write("g", `{"socket":"none.sock"}`), 3, "there is no such socket"},
	}
	for _, tt := range tests {
		m.config = tt.config
		_, e, code := m.run("status")
		if code != int(tt.code) || !strings.Contains(e, tt.want) || strings.Count(e, "\n") != 3 {
			t.Errorf("%s: exit code %d, want %d with %q\n%s", tt.name, code, tt.code, tt.want, e)
		}
	}
	m.config = ""
	m.want("status", 3, "", `
Nobody was asked: there is no /nonexistent/.config/culvert/config.json and no lab "default" runs.
Make a cluster:  culvert init. Or a lab: culvert lab up
(CV0012)
`)
}
