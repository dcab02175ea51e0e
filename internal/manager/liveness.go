package manager

import (
	"context"
	"errors"
	"time"

	"culvert/internal/api"
	"culvert/internal/managercore"
)

var errHostDead = errors.New("the host was declared dead: it returns by a new stream")

// maxProbes bounds the probes that wait for one stream; a witness that does
// not read has no use.
const maxProbes = 256

// breathEvery is how often agents are to say that they live; 0: never.
func (m *Manager) breathEvery() time.Duration {
	return time.Duration(managercore.Config{HostDeath: managercore.Time(m.cfg.HostDeath)}.BreathEvery())
}

// setLook sets the timer for when the core wants to look who lives.
func (m *Manager) setLook(t *time.Timer) {
	wake := m.core.Wake()
	if wake == 0 {
		t.Reset(time.Hour)
		return
	}
	t.Reset(max(0, time.Duration(wake-m.now())))
}

// runErrands does what the core wants done about hosts, and logs it; on the
// loop.
func (m *Manager) runErrands() {
	news := false
	for _, e := range m.core.NextErrands() {
		if e.Kind == managercore.ErrandProbe {
			m.sendProbe(e)
			continue
		}
		if e.Kind == managercore.ErrandAsk {
			m.sendAsk(e)
			continue
		}
		news = true
		name := ""
		if h := m.core.View().Host(e.Host); h != nil {
			name = h.Name
		}
		switch e.Kind {
		case managercore.ErrandDied:
			m.log.Warn("host is dead", "host", name, "why", e.Text)
			if s := m.streamOf(e); s != nil {
				s.end(errHostDead)
			}
		case managercore.ErrandBack:
			m.log.Info("host returned", "host", name)
		case managercore.ErrandBraked:
			m.log.Error("too many hosts are silent at once: none is declared dead, everything stays", "why", e.Text)
		case managercore.ErrandReleased:
			m.log.Info("hosts are declared dead again")
		case managercore.ErrandMute:
			m.log.Warn("host answers no echo requests: its death cannot be told", "host", name)
		case managercore.ErrandHeard:
			m.log.Info("host answers echo requests", "host", name)
		}
	}
	if news {
		m.noteStates(m.core)
	}
}

// streamOf is the stream that an errand is about; nil if it has ended.
func (m *Manager) streamOf(e managercore.Errand) *stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.streams[e.Host]; s != nil && s.session == e.Session {
		return s
	}
	return nil
}

func (m *Manager) sendProbe(e managercore.Errand) {
	s := m.streamOf(e)
	if s == nil {
		return
	}
	s.mu.Lock()
	if len(s.probes) < maxProbes {
		s.probes = append(s.probes, api.Probe{ID: e.Probe.ID, VTEP: e.Probe.VTEP, Within: time.Duration(e.Probe.Within)})
	}
	s.mu.Unlock()
	s.ring()
}

func (m *Manager) sendAsk(e managercore.Errand) {
	s := m.streamOf(e)
	if s == nil {
		return
	}
	s.mu.Lock()
	if len(s.asks) < maxProbes {
		a := e.Ask
		s.asks = append(s.asks, api.Ask{ID: a.ID, Network: a.Network, MAC: a.MAC, Address: a.Address, Within: time.Duration(a.Within)})
	}
	s.mu.Unlock()
	s.ring()
}

// takeAsks is after which addresses this host is to be asked now.
func (s *stream) takeAsks() []api.Ask {
	s.mu.Lock()
	defer s.mu.Unlock()
	as := s.asks
	s.asks = nil
	return as
}

// takeProbes is what is to be asked of this host now.
func (s *stream) takeProbes() []api.Probe {
	s.mu.Lock()
	defer s.mu.Unlock()
	ps := s.probes
	s.probes = nil
	return ps
}

// alive feeds the core with a breath, the word of a witness, or a search.
func (s *stream) alive(ctx context.Context, up api.Up) error {
	if k := up.Seek; k != nil {
		return s.m.send(ctx, managercore.Seek{Host: s.host, Session: s.session, Network: k.Network, Address: k.Address})
	}
	if r := up.ProbeResult; r != nil {
		return s.m.send(ctx, managercore.ProbeDone{Host: s.host, Session: s.session, ID: r.ID, Answered: r.Answered, Unable: r.Unable})
	}
	return s.m.send(ctx, managercore.Breath{Host: s.host, Session: s.session})
}
