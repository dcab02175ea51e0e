package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"

	"culvert/internal/lab"
	"culvert/internal/overlay"
)

// settle is how long a story waits for a state; a loaded machine gets it too.
const settle = 15 * time.Second

// still is how long tables must stay as they are to be taken for settled when
// they are written into a story.
const still = 1500 * time.Millisecond

// commands are what a story may type beside testscript's own:
//
//	culvert ARGS...              the program; lab verbs get the story's lab
//	exit N culvert ARGS...       it must end with that exit code
//	eventually [-stdout RE] culvert ARGS...   again and again until it succeeds
//	eventually -without RE culvert ARGS...    ... and does not print that
//	golden HOST FILE [NETWORK]   the host's tables, read from its kernel, become FILE;
//	                             aliases are written NETWORK~MAC
//	probe VM VM                  from here to the end nothing may get from one to the other
//	pinging NAME VM TARGET [INTERVAL]   ping in the background, 1 ms apart
//	pinged NAME MOST             end it; at most MOST were lost, and none came twice
//	bigping VM TARGET SIZE COUNT LOST   pings of SIZE bytes; exactly the first LOST get no answer
//	capture NAME NODE DEVICE     record frames
//	captured NAME [RE]           end it; print the frames that match, counted
//	boot VM                      run its DHCP client; print what it was told
//	renew VM                     have the client renew its lease; print it again
//	boot6 VM                     the same with DHCPv6, once, and renew that
//	serve VM FIRST LAST          a DHCP server in a VM that leases addresses from FIRST to LAST
//	links NAME HOST              note the overlay devices' numbers; the second time compare
func (s *story) commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"culvert": s.culvert, "exit": s.exit, "eventually": s.eventually, "golden": s.golden, "probe": s.probe,
		"pinging": s.pinging, "pinged": s.pinged, "capture": s.capture, "captured": s.captured, "links": s.sameLinks, "bigping": s.bigping,
		"boot": s.boot, "renew": s.renew, "boot6": s.boot6, "serve": s.serve,
	}
}

// argv is a command line of the program with the story's lab in it.
func (s *story) argv(args []string) []string {
	if len(args) > 0 && args[0] == "lab" {
		return append([]string{"lab", "--lab", s.name}, args[1:]...)
	}
	return args
}

func (s *story) culvert(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(program, s.argv(args)...)
	if err != nil && !neg {
		ts.Fatalf("culvert %s: %v", strings.Join(args, " "), err)
	}
	if err == nil && neg {
		ts.Fatalf("culvert %s succeeded", strings.Join(args, " "))
	}
}

func (s *story) exit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || args[1] != "culvert" {
		ts.Fatalf("usage: exit N culvert ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(program, s.argv(args[2:])...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func (s *story) eventually(ts *testscript.TestScript, neg bool, args []string) {
	var re *regexp.Regexp
	without := len(args) > 1 && args[0] == "-without"
	if without || len(args) > 1 && args[0] == "-stdout" {
		re = regexp.MustCompile("(?m)" + args[1])
		args = args[2:]
	}
	if neg || len(args) < 2 || args[0] != "culvert" {
		ts.Fatalf("usage: eventually [-stdout RE | -without RE] culvert ARGS...")
	}
	var out []byte
	ok := s.poll(func() bool {
		var err error
		cmd := exec.Command(program, s.argv(args[1:])...)
		cmd.Env = append(os.Environ(), "CULVERT_CONFIG="+s.lab.ClientConfig(), "HOME="+ts.Getenv("HOME"))
		out, err = cmd.CombinedOutput()
		return err == nil && (re == nil || re.Match(out) != without)
	})
	fmt.Fprintf(ts.Stdout(), "%s", out)
	if !ok {
		ts.Fatalf("not within %s; the last answer was:\n%s", settle, out)
	}
}

// poll asks until it is told yes or the time is over.
func (s *story) poll(done func() bool) bool {
	end := time.Now().Add(settle)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(end) {
			return false
		}
		<-tick.C
	}
	return true
}

