package vms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
	"culvert/internal/overlay"
)

// fleet is a lab of three hosts with VMs in one network, and where they are:
// what its kernels must hold follows from that.
type fleet struct {
	t     *testing.T
	l     *lab.Lab
	vteps map[string]netip.Addr // by host
	vms   map[string]lab.VM     // Host is where it is now
}

// newFleet builds the lab, with one VM that is a namespace on each host: n1 on
// h1, and so on.
func newFleet(t *testing.T, top lab.Topology) *fleet {
	t.Helper()
	top.Hosts = 3
	f := &fleet{t: t, l: newLab(t, top, "fd00:20::/64"), vteps: map[string]netip.Addr{}, vms: map[string]lab.VM{}}
	st, err := f.l.Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Name != "m1" {
			f.vteps[n.Name] = n.Address.Addr()
		}
	}
	for _, h := range f.hosts() {
		f.make(lab.VMSpec{Name: "n" + h[1:], Host: h})
	}
	return f
}

func (f *fleet) hosts() []string { return slices.Sorted(maps.Keys(f.vteps)) }

func (f *fleet) make(spec lab.VMSpec) {
	f.t.Helper()
	f.vms[spec.Name] = vm(f.t, f.l, spec)
}

// step is a part of a story.
func (f *fleet) step(name string, do func(f *fleet)) {
	f.t.Helper()
	ok := f.t.Run(name, func(t *testing.T) {
		start := time.Now()
		inner := *f
		inner.t = t
		do(&inner)
		t.Logf("took %s", time.Since(start).Round(time.Millisecond))
	})
	if !ok {
		f.t.FailNow() // the next begins where this one did not come to
	}
}

// rows is what the tables of a host must have of the VMs, a line a row, sorted.
// The device of a VM that is on the host is called here.
func (f *fleet) rows(host string) []string {
	var rows []string
	for _, v := range f.vms { // order-free: sorted below
		mac := fmt.Sprintf("%d %s", v.VNI, v.MAC)
		if v.Host == host {
			rows = append(rows, "master "+mac+" dev here static,sticky", "port here mac "+v.MAC)
			hosts := map[netip.Addr]bool{} // that hosts have towards it: the gateways are the first of their subnets
			for _, a := range v.Addresses {
				rows = append(rows, "own here "+a.Addr().String())
				if hosts[a.Masked().Addr().Next()] = true; a.Addr().Is6() {
					hosts[overlay.EUI64LinkLocal(overlay.ServerMAC)] = true
				}
			}
			for a := range hosts { // order-free: sorted below
				rows = append(rows, "own here "+a.String()+" router")
			}
			continue
		}
		vtep := f.vteps[v.Host].String()
		rows = append(rows, "fdb "+mac+" dst "+vtep+" static,extern_learn", fmt.Sprintf("master %s dev cvx%d static,extern_learn", mac, v.VNI),
			"source "+mac+" via "+vtep)
		for _, a := range v.Addresses {
			rows = append(rows, fmt.Sprintf("neigh %d %s lladdr %s permanent,culvert", v.VNI, a.Addr(), v.MAC))
		}
	}
	slices.Sort(rows)
	return rows
}

// held is what a host's tables have, in the words of rows, and what they have
// for a relay besides.
func (f *fleet) held(host string) (rows, relay []string) {
	f.t.Helper()
	text, err := f.l.Tables(f.t.Context(), host, "")
	if err != nil {
		f.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		switch {
		case w[0] == "master" && !strings.HasPrefix(w[4], "cvx"):
			w[4] = "here"
		case w[0] == "port" && w[2] == "mac":
			w = []string{"port", "here", "mac", w[3]}
		case w[0] == "own":
			w[1] = "here"
		case w[0] == "relay" || w[0] == "relayed":
			relay = append(relay, strings.Join(w, " "))
			continue
		case !slices.Contains([]string{"master", "fdb", "neigh", "source"}, w[0]):
			continue
		}
		rows = append(rows, strings.Join(w, " "))
	}
	slices.Sort(rows)
	return rows, relay
}

