package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"culvert/internal/api"
	"culvert/internal/api/client"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/lab"
	"culvert/internal/overlay"
)

const (
	networkName = "bench"
	limit       = 60 * time.Second // for anything to become true
	batch       = 500              // ports a request
)

// world is a lab with one network that all hosts serve: every host has a port
// of its own in it, and a host without a kernel has the many endpoints.
type world struct {
	lab       *lab.Lab
	api       *client.Client
	hosts     int
	endpoints int
	places    []*place // h1, h2, ...
	ears      []*ear   // of all but h1
	network   overlay.UID
	vni       overlay.VNI
	crowd     *crowd // nil without many endpoints
	many      []endpoint
	keepers   []endpoint // the ports that keep the network served, by host
	made      int        // ports so far
}

// endpoint is a declared port.
type endpoint struct {
	Name string
	UID  overlay.UID
	MAC  overlay.MAC
	IPs  []netip.Addr
}

// entries are what all hosts but its own must hold of an endpoint at vtep,
// where the network's VXLAN device is vxlan.
func (e endpoint) entries(into entries, vtep netip.Addr, vxlan int) {
	into[key{table: self, mac: e.MAC}] = value{dst: vtep}
	into[key{table: master, mac: e.MAC}] = value{port: vxlan}
	for _, ip := range e.IPs {
		into[key{table: neigh, ip: ip}] = value{mac: e.MAC}
	}
}

func newWorld(ctx context.Context, o options, hosts, endpoints int) (w *world, err error) {
	name := fmt.Sprintf("benchn%de%d", hosts, endpoints)
	if w, err = emptyWorld(ctx, o, name, hosts); err != nil {
		return w, err
	}
	w.endpoints = endpoints
	if err := w.makeNetwork(ctx, o); err != nil {
		return w, err
	}
	if err := w.keep(ctx); err != nil {
		return w, fmt.Errorf("serve the network everywhere: %w", err)
	}
	if endpoints > 0 {
		if err := w.fill(ctx, o, name); err != nil {
			return w, fmt.Errorf("make %d endpoints: %w", endpoints, err)
		}
	}
	return w, w.listen(ctx)
}

// emptyWorld is a lab without networks. What it has come to is returned with an
// error, too, to be closed.
func emptyWorld(ctx context.Context, o options, name string, hosts int) (w *world, err error) {
	w = &world{hosts: hosts}
	if w.lab, err = lab.New(name, lab.Config{Culvert: []string{o.culvert}}); err != nil {
		return nil, err
	}
	if _, err := w.lab.Up(ctx, lab.Topology{Name: name, Hosts: hosts}, true); err != nil {
		return w, err
	}
	cfg, err := client.Load(w.lab.ClientConfig())
	if err != nil {
		return w, err
	}
	if w.api, err = client.New(cfg); err != nil {
		return w, err
	}
	for i := range hosts {
		p, err := openPlace(name, lab.HostName(i+1))
		if err != nil {
			return w, err
		}
		w.places = append(w.places, p)
	}
	return w, nil
}

func (w *world) close(ctx context.Context) error {
	if w == nil {
		return nil
	}
	var errs []error
	if w.crowd != nil {
		errs = append(errs, w.crowd.close())
	}
	for _, e := range w.ears {
		errs = append(errs, e.close())
	}
	for _, p := range w.places {
		errs = append(errs, p.close())
	}
	if w.api != nil {
		w.api.Close()
	}
	if w.lab != nil {
		_, err := w.lab.Down(ctx)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (w *world) makeNetwork(ctx context.Context, o options) error {
	res, err := w.api.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: []*culvertv1.Resource{api.Wrap(&culvertv1.Network{
		ApiVersion: api.Version, Kind: "Network", Metadata: &culvertv1.Metadata{Name: networkName, Tenant: api.DefaultTenant},
		Spec: &culvertv1.NetworkSpec{Subnets: []*culvertv1.Subnet{{Prefix: "10.64.0.0/12"}, {Prefix: "fd00:64::/64"}}, Admission: o.admission, Distribution: o.distribution},
	})}})
	if err != nil {
		return fmt.Errorf("make network: %w", err)
	}
	n := res.GetChanges()[0].GetResource().GetNetwork()
	if w.network, err = overlay.ParseUID(n.GetMetadata().GetUid()); err != nil {
		return fmt.Errorf("make network: %w", err)
	}
	// The server allocates the VNI; a list says which.
	list, err := w.api.List(ctx, &culvertv1.ListRequest{Kind: "network", Tenant: api.DefaultTenant, Name: networkName})
	if err != nil {
		return fmt.Errorf("look up network: %w", err)
	}
	w.vni = overlay.VNI(list.GetItems()[0].GetNetwork().GetStatus().GetVni())
	return nil
}

