package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// DefaultRoot is where labs keep their state: gone with the next boot, as
// their namespaces are.
const DefaultRoot = "/run/culvert/lab"

// VM is a VM of a lab as its state file has it.
type VM struct {
	Name      string         `json:"name"`
	Tenant    string         `json:"tenant"`
	Network   string         `json:"network"`
	VNI       overlay.VNI    `json:"vni"`
	Host      string         `json:"host"`
	Moving    string         `json:"moving,omitempty"` // destination of a migration that has not ended
	Ready     bool           `json:"ready"`            // made whole; else a command was interrupted
	MAC       string         `json:"mac"`
	Addresses []netip.Prefix `json:"addresses"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"` // its routers, where its network has any
	MTU       int            `json:"mtu"`
	Declared  bool           `json:"declared"`
	Announce  bool           `json:"announce,omitempty"`
	DHCP      bool           `json:"dhcp,omitempty"`      // it boots without addresses
	Qemu      bool           `json:"qemu,omitempty"`      // a guest of QEMU, else a namespace
	Processes []Daemon       `json:"processes,omitempty"` // of QEMU, by host: two while it moves
}

func (v VM) guest(lab string) (Guest, error) {
	mac, err := overlay.ParseMAC(v.MAC)
	if err != nil {
		return Guest{}, fmt.Errorf("state of %s: %w", v.Name, err)
	}
	g := Guest{Lab: lab, VM: v.Name, MAC: mac, Addresses: v.Addresses, Gateways: v.Gateways, MTU: v.MTU, Bridge: v.VNI.Bridge(), Announce: v.Announce}
	if v.DHCP {
		g.Addresses, g.MTU, g.Asks = nil, stockMTU, true
	}
	if v.Declared {
		g.Alias = portAlias(v.Tenant, v.Name)
	}
	return g, nil
}

// state is a lab's file lab.json.
type state struct {
	Topology Topology `json:"topology"`
	Empty    bool     `json:"empty"` // no networks and VMs of our making
	Ready    bool     `json:"ready"` // built whole; else remains of an interrupted command
	Daemons  []Daemon `json:"daemons"`
	Libvirt  []Daemon `json:"libvirt,omitempty"` // first processes of the hosts' libvirtds
	VMs      []VM     `json:"vms"`               // sorted by name
}

func (s *state) vm(name string) (VM, bool) {
	for _, v := range s.VMs {
		if v.Name == name {
			return v, true
		}
	}
	return VM{}, false
}

// put adds v or replaces the one of its name.
func (s *state) put(v VM) {
	s.drop(v.Name)
	s.VMs = append(s.VMs, v)
	slices.SortFunc(s.VMs, func(a, b VM) int { return strings.Compare(a.Name, b.Name) })
}

func (s *state) drop(name string) {
	s.VMs = slices.DeleteFunc(s.VMs, func(v VM) bool { return v.Name == name })
}

func (s *state) daemon(node string) (Daemon, bool) {
	for _, d := range s.Daemons {
		if d.Node == node {
			return d, true
		}
	}
	return Daemon{}, false
}

func (s *state) libvirt(host string) (Daemon, bool) {
	i := slices.IndexFunc(s.Libvirt, func(d Daemon) bool { return d.Node == host })
	if i < 0 {
		return Daemon{}, false
	}
	return s.Libvirt[i], true
}

func (s *state) setLibvirt(d Daemon) {
	s.Libvirt = append(slices.DeleteFunc(s.Libvirt, func(e Daemon) bool { return e.Node == d.Node }), d)
}

func (s *state) setDaemon(d Daemon) {
	s.Daemons = slices.DeleteFunc(s.Daemons, func(e Daemon) bool { return e.Node == d.Node })
	s.Daemons = append(s.Daemons, d)
}

