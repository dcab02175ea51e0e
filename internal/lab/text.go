package lab

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Text is what `lab up` prints: what there is, where, and what to try.
func (r UpResult) Text() string {
	var b strings.Builder
	head := r.State.head()
	took := fmt.Sprintf("ready in %.1f s", r.Took.Seconds())
	if !r.Changed {
		took = "unchanged"
	}
	fmt.Fprintf(&b, "%s            %s\n", head, took)
	b.WriteString(r.State.places())
	flag := ""
	if r.State.Topology.Name != DefaultName {
		flag = " --lab " + r.State.Topology.Name
	}
	var try [][2]string
	if near, far, other, ok := r.State.examples(); ok {
		try = append(try, [2]string{"culvert lab ping " + near.Name + " " + far.Name + flag, "(same network, two hosts)"})
		if other.Name != "" {
			try = append(try, [2]string{"culvert lab ping " + near.Name + " " + other.Name + flag, "(two networks: must not pass)"})
		}
		try = append(try, [2]string{"culvert lab vm migrate " + near.Name + " " + far.Host + flag, ""})
	} else if len(r.State.VMs) == 0 {
		try = append(try, [2]string{"culvert network create blue --subnet 10.20.0.0/24", ""},
			[2]string{"culvert lab vm create vm1 --host h1 --network blue" + flag, ""})
	}
	if r.State.Topology.Libvirt {
		try = append(try, [2]string{"virsh -c '" + r.State.LibvirtURI + "' list", ""})
	}
	wide := 0
	for _, t := range try {
		if t[1] != "" {
			wide = max(wide, len(t[0]))
		}
	}
	for i, t := range try {
		word := "    "
		if i == 0 {
			word = "Try:"
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("%s  %-*s      %s", word, wide, t[0], t[1]), " ") + "\n")
	}
	return b.String()
}

