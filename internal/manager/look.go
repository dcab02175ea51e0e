package manager

import (
	"context"
	"sync"
	"time"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Bounds of looks at hosts' kernels.
const (
	lookTime = 5 * time.Second // for one answer
	maxLooks = 16              // that wait for one stream
)

// looks are the questions to hosts that were not answered yet.
type looks struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]lookAt
}

type lookAt struct {
	host   overlay.UID
	answer chan api.Looked // of capacity 1
}

func newLooks() looks { return looks{open: map[uint64]lookAt{}} }

// Look asks a host what its kernel holds. ok is false if the host is not
// connected or did not answer in time.
func (m *Manager) Look(ctx context.Context, host overlay.UID, q []api.LookQuery) (l api.Looked, ok bool) {
	m.mu.Lock()
	s := m.streams[host]
	m.mu.Unlock()
	if s == nil {
		return l, false
	}
	at := lookAt{host, make(chan api.Looked, 1)}
	m.looks.mu.Lock()
	m.looks.last++
	id := m.looks.last
	m.looks.open[id] = at
	m.looks.mu.Unlock()
	defer func() {
		m.looks.mu.Lock()
		delete(m.looks.open, id)
		m.looks.mu.Unlock()
	}()
	s.mu.Lock()
	room := len(s.looks) < maxLooks
	if room {
		s.looks = append(s.looks, api.Look{ID: id, Queries: q})
	}
	s.mu.Unlock()
	if !room {
		return l, false
	}
	s.ring()
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	select {
	case l = <-at.answer:
		return l, true
	case <-ctx.Done():
		return l, false
	}
}

// looked takes a host's answer to whoever waits for it.
func (m *Manager) looked(host overlay.UID, l api.Looked) {
	m.looks.mu.Lock()
	at, waits := m.looks.open[l.ID]
	m.looks.mu.Unlock()
	if !waits || at.host != host {
		return
	}
	select {
	case at.answer <- l:
	default: // a second answer
	}
}

// takeLooks is what an operator asks this host now.
func (s *stream) takeLooks() []api.Look {
	s.mu.Lock()
	defer s.mu.Unlock()
	ls := s.looks
	s.looks = nil
	return ls
}
