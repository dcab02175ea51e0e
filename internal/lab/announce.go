package lab

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"culvert/internal/overlay"
)

// Speak makes the VM announce each of its addresses, as a guest does at boot
// and after a migration: a gratuitous ARP request (RFC 5227 section 2.3), an
// unsolicited neighbour advertisement (RFC 4861 section 7.2.6).
func (g Guest) Speak() error {
	f, mac, err := packetSocket(NSOfVM(g.Lab, g.VM), "eth0", 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range g.Addresses {
		say := gratuitous
		if p.Addr().Is6() {
			say = advertisement
		}
		if _, err := f.Write(say(mac, p.Addr())); err != nil {
			return fmt.Errorf("announce %s of %s: %w", p.Addr(), g.VM, err)
		}
	}
	return nil
}

func gratuitous(mac net.HardwareAddr, a netip.Addr) []byte {
	b := ethernet(mac, overlay.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	ip := a.As4()
	b = append(append(b, mac...), ip[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, ip[:]...)
}

func advertisement(mac net.HardwareAddr, a netip.Addr) []byte {
	src := a.As16()
	all := netip.MustParseAddr("ff02::1").As16()
	na := []byte{136, 0, 0, 0, 0x20, 0, 0, 0} // override
	na = append(na, src[:]...)
	na = append(append(na, 2, 1), mac...) // target link-layer address option
	pseudo := append(append([]byte{}, src[:]...), all[:]...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(na)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	sum := checksum(append(pseudo, na...))
	na[2], na[3] = byte(sum>>8), byte(sum)
	b := ethernet(mac, overlay.MAC{0x33, 0x33, 0, 0, 0, 1}, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0, 0, byte(len(na)), unix.IPPROTO_ICMPV6, 255)
	b = append(append(b, src[:]...), all[:]...)
	return append(b, na...)
}
