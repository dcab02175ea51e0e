package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/api/culvertv1/culvertv1connect"
	"culvert/internal/overlay"
)

// VMSpec is what a user says of a VM.
type VMSpec struct {
	Name       string
	Host       string
	Tenant     string // empty: default
	Network    string
	MAC        string   // empty: the port's; of an undeclared VM: made from its name
	Addresses  []string // empty: the port's; an undeclared VM needs its own
	Undeclared bool     // no port is declared and its device names none
	Announce   bool
	Qemu       bool // a guest of QEMU; else a namespace
	DHCP       bool // it boots without addresses and asks the network
}

// defaultTenant owns what no tenant is named for.
const defaultTenant = "default"

// upLimit is how long a VM's port has to come up on a loaded machine.
const upLimit = 30 * time.Second

// VMResult is what became of a VM.
type VMResult struct {
	VM      VM
	Changed bool
	Pending []string // hosts that do not hold the change yet: behind, or away
}

// CreateVM declares the VM's port unless it is undeclared, makes the VM, plugs
// it in and returns when its port is up and every host that is there knows it.
// A VM that is there as specified is left as it is.
func (l *Lab) CreateVM(ctx context.Context, spec VMSpec) (VMResult, error) {
	unlock, err := l.lock(ctx)
	if err != nil {
		return VMResult{}, err
	}
	defer unlock(false)
	s, err := l.loadReady()
	if err != nil {
		return VMResult{}, err
	}
	made, pending, err := l.createVMs(ctx, s, []VMSpec{spec})
	if err != nil {
		return VMResult{}, err
	}
	vm, _ := s.vm(spec.Name)
	return VMResult{vm, made > 0, pending}, nil
}

// createVMs makes those VMs that are not there yet and says how many, and
// which hosts do not hold them yet. What was made before an error is removed
// again.
func (l *Lab) createVMs(ctx context.Context, s *state, specs []VMSpec) (made int, pending []string, err error) {
	client, err := l.dial()
	if err != nil {
		return 0, nil, err
	}
	defer client.Close()
	c := &creation{lab: l, s: s, client: client}
	if err := c.choose(ctx, specs); err != nil || len(c.specs) == 0 {
		return 0, nil, err
	}
	if err = c.declare(ctx); err == nil {
		if err = c.plug(ctx); err == nil {
			pending, err = c.awaitUp(ctx)
		}
	}
	if err != nil && !errors.Is(err, errPending) {
		return 0, nil, errors.Join(err, c.undo(context.WithoutCancel(ctx)))
	}
	return len(c.specs), pending, err
}

// creation is VMs on their way.
type creation struct {
	lab      *Lab
	s        *state
	client   culvertv1connect.APIClient
	specs    []VMSpec
	networks map[string]*culvertv1.Network // by tenant/name
	declared []*culvertv1.Port             // by this creation
	vms      []VM
}

// choose checks the specs and keeps those that there is something to do for.
func (c *creation) choose(ctx context.Context, specs []VMSpec) error {
	c.networks = map[string]*culvertv1.Network{}
	for _, v := range specs {
		if v.Tenant == "" {
			v.Tenant = defaultTenant
		}
		what := fmt.Sprintf("VM %q was not created", v.Name)
		if err := v.check(c.s.Topology); err != nil {
			if ref, ok := api.RefuseValue(what, err); ok {
				return ref
			}
			return err
		}
		if v.Qemu {
			if _, _, _, err := c.lab.image(v.DHCP, what); err != nil {
				return err
			}
		}
		if have, ok := c.s.vm(v.Name); ok {
			whole := have.Ready && c.lab.stands(have)
			if whole && have.is(v) {
				continue
			}
			if whole {
				return api.Refuse(api.CodeExists, what, fmt.Sprintf("it is there, on %s in %s/%s with %s %s", have.Host, have.Tenant, have.Network, have.MAC, have.addresses()),
					"Move it, or remove it first: culvert lab vm remove "+v.Name+c.lab.flag())
			}
			if err := c.lab.dropVM(ctx, c.s, have); err != nil {
				return err
			}
		}
		key := v.Tenant + "/" + v.Network
		if c.networks[key] == nil {
			res, err := c.client.List(ctx, &culvertv1.ListRequest{Kind: "network", Tenant: v.Tenant, Name: v.Network})
			if err != nil {
				return err
			}
			if len(res.GetItems()) == 0 {
				return api.Refuse(api.CodeNotFound, what, "there is no network "+key, "Make it: culvert network create "+key+" --subnet 10.20.0.0/24")
			}
			c.networks[key] = res.GetItems()[0].GetNetwork()
		}
		c.specs = append(c.specs, v)
	}
	return nil
}

