package lab

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"culvert/internal/overlay"
)

// MaxHosts is the most hosts that a lab has: one underlay subnet each, the
// third octet of which is the host's number.
const MaxHosts = 99

// DefaultName is the lab that verbs mean when none is named.
const DefaultName = "default"

// DefaultUnderlayMTU is the underlay's MTU in bytes if none is asked for.
const DefaultUnderlayMTU = 1500

// Topology says what a lab is built of, before any VM. Its zero values stand
// for the defaults that Check puts in.
type Topology struct {
	Name        string `json:"name"`              // 1 to 20 of a-z0-9, beginning with a letter
	Hosts       int    `json:"hosts"`             // 1 to MaxHosts
	Flat        bool   `json:"flat"`              // one underlay segment instead of a router between subnets
	Outside     bool   `json:"outside,omitempty"` // a network outside the overlay, with a router
	UnderlayMTU int    `json:"underlayMTU"`       // bytes, 1350 to 9000
	NoDaemons   bool   `json:"noDaemons,omitempty"`
	Libvirt     bool   `json:"libvirt,omitempty"` // a libvirtd on every host
	VMs         string `json:"vms,omitempty"`     // what the sample VMs are: VMsQemu, or empty for namespaces
}

// VMsQemu says that VMs are guests of QEMU.
const VMsQemu = "qemu"

// Node is one namespace of a lab that has an underlay address.
type Node struct {
	Name    string       // h1, h2, ..., m1
	Number  int          // 0 for m1, N for hN
	Address netip.Prefix // on the underlay
	Gateway netip.Addr   // invalid in a flat lab
}

// A lab's name has no hyphen, so that the namespace of one lab's node can
// never have the name of another's ("cv-a-h1" against lab "a-h1").
var labName = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)

var nodeName = regexp.MustCompile(`^(h[1-9][0-9]?|m1|rt|out)$`)

// CheckLabName accepts 1 to 20 of a-z0-9 that begin with a letter.
func CheckLabName(s string) error {
	if !labName.MatchString(s) {
		return &overlay.FieldError{Field: "lab", Value: s, Allowed: "1 to 20 of a-z and 0-9, a letter first"}
	}
	return nil
}

// CheckVMName accepts a DNS label that is no node's name.
func CheckVMName(s string) error {
	if nodeName.MatchString(s) {
		return &overlay.FieldError{Field: "vm", Value: s, Allowed: "a name that no node of the lab has (h1, m1, ...)"}
	}
	return overlay.CheckName("vm", s)
}

// Check returns t with defaults in place, or names the first wrong value as
// an *overlay.FieldError.
func (t Topology) Check() (Topology, error) {
	t.Name = cmp.Or(t.Name, DefaultName)
	t.Hosts = cmp.Or(t.Hosts, 3)
	t.UnderlayMTU = cmp.Or(t.UnderlayMTU, DefaultUnderlayMTU)
	if err := CheckLabName(t.Name); err != nil {
		return t, err
	}
	if t.Hosts < 1 || t.Hosts > MaxHosts {
		return t, &overlay.FieldError{Field: "hosts", Value: strconv.Itoa(t.Hosts), Allowed: "1 to 99"}
	}
	// Below 1350 a guest would get less than the 1280 bytes that IPv6 needs.
	if t.UnderlayMTU < 1350 || t.UnderlayMTU > 9000 {
		return t, &overlay.FieldError{Field: "underlay-mtu", Value: strconv.Itoa(t.UnderlayMTU), Allowed: "1350 to 9000 bytes"}
	}
	if t.VMs != "" && t.VMs != VMsQemu {
		return t, &overlay.FieldError{Field: "vms", Value: t.VMs, Allowed: "namespaces or qemu"}
	}
	return t, nil
}

// Nodes lists the manager and the hosts, the manager first. Underlay
// addresses are the same in every lab: namespaces keep them apart.
func (t Topology) Nodes() []Node {
	nodes := make([]Node, 0, t.Hosts+1)
	for i := range t.Hosts + 1 {
		n := Node{Name: "m1", Number: i}
		if i > 0 {
			n.Name = HostName(i)
		}
		bits := 24
		if t.Flat {
			bits = 16
		} else {
			n.Gateway = netip.AddrFrom4([4]byte{172, 20, byte(i), 254})
		}
		n.Address = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 20, byte(i), 1}), bits)
		nodes = append(nodes, n)
	}
	return nodes
}

// HostNodes lists the hosts alone, h1 first.
func (t Topology) HostNodes() []Node { return t.Nodes()[1:] }

// HasHost reports whether name is one of the lab's hosts.
func (t Topology) HasHost(name string) bool {
	return slices.ContainsFunc(t.HostNodes(), func(n Node) bool { return n.Name == name })
}

// HostName is the name of the n-th host, from 1.
func HostName(n int) string { return "h" + strconv.Itoa(n) }

// NSOfNode is the name of a node's namespace under /run/netns.
func NSOfNode(lab, node string) string { return "cv-" + lab + "-" + node }

// NSOfVM is the name of a VM's namespace.
func NSOfVM(lab, vm string) string { return "cv-" + lab + "-vm-" + vm }

// nsOfGateways is what the names of the namespaces of a host's gateways begin
// with.
func nsOfGateways(lab, host string) string { return "cv-" + lab + "-gw-" + host + "-" }

// nsOfNIC is the name of the namespace that stands for a VM's NIC.
func nsOfNIC(lab, vm string) string { return "cv-" + lab + "-nic-" + vm }

// labOfNS tells whose namespace it is: ok is false for a name that no lab
// makes.
func labOfNS(ns string) (lab string, ok bool) {
	rest, ok := strings.CutPrefix(ns, "cv-")
	if !ok {
		return "", false
	}
	lab, node, ok := strings.Cut(rest, "-")
	if !ok || !labName.MatchString(lab) {
		return "", false
	}
	if nodeName.MatchString(node) {
		return lab, true
	}
	for _, kind := range []string{"vm-", "nic-", "gw-"} {
		if vm, ok := strings.CutPrefix(node, kind); ok && overlay.CheckName("vm", vm) == nil {
			return lab, true
		}
	}
	return "", false
}

// TapName is the name of a VM's device on a host, at most 15 bytes (IFNAMSIZ
// is 16). A longer VM name is cut and made distinct by a hash of the whole.
func TapName(vm string) string {
	if len(vm) <= 12 {
		return "vm-" + vm
	}
	return fmt.Sprintf("vm-%s-%05x", vm[:6], nameHash(vm)&0xfffff)
}

func nameHash(s string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(s))
	return h.Sum32()
}

// String is the plan of the lab, a line a node; the same for the same
// topology.
func (t Topology) String() string {
	var b strings.Builder
	kind := "routed"
	if t.Flat {
		kind = "flat"
	}
	fmt.Fprintf(&b, "lab %s: %d hosts, 1 manager, underlay %s ipv4 mtu %d", t.Name, t.Hosts, kind, t.UnderlayMTU)
	if t.VMs != "" {
		fmt.Fprintf(&b, ", VMs in %s", t.VMs)
	}
	if t.Libvirt {
		b.WriteString(", libvirt on every host")
	}
	b.WriteString("\n")
	for _, n := range t.Nodes() {
		fmt.Fprintf(&b, "%-4s ns %s  eth0 %s", n.Name, NSOfNode(t.Name, n.Name), n.Address)
		if n.Gateway.IsValid() {
			fmt.Fprintf(&b, " via %s", n.Gateway)
		}
		b.WriteString("\n")
	}
	return b.String()
}
