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
	s.row(hoststate.Key{Table: hoststate.TableSource, VNI: 100, MAC: other, IP: known6}, hoststate.Val{})
	s.row(hoststate.Key{Table: hoststate.TableRouted, VNI: 100, MAC: far, IP: known4}, hoststate.Val{})
	s.row(hoststate.Key{Table: hoststate.TableFrom, VNI: 100, IP: far4}, hoststate.Val{MAC: far})
	r := newRouted(b, routed)
	d := newDemanding(b, Limits{}, safe)
	a := newBench(b, Limits{})
	a.row(hoststate.Key{Table: hoststate.TableAlias, VNI: 100, MAC: far}, hoststate.Val{MAC: mine})
	tcp := make([]byte, 20)
	inner := eth(mine, other, 0x0800, ip4(their4, own4, 6, tcp))
	tunnelled := udp(5555, 4789, vxlan(8, 100, inner))
	for _, c := range []struct {
		name  string
		prog  *ebpf.Program
		frame []byte
	}{
		{"from-port", s.objects.CvFromPort, eth(other, mine, 0x0800, ip4(own4, their4, 6, tcp))},
		{"from-port-udp", s.objects.CvFromPort, eth(other, mine, 0x0800, ip4(own4, their4, 17, udp(5555, 5555)))},
		{"from-port-v6", s.objects.CvFromPort, eth(other, mine, 0x86dd, ip6(own6, their6, 6, tcp))},
		{"from-port-routed", r.objects.CvFromPort, eth(other, mine, 0x0800, ip4(own4, their4, 6, tcp))},
		{"from-port-demand", d.objects.CvFromPort, eth(other, mine, 0x0800, ip4(own4, their4, 6, tcp))},
		{"to-port", s.objects.CvToPort, inner},
		{"to-port-udp", s.objects.CvToPort, eth(mine, other, 0x0800, ip4(their4, own4, 17, udp(5555, 5555)))},
		{"to-port-v6", s.objects.CvToPort, eth(mine, other, 0x86dd, ip6(their6, own6, 6, tcp))},
		{"from-overlay", s.objects.CvFromOverlay, inner},
		{"from-overlay-alias", a.objects.CvFromOverlay, eth(far, router, 0x0800, ip4(far4, own4, 6, tcp))},
		{"underlay", s.objects.CvUnderlay, eth(mine, other, 0x0800, ip4(known4, here4, 17, tunnelled))},
		{"underlay-v6", s.objects.CvUnderlay, eth(mine, other, 0x86dd, ip6(known6, here6, 17, tunnelled))},
		{"underlay-routed", s.objects.CvUnderlay, eth(mine, other, 0x0800, ip4(known4, here4, 17, udp(5555, 4789, vxlan(8, 100, eth(mine, router, 0x0800, ip4(far4, own4, 6, tcp))))))},
		{"underlay-other", s.objects.CvUnderlay, eth(mine, other, 0x0800, ip4(known4, here4, 6, tcp))},
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
