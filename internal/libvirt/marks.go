package libvirt

import (
	"slices"
	"sync"

	libvirt "github.com/digitalocean/go-libvirt"
)

// maxMarks bounds what waits to be read; beyond it everything is.
const maxMarks = 4096

// marks gathers what is to be read again. A domain has one mark, however many
// events it had.
type marks struct {
	mu   sync.Mutex
	set  markSet
	wake chan struct{}
}

type markSet struct {
	all     bool // everything is to be read
	lost    bool // ... because events were thrown away
	asked   bool // everything is to be read and told
	doms    map[libvirt.UUID]mark
	devices []string
}

// mark is a domain with the last event that tells; a zero one if there was none.
type mark struct {
	dom   libvirt.Domain
	event event
}

func newMarks() *marks {
	return &marks{set: markSet{doms: map[libvirt.UUID]mark{}}, wake: make(chan struct{}, 1)}
}

func (m *marks) change(f func(*markSet)) {
	m.mu.Lock()
	if f(&m.set); len(m.set.doms)+len(m.set.devices) > maxMarks {
		m.set = markSet{all: true, lost: true, asked: m.set.asked, doms: map[libvirt.UUID]mark{}}
	}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *marks) domain(d libvirt.Domain, e event) {
	m.change(func(s *markSet) {
		if !e.tells() {
			e = s.doms[d.UUID].event
		}
		s.doms[d.UUID] = mark{d, e}
	})
}

func (m *marks) device(name string) {
	m.change(func(s *markSet) {
		if name == "" {
			s.all = true
		} else if !slices.Contains(s.devices, name) {
			s.devices = append(s.devices, name)
		}
	})
}

// take hands out all marks and leaves none.
func (m *marks) take() markSet {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.set
	m.set = markSet{doms: map[libvirt.UUID]mark{}}
	return s
}
