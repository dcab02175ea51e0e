package agentcore

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"culvert/internal/overlay"
)

// history is what a random story of two networks has come to.
type history struct {
	net   [2]string         // records, as lines
	at    map[string]string // endpoints of n2 by MAC, as lines
	own   map[string]bool   // MACs that n1 has itself, on h3
	vtep  map[string]string // of h2 to h4; empty: dead
	moved map[string]string // the line of a move by MAC, while the host that it left relays
}

// bridged reports whether the two networks are one to their guests.
func (h *history) bridged() bool { return strings.Contains(h.net[0], "bridge=n2") }

// want is what n1's tables hold of n2, computed from the records alone.
func (h *history) want() []string {
	reach, from := strings.Contains(h.net[0], "reach=n2"), strings.Contains(h.net[0], "from=n2")
	mtu := " mtu 1450"
	if strings.Contains(h.net[1], "mtu=1400") {
		mtu = " mtu 1400"
	}
	var rows []string
	for m, line := range h.at {
		f := strings.Fields(line)
		vtep, name, sends := h.vtep[f[1]], overlay.Alias(netUID("n2"), mac(m)).String(), "routed"
		if h.bridged() {
			name, sends = m, "source"
		}
		if from || h.bridged() {
			hosts := []string{f[1]}
			for _, x := range f[5:] {
				if _, host, _ := strings.Cut(x, "="); strings.HasPrefix(x, "pre=") || f[1] != "h1" && h.moved[m] == line {
					hosts = append(hosts, host)
				}
			}
			for _, host := range hosts {
				if v := h.vtep[host]; v != "" && host != "h1" {
					rows = append(rows, sends+" 10 "+name+" via "+v)
				}
			}
		}
		if from {
			for _, a := range strings.Split(f[4], ",") {
				rows = append(rows, "from 10 "+a+" of "+name)
			}
		}
		if !reach && !h.bridged() || vtep == "" {
			continue
		}
		if reach {
			rows = append(rows, "reach 10 "+name)
		}
		rows = append(rows, "fdb 10 "+name+" dst "+vtep+" vni 20 static,extern_learn")
		hop := reach && strings.Contains(h.net[0], "hop=10.9.0.0/16,n2,"+m)
		if hop {
			rows = append(rows, "route 10 10.9.0.0/16 via "+name)
		}
		if hop || h.bridged() {
			rows = append(rows, "master 10 "+name+" dev cvx10 static,extern_learn")
		}
		for _, a := range strings.Split(f[4], ",") {
			if rows = append(rows, "neigh 10 "+a+" lladdr "+name+" permanent,culvert"); reach {
				rows = append(rows, "reach 10 "+a+mtu)
			}
		}
	}
	slices.Sort(rows)
	return slices.Compact(rows)
}

// holds is what n1's tables do hold that is not of its own endpoints.
func (h *history) holds(r *rig) (rows []string) {
	for _, l := range strings.Split(r.dump(), "\n") {
		f := strings.Fields(l)
		if len(f) < 3 || f[1] != "10" || slices.Contains(f, router) || f[0] == "alias" || strings.Contains(l, mac1) || strings.Contains(l, "10.1.0.") || f[0] == "repl" {
			continue
		}
		if own := h.own[f[2]]; !own {
			rows = append(rows, l)
		}
	}
	slices.Sort(rows)
	return rows
}

