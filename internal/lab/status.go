package lab

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/hoststate"
	"culvert/internal/kernel"
)

// Status is what a lab consists of.
type Status struct {
	Topology Topology
	Ready    bool // built whole
	Nodes    []NodeStatus
	VMs      []VM // sorted by name
	// LibvirtURI is of the first host's libvirtd; empty without any.
	LibvirtURI string
}

// NodeStatus is one host or manager.
type NodeStatus struct {
	Node
	Namespace string
	PID       int    // of the daemon, 0 if there never was one
	Daemon    string // running, stopped, dead
}

// Status says what the lab consists of, from the machine itself and not by
// the API: it answers with all daemons dead too.
func (l *Lab) Status() (Status, error) {
	s, err := l.loadReady()
	if err != nil {
		return Status{}, err
	}
	return l.status(s), nil
}

func (l *Lab) status(s *state) Status {
	st := Status{Topology: s.Topology, Ready: s.Ready, VMs: s.VMs}
	if s.Topology.Libvirt {
		st.LibvirtURI = l.LibvirtURI(HostName(1))
	}
	for _, n := range s.Topology.Nodes() {
		ns := NodeStatus{Node: n, Namespace: NSOfNode(l.name, n.Name), Daemon: "dead"}
		if d, ok := s.daemon(n.Name); ok {
			ns.PID, ns.Daemon = d.PID, d.State()
		}
		st.Nodes = append(st.Nodes, ns)
	}
	return st
}

// VM finds a VM of the lab by name.
func (l *Lab) VM(name string) (VM, error) {
	s, err := l.loadReady()
	if err != nil {
		return VM{}, err
	}
	vm, ok := s.vm(name)
	if !ok {
		return VM{}, l.noNode(name)
	}
	return vm, nil
}

// Networks lists the networks that the lab's VMs are in, sorted, as
// "name" in the default tenant and "tenant/name" elsewhere.
func (s Status) Networks() []string {
	var names []string
	for _, v := range s.VMs {
		names = append(names, v.NetworkName())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// NetworkName is the network as people write it.
func (v VM) NetworkName() string {
	if v.Tenant == defaultTenant {
		return v.Network
	}
	return v.Tenant + "/" + v.Network
}

// Tables is the text of what a host's kernel holds of the overlay, read from
// the kernel itself: no daemon is asked. bridge limits it to one network's
// devices and rows ("cvb42"); empty means all.
func (l *Lab) Tables(ctx context.Context, host, bridge string) (string, error) {
	if !nodeName.MatchString(host) || host == "rt" {
		return "", l.noNode(host)
	}
	fd, err := unix.Open(nsPath(NSOfNode(l.name, host)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if os.IsNotExist(err) {
			return "", l.noNode(host)
		}
		return "", fmt.Errorf("namespace of %s: %w", host, err)
	}
	defer unix.Close(fd)
	k, err := kernel.Open(fd, kernel.Config{})
	if err != nil {
		return "", fmt.Errorf("kernel of %s: %w", host, err)
	}
	defer k.Close()
	state, err := readAll(ctx, k)
	if err != nil {
		return "", fmt.Errorf("tables of %s: %w", host, err)
	}
	if bridge != "" {
		if state, err = oneNetwork(state, bridge); err != nil {
			return "", err
		}
	}
	return byName(state.String()), nil
}

// byName sorts the lines of members, which the dump has in the order of device
// numbers: a VM that went and came back has another number, and is the same.
func byName(dump string) string {
	lines := strings.SplitAfter(dump, "\n")
	member := func(s string) bool { return strings.HasPrefix(s, "member ") }
	first := slices.IndexFunc(lines, member)
	if first < 0 {
		return dump
	}
	end := first
	for end < len(lines) && member(lines[end]) {
		end++
	}
	slices.Sort(lines[first:end])
	return strings.Join(lines, "")
}

func readAll(ctx context.Context, k *kernel.Kernel) (*hoststate.State, error) {
	all, err := k.Read(ctx, hoststate.Scope{Links: true})
	if err != nil {
		return nil, err
	}
	for _, link := range all.Links {
		if link.Kind != hoststate.LinkBridge || link.VNI == 0 {
			continue
		}
		one, err := k.Read(ctx, hoststate.Scope{VNI: link.VNI})
		if err != nil {
			return nil, err
		}
		for key, v := range one.Rows {
			all.Rows[key] = v
		}
	}
	return all, nil
}

// oneNetwork keeps what is of one bridge: its devices, and their rows.
func oneNetwork(s *hoststate.State, bridge string) (*hoststate.State, error) {
	i := slices.IndexFunc(s.Links, func(k hoststate.Link) bool { return k.Name == bridge && k.Kind == hoststate.LinkBridge })
	if i < 0 {
		return nil, api.Refuse(api.CodeNotFound, "tables were not read", "the host has no bridge "+bridge, "")
	}
	br := s.Links[i]
	keep := &hoststate.State{Rows: map[hoststate.Key]hoststate.Val{}}
	for _, k := range s.Links {
		if k.Index == br.Index || k.Master == br.Index || k.VNI == br.VNI {
			keep.Links = append(keep.Links, k)
		}
	}
	for key, v := range s.Rows {
		mine := slices.ContainsFunc(keep.Links, func(k hoststate.Link) bool { return k.Index == key.Port })
		if key.VNI == br.VNI || key.Table == hoststate.TableMember && mine {
			keep.Rows[key] = v
		}
	}
	return keep, nil
}
