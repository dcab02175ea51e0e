package kernel

import (
	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// readBack fills Verified, Present and Have of the results which lists. Rows
// are asked for one by one, in batches: 3 us each, whatever the table's size,
// where a dump costs 1 us for every row of the table (BenchmarkReadBack), and
// a call has some hundred rows of a table of thousands. Only the members of
// replication lists cannot be asked for; theirs is one dump a network.
func (k *Kernel) readBack(res []hoststate.Result, devs map[overlay.VNI]devices, which []int) {
	dumps := map[overlay.VNI]map[hoststate.Key]hoststate.Val{}
	single := make([]int, 0, len(which))
	for _, i := range which {
		r := &res[i]
		r.Verified, r.Present, r.Have = false, false, hoststate.Val{}
		key := r.Op.Row.Key
		d, ok := devs[key.VNI]
		if !ok || d.vxlan == 0 && key.Table != hoststate.TableMaster || d.bridge == 0 && key.Table == hoststate.TableMaster ||
			checkKey(key) != nil {
			continue // its error says why
		}
		if key.Table != hoststate.TableRepl {
			single = append(single, i)
			continue
		}
		dump, done := dumps[key.VNI]
		if !done {
			dump = k.listDump(key.VNI, d)
			dumps[key.VNI] = dump
		}
		if r.Verified = dump != nil; r.Verified {
			r.Have, r.Present = dump[key]
		}
	}
	k.readSingly(res, devs, single)
}

// checkKey refuses keys that a read would take in another sense.
func checkKey(k hoststate.Key) error {
	switch k.Table {
	case hoststate.TableFDB, hoststate.TableMaster:
		if !k.MAC.IsUnicast() {
			return unix.EINVAL
		}
	case hoststate.TableRepl, hoststate.TableNeigh:
		if !k.IP.IsValid() || k.Table == hoststate.TableRepl && k.MAC.IsUnicast() {
			return unix.EINVAL
		}
	}
	return nil
}

// listDump reads the VXLAN device's replication lists. Nil if that did not
// succeed.
func (k *Kernel) listDump(v overlay.VNI, d devices) map[hoststate.Key]hoststate.Val {
	for range dumpTries {
		m := map[hoststate.Key]hoststate.Val{}
		err := dumpNeigh(k.write, unix.AF_BRIDGE, d.vxlan, 0, func(n neigh) {
			if r, ok := n.row(v, d); ok && r.Key.Table == hoststate.TableRepl {
				m[r.Key] = r.Val
			}
		})
		if err == nil {
			return m
		}
	}
	return nil
}

// readSingly asks for rows one by one, in batches.
func (k *Kernel) readSingly(res []hoststate.Result, devs map[overlay.VNI]devices, is []int) {
	for len(is) > 0 {
		n := min(batchSize, len(is))
		chunk := is[:n]
		err := k.write.batch(n, 0, func(m *batch, i int, seq uint32) {
			key := res[chunk[i]].Op.Row.Key
			m.get(key, devs[key.VNI], seq)
		}, func(i int, a answer) {
			r := &res[chunk[i]]
			key := r.Op.Row.Key
			if a.typ == unix.NLMSG_ERROR {
				// No entry; ESRCH and ENODEV mean that the device itself went,
				// and its rows with it.
				r.Verified, r.Present = gone(a.code()), false
				return
			}
			nb, err := parseNeigh(a.body)
			if err != nil {
				return
			}
			row, ok := nb.row(key.VNI, devs[key.VNI])
			r.Verified = true
			if r.Present = ok && row.Key == key; r.Present {
				r.Have = row.Val
			}
		})
		if err != nil {
			for _, i := range chunk {
				res[i].Verified = false
			}
		}
		is = is[n:]
	}
}
