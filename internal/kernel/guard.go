package kernel

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"culvert/internal/bpf"
	"culvert/internal/hoststate"
)

// guard is the programs and their tables. They are loaded, or taken over from
// the devices, when they are first needed; what fails then is tried again the
// next time.
type guard struct {
	// write is held by whoever registers, attaches or writes rows, so that
	// what a read finds orphaned is not what is just being made.
	write sync.Mutex

	mu  sync.Mutex // guards set and off
	set *bpf.Set   // nil: not loaded yet
	off bool       // closed for good

	limits  bpf.Limits // of tests; the zero value is bpf.DefaultLimits
	filters bool       // of tests: as on a kernel without tcx
}

func (g *guard) close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.off = true
	if g.set == nil {
		return nil
	}
	set := g.set
	g.set = nil
	return set.Close()
}

// programs is the set of this namespace.
func (k *Kernel) programs() (*bpf.Set, error) {
	g := &k.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.off {
		return nil, fmt.Errorf("load programs: %w", unix.EBADF)
	}
	if g.set != nil {
		return g.set, nil
	}
	var devs []int32
	for try := 1; ; try++ {
		devs = devs[:0]
		err := eachLink(k.read, 0, func(l link) { devs = append(devs, l.Index) })
		if err == nil {
			break
		}
		if !errors.Is(err, errInterrupted) || try == dumpTries {
			return nil, fmt.Errorf("read links: %w", err)
		}
	}
	err := inNS(k.ns, func() (err error) {
		g.set, err = bpf.Load(bpf.Config{UDPPort: k.port, Limits: g.limits, Filters: g.filters}, devs)
		return err
	})
	return g.set, err
}

// role is what a device is to the programs.
type role uint8

const (
	roleNone     role = iota // lo, our bridges, what is enslaved to others
	rolePort                 // a VM's port on a bridge of ours
	roleVXLAN                // a VXLAN device of ours
	roleUnderlay             // everything else: VXLAN may come in there
	roleDown                 // the same, but down: nothing comes in
)

// roleOf tells by the device itself and by whether its master is a bridge of
// ours. A slave's frames are its master's, which has the program itself (a
// VRF's are not handed to it before the hook).
func roleOf(l link, ourMaster bool) role {
	_, device := vniOf(l)
	switch {
	case device && l.Kind == hoststate.LinkVXLAN:
		return roleVXLAN
	case device, l.loopback:
		return roleNone
	case l.Master != 0 && ourMaster:
		return rolePort
	case l.slaveKind == "bridge", l.slaveKind == "bond", l.slaveKind == "team":
		return roleNone
	case !l.Up:
		return roleDown
	}
	return roleUnderlay
}

// roles are those of all links.
func roles(all []link) map[int32]role {
	ours := map[int32]bool{}
	for _, l := range all {
		if _, ok := vniOf(l); ok && l.Kind == hoststate.LinkBridge {
			ours[l.Index] = true
		}
	}
	of := make(map[int32]role, len(all))
	for _, l := range all {
		of[l.Index] = roleOf(l, ours[l.Master])
	}
	return of
}

// stands says whether a device carries what its role asks for, of this
// version, and nothing else of ours. A device that is down may keep the source
// check but is not given it: most that are made become ports before they are up.
func (r role) stands(st bpf.Standing) bool {
	want := bpf.Standing{Current: true}
	switch r {
	case roleDown:
		if st.Ingress == bpf.Underlay {
			want.Ingress = bpf.Underlay
		}
	case rolePort:
		want.Ingress, want.Egress = bpf.FromPort, bpf.ToPort
	case roleVXLAN:
		want.Ingress = bpf.FromOverlay
	case roleUnderlay:
		want.Ingress = bpf.Underlay
	}
	return st == want
}