// wrong says what is wrong with the tables of the hosts. Until a relay is over
// more sources are allowed than the one of the VM's host.
func (f *fleet) wrong(relayed bool, hosts ...string) error {
	f.t.Helper()
	var errs []error
	for _, h := range hosts {
		want := f.rows(h)
		got, relay := f.held(h)
		if !relayed && len(relay) > 0 {
			errs = append(errs, fmt.Errorf("%s relays: %v", h, relay))
		}
		for _, row := range want {
			if !slices.Contains(got, row) {
				errs = append(errs, fmt.Errorf("%s has no %s", h, row))
			}
		}
		for _, row := range got {
			if !slices.Contains(want, row) && !(relayed && strings.HasPrefix(row, "source ")) {
				errs = append(errs, fmt.Errorf("%s has a stale %s", h, row))
			}
		}
	}
	return errors.Join(errs...)
}

// exact waits until the tables of all hosts have what they must, and nothing
// else; a relay may last.
func (f *fleet) exact() {
	f.t.Helper()
	f.await(settle, "exact tables", func() error { return f.wrong(true, f.hosts()...) })
}

// retired waits until no trace of any move is left.
func (f *fleet) retired() {
	f.t.Helper()
	f.await(settle, "tables without a trace of a move", func() error { return f.wrong(false, f.hosts()...) })
}

// bound waits until the manager has a guest where it is, and all tables are
// exact; every host reaches it.
func (f *fleet) bound(name string) {
	f.t.Helper()
	f.await(settle, name+" bound to "+f.vms[name].Host, func() error { return f.at(name) })
	f.exact()
	f.reached(name)
	if err := f.at(name); err != nil { // not an older claim that came late
		f.t.Error(err)
	}
}

// at is nil if the manager has a guest on the host where it is, and there
// alone.
func (f *fleet) at(name string) error {
	st, err := f.endpoint(name)
	if err != nil {
		return err
	}
	if st.GetHost() != f.vms[name].Host || len(st.GetExpectedAt()) > 0 {
		return fmt.Errorf("%s is on %s (%s), expected at %v: want it on %s alone", name, st.GetHost(), st.GetCause(), st.GetExpectedAt(), f.vms[name].Host)
	}
	return nil
}

// endpoint is what the manager says of where a guest is.
func (f *fleet) endpoint(name string) (*culvertv1.EndpointStatus, error) {
	c := dial(f.t, f.l)
	defer c.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	res, err := c.List(ctx, &culvertv1.ListRequest{Kind: "endpoint"})
	if err != nil {
		return nil, err
	}
	for _, r := range res.GetItems() {
		if st := r.GetEndpoint().GetStatus(); st.GetMac() == f.vms[name].MAC {
			return st, nil
		}
	}
	return nil, fmt.Errorf("no endpoint %s", name)
}

// reached pings a guest from the VMs on the given hosts, or from all hosts, by
// each of its addresses, until all pings are answered.
func (f *fleet) reached(name string, hosts ...string) {
	f.t.Helper()
	if len(hosts) == 0 {
		hosts = f.hosts()
	}
	for _, h := range hosts {
		for _, a := range f.vms[name].Addresses {
			if err := reach(f.t, f.l, "n"+h[1:], a.Addr().String()); err != nil {
				f.t.Fatal(errors.Join(err, f.panicked(name)))
			}
		}
	}
}

// panicked is what the kernel of a guest of QEMU said at its end; nil if it has
// not panicked. Emulated guests do, rarely, and on a busy machine, when they were
// moved: a page of their memory is then an older one.
func (f *fleet) panicked(name string) error {
	b, err := os.ReadFile(filepath.Join(lab.DefaultRoot, f.l.Name(), name+"."+f.vms[name].Host+".serial.log"))
	if err != nil {
		return nil // a VM of another kind
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "Kernel panic") {
			return fmt.Errorf("the guest's own kernel has ended: %s", strings.TrimSpace(line))
		}
	}
	return nil
}

