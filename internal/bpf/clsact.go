package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// filters attaches programs as filters of a clsact qdisc (tc-bpf(8), direct
// action), for kernels before 6.6. The qdisc stays when the last filter is
// gone: whether anybody else counts on it cannot be known.
type filters struct{ h *netlink.Handle }

// Our filters' place. Filters of a priority run in the order in which they
// came, so that those of others at the first priority may run before.
const (
	filterPriority = 1
	filterHandle   = 0xc7
)

func openFilters() (*filters, error) {
	ns, err := netns.Get() // of the calling thread
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink for filters: %w", err)
	}
	return &filters{h}, nil
}

func (f *filters) close() { f.h.Close() }

// linkIndex is a device by its index alone.
func linkIndex(dev int32) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: int(dev)}}
}

func (f *filters) query(dev int32, ingress bool) ([]attached, error) {
	const tries = 5
	for i := 1; ; i++ {
		list, err := f.h.FilterList(linkIndex(dev), parent(ingress))
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			if i < tries {
				continue
			}
			return nil, unix.EINTR
		}
		if err != nil {
			return nil, err
		}
		var on []attached
		for _, l := range list {
			if b, ok := l.(*netlink.BpfFilter); ok && b.Id != 0 {
				on = append(on, attached{id: ebpf.ProgramID(b.Id), handle: b.Handle, priority: b.Priority, protocol: b.Protocol})
			}
		}
		if len(on) == 0 {
			return nil, f.exists(dev) // a dump of no device is empty
		}
		return on, nil
	}
}

// exists is unix.ENODEV if there is no such device.
func (f *filters) exists(dev int32) error {
	_, err := f.h.LinkByIndex(int(dev))
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return unix.ENODEV
	}
	return err
}

func (f *filters) add(dev int32, ingress bool, p *ebpf.Program) error {
	err := f.h.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: int(dev), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	return f.h.FilterAdd(filter(dev, ingress, attached{handle: filterHandle, priority: filterPriority, protocol: unix.ETH_P_ALL}, p))
}

func (f *filters) replace(dev int32, ingress bool, old attached, p *ebpf.Program) error {
	return f.h.FilterReplace(filter(dev, ingress, old, p))
}

func (f *filters) remove(dev int32, ingress bool, old attached) error {
	return f.h.FilterDel(filter(dev, ingress, old, nil))
}

func parent(ingress bool) uint32 {
	if ingress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

// filter describes a filter at its place; without a program, to delete it.
func filter(dev int32, ingress bool, at attached, p *ebpf.Program) *netlink.BpfFilter {
	b := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: int(dev), Parent: parent(ingress), Handle: at.handle, Priority: at.priority, Protocol: at.protocol},
		Fd:          -1, Name: "culvert", DirectAction: true,
	}
	if p != nil {
		b.Fd = p.FD()
	}
	return b
}
