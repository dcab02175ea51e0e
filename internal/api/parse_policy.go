package api

import (
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

func parsePolicy(p *culvertv1.NetworkPolicy) (overlay.Doc, error) {
	d, err := parseHead(p, overlay.KindPolicy)
	if err != nil {
		return overlay.Doc{}, err
	}
	s := p.GetSpec()
	d.Policy = overlay.PolicySpec{Domain: s.GetDomain(), From: s.GetFrom(), To: s.GetTo(), Both: true}
	for _, f := range []struct{ field, name string }{{"spec.domain", d.Policy.Domain}, {"spec.from", d.Policy.From}, {"spec.to", d.Policy.To}} {
		if err := overlay.CheckName(f.field, f.name); err != nil {
			return overlay.Doc{}, err
		}
	}
	if d.Policy.From == d.Policy.To {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.to", Value: s.GetTo(), Allowed: "another network than spec.from: within a network nothing has to be opened"}
	}
	switch s.GetDirection() {
	case "", "both":
	case "forward":
		d.Policy.Both = false
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.direction", Value: s.GetDirection(), Allowed: "both or forward"}
	}
	switch s.GetMode() {
	case "", "routed":
	case "bridged":
		d.Policy.Bridged = true
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.mode", Value: s.GetMode(), Allowed: "routed or bridged"}
	}
	if d.Policy.Bridged && !d.Policy.Both {
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.direction", Value: s.GetDirection(), Allowed: "both, or nothing, beside spec.mode bridged: what is one segment has no direction"}
	}
	switch s.GetCast() {
	case "", "unicast":
	case "multicast":
		return overlay.Doc{}, &LaterError{Field: "spec.cast", Value: "multicast", Use: "unicast", With: "multicast between networks"}
	default:
		return overlay.Doc{}, &overlay.FieldError{Field: "spec.cast", Value: s.GetCast(), Allowed: "unicast"}
	}
	return d, nil
}