func (s *story) golden(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: golden HOST FILE [NETWORK]")
	}
	bridge := ""
	if len(args) == 3 {
		tenant, network, ok := strings.Cut(args[2], "/")
		if !ok {
			tenant, network = "", args[2]
		}
		var err error
		bridge, err = s.lab.BridgeOf(s.ctx, tenant, network)
		ts.Check(err)
	}
	want := ts.ReadFile(args[1])
	var have string
	var err error
	since := time.Now() // have is as it is since then
	// A file is written once a story: tables that must be as before are then
	// compared with what was written.
	writing := *update && !s.written[args[1]]
	s.written[args[1]] = true
	ok := s.poll(func() bool {
		last := have
		if have, err = s.lab.Tables(s.ctx, args[0], bridge); across.MatchString(have) {
			s.aliases(ts)
			have = s.named(have)
		}
		if have != last {
			since = time.Now()
		}
		return err == nil && (have == want || writing && time.Since(since) > still)
	})
	ts.Check(err)
	ok = ok && have == want
	switch {
	case ok:
	case writing:
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(have), 0o644))
		ts.Check(rewrite(s.file, args[1], have))
	default:
		ts.Fatalf("tables of %s are not as in %s (-want +have):\n%s", args[0], args[1], cmp.Diff(strings.Split(want, "\n"), strings.Split(have, "\n")))
	}
}

// rewrite replaces one file of a story.
func rewrite(story, name, data string) error {
	a, err := txtar.ParseFile(story)
	if err != nil {
		return fmt.Errorf("story %s: %w", story, err)
	}
	for i := range a.Files {
		if a.Files[i].Name == name {
			a.Files[i].Data = []byte(data)
			return os.WriteFile(story, txtar.Format(a), 0o644)
		}
	}
	return fmt.Errorf("story %s has no file %s", filepath.Base(story), name)
}

func (s *story) probe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: probe VM VM")
	}
	from, to := s.vm(ts, args[0]), s.vm(ts, args[1])
	mac, err := overlay.ParseMAC(to.MAC)
	ts.Check(err)
	p, err := lab.StartProbe(lab.NSOfVM(s.name, from.Name), lab.NSOfVM(s.name, to.Name), mac, to.Addresses[0].Addr())
	ts.Check(err)
	s.probes = append(s.probes, probe{args[0], args[1], p})
}

func (s *story) vm(ts *testscript.TestScript, name string) lab.VM {
	vm, err := s.lab.VM(name)
	ts.Check(err)
	return vm
}

// pinging is a ping in the background.
type pinging struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when res and err are there
	res    lab.PingResult
	err    error
}

