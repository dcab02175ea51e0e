package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap is the logger that the server gets: its messages go to log, and where
// it would end the process, fail is called with the message and that goroutine
// stands still for good. fail must not block.
//
// Standing still is chosen over ending the goroutine: its deferred calls would
// run on half-done work, and the caller up the stack counts on no return.
func newZap(log *slog.Logger, fail func(cause string)) *zap.Logger {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	stop := stopHook(fail)
	return zap.New(&core{log: log}, zap.WithFatalHook(stop), zap.WithPanicHook(stop))
}

type stopHook func(cause string)

// OnWrite implements zapcore.CheckWriteHook.
func (h stopHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	h(e.Message + describe(fields))
	select {}
}

// core carries zap's entries to slog.
type core struct {
	log  *slog.Logger
	with []zapcore.Field
}

func (c *core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *core) With(f []zapcore.Field) zapcore.Core {
	return &core{log: c.log, with: append(append([]zapcore.Field(nil), c.with...), f...)}
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelDebug
	switch {
	case e.Level >= zapcore.DPanicLevel:
		level = slog.LevelError
	case e.Level == zapcore.ErrorLevel:
		level = slog.LevelWarn
	}
	c.log.Log(context.Background(), level, "store server said",
		"message", e.Message, "fields", strings.TrimPrefix(describe(append(c.with[:len(c.with):len(c.with)], fields...)), ", "))
	return nil
}

func (c *core) Sync() error { return nil }

// describe renders fields as ", key value" in their order.
func describe(fields []zapcore.Field) string {
	var b strings.Builder
	for _, f := range fields {
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			fmt.Fprintf(&b, ", %s %v", f.Key, v)
		}
	}
	return b.String()
}
