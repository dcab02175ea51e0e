package lab

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// hush keeps in what a silent machine's device would say all the same: the
// RARP frames that QEMU sends after a migration whatever its guest's NIC is
// told, and the guest's own MLD reports (the kernel has no setting to omit
// them; nothing else of a guest has a hop-by-hop header). It is done by XDP,
// before anybody sees the frame: a filter of tc would come after packet
// sockets.
func hush(r *room, l netlink.Link) error {
	fd, err := loadXDP(hushProgram)
	if err != nil {
		return fmt.Errorf("silence %s: %w", l.Attrs().Name, err)
	}
	defer unix.Close(fd) // the device keeps it
	err = InNS(r.name, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
		msg.Index = int32(l.Attrs().Index)
		req.AddData(msg)
		xdp := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
		xdp.AddRtAttr(nl.IFLA_XDP_FD, nl.Uint32Attr(uint32(fd)))
		xdp.AddRtAttr(nl.IFLA_XDP_FLAGS, nl.Uint32Attr(nl.XDP_FLAGS_SKB_MODE))
		req.AddData(xdp)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("silence %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// Hush silences a device on a host, as those of silent machines are: for one
// that somebody else's hypervisor has made.
func (l *Lab) Hush(host, device string) error {
	node, err := openNS(NSOfNode(l.name, host))
	if err != nil {
		return err
	}
	defer node.Close()
	link, err := node.LinkByName(device)
	if err != nil {
		return fmt.Errorf("device %s on %s: %w", device, host, err)
	}
	return hush(node, link)
}

// instruction is one of eBPF (kernel: Documentation/bpf/standardization/
// instruction-set.rst): opcode, registers (source in the upper half), offset,
// immediate value.
type instruction struct {
	op   uint8
	regs uint8
	off  int16
	imm  int32
}

// Opcodes that hushProgram needs.
const (
	loadWord = 0x61 // dst = *(u32 *)(src + off)
	loadHalf = 0x69
	loadByte = 0x71
	move     = 0xbf // dst = src
	moveImm  = 0xb7
	addImm   = 0x07
	jumpGT   = 0x2d // if dst > src, by off
	jumpEQ   = 0x15 // if dst == imm, by off
	jumpNE   = 0x55
	exit     = 0x95
)

// hushProgram drops EtherType 0x8035 and IPv6 with next header 0. Types are
// compared as they stand in a frame, so their bytes are the other way round on
// a little-endian machine, the only ones that guests are emulated for.
var hushProgram = []instruction{
	{loadWord, 0x12, 0, 0},    // r2 = data
	{loadWord, 0x13, 4, 0},    // r3 = end of data
	{move, 0x24, 0, 0},        // r4 = r2
	{addImm, 0x04, 0, 21},     // the byte after IPv6's next header
	{jumpGT, 0x34, 7, 0},      // shorter: pass
	{loadHalf, 0x25, 12, 0},   // r5 = EtherType
	{jumpEQ, 0x05, 3, 0x3580}, // RARP: drop
	{jumpNE, 0x05, 4, 0xdd86}, // not IPv6: pass
	{loadByte, 0x25, 20, 0},   // r5 = next header
	{jumpNE, 0x05, 2, 0},      // not hop-by-hop: pass
	{moveImm, 0x00, 0, 1},     // XDP_DROP
	{exit, 0, 0, 0},
	{moveImm, 0x00, 0, 2}, // XDP_PASS
	{exit, 0, 0, 0},
}

// loadXDP loads a program into the kernel (bpf(2)).
func loadXDP(program []instruction) (fd int, err error) {
	var code []byte
	for _, i := range program {
		code = append(code, i.op, i.regs)
		code = binary.NativeEndian.AppendUint16(code, uint16(i.off))
		code = binary.NativeEndian.AppendUint32(code, uint32(i.imm))
	}
	license := []byte("GPL\x00")
	attr := struct {
		kind, count    uint32
		code, license  uint64
		level, size    uint32
		log            uint64
		version, flags uint32
	}{kind: unix.BPF_PROG_TYPE_XDP, count: uint32(len(program)),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	n, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if errno != 0 {
		return 0, fmt.Errorf("load program: %w", errno)
	}
	return int(n), nil
}
