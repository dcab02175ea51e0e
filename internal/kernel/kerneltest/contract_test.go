package kerneltest

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"culvert/internal/hoststate"
	"culvert/internal/overlay"
)

// modelSubject is the model with the hands of the contract.
type modelSubject struct{ *Model }

func (m modelSubject) Bell(ok func(hoststate.Doorbell) bool) bool {
	for i, d := range m.bells {
		if ok(d) {
			m.bells = m.bells[i+1:]
			return true
		}
	}
	m.bells = nil
	return false
}

func (m modelSubject) Quiet() []hoststate.Doorbell { return m.Doorbells() }

func (m modelSubject) Plug(name string) int32 { return m.Model.Plug(name, 0, "") }

func (m modelSubject) Unplug(name string) { m.Model.Unplug(name) }

func (m modelSubject) SetRow(r hoststate.Row) { m.Model.SetRow(r) }

func (m modelSubject) DeleteRow(r hoststate.Row) { m.Model.DeleteRow(r.Key) }

func (m modelSubject) DropIsolation(v overlay.VNI) { m.Model.DropIsolation(v) }

func (m modelSubject) Ask(name string, ip netip.Addr) { m.Model.Ask(m.names[name], ip) }

func (m modelSubject) Frame(name string, to overlay.MAC, packet netip.Addr) {
	m.Model.Frame(m.names[name], to, packet)
}

func (m modelSubject) Missed(x hoststate.Miss) ([]hoststate.Miss, bool) {
	all := m.Misses()
	if i := slices.Index(all, x); i >= 0 {
		m.misses = all[i+1:]
		return all[:i], true
	}
	return all, false
}

func TestContract(t *testing.T) {
	Contract(t, func(*testing.T) Subject {
		m, start := New(), time.Now()
		m.Clock = func() time.Duration { return time.Since(start) }
		return modelSubject{m}
	})
}
