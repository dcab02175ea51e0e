package hoststate

import (
	"fmt"
	"strings"

	"culvert/internal/overlay"
)

// OpKind is what an operation does.
type OpKind uint8

// The operations. Each is one kernel change (or one unavoidable group of
// them) that can succeed or be refused by itself.
const (
	// OpSet writes Row: creates it or replaces what stands under its key.
	// TableRepl rows are appended; one that is there already is no error.
	OpSet OpKind = 1
	// OpDel deletes the row under Row.Key. TableFDB compares destination and VNI,
	// TableMaster the port: if another stands there, nothing is deleted, and
	// the result is ClassOK with what stands there in Have. An absent row is
	// ClassNotFound, which callers take as done.
	OpDel OpKind = 2
	// OpBase makes our nftables tables, sets, chains and rules, empty sets
	// included, in one transaction. Existing set elements are kept.
	OpBase OpKind = 3
	// OpMakeBridge creates Dev's bridge, down, isolates it, then sets it up.
	// ClassExists if a device of that name is there.
	OpMakeBridge OpKind = 4
	// OpMakeVXLAN creates Dev's VXLAN device, makes it a port of the bridge
	// with learning off, flood as Misses says, and leaves it down: rows are
	// written first (kernel-facts 2: "fill first, then up"). ClassExists if it
	// is there.
	OpMakeVXLAN OpKind = 5
	// OpUp sets the link Index up.
	OpUp OpKind = 6
	// OpTune changes what may be changed on a live device of Dev (MTU, DF,
	// local, alias, altname, port flags) and isolates the bridge if it is not.
	OpTune OpKind = 7
	// OpPort makes the VM port Index as a VM port must be: flood off,
	// learning off, IPv6 off; isolated from other such ports unless it is in
	// TableMember, whose rows change that too.
	OpPort OpKind = 8
	// OpDelLink deletes the link Index. ClassGone if it is not there.
	OpDelLink OpKind = 9
	// OpAttach makes link Name a port of Dev.VNI's bridge, with Alias.
	OpAttach OpKind = 10
	// OpDetach takes link Name off its bridge and clears its alias.
	OpDetach OpKind = 11
	// OpAnnounce tells the guests behind VM ports of VNI that IP is at MAC: a
	// gratuitous ARP reply or an unsolicited neighbour advertisement with the
	// override flag, sent out of each member port. No kernel state changes.
	OpAnnounce OpKind = 12
	// OpSend sends Frame out of the bridge port Index, to the guest behind it
	// alone. ClassGone if that is no bridge's port. No kernel state changes, and
	// a frame that the port does not take is lost. With Past it goes past the
	// port's program and queue: also behind a port that passes nothing.
	OpSend OpKind = 13
)

// String is the operation's word in dumps and logs.
func (k OpKind) String() string {
	names := [...]string{"none", "set", "del", "base", "make-bridge", "make-vxlan", "up", "tune", "port", "del-link", "attach", "detach", "announce", "send"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Op is one operation. ID is the caller's and comes back in the Result.
type Op struct {
	ID    uint64
	Kind  OpKind
	Row   Row    // OpSet, OpDel; OpAnnounce (Key.VNI, Key.IP, Val.MAC)
	Dev   Device // OpMakeBridge, OpMakeVXLAN, OpTune, OpAttach (VNI)
	Index int32  // OpUp, OpPort, OpDelLink, OpSend
	Learn bool   // OpPort: learning stays on, for a device that no port claims yet
	Name  string // OpAttach, OpDetach
	Alias string // OpAttach
	Frame string // OpSend: from the Ethernet header on; a string, for operations are compared
	Past  bool   // OpSend
}

// Class is what an error means to the core, whatever the kernel called it.
type Class uint8

// Error classes. None ends the daemon.
const (
	ClassOK        Class = 0
	ClassExists    Class = 1 // EEXIST where a new thing was wanted
	ClassNotFound  Class = 2 // ENOENT, ESRCH: the row is not there
	ClassGone      Class = 3 // ENODEV, ENXIO: the device is not there
	ClassFull      Class = 4 // ENOSPC, ENOBUFS on a table, EXFULL, ENOMEM
	ClassTransient Class = 5 // EINTR, EAGAIN, EBUSY, interrupted dump, socket overflow
	ClassRefused   Class = 6 // EPERM, EACCES, EOPNOTSUPP, EAFNOSUPPORT, EINVAL, ERANGE: trying again won't help
	ClassUnknown   Class = 7 // anything else
)

// String is the class's word in logs and metrics.
func (c Class) String() string {
	names := [...]string{"ok", "exists", "not-found", "gone", "full", "transient", "refused", "unknown"}
	if int(c) < len(names) {
		return names[c]
	}
	return "unknown"
}

// Result is what became of an operation.
type Result struct {
	Op    Op
	Class Class
	Text  string // the kernel's words, for people; empty when ClassOK

	// Read back after the operation, for OpSet and OpDel: what the kernel now
	// holds under Row.Key. Valid when Verified.
	Verified bool
	Present  bool
	Have     Val
}

// PortAlias is what `culvert attach` writes on a VM's device, and what a
// hypervisor may write there itself.
func PortAlias(tenant, port string) string { return "culvert port=" + tenant + "/" + port }

// ParsePortAlias reads what PortAlias wrote. ok is false for anything else,
// names that are no names included.
func ParsePortAlias(alias string) (tenant, port string, ok bool) {
	s, found := strings.CutPrefix(alias, "culvert port=")
	if !found {
		return "", "", false
	}
	tenant, port, found = strings.Cut(s, "/")
	if !found || overlay.CheckName("tenant", tenant) != nil || overlay.CheckName("port", port) != nil {
		return "", "", false
	}
	return tenant, port, true
}

// String is a line for logs and test failures.
func (o Op) String() string {
	switch o.Kind {
	case OpSet, OpDel:
		return o.Kind.String() + " " + o.Row.String()
	case OpAnnounce:
		return fmt.Sprintf("announce vni %d %s at %s", o.Row.Key.VNI, o.Row.Key.IP, o.Row.Val.MAC)
	case OpMakeBridge, OpMakeVXLAN, OpTune:
		return fmt.Sprintf("%s vni %d", o.Kind, o.Dev.VNI)
	case OpSend:
		return fmt.Sprintf("send %d bytes to if%d", len(o.Frame), o.Index)
	case OpAttach, OpDetach:
		return fmt.Sprintf("%s %s vni %d", o.Kind, o.Name, o.Dev.VNI)
	}
	return fmt.Sprintf("%s %d", o.Kind, o.Index)
}
