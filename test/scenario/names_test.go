package scenario

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"culvert/internal/overlay"
)

// An endpoint's alias in other networks follows from its network's UID, which is
// another in each lab. Stories write NETWORK~MAC for it.

// across matches tables in which there are aliases.
var across = regexp.MustCompile(`(?m)^(reach|alias|from|routed) `)

// aliases notes the aliases of all ports that there are now, beside those that
// there were.
func (s *story) aliases(ts *testscript.TestScript) {
	list := func(kind string) (items []item) {
		cmd := exec.Command(program, kind, "list", "-o", "json")
		cmd.Env = append(os.Environ(), "CULVERT_CONFIG="+s.lab.ClientConfig(), "HOME="+ts.Getenv("HOME"))
		out, err := cmd.Output()
		ts.Check(err)
		var all struct{ Items []item }
		ts.Check(json.Unmarshal(out, &all))
		return all.Items
	}
	uids := map[string]overlay.UID{}
	for _, n := range list("network") {
		uid, err := overlay.ParseUID(n.Metadata.UID)
		ts.Check(err)
		uids[n.Metadata.Name] = uid
	}
	for _, p := range list("port") {
		text := p.Status.MAC
		if text == "" {
			text = p.Spec.MAC
		}
		mac, err := overlay.ParseMAC(text)
		ts.Check(err)
		s.names[overlay.Alias(uids[p.Spec.Network], mac).String()] = p.Spec.Network + "~" + mac.String()
	}
}

type item struct {
	Metadata struct{ Name, UID string }
	Spec     struct{ Network, MAC string }
	Status   struct{ MAC string }
}

var macs = regexp.MustCompile(`(?:[0-9a-f]{2}:){5}[0-9a-f]{2}`)

// named puts names in the place of aliases. Rows of one table and network whose
// order came from an alias are sorted by the names.
func (s *story) named(tables string) string {
	out := strings.SplitAfter(tables, "\n")
	for i, l := range out {
		out[i] = macs.ReplaceAllStringFunc(l, func(m string) string {
			if name, ok := s.names[m]; ok {
				return name
			}
			return m
		})
	}
	for i := 0; i < len(out); {
		j := i + 1
		for j < len(out) && head(out[i]) != "" && head(out[j]) == head(out[i]) {
			j++
		}
		if run := out[i:j]; slices.ContainsFunc(run, func(l string) bool { return strings.Contains(l, "~") }) {
			slices.Sort(run)
		}
		i = j
	}
	return strings.Join(out, "")
}

// head is a row's table and network; empty for other lines.
func head(line string) string {
	var table string
	var vni uint32
	if n, _ := fmt.Sscan(line, &table, &vni); n < 2 {
		return ""
	}
	return fmt.Sprint(table, vni)
}
