package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// batchSize is the number of messages a send (kernel-facts 3: above 100
// nothing is gained).
const batchSize = 128

// job is one message with the results it decides.
type job struct {
	row    hoststate.Row
	del    bool
	dev    devices
	i      int // index of the result
	master int // index of the result of the master row in the same message; -1 if none
	err    error
}

// applyRows writes a run of row operations, then reads back what the kernel
// holds under each key and puts right what a write alone could not.
func (k *Kernel) applyRows(res []hoststate.Result, known *known) {
	devs, jobs := k.plan(res, known)
	k.send(jobs)
	jobs = append(jobs, k.split(jobs)...)
	for _, j := range jobs {
		settle(&res[j.i], j.err)
		if j.master >= 0 {
			settle(&res[j.master], j.err)
		}
	}
	all := make([]int, len(res))
	for i := range res {
		all[i] = i
	}
	k.readBack(res, devs, all)
	if again := k.repair(res, devs); len(again) > 0 {
		k.readBack(res, devs, again)
	}
	for i := range res {
		conclude(&res[i])
	}
}

// plan looks up the devices and makes the messages. A row that cannot be
// addressed has its result at once.
func (k *Kernel) plan(res []hoststate.Result, known *known) (map[overlay.VNI]devices, []job) {
	devs := map[overlay.VNI]devices{}
	masters := map[int32]int32{} // of ports
	type entry struct {
		vni overlay.VNI
		mac overlay.MAC
	}
	waiting := map[entry]int{} // FDB jobs that may take their master row along
	jobs := make([]job, 0, len(res))
	for i := range res {
		r, del := res[i].Op.Row, res[i].Op.Kind == hoststate.OpDel
		v := r.Key.VNI
		d, err := known.network(v)
		if err == nil {
			devs[v] = d
			err = checkRow(r, d, del)
		}
		if err == nil && r.Key.Table == hoststate.TableMaster && r.Val.Port != 0 && masters[r.Val.Port] != d.bridge {
			// The write would go to whatever bridge the port is of.
			if masters[r.Val.Port], err = k.masterOf(r.Val.Port); err == nil && masters[r.Val.Port] != d.bridge {
				err = errNoPort
			}
		}
		if err != nil {
			settle(&res[i], err)
			continue
		}
		j := job{row: r, del: del, dev: d, i: i, master: -1}
		e := entry{v, r.Key.MAC}
		switch r.Key.Table {
		case hoststate.TableFDB:
			delete(waiting, e)
			if !j.del && r.Val.Flags == hoststate.Static|hoststate.Extern {
				waiting[e] = len(jobs)
			}
		case hoststate.TableMaster:
			f, ok := waiting[e]
			delete(waiting, e)
			if ok && !j.del && r.Val.Port == 0 && r.Val.Flags == jobs[f].row.Val.Flags {
				jobs[f].master = i
				continue
			}
		}
		jobs = append(jobs, j)
	}
	return devs, jobs
}

// masterOf is the bridge that a device is a port of, 0 if none.
func (k *Kernel) masterOf(port int32) (int32, error) {
	l, err := getLink(k.write, port, "")
	return l.Master, err
}

// split gives each half of a refused double message a message of its own: the
// kernel writes the bridge's entry first and leaves the other when it fails.
func (k *Kernel) split(jobs []job) []job {
	var halves []job
	for n := range jobs {
		j := &jobs[n]
		if j.master < 0 || j.err == nil {
			continue
		}
		half := job{row: j.row, dev: j.dev, i: j.master, master: -1}
		half.row.Key.Table = hoststate.TableMaster
		half.row.Val = hoststate.Val{Flags: j.row.Val.Flags}
		j.master, j.err = -1, nil
		again := []job{*j, half}
		k.send(again)
		j.err = again[0].err
		halves = append(halves, again[1])
	}
	return halves
}

// send writes the jobs' messages, each chunk in one send, and notes errors.
func (k *Kernel) send(jobs []job) {
	for len(jobs) > 0 {
		n := min(batchSize, len(jobs))
		chunk := jobs[:n]
		err := k.write.batch(n, unix.NLM_F_ACK, func(m *batch, i int, seq uint32) {
			if j := chunk[i]; j.del {
				m.del(j.row, j.dev, seq)
			} else {
				m.set(j.row, j.dev, j.master >= 0, seq)
			}
		}, func(i int, a answer) {
			if a.typ == unix.NLMSG_ERROR {
				chunk[i].err = rowError(a.code())
			}
		})
		if err != nil {
			for i := range chunk {
				chunk[i].err = err
			}
		}
		jobs = jobs[n:]
	}
}

