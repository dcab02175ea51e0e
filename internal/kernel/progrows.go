package kernel

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"culvert/internal/bpf"
	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// ofPort says whether a table's rows are a port's, or else a network's.
func ofPort(t hoststate.Table) bool { return t == hoststate.TablePort || t == hoststate.TableOwn }

// applyPrograms writes a run of rows of the programs' tables and reads each
// back. Devices without programs get them first: a row means nothing without.
func (k *Kernel) applyPrograms(res []hoststate.Result, known *known) {
	set, err := k.programs()
	if err != nil {
		for i := range res {
			settle(&res[i], err)
		}
		return
	}
	k.guard.write.Lock()
	defer k.guard.write.Unlock()
	p := newPlaces(k, set, res, known)
	var changes []bpf.Change
	var at []int
	for i := range res {
		o := &res[i].Op
		dev, err := p.place(o)
		if err == nil && !programRow(o.Row, o.Kind == hoststate.OpDel) {
			err = fmt.Errorf("row %s: %w", o.Row, unix.EINVAL)
		}
		if err != nil {
			settle(&res[i], err)
			continue
		}
		changes = append(changes, bpf.Change{Row: o.Row, Delete: o.Kind == hoststate.OpDel, Device: dev})
		at = append(at, i)
	}
	for n, err := range set.Write(changes) {
		settle(&res[at[n]], err)
	}
	for n, f := range set.Read(changes) {
		r := &res[at[n]]
		r.Verified, r.Present, r.Have = f.Err == nil, f.Present, f.Val
		conclude(r)
	}
}

// places finds out where the rows of a run live.
type places struct {
	k     *Kernel
	set   *bpf.Set
	known *known
	ports map[int32]error // what became of each
	devs  map[overlay.VNI]int32
	errs  map[overlay.VNI]error
}

func newPlaces(k *Kernel, set *bpf.Set, res []hoststate.Result, known *known) *places {
	p := &places{k: k, set: set, known: known, devs: map[overlay.VNI]int32{}, errs: map[overlay.VNI]error{}}
	var ports []int32
	seen := map[int32]bool{}
	for i := range res {
		o := res[i].Op
		if ofPort(o.Row.Key.Table) && o.Kind == hoststate.OpSet && programRow(o.Row, false) && !seen[o.Row.Key.Port] {
			seen[o.Row.Key.Port] = true
			ports = append(ports, o.Row.Key.Port)
		}
	}
	p.ports = k.guardPorts(set, ports)
	return p
}

// place is the VXLAN device of a network's row, 0 for a port's. An error says
// that there is no place.
func (p *places) place(o *hoststate.Op) (device int32, err error) {
	key := o.Row.Key
	if ofPort(key.Table) {
		err, done := p.ports[key.Port]
		if !done { // nothing is to be made for a deletion
			_, err = p.k.portPlace(key.Port)
			p.ports[key.Port] = err
		}
		return 0, err
	}
	v := key.VNI
	if _, ok := p.devs[v]; !ok {
		p.devs[v], p.errs[v] = p.network(v)
	}
	return p.devs[v], p.errs[v]
}

// network is a network's VXLAN device, registered.
func (p *places) network(v overlay.VNI) (int32, error) {
	d, err := p.known.network(v)
	if err != nil {
		return 0, err
	}
	if d.vxlan == 0 {
		return 0, errAbsent
	}
	return d.vxlan, p.set.AddNetwork(v, d.vxlan)
}

// portFlagsOfRow are those that a row of TablePort may have.
const portFlagsOfRow = hoststate.Open | hoststate.CheckIP | hoststate.NoServers | hoststate.Watch | hoststate.CheckLocal | hoststate.Routed | hoststate.Demand

// programRow says whether the programs' tables can hold a row, or if it is to
// be deleted, its key.
func programRow(r hoststate.Row, del bool) bool {
	k, v := r.Key, r.Val
	empty, strangers := v == hoststate.Val{}, v == hoststate.Val{Flags: hoststate.Strangers}
	led := v == hoststate.Val{MAC: v.MAC} && v.MAC.IsUnicast()
	none, addressed := k.MAC == overlay.MAC{}, k.IP.IsValid() && !k.IP.Is4In6() && k.IP.Zone() == ""
	byMAC, byIP := !k.IP.IsValid() && k.MAC.IsUnicast(), addressed && none
	switch k.Table {
	case hoststate.TablePort:
		return none && !k.IP.IsValid() && (del || v.MAC.IsUnicast() && v == hoststate.Val{MAC: v.MAC, Flags: v.Flags & portFlagsOfRow})
	case hoststate.TableOwn:
		return byIP && (del || empty || v == hoststate.Val{Flags: hoststate.Shared} || v == hoststate.Val{Flags: hoststate.Router}) || byMAC && (del || empty)
	case hoststate.TableSource:
		return addressed && (none && (del || empty || strangers) || k.MAC.IsUnicast() && (del || empty))
	case hoststate.TableRouted:
		return addressed && (none && (del || strangers) || k.MAC.IsUnicast() && (del || empty))
	case hoststate.TableRelayed:
		return addressed && k.MAC.IsUnicast() && (del || empty)
	case hoststate.TableReach:
		return byIP && (del || v == hoststate.Val{MTU: v.MTU}) || byMAC && (del || empty)
	case hoststate.TableKnown:
		return !k.IP.IsValid() && !none && (del || empty)
	case hoststate.TableFrom:
		return byIP && (del || led)
	case hoststate.TableAlias:
		return byMAC && (del || led)
	case hoststate.TableRoute:
		return byIP && int(k.Bits) <= k.IP.BitLen() && netip.PrefixFrom(k.IP, int(k.Bits)).Masked().Addr() == k.IP && (del || empty || led)
	}
	return byMAC && (del || empty) // TableRelay
}

// readPrograms adds a network's rows of the programs' tables.
func (k *Kernel) readPrograms(st *hoststate.State, v overlay.VNI, d devices) error {
	if d.vxlan == 0 {
		return nil
	}
	set, err := k.programs()
	if err != nil {
		return err
	}
	was, ok, err := set.Network(d.vxlan)
	if err != nil || !ok || was != v {
		return err
	}
	return set.NetworkRows(v, d.vxlan, func(r hoststate.Row) { st.Rows[r.Key] = r.Val })
}

// vtepPrograms writes a row of TableVTEP into the programs' table, after
// nftables has taken it. A deletion goes there whatever nftables said.
func (k *Kernel) vtepPrograms(r *hoststate.Result) {
	if r.Op.Row.Key.Table != hoststate.TableVTEP || r.Op.Kind == hoststate.OpSet && r.Class != hoststate.ClassOK {
		return
	}
	set, err := k.programs()
	if err == nil {
		err = set.SetVTEP(r.Op.Row.Key.IP, r.Op.Kind == hoststate.OpSet)
	}
	if err != nil {
		settle(r, err)
	}
}

// programsTake says whether the programs' table holds a row of TableVTEP; rows
// of other tables are none of theirs. What cannot be read makes the result
// unverified.
func (k *Kernel) programsTake(r *hoststate.Result) bool {
	if r.Op.Row.Key.Table != hoststate.TableVTEP {
		return true
	}
	set, err := k.programs()
	in := false
	if err == nil {
		in, err = set.HasVTEP(r.Op.Row.Key.IP)
	}
	r.Verified = err == nil
	return in
}