func (v VMSpec) check(t Topology) error {
	if err := CheckVMName(v.Name); err != nil {
		return err
	}
	if !t.HasHost(v.Host) {
		return &overlay.FieldError{Field: "host", Value: v.Host, Allowed: "h1 to " + HostName(t.Hosts)}
	}
	if v.MAC != "" {
		m, err := overlay.ParseMAC(v.MAC)
		if err != nil || !m.IsUnicast() {
			return &overlay.FieldError{Field: "mac", Value: v.MAC, Allowed: "a unicast MAC like 52:54:00:12:34:56"}
		}
	}
	for _, a := range v.Addresses {
		if _, err := overlay.ParseAddr("ip", a); err != nil {
			return err
		}
	}
	if v.Undeclared && len(v.Addresses) == 0 && !v.DHCP {
		return &overlay.FieldError{Field: "ip", Value: "", Allowed: "an address: nobody gives one to an undeclared VM"}
	}
	return nil
}

// is reports whether the VM is what a specification says; what that leaves
// open fits anything.
func (v VM) is(s VMSpec) bool {
	return v.Host == s.Host && v.Tenant == s.Tenant && v.Network == s.Network && v.Declared != s.Undeclared && v.Announce == s.Announce && v.Qemu == s.Qemu && v.DHCP == s.DHCP &&
		(s.MAC == "" || strings.EqualFold(v.MAC, s.MAC)) &&
		(len(s.Addresses) == 0 || v.addresses() == strings.Join(s.Addresses, " "))
}

func (v VM) addresses() string {
	var s []string
	for _, a := range v.Addresses {
		s = append(s, a.Addr().String())
	}
	return strings.Join(s, " ")
}

// stands reports whether the VM's namespaces are there, or its QEMU runs.
func (l *Lab) stands(vm VM) bool {
	if vm.Qemu {
		return slices.ContainsFunc(vm.Processes, func(d Daemon) bool { return d.Node == vm.Host && d.State() != "dead" })
	}
	_, ok := inode(NSOfVM(l.name, vm.Name))
	_, nic := inode(nsOfNIC(l.name, vm.Name))
	return ok && nic
}

// declare makes the ports that are missing, all or none, and fills in the
// VMs from them.
func (c *creation) declare(ctx context.Context) error {
	var missing []*culvertv1.Resource
	ports := map[string]*culvertv1.Port{}
	for _, v := range c.specs {
		if v.Undeclared {
			continue
		}
		have, err := c.port(ctx, v.Tenant, v.Name)
		if err != nil {
			return err
		}
		bare := v.MAC == "" && len(v.Addresses) == 0
		if have != nil && bare && have.GetSpec().GetNetwork() == v.Network {
			ports[v.Name] = have
			continue
		}
		p := &culvertv1.Port{
			ApiVersion: "culvert/v1alpha1", Kind: "Port",
			Metadata: &culvertv1.Metadata{Name: v.Name, Tenant: v.Tenant},
			Spec:     &culvertv1.PortSpec{Network: v.Network, Mac: v.MAC, Addresses: v.Addresses, Vm: v.Name},
		}
		missing = append(missing, api.Wrap(p))
	}
	if len(missing) > 0 {
		res, err := c.client.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: missing})
		if err != nil {
			return err
		}
		for _, ch := range res.GetChanges() {
			p := ch.GetResource().GetPort()
			ports[p.GetMetadata().GetName()] = p
			if ch.GetAction() == "created" {
				c.declared = append(c.declared, p)
			}
		}
	}
	for _, v := range c.specs {
		vm, err := vmOf(v, c.networks[v.Tenant+"/"+v.Network], ports[v.Name])
		if err != nil {
			return err
		}
		c.vms = append(c.vms, vm)
		c.s.put(vm)
	}
	return c.lab.save(c.s)
}

