package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// Group is the device group number (ip-link(8)) of every device that the
// agent makes, so that an operator finds and deletes them at once.
const Group = 0xc7

// Protocol marks our neighbour entries (NDA_PROTOCOL). The number is in no
// list of rtnetlink(7) or iproute2's rt_protos, which end at 192 with gaps
// above.
const Protocol = 0xc7

// CurrentNS asks Open for the network namespace of the calling thread.
const CurrentNS = -1

// Config is what the edge must know besides the operations.
type Config struct {
	// UDPPort is the VXLAN port that OpBase guards (RFC 7348: 4789); 0 means
	// 4789.
	UDPPort uint16
	// Log gets what no result can carry (sockets reopened). Nil is silent.
	Log *slog.Logger
}

// Kernel is one network namespace. All methods may be called from several
// goroutines; reads do not wait for writes.
type Kernel struct {
	ns   int // file descriptor
	port uint16
	log  *slog.Logger

	write *sock // rtnetlink, for Apply
	read  *sock // rtnetlink, for Read
	nfw   *sock // nftables elements, for Apply
	nfr   *sock // nftables, for Read
	rules ruleReader
	guard guard
	lost  missLoss
	calm  sentinel

	rulesetRead atomic.Pointer[ruleset] // nil: not read yet

	base sync.Mutex // one transaction on tables and chains at a time
}

