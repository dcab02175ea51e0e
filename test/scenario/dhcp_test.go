package scenario

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"culvert/internal/lab"
	"culvert/internal/overlay"
)

// client is a DHCP client that runs in a VM, of another maker than we are: what
// it makes of our answers is what a stock image does.
type client struct {
	cmd *exec.Cmd
	log string
}

// hook is what the client runs when it is told something (udhcpc(8)): it does
// as it is told, and writes down what it was told.
const hook = `#!/bin/sh
case "$1" in
bound|renew)
	ip addr replace "$ip/$mask" dev "$interface"
	[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
	set -- "$1" $staticroutes
	how=$1
	told=
	shift
	while [ $# -ge 2 ]; do
		ip route replace "$1" via "$2" dev "$interface"
		told="$told $1=$2"
		shift 2
	done
	echo "$how $ip/$mask mtu $mtu dns $dns routes${told:- none} router ${router:-none} server $serverid lease $lease" >>"$LOG"
	;;
nak) echo nak >>"$LOG" ;;
esac
`

// in runs a program in a VM until the story ends.
func (s *story) in(ts *testscript.TestScript, vm string, env []string, argv ...string) *exec.Cmd {
	s.vm(ts, vm)
	cmd := exec.Command("ip", append([]string{"netns", "exec", lab.NSOfVM(s.name, vm)}, argv...)...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ts.Check(cmd.Start())
	s.running = append(s.running, cmd)
	return cmd
}

// endPrograms ends what runs in VMs, by the number of each.
func (s *story) endPrograms() {
	for _, cmd := range s.running {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			s.t.Errorf("end %v: %v", cmd.Args, err)
		}
		_ = cmd.Wait() // it was killed: that is its error
	}
}

func (s *story) boot(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || s.clients[args[0]] != nil {
		ts.Fatalf("usage: boot VM, once each")
	}
	dir := ts.MkAbs("client-" + args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	script := filepath.Join(dir, "hook")
	ts.Check(os.WriteFile(script, []byte(hook), 0o755))
	c := &client{log: filepath.Join(dir, "log")}
	c.cmd = s.in(ts, args[0], []string{"LOG=" + c.log}, "busybox", "udhcpc", "-f", "-i", "eth0", "-s", script, "-t", "20", "-T", "1",
		"-O", "mtu", "-O", "dns", "-O", "staticroutes", "-O", "router", "-O", "lease")
	s.clients[args[0]] = c
	s.nextLine(ts, c, 0)
}

// nextLine prints what the client is told after its first n lines.
func (s *story) nextLine(ts *testscript.TestScript, c *client, n int) {
	var lines []string
	ok := s.poll(func() bool {
		b, err := os.ReadFile(c.log)
		lines = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		return err == nil && len(b) > 0 && len(lines) > n
	})
	if !ok {
		ts.Fatalf("the client was told nothing within %s; it says:\n%s", settle, c.cmd.Stdout)
	}
	fmt.Fprintln(ts.Stdout(), strings.Join(lines[n:], "\n"))
}

func (s *story) renew(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || s.clients[args[0]] == nil {
		ts.Fatalf("usage: renew VM, after boot VM")
	}
	c := s.clients[args[0]]
	b, err := os.ReadFile(c.log)
	ts.Check(err)
	ts.Check(c.cmd.Process.Signal(syscall.SIGUSR1))
	s.nextLine(ts, c, strings.Count(string(b), "\n"))
}

func (s *story) serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: serve VM FIRST LAST")
	}
	dir := ts.MkAbs("server-" + args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	conf := filepath.Join(dir, "conf")
	leases := filepath.Join(dir, "leases")
	ts.Check(os.WriteFile(leases, nil, 0o644))
	ts.Check(os.WriteFile(conf, fmt.Appendf(nil, "start %s\nend %s\ninterface eth0\nlease_file %s\npidfile %s\noption subnet 255.255.255.0\noption lease 600\n",
		args[1], args[2], leases, filepath.Join(dir, "pid")), 0o644))
	s.in(ts, args[0], nil, "busybox", "udhcpd", "-f", conf)
}