func (l *Lab) dir() string                { return filepath.Join(l.cfg.Root, l.name) }
func (l *Lab) statePath() string          { return filepath.Join(l.dir(), "lab.json") }
func (l *Lab) nodeDir(node string) string { return filepath.Join(l.dir(), node) }
func (l *Lab) logPath(node string) string { return filepath.Join(l.dir(), node+".log") }
func (l *Lab) lockPath() string           { return filepath.Join(l.cfg.Root, l.name+".lock") }

// errNoLab says that there is no state of a lab.
var errNoLab = errors.New("no such lab")

// load reads the state file. A file that is missing is errNoLab; one that
// does not parse is remains of something else, and an error.
func (l *Lab) load() (*state, error) {
	b, err := os.ReadFile(l.statePath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoLab
	}
	if err != nil {
		return nil, fmt.Errorf("state of lab %s: %w", l.name, err)
	}
	s := &state{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("state of lab %s: %w", l.name, err)
	}
	return s, nil
}

// loadReady is load for verbs that need a whole lab.
func (l *Lab) loadReady() (*state, error) {
	s, err := l.load()
	if errors.Is(err, errNoLab) || err == nil && !s.Ready {
		why := "there is none of this name"
		if err == nil {
			why = "it is half built: a command was interrupted"
		}
		return nil, api.Refuse(api.CodeNotFound, fmt.Sprintf("lab %q was not used", l.name), why, "Build it: culvert lab up"+l.flag())
	}
	return s, err
}

// flag is what a user adds to a verb to mean this lab.
func (l *Lab) flag() string {
	if l.name == DefaultName {
		return ""
	}
	return " --lab " + l.name
}

// save replaces the state file whole, so that a reader never sees half of it.
func (l *Lab) save(s *state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("state of lab %s: %w", l.name, err)
	}
	tmp := l.statePath() + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("state of lab %s: %w", l.name, err)
	}
	if err := os.Rename(tmp, l.statePath()); err != nil {
		return fmt.Errorf("state of lab %s: %w", l.name, err)
	}
	return nil
}

// lockWait is how long a command waits for another one of the same lab.
const lockWait = 60 * time.Second

// lock keeps other commands off the lab until unlock. The lock goes with the
// process that holds it, however it ends. remove deletes the lock's file too:
// whoever waits for it notices that the file is not the one of that name any
// more and opens the new one.
func (l *Lab) lock(ctx context.Context) (unlock func(remove bool), err error) {
	if err := os.MkdirAll(l.cfg.Root, 0o755); err != nil {
		return nil, fmt.Errorf("lab directory: %w", err)
	}
	var f *os.File
	err = poll(ctx, lockWait, func() (bool, error) {
		if f == nil {
			if f, err = os.OpenFile(l.lockPath(), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
				return false, fmt.Errorf("lock of lab %s: %w", l.name, err)
			}
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
				return false, nil
			}
			return false, fmt.Errorf("lock of lab %s: %w", l.name, err)
		}
		mine, err1 := f.Stat()
		named, err2 := os.Stat(l.lockPath())
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return true, nil
		}
		f.Close()
		f = nil
		return false, nil
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		if errors.Is(err, errTimeout) {
			return nil, api.Refuse(api.CodeUnanswered, fmt.Sprintf("lab %q was not used", l.name),
				"another command has been working on it for "+lockWait.String(), "Wait for it, or end it and type the same command again.")
		}
		return nil, err
	}
	return func(remove bool) {
		if remove {
			os.Remove(l.lockPath())
		}
		f.Close()
	}, nil
}

// gatewaysOf lists the gateways that are next to one of the addresses.
func gatewaysOf(addresses []netip.Prefix, gateways []string) (out []netip.Addr) {
	for _, s := range gateways {
		gw, err := netip.ParseAddr(s)
		if err == nil && slices.ContainsFunc(addresses, func(p netip.Prefix) bool { return p.Contains(gw) }) {
			out = append(out, gw)
		}
	}
	return out
}