// Open takes the network namespace behind the file descriptor ns, which stays
// the caller's, or CurrentNS.
func Open(ns int, cfg Config) (*Kernel, error) {
	var fd int
	var err error
	if ns == CurrentNS {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	} else {
		fd, err = unix.FcntlInt(uintptr(ns), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	k := &Kernel{ns: fd, port: cfg.UDPPort, log: cfg.Log}
	if k.port == 0 {
		k.port = 4789
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.rules.ns, k.calm.ns, k.calm.fd = fd, fd, -1
	k.write, k.read = newSock(fd, unix.NETLINK_ROUTE), newSock(fd, unix.NETLINK_ROUTE)
	k.nfw, k.nfr = newSock(fd, unix.NETLINK_NETFILTER), newSock(fd, unix.NETLINK_NETFILTER)
	for _, s := range []*sock{k.write, k.read, k.nfw, k.nfr} {
		s.mu.Lock()
		err := s.open()
		s.mu.Unlock()
		if err != nil {
			return nil, errors.Join(err, k.Close())
		}
	}
	return k, nil
}

// Close frees the sockets and the namespace. Watch must have returned.
func (k *Kernel) Close() error {
	for _, s := range []*sock{k.write, k.read, k.nfw, k.nfr} {
		s.close()
	}
	return errors.Join(k.guard.close(), k.rules.close(), k.calm.close(), unix.Close(k.ns))
}

// Apply carries out ops in order and says of each what became of it. Rows
// that follow each other go out in batches and are read back afterwards; a
// refused operation stops none of the others.
func (k *Kernel) Apply(ctx context.Context, ops []hoststate.Op) []hoststate.Result {
	res := make([]hoststate.Result, len(ops))
	for i, o := range ops {
		res[i].Op = o
	}
	devs := known{k: k}
	for from := 0; from < len(ops); {
		kind, to := nextRun(ops, from)
		switch err := ctx.Err(); {
		case err != nil:
			for i := from; i < to; i++ {
				settle(&res[i], err)
			}
		case kind == runRows:
			k.applyRows(res[from:to], &devs)
		case kind == runElements:
			k.applyElements(res[from:to])
		case kind == runPrograms:
			k.applyPrograms(res[from:to], &devs)
		default:
			settle(&res[from], k.applyOne(ops[from]))
			devs = known{k: k} // it may have made, moved or deleted them
		}
		from = to
	}
	return res
}

// settle writes an error's class and words into a result.
func settle(r *hoststate.Result, err error) {
	r.Class, r.Text = Classify(err), ""
	if err != nil {
		r.Text = err.Error()
	}
}

// run tells which operations may share a batch.
type run uint8

const (
	runOther    run = iota // alone
	runRows                // rtnetlink rows
	runElements            // nftables set elements
	runPrograms            // rows of the programs' tables
)

// nextRun is the kind and the end of the run that begins at from. A key that
// comes again begins a new run, so that what is read back is what its own
// operation left.
func nextRun(ops []hoststate.Op, from int) (kind run, to int) {
	kind = runOf(ops[from])
	if kind == runOther {
		return kind, from + 1
	}
	seen := make(map[hoststate.Key]struct{}, min(len(ops)-from, 1024))
	for to = from; to < len(ops) && runOf(ops[to]) == kind; to++ {
		key := ops[to].Row.Key
		if _, again := seen[key]; again {
			break
		}
		seen[key] = struct{}{}
	}
	return kind, to
}

func runOf(o hoststate.Op) run {
	if o.Kind != hoststate.OpSet && o.Kind != hoststate.OpDel {
		return runOther
	}
	switch o.Row.Key.Table {
	case hoststate.TableFDB, hoststate.TableMaster, hoststate.TableRepl, hoststate.TableNeigh:
		return runRows
	case hoststate.TableVTEP, hoststate.TableMember, hoststate.TableMark:
		return runElements
	case hoststate.TablePort, hoststate.TableOwn, hoststate.TableSource, hoststate.TableRelayed, hoststate.TableRelay, hoststate.TableReach,
		hoststate.TableKnown, hoststate.TableRoute, hoststate.TableAlias, hoststate.TableFrom, hoststate.TableRouted:
		return runPrograms
	}
	return runOther
}

func (k *Kernel) applyOne(o hoststate.Op) error {
	switch o.Kind {
	case hoststate.OpBase:
		return errors.Join(k.makeBase(), k.checkUnderlay())
	case hoststate.OpMakeBridge:
		return k.makeBridge(o.Dev)
	case hoststate.OpMakeVXLAN:
		return k.makeVXLAN(o.Dev)
	case hoststate.OpTune:
		return k.tune(o.Dev)
	case hoststate.OpUp:
		return k.setUp(o.Index)
	case hoststate.OpPort:
		return k.setPort(o.Index, o.Learn)
	case hoststate.OpDelLink:
		return k.delLink(o.Index)
	case hoststate.OpAttach:
		return k.attach(o)
	case hoststate.OpDetach:
		return k.detach(o.Name)
	case hoststate.OpAnnounce:
		return k.announce(o.Row)
	case hoststate.OpSend:
		return k.sendFrame(o.Index, o.Frame, o.Past)
	}
	return fmt.Errorf("operation %s: %w", o.Kind, unix.EOPNOTSUPP)
}

// devices are the ifindexes of one network's devices, 0 where there is none.
type devices struct {
	bridge, vxlan int32
	vxlanMaster   int32
	misses        bool // hoststate.Device.Misses
}

// known is what lookup has found for the runs of one Apply.
type known struct {
	k    *Kernel
	devs map[overlay.VNI]devices
	errs map[overlay.VNI]error
}

// network finds a network's devices, once.
func (n *known) network(v overlay.VNI) (devices, error) {
	if d, ok := n.devs[v]; ok {
		return d, n.errs[v]
	}
	if n.devs == nil {
		n.devs, n.errs = map[overlay.VNI]devices{}, map[overlay.VNI]error{}
	}
	n.devs[v], n.errs[v] = n.k.lookup(n.k.write, v)
	return n.devs[v], n.errs[v]
}

// lookup finds a network's devices by name.
func (k *Kernel) lookup(s *sock, v overlay.VNI) (devices, error) {
	var d devices
	names := []linkName{{name: v.Bridge()}, {name: v.VXLAN()}}
	err := getLinks(s, names, func(i int, l link, err error) error {
		switch {
		case errors.Is(err, errAbsent):
		case err != nil:
			return fmt.Errorf("look up %s: %w", names[i].name, err)
		case i == 0 && l.Kind == hoststate.LinkBridge:
			d.bridge = l.Index
		case i == 1 && l.Kind == hoststate.LinkVXLAN:
			d.vxlan, d.vxlanMaster, d.misses = l.Index, l.Master, l.Flood
		}
		return nil
	})
	if err != nil {
		return devices{}, err
	}
	return d, nil
}