// await polls until there is no complaint.
func (f *fleet) await(limit time.Duration, what string, wrong func() error) {
	f.t.Helper()
	end := time.Now().Add(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := wrong()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("%s: not within %s:\n%v", what, limit, err)
		}
		<-tick.C
	}
}

// move moves a guest of QEMU.
func (f *fleet) move(name, to string, o lab.MigrateOptions) lab.MigrateResult {
	f.t.Helper()
	r, err := f.l.Migrate(f.t.Context(), name, to, o)
	if err != nil {
		f.t.Fatalf("move %s to %s: %v", name, to, err)
	}
	f.moved(name, to)
	return r
}

// moved notes that a guest is on another host now.
func (f *fleet) moved(name, to string) {
	v := f.vms[name]
	v.Host = to
	f.vms[name] = v
}

// signal signals the daemon of a node, also while the lab is locked by a
// migration.
func (f *fleet) signal(node string, sig unix.Signal) {
	f.t.Helper()
	st, err := f.l.Status()
	if err != nil {
		f.t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Name != node {
			continue
		}
		if err := unix.Kill(n.PID, sig); err != nil {
			f.t.Errorf("signal %s: %v", node, err)
		}
		return
	}
	f.t.Errorf("no node %s", node)
}

// kill kills the daemon of a node, likewise.
func (f *fleet) kill(node string) {
	f.t.Helper()
	f.signal(node, unix.SIGKILL)
	f.await(settle, "end of the daemon of "+node, func() error {
		st, err := f.l.Status()
		if i := slices.IndexFunc(st.Nodes, func(n lab.NodeStatus) bool { return n.Name == node && n.Daemon == "dead" }); i < 0 && err == nil {
			err = errors.New("it runs")
		}
		return err
	})
}

// start starts the daemon of a node again.
func (f *fleet) start(node string) {
	f.t.Helper()
	if changed, err := f.l.Start(f.t.Context(), node); err != nil || !changed {
		f.t.Fatalf("start %s: %t, %v", node, changed, err)
	}
}

// log is all that a daemon has logged.
func (f *fleet) log(node string) string {
	b, err := os.ReadFile(filepath.Join(lab.DefaultRoot, f.l.Name(), node+".log"))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(b)
}

// pings is a ping of a guest from a VM that stays.
type pings struct {
	from, to string
	stop     context.CancelFunc
	warm     chan struct{} // closed after a few
	done     chan struct{}
	res      lab.PingResult
	err      error
}

// pingEvery is between two pings from one host: of three hosts a guest gets a
// thousand a second. Three times as many are more than an emulated guest on a
// busy machine answers, and its memory changes faster than it is moved.
const pingEvery = 3 * time.Millisecond

// ping begins to ping a guest's addresses of a family from the VMs on all
// hosts, and returns when that has gone for a while.
func (f *fleet) ping(name string, v6 bool) []*pings {
	f.t.Helper()
	return f.pingFor(name, v6, 500*time.Millisecond)
}

// pingFor is ping with how long an answer may take.
func (f *fleet) pingFor(name string, v6 bool, wait time.Duration) []*pings {
	f.t.Helper()
	var all []*pings
	for _, h := range f.hosts() {
		for _, a := range f.vms[name].Addresses {
			if a.Addr().Is6() != v6 {
				continue
			}
			ctx, stop := context.WithCancel(f.t.Context())
			p := &pings{from: h, to: a.Addr().String(), stop: stop, warm: make(chan struct{}), done: make(chan struct{})}
			ns := lab.NSOfVM(f.l.Name(), "n"+h[1:])
			go func() {
				defer close(p.done)
				p.res, p.err = lab.Ping(ctx, ns, lab.PingOptions{Target: a.Addr(), Interval: pingEvery, Wait: wait,
					At: map[int]func(){100: func() { close(p.warm) }}})
			}()
			f.t.Cleanup(func() { stop(); <-p.done })
			all = append(all, p)
		}
	}
	for _, p := range all {
		select {
		case <-p.warm:
		case <-p.done:
			f.t.Fatalf("ping from %s: %v", p.from, p.err)
		}
	}
	return all
}