// next are n new endpoints with a MAC and an address of each family, not
// declared yet.
func (w *world) next(prefix string, n int) []endpoint {
	out := make([]endpoint, n)
	for i := range out {
		w.made++
		a, b, c := byte(w.made>>16), byte(w.made>>8), byte(w.made)
		out[i] = endpoint{
			Name: fmt.Sprintf("%s%06d", prefix, w.made), MAC: overlay.MAC{0x52, 0x54, 0x42, a, b, c},
			IPs: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 65 + a, b, c}),
				netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x64, 12: 1, 13: a, 14: b, 15: c}),
			},
		}
	}
	return out
}

func (e endpoint) resource() *culvertv1.Resource {
	p := &culvertv1.PortSpec{Network: networkName, Mac: e.MAC.String()}
	for _, ip := range e.IPs {
		p.Addresses = append(p.Addresses, ip.String())
	}
	return api.Wrap(&culvertv1.Port{ApiVersion: api.Version, Kind: "Port", Metadata: &culvertv1.Metadata{Name: e.Name, Tenant: api.DefaultTenant}, Spec: p})
}

// declare makes the ports and notes their UIDs.
func (w *world) declare(ctx context.Context, list []endpoint) (rev string, err error) {
	for from := 0; from < len(list); from += batch {
		part := list[from:min(from+batch, len(list))]
		req := &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE}
		for _, e := range part {
			req.Resources = append(req.Resources, e.resource())
		}
		res, err := w.api.Put(ctx, req)
		if err != nil {
			return "", fmt.Errorf("declare ports: %w", err)
		}
		for i, c := range res.GetChanges() {
			if part[i].UID, err = overlay.ParseUID(c.GetResource().GetPort().GetMetadata().GetUid()); err != nil {
				return "", fmt.Errorf("declare ports: %w", err)
			}
		}
		rev = res.GetRevision()
	}
	return rev, nil
}

// keep gives every host a port in the network, so that all serve it.
func (w *world) keep(ctx context.Context) error {
	keepers := w.next("keep", w.hosts)
	w.keepers = keepers
	if _, err := w.declare(ctx, keepers); err != nil {
		return err
	}
	for i, p := range w.places {
		if err := await(ctx, func() (bool, error) { return p.has(w.vni.Bridge()), nil }); err != nil {
			return fmt.Errorf("bridge on %s: %w", p.node, err)
		}
		nic, err := p.makeNIC(keepers[i].Name)
		if err != nil {
			return err
		}
		if _, err := p.plug(nic, w.vni.Bridge()); err != nil {
			return err
		}
	}
	for i, p := range w.places {
		want := entries{}
		for j, k := range keepers {
			if i != j {
				k.entries(want, vtep(j+1), 0)
			}
		}
		if err := w.awaitEntries(ctx, p, want); err != nil {
			return err
		}
	}
	return nil
}

// vtep is the underlay address of the lab's n-th host.
func vtep(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 20, byte(n), 1}) }