// TestRoutedTablesFollowAnyHistory: whatever happens in whatever order, with
// restarts in between, the tables hold in the end what the records say.
func TestRoutedTablesFollowAnyHistory(t *testing.T) {
	t.Parallel()
	tb := t
	rapid.Check(t, func(t *rapid.T) {
		r := newRig(tb)
		h := &history{
			net: [2]string{alone1, alone2}, at: map[string]string{}, own: map[string]bool{}, moved: map[string]string{},
			vtep: map[string]string{"h1": "192.0.2.201", "h2": "192.0.2.202", "h3": "192.0.2.203", "h4": "192.0.2.204"},
		}
		r.fleet(alone1, alone2)
		r.plug("n1", "p1")
		r.connect()
		r.log("n1", "port p1 "+mac1)
		logN2 := func() {
			lines := []string{}
			for _, m := range slices.Sorted(maps.Keys(h.at)) {
				lines = append(lines, h.at[m])
			}
			r.sums["n2"] = nil
			for k := range r.revs {
				if k.Kind == overlay.KindEndpoint && k.UID == netUID("n2") {
					delete(r.revs, k)
				}
			}
			r.log("n2", lines...)
			clear(h.moved) // what a pass says is history
		}
		// heard lets the manager answer what the agent asks for.
		heard := func() {
			if up := r.ups(); strings.Contains(up, "add n2 from") {
				logN2()
			}
		}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			m := rapid.SampledFrom([]string{"02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:04"}).Draw(t, "mac")
			host := rapid.SampledFrom([]string{"h1", "h2", "h3", "h4"}).Draw(t, "host")
			switch rapid.IntRange(0, 7).Draw(t, "what") {
			case 0, 1: // it comes, moves, or changes its addresses
				line := "at " + host + " - " + m + " 10.2.0." + m[len(m)-1:]
				if rapid.Bool().Draw(t, "two") {
					line += ",fd00:2::" + m[len(m)-1:]
				}
				old := h.at[m]
				if was := strings.Fields(old); len(was) > 0 && was[1] != host {
					line += " from=" + was[1]
				} else if host != "h1" && rapid.Bool().Draw(t, "expected") {
					line += " pre=" + rapid.SampledFrom([]string{"h2", "h3", "h4"}).Draw(t, "where")
				}
				h.at[m] = line
				if r.c.nets[netUID("n2")].subscribed { // or it is told nothing
					h.moved[m] = line
				}
				r.news("n2", line)
			case 2:
				if line := h.at[m]; line != "" {
					delete(h.at, m)
					r.news("n2", "-"+line)
				}
			case 3: // policies, and routes by way of n2
				h.net[0] = "n1 10 domain" + rapid.SampledFrom([]string{"", " reach=n2", " from=n2", " reach=n2 from=n2", " bridge=n2"}).Draw(t, "open") + " 10.1.0.0/24 fd00:1::/64"
				if rapid.Bool().Draw(t, "route") {
					h.net[0] += " hop=10.9.0.0/16,n2," + m
				}
				for _, own := range slices.Sorted(maps.Keys(h.own)) { // a MAC is in one of two bridged networks alone
					if h.bridged() && h.own[own] {
						h.own[own] = false
						r.news("n1", "-at h3 - "+own+" 10.1.0."+own[len(own)-1:])
					}
				}
				r.news("", "network "+h.net[0])
			case 7: // n2 takes smaller packets
				h.net[1] = alone2 + rapid.SampledFrom([]string{"", " mtu=1400"}).Draw(t, "mtu")
				r.news("", "network "+h.net[1])
			case 4: // a host dies, returns, or has another address
				if host == "h1" {
					continue
				}
				v := rapid.SampledFrom([]string{"", "192.0.2.2" + host[1:], "192.0.2.20" + host[1:]}).Draw(t, "vtep")
				if h.vtep[host] = v; v == "" {
					r.news("", "host "+host+" 192.0.2.20"+host[1:]+" dead")
				} else {
					r.news("", "host "+host+" "+v)
				}
			case 5: // n1 has the MAC itself
				if h.bridged() {
					break
				}
				if h.own[m] {
					r.news("n1", "-at h3 - "+m+" 10.1.0."+m[len(m)-1:])
				} else {
					r.news("n1", "at h3 - "+m+" 10.1.0."+m[len(m)-1:])
				}
				h.own[m] = !h.own[m]
			case 6:
				r.tick(11 * second) // and so no relay lasts
				clear(h.moved)
				if rapid.Bool().Draw(t, "late") {
					break
				}
				known := r.c.Known() // the agent begins anew with its journal
				r.blind()
				for _, it := range known {
					r.c.Step(r.now, it)
				}
				before, writes := r.dump(), r.m.Writes
				r.step(Tick{})
				if now := r.dump(); now != before || r.m.Writes != writes {
					t.Fatalf("a restart changes\n%s\nto\n%s", before, now)
				}
				r.connect()
			}
			heard()
		}
		heard()
		got := h.holds(r)
		if want := h.want(); !slices.Equal(got, want) {
			t.Fatalf("the kernel holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}
