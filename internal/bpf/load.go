package bpf

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// layout is LAYOUT of culvert.h.
const layout = 4

// Rate is a token bucket: frames a second, and how many at once.
type Rate struct{ PerSecond, Burst uint64 }

func (r Rate) bucket() bucket {
	b := bucket{Interval: 1_000_000_000 / max(r.PerSecond, 1)}
	b.Depth = b.Interval * (max(r.Burst, 1) - 1)
	return b
}

// Limits are the buckets that every port has.
type Limits struct {
	Storm     Rate // broadcast and multicast from the guest
	Punt      Rate // frames handed up, but for those of the next two
	Unclaimed Rate // frames handed up of a port that passes nothing, and with a MAC that is not the port's
	Router    Rate // packets to the router, handed up because it does not send them on
	Unknown   Rate // frames to MACs that the tables have not, and questions to one MAC, in an on-demand network
}

// DefaultLimits suit a VM: an ARP storm of a real guest stays below them, and
// a thousand guests at their limits leave a host standing.
var DefaultLimits = Limits{
	Storm:     Rate{2000, 4000},
	Punt:      Rate{100, 200},
	Unclaimed: Rate{10, 10},
	Router:    Rate{100, 200},
	Unknown:   Rate{200, 64},
}

// Config is what a Set needs.
type Config struct {
	UDPPort uint16 // VXLAN's
	Limits  Limits // the zero value is DefaultLimits
	// Filters attaches as filters of a clsact qdisc, which otherwise only
	// kernels without tcx need.
	Filters bool
}

// Set is the programs and the maps of one network namespace. Its methods may
// be called from several goroutines.
type Set struct {
	objects culvertObjects
	hook    hook
	ids     [programs]ebpf.ProgramID // of this set's own programs
	config  config

	mu    sync.Mutex // guards known
	known map[ebpf.ProgramID]Program

	portMu sync.Mutex // guards what cv_ports says of cv_own, and cv_turning of cv_relay and cv_alias

	netMu sync.Mutex // guards nets and the maps in it; taken before portMu
	nets  map[overlay.VNI]*network
}

// Load takes over what stands on the devices (ifindexes), or loads anew what
// does not. Programs that are as they should be are kept, attached as they
// are; of the others only the maps are, if their layout is the same. Programs
// of another namespace, which a device may have brought along, are left alone.
func Load(cfg Config, devices []int32) (*Set, error) {
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits
	}
	cookie, err := namespaceCookie()
	if err != nil {
		return nil, fmt.Errorf("identify network namespace: %w", err)
	}
	s := &Set{known: map[ebpf.ProgramID]Program{}, nets: map[overlay.VNI]*network{}}
	s.config = config{
		Layout: layout, UDPPort: cfg.UDPPort, NetNS: cookie,
		Storm: cfg.Limits.Storm.bucket(), Punt: cfg.Limits.Punt.bucket(), Unclaimed: cfg.Limits.Unclaimed.bucket(),
		Router: cfg.Limits.Router.bucket(), Unknown: cfg.Limits.Unknown.bucket(),
	}
	if cfg.Filters {
		s.hook, err = openFilters()
	} else {
		s.hook, err = findHook()
	}
	if err != nil {
		return nil, err
	}
	if err := s.load(devices); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// load finds and loads the programs.
func (s *Set) load(devices []int32) error {
	found, err := s.find(devices, s.config.NetNS)
	if err != nil {
		return fmt.Errorf("find programs: %w", err)
	}
	defer found.close()
	spec, err := loadCulvert()
	if err != nil {
		return fmt.Errorf("read programs: %w", err)
	}
	for name, m := range found.maps {
		if spec.Maps[name] == nil || !strings.HasPrefix(name, "cv_") {
			_ = m.Close()
			delete(found.maps, name)
		}
	}
	if err := spec.LoadAndAssign(&s.objects, &ebpf.CollectionOptions{MapReplacements: found.maps}); err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	if err := s.adopt(found); err != nil {
		return err
	}
	return s.Configure()
}

// Close lets go of programs and maps. What is attached goes on as it is.
func (s *Set) Close() error {
	s.netMu.Lock()
	defer s.netMu.Unlock()
	s.hook.close()
	err := s.objects.Close()
	for _, n := range s.nets {
		err = errors.Join(err, n.Close())
	}
	clear(s.nets)
	return err
}

// slots are this set's programs, by what they are.
func (s *Set) slots() map[Program]**ebpf.Program {
	o := &s.objects
	return map[Program]**ebpf.Program{FromPort: &o.CvFromPort, ToPort: &o.CvToPort, FromOverlay: &o.CvFromOverlay, Underlay: &o.CvUnderlay}
}

