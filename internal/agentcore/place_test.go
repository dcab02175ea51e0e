package agentcore

import "testing"

// TestPlace: where a guest's interface belongs, by everything that can say so.
func TestPlace(t *testing.T) {
	r := newRig(t)
	r.fleet("n1 10", "n2 20 blocked")
	r.log("n1", "port p1 02:00:00:00:00:01", "port p2 02:00:00:00:00:02 h9")
	p1, p2, other := mac("02:00:00:00:00:01"), mac("02:00:00:00:00:02"), mac("02:00:00:00:00:03")
	tests := []struct {
		name string
		g    Guest
		want Place // but for Port
		port string
	}{
		{"by bridge and MAC", Guest{MAC: p1, Bridge: "cvb10"}, Place{Ours: true, VNI: 10, Tenant: "default", Network: "default/n1", Stands: true, May: true}, "p1"},
		{"by bridge and name", Guest{MAC: other, Bridge: "cvb10", Port: "p1"}, Place{Ours: true, VNI: 10, Tenant: "default", Network: "default/n1", Stands: true, May: true}, "p1"},
		{"port for another host", Guest{MAC: p2, Bridge: "cvb10"}, Place{Ours: true, VNI: 10, Tenant: "default", Network: "default/n1", Stands: true}, "p2"},
		{"no such port", Guest{MAC: other, Bridge: "cvb10"}, Place{Ours: true, VNI: 10, Tenant: "default", Network: "default/n1", Stands: true}, ""},
		{"port of another tenant", Guest{MAC: p1, Bridge: "cvb10", Tenant: "acme", Port: "p1"}, Place{Ours: true, VNI: 10, Tenant: "acme", Network: "default/n1", Stands: true}, ""},
		{"a network that this host was not told of", Guest{MAC: p1, Bridge: "cvb30"}, Place{Ours: true, VNI: 30}, ""},
		{"a network that is being deleted", Guest{MAC: p1, Bridge: "cvb20"}, Place{Ours: true, VNI: 20, Tenant: "default", Network: "default/n2", Stands: true, Blocked: true}, ""},
		{"somebody else's bridge", Guest{MAC: p1, Bridge: "br0", Port: "p1"}, Place{}, ""},
		{"a VXLAN device is no bridge", Guest{MAC: p1, Bridge: "cvx10"}, Place{}, ""},
		{"by the hypervisor's network", Guest{MAC: p1, Network: "default.n1"}, Place{Ours: true, VNI: 10, Tenant: "default", Network: "default/n1", Stands: true, May: true}, "p1"},
		{"by port group", Guest{MAC: p1, Network: "all/default.n1"}, Place{Ours: true, VNI: 10, Tenant: "default", Network: "default/n1", Stands: true, May: true}, "p1"},
		{"a network of the hypervisor's own", Guest{MAC: p1, Network: "default"}, Place{}, ""},
		{"by name alone", Guest{MAC: p1, Network: "default", Port: "p1"}, Place{Ours: true, VNI: 10, Tenant: "default", Network: "default/n1", Stands: true, May: true}, "p1"},
		{"by a name that this host was not told of", Guest{MAC: p1, Port: "p7"}, Place{Ours: true, Tenant: "default"}, ""},
		{"nothing says", Guest{MAC: p1}, Place{}, ""},
	}
	for _, tt := range tests {
		got := r.c.Place(tt.g)
		port := ""
		if got.Port != nil {
			port = got.Port.Name
		}
		tt.want.Port = got.Port
		if got != tt.want || port != tt.port {
			t.Errorf("%s: %+v, port %q, want %+v, port %q", tt.name, got, port, tt.want, tt.port)
		}
	}
}
