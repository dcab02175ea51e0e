package cli

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"culvert/internal/api"
	"culvert/internal/apiserver/apiservertest"
	"culvert/internal/managercore"
)

// rival is another operator, who is quicker: its lines are typed just before
// each change of a verb is admitted.
type rival struct {
	*apiservertest.Backend
	before func()
}

func (r *rival) Do(ctx context.Context, ask managercore.Asked) (managercore.Reply, error) {
	if ask.Put != nil && ask.Put.Mode == managercore.ModeSet && r.before != nil {
		before := r.before
		r.before = nil // the rival's own changes come without one
		before()
		r.before = before
	}
	return r.Backend.Do(ctx, ask)
}

func newRival(t *testing.T) (*machine, *rival) {
	r := &rival{Backend: apiservertest.New()}
	return &machine{t: t, b: r.Backend, config: apiservertest.Serve(t, r)}, r
}

// once types a line before the next change, and only before that.
func (r *rival) once(m *machine, line string) {
	done := false
	r.before = func() {
		if !done {
			done = true
			m.ok(line)
		}
	}
}

// TestSetKeepsWhatOthersSet: each verb that reads, changes and writes keeps the
// field that somebody else changes between its reading and its writing.
func TestSetKeepsWhatOthersSet(t *testing.T) {
	m, r := newRival(t)
	m.b.Host("h1", "192.0.2.11")
	m.ok("tenant create acme")
	m.ok("network create blue --subnet 10.20.0.0/24")
	m.ok("port create vm1 --network blue")
	m.ok("domain create shop")
	m.ok("network create a --domain shop")
	m.ok("network create b --domain shop")
	m.ok("policy create ab --domain shop --from a --to b")
	tests := []struct {
		line, rival, show string
		want              []string
	}{
		{"tenant set acme --max-ports 5", "tenant set acme --max-networks 7", "tenant show acme", []string{"ports: 5", "networks: 7"}},
		{"network set blue --mtu 1400", "network set blue --label tier=web", "network show blue", []string{"mtu: 1400", "tier: web"}},
		{"network set blue --label a=1", "network set blue --label b=2", "network show blue", []string{`a: "1"`, `b: "2"`, "tier: web"}},
		{"network set blue --dns 10.20.0.2 --lease 600", "network set blue --route 0.0.0.0/0=10.20.0.9", "network show blue", []string{`- "10.20.0.2"`, "lease: 600", `via: "10.20.0.9"`}},
		{"network set blue --foreign-vtep 198.51.100.7", "network set blue --label far=1", "network show blue", []string{`- "198.51.100.7"`, `far: "1"`}},
		{"network set a --mtu 1400", "policy set ab --direction forward", "network show a", []string{"mtu: 1400", "domain: shop", "reach:\n  - b"}},
		{"domain set shop --label a=1", "domain set shop --label b=2", "domain show shop", []string{`a: "1"`, `b: "2"`}},
		{"policy set ab --direction both", "policy set ab --label a=1", "policy show ab", []string{"direction: both", `a: "1"`}},
		{"port set vm1 --vm web1", "port set vm1 --ip 10.20.0.9", "port show vm1", []string{"vm: web1", `- "10.20.0.9"`}},
		{"port set vm1 --address-check", "port set vm1 --shared-address 10.20.0.99", "port show vm1", []string{"addressCheck: true", `- "10.20.0.99"`}},
		{"port bind vm1 --host h1", "port set vm1 --label owner=me", "port show vm1", []string{"- h1", "owner: me"}},
	}
	for _, tt := range tests {
		r.once(m, tt.rival)
		m.ok(tt.line)
		r.before = nil
		shown := m.ok(tt.show)
		for _, w := range tt.want {
			if !strings.Contains(shown, w) {
				t.Errorf("%s beside %s: %q is lost\n%s", tt.line, tt.rival, w, shown)
			}
		}
	}
}

