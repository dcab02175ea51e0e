package kernel

import (
	"cmp"
	"context"
	"errors"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// dumpTries bounds how often an interrupted dump is begun anew in one read. A
// table that changes faster than it can be read is the caller's to wait for.
const dumpTries = 5

// Read reads what sc asks for, whole or not at all. An error is always a
// *hoststate.Error; an interrupted dump that stays interrupted after some
// tries is ClassTransient.
func (k *Kernel) Read(ctx context.Context, sc hoststate.Scope) (*hoststate.State, error) {
	runtime.LockOSThread() // whose time is taken
	defer runtime.UnlockOSThread()
	start := threadTime()
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return nil, readError("read", err)
		}
		st := &hoststate.State{Rows: map[hoststate.Key]hoststate.Val{}}
		what, err := k.readInto(st, sc)
		if err == nil {
			st.Cost = threadTime() - start
			return st, nil
		}
		if Classify(err) != hoststate.ClassTransient || try == dumpTries {
			return nil, readError(what, err)
		}
	}
}

// threadTime is the processor time of the calling thread (clock_gettime(2)).
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func readError(what string, err error) error {
	return &hoststate.Error{What: what, Class: Classify(err), Text: err.Error()}
}

func (k *Kernel) readInto(st *hoststate.State, sc hoststate.Scope) (what string, err error) {
	if sc.Links {
		if err := k.readLinks(st); err != nil {
			return "read links", err
		}
		if err := k.readNft(st); err != nil {
			return "read nftables", err
		}
	}
	if sc.VNI != 0 {
		if err := k.readRows(st, sc.VNI); err != nil {
			return "read rows", err
		}
	}
	return "", nil
}

// readLinks reports our devices and all ports of our bridges, with what the
// programs hold of them. Base is what is true so far: the source check stands.
func (k *Kernel) readLinks(st *hoststate.State) error {
	var all []link
	if err := eachLink(k.read, 0, func(l link) { all = append(all, l) }); err != nil {
		return err
	}
	ours, names := map[int32]bool{}, map[int32]string{}
	for _, l := range all {
		names[l.Index] = l.Name
		if _, ok := vniOf(l); ok && l.Kind == hoststate.LinkBridge {
			ours[l.Index] = true
		}
	}
	for _, l := range all {
		if l.VNI != 0 || ours[l.Master] {
			l.Peer = names[l.peer]
			st.Links = append(st.Links, l.Link)
		}
	}
	slices.SortFunc(st.Links, func(a, b hoststate.Link) int { return cmp.Compare(a.Index, b.Index) })
	var err error
	st.Base, err = k.readGuard(st, all)
	return err
}

// readRows reads one network's rows. A network without devices has none.
func (k *Kernel) readRows(st *hoststate.State, v overlay.VNI) error {
	d, err := k.lookup(k.read, v)
	if err != nil {
		return err
	}
	if err := k.calm.during(d, func() error { return k.dumpRows(st, v, d) }); err != nil {
		return err
	}
	return k.readPrograms(st, v, d)
}

// dumpRows dumps the FDB entries of all ports of the network's bridge, the
// VXLAN device's own among them, and then the neighbours.
func (k *Kernel) dumpRows(st *hoststate.State, v overlay.VNI, d devices) error {
	kernels, err := k.portMACs(d)
	if err != nil {
		return err
	}
	if d.misses {
		st.Idle = map[hoststate.Key]time.Duration{}
	}
	add := func(n neigh) {
		r, ok := n.row(v, d)
		if !ok || r.Key.Table == hoststate.TableMaster && r.Val.Flags == hoststate.Permanent && kernels[r.Key.MAC] {
			return
		}
		st.Rows[r.Key] = r.Val
		if d.misses && r.Key.Table == hoststate.TableFDB {
			st.Idle[r.Key] = n.idle
		}
	}
	if d.bridge != 0 {
		if err := dumpNeigh(k.read, unix.AF_BRIDGE, 0, d.bridge, add); err != nil && !gone(err) {
			return err
		}
	}
	if d.vxlan == 0 {
		return nil
	}
	if d.vxlanMaster != d.bridge || d.bridge == 0 {
		if err := dumpNeigh(k.read, unix.AF_BRIDGE, d.vxlan, 0, add); err != nil && !gone(err) {
			return err
		}
	}
	if err := dumpNeigh(k.read, unix.AF_UNSPEC, d.vxlan, 0, add); err != nil && !gone(err) {
		return err
	}
	return nil
}

// portMACs are the addresses for which the bridge itself holds a permanent
// entry: its own and its ports'.
func (k *Kernel) portMACs(d devices) (map[overlay.MAC]bool, error) {
	macs := map[overlay.MAC]bool{}
	if d.bridge == 0 {
		return macs, nil
	}
	b, err := getLink(k.read, d.bridge, "")
	if err != nil && !errors.Is(err, errAbsent) {
		return nil, err
	}
	macs[b.MAC] = true
	err = eachLink(k.read, d.bridge, func(l link) { macs[l.MAC] = true })
	if err != nil && !gone(err) {
		return nil, err
	}
	return macs, nil
}
