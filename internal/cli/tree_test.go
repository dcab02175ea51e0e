package cli

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"culvert/internal/api"
)

func testRoot() *cobra.Command {
	return Root(&Env{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}, Stdin: strings.NewReader(""), Now: time.Now, Getenv: func(string) string { return "" }})
}

func walk(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		walk(sub, f)
	}
}

// typed is a command as a text tells people to type it: at the start, or after
// a colon, a comma or sudo.
var typed = regexp.MustCompile(`(?:^ *|[:,] +|sudo |\$\()culvert ([a-z][a-z-]*(?: [^\s]+)*)`)

// formats are first words of formats and names that begin with "culvert" and
// are no commands.
var formats = map[string]bool{"cluster": true, "store": true}

// checkTyped returns what is wrong with a command in a text: a verb or a flag
// that does not exist. Arguments are not looked at.
func checkTyped(root *cobra.Command, words []string) error {
	c, rest, err := root.Find(words[:1])
	if err != nil || c == root {
		return fmt.Errorf("no command %q", words[0])
	}
	_ = rest
	for i, w := range words[1:] {
		w = strings.TrimRight(w, ".,;:)'\"`")
		switch {
		case w == "--":
			return nil
		case w == "-":
		case strings.HasPrefix(w, "-"):
			name := strings.TrimLeft(w, "-")
			name, _, _ = strings.Cut(name, "=")
			find := func(f *pflag.FlagSet) bool {
				return f.Lookup(name) != nil || len(name) == 1 && f.ShorthandLookup(name) != nil
			}
			if name != "help" && !find(c.Flags()) && !find(c.InheritedFlags()) && !find(c.PersistentFlags()) {
				return fmt.Errorf("%s has no flag %s", c.CommandPath(), w)
			}
		case c.HasSubCommands() && regexp.MustCompile(`^[a-z-]+$`).MatchString(w):
			sub, _, err := c.Find([]string{w})
			if err != nil || sub == c {
				return fmt.Errorf("%s has no verb %q", c.CommandPath(), w)
			}
			c = sub
		case c.HasSubCommands() && i == 0 && w != "":
			return nil // a format verb or a placeholder: not known here
		}
	}
	return nil
}

// texts are the string literals of a file, with concatenations put together;
// what is no literal stands as X.
func texts(f *ast.File) []string {
	var out []string
	var flat func(ast.Expr) (string, bool)
	flat = func(e ast.Expr) (string, bool) {
		switch e := e.(type) {
		case *ast.BasicLit:
			if e.Kind == token.STRING {
				s, err := strconv.Unquote(e.Value)
				return s, err == nil
			}
		case *ast.BinaryExpr:
			if e.Op == token.ADD {
				a, oka := flat(e.X)
				b, okb := flat(e.Y)
				if oka || okb {
					return a + b, true
				}
			}
		}
		return "X", false
	}
	ast.Inspect(f, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		if s, ok := flat(e); ok {
			out = append(out, s)
			return false
		}
		return true
	})
	return out
}

