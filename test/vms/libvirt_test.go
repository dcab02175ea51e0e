package vms

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/lab"
	"culvert/internal/lab/libvirttest"
	"culvert/internal/lab/qemu"
	"culvert/internal/overlay"
)

// A guest that libvirt starts is the port that its MAC says; it is moved live
// from one libvirtd to the other and is reachable afterwards; a libvirtd that
// is killed comes back with its guest running.
func TestGuestUnderLibvirt(t *testing.T) {
	top := lab.Topology{Hosts: 2, Libvirt: true}
	l := newLab(t, top)
	if r := up(t, l, top, true); r.Changed {
		t.Error("the second up changed something")
	}
	n1 := vm(t, l, lab.VMSpec{Name: "n1", Host: "h2"})
	d := domain(t, l, n1, "web1")
	libvirttest.Create(t, l, "h1", d)
	libvirttest.AwaitReady(t, l, "h1", "web1")
	target := d.Addresses[0].Addr().String()
	reaches(t, l, "n1", target)

	pings := make(chan lab.PingResult, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		r, err := lab.Ping(ctx, lab.NSOfVM(l.Name(), "n1"), lab.PingOptions{Target: d.Addresses[0].Addr(), Interval: time.Millisecond})
		if err != nil {
			t.Error(err)
		}
		pings <- r
	}()
	if err := libvirttest.Migrate(t.Context(), l, "web1", "h1", "h2"); err != nil {
		t.Error(err)
	}
	reaches(t, l, "n1", target)
	stop()
	r := <-pings
	t.Logf("figure: web1 by libvirt to h2: %d of %d pings lost, 1 ms apart", len(r.Lost), r.Sent)
	if got := libvirttest.Domains(t, l, "h2"); !slices.Contains(got, "web1") || len(libvirttest.Domains(t, l, "h1")) != 0 {
		t.Errorf("on h2: %v, on h1: %v", got, libvirttest.Domains(t, l, "h1"))
	}

	if err := l.KillLibvirt("h2"); err != nil {
		t.Fatal(err)
	}
	awaitDomain(t, l, "h2", "web1")
	reaches(t, l, "n1", target)
	libvirttest.Virsh(t, l, "h2", "destroy", "web1")
	if got := libvirttest.Domains(t, l, "h2"); len(got) != 0 {
		t.Errorf("after destroy: %v", got)
	}
	// The lab goes with a guest running.
	libvirttest.Create(t, l, "h1", d)
}

// domain declares a port in the network of a VM and returns the guest that is
// to be it.
func domain(t *testing.T, l *lab.Lab, beside lab.VM, name string) libvirttest.Domain {
	t.Helper()
	kernel, initramfs, err := l.GuestImage()
	if err != nil {
		t.Fatalf("%v\n(%s)", err, hint)
	}
	changes := put(t, l, api.Wrap(&culvertv1.Port{
		ApiVersion: "culvert/v1alpha1", Kind: "Port", Metadata: &culvertv1.Metadata{Name: name, Tenant: "default"},
		Spec: &culvertv1.PortSpec{Network: "blue", Vm: name},
	}))
	st := changes[0].GetResource().GetPort().GetStatus()
	var addresses []netip.Prefix
	for i, s := range st.GetAddresses() { // one of each subnet, in their order
		a, err := netip.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, netip.PrefixFrom(a, beside.Addresses[i].Bits()))
	}
	mac, err := overlay.ParseMAC(st.GetMac())
	if err != nil {
		t.Fatal(err)
	}
	return libvirttest.Domain{
		Guest: qemu.Guest{
			Name: name, MAC: mac.String(), Addresses: addresses, MTU: beside.MTU,
			Announce: true, Kernel: kernel, Initramfs: initramfs,
		},
		Bridge: beside.VNI.Bridge(), Alias: "ua-" + name,
	}
}

// awaitDomain waits until a libvirtd says that a domain runs.
func awaitDomain(t *testing.T, l *lab.Lab, host, name string) {
	t.Helper()
	end := time.Now().Add(settle)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := libvirttest.Try(t.Context(), l, host, "", "domstate", name)
		if err == nil && out == "running" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s on %s: %q, %v", name, host, out, err)
		}
		<-tick.C
	}
}
