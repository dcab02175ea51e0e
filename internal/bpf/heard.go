package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"culvert/internal/hoststate"
)

// heardHeader is the length of struct heard before its frame.
const heardHeader = 20

// Listen calls f for each frame that a program hands up, one call at a time,
// until ctx ends; then it returns ctx.Err(). Frames that come while nobody
// listens wait, up to about 1,700 of them; further ones are counted as
// hoststate.DropPuntLimit. A set has one listener.
func (s *Set) Listen(ctx context.Context, f func(hoststate.Heard)) error {
	r, err := ringbuf.NewReader(s.objects.CvHeard)
	if err != nil {
		return fmt.Errorf("open ring of frames: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer func() {
		if stop() {
			_ = r.Close()
		}
	}()
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if errors.Is(err, ringbuf.ErrClosed) && ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("read ring of frames: %w", err)
		}
		if h, ok := parseHeard(rec.RawSample); ok {
			f(h)
		}
	}
}

// parseHeard copies a struct heard.
func parseHeard(b []byte) (hoststate.Heard, bool) {
	if len(b) < heardHeader {
		return hoststate.Heard{}, false
	}
	n := int(binary.NativeEndian.Uint16(b[16:]))
	if n > len(b)-heardHeader {
		return hoststate.Heard{}, false
	}
	return hoststate.Heard{
		Port: int32(binary.NativeEndian.Uint32(b[8:])), Length: int(binary.NativeEndian.Uint32(b[12:])),
		ToGuest: b[18] != 0, Dropped: b[19] != 0, At: unixTime(int64(binary.NativeEndian.Uint64(b))), Frame: append([]byte(nil), b[heardHeader:heardHeader+n]...),
	}, true
}

// unixTime is a moment of CLOCK_MONOTONIC (clock_gettime(2)) by the clock that
// everything else is told by.
func unixTime(monotonic int64) int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return time.Now().UnixNano()
	}
	return time.Now().UnixNano() - (now.Nano() - monotonic)
}
