package bpf

import (
	"os"
	"strings"
)

// Whoever attaches a program, or puts a map into a map of maps, waits until no
// processor runs what was there before (tcx_entry_sync in include/net/tcx.h,
// maybe_wait_bpf_programs in kernel/bpf/syscall.c). That takes two ticks or more,
// 8 ms at 250 a second, and a program is attached with the lock of all links
// held: nobody on the machine sets a device up or writes an entry meanwhile. The
// kernel can be told to ask its processors at once instead of waiting for their
// next ticks, as it does by itself for every device that goes: some 0.03 ms.

// expedited is where that is told (kernel/ksysfs.c): not 0 makes every such wait
// on the machine a short one.
const expedited = "/sys/kernel/rcu_expedited"

// hurry is what is written there for the time of one call. The kernel takes any
// number; this one says whose it is, should we be killed in between, and the
// next call puts it right.
const hurry = "4789"

// hurried runs f with short waits. Where somebody else asks for them already, or
// where it may not be told (a read-only /sys), f runs as it is.
func hurried(f func() error) error {
	was, err := os.ReadFile(expedited)
	if now := strings.TrimSpace(string(was)); err == nil && (now == "0" || now == hurry) && os.WriteFile(expedited, []byte(hurry), 0) == nil {
		defer os.WriteFile(expedited, []byte("0"), 0) // it was just written
	}
	return f()
}
