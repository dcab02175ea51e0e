package lab

import (
	"context"
	"fmt"

	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
	"culvert/internal/overlay"
)

// sampleNetworks and sampleVMs are what `lab up` puts into a lab that is not
// to be empty: two networks over all hosts.
var sampleNetworks = []struct{ name, prefix string }{
	{"blue", "10.1.0.0/24"},
	{"red", "10.2.0.0/24"},
}

var sampleVMs = []struct {
	network string // index of sampleNetworks is 1 or 2, as in the prefix
	octet   byte
	host    int
}{
	{"blue", 1, 1}, {"blue", 1, 1}, {"red", 2, 1}, {"blue", 1, 2}, {"red", 2, 2}, {"blue", 1, 3},
}

// sampleSpecs are the sample VMs of a lab: vmN has the address 10.x.0.(10+N)
// and a MAC that shows it, so that tables can be read without a key.
func sampleSpecs(hosts int) []VMSpec {
	var specs []VMSpec
	for i, v := range sampleVMs {
		n := i + 1
		ip := [4]byte{10, v.octet, 0, byte(10 + n)}
		specs = append(specs, VMSpec{
			Name: fmt.Sprintf("vm%d", n), Host: HostName((v.host-1)%hosts + 1), Tenant: defaultTenant, Network: v.network,
			MAC:       overlay.MAC{0x52, 0x54, 0, ip[1], ip[2], ip[3]}.String(),
			Addresses: []string{fmt.Sprintf("%d.%d.%d.%d", ip[0], ip[1], ip[2], ip[3])},
		})
	}
	return specs
}

// populate makes the sample networks and those sample VMs that are not there,
// wherever the user has moved the others, and says how many VMs it made.
func (l *Lab) populate(ctx context.Context, s *state) (made int, err error) {
	client, err := l.dial()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	var specs []VMSpec
	for _, v := range sampleSpecs(s.Topology.Hosts) {
		v.Qemu = s.Topology.VMs == VMsQemu
		if have, ok := s.vm(v.Name); !ok || !have.Ready || !l.stands(have) {
			specs = append(specs, v)
		}
	}
	if len(specs) == 0 {
		return 0, nil
	}
	var networks []*culvertv1.Resource
	for _, n := range sampleNetworks {
		networks = append(networks, api.Wrap(&culvertv1.Network{
			ApiVersion: "culvert/v1alpha1", Kind: "Network",
			Metadata: &culvertv1.Metadata{Name: n.name, Tenant: defaultTenant},
			Spec:     &culvertv1.NetworkSpec{Subnets: []*culvertv1.Subnet{{Prefix: n.prefix}}},
		}))
	}
	if _, err := client.Put(ctx, &culvertv1.PutRequest{Mode: culvertv1.PutMode_PUT_MODE_CREATE, Resources: networks}); err != nil {
		return 0, err
	}
	made, _, err = l.createVMs(ctx, s, specs)
	return made, err
}

// macOfName is the MAC of a VM that nobody gave one: locally administered,
// the same for the same name.
func macOfName(name string) overlay.MAC {
	h := nameHash(name)
	return overlay.MAC{0x52, 0x54, 0xfe, byte(h >> 16), byte(h >> 8), byte(h)}
}
