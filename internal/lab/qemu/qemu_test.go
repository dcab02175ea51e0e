package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// unpack reads an archive back, by the format's own description.
func unpack(t *testing.T, b []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for at := 0; ; {
		head := string(b[at : at+110])
		if !strings.HasPrefix(head, "070701") {
			t.Fatalf("no header at %d: %q", at, head)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(head[6+8*i:14+8*i], 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		name := string(b[at+110 : at+110+field(11)-1])
		at = (at + 110 + field(11) + 3) &^ 3
		if name == "TRAILER!!!" {
			return files
		}
		files[name] = fmt.Sprintf("%o %d %s", field(1), field(4), b[at:at+field(6)])
		at = (at + field(6) + 3) &^ 3
	}
}

func TestArchive(t *testing.T) {
	var a Archive
	a.Add("bin/busybox", 0o755, []byte("12345"))
	a.Add("init", 0o755, []byte("#!"))
	b := a.Bytes()
	want := map[string]string{"bin": "40755 2 ", "bin/busybox": "100755 1 12345", "init": "100755 1 #!"}
	got := unpack(t, b)
	for name := range want { // order-free: each is compared by itself
		if got[name] != want[name] {
			t.Errorf("%s is %q, want %q", name, got[name], want[name])
		}
	}
	if len(got) != len(want) || len(b)%512 != 0 {
		t.Errorf("%d entries in %d bytes", len(got), len(b))
	}
	var again Archive
	again.Add("init", 0o755, []byte("#!"))
	again.Add("bin/busybox", 0o755, []byte("12345"))
	if !bytes.Equal(b, again.Bytes()) {
		t.Error("the same files in another order gave other bytes")
	}
}

func TestCommandLine(t *testing.T) {
	g := Guest{
		Name: "web1", MAC: "52:54:00:00:00:01", MTU: 1450, Gateway: netip.MustParseAddr("10.1.0.1"),
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24"), netip.MustParsePrefix("fd00::5/64"), netip.MustParsePrefix("10.1.0.6/24")},
	}
	want := "cv.name=web1 cv.ip=10.1.0.5/24,10.1.0.6/24 cv.ip6=fd00::5/64 cv.gw=10.1.0.1 cv.mtu=1450"
	if got := g.CommandLine(); !strings.HasSuffix(got, want) {
		t.Errorf("%q does not end with %q", got, want)
	}
	silent := strings.Join(g.Command("qemu"), " ")
	if !strings.Contains(silent, "mac=52:54:00:00:00:01,guest_announce=off") || strings.Contains(silent, "-incoming") || strings.Contains(silent, "kvm") {
		t.Errorf("a silent guest's command: %s", silent)
	}
	g.Announce, g.DHCP, g.Incoming = true, true, "unix:/x"
	if got := g.CommandLine(); !strings.HasSuffix(got, " cv.dhcp=1 cv.announce=1") {
		t.Errorf("command line: %s", got)
	}
	if chatty := strings.Join(g.Command("qemu"), " "); strings.Contains(chatty, "guest_announce") || !strings.HasSuffix(chatty, "-incoming unix:/x") {
		t.Errorf("a chatty guest's command: %s", chatty)
	}
}

func TestWhatIsMissingIsNamedWithItsCure(t *testing.T) {
	root := t.TempDir()
	_, err := Find([]string{root})
	var missing *MissingError
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "Linux kernel") || !strings.Contains(err.Error(), root) {
		t.Fatalf("Find = %v", err)
	}
	if cure := missing.Cure("/guests"); !strings.Contains(cure, "dpkg-deb -x $d /guests;") {
		t.Errorf("cure: %s", cure)
	}
	t.Setenv("PATH", root)
	if _, err := Program(); !errors.As(err, &missing) || !strings.Contains(missing.Cure(""), "qemu-system-x86") {
		t.Errorf("Program = %v", err)
	}
}

// A DHCP client is one only with all that it is linked to, and only guests that
// ask for their addresses need one.
func TestClient(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(sh)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for name, data := range map[string][]byte{
		"usr/sbin/dhcpcd": program, "bin/busybox": []byte("x"), "boot/vmlinuz-1": []byte("x"),
		"lib/modules/1/modules.builtin": []byte("virtio_pci.ko\nvirtio_net.ko\naf_packet.ko\n"), "lib/modules/1/kernel/.keep": nil,
	} {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	m := Image{Kernel: filepath.Join(root, "boot/vmlinuz-1"), Modules: filepath.Join(root, "lib/modules/1"), Busybox: filepath.Join(root, "bin/busybox"), roots: []string{root}}
	if m.findClient(); m.Client != "" {
		t.Errorf("without its libraries it is %+v", m)
	}
	var missing *MissingError
	if _, err := m.Initramfs(true); !errors.As(err, &missing) || !strings.Contains(err.Error(), "dhcpcd") || !strings.Contains(missing.Cure("/guests"), " dhcpcd-base ") {
		t.Errorf("Initramfs = %v", err)
	}
	b, err := m.Initramfs(false)
	if err != nil || unpack(t, b)["bin/dhcpcd"] != "" {
		t.Errorf("for a guest that does not ask: %v", err)
	}

	m.roots = append(m.roots, "/")
	if m.findClient(); m.Client != filepath.Join(root, "usr/sbin/dhcpcd") || len(m.Libraries) < 2 {
		t.Fatalf("with its libraries: %+v", m)
	}
	b, err = m.Initramfs(true)
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, b)
	for _, l := range append(m.Libraries, Library{m.Client, "bin/dhcpcd"}) {
		if want, err := os.ReadFile(l.Path); err != nil || !strings.HasSuffix(files[l.Name], string(want)) || l.Name[0] == '/' {
			t.Errorf("%+v is not in the archive: %v", l, err)
		}
	}
	if files["etc/dhcpcd.conf"] == "" || files["etc/told.sh"] == "" {
		t.Error("the client's own files are not in the archive")
	}
}

// A module that is not there, or only compressed, is no kernel to boot from; a
// built-in one is.
func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "kernel/net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"modules.builtin": "kernel/net/af-packet.ko\n", "kernel/net/virtio_net.ko.xz": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if order, err := loadOrder(dir, []string{"af_packet"}); err != nil || len(order) != 0 {
		t.Errorf("built in: %v, %v", order, err)
	}
	if _, err := loadOrder(dir, []string{"virtio-net"}); err == nil || !strings.Contains(err.Error(), "virtio_net.ko") {
		t.Errorf("compressed: %v", err)
	}
}