// awaitEntries waits until the host's kernel holds all of want. The VXLAN
// device of each host is put in where want names a port.
func (w *world) awaitEntries(ctx context.Context, p *place, want entries) error {
	missing := 0
	err := await(ctx, func() (bool, error) {
		bridge, vxlan := p.index(w.vni.Bridge()), p.index(w.vni.VXLAN())
		if bridge == 0 || vxlan == 0 {
			missing = len(want)
			return false, nil
		}
		have, err := p.dump(bridge, vxlan)
		if err != nil {
			return false, nil // interrupted by changes
		}
		missing = differ(want, have, vxlan)
		return missing == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%d entries are missing on %s: %w", missing, p.node, err)
	}
	return nil
}

// differ counts the entries of want that have lacks or has otherwise.
func differ(want, have entries, vxlan int) (missing int) {
	for k, v := range want {
		if k.table == master {
			v.port = vxlan
		}
		if got, ok := have[k]; !ok || got != v {
			missing++
		}
	}
	return missing
}

// fill makes the many endpoints on a host that has no kernel, and waits until
// all kernels hold them.
func (w *world) fill(ctx context.Context, o options, labName string) (err error) {
	w.many = w.next("many", w.endpoints+o.more)
	if _, err := w.declare(ctx, w.many); err != nil {
		return err
	}
	if w.crowd, err = newCrowd(ctx, o, w, labName); err != nil {
		return err
	}
	if _, err := w.crowd.claim(w.network, w.many[:w.endpoints]); err != nil {
		return err
	}
	want := entries{}
	for _, e := range w.many[:w.endpoints] {
		e.entries(want, crowdVTEP, 0)
	}
	for _, p := range w.places {
		if err := w.awaitEntries(ctx, p, want); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) listen(context.Context) error {
	for _, p := range w.places[1:] {
		e, err := listen(p, p.index(w.vni.Bridge()), p.index(w.vni.VXLAN()))
		if err != nil {
			return err
		}
		w.ears = append(w.ears, e)
	}
	return nil
}

// await asks done every few milliseconds.
func await(ctx context.Context, done func() (bool, error)) error {
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-end.C:
			return fmt.Errorf("not so after %s", limit)
		case <-tick.C:
		}
	}
}

func (p *place) index(name string) int {
	l, err := p.LinkByName(name)
	if err != nil {
		return 0
	}
	return l.Attrs().Index
}

func (p *place) has(name string) bool { return p.index(name) != 0 }

// nic is a VM's device on a host, in no bridge and down.
type nic struct {
	index int
	name  string
}

// peerOf names the guest's end of a port's device.
func peerOf(port string) string { return "vm" + port[len(port)-6:] }

// makeNIC makes a device that says by its alias which port it is.
func (p *place) makeNIC(port string) (nic, error) {
	return p.makeDevice(port, hoststate.PortAlias(api.DefaultTenant, port))
}

// makeDevice makes a VM's device, named after a port. It is a veth whose other
// end is up already: like a running VM's tap it has carrier as soon as it is
// up. An empty alias is none.
func (p *place) makeDevice(port, alias string) (nic, error) {
	n := nic{name: "nic" + port[len(port)-6:]}
	d := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: n.name, MTU: 1500}, PeerName: peerOf(port), PeerNamespace: netlink.NsFd(p.guestsFD)}
	err := p.LinkAdd(d)
	if err == nil && alias != "" {
		err = p.LinkSetAlias(d, alias)
	}
	if err == nil {
		err = p.guests.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: d.PeerName}})
	}
	if err == nil {
		err = lab.InNS(p.ns, func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/"+n.name+"/disable_ipv6", []byte("1"), 0)
		})
	}
	if err != nil {
		return n, fmt.Errorf("device %s on %s: %w", n.name, p.node, err)
	}
	n.index = p.index(n.name)
	return n, nil
}

// plug puts the device into the bridge and sets it up, as a hypervisor does,
// and says when it began.
func (p *place) plug(n nic, bridge string) (time.Time, error) {
	at := p.index(bridge)
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: n.index, Name: n.name}}
	start := time.Now()
	err := p.LinkSetMasterByIndex(link, at)
	if err == nil {
		err = p.LinkSetUp(link)
	}
	if err != nil {
		return start, fmt.Errorf("plug %s in on %s: %w", n.name, p.node, err)
	}
	return start, nil
}

func (p *place) unplug(n nic) error {
	if err := p.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: n.index, Name: n.name}}); err != nil {
		return fmt.Errorf("unplug %s on %s: %w", n.name, p.node, err)
	}
	return nil
}

// settle waits until all hosts hold the newest revision, so that nothing of a
// sample is left for the next.
func (w *world) settle(ctx context.Context) error {
	st, err := w.api.Status(ctx, &culvertv1.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask for status: %w", err)
	}
	rev, err := api.ParseRev("revision", st.GetRevision())
	if err != nil {
		return err
	}
	return await(ctx, func() (bool, error) {
		st, err := w.api.Status(ctx, &culvertv1.StatusRequest{})
		if err != nil {
			return false, fmt.Errorf("ask for status: %w", err)
		}
		for _, h := range st.GetHosts() {
			if !strings.HasPrefix(h.GetMetadata().GetName(), "h") {
				continue
			}
			at, err := api.ParseRev("applied", h.GetStatus().GetAppliedRevision())
			if err != nil || at.Less(rev) {
				return false, nil
			}
		}
		return true, nil
	})
}
