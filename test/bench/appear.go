package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/hoststate"
	"culvert/internal/kernel"
	"culvert/internal/lab"
	"culvert/internal/overlay"
	"culvert/internal/store"
	"culvert/internal/store/etcd"
)

// What an endpoint's appearance is held against, in milliseconds.
func appearBound(hosts int) bound {
	if hosts <= 2 {
		return bound{must: 10, goal: 3, p99: 30}
	}
	return bound{must: 15, goal: 5, p99: 50}
}

// maxRatio is how much slower it may be with the many endpoints there.
const maxRatio = 1.2

// appear measures the appearance of endpoints in all worlds by turns.
func appear(ctx context.Context, o options, worlds []*world, out *printer) error {
	fl, err := newFloor(ctx, 2, 8)
	if err != nil {
		return errors.Join(fmt.Errorf("floor: %w", err), fl.close(context.WithoutCancel(ctx)))
	}
	defer fl.close(context.WithoutCancel(ctx))
	var turns []*turn
	for _, w := range worlds {
		a := &turn{w: w, name: "appears by API", measure: w.byAPI}
		p := &turn{w: w, name: "appears by plug", measure: w.byPlug}
		// One more than is counted: the first is not.
		a.ports, p.ports = w.next("api", o.samples+1), w.next("plug", o.samples+1)
		if _, err := w.declare(ctx, p.ports); err != nil {
			return err
		}
		if a.nic, err = w.waiting(a.ports[0]); err != nil {
			return err
		}
		turns = append(turns, a, p)
	}
	for i := range o.samples + 1 {
		for k := range turns {
			t := turns[(k+i)%len(turns)] // nobody always follows the same
			took, err := t.measure(ctx, t, i)
			if err != nil {
				return fmt.Errorf("%s, %d hosts, %d endpoints, sample %d: %w", t.name, t.w.hosts, t.w.endpoints, i, err)
			}
			if i > 0 {
				t.took = t.took.addTime(took)
			}
		}
		if err := fl.measure(ctx, i); err != nil {
			return fmt.Errorf("floor: %w", err)
		}
	}
	for _, t := range turns {
		if err := out.figure(newFigure(t.name, "ms", t.w.hosts, t.w.endpoints, t.took, appearBound(t.w.hosts))); err != nil {
			return err
		}
	}
	for i := range turns {
		for _, many := range turns[i+1:] {
			few := turns[i]
			if few.name != many.name || few.w.hosts != many.w.hosts {
				continue
			}
			var ratio sample // of pairs taken in the same round
			for n := range few.took {
				ratio = append(ratio, many.took[n]/few.took[n])
			}
			f := newFigure("ratio, "+few.name[8:], "x", few.w.hosts, many.w.endpoints, ratio, bound{must: maxRatio})
			if err := out.figure(f); err != nil {
				return err
			}
		}
	}
	return fl.print(out)
}

// turn is one configuration with its samples.
type turn struct {
	w       *world
	name    string
	measure func(context.Context, *turn, int) (time.Duration, error)
	ports   []endpoint
	nic     nic // byAPI: plugged in and waiting for its port
	took    sample
}

// waiting plugs a device in whose port does not exist.
func (w *world) waiting(e endpoint) (nic, error) {
	n, err := w.places[0].makeNIC(e.Name)
	if err == nil {
		_, err = w.places[0].plug(n, w.vni.Bridge())
	}
	return n, err
}