func (s Status) head() string {
	return fmt.Sprintf("Lab %q: %s, 1 manager, %s, %s.", s.Topology.Name,
		count(s.Topology.Hosts, "host"), count(len(s.Networks()), "network"), count(len(s.VMs), "VM"))
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// places lists hosts with their VMs, a column a network; empty without VMs.
func (s Status) places() string {
	if len(s.VMs) == 0 {
		return ""
	}
	networks := s.Networks()
	cells := map[[2]string]string{}
	width := map[string]int{}
	for _, v := range s.VMs {
		k := [2]string{v.Host, v.NetworkName()}
		if cells[k] == "" {
			cells[k] = v.NetworkName() + ":"
		}
		cells[k] += " " + v.Name
		width[k[1]] = max(width[k[1]], utf8.RuneCountInString(cells[k]))
	}
	var b strings.Builder
	for _, n := range s.Topology.HostNodes() {
		line := fmt.Sprintf("  %-3s", n.Name)
		for _, net := range networks {
			line += fmt.Sprintf(" %-*s    ", width[net], cells[[2]string{n.Name, net}])
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// examples finds a VM, one of its network on another host and, if there is
// one, one of another network.
func (s Status) examples() (near, far, other VM, ok bool) {
	for _, near = range s.VMs {
		ok = false
		for _, v := range slices.Backward(s.VMs) {
			switch {
			case v.VNI != near.VNI && v.Host != near.Host && other.Name == "":
				other = v
			case v.VNI == near.VNI && v.Host != near.Host && !ok:
				far, ok = v, true
			}
		}
		if ok {
			return near, far, other, true
		}
	}
	return VM{}, VM{}, VM{}, false
}

// Text is what `lab status` prints.
func (s Status) Text() string {
	var b strings.Builder
	b.WriteString(s.head() + "\n")
	for _, n := range s.Nodes {
		role := "agent"
		if n.Number == 0 {
			role = "manager"
		}
		daemon := n.Daemon
		if n.PID != 0 && n.Daemon != "dead" {
			daemon = fmt.Sprintf("%s (process %d)", n.Daemon, n.PID)
		}
		fmt.Fprintf(&b, "  %-3s  %-15s  %-7s  %s\n", n.Name, n.Address.Addr(), role, daemon)
	}
	for _, v := range s.VMs {
		note := ""
		switch {
		case !v.Ready:
			note = "  half made: culvert lab vm remove " + v.Name
		case v.Moving != "":
			note = "  half moved: culvert lab vm migrate " + v.Name + " " + v.Moving
		case v.Qemu && len(v.Processes) == 1 && v.Processes[0].State() == "dead":
			note = "  its QEMU ended: culvert lab vm remove " + v.Name
		case !v.Declared:
			note = "  undeclared"
		}
		if v.Qemu && len(v.Processes) > 0 && note == "" {
			note = fmt.Sprintf("  QEMU (process %d)", v.Processes[0].PID)
		}
		fmt.Fprintf(&b, "  %-8s  on %-3s  %-12s  %s  %s%s\n", v.Name, v.Host, v.NetworkName(), v.MAC, v.addresses(), note)
	}
	return b.String()
}

// Text is what `lab vm migrate` prints.
func (r MigrateResult) Text() string {
	if !r.Changed {
		return fmt.Sprintf("%s: on %s already (unchanged)\n", r.VM, r.To)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s -> %s\n", r.VM, r.From, r.To)
	line := func(label, value, note string) {
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %-19s%6s %s", label, value, note), " ") + "\n")
	}
	line("prepared on "+r.To, millis(r.Prepared), "ms")
	known := ""
	if r.Revision != "" {
		known = "   (revision " + r.Revision + ")"
	}
	line("resumed", millis(r.Resumed), "ms"+known)
	if r.Hosts > 0 {
		last := ""
		if r.Slowest != "" {
			last = "   (slowest " + r.Slowest + ")"
		}
		word := "all "
		if len(r.Away) > 0 {
			word = ""
		}
		line(word+count(r.Hosts, "host")+" exact", millis(r.Exact), "ms"+last)
	}
	if len(r.Away) > 0 {
		b.WriteString("  away                    " + strings.Join(r.Away, " ") + "\n")
	}
	if r.Pings != nil {
		line("pings lost", fmt.Sprint(len(r.Pings.Lost)), fmt.Sprintf("of %d (%s ms apart)", r.Pings.Sent, millis(r.Interval)))
		if len(r.Pings.Lost) > 0 {
			line("while it ran", fmt.Sprint(r.Pings.LostOutside(r.Stopped, r.Running)), "of these")
		}
	}
	return b.String()
}

func millis(d time.Duration) string { return fmt.Sprint(d.Milliseconds()) }

// PingReport is a ping between a VM and what it was aimed at.
type PingReport struct {
	From   VM
	Target string // as the user named it
	To     *VM    // the VM that it is, if it is one of the lab
	Result PingResult
}

// Crosses reports whether the ping was aimed at another network, so that
// nothing may come back.
func (r PingReport) Crosses() bool { return r.To != nil && r.To.VNI != r.From.VNI }

// OK reports whether all came back.
func (r PingReport) OK() bool {
	return r.Result.Sent > 0 && r.Result.Received == r.Result.Sent
}

// Text is what `lab ping` prints.
func (r PingReport) Text() string {
	s := fmt.Sprintf("%s -> %s   ", r.From.Name, r.Target)
	res := r.Result
	if r.Crosses() {
		names := r.From.NetworkName() + " and " + r.To.NetworkName() + " are separate networks"
		if res.Received == 0 {
			return s + "nothing came back, and that is right: " + names + " (nothing crosses by default).\n"
		}
		return s + fmt.Sprintf("%d of %d came back, and nothing must: %s.\n", res.Received, res.Sent, names)
	}
	if r.To != nil && len(r.To.Addresses) > 0 {
		s += fmt.Sprintf("%s on %s   ", r.To.Addresses[0].Addr(), r.To.Host)
	}
	s += fmt.Sprintf("%d sent, %d back", res.Sent, res.Received)
	if res.Duplicated > 0 {
		s += fmt.Sprintf(", %d twice", res.Duplicated)
	}
	if len(res.RTT) > 0 {
		s += fmt.Sprintf("   first %.2f ms", float64(res.RTT[0].Microseconds())/1000)
	}
	if len(res.RTT) > 1 {
		rest := slices.Clone(res.RTT[1:])
		slices.Sort(rest)
		s += fmt.Sprintf(", then %.2f ms", float64(rest[len(rest)/2].Microseconds())/1000)
	}
	if res.Refused > 0 {
		s += fmt.Sprintf("   (%d not sent: %v)", res.Refused, res.Reason)
	}
	return s + "\n"
}

// BroadcastText is what `lab ping --broadcast` prints: who answered.
func BroadcastText(from VM, res PingResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> everyone in %s   %d sent, %s\n", from.Name, from.NetworkName(), res.Sent, count(len(res.Answered), "guest")+" answered")
	for _, a := range res.Answerers() {
		fmt.Fprintf(&b, "  %-15s  %d back\n", a, res.Answered[a])
	}
	if res.Duplicated > 0 {
		fmt.Fprintf(&b, "  %d came twice\n", res.Duplicated)
	}
	return b.String()
}