func (s *story) pinging(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || len(args) > 4 || s.pings[args[0]] != nil {
		ts.Fatalf("usage: pinging NEWNAME VM TARGET [INTERVAL]")
	}
	o := lab.PingOptions{Interval: time.Millisecond}
	if len(args) == 4 {
		var err error
		o.Interval, err = time.ParseDuration(args[3])
		ts.Check(err)
	}
	if to, err := s.lab.VM(args[2]); err == nil {
		o.Target = to.Addresses[0].Addr()
	} else {
		o.Target, err = netip.ParseAddr(args[2])
		ts.Check(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	p := &pinging{cancel: cancel, done: make(chan struct{})}
	started := make(chan struct{})
	o.At = map[int]func(){10: func() { close(started) }}
	s.pings[args[0]] = p
	go func() {
		defer close(p.done)
		p.res, p.err = lab.Ping(ctx, lab.NSOfVM(s.name, args[1]), o)
	}()
	// The story goes on when pings are under way.
	select {
	case <-started:
	case <-p.done:
		ts.Fatalf("ping did not start: %v", p.err)
	}
}

func (s *story) pinged(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || s.pings[args[0]] == nil {
		ts.Fatalf("usage: pinged NAME MOST")
	}
	most, err := strconv.Atoi(args[1])
	ts.Check(err)
	p := s.pings[args[0]]
	delete(s.pings, args[0])
	p.cancel()
	<-p.done
	ts.Check(p.err)
	ts.Logf("%s: %d sent, %d lost, longest gap %d, %d twice, at most %s late", args[0], p.res.Sent, len(p.res.Lost), p.res.LongestGap(), p.res.Duplicated, p.res.Late)
	if p.res.Received == 0 || p.res.Duplicated > 0 || len(p.res.Lost) > most {
		ts.Fatalf("%d of %d pings lost, at most %d may be; %d twice; lost: %v", len(p.res.Lost), p.res.Sent, most, p.res.Duplicated, p.res.Lost[:min(20, len(p.res.Lost))])
	}
}

func (s *story) bigping(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 5 {
		ts.Fatalf("usage: bigping VM TARGET SIZE COUNT LOST")
	}
	var n [3]int
	for i, a := range args[2:] {
		var err error
		n[i], err = strconv.Atoi(a)
		ts.Check(err)
	}
	target, err := netip.ParseAddr(args[1])
	ts.Check(err)
	r, err := lab.Ping(s.ctx, lab.NSOfVM(s.name, args[0]), lab.PingOptions{Target: target, Size: n[0], Count: n[1], Interval: 20 * time.Millisecond, Wait: 500 * time.Millisecond})
	ts.Check(err)
	if r.Sent != n[1] || len(r.Lost) != n[2] || n[2] > 0 && r.Lost[n[2]-1] != n[2]-1 {
		ts.Fatalf("of %d pings of %d bytes %v were lost, want the first %d; refused here: %d (%v)", r.Sent, n[0], r.Lost, n[2], r.Refused, r.Reason)
	}
}

func (s *story) capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 || s.captures[args[0]] != nil {
		ts.Fatalf("usage: capture NEWNAME NODE DEVICE")
	}
	ns, err := s.lab.Namespace(args[1])
	ts.Check(err)
	s.captures[args[0]], err = lab.OpenCapture(ns, args[2])
	ts.Check(err)
}

// captured prints a line for each kind of frame: how many, the direction, from
// whom to whom, and what it is.
func (s *story) captured(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 || s.captures[args[0]] == nil {
		ts.Fatalf("usage: captured NAME [RE]")
	}
	frames, err := s.captures[args[0]].Stop()
	delete(s.captures, args[0])
	ts.Check(err)
	re := regexp.MustCompile("")
	if len(args) == 2 {
		re = regexp.MustCompile(args[1])
	}
	kinds := map[string]int{}
	for _, f := range frames {
		if k := describe(f); re.MatchString(k) {
			kinds[k]++
		}
	}
	var lines []string
	for k, n := range kinds {
		lines = append(lines, fmt.Sprintf("%d x %s\n", n, k))
	}
	sort.Strings(lines)
	fmt.Fprint(ts.Stdout(), strings.Join(lines, ""))
}

// describe is a frame in a few words.
func describe(f lab.Frame) string {
	if len(f.Data) < 14 {
		return "runt"
	}
	dir := "in"
	if f.Outgoing {
		dir = "out"
	}
	d := f.Data
	s := fmt.Sprintf("%s %s > %s", dir, overlay.MAC(d[6:12]), overlay.MAC(d[0:6]))
	switch et := binary.BigEndian.Uint16(d[12:]); {
	case et == 0x0806 && len(d) >= 42:
		what := map[uint16]string{1: "request", 2: "reply"}[binary.BigEndian.Uint16(d[20:])]
		return fmt.Sprintf("%s arp %s for %s", s, what, netip.AddrFrom4([4]byte(d[38:42])))
	case et == 0x0800 && len(d) >= 34:
		return fmt.Sprintf("%s ip %s > %s proto %d", s, netip.AddrFrom4([4]byte(d[26:30])), netip.AddrFrom4([4]byte(d[30:34])), d[23])
	case et == 0x86dd && len(d) >= 54:
		return fmt.Sprintf("%s ip6 %s > %s proto %d", s, netip.AddrFrom16([16]byte(d[22:38])), netip.AddrFrom16([16]byte(d[38:54])), d[20])
	default:
		return fmt.Sprintf("%s type %04x", s, et)
	}
}

var deviceNumber = regexp.MustCompile(`(?m)^(\d+): (cv[bx]\d+|vm-[a-z0-9-]+)`)

func (s *story) sameLinks(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: links NAME HOST")
	}
	out, err := exec.Command("ip", "-n", lab.NSOfNode(s.name, args[1]), "-o", "link").CombinedOutput()
	if err != nil {
		ts.Fatalf("list links of %s: %v: %s", args[1], err, out)
	}
	var have []string
	for _, m := range deviceNumber.FindAllStringSubmatch(string(out), -1) {
		have = append(have, m[2]+"="+m[1])
	}
	sort.Strings(have)
	now := strings.Join(have, " ")
	before, noted := s.links[args[0]]
	if !noted {
		if now == "" {
			ts.Fatalf("%s has no devices of the overlay", args[1])
		}
		s.links[args[0]] = now
		return
	}
	if now != before {
		ts.Fatalf("devices of %s were %s and are %s", args[1], before, now)
	}
}