// readGuard fills in what the programs hold and count: Link.Guarded, the rows
// of ports, Drops, and whether the source check stands everywhere.
func (k *Kernel) readGuard(st *hoststate.State, all []link) (underlay bool, err error) {
	set, err := k.programs()
	if err != nil {
		return false, err
	}
	of := roles(all)
	bridges, drops, err := set.Ports()
	if err != nil {
		return false, err
	}
	networks, err := set.Networks()
	if err != nil {
		return false, err
	}
	standing, err := k.standing(set, all)
	if err != nil {
		return false, err
	}
	underlay, err = set.Configured()
	if err != nil {
		return false, err
	}
	valid := map[int32]bool{} // ports with rows that count
	orphan := false
	guarded := map[int32]bool{}
	for _, l := range all {
		r := of[l.Index]
		s, ok := standing[l.Index]
		if !ok {
			continue // it went meanwhile
		}
		_, registered := bridges[l.Index]
		switch r {
		case rolePort:
			valid[l.Index] = registered && bridges[l.Index] == l.Master && s.Ingress == bpf.FromPort
			guarded[l.Index] = valid[l.Index] && r.stands(s)
		case roleVXLAN:
			guarded[l.Index] = r.stands(s) && networks[l.Index] == l.VNI
		default:
			underlay = underlay && r.stands(s)
			orphan = orphan || s.Ingress == bpf.FromPort || s.Egress != bpf.None || s.Ingress == bpf.FromOverlay
		}
	}
	for i := range bridges {
		orphan = orphan || !valid[i]
	}
	for i := range networks {
		orphan = orphan || of[i] != roleVXLAN
	}
	for i := range st.Links {
		st.Links[i].Guarded = guarded[st.Links[i].Index]
	}
	st.Drops = map[hoststate.DropKey]uint64{}
	for key, n := range drops {
		if key.Port == 0 || valid[key.Port] {
			st.Drops[key] = n
		}
	}
	err = set.PortRows(func(r hoststate.Row) {
		if valid[r.Key.Port] {
			st.Rows[r.Key] = r.Val
		}
	})
	if err == nil && orphan {
		err = k.sweep(set)
	}
	return underlay, err
}

// standing looks at all devices; those that went meanwhile are not in it.
func (k *Kernel) standing(set *bpf.Set, all []link) (map[int32]bpf.Standing, error) {
	m := make(map[int32]bpf.Standing, len(all))
	return m, inNS(k.ns, func() error {
		for _, l := range all {
			s, err := set.Standing(l.Index)
			switch {
			case err == nil:
				m[l.Index] = s
			case !errors.Is(err, unix.ENODEV):
				return err
			}
		}
		return nil
	})
}

// sweep takes programs off devices that left us and forgets ports and devices
// that are gone, so that nobody inherits their rows. It looks for itself, with
// nobody registering meanwhile.
func (k *Kernel) sweep(set *bpf.Set) error {
	k.guard.write.Lock()
	defer k.guard.write.Unlock()
	_, _, err := k.sweepHeld(set)
	return err
}

// sweepHeld is sweep for callers that hold guard.write. It returns what it saw
// of the devices, before it took anything off.
func (k *Kernel) sweepHeld(set *bpf.Set) (of map[int32]role, standing map[int32]bpf.Standing, err error) {
	var all []link
	if err := eachLink(k.write, 0, func(l link) { all = append(all, l) }); err != nil {
		return nil, nil, fmt.Errorf("read links: %w", err)
	}
	of = roles(all)
	masters := map[int32]int32{}
	for _, l := range all {
		masters[l.Index] = l.Master
	}
	if standing, err = k.standing(set, all); err != nil {
		return nil, nil, err
	}
	bridges, _, err := set.Ports()
	if err != nil {
		return nil, nil, err
	}
	for i, b := range bridges {
		if of[i] != rolePort || masters[i] != b || standing[i].Ingress != bpf.FromPort {
			err = errors.Join(err, set.DropPort(i))
		}
	}
	networks, errN := set.Networks()
	err = errors.Join(err, errN)
	for i := range networks {
		if of[i] != roleVXLAN {
			err = errors.Join(err, set.DropNetwork(i))
		}
	}
	return of, standing, errors.Join(err, inNS(k.ns, func() error {
		var err error
		for i, r := range of {
			if r == rolePort || r == roleVXLAN {
				continue
			}
			for _, p := range []bpf.Program{bpf.FromPort, bpf.ToPort, bpf.FromOverlay} {
				if s := standing[i]; s.Ingress == p || s.Egress == p {
					err = errors.Join(err, set.Detach(i, p))
				}
			}
		}
		return err
	}))
}

// checkUnderlay puts the source check on every underlay device that is up and
// takes it off those that are none any more.
func (k *Kernel) checkUnderlay() error {
	set, err := k.programs()
	if err != nil {
		return err
	}
	k.guard.write.Lock()
	defer k.guard.write.Unlock()
	if err := set.Configure(); err != nil {
		return err
	}
	of, standing, err := k.sweepHeld(set)
	if err != nil {
		return err
	}
	return inNS(k.ns, func() error {
		var err error
		for i, r := range of {
			var e error
			switch st := standing[i]; {
			case r == roleUnderlay && !r.stands(st), r == roleDown && st.Ingress == bpf.Underlay && !st.Current:
				e = set.Attach(i, bpf.Underlay)
			case r == roleNone && (st.Ingress == bpf.Underlay || !st.Current):
				e = set.Detach(i, bpf.Underlay)
			}
			if !errors.Is(e, unix.ENODEV) { // it went
				err = errors.Join(err, e)
			}
		}
		return err
	})
}

