package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
	"culvert/internal/packet"
)

// announceMax bounds the ports one announcement goes out of: a bridge has at
// most 1023 (kernel-facts 5).
const announceMax = 1023

// announce sends the frame out of every VM port of the network that is a
// member. A packet socket's frame leaves by the device and never enters the
// bridge, so that no FDB moves; its source is the address itself, which is
// what guests behind a switch expect. Ports that are down are left out: their
// guests ask anew.
func (k *Kernel) announce(r hoststate.Row) error {
	frame := packet.Announce(packet.Announcement{IP: r.Key.IP, MAC: r.Val.MAC})
	if frame == nil || !r.Val.MAC.IsUnicast() {
		return fmt.Errorf("announce %s at %s: %w", r.Key.IP, r.Val.MAC, unix.EINVAL)
	}
	devs, err := k.lookup(k.write, r.Key.VNI)
	if err != nil {
		return err
	}
	if devs.bridge == 0 {
		return fmt.Errorf("%s: %w", r.Key.VNI.Bridge(), errAbsent)
	}
	members, err := readMembers(k.nfw)
	if err != nil && !gone(err) { // without the base nobody is a member
		return fmt.Errorf("read members: %w", err)
	}
	var ports []int32
	err = eachLink(k.write, devs.bridge, func(l link) {
		if l.Kind == hoststate.LinkOther && l.Up && slices.Contains(members, l.Index) && len(ports) < announceMax {
			ports = append(ports, l.Index)
		}
	})
	if err != nil {
		return fmt.Errorf("ports of %s: %w", r.Key.VNI.Bridge(), err)
	}
	slices.SortFunc(ports, cmp.Compare)
	return k.sendOut(ports, frame, false)
}

// Bounds of a frame that is sent to a guest, in bytes: an Ethernet header, and
// an untagged frame of the usual MTU.
const (
	minSent = 14
	maxSent = 1514
)

// sendFrame sends a frame to the guest behind a VM port. That it is one is looked
// up again: an ifindex that was free may be another device's by now.
func (k *Kernel) sendFrame(port int32, frame string, past bool) error {
	if len(frame) < minSent || len(frame) > maxSent {
		return fmt.Errorf("frame of %d bytes: %w", len(frame), unix.EINVAL)
	}
	l, err := getLink(k.write, port, "")
	if err != nil {
		return err
	}
	if l.Kind != hoststate.LinkOther || l.Master == 0 {
		return fmt.Errorf("device %d is no bridge's port: %w", port, errAbsent)
	}
	return k.sendOut([]int32{port}, []byte(frame), past)
}

// sendOut sends one frame out of each port. past: straight to the driver, past
// the queue and the programs before it (packet(7), PACKET_QDISC_BYPASS;
// net/core/dev.c __dev_direct_xmit runs no egress hook), so that a device that
// passes nothing can be asked who is behind it.
func (k *Kernel) sendOut(ports []int32, frame []byte, past bool) error {
	if len(ports) == 0 {
		return nil
	}
	fd := -1
	err := inNS(k.ns, func() (err error) {
		// Protocol 0: the socket receives nothing.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	var all error
	if past {
		all = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1))
	}
	for _, i := range ports {
		err := unix.Sendto(fd, frame, unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: int(i), Halen: 6})
		switch {
		case err == nil, errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENETDOWN):
		case errors.Is(err, unix.ENOBUFS):
			// The port's program dropped it (it is not open, or has the address
			// itself), or its queue is full; a guest that missed it asks.
		default:
			all = errors.Join(all, fmt.Errorf("port %d: %w", i, err))
		}
	}
	return errors.Join(all, unix.Close(fd))
}
