package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Program is one of ours.
type Program uint8

// The programs.
const (
	None        Program = 0
	FromPort    Program = 1 // ingress of a VM's port: what the guest sends
	ToPort      Program = 2 // egress of a VM's port: what goes to the guest
	FromOverlay Program = 3 // ingress of a VXLAN device: relays
	Underlay    Program = 4 // ingress of an underlay device: the source check
	programs            = 5
)

// names are the programs' in the kernel; they tell them from everybody
// else's.
var names = map[string]Program{"cv_from_port": FromPort, "cv_to_port": ToPort, "cv_from_overlay": FromOverlay, "cv_underlay": Underlay}

func (p Program) ingress() bool { return p != ToPort }

// attached is a program at a hook.
type attached struct {
	id ebpf.ProgramID

	// Of a filter, where programs stand as such.
	handle             uint32
	priority, protocol uint16
}

// hook is the way in which programs are attached: all of them outlive the
// process, and one is replaced in place without a frame that meets none.
type hook interface {
	// query lists the programs at one side of a device, in the order in which
	// they run; unix.ENODEV if there is no such device.
	query(dev int32, ingress bool) ([]attached, error)
	add(dev int32, ingress bool, p *ebpf.Program) error
	replace(dev int32, ingress bool, old attached, p *ebpf.Program) error
	remove(dev int32, ingress bool, old attached) error
	close()
}

// Standing says what of ours stands on a device.
type Standing struct {
	Ingress, Egress Program // None: nothing of ours
	// Current: it is this set's, all of it, and none stands twice.
	Current bool
}

// Standing looks at a device. unix.ENODEV if it is not there.
func (s *Set) Standing(dev int32) (Standing, error) {
	st := Standing{Current: true}
	for _, in := range []bool{true, false} {
		on, err := s.hook.query(dev, in)
		if err != nil {
			return Standing{}, fmt.Errorf("look at device %d: %w", dev, err)
		}
		for _, a := range on {
			p := s.kind(a.id)
			if p == None {
				continue
			}
			side := &st.Ingress
			if !in {
				side = &st.Egress
			}
			st.Current = st.Current && *side == None && a.id == s.ids[p]
			*side = p
		}
	}
	return st, nil
}

// Attach makes p stand on a device, in place of whatever of ours stands on
// that side. It runs before everybody else's programs, none of which can then
// let a frame pass it.
func (s *Set) Attach(dev int32, p Program) error {
	on, err := s.hook.query(dev, p.ingress())
	if err != nil {
		return fmt.Errorf("look at device %d: %w", dev, err)
	}
	stands := slices.ContainsFunc(on, func(a attached) bool { return a.id == s.ids[p] })
	for _, a := range on {
		switch {
		case s.kind(a.id) == None || a.id == s.ids[p]:
		case stands:
			err = errors.Join(err, s.hook.remove(dev, p.ingress(), a))
		default:
			err = errors.Join(err, s.hook.replace(dev, p.ingress(), a, *s.slots()[p]))
			stands = true
		}
	}
	if !stands {
		err = s.hook.add(dev, p.ingress(), *s.slots()[p])
	}
	if err != nil {
		return fmt.Errorf("attach to device %d: %w", dev, err)
	}
	return nil
}

// Detach takes programs of ours of the kind p off a device. None there, or no
// such device, is no error.
func (s *Set) Detach(dev int32, p Program) error {
	on, err := s.hook.query(dev, p.ingress())
	for _, a := range on {
		if s.kind(a.id) == p {
			err = errors.Join(err, s.hook.remove(dev, p.ingress(), a))
		}
	}
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach from device %d: %w", dev, err)
	}
	return nil
}

// kind says which of ours a program is, of whatever version. Numbers are not
// used again for two thousand million programs, so what was looked up is kept.
func (s *Set) kind(id ebpf.ProgramID) Program {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.known[id]; ok {
		return p
	}
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return None // it went
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return None
	}
	const most = 4096
	if len(s.known) >= most {
		clear(s.known)
		for p, own := range s.ids {
			s.known[own] = Program(p)
		}
	}
	p := names[info.Name]
	s.known[id] = p
	return p
}

// findHook finds out how this kernel attaches programs. lo, of index 1 in
// every namespace, serves as the device.
func findHook() (hook, error) {
	_, err := tcx{}.query(1, true)
	switch {
	case err == nil:
		return tcx{}, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, ebpf.ErrNotSupported):
		return openFilters()
	}
	return nil, fmt.Errorf("query programs: %w", err)
}

// tcx is BPF_PROG_ATTACH to BPF_TCX_INGRESS and BPF_TCX_EGRESS (Linux 6.6;
// kernel/bpf/tcx.c), the form without a link: it stays when the process ends.
type tcx struct{}

func side(ingress bool) ebpf.AttachType {
	if ingress {
		return ebpf.AttachTCXIngress
	}
	return ebpf.AttachTCXEgress
}

func (tcx) query(dev int32, ingress bool) ([]attached, error) {
	const tries = 5 // the number of programs may grow between two calls
	for i := 1; ; i++ {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(dev), Attach: side(ingress)})
		if err != nil {
			if errors.Is(err, unix.ENOSPC) && i < tries {
				continue
			}
			return nil, err
		}
		on := make([]attached, len(res.Programs))
		for i, p := range res.Programs {
			on[i] = attached{id: p.ID}
		}
		return on, nil
	}
}

func (tcx) close() {}

func (tcx) add(dev int32, ingress bool, p *ebpf.Program) error {
	return hurried(func() error {
		return link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dev), Program: p, Attach: side(ingress), Anchor: link.Head()})
	})
}

func (tcx) replace(dev int32, ingress bool, old attached, p *ebpf.Program) error {
	before, err := ebpf.NewProgramFromID(old.id)
	if err != nil {
		return err
	}
	defer before.Close()
	return link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: int(dev), Program: p, Attach: side(ingress), Anchor: link.ReplaceProgram(before)})
}

func (tcx) remove(dev int32, ingress bool, old attached) error {
	p, err := ebpf.NewProgramFromID(old.id)
	if err != nil {
		return err
	}
	defer p.Close()
	return hurried(func() error {
		return link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dev), Program: p, Attach: side(ingress)})
	})
}