// TestSetGivesUp: somebody who always comes first is not fought for ever.
func TestSetGivesUp(t *testing.T) {
	m, r := newRival(t)
	m.ok("network create blue")
	n := 0
	r.before = func() { n++; m.ok(fmt.Sprintf("network set blue --label n=%d", n)) }
	o, e, code := m.run("network set blue --mtu 1400")
	if code != int(api.ExitConflict) || o != "" || n != maxReads {
		t.Errorf("exit code %d after %d tries, want %d after %d\n%s%s", code, n, api.ExitConflict, maxReads, o, e)
	}
	want := `
Network blue was not changed: it was read 20 times, and each time somebody else changed it before this change came; the last time the document was read at revision N, and it is at revision N now (operator root: network set).
Type the same command again when the others are done
(CV0114)
`
	if plain(e) != strings.TrimPrefix(want, "\n") {
		t.Errorf("got\n%swant%s", plain(e), want)
	}
}

// TestSetOfWhatIsDeletedMeanwhile: what is gone is not made anew.
func TestSetOfWhatIsDeletedMeanwhile(t *testing.T) {
	m, r := newRival(t)
	m.ok("network create blue")
	r.once(m, "network delete blue")
	m.want("network set blue --mtu 1400", api.ExitNotFound, "", `
Network blue was not found: no network has that name.
See what there is:  culvert network list
(CV0110)
`)
}

// TestSetTogether: operators who really type at the same time.
func TestSetTogether(t *testing.T) {
	m := newMachine(t)
	m.ok("network create blue")
	const operators, lines = 8, 5
	var wg sync.WaitGroup
	for i := range operators {
		wg.Go(func() {
			for j := range lines {
				var out, err bytes.Buffer
				line := fmt.Sprintf("network set blue --label o%d-%d=x", i, j)
				if code := Main(t.Context(), m.env(&out, &err), strings.Fields(line)); code != 0 {
					t.Errorf("culvert %s: exit code %d\n%s%s", line, code, out.String(), err.String())
				}
			}
		})
	}
	wg.Wait()
	shown := m.ok("network show blue")
	for i := range operators {
		for j := range lines {
			if label := fmt.Sprintf("o%d-%d: x", i, j); !strings.Contains(shown, label) {
				t.Errorf("label %s is lost", label)
			}
		}
	}
}

// TestApplyHonoursTheRevision: what was shown is applied only to what was shown.
func TestApplyHonoursTheRevision(t *testing.T) {
	m := newMachine(t)
	m.ok("network create blue --mtu 1400")
	shown := m.ok("network show blue -o yaml")
	m.ok("network set blue --label tier=web")
	m.stdin = strings.Replace(shown, "mtu: 1400", "mtu: 1390", 1)
	m.want("apply -f -", api.ExitConflict, "", `
Network blue was not written: the document was read at revision 3, and it is at revision 4 now (operator root: network set).
Repeat the change on what is there now, or leave metadata.revision out to overwrite it:  culvert network show blue
(CV0114)
`)
	if o := m.ok("network show blue"); !strings.Contains(o, "tier: web") || strings.Contains(o, "1390") {
		t.Errorf("something was written:\n%s", o)
	}
	m.stdin = strings.Replace(m.ok("network show blue -o json"), "1400", "1390", 1)
	m.want("apply -f -", 0, "network blue changed: VNI 10001, MTU 1390 (revision 5)\n", "")
	m.want("apply -f -", 0, "network blue unchanged\n", "") // repeated: nothing is overwritten
	m.stdin = strings.ReplaceAll(shown, "  revision:", "  # revision:")
	m.want("apply -f -", 0, "network blue changed: VNI 10001, MTU 1400 (revision 6)\n", "")
	m.stdin = shown
	m.stdin = strings.Replace(m.stdin, `revision: "3"`, "revision: newest", 1)
	if _, e, code := m.run("apply -f -"); code != int(api.ExitUsage) || !strings.Contains(e, `metadata.revision is "newest"`) || !strings.Contains(e, "> ") {
		t.Errorf("exit code %d\n%s", code, e)
	}
}
