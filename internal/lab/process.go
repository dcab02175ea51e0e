package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon is a process of a lab. Start tells it from another process that got
// its number later.
type Daemon struct {
	Node  string `json:"node"`
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, /proc/PID/stat field 22
}

// procState reads state and start time of a process (proc_pid_stat(5)); ok is
// false if there is none. A killed process whose first thread is a zombie while
// others still end has its files open yet: its state is 'R' until they have.
func procState(pid int) (state byte, start uint64, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, false
	}
	// The name, in brackets, may hold anything; fields go on after the last
	// bracket with field 3.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 || len(f[0]) != 1 {
		return 0, 0, false
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	state = f[0][0]
	if threads, terr := strconv.Atoi(f[17]); state == 'Z' && terr == nil && threads > 1 {
		state = 'R'
	}
	return state, start, err == nil
}

// State is "running", "stopped" (by SIGSTOP) or "dead". A zombie is dead: it
// only waits for its parent.
func (d Daemon) State() string {
	state, start, ok := procState(d.PID)
	switch {
	case !ok || start != d.Start || state == 'Z' || state == 'X':
		return "dead"
	case state == 'T' || state == 't':
		return "stopped"
	}
	return "running"
}

// signal sends sig unless the process has ended.
func (d Daemon) signal(sig syscall.Signal) error {
	if d.State() == "dead" {
		return nil
	}
	if err := unix.Kill(d.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %s to %s (process %d): %w", sig, d.Node, d.PID, err)
	}
	return nil
}

// kill ends the process at once and returns when it is dead.
func (d Daemon) kill(ctx context.Context) error {
	if err := d.signal(unix.SIGKILL); err != nil {
		return err
	}
	return poll(ctx, 10*time.Second, func() (bool, error) { return d.State() == "dead", nil })
}

// launch is how a daemon is started.
type launch struct {
	node      string // that it is of
	namespace string
	dir       string // that it works in
	log       string // path; its output is appended
	argv      []string
	files     []*os.File // its file descriptors from 3 on
	clone     uintptr    // flags of clone(2): namespaces of its own
}

// start starts a command that outlives this process: in a session of its own,
// so that a Ctrl-C here does not reach it.
func (l launch) start() (Daemon, error) {
	out, err := os.OpenFile(l.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return Daemon{}, fmt.Errorf("log of %s: %w", l.node, err)
	}
	defer out.Close()
	cmd := exec.Command(l.argv[0], l.argv[1:]...)
	cmd.Dir = l.dir
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, l.files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: l.clone}
	if err := InNS(l.namespace, cmd.Start); err != nil {
		return Daemon{}, fmt.Errorf("start daemon of %s: %w", l.node, err)
	}
	// Reaped here as long as this process lives, by init afterwards.
	go cmd.Wait()
	_, start, ok := procState(cmd.Process.Pid)
	if !ok {
		return Daemon{}, fmt.Errorf("start daemon of %s: it ended at once, see %s", l.node, l.log)
	}
	return Daemon{Node: l.node, PID: cmd.Process.Pid, Start: start}, nil
}

// runIn runs a command in a namespace to its end and returns what it printed
// on stdout. Its stderr is part of the error. env is one more variable, or
// empty.
func runIn(ctx context.Context, namespace, env string, argv []string) (string, error) {
	var out, talk bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &talk
	if env != "" {
		cmd.Env = append(os.Environ(), env)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	if err := InNS(namespace, cmd.Start); err != nil {
		return "", fmt.Errorf("start %s: %w", strings.Join(argv, " "), err)
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv[:min(2, len(argv))], " "), err, strings.TrimSpace(talk.String()+out.String()))
	}
	return out.String(), nil
}

// Exec runs a user's command in a node or VM with this process's own streams
// and returns its exit code. A guest of QEMU has its serial line only: what
// the command prints is written when it has ended.
func (l *Lab) Exec(ctx context.Context, node string, argv []string) (int, error) {
	if vm, err := l.VM(node); err == nil && vm.Qemu {
		out, code, err := l.Run(ctx, node, quoted(argv))
		io.WriteString(os.Stdout, out)
		return code, err
	}
	ns, err := l.Namespace(node)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := InNS(ns, cmd.Start); err != nil {
		return 0, fmt.Errorf("start %s in %s: %w", argv[0], node, err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("run %s in %s: %w", argv[0], node, err)
	}
	return 0, nil
}
