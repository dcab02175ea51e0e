package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Moved is when a migration did what. Times are of QEMU's events.
type Moved struct {
	Stopped time.Time // the guest ran no more at the source
	Resumed time.Time // it runs at the destination
}

// errFailed says that a migration was given up; the guest runs at the source.
var errFailed = errors.New("the migration failed")

// Migrate moves a running guest from src to dst, which listens at uri. It calls
// stopped as soon as the guest stands still at src, and resumed as soon as it
// runs at dst; either may still run when the other begins. When it fails, the guest
// runs at the source; when ctx ends first, the migration is called off.
func Migrate(ctx context.Context, src, dst *Monitor, uri string, stopped, resumed func()) (Moved, error) {
	events := map[string]any{"capabilities": []map[string]any{{"capability": "events", "state": true}}}
	if err := src.Do(ctx, "migrate-set-capabilities", events, nil); err != nil {
		return Moved{}, err
	}
	if err := src.Do(ctx, "migrate", map[string]string{"uri": uri}, nil); err != nil {
		return Moved{}, err
	}
	var m Moved
	// Both ends are watched at once: the source reports success before the
	// guest runs at the destination, or after.
	there, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	left := make(chan error, 1)
	go func() {
		at, err := src.left(ctx, stopped)
		m.Stopped = at
		if err != nil {
			fail(err)
		}
		left <- err
	}()
	e, err := dst.Await(there, func(e Event) bool { return e.Name == "RESUME" })
	if err == nil {
		resumed()
		m.Resumed = e.At
		err = <-left
		return m, err
	}
	if ctx.Err() != nil {
		<-left
		return Moved{}, errors.Join(err, src.cancel(context.WithoutCancel(ctx)))
	}
	return Moved{}, <-left
}

// left waits until the guest has left, and says when it stopped; it calls
// stands when it did.
func (m *Monitor) left(ctx context.Context, stands func()) (stopped time.Time, err error) {
	var s struct {
		Status string `json:"status"`
		Why    string `json:"error-desc"`
	}
	_, err = m.Await(ctx, func(e Event) bool {
		switch e.Name {
		case "STOP":
			stopped = e.At
			stands()
		case "MIGRATION":
			return json.Unmarshal(e.Data, &s) == nil && (s.Status == "completed" || s.Status == "failed" || s.Status == "cancelled")
		}
		return false
	})
	if err != nil || s.Status == "completed" {
		return stopped, err
	}
	if err := m.Do(ctx, "query-migrate", nil, &s); err != nil {
		return stopped, err
	}
	return stopped, fmt.Errorf("%w: %s %s", errFailed, s.Status, s.Why)
}

func (m *Monitor) cancel(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	return m.Do(ctx, "migrate_cancel", nil, nil)
}
