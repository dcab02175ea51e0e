package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/hoststate"
)

// Config is what a lab needs from the program that it is part of.
type Config struct {
	// Culvert is the command line that begins every command of the lab's
	// daemons, normally the running binary alone. It must be absolute.
	Culvert []string
	// Root is the directory of all labs; empty means DefaultRoot.
	Root string
	// Guard says that building is watched by a second process, Culvert with
	// "lab guard NAME", that takes down what a killed `up` left half built.
	Guard bool
	// GuestRoots are roots of unpacked packages that have what QEMU guests are
	// made of, looked in before the package's GuestRoots.
	GuestRoots []string
}

// Lab is one lab by name, whether it is there or not.
type Lab struct {
	cfg  Config
	name string
}

// New names a lab. The name is checked (*overlay.FieldError); nothing is
// touched.
func New(name string, cfg Config) (*Lab, error) {
	if err := CheckLabName(name); err != nil {
		return nil, err
	}
	if cfg.Root == "" {
		cfg.Root = DefaultRoot
	}
	return &Lab{cfg: cfg, name: name}, nil
}

func portAlias(tenant, port string) string { return hoststate.PortAlias(tenant, port) }

// needRoot refuses what would fail half-way without privileges.
func (l *Lab) needRoot(what string) error {
	if os.Geteuid() != 0 {
		return api.Refuse(api.CodeNotAllowed, what, "it makes network namespaces, which root alone may", "sudo culvert lab up"+l.flag())
	}
	return nil
}

// UpResult is what Up did.
type UpResult struct {
	Changed bool          // false: all of it stood already
	Took    time.Duration // from the call to ready
	State   Status
}

// Up builds the lab, or completes the one that is there: daemons that died are
// started, missing sample VMs made. Remains of an interrupted command are
// replaced. A whole lab of another topology is refused. When ctx ends before
// the lab is ready, what was built of it is taken down again.
func (l *Lab) Up(ctx context.Context, t Topology, empty bool) (UpResult, error) {
	start := time.Now()
	t.Name = l.name
	t, err := t.Check()
	if err != nil {
		return UpResult{}, err
	}
	if err := l.needRoot(fmt.Sprintf("lab %q was not built", l.name)); err != nil {
		return UpResult{}, err
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return UpResult{}, err
	}
	defer unlock(false)
	s, err := l.load()
	if err == nil && s.Ready && l.whole(s) {
		if s.Topology != t {
			return UpResult{}, api.Refuse(api.CodeExists, fmt.Sprintf("lab %q was not built", l.name),
				"it stands with another topology: "+firstLine(s.Topology.String()), "Take it down first: culvert lab down"+l.flag())
		}
		changed, err := l.adopt(ctx, s, empty)
		if err != nil {
			return UpResult{}, err
		}
		return l.upResult(s, changed, start)
	}
	// Anything else is remains: of a crash, a reboot of half the machine, or
	// of another release's lab.
	s, err = l.build(ctx, t, empty)
	if err != nil {
		// The lock is still held, and the cause may be ctx's end: the way
		// back must not stop for it.
		return UpResult{}, errors.Join(err, l.takeDown(context.WithoutCancel(ctx)))
	}
	return l.upResult(s, true, start)
}

