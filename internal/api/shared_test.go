package api

import (
	"testing"

	"culvert/internal/overlay"
)

// A virtual router's endpoint is beside that of its port, and is not named like
// it: names tell endpoints apart.
func TestEndpointsOfOnePortHaveTwoNames(t *testing.T) {
	t.Parallel()
	for mac, want := range map[overlay.MAC]string{
		{0x52, 0x54, 0, 0, 0, 1}: "vm1",
		{0, 0, 0x5e, 0, 1, 7}:    "00:00:5e:00:01:07",
		{0, 0, 0x5e, 0, 2, 255}:  "00:00:5e:00:02:ff",
		{0, 0, 0x5e, 0, 1, 0}:    "vm1", // no router has number 0 (RFC 9568 section 5.2.3)
		{0, 0, 0x5e, 0, 3, 7}:    "vm1",
	} {
		e := RenderEndpoint(&overlay.Endpoint{MAC: mac, Port: overlay.UID{1}}, EndpointNames{Port: "vm1"}, overlay.Rev{Epoch: 1, N: 1}, "")
		if got := e.GetMetadata().GetName(); got != want || e.GetStatus().GetPort() != "vm1" {
			t.Errorf("endpoint %s is named %q of port %q, want %q of vm1", mac, got, e.GetStatus().GetPort(), want)
		}
	}
}
