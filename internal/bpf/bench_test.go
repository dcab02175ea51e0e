package bpf

import (
	"testing"

	"github.com/cilium/ebpf"

	"culvert/internal/hoststate"
)

// BenchmarkFrame is what each program takes for a frame that passes.
func BenchmarkFrame(b *testing.B) {
	s := newBench(b, Limits{})
	s.row(hoststate.Key{Table: hoststate.TableSource, VNI: 100, MAC: other, IP: known4}, hoststate.Val{})
	r := newRouted(b, routed)
	inner := eth(mine, other, 0x0800, ip4(their4, own4, 6, make([]byte, 20)))
	for _, c := range []struct {
		name  string
		prog  *ebpf.Program
		frame []byte
	}{
		{"from-port", s.objects.CvFromPort, eth(other, mine, 0x0800, ip4(own4, their4, 6, make([]byte, 20)))},
		{"from-port-routed", r.objects.CvFromPort, eth(other, mine, 0x0800, ip4(own4, their4, 6, make([]byte, 20)))},
		{"to-port", s.objects.CvToPort, inner},
		{"from-overlay", s.objects.CvFromOverlay, inner},
		{"underlay", s.objects.CvUnderlay, eth(mine, other, 0x0800, ip4(known4, here4, 17, udp(5555, 4789, vxlan(8, 100, inner))))},
		{"underlay-other", s.objects.CvUnderlay, eth(mine, other, 0x0800, ip4(known4, here4, 6, make([]byte, 20)))},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				err := s.ns.Run(func() error {
					verdict, took, err := c.prog.Benchmark(c.frame, 200_000, nil)
					if err == nil && verdict != next {
						b.Errorf("verdict %d", verdict)
					}
					b.ReportMetric(float64(took), "ns/frame")
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
