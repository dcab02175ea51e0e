package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Ready reports whether the guest has said on its serial line, whose log is
// given, that it has booted and takes commands.
func Ready(serialLog string) (bool, error) {
	b, err := os.ReadFile(serialLog)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("guest's serial line: %w", err)
	}
	return bytes.Contains(b, []byte("guest ready")), nil
}

// Run runs a command line in the guest, by its shell, and returns what it
// printed and its exit code. Commands of several callers run one after the
// other: QEMU lets one in at a time. When ctx ends, the command goes on in the
// guest, and the next one waits for its end.
func Run(ctx context.Context, serial, command string) (output string, code int, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", serial)
	if err != nil {
		return "", 0, fmt.Errorf("guest's serial line: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// What comes before our own mark is of a command that somebody left.
	id := strconv.FormatInt(time.Now().UnixNano(), 36)
	if _, err := fmt.Fprintf(conn, "%s %s\n", id, command); err != nil {
		return "", 0, fmt.Errorf("guest's serial line: %w", err)
	}
	var out strings.Builder
	ours := false
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return out.String(), 0, fmt.Errorf("command in the guest: %w", err)
		}
		line = strings.ReplaceAll(line, "\r", "")
		if at := strings.Index(line, "end "+id+" "); ours && at >= 0 {
			out.WriteString(line[:at]) // of an output that did not end its line
			code, err := strconv.Atoi(strings.TrimSpace(line[at+len("end "+id+" "):]))
			if err != nil {
				return out.String(), 0, fmt.Errorf("exit code of a command in the guest: %w", err)
			}
			return out.String(), code, nil
		}
		if ours {
			out.WriteString(line)
		}
		ours = ours || strings.HasSuffix(line, "begin "+id+"\n")
	}
}