// mostLost is for how long, in pings of one host, a guest may not be reached in
// a migration though it runs: 50 ms.
const mostLost = 50 * time.Millisecond / pingEvery

// unharmed moves a guest that is pinged from all hosts, and asserts that its
// pause alone cost any ping.
func (f *fleet) unharmed(name, to string, v6 bool, o lab.MigrateOptions) {
	f.t.Helper()
	// What the guest itself did not take, its device has dropped and counted;
	// what it did not answer though it had it, because its own queue was full,
	// it has counted.
	mute := f.unanswered(name)
	all := f.ping(name, v6)
	from := f.vms[name].Host
	first, left, came := f.dropped(from, name), 0, 0
	var told time.Time
	expected, stopped, running := o.At[lab.Expected], o.At[lab.Stopped], o.At[lab.Running]
	o.At = map[lab.Stage]func(){
		lab.Expected: func() { told = time.Now(); call(expected) },
		lab.Stopped:  func() { left = f.dropped(from, name); call(stopped) },
		lab.Running:  func() { came = f.dropped(to, name); call(running) },
	}
	r := f.move(name, to, o)
	f.reached(name)
	for _, p := range all {
		p.stop()
	}
	outside := 0
	for _, p := range all {
		<-p.done
		if p.err != nil || p.res.Refused > 0 || p.res.Sent < 200 {
			f.t.Errorf("ping of %s from %s: %v, %d sent, %d refused: %v", p.to, p.from, p.err, p.res.Sent, p.res.Refused, p.res.Reason)
		}
		n := p.res.LostOutside(r.Stopped, r.Running)
		outside += n
		f.t.Logf("figure: %s to %s: from %s to %s: paused for %d ms, %d of %d pings lost, %d ms apart, %d of them not in the pause",
			name, to, p.from, p.to, r.Resumed.Milliseconds(), len(p.res.Lost), p.res.Sent, pingEvery.Milliseconds(), n)
	}
	full := left - first + f.dropped(to, name) - came
	mute = f.unanswered(name) - mute
	if outside-full-mute <= len(all)*int(mostLost) {
		return
	}
	f.t.Errorf("%d pings of %s were lost though it ran; its device dropped %d, and it did not answer %d that it had; its move began %d ms before its stop, and it ran again %d ms after it; lost, in ms after it:",
		outside, name, full, mute, r.Stopped.Sub(told).Milliseconds(), r.Resumed.Milliseconds())
	for _, p := range all {
		f.t.Logf("from %s:%s", p.from, p.lostAt(r.Stopped))
	}
}

// lostAt says when pings were lost in a row: for how many ms after a time each
// began and ended, and how many.
func (p *pings) lostAt(zero time.Time) string {
	var b strings.Builder
	for i := 0; i < len(p.res.Lost); {
		j := i + 1
		for j < len(p.res.Lost) && p.res.Lost[j] == p.res.Lost[j-1]+1 {
			j++
		}
		first, last := p.res.SentAt[p.res.Lost[i]], p.res.SentAt[p.res.Lost[j-1]]
		fmt.Fprintf(&b, " %d..%d (%d)", first.Sub(zero).Milliseconds(), last.Sub(zero).Milliseconds(), j-i)
		i = j
	}
	return b.String()
}

func call(f func()) {
	if f != nil {
		f()
	}
}

// dropped is how many frames for a guest found the queue of its device full.
func (f *fleet) dropped(host, name string) int {
	n := 0
	err := lab.InNS(lab.NSOfNode(f.l.Name(), host), func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		for line := range strings.Lines(string(b)) {
			if w := strings.Fields(line); len(w) > 12 && w[0] == lab.TapName(name)+":" {
				n, err = strconv.Atoi(w[12])
				return err
			}
		}
		return errors.Join(err, errors.New("no device "+lab.TapName(name)))
	})
	if err != nil {
		f.t.Errorf("frames dropped by the device of %s on %s: %v", name, host, err)
	}
	return n
}