// port asks for one port; nil if there is none.
func (c *creation) port(ctx context.Context, tenant, name string) (*culvertv1.Port, error) {
	res, err := c.client.List(ctx, &culvertv1.ListRequest{Kind: "port", Tenant: tenant, Name: name})
	if err != nil {
		var ref *api.Refusal
		if errors.As(err, &ref) && ref.Exit() == api.ExitNotFound {
			return nil, nil
		}
		return nil, err
	}
	if len(res.GetItems()) == 0 {
		return nil, nil
	}
	return res.GetItems()[0].GetPort(), nil
}

// vmOf puts together what user, network and port say. port is nil for an
// undeclared VM.
func vmOf(v VMSpec, n *culvertv1.Network, port *culvertv1.Port) (VM, error) {
	vm := VM{
		Name: v.Name, Tenant: v.Tenant, Network: v.Network, Host: v.Host, Announce: v.Announce, Qemu: v.Qemu, DHCP: v.DHCP,
		VNI: overlay.VNI(n.GetStatus().GetVni()), MTU: int(n.GetStatus().GetMtu()), Declared: !v.Undeclared, MAC: v.MAC,
	}
	addresses := v.Addresses
	if port != nil {
		vm.MAC, addresses = port.GetStatus().GetMac(), port.GetStatus().GetAddresses()
	}
	if vm.MAC == "" {
		vm.MAC = macOfName(v.Name).String()
	}
	for _, s := range addresses {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return VM{}, fmt.Errorf("address of port %s: %w", v.Name, err)
		}
		p := netip.PrefixFrom(a, a.BitLen())
		for _, sub := range n.GetSpec().GetSubnets() {
			if sp, err := netip.ParsePrefix(sub.GetPrefix()); err == nil && sp.Contains(a) {
				p = netip.PrefixFrom(a, sp.Bits())
			}
		}
		vm.Addresses = append(vm.Addresses, p)
	}
	if n.GetSpec().GetDomain() != "" && !v.DHCP {
		vm.Gateways = gatewaysOf(vm.Addresses, n.GetStatus().GetGateways())
	}
	return vm, nil
}