// maps are all maps of the set.
func (s *Set) maps() []*ebpf.Map {
	o := &s.objects
	return []*ebpf.Map{o.CvAlias, o.CvConfig, o.CvDevices, o.CvHeard, o.CvNetworks, o.CvOwn, o.CvPorts, o.CvRelay, o.CvRoutes, o.CvState, o.CvTurning,
		o.CvUnderdrops, o.CvVteps}
}

// adopt keeps programs that stand already and are what was just loaded, and
// binds every map to every program: any one of them brings all maps back.
func (s *Set) adopt(f *found) error {
	for p, slot := range s.slots() {
		old, fresh := f.programs[p], *slot
		id, tag, err := identity(fresh)
		if err != nil {
			return err
		}
		if old != nil {
			oldID, oldTag, err := identity(old)
			if err != nil {
				return err
			}
			if oldTag == tag {
				*slot, f.programs[p], id = old, fresh, oldID
			}
		}
		s.ids[p] = id
		s.known[id] = p
		for _, m := range s.maps() {
			if err := (*slot).BindMap(m); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("bind map to program: %w", err)
			}
		}
	}
	return nil
}

// identity is a program's number in the kernel and the digest of its code,
// which says nothing of the maps that it uses.
func identity(p *ebpf.Program) (ebpf.ProgramID, string, error) {
	info, err := p.Info()
	if err != nil {
		return 0, "", fmt.Errorf("read program: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, "", fmt.Errorf("program without a number: %w", unix.EOPNOTSUPP)
	}
	return id, info.Tag, nil
}

// found is what stood on the devices and is ours.
type found struct {
	programs [programs]*ebpf.Program
	maps     map[string]*ebpf.Map
}

func (f *found) close() {
	for _, p := range f.programs {
		_ = p.Close()
	}
	for _, m := range f.maps {
		_ = m.Close()
	}
}

// find looks for programs of ours with the maps of this namespace. The first
// one that is found decides which maps those are.
func (s *Set) find(devices []int32, cookie uint64) (*found, error) {
	f := &found{}
	var ids map[ebpf.MapID]bool
	for _, dev := range devices {
		for _, in := range []bool{true, false} {
			on, err := s.hook.query(dev, in)
			if errors.Is(err, unix.ENODEV) {
				continue
			}
			if err != nil {
				f.close()
				return nil, err
			}
			for _, a := range on {
				p := s.kind(a.id)
				if p == None || f.programs[p] != nil {
					continue
				}
				prog, maps := openProgram(a.id)
				if f.maps == nil && prog != nil {
					f.maps, ids = openMaps(maps, cookie)
				}
				if f.maps == nil || !within(maps, ids) {
					_ = prog.Close() // closing none is allowed
					continue
				}
				f.programs[p] = prog
			}
		}
	}
	return f, nil
}

// openProgram is nil if the program went meanwhile.
func openProgram(id ebpf.ProgramID) (*ebpf.Program, []ebpf.MapID) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, nil
	}
	info, err := p.Info()
	if err != nil {
		_ = p.Close()
		return nil, nil
	}
	maps, _ := info.MapIDs()
	return p, maps
}

func within(maps []ebpf.MapID, ids map[ebpf.MapID]bool) bool {
	for _, m := range maps {
		if !ids[m] {
			return false
		}
	}
	return len(maps) > 0
}

// openMaps opens a program's maps by their names. Nil if they are not of this
// layout or not of this namespace.
func openMaps(ids []ebpf.MapID, cookie uint64) (map[string]*ebpf.Map, map[ebpf.MapID]bool) {
	maps, numbers := map[string]*ebpf.Map{}, map[ebpf.MapID]bool{}
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		info, err := m.Info()
		if err != nil || maps[info.Name] != nil {
			_ = m.Close()
			continue
		}
		maps[info.Name], numbers[id] = m, true
	}
	var c config
	if m := maps["cv_config"]; m != nil && m.ValueSize() == configSize && m.Lookup(uint32(0), &c) == nil &&
		c.Layout == layout && c.NetNS == cookie {
		return maps, numbers
	}
	for _, m := range maps {
		_ = m.Close()
	}
	return nil, nil
}

// namespaceCookie is the kernel's own number of the calling thread's network
// namespace, which is never used again (SO_NETNS_COOKIE, Linux 5.14).
func namespaceCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return cookie, errors.Join(err, unix.Close(fd))
}