func rowError(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return errAbsent
	}
	return err
}

// batch sends n messages at once and hands each answer out with the number of
// its message. With NLM_F_ACK only the last asks for an acknowledgement, which
// ends the batch, and the others answer only with errors; without, each
// message must have its answer. An error is the socket's: what became of the
// messages is unknown.
func (s *sock) batch(n int, ack uint16, build func(*batch, int, uint32), each func(int, answer)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(); err != nil {
		return err
	}
	first := s.seq + 1
	s.seq += uint32(n)
	m := batch{b: make([]byte, 0, n*72)}
	for i := range n {
		build(&m, i, first+uint32(i))
	}
	m.addFlags(ack)
	if err := s.send(m.b); err != nil {
		s.reset()
		return fmt.Errorf("send: %w", err)
	}
	answers := 0
	err := s.receive(func(a answer) (bool, error) {
		i := int(a.seq - first)
		if i < 0 || i >= n {
			return false, nil
		}
		each(i, a)
		answers++
		if ack != 0 {
			return i == n-1 && a.typ == unix.NLMSG_ERROR, nil
		}
		return answers == n, nil
	})
	if err != nil {
		s.reset()
	}
	return err
}

// repair writes again, differently, the set rows that the kernel acknowledged
// and holds otherwise: some properties of an old entry survive a replace. It
// returns the indexes of what it wrote.
func (k *Kernel) repair(res []hoststate.Result, devs map[overlay.VNI]devices) []int {
	var jobs []job
	var again []int
	for i := range res {
		r := &res[i]
		if r.Op.Kind != hoststate.OpSet || r.Class != hoststate.ClassOK || !r.Verified || !r.Present || r.Have == r.Op.Row.Val {
			continue
		}
		row, d := r.Op.Row, devs[r.Op.Row.Key.VNI]
		switch row.Key.Table {
		case hoststate.TableMaster:
			// Extern does not clear sticky; a plain static replace does, without
			// a moment in which the MAC is unknown.
			plain := row
			plain.Val.Flags &^= hoststate.Extern
			jobs = append(jobs, job{row: plain, dev: d, i: i, master: -1})
		case hoststate.TableFDB, hoststate.TableNeigh:
			// An entry once added by hand keeps its state against an
			// extern_learn replace (vxlan_fdb_update_existing).
			old := row
			old.Val = r.Have
			jobs = append(jobs, job{row: old, del: true, dev: d, i: i, master: -1})
		default:
			continue
		}
		jobs = append(jobs, job{row: row, dev: d, i: i, master: -1})
		again = append(again, i)
	}
	k.send(jobs)
	for _, j := range jobs {
		if j.err != nil && !j.del {
			settle(&res[j.i], j.err)
		}
	}
	return again
}

// conclude lets what was read back decide over what was answered.
func conclude(r *hoststate.Result) {
	if !r.Verified {
		return
	}
	switch {
	case r.Op.Kind == hoststate.OpSet && r.Present && r.Have == r.Op.Row.Val:
		r.Class, r.Text = hoststate.ClassOK, ""
	case r.Op.Kind == hoststate.OpSet && r.Class == hoststate.ClassOK:
		// Acknowledged and not there: somebody else was faster.
		r.Class, r.Text = hoststate.ClassTransient, "the kernel holds another entry after the write"
		if !r.Present {
			r.Text = "the kernel holds no entry after the write"
		}
	case r.Op.Kind == hoststate.OpDel && !r.Present && r.Class == hoststate.ClassGone:
		r.Class = hoststate.ClassNotFound // its port is gone, and it with it
	case r.Op.Kind == hoststate.OpDel && !r.Present && r.Class != hoststate.ClassNotFound:
		r.Class, r.Text = hoststate.ClassOK, ""
	case r.Op.Kind == hoststate.OpDel && r.Present && (r.Class == hoststate.ClassNotFound || r.Class == hoststate.ClassGone):
		r.Class, r.Text = hoststate.ClassOK, "" // compared: another value stands there
	}
}