// byAPI: a device is plugged in on h1 and waits, as a VM does that was started
// before its port was declared. The clock runs from the call that declares the
// port.
func (w *world) byAPI(ctx context.Context, t *turn, i int) (time.Duration, error) {
	e := t.ports[i]
	w.expect(e, false)
	start := time.Now()
	res, err := w.api.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: []*culvertv1.Resource{e.resource()}})
	if err != nil {
		return 0, err
	}
	if len(res.GetChanges()) != 1 || res.GetChanges()[0].GetAction() != "created" {
		return 0, errors.New("the port was there")
	}
	at, err := gather(w.ears, limit)
	if err != nil {
		return 0, err
	}
	if err := w.removed(ctx, t.nic, e); err != nil {
		return 0, err
	}
	if _, err := w.api.Delete(ctx, &culvertv1.DeleteRequest{Kind: "port", Tenant: api.DefaultTenant, Name: e.Name}); err != nil {
		return 0, err
	}
	if i+1 < len(t.ports) {
		if t.nic, err = w.waiting(t.ports[i+1]); err != nil {
			return 0, err
		}
	}
	return at.Sub(start), w.settle(ctx)
}

// byPlug: the port is declared. The clock runs from the netlink call that puts
// the device into the bridge.
func (w *world) byPlug(ctx context.Context, t *turn, i int) (time.Duration, error) {
	e := t.ports[i]
	n, err := w.places[0].makeNIC(e.Name)
	if err != nil {
		return 0, err
	}
	w.expect(e, false)
	start, err := w.places[0].plug(n, w.vni.Bridge())
	if err != nil {
		return 0, err
	}
	at, err := gather(w.ears, limit)
	if err != nil {
		return 0, err
	}
	if err := w.removed(ctx, n, e); err != nil {
		return 0, err
	}
	return at.Sub(start), w.settle(ctx)
}

// expect sets all ears to the entries of an endpoint on h1.
func (w *world) expect(e endpoint, gone bool) {
	for _, ear := range w.ears {
		want := entries{}
		e.entries(want, vtep(1), ear.vxlan)
		ear.expect(want, gone)
	}
}

// removed takes the device away and waits until no other host knows it.
func (w *world) removed(_ context.Context, n nic, e endpoint) error {
	w.expect(e, true)
	if err := w.places[0].unplug(n); err != nil {
		return err
	}
	if _, err := gather(w.ears, limit); err != nil {
		return fmt.Errorf("remove endpoint: %w", err)
	}
	return nil
}

// floor is what the machine needs for the same without us: the same entries
// written into the kernels of all hosts but one, one after the other, and one
// commit of the store to the same disk.
type floor struct {
	sizes  []int // numbers of hosts
	lab    *lab.Lab
	places []*place
	ears   []*ear
	dir    string
	store  *etcd.Store
	fence  store.Fence
	writes map[int]sample // by hosts
	commit sample
}

// newFloor is a floor for numbers of hosts.
func newFloor(ctx context.Context, sizes ...int) (f *floor, err error) {
	f = &floor{sizes: sizes, writes: map[int]sample{}}
	most := slices.Max(sizes)
	if f.lab, err = lab.New("benchfloor", lab.Config{}); err != nil {
		return f, err
	}
	if _, err := f.lab.Up(ctx, lab.Topology{Name: "benchfloor", Hosts: most, NoDaemons: true}, true); err != nil {
		return f, err
	}
	for i := range most - 1 {
		p, err := openPlace("benchfloor", lab.HostName(i+2))
		if err != nil {
			return f, err
		}
		f.places = append(f.places, p)
		if err := makeDevices(ctx, p, i+2); err != nil {
			return f, err
		}
		e, err := listen(p, p.index(floorVNI.Bridge()), p.index(floorVNI.VXLAN()))
		if err != nil {
			return f, err
		}
		f.ears = append(f.ears, e)
	}
	if f.dir, err = os.MkdirTemp(filepath.Dir(lab.DefaultRoot), "bench-store-"); err != nil {
		return f, err
	}
	if f.store, err = etcd.Open(ctx, etcd.Options{Dir: filepath.Join(f.dir, "store"), Cluster: "bench"}); err != nil {
		return f, err
	}
	f.fence, err = f.store.Campaign(ctx, "bench", time.Minute)
	return f, err
}

const floorVNI = overlay.VNI(4242)

