package lab

import (
	"context"
	"fmt"
	"net/netip"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// PingVM pings from a VM to another VM or an address. Count, interval and
// waits are o's; its target is chosen here.
func (l *Lab) PingVM(ctx context.Context, name, target string, o PingOptions) (PingReport, error) {
	s, err := l.loadReady()
	if err != nil {
		return PingReport{}, err
	}
	from, ok := s.vm(name)
	if !ok {
		return PingReport{}, l.noNode(name)
	}
	r := PingReport{From: from, Target: target}
	if to, ok := s.vm(target); ok {
		r.To = &to
		if o.Target, ok = commonAddress(from, to); !ok {
			return r, api.Refuse(api.CodeNotFound, fmt.Sprintf("%s was not pinged", target),
				fmt.Sprintf("%s and %s have no address of the same family", name, target), "Name an address instead.")
		}
	} else if o.Target, err = overlay.ParseAddr("target", target); err != nil {
		return r, api.Refuse(api.CodeNotFound, fmt.Sprintf("%s was not pinged", target),
			fmt.Sprintf("lab %q has no such VM, and it is no address", l.name), "See the VMs: culvert lab status"+l.flag())
	}
	r.Result, err = l.pingFrom(ctx, from, o)
	return r, err
}

// pingFrom pings from a VM of either kind.
func (l *Lab) pingFrom(ctx context.Context, vm VM, o PingOptions) (PingResult, error) {
	if !vm.Qemu {
		return Ping(ctx, NSOfVM(l.name, vm.Name), o)
	}
	m, err := vm.machine(l)
	if err != nil {
		return PingResult{}, err
	}
	return m.ping(ctx, vm.Host, o)
}

// Everyone reports whether a target is all of the VM's network: the broadcast
// address of its subnet, or all nodes of IPv6.
func (v VM) Everyone(target string) bool {
	if target == allNodes {
		return true
	}
	for _, p := range v.Addresses {
		if p.Addr().Is4() && target == (overlay.Subnet{Prefix: p.Masked()}).Last().String() {
			return true
		}
	}
	return false
}

// allNodes is the IPv6 multicast group of all nodes of a link (RFC 4291
// section 2.7.1).
const allNodes = "ff02::1"

// PingAll sends broadcast pings from a VM: IPv4 broadcast if it has such an
// address, else IPv6 multicast to all nodes.
func (l *Lab) PingAll(ctx context.Context, name string, o PingOptions) (VM, PingResult, error) {
	vm, err := l.VM(name)
	if err != nil {
		return VM{}, PingResult{}, err
	}
	o.Broadcast, o.Target = true, netip.MustParseAddr(allNodes)
	for _, p := range vm.Addresses {
		if p.Addr().Is4() {
			o.Target = overlay.Subnet{Prefix: p.Masked()}.Last()
			break
		}
	}
	r, err := l.pingFrom(ctx, vm, o)
	return vm, r, err
}

// BridgeOf is the name of a network's bridge on every host. It asks the
// cluster only if no VM of the lab is in that network.
func (l *Lab) BridgeOf(ctx context.Context, tenant, network string) (string, error) {
	s, err := l.loadReady()
	if err != nil {
		return "", err
	}
	if tenant == "" {
		tenant = defaultTenant
	}
	for _, v := range s.VMs {
		if v.Tenant == tenant && v.Network == network {
			return v.VNI.Bridge(), nil
		}
	}
	cl, err := l.dial()
	if err != nil {
		return "", err
	}
	defer cl.Close()
	res, err := cl.List(ctx, &culvertv1.ListRequest{Kind: "network", Tenant: tenant, Name: network})
	if err != nil {
		return "", err
	}
	if len(res.GetItems()) == 0 {
		return "", api.Refuse(api.CodeNotFound, "tables were not read", "there is no network "+tenant+"/"+network, "See the networks: culvert network list")
	}
	return res.GetItems()[0].GetNetwork().GetStatus().GetBridge(), nil
}