// TestPrintedCommandsExist reads every text in the product's source: a command
// that does not exist is never told to anybody.
func TestPrintedCommandsExist(t *testing.T) {
	root := testRoot()
	seen := 0
	for _, dir := range []string{"../../internal", "../../cmd"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			for _, text := range texts(file) {
				for _, line := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune("\n;|(", r) }) {
					m := typed.FindStringSubmatch(line)
					if m == nil || formats[strings.FieldsFunc(m[1], func(r rune) bool { return r == ' ' || r == '=' })[0]] {
						continue
					}
					seen++
					if err := checkTyped(root, strings.Fields(m[1])); err != nil {
						t.Errorf("%s: %v in %q", path, err, line)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, info := range api.Codes {
		if m := typed.FindStringSubmatch(info.Cure); m != nil {
			if err := checkTyped(root, strings.Fields(m[1])); err != nil {
				t.Errorf("cure of %s: %v", info.Code, err)
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d commands found in texts: the search is broken", seen)
	}
}

func TestPrintedCommandsExistFindsViolations(t *testing.T) {
	root := testRoot()
	for _, bad := range []string{"nework list", "network lst", "network delete blue --with-port", "port create p --netwrok n", "explain code CV0142", "manager start"} {
		if checkTyped(root, strings.Fields(bad)) == nil {
			t.Errorf("culvert %s was taken for a command", bad)
		}
	}
	for _, good := range []string{"network delete blue --with-ports", "token create --role agent --uses 20", "apply -f -", "X list", "status"} {
		if err := checkTyped(root, strings.Fields(good)); err != nil && good != "X list" {
			t.Errorf("culvert %s: %v", good, err)
		}
	}
}

// TestHelp: every command says what it does and shows how, and what it shows
// exists.
func TestHelp(t *testing.T) {
	root := testRoot()
	walk(root, func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s: no help or no example", c.CommandPath())
		}
		if c.RunE == nil || c.Run != nil {
			t.Errorf("%s: errors would not reach the exit code", c.CommandPath())
		}
		for _, line := range strings.Split(c.Example, "\n") {
			m := typed.FindStringSubmatch(strings.SplitN(line, " | ", 2)[0])
			if m == nil {
				t.Errorf("%s: example %q is no command", c.CommandPath(), line)
				continue
			}
			if err := checkTyped(root, strings.Fields(m[1])); err != nil {
				t.Errorf("%s: %v", c.CommandPath(), err)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s: no help", c.CommandPath(), f.Name)
			}
		})
	})
}

// TestUsage has a row for every way a command line can be wrong: exit code and
// what is said.
func TestUsage(t *testing.T) {
	m := newMachine(t)
	m.ok("network create blue --subnet 10.20.0.0/24")
	m.ok("port create vm1 --network blue")
	tests := []struct {
		line string
		code api.Exit
		want string // in the error
	}{
		{"nework list", 2, `culvert has no verb "nework"; nearest is network`},
		{"network lst", 2, `culvert network has no verb "lst"; nearest is list`},
		{"network create", 2, "NAME is missing"},
		{"network create a b", 2, `"b" is one argument too many`},
		{"network create Blue", 2, `NAME is "Blue"`},
		{"network create blue-", 2, `NAME is "blue-"`},
		{"network create a/b/c", 2, `NAME is "b/c"`},
		{"network create X/b", 2, `tenant of NAME is "X"`},
		{"network create n --vnii 5", 2, "unknown flag: --vnii"},
		{"network create n --vni", 2, "flag needs an argument: --vni"},
		{"network create n --vni 0", 2, `--vni is "0"`},
		{"network create n --vni 010", 2, `--vni is "010"`},
		{"network create n --vni 16777216", 2, `--vni is "16777216"`},
		{"network create n --vni x", 2, `--vni is "x"`},
		{"network create n --mtu 1279", 2, `--mtu is "1279"`},
		{"network create n --mtu 0x600", 2, `--mtu is "0x600"`},
		{"network create n --subnet 10.0.0.1/24", 2, `spec.subnets[0].prefix is "10.0.0.1/24"`},
		{"network create n --subnet 10.0.0.0/24 --subnet 10.0.0.0/25", 2, `spec.subnets[1].prefix is "10.0.0.0/25"`},
		{"network create n --subnet 10.0.0.0/24 --gateway 10.0.1.1", 2, `--gateway is "10.0.1.1"`},
		{"network create n --gateway x", 2, `--gateway is "x"`},
		{"network create n --subnet 10.0.0.0/24 --gateway 10.0.0.255", 2, `spec.subnets[0].gateway is "10.0.0.255"`},
		{"network create n --df off", 2, `spec.df is "off"`},
		{"network create n --flood multicast", 2, `spec.flood "multicast" is not in this release`},
		{"network create n --flood all", 2, `spec.flood is "all"`},
		{"network create n --distribution pull", 2, `push or on-demand`},
		{"network create n --admission any", 2, `declared, learn or dhcp`},
		{"network create n --dhcp off", 2, `spec.dhcp is "off"`},
		{"network create n --admission dhcp", 2, `own, beside spec.admission dhcp`},
		{"network create n --dhcp own --dns 10.0.0.2", 2, `spec.dns is "given"`},
		{"network create n --dns x", 2, `spec.dns[0] is "x"`},
		{"network create n --lease 1h", 2, `--lease is "1h"`},
		{"network create n --lease 59", 2, `--lease is "59"`},
		{"network create n --route 10.0.0.0/8", 2, `--route is "10.0.0.0/8"`},
		{"network create n --route 10.0.0.0/8=10.1.0.1", 2, `spec.routes[0].via is "10.1.0.1"`},
		{"network set blue --no-dns --dns 10.20.0.9", 2, `--no-dns is "true"`},
		{"network set blue --no-route --route 10.0.0.0/8=10.20.0.9", 2, `--no-route is "true"`},
		{"network create n --host h_1", 2, `spec.hosts[0] is "h_1"`},
		{"network create n --host h1", 7, `h1`},
		{"network create n --label x", 2, `--label is "x"`},
		{"network create n --label x=ä", 2, `metadata.labels.x is "ä"`},
		{"network create n --tenant nix", 7, `nix`},
		{"network create n --tenant N", 2, `--tenant is "N"`},
		{"network create n -o xml", 2, `--output is "xml"`},
		{"network create n --wait 0s", 2, "--wait is 0s"},
		{"network create n --wait 2h", 2, "--wait is 2h0m0s"},
		{"network create n --wait soon", 2, `invalid argument "soon" for "--wait" flag`},
		{"network create blue --subnet 10.21.0.0/24", 8, "exists with other content"},
		{"network set blue", 2, "no flag says what to change"},
		{"network set blue --vni 77", 5, "VNI"},
		{"network set blue --any-host --host h1", 2, `--any-host is "true"`},
		{"network set blue --foreign-vtep 198.51.100.7 --no-foreign-vtep", 2, `--no-foreign-vtep is "true"`},
		{"network set blue --foreign-vtep x", 2, `--foreign-vtep is "x"`},
		{"network set blue --domain shop --no-domain", 2, `--no-domain is "true"`},
		{"network create n --domain Shop", 2, `--domain is "Shop"`},
		{"network set blue --domain shop", 7, "domain shop does not exist"},
		{"domain create shop --admit-tenant A", 2, `--admit-tenant is "A"`},
		{"domain create a/b/c", 2, `NAME is "b/c"`},
		{"domain set shop", 2, "no flag says what to change"},
		{"domain set shop --label a=b", 7, "domain shop was not found"},
		{"domain delete shop", 7, "domain shop was not found"},
		{"policy create p", 2, "--domain is missing: a policy is in one"},
		{"policy create p --domain shop", 7, "domain shop was not found"},
		{"policy set p --direction both", 7, "policy p was not found"},
		{"policy set p --from blue", 2, "unknown flag: --from"},
		{"policy delete p", 7, "culvert policy list"},
		{"policy list --network blue", 2, "unknown flag: --network"},
		{"gateway create g", 2, "--domain is missing: a gateway is in one"},
		{"gateway create g --domain shop", 7, "domain shop was not found"},
		{"gateway set g --uplink eth1", 7, "gateway g was not found"},
		{"gateway set g", 2, "no flag says what to change"},
		{"gateway delete g", 7, "culvert gateway list"},
		{"network set nix --mtu 1400", 7, "nix"},
		{"network delete blue", 5, "1 port uses it"},
		{"tenant create a/b", 2, `NAME is "a/b"`},
		{"tenant create a --max-networks 0", 2, `--max-networks is "0"`},
		{"tenant create a --max-ports -1", 2, `invalid argument "-1"`},
		{"tenant create a --max-addresses 257", 2, `spec.quotas.addressesPerPort is "257"`},
		{"tenant delete default", 5, "default"},
		{"tenant show a/b", 2, `NAME is "a/b"`},
		{"port create p", 2, "--network is missing"},
		{"port create p --network nix", 7, "network nix was not found"},
		{"port create p --network blue --mac 52:54:00:12:34", 2, `--mac is "52:54:00:12:34"`},
		{"port create p --network blue --mac 01:00:5e:00:00:01", 2, `--mac is "01:00:5e:00:00:01"`},
		{"port create p --network blue --ip 10.20.0.300", 2, `--ip is "10.20.0.300"`},
		{"port create p --network blue --shared-address x", 2, `--shared-address is "x"`},
		{"port create p --network blue --shared-address 10.20.0.1", 5, "10.20.0.1"},
		{"port set vm1 --shared-address 10.20.0.9 --no-shared-address", 2, `--no-shared-address is "true"`},
		{"port set vm1 --address-check --no-address-check", 2, `--no-address-check is "true"`},
		{"port create p --network blue --ip 10.20.0.1", 8, "10.20.0.1"},
		{"port create p --network blue --ip 10.20.1.1", 5, "10.20.1.1"},
		{"port create p --network blue --ip 10.20.0.2", 8, "10.20.0.2"},
		{"port create p --network blue --ip 10.20.0.9 --ip 10.20.0.9", 2, "spec.addresses[1]"},
		{"port bind vm1", 2, "--host is missing"},
		{"port bind vm1 --host H", 2, `--host is "H"`},
		{"port bind vm1 --host h9", 7, "h9"},
		{"port bind vm9 --host h1", 7, "vm9"},
		{"port list --network a/b/c", 2, "--network"},
		{"host create h1", 2, `culvert host has no verb "create"`},
		{"endpoint delete e", 2, `culvert endpoint has no verb "delete"`},
		{"host show nix", 7, "host nix was not found: there is none of that name"},
		{"status port", 2, "NAME is missing"},
		{"status prt vm1", 2, `NOUN is "prt"`},
		{"schema thing", 2, `KIND is "thing"`},
		{"apply", 2, "-f FILE is missing"},
		{"apply -f a b", 2, `"b" is one argument too many`},
		{"token create", 2, "--role is missing"},
		{"token create --role root", 2, `--role is "root"`},
		{"token create --role manager", 2, "is not in this release"},
		{"token create --role agent --uses 0", 2, `--uses is "0"`},
		{"token create --role agent --uses 10001", 2, `--uses is "10001"`},
		{"token create --role agent --expires 0s", 2, "--expires is 0s"},
		{"token create --role agent --expires 1000h", 2, "--expires is 1000h0m0s"},
		{"token create --role agent --host H", 2, `--host is "H"`},
		{"attach vm1", 2, "--dev is missing"},
		{"attach vm1 --dev a-name-that-is-too-long", 2, "--dev is"},
		{"attach vm1 --dev ../x", 2, "--dev is"},
		{"report tap0 flying", 2, `STATE is "flying"`},
		{"report ../x running", 2, "DEVICE is"},
		{"report tap0 running --wait 1h", 2, "--wait is"},
		{"report tap0 running --agent-socket /nonexistent/a.sock", 3, "there is no such socket"},
		{"attach VM --dev tap0", 2, `PORT is "VM"`},
		{"attach vm1 --dev tap0 --agent-socket /nonexistent/a.sock", 3, "there is no such socket"},
		{"detach vm1 --agent-socket /nonexistent/a.sock", 3, "(CV0013)"},
		{"manager", 0, ""},
		{"manager run", 2, "this build has the client verbs only"},
		{"init extra", 2, `"extra" is one argument too many`},
		{"join", 2, "TOKEN is missing"},
		{"port watch -o yaml", 2, `--output is "yaml"`},
	}
	forbidden := regexp.MustCompile(`(?i)failed to|unknown error|internal|context deadline exceeded|file exists`)
	for _, tt := range tests {
		_, e, code := m.run(tt.line)
		if code != int(tt.code) || !strings.Contains(strings.ToLower(e), strings.ToLower(tt.want)) {
			t.Errorf("culvert %s: exit code %d, want %d with %q\n%s", tt.line, code, tt.code, tt.want, e)
		}
		if code != 0 && !regexp.MustCompile(`(?s)^[^\n]+\.\n(  [^\n]+\n)*[^ \n][^\n]+\n\(CV\d{4}\)\n$`).MatchString(e) {
			t.Errorf("culvert %s: not four parts:\n%s", tt.line, e)
		}
		if bad := forbidden.FindString(e); bad != "" {
			t.Errorf("culvert %s: the error says %q:\n%s", tt.line, bad, e)
		}
	}
	// Nothing of all that was applied.
	m.want("network list", 0, `
NETWORK  VNI    SUBNETS       MTU   DOMAIN  PORTS  ENDPOINTS  HOSTS
blue     10001  10.20.0.0/24  1450  -       1      0          -
`, "")
	m.want("tenant list", 0, "\nTENANT   NETWORKS  PORTS\ndefault  1         1\n", "")
}
