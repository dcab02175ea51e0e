package hoststate

import (
	"net/netip"
	"testing"

	"culvert/internal/overlay"
)

func TestDeviceMACs(t *testing.T) {
	seen := map[overlay.MAC]string{}
	for _, local := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"} {
		for v := overlay.VNI(1); v <= 2000; v++ {
			d := Device{VNI: v, Local: netip.MustParseAddr(local)}
			for kind, m := range map[string]overlay.MAC{"bridge": d.BridgeMAC(), "vxlan": d.VXLANMAC()} {
				if !m.IsUnicast() || m[0]&2 == 0 {
					t.Fatalf("%s of VNI %d at %s: %s is not locally administered unicast", kind, v, local, m)
				}
				name := kind + " " + v.VXLAN() + " " + local
				if other, ok := seen[m]; ok {
					t.Fatalf("%s and %s share %s", name, other, m)
				}
				seen[m] = name
			}
		}
	}
	d := Device{VNI: 7, Local: netip.MustParseAddr("192.0.2.1"), MTU: 1400, Alias: "x"}
	e := Device{VNI: 7, Local: netip.MustParseAddr("192.0.2.1"), MTU: 9000}
	if d.VXLANMAC() != e.VXLANMAC() {
		t.Errorf("the MAC depends on more than VNI and address")
	}
}

func TestErrorNamesItsClass(t *testing.T) {
	err := &Error{What: "read links", Class: ClassTransient, Text: "interrupted dump"}
	if got := err.Error(); got != "read links: transient: interrupted dump" {
		t.Errorf("got %q", got)
	}
}