// portPlace is the bridge of ours that a VM's port is a port of. errAbsent if
// it is none.
func (k *Kernel) portPlace(index int32) (bpf.Place, error) {
	l, err := getLink(k.write, index, "")
	if err != nil {
		return bpf.Place{}, err
	}
	if l.Master == 0 {
		return bpf.Place{}, errAbsent
	}
	b, err := getLink(k.write, l.Master, "")
	if err != nil {
		return bpf.Place{}, err
	}
	v, ours := vniOf(b)
	if roleOf(l, ours && b.Kind == hoststate.LinkBridge) != rolePort {
		return bpf.Place{}, errAbsent
	}
	return bpf.Place{Bridge: l.Master, VNI: v}, nil
}

// guardPorts puts the programs on ports and registers them, unless they stand
// and are registered. A port that lost the program for what the guest sends
// begins anew, without rows: another device may have its index. The map says
// what became of each. Callers hold guard.write.
func (k *Kernel) guardPorts(set *bpf.Set, ports []int32) map[int32]error {
	places, errs := map[int32]bpf.Place{}, map[int32]error{}
	if len(ports) == 0 {
		return errs
	}
	for _, p := range ports {
		places[p], errs[p] = k.portPlace(p)
	}
	errNS := inNS(k.ns, func() error {
		for _, p := range ports {
			if errs[p] == nil {
				errs[p] = guardPort(set, p, places[p])
			}
		}
		return nil
	})
	for _, p := range ports {
		if errs[p] = errors.Join(errs[p], errNS); errors.Is(errs[p], unix.ENODEV) {
			errs[p] = errAbsent
		}
	}
	return errs
}

// guardPort is guardPorts of one port, on a thread of the namespace.
func guardPort(set *bpf.Set, port int32, place bpf.Place) error {
	st, err := set.Standing(port)
	if err != nil {
		return err
	}
	at, ok, err := set.Port(port)
	if err != nil {
		return err
	}
	if !ok || at != place || st.Ingress != bpf.FromPort {
		if err := set.AddPort(port, place); err != nil {
			return err
		}
	}
	if rolePort.stands(st) {
		return nil
	}
	return errors.Join(set.Attach(port, bpf.FromPort), set.Attach(port, bpf.ToPort))
}

// guardOne is guardPorts of one port of whatever bridge; another's ports are
// left alone.
func (k *Kernel) guardOne(port int32) error {
	set, err := k.programs()
	if err != nil {
		return err
	}
	k.guard.write.Lock()
	defer k.guard.write.Unlock()
	err = k.guardPorts(set, []int32{port})[port]
	if errors.Is(err, errAbsent) {
		return nil
	}
	return err
}

// release takes the programs off a port that has left its bridge.
func (k *Kernel) release(port int32) error {
	set, err := k.programs()
	if err != nil {
		return err
	}
	k.guard.write.Lock()
	defer k.guard.write.Unlock()
	err = inNS(k.ns, func() error { return errors.Join(set.Detach(port, bpf.FromPort), set.Detach(port, bpf.ToPort)) })
	return errors.Join(err, set.DropPort(port))
}

// guardVXLAN registers a network's VXLAN device and puts the relay on it.
func (k *Kernel) guardVXLAN(l link) error {
	set, err := k.programs()
	if err != nil {
		return err
	}
	k.guard.write.Lock()
	defer k.guard.write.Unlock()
	if err := set.AddNetwork(l.VNI, l.Index); err != nil {
		return err
	}
	err = inNS(k.ns, func() error { return set.Attach(l.Index, bpf.FromOverlay) })
	if errors.Is(err, unix.ENODEV) {
		return errAbsent
	}
	return err
}

// forget drops what the programs know of a device that was deleted, or went to
// another bridge.
func (k *Kernel) forget(l link) error {
	set, err := k.programs()
	if err != nil {
		return err
	}
	k.guard.write.Lock()
	defer k.guard.write.Unlock()
	return errors.Join(set.DropPort(l.Index), set.DropNetwork(l.Index))
}