// plug makes the VMs and connects them.
func (c *creation) plug(ctx context.Context) error {
	var work errgroup.Group
	work.SetLimit(4)
	for i, vm := range c.vms {
		work.Go(func() error {
			if vm.Qemu {
				return c.boot(ctx, &c.vms[i])
			}
			g, err := vm.guest(c.lab.name)
			if err != nil {
				return err
			}
			if err := c.lab.awaitBridge(ctx, vm.Host, g.Bridge); err != nil {
				return err
			}
			if err := g.Make(ctx); err != nil {
				return err
			}
			if err := g.Prepare(vm.Host); err != nil {
				return err
			}
			if err := g.Resume(vm.Host); err != nil {
				return err
			}
			if g.Announce {
				return g.Speak()
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	for i := range c.vms {
		c.vms[i].Ready = true
		c.s.put(c.vms[i])
	}
	return c.lab.save(c.s)
}

// boot starts a machine and waits until it is there.
func (c *creation) boot(ctx context.Context, vm *VM) error {
	m, err := vm.machine(c.lab)
	if err != nil {
		return err
	}
	if err := c.lab.awaitBridge(ctx, vm.Host, m.Bridge); err != nil {
		return err
	}
	d, err := m.start(ctx, vm.Host, "")
	if err != nil {
		return err
	}
	vm.Processes = []Daemon{d}
	return m.awaitReady(ctx, vm.Host, d)
}

// awaitBridge waits for the network's bridge on a host: its agent makes it
// when it hears of the network.
func (l *Lab) awaitBridge(ctx context.Context, host, bridge string) error {
	node, err := openNS(NSOfNode(l.name, host))
	if err != nil {
		return err
	}
	defer node.Close()
	err = poll(ctx, upLimit, func() (bool, error) {
		_, err := node.LinkByName(bridge)
		return err == nil, nil
	})
	if errors.Is(err, errTimeout) {
		return api.Refuse(api.CodePending, "the VM was not plugged in", fmt.Sprintf("%s has no bridge %s after %s", host, bridge, upLimit),
			"See whether its agent runs: culvert lab status"+l.flag())
	}
	return err
}

// errPending says that VMs stand, but their ports are not up everywhere.
var errPending = errors.New("not yet everywhere")

// awaitUp waits until every declared port is up on its host and all hosts that
// are there hold it.
func (c *creation) awaitUp(ctx context.Context) (pending []string, err error) {
	want := map[string]VM{}
	for _, vm := range c.vms {
		if vm.Declared {
			want[vm.Tenant+"/"+vm.Name] = vm
		}
	}
	if len(want) == 0 {
		return nil, nil
	}
	_, hosts, err := awaitPorts(ctx, c.client, want)
	return notExact(hosts), err
}

func notExact(hosts []*culvertv1.HostWait) []string {
	var names []string
	for _, h := range hosts {
		if h.GetState() != "exact" {
			names = append(names, h.GetHost())
		}
	}
	return names
}

// awaitPorts waits until the ports are up where their VMs are, then until all
// hosts hold the revision that says so.
func awaitPorts(ctx context.Context, client culvertv1connect.APIClient, want map[string]VM) (revision string, hosts []*culvertv1.HostWait, err error) {
	// A revision that was overtaken meanwhile concerns nobody: an endpoint that
	// moves is bound by its source's word, and again by its destination's.
	for range overtaken {
		if revision, err = awaitUp(ctx, client, want); err != nil {
			return "", nil, err
		}
		if hosts, err = awaitHosts(ctx, client, revision); err != nil || len(hosts) > 0 {
			break
		}
	}
	return revision, hosts, err
}

// overtaken bounds how often a revision is looked up anew.
const overtaken = 10

// awaitUp waits until the ports are up where they should be, and gives the
// revision that says so.
func awaitUp(ctx context.Context, client culvertv1connect.APIClient, want map[string]VM) (revision string, err error) {
	missing := ""
	err = pollEvery(ctx, 2*time.Millisecond, upLimit, func() (bool, error) {
		res, err := client.List(ctx, &culvertv1.ListRequest{Kind: "port"})
		if err != nil {
			return false, err
		}
		up := map[string]bool{}
		for _, r := range res.GetItems() {
			p := r.GetPort()
			k := p.GetMetadata().GetTenant() + "/" + p.GetMetadata().GetName()
			up[k] = p.GetStatus().GetState() == "up" && p.GetStatus().GetHost() == want[k].Host
		}
		missing = ""
		for _, k := range sortedKeys(want) {
			if !up[k] {
				missing += " " + k
			}
		}
		revision = res.GetRevision()
		return missing == "", nil
	})
	if errors.Is(err, errTimeout) {
		return "", errors.Join(errPending, api.Refuse(api.CodePending, "the VM runs, but it is not connected everywhere yet",
			"not up after "+upLimit.String()+":"+missing, ""))
	}
	return revision, err
}

// awaitHosts waits until no host is behind a revision. Hosts that are away do
// not come back for being waited for.
func awaitHosts(ctx context.Context, client culvertv1connect.APIClient, revision string) ([]*culvertv1.HostWait, error) {
	for end := time.Now().Add(upLimit); ; {
		res, err := client.Wait(ctx, &culvertv1.WaitRequest{Revision: revision, TimeoutSeconds: 1})
		if err != nil {
			return nil, err
		}
		behind := slices.ContainsFunc(res.GetHosts(), func(h *culvertv1.HostWait) bool { return h.GetState() == "behind" })
		if res.GetDone() || !behind || time.Now().After(end) {
			return res.GetHosts(), nil
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}

// undo removes what this creation made.
func (c *creation) undo(ctx context.Context) error {
	var errs []error
	for _, vm := range c.vms {
		errs = append(errs, c.lab.dropVM(ctx, c.s, vm))
	}
	for _, p := range c.declared {
		_, err := c.client.Delete(ctx, &culvertv1.DeleteRequest{Kind: "port", Tenant: p.GetMetadata().GetTenant(), Name: p.GetMetadata().GetName()})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
