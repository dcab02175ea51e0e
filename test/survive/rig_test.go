package survive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/kernel"
	"culvert/internal/lab"
)

var serial atomic.Int32

func labName(n int32) string { return fmt.Sprintf("sv%xn%d", os.Getpid(), n) }

// rig is one lab of one test.
type rig struct {
	t       *testing.T
	name    string
	lab     *lab.Lab
	ctx     context.Context
	hosts   []string
	kernels map[string]*kernel.Kernel
	api     *client.Client
	streams map[string]int // see expectNew
}

// newRig builds an empty lab, which goes with the test.
func newRig(t *testing.T, hosts int) *rig {
	t.Helper()
	return newRigIn(t, lab.Topology{Hosts: hosts})
}

func newRigIn(t *testing.T, in lab.Topology) *rig {
	t.Helper()
	r := &rig{t: t, name: labName(serial.Add(1)), kernels: map[string]*kernel.Kernel{}, streams: map[string]int{}}
	var err error
	if r.lab, err = lab.New(r.name, lab.Config{Culvert: []string{program}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	r.ctx = ctx
	t.Cleanup(r.down)
	in.Name = r.name
	if _, err := r.lab.Up(ctx, in, true); err != nil {
		t.Fatalf("lab up: %v", err)
	}
	for i := range in.Hosts {
		r.openKernel(lab.HostName(i + 1))
	}
	return r
}

// openKernel gives the test its own sockets in a host's namespace.
func (r *rig) openKernel(host string) {
	r.t.Helper()
	fd, err := unix.Open("/run/netns/"+lab.NSOfNode(r.name, host), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		r.t.Fatalf("namespace of %s: %v", host, err)
	}
	defer unix.Close(fd)
	k, err := kernel.Open(fd, kernel.Config{})
	if err != nil {
		r.t.Fatalf("kernel of %s: %v", host, err)
	}
	r.kernels[host] = k
	r.hosts = append(r.hosts, host)
	r.t.Cleanup(func() { k.Close() })
}

func (r *rig) down() {
	if r.t.Failed() {
		r.logs()
		if keepLabs() {
			r.t.Logf("lab kept: culvert lab status --lab %s", r.name)
			return
		}
	}
	if _, err := r.lab.Down(context.Background()); err != nil {
		r.t.Errorf("lab down: %v", err)
	}
	if left := r.lab.Leaks(); len(left) > 0 {
		r.t.Errorf("left behind: %v", left)
	}
}

// dir is a node's directory.
func (r *rig) dir(node string) string { return filepath.Join(lab.DefaultRoot, r.name, node) }

// log is all that a node's daemon has logged.
func (r *rig) log(node string) string {
	b, err := os.ReadFile(filepath.Join(lab.DefaultRoot, r.name, node+".log"))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// logs shows how each daemon's log ends.
func (r *rig) logs() {
	paths, _ := filepath.Glob(filepath.Join(lab.DefaultRoot, r.name, "*.log"))
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil {
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			r.t.Logf("%s ends with:\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
	}
}

// run types a culvert command as a user of this lab does, and returns what it
// printed on stdout.
func (r *rig) run(args ...string) (string, error) {
	cmd := exec.CommandContext(r.ctx, program, args...)
	cmd.Env = append(os.Environ(), "CULVERT_CONFIG="+r.lab.ClientConfig())
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("culvert %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), talk.String())
	}
	return out.String(), nil
}

func (r *rig) must(args ...string) string {
	r.t.Helper()
	out, err := r.run(args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// in runs a program in the namespace of a node or VM.
func (r *rig) in(node string, args ...string) (string, error) {
	ns, err := r.lab.Namespace(node)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(r.ctx, args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := lab.InNS(ns, cmd.Start); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s in %s: %w\n%s", strings.Join(args, " "), node, err, out.String())
	}
	return out.String(), nil
}

func (r *rig) mustIn(node string, args ...string) string {
	r.t.Helper()
	out, err := r.in(node, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// vm makes a VM with a declared port and waits until it is known everywhere.
func (r *rig) vm(spec lab.VMSpec) lab.VM {
	r.t.Helper()
	res, err := r.lab.CreateVM(r.ctx, spec)
	if err != nil {
		r.t.Fatalf("create %s: %v", spec.Name, err)
	}
	return res.VM
}

// daemon does something to the daemon of each node.
func (r *rig) signal(sig unix.Signal, nodes ...string) {
	r.t.Helper()
	for _, n := range nodes {
		if err := r.lab.Signal(r.ctx, n, sig); err != nil {
			r.t.Fatalf("signal %s: %v", n, err)
		}
	}
}

func (r *rig) start(nodes ...string) {
	r.t.Helper()
	for _, n := range nodes {
		if n == "m1" {
			r.expectNew(r.hosts...)
		} else {
			r.expectNew(n)
		}
		if _, err := r.lab.Start(r.ctx, n); err != nil {
			r.t.Fatalf("start %s: %v", n, err)
		}
	}
}

// status asks the manager.
func (r *rig) status() (*culvertv1.StatusResponse, error) {
	if r.api == nil {
		cfg, err := client.Load(r.lab.ClientConfig())
		if err != nil {
			return nil, err
		}
		if r.api, err = client.New(cfg); err != nil {
			return nil, err
		}
		r.t.Cleanup(r.api.Close)
	}
	ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
	defer cancel()
	return r.api.Status(ctx, &culvertv1.StatusRequest{})
}

// hostStatus is what the manager says of each host.
func (r *rig) hostStatus() (map[string]*culvertv1.HostStatus, error) {
	st, err := r.status()
	if err != nil {
		return nil, err
	}
	hosts := map[string]*culvertv1.HostStatus{}
	for _, h := range st.GetHosts() {
		hosts[h.GetMetadata().GetName()] = h.GetStatus()
	}
	return hosts, nil
}

// attached is how many streams a host's agent has opened, by its log.
func (r *rig) attached(host string) int { return strings.Count(r.log(host), "msg=attached ") }

// expectNew makes connected wait for another stream of these hosts: the
// manager may not have noticed yet that the present one is over.
func (r *rig) expectNew(hosts ...string) {
	for _, h := range hosts {
		r.streams[h] = r.attached(h) + 1
	}
}

// connected waits until the manager answers and every host is connected, anew
// where that is expected, and has said what it holds.
func (r *rig) connected() {
	r.t.Helper()
	r.await(40*time.Second, "all hosts connected", func() error {
		hosts, err := r.hostStatus()
		if err != nil {
			return err
		}
		for _, n := range r.hosts {
			if got := r.attached(n); got < r.streams[n] {
				return fmt.Errorf("%s has opened %d streams, want %d", n, got, r.streams[n])
			}
			if h := hosts[n]; h.GetState() != "connected" || h.GetAppliedRevision() == "" || h.GetAppliedRevision() == "0" {
				return fmt.Errorf("%s is %q at revision %q", n, h.GetState(), h.GetAppliedRevision())
			}
		}
		return nil
	})
}

// await polls until f has no complaint.
func (r *rig) await(limit time.Duration, what string, f func() error) time.Duration {
	r.t.Helper()
	start := time.Now()
	took, err := poll(r.ctx, start, limit, f)
	if err != nil {
		r.t.Fatalf("%s: not within %s: %v", what, limit, err)
	}
	return took
}

func poll(ctx context.Context, start time.Time, limit time.Duration, f func() error) (time.Duration, error) {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		err := f()
		took := time.Since(start)
		if err == nil {
			return took, nil
		}
		if took > limit {
			return took, err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return took, errors.Join(err, ctx.Err())
		}
	}
}

// tables is what a host's kernel holds, whole.
func (r *rig) tables(host string) (*hoststate.State, error) {
	k := r.kernels[host]
	all, err := k.Read(r.ctx, hoststate.Scope{Links: true})
	if err != nil {
		return nil, err
	}
	for _, l := range all.Links {
		if l.Kind != hoststate.LinkBridge || l.VNI == 0 {
			continue
		}
		one, err := k.Read(r.ctx, hoststate.Scope{VNI: l.VNI})
		if err != nil {
			return nil, err
		}
		maps.Copy(all.Rows, one.Rows)
	}
	return all, nil
}

// picture is all that must stay: rows, and devices with their ifindex.
func (r *rig) picture(host string) string {
	r.t.Helper()
	s, err := r.tables(host)
	if err != nil {
		r.t.Fatalf("tables of %s: %v", host, err)
	}
	return pictureOf(s)
}

func pictureOf(s *hoststate.State) string {
	var b strings.Builder
	for _, l := range s.Links {
		fmt.Fprintf(&b, "%s is ifindex %d\n", l.Name, l.Index)
	}
	fmt.Fprintf(&b, "base %t\n%s", s.Base, s)
	return b.String()
}

// same compares every host with what it was.
func (r *rig) same(when string, before map[string]string) {
	r.t.Helper()
	for _, h := range slices.Sorted(maps.Keys(before)) {
		if got := r.picture(h); got != before[h] {
			r.t.Errorf("%s: tables of %s differ:\n%s", when, h, difference(before[h], got))
		}
	}
}

func (r *rig) pictures() map[string]string {
	r.t.Helper()
	m := map[string]string{}
	for _, h := range r.hosts {
		m[h] = r.picture(h)
	}
	return m
}

func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var b strings.Builder
	for _, l := range w {
		if !slices.Contains(g, l) {
			fmt.Fprintf(&b, "- %s\n", l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}

// pinging is a ping that goes on until it is stopped.
type pinging struct {
	from, to string
	stop     context.CancelFunc
	done     chan struct{}
	res      lab.PingResult
	err      error
}

// ping begins to ping an address from a VM.
func (r *rig) ping(from string, to netip.Addr, every time.Duration) *pinging {
	r.t.Helper()
	ns, err := r.lab.Namespace(from)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(r.ctx)
	p := &pinging{from: from, to: to.String(), stop: stop, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.res, p.err = lab.Ping(ctx, ns, lab.PingOptions{Target: to, Interval: every, Wait: 2 * time.Second})
	}()
	r.t.Cleanup(func() { stop(); <-p.done })
	return p
}

// end stops the ping and returns what came of it.
func (p *pinging) end(t *testing.T) lab.PingResult {
	t.Helper()
	p.stop()
	<-p.done
	if p.err != nil {
		t.Fatalf("ping %s to %s: %v", p.from, p.to, p.err)
	}
	return p.res
}

// lossless ends pings that may have lost nothing.
func lossless(t *testing.T, ps ...*pinging) {
	t.Helper()
	for _, p := range ps {
		p.stop()
	}
	for _, p := range ps {
		res := p.end(t)
		t.Logf("ping %s to %s: %d sent, %d back", p.from, p.to, res.Sent, res.Received)
		if len(res.Lost) > 0 || res.Refused > 0 || res.Sent == 0 {
			t.Errorf("ping %s to %s: %d sent, %d lost (longest gap %d, first %v), %d refused %v", p.from, p.to, res.Sent, len(res.Lost),
				res.LongestGap(), res.Lost[:min(5, len(res.Lost))], res.Refused, res.Reason)
		}
	}
}

// pair is the usual two VMs on two hosts.
func (r *rig) pair() (vm1, vm2 lab.VM) {
	r.t.Helper()
	r.must("network", "create", "blue", "--vni", "42", "--subnet", "10.1.0.0/24")
	vm1 = r.vm(lab.VMSpec{Name: "vm1", Host: "h1", Network: "blue", MAC: "52:54:00:00:00:11", Addresses: []string{"10.1.0.11"}})
	vm2 = r.vm(lab.VMSpec{Name: "vm2", Host: "h2", Network: "blue", MAC: "52:54:00:00:00:12", Addresses: []string{"10.1.0.12"}})
	return vm1, vm2
}

// pair6 is the pair with IPv6 addresses too.
func (r *rig) pair6() (vm1, vm2 lab.VM) {
	r.t.Helper()
	r.must("network", "create", "blue", "--vni", "42", "--subnet", "10.1.0.0/24", "--subnet", "2001:db8:1::/64")
	vm1 = r.vm(lab.VMSpec{Name: "vm1", Host: "h1", Network: "blue", MAC: "52:54:00:00:00:11", Addresses: []string{"10.1.0.11", "2001:db8:1::11"}})
	vm2 = r.vm(lab.VMSpec{Name: "vm2", Host: "h2", Network: "blue", MAC: "52:54:00:00:00:12", Addresses: []string{"10.1.0.12", "2001:db8:1::12"}})
	return vm1, vm2
}

func address(vm lab.VM) netip.Addr { return vm.Addresses[0].Addr() }

// hold lets d pass while the world goes on: the time is what is tested.
func (r *rig) hold(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.ctx.Done():
	}
}

// pid is the process of a node's daemon.
func (r *rig) pid(node string) int {
	r.t.Helper()
	st, err := r.lab.Status()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.Name == node {
			return n.PID
		}
	}
	r.t.Fatalf("no node %s", node)
	return 0
}

// tell signals a process at once, without the lab's lock.
func tell(pid int, sig syscall.Signal) error { return syscall.Kill(pid, sig) }

// forget kills a host's agent, deletes what it remembers, and starts it.
func (r *rig) forget(host string) {
	r.t.Helper()
	r.signal(unix.SIGKILL, host)
	if err := os.Remove(filepath.Join(r.dir(host), "agent", "journal")); err != nil {
		r.t.Fatalf("journal of %s: %v", host, err)
	}
	r.start(host)
}