// boot6 is a client of DHCPv6: it asks, takes what is offered, and renews it.
// There is none on every machine, and its part is small.
func (s *story) boot6(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: boot6 VM")
	}
	vm := s.vm(ts, args[0])
	mac, err := overlay.ParseMAC(vm.MAC)
	ts.Check(err)
	c := client6{mac: mac, ts: ts}
	ctx, cancel := context.WithTimeout(s.ctx, settle)
	defer cancel()
	ts.Check(lab.InNS(lab.NSOfVM(s.name, vm.Name), func() error { return c.open(ctx) }))
	defer c.conn.Close()
	offer := c.ask(ctx, 1, nil, netip.Addr{})
	ip, _ := offer.lease()
	reply := c.ask(ctx, 3, offer[2], ip)
	got, valid := reply.lease()
	again, _ := c.ask(ctx, 5, reply[2], got).lease()
	if got != ip || again != ip {
		ts.Fatalf("%s was offered, %s leased and %s renewed", ip, got, again)
	}
	out, err := exec.Command("ip", "-n", lab.NSOfVM(s.name, vm.Name), "addr", "add", ip.String()+"/128", "dev", "eth0").CombinedOutput()
	if err != nil {
		ts.Fatalf("give %s its address: %v: %s", vm.Name, err, out)
	}
	if !s.poll(func() bool { // duplicate address detection, which takes a second
		out, err = exec.Command("ip", "-n", lab.NSOfVM(s.name, vm.Name), "-6", "addr", "show", "dev", "eth0", "tentative").CombinedOutput()
		return err == nil && len(out) == 0
	}) {
		ts.Fatalf("%s may not use its address: %v: %s", vm.Name, err, out)
	}
	dns, _ := netip.AddrFromSlice(reply[23])
	fmt.Fprintf(ts.Stdout(), "bound %s lease %d dns %s\n", ip, valid, dns)
}

// options6 are a message's options by code.
type options6 map[uint16][]byte

func readOptions6(b []byte) options6 {
	o := options6{}
	for len(b) >= 4 && len(b) >= 4+int(binary.BigEndian.Uint16(b[2:])) {
		n := int(binary.BigEndian.Uint16(b[2:]))
		o[binary.BigEndian.Uint16(b)] = b[4 : 4+n]
		b = b[4+n:]
	}
	return o
}

// lease is the address and the valid lifetime in the association.
func (o options6) lease() (netip.Addr, uint32) {
	if ia := o[3]; len(ia) > 12 {
		if a := readOptions6(ia[12:])[5]; len(a) >= 24 {
			return netip.AddrFrom16([16]byte(a[:16])), binary.BigEndian.Uint32(a[20:])
		}
	}
	return netip.Addr{}, 0
}

type client6 struct {
	mac  overlay.MAC
	ts   *testscript.TestScript
	conn net.PacketConn
	xid  byte
}

// open waits until the link-local address may be used: duplicate address
// detection takes a second.
func (c *client6) open(ctx context.Context) (err error) {
	for {
		addr := net.JoinHostPort(overlay.EUI64LinkLocal(c.mac).String()+"%eth0", "546")
		if c.conn, err = net.ListenPacket("udp6", addr); err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ask sends a message until it is answered.
func (c *client6) ask(ctx context.Context, typ byte, server []byte, named netip.Addr) options6 {
	c.xid++
	put := func(b []byte, code uint16, v []byte) []byte {
		b = binary.BigEndian.AppendUint16(b, code)
		return append(binary.BigEndian.AppendUint16(b, uint16(len(v))), v...)
	}
	b := put([]byte{typ, 7, 7, c.xid}, 1, append([]byte{0, 3, 0, 1}, c.mac[:]...))
	if server != nil {
		b = put(b, 2, server)
	}
	ia := []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
	if named.IsValid() {
		ia = put(ia, 5, append(named.AsSlice(), make([]byte, 8)...))
	}
	b = put(b, 3, ia)
	in := make([]byte, 1500)
	for ctx.Err() == nil {
		_, err := c.conn.WriteTo(b, &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547, Zone: "eth0"})
		c.ts.Check(err)
		c.ts.Check(c.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)))
		n, _, err := c.conn.ReadFrom(in)
		if err == nil && n > 4 && in[3] == c.xid {
			return readOptions6(bytes.Clone(in[4:n]))
		}
	}
	c.ts.Fatalf("no answer to a DHCPv6 message of type %d within %s", typ, settle)
	return nil
}
