package kerneltest

import (
	"testing"

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

func TestContract(t *testing.T) {
	Contract(t, func(*testing.T) Subject { return modelSubject{New()} })
}
