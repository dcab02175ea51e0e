package lab

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert/internal/api"
	"culvert/internal/lab/qemu"
)

// answer is a line of the ping that guests have: "64 bytes from 10.1.0.16:
// seq=0 ttl=64 time=0.517 ms", with "(DUP!)" at the end of a second answer.
var answer = regexp.MustCompile(`^\d+ bytes from ([0-9a-f.:]+): seq=(\d+) ttl=\d+ time=([0-9.]+) ms( \(DUP!\))?`)

// ping pings from inside the machine, by a command of its own. Requests are
// not refused by it and its schedule is not known, so those fields stay zero.
func (m machine) ping(ctx context.Context, host string, o PingOptions) (PingResult, error) {
	interval, wait := o.Interval, o.Wait
	if interval <= 0 {
		interval = 200 * time.Millisecond
	}
	if wait <= 0 {
		wait = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(o.Count)*interval+wait+bootLimit)
	defer cancel()
	// Its -w counts whole seconds from the start, its -W waits for the last.
	line := fmt.Sprintf("ping -I eth0 -c %d -i %.3f -W %d %s", o.Count, interval.Seconds(), int(max(1, wait.Round(time.Second).Seconds())), o.Target)
	out, _, err := m.run(ctx, host, line)
	if err != nil {
		return PingResult{}, err
	}
	var own []string
	for _, a := range m.Addresses {
		own = append(own, a.Addr().String()) // it answers itself without any network
	}
	return readPing(out, o, own), nil
}

// readPing is what a guest's ping printed, without the answers of own
// addresses to a broadcast.
func readPing(out string, o PingOptions, own []string) PingResult {
	r := PingResult{Sent: o.Count, Answered: map[string]int{}}
	seen := make([]map[string]bool, o.Count)
	for line := range strings.Lines(out) {
		f := answer.FindStringSubmatch(line)
		if f == nil {
			continue
		}
		seq, err := strconv.Atoi(f[2])
		ms, err2 := strconv.ParseFloat(f[3], 64)
		if err != nil || err2 != nil || seq >= len(seen) || o.Broadcast && slices.Contains(own, f[1]) {
			continue
		}
		r.Answered[f[1]]++
		switch {
		case seen[seq] == nil:
			seen[seq] = map[string]bool{}
			r.Received++
			r.RTT = append(r.RTT, time.Duration(ms*float64(time.Millisecond)))
		case !o.Broadcast || seen[seq][f[1]]:
			r.Duplicated++
		}
		seen[seq][f[1]] = true
	}
	for i, from := range seen {
		if from == nil {
			r.Lost = append(r.Lost, i)
		}
	}
	return r
}

// run runs a command line in the guest.
func (m machine) run(ctx context.Context, host, line string) (out string, code int, err error) {
	out, code, err = qemu.Run(ctx, m.path(host, "serial"), line)
	if err != nil {
		return out, code, fmt.Errorf("%s: %w", m.VM, err)
	}
	return out, code, nil
}

// Run runs a command line in a QEMU guest, by its shell, and returns what it
// printed and its exit code. The guest has busybox(1).
func (l *Lab) Run(ctx context.Context, name, line string) (out string, code int, err error) {
	vm, err := l.VM(name)
	if err != nil {
		return "", 0, err
	}
	if !vm.Qemu {
		return "", 0, api.Refuse(api.CodeNotFound, "the command was not run", name+" is no guest of QEMU", "Run it in its namespace: culvert lab exec "+name+l.flag()+" -- ...")
	}
	m, err := vm.machine(l)
	if err != nil {
		return "", 0, err
	}
	return m.run(ctx, vm.Host, line)
}

// quoted is a command for a shell, each word as it is.
func quoted(argv []string) string {
	words := make([]string, 0, len(argv))
	for _, w := range argv {
		words = append(words, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return strings.Join(words, " ")
}