// listen serves one connection on a socket after the other.
func listen(t *testing.T, serve func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c, bufio.NewReader(c))
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return path
}

// machine is a QEMU that answers each command by what say returns, lines of
// QMP, and an empty return.
func machine(t *testing.T, say func(command string) []string) *Monitor {
	t.Helper()
	path := listen(t, func(c net.Conn, r *bufio.Reader) {
		fmt.Fprintln(c, `{"QMP": {}}`)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			var req struct{ Execute string }
			if json.Unmarshal(line, &req) != nil {
				return
			}
			for _, l := range say(req.Execute) {
				fmt.Fprintln(c, l)
			}
		}
	})
	m, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func happened(name, data string) string {
	return fmt.Sprintf(`{"event": %q, "data": {%s}, "timestamp": {"seconds": 100, "microseconds": 5}}`, name, data)
}

const done = `{"return": {}}`

func TestMonitor(t *testing.T) {
	m := machine(t, func(command string) []string {
		switch command {
		case "query-status":
			return []string{happened("NIC_RX", ""), `{"return": {"running": true}}`}
		case "wrong":
			return []string{`{"error": {"class": "CommandNotFound", "desc": "no such thing"}}`}
		case "quit":
			return nil
		}
		return []string{done}
	})
	if on, err := m.Running(t.Context()); !on || err != nil {
		t.Errorf("running = %t, %v", on, err)
	}
	if err := m.Do(t.Context(), "wrong", nil, nil); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("an error of QEMU: %v", err)
	}
	e, err := m.Await(t.Context(), func(e Event) bool { return e.Name == "NIC_RX" })
	if err != nil || e.At.Unix() != 100 || e.At.Nanosecond() != 5000 {
		t.Errorf("event = %+v, %v", e, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Do(ctx, "quit", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a command without an answer: %v", err)
	}
}

func TestMigrate(t *testing.T) {
	start := func(events ...string) func(string) []string {
		return func(command string) []string {
			switch command {
			case "migrate":
				return append([]string{done}, events...)
			case "query-migrate":
				return []string{`{"return": {"status": "failed", "error-desc": "no room"}}`}
			}
			return []string{done}
		}
	}
	completed := []string{happened("STOP", ""), happened("MIGRATION", `"status": "completed"`)}
	src := machine(t, start(append([]string{happened("MIGRATION", `"status": "active"`)}, completed...)...))
	dst := machine(t, func(string) []string { return []string{happened("RESUME", ""), done} })
	called := 0
	moved, err := Migrate(t.Context(), src, dst, "unix:/x", func() {}, func() { called++ })
	if err != nil || called != 1 || moved.Stopped.IsZero() || moved.Resumed.IsZero() {
		t.Errorf("moved = %+v, %v, called %d times", moved, err, called)
	}
	src = machine(t, start(happened("MIGRATION", `"status": "failed"`)))
	dst = machine(t, func(string) []string { return []string{done} })
	_, err = Migrate(t.Context(), src, dst, "unix:/x", func() {}, func() { called++ })
	if !errors.Is(err, errFailed) || !strings.Contains(err.Error(), "no room") || called != 1 {
		t.Errorf("failed: %v, called %d times", err, called)
	}
}

func TestRun(t *testing.T) {
	path := listen(t, func(c net.Conn, r *bufio.Reader) {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		id, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch command {
		case "hang":
			r.ReadString('\n') // until the caller goes
		default:
			fmt.Fprintf(c, "64 bytes of another\r\nend another 0\r\nrest of it begin %s\r\nend of the line\r\nno newline end %s 7\r\n", id, id)
		}
	})
	out, code, err := Run(t.Context(), path, "x")
	if out != "end of the line\nno newline " || code != 7 || err != nil {
		t.Errorf("output %q, code %d, %v", out, code, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, _, err := Run(ctx, path, "hang"); !errors.Is(err, why) && !errors.Is(err, context.Canceled) {
		t.Errorf("a command that hangs: %v", err)
	}
}

func TestReady(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if ok, err := Ready(log); ok || err != nil {
		t.Errorf("no log yet: %t, %v", ok, err)
	}
	if err := os.WriteFile(log, []byte("[ 1.0] x\r\nguest ready\r\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if ok, err := Ready(log); !ok || err != nil {
		t.Errorf("ready = %t, %v", ok, err)
	}
	if words := strings.Fields(string(initScript)); !slices.Contains(words, `"$line")`) || !bytes.Contains(initScript, []byte(`echo "guest ready"`)) {
		t.Error("the guest's first process does not say what is waited for")
	}
}
