package cli

import (
	"strings"
	"testing"
)

// TestDistribution: a network is made on demand or becomes so, and back.
func TestDistribution(t *testing.T) {
	m := newMachine(t)
	m.ok("network create big --distribution on-demand")
	m.want("network create big --distribution on-demand", 0, "network big unchanged\n", "")
	for _, c := range []struct {
		line  string
		shown bool
	}{{"network show big", true}, {"network set big --mtu 1400", true}, {"network set big --distribution push", false}, {"network set big --distribution on-demand", true}} {
		m.ok(c.line)
		m.stdin = m.ok("network show big")
		if got := strings.Contains(m.stdin, "  distribution: on-demand\n"); got != c.shown {
			t.Errorf("after %s:\n%s", c.line, m.stdin)
		}
		m.want("apply -f -", 0, "network big unchanged\n", "")
	}
}
