package kernel

import (
	"context"

	"culvert/internal/hoststate"
)

// Listen calls f for each frame that the port programs hand up, one call at a
// time, until ctx ends; then it returns ctx.Err(). What came while nobody
// listened, during a restart for instance, is handed out first, as far as the
// ring held it. f must not call Close.
func (k *Kernel) Listen(ctx context.Context, f func(hoststate.Heard)) error {
	return k.again(ctx, "frames", func() error {
		set, err := k.programs()
		if err != nil {
			return err
		}
		return set.Listen(ctx, f)
	})
}