// makeDevices makes a network's devices as an agent does.
func makeDevices(ctx context.Context, p *place, host int) error {
	k, err := kernel.Open(p.fd, kernel.Config{})
	if err != nil {
		return err
	}
	defer k.Close()
	d := hoststate.Device{
		VNI: floorVNI, Local: vtep(host), UDPPort: 4789, MTU: 1500, DF: overlay.DFSet,
		Alias: hoststate.DeviceAlias("bench", overlay.UID{1}, overlay.Rev{}), AltName: "bench.floor",
	}
	for _, r := range k.Apply(ctx, []hoststate.Op{{Kind: hoststate.OpBase}, {Kind: hoststate.OpMakeBridge, Dev: d}, {Kind: hoststate.OpMakeVXLAN, Dev: d}}) {
		if r.Class != hoststate.ClassOK {
			return fmt.Errorf("devices of the floor: %s: %s", r.Op, r.Text)
		}
	}
	return p.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: p.index(floorVNI.VXLAN())}})
}

func (f *floor) close(ctx context.Context) error {
	var errs []error
	for _, e := range f.ears {
		errs = append(errs, e.close())
	}
	for _, p := range f.places {
		errs = append(errs, p.close())
	}
	if f.store != nil {
		errs = append(errs, f.store.Close())
	}
	if f.dir != "" {
		errs = append(errs, os.RemoveAll(f.dir))
	}
	if f.lab != nil {
		_, err := f.lab.Down(ctx)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (f *floor) measure(ctx context.Context, i int) error {
	e := endpoint{MAC: overlay.MAC{0x52, 0x54, 0x43, 0, byte(i >> 8), byte(i)}, IPs: []netip.Addr{
		netip.AddrFrom4([4]byte{10, 65, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x64, 14: byte(i >> 8), 15: byte(i)}),
	}}
	for _, hosts := range f.sizes {
		e.MAC[3]++
		for k := range e.IPs {
			e.IPs[k] = e.IPs[k].Next()
		}
		ears := f.ears[:hosts-1]
		for _, ear := range ears {
			want := entries{}
			e.entries(want, vtep(1), ear.vxlan)
			ear.expect(want, false)
		}
		start := time.Now()
		for _, ear := range ears {
			if err := ear.write(e); err != nil {
				return err
			}
		}
		at, err := gather(ears, limit)
		if err != nil {
			return err
		}
		if i > 0 {
			f.writes[hosts] = f.writes[hosts].addTime(at.Sub(start))
		}
	}
	start := time.Now()
	op := store.Op{Key: f.store.Prefix() + fmt.Sprintf("ep/%d", i), Value: make([]byte, 160)} // about an endpoint's record
	if _, err := f.store.Commit(ctx, f.fence, []store.Op{op}); err != nil {
		return err
	}
	if i > 0 {
		f.commit = f.commit.addTime(time.Since(start))
	}
	return nil
}

// write writes the entries of an endpoint on h1 into the ear's kernel.
func (e *ear) write(ep endpoint) error {
	err := e.NeighSet(&netlink.Neigh{
		LinkIndex: e.vxlan, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP | netlink.NUD_REACHABLE,
		Flags: netlink.NTF_SELF | netlink.NTF_MASTER | netlink.NTF_EXT_LEARNED, IP: vtep(1).AsSlice(), HardwareAddr: hardware(ep.MAC),
	})
	for _, ip := range ep.IPs {
		if err == nil {
			err = e.NeighSet(&netlink.Neigh{LinkIndex: e.vxlan, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: hardware(ep.MAC)})
		}
	}
	if err != nil {
		return fmt.Errorf("write on %s: %w", e.node, err)
	}
	return nil
}

func (f *floor) print(out *printer) error {
	for _, hosts := range f.sizes {
		if err := out.figure(newFigure("floor, kernel alone", "ms", hosts, 0, f.writes[hosts], bound{})); err != nil {
			return err
		}
	}
	return out.figure(newFigure("floor, commit alone", "ms", 0, 0, f.commit, bound{}))
}
