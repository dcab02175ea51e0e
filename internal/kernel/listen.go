package kernel

import (
	"context"
	"time"

	"culvert/internal/hoststate"
)

// Listen calls f for each frame that the port programs hand up, one call at a
// time, until ctx ends; then it returns ctx.Err(). What came while nobody
// listened, during a restart for instance, is handed out first, as far as the
// ring held it. f must not call Close.
func (k *Kernel) Listen(ctx context.Context, f func(hoststate.Heard)) error {
	for pause := reopenMin; ctx.Err() == nil; pause = min(2*pause, reopenMax) {
		set, err := k.programs()
		if err == nil {
			err = set.Listen(ctx, f)
		}
		if ctx.Err() != nil {
			break
		}
		k.log.Warn("frames interrupted, listening anew", "err", err, "in", pause)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
	return ctx.Err()
}