func (l *Lab) upResult(s *state, changed bool, start time.Time) (UpResult, error) {
	return UpResult{Changed: changed, Took: time.Since(start), State: l.status(s)}, nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// whole reports whether every namespace that the state names is there.
func (l *Lab) whole(s *state) bool {
	names := []string{NSOfNode(l.name, "rt")}
	if s.Topology.Outside {
		names = append(names, NSOfNode(l.name, outsideNode))
	}
	for _, n := range s.Topology.Nodes() {
		names = append(names, NSOfNode(l.name, n.Name))
	}
	return !slices.ContainsFunc(names, func(n string) bool { _, ok := inode(n); return !ok })
}

func (l *Lab) build(ctx context.Context, t Topology, empty bool) (*state, error) {
	if err := l.takeDown(ctx); err != nil {
		return nil, fmt.Errorf("remove remains: %w", err)
	}
	if err := os.MkdirAll(l.dir(), 0o700); err != nil {
		return nil, fmt.Errorf("lab directory: %w", err)
	}
	if t.Libvirt {
		if err := l.needLibvirt(); err != nil {
			return nil, err
		}
	}
	if t.VMs == VMsQemu {
		// What is missing is better said before anything was built.
		if _, _, _, err := l.image(false, fmt.Sprintf("lab %q was not built", l.name)); err != nil {
			return nil, err
		}
	}
	s := &state{Topology: t, Empty: empty}
	if err := l.save(s); err != nil {
		return nil, err
	}
	release, err := l.guard()
	if err != nil {
		return nil, err
	}
	defer release()
	if err := buildUnderlay(t); err != nil {
		return nil, err
	}
	if _, err := l.ensureLibvirt(ctx, s); err != nil {
		return nil, err
	}
	if !t.NoDaemons {
		if err := l.found(ctx, s); err != nil {
			return nil, err
		}
		if !empty {
			if _, err := l.populate(ctx, s); err != nil {
				return nil, err
			}
		}
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	s.Ready = true
	return s, l.save(s)
}

// adopt completes a lab that stands.
func (l *Lab) adopt(ctx context.Context, s *state, empty bool) (changed bool, err error) {
	if changed, err = l.ensureLibvirt(ctx, s); err != nil || s.Topology.NoDaemons {
		return changed, err
	}
	for _, n := range s.Topology.Nodes() {
		started, err := l.ensureDaemon(s, n)
		if err != nil {
			return changed, err
		}
		changed = changed || started
	}
	if err := l.awaitCluster(ctx, s); err != nil {
		return changed, err
	}
	// A lab that was begun empty is its user's: nothing is put into it.
	if empty || s.Empty {
		return changed, nil
	}
	made, err := l.populate(ctx, s)
	return changed || made > 0, err
}

// Down removes the lab and everything of its name, whole or half built. It
// returns when devices and processes are gone. None there is no error; was
// says whether there was one.
func (l *Lab) Down(ctx context.Context) (was bool, err error) {
	if err := l.needRoot(fmt.Sprintf("lab %q was not taken down", l.name)); err != nil {
		return false, err
	}
	was = len(l.remains()) > 0
	unlock, err := l.lock(ctx)
	if err != nil {
		return was, err
	}
	defer unlock(true)
	return was, l.takeDown(ctx)
}

func (l *Lab) takeDown(ctx context.Context) error {
	s, err := l.load()
	if err == nil {
		// Normally they are found by their namespaces; these are the ones
		// whose namespace was deleted by hand.
		noted := slices.Concat(s.Daemons, s.Libvirt)
		for _, v := range s.VMs {
			noted = append(noted, v.Processes...)
		}
		for _, d := range noted {
			if err := d.kill(ctx); err != nil {
				return err
			}
		}
	}
	names, err := namespaces(l.name)
	if err != nil {
		return err
	}
	if err := destroy(ctx, names); err != nil {
		return err
	}
	if err := os.RemoveAll(l.dir()); err != nil {
		return fmt.Errorf("lab directory: %w", err)
	}
	return nil
}

// remains lists what there is of the lab besides the lock.
func (l *Lab) remains() []string {
	names, err := namespaces(l.name)
	if err != nil {
		names = []string{err.Error()}
	}
	if _, err := os.Lstat(l.dir()); err == nil {
		names = append(names, l.dir())
	}
	return names
}

// Leaks lists everything on the machine that is the lab's: namespaces,
// processes in them, files. Empty after Down.
func (l *Lab) Leaks() []string {
	left := l.remains()
	var inodes []string
	for _, n := range left {
		if i, ok := inode(n); ok {
			inodes = append(inodes, i)
		}
	}
	for _, p := range processesIn(inodes) {
		left = append(left, fmt.Sprintf("process %d", p))
	}
	if _, err := os.Lstat(l.lockPath()); err == nil {
		left = append(left, l.lockPath())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return append(left, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && filepath.Dir(f[4]) == netnsDir {
			name := filepath.Base(f[4])
			if of, ok := labOfNS(name); ok && of == l.name && !slices.Contains(left, name) {
				left = append(left, "mount "+name)
			}
		}
	}
	return left
}

// List names the labs of a root directory and those of which namespaces alone
// are left, sorted.
func List(root string) ([]string, error) {
	if root == "" {
		root = DefaultRoot
	}
	var names []string
	entries, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && CheckLabName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	entries, err = os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	for _, e := range entries {
		if lab, ok := labOfNS(e.Name()); ok {
			names = append(names, lab)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Namespace is the name of the namespace of a node or VM, under /run/netns.
func (l *Lab) Namespace(node string) (string, error) {
	for _, n := range []string{NSOfNode(l.name, node), NSOfVM(l.name, node)} {
		if _, ok := inode(n); ok {
			return n, nil
		}
	}
	s, err := l.loadReady()
	if err != nil {
		return "", err
	}
	if vm, ok := s.vm(node); ok && vm.Qemu {
		return "", api.Refuse(api.CodeNotFound, fmt.Sprintf("the namespace of %s was not found", node), "it is a guest of QEMU and has none",
			"Run something in it: culvert lab exec "+node+l.flag()+" -- ip address")
	}
	return "", l.noNode(node)
}

func (l *Lab) noNode(node string) error {
	return api.Refuse(api.CodeNotFound, fmt.Sprintf("%s was not found", node), fmt.Sprintf("lab %q has no such node", l.name),
		"See what it has: culvert lab status"+l.flag())
}

// Signal does what `lab kill|stop|cont` say to a node's daemon: SIGKILL,
// SIGSTOP, SIGCONT. A daemon that is dead stays so: that is no error.
func (l *Lab) Signal(ctx context.Context, node string, sig unix.Signal) error {
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock(false)
	s, err := l.loadReady()
	if err != nil {
		return err
	}
	d, ok := s.daemon(node)
	if !ok {
		return l.noNode(node)
	}
	if sig == unix.SIGKILL {
		return d.kill(ctx)
	}
	return d.signal(sig)
}

// Start starts a node's daemon unless it runs; changed says whether it was
// started.
func (l *Lab) Start(ctx context.Context, node string) (changed bool, err error) {
	unlock, err := l.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock(false)
	s, err := l.loadReady()
	if err != nil {
		return false, err
	}
	for _, n := range s.Topology.Nodes() {
		if n.Name == node {
			return l.ensureDaemon(s, n)
		}
	}
	return false, l.noNode(node)
}

// ClientConfig is the file by which client verbs find the lab's cluster.
func (l *Lab) ClientConfig() string { return filepath.Join(l.dir(), "client.json") }

// Name is the lab's.
func (l *Lab) Name() string { return l.name }
