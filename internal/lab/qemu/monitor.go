package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Event is what QEMU tells of by itself (docs/interop/qmp-spec).
type Event struct {
	Name string
	Data json.RawMessage
	At   time.Time // by QEMU's own clock, which is the machine's
}

// Monitor is a QMP session. Its methods are for one goroutine at a time.
type Monitor struct {
	conn    net.Conn
	events  chan Event // what came and was not asked for yet
	replies chan reply // closed when the session ends
	kept    []Event    // events that were passed over by Await
}

type reply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// errEnded says that QEMU closed the session: normally, that it ended.
var errEnded = errors.New("the monitor's session ended")

// eventsHeld is how many events wait for somebody to look at them. A guest's
// whole life has a few dozen.
const eventsHeld = 1024

// Dial opens a session on the monitor's socket. QEMU takes one at a time: a
// second one waits, at most until ctx ends, for the first to be closed.
func Dial(ctx context.Context, socket string) (*Monitor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("QEMU's monitor: %w", err)
	}
	m := &Monitor{conn: conn, events: make(chan Event, eventsHeld), replies: make(chan reply, 1)}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	r := bufio.NewReader(conn)
	_, err = r.ReadBytes('\n') // its greeting
	if !stop() || err != nil {
		conn.Close()
		return nil, fmt.Errorf("QEMU's monitor: greeting: %w", errors.Join(err, context.Cause(ctx)))
	}
	go m.read(r)
	if err := m.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close ends the session.
func (m *Monitor) Close() { m.conn.Close() }

func (m *Monitor) read(r *bufio.Reader) {
	defer close(m.replies)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var msg struct {
			reply
			Event     string          `json:"event"`
			Data      json.RawMessage `json:"data"`
			Timestamp struct {
				Seconds, Microseconds int64
			} `json:"timestamp"`
		}
		if json.Unmarshal(line, &msg) != nil {
			return
		}
		if msg.Event == "" {
			m.replies <- msg.reply
			continue
		}
		e := Event{msg.Event, msg.Data, time.Unix(msg.Timestamp.Seconds, msg.Timestamp.Microseconds*1000)}
		select {
		case m.events <- e:
		default: // nobody looks: the latest are lost, and Await says so by its end
		}
	}
}

// Do runs a command of QMP and decodes what it returns into result, unless
// that is nil. args is a struct or map that encodes to the command's
// arguments, or nil.
func (m *Monitor) Do(ctx context.Context, command string, args, result any) error {
	req := map[string]any{"execute": command}
	if args != nil {
		req["arguments"] = args
	}
	b, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("QEMU %s: %w", command, err)
	}
	if _, err := m.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("QEMU %s: %w", command, err)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("QEMU %s: %w", command, context.Cause(ctx))
	case r, ok := <-m.replies:
		switch {
		case !ok:
			return fmt.Errorf("QEMU %s: %w", command, errEnded)
		case r.Error != nil:
			return fmt.Errorf("QEMU %s: %s (%s)", command, r.Error.Desc, r.Error.Class)
		case result != nil:
			return json.Unmarshal(r.Return, result)
		}
	}
	return nil
}

// Await returns the first event that fits and was not returned before, since
// the session began.
func (m *Monitor) Await(ctx context.Context, fits func(Event) bool) (Event, error) {
	for i, e := range m.kept {
		if fits(e) {
			m.kept = append(m.kept[:i:i], m.kept[i+1:]...)
			return e, nil
		}
	}
	for {
		select {
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		case e := <-m.events:
			if fits(e) {
				return e, nil
			}
			m.kept = append(m.kept, e)
		}
	}
}

// Running reports whether the guest runs: false before it came in by a
// migration, and after it left by one.
func (m *Monitor) Running(ctx context.Context) (bool, error) {
	var status struct {
		Running bool `json:"running"`
	}
	err := m.Do(ctx, "query-status", nil, &status)
	return status.Running, err
}

// Quit ends QEMU. That the session ends with it is no error.
func (m *Monitor) Quit(ctx context.Context) error {
	if err := m.Do(ctx, "quit", nil, nil); err != nil && !errors.Is(err, errEnded) {
		return err
	}
	return nil
}
